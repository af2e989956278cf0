"""Sums: whatever happens to attempts, and however much is folded, reports are what the rows add up to."""

from __future__ import annotations

import math
import uuid
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings, strategies as st

from shared.analytics import get_llm_costs
from shared.ledger import accounts, sums
from shared.ledger.grouped import all_grouped
from shared.ledger.health import latencies
from shared.ledger.query import UNALLOCATED, Filter, Window
from shared.ledger.schema import DIMENSIONS, LATENCY_MS, label, metadata, sums_state, unsummed, unsummed_label
from shared.ledger.store import Ledger
from shared.reports.costs import sum_costs
from shared.reports.groups import groups_of
from tests.support.examples import at_most
from tests.support.ledger_rows import assert_exact, rows, settled, started, submit, write
from tests.support.processes import race, run

QUARTER_US = 900 * 10**6
FIRST_US = 1_792_828_800_000_000  # 2026-10-24T08:00Z, the day before clocks change in Berlin
SPAN_US = 60 * 3600 * 10**6
ZONES = tuple(map(ZoneInfo, ("UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns", "Pacific/Apia")))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    return str(request.getfixturevalue("postgres_ledger"))


@pytest.fixture
def store(url: str) -> Iterator[Ledger]:
    with closing(Ledger(url)) as ledger:
        yield ledger


# What is done to a ledger: small programs of random steps.

moments = st.integers(0, SPAN_US) | st.integers(0, SPAN_US // QUARTER_US).map(lambda quarter: quarter * QUARTER_US)
costs = st.none() | st.integers(0, 10**12)
rows_of_attempts = st.fixed_dictionaries(
    {
        "at": moments,
        "model": st.sampled_from(["openai/a", "openai/b", "other/a"]),
        "tool": st.sampled_from([None, "TextGeneration"]),
        "agent": st.sampled_from([None, "Writer"]),
        "conversation": st.sampled_from([None, "c-1"]),
        "status": st.sampled_from(["ok", "ok", "failed", "interrupted", "refused"]),
        "operation": st.sampled_from(["chat_completion", "vision"]),
        "cost_nano": costs,
        "cost_is_lower_bound": st.booleans(),
        "attempt_number": st.integers(1, 2),
        "duration_us": st.none() | st.integers(0, 10**9),
        "cached_tokens": st.none() | st.integers(0, 100),
        "reserved_nano": st.none() | st.integers(0, 10**6),
        "saved": st.none() | st.integers(-5, 10**6) | st.sampled_from([True, 1.5, "7"]),
    }
)
labels = st.dictionaries(st.sampled_from(["customer", "team"]), st.sampled_from(["acme", "x", "y"]), max_size=2)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("settle"), rows_of_attempts, labels),
        st.tuples(st.just("settle"), rows_of_attempts, labels),
        st.tuples(st.just("correct"), st.integers(0, 30), rows_of_attempts),
        st.tuples(st.just("adjust"), rows_of_attempts, labels),
        st.tuples(st.just("expire"), rows_of_attempts, labels),
        st.tuples(st.just("annotate"), st.integers(0, 30), st.integers(0, 9)),
        st.tuples(st.just("fold"), st.none(), st.none()),
        st.tuples(st.just("forget"), st.none(), st.none()),
    ),
    min_size=1,
    max_size=25,
)
questions = st.tuples(
    moments,
    moments,
    st.sampled_from(ZONES),
    st.sampled_from(
        [
            Filter(),
            Filter({"customer": "acme"}),
            Filter({"team": "x"}),
            Filter({"customer": "acme", "team": "x"}),
            Filter(any_conversation=False),
            Filter(conversation="c-1", any_conversation=False),
        ]
    ),
    st.sampled_from([None, "model", "day", "customer", "team"]),
)


def row_of(made: Mapping[str, Any]) -> dict[str, Any]:
    saved = made["saved"]
    ts_us = FIRST_US + made["at"]
    named = {name: value for name, value in made.items() if name not in ("at", "saved")}
    more = {"metadata": {"image_tokens_saved": saved, "image_nano_saved": saved}} if saved is not None else {}
    is_call = made["status"] == "ok"
    return settled(
        started(ts_us=ts_us),
        **named,
        **more,
        provider=made["model"].partition("/")[0],
        requested_model=made["model"],
        calls=int(is_call),
        failed_calls=int(not is_call),
        unpriced_calls=int(made["cost_nano"] is None),
    )


