"""A web server on loopback that stands for any https host, from a thread and without TLS (internet.py has that)."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from shared.images import fetch
from tests.support.provider_double import dial

PUBLIC = "93.184.216.34"


class Web:
    """What it serves: bytes, or a status with headers, by "host/path"; anything else is not there."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes | tuple[int, dict[str, str]]] = {}
        self.everywhere: bytes | None = None
        """Served where no page is."""
        self.asked: list[str] = []
        self.port = 0

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        place = f"{handler.headers['host']}{handler.path}"
        self.asked.append(place)
        page = self.pages.get(place.partition("?")[0], self.everywhere)
        status, headers, body = 200, {"content-type": "text/plain"}, b""
        if page is None:
            status = 404
        elif isinstance(page, bytes):
            body = page
        else:
            status, headers = page
        handler.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)


@contextmanager
def serving() -> Iterator[Web]:
    """A server until the block ends."""
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            web.answer(self)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        web.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield web
        finally:
            server.shutdown()
            thread.join()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """Every host of the web leads here."""

    async def resolve(host: str, _port: int) -> list[str]:
        return [host.strip("[]") if _is_address(host) else PUBLIC]

    with serving() as found:
        monkeypatch.setattr(fetch, "resolve", resolve)
        monkeypatch.setattr(fetch, "dialler", lambda: dial.AsyncBackend(lambda _: ("127.0.0.1", found.port)))
        yield found
