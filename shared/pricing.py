"""From usage and rates to nano-dollars, exactly, and to the most that a request can cost."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from decimal import ROUND_HALF_EVEN, Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from shared.errors import ConfigurationError
from shared.image_pricing import images_bound, images_cost
from shared.types import Answer, Candidate, CostSource, ModelConfig, Rates, Request, TaskType, Usage

NANO = 1_000_000_000
FREE = Rates(input=Decimal(0), output=Decimal(0), source="free")
UNKNOWN = Rates()
# A message's role, name and separators in tokens; 3 or 4 by OpenAI's cookbook (read 2026-11-24), kept generous.
_TOKENS_PER_MESSAGE = 16
# What a provider adds to a request before it counts: a chat template, and the prompt that explains tools (530 at
# Anthropic, by its page on tool use), kept generous.
_TOKENS_PER_REQUEST = 256
_TOKENS_FOR_TOOLS = 1024
_MANY = 1_000_000
_PRICES = ("input_cost_per_", "output_cost_per_", "cache_")
_THRESHOLD = re.compile(r"input_cost_per_token_above_(\d+)k_tokens")

Entry = Mapping[str, Any]


def to_nano(usd: Decimal | float) -> int:
    """US$ as whole nano-dollars, rounded half to even."""
    exact = usd if isinstance(usd, Decimal) else Decimal(repr(float(usd)))
    return int((exact * NANO).to_integral_value(rounding=ROUND_HALF_EVEN))


def to_usd(nano: int | None) -> float:
    """Nano-dollars as US$; NaN for None."""
    return math.nan if nano is None else nano / NANO


@lru_cache(maxsize=1)
def price_table() -> Mapping[str, Entry]:
    """LiteLLM's bundled price table with exact decimals, read without importing LiteLLM (which takes seconds)."""
    spec = importlib.util.find_spec("litellm")
    if spec is None or spec.origin is None:
        raise ConfigurationError("LiteLLM is not installed", hint='Install it with: pip install "litellm>=1.84,<1.92"')
    text = (Path(spec.origin).parent / "model_prices_and_context_window_backup.json").read_text(encoding="utf-8")
    table: dict[str, Entry] = json.loads(text, parse_float=Decimal)
    table.pop("sample_spec", None)
    return table


@lru_cache(maxsize=1)
def model_facts() -> Mapping[str, Any]:
    """Our own facts about models: retired names, suggestions, and prices that LiteLLM's table lacks."""
    text = (Path(__file__).parent / "catalogue.json").read_text(encoding="utf-8")
    facts: dict[str, Any] = json.loads(text, parse_float=Decimal)
    return facts


@lru_cache(maxsize=4)
def price_overrides(path: Path, _mtime_ns: int) -> tuple[Mapping[str, Entry], str]:
    """
    The user's own prices, in the format of LiteLLM's table, and the version to record with them.

    Raises:
        ConfigurationError: The file cannot be read as such a table.
    """
    try:
        data = path.read_bytes()
        table = json.loads(data, parse_float=Decimal)
        if not isinstance(table, dict) or not all(isinstance(entry, dict) for entry in table.values()):
            raise ValueError("not an object of objects")
        for name, entry in table.items():
            _check_prices(name, entry)
    except ConfigurationError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"AGENTSWARM_PRICES cannot be read ({type(error).__name__})",
            hint='Give a JSON file such as {"openai/my-model": {"input_cost_per_token": 1e-6, ...}}.',
        ) from None
    return table, f"AGENTSWARM_PRICES+{hashlib.sha256(data).hexdigest()[:8]}"


