"""What a request cost: from usage and rates to nano-dollars."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import NamedTuple, cast

from shared.internal.money import to_nano
from shared.prices.images import images_cost
from shared.prices.rates import UNKNOWN
from shared.prices.units import TOKENS
from shared.types import Answer, CostSource, Rates, Unit, Usage

_COUNTS = (
    "prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens", "cache_write_1h_tokens",
    "reasoning_tokens",
)  # fmt: skip
# Without a price of its own a unit is charged as the first of these that has one: at least so much.
_AT_LEAST: Mapping[str, tuple[str, ...]] = {
    "input_audio": ("input",),
    "cached_audio": ("input_audio", "cached", "input"),
    "output_audio": ("output",),
    "output_image": ("output",),
    "output_video": ("output",),
    "cache_write": ("input",),
    "cache_write_1h": ("cache_write", "input"),
}
# And here exactly so much: there is no discount, or the price of text is that of the other kinds too.
_AS: Mapping[str, tuple[str, ...]] = {
    "cached": ("input",),
    "reasoning": ("output",),
    "input_image": ("input",),
    "cached_image": ("input_image", "cached", "input"),
    "cached_audio": ("input_audio",),
    "input_video": ("input",),
    "search_low": ("search",),
    "search_medium": ("search",),
    "search_high": ("search",),
}
# Perplexity's fee for a request by its search context covers its searches; deep research is billed by searches, and is
# the only model that is charged for citations. Source: docs.perplexity.ai, "Pricing" (read 2026-11-27).
_CONTEXTS = frozenset({"search_low", "search_medium", "search_high"})


class Cost(NamedTuple):
    """
    What an answer cost.

    `nano` is None where it is unknown; `is_lower_bound` says that something is billed that has no known price.
    """

    nano: int | None
    source: CostSource
    is_lower_bound: bool = False


class Itemised(NamedTuple):
    """US$ by unit, which add up to the whole; those of other models as "model/unit"."""

    usd: Mapping[str, Decimal]
    is_lower_bound: bool


def price(answer: Answer, rates: Rates, rates_of_other: Callable[[str], Rates] | None = None) -> Cost:
    """
    Cost of an answer, and how it is known.

    What the provider itself reported as charged wins over our own multiplication.

    Args:
        rates: As the answer was served.

        rates_of_other: The rates of another model that has helped, by the name that the provider gives.
    """
    if answer.reported_cost is not None:
        return Cost(to_nano(answer.reported_cost), "provider")
    if answer.images and "output_image" not in rates.prices and rates.source not in ("free", "unknown"):
        usd = images_cost(answer, rates)
        return Cost(None, "unknown") if usd is None else Cost(to_nano(usd), rates.source, rates.at_least)
    if rates.source == "free":
        return Cost(0, "free")
    found = itemised(answer.usage, rates, rates_of_other)
    if found is None:
        return Cost(None, "unknown")
    nano = to_nano(sum(found.usd.values(), answer.fee))
    is_lower_bound = found.is_lower_bound or rates.at_least
    return Cost(nano, "counted" if answer.usage.source == "counted" and nano else rates.source, is_lower_bound)


def token_cost(usage: Usage, rates: Rates) -> int | None:
    """Nano-dollars for one request, rounded once; None when a price or a count is not known."""
    if rates.source == "free":
        return 0
    found = itemised(usage, rates)
    return None if found is None else to_nano(sum(found.usd.values(), Decimal(0)))


def itemised(usage: Usage, rates: Rates, rates_of_other: Callable[[str], Rates] | None = None) -> Itemised | None:
    """What each unit of a request cost; None when a count, or the price of its text, is not known."""
    own = _without_others(usage)
    units = billed_units(own)
    if rates.source == "unknown" or units is None:
        return None
    prompt = own.prompt_tokens if own.prompt_tokens is not None else units.get("input", 0)
    at = prices_at(rates, prompt)
    usd: dict[str, Decimal] = {}
    is_lower_bound = False
    for unit, count in _without_alternatives(units, at).items():
        rate, is_exact = _rate(unit, at)
        if count and rate is None and unit in TOKENS and unit != "citation":
            return None
        if count and rate is not None:
            usd[unit] = count * rate
        is_lower_bound = is_lower_bound or (bool(count) and not is_exact)
    if fee := rates.prices.get("request"):
        usd["request"] = fee
    for name, of_other in usage.others:
        found = itemised(of_other, rates_of_other(name) if rates_of_other else UNKNOWN)
        usd |= {f"{name}/{unit}": cost for unit, cost in found.usd.items()} if found else {}
        is_lower_bound = is_lower_bound or found is None or found.is_lower_bound
    return Itemised(usd, is_lower_bound)


def all_units(usage: Usage) -> dict[str, int] | None:
    """What is billed, by unit, for the row: that of other models as "model/unit"; None where nothing is known."""
    own = billed_units(_without_others(usage))
    if own is None:
        return dict(usage.units) or None
    for name, of_other in usage.others:
        own |= {f"{name}/{unit}": count for unit, count in (billed_units(of_other) or {}).items()}
    return {unit: count for unit, count in own.items() if count} or None


def billed_units(usage: Usage) -> dict[str, int] | None:
    """
    What is billed for one request, each token in one unit; None where a count is not known, or cannot be true.

    Args:
        usage: Of one model.
    """
    units = dict(usage.units)
    if "input" in units and "output" in units:
        return units
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if prompt is None or completion is None:
        return None
    written = usage.cache_write_tokens or 0
    written_1h = min(usage.cache_write_1h_tokens or 0, written)
    reasoning = min(usage.reasoning_tokens or 0, completion)
    cached_apart = units.get("cached_audio", 0) + units.get("cached_image", 0)
    read_apart = sum(units.get(f"input_{kind}", 0) for kind in ("audio", "image", "video"))
    written_apart = sum(units.get(f"output_{kind}", 0) for kind in ("audio", "image", "video"))
    units |= {
        "input": prompt - (usage.cached_tokens or 0) - written - read_apart,
        "cached": (usage.cached_tokens or 0) - cached_apart,
        "cache_write": written - written_1h,
        "cache_write_1h": written_1h,
        "output": completion - reasoning - written_apart,
        "reasoning": reasoning,
    }
    return None if any(count < 0 for count in units.values()) else units


def _without_others(usage: Usage) -> Usage:
    """The counts of the model that answered alone."""
    if not usage.others:
        return usage
    own = {
        name: whole - sum(getattr(other, name) or 0 for _, other in usage.others)
        for name in _COUNTS
        if (whole := getattr(usage, name)) is not None
    }
    return replace(usage, **own, others=())


def _without_alternatives(units: Mapping[str, int], at: Mapping[Unit, Decimal]) -> Mapping[str, int]:
    """The units without those that a price of another covers: searches by context, or one by one; never both."""
    sized = [unit for unit in _CONTEXTS if units.get(unit)]
    if not sized or not units.get("search"):
        return units
    covered = {"search"} if "search" not in at else {unit for unit in sized if unit not in at}
    return {unit: count for unit, count in units.items() if unit not in covered}


def _rate(unit: str, at: Mapping[Unit, Decimal]) -> tuple[Decimal | None, bool]:
    """US$ for one of a unit, and whether that is all that it costs; None where nothing is known."""
    for names, is_exact in (((unit, *_AS.get(unit, ())), True), (_AT_LEAST.get(unit, ()), False)):
        for name in names:
            if name in at:
                return at[cast(Unit, name)], is_exact
    return None, unit == "citation"


def prices_at(rates: Rates, prompt_tokens: int) -> Mapping[Unit, Decimal]:
    """The prices that hold for a prompt of this size."""
    at = rates.prices
    for above, prices in rates.above:
        if prompt_tokens > above:
            at = prices
    return at
