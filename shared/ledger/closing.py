"""Closed months: their figures never change; what comes late is dated to the time when it is entered."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import datetime
from decimal import Decimal
from itertools import chain
from typing import Any, Self
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from shared.errors import InvalidRequest
from shared.internal.clock import now_us
from shared.ledger import sums
from shared.ledger.accounts import terms_in
from shared.ledger.query import Window
from shared.ledger.row import AttemptRow, dates
from shared.ledger.schema import attempt, closed_month
from shared.ledger.store import Ledger


@dataclass(frozen=True, slots=True)
class Figures:
    """
    What a time adds up to.

    `cost_nano` is what is known to be spent, and `reserved_nano` what budgets kept beyond that; of `requests`, the cost
    of `unknown_requests` is unknown, and that of `lower_bound_requests` known in part.
    """

    cost_nano: int
    calls: int
    requests: int
    unknown_requests: int
    lower_bound_requests: int
    reserved_nano: int


@dataclass(frozen=True, slots=True)
class ClosedMonth:
    """A closed month: its figures as they were at `closed_us`, in microseconds since 1970."""

    month: str
    zone: str
    since_us: int
    until_us: int
    closed_us: int
    figures: Figures

    @classmethod
    def read(cls, row: RowMapping) -> Self:
        """The closed month from a row of the table."""
        own = {name: row[name] for name in _COLUMNS}
        return cls(**own, figures=Figures(**{name: row[name] for name in _FIGURES}))


_CORRECT = "Correct it by an adjustment, which is dated to today."
_COLUMNS = tuple(each.name for each in fields(ClosedMonth) if each.name != "figures")
_FIGURES = tuple(each.name for each in fields(Figures))


def close_month(ledger: Ledger, month: str, span: Window) -> ClosedMonth:
    """
    Close a month, so that its figures never change again.

    Args:
        month: Its name, such as "2026-11".

        span: Its time, in the zone of the books.

    Raises:
        InvalidRequest: It cannot be closed: it is not over, or closed already; attempts of it are under way; or one
            before it is open.

        StoreError: The ledger cannot be written.
    """
    if span.until_us > now_us():
        end = datetime.fromtimestamp(span.until_us / 1e6, span.zone)
        raise InvalidRequest(f"{month} is not over", hint=f"Close it after {end:%Y-%m-%d %H:%M} ({span.zone}).")
    ledger.flush()
    ledger.settle_expired()
    while sums.fold(ledger):
        pass
    with ledger.changing() as connection:
        _check(connection, month, span)
        figures = _figures(connection, span)
        if figures is None:
            raise InvalidRequest(f"Records of {month} have been removed", hint="Close a later month.")
        found = ClosedMonth(month, str(span.zone), span.since_us, span.until_us, now_us(), figures)
        own = {name: getattr(found, name) for name in _COLUMNS}
        connection.execute(sa.insert(closed_month), own | {name: getattr(found.figures, name) for name in _FIGURES})
    return found


def closed_months(ledger: Ledger) -> list[tuple[ClosedMonth, Figures | None]]:
    """
    Every closed month, oldest first, with its figures as they are now, which should be the same; None if its records
    and sums have been removed.

    Raises:
        StoreError: The ledger cannot be read.
    """
    sums.catch_up(ledger)
    with ledger.reading() as connection:
        return [(each, _figures(connection, _span(each))) for each in _closed(connection)]


def changed_months(connection: Connection) -> list[str]:
    """The closed months whose figures are not what they were."""
    return [each.month for each in _closed(connection) if _figures(connection, _span(each)) not in (None, each.figures)]


def as_entered(ledger: Ledger, row: AttemptRow) -> AttemptRow:
    """
    A row as the ledger will date it: to now if it belongs to a closed month.

    Raises:
        StoreError: The ledger cannot be read.
    """
    with ledger.reading() as connection:
        closed_us = terms_in(connection).closed_us
    return replace(row, **dates(max(now_us(), closed_us), row.ts_us)) if row.ts_us < closed_us else row


def _closed(connection: Connection) -> list[ClosedMonth]:
    query = sa.select(closed_month).order_by(closed_month.c.since_us)
    return [ClosedMonth.read(row) for row in connection.execute(query).mappings()]


def _span(month: ClosedMonth) -> Window:
    return Window(month.since_us, month.until_us, ZoneInfo(month.zone))


def _check(connection: Connection, month: str, span: Window) -> None:
    """
    Check that a month may be closed.

    Raises:
        InvalidRequest: It may not.
    """
    closed = _closed(connection)
    for each in closed:
        if each.month == month:
            when = datetime.fromtimestamp(each.closed_us / 1e6, ZoneInfo(each.zone))
            usd, calls = Decimal(each.figures.cost_nano).scaleb(-9), each.figures.calls
            what = f"${usd:,.9f} for {calls:,} {'call' if calls == 1 else 'calls'}"
            closed_on = f"{month} was closed on {when:%Y-%m-%d %H:%M} ({each.zone})"
            raise InvalidRequest(f"{closed_on} with {what}", hint=_CORRECT)
    if closed and closed[-1].zone != str(span.zone):
        raise InvalidRequest(
            f"The books are in the time zone {closed[-1].zone}, in which {closed[-1].month} was closed",
            hint=f"Give --tz {closed[-1].zone}: in another one, hours would belong to two months, or to none.",
        )
    if closed and span.since_us < closed[-1].until_us:
        raise InvalidRequest(f"{month} lies before {closed[-1].month}, and all before that is closed", hint=_CORRECT)
    check_under_way(connection, span, f"Close {month}")
    since_us = closed[-1].until_us if closed else None
    before = sa.select(sa.func.min(attempt.c.ts_us)).where(attempt.c.ts_us < span.since_us)
    first_us = connection.scalar(before if since_us is None else before.where(attempt.c.ts_us >= since_us))
    if first_us is not None:
        first = f"{datetime.fromtimestamp(first_us / 1e6, span.zone):%Y-%m}"
        raise InvalidRequest(f"{first} is open and has requests", hint=f"Close {first} first.")


def check_under_way(connection: Connection, span: Window, what: str) -> None:
    """
    Check that no request is under way that began before the end of `span`.

    Args:
        what: What waits for them, as an order.

    Raises:
        InvalidRequest: Some are.
    """
    under_way = (sa.text("status = 'started'"), attempt.c.ts_us < span.until_us)
    count, last_us = connection.execute(
        sa.select(sa.func.count(), sa.func.max(attempt.c.lease_us)).where(*under_way)
    ).one()
    if count:
        end, last = (datetime.fromtimestamp(us / 1e6, span.zone) for us in (span.until_us, last_us or now_us()))
        requests = "1 request from" if count == 1 else f"{count:,} requests from"
        raise InvalidRequest(
            f"{requests} before {end:%Y-%m-%d %H:%M} {'is' if count == 1 else 'are'} still under way",
            hint=f"{what} when they have ended, at the latest after {last:%Y-%m-%d %H:%M} ({span.zone}).",
        )


def _figures(connection: Connection, span: Window) -> Figures | None:
    """What a time adds up to; None if what it takes to know that has been removed."""
    everything = sums.Owner()
    how = sums.plan(connection, span.since_us, span.until_us, [everything])
    if how.is_incomplete:
        return None
    names = [name for name in _FIGURES if name != "reserved_nano"]
    found = dict.fromkeys(names, 0)
    of = (connection, how, everything, ("provider",), names)
    for _, numbers in chain(sums.read(*of), sums.left(*of)):
        found = {name: found[name] + number for name, number in zip(names, numbers, strict=True)}
    expressions = sums.expressions(connection.dialect.name)
    columns: list[Any] = [sa.func.sum(sa.literal_column(expressions[name])) for name in names]
    for since_us, until_us in how.rows:
        inside = (attempt.c.ts_us >= since_us, attempt.c.ts_us < until_us, attempt.c.status != "started")
        row = connection.execute(sa.select(*columns).where(*inside)).one()
        found = {name: found[name] + int(number or 0) for name, number in zip(names, row, strict=True)}
    reserved = sa.select(sa.func.coalesce(sa.func.sum(attempt.c.reserved_nano), 0))
    inside = (attempt.c.ts_us >= span.since_us, attempt.c.ts_us < span.until_us, attempt.c.status != "started")
    # As the indexes have them: what reserves, and what frees.
    kinds = (sa.text("reserved_nano > 0"), sa.and_(sa.text("adjustment_kind IS NOT NULL"), attempt.c.reserved_nano < 0))
    reserved_nano = sum(int(connection.scalar(reserved.where(kind, *inside)) or 0) for kind in kinds)
    return Figures(**found, reserved_nano=reserved_nano)
