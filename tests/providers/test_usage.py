"""What providers count: every shape of usage by unit, merged from parts so that nothing that was reported is lost."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, strategies as st

from shared.prices.cost import billed_units
from shared.providers.response import Reading
from shared.providers.usage import (
    anthropic_served,
    anthropic_usage,
    cohere_usage,
    gemini_grounding,
    gemini_usage,
    image_usage,
    merge_usage,
    openai_usage,
    reported_cost,
    reported_fee,
    served_tier,
)
from shared.types import Usage
from tests.support.loopback import ask, candidate, http, sse
from tests.support.wires import candidates, chunk, completion


def gemini(prompt: int, wrote: int, **more: Any) -> dict[str, Any]:
    """Gemini's usage; lists of modalities as {"AUDIO": 5}."""
    lists = {
        name: [{"modality": modality, "tokenCount": tokens} for modality, tokens in value.items()]
        for name, value in more.items()
        if isinstance(value, dict)
    }
    total = prompt + wrote + more.get("thoughtsTokenCount", 0)
    return {"promptTokenCount": prompt, "candidatesTokenCount": wrote, "totalTokenCount": total, **more, **lists}


SHAPES = [
    # Chat completions of gpt-audio. Source: OpenAI's API reference, CompletionUsage (read 2026-11-27).
    (
        openai_usage,
        {
            "prompt_tokens": 1000,
            "completion_tokens": 1000,
            "prompt_tokens_details": {"audio_tokens": 900, "text_tokens": 100, "cached_tokens": 0},
            "completion_tokens_details": {"audio_tokens": 900, "text_tokens": 50, "reasoning_tokens": 50},
        },
        {"input": 100, "input_audio": 900, "output": 50, "output_audio": 900, "reasoning": 50},
    ),
    # What is cached without a word on which kind is text first: no discount is taken that was not given.
    (
        openai_usage,
        {
            "prompt_tokens": 1000,
            "completion_tokens": 1,
            "prompt_tokens_details": {"audio_tokens": 900, "cached_tokens": 300},
        },
        {"cached": 100, "cached_audio": 200, "input_audio": 700, "output": 1},
    ),
    # Predictions are inside of the completion: a detail for the reader, not for the bill.
    (
        openai_usage,
        {
            "prompt_tokens": 10,
            "completion_tokens": 500,
            "completion_tokens_details": {"accepted_prediction_tokens": 100, "rejected_prediction_tokens": 300},
        },
        {"input": 10, "output": 500},
    ),
    # LiteLLM's own words for Anthropic's cache and searches, on the providers that it calls itself.
    (
        openai_usage,
        {
            "prompt_tokens": 1000,
            "completion_tokens": 10,
            "prompt_tokens_details": {
                "cached_tokens": 200,
                "cache_creation_tokens": 300,
                "cache_creation_token_details": {"ephemeral_1h_input_tokens": 100},
            },
            "server_tool_use": {"web_search_requests": 2},
        },
        {"input": 500, "cached": 200, "cache_write": 200, "cache_write_1h": 100, "output": 10, "search": 2},
    ),
    # Perplexity. Source: docs.perplexity.ai, sonar-deep-research (read 2026-11-27).
    (
        openai_usage,
        {
            "prompt_tokens": 20,
            "completion_tokens": 1000,
            "total_tokens": 1020,
            "citation_tokens": 5000,
            "num_search_queries": 20,
            "reasoning_tokens": 30000,
        },
        {"input": 20, "output": 1000, "reasoning": 30000, "citation": 5000, "search": 20},
    ),
    (
        openai_usage,
        {"prompt_tokens": 20, "completion_tokens": 5, "search_context_size": "high"},
        {"input": 20, "output": 5, "search_high": 1},
    ),
    # xAI. Source: docs.x.ai, live search and server-side tools (read 2026-11-27).
    (
        openai_usage,
        {"prompt_tokens": 20, "completion_tokens": 5, "num_sources_used": 10},
        {"input": 20, "output": 5, "source": 10},
    ),
    (
        openai_usage,
        {
            "prompt_tokens": 20,
            "completion_tokens": 5,
            "server_side_tool_usage_details": {"web_search_calls": 2, "x_search_calls": 1, "mcp_calls": 9},
        },
        {"input": 20, "output": 5, "search": 2, "x_search": 1},
    ),
    (
        anthropic_usage,
        {
            "input_tokens": 10,
            "output_tokens": 5,
            "cache_creation_input_tokens": 300,
            "cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 100},
            "server_tool_use": {"web_search_requests": 3, "web_fetch_requests": 7, "code_execution_requests": 1},
        },
        {"input": 10, "output": 5, "cache_write": 200, "cache_write_1h": 100, "search": 3, "code_execution": 1},
    ),
    # Gemini. Source: ai.google.dev/api/generate-content, UsageMetadata (read 2026-11-27).
    (
        gemini_usage,
        gemini(
            10_000,
            100,
            cachedContentTokenCount=5000,
            promptTokensDetails={"TEXT": 50, "AUDIO": 9900, "DOCUMENT": 50},
            cacheTokensDetails={"AUDIO": 5000},
            thoughtsTokenCount=30,
        ),
        {"input": 100, "input_audio": 4900, "cached_audio": 5000, "output": 100, "reasoning": 30},
    ),
    (
        gemini_usage,
        gemini(200, 1400, promptTokensDetails={"VIDEO": 90, "IMAGE": 10}, candidatesTokensDetails={"IMAGE": 1290}),
        {"input": 100, "input_video": 90, "input_image": 10, "output": 110, "output_image": 1290},
    ),
    (
        gemini_usage,
        {"promptTokenCount": 1000, "candidatesTokenCount": 100, "totalTokenCount": 5100},
        {"input": 1000, "output": 100, "reasoning": 4000},
    ),
    # Cohere. Source: docs.cohere.com/reference/chat (read 2026-11-27).
    (
        cohere_usage,
        {
            "billed_units": {"input_tokens": 60, "output_tokens": 40, "search_units": 2},
            "tokens": {"input_tokens": 1560, "output_tokens": 45},
            "cached_tokens": 1000,
        },
        {"input": 60, "output": 40, "search": 2},
    ),
    (
        cohere_usage,
        {
            "billed_units": {"input_tokens": 0, "output_tokens": 400},
            "tokens": {"input_tokens": 5, "output_tokens": 402},
        },
        {"output": 400},
    ),
    # OpenAI's images. Source: OpenAI's API reference, images (read 2026-11-27).
    (
        image_usage,
        {
            "input_tokens": 1800,
            "output_tokens": 1056,
            "input_tokens_details": {
                "image_tokens": 800,
                "cached_tokens": 1300,
                "cached_tokens_details": {"text_tokens": 1000, "image_tokens": 300},
            },
        },
        {"cached": 1000, "cached_image": 300, "input_image": 500, "output_image": 1056},
    ),
]


