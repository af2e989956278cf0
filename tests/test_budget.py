"""The declaration of a budget: what it may be, and which span of time a moment falls into."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, strategies as st

from shared.budget import FOREVER_US, Budget, Limit
from shared.errors import ConfigurationError

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Apia"]
moments = st.datetimes(datetime(2015, 1, 2), datetime(2037, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001 - naive bounds


def us(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


@pytest.mark.parametrize(
    "bad",
    [
        {"limit_usd": -1},
        {"limit_usd": float("nan")},
        {"limit_usd": float("inf")},
        {"limit_usd": True},
        {"limit_usd": "5"},
        {"window": "week"},
        {"scope": ""},
        {"scope": "a b"},
        {"scope": None},
        {"tz": "Mars/Olympus"},
        {"tz": 5},
        {"warn_at": 0},
        {"warn_at": 1.5},
        {"on_exceed": "ask"},
        {"on_unknown_price": "guess"},
    ],
)
def test_what_no_budget_can_be(bad: dict[str, Any]) -> None:
    """A budget that could not be kept is not made."""
    with pytest.raises(ConfigurationError, match="budget's"):
        Budget(**{"limit_usd": 5.0, **bad})


@pytest.mark.parametrize(("usd", "nano"), [(0.1, 100_000_000), (0.3, 300_000_000), (1e-9, 1), (1.9e-9, 1), (0, 0)])
def test_the_limit_is_exact(usd: float, nano: int) -> None:
    """A limit is what was written, in whole nano-dollars, and never more."""
    assert Budget(usd).limit_nano == nano


@given(moments, st.sampled_from(ZONES), st.sampled_from(["hour", "day", "month"]))
def test_every_moment_has_one_window(moment: datetime, zone: str, window: Any) -> None:
    """A moment lies in its window, windows join without a gap, and each begins where its zone's clock says."""
    budget = Budget(1, window, tz=zone)
    since, until = budget.span(us(moment))
    assert since <= us(moment) < until
    assert budget.span(since) == budget.span(until - 1) == (since, until)
    assert budget.span(until)[0] == until
    start = datetime.fromtimestamp(since / 1e6, UTC).astimezone(ZoneInfo(zone))
    if window == "month":
        assert start.day == 1
    if window == "hour":
        assert until - since == 3600 * 1_000_000


def test_the_months_of_a_zone() -> None:
    """A month in Berlin begins an hour or two before that of UTC."""
    since, until = Budget(1, "month", tz="Europe/Berlin").span(us(datetime(2026, 3, 31, 22, 30, tzinfo=UTC)))
    assert since == us(datetime(2026, 3, 31, 22, tzinfo=UTC))
    assert until == us(datetime(2026, 4, 30, 22, tzinfo=UTC))


@pytest.mark.parametrize("window", ["run", "total"])
def test_windows_without_an_end(window: Any) -> None:
    """A run and all time have no days to be cut by."""
    assert Budget(1, window).span(1_795_521_600_000_000) == (0, FOREVER_US)


@pytest.mark.parametrize(
    ("budget", "labels", "dimensions"),
    [
        (Budget(1), (), ()),
        (Budget(1, scope="agent"), (), ("agent",)),
        (Budget(1, "run"), (), ("run",)),
        (Budget(1, "run", scope="tool"), (), ("run", "tool")),
        (Budget(1, scope="customer"), (), ("label:customer",)),
        (Budget(1, scope="agent"), ("customer",), ("agent", "label:customer")),
        (Budget(1), ("project", "customer"), ("label:customer", "label:project")),
    ],
)
def test_whose_spending_counts(budget: Budget, labels: tuple[str, ...], dimensions: tuple[str, ...]) -> None:
    """A limit tells spending apart by what its budget and its scope name."""
    assert Limit(budget, labels).dimensions == dimensions


def test_a_budget_in_words() -> None:
    """A budget says what it is, for errors and reports."""
    assert str(Budget(5)) == "$5.00 a month"
    assert str(Budget(1234.5, "day")) == "$1,234.50 a day"
    assert str(Budget(0.000125, "total")) == "$0.000125 in all"
    assert str(Budget(0.5, "run", scope="customer")) == "$0.50 a run for each customer"
