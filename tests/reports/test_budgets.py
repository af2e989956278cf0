"""How budgets are reported: in reports, to agents, by the command line, and as estimates before a call."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from typer.testing import CliRunner

from shared.analytics import get_llm_costs
from shared.budget import Budget
from shared.cli import app
from shared.errors import BudgetExceeded, ConfigurationError
from shared.internal.clock import now_us
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient
from shared.reports.formats import budget_line, render
from shared.scope import scope
from tests.support.asking import HELLO, MINI
from tests.support.ledger_rows import settled, write
from tests.support.provider_double import Double, Usage
from tools import CostReport, TextGeneration


def cli(*arguments: str, code: int = 0) -> str:
    """What the command line prints."""
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, done.output
    return done.output


def test_set_show_remove(hosted: Double, ledger: Ledger) -> None:
    """A budget set by the command line holds at once, is shown for each that it counts, and can be removed."""
    assert cli("budget", "show").startswith("No budget is set.")
    assert cli("budget", "set", "0.01", "--scope", "customer", "--window", "total") == (
        "Budget default: $0.01 in all for each customer.\n"
    )
    assert cli("budget", "show") == "default: $0.010000 left of $0.01 in all for each customer\n"
    hosted.always("openai", text="Yes.", usage=Usage(10, 100))
    for customer in ("acme", "acme", "bolt"):
        with scope(customer=customer):
            response = LLMClient().chat_completion(HELLO, model=MINI, max_tokens=100)
    assert response.metadata["remaining_budget_usd"] == 0.01 - 0.0004575
    shown = [line.partition(", lasts")[0] for line in cli("budget", "show").splitlines()]
    assert shown == [
        "default: $0.009085 left of $0.01 in all for each customer (customer=acme)",
        "default: $0.009543 left of $0.01 in all for each customer (customer=bolt)",
    ]
    found = json.loads(cli("budget", "show", "--json"))
    assert [each["used"] for each in found] == [0.000915, 0.0004575]
    cli("budget", "remove")
    assert cli("budget", "remove", code=1) == "Error: there is no budget default.\n"
    assert cli("budget", "show").startswith("No budget is set.")


def test_a_report_says_what_is_left(hosted: Double, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report tells what is left of the budgets that hold here and how long it lasts; the guide's lines stay first."""
    monkeypatch.setenv("AGENTSWARM_BUDGET_USD", "5")
    LLMClient().chat_completion(HELLO, model=MINI)
    costs = get_llm_costs()
    [budget] = costs["budgets"]
    assert budget["left"] == 5.0 - budget["used"] < 5.0
    assert budget["lasts_s"] > 0
    text = render(costs)
    assert text.startswith("=== LiteLLM Cost Metrics (last 7 days) ===\nTotal Cost: $")
    assert "\n\nBudgets:\n  $4.99" in text
    assert "| Budget | $4.99" in render(costs, "markdown")


def test_an_agent_sees_the_budgets_of_its_scope(hosted: Double, ledger: Ledger) -> None:
    """A tool's result and CostReport tell an agent what its customer has left, and nothing of others."""
    hosted.always("openai", text="Yes.", usage=Usage(10, 100))
    cli("budget", "set", "7", "--name", "house")
    with scope(customer="acme", budget=Budget(0.01, "total"), from_agent=True, agent="A"):
        result = json.loads(TextGeneration(prompt="Hi", model=MINI, max_tokens=100).run_sync())
        text = CostReport().run_sync()
    assert result["remaining_budget_usd"] == 0.0095425
    assert "$0.009543 left of $0.01 in all (customer=acme)" in text
    assert "$7" not in text
    assert "$6" not in text


@pytest.mark.parametrize(
    ("lasts", "words"),
    [
        (None, ""),
        (30, ", lasts less than a minute at the current rate"),
        (90, ", lasts about 1 minute at the current rate"),
        (7300, ", lasts about 2 hours at the current rate"),
        (86_400 * 3, ", lasts about 3 days at the current rate"),
        (1e18, ", lasts indefinitely at the current rate"),
    ],
)
def test_how_long_it_lasts(lasts: float | None, words: str) -> None:
    """What is left is told as a span of time that a person reads at once."""
    line = budget_line({"left": 1.0, "budget": "$2.00 a day", "lasts_s": lasts})
    assert line.startswith(f"$1.000000 left of $2.00 a day{words}")


