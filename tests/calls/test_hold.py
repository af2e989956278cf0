"""Budgets in the flow of a call: refused before anything is sent, cut to what is left, taken from at each attempt."""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shared.budget import Budget
from shared.calls import hold
from shared.errors import BudgetExceeded, ConfigurationError, StoreError
from shared.ledger import accounts
from shared.ledger.store import Ledger, get_ledger
from shared.llm_client import LLMClient
from shared.scope import scope
from tests.support.asking import HAIKU, HELLO, MINI, NANO, Way
from tests.support.ledger_rows import records
from tests.support.provider_double import Double, Usage


def left_of(response: Any) -> float:
    """What the response says is left of the budget."""
    left: float = response.metadata["remaining_budget_usd"]
    return left


def test_nothing_is_sent_that_could_break_a_budget(hosted: Double, ledger: Ledger, ask: Way) -> None:
    """A call that could cost more than is left is refused with what it could cost and what is left, and is recorded."""
    client = LLMClient(budget=Budget(0.001, "total"))
    with pytest.raises(BudgetExceeded) as caught:
        ask(client, model=MINI, max_tokens=5000)
    said = str(caught.value)
    assert "openai/gpt-5.4-mini could cost $0.02" in said
    assert "$0.001000 is left of $0.001 in all" in said
    assert "Nothing was charged." in said
    assert hosted.requests == []
    [row] = records(ledger)
    assert (row["status"], row["error_type"], row["cost_nano"]) == ("refused", "BudgetExceeded", 0)


def test_the_answer_is_cut_to_what_is_left(hosted: Double, ask: Way) -> None:
    """Without a length of its own the answer gets the tokens that the budget pays for, and the response says so."""
    response = ask(LLMClient(budget=Budget(0.01, "total")), model=MINI)
    sent = hosted.requests[0].body["max_completion_tokens"]
    assert response.metadata["output_cut_to_tokens"] == sent
    assert 1900 < sent < 2222  # 0.01 US$ at 4.50 US$ per million, less the input
    assert 0.0099 < left_of(response) < 0.01


def test_the_length_is_always_sent_under_a_budget(hosted: Double) -> None:
    """With room for the model's own maximum that maximum is sent, since the bound holds only for what was asked."""
    client = LLMClient(budget=Budget(100, "total"))
    response = client.chat_completion(HELLO, model=MINI)
    assert hosted.requests[0].body["max_completion_tokens"] == 128_000
    assert "output_cut_to_tokens" not in response.metadata
    client.chat_completion(HELLO, model=MINI, max_tokens=77)
    assert hosted.requests[1].body["max_completion_tokens"] == 77
    LLMClient().chat_completion(HELLO, model=MINI)
    assert "max_completion_tokens" not in hosted.requests[2].body


def test_each_fallback_is_held_anew(hosted: Double, ledger: Ledger) -> None:
    """A fallback that costs more than what is left is refused, though the model before it fitted."""
    hosted.always("openai", status=503)
    client = LLMClient(budget=Budget(0.0005, "total"), max_retries=0)
    with pytest.raises(BudgetExceeded, match=r"anthropic/claude-haiku-4-5 could cost"):
        client.chat_completion(HELLO, model=NANO, fallback_models=[HAIKU], max_tokens=100)
    assert [request.provider for request in hosted.requests] == ["openai"]
    assert [row["status"] for row in records(ledger)] == ["failed", "refused"]


def test_downgrade_takes_the_model_that_fits(hosted: Double) -> None:
    """With on_exceed="downgrade" the next of the caller's models that fits answers, and the response says so."""
    budget = Budget(0.002, "total", on_exceed="downgrade")
    response = LLMClient(budget=budget).chat_completion(
        HELLO, model=MINI, fallback_models=[HAIKU, NANO], max_tokens=1000
    )
    assert response.model == NANO
    assert response.metadata["fallback_used"] is True
    statuses = [(each["model"], each["status"]) for each in response.metadata["attempts"]]
    assert statuses == [(MINI, "refused"), (HAIKU, "refused"), (NANO, "ok")]
    assert len(hosted.requests) == 1
    with pytest.raises(BudgetExceeded):
        LLMClient(budget=budget).chat_completion(HELLO, model=MINI, fallback_models=[HAIKU], max_tokens=1000)


def test_the_error_names_what_would_fit(hosted: Double) -> None:
    """Refused, the caller is told the most expensive of its models that would still fit."""
    with pytest.raises(BudgetExceeded, match=r"openai/gpt-5\.4-nano would fit\."):
        LLMClient(budget=Budget(0.002, "total")).chat_completion(
            HELLO, model=MINI, fallback_models=[NANO], max_tokens=1000
        )


