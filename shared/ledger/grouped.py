"""Sums by any dimensions: provider, model, tool and agent, a grain of time, and labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache, lru_cache
from itertools import chain
from operator import add
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from shared.ledger import sums as stored_sums
from shared.ledger.query import Filter, Window, conditions, paged
from shared.ledger.schema import BUCKET_S, DIMENSIONS, VALUES, attempt, label
from shared.ledger.store import Ledger
from shared.ledger.sums import Owner, Plan, Range

GRAINS = ("hour", "day", "week", "month")
FIGURES = VALUES
_HOUR_S = 3600

Key = tuple[str, ...]
Sums = dict[str, int]
# Sums by key, in the order of FIGURES.
_Found = dict[Key, list[int]]
_Rows = Iterator[tuple[tuple[Any, ...], list[int]]]


class Grouped(NamedTuple):
    """
    Sums of FIGURES by the values of some keys: whole counts, nano-dollars and microseconds.

    A key is "" where an attempt has no such value; times are 2026-11-24T13:00+01:00, 2026-11-24, 2026-W48 and 2026-11.
    `rows_read` says why all rows of a time were read, and not only those of the window's ends; None if they were not.
    `removed_us`: attempts of the window before it have been removed, and 0 if none have; `is_incomplete`: they are
    missing, because no sums say what they were.
    """

    sums: dict[Key, Sums]
    rows_read: str | None
    removed_us: int = 0
    is_incomplete: bool = False


def grouped_sums(ledger: Ledger, span: Window, keys: Sequence[str], which: Filter | None = None) -> dict[Key, Sums]:
    """
    What was spent in a window, by `keys`.

    Args:
        keys: Any of provider, model, tool, agent, names of labels, and hour, day, week or month in the window's zone.

    Returns:
        The sums of `Grouped`.

    Raises:
        StoreError: The ledger cannot be read.
    """
    return all_grouped(ledger, span, (keys,), which)[0].sums


def all_grouped(
    ledger: Ledger, span: Window, several: Sequence[Sequence[str]], which: Filter | None = None
) -> list[Grouped]:
    """The same by each of several keys, as of one moment."""
    which = which or Filter()
    # What is by columns alone is read once, by all of these columns.
    columns = tuple(name for name in DIMENSIONS if any(name in keys for keys in several if _are_columns(keys)))
    read = {tuple(keys): columns if _are_columns(keys) else tuple(keys) for keys in several}
    found = _read(ledger, span, list(dict.fromkeys(read.values())), which)
    return [_grouped(*found[read[tuple(keys)]], read[tuple(keys)], keys, which) for keys in several]


def _are_columns(keys: Sequence[str]) -> bool:
    return set(keys) <= set(DIMENSIONS)


def _grouped(found: _Found, how: Plan, names: Sequence[str], keys: Sequence[str], which: Filter) -> Grouped:
    """What was found by some names, by those of them that were asked for."""
    places = [names.index(key) for key in keys]
    sums: _Found = {}
    for values, numbers in found.items():
        _add(sums, tuple(values[place] for place in places), numbers)
    named = {key: dict(zip(FIGURES, numbers, strict=True)) for key, numbers in sums.items() if any(numbers)}
    return Grouped(named, _rows_read(how, names, which), how.removed_us, how.is_incomplete)


def _read(
    ledger: Ledger, span: Window, several: Sequence[tuple[str, ...]], which: Filter
) -> dict[tuple[str, ...], tuple[_Found, Plan]]:
    found: dict[tuple[str, ...], _Found] = {keys: {} for keys in several}
    left: dict[tuple[Range, ...], list[tuple[str, ...]]] = defaultdict(list)
    with ledger.reading() as connection:
        plans = {keys: _plan(connection, span, keys, which) for keys in several}
        for keys, how in plans.items():
            left[how.rows].append(keys)
            if how.summed:
                _add_stored(connection, found[keys], how, span.zone, keys, which)
        left = _add_rows(connection, found, left, span.zone, which)
    while left:
        with ledger.reading() as connection:
            left = _add_rows(connection, found, left, span.zone, which)
    return {keys: (found[keys], how) for keys, how in plans.items()}


def _rows_read(how: Plan, keys: Sequence[str], which: Filter) -> str | None:
    if how.reason or how.summed:
        return how.reason
    return "there are no sums of pairs of labels" if len({*_labels_in(keys), *which.labels}) > 1 else None


def label_names(ledger: Ledger, which: Filter | None = None) -> list[str]:
    """
    The names of the labels that attempts have.

    Raises:
        StoreError: The ledger cannot be read.
    """
    which = which or Filter()
    with ledger.reading() as connection:
        found: list[str] = []
        # One look into the index for each name, instead of one at each label.
        query = sa.select(sa.func.min(label.c.name))
        while name := connection.scalar(query.where(label.c.name > found[-1]) if found else query):
            found.append(name)
        if which != Filter():
            return [name for name in found if connection.scalar(_labelled(name, which)) is not None]
        return sorted({*found, *stored_sums.names_of_removed(connection)})


def _labelled(name: str, which: Filter) -> sa.Select[Any]:
    """Any attempt that has a label, of those that match a filter; found from the filter's own labels if it has any."""
    own = label.alias("own")
    query = sa.select(own.c.attempt_id).where(own.c.name == name).limit(1)
    for place, (key, value) in enumerate(which.labels.items()):
        tag = _label(place)
        query = query.where(tag.c.attempt_id == own.c.attempt_id, tag.c.name == key, tag.c.value == value)
    if which.columns or not which.any_conversation:
        query = query.where(attempt.c.attempt_id == own.c.attempt_id, *conditions(replace(which, labels={})))
    return query


