"""Sums by any dimensions: provider, model, tool and agent, a grain of time, and labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from shared.ledger import sums as stored_sums
from shared.ledger.query import Filter, Window, conditions
from shared.ledger.schema import BUCKET_S, DIMENSIONS, VALUES, attempt, label
from shared.ledger.store import Ledger

GRAINS = ("hour", "day", "week", "month")
FIGURES = VALUES
# Attempts read in one transaction, so that no writer waits for long.
_PAGE = 20_000

Key = tuple[str, ...]
Sums = dict[str, int]


def grouped_sums(ledger: Ledger, span: Window, keys: Sequence[str], which: Filter | None = None) -> dict[Key, Sums]:
    """
    What was spent in a window, by `keys`.

    From the stored sums where there are any: not by hour, not of two labels together, and not within a conversation.

    Args:
        keys: Any of provider, model, tool, agent, names of labels, and hour, day, week or month in the window's zone.

    Returns:
        By the values of the keys ("" where an attempt has none; times as 2026-11-24T13:00+01:00, 2026-11-24, 2026-W48
        and 2026-11), the sums of FIGURES: whole counts, nano-dollars and microseconds.

    Raises:
        StoreError: The ledger cannot be read.
    """
    which = which or Filter()
    stored_sums.catch_up(ledger)
    found: dict[Key, Sums] = defaultdict(lambda: dict.fromkeys(FIGURES, 0))
    with ledger.reading() as connection:
        how, owners = _plan(connection, span, keys, which)
        if owners:
            for sign, owner in owners:
                _add_stored(connection, found, how, owner, keys, which, span.zone, sign)
        ranges = list(how.rows)
    while ranges:
        with ledger.reading() as connection:
            ranges = _add_page(connection, found, ranges, keys, which, span.zone)
    # What was taken back, as a correction to another model, leaves nothing where it was.
    return {key: sums for key, sums in found.items() if any(sums.values())}


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


def _is_label(key: str) -> bool:
    return key not in (*DIMENSIONS, *GRAINS)


def _plan(
    connection: Connection, span: Window, keys: Sequence[str], which: Filter
) -> tuple[stored_sums.Plan, list[tuple[int, stored_sums.Owner]]]:
    """How to answer, and whose sums to add: attempts without a label are all of them, less those that have it."""
    labels = [key for key in keys if _is_label(key)]
    whole = Filter(which.labels, which.conversation, which.any_conversation).owner
    if whole is None or "hour" in keys or len(labels) + len(which.labels) > 1 or (labels and whole.owner):
        return stored_sums.Plan((), ((span.since_us, span.until_us),)), []
    owners = [(1, whole)]
    if labels:
        each = stored_sums.Owner.of_label(labels[0])
        owners += [(1, each), (-1, each)]
    zone = span.zone if any(key in GRAINS for key in keys) else None
    return stored_sums.plan(connection, span.since_us, span.until_us, [owner for _, owner in owners], zone), owners


def _add_stored(
    connection: Connection,
    found: dict[Key, Sums],
    how: stored_sums.Plan,
    owner: stored_sums.Owner,
    keys: Sequence[str],
    which: Filter,
    zone: ZoneInfo,
    sign: int,
) -> None:
    """Add the stored sums of an owner, and what is left to fold into them; with a `sign` of -1 to what has no label."""
    timed = any(key in GRAINS for key in keys)
    names = list(dict.fromkeys([*(key for key in keys if key in DIMENSIONS), *which.columns]))
    if by_value := owner.value is None:
        names.append("value")
    split = 0 if not names or names == ["value"] else 1

    def add(values: Sequence[Any], numbers: Mapping[str, int], second: int) -> None:
        named = dict(zip(names, values, strict=False))
        if any((named[name] or "") != value for name, value in which.columns.items()):
            return
        label_value = named["value"] if by_value and sign > 0 else ""
        key = tuple(
            _period(each, second, zone)
            if each in GRAINS
            else (named[each] or "")
            if each in DIMENSIONS
            else label_value
            for each in keys
        )
        into = found[key]
        for name, number in numbers.items():
            into[name] += sign * number

    for values, numbers in stored_sums.read(connection, how, owner, [*names, *["start"] * timed], split=split):
        add(values, numbers, values[-1] if timed else 0)
    # Grouped by something in any case, as that statement needs.
    for values, numbers in stored_sums.left(connection, how, owner, [*names, "bucket"]):
        add(values, numbers, values[-1] * BUCKET_S)


def _add_page(
    connection: Connection,
    found: dict[Key, Sums],
    ranges: Sequence[stored_sums.Range],
    keys: Sequence[str],
    which: Filter,
    zone: ZoneInfo,
) -> list[stored_sums.Range]:
    """Add attempts of the first range from their rows, at most a page of them; returns what is left to read."""
    (since_us, until_us), *rest = ranges
    times = sa.select(attempt.c.ts_us).where(attempt.c.ts_us >= since_us, attempt.c.ts_us < until_us)
    end = connection.scalar(times.order_by(attempt.c.ts_us).offset(_PAGE).limit(1))
    end_us = until_us if end is None else max(end, since_us + 1)
    columns = [_column(place, key).label(f"k{place}") for place, key in enumerate(keys)]
    numbers = stored_sums.expressions(connection.dialect.name)
    values = [sa.func.sum(sa.literal_column(numbers[name])).label(f"sum_{name}") for name in VALUES]
    query = (
        sa.select(*columns, *values)
        .select_from(_with_labels(keys))
        .where(attempt.c.ts_us >= since_us, attempt.c.ts_us < end_us, attempt.c.status != "started", *conditions(which))
    )
    for row in connection.execute(query.group_by(*columns)):
        if all(each is None for each in row):
            continue  # the one row of a sum over nothing
        key = tuple(
            _period(each, value * BUCKET_S, zone) if each in GRAINS else value
            for each, value in zip(keys, row, strict=False)
        )
        for name, number in zip(VALUES, row[len(keys) :], strict=True):
            found[key][name] += int(number or 0)
    return rest if end_us >= until_us else [(end_us, until_us), *rest]


def _column(place: int, key: str) -> sa.ColumnElement[Any]:
    if key in GRAINS:
        return attempt.c.bucket
    return sa.func.coalesce(attempt.c[key] if key in DIMENSIONS else _label(place).c.value, "")


def _with_labels(keys: Sequence[str]) -> sa.FromClause:
    """The attempts, each with its value of every label among the keys."""
    source: sa.FromClause = attempt
    for place, key in enumerate(keys):
        if _is_label(key):
            own = _label(place)
            source = source.outerjoin(own, sa.and_(own.c.attempt_id == attempt.c.attempt_id, own.c.name == key))
    return source


@cache
def _label(place: int) -> sa.FromClause:
    return label.alias(f"l{place}")


def _period(grain: str, second: int, zone: ZoneInfo) -> str:
    """The local hour, day, week or month that a moment lies in; an hour with its offset, because one comes twice."""
    local = datetime.fromtimestamp(second, UTC).astimezone(zone)
    match grain:
        case "hour":
            return local.replace(minute=0, second=0).isoformat(timespec="minutes")
        case "week":
            year, week, _ = local.isocalendar()
            return f"{year}-W{week:02}"
        case "month":
            return f"{local:%Y-%m}"
    return local.date().isoformat()
