"""The bound: no request that the allow-list lets through can be billed above it, and the rest has none."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from pydantic import Field, create_model

from shared.config import Settings
from shared.internal.money import to_usd
from shared.models.catalogue import Catalogue, resolve
from shared.prices.bound import Bound
from shared.prices.parameters import parameters
from shared.providers.drafts import Draft, draft
from shared.providers.endpoints import import_litellm
from shared.scope import Scope
from shared.types import Candidate, ModelConfig, Request, TaskType
from tests.support.examples import at_most
from tests.support.independent_pricer import bill, entry_of, tiers_of
from tests.support.paths import ROOT

TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "//NExAAA", "format": "mp3"}}
BIG = create_model("Big", **{f"field_{n}": (str, Field(description="x " * 200)) for n in range(40)})  # type: ignore[call-overload]


@pytest.fixture(autouse=True, scope="module")
def _litellm() -> None:
    import_litellm()


def candidate(name: str, configs: Mapping[str, ModelConfig] | None = None, tier: str | None = None) -> Candidate:
    """The candidate that a name stands for, with a key."""
    options = Settings()
    catalogue = Catalogue.load(options, configs)
    return replace(
        resolve(name, catalogue=catalogue, settings=options, scope=Scope(), service_tier=tier), api_key="sk-of-nobody"
    )


def drafted(
    name: str, content: Any = "Hello!", configs: Mapping[str, ModelConfig] | None = None, **params: Any
) -> Draft:
    """A request to a model, as it is drafted under a budget."""
    who = candidate(name, configs, params.get("service_tier"))
    messages = [{"role": "user", "content": content}]
    return draft(who, Request(TaskType.CHAT_COMPLETION, messages, params), pinned=True)


def bound(name: str, content: Any = "Hello!", **params: Any) -> Bound:
    """The bound of a request to a model."""
    found = drafted(name, content, **params)
    assert found.problem is None
    return found.bound


# What may be billed, kind by kind


@dataclass
class Permitted:
    """The most that a provider may count for a request: independent of how the bound is computed."""

    model: str
    text: int
    output: int
    kinds_in: set[str] = field(default_factory=lambda: {"input", "cached"})
    kinds_out: set[str] = field(default_factory=lambda: {"output", "reasoning"})
    fees: dict[str, int] = field(default_factory=dict)
    tiers: list[str] = field(default_factory=lambda: ["default"])
    regions: list[str | None] = field(default_factory=lambda: [None])


def tokens_of(text: str) -> int:
    """No tokenizer makes more tokens of a text, whether it normalises first or not."""
    return max(len(text.encode()), len(unicodedata.normalize("NFKC", text).encode()))


texts = st.text(st.sampled_from('aé字ﷺﬃ½\N{GRINNING FACE}"\\ \n'), min_size=1, max_size=40)


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, Any, dict[str, Any], Permitted]:
    """A model, what it is asked, with which parameters, and what that permits."""
    model = draw(st.sampled_from(MODELS))
    provider, entry = model.partition("/")[0], entry_of(model)
    said = draw(st.lists(texts, min_size=1, max_size=3))
    limit = draw(st.integers(1, 3000))
    content: Any = "".join(said)
    params: dict[str, Any] = {"max_tokens": limit}
    # Roles, separators, a template; what a provider writes to explain tools.
    most = Permitted(model, tokens_of("".join(said)) + 50, limit)
    if "reasoning" in entry.get("can", ()):
        most.kinds_out.add("reasoning")
    if "output_image" in entry["prices"]["default"]:
        most.kinds_out.add("output_image")
    can = entry.get("can", ())
    if draw(st.booleans()) and "tools" in can:
        params["tools"] = [TOOL]
        most.text += tokens_of(json.dumps(TOOL)) + 530
    if draw(st.booleans()) and "schema" in can:
        params["response_format"] = BIG
        most.text += tokens_of(json.dumps(BIG.model_json_schema()))
    # LiteLLM sends DeepSeek text alone, so an image is not in the body.
    if draw(st.booleans()) and "vision" in can and provider != "deepseek":
        content = [{"type": "text", "text": "".join(said)}, IMAGE]
        most.kinds_in.add("input_image")
        most.text = entry["window"]
    if provider in _PROVIDERS:
        _PROVIDERS[provider](draw, model, params, most)
    if isinstance(content, str) and "audio_input" in can and draw(st.booleans()):
        content = [{"type": "text", "text": "".join(said)}, AUDIO]
        most.kinds_in.add("input_audio")
        most.text = entry["window"]
    return model, content, params, most


def _openai(draw: st.DrawFn, model: str, params: dict[str, Any], most: Permitted) -> None:
    tier = draw(st.sampled_from([None, "default", "auto", "priority"]))
    served = {"auto": tiers_of(model), "priority": ["priority", "default"]}.get(tier or "", ["default"])
    most.tiers = [each for each in served if each in tiers_of(model)]
    if tier is not None and (tier != "priority" or "priority" in tiers_of(model)):
        params["service_tier"] = tier
    else:
        most.tiers = ["default"]
    if "audio_output" in entry_of(model).get("can", ()) and draw(st.booleans()):
        params |= {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}
        most.kinds_out.add("output_audio")
    if "search-preview" in model:
        params.pop("service_tier", None)
        most.tiers, most.fees, most.text = ["default"], {"search": 1}, entry_of(model)["window"]
    elif model == "openai/gpt-4o" and draw(st.booleans()):
        params["prediction"] = {"type": "content", "content": "x" * 500}
        most.output += 500


def _anthropic(draw: st.DrawFn, model: str, params: dict[str, Any], most: Permitted) -> None:
    most.regions = [None, "us"]
    if draw(st.booleans()):
        params["tools"] = [*params.get("tools", ()), SEARCH]
        most.fees = {"search": 3}
        most.text += 3 * entry_of(model)["window"]
    elif draw(st.booleans()) and "speed" in entry_of(model).get("can", ()):
        params["speed"] = "fast"
        most.tiers = ["fast"]
    most.kinds_in |= {"cache_write"}


def _gemini(draw: st.DrawFn, model: str, params: dict[str, Any], most: Permitted) -> None:
    if "gemini-2" in model and draw(st.booleans()) and "tools" not in params and "image" not in model:
        params["tools"] = [{"googleSearch": {}}]
        most.fees = {"search": 1}
    if "output_image" in most.kinds_out:
        most.output += 2520  # a picture may be made whole beyond the limit


def _perplexity(draw: st.DrawFn, model: str, params: dict[str, Any], most: Permitted) -> None:
    size = draw(st.sampled_from([None, "low", "medium", "high"]))
    if size:
        params["web_search_options"] = {"search_context_size": size}
    most.fees = {f"search_{size or draw(st.sampled_from(['low', 'medium', 'high']))}": 1}


_PROVIDERS = {"openai": _openai, "anthropic": _anthropic, "gemini": _gemini, "perplexity": _perplexity}
MODELS = (
    "openai/gpt-4o", "openai/gpt-5.5", "openai/gpt-audio", "openai/gpt-4o-search-preview", "openai/gpt-4o-mini",
    "anthropic/claude-sonnet-4-6", "anthropic/claude-opus-4-6", "anthropic/claude-haiku-4-5",
    "anthropic/claude-opus-5-5", "gemini/gemini-2.5-flash", "gemini/gemini-2.5-pro", "gemini/gemini-3-flash-preview",
    "gemini/gemini-3.1-flash-image", "perplexity/sonar-pro", "perplexity/sonar", "xai/grok-4.3",
    "deepseek/deepseek-v4-flash", "mistral/mistral-large-latest", "groq/llama-3.3-70b-versatile",
    "cohere/command-a-03-2025",
)  # fmt: skip


@st.composite
def usages(draw: st.DrawFn, most: Permitted) -> dict[str, int]:
    """Counts within what is permitted, each token of one kind."""
    default = entry_of(most.model)["prices"]["default"]
    tokens: dict[str, int] = {}
    for kinds, total in ((most.kinds_in, most.text), (most.kinds_out, most.output)):
        left = draw(st.sampled_from([total, total // 2, 0]) | st.integers(0, total))
        known = sorted(kind for kind in kinds if kind not in ("input_audio", "output_audio") or kind in default)
        for kind in draw(st.permutations(known))[:-1]:
            # A token is written to the cache once, however often it is read.
            here = min(left, entry_of(most.model)["window"]) if kind == "cache_write" else left
            tokens[kind] = draw(st.sampled_from([0, here]) | st.integers(0, here))
            left -= tokens[kind]
        rest = next(kind for kind in known if kind not in tokens)
        tokens[rest] = min(left, entry_of(most.model)["window"]) if rest == "cache_write" else left
    return tokens


@settings(max_examples=at_most(150))
@given(cases(), st.data())
def test_no_bill_is_above_the_bound(case: tuple[str, Any, dict[str, Any], Permitted], data: st.DataObject) -> None:
    """Whatever a provider may count for what is sent, at any tier it may serve, is billed within the hold."""
    model, content, params, most = case
    found = bound(model, content, **params)
    nano = found.nano()
    assert nano is not None, found.unknown
    used = data.draw(usages(most))
    charged = bill(
        model,
        used,
        most.fees,
        tier=data.draw(st.sampled_from(most.tiers)),
        region=data.draw(st.sampled_from(most.regions)),
    )
    assert charged <= Fraction(nano, 10**9)


# What has no bound


PDF = {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0="}}


@pytest.mark.parametrize(
    ("model", "params", "named"),
    [
        ("anthropic/claude-sonnet-4-6", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "max_uses"),
        ("anthropic/claude-sonnet-4-6", {"tools": [{"type": "code_execution_20250825", "name": "c"}]}, "code"),
        ("anthropic/claude-sonnet-4-6", {"web_search_options": {}}, "web_search"),
        ("anthropic/claude-opus-4-6", {"speed": "warp"}, "speed"),
        ("anthropic/claude-sonnet-4-6", {"extra_headers": {"anthropic-beta": "fast-mode"}}, "beta"),
        ("gemini/gemini-3-flash-preview", {"tools": [{"googleSearch": {}}]}, "googleSearch"),
        ("gemini/gemini-2.5-flash", {"tools": [{"codeExecution": {}}]}, "code_execution"),
        ("openai/gpt-4o", {"web_search_options": {}}, "web_search_options"),
        ("openai/gpt-4o", {"tools": [{"type": "web_search"}]}, "web_search"),
        ("openai/gpt-4o", {"tools": [{"type": "mcp", "server_label": "x"}]}, "mcp"),
        ("openai/gpt-4o", {"service_tier": "scale"}, "service_tier"),
        ("openai/gpt-4o", {"modalities": ["text", "audio"], "audio": {"voice": "alloy"}}, "audio"),
        ("openai/gpt-4o", {"extra_body": {"n": 5}}, "extra_body"),
        ("openai/gpt-4o", {"extra_headers": {"OpenAI-Project": "proj_fast"}}, "OpenAI-Project"),
        ("xai/grok-4.3", {"web_search_options": {}}, "web_search_options"),
        ("xai/grok-4.3", {"tools": [{"type": "live_search"}]}, "live_search"),
        ("openrouter/openai/gpt-4o", {"web_search_options": {}}, "web_search_options"),
        ("openrouter/openai/gpt-4o", {"modalities": ["image", "text"]}, "modalities"),
        ("openrouter/openai/gpt-4o:online", {}, "price"),
        ("openrouter/google/gemini-3.1-flash-image", {}, "modalities"),
        ("openrouter/openai/gpt-4o-search-preview", {}, "window is unknown"),
        ("openrouter/perplexity/sonar", {}, "search"),
        ("openrouter/switchpoint/router", {}, "behind"),
        ("perplexity/sonar-deep-research", {}, "searches"),
        ("perplexity/sonar-pro", {"web_search_options": {"search_type": "pro"}}, "web_search_options"),
        ("groq/llama-3.3-70b-versatile", {"tools": [{"type": "browser_search"}]}, "browser_search"),
        ("moonshot/kimi-k2.6", {"tools": [{"type": "builtin_function", "function": {"name": "$web_search"}}]}, "built"),
    ],
)  # fmt: skip
def test_what_may_cost_more_has_no_bound(model: str, params: dict[str, Any], named: str) -> None:
    """A parameter that may add to the bill without limit is named, and nothing is guessed."""
    found = bound(model, **{"max_tokens": 100, **params})
    assert found.nano() is None
    assert named in str(found.unknown)


@pytest.mark.parametrize(
    ("model", "part", "named"),
    [
        ("openai/gpt-4o", AUDIO, "audio"),
        ("openai/gpt-4o", {"type": "hologram", "data": "x"}, "hologram"),
        ("openai/gpt-4o", {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA=="}}, "video_url"),
        ("openrouter/openai/gpt-4o", PDF, "file at openrouter"),
    ],
)
def test_a_part_without_a_price_has_no_bound(model: str, part: dict[str, Any], named: str) -> None:
    """A part of a message whose tokens have no known price, or of an unknown type, has no bound."""
    found = bound(model, [{"type": "text", "text": "Hi"}, part], max_tokens=10)
    assert found.nano() is None
    assert named in str(found.unknown)


def test_prices_of_ones_own_are_for_the_standard_tier() -> None:
    """A ModelConfig states what tokens cost as a rule: a faster tier or speed may cost more."""
    config = ModelConfig(
        name="mine",
        provider="openai",
        litellm_model="openai/gpt-4o",
        cost_per_1k_input_tokens=1,
        cost_per_1k_output_tokens=2,
        max_tokens=100,
    )
    assert drafted("mine", configs={"mine": config}).bound.nano() is not None
    asked: list[dict[str, Any]] = [
        {"service_tier": "priority"},
        {"tools": [{"type": "web_search"}]},
        {"web_search_options": {}},
    ]
    for params in asked:
        assert drafted("mine", configs={"mine": config}, **params).bound.nano() is None


# What has a bound of its own


def cents(model: str, content: Any = "Hello!", **params: Any) -> float:
    """The bound in US cents."""
    found = bound(model, content, **params)
    assert found.unknown is None
    return to_usd(found.nano()) * 100


def test_a_class_counts_as_the_schema_that_is_sent() -> None:
    """A pydantic class as response_format is input with its whole schema."""
    more = len(json.dumps(BIG.model_json_schema()))
    for model, rate in (
        ("openai/gpt-4o", 2.5e-6),
        ("anthropic/claude-sonnet-4-6", 3e-6),
        ("gemini/gemini-2.5-flash", 3e-7),
    ):
        plain, with_schema = cents(model, max_tokens=10), cents(model, max_tokens=10, response_format=BIG)
        assert with_schema - plain > 0.9 * more * rate * 100


def test_searches_are_held_at_their_most() -> None:
    """As many searches as are allowed are held, and what they may find is read as input."""
    two, ten = ({**SEARCH, "max_uses": most} for most in (2, 10))
    assert cents("anthropic/claude-haiku-4-5", tools=[ten]) - cents("anthropic/claude-haiku-4-5", tools=[two]) > 8 * 1
    assert cents("perplexity/sonar-pro", max_tokens=10) > 1.4
    assert cents("gemini/gemini-2.5-flash", max_tokens=10, tools=[{"googleSearch": {}}]) > 3.5


def test_what_is_predicted_is_held_as_output() -> None:
    """The tokens of a prediction that the answer does not use are charged as output."""
    predicted = {"type": "content", "content": "x" * 100_000}
    assert cents("openai/gpt-4o", max_tokens=10, prediction=predicted) > 100_000 * 10e-6 * 100


def test_an_hour_of_cache_is_held_where_no_price_says_so() -> None:
    """Anthropic's cache for an hour costs twice the input, also for a model whose entry does not say it."""
    text = {"type": "text", "text": "@ " * 5000, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    config = ModelConfig(
        name="mine",
        provider="anthropic",
        litellm_model="anthropic/claude-haiku-4-5",
        cost_per_1k_input_tokens=1,
        cost_per_1k_output_tokens=0,
        max_tokens=10,
    )
    plain = drafted("mine", [{"type": "text", "text": "@ " * 5000}], {"mine": config}).bound.nano()
    written = drafted("mine", [text], {"mine": config}).bound.nano()
    assert plain is not None
    assert written is not None
    assert written > 1.9 * plain


def test_letters_that_normalise_to_more_are_counted_as_those() -> None:
    """One ligature of three bytes may be eighteen letters to a tokenizer that normalises."""
    found = cents("gemini/gemini-2.5-flash", "ﷺ" * 10_000, max_tokens=10)
    assert found > 10_000 * 18 * 0.3e-6 * 100


def test_a_workspace_may_serve_from_a_more_expensive_region() -> None:
    """A workspace's default region counts, since no region is asked for that its owner may not want."""
    sent = drafted("anthropic/claude-opus-4-6", max_tokens=10_000)
    assert sent.bound.nano() >= 10_000 * 27_500  # type: ignore[operator]
    assert sent.outgoing is not None
    assert "inference_geo" not in sent.outgoing.body


@pytest.mark.parametrize(
    ("model", "word"),
    [
        ("openai/gpt-4o", "default"),
        ("anthropic/claude-haiku-4-5", "standard_only"),
        ("groq/llama-3.3-70b-versatile", "on_demand"),
        ("gemini/gemini-2.5-flash", None),
        ("mistral/mistral-large-latest", None),
    ],
)
def test_the_standard_tier_is_asked_for_where_that_can_be_said(model: str, word: str | None) -> None:
    """Under a budget the tier is no accident of the account's settings; without one nothing is added."""
    who = candidate(model)
    request = Request(TaskType.CHAT_COMPLETION, [{"role": "user", "content": "Hi"}], {"max_tokens": 5})
    pinned, unpinned = draft(who, request, pinned=True), draft(who, request)
    assert pinned.outgoing is not None
    assert unpinned.outgoing is not None
    assert pinned.outgoing.body.get("service_tier") == word
    assert "service_tier" not in unpinned.outgoing.body
    assert pinned.bound.per_token == unpinned.bound.per_token


def test_a_tier_that_is_asked_for_is_kept_and_held() -> None:
    """The caller's own tier is sent as it is, and held at its price; "auto" at the most expensive one."""
    for tier in ("priority", "auto"):
        sent = drafted("openai/gpt-4o", max_tokens=1000, service_tier=tier)
        assert sent.outgoing is not None
        assert sent.outgoing.body["service_tier"] == tier
        assert sent.bound.nano() > 17_000_000  # type: ignore[operator]
    assert drafted("openai/gpt-4o", max_tokens=1000).bound.nano() < 12_000_000  # type: ignore[operator]


def test_a_thinking_budget_above_the_limit_is_held_too() -> None:
    """Hidden reasoning is output: a budget for it beside a smaller limit is held with it."""
    found = bound("anthropic/claude-haiku-4-5", max_tokens=100, thinking={"type": "enabled", "budget_tokens": 32_000})
    assert found.output == 32_100
    assert found.least_output == 32_064
    assert bound("gemini/gemini-2.5-flash", reasoning_effort="high").least_output == 64 + 4096


def test_the_data_names_its_sources() -> None:
    """Every list of what is free, and of what a provider does unasked, says where that is documented, and when read."""
    text = (ROOT / "shared" / "prices" / "parameters.toml").read_text("utf-8")
    own = {"words", "headers"}  # our own words for what the other tables document
    starts = [f"[{name}]" for name in parameters() if name not in {"tiers", "regions", "searching", *own}]
    starts += [f"[tiers.{name}]" for name in parameters()["tiers"]] + ["[regions.anthropic]", "[[searching]]"]
    for start in starts:
        above = text.partition(f"\n{start}\n")[0].rpartition("\n\n")[2]
        assert "Source:" in above, start
        assert "read 2026-" in above, start
