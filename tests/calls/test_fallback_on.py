"""`fallback_on`: an answer that it rejects is paid for, on the one bill of the call, and the next model is asked."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from shared.analytics import get_llm_costs
from shared.budget import Budget
from shared.calls.cooldown import cooldowns
from shared.errors import AllModelsFailed, BudgetExceeded, InvalidRequest, ProviderUnavailable, ResponseRejected
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient, get_llm_client
from shared.scope import current_scope, scope
from shared.types import LLMResponse
from tests.support.asking import HAIKU, HELLO, MINI, NANO
from tests.support.ledger_rows import records
from tests.support.provider_double import Double, Usage
from tools import TextGeneration

MINI_IN, MINI_OUT = 750, 4500  # nano-dollars
HAIKU_IN, HAIKU_OUT = 1000, 5000
MINI_COST = 100 * MINI_IN + 10 * MINI_OUT
HAIKU_COST = 100 * HAIKU_IN + 20 * HAIKU_OUT


def without_digits(response: LLMResponse) -> bool:
    """Reject an answer without a digit."""
    return not any(char.isdigit() for char in response.content)


def counts() -> tuple[int, int]:
    """Calls that were answered, and calls that failed."""
    costs = get_llm_costs()
    return costs["total_calls"], costs["failed_calls"]


@pytest.fixture
def poor_then_good(hosted: Double) -> Double:
    """The cheap model gives a poor answer, and the other one a good one."""
    hosted.reply("openai", text="No idea", usage=Usage(100, 10))
    hosted.reply("anthropic", text="42", usage=Usage(100, 20))
    return hosted


@pytest.mark.parametrize("is_async", [False, True])
def test_climbs(poor_then_good: Double, ledger: Ledger, is_async: bool) -> None:
    """The next model answers, the bill is that of both attempts, and the call counts once."""
    client = LLMClient()
    params: dict[str, Any] = {"model": MINI, "fallback_models": [HAIKU], "fallback_on": without_digits}
    response = (
        asyncio.run(client.achat_completion(HELLO, **params)) if is_async else client.chat_completion(HELLO, **params)
    )
    assert (response.content, response.model, response.metadata["fallback_used"]) == ("42", HAIKU, True)
    assert response.cost == (MINI_COST + HAIKU_COST) / 1e9 == client.get_total_cost()
    assert [each["status"] for each in response.metadata["attempts"]] == ["rejected_response", "ok"]
    first, second = records(ledger)
    assert (first["status"], first["cost_nano"]) == ("rejected_response", MINI_COST)
    assert (first["prompt_tokens"], first["completion_tokens"], first["error_type"]) == (100, 10, "ResponseRejected")
    assert first["call_id"] == second["call_id"]
    assert second["cost_nano"] == HAIKU_COST
    assert counts() == (1, 0)


def test_an_accepted_answer_costs_one_attempt(hosted: Double, ledger: Ledger) -> None:
    """A good answer of the first model ends the call."""
    hosted.reply("openai", text="42", usage=Usage(100, 10))
    response = LLMClient().chat_completion(HELLO, model=MINI, fallback_models=[HAIKU], fallback_on=without_digits)
    assert (response.model, response.cost) == (MINI, MINI_COST / 1e9)
    assert [row["status"] for row in records(ledger)] == ["ok"]


def test_sees_the_whole_response(hosted: Double) -> None:
    """The function gets the response as the caller would, with cost and usage, and runs in the caller's scope."""
    hosted.reply("openai", text="42", usage=Usage(100, 10))
    seen: list[Any] = []

    def look(response: LLMResponse) -> bool:
        seen.append((response, current_scope().labels["customer"]))
        return False

    with scope(customer="acme"):
        LLMClient().chat_completion(HELLO, model=MINI, fallback_on=look)
    [(response, customer)] = seen
    assert (response.cost, response.usage["completion_tokens"], customer) == (MINI_COST / 1e9, 10, "acme")
    assert response.metadata["attempts"][0]["cost"] == MINI_COST / 1e9


def test_may_be_a_coroutine_or_ask_a_model(hosted: Double) -> None:
    """The function may be a coroutine function, or make a call of its own to judge the answer."""
    hosted.reply("openai", text="No idea", usage=Usage(100, 10))
    hosted.reply("openai", text="yes", model="gpt-5.4-nano", times=2)
    hosted.reply("anthropic", text="42", usage=Usage(100, 20))

    def judge(response: LLMResponse) -> bool:
        decision = get_llm_client().chat_completion(HELLO, model=NANO, fallback_models=[])
        return decision.content == "yes" and response.model == MINI

    assert LLMClient().chat_completion(HELLO, model=MINI, fallback_models=[HAIKU], fallback_on=judge).model == HAIKU
    hosted.reply("openai", text="42", usage=Usage(100, 10))

    async def rejects(response: LLMResponse) -> str | None:
        await asyncio.sleep(0)
        return None if response.content == "42" else "no number"

    assert LLMClient().chat_completion(HELLO, model=MINI, fallback_on=rejects).content == "42"


def test_all_rejected(hosted: Double, ledger: Ledger) -> None:
    """If every answer is rejected the error says so, with the cost of all and the answers themselves."""
    hosted.reply("openai", text="No idea", usage=Usage(100, 10))
    hosted.reply("anthropic", text="None", usage=Usage(100, 20))
    with pytest.raises(AllModelsFailed) as caught:
        LLMClient().chat_completion(
            HELLO, model=MINI, fallback_models=[HAIKU], fallback_on=lambda response: "too short"
        )
    assert caught.value.cost == (MINI_COST + HAIKU_COST) / 1e9
    failures = caught.value.failures
    assert [each.outcome for each in failures] == ["rejected_response"] * 2
    answers = [each.response for each in failures if isinstance(each, ResponseRejected)]
    assert [each.content for each in answers if each] == ["No idea", "None"]
    assert "too short" in str(caught.value)
    assert [row["status"] for row in records(ledger)] == ["rejected_response"] * 2
    assert counts() == (0, 1)


