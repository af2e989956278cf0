"""Reports: every window is exact, days are local days, and what is printed is what the guide shows."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import time_machine
from hypothesis import given, settings, strategies as st

from shared.analytics import costs_of, get_llm_costs
from shared.errors import ConfigurationError, InvalidRequest, StoreError
from shared.internal.clock import now_us
from shared.internal.money import to_nano
from shared.ledger.query import UNALLOCATED, Filter, Window, window
from shared.ledger.store import Ledger
from shared.reports.costs import sum_costs
from shared.reports.groups import groups_of
from shared.scope import scope
from tests.support.examples import at_most
from tests.support.ledger_rows import held_nano, settled, started, submit, write

BERLIN, KATHMANDU, UTC_ZONE = ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Kathmandu"), ZoneInfo("UTC")


def us(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def at(text: str) -> int:
    """Microseconds since 1970 of an ISO time with its offset."""
    return us(datetime.fromisoformat(text))


def known_nano(cost: float) -> int:
    """Nano-dollars that are known to be spent; none where the cost is unknown."""
    return 0 if math.isnan(cost) else to_nano(cost)


def days_of(ledger: Ledger, span: Window) -> dict[str, int]:
    """Nano-dollars by day, by both ways that a report tells them, which must agree with the total."""
    costs = sum_costs(ledger, span)
    groups = groups_of(ledger, span, [("day",)], Filter())[0].groups
    by_day = {day: known_nano(cost) for day, cost in costs["cost_by_day"].items()}
    assert by_day == {group["name"]: known_nano(group["cost"]) for group in groups}
    assert by_day == {group["name"]: group["cost_nano"] or 0 for group in groups}
    assert sum(by_day.values()) == costs["total_cost_nano"]
    return by_day


@pytest.mark.parametrize(
    ("age", "inside"),
    [
        (timedelta(hours=23, minutes=59), True),
        (timedelta(hours=24, minutes=1), False),
        (timedelta(0), True),
        (timedelta(hours=24, microseconds=-1), True),
        (timedelta(hours=24), False),
        (timedelta(microseconds=-1), False),
    ],
)
@pytest.mark.parametrize("now", ["2026-11-24T15:07:13.123457+00:00", "2026-10-25T00:30:00+00:00"])
def test_one_day_is_24_hours(age: timedelta, inside: bool, now: str, ledger: Ledger) -> None:
    """`days=1` is the last 24 hours to the microsecond, whatever the calendar or the clock change says."""
    moment = datetime.fromisoformat(now)
    write(ledger, "settle", settled(ts_us=us(moment - age)))
    costs = sum_costs(ledger, window(1, zone=BERLIN, now=moment))
    assert costs["total_calls"] == int(inside)


def test_the_last_day_reaches_back_from_now(ledger: Ledger) -> None:
    """An event 23 h 59 min old is inside days=1, one 24 h 1 min old is not, by the clock of this machine."""
    for minutes in (23 * 60 + 59, 24 * 60 + 1):
        write(ledger, "settle", settled(ts_us=now_us() - minutes * 60 * 10**6, cost_nano=minutes))
    assert get_llm_costs(days=1)["total_cost_nano"] == 23 * 60 + 59
    assert get_llm_costs(days=1 + 2 / 24 / 60)["total_calls"] == 2


def test_a_day_in_kathmandu_begins_at_a_quarter_past_six_utc(ledger: Ledger) -> None:
    """Days are those of the zone, quarters of an hour included."""
    write(ledger, "settle", settled(ts_us=at("2026-11-23T18:14:59.999999+00:00"), cost_nano=1))
    write(ledger, "settle", settled(ts_us=at("2026-11-23T18:15:00+00:00"), cost_nano=20))
    span = window(since="2026-11-23", until="2026-11-24", zone=KATHMANDU)
    assert days_of(ledger, span) == {"2026-11-23": 1, "2026-11-24": 20}
    today = window(since="2026-11-24", until="2026-11-24", zone=KATHMANDU)
    assert days_of(ledger, today) == {"2026-11-24": 20}


@pytest.mark.parametrize(
    ("day", "hours"),
    [("2026-03-28", 24), ("2026-03-29", 23), ("2026-03-30", 24), ("2026-10-24", 24), ("2026-10-25", 25)],
)
def test_a_day_is_as_long_as_the_clock_change_makes_it(day: str, hours: int, ledger: Ledger) -> None:
    """A calendar day in Berlin has 23 or 25 hours when the clocks change; no hour is lost or counted twice."""
    noon = datetime.combine(date.fromisoformat(day), datetime.min.time(), UTC) + timedelta(hours=12)
    for hour in range(-40, 40):
        submit(ledger, "settle", settled(ts_us=us(noon + timedelta(hours=hour, minutes=7)), cost_nano=1), {})
    ledger.flush()
    span = window(since=day, until=day, zone=BERLIN)
    assert days_of(ledger, span) == {day: hours}
    assert (span.until_us - span.since_us) == hours * 3600 * 10**6
    around = window(since=datetime.fromtimestamp(0, UTC), until=noon + timedelta(days=9), zone=BERLIN)
    assert days_of(ledger, around)[day] == hours


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ledger, list[dict[str, Any]]]]:
    """A ledger with 300 attempts over the two days around a clock change, at any microsecond."""
    ledger = Ledger(f"sqlite:///{tmp_path_factory.mktemp('filled') / 'ledger.sqlite3'}")
    chance, first = random.Random(7), at("2026-10-24T00:00:00+00:00")
    found = []
    for _ in range(300):
        quarter = chance.randrange(192) * 900 * 10**6
        ts_us = first + quarter + chance.choice([0, -1, 1, 899_999_999, chance.randrange(900 * 10**6)])
        row = settled(ts_us=ts_us, cost_nano=chance.choice([None, 0, chance.randrange(10**12)]))
        row |= {"model": chance.choice("abc"), "tool": chance.choice([None, "T"]), "calls": chance.randrange(2)}
        found.append(row)
        submit(ledger, "settle", row, {"customer": chance.choice(["acme", "other"])})
    ledger.flush()
    yield ledger, found
    ledger.close()


moments = st.integers(at("2026-10-23T20:00:00+00:00"), at("2026-10-26T04:00:00+00:00")) | st.integers(-4, 200).map(
    lambda quarter: at("2026-10-24T00:00:00+00:00") + quarter * 900 * 10**6
)


@settings(max_examples=at_most(40))
@given(st.lists(moments, min_size=2, max_size=4, unique=True), st.sampled_from([BERLIN, KATHMANDU, UTC_ZONE]))
def test_windows_add_up_wherever_they_are_cut(
    filled: tuple[Ledger, list[dict[str, Any]]], cuts: list[int], zone: ZoneInfo
) -> None:
    """A span's totals are those of its rows, and of its parts, cut at any microsecond; so are its days."""
    ledger, found = filled
    cuts = sorted(cuts)
    whole = sum_costs(ledger, Window(cuts[0], cuts[-1], zone))
    inside = [row for row in found if cuts[0] <= row["ts_us"] < cuts[-1]]
    parts = [sum_costs(ledger, Window(*pair, zone)) for pair in pairwise(cuts)]
    for name, expected in (
        ("total_cost_nano", sum(row["cost_nano"] or 0 for row in inside)),
        ("total_calls", sum(row["calls"] for row in inside)),
        ("total_tokens", 30 * len(inside)),
    ):
        assert whole[name] == expected == sum(part[name] for part in parts)
    days: Counter[str] = Counter()
    for row in inside:
        days[datetime.fromtimestamp(row["ts_us"] / 1e6, zone).date().isoformat()] += row["cost_nano"] or 0
    assert Counter(days_of(ledger, Window(cuts[0], cuts[-1], zone))) == days


