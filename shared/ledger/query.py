"""What reports read beside sums: windows, filters, prompts, budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import chain
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from shared.budget import Limit
from shared.errors import InvalidRequest
from shared.ledger import sums as stored_sums
from shared.ledger.accounts import (
    BudgetStatus,
    applying,
    as_attempt,
    recent,
    statuses,
    statuses_of_all,
    stored_budgets,
    uncounted,
    with_parts,
)
from shared.ledger.schema import BUCKET_S, attempt, event, label
from shared.ledger.store import Ledger
from shared.scope import Scope

UNALLOCATED = "(unallocated)"
_BUCKET_US = BUCKET_S * 1_000_000
_FUTURE_US = 2**52 // _BUCKET_US * _BUCKET_US
_MAX_PROMPTS = 100
_FIRST_YEAR, _LAST_YEAR = 1900, 9000

# Attempts read in one transaction, so that no writer waits for long.
_PAGE = 5000


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open time span, in microseconds since 1970, and the time zone of its days."""

    since_us: int
    until_us: int
    zone: ZoneInfo

    @property
    def ends(self) -> tuple[str, str]:
        """Both ends in its time zone, to the second."""
        return self.moment(self.since_us), self.moment(self.until_us)

    def moment(self, ts_us: int) -> str:
        """A time in its time zone, to the second."""
        return datetime.fromtimestamp(ts_us / 1e6, self.zone).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class Filter:
    """
    Which attempts to include: those with all `labels`, and those of `conversation` unless any will do.

    `columns` are values of what sums are by: provider, model, tool and agent.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    conversation: str | None = None
    any_conversation: bool = True
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def owner(self) -> stored_sums.Owner | None:
        """Whose sums these are; None when there are no sums of them."""
        if self.any_conversation and len(self.labels) <= 1:
            return next((stored_sums.Owner.of_label(*pair) for pair in self.labels.items()), stored_sums.Owner())
        is_of_nobody = not self.labels and not self.any_conversation and self.conversation is None
        return stored_sums.UNLABELLED if is_of_nobody else None


def own_filter(inside: Scope) -> Filter:
    """What an agent may see: the costs of its scope's labels, else of its conversation."""
    return Filter(
        labels=inside.labels,
        conversation=inside.conversation,
        any_conversation=bool(inside.labels) or not inside.from_agent,
    )


@dataclass(frozen=True, slots=True)
class BudgetForecast:
    """
    A budget's status, and the seconds that the rest lasts at the current rate; None when nothing was spent.

    `uncounted_requests` have an unknown cost and reserve nothing, so that the status leaves them out.
    """

    status: BudgetStatus
    lasts_s: float | None
    uncounted_requests: int = 0


def window(
    days: float = 7,
    *,
    since: datetime | date | str | None = None,
    until: datetime | date | str | None = None,
    zone: ZoneInfo,
    now: datetime | None = None,
) -> Window:
    """
    The time span to report on.

    Args:
        days: Days to look back from now (periods of 24 hours), when `since` is not given.

        since: First moment or day. A time without an offset is local to `zone`.

        until: Last moment (exclusive), or last day (inclusive).

    Raises:
        InvalidRequest: The arguments do not form a time span.
    """
    now = now or datetime.now(UTC)
    if since is None and (not math.isfinite(days) or not 0 < days <= 36_600):
        raise InvalidRequest("days must be more than 0 and at most 36,600", hint="Give days=7, for example.")
    end = _moment(until, zone, end=True) if until is not None else now + timedelta(microseconds=1)
    start = _moment(since, zone, end=False) if since is not None else end - timedelta(days=days)
    if start >= end:
        raise InvalidRequest("since must be before until", hint="Give since=2026-11-01, for example.")
    return Window(_us(start), _us(end), zone)


def budget_forecasts(
    ledger: Ledger, limits: Sequence[Limit], row: Mapping[str, Any], labels: Mapping[str, str]
) -> list[BudgetForecast]:
    """
    A forecast for each limit that would apply to an attempt such as `row`, including those stored in the ledger.

    Raises:
        StoreError: The ledger cannot be read.
    """
    with ledger.reading() as connection:
        found = statuses(connection, row, labels, limits)
        return [_forecast(connection, each, row["ts_us"]) for each in found]


def all_budget_forecasts(ledger: Ledger, limits: Mapping[str, Limit], now_us: int) -> list[tuple[str, BudgetForecast]]:
    """
    A forecast for every limit and each group that it counts, with its name, including limits stored in the ledger.

    Raises:
        StoreError: The ledger cannot be read.
    """
    with ledger.reading() as connection:
        kept = {name: Limit(declared) for name, declared in stored_budgets(connection)}
        return [
            (name, _forecast(connection, each, now_us))
            for place in (limits, kept)
            for name, limit in place.items()
            for each in statuses_of_all(connection, limit, now_us)
            if limit in applying(place.values(), *as_attempt(each))
        ]


def _forecast(connection: Connection, status: BudgetStatus, now_us: int) -> BudgetForecast:
    lasts_s = _lasts_s(status, *recent(connection, status, now_us))
    return BudgetForecast(with_parts(connection, status), lasts_s, uncounted(connection, status))


def _lasts_s(status: BudgetStatus, spent_nano: int, elapsed_us: int) -> float | None:
    if spent_nano <= 0 or not elapsed_us:
        return None
    return status.left_nano * elapsed_us / spent_nano / 1e6


def average_output(ledger: Ledger, model: str, since_us: int) -> int | None:
    """
    Average number of output tokens in a model's answers since a moment; None when there were none.

    Raises:
        StoreError: The ledger cannot be read.
    """
    query = sa.select(sa.func.avg(attempt.c.completion_tokens)).where(
        attempt.c.ts_us >= since_us, attempt.c.model == model, attempt.c.status == "ok"
    )
    with ledger.reading() as connection:
        found = connection.scalar(query)
    return None if found is None else round(found)


