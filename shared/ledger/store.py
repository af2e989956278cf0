"""The ledger: one row per attempt, started before the request and settled after it, never lost."""

from __future__ import annotations

import asyncio
import atexit
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

from shared.budget import Limit
from shared.errors import StoreError
from shared.internal.aio import wait_shielded
from shared.internal.clock import now_us
from shared.ledger.accounts import CLOCK_TOLERANCE_US, Admission, latest_us
from shared.ledger.engine import create_engine, parse_url, spool_folder
from shared.ledger.migrations import is_current, migrate
from shared.ledger.schema import attempt, event
from shared.ledger.spool import Spool, SpoolEntry
from shared.ledger.writes import LENGTHS, Row, apply, storable

logger = logging.getLogger("agentswarm_tools")

_RETRY_AFTER_S = 5.0
_LASTING = frozenset({"start", "settle", "event", "metadata"})


class Ledger:
    """
    The attempts, events and sums in one database.

    Writing never raises and never loses: what the database does not take goes to a spool file and is replayed
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
        self._spool = Spool(spool_folder(self._url), self.name)
        self._down_until = 0.0
        self._warned = False
        self._has_budgets = False
        self._latest_us: int | None = None
        self._clock_was_behind = False

    # Writing

    def submit(
        self, kind: str, row: Row, labels: Mapping[str, str], limits: Sequence[Limit] | None = None
    ) -> Future[Admission | None]:
        """
        Hand an entry to the ledger's own thread; the future is done when it is committed.

        Args:
            kind: "start" or "settle" an attempt, "event", or "metadata" for an attempt.

            limits: With these the future holds a Verdict; a "start" that they refuse is not written. They are joined
                by the limits that the ledger keeps. None: whatever is known of limits, the entry is written.

        Raises (the future):
            StoreError: The ledger cannot be written, and a start is under a limit that only it can keep.
        """
        done: Future[Admission | None] = Future()
        done.set_running_or_notify_cancel()  # Nobody who waits for the write can take it back.
        entry = (kind, storable(row, LENGTHS), storable(labels))
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
                for entries in self._spool.take():  # an entry that is already in the ledger changes nothing
                    self._take_in([_Item(entry, None, Future()) for entry in entries], self._refuse)
                self._take_in(items, self._set_aside)
                return
            except Exception as error:  # noqa: BLE001 - configs raise whatever their parsing happens to raise
                self._went_down(error)
        for item in items:
            if not item.done.done():
                self._set_aside(item)

    def _refuse(self, item: _Item) -> None:
        self._spool.refuse(item.entry)
        logger.warning("The ledger %s does not take a record; it was set aside in %s.", self.name, self.refused()[0])

    def _take_in(self, items: list[_Item], refused: Callable[[_Item], None]) -> None:
        """Write the entries; where one of them stands in the way, the others, and do with that one what is told."""
        try:
            self._apply(items)
        except Exception as error:
            if not _is_refusal(error):
                raise
            if len(items) == 1:
                refused(items[0])
                return
            for item in items:
                self._take_in([item], refused)

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
            self._spool.add(item.entry)
        item.done.set_result(None)

    def _apply(self, items: list[_Item]) -> None:
        """Write the entries in one transaction, and tell who waits for them."""
        entries = [item for item in items if item.entry[0] != "nothing"]
        admissions: dict[int, Admission | None] = {}
        if entries:
            with self.writing() as connection:
                self._watch_clock(connection, [item.entry[1]["ts_us"] for item in entries if item.entry[0] == "start"])
                admissions = {id(item): apply(connection, *item.entry, item.limits) for item in entries}
        if any(item.limits is not None for item in entries):
            self._has_budgets = any(_has_own(item.limits, admissions[id(item)]) for item in entries)
        for item in items:
            item.done.set_result(admissions.get(id(item)))

    def _watch_clock(self, connection: Connection, started_us: list[int]) -> None:
        """Say once that requests begin long before those that the ledger holds."""
        if not started_us:
            return
        latest = latest_us(connection) if self._latest_us is None else self._latest_us
        self._latest_us = max(latest, *started_us)
        behind_us = latest - min(started_us)
        if behind_us > CLOCK_TOLERANCE_US and not self._clock_was_behind:
            self._clock_was_behind = True
            logger.warning(
                "This machine's clock is %d s behind the latest record of the ledger %s; days in reports are wrong.",
                behind_us // 1_000_000,
                self.name,
            )

    async def write(
        self,
        kind: str,
        row: Row,
        labels: Mapping[str, str],
        *,
        limits: Sequence[Limit] | None = None,
        patience: float = math.inf,
    ) -> Admission | None:
        """
        Submit an entry and wait for it off the event loop, even when the caller is cancelled meanwhile.

        Returns:
            What `submit` gives; it has no statuses where the ledger only sets the entry aside.

        Raises:
            TimeoutError: That takes longer than `patience` seconds, and comes later.

            StoreError: See `submit`.
        """
        done = asyncio.wrap_future(self.submit(kind, row, labels, limits))
        if await wait_shielded(done, patience):
            raise asyncio.CancelledError
        if not done.done():
            raise TimeoutError
        return done.result()

    def _went_down(self, error: Exception) -> None:
        self._down_until = time.monotonic() + _RETRY_AFTER_S
        if not self._warned:
            self._warned = True
            reason = error.message if isinstance(error, StoreError) else _short(error)
            waiting = self._spool.path
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
        return self._spool.waiting()

    @property
    def waiting_in(self) -> Path:
        """Where they wait."""
        return self._spool.path

    def refused(self) -> list[Path]:
        """Files of records that no ledger takes."""
        return self._spool.refused()

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
        """Wait for writes under way, and for what waits in the spool file where the database takes it."""
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
                    with engine.connect() as connection, connection.begin():
                        current = is_current(connection)
                    if not current:
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

    entry: SpoolEntry
    limits: tuple[Limit, ...] | None
    done: Future[Admission | None]


_ONE_WRITER = sa.text("SELECT pg_advisory_xact_lock(7231990416)")


def _has_own(limits: Sequence[Limit] | None, admission: Admission | None) -> bool:
    """Whether the ledger has added limits of its own to those of the caller."""
    return admission is not None and len(admission.statuses) > len(set(limits or ()))


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
