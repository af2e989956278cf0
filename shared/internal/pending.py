"""Calls that an event may match, and work in progress, within one scope."""

from __future__ import annotations

import threading
import uuid
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class RecordedCall:
    """A call in the ledger that no event has claimed yet."""

    call_id: uuid.UUID
    attempt_id: uuid.UUID
    model: str
    cost_nano: int | None


class PendingCalls:
    """Recorded calls and work in progress in one scope, shared by the threads and tasks that it starts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unclaimed: deque[RecordedCall] = deque(maxlen=1000)
        self._running: set[Future[Any]] = set()
        self._writes: list[Future[Any]] = []

    def add(self, call: RecordedCall) -> None:
        """Remember a recorded call until an event claims it."""
        with self._lock:
            self._unclaimed.append(call)

    def claim(self, model: str | None, cost_nano: int | None, call_id: uuid.UUID | None = None) -> RecordedCall | None:
        """
        Take the oldest unclaimed call that matches an event.

        Args:
            model: Model of the event.

            cost_nano: Cost of the event in nano-dollars; None when it is unknown.

            call_id: Call id of the event, if it has one; then nothing else is compared.
        """
        with self._lock:
            for call in self._unclaimed:
                matches = call.call_id == call_id if call_id else (call.model, call.cost_nano) == (model, cost_nano)
                if matches:
                    self._unclaimed.remove(call)
                    return call
        return None

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
