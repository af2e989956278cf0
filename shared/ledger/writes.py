"""What each kind of entry changes in the ledger's tables: rows, labels, sums and running totals."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from shared.budget import Limit
from shared.internal.clock import new_id, now_us
from shared.ledger import accounts, sums
from shared.ledger.accounts import Admission, Latest
from shared.ledger.driver import Driver, Query, from_json, marks, names_of
from shared.ledger.row import COUNTS, AttemptRow, Status, dates
from shared.ledger.schema import account, attempt, bucket_of, event, label, unsummed

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


_LENGTHS = {c.name: c.type.length for c in (*attempt.c, *event.c) if isinstance(c.type, sa.String) and c.type.length}
_MAX_LABEL = 200
_MAX_LABEL_NAME = 60
# What is known of an attempt before it changes.
_BEFORE = ("attempt_id", "status", "cost_nano", "bound_nano", "reserved_nano", "metadata", "ts_us", "happened_us")
# What a row of a closed month is corrected in when it is settled late, by adjustments of these kinds.
_CORRECTED = ("cost_nano", "reserved_nano", *COUNTS)
LATE, RELEASE = CHANGES = ("late", "release")
_NO_REQUEST: Row = {
    "status": "reported", "operation": "adjustment", "attempt_number": 1, "calls": 0, "failed_calls": 0,
    "unpriced_calls": 0,
    **dict.fromkeys(
        ("duration_us", "first_chunk_us", "bound_nano", "lease_us", "finish_reason", "error_type", "http_status",
         "metadata")
    ),
}  # fmt: skip
_ALL = tuple(attempt.c.keys())
_DEFAULTS: Row = {c.name: c.default.arg for c in attempt.c if isinstance(c.default, sa.ColumnDefault)}
_DEFAULTS["cost_is_lower_bound"] = False
_BEFORE_SQL = f"SELECT {names_of(_BEFORE)} FROM attempt WHERE attempt_id"  # noqa: S608


class NeedsWholeLedger(Exception):
    """The entries can be written only while no other program writes."""


def apply(
    connection: Connection,
    entries: Sequence[Entry],
    *,
    is_alone: bool = True,
    is_repeated: bool = False,
    first: Sequence[Query] = (),
    and_commit: bool = False,
) -> dict[int, Admission]:
    """
    Write entries in the caller's transaction: read and lock all that they change, then change it.

    Args:
        is_alone: Whether no other program writes meanwhile, as always in SQLite.

        is_repeated: Whether they may have been written before: the outcome of their first commit is unknown. Written
            again, every entry leaves the ledger as it is.

        first: Statements to send before the first one.

        and_commit: Whether nothing else is written, so that the commit may be sent along.

    Returns:
        The status of the limits of each entry, by its `id`.

    Raises:
        NeedsWholeLedger: Nothing can be written while others may write.

        IntegrityError: An attempt is there that should be new; then write it as a repeated one.
    """
    batch = _Batch(connection, entries, is_alone=is_alone, is_repeated=is_repeated, first=first)
    return batch.write(entries, and_commit=and_commit)


class _Batch:
    """
    Some entries, and what they change: rows, labels, running totals, and which attempts the sums do not have yet.

    Locks are taken in one order, so that batches of different programs do not wait for each other in a circle: first
    the attempts by id, then the running totals by key. Whoever folds attempts into the sums waits for no batch.
    """

    def __init__(
        self,
        connection: Connection,
        entries: Sequence[Entry],
        *,
        is_alone: bool,
        is_repeated: bool,
        first: Sequence[Query],
    ) -> None:
        self._connection = connection
        self._driver = Driver.of(connection)
        self._is_alone = is_alone
        self._is_repeated = is_repeated
        self._known: dict[uuid.UUID, Row] = {}
        self._inserted: dict[uuid.UUID, Row] = {}
        self._updated: dict[uuid.UUID, Row] = {}
        self._labels: list[Row] = []
        self._events: list[Row] = []
        # Attempts for the sums to have; those that were settled before, and may be in them; and those that now change.
        self._unsummed: set[uuid.UUID] = set()
        self._were_settled: set[uuid.UUID] = set()
        self._changing: set[uuid.UUID] = set()
        self._stored: dict[int, tuple[Row, Labels]] = {
            id(each): (stored(each.row), storable(each.row.labels)) for each in entries if isinstance(each, Start)
        }
        # The end of the last closed month, and the rows of entries that are dated otherwise because of it.
        self._closed_us = 0
        self._dated: dict[int, Row] = {}
        self._totals = self._locked(entries, first)

    def write(self, entries: Sequence[Entry], *, and_commit: bool) -> dict[int, Admission]:
        """Write the entries, one after the other."""
        found = {id(each): self._apply(each) for each in entries}
        self._flush(is_last=and_commit)
        return found

    def _locked(self, entries: Sequence[Entry], first: Sequence[Query]) -> accounts.Totals:
        """Read and lock the attempts and running totals that the entries belong to."""
        guess: accounts.Terms = self._connection.info.get("terms") or accounts.Terms()
        ids = sorted({_id_of(each) for each in entries if self._may_be_known(each)})
        queries = [*first, (accounts.TERMS, ()), *([self._before(ids)] if ids else [])]
        places = self._places(entries, guess)
        queries += [self._totals_of(places, entries)] if places else []
        queries += [(accounts.LATEST, ())] if self._needs_latest(entries, guess) else []
        found = self._driver.read(*queries)[len(first) :]
        terms = accounts.terms_of(tuple(tuple(row) for row in found[0]))
        for row in found[1] if ids else ():
            self._know(row)
        self._closed_us = terms.closed_us
        # Where entries are dated to now, the running totals of now are needed.
        if not self._date(entries) and terms == guess:
            rest = found[2 if ids else 1 :]
        else:
            self._connection.info["terms"] = terms
            places = self._places(entries, terms)
            again = [self._totals_of(places, entries)] if places else []
            again += [(accounts.LATEST, ())] if self._needs_latest(entries, terms) else []
            rest = self._driver.read(*again) if again else []
        totals = rest[0] if places else []
        latest = [Latest(*row) for row in rest[-1]] if self._needs_latest(entries, terms) else []
        return accounts.Totals(terms, totals, latest[0] if latest else None)

    def _may_be_known(self, entry: Entry) -> bool:
        """Whether the ledger may have a row for the entry's attempt."""
        return not isinstance(entry, Event) and (self._is_repeated or not isinstance(entry, Start))

    def _know(self, row: Sequence[Any]) -> None:
        before = dict(zip(_BEFORE, row, strict=True))
        before["metadata"] = from_json(before["metadata"])
        found = before["attempt_id"]
        attempt_id = found if isinstance(found, uuid.UUID) else uuid.UUID(found)
        self._known[attempt_id] = before
        if before["status"] != "started":
            self._were_settled.add(attempt_id)

    def _before(self, ids: Sequence[uuid.UUID]) -> Query:
        if self._connection.dialect.name == "sqlite":
            return f"{_BEFORE_SQL} IN ({marks(len(ids))})", ids
        return f"{_BEFORE_SQL} = ANY(%s) ORDER BY attempt_id FOR UPDATE", [list(ids)]

    def _places(self, entries: Sequence[Entry], terms: accounts.Terms) -> set[tuple[str, str]]:
        places: set[tuple[str, str]] = set()
        for each in entries:
            if isinstance(each, Annotation | Event):
                continue
            row, labels = self._row_of(each)
            places |= accounts.places_of(terms, row, labels, getattr(each, "limits", ()))
        return places

    def _row_of(self, entry: Start | Begun | Settled | Expired) -> tuple[Row, Labels]:
        if isinstance(entry, Start):
            row, labels = self._stored[id(entry)]
        else:
            row, labels = entry.row, {} if isinstance(entry, Expired) else entry.labels
        return self._dated.get(id(entry), row), labels

    def _date(self, entries: Sequence[Entry]) -> bool:
        """
        Date what belongs to a closed month to now, and keep the date of what was entered so before.

        Returns:
            Whether there is any; there never is among calls that are made now.
        """
        now = max(now_us(), self._closed_us)  # also where a clock is behind
        for each in entries if self._closed_us else ():
            if isinstance(each, Annotation | Event):
                continue
            row, before = self._row_of(each)[0], self._known.get(_id_of(each))
            if before is not None and before["ts_us"] >= self._closed_us:
                if before["happened_us"] is None and row["ts_us"] >= self._closed_us:
                    continue
                new = dates(before["ts_us"], before["happened_us"])
            elif before is not None:
                new = dates(now, before["ts_us"])
            elif row["ts_us"] < self._closed_us:
                new = dates(now, row.get("happened_us") or row["ts_us"])
            else:
                continue
            if row.get("adjustment_kind"):  # the call that has a price now is one of another month
                new["unpriced_calls"] = 0
            self._dated[id(each)] = row | new
        return bool(self._dated)

    def _is_closed(self, before: Row) -> bool:
        """Whether a row is part of a closed month, and stays as it is."""
        return bool(before["ts_us"] < self._closed_us)

    def _totals_of(self, places: Iterable[tuple[str, str]], entries: Sequence[Entry]) -> Query:
        times = [self._row_of(each)[0]["ts_us"] for each in entries if not isinstance(each, Annotation | Event)]
        return accounts.totals_query(self._connection, places, times)

    def _needs_latest(self, entries: Sequence[Entry], terms: accounts.Terms) -> bool:
        starts = [each for each in entries if isinstance(each, Start)]
        return any(accounts.is_dated(limit) for each in starts for limit in (*each.limits, *terms.limits))

    def _apply(self, entry: Entry) -> Admission:
        match entry:
            case Start():
                return self._start(entry)
            case Begun():
                self._begin(*self._row_of(entry))
            case Settled():
                row, labels = self._row_of(entry)
                if entry.with_statuses:
                    self._open(row, labels, entry.limits)
                self._settle(row, labels)
                if entry.with_statuses:
                    return Admission(self._totals.statuses(row, labels, entry.limits))
            case Expired(row):
                if self._known.get(row["attempt_id"], {}).get("status") == "started":
                    self._settle(row, {})
            case Annotation(attempt_id, metadata):
                before = self._known.get(attempt_id)
                if before is not None and self._is_closed(before):
                    metadata = {name: value for name, value in metadata.items() if name not in sums.IN_METADATA}
                if before is not None:
                    self._update(attempt_id, {"metadata": {**(before["metadata"] or {}), **metadata}})
                    if not sums.IN_METADATA.isdisjoint(metadata):
                        self._changing |= {attempt_id} & self._were_settled
            case Event(row):
                self._events.append(row)
        return Admission()

    def _start(self, entry: Start) -> Admission:
        """Write the row of an attempt, if its limits admit it; else return why not, and record a final refusal."""
        row, labels = self._row_of(entry)
        known = self._known.get(row["attempt_id"])
        self._open(row, labels, entry.limits)
        found = self._totals.statuses(row, labels, entry.limits)
        if known is not None and known["status"] == "started":
            return Admission(found)  # it was admitted, and its own hold must not count against it
        refusal = self._totals.check(row, found)
        if refusal is None:
            if known is not None and known["status"] == "refused" and not self._is_closed(known):
                self._forget_refusal(row["attempt_id"])
            self._begin(row, labels)
            return Admission(found)
        refusing, reason = refusal
        self._flush()  # what is reserved and under way is added up from the rows
        admission = Admission(found, accounts.with_parts(self._connection, refusing), reason)
        if reason == "hold_max":
            return admission  # not final: the caller can hold the most that is known
        least_nano = entry.least() if entry.least is not None and reason == "no room" else None
        if least_nano is not None and least_nano <= admission.left_nano:
            return admission  # not final: the caller can cut the answer to what is left
        ends_call = not entry.is_part and (entry.is_last or refusing.limit.budget.on_exceed == "refuse")
        refused = entry.row.refused("BudgetExceeded", failed_calls=int(ends_call))
        self._settle(stored(refused) | {name: row[name] for name in dates(0, None)}, labels)
        return admission.recorded_as(refused)

    def _open(self, row: Row, labels: Labels, limits: Sequence[Limit]) -> None:
        """Begin the running totals that its limits need and that are not there yet."""
        missing = self._totals.missing(row, labels, limits)
        if missing and not self._is_alone:
            raise NeedsWholeLedger
        if missing:
            self._flush()  # they are added up from the rows
        for limit, key in missing:
            self._totals.open(self._connection, limit, key, row, labels)

    def _forget_refusal(self, attempt_id: uuid.UUID) -> None:
        """Take back the record of a refusal that the caller was never told of, because there is room now."""
        self._flush()
        self._known.pop(attempt_id)
        sums.before_change(self._connection, attempt_id)
        self._connection.execute(sa.delete(label).where(label.c.attempt_id == attempt_id))
        self._connection.execute(sa.delete(attempt).where(attempt.c.attempt_id == attempt_id))

    def _begin(self, row: Row, labels: Labels) -> None:
        if row["attempt_id"] not in self._known:
            self._insert(row, labels)
            self._totals.move(None, row, labels)
            if row["status"] != "started":  # in a spool file that was edited
                self._unsummed.add(row["attempt_id"])

    def _settle(self, row: Row, labels: Labels) -> None:
        """
        Replace the row, change the running totals by the difference to the row before, and note it for the sums.

        So they stay exact if an attempt is settled late, twice, or without its start.
        """
        before = self._known.get(row["attempt_id"])
        before = None if before is None else dict(before)
        if before is not None and self._is_closed(before):
            change = self._correction(row)
            if change is None:
                return
            row, before = change, None
        if before is None:
            self._insert(row, labels)
        else:
            # What an event has added meanwhile stays.
            row = row | {"metadata": {**(before["metadata"] or {}), **(row.get("metadata") or {})} or None}
            if before["status"] != "started" and None not in (before["reserved_nano"], row.get("reserved_nano")):
                # What an operator has released stays released.
                row["reserved_nano"] = min(before["reserved_nano"], row["reserved_nano"])
            self._update(row["attempt_id"], row)
            self._changing |= {row["attempt_id"]} & self._were_settled
        self._unsummed.add(row["attempt_id"])
        self._totals.move(before, row, labels)

    def _correction(self, row: Row) -> Row | None:
        """What a row of a closed month lacks to be as `row` is, as an adjustment; None if it lacks nothing."""
        self._flush()
        attempt_id = row["attempt_id"]
        query = sa.select(*(attempt.c[name] for name in _CORRECTED))
        changed = query.where(attempt.c.happened_us == row["happened_us"], attempt.c.adjusts == str(attempt_id))
        found = [
            self._connection.execute(query.where(attempt.c.attempt_id == attempt_id)).mappings().one(),
            *self._connection.execute(changed.where(attempt.c.adjustment_kind.in_(CHANGES))).mappings(),
        ]
        known = {name: sum(each[name] or 0 for each in found) for name in _CORRECTED}
        change = {name: 0 if row.get(name) is None else row[name] - known[name] for name in _CORRECTED}
        # What an operator has released stays released.
        change["reserved_nano"] = min(0, (row.get("reserved_nano") or 0) - known["reserved_nano"])
        if not any(change.values()):
            return None
        source = row["cost_source"] if row.get("cost_nano") is not None else "reported"
        return correction(row, LATE, change | {"cost_source": source})

    def _insert(self, row: Row, labels: Labels) -> None:
        attempt_id = row["attempt_id"]
        self._inserted[attempt_id] = self._known[attempt_id] = _DEFAULTS | dict.fromkeys(_BEFORE) | row
        self._labels += [{"attempt_id": attempt_id, "name": name, "value": value} for name, value in labels.items()]

    def _update(self, attempt_id: uuid.UUID, values: Row) -> None:
        """Change columns of a row that is there, or will be."""
        changed = self._inserted if attempt_id in self._inserted else self._updated
        changed[attempt_id] = changed.get(attempt_id, {"attempt_id": attempt_id}) | values
        self._known[attempt_id] = self._known[attempt_id] | values

    def _flush(self, *, is_last: bool = False) -> None:
        """Write what has changed so far; then nothing but the commit may be left, which PostgreSQL gets with it."""
        inserted, self._inserted = list(self._inserted.values()), {}
        updated, self._updated = self._updated, {}
        labels, self._labels = self._labels, []
        events, self._events = self._events, []
        changing, self._changing = self._changing, set()
        noted, self._unsummed = self._unsummed, set()
        for attempt_id in sorted(changing):
            sums.before_change(self._connection, attempt_id)
        with self._driver.together(and_commit=is_last):
            if inserted:
                self._driver.insert(attempt, inserted, _ALL, may_be=False)
            for names, rows in _by_names(updated):
                self._driver.change(attempt, rows, names)
            if labels:
                self._driver.insert(label, labels, ("attempt_id", "name", "value"))
            if events:
                self._driver.insert(event, events, tuple(event.c.keys()))
            if changes := self._totals.taken_changes():
                self._driver.change(account, changes, ("counted_nano",), add=True)
            if noted:
                self._driver.insert(unsummed, [{"attempt_id": each} for each in sorted(noted)], ("attempt_id",))


