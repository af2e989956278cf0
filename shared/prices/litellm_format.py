"""LiteLLM's format of prices, as AGENTSWARM_PRICES may have it and as its own table does, into ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from shared.prices.units import plain

# LiteLLM's keys for our units. Of two for one unit, the later one here counts.
# Source: model_prices_and_context_window.json of LiteLLM 1.110.2 (read 2026-11-27).
_UNITS = {
    "input_cost_per_token": "input",
    "input_cost_per_token_cache_hit": "cached",
    "cache_read_input_token_cost": "cached",
    "cache_creation_input_token_cost": "cache_write",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
    "cache_creation_input_token_cost_above_12hr": "cache_write_12h",
    "output_cost_per_token": "output",
    "output_cost_per_reasoning_token": "reasoning",
    "input_cost_per_audio_token": "input_audio",
    "cache_read_input_audio_token_cost": "cached_audio",
    "output_cost_per_audio_token": "output_audio",
    "input_cost_per_image_token": "input_image",
    "cache_read_input_image_token_cost": "cached_image",
    "output_cost_per_image_token": "output_image",
    "input_cost_per_video_token": "input_video",
    "output_cost_per_video_token": "output_video",
    "citation_cost_per_token": "citation",
    "input_cost_per_character": "input_character",
    "output_cost_per_character": "output_character",
    "input_cost_per_second": "second",
    "input_cost_per_audio_per_second": "audio_second",
    "input_cost_per_video_per_second": "video_second",
    "output_cost_per_pixel": "pixel",
    "input_cost_per_pixel": "pixel",
    "input_cost_per_image": "image",
    "output_cost_per_image": "image",
    "output_cost_per_image_512": "image_512",
    "output_cost_per_image_1K": "image_1k",
    "output_cost_per_image_2K": "image_2k",
    "output_cost_per_image_4K": "image_4k",
    "input_cost_per_request": "request",
    "code_interpreter_cost_per_session": "code_session",
    "google_maps_grounding_cost_per_query": "maps",
}
_TIERS = {"batches": "batch", **{tier: tier for tier in ("flex", "priority", "balanced", "ultrafast", "decisions")}}
_TIER = re.compile(rf"_({'|'.join(_TIERS)})$")
_ABOVE = re.compile(r"_above_(\d+)k_tokens")
_MULTIPLIER = re.compile(r"(?:regional_processing_|regional_)?(.+?)_uplift_multiplier(?:_(\w+))?")
_ABILITIES = {
    "vision": "vision",
    "function_calling": "tools",
    "parallel_function_calling": "parallel_tools",
    "tool_choice": "tool_choice",
    "reasoning": "reasoning",
    "response_schema": "schema",
    "native_structured_output": "native_schema",
    "audio_input": "audio_input",
    "audio_output": "audio_output",
    "video_input": "video_input",
    "pdf_input": "pdf",
    "prompt_caching": "caching",
    "web_search": "search",
    "system_messages": "system",
    "assistant_prefill": "prefill",
    "sampling_params": "sampling",
    "adaptive_thinking": "adaptive_thinking",
    "legacy_thinking": "legacy_thinking",
    "output_config": "output_config",
    "forced_tool_use": "forced_tool",
    "speed": "speed",
    "none_reasoning_effort": "effort_none",
    "minimal_reasoning_effort": "effort_minimal",
    "low_reasoning_effort": "effort_low",
    "xhigh_reasoning_effort": "effort_xhigh",
    "max_reasoning_effort": "effort_max",
}
_SWITCHES = ("thinking_always_on", "thinking_on_by_default")


def from_litellm(entry: Mapping[str, Any], *, zero_is_free: bool = False) -> dict[str, Any]:
    """
    One model of LiteLLM's table in our format, without its name.

    Args:
        entry: Its numbers read as Decimal or int.

        zero_is_free: What a price of 0 for input and output means; in LiteLLM's own table mostly "not known".
    """
    found: dict[str, Any] = {"mode": entry.get("mode", "chat")}
    limits = {"window": entry.get("max_input_tokens"), "max_output": entry.get("max_output_tokens")}
    if limits["max_output"] is None:
        limits["max_output"] = entry.get("max_tokens")
    found |= {name: size for name, value in limits.items() if (size := _whole(value)) is not None}
    found |= _prices(entry, zero_is_free=zero_is_free)
    if "image" in entry.get("supported_output_modalities", ()):
        found["makes"] = ["image"]
    said = {ours: entry[f"supports_{theirs}"] for theirs, ours in _ABILITIES.items() if f"supports_{theirs}" in entry}
    said |= {name: entry[name] for name in _SWITCHES if name in entry}
    found |= _lists({"can": [name for name, yes in said.items() if yes is True]})
    found |= _lists({"cannot": [name for name, yes in said.items() if yes is False]})
    if multipliers := _multipliers(entry):
        found["multipliers"] = multipliers
    for theirs, ours in (("deprecation_date", "retires"), ("successor_model", "successor")):
        if isinstance(entry.get(theirs), str):
            found[ours] = entry[theirs]
    return found


def _prices(entry: Mapping[str, Any], *, zero_is_free: bool) -> dict[str, Any]:
    """The prices of an entry: `prices` by tier and unit, `above` by size of the prompt, `times`, and `free`."""
    flat, sizes = _by_tier(entry.items())
    bands = [band for band in entry.get("tiered_pricing", ()) if "range" in band]
    for band in sorted(bands, key=lambda band: band["range"][0]):
        start, (of_band, _) = int(band["range"][0]), _by_tier(band.items())
        if start == 0 or not flat.get("default"):
            flat = {tier: {**flat.get(tier, {}), **of_band.get(tier, {})} for tier in {*flat, *of_band}}
        if start > 0:
            sizes.setdefault(start, {}).update(of_band)
    if search := _searches(entry):
        flat.setdefault("default", {}).update(search)
    free = False
    for prices in flat.values():
        if prices.get("input") == prices.get("output") == 0 and not prices.get("request"):
            free = free or zero_is_free
            del prices["input"], prices["output"]
    found = {tier: {unit: plain(unit, price) for unit, price in prices.items()} for tier, prices in flat.items()}
    result: dict[str, Any] = {"free": True} if free and not found.get("default", {}).get("image") else {}
    if any(found.values()):
        result["prices"] = {tier: found[tier] for tier in sorted(found) if found[tier]}
    if sizes and not free:
        result["above"] = {
            str(size): {
                tier: {unit: plain(unit, price) for unit, price in prices.items()} for tier, prices in tiers.items()
            }
            for size, tiers in sorted(sizes.items())
        }
    if times := _times(entry.get("off_peak_pricing")):
        result["times"] = times
    return result


def _by_tier(
    items: Iterable[tuple[str, Any]],
) -> tuple[dict[str, dict[str, Decimal]], dict[int, dict[str, dict[str, Decimal]]]]:
    """Prices by tier and unit, and the same by the size of the prompt above which they hold."""
    flat: dict[str, dict[str, Decimal]] = {}
    sizes: dict[int, dict[str, dict[str, Decimal]]] = {}
    priced = dict(items)
    for key in (*_UNITS, *priced):  # the order of _UNITS decides between two keys for one unit
        value = priced.get(key)
        tiered = _TIER.search(key)
        name = key[: tiered.start()] if tiered else key
        above = _ABOVE.search(name)
        unit = _UNITS.get(_ABOVE.sub("", name))
        if unit is None or isinstance(value, bool) or not isinstance(value, int | Decimal):
            continue
        if key not in _UNITS and name == "input_cost_per_token_cache_hit" and "cache_read_input_token_cost" in priced:
            continue
        at = flat if above is None else sizes.setdefault(int(above[1]) * 1000, {})
        at.setdefault(_TIERS[tiered[1]] if tiered else "default", {})[unit] = Decimal(value)
    return flat, sizes


def _searches(entry: Mapping[str, Any]) -> dict[str, Decimal]:
    by_size = entry.get("search_context_cost_per_query")
    if not isinstance(by_size, Mapping):
        return {}
    found = {
        size: Decimal(price)
        for size in ("low", "medium", "high")
        if (price := by_size.get(f"search_context_size_{size}")) is not None
    }
    if len(found) == 3 and len(set(found.values())) == 1:
        return {"search": found["low"]}
    return {f"search_{size}": price for size, price in found.items()}


def _times(off_peak: Any) -> list[dict[str, Any]]:
    """Hours (UTC) with prices of their own; days are 1 (Monday) to 7."""
    if not isinstance(off_peak, Mapping):
        return []
    (flat, _) = _by_tier(off_peak.items())
    prices = {unit: plain(unit, price) for unit, price in flat.get("default", {}).items()}
    windows = []
    for window in off_peak.get("windows", ()):
        hours = window.get("hours_utc", ())
        days = [int(day) for day in window.get("weekdays", range(1, 8))]
        windows.append({"days": days, "hours": [hours] if isinstance(hours, str) else list(hours), "prices": prices})
    return windows


def _multipliers(entry: Mapping[str, Any]) -> dict[str, str]:
    """What a region or a speed multiplies every price with."""
    found: dict[str, str] = {}
    for name, value in (entry.get("provider_specific_entry") or {}).items():
        if name in ("us", "eu", "fast") and isinstance(value, int | Decimal):
            found[name] = f"{Decimal(value).normalize():f}"
    for key, value in entry.items():
        if (match := _MULTIPLIER.fullmatch(key)) and isinstance(value, int | Decimal):
            found[match[2] or match[1]] = f"{Decimal(value).normalize():f}"
    return dict(sorted(found.items()))


def _lists(named: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {name: sorted(values) for name, values in named.items() if values}


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | Decimal) or str(value).isdigit() else None


_SIZED = re.compile(r"(?:(?P<quality>[a-z]+)/)?(?P<width>\d+)-x-(?P<height>\d+)/(?P<model>.+)")
_TENTH_OF_A_CENT = Decimal("0.001")


def sizes_of_models(table: Mapping[str, Mapping[str, Any]]) -> dict[str, list[list[str]]]:
    """What the names such as hd/1024-x-1792/dall-e-3 price: [quality, size, US$ for one image] by provider/model."""
    found: dict[str, list[list[str]]] = {}
    for name, entry in table.items():
        provider = entry.get("litellm_provider")
        match = _SIZED.fullmatch(name.removeprefix(f"{provider}/")) if "-x-" in name else None
        if match is None or (price := _for_one(entry, match)) is None:
            continue
        size = f"{match['width']}x{match['height']}"
        found.setdefault(f"{provider}/{match['model']}", []).append(
            [match["quality"] or "", size, plain("image", price)]
        )
    return {name: sorted(sizes) for name, sizes in found.items()}


def _for_one(entry: Mapping[str, Any], found: re.Match[str]) -> Decimal | None:
    """US$ for one image of the size in the entry's name."""
    for key in ("input_cost_per_image", "output_cost_per_image"):
        if entry.get(key) is not None:
            return Decimal(entry[key])
    per_pixel = entry.get("input_cost_per_pixel") or entry.get("output_cost_per_pixel")
    if per_pixel is None:
        return None
    # A price for the whole image, of which the table has what was left after a division by its pixels.
    whole = Decimal(per_pixel) * int(found["width"]) * int(found["height"])
    return whole.quantize(_TENTH_OF_A_CENT) if whole >= _TENTH_OF_A_CENT else whole