@pytest.mark.parametrize("by", ["provider", "model", "tool", "agent", "day", "customer", "nobody-has-this"])
def test_every_grouping_adds_up_to_the_total(filled: tuple[Ledger, list[dict[str, Any]]], by: str) -> None:
    """Whatever costs are grouped by, the groups are the whole; what belongs to none is shown as such."""
    ledger, found = filled
    span = Window(min(row["ts_us"] for row in found) + 1, max(row["ts_us"] for row in found), BERLIN)
    costs = sum_costs(ledger, span)
    groups = groups_of(ledger, span, [(by,)], Filter())[0].groups
    assert sum(known_nano(group["cost"]) for group in groups) == costs["total_cost_nano"]
    inside = [row for row in found if span.since_us <= row["ts_us"] < span.until_us]
    unknown = sum(group["unknown_cost_requests"] for group in groups)
    assert unknown == costs["unknown_cost_requests"] == sum(row["cost_nano"] is None for row in inside) > 0
    assert sum(group["calls"] for group in groups) == costs["total_calls"]
    names = {group["name"] for group in groups}
    expected = {"tool": {"T", UNALLOCATED}, "agent": {UNALLOCATED}, "customer": {"acme", "other"}}
    assert names == expected.get(by, {UNALLOCATED} if by == "nobody-has-this" else names)
    if by != "day":
        order = [(-known_nano(group["cost"]), -group["calls"], group["name"]) for group in groups]
        assert order == sorted(order)


