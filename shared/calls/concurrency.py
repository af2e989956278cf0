"""The concurrency limiter: how many requests may run at once, in total and per provider."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from weakref import WeakKeyDictionary

import anyio

from shared.errors import LocalOverload
from shared.providers import MAX_CONNECTIONS

_semaphores: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str | None, asyncio.Semaphore]] = WeakKeyDictionary()


async def acquire_slot(provider: str, *, limit: int | None, patience: float) -> Callable[[], None]:
    """
    Wait for a free connection, and for the provider's own limit if it has one.

    Args:
        limit: Maximum concurrent requests per provider and event loop; None for no limit.

        patience: Maximum seconds to wait.

    Returns:
        A function that releases the slot; call it on the same event loop. Calling it again does nothing.

    Raises:
        LocalOverload: No slot became free in time.
    """
    semaphores = _semaphores.setdefault(asyncio.get_running_loop(), {})
    needed = [semaphores.setdefault(None, asyncio.Semaphore(MAX_CONNECTIONS))]
    if limit is not None:
        # The provider's limit comes first: a call that waits for it must not occupy a connection meanwhile.
        needed.insert(0, semaphores.setdefault(f"{provider} {limit}", asyncio.Semaphore(limit)))
    held: list[asyncio.Semaphore] = []

    def release() -> None:
        while held:
            held.pop().release()

    try:
        with anyio.fail_after(patience):
            for semaphore in needed:
                await semaphore.acquire()
                held.append(semaphore)
    except BaseException as error:
        release()
        if isinstance(error, TimeoutError):
            raise LocalOverload(
                f"Too many requests are running at once: no slot for {provider} became free within {patience:.1f} s",
                provider=provider,
            ) from None
        raise
    return release
