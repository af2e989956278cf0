"""Running totals of spending by group and window, checked and updated together with the rows of attempts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from shared.budget import Budget, Limit
from shared.ledger import sums
from shared.ledger.driver import Driver, Query
from shared.ledger.row import AttemptRow
from shared.ledger.schema import UNKNOWN_COST, account, account_kind, attempt, budget, label

Row = Mapping[str, Any]
Labels = Mapping[str, str]
# The key of a running total: dimensions, whose, since_us, until_us.
Account = tuple[str, str, int, int]

# How far the clocks of machines that share a ledger may differ while a budget has an hour, day or month window.
CLOCK_TOLERANCE_US = 300 * 1_000_000
_HASH = "sha256:"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_US = 24 * 3600 * 1_000_000
_KEPT_US = 40 * _DAY_US
# Why an attempt without a bound may not start; "hold_max" is asked again with the most that is known.
_WITHOUT_BOUND = {"allow": None, "refuse": "unknown price", "hold_max": "hold_max"}
# As `counted` has it; an older program leaves out what an attempt of unknown cost reserves.
_AMOUNT = sa.func.coalesce(
    attempt.c.cost_nano + attempt.c.reserved_nano, attempt.c.reserved_nano, attempt.c.cost_nano, attempt.c.bound_nano, 0
)
_IS_FREED = attempt.c.reserved_nano < 0
# As the indexes have them: with a parameter in its place SQLite would read the whole table.
_UNDER_WAY = sa.text("status = 'started'")
_RESERVES = sa.text("reserved_nano > 0")
_CORRECTS = sa.text("adjustment_kind IS NOT NULL")


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """
    The status of a limit for one group. `whose` names the group; it is empty while nothing has been spent.

    Of `counted_nano`, `reserved_nano` is kept for `reserved_requests` of which not all of the cost is known, and
    `under_way_nano` is the most that requests under way can cost; both are 0 where nobody asked (see `with_parts`).
    """

    limit: Limit
    whose: tuple[str, ...]
    counted_nano: int
    since_us: int
    until_us: int
    reserved_nano: int = 0
    reserved_requests: int = 0
    under_way_nano: int = 0

    @property
    def left_nano(self) -> int:
        """Nano-dollars that may still be spent; never below 0."""
        return max(0, self.limit.budget.limit_nano - self.counted_nano)

    @property
    def spent_nano(self) -> int:
        """Nano-dollars known to be spent: what counts but is neither reserved nor under way."""
        return self.counted_nano - self.reserved_nano - self.under_way_nano

    def __str__(self) -> str:
        own = {f"label:{self.limit.budget.scope}", self.limit.budget.scope} if self.limit.budget.value else set()
        named = zip(self.limit.dimensions, self.whose, strict=False)  # nothing spent yet: no values
        group = [f"{name.removeprefix('label:')}={value or '(none)'}" for name, value in named if name not in own]
        return f"{self.limit.budget}{f' ({", ".join(group)})' if group else ''}"


@dataclass(frozen=True, slots=True)
class Admission:
    """
    Whether an attempt may start, and the status of every budget that applies.

    `refused_by` and `reason` say why not. `refused` is the row that records the refusal; None when the attempt may
    start, or may try again with a shorter answer.
    """

    statuses: tuple[BudgetStatus, ...] = ()
    refused_by: BudgetStatus | None = None
    reason: str | None = None
    refused: AttemptRow | None = None

    @property
    def left_nano(self) -> int:
        """Nano-dollars left of the tightest budget; 0 when none applies."""
        return min((status.left_nano for status in self.statuses), default=0)

    def recorded_as(self, row: AttemptRow) -> Admission:
        """The refusal, and the row that records it."""
        return replace(self, refused=row)


@dataclass(frozen=True, slots=True)
class Terms:
    """
    What every writer must know of the ledger.

    The budgets stored in it, the sets of dimensions that it keeps running totals for, and the end of what is closed or
    removed, in microseconds since 1970: what happened before does not change, and what comes late is dated to now.
    """

    limits: tuple[Limit, ...] = ()
    kinds: tuple[tuple[str, ...], ...] = ()
    closed_us: int = 0


TERMS = (
    'SELECT name, limit_nano, "window", scope, tz, warn_at, on_exceed, on_unknown_price, value FROM budget UNION ALL '
    "SELECT dimensions, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM account_kind UNION ALL "
    "SELECT NULL, max(until_us), NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM closed_month UNION ALL "
    "SELECT NULL, frozen_us, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM pruned ORDER BY 1"
)
_TERM_NAMES = ("name", "limit_nano", "window", "scope", "tz", "warn_at", "on_exceed", "on_unknown_price", "value")
_TOTALS = "SELECT dimensions, whose, since_us, until_us, counted_nano FROM account WHERE (dimensions, whose) IN"
_OVERLAP = "AND since_us <= {0} AND until_us > {0} ORDER BY dimensions, whose, since_us, until_us"
LATEST = "SELECT ts_us, machine FROM attempt WHERE status <> 'reported' ORDER BY ts_us DESC LIMIT 1"


@lru_cache(maxsize=8)
def terms_of(rows: tuple[tuple[Any, ...], ...]) -> Terms:
    """What the rows of TERMS say. They are read each time, so that no change by another program is missed."""
    named = [row for row in rows if row[0] is not None]
    budgets = [dict(zip(_TERM_NAMES, row, strict=True)) for row in named if row[1] is not None]
    kinds = [tuple(json.loads(row[0])) for row in named if row[1] is None]
    closed_us = max((row[1] or 0 for row in rows if row[0] is None), default=0)
    return Terms(tuple(Limit(_as_budget(each)) for each in budgets), tuple(kinds), closed_us)


def terms_in(connection: Connection) -> Terms:
    """The terms of the ledger as they are now."""
    [rows] = Driver.of(connection).read((TERMS, ()))
    return terms_of(tuple(tuple(row) for row in rows))


class Totals:
    """
    The running totals that the attempts of a batch belong to, locked, and what the batch adds to them.

    Args:
        rows: Dimensions, whose, since_us, until_us and counted_nano of each.
    """

    def __init__(self, terms: Terms, rows: Iterable[Sequence[Any]], latest: Latest | None) -> None:
        self.terms = terms
        self.latest = latest
        self._counted: dict[Account, int] = {}
        self._windows: dict[tuple[str, str], list[Account]] = {}
        self.changes: dict[Account, int] = {}
        for *key, counted_nano in rows:
            self._know((key[0], key[1], key[2], key[3]), counted_nano)

    def _know(self, key: Account, counted_nano: int) -> None:
        self._counted[key] = counted_nano
        self._windows.setdefault(key[:2], []).append(key)

    def all_limits(self, row: Row, labels: Labels, limits: Sequence[Limit]) -> Iterable[Limit]:
        """Those of the caller's limits, and of those stored in the ledger, that are about an attempt."""
        return dict.fromkeys((*applying(limits, row, labels), *applying(self.terms.limits, row, labels)))

    def missing(self, row: Row, labels: Labels, limits: Sequence[Limit]) -> list[tuple[Limit, Account]]:
        """The limits that have no running total yet."""
        keys = [(each, account_of(each, row, labels)) for each in self.all_limits(row, labels, limits)]
        return [(limit, key) for limit, key in keys if key not in self._counted]

    def open(self, connection: Connection, limit: Limit, key: Account, row: Row, labels: Labels) -> None:
        """Begin a running total with what the rows add up to; no other writer may be at work."""
        group = group_of(limit.dimensions, row, labels)
        counted_nano = _sum(connection, limit.dimensions, group, key[2], key[3])
        values = dict(zip(("dimensions", "whose", "since_us", "until_us"), key, strict=True))
        is_new_kind = limit.dimensions not in self.terms.kinds
        values = {**values, "counted_nano": counted_nano}
        _open(connection, limit.dimensions, values, row["ts_us"], is_new_kind=is_new_kind)
        self._know(key, counted_nano)
        if is_new_kind:
            self.terms = replace(self.terms, kinds=(*self.terms.kinds, limit.dimensions))

    def statuses(self, row: Row, labels: Labels, limits: Sequence[Limit]) -> tuple[BudgetStatus, ...]:
        """The status of every limit that applies to an attempt."""
        found = []
        for limit in self.all_limits(row, labels, limits):
            key = account_of(limit, row, labels)
            group = group_of(limit.dimensions, row, labels)
            found.append(BudgetStatus(limit, group, self._counted[key], key[2], key[3]))
        return tuple(found)

    def check(self, row: Row, statuses: tuple[BudgetStatus, ...]) -> tuple[BudgetStatus, str] | None:
        """Which of its limits refuses an attempt, and why; None when it may start."""
        if row["bound_nano"] == 0:
            return None
        refusals = [(each, reason) for each in statuses if (reason := _refusal(self.latest, row, each))]
        # A limit that holds the most refuses only until the most is known, so that every other refusal comes first.
        return min(refusals, key=lambda refusal: refusal[1] == "hold_max", default=None)

    def move(self, before: Row | None, after: Row, labels: Labels) -> None:
        """Add the change in an attempt's counted amount to every running total that includes it."""
        is_plain = not _frees_before(after, after["ts_us"])
        change = counted(after) - (counted(before) if before is not None else 0)
        if is_plain and not change:
            return
        for dimensions in self.terms.kinds:
            place = (_key(dimensions), _digest(group_of(dimensions, after, labels)))
            for key in self._windows.get(place, ()):
                if key[2] <= after["ts_us"] < key[3]:
                    if not is_plain:
                        change = counted(after, key[2]) - (counted(before, key[2]) if before is not None else 0)
                    self._counted[key] += change
                    self.changes[key] = self.changes.get(key, 0) + change

    def taken_changes(self) -> list[Row]:
        """The changes since the last time, as rows."""
        changes, self.changes = self.changes, {}
        names = ("dimensions", "whose", "since_us", "until_us")
        return [dict(zip(names, key, strict=True)) | {"counted_nano": change} for key, change in changes.items()]


