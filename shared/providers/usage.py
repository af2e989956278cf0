"""Reads token counts and costs from the usage objects of the providers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

from shared.types import Usage

_MAX_COUNT = 10**9
_TICKS_PER_USD = 10**10  # https://docs.x.ai/developers/cost-tracking (read 2026-11-24)


def openai_usage(usage: Mapping[str, Any]) -> Usage:
    """Usage in OpenAI's format, with the fields that compatible providers add."""
    of_prompt = details(usage, "prompt_tokens_details", "input_tokens_details")
    of_completion = details(usage, "completion_tokens_details", "output_tokens_details")
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    read, written, total = count(prompt), count(completion), count(usage.get("total_tokens"))
    reasoning = count(of_completion.get("reasoning_tokens", usage.get("reasoning_tokens")))
    cached = count(of_prompt.get("cached_tokens"))
    if cached is None:
        # DeepSeek's field, then that of Together and Moonshot, which send 0 even where they do not cache.
        cached = count(usage.get("prompt_cache_hit_tokens", usage.get("cached_tokens") or None))
    if reasoning and read is not None and written is not None and total == read + written + reasoning:
        completion = written + reasoning  # xAI and Perplexity bill reasoning in addition to the completion
    return make_usage(
        prompt,
        completion,
        cached=cached,
        cache_write=count(of_prompt.get("cache_write_tokens")),
        reasoning=reasoning,
    )


def anthropic_usage(usage: Mapping[str, Any]) -> Usage:
    """Usage in Anthropic's format, whose input tokens exclude those read from or written to the cache."""
    steps = usage.get("iterations")
    if isinstance(steps, list) and steps and all(isinstance(step, dict) for step in steps):
        # A compacted conversation is billed by step; the top-level counts are those of the last step only.
        names = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
        usage = {**usage, **{name: sum(count(step.get(name)) or 0 for step in steps) for name in names}}
    read, written = count(usage.get("cache_read_input_tokens")), count(usage.get("cache_creation_input_tokens"))
    prompt = usage.get("input_tokens")
    if (uncached := count(prompt)) is not None:
        prompt = uncached + (read or 0) + (written or 0)
    return make_usage(
        prompt,
        usage.get("output_tokens"),
        cached=read,
        cache_write=written,
        cache_write_1h=count(details(usage, "cache_creation").get("ephemeral_1h_input_tokens")),
        reasoning=count(details(usage, "output_tokens_details").get("thinking_tokens")),
    )


def image_usage(usage: Mapping[str, Any]) -> Usage:
    """Usage in the format of OpenAI's image endpoints; without a breakdown all output tokens count as image tokens."""
    of_prompt, of_output = details(usage, "input_tokens_details"), details(usage, "output_tokens_details")
    totals = make_usage(
        usage.get("input_tokens"), usage.get("output_tokens"), cached=count(of_prompt.get("cached_tokens"))
    )
    output = totals.completion_tokens
    image_output = count(of_output.get("image_tokens"))
    return replace(
        totals,
        image_prompt_tokens=_part(of_prompt.get("image_tokens"), totals.prompt_tokens),
        image_completion_tokens=output if image_output is None else _part(image_output, output),
    )


def _part(value: Any, whole: int | None) -> int | None:
    """A count that is part of another; None when it is missing or larger than the whole."""
    part = count(value)
    return None if part is None or whole is None or part > whole else part


