"""What a request cost: from usage and rates to nano-dollars."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from shared.internal.money import to_nano
from shared.prices.images import images_cost
from shared.types import Answer, CostSource, Rates, Unit, Usage


def price(answer: Answer, rates: Rates) -> tuple[int | None, CostSource]:
    """
    Cost of an answer, and how it is known.

    Returns:
        Nano-dollars and the source of the figure; None and "unknown" when the price or the usage is not known.
        What the provider itself reported as charged wins over our own multiplication.
    """
    if answer.reported_cost is not None:
        return to_nano(answer.reported_cost), "provider"
    if answer.images and "output_image" not in rates.prices and rates.source not in ("free", "unknown"):
        usd = images_cost(answer, rates)
        return (None, "unknown") if usd is None else (to_nano(usd), rates.source)
    nano = token_cost(answer.usage, rates)
    if nano is None:
        return None, "unknown"
    return nano, "counted" if answer.usage.source == "counted" and nano else rates.source


def token_cost(usage: Usage, rates: Rates) -> int | None:
    """Nano-dollars for the tokens of one request, rounded once; None when a price or a count is not known."""
    if rates.source == "free":
        return 0
    if rates.source == "unknown":
        return None
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if prompt is None or completion is None:
        return None
    at = prices_at(rates, prompt)
    written_1h = min(usage.cache_write_1h_tokens or 0, usage.cache_write_tokens or 0)
    written = (usage.cache_write_tokens or 0) - written_1h
    cached, reasoning = usage.cached_tokens or 0, min(usage.reasoning_tokens or 0, completion)
    seen = usage.image_prompt_tokens or 0 if "input_image" in at else 0
    drawn = usage.image_completion_tokens or 0 if "output_image" in at else 0
    fresh = prompt - cached - written - written_1h - seen
    if fresh < 0 or drawn + reasoning > completion:
        return None
    plain, answer = at.get("input"), at.get("output")
    cache_write = at.get("cache_write", plain)
    parts = (
        (fresh, plain),
        (cached, at.get("cached", plain)),
        (written, cache_write),
        (written_1h, at.get("cache_write_1h", cache_write)),
        (completion - reasoning - drawn, answer),
        (seen, at.get("input_image")),
        (drawn, at.get("output_image")),
        (reasoning, at.get("reasoning", answer)),
    )
    if any(count and rate is None for count, rate in parts):
        return None
    usd = sum((count * rate for count, rate in parts if rate is not None), Decimal(0))
    return to_nano(usd + rates.prices.get("request", 0))


def prices_at(rates: Rates, prompt_tokens: int) -> Mapping[Unit, Decimal]:
    """The prices that hold for a prompt of this size."""
    at = rates.prices
    for above, prices in rates.above:
        if prompt_tokens > above:
            at = prices
    return at