@pytest.mark.parametrize(
    ("since", "until", "begins", "ends"),
    [
        ("2026-11-01", "2026-11-02", "2026-11-01T00:00+01:00", "2026-11-03T00:00+01:00"),
        ("20261101", "2026-11-01", "2026-11-01T00:00+01:00", "2026-11-02T00:00+01:00"),
        ("2026-11-01T12:00", "2026-11-01T13:30:15", "2026-11-01T12:00+01:00", "2026-11-01T13:30:15+01:00"),
        ("2026-11-01T12:00Z", "2026-11-01T16:00+02:00", "2026-11-01T12:00+00:00", "2026-11-01T14:00+00:00"),
        (date(2026, 7, 1), date(2026, 7, 1), "2026-07-01T00:00+02:00", "2026-07-02T00:00+02:00"),
        (
            datetime.fromisoformat("2026-07-01T09:00"),
            datetime(2026, 7, 1, 10, tzinfo=UTC),
            "2026-07-01T09:00+02:00",
            "2026-07-01T10:00Z",
        ),
        ("2026-11-24", None, "2026-11-24T00:00+01:00", "2026-11-24T15:00:00.000001Z"),
        (None, "2026-11-20T00:00Z", "2026-11-13T00:00Z", "2026-11-20T00:00Z"),
    ],
)
def test_a_window_says_when_it_begins_and_ends(since: Any, until: Any, begins: str, ends: str) -> None:
    """Days and times without an offset are local; the last day is inside, the last moment is not."""
    span = window(7, since=since, until=until, zone=BERLIN, now=datetime(2026, 11, 24, 15, tzinfo=UTC))
    assert span == Window(at(begins), at(ends), BERLIN)


@pytest.mark.parametrize(
    "wrong",
    [
        {"days": 0},
        {"days": -1},
        {"days": math.nan},
        {"days": math.inf},
        {"days": 1e9},
        {"since": "tomorrow"},
        {"since": "2026-W54"},
        {"until": "99999w"},
        {"since": "2026-13-01"},
        {"since": "2026-11-01T25:00"},
        {"since": ""},
        {"until": "\x1b[2J" * 50},
        {"since": "2026-11-02", "until": "2026-11-01"},
        {"since": "2026-11-01T12:00", "until": "2026-11-01T12:00"},
        {"since": "2999-01-01"},
        {"until": "0001-01-01"},
        {"until": "9999-12-31"},
        {"since": date.min},
        {"until": datetime.max.replace(tzinfo=UTC)},
    ],
    ids=str,
)
def test_what_is_no_window_is_an_invalid_request(wrong: dict[str, Any]) -> None:
    """A window that is none is refused with an example, whatever was sent instead."""
    with pytest.raises(InvalidRequest) as caught:
        get_llm_costs(**wrong)
    assert "Give " in str(caught.value)
    assert str(caught.value).isprintable()


