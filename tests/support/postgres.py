"""A throw-away PostgreSQL server for tests, found where Debian, Homebrew or PATH have it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from shared.ledger.store import Ledger

_NOBODY = "nobody"


def programs() -> Path | None:
    """The folder of initdb and pg_ctl; None where PostgreSQL is not installed."""
    on_path = shutil.which("initdb")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    folders = [Path(on_path).parent] if on_path else [path.parent for path in reversed(installed)]
    return next((folder for folder in folders if (folder / "pg_ctl").exists()), None)


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """
    A server that listens on a socket in a folder of its own, and nowhere else.

    Yields:
        What to put `{database}` into to get the URL of a database.
    """
    # pytest's folders are closed to the user that the server runs as.
    home = Path(tempfile.mkdtemp(prefix="asw-pg-", dir=tempfile.gettempdir()))
    data = home / "data"
    try:
        if os.geteuid() == 0:
            os.chown(home, pwd.getpwnam(_NOBODY).pw_uid, -1)
        _run([folder / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"])
        options = f"-k {home} -c listen_addresses= -c fsync=off -c max_connections=60"
        _run([folder / "pg_ctl", "-w", "-D", data, "-l", home / "log", "-o", options, "start"])
        try:
            yield f"postgresql://postgres:hunter2@/{{database}}?host={home}"
        finally:
            _run([folder / "pg_ctl", "-w", "-D", data, "-m", "immediate", "stop"])
    finally:
        shutil.rmtree(home)


def new_database(server: str, template: str = "template0") -> str:
    """The URL of a new database, which is empty unless it is the copy of another."""
    name = f"t{uuid.uuid4().hex}"
    with psycopg.connect(server.format(database="postgres"), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    return server.format(database=name)


def new_ledger(server: str) -> str:
    """The URL of a ledger as it is created: a copy, since creating one takes longer than most tests do."""
    return new_database(server, _empty_ledger(server))


@cache
def _empty_ledger(server: str) -> str:
    url = new_database(server)
    with closing(Ledger(url)) as ledger:
        ledger.check_writable()
    return str(conninfo_to_dict(url)["dbname"])


def _run(command: Sequence[Any]) -> None:
    """The server refuses to run as root."""
    who: dict[str, Any] = {"user": _NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(
        list(map(str, command)), check=False, stdin=subprocess.DEVNULL, capture_output=True, cwd="/", timeout=60, **who
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.decode()[-500:]}")
