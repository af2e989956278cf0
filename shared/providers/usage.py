"""What a provider says it used and charged, in its own words, as token counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

from shared.types import Usage

_MAX_COUNT = 10**9
_TICKS_PER_USD = 10**10  # https://docs.x.ai/developers/cost-tracking (read 2026-11-24)


def openai_usage(usage: Mapping[str, Any]) -> Usage:
    """Usage in OpenAI's words and those that its imitators add."""
    of_prompt = details(usage, "prompt_tokens_details", "input_tokens_details")
    of_completion = details(usage, "completion_tokens_details", "output_tokens_details")
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    read, written, total = count(prompt), count(completion), count(usage.get("total_tokens"))
    reasoning = count(of_completion.get("reasoning_tokens", usage.get("reasoning_tokens")))
    cached = count(of_prompt.get("cached_tokens"))
    if cached is None:
        # DeepSeek's word, then Together's and Moonshot's, who send 0 also where they do not cache.
        cached = count(usage.get("prompt_cache_hit_tokens", usage.get("cached_tokens") or None))
    if reasoning and read is not None and written is not None and total == read + written + reasoning:
        completion = written + reasoning  # xAI and Perplexity bill reasoning beside the completion
    return make_usage(
        prompt,
        completion,
        cached=cached,
        cache_write=count(of_prompt.get("cache_write_tokens")),
        reasoning=reasoning,
    )


def anthropic_usage(usage: Mapping[str, Any]) -> Usage:
    """Usage in Anthropic's words, whose input excludes what went through the cache."""
    steps = usage.get("iterations")
    if isinstance(steps, list) and steps and all(isinstance(step, dict) for step in steps):
        # A compacted conversation is billed by step; the counts on top are the last step's alone.
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
    """Usage in the words of OpenAI's image endpoints; all output that is not said to be text is images."""
    of_prompt, of_output = details(usage, "input_tokens_details"), details(usage, "output_tokens_details")
    found = make_usage(
        usage.get("input_tokens"), usage.get("output_tokens"), cached=count(of_prompt.get("cached_tokens"))
    )
    drawn = count(of_output.get("image_tokens"))
    return replace(
        found,
        image_prompt_tokens=_part(of_prompt.get("image_tokens"), found.prompt_tokens),
        image_completion_tokens=found.completion_tokens if drawn is None else _part(drawn, found.completion_tokens),
    )


def _part(value: Any, whole: int | None) -> int | None:
    """A count that is part of another, if it can be."""
    found = count(value)
    return None if found is None or whole is None or found > whole else found


def gemini_usage(usage: Mapping[str, Any], *, draws: bool = False) -> Usage:
    """
    Usage in Gemini's words: candidates exclude thoughts, the prompt excludes what tools fed back.

    Args:
        draws: The model makes images: what it does not say to be text is one.
    """
    prompt, candidates = usage.get("promptTokenCount"), usage.get("candidatesTokenCount")
    thoughts, total = count(usage.get("thoughtsTokenCount")), count(usage.get("totalTokenCount"))
    fed_back = count(usage.get("toolUsePromptTokenCount")) or 0
    asked, told = count(prompt), count(candidates)
    if asked is not None:
        prompt = asked + fed_back
    completion: Any = candidates
    if candidates is None and thoughts is not None:
        completion = thoughts
    elif candidates is None and total is not None and asked is not None:
        completion = total - asked - fed_back
    elif told is not None and thoughts and total != (asked or 0) + fed_back + told:
        completion = told + thoughts
    found = make_usage(prompt, completion, cached=count(usage.get("cachedContentTokenCount")), reasoning=thoughts)
    if not draws or found.completion_tokens is None:
        return found
    drawn = _of_images(usage.get("candidatesTokensDetails"))
    if drawn is None:
        drawn = found.completion_tokens - (found.reasoning_tokens or 0)
    seen = _part(_of_images(usage.get("promptTokensDetails")), found.prompt_tokens)
    return replace(found, image_prompt_tokens=seen, image_completion_tokens=_part(drawn, found.completion_tokens))


def _of_images(details: Any) -> int | None:
    """What a list of counts by kind has for images; None when there is no such list."""
    if not isinstance(details, list) or not details:
        return None
    kinds = [item for item in details if isinstance(item, dict)]
    return sum(count(item.get("tokenCount")) or 0 for item in kinds if str(item.get("modality")).upper() == "IMAGE")


def cohere_usage(usage: Mapping[str, Any]) -> Usage:
    """Usage in Cohere's words: `tokens` is what went through the model, `billed_units` leaves parts of it out."""
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
    The provider's counts, if they can be true.

    Args:
        prompt, completion: As the provider sent them; None when it did not.

    Returns:
        Unknown usage when nothing was sent, when one of the two is no possible count, and when both are 0,
        as streams that failed have it.
    """
    counts = count(prompt), count(completion)
    impossible = any(
        sent is not None and known is None for sent, known in zip((prompt, completion), counts, strict=True)
    )
    if impossible or counts == (None, None) or not any(counts):
        return Usage()
    in_prompt, in_completion = counts
    if in_prompt is not None and (cached or 0) + (cache_write or 0) > in_prompt:
        cached = cache_write = None
    if (cache_write_1h or 0) > (cache_write or 0):
        cache_write_1h = None
    if in_completion is not None and (reasoning or 0) > in_completion:
        reasoning = None
    return Usage(
        prompt_tokens=in_prompt,
        completion_tokens=in_completion,
        cached_tokens=cached,
        cache_write_tokens=cache_write,
        cache_write_1h_tokens=cache_write_1h,
        reasoning_tokens=reasoning,
        source="provider",
    )


def count(value: Any) -> int | None:
    """`value` as a number of tokens; None when it is none that can be true."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= _MAX_COUNT and value == int(value) else None


def details(usage: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    return next((usage[name] for name in names if isinstance(usage.get(name), dict)), {})


def reported_cost(usage: Mapping[str, Any]) -> Decimal | None:
    """US$ that the provider says it charges: OpenRouter, Perplexity, xAI."""
    cost = usage.get("cost")
    if isinstance(cost, dict):
        return _dollars(cost.get("total_cost"))
    if "cost_in_usd_ticks" in usage:
        ticks = _dollars(usage["cost_in_usd_ticks"])
        return None if ticks is None else ticks / _TICKS_PER_USD
    if usage.get("is_byok") is True:  # `cost` is then only the router's fee
        upstream = _dollars(details(usage, "cost_details").get("upstream_inference_cost"))
        fee = _dollars(cost)
        return None if upstream is None or fee is None else upstream + fee
    return _dollars(cost)


def _dollars(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    amount = Decimal(str(value))
    return amount if amount.is_finite() and amount >= 0 else None
