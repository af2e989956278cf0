"""A web app behind a real uvicorn on loopback, in a thread of this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

START_S = 10.0


class _Server(uvicorn.Server):
    """uvicorn, but saying when it is ready."""

    ready: threading.Event

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        self.ready.set()


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """
    A server that runs until the block ends.

    Args:
        app: An ASGI application.

    Yields:
        Its URL.
    """
    # The protocol by name: asyncio switches Nagle's algorithm off only where it sees TCP.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(256)
        settings = uvicorn.Config(app, loop="asyncio", ws="none", lifespan="off", log_config=None, access_log=False)
        server = _Server(settings)
        server.ready = threading.Event()
        thread = threading.Thread(target=server.run, args=([listener],), name="web app", daemon=True)
        thread.start()
        try:
            if not server.ready.wait(START_S):
                raise TimeoutError(f"the web app did not start within {START_S} s")
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(START_S)
