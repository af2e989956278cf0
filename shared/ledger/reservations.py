"""Reservations: what budgets keep for requests whose whole cost is unknown, and how an operator frees it."""

from __future__ import annotations

import uuid
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from shared.internal.clock import now_us
from shared.ledger import accounts
from shared.ledger.driver import Driver
from shared.ledger.row import dates
from shared.ledger.schema import attempt, label
from shared.ledger.store import Ledger
from shared.ledger.writes import CHANGES, RELEASE, Settled, apply, correction

# Released in one transaction, so that no other writer waits for long.
_PAGE = 200
_COLUMNS = (
    "attempt_id", "call_id", "ts_us", "provider", "model", "status", "error_type", "tool", "agent", "run", "cost_nano",
    "bound_nano", "reserved_nano",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reservation:
    """
    An attempt that reserves `reserved_nano` in its budgets.

    `cost_nano` is what it has cost at least, None where nothing is known.
    """

    attempt_id: uuid.UUID
    call_id: uuid.UUID
    ts_us: int
    provider: str
    model: str
    status: str
    error_type: str | None
    cost_nano: int | None
    reserved_nano: int


def open_reservations(
    ledger: Ledger, *, call_id: uuid.UUID | None = None, before_us: int | None = None
) -> list[Reservation]:
    """
    The attempts that reserve something, oldest first.

    Args:
        call_id: Only those of one call; the id of an attempt names that one.

        before_us: Only those that started before, in microseconds since 1970.

    Raises:
        StoreError: The ledger cannot be read.
    """
    with ledger.reading() as connection:
        rows = [dict(row) for row in connection.execute(_query(call_id, before_us)).mappings()]
        return list(map(_reservation, _still_open(connection, rows)))


def release(ledger: Ledger, *, call_id: uuid.UUID | None = None, before_us: int | None = None) -> list[Reservation]:
    """
    Free what attempts reserve in their budgets; a reservation that is no longer there is left alone.

    Args:
        call_id, before_us: Which, as for `open_reservations`.

    Returns:
        Those that this call has released.

    Raises:
        StoreError: The ledger cannot be written.
    """
    ledger.flush()
    released: list[Reservation] = []
    page = _query(call_id, before_us).limit(_PAGE).with_for_update()
    after: sa.ColumnElement[bool] = sa.true()
    while True:
        with ledger.changing() as connection:
            rows = [dict(row) for row in connection.execute(page.where(after)).mappings()]
            still_open = _still_open(connection, rows)
            _release(connection, still_open)
        released += map(_reservation, still_open)
        if len(rows) < _PAGE:
            return released
        last = rows[-1]["ts_us"], rows[-1]["attempt_id"]
        after = sa.tuple_(attempt.c.ts_us, attempt.c.attempt_id) > sa.tuple_(*last)


def _query(call_id: uuid.UUID | None, before_us: int | None) -> sa.Select[Any]:
    # As the index has it.
    query = sa.select(*(attempt.c[name] for name in _COLUMNS)).where(sa.text("reserved_nano > 0"))
    if call_id is not None:
        query = query.where(sa.or_(attempt.c.call_id == call_id, attempt.c.attempt_id == call_id))
    if before_us is not None:
        query = query.where(attempt.c.ts_us < before_us)
    return query.order_by(attempt.c.ts_us, attempt.c.attempt_id)


def _still_open(connection: Connection, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The attempts with what they still reserve: of a closed month, without what adjustments have freed."""
    found = []
    for first in range(0, len(rows), _PAGE):
        page = rows[first : first + _PAGE]
        query = sa.select(attempt.c.adjusts, sa.func.sum(attempt.c.reserved_nano)).where(
            attempt.c.happened_us.in_([row["ts_us"] for row in page]),
            attempt.c.adjusts.in_([str(row["attempt_id"]) for row in page]),
            attempt.c.adjustment_kind.in_(CHANGES),
        )
        freed = {adjusts: int(nano or 0) for adjusts, nano in connection.execute(query.group_by(attempt.c.adjusts))}
        found += [row | {"reserved_nano": row["reserved_nano"] + freed.get(str(row["attempt_id"]), 0)} for row in page]
    return [row for row in found if row["reserved_nano"] > 0]


def _release(connection: Connection, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    labels = labels_of(connection, [row["attempt_id"] for row in rows])
    closed_us = accounts.terms_in(connection).closed_us
    moves = [(row, row | {"reserved_nano": 0}, labels[row["attempt_id"]]) for row in rows if row["ts_us"] >= closed_us]
    if moves:
        Driver.of(connection).change(attempt, [freed for _, freed, _ in moves], ("reserved_nano",))
        accounts.move(connection, moves)
    # What is closed stays as it is, and the release is an adjustment.
    closed = {row["attempt_id"]: row["reserved_nano"] for row in rows if row["ts_us"] < closed_us}
    whole = sa.select(attempt).where(attempt.c.attempt_id.in_(list(closed)))
    now = max(now_us(), closed_us)
    for row in connection.execute(whole).mappings().all() if closed else ():
        freed = {"reserved_nano": -closed[row["attempt_id"]], "cost_source": "reported", "cost_is_lower_bound": False}
        entered = correction(dict(row) | dates(now, row["ts_us"]), RELEASE, freed)
        apply(connection, [Settled(entered, labels[row["attempt_id"]])])


def labels_of(connection: Connection, attempt_ids: list[uuid.UUID]) -> dict[uuid.UUID, dict[str, str]]:
    """The labels of attempts, by id."""
    found = defaultdict[uuid.UUID, dict[str, str]](dict)
    for row in connection.execute(sa.select(label).where(label.c.attempt_id.in_(attempt_ids))):
        found[row.attempt_id][row.name] = row.value
    return found


def _reservation(row: Any) -> Reservation:
    return Reservation(**{name: row[name] for name in Reservation.__slots__})
