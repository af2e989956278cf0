"""What each kind of entry changes in the ledger's tables: rows, labels, sums and running totals."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, get_args

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from shared.budget import Limit
from shared.ledger import accounts, sums
from shared.ledger.accounts import Admission
from shared.ledger.row import AttemptRow, Status
from shared.ledger.schema import attempt, bucket_of, event, label

Row = dict[str, Any]
Labels = Mapping[str, str]


# Gives the bound, in nano-dollars, of the shortest answer worth paying for; None if the answer cannot be cut. It is
# called only when a budget has no room for the whole bound.
type LeastBound = Callable[[], int | None]


@dataclass(frozen=True, slots=True)
class Start:
    """An attempt starts, if its limits have room for the most that it can cost."""

    row: AttemptRow
    limits: tuple[Limit, ...] = ()
    least: LeastBound | None = None
    # Whether a refusal ends the call even under a budget with on_exceed="downgrade". A refused part never ends it.
    is_last: bool = True
    is_part: bool = False


@dataclass(frozen=True, slots=True)
class Begun:
    """An attempt that started while the ledger could not be written; recorded without a check of budgets."""

    row: Row
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settled:
    """An attempt has ended; it may be settled again, and its start may be missing."""

    row: Row
    labels: Labels = field(default_factory=dict)
    limits: tuple[Limit, ...] = ()
    with_statuses: bool = False


@dataclass(frozen=True, slots=True)
class Expired:
    """The lease of an attempt has ended; ignored if the attempt was settled in the meantime."""

    row: Row


@dataclass(frozen=True, slots=True)
class Annotation:
    """More metadata for an attempt."""

    attempt_id: uuid.UUID
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """An event without money."""

    row: Row


type Entry = Start | Begun | Settled | Expired | Annotation | Event


@dataclass(frozen=True, slots=True)
class _Statements:
    """The statements for writing, built once per dialect because building one takes longer than running it."""

    insert_attempt: Any
    insert_label: Any
    insert_event: Any


_LENGTHS = {c.name: c.type.length for c in (*attempt.c, *event.c) if isinstance(c.type, sa.String) and c.type.length}
_MAX_LABEL = 200
_MAX_LABEL_NAME = 60
_KNOWN = attempt.c.attempt_id == sa.bindparam("known")
# FOR UPDATE only affects PostgreSQL; in SQLite a writer locks the whole database anyway.
_SELECT_BEFORE = (
    sa.select(*(attempt.c[name] for name in ("status", "cost_nano", "bound_nano", "reserved_nano", "metadata")))
    .where(_KNOWN)
    .with_for_update()
)
_SELECT_STATUS = sa.select(attempt.c.status).where(_KNOWN).with_for_update()
_UPDATE = sa.update(attempt).where(_KNOWN)


@lru_cache(maxsize=2)
def _statements(dialect: str) -> _Statements:
    insert: Any = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return _Statements(
        insert_attempt=insert(attempt).on_conflict_do_nothing(),
        insert_label=insert(label).on_conflict_do_nothing(),
        insert_event=insert(event).on_conflict_do_nothing(),
    )


def apply(connection: Connection, entry: Entry, *, is_repeated: bool = False) -> Admission:
    """
    Write one entry in the caller's transaction, which must hold the write lock.

    Args:
        is_repeated: Whether it may have been written before: the outcome of its first commit is unknown. Written again,
            every entry leaves the ledger as it is.

    Returns:
        The status of its limits.
    """
    write = _statements(connection.dialect.name)
    match entry:
        case Start():
            return _start(connection, write, entry, is_repeated=is_repeated)
        case Begun(row, labels):
            _begin(connection, write, row, labels)
        case Settled(row, labels):
            _settle(connection, write, row, labels)
            if entry.with_statuses:
                return Admission(accounts.statuses(connection, row, labels, entry.limits))
        case Expired(row):
            if connection.scalar(_SELECT_STATUS, {"known": row["attempt_id"]}) == "started":
                _settle(connection, write, row, {})
        case Annotation(attempt_id, metadata):
            _annotate(connection, attempt_id, metadata)
        case Event(row):
            connection.execute(write.insert_event, row)
    return Admission()


def _start(connection: Connection, write: _Statements, entry: Start, *, is_repeated: bool) -> Admission:
    """Write the row of an attempt, if its limits admit it; else return why not, and record a final refusal."""
    row, labels = stored(entry.row), storable(entry.row.labels)
    status = connection.scalar(_SELECT_STATUS, {"known": row["attempt_id"]}) if is_repeated else None
    if status == "started":  # it was admitted, and its own hold must not count against it
        return Admission(accounts.statuses(connection, row, labels, entry.limits))
    admission = accounts.check(connection, row, labels, entry.limits)
    refusing = admission.refused_by
    if refusing is None:
        if status == "refused":
            _forget_refusal(connection, row["attempt_id"])
        _begin(connection, write, row, labels)
        return admission
    if admission.reason == "hold_max":
        return admission  # not final: the caller can hold the most that is known
    least_nano = entry.least() if entry.least is not None and admission.reason == "no room" else None
    if least_nano is not None and least_nano <= admission.left_nano:
        return admission  # not final: the caller can cut the answer to what is left
    ends_call = not entry.is_part and (entry.is_last or refusing.limit.budget.on_exceed == "refuse")
    refused = entry.row.refused("BudgetExceeded", failed_calls=int(ends_call))
    _settle(connection, write, stored(refused), labels)
    return admission.recorded_as(refused)


def _forget_refusal(connection: Connection, attempt_id: uuid.UUID) -> None:
    """Take back the record of a refusal that the caller was never told of, because there is room now."""
    sums.before_change(connection, attempt_id)
    connection.execute(sa.delete(label).where(label.c.attempt_id == attempt_id))
    connection.execute(sa.delete(attempt).where(attempt.c.attempt_id == attempt_id))


def _annotate(connection: Connection, attempt_id: uuid.UUID, metadata: Mapping[str, Any]) -> None:
    known = {"known": attempt_id}
    before = connection.execute(_SELECT_BEFORE, known).mappings().one_or_none()
    if before is None:
        return
    if before["status"] != "started" and not sums.IN_METADATA.isdisjoint(metadata):
        sums.before_change(connection, attempt_id)
    connection.execute(_UPDATE, known | {"metadata": {**(before["metadata"] or {}), **metadata}})


def _begin(connection: Connection, write: _Statements, row: Row, labels: Labels) -> None:
    if _inserted(connection, write, row):
        _add_labels(connection, write, row["attempt_id"], labels)
        accounts.move(connection, None, row, labels)
        if row["status"] != "started":  # in a spool file that was edited
            sums.note(connection, row["attempt_id"])


def _settle(connection: Connection, write: _Statements, row: Row, labels: Labels) -> None:
    """
    Replace the row, change the running totals by the difference to the row before, and note it for the sums.

    So they stay exact if an attempt is settled late, twice, or without its start.
    """
    known = {"known": row["attempt_id"]}
    before = connection.execute(_SELECT_BEFORE, known).mappings().one_or_none()
    if before is None and not _inserted(connection, write, row):
        # Another process has inserted it between the two statements.
        before = connection.execute(_SELECT_BEFORE, known).mappings().one()
    if before is None:
        _add_labels(connection, write, row["attempt_id"], labels)
    else:
        # What an event has added meanwhile stays.
        row = row | {"metadata": {**(before["metadata"] or {}), **(row.get("metadata") or {})} or None}
        if before["status"] != "started" and None not in (before["reserved_nano"], row.get("reserved_nano")):
            # What an operator has released stays released.
            row["reserved_nano"] = min(before["reserved_nano"], row["reserved_nano"])
        if before["status"] != "started":
            sums.before_change(connection, row["attempt_id"])
        connection.execute(_UPDATE, known | {name: value for name, value in row.items() if name != "attempt_id"})
    sums.note(connection, row["attempt_id"])
    accounts.move(connection, None if before is None else dict(before), row, labels)


def _inserted(connection: Connection, write: _Statements, row: Row) -> bool:
    options = {"preserve_rowcount": True}
    return connection.execute(write.insert_attempt, row, execution_options=options).rowcount == 1


def _add_labels(connection: Connection, write: _Statements, attempt_id: uuid.UUID, labels: Labels) -> None:
    if labels:
        rows = [{"attempt_id": attempt_id, "name": name, "value": value} for name, value in labels.items()]
        connection.execute(write.insert_label, rows)


def stored(row: AttemptRow) -> Row:
    """An attempt as values for the database."""
    return storable(row.columns(), _LENGTHS)


def storable(row: Mapping[str, Any], lengths: Mapping[str, int] | None = None) -> Row:
    """`row` with texts and numbers that every database accepts: cut to length, without NUL, within 64 bits."""
    return {name: _storable_value(value, (lengths or {}).get(name, _MAX_LABEL)) for name, value in row.items()}


def storable_event(row: Mapping[str, Any]) -> Row:
    """An event's row as values for the database."""
    return storable(row, _LENGTHS)


