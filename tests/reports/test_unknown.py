"""Unknown is a word: no report of any kind takes it for zero, and all of them agree to the nano-dollar."""

from __future__ import annotations

import io
import json
import math
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from shared.analytics import get_llm_costs, print_llm_costs, set_budget
from shared.budget import Budget
from shared.cli import app, tables
from shared.cli.report import _print_report
from shared.internal.clock import now_us
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient
from shared.reports.formats import budget_line, render
from tests.support.ledger_rows import rows, settled, started, submit
from tools import CostReport

MINI, GROK, NOBODYS, HAIKU, FREE = (
    "openai/gpt-5.4-mini", "xai/grok-4.3", "openai/never-heard-of", "anthropic/claude-haiku-4-5", "local/smollm2-135m",
)  # fmt: skip
UNKNOWN: dict[str, Any] = {"cost_nano": None, "cost_source": "unknown", "unpriced_calls": 1}
FAILED: dict[str, Any] = {"status": "failed", "calls": 0, "failed_calls": 1}
TOTAL = (
    "The total is at least $6.422839, plus 27 requests of unknown cost; 1 request used something without a known price"
)


@pytest.fixture
def mixed(ledger: Ledger) -> Ledger:
    """A ledger with known, lower-bound, unknown, failed, reserved, running, free and adjusted attempts."""
    spent = [
        *(settled(ts_us=now_us(), model=MINI, cost_nano=1_234_567_891 + i, agent="Writer", tool="T") for i in range(5)),
        settled(ts_us=now_us(), provider="xai", model=GROK, cost_nano=500_000_001, cost_is_lower_bound=True),
        *(settled(ts_us=now_us(), model=NOBODYS, bound_nano=None, **UNKNOWN) for _ in range(22)),
        *(
            settled(ts_us=now_us(), provider="anthropic", model=HAIKU, reserved_nano=9_000_000, **UNKNOWN | FAILED)
            for _ in range(4)
        ),
        settled(ts_us=now_us(), model=MINI, status="cancelled", reserved_nano=7_000_000, **UNKNOWN),
        settled(ts_us=now_us(), provider="local", model=FREE, cost_nano=0, cost_source="free"),
        settled(ts_us=now_us(), provider="groq", model="groq/x", cost_nano=0, **FAILED),
        settled(ts_us=now_us(), model=MINI, cost_nano=-250_000_000, operation="adjustment", adjustment_kind="credit")
        | {"calls": 0, "prompt_tokens": None, "completion_tokens": None},
    ]
    for row in spent:
        submit(ledger, "settle", row, {"customer": "acme"})
    submit(ledger, "start", started(ts_us=now_us(), model=MINI, bound_nano=31_000_000), {"customer": "acme"})
    set_budget("default", Budget(20, "total"))
    ledger.flush()
    return ledger


