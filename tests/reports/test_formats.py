"""What people and programs read: the guide's lines, tables, strict JSON, and exports to the nano-dollar."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import time_machine
from hypothesis import HealthCheck, given, settings, strategies as st

from shared.analytics import get_llm_costs, print_llm_costs
from shared.errors import ConfigurationError, StoreError
from shared.internal.clock import now_us
from shared.ledger import export
from shared.ledger.records import attempt_records
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient
from shared.prices import price_table
from shared.reports.formats import render
from shared.scope import scope
from tests.support.ledger_rows import rows, settled, started, submit, write


def spend(ledger: Ledger, provider: str, model: str, count: int, nano: int, **changes: Any) -> None:
    """So many calls of a model that cost so much together."""
    for number in range(count):
        cost = nano // count + (nano % count if number == 0 else 0)
        row = settled(ts_us=now_us(), provider=provider, model=model, cost_nano=cost, **changes)
        submit(ledger, "settle", row, {})
    ledger.flush()


def test_the_report_is_printed_as_the_guide_shows_it(
    ledger: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """print_llm_costs prints the guide's lines, most expensive first, then the prices' date, store and time zone."""
    tokens = {"prompt_tokens": 30_000, "completion_tokens": 1000}
    spend(ledger, "anthropic", "claude-3-sonnet-20240229", 20, 2_456_789_499, **tokens)
    spend(ledger, "openai", "gpt-4-turbo", 12, 5_123_456_000, **tokens)
    spend(ledger, "openai", "gpt-3.5-turbo", 8, 3_111_111_000, **tokens)
    print_llm_costs(days=30)
    assert capsys.readouterr().out == (
        "=== LiteLLM Cost Metrics (last 30 days) ===\n"
        "Total Cost: $10.691356\n"
        "Total Tokens: 1,240,000\n"
        "Average Cost per Call: $0.267284\n"
        "\n"
        "Cost by Provider:\n"
        "  openai: $8.234567\n"
        "  anthropic: $2.456789\n"
        "\n"
        "Cost by Model:\n"
        "  gpt-4-turbo: $5.123456 (12 calls, $0.426955/call)\n"
        "  gpt-3.5-turbo: $3.111111 (8 calls, $0.388889/call)\n"
        "  claude-3-sonnet-20240229: $2.456789 (20 calls, $0.122839/call)\n"
        "\n"
        f"Prices: table of {price_table().date}\n"
        f"Store: sqlite:///{tmp_path}/ledger.sqlite3 (time zone UTC)\n"
    )


@pytest.mark.parametrize("output_format", ["text", "markdown"])
def test_an_old_price_table_is_said(ledger: Ledger, output_format: Any) -> None:
    """Every report has the date of the price table, and from the 61st day on says that it is old and what to do."""
    made = date.fromisoformat(price_table().date)
    with time_machine.travel(made + timedelta(days=60), tick=False):
        costs = get_llm_costs()
        assert costs["price_table"] == {"date": f"{made}", "version": f"prices:{made}", "age_days": 60}
        assert f"Prices: table of {made}\n" in render(costs, output_format)
    with time_machine.travel(made + timedelta(days=61), tick=False):
        old = render(get_llm_costs(), output_format)
    assert f"Prices: table of {made}, 61 days old; upgrade this package" in old


def test_unpriced_and_failed_calls_have_lines_only_when_there_are_any(ledger: Ledger) -> None:
    """What is not in the total is said where it would be looked for."""
    spend(ledger, "openai", "m", 1, 10**9)
    assert "Unpriced calls" not in render(get_llm_costs())
    assert "Failed calls" not in render(get_llm_costs())
    spend(ledger, "openai", "m", 2, 0, unpriced_calls=1)
    spend(ledger, "openai", "m", 3, 0, status="failed", calls=0, failed_calls=1)
    lines = render(get_llm_costs(days=1.5)).splitlines()
    assert lines[0] == "=== LiteLLM Cost Metrics (last 1.5 days) ==="
    assert lines[3:6] == ["Average Cost per Call: $0.333333", "Unpriced calls: 2", "Failed calls: 3"]
    assert "  m: $1.000000 (3 calls, $0.333333/call)" in lines


def test_an_empty_report_is_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    """Without calls the same lines are printed, with zeros."""
    print_llm_costs()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "=== LiteLLM Cost Metrics (last 7 days) ===",
        "Total Cost: $0.000000",
        "Total Tokens: 0",
        "Average Cost per Call: $0.000000",
    ]
    assert lines[4:9] == ["", "Cost by Provider:", "", "Cost by Model:", ""]


def test_a_window_of_days_is_named_by_its_ends(ledger: Ledger) -> None:
    """A report of calendar days says from when to when; another grouping is added below."""
    spend(ledger, "openai", "m", 2, 10**9, tool="T")
    text = render(get_llm_costs(since="2026-11-01", until="9000-01-01", by="tool"))
    assert text.startswith("=== LiteLLM Cost Metrics (2026-11-01T00:00:00+00:00 to 9000-01-02T00:00:00+00:00) ===")
    assert "Cost by Tool:\n  T: $1.000000 (2 calls, $0.500000/call)\n" in text
    assert render(get_llm_costs(by="model")).count("Cost by Model:") == 1


HOSTILE = "a\x1b[2J|b\nc\u202ed"


@pytest.mark.parametrize("form", ["text", "markdown"])
def test_no_name_moves_the_cursor_or_breaks_a_table(form: Any, ledger: Ledger) -> None:
    """Names that came from outside are printed on one line, without control codes."""
    spend(ledger, HOSTILE, HOSTILE, 1, 10**9, tool=HOSTILE)
    shown = render(get_llm_costs(by="tool"), form)
    assert all(line.isprintable() for line in shown.splitlines())
    lines = [line for line in shown.splitlines() if "[2J" in line]
    assert len(lines) == (3 if form == "text" else 1)
    assert form == "text" or lines[0].replace("\\|", "").count("|") == 4


def test_no_name_is_markup(ledger: Ledger) -> None:
    """A name that is a link, an image, HTML or an entity is shown as it is by whatever shows the Markdown."""
    name = "![x](http://a/?b) <img src=x> `c` *d* e\\| &lt; R&D ~f~ g_h"
    spend(ledger, "openai", name, 1, 10**9)
    [line] = [line for line in render(get_llm_costs(), "markdown").splitlines() if "img" in line]
    shown = "!\\[x\\](http://a/?b) \\<img src=x\\> \\`c\\` \\*d\\* e\\\\\\| &amp;lt; R&D \\~f\\~ g_h"
    assert line == f"| {shown} | $1.000000 | 1 |"


def test_the_markdown_report_is_two_tables(ledger: Ledger) -> None:
    """Markdown has the totals and the groups as tables, by model when nothing else is asked for."""
    spend(ledger, "openai", "m", 2, 10**9)
    text = render(get_llm_costs(), "markdown")
    assert text.startswith("## LLM costs (last 7 days)\n\n|  |  |\n| --- | ---: |\n| Total cost | $1.000000 |")
    assert "| Model | Cost | Calls |\n| --- | ---: | ---: |\n| m | $1.000000 | 2 |" in text
    assert "| Tool | Cost | Calls |" in render(get_llm_costs(by="tool"), "markdown")
    assert text.splitlines()[-1].startswith("Store: ")


def strict(text: str) -> Any:
    """JSON without NaN and Infinity, and money as exact decimals."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse, parse_float=Decimal)


