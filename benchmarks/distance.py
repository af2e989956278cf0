"""A PostgreSQL server as if it were a millisecond away: a proxy in a process of its own that passes bytes on later."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.contest import ROOT
from tests.support import postgres

ROUND_TRIP_S = 0.001


@contextmanager
def distant_database() -> Iterator[str]:
    """The URL of an empty database whose server is a round trip of ROUND_TRIP_S away, and keeps what it commits."""
    programs = postgres.programs()
    if programs is None:
        raise SystemExit("PostgreSQL is not installed.")
    with postgres.running(programs) as server:
        url = postgres.new_database(server)
        where, _, folder = url.partition("?host=")
        command = [sys.executable, "-m", "benchmarks.distance", str(Path(folder) / ".s.PGSQL.5432")]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None, "it was asked for"  # noqa: S101
            port = int(process.stdout.readline())
            try:
                yield where.replace("@/", f"@127.0.0.1:{port}/")
            finally:
                process.terminate()


def _serve(path: str) -> None:
    """Bytes arrive half a round trip after they were sent, in their order, and do not wait for each other."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(listener.getsockname()[1], flush=True)
    others: dict[socket.socket, socket.socket] = {}
    due: deque[tuple[float, socket.socket, bytes]] = deque()
    while True:
        left_s = max(0.0, due[0][0] - time.monotonic()) if due else None
        # An event loop's timers are of whole milliseconds.
        for each in select.select([listener, *others], [], [], left_s)[0]:
            if each is listener:
                near, far = listener.accept()[0], socket.socket(socket.AF_UNIX)
                near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                far.connect(path)
                others |= {near: far, far: near}
                continue
            data = _received(each)
            due.append((time.monotonic() + ROUND_TRIP_S / 2, others[each], data))
            if not data:
                del others[each]
        while due and due[0][0] <= time.monotonic():
            _, other, data = due.popleft()
            with suppress(OSError):  # it has hung up meanwhile
                other.sendall(data) if data else other.shutdown(socket.SHUT_WR)


def _received(end: socket.socket) -> bytes:
    try:
        return end.recv(65536)
    except OSError:
        return b""


if __name__ == "__main__":
    _serve(sys.argv[1])
