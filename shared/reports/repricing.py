"""Prices recorded requests again, by today's price table."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from shared.internal.money import to_nano
from shared.ledger import COUNTS, AttemptRow, Ledger, enter, priced_attempts, repriced
from shared.models import Catalogue, has_own_endpoint, rates_served
from shared.prices import itemised, price_table
from shared.types import Rates, Served, TaskType, Usage


@dataclass(frozen=True, slots=True)
class Repriced:
    """One request whose cost is another by today's table; `before_nano` is None where it was unknown."""

    attempt_id: uuid.UUID
    call_id: uuid.UUID
    ts_us: int
    model: str
    before_nano: int | None
    after_nano: int


def reprice(ledger: Ledger, catalogue: Catalogue, since_us: int, until_us: int, *, write: bool) -> list[Repriced]:
    """
    Price the requests of a time by today's table, from the counts and the tier that their rows keep.

    What a provider or a user has reported stays, and so does a request whose price is not in the table. The rows stay
    too: the difference is an adjustment of its own. Doing it twice adds nothing.

    Args:
        write: Whether to enter the adjustments.

    Raises:
        StoreError: The ledger cannot be read, or written.
    """
    found: list[Repriced] = []
    adjustments: list[AttemptRow] = []
    for row, before_nano in priced_attempts(ledger, since_us, until_us):
        after_nano = cost_today(row, catalogue)
        known = row.cost_nano if before_nano is None else before_nano
        if after_nano is None or after_nano == known:
            continue
        found.append(Repriced(row.attempt_id, row.call_id, row.ts_us, row.model, known, after_nano))
        adjustments.append(repriced(row, before_nano, after_nano, price_table().version))
    if write and adjustments:
        enter(ledger, *adjustments)
    return found


def cost_today(row: AttemptRow, catalogue: Catalogue) -> int | None:
    """Nano-dollars that the request costs by today's table; None where that cannot be said."""
    found = items_today(row, catalogue)
    return None if found is None else to_nano(sum(found.values(), Decimal(0)))


def items_today(row: AttemptRow, catalogue: Catalogue) -> Mapping[str, Decimal] | None:
    """US$ by unit that the request costs by today's table; None where that cannot be said."""
    if row.cost_source == "unknown" and has_own_endpoint(row.provider):
        return None  # never had a list price
    if row.provider == "openrouter":
        return None  # the row does not keep the router's fee

    def rates(model: str | None, *, is_other: bool = False) -> Rates:
        when = datetime.fromtimestamp((row.happened_us or row.ts_us) / 1e6, UTC)
        region = (row.metadata or {}).get("region")
        served = Served(model, row.service_tier, region if isinstance(region, str) else None, when, is_other=is_other)
        return rates_served(catalogue, row.model, row.provider, served)

    own = rates(row.response_model)
    if own.source != "table" or (row.operation == TaskType.IMAGE_GENERATION and "output_image" not in own.prices):
        return None
    found = itemised(_usage(row), own, lambda model: rates(model, is_other=True))
    return None if found is None else found.usd


def _usage(row: AttemptRow) -> Usage:
    """The counts of a row as they were priced: by unit, those of other models apart."""
    if row.units is None:
        return Usage(**{name: getattr(row, name) for name in COUNTS}, source=row.usage_source)
    others: dict[str, dict[str, int]] = {}
    own = {"input": 0, "output": 0}
    for name, count in (row.units or {}).items():
        model, _, unit = name.rpartition("/")
        (others.setdefault(model, {"input": 0, "output": 0}) if model else own)[unit] = count
    apart = tuple((model, Usage(prompt_tokens=_prompt(units), units=units)) for model, units in others.items())
    return Usage(prompt_tokens=row.prompt_tokens, units=own, others=apart, source=row.usage_source)


def _prompt(units: dict[str, int]) -> int:
    return sum(count for unit, count in units.items() if unit.startswith(("input", "cache")))


def totals(found: list[Repriced]) -> Iterator[tuple[str, int, int]]:
    """By model: its name, how many requests have changed, and by how many nano-dollars together."""
    for model in sorted({each.model for each in found}):
        changes = [each.after_nano - (each.before_nano or 0) for each in found if each.model == model]
        yield model, len(changes), sum(changes)
