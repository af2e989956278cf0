"""Which budgets have reached a threshold, each once, and who delivers the message to the operator."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from shared.budget import Limit
from shared.internal.clock import new_id
from shared.ledger.accounts import (
    Account,
    BudgetStatus,
    Labels,
    Row,
    account_of,
    applying,
    as_attempt,
    group_of,
    status_of,
    statuses_of_all,
    stored,
    totals_query,
    with_parts,
)
from shared.ledger.driver import Driver
from shared.ledger.schema import account, alert, attempt
from shared.ledger.store import Ledger
from shared.ledger.writes import Expired, Settled

# Per cent of a budget.
THRESHOLDS = (50, 80, 100)
# Per cent of a usual day.
SPIKE = 200
# New alerts of one look; the next one finds the rest.
_MOST = 100
# Groups of one budget that are looked at.
_MOST_GROUPS = 10_000
# An alert is kept for so long after its window, so that no window alerts twice.
_KEPT_US = 40 * 86_400 * 1_000_000


class Seen(NamedTuple):
    """Whose money a settled attempt was: the budgets of its caller, its agent and tool, and its labels."""

    limits: tuple[Limit, ...]
    columns: tuple[str | None, str | None]
    labels: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, entry: Settled | Expired) -> Seen:
        limits, labels = getattr(entry, "limits", ()), getattr(entry, "labels", {})
        return cls(limits, (entry.row.get("agent"), entry.row.get("tool")), tuple(sorted(labels.items())))


@dataclass(frozen=True, slots=True)
class Alert:
    """
    A budget's account that has reached a threshold, or a day on which spending jumped; as it is stored.

    `limit_nano` is 0 and `median_nano` is that of a usual day where spending jumped; `threshold` is per cent of either.
    """

    alert_id: uuid.UUID
    kind: str
    dimensions: str
    whose: str
    since_us: int
    until_us: int
    limit_nano: int
    threshold: int
    window: str
    tz: str | None
    spent_nano: int
    reserved_nano: int
    median_nano: int | None
    at_us: int
    lease_us: int = 0
    again_us: int = 0
    tries: int = 0
    delivered_us: int | None = None
    problem: str | None = None

    @property
    def group(self) -> dict[str, str | None]:
        """Which agent, tool or labels it is about, by name; None where a value is too long to be kept."""
        names = [name.removeprefix("label:") for name in json.loads(self.dimensions)]
        return dict(zip(names, _group(self.whose) or [None] * len(names), strict=True))


_NAMES = tuple(Alert.__slots__)


def due(
    ledger: Ledger,
    declared: Sequence[Limit],
    seen: Iterable[Seen],
    now_us: int,
    *,
    refusing: Iterable[BudgetStatus] = (),
    of_all: bool = False,
) -> list[Alert]:
    """
    The alerts of budgets that are due now and not stored yet.

    What counts is what is spent and reserved; what requests under way hold at most does not. Budgets of a single run
    are left out: their refusals are between an agent and its task.

    A budget is rarely used to the last cent, because it refuses what may cost more than is left. So it counts as used
    up, at 100 %, as soon as it refuses while it has passed the threshold before that.

    Args:
        declared: Budgets of the settings, which apply to every attempt, beside those stored in the ledger.

        seen: Attempts whose groups are looked at under their callers' own budgets too.

        refusing: Budgets that had no room for an attempt.

        of_all: Whether to look at the rows of every group, as a report does, instead of only at running totals.

    Raises:
        StoreError: The ledger cannot be read.
    """
    with ledger.reading() as connection:
        places = [declared, stored(connection)]
        if of_all:
            found = _of_rows(connection, places, now_us)
        else:
            found = _of_seen(connection, places, seen, now_us) | _of_totals(connection, places, now_us)
        refused = {_key_of(each): each for each in refusing if _may_alert(each.limit)}
        found = {**refused, **found}
        alerts = (_reached(connection, *key, found[key], now_us, refuses=key in refused) for key in found)
        return list(islice(chain.from_iterable(alerts), _MOST))


def spike(since_us: int, until_us: int, tz: str, spent_nano: int, median_nano: int, now_us: int) -> Alert:
    """The alert of a day on which more than twice as much was spent as on a usual one."""
    key = ("spike", "[]", "[]", since_us, until_us, 0, SPIKE)
    return Alert(new_id(), *key, "day", tz, spent_nano, 0, median_nano, now_us)


def has_spike(ledger: Ledger, since_us: int) -> bool:
    """Whether the alert of a day that begins then is stored already."""
    query = sa.select(alert.c.alert_id).where(alert.c.kind == "spike", alert.c.since_us == since_us)
    with ledger.reading() as connection:
        return connection.scalar(query) is not None


def first_attempt_us(ledger: Ledger) -> int | None:
    """When the ledger's first attempt started; None if there is none."""
    with ledger.reading() as connection:
        found: int | None = connection.scalar(sa.select(sa.func.min(attempt.c.ts_us)))
    return found