def account_of(limit: Limit, row: Row, labels: Labels) -> Account:
    """The key of the running total that a limit looks at."""
    since_us, until_us = limit.budget.span(row["ts_us"])
    return _key(limit.dimensions), _digest(group_of(limit.dimensions, row, labels)), since_us, until_us


def places_of(terms: Terms, row: Row, labels: Labels, limits: Sequence[Limit]) -> set[tuple[str, str]]:
    """Dimensions and group of every running total that an attempt may belong to, whatever its window."""
    kinds = {*terms.kinds, *(each.dimensions for each in (*limits, *terms.limits))}
    return {(_key(each), _digest(group_of(each, row, labels))) for each in kinds}


def statuses(connection: Connection, row: Row, labels: Labels, limits: Sequence[Limit]) -> tuple[BudgetStatus, ...]:
    """The status of every limit that applies to an attempt such as `row`."""
    all_limits = dict.fromkeys((*applying(limits, row, labels), *applying(stored(connection), row, labels)))
    return tuple(status_of(connection, each, row, labels) for each in all_limits)


def applying(limits: Iterable[Limit], row: Row, labels: Labels) -> list[Limit]:
    """
    The limits that are about an attempt, of those declared in one place.

    One for a single value is about no other value, and there replaces those for each value with the same window.
    """
    limits = list(limits)
    if all(limit.budget.value is None for limit in limits):
        return limits
    values = [_value_of(each, row, labels) for each in limits]
    own = {
        _for_each(limit)
        for limit, value in zip(limits, values, strict=True)
        if limit.budget.value is not None and limit.budget.value == value
    }
    return [
        limit
        for limit, value in zip(limits, values, strict=True)
        if (limit.budget.value is None and _for_each(limit) not in own)
        or (limit.budget.value is not None and limit.budget.value == value)
    ]


