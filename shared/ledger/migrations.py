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
    """
    SQL for SQLite and PostgreSQL that turns the version before into `version`.

    `$UUID` and `$WITHOUT_ROWID` stand for what each of them calls that.
    """

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
    Step(
        (2, 0),
        (
            """
            CREATE TABLE sums (
                split SMALLINT NOT NULL,
                grain INTEGER NOT NULL,
                start BIGINT NOT NULL,
                owner VARCHAR(70) NOT NULL,
                value VARCHAR(200) NOT NULL,
                provider VARCHAR(250) NOT NULL,
                model VARCHAR(250) NOT NULL,
                operation VARCHAR(250) NOT NULL,
                tool VARCHAR(250) NOT NULL,
                agent VARCHAR(250) NOT NULL,
                requests BIGINT, calls BIGINT, failed_calls BIGINT, unpriced_calls BIGINT, cost_nano BIGINT,
                prompt_tokens BIGINT, completion_tokens BIGINT, cached_tokens BIGINT, reasoning_tokens BIGINT,
                duration_us BIGINT, cache_write_tokens BIGINT, unknown_requests BIGINT, unknown_calls BIGINT,
                lower_bound_requests BIGINT, lower_bound_nano BIGINT, adjustment_requests BIGINT,
                adjustment_nano BIGINT, failed_requests BIGINT, retried_calls BIGINT,
                image_tokens_saved BIGINT, image_nano_saved BIGINT,
                PRIMARY KEY (split, grain, start, owner, value, provider, model, operation, tool, agent)
            ) $WITHOUT_ROWID
            """,
            """
            CREATE TABLE latency (
                grain INTEGER NOT NULL,
                start BIGINT NOT NULL,
                owner VARCHAR(70) NOT NULL,
                value VARCHAR(200) NOT NULL,
                provider VARCHAR(250) NOT NULL,
                model VARCHAR(250) NOT NULL,
                place SMALLINT NOT NULL,
                answers BIGINT NOT NULL,
                PRIMARY KEY (grain, start, owner, value, provider, model, place)
            ) $WITHOUT_ROWID
            """,
            "CREATE TABLE unsummed (attempt_id $UUID NOT NULL PRIMARY KEY) $WITHOUT_ROWID",
            """
            CREATE TABLE taken_back (
                taken_id $UUID NOT NULL PRIMARY KEY,
                ts_us BIGINT NOT NULL,
                bucket INTEGER NOT NULL,
                status VARCHAR(20) NOT NULL,
                operation VARCHAR(40) NOT NULL,
                provider VARCHAR(80) NOT NULL,
                model VARCHAR(250) NOT NULL,
                tool VARCHAR(120),
                agent VARCHAR(200),
                conversation VARCHAR(200),
                attempt_number INTEGER NOT NULL,
                calls INTEGER NOT NULL,
                failed_calls INTEGER NOT NULL,
                unpriced_calls INTEGER NOT NULL,
                cost_nano BIGINT,
                prompt_tokens BIGINT,
                completion_tokens BIGINT,
                cached_tokens BIGINT,
                reasoning_tokens BIGINT,
                duration_us BIGINT,
                cache_write_tokens BIGINT,
                cost_is_lower_bound BOOLEAN NOT NULL,
                adjustment_kind VARCHAR(20),
                metadata JSON
            )
            """,
            """
            CREATE TABLE taken_back_label (
                taken_id $UUID NOT NULL,
                name VARCHAR(60) NOT NULL,
                value VARCHAR(200) NOT NULL,
                PRIMARY KEY (taken_id, name)
            )
            """,
            "CREATE TABLE unsummed_label (owner VARCHAR(70) NOT NULL, day BIGINT NOT NULL, PRIMARY KEY (owner, day))",
            "CREATE TABLE sums_state (since_us BIGINT NOT NULL PRIMARY KEY)",
            # The attempts there are get into the sums in pages, later: see shared/ledger/sums.py.
            """
            INSERT INTO sums_state (since_us)
            SELECT latest.ts_us + 1 FROM (SELECT max(ts_us) AS ts_us FROM attempt) AS latest WHERE ts_us IS NOT NULL
            """,
            # Without it an older program that still runs fails to settle, and keeps what it has for later.
            "DROP TABLE rollup",
            """
            CREATE TABLE alert (
                alert_id $UUID NOT NULL PRIMARY KEY,
                kind VARCHAR(20) NOT NULL,
                dimensions TEXT NOT NULL,
                whose VARCHAR(250) NOT NULL,
                since_us BIGINT NOT NULL,
                until_us BIGINT NOT NULL,
                limit_nano BIGINT NOT NULL,
                threshold INTEGER NOT NULL,
                "window" VARCHAR(20) NOT NULL,
                tz VARCHAR(60),
                spent_nano BIGINT NOT NULL,
                reserved_nano BIGINT NOT NULL,
                median_nano BIGINT,
                at_us BIGINT NOT NULL,
                lease_us BIGINT NOT NULL,
                again_us BIGINT NOT NULL,
                tries INTEGER NOT NULL,
                delivered_us BIGINT,
                problem VARCHAR(200)
            )
            """,
            """
            CREATE UNIQUE INDEX ix_alert_once
            ON alert (kind, dimensions, whose, since_us, until_us, limit_nano, threshold)
            """,
            "ALTER TABLE attempt ADD COLUMN happened_us BIGINT",
            "CREATE INDEX ix_attempt_happened ON attempt (happened_us) WHERE happened_us IS NOT NULL",
            """
            CREATE TABLE closed_month (
                month VARCHAR(7) NOT NULL PRIMARY KEY,
                zone VARCHAR(60) NOT NULL,
                since_us BIGINT NOT NULL,
                until_us BIGINT NOT NULL,
                cost_nano BIGINT NOT NULL,
                calls BIGINT NOT NULL,
                requests BIGINT NOT NULL,
                unknown_requests BIGINT NOT NULL,
                lower_bound_requests BIGINT NOT NULL,
                reserved_nano BIGINT NOT NULL,
                closed_us BIGINT NOT NULL
            )
            """,
            """
            CREATE TABLE pruned (
                frozen_us BIGINT NOT NULL PRIMARY KEY,
                rows_us BIGINT NOT NULL,
                sums_us BIGINT NOT NULL
            )
            """,
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
                connection.exec_driver_sql(_in_words_of(connection.dialect.name, statement))
            _set_version(connection, step.version)
    for addition in _missing(connection):
        connection.exec_driver_sql(addition)
    create_views(connection)


_WORDS = {
    "sqlite": {"$UUID": "CHAR(32)", "$WITHOUT_ROWID": "WITHOUT ROWID"},
    "postgresql": {"$UUID": "UUID", "$WITHOUT_ROWID": ""},
}


def _in_words_of(dialect: str, statement: str) -> str:
    for name, word in _WORDS[dialect].items():
        statement = statement.replace(name, word)
    return statement


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
