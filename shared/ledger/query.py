"""What the ledger says was spent: totals, groups, days and rows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from shared.budget import Limit
from shared.errors import InvalidRequest
from shared.internal.money import to_usd
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
from shared.ledger.schema import BUCKET_S, DIMENSIONS, VALUES, attempt, event, label
from shared.ledger.store import Ledger
from shared.scope import Scope

UNALLOCATED = "(unallocated)"
_BUCKET_US = BUCKET_S * 1_000_000
_FUTURE_US = 2**52 // _BUCKET_US * _BUCKET_US
_MAX_PROMPTS = 100
_FIRST_YEAR, _LAST_YEAR = 1900, 9000
_HIDDEN = frozenset({"bucket", "lease_us", "calls", "failed_calls", "unpriced_calls", "machine"})

# Attempts read in one transaction, so that no writer waits for long.
_PAGE = 5000

Sums = dict[str, int]
Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open time span, in microseconds since 1970, and the time zone of its days."""

    since_us: int
    until_us: int
    zone: ZoneInfo

    @property
    def ends(self) -> tuple[str, str]:
        """Both ends in its time zone, to the second."""
        first, last = (datetime.fromtimestamp(ts_us / 1e6, self.zone) for ts_us in (self.since_us, self.until_us))
        return first.isoformat(timespec="seconds"), last.isoformat(timespec="seconds")


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


def sum_costs(ledger: Ledger, span: Window, which: Filter | None = None, by: str | None = None) -> dict[str, Any]:
    """
    What was spent in a window.

    Args:
        by: One of model, provider, tool, agent, day, or the name of a label; adds "groups".

    Returns:
        The dict that `get_llm_costs` documents.

    Raises:
        StoreError: The ledger cannot be read.
    """
    which = which or Filter()
    stored_sums.catch_up(ledger)
    found = _Found()
    with ledger.reading() as connection:
        how = _plan(connection, span, which, by)
        if how.summed:
            _add_sums(connection, found, how, which, by)
        rest = _read_rows(connection, found, how.rows, which, by)
        events = _agents_used_tools(connection, span, which)
    while rest:
        with ledger.reading() as connection:
            rest = _read_rows(connection, found, rest, which, by)
    groups = _groups(found, span.zone, by)
    more = {
        "agent_turns": _agent_turns(found.by_dimensions, which, agents_used_tools=events),
        "rows_read": _rows_read(how, which, by),
    }
    return _as_dict(ledger, span, groups, by) | more


def attempt_records(
    ledger: Ledger, span: Window | None = None, which: Filter | None = None
) -> Iterator[dict[str, Any]]:
    """
    The attempts as plain dicts, oldest first, for exports.

    Raises:
        StoreError: The ledger cannot be read.
    """
    query = sa.select(*(attempt.c[name] for name in _EXPORTED_COLUMNS)).where(*conditions(which or Filter()))
    query = query.order_by(attempt.c.ts_us, attempt.c.attempt_id).limit(_EXPORTED)
    if span is not None:
        query = query.where(attempt.c.ts_us < span.until_us)
    after = sa.true() if span is None else attempt.c.ts_us >= span.since_us
    is_more = True
    while is_more:
        with ledger.reading() as connection:
            rows = connection.execute(query.where(after)).all()
            labels = _labels_of(connection, [row[1] for row in rows])
        for row in rows:
            yield _record(row, labels)
        is_more = len(rows) == _EXPORTED
        if is_more:
            ts_us, attempt_id = rows[-1][:2]
            # The first condition says the same to SQLite, which finds the place by the index of it.
            key = sa.tuple_(attempt.c.ts_us, attempt.c.attempt_id) > sa.tuple_(ts_us, attempt_id)
            after = sa.and_(attempt.c.ts_us >= ts_us, key)


# Attempts exported from one read, which no writer waits for long.
_EXPORTED = 2000
_EXPORTED_COLUMNS = ("ts_us", *(name for name in attempt.c.keys() if name not in {*_HIDDEN, "ts_us"}))  # noqa: SIM118
_COST = _EXPORTED_COLUMNS.index("cost_nano")