def _value_of(limit: Limit, row: Row, labels: Labels) -> str:
    """What an attempt has of that which a budget groups by."""
    budgeted = limit.budget.scope
    return (row.get(budgeted) or "") if f"label:{budgeted}" not in limit.dimensions else labels.get(budgeted, "")


def _for_each(limit: Limit) -> tuple[object, ...]:
    return limit.budget.scope, limit.budget.window, limit.budget.tz, limit.labels


def as_attempt(status: BudgetStatus) -> tuple[dict[str, str], dict[str, str]]:
    """An attempt of a budget's group: its columns and labels."""
    named = dict(zip(status.limit.dimensions, status.whose, strict=False))
    if status.limit.budget.value is not None and not status.whose:  # nothing was spent yet
        named = dict.fromkeys(status.limit.dimensions, status.limit.budget.value)
    labels = {name.removeprefix("label:"): value for name, value in named.items() if name.startswith("label:")}
    return {name: value for name, value in named.items() if not name.startswith("label:")}, labels


def with_parts(connection: Connection, status: BudgetStatus) -> BudgetStatus:
    """The status with the parts of what it counts that are reserved, and under way."""
    dimensions = status.limit.dimensions
    if len(dimensions) != len(status.whose):
        return status
    inside = [attempt.c.ts_us >= status.since_us, attempt.c.ts_us < status.until_us]
    inside += [_is_of(name, value) for name, value in zip(dimensions, status.whose, strict=True)]
    reserved = sa.select(sa.func.coalesce(sa.func.sum(attempt.c.reserved_nano), 0), sa.func.count())
    reserved_nano, requests = connection.execute(reserved.where(_RESERVES, *inside)).one()
    freed = (_CORRECTS, _IS_FREED, attempt.c.happened_us >= status.since_us)
    freed_nano, freed_requests = connection.execute(reserved.where(*freed, *inside)).one()
    held = sa.select(sa.func.coalesce(sa.func.sum(attempt.c.bound_nano), 0)).where(_UNDER_WAY, *inside)
    return replace(
        status,
        reserved_nano=int(reserved_nano) + int(freed_nano),
        reserved_requests=requests - freed_requests,
        under_way_nano=int(connection.scalar(held) or 0),
    )