def _check_prices(name: str, entry: Entry) -> None:
    hint = "Give US$ as a number of at least 0."
    for key, value in entry.items():
        if key.startswith(_PRICES) and value is not None and not _is_amount(value):
            raise ConfigurationError(f"AGENTSWARM_PRICES gives no price as {key} of {name[:60]}", hint=hint)
    bands = entry.get("tiered_pricing", [])
    for band in bands if isinstance(bands, list) else [bands]:
        if not isinstance(band, dict) or ("range" in band and not all(map(_is_amount, band["range"]))):
            raise ConfigurationError(f"AGENTSWARM_PRICES gives no tiers as tiered_pricing of {name[:60]}", hint=hint)
        _check_prices(name, band)


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | Decimal) and not isinstance(value, bool) and value >= 0


@lru_cache(maxsize=1)
def table_version() -> str:
    """Version of the price table, to record with every price."""
    return f"litellm:{importlib.metadata.version('litellm')}"


def rates_of(
    entry: Entry, *, zero_is_free: bool = False, service_tier: str | None = None, version: str | None = None
) -> Rates:
    """
    The rates of an entry in the price table.

    Args:
        entry: One model of the table.

        zero_is_free: What a price of 0 means; in LiteLLM's own table it mostly stands for "not known".

        service_tier: "priority" or "flex", where the request asks for it; such a tier without a price is unknown.

        version: What to record as the source of the price.
    """
    suffix = f"_{service_tier}" if service_tier in ("priority", "flex") else ""

    def rate(*names: str) -> Decimal | None:
        return next((Decimal(entry[name]) for name in names if entry.get(name) is not None), None)

    def at(above: str) -> Rates:
        return Rates(
            input=rate(f"input_cost_per_token{above}"),
            output=rate(f"output_cost_per_token{above}"),
            cached=rate(f"cache_read_input_token_cost{above}", f"input_cost_per_token_cache_hit{above}"),
            cache_write=rate(f"cache_creation_input_token_cost{above}"),
            cache_write_1h=rate(f"cache_creation_input_token_cost_above_1hr{above}"),
            reasoning=rate(f"output_cost_per_reasoning_token{above}"),
            per_request=rate("input_cost_per_request"),
            image_input=rate(f"input_cost_per_image_token{above}"),
            image_output=rate(f"output_cost_per_image_token{above}"),
            # Where both are given, the first is that of an image which the model is shown.
            per_image=rate("output_cost_per_image", "input_cost_per_image"),
            per_pixel=rate("input_cost_per_pixel", "output_cost_per_pixel"),
            source="table",
            version=version or table_version(),
        )

    base = at(suffix)
    if base.input == base.output == 0 and not base.per_request:
        return FREE if zero_is_free else UNKNOWN
    thresholds = [int(found[1]) for key in entry if (found := _THRESHOLD.fullmatch(key))]
    # A size whose price the service tier leaves open has none; the standard price is not what is charged.
    tiers = [(size * 1000, at(f"_above_{size}k_tokens{suffix}")) for size in thresholds]
    tiers += (
        (int(band["range"][0]), rates_of(band, service_tier=service_tier, version=version))
        for band in entry.get("tiered_pricing", ())
        if "range" in band
    )
    return _with_tiers(base, tuple(sorted(tiers, key=lambda tier: tier[0])))


def _with_tiers(base: Rates, tiers: tuple[tuple[int, Rates], ...]) -> Rates:
    if base.input is None and tiers and tiers[0][0] == 0:
        base = tiers[0][1]
    prices = (base.input, base.output, base.per_request, base.image_output, base.per_image, base.per_pixel)
    if all(price is None for price in prices):
        return UNKNOWN
    return replace(base, tiers=tiers)


def rates_of_config(config: ModelConfig) -> Rates:
    """The rates that a ModelConfig states; unknown where it states none."""
    given = (config.cost_per_1k_input_tokens, config.cost_per_1k_output_tokens)
    per_image = config.cost_per_image
    if all(price is None for price in (*given, per_image)):
        return UNKNOWN
    if not any((*given, per_image)) and given.count(None) != 1:
        return FREE
    per_token = [None if price is None else price / 1000 for price in given]
    return Rates(input=per_token[0], output=per_token[1], per_image=per_image, source="config")


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


