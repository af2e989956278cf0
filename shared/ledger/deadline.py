"""How long the work of this thread on the store may still take."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_thread = threading.local()


# Work that goes on, statement by statement, may take so many times longer in all, as on a machine under load.
LEEWAY = 5


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """
    Limit what this thread does with the store inside.

    Connecting and all waits for locks together may take `seconds`; so may each silence of a server. A limit around it
    still applies.
    """
    before = _limits()
    now = time.monotonic()
    _thread.limits = (min(before[0], now + seconds), min(before[1], now + seconds * LEEWAY), min(before[2], seconds))
    try:
        yield
    finally:
        _thread.limits = before


@contextmanager
def at_leisure(seconds: float) -> Iterator[None]:
    """A limit of its own, whatever limit is around it: for work that must not be left half done."""
    before = _limits()
    _thread.limits = (time.monotonic() + seconds, math.inf, seconds)
    try:
        yield
    finally:
        _thread.limits = before


def _limits() -> tuple[float, float, float]:
    found: tuple[float, float, float] = getattr(_thread, "limits", (math.inf, math.inf, math.inf))
    return found


def seconds_left() -> float:
    """Seconds that this thread may still wait for a connection or a lock: infinite without a limit, never below 0."""
    return max(0.0, _limits()[0] - time.monotonic())


def silence_allowed() -> float:
    """Seconds that a server may be silent: infinite without a limit, 0 when the time is over altogether."""
    _, last, silence_s = _limits()
    return silence_s if time.monotonic() < last else 0.0


def watch_progress(told: Callable[[], None]) -> None:
    """Call `told` whenever a statement of this thread has ended."""
    _thread.told = told


def progressed() -> None:
    """A statement of this thread has ended."""
    told = getattr(_thread, "told", None)
    if told is not None:
        told()
