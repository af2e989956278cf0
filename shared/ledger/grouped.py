"""Sums by any dimensions: the columns of the running sums, a grain of time, and labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, timezone
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from shared.ledger.query import Filter, Window, conditions
from shared.ledger.schema import BUCKET_S, DIMENSIONS, SUMS, UNKNOWN_COST, attempt, label, rollup
from shared.ledger.store import Ledger

GRAINS = ("hour", "day", "week", "month")
_BUCKET_US = BUCKET_S * 1_000_000
_STEP = timedelta(hours=6)  # no zone changes its offset twice in this time
# Attempts that a sum must tell from others, as their indexes have them, and what is counted of each kind.
_NOTABLE = {
    "unknown": UNKNOWN_COST,
    "lower_bound": "cost_is_lower_bound",
    "adjustment": "adjustment_kind IS NOT NULL",
}
_NOTED = ("requests", "calls", "nano")
FIGURES = (*SUMS, *(f"{kind}_{what}" for kind in _NOTABLE for what in _NOTED))

Key = tuple[str, ...]
Sums = dict[str, int]


def grouped_sums(ledger: Ledger, span: Window, keys: Sequence[str], which: Filter | None = None) -> dict[Key, Sums]:
    """
    What was spent in a window, by `keys`.

    Args:
        keys: Any of provider, model, tool, agent, names of labels, and hour, day, week or month in the window's zone.

    Returns:
        By the values of the keys ("" where an attempt has none; times as 2026-11-24T13:00+01:00, 2026-11-24, 2026-W48
        and 2026-11), the sums of FIGURES: whole counts, nano-dollars and microseconds.

    Raises:
        StoreError: The ledger cannot be read.
    """
    which = which or Filter()
    found: dict[Key, Sums] = defaultdict(lambda: dict.fromkeys(FIGURES, 0))
    with ledger.reading() as connection:
        for start_us, end_us, offset_s in _parts(connection, span, timed=any(key in GRAINS for key in keys)):
            for values, sums in _part(connection, start_us, end_us, offset_s, keys, which):
                into = found[tuple(_value(key, value, offset_s) for key, value in zip(keys, values, strict=True))]
                for name, number in sums.items():
                    into[name] += int(number or 0)
    return dict(found)


def label_names(ledger: Ledger, which: Filter | None = None) -> list[str]:
    """
    The names of the labels that attempts have.

    Raises:
        StoreError: The ledger cannot be read.
    """
    which = which or Filter()
    with ledger.reading() as connection:
        if not which.everything:
            inside = sa.select(attempt.c.attempt_id).where(*conditions(which))
            query = sa.select(label.c.name).where(label.c.attempt_id.in_(inside)).distinct().order_by(label.c.name)
            return list(connection.scalars(query))
        found: list[str] = []
        # One look into the index for each name, instead of one at each label.
        query = sa.select(sa.func.min(label.c.name))
        while name := connection.scalar(query.where(label.c.name > found[-1]) if found else query):
            found.append(name)
        return found


def is_empty(ledger: Ledger) -> bool:
    """Whether the ledger has no attempt."""
    with ledger.reading() as connection:
        return connection.scalar(sa.select(attempt.c.attempt_id).limit(1)) is None


def _parts(connection: Connection, span: Window, *, timed: bool) -> Iterator[tuple[int, int, int]]:
    """The window, cut where its zone changes its offset: start, end and offset in seconds."""
    inside = (attempt.c.ts_us >= span.since_us, attempt.c.ts_us < span.until_us)
    ends = (sa.select(end(attempt.c.ts_us)).where(*inside) for end in (sa.func.min, sa.func.max))
    first, last = map(connection.scalar, ends)
    if first is None or last is None:
        return
    if not timed:
        yield span.since_us, span.until_us, 0
        return
    start_us = max(span.since_us, first - first % _BUCKET_US)
    end_us = min(span.until_us, last - last % _BUCKET_US + _BUCKET_US)
    for cut_us in [*_changes(start_us, end_us, span.zone), end_us]:
        yield start_us, cut_us, _offset_s(start_us, span.zone)
        start_us = cut_us


def _changes(start_us: int, end_us: int, zone: ZoneInfo) -> Iterator[int]:
    """The buckets at which the zone's offset changes."""
    step = int(_STEP.total_seconds()) * 1_000_000
    for low in range(start_us, end_us, step):
        high = min(low + step, end_us)
        if _offset_s(low, zone) != _offset_s(high - 1, zone):
            starts = range((low // _BUCKET_US + 1) * _BUCKET_US, high + _BUCKET_US, _BUCKET_US)
            yield next(each for each in starts if _offset_s(each, zone) != _offset_s(low, zone))


def _offset_s(ts_us: int, zone: ZoneInfo) -> int:
    offset = datetime.fromtimestamp(ts_us // 1_000_000, zone).utcoffset()
    return int((offset or timedelta()).total_seconds())


def _part(
    connection: Connection, start_us: int, end_us: int, offset_s: int, keys: Sequence[str], which: Filter
) -> Iterator[tuple[Sequence[Any], Sums]]:
    """The sums of a part: whole buckets from the rollup where it can answer, the rest from the rows."""
    first, last = -(-start_us // _BUCKET_US), end_us // _BUCKET_US
    rows = [(start_us, end_us)]
    if which.in_rollup and first < last and all(key in (*DIMENSIONS, *GRAINS) for key in keys):
        columns = _columns(rollup, keys, offset_s)
        query = sa.select(*columns, *(sa.func.sum(rollup.c[name]) for name in SUMS))
        own = [rollup.c[name] == value for name, value in which.columns.items()]
        query = query.where(rollup.c.bucket >= first, rollup.c.bucket < last, *own).group_by(*columns)
        yield from _read(connection, query, keys, SUMS)
        rows = [(start_us, first * _BUCKET_US), (last * _BUCKET_US, end_us)]
    columns = _columns(attempt, keys, offset_s)
    source = _with_labels(keys)
    for since_us, until_us in rows:
        if since_us < until_us:
            inside = (attempt.c.ts_us >= since_us, attempt.c.ts_us < until_us, attempt.c.status != "started")
            query = sa.select(*columns, *(sa.func.sum(attempt.c[name]) for name in SUMS)).select_from(source)
            yield from _read(connection, query.where(*inside, *conditions(which)).group_by(*columns), keys, SUMS)
    noted = (sa.func.count(), sa.func.sum(attempt.c.calls), sa.func.sum(attempt.c.cost_nano))
    inside = (attempt.c.ts_us >= start_us, attempt.c.ts_us < end_us, attempt.c.status != "started")
    query = sa.select(*columns, *noted).select_from(source).where(*inside, *conditions(which)).group_by(*columns)
    for kind, condition in _NOTABLE.items():
        names = [f"{kind}_{what}" for what in _NOTED]
        yield from _read(connection, query.where(sa.text(condition)), keys, names)


def _columns(table: sa.Table, keys: Sequence[str], offset_s: int) -> list[sa.Label[Any]]:
    """The keys as columns with names, which the grouping refers to."""
    found: list[sa.ColumnElement[Any]] = []
    for place, key in enumerate(keys):
        if key in GRAINS:
            local_s = sa.cast(table.c.bucket, sa.BigInteger) * BUCKET_S + offset_s
            found.append(local_s // _slot_s(key))
        else:
            found.append(sa.func.coalesce(table.c[key] if key in DIMENSIONS else _label(place).c.value, ""))
    return [column.label(f"k{place}") for place, column in enumerate(found)]


def _with_labels(keys: Sequence[str]) -> sa.FromClause:
    """The attempts, each with its value of every label among the keys."""
    source: sa.FromClause = attempt
    for place, key in enumerate(keys):
        if key not in (*DIMENSIONS, *GRAINS):
            own = _label(place)
            source = source.outerjoin(own, sa.and_(own.c.attempt_id == attempt.c.attempt_id, own.c.name == key))
    return source


@cache
def _label(place: int) -> sa.FromClause:
    return label.alias(f"l{place}")


def _read(
    connection: Connection, query: sa.Select[Any], keys: Sequence[str], names: Sequence[str]
) -> Iterator[tuple[Sequence[Any], Sums]]:
    for row in connection.execute(query):
        yield row[: len(keys)], dict(zip(names, row[len(keys) :], strict=True))


def _slot_s(grain: str) -> int:
    return 3600 if grain == "hour" else 86_400


def _value(key: str, value: Any, offset_s: int) -> str:
    """The value of a key as text; of a grain of time, the local period that a slot lies in."""
    if key not in GRAINS:
        return str(value)
    local = datetime.fromtimestamp(int(value) * _slot_s(key), UTC)
    match key:
        case "hour":  # with its offset, because the clock may show an hour twice
            return local.replace(tzinfo=timezone(timedelta(seconds=offset_s))).isoformat(timespec="minutes")
        case "week":
            year, week, _ = local.isocalendar()
            return f"{year}-W{week:02}"
        case "month":
            return f"{local:%Y-%m}"
    return local.date().isoformat()
