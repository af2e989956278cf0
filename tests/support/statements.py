"""
Ledgers of one process share SQLAlchemy's compiled statements.

A program has one ledger and compiles each statement once; the tests have a ledger each, and compiling took a third of
the time of a test that makes a call.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import Engine

_COMPILED: dict[Any, Any] = {}


class _Sharing:
    """A dialect that is the same key of the cache in every engine; all engines of a kind have the same server."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    @classmethod
    def engine_created(cls, engine: Engine) -> None:
        """SQLAlchemy's hook."""
        engine.update_execution_options(compiled_cache=_COMPILED)


class Sqlite(_Sharing, SQLiteDialect_pysqlite):
    """SQLite as it is."""

    supports_statement_cache = True


class Postgres(_Sharing, PGDialect_psycopg):
    """PostgreSQL as it is."""

    supports_statement_cache = True


def share() -> None:
    """From here on; for engines that are created later."""
    registry.register("sqlite.pysqlite", __name__, "Sqlite")
    registry.register("postgresql.psycopg", __name__, "Postgres")
