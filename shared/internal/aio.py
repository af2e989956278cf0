"""Waiting for work that must finish, even if the waiting task is cancelled."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio


async def wait_shielded(
    done: asyncio.Future[Any], patience: float = math.inf, patience_if_cancelled: float = math.inf
) -> bool:
    """
    Wait for `done`, even if the waiting task is cancelled in the meantime.

    Args:
        patience: Maximum seconds to wait.

        patience_if_cancelled: Maximum seconds to wait from the first cancellation on.

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
                if not cancelled:
                    deadline = min(deadline, time.monotonic() + patience_if_cancelled)
                cancelled = True
    return cancelled


async def gather[T](*work: Callable[[], Awaitable[T]]) -> list[T | Exception]:
    """
    Do several things at once and wait for all of them.

    Returns:
        What each returned or raised, in order; no ExceptionGroup leaves here.
    """
    results: list[Any] = [None] * len(work)

    async def run(place: int) -> None:
        try:
            results[place] = await work[place]()
        except Exception as error:  # noqa: BLE001 - handed to the caller, who knows which of them matter
            results[place] = error

    async with anyio.create_task_group() as tasks:
        for place in range(len(work)):
            tasks.start_soon(run, place)
    return results
