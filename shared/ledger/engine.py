"""Find and open the ledger's database, SQLite with special care or PostgreSQL; each wait for it has a bound."""

from __future__ import annotations

import logging
import os
import random
import re
import sqlite3
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from shared.config import load_settings
from shared.errors import ConfigurationError
from shared.internal.extras import has_extra, install_command
from shared.ledger.deadline import progressed, seconds_left

logger = logging.getLogger("agentswarm_tools")

# SQLite releases without the WAL-reset bug, which can lose committed pages when several processes share a WAL file.
# Source: sqlite.org, release notes of 3.51.3 (read 2026-11-23).
_SAFE_WAL = (((3, 51, 3), (99,)), ((3, 50, 7), (3, 51)), ((3, 44, 6), (3, 45)))
# Options of a SQLite URL that do not change which database it is, or how it is opened.
_HARMLESS_OPTIONS = frozenset({"timeout", "check_same_thread"})
# The longest pause before a lock that another program holds is tried again. SQLite's own pauses grow to 0.1 s, so with
# many writers some would never get it.
_MAX_PAUSE_S = 0.004
# File systems on which SQLite's locks do not work reliably between machines. Source: sqlite.org/faq.html and
# howtocorrupt.html, section 2.1 (read 2026-11-28).
_NETWORK_FILE_SYSTEM = re.compile(
    r"nfs\d*|cifs|smb\w*|9p|afs|ncpfs|ceph|glusterfs|lustre|beegfs|fuse\.(sshfs|s3fs|gcsfuse|rclone|glusterfs|ceph\w*)"
)
_MOUNTS = Path("/proc/self/mounts")

FileIdentity = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Patience:
    """
    How long the store is waited for, in seconds.

    Args:
        call_s: For all that one write needs: to connect, to get a lock, to write and to commit.

        read_s: For each statement of a report; connecting takes at most `call_s`.
    """

    call_s: float
    read_s: float

    @classmethod
    def of_settings(cls) -> Patience:
        settings = load_settings()
        return cls(settings.store_timeout, settings.store_read_timeout)