def on_a_terminal(width: int, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> str:
    """What the command `report` shows on a terminal of this width."""
    shown = io.StringIO()
    console = Console(file=shown, width=width, force_terminal=True, color_system=None, soft_wrap=True, markup=False)
    monkeypatch.setattr("shared.cli.report.out", console)
    monkeypatch.setattr(tables, "out", console)
    _print_report(get_llm_costs(**{"by": "model", **arguments}))
    return re.sub(r"\x1b\[\d*m", "", shown.getvalue())


def test_no_group_of_unknown_cost_is_shown_as_zero(mixed: Ledger) -> None:
    """The text says of each model what is known: all, "at least" so much, or "unknown"; averages are of known costs."""
    lines = render(get_llm_costs()).splitlines()
    assert lines[1:4] == ["Total Cost: $6.422839", "Total Tokens: 1,050", "Average Cost per Call: $0.953263"]
    assert lines[4:7] == [TOTAL, "Unpriced calls: 27", "Failed calls: 5"]
    assert lines[7] == "Adjustments: -$0.250000, part of the total"
    assert "  anthropic: unknown" in lines
    models = lines[lines.index("Cost by Model:") + 1 : lines.index("Budgets:") - 1]
    assert models == [
        f"  {MINI}: at least $5.922839 (6 calls, $1.234568/call, 1 request of unknown cost)",
        f"  {GROK}: at least $0.500000 (1 calls, $0.500000/call)",
        f"  {NOBODYS}: unknown (22 calls)",
        f"  {FREE}: $0.000000 (1 calls, $0.000000/call)",
        f"  {HAIKU}: unknown (0 calls, 4 requests of unknown cost)",
    ]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_terminal_shows_everything_that_the_text_says(
    mixed: Ledger, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every warning, the average, the providers and the budgets of the text are on a terminal too, within its width."""
    with_agents = settled(ts_us=now_us(), model=MINI, agent="A", tool="T")
    submit(mixed, "settle", with_agents, {})
    text, shown = render(get_llm_costs()), on_a_terminal(width, monkeypatch)
    assert all(len(line) <= width for line in shown.splitlines() if "sqlite:" not in line)
    unwrapped = " ".join(shown.split())
    assert "Agent turns not tracked: their cost is not in these totals" in text
    beside = text.splitlines()[4 : text.splitlines().index("")]
    assert len(beside) == 5
    for line in [*beside, *text.splitlines()[-2:]]:
        assert line in unwrapped
    assert "Average cost per call: $0.8" in unwrapped
    assert "Cost by provider: openai at least $5.9" in unwrapped
    assert budget_line(get_llm_costs()["budgets"][0]).partition(", lasts")[0] in unwrapped
    assert shown.count("unknown") >= 2 + 1  # two models and a provider
    assert "at least" in shown.split("Average")[0]


def test_markdown_and_the_agents_report_say_the_same(mixed: Ledger) -> None:
    """Markdown has a column of unknown costs where there are any, and CostReport is the same text for an agent."""
    shown = render(get_llm_costs(by="customer"), "markdown")
    assert "| Total cost | at least $6.422839, plus 27 requests of unknown cost |" in shown
    assert "| Customer | Cost | Calls | Unknown cost |\n| --- | ---: | ---: | ---: |" in shown
    assert "| Adjustments, part of the total | -$0.250000 |" in shown
    assert "| acme | at least $6.422839 | 30 | 27 |" in shown
    assert f"| {NOBODYS} | unknown | 22 | 22 |" in render(get_llm_costs(), "markdown")
    text = CostReport().run_sync()
    assert TOTAL in text
    assert f"{NOBODYS}: unknown (22 calls)" in text


def test_json_has_null_and_counts(mixed: Ledger) -> None:
    """In JSON an unknown cost is null, in Python NaN, and the requests are counted beside the sums."""
    costs = get_llm_costs(by="model")
    assert math.isnan(costs["cost_by_model"][NOBODYS])
    found = json.loads(render(costs, "json"))
    assert found["cost_by_model"][NOBODYS] is found["avg_cost_by_model"][HAIKU] is None
    assert found["cost_by_provider"] == {"openai": 5.922839465, "xai": 0.500000001, "local": 0.0, "anthropic": None}
    assert found["unknown_cost_requests"] == 27
    assert found["unknown_cost_by_model"] == {MINI: 1, NOBODYS: 22, HAIKU: 4}
    assert (found["lower_bound_by_provider"], found["lower_bound_by_model"]) == ({"xai": 1}, {GROK: 1})
    groups = {group["name"]: group for group in found["groups"]}
    assert groups[NOBODYS]["cost"] is groups[NOBODYS]["cost_nano"] is groups[NOBODYS]["avg_cost_per_call"] is None
    assert groups[MINI]["avg_cost_per_call"] == 1.234567893  # of five calls: no unknown cost, and no adjustment


@pytest.mark.parametrize("by", ["model", "provider", "tool", "agent", "day", "customer"])
def test_all_formats_agree_to_the_nano_dollar(mixed: Ledger, by: str, tmp_path: Path) -> None:
    """Rows, sums, groups, report, budget and export have one total and one number of unknown costs."""
    costs = get_llm_costs(by=by)
    found = [row for row in rows(mixed) if row["status"] != "started"]
    total, unknown = sum(row["cost_nano"] or 0 for row in found), sum(row["cost_nano"] is None for row in found)
    assert (costs["total_cost_nano"], costs["unknown_cost_requests"]) == (total, unknown) == (6_422_839_466, 27)
    assert sum(group["cost_nano"] or 0 for group in costs["groups"]) == total
    assert sum(group["unknown_cost_requests"] for group in costs["groups"]) == unknown
    LLMClient().export_cost_records(tmp_path / "costs.json")
    exported = json.loads((tmp_path / "costs.json").read_text(encoding="utf-8"), parse_float=Decimal)
    assert sum(record["cost_nano"] or 0 for record in exported) == total
    assert sum(record["cost_usd"] or 0 for record in exported) * 10**9 == total
    [budget] = costs["budgets"]
    assert round(budget["spent"] * 1e9) == total


def test_a_budget_reconciles_with_the_report_on_screen(mixed: Ledger) -> None:
    """Spent + reserved + under way = counted, what is left is the rest, and what is spent is the report's total."""
    shown = CliRunner().invoke(app, ["budget", "show"]).output
    amounts = {
        what: Decimal(re.findall(rf"\$([\d.]+) {what}", shown)[0])
        for what in ("left", "spent", "reserved", "under way", "counted")
    }
    assert amounts["spent"] + amounts["reserved"] + amounts["under way"] == amounts["counted"]
    assert amounts["left"] + amounts["counted"] == 20
    assert f"Total Cost: ${amounts['spent']}" in render(get_llm_costs())
    assert "$0.043000 reserved (5 requests) + $0.031000 under way" in shown
    assert shown.endswith(", without 22 requests of unknown cost\n")
    [as_json] = json.loads(CliRunner().invoke(app, ["budget", "show", "--json"]).output)
    assert [as_json[name] for name in ("spent", "reserved", "under_way", "used", "left")] == [
        6.422839466, 0.043, 0.031, 6.496839466, 13.503160534,
    ]  # fmt: skip
    assert (as_json["reserved_requests"], as_json["uncounted_requests"]) == (5, 22)
    assert (as_json["since"], as_json["until"]) == (None, None)


def test_a_window_of_a_budget_says_since_when(ledger: Ledger) -> None:
    """A budget of a month says when it begins, so that a report of the same time can be asked for."""
    submit(ledger, "settle", settled(ts_us=now_us(), cost_nano=10**9), {})
    set_budget("default", Budget(20, "month", tz="Asia/Kathmandu"))
    [budget] = get_llm_costs()["budgets"]
    assert re.fullmatch(r"\d{4}-\d\d-01T00:00:00\+05:45", budget["since"])
    assert budget_line(budget).endswith(f"= $1.000000 counted since {budget['since']}")
    assert round(get_llm_costs(since=budget["since"])["total_cost"] * 1e9) == round(budget["spent"] * 1e9)


def test_a_total_of_which_nothing_is_known(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    """Where no cost is known the total is "unknown", one request is in the singular, and $0 is nowhere."""
    submit(ledger, "settle", settled(ts_us=now_us(), model=NOBODYS, bound_nano=None, **UNKNOWN), {})
    print_llm_costs(days=1)
    shown = capsys.readouterr().out
    assert shown.startswith("=== LiteLLM Cost Metrics (last 1 days) ===\nTotal Cost: unknown\nTotal Tokens: 30\n")
    assert "Average Cost per Call: unknown\nThe total is unknown: 1 request of unknown cost\n" in shown
    assert f"  openai: unknown\n\nCost by Model:\n  {NOBODYS}: unknown (1 calls)\n" in shown
    for form in ("text", "markdown"):
        assert "$0.0" not in render(get_llm_costs(), form)


def test_a_lower_bound_of_nothing_is_unknown(ledger: Ledger) -> None:
    """A request of which nothing that was billed has a known price has no cost of "at least $0.000000"."""
    submit(ledger, "settle", settled(ts_us=now_us(), model=GROK, cost_nano=0, cost_is_lower_bound=True), {})
    lines = render(get_llm_costs()).splitlines()
    assert "The total is unknown: 1 request used something without a known price" in lines
    assert f"  {GROK}: unknown (1 calls)" in lines


def test_a_negative_total_is_money_too(ledger: Ledger) -> None:
    """A credit that is larger than what was spent is shown as negative US$, and moves no average."""
    submit(ledger, "settle", settled(ts_us=now_us(), cost_nano=10**9), {})
    credit = settled(ts_us=now_us(), cost_nano=-3 * 10**9, operation="adjustment", adjustment_kind="credit") | {
        "calls": 0
    }
    submit(ledger, "settle", credit, {})
    assert render(get_llm_costs()).splitlines()[1] == "Total Cost: -$2.000000"
    assert get_llm_costs()["avg_cost_per_call"] == 1.0
