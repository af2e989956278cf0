"""What the ledger knows of images: which was made from which, what they cost together, what scaling down has saved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from shared.internal.money import to_usd
from shared.ledger.query import Filter, Window, conditions
from shared.ledger.schema import attempt
from shared.ledger.store import Ledger


@dataclass(frozen=True, slots=True)
class ImageLineage:
    """
    An image, what it was made from and what was made from it.

    `images` are names below the output folder, oldest first. `cost_nano` counts every request for any of them, failed
    ones of the same calls included; `unpriced_calls` are those with a cost that nobody knows, not in it.
    """

    images: tuple[str, ...]
    calls: int
    cost_nano: int
    unpriced_calls: int

    @property
    def cost(self) -> float:
        """US$ known to be spent on all of them."""
        return to_usd(self.cost_nano)


@dataclass(slots=True)
class _Made:
    """One call that made images."""

    images: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    cost_nano: int = 0
    unpriced: bool = False


def lineages_of(ledger: Ledger, which: Filter | None = None) -> list[ImageLineage]:
    """
    Every image with its relatives, the newest family last.

    Raises:
        StoreError: The ledger cannot be read.
    """
    calls = [call for call in _calls(ledger, which or Filter()).values() if call.images]
    family_of: dict[str, list[_Made]] = {}
    for call in calls:
        related = [family_of[name] for name in (*call.images, *call.origins) if name in family_of]
        family = related[0] if related else []
        for other in related[1:]:
            if other is not family:
                family.extend(made for made in other if made not in family)
        family.append(call)
        for made in family:
            family_of.update(dict.fromkeys((*made.images, *made.origins), family))
    distinct = {id(family): family for family in family_of.values()}
    return [_summed(family) for family in distinct.values()]


def image_lineage(ledger: Ledger, image: str, which: Filter | None = None) -> ImageLineage | None:
    """The relatives of one image by its name below the output folder; None when the ledger does not know it."""
    return next((found for found in lineages_of(ledger, which) if image in found.images), None)


def image_savings(ledger: Ledger, span: Window, which: Filter) -> dict[str, Any]:
    """What scaling images down before models looked at them has saved in a window: tokens, and US$ for them."""
    inside = (attempt.c.ts_us >= span.since_us, attempt.c.ts_us < span.until_us)
    query = sa.select(attempt.c.metadata).where(attempt.c.operation == "vision", *inside, *conditions(which))
    with ledger.reading() as connection:
        found = [noted for noted in connection.scalars(query) if isinstance(noted, dict)]
    return {
        "image_tokens_saved": sum(_count(noted, "image_tokens_saved") for noted in found),
        "image_cost_saved": to_usd(sum(_count(noted, "image_nano_saved") for noted in found)),
    }


def _calls(ledger: Ledger, which: Filter) -> Mapping[Any, _Made]:
    columns = (attempt.c.call_id, attempt.c.metadata, attempt.c.cost_nano)
    query = sa.select(*columns).where(attempt.c.operation == "image_generation", *conditions(which))
    calls: dict[Any, _Made] = defaultdict(_Made)
    with ledger.reading() as connection:
        for call_id, noted, nano in connection.execute(query.order_by(attempt.c.ts_us)):
            call = calls[call_id]
            call.cost_nano += nano or 0
            call.unpriced |= nano is None
            if isinstance(noted, dict) and "images" in noted:
                call.images += _names(noted["images"])  # several requests may have made them
                call.origins = _names(noted.get("made_from", ()))
    return calls


def _summed(calls: Iterable[_Made]) -> ImageLineage:
    calls = list(calls)
    names = dict.fromkeys(name for call in calls for name in (*call.origins, *call.images))
    return ImageLineage(tuple(names), len(calls), sum(c.cost_nano for c in calls), sum(c.unpriced for c in calls))


def _names(found: Any) -> tuple[str, ...]:
    return tuple(map(str, found)) if isinstance(found, list | tuple) else ()


def _count(noted: Mapping[str, Any], name: str) -> int:
    value = noted.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