def gemini_usage(usage: Mapping[str, Any], *, image_output: bool = False) -> Usage:
    """
    Usage in Gemini's format: candidates exclude thoughts, the prompt excludes what tools returned.

    Args:
        image_output: Whether the model generates images: output without a breakdown then counts as image tokens.
    """
    prompt, candidates = usage.get("promptTokenCount"), usage.get("candidatesTokenCount")
    thoughts, total = count(usage.get("thoughtsTokenCount")), count(usage.get("totalTokenCount"))
    tool_results = count(usage.get("toolUsePromptTokenCount")) or 0
    prompt_count, candidates_count = count(prompt), count(candidates)
    if prompt_count is not None:
        prompt = prompt_count + tool_results
    completion: Any = candidates
    if candidates is None and thoughts is not None:
        completion = thoughts
    elif candidates is None and total is not None and prompt_count is not None:
        completion = total - prompt_count - tool_results
    elif candidates_count is not None and thoughts and total != (prompt_count or 0) + tool_results + candidates_count:
        completion = candidates_count + thoughts
    totals = make_usage(prompt, completion, cached=count(usage.get("cachedContentTokenCount")), reasoning=thoughts)
    if not image_output or totals.completion_tokens is None:
        return totals
    images_out = _image_tokens(usage.get("candidatesTokensDetails"))
    if images_out is None:
        images_out = totals.completion_tokens - (totals.reasoning_tokens or 0)
    return replace(
        totals,
        image_prompt_tokens=_part(_image_tokens(usage.get("promptTokensDetails")), totals.prompt_tokens),
        image_completion_tokens=_part(images_out, totals.completion_tokens),
    )


def _image_tokens(breakdown: Any) -> int | None:
    """The image tokens in a list of counts by modality; None when there is no such list."""
    if not isinstance(breakdown, list) or not breakdown:
        return None
    items = [item for item in breakdown if isinstance(item, dict)]
    return sum(count(item.get("tokenCount")) or 0 for item in items if str(item.get("modality")).upper() == "IMAGE")


def cohere_usage(usage: Mapping[str, Any]) -> Usage:
    """Usage in Cohere's format: `tokens` counts all that the model processed, `billed_units` only a part of it."""
    tokens = details(usage, "tokens", "billed_units")
    return make_usage(
        tokens.get("input_tokens"),
        tokens.get("output_tokens"),
        cached=count(usage.get("cached_tokens")),
        reasoning=count(tokens.get("reasoning_tokens")),
    )


def make_usage(
    prompt: Any,
    completion: Any,
    *,
    cached: int | None = None,
    cache_write: int | None = None,
    cache_write_1h: int | None = None,
    reasoning: int | None = None,
) -> Usage:
    """
    The provider's counts, as far as they are plausible.

    Args:
        prompt, completion: As the provider sent them; None when it did not.

    Returns:
        Unknown usage when neither was sent, when either is not a valid count, and when both are 0, as failed streams
        report it.
    """
    counts = prompt_tokens, completion_tokens = count(prompt), count(completion)
    invalid = any(
        sent is not None and parsed is None for sent, parsed in zip((prompt, completion), counts, strict=True)
    )
    if invalid or counts == (None, None) or not any(counts):
        return Usage()
    if prompt_tokens is not None and (cached or 0) + (cache_write or 0) > prompt_tokens:
        cached = cache_write = None
    if (cache_write_1h or 0) > (cache_write or 0):
        cache_write_1h = None
    if completion_tokens is not None and (reasoning or 0) > completion_tokens:
        reasoning = None
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cached_tokens=cached,
        cache_write_tokens=cache_write,
        cache_write_1h_tokens=cache_write_1h,
        reasoning_tokens=reasoning,
        source="provider",
    )


def count(value: Any) -> int | None:
    """`value` as a number of tokens; None unless it is a whole number from 0 to one billion."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= _MAX_COUNT and value == int(value) else None


def details(usage: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """The first nested object under one of the names; empty when there is none."""
    return next((usage[name] for name in names if isinstance(usage.get(name), dict)), {})


def reported_cost(usage: Mapping[str, Any]) -> Decimal | None:
    """The cost in US$ as OpenRouter, Perplexity and xAI report it; None when it is missing or invalid."""
    cost = usage.get("cost")
    if isinstance(cost, dict):
        return _dollars(cost.get("total_cost"))
    if "cost_in_usd_ticks" in usage:
        ticks = _dollars(usage["cost_in_usd_ticks"])
        return None if ticks is None else ticks / _TICKS_PER_USD
    if usage.get("is_byok") is True:  # bring your own key: `cost` is then only the router's fee
        upstream = _dollars(details(usage, "cost_details").get("upstream_inference_cost"))
        fee = _dollars(cost)
        return None if upstream is None or fee is None else upstream + fee
    return _dollars(cost)


def _dollars(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    amount = Decimal(str(value))
    return amount if amount.is_finite() and amount >= 0 else None
