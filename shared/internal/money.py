"""US dollars as whole nano-dollars, and back."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_EVEN, Decimal

NANO = 1_000_000_000


def to_nano(usd: Decimal | float) -> int:
    """US$ as whole nano-dollars, rounded half to even."""
    exact = usd if isinstance(usd, Decimal) else Decimal(repr(float(usd)))
    return int((exact * NANO).to_integral_value(rounding=ROUND_HALF_EVEN))


def to_usd(nano: int | None) -> float:
    """Nano-dollars as US$; NaN for None."""
    return math.nan if nano is None else nano / NANO
