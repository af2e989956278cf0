"""How requests went: how long answers took, and of which requests the cost is unknown, and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from shared.ledger import sums as stored_sums
from shared.ledger.query import Filter, Window, conditions, paged
from shared.ledger.schema import UNKNOWN_COST, attempt
from shared.ledger.store import Ledger


@dataclass(frozen=True, slots=True)
class Unknown:
    """
    Requests of a model whose cost is unknown for the same reason, and what budgets reserve for them.

    `has_usage`: whether tokens were reported, so that only the price is missing.
    """

    model: str
    status: str
    error_type: str | None
    has_usage: bool
    is_lower_bound: bool
    requests: int
    reserved_nano: int


def latencies(ledger: Ledger, span: Window, which: Filter) -> dict[str, Counter[int]]:
    """
    By model: how many answers took how long, as the number of answers by place in LATENCY_MS.

    Raises:
        StoreError: The ledger cannot be read.
    """
    found: dict[str, Counter[int]] = defaultdict(Counter)
    with ledger.reading() as connection:
        for model, place, answers in _stored_latencies(connection, how := _plan(connection, span, which), which):
            found[model][place] += answers
        rest = _add_rows(connection, found, how.rows, which)
    while rest:
        with ledger.reading() as connection:
            rest = _add_rows(connection, found, rest, which)
    return {model: places for model, places in found.items() if any(places.values())}


def _plan(connection: Connection, span: Window, which: Filter) -> stored_sums.Plan:
    if which.owner is None or not which.columns.keys() <= {"provider", "model"}:
        return stored_sums.from_rows(connection, span.since_us, span.until_us)
    return stored_sums.plan(
        connection, span.since_us, span.until_us, [which.owner], finest=stored_sums.LATENCY_GRAINS[0]
    )


def _stored_latencies(connection: Connection, how: stored_sums.Plan, which: Filter) -> Iterator[tuple[str, int, int]]:
    """Model, place and number of answers, from the sums and from what is left to fold into them."""
    owner, keys = which.owner, ("provider", "model", "place")
    if owner is None or not how.summed:
        return
    stored = stored_sums.read_latencies(connection, how, owner)
    left = stored_sums.left(connection, how, owner, keys, ("requests",))
    for key, answers in chain(stored, ((key, requests) for key, [requests] in left)):
        named = dict(zip(keys, key, strict=True))
        if named["place"] is not None and which.columns.items() <= named.items():
            yield named["model"], named["place"], answers


def _add_rows(
    connection: Connection, found: dict[str, Counter[int]], ranges: Sequence[stored_sums.Range], which: Filter
) -> list[stored_sums.Range]:
    """Add answers from the rows of a page of attempts; returns what is left to read."""
    now, rest = paged(connection, ranges)
    place: sa.ColumnElement[int] = sa.literal_column(stored_sums.PLACE, sa.Integer)
    for since_us, until_us in now:
        inside = (attempt.c.ts_us >= since_us, attempt.c.ts_us < until_us, attempt.c.status == "ok", *conditions(which))
        query = sa.select(attempt.c.model, place.label("place"), sa.func.count()).where(*inside)
        for model, number, answers in connection.execute(query.group_by(attempt.c.model, sa.text("place"))):
            if number is not None:
                found[model][number] += answers
    return rest


def unknowns(ledger: Ledger, span: Window, which: Filter) -> list[Unknown]:
    """
    The requests of a time whose cost is unknown or only known in part, or for which budgets reserve something.

    Raises:
        StoreError: The ledger cannot be read.
    """
    usage = sa.or_(attempt.c.prompt_tokens.is_not(None), attempt.c.completion_tokens.is_not(None))
    keys = [attempt.c.model, attempt.c.status, attempt.c.error_type, usage.label("has_usage")]
    keys.append(attempt.c.cost_nano.is_not(None).label("is_known"))
    sums = (sa.func.count(), sa.func.coalesce(sa.func.sum(attempt.c.reserved_nano), 0))
    inside = (attempt.c.ts_us >= span.since_us, attempt.c.ts_us < span.until_us, *conditions(which))
    # Each as its index has it.
    kinds = ("reserved_nano > 0", f"{UNKNOWN_COST} AND coalesce(reserved_nano, 0) <= 0", "cost_is_lower_bound")
    found: list[Unknown] = []
    with ledger.reading() as connection:
        for kind in kinds:
            query = sa.select(*keys, *sums).where(*inside, attempt.c.status != "started", sa.text(kind))
            if kind == "cost_is_lower_bound":
                query = query.where(sa.func.coalesce(attempt.c.reserved_nano, 0) <= 0)
            found += [
                Unknown(row[0], row[1], row[2], bool(row[3]), bool(row[4]), row[5], int(row[6]))
                for row in connection.execute(query.group_by(*keys))
            ]
    return sorted(found, key=lambda each: (-each.reserved_nano, -each.requests, each.model))
