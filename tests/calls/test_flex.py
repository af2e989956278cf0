"""The flex tier as a choice: half the price where it is served, and the standard tier when it is full or late."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from shared.budget import Budget
from shared.calls.cooldown import cooldowns
from shared.errors import InvalidRequest
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient
from tests.support.asking import HAIKU, HELLO, MINI
from tests.support.caching import CachingProviders
from tests.support.ledger_rows import records

MINI_IN, MINI_OUT = 750, 4500  # nano-dollars; half of it at the flex tier


class Fails(httpx.AsyncBaseTransport):
    """Flex requests fail; others are answered."""

    def __init__(self, failure: Any) -> None:
        self.inner = CachingProviders()
        self._failure = failure

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Fail or answer."""
        if b'"flex"' not in await request.aread():
            return await self.inner.handle_async_request(request)
        if isinstance(self._failure, Exception):
            raise self._failure
        return httpx.Response(self._failure, json={"error": {"message": "No.", "type": "invalid_request_error"}})


def nano(row: Any, factor: float = 1) -> float:
    return float((row["prompt_tokens"] * MINI_IN + row["completion_tokens"] * MINI_OUT) * factor)


@pytest.mark.usefixtures("hosted")
def test_served_and_priced(ledger: Ledger) -> None:
    """What is served at the flex tier costs its price, and the response says the tier."""
    response = LLMClient(transport=CachingProviders()).chat_completion(
        HELLO, model=MINI, fallback_models=[], service_tier="flex"
    )
    [row] = records(ledger)
    assert response.metadata["service_tier"] == row["service_tier"] == "flex"
    assert row["cost_nano"] == nano(row, 0.5)
    assert "note" not in response.metadata


@pytest.mark.usefixtures("hosted")
@pytest.mark.parametrize("failure", [429, 400, httpx.ReadTimeout("late")])
def test_falls_back_to_standard(ledger: Ledger, failure: Any) -> None:
    """Refused or late, the same model answers at the standard tier and price; other calls do not avoid it."""
    providers = Fails(failure)
    client = LLMClient(transport=providers, budget=Budget(1))
    for _ in range(4):
        response = client.chat_completion(HELLO, model=MINI, fallback_models=[HAIKU], service_tier="flex")
        assert (response.model, response.metadata["fallback_used"]) == (MINI, False)
        assert "standard tier was used" in response.metadata["note"]
    assert "flex" not in {body.get("service_tier") for body in providers.inner.bodies}
    row = records(ledger)[-1]
    assert row["cost_nano"] == nano(row)
    assert not any(state.cool_until for state in cooldowns._states.values())


@pytest.mark.usefixtures("hosted")
def test_without_such_a_tier(ledger: Ledger) -> None:
    """A model for which no flex price is known is asked at the standard tier at once, also under a budget."""
    providers = CachingProviders()
    client = LLMClient(transport=providers, budget=Budget(1))
    response = client.chat_completion(HELLO, model=HAIKU, fallback_models=[], service_tier="flex")
    assert "has no flex tier" in response.metadata["note"]
    assert len(records(ledger)) == 1


@pytest.mark.usefixtures("hosted")
def test_what_is_wrong_anyway_is_an_error(ledger: Ledger) -> None:
    """A request that the standard tier refuses too ends with that error, and costs nothing."""

    class Refuses(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(400, json={"error": {"message": "No.", "type": "invalid_request_error"}})

    with pytest.raises(InvalidRequest) as caught:
        LLMClient(transport=Refuses()).chat_completion(HELLO, model=MINI, fallback_models=[HAIKU], service_tier="flex")
    assert caught.value.cost == 0


@pytest.mark.usefixtures("hosted")
def test_with_auto() -> None:
    """auto compares the flex price of a model that has one, and falls back to the same model's standard tier first."""
    client = LLMClient(transport=Fails(429))
    response = client.chat_completion(HELLO, model="auto", fallback_models=[HAIKU, MINI], service_tier="flex")
    assert response.model == MINI
    assert list(response.metadata["selection"]["runners_up"]) == [HAIKU]


@pytest.mark.usefixtures("hosted")
def test_a_rejected_answer_is_not_asked_for_again(ledger: Ledger) -> None:
    """If the caller rejects the answer of the flex tier, the next model is asked, not the same at the standard tier."""
    response = LLMClient(transport=CachingProviders()).chat_completion(
        HELLO,
        model=MINI,
        fallback_models=[HAIKU],
        service_tier="flex",
        fallback_on=lambda response: response.model == MINI,
    )
    assert records(ledger)[0]["service_tier"] == "flex"
    assert [each["model"] for each in response.metadata["attempts"]] == [MINI, HAIKU]
