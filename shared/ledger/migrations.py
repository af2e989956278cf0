"""How a stored ledger is brought to the newest version: numbered steps, each carried out once."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from shared.errors import StoreError
from shared.ledger.schema import MAJOR, MINOR, meta, metadata
from shared.ledger.views import create_views, drop_views

Version = tuple[int, int]

_ONE_MIGRATION = sa.text("SELECT pg_advisory_xact_lock(7231990415)")


class Step(NamedTuple):
    """SQL for SQLite and PostgreSQL alike that turns the version before into `version`."""

    version: Version
    statements: tuple[str, ...]


# A step that has been released never changes: it must not use the declarations in schema.py, which do.
STEPS = (
    Step(
        (1, 1),
        (
            """
            CREATE TABLE budget (
                name VARCHAR(60) NOT NULL PRIMARY KEY,
                limit_nano BIGINT NOT NULL,
                "window" VARCHAR(20) NOT NULL,
                scope VARCHAR(60) NOT NULL,
                tz VARCHAR(60),
                warn_at FLOAT NOT NULL,
                on_exceed VARCHAR(20) NOT NULL,
                on_unknown_price VARCHAR(20) NOT NULL
            )
            """,
            "CREATE TABLE account_kind (dimensions TEXT NOT NULL PRIMARY KEY)",
            """
            CREATE TABLE account (
                dimensions TEXT NOT NULL,
                whose VARCHAR(250) NOT NULL,
                since_us BIGINT NOT NULL,
                until_us BIGINT NOT NULL,
                counted_nano BIGINT NOT NULL,
                PRIMARY KEY (dimensions, whose, since_us, until_us)
            )
            """,
            "CREATE INDEX ix_account_until ON account (until_us)",
        ),
    ),
    Step(
        (1, 2),
        (
            "ALTER TABLE attempt ADD COLUMN units JSON",
            "ALTER TABLE attempt ADD COLUMN service_tier VARCHAR(20)",
            "ALTER TABLE attempt ADD COLUMN price_table VARCHAR(80)",
            "ALTER TABLE attempt ADD COLUMN cost_is_lower_bound BOOLEAN DEFAULT false NOT NULL",
            "ALTER TABLE attempt ADD COLUMN reserved_nano BIGINT",
            "ALTER TABLE attempt ADD COLUMN adjustment_kind VARCHAR(20)",
            "ALTER TABLE attempt ADD COLUMN adjusts VARCHAR(250)",
            "CREATE INDEX ix_attempt_unknown_cost ON attempt (ts_us) WHERE cost_nano IS NULL AND status <> 'started'",
            "ALTER TABLE attempt ADD COLUMN machine VARCHAR(120)",
            "CREATE INDEX ix_attempt_lower_bound ON attempt (ts_us) WHERE cost_is_lower_bound",
            # Until now, a settled attempt of unknown cost counted with its bound without saying so.
            """
            UPDATE attempt SET reserved_nano = bound_nano
            WHERE cost_nano IS NULL AND bound_nano > 0 AND status <> 'started'
            """,
            "CREATE INDEX ix_attempt_reserved ON attempt (ts_us) WHERE reserved_nano > 0",
            "CREATE INDEX ix_attempt_adjustment ON attempt (ts_us) WHERE adjustment_kind IS NOT NULL",
        ),
    ),
)


def is_current(connection: Connection) -> bool:
    """Whether this program can use the ledger as it is; False also for a ledger that `migrate` refuses."""
    found = _version(connection)
    return found is not None and found[0] == MAJOR and found >= (MAJOR, MINOR) and not _missing(connection)


def migrate(connection: Connection) -> None:
    """
    Bring the ledger to this program's version, inside the caller's write transaction, or leave it as it is.

    An empty ledger is created at the newest version. One with a newer minor version can be used as it is.

    Raises:
        StoreError: The ledger has a newer major version.
    """
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time.
        connection.execute(_ONE_MIGRATION)
    found = _version(connection)  # Another process may have migrated it while this one waited.
    if found is None:
        metadata.create_all(connection)
        create_views(connection)
        _set_version(connection, (MAJOR, MINOR))
        return
    if found[0] > MAJOR:
        raise StoreError(
            f"The ledger was written by a newer version of agentswarm-tools (schema {found[0]}.{found[1]}, "
            f"this one knows {MAJOR}.{MINOR})",
            hint="Upgrade agentswarm-tools, or set AGENTSWARM_DATABASE_URL to another ledger.",
        )
    drop_views(connection)
    for step in STEPS:
        if step.version > found:
            for statement in step.statements:
                connection.exec_driver_sql(statement)
            _set_version(connection, step.version)
    for addition in _missing(connection):
        connection.exec_driver_sql(addition)
    create_views(connection)


# Columns that were added to version 1.2 before its release.
_ADDED = (("attempt", "machine", "VARCHAR(120)"), ("budget", "value", "VARCHAR(200)"))


def _missing(connection: Connection) -> list[str]:
    """The statements that add the columns that the ledger has not yet."""
    inspector = sa.inspect(connection)
    columns = {table: {column["name"] for column in inspector.get_columns(table)} for table, _, _ in _ADDED}
    return [
        f"ALTER TABLE {table} ADD COLUMN {name} {kind}" for table, name, kind in _ADDED if name not in columns[table]
    ]


def _version(connection: Connection) -> Version | None:
    """Version of the ledger as (major, minor); None when it is empty."""
    if not sa.inspect(connection).has_table(meta.name):
        return None
    values = {row.name: row.value for row in connection.execute(sa.select(meta.c.name, meta.c.value))}
    return (values["major"], values["minor"]) if {"major", "minor"} <= values.keys() else None


def _set_version(connection: Connection, version: Version) -> None:
    connection.execute(sa.delete(meta))
    connection.execute(
        sa.insert(meta), [{"name": "major", "value": version[0]}, {"name": "minor", "value": version[1]}]
    )