def test_unknown_prices(hosted: Double) -> None:
    """A model without a known price is refused under a budget, or passes uncounted where that is allowed."""
    with pytest.raises(BudgetExceeded, match="The price of openai/brand-new is unknown"):
        LLMClient(budget=Budget(5)).chat_completion(HELLO, model="openai/brand-new")
    assert hosted.requests == []
    allowing = LLMClient(budget=Budget(5, on_unknown_price="allow"))
    response = allowing.chat_completion(HELLO, model="openai/brand-new")
    assert math.isnan(response.cost)
    assert left_of(response) == 5.0


def test_what_is_passed_through_has_no_bound(hosted: Double) -> None:
    """What goes to the provider as it is could raise the price, so under a budget it is refused."""
    client = LLMClient(budget=Budget(5))
    with pytest.raises(BudgetExceeded, match="extra_body"):
        client.chat_completion(HELLO, model=MINI, extra_body={"n": 50})
    assert hosted.requests == []


def test_free_models_pass(hosted: Double) -> None:
    """What costs nothing is never refused, whatever is left."""
    response = LLMClient(budget=Budget(0)).chat_completion(HELLO, model="ollama/llama3")
    assert (response.cost, left_of(response)) == (0.0, 0.0)
    assert "max_tokens" not in str(hosted.requests[0].body)