def wal_is_safe(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> bool:
    """Whether this SQLite may use write-ahead logging with several processes."""
    return any(low <= version < high for low, high in _SAFE_WAL)


def parse_url(url: str) -> URL:
    try:
        # Hosting providers give out this older scheme.
        parsed = make_url(f"postgresql://{url.removeprefix('postgres://')}" if url.startswith("postgres://") else url)
        backend = parsed.get_backend_name()
    except (ArgumentError, SQLAlchemyError, ValueError):
        raise ConfigurationError(
            "AGENTSWARM_DATABASE_URL is not a database URL", hint="Give sqlite:///path or postgresql://host/name."
        ) from None
    if backend == "sqlite":
        return _parse_sqlite(parsed)
    if backend != "postgresql":
        raise ConfigurationError(
            f"AGENTSWARM_DATABASE_URL names {backend}, which is not supported", hint="Use SQLite or PostgreSQL."
        )
    if not has_extra("postgres"):
        raise ConfigurationError("PostgreSQL needs psycopg", hint=f"Install it with: {install_command('postgres')}")
    return parsed.set(drivername="postgresql+psycopg")


def _parse_sqlite(parsed: URL) -> URL:
    """
    The URL of a file, absolute, so that it stays the same file when the working directory changes.

    Raises:
        ConfigurationError: It names no file that lasts.
    """
    name = parsed.database or ""
    options = sorted(option for option in parsed.query if option.lower() not in _HARMLESS_OPTIONS)
    if not name or ":memory:" in name or name.lower().startswith("file:") or options:
        # SQLite's own URIs can name databases in memory, read-only ones, or ones without locks.
        raise ConfigurationError(
            "AGENTSWARM_DATABASE_URL names no file",
            hint="Give sqlite:///path/to/ledger.sqlite3, without options; a database in memory would be lost.",
        )
    try:
        path = Path(name).absolute()
    except FileNotFoundError:
        raise ConfigurationError(
            "AGENTSWARM_DATABASE_URL is relative to the working directory, which was deleted",
            hint="Give an absolute path: sqlite:////path/to/ledger.sqlite3.",
        ) from None
    return parsed.set(drivername="sqlite+pysqlite", database=str(path), query={})


def file_of(url: URL) -> Path | None:
    """The ledger's file; None for other databases."""
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def file_identity(path: Path | None) -> FileIdentity | None:
    """
    Which file lies at a path now; None when there is none.

    The file must not be opened for that: closing it would drop the locks of every SQLite connection in the process.
    """
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def create_engine(url: URL, patience: Patience) -> Engine:
    engine = _create_engine(url, patience)
    sa.event.listen(engine, "after_cursor_execute", lambda *_: progressed())
    return engine


def _create_engine(url: URL, patience: Patience) -> Engine:
    if url.get_backend_name() == "postgresql":
        return _create_postgres(url, patience)
    path = Path(url.database or "")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    _warn_of_network(path)
    engine = sa.create_engine(
        url, connect_args={"timeout": patience.call_s, "check_same_thread": False}, pool_timeout=patience.call_s
    )
    sa.event.listen(engine, "connect", _prepare_sqlite)
    _bound_sqlite(engine, patience.call_s)
    return engine


def _create_postgres(url: URL, patience: Patience) -> Engine:
    from shared.ledger.bounded_postgres import connect_in_time, connection_class

    engine = sa.create_engine(url, pool_pre_ping=True, pool_timeout=patience.call_s)
    connections = connection_class(patience.read_s)

    def connect(_dialect: Any, _record: Any, arguments: Any, parameters: dict[str, Any]) -> Any:
        return connect_in_time(lambda: connections.connect(*arguments, **parameters), patience.call_s)

    sa.event.listen(engine, "do_connect", connect)
    return engine


def limit_on_server(connection: Connection, statement_s: float, lock_s: float) -> None:
    """
    Let PostgreSQL give up as well, within this transaction: closing a socket does not end what its server is doing.

    A little earlier than we do, so that the connection can be kept.
    """
    if connection.dialect.name == "postgresql":
        statement_ms = round(min(statement_s, _MAX_LIMIT_S) * 900)
        values = {"statement": f"{max(1, statement_ms)}", "lock": f"{max(1, round(lock_s * 900))}"}
        connection.execute(_LIMITS, values)


_MAX_LIMIT_S = 3600.0
_LIMITS = sa.text(
    "SELECT set_config('statement_timeout', :statement, true), set_config('lock_timeout', :lock, true), "
    "set_config('idle_in_transaction_session_timeout', '60000', true)"
)


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None
    connection.execute(f"PRAGMA journal_mode = {'WAL' if wal_is_safe() else 'TRUNCATE'}").fetchall()
    connection.execute("PRAGMA synchronous = FULL")


def _bound_sqlite(engine: Engine, patience_s: float) -> None:
    """Limit every wait for a lock: that of a writer to begin, that of a commit for readers, and that of readers."""

    def begin(connection: Connection) -> None:
        raw = _raw(connection)
        raw.execute("PRAGMA busy_timeout = 0")
        limit_s = min(patience_s, seconds_left())
        if connection.get_execution_options().get("ledger_write"):
            # At once: upgrading a read lock later can fail without waiting.
            _poll(raw, "BEGIN IMMEDIATE", limit_s)
        else:
            raw.execute("BEGIN")
            _poll(raw, "SELECT 1 FROM sqlite_master LIMIT 1", limit_s)
        if not raw.in_transaction:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        _wait_for_locks(raw, patience_s)

    def commit(connection: Connection) -> None:
        _wait_for_locks(_raw(connection), patience_s)

    sa.event.listen(engine, "begin", begin)
    sa.event.listen(engine, "commit", commit)


def _poll(raw: sqlite3.Connection, statement: str, limit_s: float) -> None:
    """
    Take a lock, or give up in time; then the next statement raises the error, as SQLAlchemy has it.

    Not by SQLite's own waiting, which Ctrl-C does not interrupt.
    """
    until = time.monotonic() + limit_s
    while True:
        try:
            raw.execute(statement).fetchall()
            return
        except sqlite3.Error as error:
            if not is_locked(error) or time.monotonic() >= until:
                return
        time.sleep(random.uniform(0, _MAX_PAUSE_S))  # noqa: S311 - so that waiting programs do not keep step


def _wait_for_locks(raw: sqlite3.Connection, patience_s: float) -> None:
    raw.execute(f"PRAGMA busy_timeout = {round(min(patience_s, seconds_left()) * 1000)}")


def _raw(connection: Connection) -> sqlite3.Connection:
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection), "the driver is pysqlite"  # noqa: S101
    return raw


def is_locked(error: BaseException) -> bool:
    """Whether SQLite gave up on a lock that another program holds."""
    code = getattr(error, "sqlite_errorcode", None) or 0
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def network_file_system(path: Path, mounts: Path = _MOUNTS) -> str | None:
    """The kind of network file system that a path lies on; None when it lies on none, or the system does not tell."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found = [line.split(" ")[1:3] for line in lines if line.count(" ") >= 3]
    around = [(Path(_unescaped(place)), kind) for place, kind in found if path.is_relative_to(_unescaped(place))]
    kind = max(enumerate(around), key=lambda each: (len(each[1][0].parts), each[0]))[1][1] if around else ""
    return kind if _NETWORK_FILE_SYSTEM.fullmatch(kind) else None


def _unescaped(place: str) -> str:
    """The mount table writes spaces and the like as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), place)


@lru_cache(maxsize=64)
def _warn_of_network(path: Path) -> None:
    """Warn once of a ledger that several machines could lose together."""
    kind = network_file_system(path.resolve())
    if kind is not None:
        logger.warning(
            "The ledger %s lies on a network folder (%s), where SQLite's locks are not reliable: records may be lost. "
            "Use a local folder, or PostgreSQL.",
            path,
            kind,
        )
