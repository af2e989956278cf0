"""Forgetting whose calls were: the money stays in every total, and the name of its owner goes from everything."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from shared.ledger import sums
from shared.ledger.accounts import group_with
from shared.ledger.driver import Driver
from shared.ledger.events import uuid_of
from shared.ledger.schema import (
    BUCKET_S,
    GRAINS,
    account,
    alert,
    attempt,
    budget,
    event,
    label,
    latency,
    sums as stored_sums,
    taken_back,
    taken_back_label,
)
from shared.ledger.spool import SpoolEntry
from shared.ledger.store import Ledger

# What stands where the value of a label was: without any, its calls would become calls of nobody.
FORGOTTEN = "(forgotten)"
_DAY_US = 86_400 * 10**6
_EVENTS = 500
# What else may say whose a call was.
_NAMELESS: Mapping[str, Any] = {"conversation": None, "run": None, "key_alias": None, "response_id": None}


@dataclass(frozen=True, slots=True)
class Known:
    """How much there is of a label's value: records, days of sums, events, running totals and stored budgets."""

    records: int
    sums: int
    events: int
    accounts: int
    budgets: int

    def __bool__(self) -> bool:
        return any((self.records, self.sums, self.events, self.accounts, self.budgets))


def known_of(ledger: Ledger, name: str, value: str) -> Known:
    """
    How much the ledger knows of a label's value.

    Raises:
        StoreError: The ledger cannot be read.
    """
    ledger.flush()
    with ledger.reading() as connection:
        return Known(
            _count(connection, label, label.c.name == name, label.c.value == value),
            _count(connection, stored_sums, *_of_owner(stored_sums, name, value)),
            _count(connection, event, event.c.labels[name].as_string() == value),
            len(_accounts(connection, account, name, value)),
            _count(connection, budget, budget.c.scope == name, budget.c.value == value),
        )


def forget(ledger: Ledger, name: str, value: str, progress: Callable[[int], None] = lambda _: None) -> None:
    """
    Replace a label's value by FORGOTTEN, and remove what else may say whose the calls were, a UTC day at a time.

    Costs stay, in all sums. If it is interrupted, doing it again goes on.

    Args:
        progress: Told how many records of a day are done.

    Raises:
        StoreError: The ledger cannot be written.
    """
    ledger.flush()
    while days := _days(ledger, name, value):
        for day in days:
            progress(_forget_day(ledger, name, value, day))
    while _forget_events(ledger, name, value):
        pass
    with ledger.changing() as connection:
        for table in (account, alert):
            for key in _accounts(connection, table, name, value):
                connection.execute(sa.delete(table).where(*(table.c[part] == each for part, each in key.items())))
        connection.execute(sa.delete(budget).where(budget.c.scope == name, budget.c.value == value))
    while sums.fold(ledger):
        pass
    ledger.change_dead_letters(lambda entry: nameless(entry, name, value))


def nameless(entry: SpoolEntry, name: str, value: str) -> SpoolEntry:
    """An entry of a spool file without a label's value, if it has it, and without what else says whose it is."""
    kind, row, labels = entry
    in_row = row.get("labels") if isinstance(row.get("labels"), dict) else {}
    if labels.get(name) != value and (in_row or {}).get(name) != value:
        return entry
    row = row | {each: None for each in (*_NAMELESS, "metadata") if each in row}
    if in_row:
        row["labels"] = in_row | {name: FORGOTTEN}
    return kind, row, labels | ({name: FORGOTTEN} if name in labels else {})


def _count(connection: Connection, table: sa.Table, *conditions: sa.ColumnElement[bool]) -> int:
    return connection.scalar(sa.select(sa.func.count()).select_from(table).where(*conditions)) or 0


def _of_owner(table: sa.Table, name: str, value: str) -> tuple[sa.ColumnElement[bool], ...]:
    return table.c.owner == sums.Owner.of_label(name).owner, table.c.value == value


