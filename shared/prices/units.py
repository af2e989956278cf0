"""The units that providers bill, and how a price for one is written."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import cast, get_args

from shared.types import Unit

UNITS: frozenset[str] = frozenset(get_args(Unit))
# Counted in tokens: their prices depend on the service tier and on the size of the prompt.
TOKENS: frozenset[str] = frozenset(
    {
        "input", "cached", "cache_write", "cache_write_1h", "cache_write_12h", "output", "reasoning", "input_audio",
        "cached_audio", "output_audio", "input_image", "cached_image", "output_image", "input_video", "output_video",
        "citation",
    }
)  # fmt: skip
_MILLION = Decimal(1_000_000)


def plain(unit: str, price: Decimal) -> str:
    """
    A price as the table writes it: US$ for one unit, of tokens so that what stands before e-6 is that of a million.

    A float's noise in a source (1.0000000000000001e-07) is left out: no price has more than twelve digits.
    """
    exact = Decimal(f"{price:.12g}") if len(price.as_tuple().digits) > 12 else price
    if unit in TOKENS and exact:
        return f"{(exact * _MILLION).normalize():f}e-6"
    return f"{exact.normalize():f}"


def units_of(prices: Mapping[str, str]) -> dict[Unit, Decimal]:
    """Prices of the table as exact numbers; units that this version does not know are left out."""
    return {cast(Unit, unit): Decimal(price) for unit, price in prices.items() if unit in UNITS}
