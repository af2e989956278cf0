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
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, RootTransaction
from sqlalchemy.exc import (
    ArgumentError,
    CompileError,
    DataError,
    DBAPIError,
    IntegrityError,
    SQLAlchemyError,
    StatementError,
    TimeoutError as NoConnectionFree,
)

from shared.budget import Limit
from shared.errors import StoreError
from shared.internal.aio import wait_shielded
from shared.internal.clock import machine_name, now_us
from shared.internal.forks import gate
from shared.ledger.accounts import Admission, BudgetStatus, Latest, latest
from shared.ledger.deadline import at_leisure, seconds_left, within
from shared.ledger.driver import Driver
from shared.ledger.engine import (
    Patience,
    create_engine,
    file_of,
    is_locked,
    leave,
    limit_on_server,
    limits_on_server,
    lost_log,
    parse_url,
)
from shared.ledger.migrations import is_current, migrate
from shared.ledger.row import AttemptRow
from shared.ledger.schema import attempt, event
from shared.ledger.spool import Spool, SpoolEntry
from shared.ledger.sqlite_library import FileIdentity, file_identity
from shared.ledger.sums import PAGE, fold
from shared.ledger.writer import Item, Writer, short
from shared.ledger.writes import (
    Annotation,
    Entry,
    Event,
    Expired,
    LeastBound,
    NeedsWholeLedger,
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

# Maximum seconds that a cancelled task, or Ctrl-C, waits for a write, which goes on without it.
STOPPED_PATIENCE_S = 0.4
# A table that is large takes time to migrate; giving up in between would begin anew each time.
_MIGRATION_S = 600.0
_CLOSING_S = 10.0
# How long the end of the process waits until what the database has not taken is in the spool.
_SPOOLING_S = 1.0
_LOCKED_PATIENCE_S = 0.5
# Server messages for work that took too long: lock_not_available and query_canceled.
_TIMED_OUT = frozenset({"55P03", "57014"})


class Watcher(Protocol):
    """Who wants to know of what was settled and refused once it is committed; it must neither wait nor raise."""

    def settled(self, entries: Sequence[Settled | Expired], refusing: Sequence[BudgetStatus]) -> None:
        """Attempts were settled, and budgets had no room for others; called by the thread of the database."""

    def finish(self) -> None:
        """The process ends: do what is left, for a few seconds."""


class Ledger:
    """
    The attempts, events and sums in one database.

    Writing never raises and loses nothing: what the database cannot take now goes to a spool file, and is entered once,
    later. Reading raises StoreError. Both are thread-safe, and neither waits longer than `Patience` has it; `committed`
    awaits a write without blocking the event loop.

    Args:
        url: SQLAlchemy URL of a SQLite file or a PostgreSQL database.

        patience: How long the database is waited for. None: as the settings have it.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        self._url = parse_url(url)
        self._patience = patience or Patience.of_settings()
        # Without the query, which may also contain a password.
        without_query = self._url.set(drivername=self._url.get_backend_name(), query={})
        self.name = without_query.render_as_string(hide_password=True)
        self.file = file_of(self._url)
        self._identity: FileIdentity | None = None
        self._lock = threading.Lock()
        self._opening = threading.RLock()
        self._engine: Engine | None = None
        self._spool = Spool(None if self.file is None else self.file.parent, self.name)
        self._writer = Writer(
            self.name,
            self._spool,
            self._patience.call_s,
            self._write_batch,
            self._replay,
            self._is_budgeted,
        )
        self._is_started = False
        # The database did not answer: until then readers need not try it again.
        self._silent_until = 0.0
        self._silence = ""
        # Another program held the lock all the time: until then readers, which may not need it, wait only a moment.
        self._locked_until = 0.0
        self._has_budgets = False
        self._unfolded = 0
        self._latest: Latest | None = None
        self._clock_was_behind = False
        self.watcher: Watcher | None = None

    def with_patience(self, read_s: float) -> Ledger:
        """The same database, for a statement that takes so many seconds; to be closed."""
        return Ledger(self._url.render_as_string(hide_password=False), Patience(self._patience.call_s, read_s))

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

    def _submit(self, entry: Entry | None, *, is_last: bool = False) -> Future[Admission]:
        """Hand an entry to the writer; None is done when everything handed over before it is done."""
        item = Item(entry, is_last)
        item.done.set_running_or_notify_cancel()  # A cancelled caller must not cancel the write.
        with self._lock:
            self._writer.submit(item)
            if not self._is_started:
                self._is_started = True
                self._writer.start()
                _started.append(self)
                # Its processes end without atexit.
                if (util := sys.modules.get("multiprocessing.util")) is not None:
                    util.Finalize(None, _finish, (self, os.getpid()), exitpriority=0)
        return item.done

    def _is_budgeted(self, entry: Start) -> bool:
        """Whether an attempt is under a budget: the caller's, or one that is stored in the ledger."""
        return bool(entry.limits) or self._has_budgets

    def _write_batch(self, items: list[Item]) -> None:
        """Write items, within the time that a call has for that; called by the writer."""
        self._open_first()
        with within(self._patience.call_s):
            self._write(items, self._writer.keep_rejected)
        self._fold_sometimes(sum(isinstance(item.entry, Settled) for item in items))
        if self.watcher is not None:
            self._tell(self.watcher, items)

    def _tell(self, watcher: Watcher, items: list[Item]) -> None:
        """Say what was settled and which budgets refused; whoever waited for that was told before."""
        settled = [item.entry for item in items if isinstance(item.entry, Settled | Expired)]
        starts = [item.done for item in items if isinstance(item.entry, Start) and item.done.done()]
        found = [done.result() for done in starts if done.exception() is None]
        refusing = [each.refused_by for each in found if each.refused is not None and each.reason == "no room"]
        if settled or refusing:
            watcher.settled(settled, [each for each in refusing if each is not None])

    def _fold_sometimes(self, settled: int) -> None:
        """Fold what was settled into the sums, once it is a page."""
        self._unfolded += settled
        if settled and self._unfolded >= PAGE:
            self._unfolded = 0
            fold(self, if_many=True)

    def _replay(self, spooled: list[SpoolEntry]) -> None:
        """Write entries from the spool; those that no ledger can take become dead letters. Called by the writer."""
        items: list[Item] = []
        for each in spooled:
            try:
                items.append(Item(from_spool(*each)))
            except (KeyError, ValueError, AttributeError, TypeError):
                self._add_dead_letter(each)
        if items:
            self._open_first()
            with within(self._patience.call_s):
                self._write(items, lambda item: self._add_dead_letter(to_spool(item.entry) if item.entry else None))

    def _open_first(self) -> None:
        """Open the ledger in a time of its own: the first time takes longer, because tables may have to be made."""
        try:
            with gate.working(), within(self._patience.call_s):
                self._open()
        except Exception as error:
            self._failed(error)
            if not self._may_repeat(error):
                raise

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

    def _write(self, items: list[Item], on_rejected: Callable[[Item], None]) -> None:
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

    def _apply(self, items: list[Item]) -> None:
        """
        Write the entries in one transaction, then resolve their futures.

        When the database fails, they are written once more at once, on a fresh connection: most often only the
        connection was lost. Whether the first commit took effect does not matter, because entries are idempotent.
        """
        entries = [item.entry for item in items if item.entry is not None]
        admissions: dict[int, Admission] = {}
        if entries:
            try:
                admissions = self._commit(entries, is_repeated=False)
            except Exception as error:
                if _is_invalid_entry(error) or not self._may_repeat(error):
                    raise
                admissions = self._commit(entries, is_repeated=True)
        for each in entries:
            if isinstance(each, Start):
                # More statuses than the caller has limits: the ledger has stored budgets.
                self._has_budgets = len(admissions[id(each)].statuses) > len(set(each.limits))
        for item in items:
            item.resolve(admissions.get(id(item.entry), Admission()))

    def _commit(self, entries: list[Entry], *, is_repeated: bool) -> dict[int, Admission]:
        """Write entries in one transaction, and check that it went to the file that is the ledger now."""
        # Programs that share PostgreSQL lock only what they change, until a running total is to be begun.
        is_alone = self.file is not None
        try:
            try:
                admissions, is_lost = self._written(entries, is_repeated=is_repeated, is_alone=is_alone)
            except (NeedsWholeLedger, IntegrityError):
                if is_alone and is_repeated:
                    raise
                admissions, is_lost = self._written(entries, is_repeated=True, is_alone=True)
        except Exception as error:
            self._failed(error)
            raise
        if (is_lost or self._was_replaced()) and not is_repeated:
            raise _LedgerMovedError
        self._silent_until = 0.0
        return admissions

    def _written(self, entries: list[Entry], *, is_repeated: bool, is_alone: bool) -> tuple[dict[int, Admission], bool]:
        """Write entries in one transaction; also says whether the log that they went to is the ledger's no more."""
        first = () if is_alone else (("BEGIN", ()), *self._limits(), _WITH_OTHERS)
        with self.writing() if is_alone else self._begun_to_write(ledger_begins_later=True) as connection:
            self._check_clock(connection, [each.row.ts_us for each in entries if isinstance(each, Start)])
            admissions = apply(
                connection, entries, is_alone=is_alone, is_repeated=is_repeated, first=first, and_commit=True
            )
            connection.commit()
            return admissions, lost_log(connection)

    def _limits(self) -> list[tuple[str, list[str]]]:
        return [limits_on_server(self._patience.call_s, min(self._patience.call_s, seconds_left()))]

    def _may_repeat(self, error: Exception) -> bool:
        """Whether a second try makes sense: the failure was quick, and there is time left."""
        return not _timed_out(error) and seconds_left() > 0

    def _failed(self, error: Exception) -> None:
        """After a failure of the database: connect anew, and let readers not wait for what is silent."""
        if _is_invalid_entry(error):
            return
        if not is_locked(getattr(error, "orig", None) or error):
            self._forget_engine()
        if self.file is None and isinstance(error, DBAPIError | NoConnectionFree) and _timed_out(error):
            self._silent_until, self._silence = time.monotonic() + 1.0, short(error)
        elif self.file is not None and _timed_out(error):
            self._locked_until = time.monotonic() + 2.0

    def _check_clock(self, connection: Connection, started_us: list[int]) -> None:
        """Warn once if this machine's clock is far behind the latest record in the ledger."""
        if not started_us:
            return
        known = latest(connection) if self._latest is None else self._latest
        self._latest = max(known, Latest(max(started_us), machine_name()), key=lambda each: each.ts_us)
        behind = known.ahead_of(min(started_us))
        if behind is not None and not self._clock_was_behind:
            self._clock_was_behind = True
            logger.warning(
                "%s%s; days in reports of the ledger %s are wrong.", behind[0].upper(), behind[1:], self.name
            )

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
        for write in [self._submit(Expired(stored(row.expired()))) for row in rows]:
            write.result()
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

    def change_dead_letters(self, change: Callable[[SpoolEntry], SpoolEntry]) -> None:
        """
        Change the records that the ledger rejected, where they lie.

        Raises:
            StoreError: A file of them cannot be written.
        """
        try:
            self._spool.change_dead_letters(change)
        except OSError as error:
            raise StoreError(f"The dead letters of {self.name} cannot be changed ({error.strerror})") from None

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
        A connection for reading, in one consistent transaction. Long reads are paged, each page in one of its own.

        Raises:
            StoreError: The ledger cannot be opened or read.
        """
        if self._is_started and (self._writer.submitted != self._writer.finished or self._writer.has_spooled):
            self.flush()
        if time.monotonic() < self._silent_until:
            raise self._unreadable(self._silence)
        try:
            with gate.working(), self._connected_for_reading() as connection:
                yield connection
        except (SQLAlchemyError, OSError) as error:
            self._failed(error)
            raise self._unreadable(short(error)) from None

    @contextmanager
    def _connected_for_reading(self) -> Iterator[Connection]:
        is_locked_out = time.monotonic() < self._locked_until
        with within(_LOCKED_PATIENCE_S if is_locked_out else self._patience.call_s):
            connection, transaction = self._begun_to_read()
        with connection, transaction:
            yield connection

    def _begun_to_read(self) -> tuple[Connection, RootTransaction]:
        """A connection in a transaction; when the server has ended it meanwhile, another one."""
        for is_last in (False, True):
            connection = self._open().connect()
            try:
                if self.file is None:  # every statement sees the same moment, as in SQLite
                    connection = connection.execution_options(isolation_level="REPEATABLE READ")
                transaction = connection.begin()
                limit_on_server(connection, self._patience.read_s, self._patience.call_s)
            except BaseException as error:
                connection.close()
                if is_last or not (isinstance(error, DBAPIError) and error.connection_invalidated):
                    raise
                self._forget_engine()
            else:
                return connection, transaction
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def changing(self, *, alone: bool = True) -> Iterator[Connection]:
        """
        A connection for changing the ledger's own settings, such as its budgets.

        Args:
            alone: Whether other writers must wait meanwhile; in SQLite they always do.

        Raises:
            StoreError: The ledger cannot be written.
        """
        if time.monotonic() < self._silent_until:
            raise self._unreadable(self._silence)
        try:
            with within(self._patience.call_s), self.writing() if alone else self.beside_others() as connection:
                yield connection
        except (SQLAlchemyError, OSError) as error:
            self._failed(error)
            raise self._unreadable(short(error)) from None

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection that keeps all other writers out from the start."""
        with self._begun_to_write() as connection:
            if connection.dialect.name == "postgresql":
                Driver.of(connection).read(*self._limits(), _ALONE)
            yield connection

    @contextmanager
    def beside_others(self) -> Iterator[Connection]:
        """A connection for changes that need not keep other writers out; in SQLite it does, as any that writes."""
        with self._begun_to_write() as connection:
            if connection.dialect.name == "postgresql":
                Driver.of(connection).read(*self._limits(), _WITH_OTHERS)
            yield connection

    @contextmanager
    def _begun_to_write(self, **options: Any) -> Iterator[Connection]:
        with (
            gate.working(),
            self._open().connect().execution_options(ledger_write=True, **options) as connection,
            connection.begin(),
        ):
            yield connection

    def _unreadable(self, reason: str) -> StoreError:
        return StoreError(
            f"The ledger {self.name} cannot be read ({reason})",
            hint="Check the file or the server, or set AGENTSWARM_DATABASE_URL.",
        )

    def flush(self, patience_s: float | None = None) -> bool:
        """
        Wait until all writes so far are done, including those in the spool if the database can take them.

        Args:
            patience_s: Maximum seconds to wait. None: about as long as a call waits.

        Returns:
            Whether they are done, or wait in the spool; else they are still under way.
        """
        until = time.monotonic() + (self._patience.call_s + 0.5 if patience_s is None else patience_s)
        while (left := until - time.monotonic()) > 0:
            try:
                self._submit(None).result(left)
            except TimeoutError:
                return False
            pause_s = min(self._writer.down_until - time.monotonic(), until - time.monotonic())
            if not self._writer.has_spooled or (pause_s > 0 and patience_s is None):
                return True
            time.sleep(max(0.0, pause_s))
        return True

    def finish(self) -> None:
        """At the end of the process: write what is left, for a few seconds; say what could not be written."""
        if not self.flush():
            with suppress(TimeoutError):
                self._submit(None, is_last=True).result(_SPOOLING_S)
        elif self._unfolded:  # many short programs leave many pages too
            fold(self, if_many=True)
        if self.watcher is not None:
            self.watcher.finish()
        left = self.waiting
        if left:
            logger.warning(
                "The ledger %s cannot be written; %d records wait in %s, for the next program that uses the ledger.",
                self.name,
                left,
                self.waiting_in,
            )

    def close(self) -> None:
        """Finish writing and close every connection."""
        self.flush(_CLOSING_S)
        self._forget_engine()

    def _forget_engine(self) -> None:
        """Close the connections, so that the next one is made anew, to whatever is the ledger then."""
        engine, self._engine = self._engine, None
        if engine is not None:
            with within(0.0), suppress(Exception):
                engine.dispose()

    def close_file(self) -> None:
        """Close the idle connections to a file; the next one that is needed is opened anew."""
        if self.file is not None and self._engine is not None:
            with suppress(Exception):
                self._engine.dispose()

    def _was_replaced(self) -> bool:
        """Whether another file, or none, lies where the opened one was."""
        return self.file is not None and file_identity(self.file) != self._identity

    def _open(self) -> Engine:
        """The engine of the ledger as it is now: its file may have been moved, deleted or replaced."""
        if not self._opening.acquire(timeout=min(seconds_left(), self._patience.call_s)):
            raise NoConnectionFree("the ledger is being opened")
        try:
            if self.file is not None and self._engine is not None and self._was_replaced():
                leave(self.file, self._identity)
                self._forget_engine()
            if self._engine is None:
                self._engine = self._opened()
            return self._engine
        finally:
            self._opening.release()

    def _opened(self) -> Engine:
        """A new engine, for a ledger that has the newest schema."""
        engine = create_engine(self._url, self._patience)
        try:
            identity = file_identity(self.file)
            with engine.connect() as connection, connection.begin():
                current = is_current(connection)
            if not current:
                self._migrate(engine)
        except BaseException:
            engine.dispose()
            raise
        self._identity = identity
        _used.add(self)
        return engine

    def _migrate(self, engine: Engine) -> None:
        with (
            at_leisure(_MIGRATION_S),
            engine.connect().execution_options(ledger_write=True) as connection,
            connection.begin(),
        ):
            limit_on_server(connection, _MIGRATION_S, self._patience.call_s)
            migrate(connection)


class _LedgerMovedError(Exception):
    """The file that was written is not the ledger any more."""


# Writers share this lock, so that one who must be alone can keep them out: to change budgets, or to begin a running
# total with the sum of all rows. Older programs always write alone.
_WITH_OTHERS = ("SELECT pg_advisory_xact_lock_shared(7231990416)", ())
_ALONE = ("SELECT pg_advisory_xact_lock(7231990416)", ())


async def committed(write: Future[Admission], patience: float = math.inf) -> Admission:
    """
    Await a write without blocking the event loop, even if the waiting task is cancelled in the meantime.

    Args:
        patience: Maximum seconds to wait. A task that is cancelled waits only a moment longer.

    Raises:
        TimeoutError: The write takes longer; it is still committed later.

        StoreError: See `Ledger.start`.
    """
    done = asyncio.wrap_future(write)
    # asyncio would print an error that comes when no one waits any more.
    done.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    if await wait_shielded(done, patience, STOPPED_PATIENCE_S):
        raise asyncio.CancelledError
    if not done.done():
        raise TimeoutError
    return done.result()


def _is_invalid_entry(error: Exception) -> bool:
    """Whether the entry is at fault, and not the database."""
    if isinstance(error, DBAPIError):
        return isinstance(error, DataError | IntegrityError) and not error.connection_invalidated
    if isinstance(error, StatementError | CompileError | ArgumentError):
        return True
    return isinstance(error, KeyError | TypeError | ValueError | AttributeError | OverflowError)


def _timed_out(error: Exception) -> bool:
    """Whether the time was used up waiting, so that a second try would only wait again."""
    cause = getattr(error, "orig", None) or error
    if isinstance(error, NoConnectionFree) or is_locked(cause):
        return True
    return getattr(cause, "sqlstate", None) in _TIMED_OUT or type(cause).__name__ in ("Unanswered", "ConnectionTimeout")


# The ledgers of this process that have been opened, and those that have written something.
_used: weakref.WeakSet[Ledger] = weakref.WeakSet()
_started: list[Ledger] = []


def _finish(ledger: Ledger, pid: int) -> None:
    """Write what asynchronous code recorded last; a forked process has no writer thread to wait for."""
    if os.getpid() == pid:
        ledger.finish()


# Registered when this module is imported, so that it runs after the calls that were under way have been ended.
@atexit.register
def _finish_all() -> None:
    for ledger in _started:
        ledger.finish()


@lru_cache(maxsize=8)
def get_ledger(url: str) -> Ledger:
    """This process's ledger at `url`."""
    with gate.working():  # settings are read with a lock of pydantic's
        return Ledger(url)


def _forget_all() -> None:
    """A database connection, and a thread, do not cross a fork."""
    get_ledger.cache_clear()
    _started.clear()


def _close_files() -> None:
    """Close SQLite's connections before a fork: the child would take their locks for its own, and has none."""
    for ledger in list(_used):
        ledger.close_file()


gate.closers.append(_close_files)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