def _accounts(connection: Connection, table: sa.Table, name: str, value: str) -> list[dict[str, Any]]:
    """The keys of the running totals, or of the alerts about them, that are of a label's value."""
    keys = ("dimensions", "whose", "since_us", "until_us")
    own = table.c.dimensions.contains(json.dumps(f"label:{name}", ensure_ascii=False), autoescape=True)
    found = connection.execute(sa.select(*(table.c[each] for each in keys)).where(own).distinct()).mappings()
    return [dict(row) for row in found if group_with(row["dimensions"], row["whose"], f"label:{name}", value)]


def _days(ledger: Ledger, name: str, value: str) -> list[int]:
    """The UTC days that have records or sums of a label's value, by their first second."""
    day = GRAINS[-1]
    in_rows = sa.select(attempt.c.bucket).join(label, label.c.attempt_id == attempt.c.attempt_id)
    in_rows = in_rows.where(label.c.name == name, label.c.value == value).distinct()
    with ledger.reading() as connection:
        seconds = {bucket * BUCKET_S for bucket in connection.scalars(in_rows)}
        for table in (stored_sums, latency):
            seconds.update(
                connection.scalars(sa.select(table.c.start).where(*_of_owner(table, name, value)).distinct())
            )
    return sorted({second // day * day for second in seconds})


def _forget_day(ledger: Ledger, name: str, value: str, day: int) -> int:
    """Forget a label's value in the records of a day and in their sums, which stay what the records add up to."""
    since_us = day * 10**6
    inside = (attempt.c.ts_us >= since_us, attempt.c.ts_us < since_us + _DAY_US)
    own = (label.c.name == name, label.c.value == value)
    with ledger.changing() as connection:
        sums.move_owner(connection, sums.Owner.of_label(name, value), FORGOTTEN, day)
        query = sa.select(attempt.c.attempt_id, attempt.c.metadata, attempt.c.adjusts)
        query = query.join(label, label.c.attempt_id == attempt.c.attempt_id).where(*inside, *own)
        rows = [
            {**row, **_NAMELESS, "metadata": _numbers(row["metadata"]), "adjusts": _without(row["adjusts"], value)}
            for row in connection.execute(query).mappings()
        ]
        driver = Driver.of(connection)
        for first in range(0, len(rows), _EVENTS):
            page = rows[first : first + _EVENTS]
            driver.change(attempt, page, (*_NAMELESS, "metadata", "adjusts"))
            named = [{"attempt_id": row["attempt_id"], "name": name, "value": FORGOTTEN} for row in page]
            driver.change(label, named, ("value",))
        taken = sa.select(taken_back.c.taken_id).where(
            taken_back.c.ts_us >= since_us, taken_back.c.ts_us < since_us + _DAY_US
        )
        of_day = (taken_back_label.c.name == name, taken_back_label.c.value == value)
        forgotten = sa.update(taken_back_label).where(*of_day, taken_back_label.c.taken_id.in_(taken))
        connection.execute(forgotten.values(value=FORGOTTEN))
    return len(rows)


def _numbers(metadata: Any) -> dict[str, Any] | None:
    """Of metadata, what is in the sums, which must stay."""
    found = metadata if isinstance(metadata, dict) else {}
    return {name: number for name, number in found.items() if name in sums.IN_METADATA} or None


def _without(text: str | None, value: str) -> str | None:
    """What an adjustment refers to, unless it names the value."""
    is_name = text is not None and uuid_of(text) is None and value.casefold() in text.casefold()
    return FORGOTTEN if is_name else text


def _forget_events(ledger: Ledger, name: str, value: str) -> int:
    page = sa.select(event.c.event_id, event.c.labels).where(event.c.labels[name].as_string() == value).limit(_EVENTS)
    with ledger.changing() as connection:
        rows = connection.execute(page).all()
        changed = [
            {"event_id": event_id, "labels": labels | {name: FORGOTTEN}, "metadata": None, "conversation": None,
             "run": None}
            for event_id, labels in rows
        ]  # fmt: skip
        if changed:
            Driver.of(connection).change(event, changed, ("labels", "metadata", "conversation", "run"))
    return len(rows)
