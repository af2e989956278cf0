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
from tests.support.independent_pricer import bill, entry_of, tiers_of

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
    return replace(resolve(name, catalogue=catalogue, settings=options, scope=Scope(), service_tier=tier), api_key="k")


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
    if draw(st.booleans()) and "vision" in can:
        content = [{"type": "text", "text": "".join(said)}, IMAGE]
        most.kinds_in.add("input_image")
        most.text = entry["window"]
    _PROVIDERS.get(provider, lambda *_: None)(draw, model, params, most)
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


@settings(max_examples=250, deadline=None)
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