def uncounted(connection: Connection, status: BudgetStatus) -> int:
    """Number of a budget's settled attempts of unknown cost that count with nothing."""
    dimensions = status.limit.dimensions
    if len(dimensions) != len(status.whose):
        return 0
    inside = [attempt.c.ts_us >= status.since_us, attempt.c.ts_us < status.until_us, _AMOUNT == 0]
    inside += [_is_of(name, value) for name, value in zip(dimensions, status.whose, strict=True)]
    return connection.scalar(sa.select(sa.func.count()).where(sa.text(UNKNOWN_COST), *inside)) or 0


def recent(connection: Connection, status: BudgetStatus, now_us: int) -> tuple[int, int]:
    """
    What was spent in the last 24 hours, or since the window began if that is later.

    Returns:
        Nano-dollars, and the microseconds since the ledger's first attempt in that time.
    """
    since_us = max(status.since_us, now_us - _DAY_US)
    dimensions = status.limit.dimensions
    if len(dimensions) != len(status.whose):
        return 0, 0
    first = connection.scalar(sa.select(sa.func.min(attempt.c.ts_us)).where(attempt.c.ts_us >= since_us))
    return _sum(connection, dimensions, status.whose, since_us, now_us + 1), now_us - (first or now_us)


def statuses_of_all(connection: Connection, limit: Limit, now_us: int) -> list[BudgetStatus]:
    """The status of a limit for each group with spending in the current window, highest spending first."""
    since_us, until_us = limit.budget.span(now_us)
    if not limit.dimensions:
        return [status_of(connection, limit, {"ts_us": now_us}, {})]
    amount = sa.func.sum(_amount(since_us))
    if since_us < sums.removed(connection).rows_us and (known := _of_accounts(connection, limit, since_us, until_us)):
        return known
    columns = [_column(name).label(f"d{place}") for place, name in enumerate(limit.dimensions)]
    query = sa.select(*columns, amount).where(attempt.c.ts_us >= since_us, attempt.c.ts_us < until_us)
    if limit.budget.value is not None:
        own = f"label:{limit.budget.scope}"
        query = query.where(_is_of(own if own in limit.dimensions else limit.budget.scope, limit.budget.value))
    found = connection.execute(query.group_by(*columns).order_by(amount.desc()))
    statuses = [BudgetStatus(limit, tuple(row[:-1]), int(row[-1]), since_us, until_us) for row in found]
    return statuses or [BudgetStatus(limit, (), 0, since_us, until_us)]