def _storable_value(value: Any, length: int) -> Any:
    if isinstance(value, str):
        return value.replace("\x00", "?").encode("utf-8", "replace").decode("utf-8")[:length]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return None
    return value


# In the spool file an entry is [kind, row, labels]. The kinds keep their names: files of older versions may still wait.


def to_spool(entry: Entry) -> tuple[str, Row, dict[str, str]] | None:
    """An entry for the spool file; None for one that is not worth keeping."""
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
    An entry from the spool file, checked like any input: the file may have been damaged, or edited.

    Raises:
        ValueError: The kind is unknown, or a value is not one that this program writes.

        KeyError: A required value is missing.
    """
    match kind:
        case "start":
            return Begun(_checked_attempt(row), _checked_labels(labels))
        case "settle":
            return Settled(_checked_attempt(row), _checked_labels(labels))
        case "metadata":
            return Annotation(_checked_id(row["attempt_id"]), dict(row["metadata"]))
        case "event":
            return Event(_checked(row, event))
    raise ValueError(f"unknown kind of entry: {kind!r}")


# No attempt costs or counts more. Sums of more than that could exceed what the database can store.
_MOST = {"cost_nano": 10**15, "bound_nano": 10**15, "reserved_nano": 10**15, "ts_us": 10**16, "lease_us": 10**17}
_MOST |= dict.fromkeys(("calls", "failed_calls", "unpriced_calls"), 1)
_MOST_OTHER = 10**13
_TYPES: tuple[tuple[type[Any], type[Any]], ...] = (
    (sa.Uuid, uuid.UUID),
    (sa.Boolean, bool),
    (sa.Integer, int),
    (sa.String, str),
    (sa.JSON, dict),
)


def _checked_attempt(row: Row) -> Row:
    checked = _checked(row, attempt)
    if checked["status"] not in get_args(Status) or checked["bucket"] != bucket_of(checked["ts_us"]):
        raise ValueError("not a row that this program writes")
    may_be_negative = {"cost_nano"} if checked["operation"] == "adjustment" else set()
    for name, value in checked.items():
        if isinstance(value, int) and abs(value) > _MOST.get(name, _MOST_OTHER):
            raise ValueError(f"{name} is too large")
        if isinstance(value, int) and value < 0 and name not in may_be_negative:
            raise ValueError(f"{name} is negative")
    return checked


def _checked(row: Row, table: sa.Table) -> Row:
    """A row with the columns of a table, each of its type."""
    for column in table.c:
        has_default = column.default is not None or column.server_default is not None
        if not column.nullable and not has_default and row[column.name] is None:
            raise ValueError(f"{column.name} is empty")
    for name, value in row.items():
        column = table.c[name]
        wanted = next(python for kind, python in _TYPES if isinstance(column.type, kind))
        if value is None and column.nullable:
            continue
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise ValueError(f"{name} is not of its type")
    return storable(row, _LENGTHS)


def _checked_id(value: Any) -> uuid.UUID:
    return value if isinstance(value, uuid.UUID) else uuid.UUID(value)


def _checked_labels(labels: dict[str, str]) -> dict[str, str]:
    for name, value in labels.items():
        if not isinstance(value, str) or not 0 < len(name) <= _MAX_LABEL_NAME:
            raise ValueError("not a label")
    return storable(labels)
