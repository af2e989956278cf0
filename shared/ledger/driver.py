"""
Statements as text, given to the database's driver itself.

SQLAlchemy takes longer to build a statement than SQLite takes to run it, and PostgreSQL is asked several at a time: one
round trip for all that is read, and one for all that is written.
"""

from __future__ import annotations

import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from shared.ledger.deadline import progressed

Query = tuple[str, Sequence[Any]]
Key = tuple[str, ...]

_ARRAYS: tuple[tuple[type[Any], str], ...] = (
    (sa.Uuid, "uuid"),
    (sa.Boolean, "boolean"),
    (sa.BigInteger, "bigint"),
    (sa.Integer, "integer"),
    (sa.Float, "float"),
    (sa.String, "text"),
    (sa.JSON, "json"),
)


class Driver(ABC):
    """What both databases do in the same way: values for the driver, and its errors as SQLAlchemy's."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._raw: Any = connection.connection.driver_connection

    @staticmethod
    def of(connection: Connection) -> Driver:
        return Postgres(connection) if connection.dialect.name == "postgresql" else Sqlite(connection)

    @abstractmethod
    def read(self, *queries: Query) -> list[list[Any]]:
        """The rows of each query."""

    @abstractmethod
    def insert(self, table: sa.Table, rows: Sequence[Mapping[str, Any]], names: Key, *, may_be: bool = True) -> None:
        """Insert rows, but for those that are there already, if they may be."""

    @abstractmethod
    def change(self, table: sa.Table, rows: Sequence[Mapping[str, Any]], names: Key, *, add: bool = False) -> None:
        """Set columns of the rows with these primary keys, or add to them."""

    @contextmanager
    def together(self, *, and_commit: bool = False) -> Iterator[None]:  # noqa: ARG002 - SQLite sends nothing
        """What is written inside may be sent at once, also the commit, so that an error shows only at the end."""
        yield

    @contextmanager
    def _errors(self) -> Iterator[None]:
        dialect = self._connection.dialect
        assert dialect.dbapi is not None  # noqa: S101 - the engine is connected
        try:
            yield
        except dialect.dbapi.Error as error:
            is_lost = dialect.is_disconnect(error, self._connection.connection.dbapi_connection, None)
            if is_lost:
                self._connection.invalidate(error)
            raise sa.exc.DBAPIError.instance(
                None, None, error, dialect.dbapi.Error, connection_invalidated=is_lost, dialect=dialect
            ) from error


class Sqlite(Driver):
    """Each statement for itself: there is no way to go."""

    def read(self, *queries: Query) -> list[list[Any]]:
        found = []
        with self._errors():
            for text, values in queries:
                found.append(self._raw.execute(text, [_plain(value) for value in values]).fetchall())
                progressed()
        return found

    def insert(self, table: sa.Table, rows: Sequence[Mapping[str, Any]], names: Key, *, may_be: bool = True) -> None:
        self._many(_inserted(table, names, may_be), table, rows, names)

    def change(self, table: sa.Table, rows: Sequence[Mapping[str, Any]], names: Key, *, add: bool = False) -> None:
        self._many(_changed(table, names, add), table, rows, (*names, *_keys(table)))

    def _many(self, text: str, table: sa.Table, rows: Sequence[Mapping[str, Any]], names: Key) -> None:
        places = _places(table, names)
        values: list[list[Any]] = [[*map(row.get, names)] for row in rows]
        for each in values:
            for place in places.ids:
                each[place] = each[place].hex  # SQLite has no type for ids
            for place, is_null in places.json:
                each[place] = _json(each[place], is_null)
        with self._errors():
            self._raw.executemany(text, values)
        progressed()


class Postgres(Driver):
    """
    Many statements in one message, with the values in their text; many rows in one statement, as arrays.

    Sent one by one, each with its values apart, statements take the server and us about twice the time.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._held: list[Query] | None = None

    def read(self, *queries: Query) -> list[list[Any]]:
        with self._errors():
            cursor = self._send(queries)
            progressed()
            found = []
            for _ in queries:
                found.append(cursor.fetchall() if cursor.description else [])
                cursor.nextset()
            return found

    def insert(self, table: sa.Table, rows: Sequence[Mapping[str, Any]], names: Key, *, may_be: bool = True) -> None:
        one, many = f"VALUES ({marks(len(names), '%s')})", _unnest(table, names)
        self._write(_inserted(table, names, may_be, one if len(rows) == 1 else many), table, rows, names)

    def change(self, table: sa.Table, rows: Sequence[Mapping[str, Any]], names: Key, *, add: bool = False) -> None:
        text = _changed(table, names, add, "%s") if len(rows) == 1 else _changed_from(table, names, add)
        self._write(text, table, rows, (*names, *_keys(table)))

    def _write(self, text: str, table: sa.Table, rows: Sequence[Mapping[str, Any]], names: Key) -> None:
        values = [[row.get(name) for row in rows] for name in names]
        for place, is_null in _places(table, names).json:
            values[place] = [_json(value, is_null) for value in values[place]]
        query = text, [each for [each] in values] if len(rows) == 1 else values
        if self._held is not None:
            self._held.append(query)
            return
        with self._errors():
            self._send([query])

    @contextmanager
    def together(self, *, and_commit: bool = False) -> Iterator[None]:
        self._held = held = []
        try:
            yield
        finally:
            self._held = None
        if and_commit:
            held.append(("COMMIT", ()))  # the server skips it after an error
        if held:
            with self._errors():
                self._send(held)
        progressed()

    def _send(self, queries: Sequence[Query]) -> Any:
        from psycopg import ClientCursor  # an extra

        cursor = ClientCursor(self._raw)
        cursor.execute("; ".join(cursor.mogrify(text, values) for text, values in queries))
        return cursor


