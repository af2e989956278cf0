"""The ledger: one row per attempt, started before the request and settled after it, never lost."""

from __future__ import annotations

import asyncio
import atexit
import logging
import math
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

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
from shared.ledger.row import AttemptRow
from shared.ledger.schema import attempt, event
from shared.ledger.spool import Spool, SpoolEntry
from shared.ledger.writes import (
    Annotation,
    Entry,
    Event,
    Expired,
    Settled,
    Start,
    apply,
    from_spool,
    storable,
    storable_event,
    stored,
    to_spool,
)

logger = logging.getLogger("agentswarm_tools")

_RETRY_AFTER_S = 5.0
# How long what carries no money waits for a commit to ride along with.
_RIDE_S = 1.0


class Ledger:
    """
    The attempts, events and sums in one database.

    Writing never raises and never loses: what the database does not take goes to a spool file and is replayed
    once, later. Reading raises StoreError. Both are thread-safe; `committed` waits for a write off the event loop.

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
        # Entries handed over and entries done with: the rest may ride along with a later commit.
        self._submitted = self._committed = 0
        self._latest_us: int | None = None
        self._clock_was_behind = False

    # Writing

    def start(
        self,
        row: AttemptRow,
        limits: Sequence[Limit] = (),
        *,
        least_nano: int | None = None,
        is_last: bool = True,
        is_part: bool = False,
    ) -> Future[Admission]:
        """
        Commit that an attempt begins, and hold the most that it can cost.

        Args:
            limits: Budgets that it is under; those that the ledger keeps join them.

            least_nano: The bound of the shortest answer worth paying for. A budget that has room for that, but not for
                the whole bound, refuses without a record, so that the caller can try again.

            is_last: Whether a refusal ends the call, also by a budget that lets the next model be tried.

            is_part: Whether it is one of several requests of its call, whose refusal alone does not end the call.

        Returns:
            The Admission once it is committed. A refusal is recorded in the same transaction.

        Raises (the future):
            StoreError: The ledger cannot be written, and a budget applies that only it can keep.
        """
        return self._submit(Start(row, tuple(limits), least_nano, is_last, is_part))

    def settle(self, row: AttemptRow, limits: Sequence[Limit] | None = None) -> Future[Admission]:
        """
        Commit how an attempt ended.

        Args:
            limits: Budgets whose status the Admission holds, with those of the ledger; none when the ledger is down.
                None: it holds none.
        """
        return self._submit(Settled(stored(row), storable(row.labels), None if limits is None else tuple(limits)))

    def annotate(self, attempt_id: uuid.UUID, metadata: Mapping[str, Any]) -> None:
        """Add metadata to an attempt, with the next commit or within a second."""
        self._submit(Annotation(attempt_id, metadata))

    def record(self, event: Mapping[str, Any]) -> None:
        """Record an event, with the next commit or within a second."""
        self._submit(Event(storable_event(event)))

    def _submit(self, entry: Entry | None) -> Future[Admission]:
        """Hand an entry to the ledger's own thread; None waits for what was handed over before."""
        done: Future[Admission] = Future()
        done.set_running_or_notify_cancel()  # No one who waits for the write can take it back.
        item = _Item(entry, done)
        with self._lock:
            self._submitted += 1
            self._queue.put(item)
            if self._writer is None:
                self._writer = threading.Thread(target=self._work, name="agentswarm-ledger", daemon=True)
                self._writer.start()
                atexit.register(_flush_at_exit, self, os.getpid())
                # Its processes end without atexit.
                if (util := sys.modules.get("multiprocessing.util")) is not None:
                    util.Finalize(None, _flush_at_exit, (self, os.getpid()), exitpriority=0)
        return done

    def _work(self) -> None:
        while True:
            batch = self._next_batch()
            self._commit(batch)
            self._committed += len(batch)

    def _next_batch(self) -> list[_Item]:
        """
        What has come meanwhile, to be committed in one transaction, since each costs the disk a flush.

        What carries no money waits up to a second for something that does.
        """
        batch = [self._queue.get()]
        until = time.monotonic() + _RIDE_S
        while True:
            while not self._queue.empty():
                batch.append(self._queue.get_nowait())
            left = until - time.monotonic()
            if left <= 0 or any(item.is_urgent for item in batch):
                return batch
            try:
                batch.append(self._queue.get(timeout=left))
            except Empty:
                return batch

    def _commit(self, items: list[_Item]) -> None:
        if time.monotonic() >= self._down_until:
            try:
                for kept in self._spool.take():  # an entry that is already in the ledger changes nothing
                    self._replay(kept)
                self._take_in(items, self._set_aside)
                return
            except Exception as error:  # noqa: BLE001 - every write goes through this thread, so nothing may end it
                self._went_down(error)
        for item in items:
            if not item.done.done():
                self._set_aside(item)

    def _replay(self, kept: list[SpoolEntry]) -> None:
        items: list[_Item] = []
        for each in kept:
            try:
                items.append(_Item(from_spool(*each), Future()))
            except (KeyError, ValueError):
                self._bury(each)
        if items:
            self._take_in(items, lambda item: self._bury(to_spool(item.entry) if item.entry else None))

    def _bury(self, kept: SpoolEntry | None) -> None:
        """Set an entry aside that no ledger takes."""
        if kept is None:
            return
        self._spool.add_dead_letter(kept)
        logger.warning(
            "The ledger %s does not take a record; it was set aside in %s.", self.name, self.dead_letters()[0]
        )

    def _take_in(self, items: list[_Item], refused: Callable[[_Item], None]) -> None:
        """Write the entries; where one of them stands in the way, write the others and hand that one to `refused`."""
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
        entry = item.entry
        if isinstance(entry, Start) and (entry.limits or self._has_budgets):
            item.done.set_exception(
                StoreError(
                    f"The ledger {self.name} cannot be written, so no budget can be kept",
                    hint="Mend the ledger, or call without a budget.",
                )
            )
            return
        if entry is not None and (kept := to_spool(entry)) is not None:
            self._spool.add(kept)
        item.done.set_result(Admission())

    def _apply(self, items: list[_Item]) -> None:
        """Write the entries in one transaction, and tell who waits for them."""
        entries = [item.entry for item in items if item.entry is not None]
        admissions: dict[int, Admission] = {}
        if entries:
            with self.writing() as connection:
                self._watch_clock(connection, [each.row.ts_us for each in entries if isinstance(each, Start)])
                admissions = {id(each): apply(connection, each) for each in entries}
        for each in entries:
            if isinstance(each, Start):
                # More statuses than limits of the caller's: the ledger keeps budgets of its own.
                self._has_budgets = len(admissions[id(each)].statuses) > len(set(each.limits))
        for item in items:
            item.done.set_result(admissions.get(id(item.entry), Admission()))

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
        query = sa.select(attempt).where(attempt.c.status == "started", attempt.c.lease_us < now_us())
        with self.reading() as connection:
            rows = [AttemptRow.read(dict(row)) for row in connection.execute(query).mappings()]
        for row in rows:
            self._submit(Expired(stored(row.expired()))).result()
        return len(rows)

    @property
    def waiting(self) -> int:
        """How many records wait to be written, and are in no sum yet."""
        return self._spool.waiting()

    @property
    def waiting_in(self) -> Path:
        """Where they wait."""
        return self._spool.path

    def dead_letters(self) -> list[Path]:
        """Files of records that no ledger takes."""
        return self._spool.dead_letters()

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
        if self._submitted != self._committed:
            self.flush()
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
        self._submit(None).result()

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
    """An entry on its way to the database; without one it only waits for those before it."""

    entry: Entry | None
    done: Future[Admission]

    @property
    def is_urgent(self) -> bool:
        """Whether it must be committed at once: it moves money, or someone waits."""
        return not isinstance(self.entry, Annotation | Event)


_ONE_WRITER = sa.text("SELECT pg_advisory_xact_lock(7231990416)")


async def committed(write: Future[Admission], patience: float = math.inf) -> Admission:
    """
    Wait for a write off the event loop, even when the caller is cancelled meanwhile.

    Args:
        patience: Seconds to wait at most.

    Raises:
        TimeoutError: It takes longer, and is committed later.

        StoreError: See `Ledger.start`.
    """
    done = asyncio.wrap_future(write)
    # asyncio would print an error that comes when no one waits any more.
    done.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    if await wait_shielded(done, patience):
        raise asyncio.CancelledError
    if not done.done():
        raise TimeoutError
    return done.result()


def _is_refusal(error: Exception) -> bool:
    """Whether it is the entry that is wrong, and not the database."""
    if isinstance(error, DBAPIError):
        return isinstance(error, DataError | IntegrityError) and not error.connection_invalidated
    return isinstance(error, SQLAlchemyError | KeyError | TypeError | ValueError | AttributeError | OverflowError)


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
