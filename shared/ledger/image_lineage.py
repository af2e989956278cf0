"""Images in the ledger: which was made from which, their total cost, and what downscaling saved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from shared.internal.money import to_usd
from shared.ledger.query import Filter, conditions
from shared.ledger.schema import attempt
from shared.ledger.store import Ledger
from shared.ledger.sums import warn_of_removed


@dataclass(frozen=True, slots=True)
class ImageLineage:
    """
    A family of images: an image, what it was made from, and what was made from it.

    `images` are names relative to the output folder, oldest first. `cost_nano` includes every request for any of them,
    also failed requests of the same calls. `unpriced_calls` have an unknown cost, which is not included.
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
class _ImageCall:
    """One call that made images."""

    images: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    cost_nano: int = 0
    unpriced: bool = False


def lineages_of(ledger: Ledger, which: Filter | None = None) -> list[ImageLineage]:
    """
    Every family of images, the newest last.

    Raises:
        StoreError: The ledger cannot be read.
    """
    warn_of_removed(ledger, 0, "this list")
    calls = [call for call in _calls(ledger, which or Filter()).values() if call.images]
    family_of: dict[str, list[_ImageCall]] = {}
    for call in calls:
        related = [family_of[name] for name in (*call.images, *call.origins) if name in family_of]
        family = related[0] if related else []
        for other in related[1:]:
            if other is not family:
                family.extend(each for each in other if each not in family)
        family.append(call)
        for each in family:
            family_of.update(dict.fromkeys((*each.images, *each.origins), family))
    distinct = {id(family): family for family in family_of.values()}
    return [_summed(family) for family in distinct.values()]


def image_lineage(ledger: Ledger, image: str, which: Filter | None = None) -> ImageLineage | None:
    """The family of an image, by its name relative to the output folder; None when the ledger has no such image."""
    return next((found for found in lineages_of(ledger, which) if image in found.images), None)


def _calls(ledger: Ledger, which: Filter) -> Mapping[Any, _ImageCall]:
    columns = (attempt.c.call_id, attempt.c.metadata, attempt.c.cost_nano)
    query = sa.select(*columns).where(attempt.c.operation == "image_generation", *conditions(which))
    calls: dict[Any, _ImageCall] = defaultdict(_ImageCall)
    with ledger.reading() as connection:
        for call_id, metadata, nano in connection.execute(query.order_by(attempt.c.ts_us)):
            call = calls[call_id]
            call.cost_nano += nano or 0
            call.unpriced |= nano is None
            if isinstance(metadata, dict) and "images" in metadata:
                call.images += _names(metadata["images"])  # several requests may have made them
                call.origins = _names(metadata.get("made_from", ()))
    return calls


def _summed(calls: Iterable[_ImageCall]) -> ImageLineage:
    calls = list(calls)
    names = dict.fromkeys(name for call in calls for name in (*call.origins, *call.images))
    return ImageLineage(tuple(names), len(calls), sum(c.cost_nano for c in calls), sum(c.unpriced for c in calls))


def _names(found: Any) -> tuple[str, ...]:
    return tuple(map(str, found)) if isinstance(found, list | tuple) else ()
