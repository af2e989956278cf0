"""What the ledger says was spent: totals, groups, days and rows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from shared.budget import Limit
from shared.errors import InvalidRequest
from shared.internal.money import to_usd
from shared.ledger.accounts import (
    BudgetStatus,
    recent,
    statuses,
    statuses_of_all,
    stored_budgets,
    uncounted,
    with_parts,
)
from shared.ledger.schema import BUCKET_S, DIMENSIONS, SUMS, UNKNOWN_COST, attempt, event, label, rollup
from shared.ledger.store import Ledger
from shared.scope import Scope

UNALLOCATED = "(unallocated)"
_BUCKET_US = BUCKET_S * 1_000_000
_MAX_PROMPTS = 100
_FIRST_YEAR, _LAST_YEAR = 1900, 9000
_HIDDEN = frozenset({"bucket", "lease_us", "calls", "failed_calls", "unpriced_calls", "machine"})

Sums = dict[str, int]
# Attempts that make a sum something else than what calls cost. They are few, and an index finds each kind by this text.
_NOTABLE = {
    "unknown": UNKNOWN_COST,
    "lower_bound": "cost_is_lower_bound",
    "adjustment": "adjustment_kind IS NOT NULL",
}
# What is summed of each kind, beside the sums of the rollup: as `unknown_requests`, `unknown_calls` and `unknown_nano`.
_NOTED = {
    "requests": sa.func.count(),
    "calls": sa.func.coalesce(sa.func.sum(attempt.c.calls), 0),
    "nano": sa.func.coalesce(sa.func.sum(attempt.c.cost_nano), 0),
}


@dataclass(frozen=True, slots=True)
class Window:
    """A half-open time span, in microseconds since 1970, and the time zone of its days."""

    since_us: int
    until_us: int
    zone: ZoneInfo


@dataclass(frozen=True, slots=True)
class Filter:
    """Which attempts to include: those with all `labels`, and those of `conversation` unless any will do."""

    labels: Mapping[str, str] = field(default_factory=dict)
    conversation: str | None = None
    any_conversation: bool = True

    @property
    def everything(self) -> bool:
        """Whether every attempt is included."""
        return not self.labels and self.any_conversation


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
    with ledger.reading() as connection:
        rows = _sums_by(connection, span, which, DIMENSIONS)
        days = _days(_sums_by(connection, span, which, ("bucket",)), span.zone)
        labelled = _sums_by_label(connection, span, which, by) if by and by not in (*DIMENSIONS, "day") else {}
        turns = _agent_turns(connection, span, which, rows)
        notes = list(_notes(connection, span, which, by))
    groups = _groups(rows, days, by, labelled)
    _add_notes(groups, notes)
    return _as_dict(ledger, span, groups, by) | {"agent_turns": turns}


def attempt_records(
    ledger: Ledger, span: Window | None = None, which: Filter | None = None
) -> Iterator[dict[str, Any]]:
    """
    The attempts as plain dicts, oldest first, for exports.

    Raises:
        StoreError: The ledger cannot be read.
    """
    which = which or Filter()
    with ledger.reading() as connection:
        query = sa.select(attempt).where(*conditions(which)).order_by(attempt.c.ts_us, attempt.c.attempt_id)
        if span is not None:
            query = query.where(attempt.c.ts_us >= span.since_us, attempt.c.ts_us < span.until_us)
        labels = defaultdict[Any, dict[str, str]](dict)
        for row in connection.execute(sa.select(label)):
            labels[row.attempt_id][row.name] = row.value
        for mapping in connection.execution_options(yield_per=1000).execute(query).mappings():
            yield _record(dict(mapping), labels.get(mapping["attempt_id"], {}))


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
        named = {**limits, **{name: Limit(declared) for name, declared in stored_budgets(connection)}}
        return [
            (name, _forecast(connection, each, now_us))
            for name, limit in named.items()
            for each in statuses_of_all(connection, limit, now_us)
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
    calls, tokens = sa.func.sum(rollup.c.calls), sa.func.sum(rollup.c.completion_tokens)
    query = sa.select(rollup.c.tool, rollup.c.model, calls, tokens).where(rollup.c.bucket >= since_us // _BUCKET_US)
    with ledger.reading() as connection:
        rows = connection.execute(query.group_by(rollup.c.tool, rollup.c.model)).all()
    return [(tool, model, int(count), int(total) / int(count)) for tool, model, count, total in rows if count]


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


def _record(row: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    record = {name: value for name, value in row.items() if name not in _HIDDEN}
    record["time"] = datetime.fromtimestamp(record.pop("ts_us") / 1e6, UTC)
    record["cost_usd"] = to_usd(row["cost_nano"])
    record["labels"] = dict(labels)
    return record


def _sums_by(connection: Connection, span: Window, which: Filter, keys: tuple[str, ...]) -> dict[tuple[Any, ...], Sums]:
    """
    Sums by `keys`.

    Whole buckets come from the rollup; partial buckets at the window's edges, and anything filtered, from the rows.
    """
    first, last = -(-span.since_us // _BUCKET_US), span.until_us // _BUCKET_US
    found: dict[tuple[Any, ...], Sums] = defaultdict(lambda: dict.fromkeys(SUMS, 0))
    if which.everything and first < last:
        columns = [rollup.c[key] for key in keys]
        query = sa.select(*columns, *(sa.func.sum(rollup.c[name]).label(name) for name in SUMS))
        inside = (rollup.c.bucket >= first, rollup.c.bucket < last)
        _collect(found, connection, query.where(*inside).group_by(*columns), keys)
        edges = [(span.since_us, first * _BUCKET_US), (last * _BUCKET_US, span.until_us)]
    else:
        edges = [(span.since_us, span.until_us)]
    for start, end in edges:
        if start < end:
            raw: list[sa.ColumnElement[Any]] = [
                attempt.c.bucket if key == "bucket" else sa.func.coalesce(attempt.c[key], "") for key in keys
            ]
            query = _raw_sums([column.label(key) for column, key in zip(raw, keys, strict=True)], which, start, end)
            _collect(found, connection, query.group_by(*raw), keys)
    return found


def _sums_by_label(connection: Connection, span: Window, which: Filter, name: str) -> dict[tuple[Any, ...], Sums]:
    found: dict[tuple[Any, ...], Sums] = defaultdict(lambda: dict.fromkeys(SUMS, 0))
    value = sa.func.coalesce(label.c.value, "")
    query = _raw_sums([value.label("value")], which, span.since_us, span.until_us)
    own = sa.and_(label.c.attempt_id == attempt.c.attempt_id, label.c.name == name)
    query = query.select_from(attempt.outerjoin(label, own)).group_by(value)
    _collect(found, connection, query, ("value",))
    return found


def _notes(
    connection: Connection, span: Window, which: Filter, by: str | None
) -> Iterator[tuple[Mapping[str, str], Sums]]:
    """The notable attempts that the rollup does not tell from others: the groups they belong to, and their sums."""
    keys = [sa.func.coalesce(attempt.c[name], "").label(name) for name in DIMENSIONS]
    keys.append(attempt.c.bucket.label("day"))
    source: sa.FromClause = attempt
    if by and by not in (*DIMENSIONS, "day"):
        keys.append(sa.func.coalesce(label.c.value, "").label(by))
        source = attempt.outerjoin(label, sa.and_(label.c.attempt_id == attempt.c.attempt_id, label.c.name == by))
    names = [*DIMENSIONS, "day", by or ""]
    inside = (attempt.c.ts_us >= span.since_us, attempt.c.ts_us < span.until_us, *conditions(which))
    query = sa.select(*keys, *_NOTED.values()).select_from(source).where(*inside).group_by(*keys)
    for kind, condition in _NOTABLE.items():
        for row in connection.execute(query.where(sa.text(condition))):
            groups = {
                name: _day(value, span.zone) if name == "day" else value or UNALLOCATED
                for name, value in zip(names, row[: len(keys)], strict=False)
            }
            sums = zip(_NOTED, row[len(keys) :], strict=True)
            yield groups, {f"{kind}_{what}": int(value) for what, value in sums}


def _raw_sums(columns: list[Any], which: Filter, start_us: int, end_us: int) -> sa.Select[Any]:
    sums = (sa.func.coalesce(sa.func.sum(attempt.c[name]), 0).label(name) for name in SUMS)
    inside = (attempt.c.ts_us >= start_us, attempt.c.ts_us < end_us, attempt.c.status != "started")
    return sa.select(*columns, *sums).where(*inside, *conditions(which))


def conditions(which: Filter) -> list[sa.ColumnElement[bool]]:
    """The SQL conditions of a filter, for other queries of attempts."""
    # An alias, because the query may join the labels itself.
    tag = label.alias("tag")
    tagged = tag.c.attempt_id == attempt.c.attempt_id
    conditions: list[sa.ColumnElement[bool]] = [
        sa.exists().where(tagged, tag.c.name == name, tag.c.value == value) for name, value in which.labels.items()
    ]
    if not which.any_conversation:
        conditions.append(attempt.c.conversation.is_not_distinct_from(which.conversation))
        conditions.append(~sa.exists().where(tagged))
    return conditions


def _agent_turns(
    connection: Connection, span: Window, which: Filter, rows: Mapping[tuple[Any, ...], Sums]
) -> int | None:
    """Number of agents' own answered turns; None when only their tools' calls were recorded, not the turns."""
    by_agents = [(bool(tool), sums) for (_, _, tool, agent), sums in rows.items() if agent]
    turns = [sums["calls"] + sums["failed_calls"] for by_tool, sums in by_agents if not by_tool]
    if any(turns):
        return sum(sums["calls"] for by_tool, sums in by_agents if not by_tool)
    if by_agents or _agents_used_tools(connection, span, which):
        return None
    return 0


def _agents_used_tools(connection: Connection, span: Window, which: Filter) -> bool:
    inside = [event.c.agent.is_not(None), event.c.ts_us >= span.since_us, event.c.ts_us < span.until_us]
    inside += [event.c.labels[name].as_string() == value for name, value in which.labels.items()]
    if not which.any_conversation:
        inside.append(event.c.conversation.is_not_distinct_from(which.conversation))
    return connection.execute(sa.select(event.c.event_id).where(*inside).limit(1)).first() is not None


def _collect(
    found: dict[tuple[Any, ...], Sums], connection: Connection, query: sa.Select[Any], keys: tuple[str, ...]
) -> None:
    for row in connection.execute(query):
        sums = found[tuple(row[: len(keys)])]
        for name, value in zip(SUMS, row[len(keys) :], strict=True):
            sums[name] += int(value)


def _days(by_bucket: Mapping[tuple[Any, ...], Sums], zone: ZoneInfo) -> dict[tuple[Any, ...], Sums]:
    found: dict[tuple[Any, ...], Sums] = defaultdict(lambda: dict.fromkeys(SUMS, 0))
    for (bucket,), sums in sorted(by_bucket.items()):
        _add(found[(_day(bucket, zone),)], sums)
    return found


def _day(bucket: int, zone: ZoneInfo) -> str:
    return datetime.fromtimestamp(bucket * BUCKET_S, zone).date().isoformat()


def _add(into: Sums, sums: Sums) -> None:
    for name, value in sums.items():
        into[name] += value


def _no_sums() -> Sums:
    return dict.fromkeys((*SUMS, *(f"{kind}_{what}" for kind in _NOTABLE for what in _NOTED)), 0)


def _groups(
    rows: Mapping[tuple[Any, ...], Sums],
    days: Mapping[tuple[Any, ...], Sums],
    by: str | None,
    labelled: Mapping[tuple[Any, ...], Sums],
) -> dict[str, dict[str, Sums]]:
    """The sums by every dimension, by day and by the label that was asked for; "" has the total."""
    groups: dict[str, dict[str, Sums]] = {name: defaultdict(_no_sums) for name in ("", *DIMENSIONS, "day")}
    for key, sums in rows.items():
        _add(groups[""][""], sums)
        for dimension, value in zip(DIMENSIONS, key, strict=True):
            _add(groups[dimension][value or UNALLOCATED], sums)
    for (day,), sums in days.items():
        _add(groups["day"][day], sums)
    if by and by not in groups:
        groups[by] = defaultdict(_no_sums)
        for (value,), sums in labelled.items():
            _add(groups[by][value or UNALLOCATED], sums)
    return groups


def _add_notes(groups: Mapping[str, dict[str, Sums]], notes: Iterable[tuple[Mapping[str, str], Sums]]) -> None:
    """Add what the notable attempts say to the groups they belong to, and to the total."""
    for named, noted in notes:
        _add(groups[""][""], noted)
        for dimension, value in named.items():
            _add(groups[dimension][value], noted)


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
        "since": datetime.fromtimestamp(span.since_us / 1e6, span.zone).isoformat(timespec="seconds"),
        "until": datetime.fromtimestamp(span.until_us / 1e6, span.zone).isoformat(timespec="seconds"),
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
