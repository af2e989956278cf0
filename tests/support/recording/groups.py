"""The documented provider groups: a model of each, what it can do and what its wire tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.provider_double import Usage
from tests.support.recording.filters import AZURE_HOST

# Pinned prices, in nano-dollars a token: a new price table changes no expected cost.
INPUT, CACHED, OUTPUT = 1000, 100, 5000
KEY = "sk-test-0123456789abcdef"


@dataclass(frozen=True)
class Group:
    """One provider: models to ask, and what of an answer it tells nothing about."""

    name: str
    model: str
    models: Mapping[str, str] = field(default_factory=dict)
    """Other models, by the scene that needs them."""
    lacks: frozenset[str] = frozenset()
    """Scenes that its API does not have."""
    zeros: frozenset[str] = frozenset()
    """Counts that it tells also when they are 0."""
    untold: frozenset[str] = frozenset()
    """Counts that its answers never have."""
    ends: bool = True
    """Its answers have a finish reason."""
    tells_cost: bool = False
    """What it says that a request costs is believed; it charges the full price for cached tokens."""
    preamble: int = 0
    """Input tokens that it counts and does not bill, while it bills the cached ones in full (Cohere's billed_units)."""
    fee: int = 0
    """Nano-dollars that it charges for each request."""
    free: bool = False

    def named(self, scene: str) -> str:
        """The name of the model for a scene."""
        return f"{self.name}/{self.models.get(scene, self.model)}"

    def usage(self, usage: Usage) -> dict[str, int]:
        """What its answer tells of these counts."""
        told = {
            "prompt_tokens": usage.input,
            "completion_tokens": usage.output,
            "cached_tokens": usage.cached,
            "cache_write_tokens": 0,
            "reasoning_tokens": usage.reasoning,
            "total_tokens": usage.input + usage.output,
        }
        said = {name: count for name, count in told.items() if count or name in self.zeros}
        return {name: count for name, count in said.items() if name not in self.untold}

    def nano(self, counts: Mapping[str, int]) -> int:
        """What an answer with these counts costs, in nano-dollars."""
        if self.free:
            return 0
        cached = 0 if self.tells_cost or self.preamble else counts.get("cached_tokens", 0)
        fresh = (max(counts["prompt_tokens"] - self.preamble, 0) - cached) * INPUT
        return fresh + cached * CACHED + counts["completion_tokens"] * OUTPUT + self.fee


def _names(*names: str) -> frozenset[str]:
    return frozenset(names)


_CACHED, _WRITTEN, _REASONING = "cached_tokens", "cache_write_tokens", "reasoning_tokens"
_TOOLS = ("tools", "tools-stream")

GROUPS = (
    Group("openai", "gpt-5.4-mini", zeros=_names(_CACHED, _REASONING)),
    Group("anthropic", "claude-haiku-4-5", zeros=_names(_CACHED, _WRITTEN)),
    Group("gemini", "gemini-3.1-flash-lite"),
    Group(
        "cohere",
        "command-a-03-2025",
        models={"reasoning": "command-a-reasoning-08-2025", "vision": "command-a-vision-07-2025"},
        zeros=_names(_CACHED),
        preamble=3,
    ),
    Group("mistral", "mistral-small-latest", zeros=_names(_CACHED), untold=_names(_REASONING)),
    Group(
        "groq",
        "llama-3.3-70b-versatile",
        models={"reasoning": "openai/gpt-oss-20b", "vision": "meta-llama/llama-4-scout-17b-16e-instruct"},
    ),
    Group(
        "together_ai",
        "openai/gpt-oss-120b",
        models={"vision": "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8"},
        untold=_names(_REASONING),
    ),
    Group(
        "deepseek",
        "deepseek-v4-flash",
        models={"reasoning": "deepseek-v4-pro"},
        lacks=_names("vision"),
        zeros=_names(_CACHED),
    ),
    Group("xai", "grok-4.3", zeros=_names(_CACHED, _REASONING), tells_cost=True),
    Group("openrouter", "openai/gpt-4o-mini", zeros=_names(_CACHED, _WRITTEN, _REASONING), tells_cost=True),
    Group(
        "perplexity",
        "sonar",
        models={"reasoning": "sonar-reasoning-pro"},
        lacks=_names("cached", *_TOOLS),
        untold=_names(_REASONING),
        tells_cost=True,
        fee=5_000_000,
    ),
    Group(
        "ollama",
        "llama3.2",
        models={"vision": "llava", "reasoning": "deepseek-r1"},
        lacks=_names("cached", "401", "429", "overloaded"),
        untold=_names(_REASONING),
        free=True,
    ),
    Group("azure", "gpt-4o", zeros=_names(_CACHED, _REASONING)),
    Group(
        "replicate",
        "meta/meta-llama-3-8b-instruct",
        lacks=_names("vision", "cached", "reasoning", "length", *_TOOLS),
        ends=False,
    ),
)
BY_NAME = {group.name: group for group in GROUPS}


def set_up(folder: Path, monkeypatch: pytest.MonkeyPatch, real: Mapping[str, str]) -> None:
    """Prices, keys and addresses of the groups; the real ones where they are given."""
    prices = {"input_cost_per_token": INPUT / 1e9, "output_cost_per_token": OUTPUT / 1e9}
    prices["cache_read_input_token_cost"] = CACHED / 1e9
    priced = (group for group in GROUPS if not group.free)
    names = {f"{group.name}/{model}" for group in priced for model in (group.model, *group.models.values())}
    file = folder / "prices.json"
    file.write_text(json.dumps({name: {**prices, "litellm_provider": name.partition("/")[0]} for name in names}))
    monkeypatch.setenv("AGENTSWARM_PRICES", str(file))
    for group in GROUPS:
        own = {"_API_KEY": KEY, "_API_BASE": AZURE_HOST if group.name == "azure" else ""}
        for suffix, value in own.items():
            name = group.name.upper() + suffix
            if found := real.get(name, value):
                monkeypatch.setenv(name, found)
