"""What the ledger has of a provider's bill: sums by the model that answered, and the corrections that bills caused."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from shared.internal.clock import now_us
from shared.ledger.adjustments import NOBODY, adjustment
from shared.ledger.query import Window, paged
from shared.ledger.row import AttemptRow
from shared.ledger.schema import attempt
from shared.ledger.store import Ledger

KIND = "reconcile"
_NAMESPACE = uuid.UUID("0c0a4b0e-5b86-4c1e-9a53-3f0a6f0b6d52")
_APART = "apart"
_ANSWERED = ("ok", "rejected_response", "reported")
_LONGEST_REFERENCE = 250
_PAGE = 500
# How certain the cost of an attempt is, and why not. Adjustments are no attempts. An attempt without an answer whose
# cost is a guess may turn out cheaper too.
_IS_PART = sa.or_(attempt.c.cost_nano.is_(None), attempt.c.cost_is_lower_bound.is_(True))
# What is no part of a bill: what earlier bills have corrected, credits of no model, what was never sent.
_IS_APART = sa.or_(
    sa.and_(attempt.c.adjustment_kind.is_not(None), attempt.c.adjustment_kind == KIND),
    attempt.c.model == NOBODY,
    attempt.c.status == "refused",
)
_STATE = sa.case(
    (attempt.c.adjustment_kind.is_not(None), "adjusted"),
    (attempt.c.status.in_(("started", "unsettled")), "unfinished"),
    (sa.and_(attempt.c.status.in_(_ANSWERED), _IS_PART), "unpriced"),
    (sa.and_(attempt.c.cost_nano.is_(None), attempt.c.status.not_in(_ANSWERED)), "unfinished"),
    (attempt.c.reserved_nano > 0, "reserved"),
    (attempt.c.status.in_(_ANSWERED), "settled"),
    (sa.or_(_IS_PART, attempt.c.cost_source.in_(("counted", "bound"))), "unfinished"),
    else_="settled",
)
_IS_UNMEASURED = sa.and_(attempt.c.prompt_tokens.is_(None), sa.func.coalesce(attempt.c.cost_nano, 1) != 0)


@dataclass(frozen=True, slots=True)
class Billed:
    """
    The attempts of one model in a time, answered under one name, whose cost is equally certain.

    `state` is settled, unfinished, reserved or unpriced, or adjusted for adjustments. `open_nano` is how much more they
    may cost, of those that have a bound; `unbounded` counts the others. `live` counts those that are still under way.
    `unmeasured` counts those that may have cost something, and have no tokens; `unknown` those whose cost is not known,
    or only in part. Money is nano-dollars.
    """

    model: str
    response_model: str | None
    state: str
    uses_tools: bool
    attempts: int
    cost_nano: int
    open_nano: int
    unbounded: int
    reserved_nano: int
    live: int
    unmeasured: int
    unknown: int
    unpriced_calls: int
    prompt_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    completion_tokens: int


def billed(ledger: Ledger, provider: str, span: Window) -> tuple[list[Billed], int]:
    """
    What the ledger has of a provider's models in a time, without the corrections of earlier bills; read in pages.

    Returns:
        The attempts, and nano-dollars of all records dated in that time: those of the sums, if none is missing.

    Raises:
        StoreError: The ledger cannot be read.
    """
    dated: dict[tuple[Any, ...], list[int]] = {}
    late: dict[tuple[Any, ...], list[int]] = {}
    rest = [(span.since_us, span.until_us)]
    while rest:
        with ledger.reading() as connection:
            now, rest = paged(connection, rest)
            for inside in now:
                _add(connection, dated, provider, _dated(inside), sa.or_(_IS_APART, attempt.c.happened_us.is_not(None)))
    with ledger.reading() as connection:
        _add(connection, late, provider, _happened(span), _IS_APART)
    found = [
        Billed(key[0], key[1], key[2], bool(key[3]), *numbers)
        for part in (dated, late)
        for key, numbers in part.items()
    ]
    cost_nano = sum(group.cost_nano for group in found[: len(dated)])
    return [group for group in found if group.state != _APART], cost_nano


def has_late(ledger: Ledger, provider: str, span: Window) -> bool:
    """
    Whether something of a provider in a time was entered later, because its books were closed.

    Raises:
        StoreError: The ledger cannot be read.
    """
    query = sa.select(attempt.c.attempt_id).where(*_happened(span), attempt.c.provider == provider).limit(1)
    with ledger.reading() as connection:
        return connection.execute(query).first() is not None


def _dated(inside: tuple[int, int]) -> tuple[sa.ColumnElement[bool], ...]:
    return attempt.c.ts_us >= inside[0], attempt.c.ts_us < inside[1]


def _happened(span: Window) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        attempt.c.happened_us.is_not(None),
        span.since_us <= attempt.c.happened_us,
        span.until_us > attempt.c.happened_us,
    )


def _add(
    connection: Connection,
    found: dict[tuple[Any, ...], list[int]],
    provider: str,
    inside: tuple[sa.ColumnElement[bool], ...],
    is_apart: sa.ColumnElement[bool],
) -> None:
    tools = sa.case((_uses_tools(), 1), else_=0)
    keys = [
        attempt.c.model,
        attempt.c.response_model,
        sa.case((is_apart, _APART), else_=_STATE).label("state"),
        tools.label("tools"),
    ]
    spent = sa.func.coalesce(attempt.c.cost_nano, 0)
    is_live = sa.and_(attempt.c.status == "started", attempt.c.lease_us > now_us())
    no_attempt = attempt.c.adjustment_kind.is_not(None)
    numbers: list[sa.ColumnElement[Any]] = [
        sa.case((no_attempt, 0), else_=1),
        spent,
        sa.case((attempt.c.bound_nano > spent, attempt.c.bound_nano - spent), else_=0),
        sa.case((attempt.c.bound_nano.is_(None), 1), else_=0),
        sa.func.coalesce(attempt.c.reserved_nano, 0),
        sa.case((is_live, 1), else_=0),
        sa.case((no_attempt, 0), (_IS_UNMEASURED, 1), else_=0),
        sa.case((no_attempt, 0), (_IS_PART, 1), else_=0),
        attempt.c.unpriced_calls,
        *(
            sa.func.coalesce(attempt.c[name], 0)
            for name in ("prompt_tokens", "cached_tokens", "cache_write_tokens", "completion_tokens")
        ),
    ]
    query = (
        sa.select(*keys, *(sa.func.sum(number).label(f"n{place}") for place, number in enumerate(numbers)))
        .where(*inside, attempt.c.provider == provider)
        .group_by(*keys)
    )
    for row in connection.execute(query):
        key = tuple(row[: len(keys)])
        known = found.setdefault(key, [0] * len(numbers))
        found[key] = [total + int(number or 0) for total, number in zip(known, row[len(keys) :], strict=True)]


def _uses_tools() -> sa.ColumnElement[bool]:
    """Whether an attempt used something of the provider's that bills list apart from the model."""
    units = sa.cast(attempt.c.units, sa.Text)
    return sa.or_(*(units.like(f"%{part}%") for part in ("search", "code_session")))