def _labels_of(connection: Connection, attempt_ids: Sequence[Any]) -> dict[Any, dict[str, str]]:
    """The labels of a page of attempts."""
    found: dict[Any, dict[str, str]] = {}
    for row in connection.execute(sa.select(label).where(label.c.attempt_id.in_(attempt_ids))) if attempt_ids else ():
        found.setdefault(row[0], {})[row[1]] = row[2]
    return found


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
    found: dict[Key, Sums] = defaultdict(lambda: dict.fromkeys(VALUES, 0))
    with ledger.reading() as connection:
        how = stored_sums.plan(connection, since_us, _FUTURE_US, [everything := stored_sums.Owner()])
        for read in (stored_sums.read, stored_sums.left):
            for key, numbers in read(connection, how, everything, ("tool", "model")):
                _add(found[key], numbers)
    answered = ((tool, model, sums["calls"], sums["completion_tokens"]) for (tool, model), sums in found.items())
    return [(tool, model, calls, tokens / calls) for tool, model, calls, tokens in answered if calls]


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


def _record(row: Sequence[Any], labels: Mapping[Any, dict[str, str]]) -> dict[str, Any]:
    record: dict[str, Any] = dict(zip(_EXPORTED_COLUMNS[1:], row[1:], strict=True))
    record["time"] = datetime.fromtimestamp(row[0] / 1e6, UTC)
    record["cost_usd"] = to_usd(row[_COST])
    record["labels"] = labels.get(row[1], {})
    return record


@dataclass(slots=True)
class _Found:
    """Sums by dimensions, by the second that a quarter or a longer time begins, and by the value of a label."""

    by_dimensions: dict[Key, Sums] = field(default_factory=lambda: defaultdict(_no_sums))
    by_start: dict[int, Sums] = field(default_factory=lambda: defaultdict(_no_sums))
    by_value: dict[str, Sums] = field(default_factory=lambda: defaultdict(_no_sums))


def _is_label(by: str | None) -> bool:
    return bool(by) and by not in (*DIMENSIONS, "day")


def _plan(connection: Connection, span: Window, which: Filter, by: str | None) -> stored_sums.Plan:
    """How to answer: from sums where there are any, else from rows."""
    owners = [] if which.owner is None else [which.owner]
    if by and _is_label(by) and list(which.labels) != [by]:
        if owners != [stored_sums.Owner()]:  # there are no sums of pairs of labels
            owners = []
        else:
            owners.append(stored_sums.Owner.of_label(by))
    if not owners:
        return stored_sums.Plan((), ((span.since_us, span.until_us),))
    return stored_sums.plan(connection, span.since_us, span.until_us, owners, span.zone)


def _rows_read(how: stored_sums.Plan, which: Filter, by: str | None) -> str | None:
    """Why a report has read all rows of a time, and not only those of the window's ends; None if it has not."""
    if how.reason or how.summed:
        return how.reason
    is_pair = len(which.labels) + (_is_label(by) and by not in which.labels) > 1
    return "there are no sums of pairs of labels" if is_pair else None


def _add_sums(connection: Connection, found: _Found, how: stored_sums.Plan, which: Filter, by: str | None) -> None:
    """What the sums have, and what is left to fold into them."""
    owner = which.owner
    assert owner is not None, "there are sums of what the filter includes"  # noqa: S101
    for key, numbers in stored_sums.read(connection, how, owner, DIMENSIONS):
        if _includes(which, key):
            _add(found.by_dimensions[key], numbers)
    timed = (*DIMENSIONS, "start") if which.columns else ("start",)
    for key, numbers in stored_sums.read(connection, how, owner, timed, split=int(len(timed) > 1)):
        if _includes(which, key):
            _add(found.by_start[key[-1]], numbers)
    for left, numbers in stored_sums.left(connection, how, owner, (*DIMENSIONS, "bucket")):
        if _includes(which, left):
            _add(found.by_dimensions[left[:-1]], numbers)
            _add(found.by_start[left[-1] * BUCKET_S], numbers)
    if by and _is_label(by):
        values = stored_sums.Owner.of_label(by, owner.value if owner.owner else None)
        for value, numbers in stored_sums.read(connection, how, values, ("value",), split=0):
            _add(found.by_value[value[0]], numbers)
        for value, numbers in stored_sums.left(connection, how, values, ("value",)):
            _add(found.by_value[value[0]], numbers)


def _includes(which: Filter, key: tuple[Any, ...]) -> bool:
    """Whether the filter includes a sum, whose key begins with DIMENSIONS."""
    return all(key[DIMENSIONS.index(name)] == value for name, value in which.columns.items())


