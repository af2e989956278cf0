"""Calls that an event may match, and work that is under way, inside one scope."""

from __future__ import annotations

import threading
import uuid
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class RecordedCall:
    """A call that the ledger holds, until an event claims it."""

    call_id: uuid.UUID
    attempt_id: uuid.UUID
    model: str
    cost_nano: int | None


class PendingCalls:
    """What was recorded and is under way inside one scope; shared by the threads and tasks that it starts."""

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
        Take the oldest unclaimed call that an event speaks of.

        Args:
            model: Model of the event.

            cost_nano: Cost of the event in nano-dollars; None when it is unknown.

            call_id: Call of the event, where it names one; then it alone decides.
        """
        with self._lock:
            for call in self._unclaimed:
                same = call.call_id == call_id if call_id else (call.model, call.cost_nano) == (model, cost_nano)
                if same:
                    self._unclaimed.remove(call)
                    return call
        return None

    def owe(self, write: Future[Any]) -> None:
        """Remember a write that nobody has waited for yet."""
        with self._lock:
            # Outside a tool nobody asks for them, and done is done.
            self._writes = [*(earlier for earlier in self._writes if not earlier.done()), write]

    def owed(self) -> list[Future[Any]]:
        """Writes that nobody has waited for, handed over to the caller."""
        with self._lock:
            writes, self._writes = self._writes, []
            return writes

    def enter(self, running: Future[Any]) -> None:
        """Count a synchronous call as under way, so that `cancel` can stop it."""
        with self._lock:
            self._running.add(running)
        running.add_done_callback(self._leave)

    def _leave(self, running: Future[Any]) -> None:
        with self._lock:
            self._running.discard(running)

    def cancel(self) -> None:
        """Stop every synchronous call that is under way."""
        with self._lock:
            running = list(self._running)
        for future in running:
            future.cancel()
