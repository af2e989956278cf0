"""What each kind of entry changes in the ledger's tables: the row, its labels, the sums and the running totals."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from shared.budget import Limit
from shared.ledger.accounts import Admission, check, move, statuses
from shared.ledger.schema import DIMENSIONS, SUMS, attempt, event, label, rollup

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Statements:
    """The writing statements, built once a dialect: building one costs more than running it."""

    insert_attempt: Any
    insert_label: Any
    insert_event: Any
    add_to_rollup: Any


LENGTHS = {c.name: c.type.length for c in (*attempt.c, *event.c) if isinstance(c.type, sa.String) and c.type.length}
_MAX_LABEL = 200
_KNOWN = attempt.c.attempt_id == sa.bindparam("known")
# FOR UPDATE is PostgreSQL's; SQLite's writers have the whole database to themselves.
_SELECT_BEFORE = (
    sa.select(
        attempt.c.status, attempt.c.bucket, attempt.c.bound_nano, *(attempt.c[name] for name in (*DIMENSIONS, *SUMS))
    )
    .where(_KNOWN)
    .with_for_update()
)
_SELECT_STATUS = sa.select(attempt.c.status).where(_KNOWN).with_for_update()
_SELECT_METADATA = sa.select(attempt.c.metadata).where(_KNOWN).with_for_update()
_UPDATE = sa.update(attempt).where(_KNOWN)


@lru_cache(maxsize=2)
def _statements(dialect: str) -> _Statements:
    insert: Any = postgresql.insert if dialect == "postgresql" else sqlite.insert
    add = insert(rollup)
    added = {name: rollup.c[name] + add.excluded[name] for name in SUMS}
    return _Statements(
        insert_attempt=insert(attempt).on_conflict_do_nothing(),
        insert_label=insert(label).on_conflict_do_nothing(),
        insert_event=insert(event).on_conflict_do_nothing(),
        add_to_rollup=add.on_conflict_do_update(index_elements=["bucket", *DIMENSIONS], set_=added),
    )


def apply(
    connection: Connection, kind: str, row: Row, labels: Mapping[str, str], limits: Sequence[Limit] | None
) -> Admission | None:
    """
    Write one entry, inside the caller's transaction, while nobody else can write.

    Args:
        kind, row, labels, limits: As `Ledger.submit` has them.

    Returns:
        What the limits say to it; None where it brought none.
    """
    write = _statements(connection.dialect.name)
    match kind:
        case "start":
            return _start(connection, write, row, labels, limits)
        case "settle":
            _settle(connection, write, row, labels)
            return None if limits is None else Admission(statuses(connection, row, labels, limits))
        case "expire":
            if connection.scalar(_SELECT_STATUS, {"known": row["attempt_id"]}) == "started":
                _settle(connection, write, row, labels)
        case "event":
            connection.execute(write.insert_event, row)
        case "metadata":
            known = {"known": row["attempt_id"]}
            before = connection.scalar(_SELECT_METADATA, known) or {}
            connection.execute(_UPDATE, known | {"metadata": before | row["metadata"]})
    return None


def _start(
    connection: Connection, write: _Statements, row: Row, labels: Mapping[str, str], limits: Sequence[Limit] | None
) -> Admission | None:
    """Write the row of an attempt that begins, unless a limit has no room for the most that it can cost."""
    admission = None if limits is None else check(connection, row, labels, limits)
    if (admission is None or admission.refused_by is None) and _inserted(connection, write, row):
        _add_labels(connection, write, row["attempt_id"], labels)
        move(connection, None, row, labels)
    return admission


def _settle(connection: Connection, write: _Statements, row: Row, labels: Mapping[str, str]) -> None:
    """Replace the row and move the sums by the difference, so that settling late or twice stays exact."""
    known = {"known": row["attempt_id"]}
    before = connection.execute(_SELECT_BEFORE, known).mappings().one_or_none()
    changes = [_rollup_row(row, sign=1)]
    if before is None and not _inserted(connection, write, row):
        # Another process has just put it there.
        before = connection.execute(_SELECT_BEFORE, known).mappings().one()
    if before is None:
        _add_labels(connection, write, row["attempt_id"], labels)
    else:
        connection.execute(_UPDATE, known | {name: value for name, value in row.items() if name != "attempt_id"})
        if before["status"] != "started":
            changes.append(_rollup_row(dict(before), sign=-1))
    connection.execute(write.add_to_rollup, changes)
    move(connection, None if before is None else dict(before), row, labels)


def _inserted(connection: Connection, write: _Statements, row: Row) -> bool:
    options = {"preserve_rowcount": True}
    return connection.execute(write.insert_attempt, row, execution_options=options).rowcount == 1


def _rollup_row(row: Mapping[str, Any], *, sign: int) -> Row:
    values: Row = {"bucket": row["bucket"]} | {name: row.get(name) or "" for name in DIMENSIONS}
    return values | {name: sign * (row.get(name) or 0) for name in SUMS}


def _add_labels(connection: Connection, write: _Statements, attempt_id: uuid.UUID, labels: Mapping[str, str]) -> None:
    if labels:
        rows = [{"attempt_id": attempt_id, "name": name, "value": value} for name, value in labels.items()]
        connection.execute(write.insert_label, rows)


def storable(row: Mapping[str, Any], lengths: Mapping[str, int] | None = None) -> Row:
    """`row` with every text and number such that each database takes it."""
    return {name: _storable_value(value, (lengths or {}).get(name, _MAX_LABEL)) for name, value in row.items()}


def _storable_value(value: Any, length: int) -> Any:
    if isinstance(value, str):
        return value.replace("\x00", "?").encode("utf-8", "replace").decode("utf-8")[:length]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return None
    return value
