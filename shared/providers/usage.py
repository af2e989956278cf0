"""Reads what providers count and charge from their usage objects: tokens by kind, units beside tokens, costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from decimal import Decimal
from typing import Any

from shared.types import Usage

_MAX_COUNT = 10**9
_TICKS_PER_USD = 10**10  # https://docs.x.ai/developers/cost-tracking (read 2026-11-24)
# Kinds of input in the order in which they are taken to be cached where the provider does not say which are: the
# cheapest first, so that no discount is taken that was not given.
_KINDS = ("image", "video", "audio")
# What the counts of server-side tools are called at Anthropic (server_tool_use), LiteLLM and xAI, and our unit.
# Fetching pages and searching for tools is free. Source: platform.claude.com, "Pricing", server-side tools;
# docs.x.ai/developers/pricing, tools (read 2026-11-27).
_TOOL_UNITS = {
    "web_search": "search",
    "collections_search": "file_search",
    "document_search": "file_search",
    "file_search": "file_search",
}
_FREE_TOOLS = frozenset({"web_fetch", "tool_search", "mcp"})


def openai_usage(usage: Mapping[str, Any]) -> Usage:
    """Usage in OpenAI's format, with the fields that compatible providers add."""
    of_prompt = details(usage, "prompt_tokens_details", "input_tokens_details")
    of_completion = details(usage, "completion_tokens_details", "output_tokens_details")
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not (prompt or completion) and usage.get("input_tokens") is not None and usage.get("output_tokens") is not None:
        prompt, completion = usage["input_tokens"], usage["output_tokens"]  # the Responses API's names
    read, written, total = count(prompt), count(completion), count(usage.get("total_tokens"))
    reasoning = count(of_completion.get("reasoning_tokens", usage.get("reasoning_tokens")))
    cached = count(of_prompt.get("cached_tokens"))
    if cached is None:
        # DeepSeek's field, then that of Together and Moonshot, which send 0 even where they do not cache.
        cached = count(usage.get("prompt_cache_hit_tokens", usage.get("cached_tokens") or None))
    in_addition = read is not None and written is not None and total == read + written + (reasoning or 0)
    if reasoning and written is not None and (in_addition or "citation_tokens" in usage):
        completion = written + reasoning  # xAI and Perplexity bill reasoning in addition to the completion
    created, hour = _written(usage, of_prompt)
    units = _beside_tokens(usage, of_prompt)
    return make_usage(
        prompt,
        completion,
        cached=cached,
        cache_write=created,
        cache_write_1h=hour,
        reasoning=reasoning,
        read_as={kind: count(of_prompt.get(f"{kind}_tokens")) for kind in _KINDS},
        cached_as={kind: count(details(of_prompt, "cached_tokens_details").get(f"{kind}_tokens")) for kind in _KINDS},
        written_as={kind: count(of_completion.get(f"{kind}_tokens")) for kind in _KINDS},
        units=units,
    )


