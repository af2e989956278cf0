"""The writer: gives batches to the database, keeps for later what it cannot take now, and enters it once it can."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue

from shared.errors import StoreError
from shared.ledger.accounts import Admission
from shared.ledger.deadline import LEEWAY, watch_progress
from shared.ledger.spool import MAX_BATCH, Spool, SpoolEntry
from shared.ledger.writes import Annotation, Entry, Event, Start, to_spool

logger = logging.getLogger("agentswarm_tools")

# Maximum seconds that an entry without money waits for another entry's commit.
_MAX_DELAY_S = 1.0
# After a failure, and its immediate second try, the database is left alone for so many seconds; each time for longer.
_PAUSES_S = (0.5, 1.0, 2.0, 5.0)
# The database's own limit should end a batch; if it does not, the batch is given up so many seconds later.
_GRACE_S = 0.4
_LONGEST_WAIT_S = 60.0
# A spool that cannot be read keeps nothing else back; it is looked at again after so many seconds.
_SPOOL_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """
    An entry on its way to the ledger; without an entry it marks the end of those before it (`flush`).

    The last one of a process does not wait for the database: what is before it is written by then, or kept for later.
    """

    entry: Entry | None
    is_last: bool = False
    done: Future[Admission] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)

    @property
    def is_urgent(self) -> bool:
        """Whether it must be committed at once: it moves money, or someone is waiting for it."""
        return not isinstance(self.entry, Annotation | Event)

    def resolve(self, admission: Admission) -> None:
        """Tell whoever waits that the entry is stored, or kept for later; the first word counts."""
        with suppress(InvalidStateError):
            self.done.set_result(admission)

    def refuse(self, error: StoreError) -> None:
        """Tell whoever waits that the entry was refused, unless it was told something before."""
        with suppress(InvalidStateError):
            self.done.set_exception(error)


@dataclass(slots=True, eq=False)
class _Job:
    """Work for the thread that talks to the database: a batch of new items, or of entries from the spool."""

    work: Callable[[], None]
    items: list[Item]
    limit_s: float
    is_replay: bool = False
    is_abandoned: bool = False
    error: Exception | None = None
    began: float = field(default_factory=time.monotonic)
    progressed: float = field(default_factory=time.monotonic)

    @property
    def give_up_at(self) -> float:
        """When the database has not answered for too long, or too slowly."""
        return min(self.progressed + self.limit_s, self.began + self.limit_s * LEEWAY) + _GRACE_S

    def go_on(self) -> None:
        """Note that the database answers."""
        self.progressed = time.monotonic()


class Writer:
    """
    Writes entries in the order of arrival, from one thread; another one talks to the database, and may be abandoned.

    So nothing waits for the database longer than `patience_s`, whatever hangs: the first thread always has an answer.
    While the database is down, entries go straight to the spool, and only the second thread tries the database again:
    first with what waits in the spool, batch by batch, until nothing waits any more.

    Args:
        write: Writes items in one transaction and resolves them; raises what the database raises.

        replay: The same for entries from the spool.

        is_budgeted: Whether an attempt is under a budget, so that it cannot be kept for later.
    """

    def __init__(
        self,
        name: str,
        spool: Spool,
        patience_s: float,
        write: Callable[[list[Item]], None],
        replay: Callable[[list[SpoolEntry]], None],
        is_budgeted: Callable[[Start], bool],
    ) -> None:
        self._name = name
        self._spool = spool
        self._patience_s = patience_s
        self._write = write
        self._replay = replay
        self._is_budgeted = is_budgeted
        self._messages: SimpleQueue[Item | _Job] = SimpleQueue()
        self._waiting: list[Item] = []
        self._job: _Job | None = None
        self._jobs: SimpleQueue[_Job] | None = None
        self._batches: Iterator[list[SpoolEntry]] | None = None
        self._failures = 0
        self._is_warned = False
        self._replay_at = 0.0
        self.down_until = 0.0
        # Items handed over, and items done with. If they differ, some may still wait for a later commit.
        self.submitted = self.finished = 0

    @property
    def has_spooled(self) -> bool:
        """Whether something may wait in the spool, or is being entered from there."""
        return self._batches is not None or self._spool.is_used

    def submit(self, item: Item) -> None:
        """Hand over an item; the caller must hold the ledger's lock."""
        self.submitted += 1
        self._messages.put(item)

    def start(self) -> None:
        """Start both threads at once: while Python is shutting down, none can be started any more."""
        self._jobs = self._new_jobs()
        threading.Thread(target=self._run, name="agentswarm-ledger", daemon=True).start()

    def _new_jobs(self) -> SimpleQueue[_Job]:
        jobs: SimpleQueue[_Job] = SimpleQueue()
        threading.Thread(target=self._labour, args=(jobs,), name="agentswarm-ledger-database", daemon=True).start()
        return jobs

    def _run(self) -> None:
        while True:
            try:
                for message in self._received():
                    self._take(message)
                self._end_late_job()
                self._go_on()
            except Exception:
                # Every write goes through this thread, so nothing may end it.
                logger.exception("The ledger's writer failed; what it had not written is kept for later.")
                self._keep_for_later(self._waiting)
                self._waiting = []

    def _received(self) -> list[Item | _Job]:
        """Everything that has arrived; waits for it until there is something else to do."""
        found: list[Item | _Job] = []
        try:
            found.append(
                self._messages.get(timeout=max(0.0, min(self._next_event() - time.monotonic(), _LONGEST_WAIT_S)))
            )
            while True:
                found.append(self._messages.get_nowait())
        except Empty:
            return found

    def _next_event(self) -> float:
        """When something is to be done, even if nothing arrives."""
        now = time.monotonic()
        times = [now + _LONGEST_WAIT_S]
        if self._job is not None:
            # When an attempt under a budget has waited long enough, if its turn has not come.
            late = [item.since + self._patience_s for item in self._waiting]
            times += [self._job.give_up_at, *(each for each in late if each > now)]
        else:
            times += [max(self.down_until, self._replay_at)] if self._spool.is_used else []
            times += [self._waiting[0].since + _MAX_DELAY_S] if self._waiting else []
        return min(times)

    def _take(self, message: Item | _Job) -> None:
        if isinstance(message, Item):
            self._waiting.append(message)
            if message.entry is None and not message.is_last:
                self._replay_at = 0.0  # whoever flushes wants it now
            elif message.is_last:
                self._end_job(f"not all was written in {self._patience_s:.1f} s")
                self._set_aside(is_down=True)
        elif message is self._job:
            self._job = None
            self._ended(message, message.error)

    def _ended(self, job: _Job, error: Exception | None) -> None:
        """After a job: it was done, or the database counts as down for a while."""
        if error is not None:
            self._mark_down(error)
            if self._batches is not None:
                self._batches.close()  # type: ignore[attr-defined]
                self._batches = None
            if job.is_replay:  # perhaps it was too much for the time
                self._spool.batch = max(1, self._spool.batch // 2)
            self._keep_for_later([item for item in job.items if not item.done.done()])
        else:
            self._failures = 0
            self._spool.batch = min(MAX_BATCH, self._spool.batch * 2)
        self.finished += len(job.items)

    def _end_late_job(self) -> None:
        if self._job is not None and time.monotonic() >= self._job.give_up_at:
            self._end_job(f"no answer within {self._patience_s:.1f} s")

    def _end_job(self, reason: str) -> None:
        """Abandon the thread that has not come back; what it may still write is the same as what is kept."""
        job = self._job
        if job is not None:
            job.is_abandoned = True
            self._job = self._jobs = None
            self._ended(job, TimeoutError(reason))

    def _go_on(self) -> None:
        """Start the next job, if there is something to do and the database may be tried."""
        if self._job is None and time.monotonic() < self.down_until:
            self._set_aside(is_down=True)
            return
        if self._job is None:
            self._start_replay()
        if self._job is None:
            self._start_write()
        elif self._job.is_replay or self._failures:
            self._set_aside(is_down=False)

    def _start_replay(self) -> None:
        """Give the next batch from the spool to the database; the batch before is deleted by that."""
        if self._batches is None and self._spool.is_used and time.monotonic() >= self._replay_at:
            self._batches = self._spool.take()
        while self._batches is not None:
            try:
                entries = next(self._batches, None)
            except OSError as error:
                logger.warning("Records that wait for the ledger cannot be read (%s).", short(error))
                self._batches, self._replay_at = None, time.monotonic() + _SPOOL_PAUSE_S
                return
            if entries is None:
                self._batches = None
                self._is_warned = False
            elif entries:
                self._start(partial(self._replay, entries), [], is_replay=True)
                return

    def _start_write(self) -> None:
        """
        Give everything that waits to the database, for one transaction.

        Each commit costs a flush of the disk, so items that arrived during the last commit share the next one. They are
        not more than MAX_BATCH, since other programs wait for the lock meanwhile.
        Entries without money (annotations and events) do not cause a commit by themselves: they wait, at most for
        _MAX_DELAY_S, until an urgent item arrives, and are committed together with it.
        """
        if not self._waiting:
            return
        overdue = time.monotonic() - self._waiting[0].since >= _MAX_DELAY_S
        if overdue or any(item.is_urgent for item in self._waiting):
            items, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            self._start(partial(self._write, items), items)

    def _start(self, work: Callable[[], None], items: list[Item], *, is_replay: bool = False) -> None:
        self._job = _Job(work, items, self._patience_s, is_replay)
        try:
            self._jobs = self._jobs or self._new_jobs()
        except RuntimeError as error:  # Python is shutting down, and the thread before was abandoned
            self._job.error = error
            self._messages.put(self._job)
            return
        self._jobs.put(self._job)

    def _labour(self, jobs: SimpleQueue[_Job]) -> None:
        """The thread that talks to the database."""
        while True:
            job = jobs.get()
            watch_progress(job.go_on)
            try:
                job.work()
            except Exception as error:  # noqa: BLE001 - the thread that decides deals with it
                job.error = error
            self._messages.put(job)
            if job.is_abandoned:
                return

    def _set_aside(self, *, is_down: bool) -> None:
        """
        Keep what waits for later, while the database is down or what waits in the spool is entered.

        Args:
            is_down: Whether the database was found down, and is not being tried again. If it is, attempts under a
                budget wait for the outcome, and so does `flush`.
        """
        now = time.monotonic()
        kept = [item for item in self._waiting if is_down or self._need_not_wait(item, now)]
        self._waiting = [item for item in self._waiting if item not in kept]
        self._keep_for_later(kept)
        self.finished += len(kept)

    def _need_not_wait(self, item: Item, now: float) -> bool:
        must_wait = item.entry is None or (isinstance(item.entry, Start) and self._is_budgeted(item.entry))
        return not must_wait or now - item.since >= self._patience_s

    def keep_rejected(self, item: Item) -> None:
        """Keep an entry of this program that the database rejected; it is tried once more, then a dead letter."""
        self._replay_at = time.monotonic() + _SPOOL_PAUSE_S
        self._keep_for_later([item])

    def _keep_for_later(self, items: list[Item]) -> None:
        """Spool entries that the ledger cannot take now; refuse attempts that are under a budget."""
        refused = [item for item in items if isinstance(item.entry, Start) and self._is_budgeted(item.entry)]
        for item in refused:
            item.refuse(
                StoreError(
                    f"The ledger {self._name} cannot be written, so no budget can be enforced",
                    hint="Repair the ledger, or call without a budget.",
                )
            )
        kept = [item for item in items if item not in refused]
        entries = [spooled for item in kept if item.entry is not None and (spooled := to_spool(item.entry)) is not None]
        if entries:
            self._spool.add(*entries)
        for item in kept:
            item.resolve(Admission())

    def _mark_down(self, error: Exception) -> None:
        """Do not try the ledger again for a while; warn once."""
        self.down_until = time.monotonic() + _PAUSES_S[min(self._failures, len(_PAUSES_S) - 1)]
        self._failures += 1
        if not self._is_warned:
            self._is_warned = True
            reason = error.message if isinstance(error, StoreError) else short(error)
            logger.warning(
                "The ledger %s cannot be written (%s); records wait in %s.", self._name, reason, self._spool.path
            )


def short(error: Exception) -> str:
    """An error of the database as part of a sentence."""
    cause = getattr(error, "orig", None) or error
    text = " ".join(str(cause).split())
    return text[:150] if text else type(cause).__name__