def test_the_json_report_is_the_dict(ledger: Ledger) -> None:
    """Programs get every figure, exactly as it is in Python."""
    spend(ledger, "openai", "m", 3, 10**9 + 1)
    costs = get_llm_costs(by="agent")
    assert json.loads(render(costs, "json")) == costs
    assert strict(render(costs, "json"))["total_cost_nano"] == 10**9 + 1


@pytest.fixture
def written(ledger: Ledger) -> list[dict[str, Any]]:
    """Attempts of every kind in the ledger."""
    found = [
        settled(ts_us=now_us(), cost_nano=1_234_567_890_123, agent="=cmd|' /C calc'!A0"),
        settled(ts_us=now_us(), cost_nano=1, response_model="@SUM(1)", model="+1", tool="-1"),
        settled(ts_us=now_us(), cost_nano=None, unpriced_calls=1, prompt_tokens=None, metadata={"x": None, "y": "é"}),
        started(ts_us=now_us(), conversation='quote " comma , and\nbreak'),
    ]
    for row in found:
        submit(ledger, "start" if row["status"] == "started" else "settle", row, {"customer": "acme"})
    ledger.flush()
    return found


def read(path: Path) -> list[dict[str, Any]]:
    """The records of an export."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    records: list[dict[str, Any]] = strict(text) if path.suffix == ".json" else list(map(strict, text.split("\n")[:-1]))
    return records


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv", ".JSON"])
def test_an_export_agrees_with_the_ledger_to_the_nano_dollar(
    ending: str, ledger: Ledger, written: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Each attempt is one record, with its exact cost, the unknown as null or empty, and its labels."""
    path = tmp_path / f"costs{ending}"
    assert LLMClient().export_cost_records(path) == len(written)
    path = path.rename(path.with_suffix(ending.lower()))
    records = {record["attempt_id"]: record for record in read(path)}
    assert len(records) == len(written)
    unknown = "" if ending == ".csv" else None
    for row in rows(ledger):
        record = records[str(row["attempt_id"])]
        cost = row["cost_nano"]
        assert record["cost_nano"] == (unknown if cost is None else type(record["cost_nano"])(cost))
        assert cost is None or Decimal(record["cost_usd"]) == Decimal(cost) / 10**9
        labels = json.loads(record["labels"]) if ending == ".csv" else record["labels"]
        assert labels == {"customer": "acme"}
        assert str(record["status"]) == row["status"]
    total = sum(int(record["cost_nano"] or 0) for record in records.values())
    assert total == get_llm_costs()["total_cost_nano"] == sum(row["cost_nano"] or 0 for row in written)


