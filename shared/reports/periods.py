"""The time that a report covers, as people say it, and the time before to compare it with."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from shared.errors import InvalidRequest
from shared.ledger import Window, window

Moment = datetime | date | str
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)
_AGO = re.compile(r"(\d{1,5})([hdw])")
_AGO_S = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
_WEEK = re.compile(r"\d{4}-W\d\d")
_MONTH = re.compile(r"\d{4}-\d\d")
_YEAR = re.compile(r"\d{4}")


def span_of(days: float = 7, *, since: Moment | None = None, until: Moment | None = None, zone: ZoneInfo) -> Window:
    """
    The time span to report on.

    Args:
        days: Days to look back from now (periods of 24 hours), when `since` is not given.

        since: The first moment, or the first of a period: today, yesterday, 2026-11-24, 2026-W48, 2026-11, 2026, or so
            long ago: 24h, 7d, 2w. A time without an offset is local to `zone`.

        until: The last moment (exclusive), or the last period (inclusive).

    Raises:
        InvalidRequest: The arguments do not form a time span.
    """
    now = datetime.now(UTC)
    first = _named(since, zone, now, end=False) if isinstance(since, str) else since
    last = _named(until, zone, now, end=True) if isinstance(until, str) else until
    return window(days, since=first, until=last, zone=zone, now=now)


def _named(text: str, zone: ZoneInfo, now: datetime, *, end: bool) -> Moment:
    """The moment or day that a text names; a text that `window` must judge stays as it is."""
    today = now.astimezone(zone).date()
    if ago := _AGO.fullmatch(text):
        return now - timedelta(seconds=int(ago[1]) * _AGO_S[ago[2]])
    if text in ("today", "yesterday"):
        return today - timedelta(days=text == "yesterday")
    try:
        if _WEEK.fullmatch(text):
            return date.fromisoformat(text) + timedelta(days=6 * end)
        if _MONTH.fullmatch(text):
            first = date.fromisoformat(f"{text}-01")
            return _months_on(first, 1) - timedelta(days=1) if end else first
        if _YEAR.fullmatch(text):
            return date.fromisoformat(f"{text}-12-31" if end else f"{text}-01-01")
        return date.fromisoformat(text) if len(text) <= 10 else datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        hint = "Give yesterday, 7d, 2026-11, 2026-11-24 or 2026-11-24T12:00, for example."
        raise InvalidRequest(f"{text[:40]!r} is not a day or a time", hint=hint) from None


def period_before(span: Window) -> Window:
    """
    The time to compare a span with: as many calendar months, or local days, or else as long, right before it.

    A span that begins with a month or a day, and ends within one, is compared with the same part of the one before.
    """
    since, until = (_moment(ts_us, span.zone) for ts_us in (span.since_us, span.until_us))
    if since.time() != datetime.min.time():
        return Window(2 * span.since_us - span.until_us, span.since_us, span.zone)
    last = _moment(span.until_us - 1, span.zone)
    if since.day == 1:
        count = (last.year - since.year) * 12 + last.month - since.month + 1
        shifted: Callable[[datetime], datetime] = lambda moment: _months_back(moment, count)  # noqa: E731
    else:
        count = (last.date() - since.date()).days + 1
        shifted = lambda moment: moment - timedelta(days=count)  # noqa: E731
    start_us = _us(shifted(since))
    return Window(start_us, max(min(_us(shifted(until)), span.since_us), start_us + 1), span.zone)


def window_text(span: Window) -> str:
    """The window in words: its days, with times where they are not whole."""
    # To the nearest second: a window until now ends a microsecond later.
    since, until = (_moment(ts_us + 500_000, span.zone) for ts_us in (span.since_us, span.until_us))
    since, until = since.replace(microsecond=0), until.replace(microsecond=0)
    midnight = datetime.min.time()
    if since.time() == until.time() == midnight:
        first, last = since.date(), (until - timedelta(days=1)).date()
        return f"{first}" if first == last else f"{first} to {last}"
    begins = f"{since:%Y-%m-%d}" if since.time() == midnight else f"{since:%Y-%m-%d %H:%M}"
    return f"{begins} to {until:%Y-%m-%d %H:%M}"


def month_of(moment: datetime) -> tuple[datetime, datetime]:
    """The first moment of a local month, and that of the next."""
    first = moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0, fold=0)
    return first, first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)


def _months_on(first: date, count: int) -> date:
    """The first day of the month so many months later."""
    months = first.year * 12 + first.month - 1 + count
    return date(months // 12, months % 12 + 1, 1)


def _months_back(moment: datetime, count: int) -> datetime:
    """The same day and time so many months earlier; where that month is shorter, its end."""
    first = _months_on(moment.date(), -count)
    end = _months_on(first, 1)
    day = moment.replace(year=first.year, month=first.month, day=1) + timedelta(days=moment.day - 1)
    return min(day, day.replace(year=end.year, month=end.month, day=1, hour=0, minute=0, second=0, microsecond=0))


def _moment(ts_us: int, zone: ZoneInfo) -> datetime:
    return (_EPOCH + ts_us * _US).astimezone(zone)


def _us(moment: datetime) -> int:
    return math.floor((moment.astimezone(UTC) - _EPOCH) / _US)
