"""How requests went: how long they took and how they ended, and of which the cost is unknown, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy as sa

from shared.ledger.query import Filter, Window, conditions
from shared.ledger.schema import UNKNOWN_COST, attempt
from shared.ledger.store import Ledger

# Requests that are looked at for percentiles: the latest, so that a page of a million requests is as fast.
SAMPLE = 10_000


class Outcome(NamedTuple):
    """How one request ended; `duration_us` is None where it is unknown."""

    call_id: str
    attempt_number: int
    model: str
    status: str
    duration_us: int | None


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


def outcomes(ledger: Ledger, span: Window, which: Filter, *, limit: int = SAMPLE) -> list[Outcome]:
    """
    How the latest requests of a time ended, the newest first.

    Raises:
        StoreError: The ledger cannot be read.
    """
    columns = (attempt.c.call_id, attempt.c.attempt_number, attempt.c.model, attempt.c.status, attempt.c.duration_us)
    inside = (attempt.c.ts_us >= span.since_us, attempt.c.ts_us < span.until_us, *conditions(which))
    ended = (attempt.c.status.not_in(("started", "reported", "refused")), attempt.c.adjustment_kind.is_(None))
    query = sa.select(*columns).where(*inside, *ended).order_by(attempt.c.ts_us.desc()).limit(limit)
    with ledger.reading() as connection:
        return [Outcome(str(row[0]), *row[1:]) for row in connection.execute(query)]


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