def _written(usage: Mapping[str, Any], of_prompt: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Tokens written to a cache, and those for an hour: OpenAI's name, LiteLLM's, Anthropic's."""
    names = (of_prompt.get("cache_write_tokens"), of_prompt.get("cache_creation_tokens"))
    created = next((count(found) for found in names if found is not None), None)
    if created is None:
        created = count(usage.get("cache_creation_input_tokens"))
    of_writes = details(of_prompt, "cache_creation_token_details") or details(usage, "cache_creation")
    return created, count(of_writes.get("ephemeral_1h_input_tokens"))


def _beside_tokens(usage: Mapping[str, Any], of_prompt: Mapping[str, Any]) -> dict[str, int]:
    """
    What is billed beside tokens.

    Source: docs.perplexity.ai, "Pricing" (a fee for each request by its search context; deep research by its
    searches), docs.x.ai (a count of sources; tools), docs.mistral.ai (seconds of audio) (read 2026-11-27).
    """
    units = _tools(details(usage, "server_tool_use", "server_side_tool_usage_details", "server_side_tool_usage"))
    size, searches = usage.get("search_context_size"), count(usage.get("num_search_queries"))
    if size in ("low", "medium", "high"):
        units[f"search_{size}"] = 1
    named = {
        "search": units.get("search") or searches or count(of_prompt.get("web_search_requests")),
        "citation": count(usage.get("citation_tokens")),
        "source": count(usage.get("num_sources_used")),
        "audio_second": count(usage.get("prompt_audio_seconds")),
    }
    return units | {unit: number for unit, number in named.items() if number}


def _tools(counts: Mapping[str, Any]) -> dict[str, int]:
    """Uses of the tools that the provider runs itself; one that we do not know keeps its name, and has no price."""
    units: dict[str, int] = {}
    for name, value in counts.items():
        tool = str(name).lower().removeprefix("server_side_tool_").removesuffix("_requests").removesuffix("_calls")
        if (number := count(value)) and tool not in _FREE_TOOLS:
            unit = _TOOL_UNITS.get(tool, tool[:40])
            units[unit] = units.get(unit, 0) + number
    return units


def anthropic_usage(usage: Mapping[str, Any], model: str | None = None) -> Usage:
    """
    Usage in Anthropic's format, whose input tokens exclude those read from or written to the cache.

    A conversation that was compacted, or advised by another model, is billed by step: the top-level counts are those
    of the last step only. Source: platform.claude.com, "Compaction" and "Advisor tool" (read 2026-11-27).

    Args:
        model: The model that answered; steps of others are counted apart.
    """
    steps = usage.get("iterations")
    if not isinstance(steps, list) or not steps or not all(isinstance(step, dict) for step in steps):
        return replace(_anthropic_step(usage), units=_tools(details(usage, "server_tool_use")))
    by_model: dict[str, list[Usage]] = {}
    for step in steps:
        name = step.get("model")
        is_other = isinstance(name, str) and name and name != model
        by_model.setdefault(name[:200] if is_other else "", []).append(_anthropic_step(step))
    others = tuple((name, _sum(each)) for name, each in by_model.items() if name)
    everything = _sum([one for each in by_model.values() for one in each])
    return replace(everything, units=_tools(details(usage, "server_tool_use")), others=others)


def _anthropic_step(usage: Mapping[str, Any]) -> Usage:
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


COUNTED = tuple(each.name for each in fields(Usage) if each.name not in ("source", "units", "others"))


def _sum(parts: Sequence[Usage]) -> Usage:
    """The counts of several requests together; None for what none of them reported."""
    sums: dict[str, Any] = {}
    for name in COUNTED:
        known = [found for part in parts if (found := getattr(part, name)) is not None]
        sums[name] = sum(known) if known else None
    reported = any(part.source == "provider" for part in parts)
    return Usage(**sums, source="provider") if reported else Usage()


def anthropic_served(usage: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Service tier and region as served; fast mode counts as a tier, as it has prices of its own."""
    tier = "fast" if usage.get("speed") == "fast" else usage.get("service_tier")
    return served_tier(tier), served_region(usage.get("inference_geo"))


# Words for the standard tier; "auto" is a tier that was only asked for and says nothing.
_STANDARD = frozenset({"default", "standard", "on_demand", "on-demand"})


def served_tier(word: Any) -> str | None:
    """A service tier in OpenAI's words ("default", "priority", "flex"), else the provider's own; None for no word."""
    if not isinstance(word, str) or not word or word.lower() in ("auto", "unspecified", "traffic_type_unspecified"):
        return None
    name = word.lower()
    return "default" if name in _STANDARD else name.removeprefix("on_demand_")[:20]


def served_region(word: Any) -> str | None:
    """The region in which a request was served, where that may have a price of its own."""
    return word.lower()[:20] if isinstance(word, str) and word and word not in ("global", "not_available") else None


def image_usage(usage: Mapping[str, Any]) -> Usage:
    """Usage in the format of OpenAI's image endpoints; without a breakdown all output tokens count as image tokens."""
    of_prompt, of_output = details(usage, "input_tokens_details"), details(usage, "output_tokens_details")
    image_output = count(of_output.get("image_tokens"))
    return make_usage(
        usage.get("input_tokens"),
        usage.get("output_tokens"),
        cached=count(of_prompt.get("cached_tokens")),
        read_as={"image": count(of_prompt.get("image_tokens"))},
        cached_as={"image": count(details(of_prompt, "cached_tokens_details").get("image_tokens"))},
        written_as={"image": count(usage.get("output_tokens")) if image_output is None else image_output},
    )


def gemini_usage(usage: Mapping[str, Any], *, image_output: bool = False) -> Usage:
    """
    Usage in Gemini's format: candidates exclude thoughts, the prompt excludes what tools returned.

    Args:
        image_output: Whether the answer has images: output without a breakdown then counts as image tokens.
    """
    prompt, candidates = usage.get("promptTokenCount"), usage.get("candidatesTokenCount")
    thoughts, total = count(usage.get("thoughtsTokenCount")), count(usage.get("totalTokenCount"))
    tool_results = count(usage.get("toolUsePromptTokenCount")) or 0
    prompt_count, candidates_count = count(prompt), count(candidates)
    if prompt_count is not None:
        prompt = prompt_count + tool_results
    read = (prompt_count or 0) + tool_results
    if thoughts is None and candidates_count is not None and prompt_count and (total or 0) > read + candidates_count:
        thoughts = (total or 0) - read - candidates_count  # some last chunks leave them out, but their total has them
    completion: Any = candidates
    if candidates is None and thoughts is not None:
        completion = thoughts
    elif candidates is None and total is not None and prompt_count is not None:
        completion = total - read
    elif candidates_count is not None and thoughts and total != read + candidates_count:
        completion = candidates_count + thoughts
    wrote = _modalities(usage, "candidatesTokensDetails")
    if image_output and not usage.get("candidatesTokensDetails") and (drawn := count(completion)) is not None:
        wrote = {"image": drawn - (thoughts or 0)}
    return make_usage(
        prompt,
        completion,
        cached=count(usage.get("cachedContentTokenCount")),
        reasoning=thoughts,
        read_as=_modalities(usage, "promptTokensDetails", "toolUsePromptTokensDetails"),
        cached_as=_modalities(usage, "cacheTokensDetails"),
        written_as=wrote,
    )


def _modalities(usage: Mapping[str, Any], *names: str) -> dict[str, int]:
    """Tokens by kind, in lists of counts by modality."""
    found: dict[str, int] = {}
    for name in names:
        items = usage.get(name)
        for item in items if isinstance(items, list) else ():
            if isinstance(item, dict) and (tokens := count(item.get("tokenCount"))):
                kind = str(item.get("modality")).lower()
                found[kind] = found.get(kind, 0) + tokens
    return {kind: tokens for kind, tokens in found.items() if kind in _KINDS}


def gemini_grounding(candidate: Mapping[str, Any]) -> dict[str, int]:
    """
    Searches of the web and of maps that an answer of Gemini rests on.

    Gemini 3 and later are billed by query, earlier models by request (see `as_billed`).
    Source: ai.google.dev/gemini-api/docs/pricing, grounding (read 2026-11-27).
    """
    grounding = details(candidate, "groundingMetadata")
    lists = [grounding.get(name) for name in ("webSearchQueries", "imageSearchQueries")]
    queries = sum(len({q for q in found if isinstance(q, str) and q}) for found in lists if isinstance(found, list))
    chunks = grounding.get("groundingChunks")
    kinds = [kind for chunk in chunks if isinstance(chunk, dict) for kind in chunk] if isinstance(chunks, list) else []
    found = {"search": queries or int("web" in kinds), "maps": int("maps" in kinds)}
    return {unit: number for unit, number in found.items() if number}


def cohere_usage(usage: Mapping[str, Any]) -> Usage:
    """
    Usage in Cohere's format: `tokens` counts all that the model processed, `billed_units` what is charged.

    Source: docs.cohere.com/reference/chat, usage (read 2026-11-27).
    """
    tokens, billed = details(usage, "tokens", "billed_units"), details(usage, "billed_units")
    units: dict[str, int] = {}
    if count(billed.get("input_tokens")) is not None and count(billed.get("output_tokens")) is not None:
        names = {"input": "input_tokens", "output": "output_tokens", "input_image": "image_tokens"}
        named = {unit: count(billed.get(name)) for unit, name in names.items()}
        units = {unit: number for unit, number in named.items() if number or (unit != "input_image" and number == 0)}
        if units == {"input": tokens.get("input_tokens"), "output": tokens.get("output_tokens")}:
            units = {}
    if searches := count(billed.get("search_units")):
        units["search"] = searches
    return make_usage(
        tokens.get("input_tokens"),
        tokens.get("output_tokens"),
        # All of what is billed has the full price.
        cached=count(usage.get("cached_tokens")),
        reasoning=count(tokens.get("reasoning_tokens")),
        units=units,
    )


def make_usage(
    prompt: Any,
    completion: Any,
    *,
    cached: int | None = None,
    cache_write: int | None = None,
    cache_write_1h: int | None = None,
    reasoning: int | None = None,
    read_as: Mapping[str, int | None] | None = None,
    cached_as: Mapping[str, int | None] | None = None,
    written_as: Mapping[str, int | None] | None = None,
    units: Mapping[str, int] | None = None,
) -> Usage:
    """
    The provider's counts, as far as they are plausible.

    Args:
        prompt, completion: As the provider sent them; None when it did not.

        read_as, cached_as, written_as: Of the prompt, of what was cached and of the completion, the tokens that are
            no text, by kind: image, video, audio.

        units: What is billed beside tokens.

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
    apart = _read_units((prompt_tokens or 0) - (cache_write or 0), cached or 0, read_as or {}, cached_as or {})
    apart |= _written_units((completion_tokens or 0) - (reasoning or 0), written_as or {})
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cached_tokens=cached,
        cache_write_tokens=cache_write,
        cache_write_1h_tokens=cache_write_1h,
        reasoning_tokens=reasoning,
        source="provider",
        units={**apart, **(units or {})},
    )


def _read_units(
    whole: int, cached: int, read_as: Mapping[str, int | None], cached_as: Mapping[str, int | None]
) -> dict[str, int]:
    """Input that is no text, by unit, apart from what of it was cached."""
    kinds = {kind: tokens for kind in _KINDS if (tokens := read_as.get(kind))}
    text = whole - sum(kinds.values())
    if text < 0:
        return {}
    known = {kind: min(cached_as.get(kind) or 0, tokens) for kind, tokens in kinds.items()}
    if sum(known.values()) > cached:
        known = dict.fromkeys(kinds, 0)
    beyond_text = max(0, cached - sum(known.values()) - text)
    units: dict[str, int] = {}
    for kind, tokens in kinds.items():
        more = min(beyond_text, tokens - known[kind])
        beyond_text -= more
        units[f"input_{kind}"] = tokens - known[kind] - more
        if kind != "video":  # cached video has no price of its own anywhere
            units[f"cached_{kind}"] = known[kind] + more
    return {unit: tokens for unit, tokens in units.items() if tokens}


def _written_units(whole: int, written_as: Mapping[str, int | None]) -> dict[str, int]:
    """Output that is no text, by unit."""
    kinds = {kind: tokens for kind in _KINDS if (tokens := written_as.get(kind))}
    return {f"output_{kind}": tokens for kind, tokens in kinds.items()} if sum(kinds.values()) <= whole else {}


def count(value: Any) -> int | None:
    """`value` as a number of tokens; None unless it is a whole number from 0 to one billion."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= _MAX_COUNT and value == int(value) else None


def details(usage: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """The first nested object under one of the names; empty when there is none."""
    return next((usage[name] for name in names if isinstance(usage.get(name), dict)), {})


def merge_usage(known: dict[str, Any], said: Mapping[str, Any]) -> None:
    """
    Add what a later part of an answer says to what is known of its usage, field by field.

    The later value counts, as providers send running totals; but nothing that is empty, zero or no valid number
    replaces what is there.
    """
    for name, value in said.items():
        before = known.get(name)
        if isinstance(value, dict):
            inner = dict(before) if isinstance(before, dict) else {}
            merge_usage(inner, value)
            if inner or before is None:
                known[name] = inner
        elif before is None or _says_more(value, before):
            known[name] = value


def _says_more(value: Any, before: Any) -> bool:
    if value in (None, "", []):
        return False
    if isinstance(before, int | float) and not isinstance(before, bool) and before > 0:
        return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    return True


_COUNTS = frozenset(
    {
        "prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "promptTokenCount",
        "candidatesTokenCount", "totalTokenCount", "tokens", "billed_units",
    }
)  # fmt: skip


def has_counts(usage: Mapping[str, Any]) -> bool:
    """Whether a usage object holds counts of tokens, even if they say nothing."""
    return any(usage.get(name) is not None for name in _COUNTS)


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


def reported_fee(usage: Mapping[str, Any]) -> Decimal:
    """The router's fee in US$ where another bills the rest of the cost and that is not reported; else 0."""
    if usage.get("is_byok") is not True or reported_cost(usage) is not None:
        return Decimal(0)
    return _dollars(usage.get("cost")) or Decimal(0)


def _dollars(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    amount = Decimal(str(value))
    return amount if amount.is_finite() and amount >= 0 else None


def larger(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """By unit, the larger of two counts of the same things."""
    names: Iterable[str] = one.keys() | other.keys()
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in names}
