"""The corrections of the ledger on the command line: free reservations, adjust costs, price requests again."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shared import cli
from shared.analytics import AnalyticsEvent, all_budgets, get_llm_costs, record_event, set_budget
from shared.budget import Budget
from shared.errors import InvalidRequest
from shared.ledger import adjustments
from shared.ledger.schema import bucket_of
from shared.ledger.store import Ledger, get_ledger
from shared.llm_client import LLMClient
from shared.reports import notes
from shared.scope import scope
from tests.support.asking import HELLO, MINI
from tests.support.ledger_rows import assert_exact, fresh, records, rows, settled, write
from tests.support.provider_double import Double, Usage

TODAY = datetime.now(UTC).date()


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """The ledger of this test's commands, on each database."""
    if request.param == "postgresql":
        monkeypatch.setenv("AGENTSWARM_DATABASE_URL", request.getfixturevalue("postgres_ledger"))
    monkeypatch.setenv("AGENTSWARM_TIMEZONE", "UTC")
    found = get_ledger(os.environ["AGENTSWARM_DATABASE_URL"])
    yield found
    found.close()


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What a command prints."""
    printed = io.StringIO()
    monkeypatch.setattr(cli.out, "_file", printed)
    result = CliRunner().invoke(cli.app, ["ledger", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return printed.getvalue()


def unfinished(**changes: Any) -> dict[str, Any]:
    """The row of a request that reserves half a dollar."""
    known = {"status": "cancelled", "cost_nano": 10**8, "cost_is_lower_bound": True, "reserved_nano": 5 * 10**8}
    return settled(fresh()) | known | changes


def budget() -> dict[str, Any]:
    """The one budget, as `budget show` has it."""
    (found,) = all_budgets()
    return found


def test_release_lists_and_frees(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without arguments nothing is freed; a call id frees that call's; a second time there is nothing to free."""
    set_budget("default", Budget(2.0, "month"))
    one, two = unfinished(), unfinished()
    for row in (one, two):
        write(ledger, "settle", row)
    assert run(monkeypatch, "release").endswith("$1.000000 reserved for 2 requests.\n")
    assert budget()["reserved"] == 1.0
    run(monkeypatch, "release", str(one["call_id"]), "--dry-run")
    assert budget()["reserved"] == 1.0
    assert run(monkeypatch, "release", str(one["call_id"])).endswith("$0.500000 released for 1 request.\n")
    assert [budget()[name] for name in ("spent", "reserved", "used", "left")] == [0.2, 0.5, 0.7, 1.3]
    assert run(monkeypatch, "release", str(one["call_id"])) == "$0.000000 released for 0 requests.\n"
    found = json.loads(run(monkeypatch, "release", "--before", str(TODAY + timedelta(days=1)), "--json"))
    assert [each["call_id"] for each in found["reservations"]] == [str(two["call_id"])]
    assert budget()["reserved"] == 0


