"""The ledger: one row per attempt, started before the request and settled after it, never lost."""

from __future__ import annotations

import asyncio
import atexit
import logging
import math
import os
import secrets
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from queue import SimpleQueue
from typing import Any

import anyio
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from shared import ledger_accounts as accounts
from shared.budget import Limit
from shared.errors import StoreError
from shared.ledger_accounts import Verdict
from shared.ledger_engine import create_engine, parse_url, spill_folder
from shared.ledger_schema import BUCKET_S, DIMENSIONS, SUMS, attempt, event, label, migrate, rollup
from shared.spill import Entry, Spill

logger = logging.getLogger("agentswarm_tools")

Row = dict[str, Any]

_RETRY_AFTER_S = 5.0
_LASTING = frozenset({"start", "settle", "event", "metadata"})


def new_id() -> uuid.UUID:
    """A UUIDv7 (RFC 9562): ordered by time, so that new rows lie together."""
    stamp = time.time_ns() // 1_000_000
    return uuid.UUID(int=(stamp << 80) | (7 << 76) | (secrets.randbits(12) << 64) | (2 << 62) | secrets.randbits(62))


def now_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1000


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
        self._url = parse_url(url)
        # Without the query, which may hold a password too.
        shown = self._url.set(drivername=self._url.get_backend_name(), query={})
        self.name = shown.render_as_string(hide_password=True)
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._engine: Engine | None = None
        self._queue: SimpleQueue[_Item] = SimpleQueue()
        self._writer: threading.Thread | None = None
        self._spill = Spill(spill_folder(self._url), self.name)
        self._down_until = 0.0
        self._warned = False
        self._has_budgets = False

    # Writing

    def submit(
        self, kind: str, row: Row, labels: Mapping[str, str], limits: Sequence[Limit] | None = None
    ) -> Future[Verdict | None]:
        """
        Hand an entry to the ledger's own thread; the future is done when it is committed.

        Args:
            kind: "start" or "settle" an attempt, "event", or "metadata" for an attempt.

            limits: With these the future holds a Verdict; a "start" that they refuse is not written. They are joined
                by the limits that the ledger keeps. None: whatever is known of limits, the entry is written.

        Raises (the future):
            StoreError: The ledger cannot be written, and a start is under a limit that only it can keep.
        """
        done: Future[Verdict | None] = Future()
        done.set_running_or_notify_cancel()  # Nobody who waits for the write can take it back.
        entry = (kind, _storable(row, _LENGTHS), _storable(labels))
        self._queue.put(_Item(entry, None if limits is None else tuple(limits), done))
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
            self._commit(batch)

    def _commit(self, items: list[_Item]) -> None:
        if time.monotonic() >= self._down_until:
            try:
                self._replay()
                entries = [item for item in items if item.entry[0] != "nothing"]
                verdicts = dict(zip(map(id, entries), self._apply(entries) if entries else (), strict=True))
            except Exception as error:  # noqa: BLE001 - every write goes through this thread, so nothing may end it
                if len(items) > 1:
                    for item in items:
                        self._commit([item])
                    return
                self._went_down(error)
            else:
                for item in items:
                    item.done.set_result(verdicts.get(id(item)))
                return
        for item in items:
            self._set_aside(item)

    def _set_aside(self, item: _Item) -> None:
        """Keep for later what the ledger does not take; what only the ledger could allow is refused."""
        if item.entry[0] == "start" and (item.limits or (item.limits is not None and self._has_budgets)):
            item.done.set_exception(
                StoreError(
                    f"The ledger {self.name} cannot be written, so no budget can be kept",
                    hint="Mend the ledger, or call without a budget.",
                )
            )
            return
        if item.entry[0] in _LASTING:
            self._spill.add(item.entry)
        item.done.set_result(None)

    def _apply(self, items: list[_Item]) -> list[Verdict | None]:
        with self.writing() as connection:
            verdicts = [_apply(connection, *item.entry, item.limits) for item in items]
        if any(item.limits is not None for item in items):
            self._has_budgets = any(verdict is not None and verdict.standings for verdict in verdicts)
        return verdicts

    async def write(
        self,
        kind: str,
        row: Row,
        labels: Mapping[str, str],
        *,
        limits: Sequence[Limit] | None = None,
        patience: float = math.inf,
    ) -> Verdict | None:
        """
        Submit an entry and wait for it off the event loop, even when the caller is cancelled meanwhile.

        Returns:
            What `submit` gives; it has no standings where the ledger only sets the entry aside.

        Raises:
            TimeoutError: That takes longer than `patience` seconds, and comes later.

            StoreError: See `submit`.
        """
        done = asyncio.wrap_future(self.submit(kind, row, labels, limits))
        if await see_through(done, patience):
            raise asyncio.CancelledError
        if not done.done():
            raise TimeoutError
        return done.result()

    def _went_down(self, error: Exception) -> None:
        self._down_until = time.monotonic() + _RETRY_AFTER_S
        if not self._warned:
            self._warned = True
            reason = error.message if isinstance(error, StoreError) else _short(error)
            waiting = self._spill.path
            logger.warning("The ledger %s cannot be written (%s); records wait in %s.", self.name, reason, waiting)

    def _replay(self) -> None:
        """Write what waited in the spill file; an entry that is already there changes nothing."""
        for entries in self._spill.take():
            with self.writing() as connection:
                for entry in entries:
                    _apply(connection, *entry, None)

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

    def check_writable(self) -> None:
        """
        Try to write, and change nothing.

        Raises:
            StoreError: The ledger cannot be written.
        """
        with self.changing() as connection:
            connection.execute(sa.delete(event).where(sa.false()))

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
    def changing(self) -> Iterator[Connection]:
        """
        A connection to change the ledger's own settings with.

        Raises:
            StoreError: The ledger cannot be written.
        """
        try:
            with self.writing() as connection:
                yield connection
        except (SQLAlchemyError, OSError) as error:
            raise self._unreadable(error) from None

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection that holds the write lock from the start."""
        with self._open().connect().execution_options(ledger_write=True) as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                # One writer at a time, as SQLite has it: a budget is checked and taken from in one piece.
                connection.execute(_ONE_WRITER)
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
                engine = create_engine(self._url)
                try:
                    with engine.connect().execution_options(ledger_write=True) as connection, connection.begin():
                        migrate(connection)
                except BaseException:
                    engine.dispose()
                    raise
                self._engine = engine
            return self._engine


@dataclass(frozen=True, slots=True)
class _Item:
    """An entry on its way to the database."""

    entry: Entry
    limits: tuple[Limit, ...] | None
    done: Future[Verdict | None]


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
    sa.select(
        attempt.c.status, attempt.c.bucket, attempt.c.bound_nano, *(attempt.c[name] for name in (*DIMENSIONS, *SUMS))
    )
    .where(_KNOWN)
    .with_for_update()
)
_SELECT_STATUS = sa.select(attempt.c.status).where(_KNOWN).with_for_update()
_SELECT_METADATA = sa.select(attempt.c.metadata).where(_KNOWN).with_for_update()
_UPDATE = sa.update(attempt).where(_KNOWN)
_ONE_WRITER = sa.text("SELECT pg_advisory_xact_lock(7231990416)")


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


def _apply(
    connection: Connection, kind: str, row: Row, labels: Mapping[str, str], limits: Sequence[Limit] | None
) -> Verdict | None:
    write = _statements(connection.dialect.name)
    match kind:
        case "start":
            return _start(connection, write, row, labels, limits)
        case "settle":
            _settle(connection, write, row, labels)
            return None if limits is None else Verdict(accounts.stand(connection, row, labels, limits))
        case "expire":
            if connection.scalar(_SELECT_STATUS, {"known": row["attempt_id"]}) == "started":
                _settle(connection, write, row, labels)
        case "event":
            connection.execute(write.insert_event, row)
        case "metadata":
            known = {"known": row["attempt_id"]}
            before = connection.scalar(_SELECT_METADATA, known) or {}
            connection.execute(_UPDATE, known | {"metadata": before | row["metadata"]})
    return None


def _start(
    connection: Connection, write: _Statements, row: Row, labels: Mapping[str, str], limits: Sequence[Limit] | None
) -> Verdict | None:
    """Write the row of an attempt that begins, unless a limit has no room for the most that it can cost."""
    verdict = None if limits is None else accounts.check(connection, row, labels, limits)
    if (verdict is None or verdict.refused_by is None) and _inserted(connection, write, row):
        _add_labels(connection, write, row["attempt_id"], labels)
        accounts.move(connection, None, row, labels)
    return verdict


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
    accounts.move(connection, None if before is None else dict(before), row, labels)


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
