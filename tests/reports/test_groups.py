"""Reports by any dimensions and periods: each is the whole, in every format, and none is plausible nonsense."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import time_machine
from hypothesis import given, settings as examples, strategies as st
from rich.console import Console
from typer.testing import CliRunner

from shared.analytics import get_llm_costs
from shared.cli import app, tables
from shared.errors import InvalidRequest
from shared.ledger.grouped import FIGURES, grouped_sums, label_names
from shared.ledger.query import Filter, Window
from shared.ledger.schema import SUMS
from shared.ledger.store import Ledger
from shared.reports.groups import dimensions, groups_of
from shared.reports.periods import period_before, span_of, window_text
from shared.reports.tables import csv_text, decimals_for, money, usd_text
from shared.scope import scope
from tests.support import month
from tests.support.examples import at_most
from tests.support.ledger_rows import rows, settled, submit, write

ZONES = [
    ZoneInfo(name) for name in ("UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns", "Australia/Lord_Howe")
]
NOVEMBER = ("--since", "2026-11", "--until", "2026-11")


def report(*arguments: str) -> str:
    """What the command prints in a pipe."""
    done = CliRunner().invoke(app, ["report", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def november(ledger: Ledger) -> Ledger:
    """The ledger of this test, with a month of traffic."""
    month.fill(ledger)
    return ledger


@pytest.mark.parametrize(
    "by",
    ["tool", "hour", "week", "team", "customer,model", "month,customer", "team,customer", "tool,day"],
)
def test_every_format_has_the_rows_to_the_nano_dollar(november: Ledger, by: str) -> None:
    """JSON, CSV and Python have one total and one number of unknown costs, those of the rows, for any grouping."""
    found = [row for row in rows(november) if row["status"] != "started"]
    total, unknown = sum(row["cost_nano"] or 0 for row in found), sum(row["cost_nano"] is None for row in found)
    assert unknown > 22
    costs = get_llm_costs(since="2026-11", until="2026-11", by=by)
    as_json = json.loads(report("--by", by, "--json", *NOVEMBER))
    assert as_json["total_cost_nano"] == costs["total_cost_nano"] == total
    for groups in (costs["groups"], as_json["groups"]):
        assert sum(group["cost_nano"] or 0 for group in groups) == total
        assert sum(group["unknown_cost_requests"] for group in groups) == unknown
        assert sum(group["input_tokens"] for group in groups) == sum(row["prompt_tokens"] or 0 for row in found)
        assert sum(group["cached_tokens"] for group in groups) == sum(row["cached_tokens"] or 0 for row in found)
    lines = list(csv.DictReader(io.StringIO(report("--by", by, "--format", "csv", *NOVEMBER))))
    assert len(lines) == len(costs["groups"])
    assert sum(Decimal(line["cost_usd"] or 0) for line in lines) * 10**9 == total
    assert sum(int(line["unknown_cost_requests"]) for line in lines) == unknown
    assert [line["cost_usd"] == "" for line in lines] == [group["cost_nano"] is None for group in costs["groups"]]


def test_a_filter_leaves_the_group_of_that_name(november: Ledger) -> None:
    """--where has the figures of the group with that value, of a column or a label or both, from sums or rows."""
    whole = get_llm_costs(since="2026-11", until="2026-11", by="agent,customer")["groups"]
    for group in whole:
        where = {name: value for name, value in group["keys"].items() if value != "(unallocated)"}
        if len(where) == 2:
            costs = get_llm_costs(since="2026-11", until="2026-11", where=where)
            assert costs["total_cost_nano"] == (group["cost_nano"] or 0)
            assert costs["unknown_cost_requests"] == group["unknown_cost_requests"]
    by_agent = {group["name"]: group["cost_nano"] for group in get_llm_costs(since="2026-11", by="agent")["groups"]}
    writer = get_llm_costs(since="2026-11", where={"agent": "Writer"}, by="day")
    assert writer["total_cost_nano"] == by_agent["Writer"] == sum(day["cost_nano"] or 0 for day in writer["groups"])
    assert writer["agent_turns"] is not None
    assert "Only of agent=Writer" in report("--where", "agent=Writer", *NOVEMBER)


@pytest.mark.parametrize("by", ["Customer", "custmer", "customer=acme", "years", "model,custmer"])
def test_a_name_that_is_none_is_an_error_that_names_those_there_are(november: Ledger, by: str) -> None:
    """Grouping by what no call has is refused, in Python and on the command line, with the names that exist."""
    with pytest.raises(InvalidRequest, match=r"hour, day, week, month or a label: customer, team\."):
        get_llm_costs(by=by)
    with pytest.raises(InvalidRequest, match="customer, team"):
        get_llm_costs(where={by: "x"})


def test_a_scope_learns_no_label_of_others(ledger: Ledger) -> None:
    """Inside a scope an error names the labels of its own calls only, and a filter never widens what it sees."""
    write(ledger, "settle", settled(), customer="acme", secret_project="x")
    write(ledger, "settle", settled(), customer="b", plan="free")
    with scope(customer="b"):
        with pytest.raises(InvalidRequest) as caught:
            get_llm_costs(by="nothing")
        assert "label: customer, plan." in str(caught.value)
        with pytest.raises(InvalidRequest, match="its own customer only"):
            get_llm_costs(where={"customer": "acme"})
        assert get_llm_costs(since="2026-11-24", until="2026-11-24", where={"plan": "free"})["total_calls"] == 1
    assert label_names(ledger) == ["customer", "plan", "secret_project"]


@pytest.mark.parametrize("by", ["a,b,c", "model,model", "day,month", "monthly,hour"])
def test_two_dimensions_at_most(by: str) -> None:
    """Three dimensions, the same twice, and two grains of time are refused."""
    with pytest.raises(InvalidRequest, match="two dimensions"):
        dimensions(by)


def test_the_hour_that_the_clock_shows_twice(ledger: Ledger) -> None:
    """Each of the two hours of one name at the end of summer time is its own, and the day has both."""
    first = int(datetime(2026, 10, 25, 0, 30, tzinfo=UTC).timestamp()) * 1_000_000
    for hour in range(3):
        write(ledger, "settle", settled(ts_us=first + hour * 3600 * 10**6, cost_nano=10**hour))
    span = span_of(since="2026-10-25", until="2026-10-25", zone=ZoneInfo("Europe/Berlin"))
    found = {key: sums["cost_nano"] for key, sums in grouped_sums(ledger, span, ("hour",)).items()}
    assert found == {
        ("2026-10-25T02:00+02:00",): 1, ("2026-10-25T02:00+01:00",): 10, ("2026-10-25T03:00+01:00",): 100,
    }  # fmt: skip
    for grain, name in (("day", "2026-10-25"), ("week", "2026-W43"), ("month", "2026-10")):
        assert {key: sums["cost_nano"] for key, sums in grouped_sums(ledger, span, (grain,)).items()} == {(name,): 111}


START_US = int(datetime(2026, 9, 26, tzinfo=UTC).timestamp()) * 1_000_000
SPAN_DAYS = 70  # with the clock changes of all zones


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def filled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Ledger, list[dict[str, Any]]]]:
    """A ledger with attempts at any microsecond of ten weeks, written in any order, with late corrections."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('filled') / 'ledger.sqlite3'}"
    else:
        from tests.support import postgres

        url = postgres.new_database(request.getfixturevalue("postgres_server"))
    ledger, chance = Ledger(url), random.Random(3)
    found = []
    for number in range(400):
        quarter = chance.randrange(SPAN_DAYS * 96) * 900 * 10**6
        ts_us = START_US + quarter + chance.choice([0, -1, 1, 899_999_999, chance.randrange(900 * 10**6)])
        row = settled(ts_us=ts_us, cost_nano=chance.choice([None, 0, chance.randrange(10**12)]))
        row |= {"model": chance.choice("abc"), "tool": chance.choice([None, "T"]), "calls": chance.randrange(2)}
        if number % 10 == 0:
            row |= {"cost_nano": -chance.randrange(10**10), "adjustment_kind": "manual", "calls": 0}
        row["labels"] = chance.choice([{}, {"customer": "acme"}, {"customer": "b"}])
        found.append(row)
        submit(ledger, "settle", {name: value for name, value in row.items() if name != "labels"}, row["labels"])
    ledger.flush()
    yield ledger, found
    ledger.close()