class _Places(NamedTuple):
    """Where among some columns ids are, and JSON, with whether None is NULL there."""

    ids: tuple[int, ...]
    json: tuple[tuple[int, bool], ...]


@lru_cache(maxsize=64)
def _places(table: sa.Table, names: Key) -> _Places:
    types = [table.c[name].type for name in names]
    ids = tuple(place for place, each in enumerate(types) if isinstance(each, sa.Uuid))
    return _Places(
        ids, tuple((place, each.none_as_null) for place, each in enumerate(types) if isinstance(each, sa.JSON))
    )


def _plain(value: Any) -> Any:
    return value.hex if isinstance(value, uuid.UUID) else value


def _json(value: Any, is_null: bool) -> str | None:
    return None if value is None and is_null else json.dumps(value)


def from_json(value: Any) -> Any:
    """A value of a JSON column as a query returns it: PostgreSQL's driver has parsed it."""
    return json.loads(value) if isinstance(value, str) else value


def marks(count: int, mark: str = "?") -> str:
    """Places for so many values in a statement, by default for SQLite."""
    return ", ".join([mark] * count)


def _keys(table: sa.Table) -> Key:
    return tuple(table.primary_key.columns.keys())


def names_of(names: Iterable[str]) -> str:
    """Columns in a statement."""
    return ", ".join(f'"{name}"' for name in names)


@lru_cache(maxsize=64)
def _inserted(table: sa.Table, names: Key, may_be: bool, source: str = "") -> str:
    source = source or f"VALUES ({marks(len(names))})"
    return f"INSERT INTO {table.name} ({names_of(names)}) {source}{' ON CONFLICT DO NOTHING' if may_be else ''}"


@lru_cache(maxsize=64)
def _changed(table: sa.Table, names: Key, add: bool, mark: str = "?") -> str:
    values = ", ".join(f'"{name}" = "{name}" + {mark}' if add else f'"{name}" = {mark}' for name in names)
    keys = " AND ".join(f'"{name}" = {mark}' for name in _keys(table))
    return f"UPDATE {table.name} SET {values} WHERE {keys}"  # noqa: S608


@lru_cache(maxsize=64)
def _changed_from(table: sa.Table, names: Key, add: bool) -> str:
    keys = _keys(table)
    own = f'{table.name}."{{0}}" + ' if add else ""
    values = ", ".join(f'"{name}" = {own.format(name)}new."{name}"' for name in names)
    same = " AND ".join(f'{table.name}."{name}" = new."{name}"' for name in keys)
    every = (*names, *keys)
    return f"UPDATE {table.name} SET {values} FROM ({_unnest(table, every)}) AS new ({names_of(every)}) WHERE {same}"  # noqa: S608


@lru_cache(maxsize=64)
def _unnest(table: sa.Table, names: Key) -> str:
    arrays = (next(kind for python, kind in _ARRAYS if isinstance(table.c[name].type, python)) for name in names)
    return f"SELECT * FROM unnest({', '.join(f'%s::{kind}[]' for kind in arrays)})"  # noqa: S608