def add_alerts(ledger: Ledger, alerts: Iterable[Alert], now_us: int) -> None:
    """
    Store alerts, but for those that another process has stored meanwhile, and delete old ones.

    Raises:
        StoreError: The ledger cannot be written.
    """
    rows = sorted(
        (asdict(each) for each in alerts), key=lambda row: (row["dimensions"], row["whose"], row["threshold"])
    )
    with ledger.changing(alone=False) as connection:
        connection.execute(sa.delete(alert).where(alert.c.until_us < now_us - _KEPT_US))
        if rows:
            Driver.of(connection).insert(alert, rows, _NAMES)


def undelivered(ledger: Ledger, *, most_tries: int | None = None) -> list[Alert]:
    """
    The alerts that wait to be delivered, oldest first, at most 100.

    Args:
        most_tries: Only those that were tried fewer times.
    """
    query = sa.select(alert).where(*_open(most_tries)).order_by(alert.c.at_us, alert.c.threshold).limit(100)
    with ledger.reading() as connection:
        return [Alert(**row) for row in connection.execute(query).mappings()]


def claim(ledger: Ledger, now_us: int, lease_us: int, *, most_tries: int | None = None) -> Alert | None:
    """
    Take the oldest alert that nobody else is delivering; a lease that has lapsed is that of a process that died.

    Args:
        lease_us: Microseconds until another process may deliver it.

        most_tries: Only one that was tried fewer times, and whose next try is due. None: any that is not delivered.

    Raises:
        StoreError: The ledger cannot be written.
    """
    free = [*_open(most_tries), alert.c.lease_us <= now_us]
    free += [] if most_tries is None else [alert.c.again_us <= now_us]
    first = sa.select(alert.c.alert_id).where(*free).order_by(alert.c.at_us, alert.c.threshold).limit(1)
    query = (
        sa.update(alert)
        .where(alert.c.alert_id == first.with_for_update(skip_locked=True).scalar_subquery(), *free)
        .values(lease_us=now_us + lease_us, tries=alert.c.tries + 1)
        .returning(alert)
    )
    with ledger.changing(alone=False) as connection:
        row = connection.execute(query).mappings().one_or_none()
    return None if row is None else Alert(**row)


def mark_delivered(ledger: Ledger, claimed: Alert, now_us: int) -> None:
    """Note that an alert has arrived."""
    _change(ledger, claimed, delivered_us=now_us, problem=None)


def mark_failed(ledger: Ledger, claimed: Alert, problem: str, again_us: int) -> None:
    """Note that an alert has not arrived, why not, and when the next try is due; unless another has it by now."""
    _change(ledger, claimed, alert.c.lease_us == claimed.lease_us, problem=problem[:200], again_us=again_us, lease_us=0)


def _change(ledger: Ledger, claimed: Alert, *conditions: sa.ColumnElement[bool], **values: Any) -> None:
    query = sa.update(alert).where(alert.c.alert_id == claimed.alert_id, *conditions).values(**values)
    with ledger.changing(alone=False) as connection:
        connection.execute(query)


def _open(most_tries: int | None) -> list[sa.ColumnElement[bool]]:
    tried = [] if most_tries is None else [alert.c.tries < most_tries]
    return [alert.c.delivered_us.is_(None), *tried]


# An account, and the limit that it has under one of its budgets.
type _Key = tuple[Account, int]
type _Found = dict[_Key, BudgetStatus]


def _key_of(status: BudgetStatus) -> _Key:
    row, labels = as_attempt(status)
    account = account_of(status.limit, {"ts_us": status.since_us, **row}, labels)
    return account, status.limit.budget.limit_nano


def _of_rows(connection: Connection, places: Sequence[Sequence[Limit]], now_us: int) -> _Found:
    found: _Found = {}
    for place in places:
        for limit in filter(_may_alert, place):
            for status in statuses_of_all(connection, limit, now_us):
                if status.counted_nano and limit in applying(place, *as_attempt(status)):
                    found[_key_of(status)] = status
    return found


