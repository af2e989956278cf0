"""What a request cost: from usage and rates to nano-dollars."""

from __future__ import annotations

from decimal import Decimal

from shared.internal.money import to_nano
from shared.prices.images import images_cost
from shared.types import Answer, CostSource, Rates, Usage


def price(answer: Answer, rates: Rates) -> tuple[int | None, CostSource]:
    """
    Cost of an answer, and how it is known.

    Returns:
        Nano-dollars and the source of the figure; None and "unknown" when the price or the usage is not known.
        What the provider itself reported as charged wins over our own multiplication.
    """
    if answer.reported_cost is not None:
        return to_nano(answer.reported_cost), "provider"
    if answer.images and rates.image_output is None and rates.source not in ("free", "unknown"):
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
    at = _tier(rates, prompt)
    written_1h = min(usage.cache_write_1h_tokens or 0, usage.cache_write_tokens or 0)
    written = (usage.cache_write_tokens or 0) - written_1h
    cached, reasoning = usage.cached_tokens or 0, min(usage.reasoning_tokens or 0, completion)
    seen = 0 if at.image_input is None else usage.image_prompt_tokens or 0
    drawn = 0 if at.image_output is None else usage.image_completion_tokens or 0
    fresh = prompt - cached - written - written_1h - seen
    if fresh < 0 or drawn + reasoning > completion:
        return None
    cache_write = at.cache_write if at.cache_write is not None else at.input
    parts = (
        (fresh, at.input),
        (cached, at.cached if at.cached is not None else at.input),
        (written, cache_write),
        (written_1h, at.cache_write_1h if at.cache_write_1h is not None else cache_write),
        (completion - reasoning - drawn, at.output),
        (seen, at.image_input),
        (drawn, at.image_output),
        (reasoning, at.reasoning if at.reasoning is not None else at.output),
    )
    if any(count and rate is None for count, rate in parts):
        return None
    usd = sum((count * rate for count, rate in parts if rate is not None), Decimal(0))
    return to_nano(usd + (rates.per_request or 0))


def _tier(rates: Rates, prompt_tokens: int) -> Rates:
    """The rates that hold for a prompt of this size."""
    at = rates
    for above, tier in rates.tiers:
        if prompt_tokens > above:
            at = tier
    return at
