"""How many requests may be under way at once."""

from __future__ import annotations

import asyncio

import pytest

from shared.calls import concurrency
from shared.errors import LocalOverload
from shared.providers.transport import MAX_CONNECTIONS


def test_a_provider_has_its_limit() -> None:
    """More than the limit wait, one who leaves lets one in, and another provider is not concerned."""

    async def story() -> None:
        leave = [await concurrency.acquire_slot("openai", limit=2, patience=5) for _ in range(2)]
        third = asyncio.create_task(concurrency.acquire_slot("openai", limit=2, patience=5))
        (await concurrency.acquire_slot("anthropic", limit=2, patience=5))()
        assert not third.done()
        leave[0]()
        leave[0]()  # twice does no harm
        (await third)()
        leave[1]()
        (await concurrency.acquire_slot("openai", limit=2, patience=5))()

    asyncio.run(story())


def test_patience_ends() -> None:
    """Who waits too long is told so, and keeps nothing."""

    async def story() -> None:
        leave = await concurrency.acquire_slot("openai", limit=1, patience=5)
        with pytest.raises(LocalOverload, match="no slot for openai became free within") as caught:
            await concurrency.acquire_slot("openai", limit=1, patience=0.01)
        assert (caught.value.outcome, caught.value.cost) == ("not_sent", 0.0)
        leave()
        (await concurrency.acquire_slot("openai", limit=1, patience=5))()

    asyncio.run(story())


def test_a_cancelled_wait_keeps_nothing() -> None:
    """Cancelling who waits gives back whatever it already had."""

    async def story() -> None:
        leave = await concurrency.acquire_slot("openai", limit=None, patience=5)
        others = [await concurrency.acquire_slot("openai", limit=None, patience=5) for _ in range(MAX_CONNECTIONS - 1)]
        waiting = asyncio.create_task(concurrency.acquire_slot("gemini", limit=3, patience=60))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        leave()
        for _ in range(3):
            others.append(await concurrency.acquire_slot("gemini", limit=3, patience=5))
            others.pop(0)()
        for each in others:
            each()

    asyncio.run(story())
