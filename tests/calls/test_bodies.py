"""Budgets and the body that is sent: refused by name before sending, pinned, never cut below its own reasoning."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
from agency_swarm import Agency
from agents import ModelSettings, set_tracing_disabled

from shared.agent_model import budgeted
from shared.budget import Budget
from shared.calls import hold
from shared.errors import BudgetExceeded, InvalidRequest
from shared.ledger import accounts
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient
from shared.scope import scope
from tests.support.agencies import Ask, agent, ask_plain, ask_streamed
from tests.support.asking import HAIKU, HELLO, MINI, Way
from tests.support.ledger_rows import records
from tests.support.provider_double import Double, Usage

set_tracing_disabled(True)

SEARCH = {"type": "web_search_20250305", "name": "web_search"}
THINKING = {"type": "enabled", "budget_tokens": 2000}


@pytest.mark.parametrize(
    ("model", "params", "named"),
    [
        (HAIKU, {"tools": [SEARCH]}, "web_search_20250305 without max_uses"),
        (MINI, {"tools": [{"type": "web_search"}]}, "the tool web_search"),
        (MINI, {"extra_headers": {"OpenAI-Project": "proj"}}, "the header OpenAI-Project"),
    ],
)
def test_refused_by_name_and_let_through_without_a_budget(
    hosted: Double, ledger: Ledger, ask: Way, model: str, params: dict[str, Any], named: str
) -> None:
    """What has no bound is named and not sent under a budget; without one it goes to the provider as it is."""
    with pytest.raises(BudgetExceeded, match=named):
        ask(LLMClient(budget=Budget(1000)), model=model, max_tokens=10, **params)
    assert hosted.requests == []
    [row] = records(ledger)
    assert (row["status"], row["bound_nano"]) == ("refused", None)
    ask(LLMClient(), model=model, max_tokens=10, **params)
    assert len(hosted.requests) == 1


@pytest.mark.parametrize("ask", [ask_plain, ask_streamed], ids=["plain", "streamed"])
def test_an_agents_turns_are_bounded_too(hosted: Double, ask: Ask) -> None:
    """The turns of an agent go through the same check: a header of its settings has no bound."""
    settings = ModelSettings(extra_headers={"OpenAI-Project": "proj"})
    with scope(budget=Budget(5.0, "run")):
        told = ask(Agency(agent("A", budgeted(MINI, []), model_settings=settings)))
    assert "BudgetExceeded" in told.error or "the header OpenAI-Project" in told.error
    assert hosted.requests == []


def test_a_headers_name_alone_costs_nothing(hosted: Double) -> None:
    """Headers that only identify the caller pass under a budget."""
    LLMClient(budget=Budget(5)).chat_completion(HELLO, model=MINI, extra_headers={"X-Title": "mine"})
    assert hosted.requests[0].headers["x-title"] == "mine"


@pytest.mark.parametrize("where", ["client", "ledger"])
def test_the_tier_and_the_length_are_sent_under_a_budget(hosted: Double, ledger: Ledger, where: str) -> None:
    """Whoever set the budget, the request asks for the standard tier and says how long the answer may be."""
    if where == "ledger":
        with ledger.writing() as connection:
            accounts.store_budget(connection, "team", Budget(100))
    client = LLMClient(budget=Budget(100) if where == "client" else None)
    for model, field, word in ((MINI, "max_completion_tokens", "default"), (HAIKU, "max_tokens", "standard_only")):
        client.chat_completion(HELLO, model=model)
        client.chat_completion(HELLO, model=model, max_tokens=77)
        whole, short = hosted.requests[-2:]
        assert whole.body["service_tier"] == short.body["service_tier"] == word
        assert (whole.body[field], short.body[field]) == (128_000 if model == MINI else 64_000, 77)


def test_nothing_is_added_without_a_budget(hosted: Double) -> None:
    """Without a budget the request is the caller's own."""
    LLMClient().chat_completion(HELLO, model=MINI)
    assert hosted.requests[0].body == {"model": "gpt-5.4-mini", "messages": HELLO, "stream": False}


