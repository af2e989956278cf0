"""What each kind of entry changes in the ledger's tables: the row, its labels, the sums and the running totals."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from shared.budget import Limit
from shared.ledger import accounts
from shared.ledger.accounts import Admission
from shared.ledger.row import AttemptRow
from shared.ledger.schema import DIMENSIONS, SUMS, attempt, event, label, rollup

Row = dict[str, Any]
Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Start:
    """An attempt begins, if its limits have room for the most that it can cost."""

    row: AttemptRow
    limits: tuple[Limit, ...] = ()
    # The bound of the shortest answer worth paying for; None where the answer cannot be cut.
    least_nano: int | None = None
    # Whether the call ends when this attempt is refused, whatever the budget says; that of a part never ends it.
    is_last: bool = True
    is_part: bool = False


@dataclass(frozen=True, slots=True)
class Begun:
    """An attempt that began while the ledger could not be written."""

    row: Row
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settled:
    """An attempt has ended; it may be settled again, and its start may be missing."""

    row: Row
    labels: Labels = field(default_factory=dict)
    # None: the status of its budgets is not asked for.
    limits: tuple[Limit, ...] | None = None


@dataclass(frozen=True, slots=True)
class Expired:
    """The lease of an attempt has ended; nothing changes when the attempt was settled meanwhile."""

    row: Row


@dataclass(frozen=True, slots=True)
class Annotation:
    """More metadata for an attempt."""

    attempt_id: uuid.UUID
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth recording that carries no money."""

    row: Row


type Entry = Start | Begun | Settled | Expired | Annotation | Event


@dataclass(frozen=True, slots=True)
class _Statements:
    """The writing statements, built once a dialect: building one costs more than running it."""

    insert_attempt: Any
    insert_label: Any
    insert_event: Any
    add_to_rollup: Any


_LENGTHS = {c.name: c.type.length for c in (*attempt.c, *event.c) if isinstance(c.type, sa.String) and c.type.length}
_MAX_LABEL = 200
_KNOWN = attempt.c.attempt_id == sa.bindparam("known")
# FOR UPDATE is PostgreSQL's; SQLite's writers have the whole database to themselves.
_SELECT_BEFORE = (
    sa.select(*(attempt.c[name] for name in ("status", "bucket", "bound_nano", "metadata", *DIMENSIONS, *SUMS)))
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


def apply(connection: Connection, entry: Entry) -> Admission:
    """Write one entry inside the caller's transaction, while no one else can write; returns how its limits stand."""
    write = _statements(connection.dialect.name)
    match entry:
        case Start():
            return _start(connection, write, entry)
        case Begun(row, labels):
            _begin(connection, write, row, labels)
        case Settled(row, labels, limits):
            _settle(connection, write, row, labels)
            return Admission() if limits is None else Admission(accounts.statuses(connection, row, labels, limits))
        case Expired(row):
            if connection.scalar(_SELECT_STATUS, {"known": row["attempt_id"]}) == "started":
                _settle(connection, write, row, {})
        case Annotation(attempt_id, metadata):
            known = {"known": attempt_id}
            before = connection.scalar(_SELECT_METADATA, known) or {}
            connection.execute(_UPDATE, known | {"metadata": {**before, **metadata}})
        case Event(row):
            connection.execute(write.insert_event, row)
    return Admission()


def _start(connection: Connection, write: _Statements, entry: Start) -> Admission:
    """Write the row of an attempt that begins; of one that may not, say why, and record the refusal if it is final."""
    row, labels = stored(entry.row), storable(entry.row.labels)
    admission = accounts.check(connection, row, labels, entry.limits)
    refusing = admission.refused_by
    if refusing is None:
        _begin(connection, write, row, labels)
        return admission
    if admission.reason == "no room" and entry.least_nano is not None and entry.least_nano <= admission.left_nano:
        return admission  # the answer can be cut to what is left
    ends_call = not entry.is_part and (entry.is_last or refusing.limit.budget.on_exceed == "refuse")
    refused = entry.row.refused("BudgetExceeded", failed_calls=int(ends_call))
    _settle(connection, write, stored(refused), labels)
    return admission.recorded_as(refused)


def _begin(connection: Connection, write: _Statements, row: Row, labels: Labels) -> None:
    if _inserted(connection, write, row):
        _add_labels(connection, write, row["attempt_id"], labels)
        accounts.move(connection, None, row, labels)


def _settle(connection: Connection, write: _Statements, row: Row, labels: Labels) -> None:
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
        # What an event has added meanwhile stays.
        more = {"metadata": {**(before["metadata"] or {}), **(row.get("metadata") or {})} or None}
        connection.execute(
            _UPDATE, known | {name: value for name, value in (row | more).items() if name != "attempt_id"}
        )
        if before["status"] != "started":
            changes.append(_rollup_row(dict(before), sign=-1))
    connection.execute(write.add_to_rollup, changes)
    accounts.move(connection, None if before is None else dict(before), row, labels)


def _inserted(connection: Connection, write: _Statements, row: Row) -> bool:
    options = {"preserve_rowcount": True}
    return connection.execute(write.insert_attempt, row, execution_options=options).rowcount == 1


def _rollup_row(row: Mapping[str, Any], *, sign: int) -> Row:
    values: Row = {"bucket": row["bucket"]} | {name: row.get(name) or "" for name in DIMENSIONS}
    return values | {name: sign * (row.get(name) or 0) for name in SUMS}


def _add_labels(connection: Connection, write: _Statements, attempt_id: uuid.UUID, labels: Labels) -> None:
    if labels:
        rows = [{"attempt_id": attempt_id, "name": name, "value": value} for name, value in labels.items()]
        connection.execute(write.insert_label, rows)


def stored(row: AttemptRow) -> Row:
    """An attempt as the database takes it."""
    return storable(row.columns(), _LENGTHS)


def storable(row: Mapping[str, Any], lengths: Mapping[str, int] | None = None) -> Row:
    """`row` with every text and number such that each database takes it."""
    return {name: _storable_value(value, (lengths or {}).get(name, _MAX_LABEL)) for name, value in row.items()}


def storable_event(row: Mapping[str, Any]) -> Row:
    """An event's row as the database takes it."""
    return storable(row, _LENGTHS)


def _storable_value(value: Any, length: int) -> Any:
    if isinstance(value, str):
        return value.replace("\x00", "?").encode("utf-8", "replace").decode("utf-8")[:length]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return None
    return value


# On disk an entry is [kind, row, labels]; the words are those of the first version, whose files may still wait.


def to_spool(entry: Entry) -> tuple[str, Row, dict[str, str]] | None:
    """An entry as the spool keeps it; None for one that is of no use later."""
    match entry:
        case Start(row):
            return "start", stored(row), storable(row.labels)
        case Begun(row, labels):
            return "start", row, dict(labels)
        case Settled(row, labels):
            return "settle", row, dict(labels)
        case Annotation(attempt_id, metadata):
            return "metadata", {"attempt_id": attempt_id, "metadata": dict(metadata)}, {}
        case Event(row):
            return "event", row, {}
    return None


def from_spool(kind: str, row: Row, labels: dict[str, str]) -> Entry:
    """
    An entry that the spool has kept.

    Raises:
        ValueError: There is no such kind of entry.

        KeyError: It lacks what every entry of its kind has.
    """
    match kind:
        case "start":
            return Begun(row, labels)
        case "settle":
            return Settled(row, labels)
        case "metadata":
            return Annotation(row["attempt_id"], row["metadata"])
        case "event":
            return Event(row)
    raise ValueError(f"no entry is of the kind {kind!r}")