def _of_seen(connection: Connection, places: Sequence[Sequence[Limit]], seen: Iterable[Seen], now_us: int) -> _Found:
    """Every budget that applies to an attempt, the caller's own among them."""
    wanted: dict[_Key, tuple[Limit, Row, Labels]] = {}
    for each in seen:
        row: Row = {"ts_us": now_us, "agent": each.columns[0], "tool": each.columns[1]}
        labels: Labels = dict(each.labels)
        for limit in [limit for place in (each.limits, *places) for limit in applying(place, row, labels)]:
            if _may_alert(limit):
                wanted[account_of(limit, row, labels), limit.budget.limit_nano] = (limit, row, labels)
    totals = _totals(connection, [key for key, _ in wanted], now_us)
    found: _Found = {}
    unknown = 0
    for key, (limit, row, labels) in wanted.items():
        if (counted_nano := totals.get(key[0])) is not None:
            _, _, since_us, until_us = key[0]
            found[key] = BudgetStatus(limit, group_of(limit.dimensions, row, labels), counted_nano, since_us, until_us)
        elif unknown < _MOST:  # nobody has held anything under this budget yet, so its attempts are added up
            unknown += 1
            found[key] = status_of(connection, limit, row, labels)
    return found


def _totals(connection: Connection, keys: Sequence[Account], now_us: int) -> dict[Account, int]:
    if not keys:
        return {}
    query = totals_query(connection, {key[:2] for key in keys}, [now_us], locked=False)
    [rows] = Driver.of(connection).read(query)
    return {(row[0], row[1], row[2], row[3]): row[4] for row in rows}


def _of_totals(connection: Connection, places: Sequence[Sequence[Limit]], now_us: int) -> _Found:
    """Budgets of the settings and the ledger, by running totals: what a process that died had seen is there too."""
    found: _Found = {}
    for place in places:
        for limit in filter(_may_alert, place):
            dimensions, _, since_us, until_us = account_of(limit, {"ts_us": now_us}, {})
            for whose, counted_nano in connection.execute(_near(limit, dimensions, since_us, until_us)):
                status = BudgetStatus(limit, _group(whose) or (), counted_nano, since_us, until_us)
                if limit in applying(place, *as_attempt(status)):
                    found[(dimensions, whose, since_us, until_us), limit.budget.limit_nano] = status
    return found


def _near(limit: Limit, dimensions: str, since_us: int, until_us: int) -> sa.Select[Any]:
    """The running totals of a budget that have reached its lowest threshold."""
    return (
        sa.select(account.c.whose, account.c.counted_nano)
        # By the index of ends: the primary key would find every group's windows of the last weeks.
        .where(account.c.until_us == until_us, account.c.since_us == since_us, account.c.dimensions + "" == dimensions)
        .where(account.c.counted_nano * 100 >= limit.budget.limit_nano * THRESHOLDS[0])
        .limit(_MOST_GROUPS)
    )


def _may_alert(limit: Limit) -> bool:
    """A limit of 0 is there to refuse everything; there is nothing to watch."""
    return limit.budget.limit_nano > 0 and "run" not in limit.dimensions


def _reached(
    connection: Connection, key: Account, limit_nano: int, status: BudgetStatus, now_us: int, *, refuses: bool
) -> Iterator[Alert]:
    """The thresholds that an account has reached, and that have no alert yet."""
    if not (passed := _passed(status.counted_nano, limit_nano, refuses)):
        return
    names = ("dimensions", "whose", "since_us", "until_us", "limit_nano")
    same = (alert.c[name] == value for name, value in zip(names, (*key, limit_nano), strict=True))
    known = set(connection.scalars(sa.select(alert.c.threshold).where(alert.c.kind == "budget", *same)))
    if known.issuperset(passed):
        return
    whole, terms = with_parts(connection, status), status.limit.budget
    for threshold in _passed(whole.spent_nano + whole.reserved_nano, limit_nano, refuses):
        if threshold not in known:
            amounts = (whole.spent_nano, whole.reserved_nano, None)
            yield Alert(new_id(), "budget", *key, limit_nano, threshold, terms.window, terms.tz, *amounts, now_us)


def _passed(used_nano: int, limit_nano: int, refuses: bool) -> list[int]:
    *_, before, last = THRESHOLDS
    passed = [each for each in THRESHOLDS if used_nano * 100 >= limit_nano * each]
    return [*passed, last] if refuses and before in passed and last not in passed else passed


def _group(whose: str) -> tuple[str, ...] | None:
    """The values of a running total's group; None if they were too long to be kept."""
    return tuple(json.loads(whose)) if whose.startswith("[") else None