def _of_accounts(connection: Connection, limit: Limit, since_us: int, until_us: int) -> list[BudgetStatus]:
    """The same from the running totals, for a window whose attempts have been removed in part."""
    of_limit = (account.c.dimensions == _key(limit.dimensions), account.c.since_us == since_us)
    query = sa.select(account.c.whose, account.c.counted_nano).where(*of_limit, account.c.until_us == until_us)
    found = [
        BudgetStatus(limit, tuple(json.loads(whose)), int(counted_nano), since_us, until_us)
        for whose, counted_nano in connection.execute(query.order_by(account.c.counted_nano.desc()))
        if not whose.startswith(_HASH)
    ]
    if limit.budget.value is None:
        return found
    own = f"label:{limit.budget.scope}"
    place = limit.dimensions.index(own if own in limit.dimensions else limit.budget.scope)
    return [each for each in found if each.whose[place] == limit.budget.value]


@dataclass(frozen=True, slots=True)
class Latest:
    """The latest request in the ledger: when it started, and by the clock of which machine."""

    ts_us: int = 0
    machine: str | None = None

    def ahead_of(self, ts_us: int) -> str | None:
        """By how much, and whose record, it lies in the future of a clock that says `ts_us`; None within tolerance."""
        ahead_us = self.ts_us - ts_us
        if ahead_us <= CLOCK_TOLERANCE_US:
            return None
        when = (_EPOCH + timedelta(microseconds=self.ts_us)).strftime("%Y-%m-%d %H:%M:%S")
        return (
            f"this machine's clock is {ahead_us // 1_000_000} s behind the ledger's latest record "
            f"({when} UTC, by the clock of {self.machine or 'a machine whose name is unknown'})"
        )


def latest(connection: Connection) -> Latest:
    """The latest request in the ledger; at 1970 when there is none."""
    query = sa.select(attempt.c.ts_us, attempt.c.machine).where(attempt.c.status != "reported")
    found = connection.execute(query.order_by(attempt.c.ts_us.desc()).limit(1)).one_or_none()
    return Latest() if found is None else Latest(*found)


def move(connection: Connection, moves: Sequence[tuple[Row, Row, Labels]]) -> None:
    """Change every running total that includes attempts by the changes in their counted amounts: before, after."""
    driver, terms = Driver.of(connection), terms_in(connection)
    places = {place for _, row, labels in moves for place in places_of(terms, row, labels, ())}
    if not places:
        return
    [rows] = driver.read(totals_query(connection, places, [row["ts_us"] for _, row, _ in moves]))
    totals = Totals(terms, rows, None)
    for before, after, labels in moves:
        totals.move(before, after, labels)
    if changes := totals.taken_changes():
        driver.change(account, changes, ("counted_nano",), add=True)


def totals_query(
    connection: Connection, places: Iterable[tuple[str, str]], times_us: Sequence[int], *, locked: bool = True
) -> Query:
    """The running totals of some dimensions and groups whose windows hold any of the times, locked by key or not."""
    is_sqlite = connection.dialect.name == "sqlite"
    mark = "?" if is_sqlite else "%s"
    ordered = sorted(places)
    pairs = ", ".join([f"({mark}, {mark})"] * len(ordered))
    text = f"{_TOTALS} (VALUES {pairs}) {_OVERLAP.format(mark)}{' FOR UPDATE' if locked and not is_sqlite else ''}"
    return text, [*(value for place in ordered for value in place), max(times_us), min(times_us)]


def counted(row: Row, since_us: int = 0) -> int:
    """
    The counted amount of an attempt: its cost and what it reserves; while neither is known, its upper bound.

    Args:
        since_us: When the window begins, in microseconds since 1970. What frees a reservation from before that has
            never taken room from this window, and so gives it none.
    """
    cost, reserved = row.get("cost_nano"), row.get("reserved_nano")
    if _frees_before(row, since_us):
        return int(cost or 0)
    if cost is None and reserved is None:
        return int(row.get("bound_nano") or 0)
    return int(cost or 0) + int(reserved or 0)


def _frees_before(row: Row, since_us: int) -> bool:
    """Whether a row frees what was reserved before a moment."""
    return (row.get("reserved_nano") or 0) < 0 and (row.get("happened_us") or since_us) < since_us