@pytest.mark.parametrize(("read", "usage", "expected"), SHAPES)
def test_each_shape_by_unit(read: Any, usage: dict[str, Any], expected: dict[str, int]) -> None:
    """Whatever a provider bills for has its unit; each token is in one, and details that cost nothing are in none."""
    units = {unit: number for unit, number in (billed_units(read(usage)) or {}).items() if number}
    assert units == expected


def test_steps_of_other_models_are_counted_apart() -> None:
    """A compacted conversation is the sum of its steps, and an advisor's step is the advisor's, with its own cache."""
    steps = [
        {"type": "message", "input_tokens": 100, "output_tokens": 50},
        {"type": "compaction", "model": "own", "input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 7},
        {"type": "advisor_message", "model": "other", "input_tokens": 5000, "output_tokens": 800},
    ]
    found = anthropic_usage({"input_tokens": 100, "output_tokens": 50, "iterations": steps}, "own")
    assert (found.prompt_tokens, found.completion_tokens, found.cached_tokens) == (5117, 855, 7)
    assert found.others == (("other", Usage(5000, 800, source="provider")),)


@pytest.mark.parametrize(
    ("word", "tier"),
    [
        ("default", "default"),
        ("standard", "default"),
        ("on_demand", "default"),
        ("ON_DEMAND", "default"),
        ("ON_DEMAND_PRIORITY", "priority"),
        ("ON_DEMAND_FLEX", "flex"),
        ("priority", "priority"),
        ("auto", None),
        ("", None),
        (None, None),
        (7, None),
    ],
)
def test_tiers_have_one_name(word: Any, tier: str | None) -> None:
    """OpenAI's, Groq's, Anthropic's and Gemini's words for a tier are ours; a tier that is only asked for is none."""
    assert served_tier(word) == tier


def test_fast_mode_and_the_region_are_how_anthropic_served() -> None:
    """Fast mode counts before the tier, as it has the prices; the whole world is no region."""
    assert anthropic_served({"speed": "fast", "service_tier": "standard"}) == ("fast", None)
    assert anthropic_served({"speed": "standard", "service_tier": "standard"}) == ("default", None)
    assert anthropic_served({"inference_geo": "us"}) == (None, "us")
    assert anthropic_served({"inference_geo": "global"}) == anthropic_served({"inference_geo": "not_available"})


@pytest.mark.parametrize(
    ("grounding", "units"),
    [
        ({}, {}),
        ({"webSearchQueries": []}, {}),
        ({"webSearchQueries": ["a", "b", "a", ""]}, {"search": 2}),
        ({"webSearchQueries": ["a"], "imageSearchQueries": ["c"]}, {"search": 2}),
        ({"groundingChunks": [{"web": {"uri": "x"}}]}, {"search": 1}),
        ({"groundingChunks": [{"maps": {"uri": "x"}}, {"maps": {"uri": "y"}}]}, {"maps": 1}),
        ("x", {}),
    ],
)
def test_what_an_answer_of_gemini_rests_on(grounding: Any, units: dict[str, int]) -> None:
    """Distinct queries are counted; an answer that searched nothing is not billed for a search."""
    assert gemini_grounding({"groundingMetadata": grounding}) == units


def grounded(name: str, model: str) -> Mapping[str, int]:
    """The units of an answer with two queries, which the last two parts of its stream repeat."""
    said = {"groundingMetadata": {"webSearchQueries": ["a", "b"]}}
    first, last = candidates("x", None, **gemini(5, 5)), candidates("y", "STOP", **gemini(5, 9))
    for body in (first, last):
        body["candidates"][0] |= said
        body["modelVersion"] = model
    return ask(candidate("gemini", name), sse(first, last, done=False), stream=True).answer.usage.units


def test_grounding_is_billed_by_request_before_gemini_3_and_by_query_since() -> None:
    """The same answer is one search of an older model and two of a newer; a name such as -latest says neither."""
    assert grounded("gemini-2.5-flash", "gemini-2.5-flash") == {"search": 1}
    assert grounded("gemini-3.5-flash", "gemini-3.5-flash") == {"search": 2}
    assert grounded("gemini-flash-latest", "gemini-3.8-flash") == {"search": 2}
    assert grounded("gemini-pro-latest", "gemini-2.5-pro") == {"search": 1}


def test_a_search_model_searches_for_each_answer() -> None:
    """A search model's answers cost a search, whether their usage tells of it or not."""
    answer = ask(candidate("openai", "gpt-4o-mini-search-preview"), http(completion())).answer
    assert answer.usage.units == {"search": 1}
    assert ask(candidate("openai", "gpt-4o-mini"), http(completion())).answer.usage.units == {}


def test_the_tier_of_gemini_stands_in_a_header() -> None:
    """The header is Gemini's word on the tier, before that in the usage."""
    body = candidates("x", "STOP", **gemini(5, 5, trafficType="ON_DEMAND"))
    assert ask(candidate("gemini", "m"), http(body)).answer.service_tier == "default"
    headers = {"x-gemini-service-tier": "priority"}
    assert ask(candidate("gemini", "m"), http(body, headers=headers)).answer.service_tier == "priority"


usages = st.fixed_dictionaries(
    {},
    optional={
        "prompt_tokens": st.none() | st.integers(0, 9),
        "completion_tokens": st.none() | st.integers(0, 9),
        "cost": st.none() | st.sampled_from([0, 0.5, 2.25]),
        "prompt_tokens_details": st.none()
        | st.fixed_dictionaries({}, optional={"cached_tokens": st.none() | st.integers(0, 9)}),
    },
)


def merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What is known after all parts."""
    known: dict[str, Any] = {}
    for part in parts:
        merge_usage(known, part)
    return known


def flat(usage: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """The numbers above zero of a usage object, by their path."""
    found: dict[str, Any] = {}
    for name, value in usage.items():
        if isinstance(value, dict):
            found |= flat(value, f"{at}{name}.")
        elif value:
            found[f"{at}{name}"] = value
    return found


@given(st.lists(usages, max_size=6))
def test_the_last_word_that_says_something_counts(parts: list[dict[str, Any]]) -> None:
    """Field by field the last count above zero wins, and what says nothing changes nothing, wherever it comes."""
    last: dict[str, Any] = {}
    for part in parts:
        last |= flat(part)
    assert flat(merged(parts)) == last


@given(st.lists(usages, min_size=1, max_size=5), st.data())
def test_empty_parts_change_nothing(parts: list[dict[str, Any]], data: st.DataObject) -> None:
    """A part without counts, or with zeros only, may come anywhere: counts and reported cost stay what they were."""
    zeros = {"prompt_tokens": 0, "completion_tokens": 0, "cost": 0, "prompt_tokens_details": {"cached_tokens": 0}}
    empty = data.draw(st.sampled_from([{}, zeros, dict.fromkeys(zeros)]))
    at = data.draw(st.integers(0, len(parts)))
    plain, with_empty = merged(parts), merged([*parts[:at], empty, *parts[at:]])
    assert flat(with_empty) == flat(plain)
    assert (reported_cost(with_empty) or 0) == (reported_cost(plain) or 0)


@given(st.lists(usages, max_size=5))
def test_merging_leaves_the_parts_as_they_are(parts: list[dict[str, Any]]) -> None:
    """What a provider sent is read, not changed."""
    before = copy.deepcopy(parts)
    merged(parts)
    assert parts == before


@given(st.lists(st.integers(0, 50), min_size=9, max_size=9))
def test_no_token_is_in_two_units(n: list[int]) -> None:
    """However a provider breaks its counts down, the units of input and those of output are each token once."""
    usage = openai_usage(
        {
            "prompt_tokens": n[0] * 4,
            "completion_tokens": n[1] * 4 + 1,
            "prompt_tokens_details": {
                "audio_tokens": n[2],
                "image_tokens": n[3],
                "cached_tokens": n[4],
                "cache_write_tokens": n[5],
                "cached_tokens_details": {"audio_tokens": n[6]},
            },
            "completion_tokens_details": {"audio_tokens": n[7], "reasoning_tokens": n[8]},
        }
    )
    units = billed_units(usage)
    assert units is not None
    assert min(units.values()) >= 0
    read = sum(number for unit, number in units.items() if unit.startswith(("input", "cache")))
    wrote = sum(number for unit, number in units.items() if unit.startswith(("output", "reasoning")))
    assert (read, wrote) == (usage.prompt_tokens, usage.completion_tokens)


def test_a_cost_is_not_lost_to_a_later_chunk_without_one() -> None:
    """The last usage of a stream may be without the cost that an earlier one had."""
    usage = {"prompt_tokens": 5, "completion_tokens": 3}
    chunks = [chunk("x"), chunk(finish="stop", usage={**usage, "cost": 0.5}), chunk(usage=usage), chunk(usage={})]
    answer = ask(candidate("openrouter", "m"), sse(*chunks), stream=True).answer
    assert (answer.reported_cost, answer.usage) == (Decimal("0.5"), Usage(5, 3, source="provider"))


def test_a_routers_fee_is_not_the_cost() -> None:
    """With a key of one's own the router reports its fee; where it does not say the rest, that has to be priced."""
    usage = {"cost": 0.0005, "is_byok": True}
    assert (reported_cost(usage), reported_fee(usage)) == (None, Decimal("0.0005"))
    whole = {**usage, "cost_details": {"upstream_inference_cost": 0.01}}
    assert (reported_cost(whole), reported_fee(whole)) == (Decimal("0.0105"), Decimal(0))


@pytest.mark.parametrize(
    ("usage", "reports"),
    [
        ({"prompt_tokens": 0, "completion_tokens": 0}, True),
        ({"prompt_tokens": "5", "completion_tokens": "3"}, True),
        ({}, False),
        (None, False),
        ({"cost": 0.5}, False),
    ],
)
def test_whether_anything_was_reported(usage: Any, reports: bool) -> None:
    """Counts that say nothing are still the provider's word, and no count of ours takes their place."""
    reading = Reading()
    reading.take_usage(usage, openai_usage)
    answer = reading.answer()
    assert (answer.usage, answer.reports_usage) == (Usage(), reports)
