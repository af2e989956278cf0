"""How many requests may be under way at once, in all and to one provider."""

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
    Wait for a free connection, and for one of the provider's own where its number is limited.

    Args:
        limit: How many requests to one provider one event loop may have under way; None for no limit.

        patience: Seconds to wait at most.

    Returns:
        What to call, on the same event loop, when the request is over; again does no harm.

    Raises:
        LocalOverload: None was free in time.
    """
    own = _semaphores.setdefault(asyncio.get_running_loop(), {})
    wanted = [own.setdefault(None, asyncio.Semaphore(MAX_CONNECTIONS))]
    if limit is not None:
        # The provider's own first: who waits for it must not keep a connection from others.
        wanted.insert(0, own.setdefault(f"{provider} {limit}", asyncio.Semaphore(limit)))
    held: list[asyncio.Semaphore] = []

    def leave() -> None:
        while held:
            held.pop().release()

    try:
        with anyio.fail_after(patience):
            for slot in wanted:
                await slot.acquire()
                held.append(slot)
    except BaseException as error:
        leave()
        if isinstance(error, TimeoutError):
            raise LocalOverload(
                f"No request to {provider} ended within {patience:.1f} s, and no more may be under way at once",
                provider=provider,
            ) from None
        raise
    return leave
