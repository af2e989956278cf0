"""Find and open the ledger's database: SQLite with special care, or PostgreSQL."""

from __future__ import annotations

import importlib.util
import os
import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from shared.errors import ConfigurationError

BUSY_TIMEOUT_S = 30
# SQLite releases without the WAL-reset bug, which can lose committed pages when several processes share a WAL file.
# Source: sqlite.org, release notes of 3.51.3 (read 2026-11-23).
_SAFE_WAL = (((3, 51, 3), (99,)), ((3, 50, 7), (3, 51)), ((3, 44, 6), (3, 45)))


def wal_is_safe(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> bool:
    """Whether this SQLite may use write-ahead logging with several processes."""
    return any(low <= version < high for low, high in _SAFE_WAL)


def parse_url(url: str) -> URL:
    try:
        # Hosting providers give out this older scheme.
        parsed = make_url(f"postgresql://{url.removeprefix('postgres://')}" if url.startswith("postgres://") else url)
        backend = parsed.get_backend_name()
    except (ArgumentError, SQLAlchemyError, ValueError):
        raise ConfigurationError(
            "AGENTSWARM_DATABASE_URL is not a database URL", hint="Give sqlite:///path or postgresql://host/name."
        ) from None
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise ConfigurationError(
                "AGENTSWARM_DATABASE_URL names no file", hint="Give sqlite:///path/to/ledger.sqlite3."
            )
        return parsed.set(drivername="sqlite+pysqlite")
    if backend != "postgresql":
        raise ConfigurationError(
            f"AGENTSWARM_DATABASE_URL names {backend}, which is not supported", hint="Use SQLite or PostgreSQL."
        )
    if importlib.util.find_spec("psycopg") is None:
        raise ConfigurationError(
            "PostgreSQL needs psycopg", hint='Install it with: pip install "agentswarm-tools[postgres]"'
        )
    return parsed.set(drivername="postgresql+psycopg")


def spool_folder(url: URL) -> Path | None:
    """The folder of a SQLite file; None for other databases."""
    if url.get_backend_name() != "sqlite" or url.database is None:
        return None
    return Path(url.database).absolute().parent


def create_engine(url: URL) -> Engine:
    if url.get_backend_name() == "postgresql":
        return sa.create_engine(url, pool_pre_ping=True)
    path = Path(url.database or "").absolute()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False})
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
    connection.execute(f"PRAGMA journal_mode = {'WAL' if wal_is_safe() else 'TRUNCATE'}").fetchall()
    connection.execute("PRAGMA synchronous = FULL")


def _begin_sqlite(connection: Connection) -> None:
    """Take the write lock at once: upgrading a read lock later can fail without waiting."""
    write = connection.get_execution_options().get("ledger_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
