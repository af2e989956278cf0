"""Removing old records, with or without their sums, while programs go on writing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from shared.budget import FOREVER_US, Budget
from shared.errors import InvalidRequest, StoreError
from shared.internal.clock import now_us
from shared.ledger import sums
from shared.ledger.accounts import stored_budgets
from shared.ledger.closing import check_under_way
from shared.ledger.query import Window
from shared.ledger.schema import BUCKET_S, account, attempt, event, label, pruned, sums_state, unsummed
from shared.ledger.store import Ledger

# Records removed in one transaction, so that no writer waits for long.
_PAGE = 200
# What budgets still reserve for, and may still be reported, is kept.
_IS_DONE = sa.and_(attempt.c.status.not_in(("started", "unsettled")), sa.func.coalesce(attempt.c.reserved_nano, 0) == 0)


@dataclass(frozen=True, slots=True)
class Prunable:
    """What is before a day: records to remove, records to keep because their outcome is unknown, and events."""

    records: int
    kept: int
    events: int


def prunable(ledger: Ledger, span: Window) -> Prunable:
    """
    What pruning would remove.

    Args:
        span: Until the day that is the first to keep.

    Raises:
        StoreError: The ledger cannot be read.
    """
    before = attempt.c.ts_us < span.until_us
    with ledger.reading() as connection:
        found = [
            connection.scalar(sa.select(sa.func.count()).select_from(table).where(*conditions)) or 0
            for table, conditions in (
                (attempt, (before, _IS_DONE)),
                (attempt, (before, ~_IS_DONE)),
                (event, (event.c.ts_us < span.until_us,)),
            )
        ]
    return Prunable(*found)


def prune(
    ledger: Ledger,
    span: Window,
    *,
    keep_sums: bool,
    budget: Budget | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """
    Remove the records before a day, page by page; if it is interrupted, doing it again goes on.

    Args:
        span: Until the day that is the first to keep.

        keep_sums: Whether the sums of that time stay, so that reports by day, model, tool, agent or one label do.

        budget: The budget of the settings, which is not stored in the ledger.

        progress: Told how many records a page has removed.

    Raises:
        InvalidRequest: A budget still counts what would be removed, or requests of that time are under way.

        StoreError: The ledger cannot be written.
    """
    ledger.flush()
    ledger.settle_expired()
    _fold(ledger)
    with ledger.changing() as connection:
        _check(connection, span, budget)
        _mark(connection, frozen_us=span.until_us)
    _fold(ledger)
    if keep_sums:
        with ledger.reading() as connection:
            since_us = _first_us(connection, sums.removed(connection).rows_us)
            if _is_left(connection, span):
                raise StoreError("The sums of the ledger are being written", hint="Try again.")
        while since_us < span.until_us:
            since_us = sums.keep_quarters(ledger, since_us, span.until_us)
    with ledger.changing() as connection:
        _mark(connection, rows_us=span.until_us, sums_us=0 if keep_sums else span.until_us)
    while removed := _remove_records(ledger, span):
        progress(removed)
    while _remove_events(ledger, span):
        pass
    if not keep_sums:
        sums.delete_before(ledger, span.until_us)


def _fold(ledger: Ledger) -> None:
    while sums.fold(ledger):
        pass


def _first_us(connection: Connection, rows_us: int) -> int:
    """The quarter that the first attempt is in, after those that have been removed, in microseconds since 1970."""
    found = connection.scalar(sa.select(sa.func.min(attempt.c.bucket)).where(attempt.c.ts_us >= rows_us))
    return rows_us if found is None else max(found * BUCKET_S * 10**6, rows_us)


def _is_left(connection: Connection, span: Window) -> bool:
    """Whether the sums lack something of a time that does not change any more."""
    left = sa.select(unsummed.c.attempt_id).join(attempt, attempt.c.attempt_id == unsummed.c.attempt_id)
    return connection.scalar(left.where(attempt.c.ts_us < span.until_us).limit(1)) is not None


def _check(connection: Connection, span: Window, budget: Budget | None) -> None:
    """
    Check that nothing needs the records before a day.

    Raises:
        InvalidRequest: A budget's window that has not ended began before it, requests are under way, or the sums of an
            older ledger are not complete.
    """
    check_under_way(connection, span, "Prune")
    if connection.scalar(sa.select(sums_state.c.since_us)) is not None:
        raise InvalidRequest("The sums of the ledger are not complete yet", hint="Run `ledger repair`, then try again.")
    now = now_us()
    running = (account.c.until_us > now, account.c.until_us < FOREVER_US, account.c.since_us < span.until_us)
    starts = list(connection.scalars(sa.select(sa.func.min(account.c.since_us)).where(*running)))
    declared = [each for _, each in stored_budgets(connection)] + ([] if budget is None else [budget])
    windows = [each.span(now) for each in declared]
    starts += [since_us for since_us, until_us in windows if since_us < span.until_us and until_us < FOREVER_US]
    if found := [each for each in starts if each is not None]:
        first = datetime.fromtimestamp(min(found) / 1e6, span.zone)
        raise InvalidRequest(
            f"A budget counts what was spent since {first:%Y-%m-%d %H:%M}", hint=f"Give {first:%Y-%m-%d}, or earlier."
        )


def _mark(connection: Connection, *, frozen_us: int = 0, rows_us: int = 0, sums_us: int = 0) -> None:
    """Note what is removed from now on; nothing that was noted before is taken back."""
    given = {"frozen_us": frozen_us, "rows_us": rows_us, "sums_us": sums_us}
    known = connection.execute(sa.select(pruned)).mappings().one_or_none()
    connection.execute(sa.delete(pruned))
    values = {name: max(value, 0 if known is None else known[name]) for name, value in given.items()}
    connection.execute(sa.insert(pruned), values)


def _remove_records(ledger: Ledger, span: Window) -> int:
    page = sa.select(attempt.c.attempt_id).where(attempt.c.ts_us < span.until_us, _IS_DONE)
    with ledger.changing() as connection:
        ids = list(connection.scalars(page.order_by(attempt.c.ts_us).limit(_PAGE)))
        for table in (label, unsummed, attempt) if ids else ():
            connection.execute(sa.delete(table).where(table.c.attempt_id.in_(ids)))
    return len(ids)


def _remove_events(ledger: Ledger, span: Window) -> int:
    page = sa.select(event.c.event_id).where(event.c.ts_us < span.until_us)
    with ledger.changing() as connection:
        ids = list(connection.scalars(page.order_by(event.c.ts_us).limit(_PAGE)))
        if ids:
            connection.execute(sa.delete(event).where(event.c.event_id.in_(ids)))
    return len(ids)


def removed_before(ledger: Ledger, zone: ZoneInfo) -> datetime | None:
    """
    Before when records have been removed; None if none have.

    Raises:
        StoreError: The ledger cannot be read.
    """
    with ledger.reading() as connection:
        rows_us = sums.removed(connection).rows_us
    return datetime.fromtimestamp(rows_us / 1e6, zone) if rows_us else None