def _read_rows(
    connection: Connection, found: _Found, ranges: Sequence[stored_sums.Range], which: Filter, by: str | None
) -> list[stored_sums.Range]:
    """
    Add attempts from their rows, at most a page of them.

    Returns:
        What is left to read.
    """
    now, rest = paged(connection, ranges)
    for inside in now:
        _add_rows(connection, found, inside, which, by)
    return rest


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


def _add_rows(connection: Connection, found: _Found, inside: stored_sums.Range, which: Filter, by: str | None) -> None:
    keys: list[Any] = [sa.func.coalesce(attempt.c[name], "").label(name) for name in DIMENSIONS]
    keys.append(attempt.c.bucket.label("bucket"))
    source: sa.FromClause = attempt
    if by and _is_label(by):
        keys.append(sa.func.coalesce(label.c.value, "").label("by_value"))
        source = attempt.outerjoin(label, sa.and_(label.c.attempt_id == attempt.c.attempt_id, label.c.name == by))
    sums = stored_sums.expressions(connection.dialect.name)
    values: list[Any] = [sa.func.sum(sa.literal_column(sums[name])).label(f"sum_{name}") for name in VALUES]
    query = (
        sa.select(*keys, *values)
        .select_from(source)
        .where(attempt.c.ts_us >= inside[0], attempt.c.ts_us < inside[1], attempt.c.status != "started")
        .where(*conditions(which))
        .group_by(*keys)
    )
    for row in connection.execute(query):
        numbers = {name: int(value) for name, value in zip(VALUES, row[len(keys) :], strict=True) if value}
        _add(found.by_dimensions[tuple(row[: len(DIMENSIONS)])], numbers)
        _add(found.by_start[row[len(DIMENSIONS)] * BUCKET_S], numbers)
        if len(keys) > len(DIMENSIONS) + 1 and row[len(keys) - 1]:
            _add(found.by_value[row[len(keys) - 1]], numbers)


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


def _agent_turns(found: Mapping[Key, Sums], which: Filter, *, agents_used_tools: bool) -> int | None:
    """Number of agents' own answered turns; None when only their tools' calls were recorded, not the turns."""
    by_agents = [(bool(tool), sums) for (_, _, tool, agent), sums in found.items() if agent and sums["requests"]]
    turns = [sums for by_tool, sums in by_agents if not by_tool]
    if any(sums["calls"] + sums["failed_calls"] for sums in turns):
        return sum(sums["calls"] for sums in turns)
    if which.columns:
        return 0  # the filter has left the turns out, or there are none
    return None if by_agents or agents_used_tools else 0


def _agents_used_tools(connection: Connection, span: Window, which: Filter) -> bool:
    inside = [event.c.agent.is_not(None), event.c.ts_us >= span.since_us, event.c.ts_us < span.until_us]
    inside += [event.c.labels[name].as_string() == value for name, value in which.labels.items()]
    if not which.any_conversation:
        inside.append(event.c.conversation.is_not_distinct_from(which.conversation))
    return connection.execute(sa.select(event.c.event_id).where(*inside).limit(1)).first() is not None


def _day(start_s: int, zone: ZoneInfo) -> str:
    return datetime.fromtimestamp(start_s, zone).date().isoformat()


def _add(into: Sums, sums: Sums) -> None:
    for name, value in sums.items():
        into[name] += value


def _no_sums() -> Sums:
    return dict.fromkeys(VALUES, 0)


def _groups(found: _Found, zone: ZoneInfo, by: str | None) -> dict[str, dict[str, Sums]]:
    """The sums by every dimension, by day and by the label that was asked for; "" has the total."""
    groups: dict[str, dict[str, Sums]] = {name: defaultdict(_no_sums) for name in ("", *DIMENSIONS, "day")}
    total = groups[""][""]
    for key, sums in found.by_dimensions.items():
        _add(total, sums)
        for dimension, value in zip(DIMENSIONS, key, strict=True):
            _add(groups[dimension][value or UNALLOCATED], sums)
    for start, sums in sorted(found.by_start.items()):
        _add(groups["day"][_day(start, zone)], sums)
    if by and _is_label(by):
        groups[by] = defaultdict(_no_sums)
        rest = dict(total)
        for value, sums in found.by_value.items():
            _add(groups[by][value or UNALLOCATED], sums)
            rest = {name: rest[name] - sums[name] for name in VALUES}
        _add(groups[by][UNALLOCATED], rest)
    # What was taken back, as a correction to another model, leaves nothing where it was.
    return {
        name: {value: sums for value, sums in group.items() if sums["requests"] or not name}
        for name, group in groups.items()
    }