def correction(row: Row, kind: str, change: Row) -> Row:
    """
    The adjustment of an attempt of a closed month.

    Args:
        row: The attempt, dated to now.

        kind: One of CHANGES.

        change: What it adds to the attempt's columns.
    """
    new = {"attempt_id": new_id(), "call_id": new_id(), "adjustment_kind": kind, "adjusts": str(row["attempt_id"])}
    return row | dict.fromkeys(_CORRECTED, 0) | _NO_REQUEST | change | new


def _id_of(entry: Entry) -> uuid.UUID:
    match entry:
        case Annotation(attempt_id, _):
            return attempt_id
        case Start(row):
            return row.attempt_id
        case Event():
            raise TypeError("an event belongs to no attempt")
        case _:
            found: uuid.UUID = entry.row["attempt_id"]
            return found


def _by_names(updated: Mapping[uuid.UUID, Row]) -> list[tuple[tuple[str, ...], list[Row]]]:
    """Rows by the columns that they change."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for attempt_id in sorted(updated):
        row = updated[attempt_id]
        groups.setdefault(tuple(name for name in row if name != "attempt_id"), []).append(row)
    return list(groups.items())


def stored(row: AttemptRow) -> Row:
    """An attempt as values for the database."""
    return storable(row.columns(), _LENGTHS)


def storable(row: Mapping[str, Any], lengths: Mapping[str, int] | None = None) -> Row:
    """`row` with texts and numbers that every database accepts: cut to length, without NUL, within 64 bits."""
    longest = lengths or {}
    return {
        name: None if value is None else _storable_value(value, longest.get(name, _MAX_LABEL))
        for name, value in row.items()
    }


def storable_event(row: Mapping[str, Any]) -> Row:
    """An event's row as values for the database."""
    return storable(row, _LENGTHS)


def _storable_value(value: Any, length: int) -> Any:
    if isinstance(value, str):
        if len(value) <= length and value.isascii() and "\x00" not in value:
            return value
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
_MOST = {
    "cost_nano": 10**15,
    "bound_nano": 10**15,
    "reserved_nano": 10**15,
    "ts_us": 10**16,
    "lease_us": 10**17,
    "happened_us": 10**16,
}
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