def average_outputs(ledger: Ledger, since_us: int) -> list[tuple[str, str, int, float]]:
    """
    By tool ("" for none) and model: the number of answered calls since a moment, and their mean output tokens.

    Raises:
        StoreError: The ledger cannot be read.
    """
    since_us = since_us // _BUCKET_US * _BUCKET_US
    found: dict[tuple[str, str], tuple[int, int]] = {}
    with ledger.reading() as connection:
        how = stored_sums.plan(connection, since_us, _FUTURE_US, [everything := stored_sums.Owner()])
        of = (connection, how, everything, ("tool", "model"), ("calls", "completion_tokens"))
        for (tool, model), more in chain(stored_sums.read(*of), stored_sums.left(*of)):
            calls, tokens = found.get((tool, model), (0, 0))
            found[tool, model] = calls + more[0], tokens + more[1]
    return [(tool, model, calls, tokens / calls) for (tool, model), (calls, tokens) in found.items() if calls]


@dataclass(frozen=True, slots=True)
class RecentPrompt:
    """The length of a prompt sent a moment ago, in characters, that of its instructions, and what its cache did."""

    conversation: str | None
    run: str | None
    head: int
    whole: int
    breakpoints: int
    cached_tokens: int | None


def recent_prompts(
    ledger: Ledger, inside: Scope, model: str, key_alias: str | None, since_us: int
) -> list[RecentPrompt]:
    """
    The prompts of the scope's agent, labels and key for a model since a moment, the newest first.

    Raises:
        StoreError: The ledger cannot be read.
    """
    columns = (attempt.c.conversation, attempt.c.run, attempt.c.metadata, attempt.c.cached_tokens)
    query = sa.select(*columns).where(
        attempt.c.ts_us > since_us,
        attempt.c.model == model,
        attempt.c.status == "ok",
        attempt.c.agent.is_not_distinct_from(inside.agent),
        attempt.c.tool.is_not_distinct_from(inside.tool),
        attempt.c.key_alias.is_not_distinct_from(key_alias),
        *conditions(Filter(labels=inside.labels)),
    )
    with ledger.reading() as connection:
        rows = connection.execute(query.order_by(attempt.c.ts_us.desc()).limit(_MAX_PROMPTS)).all()
    return [
        RecentPrompt(
            conversation, run, metadata["prompt_chars"][0], metadata["prompt_chars"][1], metadata["breakpoints"], cached
        )
        for conversation, run, metadata, cached in rows
        if metadata and "prompt_chars" in metadata
    ]


def agents_used_tools(ledger: Ledger, span: Window, which: Filter) -> bool:
    """
    Whether agents used tools in a window, according to the events.

    Raises:
        StoreError: The ledger cannot be read.
    """
    inside = [event.c.agent.is_not(None), event.c.ts_us >= span.since_us, event.c.ts_us < span.until_us]
    inside += [event.c.labels[name].as_string() == value for name, value in which.labels.items()]
    if not which.any_conversation:
        inside.append(event.c.conversation.is_not_distinct_from(which.conversation))
    with ledger.reading() as connection:
        return connection.scalar(sa.select(event.c.event_id).where(*inside).limit(1)) is not None


def paged(
    connection: Connection, ranges: Sequence[stored_sums.Range]
) -> tuple[list[stored_sums.Range], list[stored_sums.Range]]:
    """The first of some ranges, as many as have a page of attempts, and what is left of them, in microseconds."""
    now, rest, room = [], list(ranges), _PAGE
    while rest and room:
        since_us, until_us = rest.pop(0)
        inside = (attempt.c.ts_us >= since_us, attempt.c.ts_us < until_us)
        end = connection.scalar(
            sa.select(attempt.c.ts_us).where(*inside).order_by(attempt.c.ts_us).offset(room).limit(1)
        )
        if end is not None:
            room = 0
            end = max(end, since_us + 1)
            rest.insert(0, (end, until_us))
        now.append((since_us, until_us if end is None else end))
    return now, [each for each in rest if each[0] < each[1]]


def conditions(which: Filter) -> list[sa.ColumnElement[bool]]:
    """The SQL conditions of a filter, for other queries of attempts."""
    # An alias, because the query may join the labels itself.
    tag = label.alias("tag")
    tagged = tag.c.attempt_id == attempt.c.attempt_id
    conditions: list[sa.ColumnElement[bool]] = [
        sa.exists().where(tagged, tag.c.name == name, tag.c.value == value) for name, value in which.labels.items()
    ]
    conditions += [attempt.c[name] == value for name, value in which.columns.items()]
    if not which.any_conversation:
        conditions.append(attempt.c.conversation.is_not_distinct_from(which.conversation))
        conditions.append(~sa.exists().where(tagged))
    return conditions


def _moment(value: datetime | date | str, zone: ZoneInfo, *, end: bool) -> datetime:
    if isinstance(value, str):
        value = _parse(value)
    if not _FIRST_YEAR <= value.year <= _LAST_YEAR:
        raise InvalidRequest(f"The year must be {_FIRST_YEAR} to {_LAST_YEAR}", hint="Give 2026-11-24, for example.")
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=zone)
    day = value + timedelta(days=1) if end else value
    return datetime(day.year, day.month, day.day, tzinfo=zone)


def _parse(text: str) -> datetime | date:
    try:
        return date.fromisoformat(text) if len(text) <= 10 else datetime.fromisoformat(text)
    except ValueError:
        hint = "Give 2026-11-24 or 2026-11-24T12:00, for example."
        raise InvalidRequest(f"{text[:40]!r} is not a day or a time", hint=hint) from None


def _us(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