def upper_bound(candidate: Candidate, request: Request) -> int | None:
    """
    The most that one attempt can cost, in nano-dollars; None when no bound is known.

    Input is bounded by its bytes, since no tokenizer makes more tokens than bytes; where it holds more than text, by
    the model's window. Output is bounded by the caller's max_tokens, else by the model's own maximum.
    """
    rates = candidate.rates
    if rates.source == "free":
        return 0
    if rates.source == "unknown" or request.params.get("extra_body"):
        return None  # what we do not understand may ask for more answers, a dearer tier or a longer text
    if request.task is TaskType.IMAGE_GENERATION:
        usd = images_bound(candidate, request, max_prompt_tokens(request))
        return None if usd is None else to_nano(usd)
    prompt = _max_prompt(candidate, request)
    output = _max_output_tokens(candidate, request)
    if prompt is None or output is None:
        return None
    tiers = [rates, *(tier for above, tier in rates.tiers if prompt > above)]
    if any(tier.input is None or tier.output is None for tier in tiers):
        return None
    dearest_in = max(r for t in tiers for r in (t.input, t.cached, t.cache_write, t.cache_write_1h) if r is not None)
    dearest_out = max(r for t in tiers for r in (t.output, t.reasoning) if r is not None)
    return to_nano(prompt * dearest_in + output * dearest_out + (rates.per_request or 0))


def affordable_output(candidate: Candidate, request: Request, nano: int) -> int | None:
    """
    The most output tokens with which one attempt costs at most so much; None when no bound is known.

    It is also no more than the model writes, nor than its window has room for beside the input.
    """
    one, more = (
        upper_bound(candidate, replace(request, params={**request.params, "max_tokens": tokens}))
        for tokens in (1, 1 + _MANY)
    )
    if one is None or more is None:
        return None
    limits = [1 + (nano - one) * _MANY // (more - one)] if more > one else []
    if candidate.max_output_tokens is not None:
        limits.append(candidate.max_output_tokens)
    if candidate.max_input_tokens is not None and only_text(request) and not request.pictures:
        limits.append(candidate.max_input_tokens - max_prompt_tokens(request))
    return min(limits, default=None)


def _max_prompt(candidate: Candidate, request: Request) -> int | None:
    """The most input tokens; None when they are not known."""
    fitted = request.fitted.get(candidate.requested, ())
    tokens: list[int] = [one.tokens for one in fitted if one.tokens is not None]
    if not only_text(request) or len(tokens) < len(request.pictures):
        return candidate.max_input_tokens
    return max_prompt_tokens(request) + sum(tokens)


def max_prompt_tokens(request: Request) -> int:
    """No tokenizer makes more input tokens than this of the request."""
    extras = [extra for name in ("tools", "functions", "response_format") if (extra := request.params.get(name))]
    text = json.dumps([list(request.messages), extras], ensure_ascii=False, default=str)
    added = _TOKENS_PER_REQUEST + _TOKENS_PER_MESSAGE * len(request.messages) + (_TOKENS_FOR_TOOLS if extras else 0)
    return len(text.encode("utf-8", "replace")) + added


def only_text(request: Request) -> bool:
    """Whether the size of the messages says anything about their tokens; that of an image's URL does not."""
    contents = (message.get("content") for message in request.messages)
    parts = (part for content in contents if isinstance(content, list | tuple) for part in content)
    return all(not isinstance(part, Mapping) or part.get("type") == "text" for part in parts)


def _max_output_tokens(candidate: Candidate, request: Request) -> int | None:
    """The most output tokens over all the answers that are asked for; None when that is not known."""
    asked = [request.params.get(name) for name in ("max_completion_tokens", "max_tokens")]
    limit = max((most for most in asked if isinstance(most, int) and most > 0), default=candidate.max_output_tokens)
    answers = 1 if request.params.get("n") is None else request.params["n"]
    return limit * answers if limit is not None and isinstance(answers, int) and answers > 0 else None