def carry_out(ledger: Ledger, program: list[tuple[str, Any, Any]]) -> None:
    known: list[dict[str, Any]] = []
    for what, first, second in program:
        match what:
            case "settle":
                known.append(row := row_of(first))
                write(ledger, "settle", row, **second)
            case "adjust":
                counts = {"calls": 0, "failed_calls": 0, "unpriced_calls": 0, "cost_nano": -(first["cost_nano"] or 1)}
                kind = {"operation": "adjustment", "adjustment_kind": "manual", "status": "reported"}
                write(ledger, "settle", row_of(first) | counts | kind, **second)
            case "expire":
                row = started(ts_us=FIRST_US + first["at"], lease_us=1, model=first["model"], agent=first["agent"])
                write(ledger, "start", row, **second)
                if first["at"] % 2:
                    ledger.settle_expired()
            case "correct" if known:
                before = known[first % len(known)]
                stays = ("attempt_id", "call_id", "ts_us", "bucket")
                write(ledger, "settle", row_of(second) | {name: before[name] for name in stays})
            case "annotate" if known:
                more = {"image_tokens_saved": second, "note": "x"}
                submit(ledger, "metadata", {"attempt_id": known[first % len(known)]["attempt_id"], "metadata": more})
            case "fold":
                sums.fold(ledger)
            case "forget":
                sums._forget(ledger)
    ledger.flush()


# What a report should say, worked out from the rows one by one.


def expected(ledger: Ledger, span: Window, which: Filter, by: str | None) -> dict[str, Any]:
    tags: dict[uuid.UUID, dict[str, str]] = defaultdict(dict)
    for tag in rows(ledger, label):
        tags[tag["attempt_id"]][tag["name"]] = tag["value"]

    def is_inside(row: dict[str, Any]) -> bool:
        own = tags[row["attempt_id"]]
        if row["status"] == "started" or not span.since_us <= row["ts_us"] < span.until_us:
            return False
        if not which.any_conversation and (own or row["conversation"] != which.conversation):
            return False
        return which.labels.items() <= own.items()

    found = [row for row in rows(ledger) if is_inside(row)]

    def group(key: Callable[[dict[str, Any]], str]) -> dict[str, list[dict[str, Any]]]:
        groups = defaultdict[str, list[dict[str, Any]]](list)
        for row in found:
            groups[key(row) or UNALLOCATED].append(row)
        return groups

    def day(row: dict[str, Any]) -> str:
        return datetime.fromtimestamp(row["ts_us"] // 10**6, span.zone).date().isoformat()

    def figures(part: list[dict[str, Any]]) -> tuple[int, ...]:
        return (
            sum(row["cost_nano"] or 0 for row in part),
            sum((row["prompt_tokens"] or 0) + (row["completion_tokens"] or 0) for row in part),
            *(sum(row[name] for row in part) for name in ("calls", "failed_calls", "unpriced_calls")),
            sum(row["cost_nano"] is None for row in part),
            any(row["cost_is_lower_bound"] for row in part),
        )

    by_key: dict[str, Callable[[dict[str, Any]], str]] = {
        **{name: itemgetter(name) for name in DIMENSIONS},
        "day": day,
        "customer": lambda row: tags[row["attempt_id"]].get("customer", ""),
        "team": lambda row: tags[row["attempt_id"]].get("team", ""),
    }
    saved = [
        row["metadata"]["image_tokens_saved"]
        for row in found
        if row["operation"] == "vision" and row["metadata"] and "image_tokens_saved" in row["metadata"]
    ]
    return {
        "total": figures(found),
        "days": {name: figures(part)[0] for name, part in group(day).items()},
        "adjustments": sum(row["cost_nano"] for row in found if row["adjustment_kind"]),
        "saved": sum(value for value in saved if type(value) is int),
        "groups": {name: figures(part) for name, part in group(by_key[by]).items()} if by else None,
        "latencies": {
            model: Counter(bisect_right(LATENCY_MS, row["duration_us"] / 1000) for row in timed)
            for model, part in group(itemgetter("model")).items()
            if (timed := [row for row in part if row["status"] == "ok" and row["duration_us"] is not None])
        },
        **{name: {value for value, part in group(by_key[name]).items() if shown(part)} for name in DIMENSIONS},
    }


def shown(part: list[dict[str, Any]]) -> bool:
    """Whether reports have a line for these."""
    is_charged = sum(row["calls"] for row in part) or sum(row["cost_nano"] or 0 for row in part)
    return bool(is_charged or any(row["cost_nano"] is None for row in part))


def reported(ledger: Ledger, span: Window, which: Filter, by: str | None) -> dict[str, Any]:
    found = sum_costs(ledger, span, which)
    groups = groups_of(ledger, span, [(by,)], which)[0].groups if by else []
    names = ("tokens", "calls", "failed_calls", "unpriced_calls", "unknown_cost_requests", "cost_is_lower_bound")
    total = ("total_cost_nano", "total_tokens", "total_calls", *names[2:])
    return {
        "total": tuple(found[name] for name in total),
        "days": {name: 0 if math.isnan(cost) else round(cost * 1e9) for name, cost in found["cost_by_day"].items()},
        "adjustments": round(found["adjustments"] * 1e9),
        "saved": found["image_tokens_saved"],
        "groups": {each["name"]: (each["cost_nano"] or 0, *(each[name] for name in names)) for each in groups}
        if by
        else None,
        "latencies": {model: +places for model, places in latencies(ledger, span, which).items()},
        **{name: set(found[f"cost_by_{name}"]) for name in DIMENSIONS},
    }


GROUPS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    ((), ()),
    (("label:customer",), ("acme",)),
    (("label:customer",), ("nobody",)),
    (("label:customer",), ("",)),
    (("tool",), ("TextGeneration",)),
    (("tool",), ("",)),
    (("agent",), ("Writer",)),
    (("label:team", "agent"), ("x", "")),
)


