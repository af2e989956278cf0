"""Waiting for what must end, even when the task that waits is cancelled."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import anyio


async def wait_shielded(done: asyncio.Future[Any], patience: float = math.inf) -> bool:
    """
    Wait for `done`, at most `patience` seconds, even when the waiting task is cancelled meanwhile.

    Returns:
        Whether it was; raise CancelledError when all that must happen has happened.
    """
    cancelled = False
    until = time.monotonic() + patience
    with anyio.CancelScope(shield=True):
        while not done.done() and (left := until - time.monotonic()) > 0:
            try:
                await asyncio.wait([done], timeout=None if math.isinf(left) else left)
            except asyncio.CancelledError:
                cancelled = True
    return cancelled