@examples(max_examples=at_most(25), deadline=None)
@given(
    st.integers(0, SPAN_DAYS - 1), st.integers(1, 12), st.sampled_from(ZONES),
    st.sampled_from([(), ("model",), ("customer",)]), st.sampled_from([Filter(), Filter(columns={"model": "a"})]),
)  # fmt: skip
def test_single_days_are_the_window_the_rows_and_the_csv(
    filled: tuple[Ledger, list[dict[str, Any]]], first: int, count: int, zone: ZoneInfo, by: tuple[str, ...],
    which: Filter,
) -> None:  # fmt: skip
    """In five zones, the sum of single days is their window, its rows and its CSV, to the nano-dollar."""
    ledger, found = filled
    found = [row for row in found if not which.columns or row["model"] == "a"]
    start = datetime.fromtimestamp(START_US / 1e6, UTC).date() + timedelta(days=first)
    ends: dict[str, Any] = {"since": f"{start}", "until": f"{start + timedelta(days=count - 1)}"}
    span = span_of(**ends, zone=zone)
    whole = grouped_sums(ledger, span, ("day", *by), which)
    expected: dict[tuple[str, ...], int] = defaultdict(int)
    inside = [row for row in found if span.since_us <= row["ts_us"] < span.until_us]
    for row in inside:
        day = datetime.fromtimestamp(row["ts_us"] // 10**6, zone).date().isoformat()
        values = {"model": row["model"], "customer": row["labels"].get("customer", "")}
        expected[(day, *(values[name] for name in by))] += row["cost_nano"] or 0
    assert {key: sums["cost_nano"] for key, sums in whole.items()} == expected
    days = [
        grouped_sums(ledger, span_of(since=f"{day}", until=f"{day}", zone=zone), by, which)
        for day in (start + timedelta(days=number) for number in range(count))
    ]
    together = grouped_sums(ledger, span, by, which)
    for key, sums in together.items():
        assert sums == {name: sum(day[key][name] for day in days if key in day) for name in FIGURES}
    assert sum(sums["unknown_requests"] for sums in together.values()) == sum(
        row["cost_nano"] is None for row in inside
    )
    for name in SUMS:
        assert sum(sums[name] for sums in together.values()) == sum(row.get(name) or 0 for row in inside)
    groups = groups_of(ledger, span, [("day", *by)], which)[0].groups
    lines = list(csv.DictReader(io.StringIO(csv_text({"by": ",".join(("day", *by)), "groups": groups}))))
    assert sum(Decimal(line["cost_usd"] or 0) for line in lines) * 10**9 == sum(expected.values())


NOW = datetime(2026, 11, 24, 15, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("since", "until", "shown", "before"),
    [
        ("today", None, "2026-11-24 to 2026-11-24 16:30", "2026-11-23 to 2026-11-23 16:30"),
        ("yesterday", "yesterday", "2026-11-23", "2026-11-22"),
        ("2026-11", None, "2026-11-01 to 2026-11-24 16:30", "2026-10-01 to 2026-10-24 16:30"),
        ("2026-03", "2026-03", "2026-03-01 to 2026-03-31", "2026-02-01 to 2026-02-28"),
        ("2025", "2025", "2025-01-01 to 2025-12-31", "2024-01-01 to 2024-12-31"),
        ("2026-W44", "2026-W44", "2026-10-26 to 2026-11-01", "2026-10-19 to 2026-10-25"),
        ("36h", None, "2026-11-23 04:30 to 2026-11-24 16:30", "2026-11-21 16:30 to 2026-11-23 04:30"),
        ("2w", "1w", "2026-11-10 16:30 to 2026-11-17 16:30", "2026-11-03 16:30 to 2026-11-10 16:30"),
        ("2026-11-03", "2026-11-04", "2026-11-03 to 2026-11-04", "2026-11-01 to 2026-11-02"),
    ],
)
def test_periods_as_people_say_them(since: str, until: str | None, shown: str, before: str) -> None:
    """A period is what its name says in the report's zone; it is compared with the one before, as far as it goes."""
    with time_machine.travel(NOW, tick=False):
        span = span_of(since=since, until=until, zone=ZoneInfo("Europe/Berlin"))
    assert (window_text(span), window_text(period_before(span))) == (shown, before)


@examples(max_examples=at_most(50), deadline=None)
@given(st.dates(date(2024, 1, 1), date(2027, 1, 1)), st.integers(1, 400 * 86_400), st.sampled_from(ZONES))
def test_the_period_before_ends_where_the_period_begins(start: date, length_s: int, zone: ZoneInfo) -> None:
    """The period before is a time that lies before, and does not overlap."""
    since_us = int(datetime(start.year, start.month, start.day, tzinfo=zone).timestamp()) * 10**6
    span = Window(since_us, since_us + length_s * 10**6, zone)
    before = period_before(span)
    assert before.since_us < before.until_us <= span.since_us


def test_a_group_is_compared_with_the_period_before(ledger: Ledger) -> None:
    """--json and the table say what each group and the total were before; a period has only the total's."""
    for day, cost in ((3, 10**9), (4, 3 * 10**9)):
        write(ledger, "settle", settled(ts_us=month.NOVEMBER_US + day * month.DAY_US, cost_nano=cost), customer="acme")
    one = ("--since", "2026-11-05", "--until", "2026-11-05")
    costs = json.loads(report("--by", "customer", "--json", *one))
    assert (costs["groups"][0]["previous_cost_nano"], costs["previous"]["cost_nano"]) == (10**9, 10**9)
    assert costs["groups"][0]["share"] == 1
    shown = report("--by", "customer", "--format", "table", *one)
    assert "acme" in shown
    assert "+200%" in shown
    assert "The period before (2026-11-04 until 2026-11-05): $1.000000, now +200%" in " ".join(shown.split())
    assert "previous_cost_nano" not in json.loads(report("daily", "--json", *one))["groups"][0]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_table_fits_its_terminal(november: Ledger, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table fits any width, leaves out what matters less than cost and unknown costs, and obeys NO_COLOR."""
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, soft_wrap=True, markup=False)
    monkeypatch.setattr("shared.cli.report.out", console)
    monkeypatch.setattr(tables, "out", console)
    report("--by", "customer,model", *NOVEMBER)
    shown = re.sub(r"\x1b\[[\d;]*m", "", file.getvalue()).splitlines()
    assert all(len(line) <= width for line in shown if "sqlite:" not in line)
    [heads] = [line.split() for line in shown if line.startswith("Customer")]
    assert {"Customer", "Model", "Cost", "Unknown"} <= set(heads)
    assert ("Cached" in heads) == (width == 200)
    assert set(re.findall(r"\x1b\[[\d;]*m", file.getvalue())) <= {"\x1b[1m", "\x1b[0m", "\x1b[3m"}  # bold and italics


def test_a_spreadsheet_and_a_page_get_no_formula_and_no_markup(november: Ledger) -> None:
    """A label that is a formula or markup is text in CSV and Markdown."""
    lines = list(csv.DictReader(io.StringIO(report("--by", "customer", "--format", "csv", *NOVEMBER))))
    assert "'=cmd|'/c calc'!A1" in {line["customer"] for line in lines}
    shown = report("--by", "customer", "--format", "markdown", *NOVEMBER)
    assert "\\<script\\>" in shown
    assert "<script>" not in shown


@pytest.mark.parametrize(
    ("nano", "decimals", "shown"),
    [
        (1_234_567_891, 2, "$1.23"), (1_235_000_000, 2, "$1.24"), (-1_500_000_000, 2, "-$1.50"), (1, 2, "<$0.01"),
        (-1, 4, ">-$0.0001"), (0, 2, "$0.00"), (None, 2, "unknown"), (1, 9, "$0.000000001"),
        (1_234_567_000_000_000, 2, "$1,234,567.00"),
    ],
)  # fmt: skip
def test_money_is_rounded_but_never_to_nothing(nano: int | None, decimals: int, shown: str) -> None:
    """An amount that would be rounded to zero says that it is less than the smallest shown; unknown is a word."""
    assert money(nano, decimals) == shown


def test_decimals_follow_the_largest_amount() -> None:
    """Large amounts are shown to the cent, small ones to the millionth; CSV has all nine."""
    assert [decimals_for([amount, 1, None]) for amount in (10**10, 10**9, 10**7)] == [2, 4, 6]
    assert [usd_text(nano) for nano in (-1, 10**9, None)] == ["-0.000000001", "1.000000000", ""]
