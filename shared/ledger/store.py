"""The ledger: one row per attempt, committed before the request is sent, settled after it, never lost."""

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
    LeastBound,
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
# Maximum seconds that an entry without money waits for another entry's commit.
_MAX_DELAY_S = 1.0


class Ledger:
    """
    The attempts, events and sums in one database.

    Writing never raises and loses nothing: what the database cannot take now goes to a spool file, and is entered once,
    later. Reading raises StoreError. Both are thread-safe; `committed` awaits a write without blocking the event loop.

    Args:
        url: SQLAlchemy URL of a SQLite file or a PostgreSQL database.
    """

    def __init__(self, url: str) -> None:
        self._url = parse_url(url)
        # Without the query, which may also contain a password.
        without_query = self._url.set(drivername=self._url.get_backend_name(), query={})
        self.name = without_query.render_as_string(hide_password=True)
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._engine: Engine | None = None
        self._queue: SimpleQueue[_Item] = SimpleQueue()
        self._writer: threading.Thread | None = None
        self._spool = Spool(spool_folder(self._url), self.name)
        self._down_until = 0.0
        self._warned = False
        self._has_budgets = False
        # Entries handed over, and entries done with. If they differ, some may still wait for a later commit, and a
        # reader must flush first.
        self._submitted = self._committed = 0
        self._latest_us: int | None = None
        self._clock_was_behind = False

    # Writing

    def start(
        self,
        row: AttemptRow,
        limits: Sequence[Limit] = (),
        *,
        least: LeastBound | None = None,
        is_last: bool = True,
        is_part: bool = False,
    ) -> Future[Admission]:
        """
        Commit the row of an attempt that is about to start, which holds the most that it can cost.

        Args:
            limits: Budgets of the caller; those stored in the ledger apply as well.

            least: Gives the bound of the shortest useful answer. A budget that has room for that, but not for the whole
                bound, refuses without recording it, so that the caller can try again with a shorter answer.

            is_last: Whether a refusal ends the call even under a budget with on_exceed="downgrade".

            is_part: Whether the attempt is one of several requests of its call; its refusal does not end the call.

        Returns:
            The Admission, once it is committed. A refusal is recorded in the same transaction.

        Raises (the future):
            StoreError: The ledger cannot be written, and a budget applies, which cannot be enforced without it.
        """
        return self._submit(Start(row, tuple(limits), least, is_last, is_part))

    def settle(
        self, row: AttemptRow, limits: Sequence[Limit] = (), *, with_statuses: bool = False
    ) -> Future[Admission]:
        """
        Commit the final row of an attempt.

        Args:
            limits: Budgets of the caller; those stored in the ledger apply as well.

            with_statuses: Whether the Admission has the status of these budgets; it has none while the ledger is down.
        """
        return self._submit(Settled(stored(row), storable(row.labels), tuple(limits), with_statuses))

    def annotate(self, attempt_id: uuid.UUID, metadata: Mapping[str, Any]) -> None:
        """Add metadata to an attempt, with the next commit or within a second."""
        self._submit(Annotation(attempt_id, metadata))

    def record(self, event: Mapping[str, Any]) -> None:
        """Record an event, with the next commit or within a second."""
        self._submit(Event(storable_event(event)))

    def _submit(self, entry: Entry | None) -> Future[Admission]:
        """Hand an entry to the writer thread; None is done when everything handed over before it is done."""
        done: Future[Admission] = Future()
        done.set_running_or_notify_cancel()  # A cancelled caller must not cancel the write.
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
        """The writer thread: the only one that writes entries, so they are committed in the order of arrival."""
        while True:
            batch = self._next_batch()
            self._commit(batch)
            self._committed += len(batch)

    def _next_batch(self) -> list[_Item]:
        """
        Wait for an entry, and return it with everything else in the queue, for one transaction.

        Each commit costs a flush of the disk, so all entries that arrived during the last commit share the next one.
        Entries without money (annotations and events) do not cause a commit by themselves: they wait, at most for
        _MAX_DELAY_S, until an urgent entry arrives, and are committed together with it.
        """
        batch = [self._queue.get()]
        until = time.monotonic() + _MAX_DELAY_S
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
        """
        Write a batch: first what waits in the spool, then the batch itself.

        After a failure the ledger counts as down for a few seconds. Batches then go straight to the spool, so that not
        every call waits for the database's time-outs.
        """
        if time.monotonic() >= self._down_until:
            try:
                for spooled in self._spool.take():  # an entry that is already in the ledger changes nothing
                    self._replay(spooled)
                self._write(items, self._keep_for_later)
                return
            except Exception as error:  # noqa: BLE001 - every write goes through this thread, so nothing may end it
                self._mark_down(error)
        for item in items:
            if not item.done.done():
                self._keep_for_later(item)

    def _replay(self, spooled: list[SpoolEntry]) -> None:
        """Write entries from the spool; those that no ledger can take become dead letters."""
        items: list[_Item] = []
        for each in spooled:
            try:
                items.append(_Item(from_spool(*each), Future()))
            except (KeyError, ValueError):
                self._add_dead_letter(each)
        if items:
            self._write(items, lambda item: self._add_dead_letter(to_spool(item.entry) if item.entry else None))

    def _add_dead_letter(self, entry: SpoolEntry | None) -> None:
        """Set aside an entry that no ledger can take."""
        if entry is None:
            return
        self._spool.add_dead_letter(entry)
        logger.warning(
            "The ledger %s rejected a record; it was moved to the dead letters in %s.",
            self.name,
            self.dead_letters()[0],
        )

    def _write(self, items: list[_Item], on_rejected: Callable[[_Item], None]) -> None:
        """
        Write the entries in one transaction.

        If one of them is invalid, the transaction fails for all; each is then written on its own, and only the invalid
        one is passed to `on_rejected`. Errors of the database itself are raised.
        """
        try:
            self._apply(items)
        except Exception as error:
            if not _is_invalid_entry(error):
                raise
            if len(items) == 1:
                on_rejected(items[0])
                return
            for item in items:
                self._write([item], on_rejected)

    def _keep_for_later(self, item: _Item) -> None:
        """Spool an entry that the ledger cannot take now; refuse an attempt that is under a budget."""
        entry = item.entry
        if isinstance(entry, Start) and (entry.limits or self._has_budgets):
            item.done.set_exception(
                StoreError(
                    f"The ledger {self.name} cannot be written, so no budget can be enforced",
                    hint="Repair the ledger, or call without a budget.",
                )
            )
            return
        if entry is not None and (spooled := to_spool(entry)) is not None:
            self._spool.add(spooled)
        item.done.set_result(Admission())

    def _apply(self, items: list[_Item]) -> None:
        """Write the entries in one transaction, then resolve their futures."""
        entries = [item.entry for item in items if item.entry is not None]
        admissions: dict[int, Admission] = {}
        if entries:
            with self.writing() as connection:
                self._check_clock(connection, [each.row.ts_us for each in entries if isinstance(each, Start)])
                admissions = {id(each): apply(connection, each) for each in entries}
        for each in entries:
            if isinstance(each, Start):
                # More statuses than the caller has limits: the ledger has stored budgets.
                self._has_budgets = len(admissions[id(each)].statuses) > len(set(each.limits))
        for item in items:
            item.done.set_result(admissions.get(id(item.entry), Admission()))

    def _check_clock(self, connection: Connection, started_us: list[int]) -> None:
        """Warn once if this machine's clock is far behind the latest record in the ledger."""
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

    def _mark_down(self, error: Exception) -> None:
        """Do not try the ledger again for a while; warn once."""
        self._down_until = time.monotonic() + _RETRY_AFTER_S
        if not self._warned:
            self._warned = True
            reason = error.message if isinstance(error, StoreError) else _short(error)
            path = self._spool.path
            logger.warning("The ledger %s cannot be written (%s); records wait in %s.", self.name, reason, path)

    # Reading

    def settle_expired(self) -> int:
        """
        Settle attempts whose lease has ended at their upper bound, because the money may have been spent.

        Returns:
            Number of these attempts.
        """
        query = sa.select(attempt).where(attempt.c.status == "started", attempt.c.lease_us < now_us())
        with self.reading() as connection:
            rows = [AttemptRow.read(dict(row)) for row in connection.execute(query).mappings()]
        for row in rows:
            self._submit(Expired(stored(row.expired()))).result()
        return len(rows)

    @property
    def waiting(self) -> int:
        """Number of records that wait in the spool, and are in no sum yet."""
        return self._spool.waiting()

    @property
    def waiting_in(self) -> Path:
        """Path of the spool file."""
        return self._spool.path

    def dead_letters(self) -> list[Path]:
        """Files of records that the ledger rejected."""
        return self._spool.dead_letters()

    def check_writable(self) -> None:
        """
        Try to write, without changing anything.

        Raises:
            StoreError: The ledger cannot be written.
        """
        with self.changing() as connection:
            connection.execute(sa.delete(event).where(sa.false()))

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """
        A connection for reading, in one consistent transaction.

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
        A connection for changing the ledger's own settings, such as its budgets.

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
                # One writer at a time, as in SQLite, so that checking a budget and holding money in it are atomic.
                connection.execute(_ONE_WRITER)
            yield connection

    def _unreadable(self, error: Exception) -> StoreError:
        return StoreError(
            f"The ledger {self.name} cannot be read ({_short(error)})",
            hint="Check the file or the server, or set AGENTSWARM_DATABASE_URL.",
        )

    def flush(self) -> None:
        """Wait until all writes so far are done, including those in the spool if the database can take them."""
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
    """An entry in the queue of the writer thread; without an entry it marks the end of those before it (`flush`)."""

    entry: Entry | None
    done: Future[Admission]

    @property
    def is_urgent(self) -> bool:
        """Whether it must be committed at once: it moves money, or someone is waiting for it."""
        return not isinstance(self.entry, Annotation | Event)


_ONE_WRITER = sa.text("SELECT pg_advisory_xact_lock(7231990416)")


async def committed(write: Future[Admission], patience: float = math.inf) -> Admission:
    """
    Await a write without blocking the event loop, even if the waiting task is cancelled in the meantime.

    Args:
        patience: Maximum seconds to wait.

    Raises:
        TimeoutError: The write takes longer; it is still committed later.

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


def _is_invalid_entry(error: Exception) -> bool:
    """Whether the entry is at fault, and not the database."""
    if isinstance(error, DBAPIError):
        return isinstance(error, DataError | IntegrityError) and not error.connection_invalidated
    return isinstance(error, SQLAlchemyError | KeyError | TypeError | ValueError | AttributeError | OverflowError)


def _short(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    text = " ".join(str(cause).split())
    return text[:150] if text else type(cause).__name__


def _flush_at_exit(ledger: Ledger, pid: int) -> None:
    """Write what asynchronous code recorded last; a forked process has no writer thread to wait for."""
    if os.getpid() == pid:
        ledger.flush()


@lru_cache(maxsize=8)
def get_ledger(url: str) -> Ledger:
    """This process's ledger at `url`."""
    return Ledger(url)


# A database connection must not cross a fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=get_ledger.cache_clear)
