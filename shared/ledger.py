"""The ledger: one row per attempt, started before the request and settled after it, never lost."""

from __future__ import annotations

import asyncio
import atexit
import importlib.util
import logging
import math
import os
import secrets
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import anyio
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, SQLAlchemyError

from shared.errors import ConfigurationError, StoreError
from shared.ledger_schema import BUCKET_S, DIMENSIONS, SUMS, attempt, event, label, migrate, rollup
from shared.spill import Entry, Spill

logger = logging.getLogger("agentswarm_tools")

Row = dict[str, Any]

BUSY_TIMEOUT_S = 30
_RETRY_AFTER_S = 5.0
_LASTING = frozenset({"start", "settle", "event", "metadata"})
# Releases without the WAL-reset bug; elsewhere several processes on one WAL file can lose committed pages.
# Source: sqlite.org, release notes of 3.51.3 (read 2026-11-23).
_SAFE_WAL = (((3, 51, 3), (99,)), ((3, 50, 7), (3, 51)), ((3, 44, 6), (3, 45)))


def new_id() -> uuid.UUID:
    """A UUIDv7 (RFC 9562): ordered by time, so that new rows lie together."""
    stamp = time.time_ns() // 1_000_000
    return uuid.UUID(int=(stamp << 80) | (7 << 76) | (secrets.randbits(12) << 64) | (2 << 62) | secrets.randbits(62))


def now_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1000