def test_an_unknown_zone_and_switched_off_tracking_are_configuration_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a zone or a ledger there is no report, and that is said."""
    with pytest.raises(ConfigurationError, match="time zone is unknown"):
        get_llm_costs(tz="Mars/Olympus")
    monkeypatch.setenv("LITELLM_COST_TRACKING", "false")
    with pytest.raises(ConfigurationError, match="Cost tracking is off"):
        get_llm_costs()


def test_the_zone_is_the_callers_else_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report says whose days it counts."""
    monkeypatch.setenv("AGENTSWARM_TIMEZONE", "Asia/Kathmandu")
    assert get_llm_costs()["timezone"] == "Asia/Kathmandu"
    assert get_llm_costs(tz="Europe/Berlin")["timezone"] == "Europe/Berlin"
    with time_machine.travel("2026-11-23T18:20:00Z", tick=False):
        assert get_llm_costs(since="2026-11-24")["since"] == "2026-11-24T00:00:00+05:45"


def test_an_empty_ledger_costs_nothing() -> None:
    """Without a single call every figure is 0, and no division fails."""
    costs = get_llm_costs(by="customer")
    numbers = {name: value for name, value in costs.items() if isinstance(value, int | float)}
    assert numbers.pop("days") == 7
    assert set(numbers.values()) == {0}
    assert {name for name in costs if name.startswith(("cost_by", "calls_by", "groups"))} == {
        "cost_by_provider", "cost_by_model", "calls_by_model", "cost_by_tool", "cost_by_agent", "cost_by_day", "groups",
    }  # fmt: skip
    assert not any(costs[name] for name in costs if name.startswith(("cost_by", "calls_by", "groups")))


def test_unknown_and_failed_are_counted_beside_the_total(ledger: Ledger) -> None:
    """A call without a price is not free and a failed one is no call; attempts under way are not spent yet."""
    ts_us = now_us()
    write(ledger, "settle", settled(ts_us=ts_us, cost_nano=10**9))
    write(ledger, "settle", settled(ts_us=ts_us, cost_nano=None, unpriced_calls=1))
    write(ledger, "settle", settled(ts_us=ts_us, status="failed", cost_nano=0, calls=0, failed_calls=1))
    write(ledger, "start", started(ts_us=ts_us, model="under way"))
    write(ledger, "start", started(ts_us=ts_us, lease_us=1, bound_nano=5 * 10**8))
    costs = get_llm_costs()
    assert [costs[name] for name in ("total_cost", "total_calls", "unpriced_calls", "failed_calls")] == [1, 2, 2, 2]
    assert costs["unknown_cost_requests"] == 2
    assert costs["avg_cost_per_call"] == 1  # of the one call whose cost is known
    assert "under way" not in costs["calls_by_model"]
    assert held_nano(ledger) == 9000


def test_a_scope_sees_its_own_costs_only(ledger: Ledger) -> None:
    """Inside a scope with labels a report is of calls with all of them; conversations are told apart, None included."""
    earlier = now_us() - 2 * 3600 * 10**6  # In a whole bucket of the window, which the sums would answer for.
    labels: list[Mapping[str, str]] = [{}, {"customer": "acme"}, {"customer": "acme", "team": "red"}, {"customer": "b"}]
    for number, own in enumerate(labels):
        write(ledger, "settle", settled(ts_us=earlier, cost_nano=10**number), **own)
    for number, conversation in enumerate((None, "c1", "c2"), start=4):
        write(ledger, "settle", settled(ts_us=earlier, cost_nano=10**number, conversation=conversation))
    assert get_llm_costs()["total_cost_nano"] == 1_111_111
    with scope(customer="acme"):
        assert get_llm_costs()["total_cost_nano"] == 110
        with scope(team="red"):
            assert get_llm_costs()["total_cost_nano"] == 100
    with scope(customer="nobody"):
        assert get_llm_costs()["total_cost_nano"] == 0
    of = {name: costs_of(Filter(conversation=name, any_conversation=False)) for name in ("c1", "c2", None)}
    assert [costs["total_cost_nano"] for costs in of.values()] == [10**5, 10**6, 10_001]


def test_an_unreadable_ledger_is_a_store_error(ledger: Ledger, tmp_path: Path) -> None:
    """A report without its ledger is an error and not a row of zeros."""
    (tmp_path / "ledger.sqlite3").unlink()
    (tmp_path / "ledger.sqlite3").mkdir()
    with pytest.raises(StoreError, match="cannot be read"):
        get_llm_costs()