def _amount(since_us: int) -> sa.ColumnElement[int]:
    """The same as `counted`, in SQL."""
    frees = sa.and_(_IS_FREED, attempt.c.happened_us < since_us)
    return sa.case((frees, sa.func.coalesce(attempt.c.cost_nano, 0)), else_=_AMOUNT)


def stored(connection: Connection) -> list[Limit]:
    """The limits stored in the ledger, which apply to everyone who uses it."""
    return [
        Limit(_as_budget(dict(row))) for row in connection.execute(sa.select(budget).order_by(budget.c.name)).mappings()
    ]


def store_budget(connection: Connection, name: str, declared: Budget) -> None:
    """Store a budget in the ledger, replacing one of the same name."""
    forget_budget(connection, name)
    terms = [column.name for column in budget.c if column.name not in ("name", "limit_nano")]
    values = {term: getattr(declared, term) for term in terms}
    connection.execute(sa.insert(budget), {"name": name, "limit_nano": declared.limit_nano, **values})


def forget_budget(connection: Connection, name: str) -> bool:
    """Remove a budget from the ledger; returns whether it existed."""
    return bool(connection.execute(sa.delete(budget).where(budget.c.name == name)).rowcount)


def stored_budgets(connection: Connection) -> list[tuple[str, Budget]]:
    """The budgets stored in the ledger, with their names."""
    found = connection.execute(sa.select(budget).order_by(budget.c.name)).mappings()
    return [(row["name"], _as_budget(dict(row))) for row in found]


def _as_budget(row: Mapping[str, Any]) -> Budget:
    values = {name: value for name, value in row.items() if name not in ("name", "limit_nano")}
    return Budget(limit_usd=row["limit_nano"] / 1e9, **values)


def _refusal(latest: Latest | None, row: Row, status: BudgetStatus) -> str | None:
    """Why an attempt may not start under this limit; None when it may."""
    terms = status.limit.budget
    if is_dated(status.limit) and latest is not None and (ahead := latest.ahead_of(row["ts_us"])):
        return ahead
    bound = row["bound_nano"]
    if bound is None:
        return _WITHOUT_BOUND[terms.on_unknown_price]
    return "no room" if bound > status.left_nano else None


def is_dated(limit: Limit) -> bool:
    """Whether a limit's window begins and ends by the clock, so that the clocks of machines must agree."""
    return limit.budget.window in ("hour", "day", "month")


def status_of(connection: Connection, limit: Limit, row: Row, labels: Labels) -> BudgetStatus:
    """The status of a limit for the group of an attempt such as `row`."""
    since_us, until_us = limit.budget.span(row["ts_us"])
    group = group_of(limit.dimensions, row, labels)
    key = {"dimensions": _key(limit.dimensions), "whose": _digest(group), "since_us": since_us, "until_us": until_us}
    found = connection.scalar(sa.select(account.c.counted_nano).where(*(account.c[n] == v for n, v in key.items())))
    if found is None:
        found = _sum(connection, limit.dimensions, group, since_us, until_us)
    return BudgetStatus(limit, group, int(found), since_us, until_us)


def _open(connection: Connection, dimensions: tuple[str, ...], values: Row, now_us: int, *, is_new_kind: bool) -> None:
    """Store a new running total, and delete those whose window ended long ago."""
    connection.execute(sa.delete(account).where(account.c.until_us < now_us - _KEPT_US))
    if is_new_kind:
        connection.execute(sa.insert(account_kind), {"dimensions": _key(dimensions)})
    connection.execute(sa.insert(account), values)


