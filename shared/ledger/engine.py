"""Find and open the ledger's database, SQLite with special care or PostgreSQL; each wait for it has a bound."""

from __future__ import annotations

import logging
import os
import random
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DisconnectionError, SQLAlchemyError

from shared.config import load_settings
from shared.errors import ConfigurationError
from shared.internal.extras import has_extra, install_command
from shared.ledger.deadline import progressed, seconds_left
from shared.ledger.sqlite_library import (
    FileIdentity,
    file_identity,
    known,
    library,
    library_name,
    open_file,
    wal_is_safe,
)

logger = logging.getLogger("agentswarm_tools")

# Options of a SQLite URL that do not change which database it is, or how it is opened.
_HARMLESS_OPTIONS = frozenset({"timeout", "check_same_thread"})
# Maximum seconds that a new connection tries to switch the ledger to a write-ahead log.
_SWITCHING_S = 0.5
# The longest pause before a lock that another program holds is tried again. SQLite's own pauses grow to 0.1 s, so with
# many writers some would never get it.
_MAX_PAUSE_S = 0.004
_MIN_PAUSE_S = 0.0002
# After so many seconds the pauses are half as long, after twice as many a third, and so on.
_SENIORITY_S = 0.2
# File systems on which SQLite's locks do not work reliably between machines. Source: sqlite.org/faq.html and
# howtocorrupt.html, section 2.1 (read 2026-11-28).
_NETWORK_FILE_SYSTEM = re.compile(
    r"nfs\d*|cifs|smb\w*|9p|afs|ncpfs|ceph|glusterfs|lustre|beegfs|fuse\.(sshfs|s3fs|gcsfuse|rclone|glusterfs|ceph\w*)"
)
# A write-ahead log needs memory that all processes share, which only these are known to have. Source:
# sqlite.org/wal.html (read 2026-11-28). A folder that a virtual machine shares with its host (virtiofs, 9p) has not.
_LOCAL_FILE_SYSTEM = re.compile(r"(ext[234]|xfs|btrfs|zfs|f2fs|jfs|bcachefs|tmpfs|ramfs|overlay|ecryptfs|ntfs3?)?")
_MOUNTS = Path("/proc/self/mounts")
# The log is cut to this size, in bytes, when it is begun anew after a long read has let it grow.
_MAX_LOG = 16 * 2**20


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


def create_engine(url: URL, patience: Patience) -> Engine:
    engine = _create_engine(url, patience)
    sa.event.listen(engine, "after_cursor_execute", lambda *_: progressed())
    return engine


def _create_engine(url: URL, patience: Patience) -> Engine:
    if url.get_backend_name() == "postgresql":
        return _create_postgres(url, patience)
    path = Path(url.database or "")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _create_file(path)
    _warn_of_network(path)
    options: dict[str, Any] = {"pool_timeout": patience.call_s}
    if is_frozen(path):
        url, options = _frozen(url), {"poolclass": sa.NullPool}
    engine = sa.create_engine(url, module=library(), **options)

    def connect(_dialect: Any, _record: Any, arguments: Any, parameters: dict[str, Any]) -> Any:
        return open_file(path, arguments[0], **parameters | {"timeout": patience.call_s, "check_same_thread": False})

    sa.event.listen(engine, "do_connect", connect)
    sa.event.listen(engine, "connect", partial(_prepare_sqlite, path))
    sa.event.listen(engine, "checkout", partial(_check_log, path))
    _bound_sqlite(engine, patience.call_s)
    return engine


