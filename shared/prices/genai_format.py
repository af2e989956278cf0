"""The data of genai-prices, as its dump has it, as quotes for models by our names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Any

from shared.prices.units import TOKENS, plain

# genai-prices' names of providers, and ours; others are none that we can call.
_PROVIDERS = {
    "anthropic": ("anthropic",),
    "aws": ("bedrock", "bedrock_converse"),
    "azure": ("azure", "azure_ai"),
    "baseten": ("baseten",),
    "cerebras": ("cerebras",),
    "cohere": ("cohere",),
    "deepseek": ("deepseek",),
    "fireworks": ("fireworks_ai",),
    "google": ("gemini", "vertex_ai"),
    "groq": ("groq",),
    "minimax": ("minimax",),
    "mistral": ("mistral",),
    "moonshotai": ("moonshot",),
    "novita": ("novita",),
    "openai": ("openai",),
    "openrouter": ("openrouter",),
    "ovhcloud": ("ovhcloud",),
    "perplexity": ("perplexity",),
    "together": ("together_ai",),
    "x-ai": ("xai",),
    "zai": ("zai",),
}
# Models that only genai-prices has are added for these: elsewhere its names are not the provider's own.
_ADDED = frozenset(
    {
        "anthropic", "cerebras", "cohere", "deepseek", "gemini", "groq", "mistral", "moonshot", "openai", "openrouter",
        "perplexity", "together_ai", "xai",
    }
)  # fmt: skip
_UNITS = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cached",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "output_reasoning_mtok": "reasoning",
    "input_audio_mtok": "input_audio",
    "cache_audio_read_mtok": "cached_audio",
    "output_audio_mtok": "output_audio",
    "input_image_mtok": "input_image",
    "cache_image_read_mtok": "cached_image",
    "output_image_mtok": "output_image",
    "input_video_mtok": "input_video",
    "output_video_mtok": "output_video",
    "output_citation_mtok": "citation",
    "web_searches_kcount": "search",
    "storage_searches_kcount": "file_search",
    "requests_kcount": "request",
    "input_document_kpages": "page",
}
_PER = {"mtok": 1_000_000, "kcount": 1000, "kpages": 1000}
_TIERS = {
    ("processing", "batch"): "batch",
    ("service_tier", "flex"): "flex",
    ("service_tier", "priority"): "priority",
    ("service_tier", "fast"): "fast",
    ("speed", "fast"): "fast",
}
_NO_CHAT = re.compile(r"embed|whisper|orpheus|-ocr-|transcri|tts|realtime|voice|moderation|rerank|live|sora|veo-")

Quotes = dict[tuple[str, int, str], Decimal]


@dataclass
class Quoted:
    """What genai-prices says of one model."""

    quotes: Quotes
    free: bool = False
    window: int | None = None
    deprecated: bool = False
    times: list[dict[str, Any]] = field(default_factory=list)
    changes: list[tuple[str, Quotes]] = field(default_factory=list)


def quotes_by_model(dump: Any, known: Collection[str], today: date) -> dict[str, Quoted]:
    """
    What genai-prices says of the known models and of its own.

    Args:
        known: Names of LiteLLM's models, as provider/model.
    """
    providers = {one["id"]: one for one in dump["providers"]}
    named = {name: ours for name, ours in _PROVIDERS.items() if name in providers}
    found: dict[str, Quoted] = {}
    for name, ours in named.items():
        own = providers[name]["models"]
        # Its fallbacks, the prices of a model's maker for those of a cloud, are no prices of that cloud.
        for full in known:
            provider, _, model = full.partition("/")
            if provider in ours and (match := _find(own, model)) is not None:
                found[full] = _quoted(match, today)
        for model in own:
            for full in _new_names(model, ours[0], known):
                found.setdefault(full, _quoted(model, today))
    return found


def _new_names(model: Mapping[str, Any], provider: str, known: Collection[str]) -> list[str]:
    """Names under which only genai-prices knows a chat model."""
    prices = _conditions(model)[0]["prices"]
    priced = "input_mtok" in prices or model["id"].endswith("free")
    if provider not in _ADDED or _NO_CHAT.search(model["id"]) or not priced:
        return []
    names = {model["id"], *_equals(model["match"])}
    if provider == "gemini":  # the same list has what Vertex AI sells of others
        names = {name for name in names if name.startswith("gem")}
    # Case is not told by its rules, and some names are spelt with it: those that LiteLLM has are not repeated.
    lower = {name.lower() for name in known}
    return [full for name in sorted(names) if (full := f"{provider}/{name}").lower() not in lower and " " not in name]


def _equals(clause: Mapping[str, Any]) -> list[str]:
    """The names that a rule lists one by one."""
    if clause["is"] == "ClauseOr":
        return [name for one in clause["or_"] for name in _equals(one)]
    return [clause["equals"]] if clause["is"] == "ClauseEquals" else []


def _find(models: Iterable[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    return next((model for model in models if _matches(model["match"], name.lower())), None)


def _matches(clause: Mapping[str, Any], text: str) -> bool:
    match clause["is"]:
        case "ClauseOr":
            return any(_matches(one, text) for one in clause["or_"])
        case "ClauseAnd":
            return all(_matches(one, text) for one in clause["and_"])
        case "ClauseEquals":
            return bool(text == clause["equals"].lower())
        case "ClauseStartsWith":
            return text.startswith(clause["starts_with"].lower())
        case "ClauseEndsWith":
            return text.endswith(clause["ends_with"].lower())
        case "ClauseContains":
            return clause["contains"].lower() in text
        case "ClauseRegex":
            return re.search(clause["regex"], text) is not None
    raise ValueError(f"genai-prices has a new kind of rule: {clause['is']}")


def _conditions(model: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    prices = model.get("prices") or {}
    return prices if isinstance(prices, list) and prices else [{"prices": prices or {}}]


def _quoted(model: Mapping[str, Any], today: date) -> Quoted:
    """Prices of today, those of some hours, and those announced for later."""
    base: Mapping[str, Any] = _conditions(model)[0]["prices"]
    hours: list[Mapping[str, Any]] = []
    later: list[Mapping[str, Any]] = []
    for one in _conditions(model):
        constraint = one.get("constraint")
        if constraint is None:
            base, hours = one["prices"], []
        elif constraint["is"] == "TimeOfDateConstraint":
            hours.append(one)
        elif constraint["start_date"] <= today.isoformat():
            base, hours = one["prices"], []  # the last that holds counts
        else:
            later.append(one)
    variants = [
        (_TIERS[when], one["prices"])
        for one in model.get("price_variants") or ()
        if (when := next(iter(one["when"].items()))) in _TIERS and len(one["when"]) == 1 and _active(one, today)
    ]
    quotes = _by_key("default", base)
    for tier, prices in variants:
        quotes = {**_by_key(tier, prices), **quotes}  # of several that hold, the first counts
    given = {price for (tier, _, unit), price in quotes.items() if tier == "default" and unit in ("input", "output")}
    free = not any(given)
    if free:
        quotes = {key: price for key, price in quotes.items() if key[2] not in ("input", "output")}
    return Quoted(
        quotes=quotes,
        free=free and str(model["id"]).endswith("free"),
        window=model.get("context_window"),
        deprecated=bool(model.get("deprecated")),
        times=[_window(one) for one in hours],
        changes=[(one["constraint"]["start_date"], _by_key("default", one["prices"])) for one in later],
    )


def _active(variant: Mapping[str, Any], today: date) -> bool:
    constraint = variant.get("constraint")
    return constraint is None or (
        constraint["is"] == "StartDateConstraint" and constraint["start_date"] <= today.isoformat()
    )


def _by_key(tier: str, prices: Mapping[str, Any]) -> Quotes:
    """US$ for one unit; where one unit has prices by size of the prompt, all have a figure at each of its sizes."""
    known = {unit: (value, _PER[key.rpartition("_")[2]]) for key, unit in _UNITS.items() if (value := prices.get(key))}
    sizes = {one["start"] for value, _ in known.values() if isinstance(value, dict) for one in value["tiers"]}
    found: Quotes = {}
    for unit, (value, per) in known.items():
        for size in sorted({0, *(sizes if unit in TOKENS else ())}):
            found[tier, size, unit] = Decimal(_at(value, size)) / per
    return found


def _at(value: Any, size: int) -> str:
    if not isinstance(value, dict):
        return str(value)
    reached = [one["price"] for one in value["tiers"] if one["start"] <= size and size]
    return str(reached[-1] if reached else value["base"])


def _window(one: Mapping[str, Any]) -> dict[str, Any]:
    hours = "-".join(one["constraint"][end][:5] for end in ("start_time", "end_time"))
    prices = {
        unit: plain(unit, price) for (_, size, unit), price in _by_key("default", one["prices"]).items() if not size
    }
    return {"days": [1, 2, 3, 4, 5, 6, 7], "hours": [hours], "prices": prices}
