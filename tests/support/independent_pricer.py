"""What a provider would charge, from the figures in table.json alone: nothing here is shared with shared/prices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from tests.support.paths import ROOT

# A kind of token without a price of its own is charged as the next of these.
_PLAINER = {
    "cached": "input",
    "cache_write": "input",
    "cache_write_1h": "cache_write",
    "input_image": "input",
    "reasoning": "output",
}


@lru_cache(maxsize=1)
def _models() -> Mapping[str, Any]:
    models: Mapping[str, Any] = json.loads((ROOT / "shared" / "prices" / "table.json").read_text("utf-8"))["models"]
    return models


def entry_of(model: str) -> Mapping[str, Any]:
    """The table's entry of provider/model."""
    entry: Mapping[str, Any] = _models()[model]
    return entry


def tiers_of(model: str) -> list[str]:
    """The service tiers in which a single request to the model may be served."""
    return [tier for tier in entry_of(model)["prices"] if tier != "batch"]


def bill(
    model: str,
    tokens: Mapping[str, int],
    fees: Mapping[str, int] | None = None,
    *,
    tier: str = "default",
    region: str | None = None,
) -> Fraction:
    """
    US$ that a request costs.

    Args:
        tokens: By kind, each token once. The size of the prompt is that of all kinds of input together.

        fees: What is charged beside tokens, by kind.
    """
    entry = entry_of(model)
    size = sum(count for kind, count in tokens.items() if not kind.startswith(("output", "reasoning")))
    prices = entry["prices"][tier]
    for above, tiers in sorted(entry.get("above", {}).items(), key=lambda item: int(item[0])):
        if size > int(above) and tier in tiers:
            prices = tiers[tier]
    factor = Fraction(entry.get("multipliers", {}).get(region, 1)) if region else Fraction(1)
    total = sum((count * _price(prices, kind) * factor for kind, count in tokens.items() if count), Fraction(0))
    default = entry["prices"]["default"]
    return total + sum((count * Fraction(default[kind]) for kind, count in (fees or {}).items()), Fraction(0))


def _price(prices: Mapping[str, str], kind: str) -> Fraction:
    while kind not in prices:
        kind = _PLAINER[kind]
    return Fraction(prices[kind])
