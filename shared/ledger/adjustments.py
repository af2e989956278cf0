"""Adjustments: rows that correct what was billed, entered by people and by code, and never by agents."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from shared.errors import InvalidRequest
from shared.ledger.reservations import labels_of
from shared.ledger.row import AttemptRow
from shared.ledger.schema import attempt, bucket_of
from shared.ledger.store import Ledger
from shared.ledger.sums import removed_note, warn_of_removed

OPERATION = "adjustment"
NOBODY = "(adjustment)"
_PAGE = 500
# Their cost was worked out from a price; what a provider or a user reported is no matter of prices.
_PRICED = ("table", "counted", "unknown")
_REPRICED = uuid.UUID("5f2b1f0e-6f0a-4a3c-9d1e-0d1c5a1d7a10")


def adjustment(
    cost_nano: int,
    ts_us: int,
    kind: str,
    *,
    adjusts: str | None,
    provider: str = NOBODY,
    model: str = NOBODY,
    labels: Mapping[str, str] | None = None,
) -> AttemptRow:
    """
    The row of an adjustment of no particular attempt.

    Args:
        cost_nano: Nano-dollars to add to what was spent; negative for a credit.

        ts_us: In the day that it corrects, in microseconds since 1970.

        kind: Who or what has entered it, such as "manual".

        adjusts: What it refers to: an id, or a text such as the number of an invoice.
    """
    return AttemptRow(
        ts_us=ts_us,
        bucket=bucket_of(ts_us),
        status="reported",
        operation=OPERATION,
        provider=provider,
        requested_model=model,
        model=model,
        cost_nano=cost_nano,
        cost_source="reported",
        adjustment_kind=kind,
        adjusts=adjusts,
        labels=labels or {},
    )


def adjustment_of(row: AttemptRow, cost_nano: int, kind: str, adjusts: str | None = None) -> AttemptRow:
    """The row of an adjustment of one attempt: in its day, for its tool, agent, run and labels."""
    new = adjustment(
        cost_nano,
        row.ts_us,
        kind,
        adjusts=adjusts or str(row.attempt_id),
        provider=row.provider,
        model=row.model,
        labels=row.labels,
    )
    return replace(
        new,
        requested_model=row.requested_model,
        tool=row.tool,
        agent=row.agent,
        run=row.run,
        conversation=row.conversation,
        key_alias=row.key_alias,
    )


def repriced(row: AttemptRow, before_nano: int | None, after_nano: int, price_table: str | None) -> AttemptRow:
    """
    The adjustment that brings an attempt to its cost by another price table; entered twice it counts once.

    Args:
        before_nano: What earlier adjustments of this kind have brought it to; None where there was none.
    """
    known = row.cost_nano if before_nano is None else before_nano
    new = adjustment_of(row, after_nano - (known or 0), "reprice")
    return replace(
        new,
        # Of two people who reprice at the same moment, both enter the same row.
        attempt_id=uuid.uuid5(_REPRICED, f"{row.attempt_id} {before_nano} {after_nano}"),
        cost_source="table",
        price_version=price_table,
        price_table=price_table,
        # Its cost is known now, so reports no longer count it as unknown.
        unpriced_calls=-row.unpriced_calls if before_nano is None else 0,
    )


def enter(ledger: Ledger, *rows: AttemptRow) -> None:
    """
    Store adjustments.

    Raises:
        StoreError: The ledger cannot be written.
    """
    ledger.check_writable()
    for write in [ledger.settle(row) for row in rows]:
        write.result()


def attempt_of(ledger: Ledger, call_id: uuid.UUID) -> AttemptRow:
    """
    The attempt that a call ended with, or the attempt with this id.

    Raises:
        InvalidRequest: There is none.

        StoreError: The ledger cannot be read.
    """
    query = sa.select(attempt).where(sa.or_(attempt.c.call_id == call_id, attempt.c.attempt_id == call_id))
    query = query.where(attempt.c.adjustment_kind.is_(None)).order_by(attempt.c.attempt_number.desc())
    with ledger.reading() as connection:
        found = connection.execute(query.limit(1)).mappings().one_or_none()
        if found is None:
            raise InvalidRequest(
                f"The ledger has no call {call_id}{removed_note(connection)}", hint="Take the call_id from an export."
            )
        labels = labels_of(connection, [found["attempt_id"]])
    return replace(AttemptRow.read(dict(found)), labels=labels[found["attempt_id"]])


def priced_attempts(ledger: Ledger, since_us: int, until_us: int) -> Iterator[tuple[AttemptRow, int | None]]:
    """
    The attempts of a time whose counts are kept, and what repricing has brought each to so far; None: not repriced.

    Read in pages, so that no writer waits for long.

    Raises:
        StoreError: The ledger cannot be read.
    """
    warn_of_removed(ledger, since_us, "what is priced again")
    last: tuple[int, uuid.UUID] | None = None
    inside = (attempt.c.ts_us >= since_us, attempt.c.ts_us < until_us)
    query = sa.select(attempt).where(
        *inside, attempt.c.cost_source.in_(_PRICED), attempt.c.status != "started", attempt.c.units.is_not(None)
    )
    query = query.where(attempt.c.adjustment_kind.is_(None)).order_by(attempt.c.ts_us, attempt.c.attempt_id)
    while True:
        after = () if last is None else (sa.tuple_(attempt.c.ts_us, attempt.c.attempt_id) > sa.tuple_(*last),)
        with ledger.reading() as connection:
            rows = [
                AttemptRow.read(dict(each)) for each in connection.execute(query.where(*after).limit(_PAGE)).mappings()
            ]
            labels = labels_of(connection, [row.attempt_id for row in rows])
            changes = _repriced(connection, rows)
        for row in rows:
            change = changes.get(str(row.attempt_id))
            yield replace(row, labels=labels[row.attempt_id]), None if change is None else (row.cost_nano or 0) + change
        if len(rows) < _PAGE:
            return
        last = rows[-1].ts_us, rows[-1].attempt_id


def _repriced(connection: Connection, rows: list[AttemptRow]) -> dict[str, int]:
    """The adjustments of these rows by repricing, which are dated as the rows are, or say when those happened."""
    if not rows:
        return {}
    query = sa.select(attempt.c.adjusts, attempt.c.cost_nano).where(attempt.c.adjustment_kind == "reprice")
    found: dict[str, int] = defaultdict(int)
    # As the indexes have them.
    for date, which in (
        (attempt.c.ts_us, "adjustment_kind IS NOT NULL AND happened_us IS NULL"),
        (attempt.c.happened_us, "happened_us IS NOT NULL"),
    ):
        dated = query.where(date >= rows[0].ts_us, date <= rows[-1].ts_us, sa.text(which))
        for adjusts, cost_nano in connection.execute(dated):
            found[adjusts] += cost_nano
    return found
