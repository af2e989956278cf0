"""Check, repair and back up a ledger: what an operator does, not what a call does."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from shared.errors import ConfigurationError, StoreError
from shared.internal.clock import now_us
from shared.ledger import sums
from shared.ledger.accounts import CLOCK_TOLERANCE_US
from shared.ledger.closing import changed_months
from shared.ledger.engine import is_locked, log_of
from shared.ledger.schema import account, attempt, bucket_of, metadata
from shared.ledger.sqlite_library import library
from shared.ledger.store import Ledger
from shared.ledger.writer import short

# Rows, buckets or pages of the file that are worked on at a time; other programs get their turn in between.
_ROWS = 50
_PAGES = 256
_LEASE_US = 900 * 1_000_000


def problems(ledger: Ledger) -> Iterator[str]:
    """
    What is wrong with a ledger, a sentence each.

    Raises:
        StoreError: It cannot be read at all.
    """
    ledger.flush()
    with ledger.reading() as connection:
        if connection.dialect.name == "sqlite":
            found = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check(5)")]
            yield from (f"the file is damaged: {each}" for each in found if each != "ok")
        ahead = connection.scalar(sa.select(sa.func.count()).where(_is_ahead(now_us()))) or 0
        wrong = sums.wrong(connection)
        changed = changed_months(connection)
    if ahead:
        yield f"{ahead:,} records are from a clock that was ahead"
    if wrong:
        yield f"{wrong:,} sums differ from their records"
    if changed:
        yield f"the figures of {', '.join(changed)} have changed since they were closed"
    if ledger.waiting:
        yield f"{ledger.waiting:,} records wait to be written, in {ledger.waiting_in}"
    for file in ledger.dead_letters():
        yield f"some records were rejected and are in no report; check {file}, then delete it"


def repair(ledger: Ledger) -> list[str]:
    """
    Enter what waits, date records from a clock that was ahead to now, and compute sums and running totals anew.

    Returns:
        What was done, a sentence each.

    Raises:
        StoreError: The ledger cannot be written. A damaged file cannot be repaired: restore a backup.
    """
    ledger.flush()
    done = []
    if mended := _mend_times(ledger):
        done.append(f"dated {mended:,} records from a clock that was ahead to now")
    while sums.fold(ledger):
        pass
    with ledger.reading() as connection:
        wrong = sums.wrong(connection)
    if wrong:
        sums.rebuild(ledger)
        done.append(f"computed all sums anew, of which {wrong:,} differed from their records")
    with ledger.changing() as connection:
        # They are computed from the records when they are next needed, but for those whose records were removed.
        connection.execute(sa.delete(account).where(account.c.since_us >= sums.removed(connection).rows_us))
    done.append("cleared the running totals of budgets, which are computed from the records again")
    return done


def back_up(ledger: Ledger, target: Path) -> None:
    """
    Copy a SQLite ledger, with what lies in files beside it, to one new file; calls go on meanwhile.

    Raises:
        ConfigurationError: The ledger is not a file, or the target exists.

        StoreError: It cannot be read, or the target cannot be written.
    """
    source = ledger.file
    if source is None:
        raise ConfigurationError("The ledger is not a file", hint="Use pg_dump for a PostgreSQL database.")
    if os.path.lexists(target):
        raise ConfigurationError(f"{target} exists already", hint="Name a new file.")
    ledger.flush()
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=target.absolute().parent, prefix=f".{target.name}.")
        os.close(handle)
        with ledger.reading() as connection:
            raw = connection.connection.driver_connection
            assert raw is not None, "the ledger is a file"  # noqa: S101
            raw.execute("COMMIT")  # the copy takes its own locks, a few pages at a time
            copy = library().connect(temporary)
            try:
                raw.backup(copy, pages=_PAGES, sleep=0.005)
                copy.execute("PRAGMA journal_mode = DELETE").fetchall()  # so that it is one file, also when it is read
            finally:
                copy.close()
                raw.execute("BEGIN")
        os.link(temporary, target)  # fails if another program has made the target meanwhile
    except (OSError, library().Error) as error:
        raise StoreError(f"{target} cannot be written ({error})", hint="Choose another folder.") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def vacuum(ledger: Ledger) -> tuple[int, int]:
    """
    Give back the room of what was deleted, so that it is in no file any more; PostgreSQL uses it for new records.

    Returns:
        Bytes before and after.

    Raises:
        StoreError: Another program uses the ledger, or its disk has no room for that.
    """
    ledger.flush()
    # It takes as long as it takes.
    patient = ledger.with_patience(_VACUUM_S)
    try:
        with patient.reading() as connection:
            raw = connection.connection.driver_connection
            assert raw is not None, "it is connected"  # noqa: S101
            before = _size(ledger, raw)
            raw.execute("COMMIT")
            try:
                if ledger.file is None:  # else the driver would begin a transaction, in which it is not allowed
                    raw.autocommit = True
                for statement in _VACUUM[connection.dialect.name]:
                    raw.execute(statement)
            except connection.dialect.loaded_dbapi.Error as error:
                reason = "another program uses it" if is_locked(error) else short(error)
                raise StoreError(
                    f"The ledger {ledger.name} cannot be vacuumed ({reason})", hint="Try again when it is used less."
                ) from None
            finally:
                raw.execute("BEGIN")
            return before, _size(ledger, raw)
    finally:
        patient.close()


_VACUUM_S = 3600.0
_CHECKPOINT = "PRAGMA wal_checkpoint(TRUNCATE)"
_VACUUM = {
    "sqlite": (_CHECKPOINT, "VACUUM", _CHECKPOINT),
    "postgresql": (f"VACUUM (ANALYZE) {', '.join(table.name for table in metadata.sorted_tables)}",),
}
_SIZE = (
    "SELECT sum(pg_total_relation_size(CAST(name AS regclass))) "  # noqa: S608 - our own names
    f"FROM unnest(ARRAY{[table.name for table in metadata.sorted_tables]}) AS name"
)


def _size(ledger: Ledger, raw: Any) -> int:
    """Bytes that the ledger takes, with its log."""
    if ledger.file is None:
        return int(raw.execute(_SIZE).fetchone()[0])
    return sum(file.stat().st_size for file in (ledger.file, log_of(ledger.file)) if file.exists())


def _is_ahead(at_us: int) -> sa.ColumnElement[bool]:
    return sa.and_(attempt.c.ts_us > at_us + CLOCK_TOLERANCE_US, attempt.c.status != "reported")


def _mend_times(ledger: Ledger) -> int:
    mended = 0
    while True:
        at_us = now_us()
        with ledger.changing() as connection:
            page = sa.select(attempt).where(_is_ahead(at_us)).limit(_ROWS).with_for_update()
            found = connection.execute(page).mappings().all()
            for row in found:
                _date_to(connection, dict(row), at_us)
        mended += len(found)
        if len(found) < _ROWS:
            return mended


def _date_to(connection: Connection, row: Mapping[str, Any], at_us: int) -> None:
    changed: dict[str, Any] = {"ts_us": at_us, "bucket": bucket_of(at_us)}
    if row["status"] == "started":
        changed["lease_us"] = at_us + _LEASE_US
    else:
        sums.before_change(connection, row["attempt_id"])
    connection.execute(sa.update(attempt).where(attempt.c.attempt_id == row["attempt_id"]).values(**changed))