def _as_dict(ledger: Ledger, span: Window, groups: Mapping[str, Mapping[str, Sums]], by: str | None) -> dict[str, Any]:
    total = groups[""][""]
    result: dict[str, Any] = {
        "total_cost": to_usd(total["cost_nano"]),
        "total_cost_nano": total["cost_nano"],
        "total_tokens": total["prompt_tokens"] + total["completion_tokens"],
        "total_calls": total["calls"],
        "avg_cost_per_call": _average(total),
        "adjustments": to_usd(total["adjustment_nano"]),
        "failed_calls": total["failed_calls"],
        "unpriced_calls": total["unpriced_calls"],
        "cost_is_lower_bound": bool(total["lower_bound_requests"]),
        "lower_bound_requests": total["lower_bound_requests"],
        "unknown_cost_requests": total["unknown_requests"],
        "unknown_cost_by_provider": _counts(groups["provider"], "unknown_requests"),
        "unknown_cost_by_model": _counts(groups["model"], "unknown_requests"),
        "lower_bound_by_provider": _counts(groups["provider"], "lower_bound_requests"),
        "lower_bound_by_model": _counts(groups["model"], "lower_bound_requests"),
        "cost_by_provider": _most_expensive_first(groups["provider"]),
        "cost_by_model": _most_expensive_first(groups["model"]),
        "calls_by_model": {name: sums["calls"] for name, sums in _sorted(groups["model"])},
        "avg_cost_by_model": {name: _average(sums) for name, sums in _sorted(groups["model"])},
        "cost_by_tool": _most_expensive_first(groups["tool"]),
        "cost_by_agent": _most_expensive_first(groups["agent"]),
        "cost_by_day": {day: _cost(sums) for day, sums in groups["day"].items()},
        "image_tokens_saved": total["image_tokens_saved"],
        "image_cost_saved": to_usd(total["image_nano_saved"]),
        **dict(zip(("since", "until"), span.ends, strict=True)),
        "timezone": str(span.zone),
        "store": ledger.name,
        "waiting_records": ledger.waiting,
    }
    if by:
        ordered = groups["day"].items() if by == "day" else _sorted(groups[by])
        result["by"] = by
        result["groups"] = [_group(name, sums) for name, sums in ordered]
    return result


def _group(name: str, sums: Sums) -> dict[str, Any]:
    return {
        "name": name,
        "cost": _cost(sums),
        "cost_nano": _known_nano(sums),
        "avg_cost_per_call": _average(sums),
        "tokens": sums["prompt_tokens"] + sums["completion_tokens"],
        "calls": sums["calls"],
        "failed_calls": sums["failed_calls"],
        "unpriced_calls": sums["unpriced_calls"],
        "cost_is_lower_bound": bool(sums["lower_bound_requests"]),
        "unknown_cost_requests": sums["unknown_requests"],
    }


def _known_nano(sums: Sums) -> int | None:
    """The sum of the known costs; None if there is none, and something that was charged is unknown."""
    is_part = sums["unknown_requests"] or sums["lower_bound_requests"]
    return None if is_part and not sums["cost_nano"] else sums["cost_nano"]


def _cost(sums: Sums) -> float:
    return to_usd(_known_nano(sums))


def _average(sums: Sums) -> float:
    """Average cost of the calls whose cost is known, in US$: NaN if there are only others, 0 without calls."""
    known = sums["calls"] - sums["unknown_calls"]
    if _known_nano(sums) is None or (known <= 0 and sums["unknown_requests"]):
        return math.nan
    if known <= 0:
        return 0.0
    return to_usd(sums["cost_nano"] - sums["adjustment_nano"]) / known


def _counts(groups: Mapping[str, Sums], name: str) -> dict[str, int]:
    """The number by group, only for groups that have any."""
    return {group: sums[name] for group, sums in _sorted(groups) if sums[name]}


def _sorted(groups: Mapping[str, Sums]) -> list[tuple[str, Sums]]:
    return sorted(groups.items(), key=lambda item: (-item[1]["cost_nano"], -item[1]["calls"], item[0]))


def _most_expensive_first(groups: Mapping[str, Sums]) -> dict[str, float]:
    shown = ("calls", "cost_nano", "unknown_requests")
    return {name: _cost(sums) for name, sums in _sorted(groups) if any(sums[each] for each in shown)}


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