def _create_file(path: Path) -> None:
    """
    Create a file that only its owner can read, unless there is one.

    What lies beside it belongs to a ledger that was moved away: SQLite would take it for the new one's.
    """
    if path.exists():
        return
    with _only_one(path.parent):
        if not path.exists():
            for beside in (log_of(path), _memory_of(path)):
                beside.unlink(missing_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Let one process at a time create a ledger in a folder."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def log_of(path: Path) -> Path:
    """The write-ahead log of a SQLite file."""
    return path.with_name(f"{path.name}-wal")


def _memory_of(path: Path) -> Path:
    """The index of the log, which all processes that have the file open share."""
    return path.with_name(f"{path.name}-shm")


def is_frozen(path: Path) -> bool:
    """Whether a file lies on a file system that is mounted read-only, and no process has it open to write."""
    if not hasattr(os, "statvfs"):
        return False
    try:
        return bool(os.statvfs(path.parent).f_flag & os.ST_RDONLY) and not log_of(path).exists()
    except OSError:
        return False


def _frozen(url: URL) -> URL:
    """The URL of a file that is only read: with a write-ahead log, SQLite would have to write beside it for that."""
    return url.set(database=f"file:{quote(url.database or '')}", query={"immutable": "1", "uri": "true"})


def _create_postgres(url: URL, patience: Patience) -> Engine:
    from shared.ledger.bounded_postgres import connect_in_time, connection_class

    # No statement is prepared on the server: behind a pooler each transaction may have another connection. And none is
    # sent to see whether a connection still lives: whoever finds it dead tries once more on a new one.
    # BEGIN is sent here, because the driver would wait for its answer also where other statements could go along.
    arguments = {"prepare_threshold": None, "autocommit": True}
    engine = sa.create_engine(url, pool_timeout=patience.call_s, connect_args=arguments)
    connections = connection_class(patience.read_s)

    def connect(_dialect: Any, _record: Any, arguments: Any, parameters: dict[str, Any]) -> Any:
        return connect_in_time(lambda: connections.connect(*arguments, **parameters), patience.call_s)

    def begin(connection: Connection) -> None:
        if not connection.get_execution_options().get("ledger_begins_later"):
            connection.exec_driver_sql("BEGIN")

    sa.event.listen(engine, "do_connect", connect)
    sa.event.listen(engine, "begin", begin)
    return engine


def limit_on_server(connection: Connection, statement_s: float, lock_s: float) -> None:
    """
    Let PostgreSQL give up as well, within this transaction: closing a socket does not end what its server is doing.

    A little earlier than we do, so that the connection can be kept.
    """
    if connection.dialect.name == "postgresql":
        text, values = limits_on_server(statement_s, lock_s)
        connection.exec_driver_sql(text, tuple(values))


def limits_on_server(statement_s: float, lock_s: float) -> tuple[str, list[str]]:
    """The statement that does it, with its values."""
    return _LIMITS, [f"{max(1, round(min(each, _MAX_LIMIT_S) * 900))}" for each in (statement_s, lock_s)]


_MAX_LIMIT_S = 3600.0
# For this transaction only: the connection may be one of a pooler's, which gives it to another program next.
_LIMITS = (
    "SELECT set_config('statement_timeout', %s, true), set_config('lock_timeout', %s, true), "
    "set_config('idle_in_transaction_session_timeout', '60000', true)"
)


def may_use_wal(path: Path) -> bool:
    """Whether a ledger there has a write-ahead log: this SQLite is safe with it, and the file system is local."""
    return wal_is_safe() and _LOCAL_FILE_SYSTEM.fullmatch(_file_system(path.resolve())) is not None


def _prepare_sqlite(path: Path, connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA synchronous = FULL")
    if is_frozen(path):
        return
    wanted = "wal" if may_use_wal(path) else "truncate"
    [current] = connection.execute("PRAGMA journal_mode").fetchone()
    if wanted == "wal" and current != "wal":
        # Fails while another program uses the file. The ledger works as it is, and a later connection tries again.
        _poll(connection, "PRAGMA journal_mode = WAL", min(_SWITCHING_S, seconds_left()))
    elif current != wanted:
        try:
            connection.execute("PRAGMA journal_mode = TRUNCATE").fetchall()
        except library().OperationalError as error:
            if is_locked(error):
                error.args = (f"another program uses it with a write-ahead log, which {library_name()} must not",)
            raise
    connection.execute(f"PRAGMA journal_size_limit = {_MAX_LOG}").fetchall()
    with suppress(library().Error):
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()  # opens the log
    connection.log = file_identity(log_of(path))


def _check_log(path: Path, connection: Any, _record: Any, _proxy: Any) -> None:
    """Do not use a connection whose log was deleted or replaced: nobody would see what it writes."""
    if _lost_log(path, connection):
        raise DisconnectionError("the write-ahead log was replaced")


def _lost_log(path: Path, connection: Any) -> bool:
    return connection.log is not None and file_identity(log_of(path)) != connection.log


def lost_log(connection: Connection) -> bool:
    """Whether the write-ahead log that a connection writes to is not the ledger's any more."""
    path = file_of(connection.engine.url)
    return path is not None and _lost_log(path, connection.connection.driver_connection)


def leave(path: Path, identity: FileIdentity | None) -> None:
    """
    Write what is in the log to the file that was the ledger, and remove the log.

    Else SQLite would take it for the log of the ledger that lies at the path now.
    """
    for connection in known():
        if connection.file == identity and connection.log is not None:
            with suppress(library().Error):
                connection.execute("PRAGMA busy_timeout = 100")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            if file_identity(log_of(path)) == connection.log:
                log_of(path).unlink(missing_ok=True)
                _memory_of(path).unlink(missing_ok=True)


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


def _poll(raw: Any, statement: str, limit_s: float) -> None:
    """
    Take a lock, or give up in time; then the next statement raises the error, as SQLAlchemy has it.

    Not by SQLite's own waiting, which Ctrl-C does not interrupt.
    """
    began = time.monotonic()
    until = began + limit_s
    while True:
        try:
            raw.execute(statement).fetchall()
            return
        except library().Error as error:
            if not is_locked(error) or time.monotonic() >= until:
                return
        # By chance, so that waiting programs do not keep step; shorter for one that has waited longer.
        patience = _MAX_PAUSE_S / (1 + (time.monotonic() - began) / _SENIORITY_S)
        time.sleep(max(_MIN_PAUSE_S, random.uniform(0, patience)))  # noqa: S311


def _wait_for_locks(raw: Any, patience_s: float) -> None:
    raw.execute(f"PRAGMA busy_timeout = {round(min(patience_s, seconds_left()) * 1000)}")


def _raw(connection: Connection) -> Any:
    return connection.connection.driver_connection


def is_locked(error: BaseException) -> bool:
    """Whether SQLite gave up on a lock that another program holds."""
    code = getattr(error, "sqlite_errorcode", None) or 0
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def network_file_system(path: Path, mounts: Path | None = None) -> str | None:
    """The kind of network file system that a path lies on; None when it lies on none, or the system does not tell."""
    kind = _file_system(path, mounts)
    return kind if _NETWORK_FILE_SYSTEM.fullmatch(kind) else None


def _file_system(path: Path, mounts: Path | None = None) -> str:
    """The kind of file system that a path lies on; "" when the system does not tell."""
    try:
        lines = (mounts or _MOUNTS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    found = [line.split(" ")[1:3] for line in lines if line.count(" ") >= 3]
    around = [(Path(_unescaped(place)), kind) for place, kind in found if path.is_relative_to(_unescaped(place))]
    return max(enumerate(around), key=lambda each: (len(each[1][0].parts), each[0]))[1][1] if around else ""


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