def check_running_totals(ledger: Ledger, span: Window) -> None:
    """What a budget counts when it begins is what the rows add up to, reservations and requests under way included."""
    with ledger.reading() as connection:
        for dimensions, group in GROUPS:
            conditions = [accounts._is_of(*pair) for pair in zip(dimensions, group, strict=True)]
            whole = accounts._sum_of(connection, accounts._AMOUNT, (span.since_us, span.until_us), *conditions)
            assert accounts._sum(connection, dimensions, group, span.since_us, span.until_us) == whole


def empty(ledger: Ledger) -> None:
    """Delete everything but the version."""
    with ledger.changing() as connection:
        for table in metadata.sorted_tables:
            if table.name != "ledger_meta":
                connection.execute(sa.delete(table))


@settings(max_examples=at_most(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps, st.lists(questions, min_size=1, max_size=4))
def test_reports_are_what_the_rows_add_up_to(
    store: Ledger, program: list[tuple[str, Any, Any]], asked: list[tuple[Any, ...]]
) -> None:
    """After settles, late rows, corrections, adjustments and expiries, folded or not, every report is exact."""
    empty(store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "_CATCHING_UP_S", 0.0)  # so that reports find something left
        carry_out(store, program)
        for one, other, zone, which, by in asked:
            low, high = sorted((one, other))
            span = Window(FIRST_US + low, FIRST_US + high + 1, zone)
            assert reported(store, span, which, by) == expected(store, span, which, by)
        check_running_totals(store, span)
    assert_exact(store)
    for *_, zone, which, by in asked:
        span = Window(FIRST_US, FIRST_US + SPAN_US + 1, zone)
        assert reported(store, span, which, by) == expected(store, span, which, by)


FOLD = """
from shared.ledger import Ledger, sums

def run(number, together, url):
    sums.PAGE, ledger = 7, Ledger(url)
    together.wait(60)
    folded = 0
    for _ in range(60):
        folded += sums.fold(ledger)
    print(folded > 0, flush=True)
"""


def fill(store: Ledger, count: int) -> None:
    for number in range(count):
        row = settled(ts_us=FIRST_US + number * QUARTER_US // 3, model=f"m-{number % 3}", cost_nano=number)
        submit(store, "settle", row, {"customer": f"c-{number % 5}"})
    store.flush()


def test_two_folders_at_once_fold_each_change_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that fold the same changes at the same time, while more come, count each of them once."""
    monkeypatch.setattr(sums, "PAGE", 10**6)  # this process leaves it to them
    with closing(Ledger(url)) as store:
        fill(store, 150)
        race(FOLD, url, count=3)
        monkeypatch.undo()
        assert_exact(store)
        groups = groups_of(store, Window(FIRST_US, FIRST_US + SPAN_US, ZONES[0]), [("customer",)], Filter())[0].groups
        assert sum(group["cost_nano"] for group in groups) == sum(range(150))
        assert {group["calls"] for group in groups} == {30}


KILLED = """
import os, sys
from shared.ledger import Ledger, sums

done = 0

def stop(connection, *arguments):
    global done
    done += 1
    if done == 3:
        os._exit(9)  # in the middle of a transaction

sums._leave_out_full_labels, sums.PAGE, ledger = stop, 20, Ledger(sys.argv[1])
while sums.fold(ledger):
    pass
"""


def test_a_folder_that_is_killed_loses_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process has not committed is folded by the next one, once."""
    monkeypatch.setattr(sums, "PAGE", 10**6)
    with closing(Ledger(url)) as store:
        fill(store, 100)
        assert run(KILLED, url).returncode == 9
        assert len(rows(store, unsummed)) == 60
        monkeypatch.undo()
        assert_exact(store)
        assert sum_costs(store, Window(FIRST_US, FIRST_US + SPAN_US, ZONES[0]))["total_calls"] == 100


def test_a_label_with_too_many_values_is_read_from_rows(store: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A label with more values on a day than there may be has no sums of that day: reports read rows, and say so."""
    monkeypatch.setattr(sums, "MAX_VALUES", 3)
    fill(store, 120)
    assert_exact(store)
    days = {row["day"] for row in rows(store, unsummed_label)}
    assert days == {FIRST_US // 10**6 // 86400 * 86400 + day * 86400 for day in range(len(days))}
    span = Window(FIRST_US, FIRST_US + SPAN_US, ZONES[1])
    for which, by in ((Filter(), "customer"), (Filter({"customer": "c-1"}), None)):
        assert reported(store, span, which, by) == expected(store, span, which, by)
        assert "values" in (all_grouped(store, span, [[by] if by else []], which)[0].rows_read or "")
    assert sum_costs(store, span)["rows_read"] is None
    fill(store, 120)
    assert_exact(store)
    assert reported(store, span, Filter(), "customer") == expected(store, span, Filter(), "customer")


@pytest.mark.parametrize(
    ("which", "by", "reason"),
    [
        (Filter(), None, None),
        (Filter({"customer": "c-1"}), None, None),
        (Filter({"customer": "c-1"}), "customer", None),
        (Filter({"customer": "c-1"}), "team", "pairs of labels"),
        (Filter({"customer": "c-1", "team": "x"}), None, "pairs of labels"),
    ],
)
def test_a_report_says_when_it_has_read_rows(store: Ledger, which: Filter, by: str | None, reason: str | None) -> None:
    """Only what there are no sums of is read from rows, in pages, and the report says why."""
    fill(store, 20)
    span = Window(FIRST_US, FIRST_US + SPAN_US, ZONES[0])
    found = all_grouped(store, span, [[by] if by else []], which)[0].rows_read
    assert (found is None) if reason is None else (reason in (found or ""))


def test_a_long_read_of_rows_is_paged(store: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are read a page at a time, also many of one moment, and none is left out or counted twice."""
    monkeypatch.setattr("shared.ledger.query._PAGE", 3)
    fill(store, 20)
    for _ in range(7):
        write(store, "settle", settled(ts_us=FIRST_US + 5 * QUARTER_US, cost_nano=1), customer="c-1", team="x")
    span = Window(FIRST_US + 1, FIRST_US + SPAN_US, ZONES[2])
    for which, by in ((Filter({"customer": "c-1"}), "team"), (Filter({"customer": "c-1", "team": "x"}), "day")):
        assert reported(store, span, which, by) == expected(store, span, which, by)


def test_a_report_computes_the_sums_that_are_missing(ledger: Ledger) -> None:
    """A report of a ledger without sums, as an older version leaves it, leaves one with all of them."""
    fill(ledger, 20)
    sums._forget(ledger)
    assert rows(ledger, sums_state)
    assert get_llm_costs(since="2026-10-01", until="2026-11-30")["total_calls"] == 20
    assert rows(ledger, sums_state) == []
    assert_exact(ledger)
