"""A PostgreSQL server as if it were a millisecond away: a proxy in a process of its own that passes bytes on later."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


async def _serve(path: str) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(path)
        await asyncio.gather(_pass_on(reader, back), _pass_on(there, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bytes arrive half a round trip after they were sent, in their order, and do not wait for each other."""
    loop = asyncio.get_running_loop()
    while data := await reader.read(65536):
        loop.call_later(ROUND_TRIP_S / 2, writer.write, data)
    loop.call_later(ROUND_TRIP_S / 2, writer.close)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
