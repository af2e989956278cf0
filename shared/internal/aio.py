"""Waiting for work that must finish, even if the waiting task is cancelled."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import anyio


async def wait_shielded(done: asyncio.Future[Any], patience: float = math.inf) -> bool:
    """
    Wait for `done`, at most `patience` seconds, even if the waiting task is cancelled in the meantime.

    Returns:
        Whether the task was cancelled. The caller must raise CancelledError once its cleanup is done.
    """
    cancelled = False
    deadline = time.monotonic() + patience
    with anyio.CancelScope(shield=True):
        while not done.done() and (remaining_s := deadline - time.monotonic()) > 0:
            try:
                await asyncio.wait([done], timeout=None if math.isinf(remaining_s) else remaining_s)
            except asyncio.CancelledError:
                cancelled = True
    return cancelled
