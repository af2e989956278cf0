"""Forking while other threads work: a fork waits until no thread is inside a library that a fork would break."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Maximum seconds that a fork waits. What it waits for has bounds of its own; importing LiteLLM takes longest.
_PATIENCE_S = 30.0


class ForkGate:
    """
    Keeps forks and work apart.

    A lock that another thread holds at the moment of a fork stays locked in the child for ever: those of SQLite, and
    that of a module being imported. Work of that kind runs inside `working`, and a fork waits for it.
    """

    def __init__(self) -> None:
        # Called before a fork, when no thread is at work: to close what must not be open in the child.
        self.closers: list[Callable[[], None]] = []
        self._renew()

    def _renew(self) -> None:
        self._changed = threading.Condition()
        self._own = threading.local()
        self._working = 0
        self._forking = 0

    @contextmanager
    def working(self) -> Iterator[None]:
        """Do work that a fork must not interrupt; may be nested."""
        depth = getattr(self._own, "depth", 0)
        with self._changed:
            if not depth:  # else a fork waits for this thread, which must not wait for the fork
                self._changed.wait_for(lambda: not self._forking, _PATIENCE_S)
            self._working += 1
        self._own.depth = depth + 1
        changed, own = self._changed, self._own
        try:
            yield
        finally:
            own.depth = depth
            with changed:
                if changed is self._changed:  # else this is a forked child, which counts from zero
                    self._working -= 1
                    changed.notify_all()

    def close(self) -> None:
        """Before a fork: let no more work begin, and wait for the work of other threads."""
        until = time.monotonic() + _PATIENCE_S
        self._changed.acquire()
        self._forking += 1
        while self._working > getattr(self._own, "depth", 0) and (left := until - time.monotonic()) > 0:
            self._changed.wait(left)
        for close in self.closers:
            close()
        # The lock is held until the fork is over, so that the parent's threads cannot start work meanwhile.

    def open(self) -> None:
        """After a fork, in the parent."""
        self._forking -= 1
        self._changed.notify_all()
        self._changed.release()

    def renew(self) -> None:
        """After a fork, in the child, which has no other threads."""
        self._renew()


gate = ForkGate()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=gate.close, after_in_parent=gate.open, after_in_child=gate.renew)