def _sum(
    connection: Connection, dimensions: tuple[str, ...], group: tuple[str, ...], since_us: int, until_us: int
) -> int:
    """The counted amounts of a group's attempts: from the sums, and from rows where there are none."""
    if _is_new(connection, dimensions, group, since_us):
        return 0
    of_group = [_is_of(name, value) for name, value in zip(dimensions, group, strict=True)]
    found = sums.costs(connection, dimensions, group, since_us, until_us)
    if found is None:
        return _sum_of(connection, _amount(since_us), (since_us, until_us), *of_group)
    cost_nano, how = found
    for span in how.rows:
        cost_nano += _sum_of(connection, _amount(since_us), span, *of_group)
    for begin, end in how.summed:
        span = (begin * 10**6, end * 10**6)
        # What counts beside costs is of few attempts, and an index finds each kind of them.
        cost_nano += _sum_of(connection, attempt.c.reserved_nano, span, _RESERVES, *of_group)
        freed = (_CORRECTS, _IS_FREED, attempt.c.happened_us >= since_us)
        cost_nano += _sum_of(connection, attempt.c.reserved_nano, span, *freed, *of_group)
        cost_nano += _sum_of(connection, attempt.c.bound_nano, span, _UNDER_WAY, *of_group)
        unknown = (sa.text(UNKNOWN_COST), attempt.c.reserved_nano.is_(None))
        cost_nano += _sum_of(connection, attempt.c.bound_nano, span, *unknown, *of_group)
    return cost_nano


def _is_new(connection: Connection, dimensions: tuple[str, ...], group: tuple[str, ...], since_us: int) -> bool:
    """Whether no attempt has one of the group's labels, so that it has spent nothing: most new totals are such."""
    names = (name.partition(":") for name in dimensions)
    used = [(name, value) for (kind, _, name), value in zip(names, group, strict=True) if kind == "label" and value]
    if not used or since_us < sums.removed(connection).rows_us:  # what was removed had labels too
        return False
    return any(
        connection.execute(_HAS_LABEL, {"label_name": name, "label_value": value}).first() is None
        for name, value in used
    )


_HAS_LABEL = (
    sa.select(label.c.attempt_id)
    .where(label.c.name == sa.bindparam("label_name"), label.c.value == sa.bindparam("label_value"))
    .limit(1)
)


def _sum_of(connection: Connection, what: sa.ColumnElement[Any], span: tuple[int, int], *conditions: Any) -> int:
    query = sa.select(sa.func.coalesce(sa.func.sum(what), 0))
    return int(connection.scalar(query.where(attempt.c.ts_us >= span[0], attempt.c.ts_us < span[1], *conditions)) or 0)


def _column(dimension: str) -> sa.ColumnElement[str]:
    """The agent, tool, run or label of an attempt; "" where it has none."""
    kind, _, name = dimension.partition(":")
    if kind != "label":
        return sa.func.coalesce(attempt.c[kind], "")
    own = sa.select(label.c.value).where(label.c.attempt_id == attempt.c.attempt_id, label.c.name == name)
    return sa.func.coalesce(own.scalar_subquery(), "")


def _is_of(dimension: str, value: str) -> sa.ColumnElement[bool]:
    kind, _, name = dimension.partition(":")
    if kind != "label":
        return sa.func.coalesce(attempt.c[kind], "") == value
    tagged = sa.exists().where(label.c.attempt_id == attempt.c.attempt_id, label.c.name == name)
    return tagged.where(label.c.value == value) if value else ~tagged


def group_of(dimensions: Iterable[str], row: Row, labels: Labels) -> tuple[str, ...]:
    """The group of an attempt: its value in each dimension, "" where it has no such agent, tool, run or label."""
    return tuple(
        labels.get(dimension[6:], "") if dimension.startswith("label:") else row.get(dimension) or ""
        for dimension in dimensions
    )


def group_with(dimensions: str, whose: str, name: str, value: str) -> bool:
    """
    Whether a running total is of a group that has this value in a dimension.

    Args:
        dimensions, whose: Its key. Of a group with long names only a hash is stored, which is told by its one name.
    """
    names = json.loads(dimensions)
    if name not in names:
        return False
    if whose.startswith(_HASH):
        return names == [name] and whose == _digest([value])
    return bool(json.loads(whose)[names.index(name)] == value)


def _key(values: Iterable[str]) -> str:
    return json.dumps(list(values), ensure_ascii=False, separators=(",", ":"))


def _digest(values: Iterable[str]) -> str:
    """A key short enough for an index: the values as JSON, or their hash when that is long."""
    key = _key(values)
    return key if len(key) <= 200 else f"{_HASH}{hashlib.sha256(key.encode()).hexdigest()}"
