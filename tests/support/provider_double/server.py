"""Starting and stopping the double: uvicorn in a thread, on a port of its own."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from .app import application
from .double import Double

START_S = 10.0


class _Server(uvicorn.Server):
    """uvicorn, but saying when it is ready."""

    ready: threading.Event

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        self.ready.set()


@contextmanager
def running() -> Iterator[Double]:
    """A double that runs until the block ends."""
    # The protocol by name: asyncio switches Nagle's algorithm off only where it sees TCP.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(2048)
        double = Double(listener.getsockname()[1])
        config = uvicorn.Config(
            application(double),
            loop="asyncio",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=600,
            timeout_graceful_shutdown=5,
        )
        server = _Server(config)
        server.ready = threading.Event()
        thread = threading.Thread(target=server.run, args=([listener],), name="provider double", daemon=True)
        thread.start()
        try:
            if not server.ready.wait(START_S):
                raise TimeoutError(f"the provider double did not start within {START_S} s")
            yield double
        finally:
            double.close()
            server.should_exit = True
            thread.join(START_S)