def test_no_cell_of_a_csv_is_a_formula(written: list[dict[str, Any]], tmp_path: Path) -> None:
    """A spreadsheet shows what an agent named itself, and does not run it."""
    LLMClient().export_cost_records(tmp_path / "costs.csv")
    cells = {cell for record in read(tmp_path / "costs.csv") for cell in record.values()}
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert {"'=cmd|' /C calc'!A0", "'@SUM(1)", "'+1", "'-1"} <= cells
    assert 'quote " comma , and\nbreak' in cells


cells = st.none() | st.integers() | st.floats() | st.text(st.characters(exclude_characters="\x00"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.fixed_dictionaries({"a": cells, "b": cells | st.lists(cells, max_size=2)}), max_size=3))
def test_any_record_can_be_exported(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    """Whatever the records hold, each format can be read again and has as many of them."""
    for ending in (".json", ".jsonl", ".csv"):
        path = tmp_path / f"any{ending}"
        assert export.write_records(path, records) == len(records)
        assert ending == ".csv" or len(read(path)) == len(records)
    with (tmp_path / "any.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.reader(file))
    assert [len(line) for line in found] == [2] * (len(records) + 1 if records else 0)


def test_an_export_inside_a_scope_is_the_scopes(ledger: Ledger, tmp_path: Path) -> None:
    """Inside a scope with labels nobody else's records are written."""
    for customer in ("acme", "other"):
        write(ledger, "settle", settled(agent=customer), customer=customer)
    with scope(customer="acme"):
        assert LLMClient().export_cost_records(tmp_path / "mine.json") == 1
    assert [record["agent"] for record in read(tmp_path / "mine.json")] == ["acme"]


@pytest.mark.parametrize("name", ["costs.xlsx", "costs", "json"])
def test_an_unknown_ending_is_refused(name: str, tmp_path: Path) -> None:
    """The ending says how to write; another one is refused before anything is touched."""
    with pytest.raises(ConfigurationError, match=r"Use \.json, \.jsonl or \.csv"):
        LLMClient().export_cost_records(tmp_path / name)
    assert not (tmp_path / name).exists()


def broken() -> Iterator[dict[str, Any]]:
    """Records that end in an error."""
    yield {"a": 1}
    raise StoreError("The ledger cannot be read")


def unserialisable() -> Iterator[dict[str, Any]]:
    yield {"a": 1}
    yield {"a": object()}


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv"])
@pytest.mark.parametrize(("records", "error"), [(broken, StoreError), (unserialisable, TypeError)])
def test_a_failing_export_leaves_the_old_file(ending: str, records: Any, error: Any, tmp_path: Path) -> None:
    """A file is written whole or not at all, and no temporary one stays."""
    path = tmp_path / "out" / f"costs{ending}"
    path.parent.mkdir()
    path.write_text("old")
    with pytest.raises(error):
        export.write_records(path, records())
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == [path.name]  # noqa: PTH208 - hidden files too


def test_a_file_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    """A missing folder, or a folder in the file's place, is said by name."""
    (tmp_path / "folder.json").mkdir()
    for path in (tmp_path / "missing" / "costs.json", tmp_path / "folder.json"):
        with pytest.raises(StoreError, match=rf"{path.name} cannot be written"):
            export.write_records(path, [{"a": 1}])
    assert sorted(entry.name for entry in tmp_path.iterdir() if "folder" in entry.name) == ["folder.json"]


def test_attempts_come_oldest_first_with_their_time(ledger: Ledger, written: list[dict[str, Any]]) -> None:
    """An export is in the order of time, exact to the microsecond, and an unknown cost is NaN in Python."""
    found = list(attempt_records(ledger))
    assert [record["time"].timestamp() for record in found] == sorted(record["time"].timestamp() for record in found)
    times = {record["attempt_id"]: round(record["time"].timestamp() * 1e6) for record in found}
    assert times == {row["attempt_id"]: row["ts_us"] for row in written}
    assert sum(math.isnan(record["cost_usd"]) for record in found) == 2


def test_a_total_that_is_not_all_is_said_once(ledger: Ledger) -> None:
    """A billed unit without a price makes a total and its group "at least" so much, beside the guide's line."""
    spend(ledger, "openai", "known", 2, 10**9)
    assert not get_llm_costs()["cost_is_lower_bound"]
    assert "at least" not in render(get_llm_costs())
    spend(ledger, "xai", "searching", 1, 10**9, cost_is_lower_bound=True, units={"source": 10})
    costs = get_llm_costs(by="model")
    assert (costs["cost_is_lower_bound"], costs["lower_bound_requests"]) == (True, 1)
    flagged = {group["name"]: group["cost_is_lower_bound"] for group in costs["groups"]}
    assert flagged == {"known": False, "searching": True}
    lines = render(costs).splitlines()
    assert lines[1] == "Total Cost: $2.000000"
    assert lines[4] == "The total is at least $2.000000: 1 request used something without a known price"
    assert [line.strip() for line in lines if "at least" in line] == [
        "The total is at least $2.000000: 1 request used something without a known price",
        "xai: at least $1.000000",
        "searching: at least $1.000000 (1 calls, $1.000000/call)",
    ]
    assert "| Total cost | at least $2.000000 |" in render(costs, "markdown")


@pytest.mark.parametrize("by", ["provider", "tool", "agent", "day", "customer"])
def test_every_group_knows_whether_it_is_all(ledger: Ledger, by: str) -> None:
    """Whatever costs are grouped by, the group of a request that is not wholly priced says so, and no other."""
    known = settled(ts_us=now_us() - 3 * 86_400_000_000, provider="openai", tool="a", agent="a")
    submit(ledger, "settle", known, {"customer": "acme"})
    lacking = settled(ts_us=now_us(), provider="xai", tool="b", agent="b", cost_is_lower_bound=True)
    submit(ledger, "settle", lacking, {"customer": "globex"})
    ledger.flush()
    groups = get_llm_costs(days=5, by=by)["groups"]
    assert sorted(group["cost_is_lower_bound"] for group in groups) == [False, True]
    one = next(group["name"] for group in groups if group["cost_is_lower_bound"])
    assert by == "day" or one == {"provider": "xai", "tool": "b", "agent": "b", "customer": "globex"}[by]
