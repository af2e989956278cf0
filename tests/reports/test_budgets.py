"""How budgets are reported: in reports, to agents, by the command line, and as estimates before a call."""

from __future__ import annotations

import json
import math

import pytest
from typer.testing import CliRunner

from shared.analytics import get_llm_costs
from shared.budget import Budget
from shared.cli import app
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient
from shared.reports.formats import budget_line, render
from shared.scope import scope
from tests.support.asking import HELLO, MINI
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
