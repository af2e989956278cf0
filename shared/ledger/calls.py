"""Single calls, each with its attempts."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from shared.errors import InvalidRequest
from shared.ledger.query import Filter, Window, conditions
from shared.ledger.reservations import labels_of
from shared.ledger.row import AttemptRow
from shared.ledger.schema import UNKNOWN_COST, attempt
from shared.ledger.store import Ledger
from shared.ledger.sums import removed_note

Kind = Literal["latest", "most-expensive", "failed", "unknown"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_WHICH: dict[Kind, sa.ColumnElement[bool]] = {
    "latest": attempt.c.attempt_number == 1,
    "most-expensive": attempt.c.cost_nano > 0,
    "failed": attempt.c.failed_calls > 0,
    "unknown": sa.or_(sa.text(UNKNOWN_COST), sa.text("cost_is_lower_bound")),
}


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A call: its attempts in their order, and the adjustments that refer to one of them or to the call."""

    attempts: tuple[AttemptRow, ...]
    adjustments: tuple[AttemptRow, ...] = ()

    @property
    def call_id(self) -> uuid.UUID:
        """The id that answers and errors carry."""
        return self.attempts[0].call_id

    @property
    def last(self) -> AttemptRow:
        """The attempt that answered, else the last one."""
        return next((row for row in self.attempts if row.status == "ok"), self.attempts[-1])

    @property
    def cost_nano(self) -> int | None:
        """What is known of the cost of all attempts, without adjustments; None if only that some is unknown."""
        known = [row.cost_nano for row in self.attempts if row.cost_nano is not None]
        return sum(known) if sum(known) or (known and not self.unknown_requests) else None

    @property
    def unknown_requests(self) -> int:
        """How many attempts have an unknown cost."""
        return sum(row.cost_nano is None and row.status != "started" for row in self.attempts)

    @property
    def is_lower_bound(self) -> bool:
        """Whether the cost is at least `cost_nano`."""
        return bool(self.unknown_requests) or any(row.cost_is_lower_bound for row in self.attempts)


def calls_in(
    ledger: Ledger, span: Window, kind: Kind, which: Filter | None = None, *, limit: int, offset: int = 0
) -> list[CallRecord]:
    """
    Calls of a time.

    Args:
        kind: The latest; those that cost the most; those that failed, or those whose cost is unknown, at least in part,
            the latest first.

        limit: How many at most.

        offset: How many of them to leave out.

    Raises:
        StoreError: The ledger cannot be read.
    """
    inside = (attempt.c.ts_us >= span.since_us, attempt.c.ts_us < span.until_us, attempt.c.adjustment_kind.is_(None))
    order = sa.func.sum(attempt.c.cost_nano) if kind == "most-expensive" else sa.func.max(attempt.c.ts_us)
    query = sa.select(attempt.c.call_id).where(*inside, _WHICH[kind], *conditions(which or Filter()))
    query = query.group_by(attempt.c.call_id).order_by(order.desc(), attempt.c.call_id.desc())
    with ledger.reading() as connection:
        ids = list(connection.scalars(query.limit(limit).offset(offset)))
        found = _records(connection, ids)
    return [found[each] for each in ids]


def call_record(ledger: Ledger, call_id: uuid.UUID) -> CallRecord:
    """
    The call with this id, or with an attempt with this id.

    Raises:
        InvalidRequest: There is none.

        StoreError: The ledger cannot be read.
    """
    same = sa.or_(attempt.c.call_id == call_id, attempt.c.attempt_id == call_id)
    with ledger.reading() as connection:
        found = connection.scalar(sa.select(attempt.c.call_id).where(same).limit(1))
        if found is None:
            raise InvalidRequest(
                f"The ledger has no call {call_id}{removed_note(connection)}",
                hint="See `agentswarm-tools calls list`.",
            )
        record = _records(connection, [found])[found]
        refers = attempt.c.adjusts.in_([str(found), *(str(row.attempt_id) for row in record.attempts)])
        query = sa.select(attempt).where(sa.text("adjustment_kind IS NOT NULL"), refers).order_by(attempt.c.ts_us)
        rows = [AttemptRow.read(dict(row)) for row in connection.execute(query).mappings()]
    return replace(record, adjustments=tuple(rows))


def _records(connection: Connection, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, CallRecord]:
    query = sa.select(attempt).where(attempt.c.call_id.in_(ids)).order_by(attempt.c.attempt_number, attempt.c.ts_us)
    rows = [AttemptRow.read(dict(row)) for row in connection.execute(query).mappings()]
    labels = labels_of(connection, [row.attempt_id for row in rows])
    found = defaultdict[uuid.UUID, list[AttemptRow]](list)
    for row in rows:
        found[row.call_id].append(replace(row, labels=labels[row.attempt_id]))
    return {call_id: CallRecord(tuple(attempts)) for call_id, attempts in found.items()}