def test_the_only_model_is_not_asked_twice(hosted: Double) -> None:
    """A rejected answer is not a failure of the model: it is neither retried nor cooled down."""
    hosted.always("openai", text="No idea", usage=Usage(100, 10))
    client = LLMClient()
    for _ in range(4):
        with pytest.raises(ResponseRejected) as caught:
            client.chat_completion(HELLO, model=MINI, fallback_models=[], fallback_on=without_digits)
        assert caught.value.cost == MINI_COST / 1e9
    assert len(hosted.requests) == 4
    assert not cooldowns._states


def test_each_attempt_is_held(poor_then_good: Double, ledger: Ledger) -> None:
    """The second attempt is held like the first: without room for it in a budget the call ends."""
    budget = Budget(0.002, on_exceed="refuse")
    with pytest.raises(BudgetExceeded):
        LLMClient(budget=budget).chat_completion(
            HELLO, model=MINI, fallback_models=["openai/gpt-5.5-pro"], max_tokens=100, fallback_on=without_digits
        )
    assert [row["status"] for row in records(ledger)] == ["rejected_response", "refused"]
    assert len(poor_then_good.requests) == 1
    poor_then_good.reset()


def test_an_error_of_the_function(hosted: Double, ledger: Ledger) -> None:
    """If the function itself fails, its error reaches the caller, and the answer that was paid for is in the ledger."""
    hosted.reply("openai", text="42", usage=Usage(100, 10), times=2)

    def broken(response: LLMResponse) -> bool:
        raise KeyError("score")

    def outage(response: LLMResponse) -> bool:
        raise ProviderUnavailable("the judge is down", outcome="not_sent")

    with pytest.raises(KeyError):
        LLMClient().chat_completion(HELLO, model=MINI, fallback_models=[HAIKU], fallback_on=broken)
    with pytest.raises(ProviderUnavailable) as caught:
        LLMClient().chat_completion(HELLO, model=MINI, fallback_models=[HAIKU], fallback_on=outage)
    assert caught.value.cost == MINI_COST / 1e9
    assert [row["cost_nano"] for row in records(ledger)] == [MINI_COST] * 2
    assert counts() == (0, 2)
    assert len(hosted.requests) == 2


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: list(client.chat_completion(HELLO, model=MINI, fallback_on=without_digits, stream=True)),
        lambda client: client.chat_completion(HELLO, model=MINI, fallback_on="a digit"),
        lambda client: client.generate_image("a fox", fallback_on=without_digits),
    ],
)
def test_where_it_makes_no_sense(hosted: Double, ask: Any) -> None:
    """A stream has been read before it ends, and images are not paid for twice: both are refused before sending."""
    with pytest.raises(InvalidRequest, match="fallback_on"):
        ask(LLMClient())
    assert hosted.requests == []


SCHEMA = json.dumps({"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]})


def test_a_schema_climbs(hosted: Double, ledger: Ledger) -> None:
    """An answer that does not match a tool's response_schema goes to the next model, not to the same one again."""
    hosted.reply("openai", text='{"age": "four"}', usage=Usage(100, 10))
    hosted.reply("anthropic", text='{"age": 4}', usage=Usage(100, 20))
    result = json.loads(
        str(TextGeneration(prompt="Age?", model=MINI, fallback_models=[HAIKU], response_schema=SCHEMA).run_sync())
    )
    assert (result["data"], result["model"], result["cost"]) == ({"age": 4}, HAIKU, (MINI_COST + HAIKU_COST) / 1e9)
    assert [row["status"] for row in records(ledger)] == ["rejected_response", "ok"]
    assert len({row["call_id"] for row in records(ledger)}) == 1


def test_a_schema_with_one_model_left(hosted: Double) -> None:
    """If only one model answered, it is asked a second time, with what was wrong, and the cost is that of both."""
    hosted.refuse("openai")
    hosted.reply("anthropic", text='{"age": "four"}', usage=Usage(100, 20))
    hosted.reply("anthropic", text='{"age": 4}', usage=Usage(100, 20))
    result = json.loads(
        str(TextGeneration(prompt="Age?", model=MINI, fallback_models=[HAIKU], response_schema=SCHEMA).run_sync())
    )
    assert (result["data"], result["cost"]) == ({"age": 4}, 2 * HAIKU_COST / 1e9)
    assert "does not match the schema" in json.dumps([each.body for each in hosted.requests][-1])


def test_a_schema_that_nobody_matches(hosted: Double) -> None:
    """If no model's answer matches, the agent learns what is wrong, and what all of them cost together."""
    hosted.reply("openai", text="four", usage=Usage(100, 10))
    hosted.reply("anthropic", text='{"age": "four"}', usage=Usage(100, 20))
    result = json.loads(
        str(TextGeneration(prompt="Age?", model=MINI, fallback_models=[HAIKU], response_schema=SCHEMA).run_sync())
    )
    assert "does not match response_schema: 'four' is not of type 'integer'" in json.dumps(result)
    assert result["cost"] == (MINI_COST + HAIKU_COST) / 1e9
