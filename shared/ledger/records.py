"""The attempts as records for exports: as JSON that the database writes, or as dicts."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from shared.internal.money import to_usd
from shared.ledger.query import Filter, Window, conditions
from shared.ledger.schema import attempt
from shared.ledger.store import Ledger
from shared.ledger.sums import warn_of_removed

_HIDDEN = frozenset({"bucket", "lease_us", "calls", "failed_calls", "unpriced_calls", "machine", "ts_us"})
_COLUMNS = tuple(column for column in attempt.c if column.name not in _HIDDEN)
# Attempts read in one transaction, which no writer waits for long.
_PAGE = 2000
_ORDER = (attempt.c.ts_us, attempt.c.attempt_id)
# As the database has it: making a UUID of each would take half as long as all the rest.
_PLACE = (attempt.c.ts_us, sa.type_coerce(attempt.c.attempt_id, sa.String))


def attempt_records(
    ledger: Ledger, span: Window | None = None, which: Filter | None = None
) -> Iterator[dict[str, Any]]:
    """
    The attempts as plain dicts, oldest first.

    Raises:
        StoreError: The ledger cannot be read.
    """
    for line in attempt_lines(ledger, span, which):
        record = json.loads(line)
        record |= {name: uuid.UUID(record[name]) for name in ("attempt_id", "call_id")}
        record["time"] = datetime.fromisoformat(record["time"])
        record["cost_usd"] = to_usd(record["cost_nano"])
        yield record


def attempt_lines(ledger: Ledger, span: Window | None = None, which: Filter | None = None) -> Iterator[str]:
    """
    The same as JSON, which the database writes faster than Python could.

    Raises:
        StoreError: The ledger cannot be read.
    """
    return _lines(ledger, span, which or Filter(), _OBJECT_OF)


def attempt_values(ledger: Ledger, which: Filter | None = None) -> Iterator[str]:
    """
    Of each attempt the values of RECORD_NAMES, as a JSON array.

    Raises:
        StoreError: The ledger cannot be read.
    """
    return _lines(ledger, None, which or Filter(), _ARRAY_OF)


def _lines(
    ledger: Ledger, span: Window | None, which: Filter, line_of: Mapping[str, sa.ColumnElement[str]]
) -> Iterator[str]:
    line = line_of["postgresql" if ledger.file is None else "sqlite"]
    query = sa.select(*_PLACE, line).where(*conditions(which)).order_by(*_ORDER).limit(_PAGE)
    if span is not None:
        query = query.where(attempt.c.ts_us < span.until_us)
    after = sa.true() if span is None else attempt.c.ts_us >= span.since_us
    warn_of_removed(ledger, 0 if span is None else span.since_us, "this export")
    is_more = True
    while is_more:
        with ledger.reading() as connection:
            rows = connection.execute(query.where(after)).all()
        yield from (row[2] for row in rows)
        is_more = len(rows) == _PAGE
        if is_more:
            ts_us, attempt_id = rows[-1][0], uuid.UUID(str(rows[-1][1]))
            # The first condition says the same to SQLite, which finds the place by the index of it.
            after = sa.and_(attempt.c.ts_us >= ts_us, sa.tuple_(*_ORDER) > sa.tuple_(ts_us, attempt_id))


# What a record has beside the columns of an attempt, in words of each database.
_LABELS = "FROM label WHERE label.attempt_id = attempt.attempt_id"
_MICROSECONDS = "((ts_us % 1000000 + 1000000) % 1000000)"  # a remainder may be negative
_SQLITE = {
    "time": f"strftime('%Y-%m-%dT%H:%M:%S', (ts_us - {_MICROSECONDS}) / 1000000, 'unixepoch') "
    f"|| printf('.%06d+00:00', {_MICROSECONDS})",
    # An exact decimal number, and NULL where the cost is unknown.
    "cost_usd": "CASE WHEN cost_nano IS NOT NULL THEN json(CASE WHEN cost_nano < 0 THEN '-' ELSE '' END "
    "|| printf('%d.%09d', abs(cost_nano) / 1000000000, abs(cost_nano) % 1000000000)) END",
    "labels": f"(SELECT json_group_object(name, value) {_LABELS})",
}
_POSTGRESQL = {
    "time": "to_char(timestamp 'epoch' + ts_us * interval '1 microsecond', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"+00:00\"')",
    "cost_usd": "cost_nano / CAST(1000000000 AS numeric)",
    "labels": f"coalesce((SELECT json_object_agg(name, value) {_LABELS}), '{{}}')",
}


def _of_sqlite(column: sa.Column[Any]) -> str:
    """A column of SQLite as a value for JSON."""
    name = f"attempt.{column.name}"
    match column.type:
        case sa.Uuid():
            parts = ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12))
            return " || '-' || ".join(f"substr({name}, {first}, {size})" for first, size in parts)
        case sa.Boolean():
            return f"json(CASE {name} WHEN 1 THEN 'true' WHEN 0 THEN 'false' END)"
        case sa.JSON():
            # What was written by hand and is no JSON stays as text.
            return f"CASE WHEN json_valid({name}) THEN json({name}) ELSE {name} END"
    return name


_VALUES = {
    "sqlite": {column.name: _of_sqlite(column) for column in _COLUMNS} | _SQLITE,
    "postgresql": {column.name: f"attempt.{column.name}" for column in _COLUMNS} | _POSTGRESQL,
}
RECORD_NAMES = tuple(_VALUES["sqlite"])


def _in_sqlite() -> str:
    return f"json_object({', '.join(f"'{name}', {value}" for name, value in _VALUES['sqlite'].items())})"


def _in_postgresql() -> str:
    # A function takes no more than a hundred arguments.
    named = ", ".join(f'{value} AS "{name}"' for name, value in _VALUES["postgresql"].items())
    return f"CAST((SELECT row_to_json(record) FROM (SELECT {named}) AS record) AS text)"  # noqa: S608 - our own names


def _line(sql: str) -> sa.ColumnElement[str]:
    return sa.literal_column(sql, sa.Text).label("line")


_OBJECT_OF = {"sqlite": _line(_in_sqlite()), "postgresql": _line(_in_postgresql())}
_ARRAY_OF = {
    "sqlite": _line(f"json_array({', '.join(_VALUES['sqlite'].values())})"),
    "postgresql": _line(f"CAST(json_build_array({', '.join(_VALUES['postgresql'].values())}) AS text)"),
}