def is_empty(ledger: Ledger) -> bool:
    """Whether the ledger has no attempt."""
    with ledger.reading() as connection:
        return connection.scalar(sa.select(attempt.c.attempt_id).limit(1)) is None


def _labels_in(keys: Sequence[str]) -> list[str]:
    return [key for key in keys if key not in (*DIMENSIONS, *GRAINS)]


def _owners(keys: Sequence[str], which: Filter) -> list[Owner]:
    """
    Whose sums answer the question; none if only rows do.

    What has no value of a label is everything, the second of two, without what has one.
    """
    labels, own = _labels_in(keys), which.owner
    if own is None or len(labels) > 1 or (own.owner and labels not in ([], list(which.labels))):
        return []
    if not labels or own.owner:
        return [own]
    return [Owner.of_label(labels[0]), Owner()]


def _plan(connection: Connection, span: Window, keys: Sequence[str], which: Filter) -> Plan:
    owners = _owners(keys, which)
    if not owners:
        return stored_sums.from_rows(connection, span.since_us, span.until_us)
    is_timed = not set(keys).isdisjoint(GRAINS)
    how = stored_sums.plan(connection, span.since_us, span.until_us, owners, span.zone if is_timed else None)
    if "hour" not in keys:
        return how
    offsets = (datetime.fromtimestamp(ts_us / 1e6, span.zone).utcoffset() for ts_us in (span.since_us, span.until_us))
    seconds = (*how.midnights, *(offset.total_seconds() for offset in offsets if offset is not None))
    step = _HOUR_S if not any(second % _HOUR_S for second in seconds) else BUCKET_S
    if step < max(owner.grains[0] for owner in owners):
        # Labels have no sums of less than an hour, as counted from UTC.
        return stored_sums.from_rows(connection, span.since_us, span.until_us)
    first = max(how.known[0], span.since_us // 10**6 // step * step)
    return replace(how, midnights=tuple(range(first, how.known[1], step)))


def _add_stored(
    connection: Connection, found: _Found, how: Plan, zone: ZoneInfo, keys: Sequence[str], which: Filter
) -> None:
    """Add what the sums have, and what is left to fold into them."""
    owners, labels = _owners(keys, which), _labels_in(keys)
    columns = tuple(name for name in DIMENSIONS if name in keys or name in which.columns)
    time = () if set(keys).isdisjoint(GRAINS) else ("start",)
    if time and columns == ("model",):
        columns = ("provider", "model")  # the order that the sums are in
    at = keys.index(labels[0]) if labels else 0
    with_value: dict[Key, list[list[int]]] = defaultdict(list)  # by what has none, which it is part of in everything
    for owner in owners:
        own = labels if owner is owners[0] else []
        names = (*("value" for _ in own), *columns)
        stored = stored_sums.read(connection, how, owner, (*time, *names), FIGURES, split=int(bool(columns)))
        left = stored_sums.left(connection, how, owner, ("bucket", *names), FIGURES)
        places = {name: place for place, name in enumerate((*own, *columns), start=1)}
        for values, numbers in chain(stored if time else _untimed(stored), _in_seconds(left)):
            if any(values[places[name]] != value for name, value in which.columns.items()):
                continue
            key = tuple(
                _period(name, values[0], zone) if name in GRAINS else values[places[name]] if name in places else ""
                for name in keys
            )
            _add(found, key, numbers)
            if own and len(owners) > 1:
                with_value[(*key[:at], "", *key[at + 1 :])].append(numbers)
    for key, several in with_value.items():
        _add(found, key, [-sum(each) for each in zip(*several, strict=True)])


def _untimed(rows: _Rows) -> _Rows:
    return (((0, *values), numbers) for values, numbers in rows)


def _in_seconds(rows: _Rows) -> _Rows:
    return (((values[0] * BUCKET_S, *values[1:]), numbers) for values, numbers in rows)


def _add_rows(
    connection: Connection,
    found: Mapping[tuple[str, ...], _Found],
    left: Mapping[tuple[Range, ...], list[tuple[str, ...]]],
    zone: ZoneInfo,
    which: Filter,
) -> dict[tuple[Range, ...], list[tuple[str, ...]]]:
    """Add attempts from their rows, at most a page of each ranges; returns what is left to read, by which keys."""
    rest: dict[tuple[Range, ...], list[tuple[str, ...]]] = defaultdict(list)
    narrow = (which.conversation, which.any_conversation, _items(which.labels), _items(which.columns))
    for ranges, several in left.items():
        now, later = paged(connection, ranges)
        if later:
            rest[tuple(later)] += several
        for keys in several:
            query = _rows_by(connection.dialect.name, keys, *narrow)
            for since_us, until_us in now:
                for row in connection.execute(query, {"since_us": since_us, "until_us": until_us}):
                    values = tuple(
                        _period(key, value * BUCKET_S, zone) if key in GRAINS else value
                        for key, value in zip(keys, row, strict=False)
                    )
                    _add(found[keys], values, [int(number or 0) for number in row[len(keys) :]])
    return rest


def _items(values: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(values.items())


@lru_cache(maxsize=64)
def _rows_by(
    dialect: str,
    keys: tuple[str, ...],
    conversation: str | None,
    any_conversation: bool,
    labels: tuple[tuple[str, str], ...],
    columns: tuple[tuple[str, str], ...],
) -> sa.Select[Any]:
    """Sums of the settled attempts between :since_us and :until_us; building it takes longer than its execution."""
    which = Filter(dict(labels), conversation, any_conversation, dict(columns))
    by = [column.label(f"k{place}") for place, column in enumerate(_columns(keys))]
    numbers = stored_sums.expressions(dialect)
    figures: list[Any] = [sa.func.sum(sa.literal_column(numbers[name])).label(f"sum_{name}") for name in FIGURES]
    since_us, until_us = (sa.bindparam(name, type_=sa.BigInteger) for name in ("since_us", "until_us"))
    return (
        sa.select(*by, *figures)
        .select_from(_with_labels(keys))
        .where(attempt.c.ts_us >= since_us, attempt.c.ts_us < until_us, attempt.c.status != "started")
        .where(*conditions(which))
        .group_by(*by)
    )


def _columns(keys: Sequence[str]) -> Iterator[sa.ColumnElement[Any]]:
    for place, key in enumerate(keys):
        if key in GRAINS:
            yield attempt.c.bucket
        else:
            yield sa.func.coalesce(attempt.c[key] if key in DIMENSIONS else _label(place).c.value, "")


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


def _add(found: _Found, key: Key, numbers: list[int]) -> None:
    before = found.get(key)
    found[key] = numbers if before is None else list(map(add, before, numbers))


@lru_cache(maxsize=4096)
def _period(grain: str, second: int, zone: ZoneInfo) -> str:
    """The local period that a second lies in."""
    local = datetime.fromtimestamp(second, zone)
    match grain:
        case "hour":  # with its offset, because the clock may show an hour twice
            return local.replace(minute=0, second=0).isoformat(timespec="minutes")
        case "week":
            year, week, _ = local.isocalendar()
            return f"{year}-W{week:02}"
        case "month":
            return f"{local:%Y-%m}"
    return local.date().isoformat()