def test_estimates(hosted: Double, ledger: Ledger) -> None:
    """Before a call its most is known, and what it will cost by its answers so far; nothing is sent or written."""
    client = LLMClient()
    [first] = client.estimate(HELLO, model=MINI, max_tokens=1000)
    assert 0.0045 < first.upper_bound < 0.006
    assert math.isnan(first.expected)
    assert hosted.requests == []
    hosted.reply("openai", text="Yes.", usage=Usage(10, 100))
    hosted.reply("openai", text="Yes.", usage=Usage(10, 300))
    client.chat_completion(HELLO, model=MINI)
    client.chat_completion(HELLO, model=MINI)
    known, other = client.estimate(HELLO, model=MINI, fallback_models=["anthropic/claude-haiku-4-5"])
    assert (known.completion_tokens, other.completion_tokens) == (200, None)
    assert known.expected == pytest.approx(200 * 4.5e-6, rel=0.1)
    [cut] = client.estimate(HELLO, model=MINI, max_tokens=50)
    assert cut.completion_tokens == 50
    [unknown] = client.estimate(HELLO, model="openai/brand-new")
    assert math.isnan(unknown.upper_bound)
    assert get_llm_costs()["total_calls"] == 2


def spend(customer: str) -> None:
    """One call of a customer, which costs $0.0004575."""
    with scope(customer=customer):
        LLMClient().chat_completion(HELLO, model=MINI, max_tokens=100)


def test_a_customer_has_a_limit_of_its_own(hosted: Double, ledger: Ledger) -> None:
    """A budget --where customer=acme holds for acme at once, in place of the one for each, and for nobody else."""
    hosted.always("openai", text="Yes.", usage=Usage(10, 100))
    cli("budget", "set", "0.0008", "--scope", "customer", "--name", "each")
    assert cli("budget", "set", "0.01", "--where", "customer=acme") == (
        "Budget customer=acme: $0.01 a month for customer=acme.\n"
    )
    for _ in range(3):
        spend("acme")
    spend("bolt")
    with pytest.raises(BudgetExceeded):
        spend("bolt")
    assert [line.partition(", lasts")[0] for line in cli("budget", "show").splitlines()] == [
        "customer=acme: $0.008627 left of $0.01 a month for customer=acme",
        "each: $0.000342 left of $0.0008 a month for each customer (customer=bolt)",
    ]
    [own] = json.loads(cli("budget", "show", "--where", "customer=acme", "--json"))
    assert (own["budget"], own["limit"]) == ("$0.01 a month for customer=acme", 0.01)
    cli("budget", "set", "0", "--where", "customer=acme")
    with pytest.raises(BudgetExceeded):
        spend("acme")
    with pytest.raises(BudgetExceeded):
        spend("bolt")
    spend("new")
    cli("budget", "remove", "customer=acme")
    with pytest.raises(BudgetExceeded):
        spend("acme")  # who has spent more than each may


def test_a_check_fails_for_cron(hosted: Double, ledger: Ledger) -> None:
    """`budget check` exits with 1 above a limit, and for a budget that warns; unknown costs are said beside it."""
    hosted.always("openai", text="Yes.", usage=Usage(10, 100))
    spend("acme")
    assert cli("budget", "check", "--limit", "1", "--since", "1d").startswith("$0.000458 since ")
    cli("budget", "check", "--limit", "0.0001", code=1)
    cli("budget", "check", "--limit", "0.0001", "--where", "customer=acme", code=1)
    assert json.loads(cli("budget", "check", "--limit", "0.0001", "--json", code=1))["ok"] is False
    assert cli("budget", "check") == "Every budget has enough left.\n"
    cli("budget", "set", "0.0005")
    assert "$0.000043 left of $0.0005 a month" in cli("budget", "check", code=1)
    write(ledger, "settle", settled(ts_us=now_us(), cost_nano=None))
    assert "at least $0.000458, plus 1 request of unknown cost since" in cli("budget", "check", "--limit", "1")


def test_a_budget_of_one_value_is_of_a_scope() -> None:
    """A value without a scope, an empty one, and two ways to say what a budget is for are refused."""
    faults: list[dict[str, Any]] = [
        {"value": "acme"}, {"scope": "customer", "value": ""}, {"scope": "customer", "value": "x" * 201},
    ]  # fmt: skip
    for wrong in faults:
        with pytest.raises(ConfigurationError, match="value"):
            Budget(1, **wrong)
    assert CliRunner().invoke(app, ["budget", "set", "1", "--where", "customer"]).exit_code == 1
    assert CliRunner().invoke(app, ["budget", "set", "1", "--where", "a=b", "--scope", "a"]).exit_code == 1


def test_a_forecast_needs_days(ledger: Ledger) -> None:
    """Without three complete days there is no forecast, and none is made up; with them it has its range."""
    assert "There is no forecast yet" in cli("budget", "forecast")
    for days in range(6):
        write(ledger, "settle", settled(ts_us=now_us() - days * 86_400 * 10**6, cost_nano=10**9), customer="acme")
    found = json.loads(cli("budget", "forecast", "--json", "--where", "customer=acme"))
    assert found["days"] == 5
    assert found["spent"] <= found["low"] <= found["expected"] <= found["high"]