def test_a_month_is_closed_and_listed(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """`close` prints the figures, again with an error; `close --list` checks them; what comes late says when it was."""
    may_us = int(datetime(2026, 5, 7, 9, tzinfo=UTC).timestamp()) * 10**6
    row, late = (settled(fresh(), ts_us=may_us, bucket=bucket_of(may_us), cost_nano=5 * 10**9) for _ in range(2))
    write(ledger, "settle", row)
    assert "No month is closed" in run(monkeypatch, "close", "--list")
    figures = "2026-05  $5.000000000, 1 call, 1 record (closed "
    assert figures in run(monkeypatch, "close", "2026-05", "--tz", "UTC")
    with pytest.raises(InvalidRequest, match=r"was closed on .* with \$5\.000000000 for 1 call"):
        run(monkeypatch, "close", "2026-05")
    write(ledger, "settle", late)
    said = run(monkeypatch, "adjust", "-1", "--call", str(row["call_id"]), "--write")
    assert "It is dated to now, because 2026-05-07 09:00 is in a month that is closed." in said
    assert figures in run(monkeypatch, "close", "--list")
    (listed,) = json.loads(run(monkeypatch, "close", "--list", "--json"))
    assert (listed["month"], listed["cost_nano"], listed["unchanged"]) == ("2026-05", 5 * 10**9, True)
    for call, line in ((row, "(manual, 20"), (late, "Happened 2026-05-07 09:00:00, in a month that was closed")):
        printed = io.StringIO()
        monkeypatch.setattr(cli.out, "_file", printed)
        assert CliRunner().invoke(cli.app, ["calls", "show", str(call["call_id"])]).exit_code == 0
        assert line in printed.getvalue()


def test_pruning_asks_first_and_reports_say_so(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """`prune` removes nothing without --yes where nobody can be asked; then reports and lists say what was removed."""
    may_us = int(datetime(2026, 5, 7, 9, tzinfo=UTC).timestamp()) * 10**6
    old = settled(fresh(), ts_us=may_us, bucket=bucket_of(may_us), cost_nano=5 * 10**9)
    for row in (old, settled(fresh(), cost_nano=10**9)):
        write(ledger, "settle", row, customer="acme", team="red")
    what = ("prune", "--before", "2026-06-01", "--keep-sums")
    assert "1 record and 0 events from before 2026-06-01 would be removed." in run(monkeypatch, *what, "--dry-run")
    with pytest.raises(InvalidRequest, match="This cannot be undone"):
        run(monkeypatch, *what)
    assert len(records(ledger)) == 2
    assert "1 record removed." in run(monkeypatch, *what, "--yes")
    assert len(records(ledger)) == 1
    costs = get_llm_costs(since="2026-05-01", by="customer")
    assert (costs["total_cost"], costs["is_incomplete"], costs["removed_before"][:10]) == (6, False, "2026-06-01")
    assert "The records before 2026-06-01 were removed (ledger prune), and count here by their sums" in notes(costs)
    costs = get_llm_costs(since="2026-05-01", by="customer,team")
    assert (costs["groups"][0]["cost"], costs["is_incomplete"]) == (1, True)
    assert "The records before 2026-06-01 were removed (ledger prune), and are missing here" in notes(costs)
    assert get_llm_costs(since="2026-06-01")["removed_before"] is None
    with pytest.raises(InvalidRequest, match="records before 2026-06-01 00:00 UTC were removed"):
        run(monkeypatch, "adjust", "-1", "--call", str(old["call_id"]))
    said = io.StringIO()
    monkeypatch.setattr(cli.err, "_file", said)
    assert CliRunner().invoke(cli.app, ["calls", "list", "--since", "2026-05"]).exit_code == 0
    assert CliRunner().invoke(cli.app, ["report", "--since", "2026-05", "--format", "csv"]).exit_code == 0
    assert "Calls before 2026-06-01 00:00 were removed" in said.getvalue()
    assert "The records before 2026-06-01 were removed (ledger prune), and count here by their sums." in said.getvalue()


def test_forgetting_asks_first_and_keeps_the_money(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """`forget` says what it would change, does nothing without --yes, and leaves the costs under another name."""
    write(ledger, "settle", settled(fresh(), cost_nano=5 * 10**9), customer="acme", team="red")
    said = run(monkeypatch, "forget", "--where", "customer=acme", "--dry-run")
    assert said.startswith("customer=acme would become (forgotten) in 1 record")
    with pytest.raises(InvalidRequest, match="This cannot be undone"):
        run(monkeypatch, "forget", "--where", "customer=acme")
    with pytest.raises(InvalidRequest, match="is nobody to forget"):
        run(monkeypatch, "forget", "--where", "model=openai/a", "--yes")
    assert get_llm_costs(by="customer")["groups"][0]["name"] == "acme"
    assert "Done." in run(monkeypatch, "forget", "--where", "customer=acme", "--yes")
    assert [(each["name"], each["cost"]) for each in get_llm_costs(by="customer")["groups"]] == [("(forgotten)", 5)]
    assert [(each["name"], each["cost"]) for each in get_llm_costs(by="team")["groups"]] == [("red", 5)]
    assert run(monkeypatch, "forget", "--where", "customer=acme") == "The ledger has nothing of customer=acme.\n"
    assert_exact(ledger)
    assert " MB now." in run(monkeypatch, "vacuum")


def test_an_adjustment_is_a_dry_run_first(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """`adjust` changes nothing without --write; with it, the total and the budget of that day, and no call count."""
    set_budget("default", Budget(10.0, "month"))
    write(ledger, "settle", settled(fresh(), cost_nano=5 * 10**9))
    assert "Add --write" in run(monkeypatch, "adjust", "-4.20", "--reference", "credit note 7")
    assert get_llm_costs()["total_cost"] == 5
    run(monkeypatch, "adjust", "-4.20", "--reference", "credit note 7", "--write")
    costs = get_llm_costs()
    assert [costs[name] for name in ("total_cost", "adjustments", "total_calls", "avg_cost_per_call")] == [
        0.8,
        -4.2,
        1,
        5,
    ]
    assert (budget()["used"], budget()["left"]) == (0.8, 9.2)
    (row,) = [each for each in records(ledger) if each["operation"] == "adjustment"]
    assert (row["adjustment_kind"], row["adjusts"]) == ("manual", "credit note 7")
    assert_exact(ledger)


def test_an_adjustment_moves_the_windows_that_hold_its_day(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dated to an earlier day it is in that day's report, and in no window that does not hold that day."""
    day = TODAY - timedelta(days=40)
    for name, window in (("day", "day"), ("total", "total")):
        set_budget(name, Budget(100.0, window))  # type: ignore[arg-type]
    write(ledger, "start", fresh())  # so that the accounts exist
    run(monkeypatch, "adjust", "7", "--date", str(day), "--write")
    used = {each["name"]: each["used"] for each in all_budgets()}
    assert used == {"day": pytest.approx(9e-6), "total": pytest.approx(7.000009)}
    assert get_llm_costs(since=day, until=day)["total_cost"] == 7
    assert get_llm_costs(days=7)["total_cost"] == 0


def test_an_adjustment_of_a_call_is_its_callers(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--call` takes the day, the model, the tool and the labels from the call, and so its customer's budget."""
    set_budget("customers", Budget(10.0, "month", scope="customer"))
    row = settled(fresh(tool="TextGeneration", agent="Writer"), cost_nano=3 * 10**9)
    write(ledger, "settle", row, customer="acme")
    run(monkeypatch, "adjust", "-1", "--call", str(row["call_id"]), "--write")
    with scope(customer="acme"):
        costs = get_llm_costs(by="tool")
        assert costs["total_cost"] == 2
        assert costs["cost_by_tool"] == {"TextGeneration": 2.0}
        assert costs["budgets"][0]["used"] == 2


@pytest.mark.parametrize("amount", ["0", "abc", "NaN", "1e9", "Infinity"])
def test_an_amount_is_checked(amount: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no amount, or more than the ledger can add up, is refused with a sentence."""
    with pytest.raises(InvalidRequest):
        run(monkeypatch, "adjust", amount, "--write")
    assert rows(ledger) == []


def prices(tmp_path: Path, factor: int) -> str:
    """A price table that multiplies what gpt-5.4-mini costs."""
    path = tmp_path / f"prices-{factor}.json"
    entry = {
        "litellm_provider": "openai",
        "mode": "chat",
        "input_cost_per_token": 1e-6 * factor,
        "output_cost_per_token": 2e-6 * factor,
        "cache_read_input_token_cost": 1e-7 * factor,
    }
    path.write_text(json.dumps({MINI: entry}), encoding="utf-8")
    return str(path)


def test_repricing_twice_adds_nothing(
    ledger: Ledger, hosted: Double, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`reprice` adds the difference to today's prices once, by model, tier and counts of the rows, and can go back."""
    monkeypatch.setattr(adjustments, "_PAGE", 2)  # so that three requests are two pages
    since = ("--since", str(TODAY - timedelta(days=1)))
    set_budget("default", Budget(10.0, "month"))
    monkeypatch.setenv("AGENTSWARM_PRICES", prices(tmp_path, 1))
    for number in range(3):
        hosted.reply("openai", usage=Usage(1000 + number, 100, cached=500))
        LLMClient().chat_completion(HELLO, model=MINI)
    before = get_llm_costs()["total_cost_nano"]
    monkeypatch.setenv("AGENTSWARM_PRICES", prices(tmp_path, 3))
    run(monkeypatch, "reprice", *since, "--dry-run")
    assert get_llm_costs()["total_cost_nano"] == before
    said = json.loads(run(monkeypatch, "reprice", *since, "--json"))
    assert [model["requests"] for model in said["models"]] == [3]
    after = get_llm_costs()
    assert (after["total_cost_nano"], after["total_calls"]) == (3 * before, 3)
    assert after["avg_cost_per_call"] == pytest.approx(before / 3 / 1e9)
    assert budget()["used"] == pytest.approx(3 * before / 1e9)
    assert "for 0 requests" in run(monkeypatch, "reprice", *since)
    assert get_llm_costs()["total_cost_nano"] == 3 * before
    monkeypatch.setenv("AGENTSWARM_PRICES", prices(tmp_path, 1))
    run(monkeypatch, "reprice", *since)
    assert get_llm_costs()["total_cost_nano"] == before
    assert_exact(ledger)


def test_repricing_gives_a_price_to_what_had_none(
    ledger: Ledger, hosted: Double, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A request whose price was unknown has one in a newer table: it is in the total, and no longer unknown."""
    hosted.reply("openai", usage=Usage(1000, 100))
    response = LLMClient().chat_completion(HELLO, model="openai/brand-new")
    assert math.isnan(response.cost)
    path = tmp_path / "prices.json"
    entry = {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}
    path.write_text(json.dumps({"openai/brand-new": entry}), encoding="utf-8")
    monkeypatch.setenv("AGENTSWARM_PRICES", str(path))
    for _ in range(2):
        run(monkeypatch, "reprice", "--since", str(TODAY - timedelta(days=1)))
    costs = get_llm_costs()
    assert (costs["total_cost"], costs["unpriced_calls"], costs["total_calls"]) == (0.0012, 0, 1)


def test_repricing_by_the_same_table_changes_nothing(
    ledger: Ledger, hosted: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a row keeps is enough to price it again to the nano-dollar, on every wire."""
    for provider, model in (
        ("openai", MINI),
        ("anthropic", "anthropic/claude-haiku-4-5"),
        ("gemini", "gemini/gemini-2.5-flash"),
    ):
        hosted.reply(provider, usage=Usage(5000, 300, cached=1000, reasoning=100))
        LLMClient().chat_completion(HELLO, model=model)
    assert get_llm_costs()["total_cost_nano"] > 0
    assert "for 0 requests" in run(monkeypatch, "reprice", "--since", str(TODAY - timedelta(days=1)))


def event(cost: Any, **more: Any) -> AnalyticsEvent:
    metadata = {"model": "m/x", "provider": "p", "cost": cost, **more}
    return AnalyticsEvent(event_type="llm_cost", metadata=metadata)


@pytest.mark.parametrize("cost", [-0.25, Decimal("-0.25"), "-0.25"])
def test_a_negative_event_is_a_credit(cost: Any, ledger: Ledger) -> None:
    """`record_event` with a negative cost lowers the total, counts no call, and keeps its reference."""
    record_event(event(Decimal("1.00")))
    record_event(event(cost, reference="credit note 8"))
    costs = get_llm_costs()
    assert (costs["total_cost"], costs["total_calls"], costs["avg_cost_per_call"]) == (0.75, 1, 1.0)
    (row,) = [each for each in records(ledger) if each["operation"] == "adjustment"]
    assert (row["adjustment_kind"], row["adjusts"]) == ("event", "credit note 8")


def test_a_cost_as_text_is_exact(ledger: Ledger) -> None:
    """A Decimal that came through JSON as text counts to the nano-dollar."""
    record_event(event("0.123456789"))
    assert get_llm_costs()["total_cost_nano"] == 123_456_789


def test_an_agent_cannot_enter_a_credit(ledger: Ledger) -> None:
    """Inside a tool that an agent has called a negative cost is refused, and changes nothing."""
    with scope(agent="Writer", tool="T", from_agent=True), pytest.raises(InvalidRequest, match="credit"):
        record_event(event(-5))
    assert get_llm_costs()["total_cost"] == 0


@pytest.mark.parametrize("cost", [Decimal("9300000000"), "1e30", 1e300, -1e300])
def test_a_cost_beyond_the_range_is_unknown_and_kept(cost: Any, ledger: Ledger) -> None:
    """A cost that the sums cannot hold is an unknown cost that says so, and its row keeps what was reported."""
    record_event(event(cost))
    assert get_llm_costs()["unpriced_calls"] == 1
    (row,) = records(ledger)
    assert math.isnan(row["cost_usd"])
    assert row["metadata"]["cost"]


def test_a_providers_cost_beyond_the_range_is_unknown_and_kept(ledger: Ledger, hosted: Double) -> None:
    """The same where a provider reports it."""
    hosted.reply("openrouter", cost_usd=1e13)
    response = LLMClient().chat_completion(HELLO, model="openrouter/openai/gpt-4o-mini")
    assert math.isnan(response.cost)
    assert get_llm_costs()["unpriced_calls"] == 1
    (row,) = records(ledger)
    assert row["metadata"]["cost_beyond_range"] == "1e+13 US$"
