"""Calls that an event may match, and work in progress, within one scope."""

from __future__ import annotations

import threading
import uuid
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

_MAX_CALLS = 1000
# Events often have the cost rounded to six decimals.
_ROUNDED_NANO = 1000


@dataclass(slots=True)
class RecordedCall:
    """
    A call in the ledger that no event has claimed yet.

    `names`: other names of its model, lower-case: as requested, as sent and as answered. `usage`: its tokens, as the
    caller was told. `store`: the ledger that has it; without one, only events of the same scope can be about it.
    """

    call_id: uuid.UUID
    attempt_id: uuid.UUID
    model: str
    cost_nano: int | None
    names: frozenset[str] = frozenset()
    usage: Mapping[str, int] = field(default_factory=dict)
    store: str | None = None
    _claim: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def take(self) -> bool:
        """Claim the call; True once."""
        return self._claim.acquire(blocking=False)

    @property
    def is_claimed(self) -> bool:
        """Whether an event has claimed the call."""
        return self._claim.locked()

    def is_of(self, model: str | None) -> bool:
        """Whether the call's model has this name, too."""
        return model is not None and (model == self.model or model.strip().lower() in self.names)

    def costs(self, cost_nano: int | None, *, exactly: bool) -> bool:
        """Whether the call cost this much, to the nano-dollar, or rounded to six decimals."""
        if exactly or cost_nano is None or self.cost_nano is None or cost_nano % _ROUNDED_NANO:
            return self.cost_nano == cost_nano
        return abs(self.cost_nano - cost_nano) * 2 <= _ROUNDED_NANO

    def agrees_with(self, usage: Mapping[str, Any]) -> bool:
        """Whether no count of tokens that both know, and that is not 0, differs."""
        return not any(usage.get(name) not in (None, 0, count) for name, count in self.usage.items())


class PendingCalls:
    """
    Recorded calls and work in progress in one scope, shared by the threads and tasks that it starts.

    Args:
        outer: Those of the scope around.

        looks_out: Whether events of this scope may be about calls of the scopes around; not those of a tool.
    """

    def __init__(self, outer: PendingCalls | None = None, *, looks_out: bool = True) -> None:
        self._lock = threading.Lock()
        self._calls: deque[RecordedCall] = deque(maxlen=_MAX_CALLS)
        # Calls of the scopes inside, also of those that have been left.
        self._inner: deque[RecordedCall] = deque(maxlen=_MAX_CALLS)
        # Weak, and without those that are gone: a job that schedules itself would otherwise form an ever longer chain.
        around = () if outer is None else (weakref.ref(outer), *outer.around)
        self.around: tuple[weakref.ref[PendingCalls], ...] = tuple(each for each in around if each() is not None)
        self.looks_out = looks_out
        self._running: set[Future[Any]] = set()
        self._writes: list[Future[Any]] = []

    def add(self, call: RecordedCall) -> None:
        """Remember a recorded call until an event claims it, here or in a scope around."""
        with self._lock:
            self._calls.append(call)
        for each in self.around:
            if (outer := each()) is not None:
                outer.add_inner(call)

    def add_inner(self, call: RecordedCall) -> None:
        """Remember a call of a scope inside."""
        with self._lock:
            self._inner.append(call)

    def claim(
        self,
        model: str | None,
        cost_nano: int | None,
        call_id: uuid.UUID | None = None,
        *,
        usage: Mapping[str, Any] | None = None,
        store: str | None = None,
    ) -> RecordedCall | None:
        """
        Take the oldest unclaimed call that an event is about.

        Calls of this scope come first, then those of the scopes inside, then those of the scopes around. An exact cost
        comes before a rounded one. For a call of another scope the tokens must not differ either. Each call is claimed
        once. Only the call's id leads to a call beside this scope.

        Args:
            model: Model of the event.

            cost_nano: Cost of the event in nano-dollars; None when it is unknown.

            call_id: Call id of the event, if it has one; then nothing else is compared.

            usage: Tokens of the event, by name.

            store: The ledger that the event goes to.
        """
        for calls, is_own in self._places(everywhere=call_id is not None):
            for exactly in (True, False):
                for call in calls:
                    if call_id is not None:
                        matches = call.call_id == call_id
                    else:
                        matches = call.is_of(model) and call.costs(cost_nano, exactly=exactly)
                        matches = matches and (is_own or call.agrees_with(usage or {}))
                    is_stored_there = call.store == store if call.store is not None else is_own
                    matches = matches and is_stored_there
                    if matches and call.take():
                        return call
        return None

    def _places(self, *, everywhere: bool) -> Iterator[tuple[list[RecordedCall], bool]]:
        """
        The calls that an event may be about, in the order of the scopes, and whether they are this scope's own.

        `everywhere`: also those beside this scope; they too are inside a scope around it.
        """
        yield self.unclaimed(), True
        yield self.unclaimed(inner=True), False
        for each in self.around if self.looks_out or everywhere else ():
            if (outer := each()) is not None:
                yield outer.unclaimed(), False
                if everywhere:
                    yield outer.unclaimed(inner=True), False
                elif not outer.looks_out:
                    return

    def unclaimed(self, *, inner: bool = False) -> list[RecordedCall]:
        """The calls of the scope, or of those inside it, that no event has claimed, oldest first."""
        with self._lock:
            calls = self._inner if inner else self._calls
            left = [call for call in calls if not call.is_claimed]
            calls.clear()
            calls.extend(left)
            return left

    def add_write(self, write: Future[Any]) -> None:
        """Remember a write that has not been awaited yet."""
        with self._lock:
            # Outside a tool nothing collects the writes, so those already done are dropped here.
            self._writes = [*(earlier for earlier in self._writes if not earlier.done()), write]

    def take_writes(self) -> list[Future[Any]]:
        """Hand over the writes that have not been awaited yet."""
        with self._lock:
            writes, self._writes = self._writes, []
            return writes

    def enter(self, running: Future[Any]) -> None:
        """Register a synchronous call in progress, so that `cancel` can stop it."""
        with self._lock:
            self._running.add(running)
        running.add_done_callback(self._leave)

    def _leave(self, running: Future[Any]) -> None:
        with self._lock:
            self._running.discard(running)

    def cancel(self) -> None:
        """Cancel every synchronous call in progress."""
        with self._lock:
            running = list(self._running)
        for future in running:
            future.cancel()
