"""How long the work of this thread on the store may still take."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_thread = threading.local()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Limit what this thread does with the store inside; a limit around it still applies."""
    before = getattr(_thread, "until", math.inf)
    _thread.until = min(before, time.monotonic() + seconds)
    try:
        yield
    finally:
        _thread.until = before


@contextmanager
def at_leisure(seconds: float) -> Iterator[None]:
    """A limit of its own, whatever limit is around it: for work that must not be left half done."""
    before = getattr(_thread, "until", math.inf)
    _thread.until = time.monotonic() + seconds
    try:
        yield
    finally:
        _thread.until = before


def seconds_left() -> float:
    """Seconds that this thread's work may still take: infinite without a limit, never below 0."""
    return float(max(0.0, getattr(_thread, "until", math.inf) - time.monotonic()))