def wal_is_safe(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> bool:
    """Whether this SQLite may use write-ahead logging with several processes."""
    return any(low <= version < high for low, high in _SAFE_WAL)


async def see_through(done: asyncio.Future[Any], patience: float = math.inf) -> bool:
    """
    Wait for `done`, at most `patience` seconds, even when the waiting task is cancelled meanwhile.

    Returns:
        Whether it was; raise CancelledError when all that must happen has happened.
    """
    cancelled = False
    until = time.monotonic() + patience
    with anyio.CancelScope(shield=True):
        while not done.done() and (left := until - time.monotonic()) > 0:
            try:
                await asyncio.wait([done], timeout=None if math.isinf(left) else left)
            except asyncio.CancelledError:
                cancelled = True
    return cancelled


class Ledger:
    """
    The attempts, events and sums in one database.

    Writing never raises and never loses: what the database does not take goes to a spill file and is replayed
    once, later. Reading raises StoreError. Both are thread-safe; `write` never blocks an event loop.

    Args:
        url: SQLAlchemy URL of a SQLite file or a PostgreSQL database.
    """

    def __init__(self, url: str) -> None:
        self._url = _parse(url)
        # Without the query, which may hold a password too.
        shown = self._url.set(drivername=self._url.get_backend_name(), query={})
        self.name = shown.render_as_string(hide_password=True)
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._engine: Engine | None = None
        self._queue: SimpleQueue[tuple[Entry, Future[None]]] = SimpleQueue()
        self._writer: threading.Thread | None = None
        self._spill = Spill(_spill_folder(self._url), self.name)
        self._down_until = 0.0
        self._warned = False

    # Writing

    def submit(self, kind: str, row: Row, labels: Mapping[str, str]) -> Future[None]:
        """
        Hand an entry to the ledger's own thread; the future is done when it is committed.

        Args:
            kind: "start" or "settle" an attempt, "event", or "metadata" for an attempt.
        """
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()  # Nobody who waits for the write can take it back.
        self._queue.put(((kind, _storable(row, _LENGTHS), _storable(labels)), done))
        with self._lock:
            if self._writer is None:
                self._writer = threading.Thread(target=self._work, name="agentswarm-ledger", daemon=True)
                self._writer.start()
                atexit.register(_flush_at_exit, self, os.getpid())
        return done

    def _work(self) -> None:
        """Commit whatever has come meanwhile in one transaction, since each costs the disk a flush."""
        while True:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get_nowait())
            self._commit([entry for entry, _ in batch if entry[0] != "nothing"])
            for _, done in batch:
                done.set_result(None)

    def _commit(self, entries: list[Entry]) -> None:
        if time.monotonic() >= self._down_until:
            try:
                for waiting in self._spill.take():  # an entry that is already in the ledger changes nothing
                    self._take_in(waiting, self._refuse)
                self._take_in(entries, self._delay)
                return
            except Exception as error:  # noqa: BLE001 - every write goes through this thread, so nothing may end it
                self._went_down(error)
        for entry in entries:
            self._delay(entry)

    def _delay(self, entry: Entry) -> None:
        if entry[0] in _LASTING:
            self._spill.add(entry)

    def _refuse(self, entry: Entry) -> None:
        self._spill.refuse(entry)
        logger.warning("The ledger %s does not take a record; it was set aside in %s.", self.name, self.refused()[0])

    def _take_in(self, entries: list[Entry], refused: Callable[[Entry], None]) -> None:
        """Write the entries; where one of them stands in the way, the others, and do with that one what is told."""
        try:
            if entries:
                self._apply(entries)
        except Exception as error:
            if not _is_refusal(error):
                raise
            if len(entries) > 1:
                for entry in entries:
                    self._take_in([entry], refused)
            else:
                refused(entries[0])

    def _apply(self, entries: list[Entry]) -> None:
        with self.writing() as connection:
            for kind, row, labels in entries:
                _apply(connection, kind, row, labels)

    async def write(self, kind: str, row: Row, labels: Mapping[str, str], *, patience: float = math.inf) -> bool:
        """
        Submit an entry and wait for it off the event loop, even when the caller is cancelled meanwhile.

        Returns:
            Whether it is committed; False when that takes longer than `patience` seconds, and comes later.
        """
        done = asyncio.wrap_future(self.submit(kind, row, labels))
        if await see_through(done, patience):
            raise asyncio.CancelledError
        return done.done()

    def _went_down(self, error: Exception) -> None:
        self._down_until = time.monotonic() + _RETRY_AFTER_S
        if not self._warned:
            self._warned = True
            reason = error.message if isinstance(error, StoreError) else _short(error)
            waiting = self._spill.path
            logger.warning("The ledger %s cannot be written (%s); records wait in %s.", self.name, reason, waiting)

    # Reading

    def settle_expired(self) -> int:
        """
        Settle attempts whose lease has ended at their upper bound, since their money may be spent.

        Returns:
            How many there were.
        """
        with self.reading() as connection:
            expired = connection.execute(
                sa.select(attempt).where(attempt.c.status == "started", attempt.c.lease_us < now_us())
            ).mappings()
            rows = [dict(row) for row in expired]
        for row in rows:
            bound = row["bound_nano"]
            row |= {
                "status": "unsettled",
                "cost_nano": bound,
                "cost_source": "unknown" if bound is None else "bound",
                "failed_calls": 1,
                "unpriced_calls": int(bound is None),
            }
            self.submit("expire", row, {}).result()
        return len(rows)

    @property
    def waiting(self) -> int:
        """How many records wait to be written, and are in no sum yet."""
        return self._spill.waiting()

    @property
    def waiting_in(self) -> Path:
        """Where they wait."""
        return self._spill.path

    def refused(self) -> list[Path]:
        """Files of records that no ledger takes."""
        return self._spill.refused()

    def check_writable(self) -> None:
        """
        Try to write, and change nothing.

        Raises:
            StoreError: The ledger cannot be written.
        """
        try:
            with self.writing() as connection:
                connection.execute(sa.delete(event).where(sa.false()))
        except (SQLAlchemyError, OSError) as error:
            raise self._unreadable(error) from None

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """
        A connection to read with, in one consistent transaction.

        Raises:
            StoreError: The ledger cannot be opened or read.
        """
        try:
            with self._open().connect() as connection, connection.begin():
                yield connection
        except (SQLAlchemyError, OSError) as error:
            raise self._unreadable(error) from None

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection that holds the write lock from the start."""
        with self._open().connect().execution_options(ledger_write=True) as connection, connection.begin():
            yield connection

    def _unreadable(self, error: Exception) -> StoreError:
        return StoreError(
            f"The ledger {self.name} cannot be read ({_short(error)})",
            hint="Check the file or the server, or set AGENTSWARM_DATABASE_URL.",
        )

    def flush(self) -> None:
        """Wait for writes under way, and for what waits in the spill file where the database takes it."""
        self.submit("nothing", {}, {}).result()

    def close(self) -> None:
        """Finish writing and close every connection."""
        self.flush()
        if self._engine is not None:
            self._engine.dispose()

    def _open(self) -> Engine:
        with self._opening:
            if self._engine is None:
                engine = _create_engine(self._url)
                try:
                    with engine.connect().execution_options(ledger_write=True) as connection, connection.begin():
                        migrate(connection)
                except BaseException:
                    engine.dispose()
                    raise
                self._engine = engine
            return self._engine


@dataclass(frozen=True, slots=True)
class _Statements:
    """The writing statements, built once a dialect: building one costs more than running it."""

    insert_attempt: Any
    insert_label: Any
    insert_event: Any
    add_to_rollup: Any


_LENGTHS = {c.name: c.type.length for c in (*attempt.c, *event.c) if isinstance(c.type, sa.String) and c.type.length}
_MAX_LABEL = 200
_KNOWN = attempt.c.attempt_id == sa.bindparam("known")
# FOR UPDATE is PostgreSQL's; SQLite's writers have the whole database to themselves.
_SELECT_BEFORE = (
    sa.select(attempt.c.status, attempt.c.bucket, *(attempt.c[name] for name in (*DIMENSIONS, *SUMS)))
    .where(_KNOWN)
    .with_for_update()
)
_SELECT_STATUS = sa.select(attempt.c.status).where(_KNOWN).with_for_update()
_SELECT_METADATA = sa.select(attempt.c.metadata).where(_KNOWN).with_for_update()
_UPDATE = sa.update(attempt).where(_KNOWN)


@lru_cache(maxsize=2)
def _statements(dialect: str) -> _Statements:
    insert: Any = postgresql.insert if dialect == "postgresql" else sqlite.insert
    add = insert(rollup)
    added = {name: rollup.c[name] + add.excluded[name] for name in SUMS}
    return _Statements(
        insert_attempt=insert(attempt).on_conflict_do_nothing(),
        insert_label=insert(label).on_conflict_do_nothing(),
        insert_event=insert(event).on_conflict_do_nothing(),
        add_to_rollup=add.on_conflict_do_update(index_elements=["bucket", *DIMENSIONS], set_=added),
    )


def _apply(connection: Connection, kind: str, row: Row, labels: Mapping[str, str]) -> None:
    write = _statements(connection.dialect.name)
    match kind:
        case "start":
            connection.execute(write.insert_attempt, row)
            _add_labels(connection, write, row["attempt_id"], labels)
        case "settle":
            _settle(connection, write, row, labels)
        case "expire":
            if connection.scalar(_SELECT_STATUS, {"known": row["attempt_id"]}) == "started":
                _settle(connection, write, row, labels)
        case "event":
            connection.execute(write.insert_event, row)
        case "metadata":
            known = {"known": row["attempt_id"]}
            before = connection.scalar(_SELECT_METADATA, known) or {}
            connection.execute(_UPDATE, known | {"metadata": before | row["metadata"]})


def _settle(connection: Connection, write: _Statements, row: Row, labels: Mapping[str, str]) -> None:
    """Replace the row and move the sums by the difference, so that settling late or twice stays exact."""
    known = {"known": row["attempt_id"]}
    before = connection.execute(_SELECT_BEFORE, known).mappings().one_or_none()
    changes = [_rollup_row(row, sign=1)]
    if before is None and not _inserted(connection, write, row):
        # Another process has just put it there.
        before = connection.execute(_SELECT_BEFORE, known).mappings().one()
    if before is None:
        _add_labels(connection, write, row["attempt_id"], labels)
    else:
        connection.execute(_UPDATE, known | {name: value for name, value in row.items() if name != "attempt_id"})
        if before["status"] != "started":
            changes.append(_rollup_row(dict(before), sign=-1))
    connection.execute(write.add_to_rollup, changes)


def _inserted(connection: Connection, write: _Statements, row: Row) -> bool:
    options = {"preserve_rowcount": True}
    return connection.execute(write.insert_attempt, row, execution_options=options).rowcount == 1


def _rollup_row(row: Mapping[str, Any], *, sign: int) -> Row:
    values: Row = {"bucket": row["bucket"]} | {name: row.get(name) or "" for name in DIMENSIONS}
    return values | {name: sign * (row.get(name) or 0) for name in SUMS}


def _add_labels(connection: Connection, write: _Statements, attempt_id: uuid.UUID, labels: Mapping[str, str]) -> None:
    if labels:
        rows = [{"attempt_id": attempt_id, "name": name, "value": value} for name, value in labels.items()]
        connection.execute(write.insert_label, rows)


def _storable(row: Mapping[str, Any], lengths: Mapping[str, int] | None = None) -> Row:
    """`row` with every text and number such that each database takes it."""
    return {name: _storable_value(value, (lengths or {}).get(name, _MAX_LABEL)) for name, value in row.items()}


def _storable_value(value: Any, length: int) -> Any:
    if isinstance(value, str):
        return value.replace("\x00", "?").encode("utf-8", "replace").decode("utf-8")[:length]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return None
    return value


def _parse(url: str) -> URL:
    try:
        # The scheme that hosters give out.
        parsed = make_url(f"postgresql://{url.removeprefix('postgres://')}" if url.startswith("postgres://") else url)
        backend = parsed.get_backend_name()
    except (ArgumentError, SQLAlchemyError, ValueError):
        raise ConfigurationError(
            "AGENTSWARM_DATABASE_URL is not a database URL", hint="Give sqlite:///path or postgresql://host/name."
        ) from None
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise ConfigurationError(
                "AGENTSWARM_DATABASE_URL names no file", hint="Give sqlite:///path/to/ledger.sqlite3."
            )
        return parsed.set(drivername="sqlite+pysqlite")
    if backend != "postgresql":
        raise ConfigurationError(
            f"AGENTSWARM_DATABASE_URL names {backend}, which is not supported", hint="Use SQLite or PostgreSQL."
        )
    if importlib.util.find_spec("psycopg") is None:
        raise ConfigurationError(
            "PostgreSQL needs psycopg", hint='Install it with: pip install "agentswarm-tools[postgres]"'
        )
    return parsed.set(drivername="postgresql+psycopg")


def _spill_folder(url: URL) -> Path | None:
    """Beside a SQLite file; None where there is no such folder."""
    if url.get_backend_name() != "sqlite" or url.database is None:
        return None
    return Path(url.database).absolute().parent


def _create_engine(url: URL) -> Engine:
    if url.get_backend_name() == "postgresql":
        return sa.create_engine(url, pool_pre_ping=True)
    path = Path(url.database or "").absolute()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False})
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
    connection.execute(f"PRAGMA journal_mode = {'WAL' if wal_is_safe() else 'TRUNCATE'}").fetchall()
    connection.execute("PRAGMA synchronous = FULL")


def _begin_sqlite(connection: Connection) -> None:
    """Take the write lock at once: upgrading a read lock later can fail without waiting."""
    write = connection.get_execution_options().get("ledger_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _is_refusal(error: Exception) -> bool:
    """Whether it is the entry that is wrong, and not the database."""
    if isinstance(error, DBAPIError):
        return isinstance(error, DataError | IntegrityError) and not error.connection_invalidated
    return isinstance(error, SQLAlchemyError | KeyError | TypeError | ValueError | AttributeError)


def _short(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    text = " ".join(str(cause).split())
    return text[:150] if text else type(cause).__name__


def _flush_at_exit(ledger: Ledger, pid: int) -> None:
    """What asynchronous code recorded last is not lost; a forked process has no writer to wait for."""
    if os.getpid() == pid:
        ledger.flush()


@lru_cache(maxsize=8)
def get_ledger(url: str) -> Ledger:
    """The ledger of this process at `url`."""
    return Ledger(url)


# A database connection must not cross a fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=get_ledger.cache_clear)


def bucket_of(ts_us: int) -> int:
    """The 15-minute bucket of a time."""
    return ts_us // (BUCKET_S * 1_000_000)