def attempts_billed(
    ledger: Ledger, provider: str, span: Window, *, model: str | None = None, with_tools: bool = False
) -> Iterator[AttemptRow]:
    """
    The attempts of a provider in a time, oldest first and without labels; read in pages.

    Args:
        model: Only of this model.

        with_tools: Only those that used tools of the provider.

    Raises:
        StoreError: The ledger cannot be read.
    """
    query = sa.select(attempt).where(*_dated((span.since_us, span.until_us)), attempt.c.provider == provider)
    query = query.where(
        attempt.c.happened_us.is_(None),
        attempt.c.adjustment_kind.is_(None),
        attempt.c.status.not_in(("refused", "started")),
    )
    if model is not None:
        query = query.where(attempt.c.model == model)
    if with_tools:
        query = query.where(_uses_tools())
    query = query.order_by(attempt.c.ts_us, attempt.c.attempt_id).limit(_PAGE)
    last: tuple[int, uuid.UUID] | None = None
    while True:
        after = () if last is None else (sa.tuple_(attempt.c.ts_us, attempt.c.attempt_id) > sa.tuple_(*last),)
        with ledger.reading() as connection:
            rows = [AttemptRow.read(dict(each)) for each in connection.execute(query.where(*after)).mappings()]
        yield from rows
        if len(rows) < _PAGE:
            return
        last = rows[-1].ts_us, rows[-1].attempt_id


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What earlier bills have corrected of a line of a bill: nano-dollars, and calls that are no longer unpriced."""

    cost_nano: int = 0
    unpriced_calls: int = 0


def reconciled(ledger: Ledger, provider: str) -> Mapping[tuple[str, str], Reconciled]:
    """
    The corrections that bills of a provider have caused, by the day and the name that they correct.

    They count for that day wherever they are dated, because a closed month takes none.

    Raises:
        StoreError: The ledger cannot be read.
    """
    query = sa.select(attempt.c.adjusts, attempt.c.cost_nano, attempt.c.unpriced_calls).where(
        sa.text("adjustment_kind IS NOT NULL"),  # as the index has it
        attempt.c.adjustment_kind == KIND,
        attempt.c.provider == provider,
    )
    found: dict[tuple[str, str], Reconciled] = {}
    with ledger.reading() as connection:
        for adjusts, cost_nano, unpriced_calls in connection.execute(query):
            day, _, rest = (adjusts or "").partition("/")
            key = day, rest.rpartition("/")[0]
            known = found.get(key, Reconciled())
            found[key] = Reconciled(known.cost_nano + (cost_nano or 0), known.unpriced_calls + unpriced_calls)
    return found


def reconciling(
    before: Reconciled,
    change: Reconciled,
    ts_us: int,
    *,
    provider: str,
    model: str,
    line: tuple[str, str],
    file: str,
) -> AttemptRow:
    """
    The adjustment that brings a day's cost of a model to what the bill says; entered twice it counts once.

    Args:
        before: What earlier bills have corrected.

        change: What this one adds to that.

        ts_us: In the day, in microseconds since 1970.

        line: The day, and the name that the bill has for the model.

        file: Name of the bill's file.
    """
    day, name = line
    known = f"{day}/{name}/"
    row = adjustment(
        change.cost_nano,
        ts_us,
        KIND,
        adjusts=known + file.replace("/", "_")[-(_LONGEST_REFERENCE - len(known)) :],
        provider=provider,
        model=model,
    )
    # Of two people who enter the same bill at the same moment, both enter the same row.
    same = f"{provider} {known} {before} {change}"
    return replace(row, attempt_id=uuid.uuid5(_NAMESPACE, same), unpriced_calls=change.unpriced_calls)


def line_fits(name: str) -> bool:
    """Whether the name of a line is short enough to be named in an adjustment."""
    return len(name) <= _LONGEST_REFERENCE - 60