@pytest.mark.parametrize("way", ["settings", "ledger"])
def test_budgets_from_elsewhere(way: str, hosted: Double, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget of the environment or of the ledger holds for clients that were given none."""
    if way == "settings":
        monkeypatch.setenv("AGENTSWARM_BUDGET_USD", "0.001")
    else:
        with ledger.writing() as connection:
            accounts.store_budget(connection, "team", Budget(0.001))
    with pytest.raises(BudgetExceeded, match="a month"):
        LLMClient().chat_completion(HELLO, model=MINI, max_tokens=5000)
    assert hosted.requests == []


def test_a_scope_has_its_budget(hosted: Double) -> None:
    """A scope's budget holds for all with its labels, wherever they are opened, and inner scopes only narrow it."""
    client = LLMClient()
    hosted.always("openai", text="Yes.", usage=Usage(10, 100))  # 457.5 micro-dollars
    budget = Budget(0.001, "total")
    with scope(customer="acme", budget=budget):
        client.chat_completion(HELLO, model=MINI, max_tokens=150)
        with scope(project="x"), pytest.raises(BudgetExceeded, match="customer=acme"):
            client.chat_completion(HELLO, model=MINI, max_tokens=150)
        with scope(project="x", budget=Budget(5)), pytest.raises(BudgetExceeded):
            client.chat_completion(HELLO, model=MINI, max_tokens=150)
    with scope(customer="bolt", budget=budget):
        client.chat_completion(HELLO, model=MINI, max_tokens=150)
    with scope(customer="acme", budget=budget), pytest.raises(BudgetExceeded):
        client.chat_completion(HELLO, model=MINI, max_tokens=150)
    client.chat_completion(HELLO, model=MINI, max_tokens=5000)


def test_an_agent_learns_nothing_of_others(hosted: Double) -> None:
    """Inside a customer's scope an agent is refused by everybody's budget without any of its figures."""
    client = LLMClient(budget=Budget(0.001))
    with scope(customer="acme", from_agent=True), pytest.raises(BudgetExceeded) as caught:
        client.chat_completion(HELLO, model=MINI, max_tokens=5000)
    assert "A budget of the operator's has no room for openai/gpt-5.4-mini" in str(caught.value)
    assert "0.001" not in str(caught.value)
    with scope(customer="acme", from_agent=True):
        response = client.chat_completion(HELLO, model=MINI, max_tokens=10)
    assert "remaining_budget_usd" not in response.metadata


def test_a_run_outside_of_agents_is_the_process(
    hosted: Double, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget for a run counts, where no agent runs, what this process has spent, and not what others did before."""
    hosted.always("openai", text="Yes.", usage=Usage(10, 100))
    client = LLMClient(budget=Budget(0.001, "run"))
    client.chat_completion(HELLO, model=MINI, max_tokens=150)
    with pytest.raises(BudgetExceeded):
        client.chat_completion(HELLO, model=MINI, max_tokens=150)
    monkeypatch.setattr("shared.scope.os.getpid", lambda: -1)
    client.chat_completion(HELLO, model=MINI, max_tokens=150)
    assert len({row["run"] for row in records(ledger)}) == 2


def test_totals_inside_a_scope(hosted: Double) -> None:
    """The guide's loop that stops at a total works for each customer alone, with one client for all of them."""
    client = LLMClient()
    for customer, calls in (("acme", 3), ("bolt", 1)):
        with scope(customer=customer):
            costs = [client.chat_completion(HELLO, model=MINI).cost for _ in range(calls)]
            assert client.get_total_cost() == pytest.approx(sum(costs))
    assert client.get_total_cost() == pytest.approx(4 * costs[0])


def test_many_at_once_never_overspend(hosted: Double) -> None:
    """Threads and tasks that race for a budget spend no more than it, and as many are sent as fit."""
    hosted.always("openai", text="Yes.", usage=Usage(10, 50))
    client = LLMClient(budget=Budget(0.01, "total"))
    outcomes: list[bool] = []

    def one(_: int) -> None:
        try:
            client.chat_completion(HELLO, model=MINI, max_tokens=50)
        except BudgetExceeded:
            outcomes.append(False)
        else:
            outcomes.append(True)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(one, range(100)))
    one(0)
    while outcomes[-1]:  # what was held while others were under way is free again
        one(0)
    spent = client.get_total_cost()
    assert spent <= 0.01
    assert len(hosted.requests) == sum(outcomes) > 0
    assert spent > 0.01 - 0.001


def test_fifty_calls_for_ten(hosted: Double) -> None:
    """Of fifty calls at once with money for ten, ten are sent."""
    client = LLMClient(budget=Budget(0.0085, "total"))

    async def all_at_once() -> list[Any]:
        calls = (client.achat_completion(HELLO, model=MINI, max_tokens=100) for _ in range(50))
        return await asyncio.gather(*calls, return_exceptions=True)

    hosted.always("openai", text="Yes.", usage=Usage(10, 100))
    found = asyncio.run(all_at_once())
    sent = len(hosted.requests)
    assert sum(isinstance(each, BudgetExceeded) for each in found) == 50 - sent
    assert 10 <= sent <= 18


def test_a_ledger_that_cannot_be_written(hosted: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a budget nothing is sent while the ledger cannot be written; without one the call goes on."""
    path = tmp_path / "broken.sqlite3"
    path.write_text("This is no database. " * 100)
    monkeypatch.setenv("AGENTSWARM_DATABASE_URL", f"sqlite:///{path}")
    with pytest.raises(StoreError, match="no budget can be enforced"):
        LLMClient(budget=Budget(5)).chat_completion(HELLO, model=MINI)
    assert hosted.requests == []
    assert LLMClient().chat_completion(HELLO, model=MINI).content


def test_a_ledgers_own_budget_is_remembered(hosted: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has once seen a budget in the ledger sends nothing when the ledger is lost."""
    monkeypatch.setenv("AGENTSWARM_DATABASE_URL", f"sqlite:///{tmp_path / 'lost.sqlite3'}")
    ledger = get_ledger(f"sqlite:///{tmp_path / 'lost.sqlite3'}")
    with ledger.writing() as connection:
        accounts.store_budget(connection, "team", Budget(5))
    client = LLMClient()
    client.chat_completion(HELLO, model=MINI)
    monkeypatch.setattr(ledger, "writing", _broken)
    with pytest.raises(StoreError):
        client.chat_completion(HELLO, model=MINI)
    assert len(hosted.requests) == 1


def _broken() -> Any:
    raise sqlite3.OperationalError("disk I/O error")


def test_a_budget_needs_cost_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget without a ledger to keep it is refused, given to a client or brought by a scope."""
    with pytest.raises(ConfigurationError, match="needs cost tracking"):
        LLMClient(budget=Budget(5), enable_cost_tracking=False)
    with scope(budget=Budget(5)), pytest.raises(ConfigurationError, match="needs cost tracking"):
        LLMClient(enable_cost_tracking=False).chat_completion(HELLO, model=MINI)
    monkeypatch.setenv("AGENTSWARM_BUDGET_USD", "5")
    monkeypatch.setenv("LITELLM_COST_TRACKING", "false")
    with pytest.raises(ConfigurationError, match="needs cost tracking"):
        LLMClient()


@pytest.mark.parametrize("bad", ["5", 5, [5], {"limit_usd": 5}])
def test_what_is_no_budget(bad: Any) -> None:
    """A budget is a Budget, or several."""
    with pytest.raises(ConfigurationError, match="must be a Budget"):
        LLMClient(budget=bad)


def test_a_warning_before_the_end(
    hosted: Double, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From warn_at on one warning is logged for each budget and window."""
    monkeypatch.setattr(hold, "_warned", set())
    hosted.always("openai", text="Yes.", usage=Usage(10, 100))
    client = LLMClient(budget=Budget(0.002, "total", warn_at=0.4))
    with caplog.at_level(logging.WARNING, "agentswarm_tools"):
        for _ in range(3):
            client.chat_completion(HELLO, model=MINI, max_tokens=100)
    said = [record.message for record in caplog.records if "budget" in record.message]
    assert len(said) == 1
    assert "is left of $0.002 in all" in said[0]
