"""A webhook on loopback that keeps what it is sent, and answers as a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Empty, Queue
from typing import Any

SECRET = "services/T0123/B4567/a-token-nobody-may-see"
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Message:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> dict[str, Any]:
        """The body's JSON."""
        found: dict[str, Any] = json.loads(self.content)
        return found


@dataclass(slots=True)
class Webhook:
    """`status` and `headers` are answered; while `is_open` is not set, nothing is, though the request was read."""

    url: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    is_open: threading.Event = field(default_factory=threading.Event)
    _messages: Queue[Message] = field(default_factory=Queue)

    def take(self) -> Message:
        """The next message, for which it waits."""
        return self._messages.get(timeout=_PATIENCE_S)

    def taken(self) -> list[Message]:
        """All messages that have come and were not taken."""
        found = []
        try:
            while True:
                found.append(self._messages.get_nowait())
        except Empty:
            return found


@contextmanager
def listening() -> Iterator[Webhook]:
    """A webhook that answers until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            hook._messages.put(Message(self.path, headers, content))
            hook.is_open.wait(_PATIENCE_S)
            self.send_response(hook.status)
            for name, value in {"Content-Length": "2", **hook.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"ok")

        def do_GET(self) -> None:
            self.headers["Content-Length"] = "0"
            self.do_POST()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hook = Webhook(f"http://127.0.0.1:{server.server_address[1]}/{SECRET}")
    hook.is_open.set()
    thread = threading.Thread(target=server.serve_forever, name="webhook", daemon=True)
    thread.start()
    try:
        yield hook
    finally:
        hook.is_open.set()
        server.shutdown()
        server.server_close()
        thread.join(_PATIENCE_S)
