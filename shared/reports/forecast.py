"""What a month will cost at the present rate, and the day on which a budget runs out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from shared.ledger import Filter, Ledger, Window, all_grouped, grouped_sums
from shared.reports.periods import month_of

# Complete days that the rate is taken from: two of each weekday.
_DAYS = 14
_FEWEST = 3
# Of a normal distribution, 80 % lies within so many standard deviations.
_SPREAD = 1.2816
_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Forecast:
    """
    The cost of the current month at its end, in nano-dollars: expected, and the range in which it lies 8 times of 10.

    `spent_nano` is what is known to be spent so far, and `days` is of how many complete days the rate is the mean.
    """

    spent_nano: int
    expected_nano: int
    low_nano: int
    high_nano: int
    days: int
    until: datetime


def month_forecast(ledger: Ledger, which: Filter, now: datetime) -> Forecast | None:
    """
    The forecast for the local month of `now`; None while there are fewer than three complete days to go by.

    The rate is the mean of the last 14 complete days, or of those since the first request. Unknown costs are in it no
    more than in any total.

    Raises:
        StoreError: The ledger cannot be read.
    """
    first, end = month_of(now)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    start = today - timedelta(days=_DAYS)
    zone = now.tzinfo
    [found] = all_grouped(ledger, _window(min(first, start), now), (("day",),), which)
    if found.is_incomplete:  # what was removed would look as if nothing had been spent
        return None
    by_day = {key[0]: sums["cost_nano"] for key, sums in found.sums.items()}
    spent = sum(nano for day, nano in by_day.items() if day >= f"{first:%Y-%m-%d}")
    days = [f"{start + timedelta(days=number):%Y-%m-%d}" for number in range(_DAYS)]
    if not _has_any(ledger, which, start):  # as far back as there is anything
        days = [day for day in days if day >= min(by_day, default="9999")]
    if len(days) < _FEWEST or zone is None:
        return None
    left = max((end.astimezone(UTC) - now.astimezone(UTC)).total_seconds() / _DAY_S, 0.0)
    return _forecast(spent, [by_day.get(day, 0) for day in days], left, end)


def _forecast(spent: int, daily: Sequence[int], left: float, end: datetime) -> Forecast:
    count = len(daily)
    mean = sum(daily) / count
    variance = sum((nano - mean) ** 2 for nano in daily) / (count - 1)
    spread = _SPREAD * math.sqrt(variance * (left + left**2 / count))  # of the days, and of the mean itself
    rest = max(mean, 0.0) * left
    low, high = max(rest - spread, 0.0), rest + spread
    return Forecast(spent, spent + round(rest), spent + round(low), spent + round(high), count, end)


def _has_any(ledger: Ledger, which: Filter, before: datetime) -> bool:
    return bool(grouped_sums(ledger, _window(before - timedelta(days=_DAYS), before), (), which))


def _window(since: datetime, until: datetime) -> Window:
    return Window(int(since.timestamp() * 1e6), int(until.timestamp() * 1e6) + 1, until.tzinfo)  # type: ignore[arg-type]


def runs_out(budget: Mapping[str, Any], now: datetime) -> datetime | None:
    """When a budget is used up at the rate of the last day; None if not before its window ends, or by nothing spent."""
    if budget["left"] <= 0:
        return now
    if budget["lasts_s"] is None or budget["lasts_s"] > 36_500 * _DAY_S:
        return None
    when = now + timedelta(seconds=budget["lasts_s"])
    ends = budget["until"]
    return None if ends is not None and when >= datetime.fromisoformat(ends) else when
