"""A TCP proxy in front of a PostgreSQL server that goes silent when a client says a certain word."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


class SilentProxy:
    """
    Passes bytes on until it goes silent: connections stay open, and nothing passes in either direction any more.

    `silent_at` is the word in what a client sends that starts the silence (it is still passed on), b"" for the moment
    of connecting, or None for never.
    """

    def __init__(self, server: Path) -> None:
        self._server = str(server)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.silent_at: bytes | None = None
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                self._open += [client, server]
                server.connect(self._server)
                for source, target in ((client, server), (server, client)):
                    self._start(self._pass_on, source, target, source is client)

    def _pass_on(self, source: socket.socket, target: socket.socket, is_client: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if self.silent_at == b"":
                    continue
                if is_client and self.silent_at is not None and self.silent_at in data:
                    self.silent_at = b""
                elif self.silent_at == b"":
                    continue
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close every connection."""
        for each in (self._listener, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # a thread that waits on it would keep it open
        for thread in self._threads:
            thread.join(5)
        for each in (self._listener, *self._open):
            each.close()


@contextmanager
def silent_proxy(folder: str) -> Iterator[SilentProxy]:
    """A proxy to the server whose socket lies in a folder."""
    proxy = SilentProxy(Path(folder) / ".s.PGSQL.5432")
    try:
        yield proxy
    finally:
        proxy.close()
