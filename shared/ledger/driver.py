"""
Statements as text, given to the database's driver itself.

SQLAlchemy takes longer to build a statement than SQLite takes to run it, and PostgreSQL is asked several at a time: one
round trip for all that is read, and one for all that is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

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


class Driver:
    """What both databases do in the same way: values for the driver, and its errors as SQLAlchemy's."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._raw: Any = connection.connection.driver_connection

    @staticmethod
    def of(connection: Connection) -> Driver:
        return Postgres(connection) if connection.dialect.name == "postgresql" else Sqlite(connection)

    def read(self, *queries: Query) -> list[list[Any]]:
        """The rows of each query."""
        raise NotImplementedError

    def insert(self, table: sa.Table, rows: Sequence[Mapping[str, Any]], names: Key) -> int:
        """Insert rows, but for those that are there already; returns how many were inserted."""
        raise NotImplementedError

    def change(self, table: sa.Table, rows: Sequence[Mapping[str, Any]], names: Key, *, add: bool = False) -> None:
        """Set columns of the rows with these primary keys, or add to them."""
        raise NotImplementedError

    def add(self, table: sa.Table, rows: Sequence[Mapping[str, Any]], names: Key) -> None:
        """Add to columns of rows; those that are not there are inserted."""
        raise NotImplementedError

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is written inside may be sent at once, so that an error shows only at the end."""
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

    def insert(self, table: sa.Table, rows: Sequence[Mapping[str, Any]], names: Key) -> int:
        return self._many(_inserted(table, names), table, rows, names)

    def change(self, table: sa.Table, rows: Sequence[Mapping[str, Any]], names: Key, *, add: bool = False) -> None:
        self._many(_changed(table, names, add), table, rows, (*names, *_keys(table)))

    def add(self, table: sa.Table, rows: Sequence[Mapping[str, Any]], names: Key) -> None:
        self._many(_added(table, names), table, rows, (*_keys(table), *names))

    def _many(self, text: str, table: sa.Table, rows: Sequence[Mapping[str, Any]], names: Key) -> int:
        are_json = {name for name in names if isinstance(table.c[name].type, sa.JSON)}
        values = [
            [_json(table, name, row.get(name)) if name in are_json else _plain(row.get(name)) for name in names]
            for row in rows
        ]
        with self._errors():
            cursor = self._raw.execute(text, values[0]) if len(values) == 1 else self._raw.executemany(text, values)
            progressed()
            return int(cursor.rowcount)


class Postgres(Driver):
    """Many statements in one round trip, and many rows in one statement, as arrays."""

    def read(self, *queries: Query) -> list[list[Any]]:
        with self._errors():
            with self._raw.pipeline():
                cursors = [self._raw.execute(text, values) for text, values in queries]
            progressed()
            return [cursor.fetchall() for cursor in cursors]

    def insert(self, table: sa.Table, rows: Sequence[Mapping[str, Any]], names: Key) -> int:
        return self._arrays(_inserted(table, names, _unnest(table, names)), table, rows, names)

    def change(self, table: sa.Table, rows: Sequence[Mapping[str, Any]], names: Key, *, add: bool = False) -> None:
        keys = _keys(table)
        self._arrays(_changed_from(table, names, keys, add), table, rows, (*keys, *names))

    def add(self, table: sa.Table, rows: Sequence[Mapping[str, Any]], names: Key) -> None:
        every = (*_keys(table), *names)
        self._arrays(_added(table, names, _unnest(table, every)), table, rows, every)

    def _arrays(self, text: str, table: sa.Table, rows: Sequence[Mapping[str, Any]], names: Key) -> int:
        are_json = {name for name in names if isinstance(table.c[name].type, sa.JSON)}
        values = [
            [_json(table, name, row.get(name)) if name in are_json else row.get(name) for row in rows] for name in names
        ]
        with self._errors():
            return int(self._raw.execute(text, values).rowcount)

    @contextmanager
    def together(self) -> Iterator[None]:
        with self._errors(), self._raw.pipeline():
            yield
        progressed()


def _plain(value: Any) -> Any:
    """SQLite has no type for ids."""
    return getattr(value, "hex", value) if type(value).__name__ == "UUID" else value


def _json(table: sa.Table, name: str, value: Any) -> str | None:
    return None if value is None and table.c[name].type.none_as_null else json.dumps(value)  # type: ignore[attr-defined]


def from_json(value: Any) -> Any:
    """A value of a JSON column as a query returns it: PostgreSQL's driver has parsed it."""
    return json.loads(value) if isinstance(value, str) else value


def marks(count: int) -> str:
    """Places for so many values in a statement for SQLite."""
    return ", ".join("?" * count)


def _keys(table: sa.Table) -> Key:
    return tuple(table.primary_key.columns.keys())


def names_of(names: Iterable[str]) -> str:
    """Columns in a statement."""
    return ", ".join(f'"{name}"' for name in names)


@lru_cache(maxsize=64)
def _inserted(table: sa.Table, names: Key, source: str = "") -> str:
    source = source or f"VALUES ({marks(len(names))})"
    return f"INSERT INTO {table.name} ({names_of(names)}) {source} ON CONFLICT DO NOTHING"


@lru_cache(maxsize=64)
def _added(table: sa.Table, names: Key, source: str = "") -> str:
    keys = _keys(table)
    source = source or f"VALUES ({marks(len(keys) + len(names))})"
    sums = ", ".join(f'"{name}" = {table.name}."{name}" + excluded."{name}"' for name in names)
    return (
        f"INSERT INTO {table.name} ({names_of((*keys, *names))}) {source} "
        f"ON CONFLICT ({names_of(keys)}) DO UPDATE SET {sums}"
    )


@lru_cache(maxsize=64)
def _changed(table: sa.Table, names: Key, add: bool) -> str:
    values = ", ".join(f'"{name}" = "{name}" + ?' if add else f'"{name}" = ?' for name in names)
    keys = " AND ".join(f'"{name}" = ?' for name in _keys(table))
    return f"UPDATE {table.name} SET {values} WHERE {keys}"  # noqa: S608


@lru_cache(maxsize=64)
def _changed_from(table: sa.Table, names: Key, keys: Key, add: bool) -> str:
    own = f'{table.name}."{{0}}" + ' if add else ""
    values = ", ".join(f'"{name}" = {own.format(name)}new."{name}"' for name in names)
    same = " AND ".join(f'{table.name}."{name}" = new."{name}"' for name in keys)
    every = (*keys, *names)
    return f"UPDATE {table.name} SET {values} FROM ({_unnest(table, every)}) AS new ({names_of(every)}) WHERE {same}"  # noqa: S608


@lru_cache(maxsize=64)
def _unnest(table: sa.Table, names: Key) -> str:
    arrays = (next(kind for python, kind in _ARRAYS if isinstance(table.c[name].type, python)) for name in names)
    return f"SELECT * FROM unnest({', '.join(f'%s::{kind}[]' for kind in arrays)})"  # noqa: S608