def test_an_answer_is_not_cut_below_its_reasoning(hosted: Double) -> None:
    """A budget leaves at least the tokens that the caller gave to reasoning, or refuses."""
    with pytest.raises(BudgetExceeded, match=r"with an answer of 2064 tokens"):
        LLMClient(budget=Budget(0.01, "total")).chat_completion(HELLO, model=HAIKU, thinking=THINKING)
    assert hosted.requests == []
    response = LLMClient(budget=Budget(0.02, "total")).chat_completion(HELLO, model=HAIKU, thinking=THINKING)
    assert 2064 < hosted.requests[0].body["max_tokens"] < 4000
    assert response.metadata["output_cut_to_tokens"] == hosted.requests[0].body["max_tokens"]


def test_a_request_that_cannot_be_built_holds_nothing(hosted: Double, ledger: Ledger) -> None:
    """A wrong parameter is an error of the request, whatever the budget has left."""
    with pytest.raises(InvalidRequest, match="n must be 1"):
        LLMClient(budget=Budget(0, "total")).chat_completion(HELLO, model=MINI, n=3)
    assert hosted.requests == []
    assert [(row["status"], row["cost_nano"]) for row in records(ledger)] == [("failed", 0)]


def test_the_most_is_held_where_no_price_is_known(hosted: Double, ledger: Ledger) -> None:
    """With hold_max an unknown model is held at its provider's most expensive rates, and its row keeps counting."""
    client = LLMClient(budget=Budget(5000, "total", on_unknown_price="hold_max"))
    response = client.chat_completion(HELLO, model="openai/brand-new", max_tokens=1000)
    [row] = records(ledger)
    assert row["cost_nano"] is None
    assert row["bound_nano"] > 1000 * 600_000  # the most expensive answers cost $600 a million
    assert response.metadata["remaining_budget_usd"] == pytest.approx(5000 - row["bound_nano"] / 1e9)
    small = LLMClient(budget=Budget(1, "total", scope="tool", on_unknown_price="hold_max"))
    with pytest.raises(BudgetExceeded, match=r"openai/brand-new could cost \$"):
        small.chat_completion(HELLO, model="openai/brand-new", max_tokens=1000)
    assert len(hosted.requests) == 1


def test_a_stricter_budget_still_refuses(hosted: Double) -> None:
    """Of several budgets, one that refuses what has no price refuses it whatever the others hold."""
    budgets = [Budget(5000, on_unknown_price="hold_max"), Budget(5000, "day")]
    for each in (budgets, budgets[::-1]):
        with pytest.raises(BudgetExceeded, match="The price of openai/brand-new is unknown"):
            LLMClient(budget=each).chat_completion(HELLO, model="openai/brand-new", max_tokens=10)
    assert hosted.requests == []


def test_the_reason_for_larger_bounds_is_said_once(hosted: Double, caplog: pytest.LogCaptureFixture) -> None:
    """Where a budget refuses, one warning of the process says that budgets hold more than they did, and why."""
    hold._explain_bounds.cache_clear()
    client = LLMClient(budget=Budget(0.0001, "total"))
    with caplog.at_level(logging.WARNING, "agentswarm_tools"):
        for _ in range(2):
            with pytest.raises(BudgetExceeded):
                client.chat_completion(HELLO, model=MINI, max_tokens=5000)
    said = [record.message for record in caplog.records if "hold more" in record.message]
    assert len(said) == 1
    assert "docs/budgets.md" in said[0]


def test_searches_are_held_and_the_rest_is_given_back(hosted: Double, ledger: Ledger) -> None:
    """A search with a limit has a bound, which is replaced by what the answer used."""
    hosted.reply("anthropic", text="Yes.", usage=Usage(10, 5))
    tool = {**SEARCH, "max_uses": 2}
    LLMClient(budget=Budget(5, "total")).chat_completion(HELLO, model=HAIKU, max_tokens=10, tools=[tool])
    [row] = records(ledger)
    assert row["bound_nano"] > 2 * 10_000_000 + 2 * 200_000 * 1000
    assert row["cost_nano"] == 10 * 1000 + 5 * 5000


def test_an_estimate_of_what_cannot_be_sent_is_unknown(hosted: Double) -> None:
    """A request that the model does not take costs nothing, but an estimate of 0 would read as if it were free."""
    [found] = LLMClient().estimate(HELLO, MINI, [], n=3)
    assert hosted.requests == []
    assert math.isnan(found.upper_bound)
