"""Priced as served: every billed unit once, by the tier, region and model that the provider names, or "at least"."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from shared.config import Settings
from shared.internal.money import to_nano
from shared.models.catalogue import Catalogue, resolve
from shared.models.keys import is_own_host
from shared.prices.cost import all_units, billed_units, itemised, price
from shared.prices.units import TOKENS
from shared.scope import Scope
from shared.types import Answer, Candidate, Rates, Served, Usage

M = Decimal("1e-6")
RATES = Rates(
    {
        "input": 2 * M,
        "cached": M / 5,
        "output": 8 * M,
        "input_audio": 32 * M,
        "output_audio": 64 * M,
        "search": Decimal("0.01"),
    },
    source="table",
)


def candidate(name: str, prices: Path | None = None, **more: Any) -> Candidate:
    """The candidate that a name stands for."""
    options = Settings(prices=prices)
    return resolve(name, catalogue=Catalogue.load(options), settings=options, scope=Scope(), **more)


def served(name: str, *, asked: str | None = None, **how: Any) -> Rates:
    """The rates of a request as it was served."""
    who = candidate(name, service_tier=asked)
    assert who.rates_as is not None
    return who.rates_as(Served(**how))


def cost(units: Mapping[str, int]) -> tuple[int | None, bool]:
    """Nano-dollars of a request with these parts, and whether they are a lower bound."""
    found = price(Answer("", None, Usage(1000, 1000, source="provider", units=units)), RATES)
    return found.nano, found.is_lower_bound


@pytest.mark.parametrize(
    ("units", "nano", "is_lower_bound"),
    [
        ({}, 2_000_000 + 8_000_000, False),
        ({"input_audio": 900, "output_audio": 900}, 100 * 2000 + 900 * 32000 + 100 * 8000 + 900 * 64000, False),
        ({"search": 3}, 10_000_000 + 30_000_000, False),
        ({"search_high": 1}, 10_000_000 + 10_000_000, False),
        ({"search_high": 1, "search": 5}, 10_000_000 + 50_000_000, False),
        ({"input_image": 500, "input_video": 100}, 10_000_000, False),
        ({"citation": 500}, 10_000_000, False),
        ({"output_image": 500}, 10_000_000, True),
        ({"source": 10}, 10_000_000, True),
        ({"x_search": 1}, 10_000_000, True),
        ({"maps": 1, "search": 1}, 20_000_000, True),
        ({"source": 0}, 10_000_000, False),
    ],
)
def test_what_has_no_price_makes_a_lower_bound(units: dict[str, int], nano: int, is_lower_bound: bool) -> None:
    """A billed unit has its own price, or makes the cost "at least"; what is not billed by itself never does."""
    assert cost(units) == (nano, is_lower_bound)


def test_cache_writes_without_a_price_are_at_least_input() -> None:
    """A provider that bills writing to a cache bills more than input: without its price the cost is a lower bound."""
    used = Usage(1000, 0, cache_write_tokens=500, cache_write_1h_tokens=100, source="provider")
    assert price(Answer("", None, used), RATES) == (2_000_000, "table", True)


@st.composite
def usages(draw: Any) -> Usage:
    """What a provider may report, by every unit."""
    prompt, wrote = draw(st.integers(0, 5000)), draw(st.integers(0, 5000))
    left_in, left_out = prompt, wrote
    units: dict[str, int] = {}
    for unit in ("input_audio", "input_image", "input_video"):
        units[unit] = draw(st.integers(0, left_in))
        left_in -= units[unit]
    cached = draw(st.integers(0, left_in))
    for unit in ("output_audio", "output_image"):
        units[unit] = draw(st.integers(0, left_out))
        left_out -= units[unit]
    for unit in ("search", "source", "search_low"):
        units[unit] = draw(st.integers(0, 3))
    reasoning = draw(st.integers(0, left_out))
    return Usage(prompt, wrote, cached_tokens=cached, reasoning_tokens=reasoning, source="provider", units=units)


amounts = st.integers(0, 10**6).map(lambda tenths: Decimal(tenths) / 10**10)
further = (
    "cached", "cache_write", "reasoning", "input_audio", "cached_audio", "output_audio", "input_image", "output_image",
    "search", "search_low", "source", "request",
)  # fmt: skip
any_rates = st.fixed_dictionaries({"input": amounts, "output": amounts}, optional=dict.fromkeys(further, amounts)).map(
    lambda found: Rates(dict[Any, Decimal](found), source="table")
)


@given(usages(), any_rates)
def test_the_parts_add_up_and_nothing_is_priced_twice(used: Usage, rates: Rates) -> None:
    """The cost is the sum of its parts, each token is in one part, and the row keeps the same counts."""
    found = itemised(used, rates)
    assert found is not None
    assert price(Answer("", None, used), rates).nano == to_nano(sum(found.usd.values(), Decimal(0)))
    units = billed_units(used) or {}
    tokens = sum(count for unit, count in units.items() if unit in TOKENS)
    assert tokens == (used.prompt_tokens or 0) + (used.completion_tokens or 0)
    assert all_units(used) == ({unit: count for unit, count in units.items() if count} or None)
    assert found.usd.keys() <= units.keys() | {"request"}


@given(usages(), any_rates, st.sampled_from(["search", "input_audio", "source", "output_image"]), amounts)
def test_a_further_price_never_makes_less_known(used: Usage, rates: Rates, unit: Any, usd: Decimal) -> None:
    """A price more can only end a lower bound, never begin one."""
    more = Rates({**rates.prices, unit: usd}, source="table")
    before, after = (price(Answer("", None, used), each) for each in (rates, more))
    assert before.is_lower_bound or not after.is_lower_bound


def test_other_models_have_their_own_price() -> None:
    """An advisor's tokens cost what the advisor's do; without a price of it the cost is at least that of the rest."""
    used = Usage(1100, 150, source="provider", others=(("big", Usage(1000, 100, source="provider")),))
    big = Rates({"input": 5 * M, "output": 25 * M}, source="table")
    own = 100 * 2000 + 50 * 8000
    assert price(Answer("", None, used), RATES, lambda _: big) == (own + 5_000_000 + 2_500_000, "table", False)
    assert price(Answer("", None, used), RATES, lambda _: Rates()) == (own, "table", True)
    assert all_units(used) == {"input": 100, "output": 50, "big/input": 1000, "big/output": 100}


# Source: OpenAI's, Google's and Anthropic's pricing pages (read 2026-11-27); the table has the same.
@pytest.mark.parametrize(
    ("model", "asked", "how", "per_million"),
    [
        ("openai/gpt-4o", "priority", {"tier": "default"}, ("2.5", "10")),
        ("openai/gpt-4o", "priority", {"tier": "priority"}, ("4.25", "17")),
        ("openai/gpt-4o", "priority", {}, ("4.25", "17")),
        ("openai/gpt-4o", None, {"tier": "priority"}, ("4.25", "17")),
        ("openai/o3", "auto", {"tier": "flex"}, ("1", "4")),
        ("gemini/gemini-2.5-flash", None, {"tier": "priority"}, ("0.54", "4.5")),
        ("anthropic/claude-opus-4-8", None, {"tier": "fast"}, ("10", "50")),
        ("anthropic/claude-opus-4-8", None, {"region": "us"}, ("5.5", "27.5")),
        ("anthropic/claude-opus-4-8", None, {"tier": "fast", "region": "us"}, ("11", "55")),
        ("openai/gpt-4.1", None, {"model": "gpt-4.1-mini-2025-04-14"}, ("0.4", "1.6")),
        ("openai/gpt-4o-2024-05-13", None, {"model": "gpt-4o"}, ("5", "15")),
        ("openai/gpt-4o", None, {"model": "gpt-4o-2024-05-13"}, ("5", "15")),
        ("openai/gpt-4o", None, {"model": "my-proxy-label"}, ("2.5", "10")),
        ("openai/gpt-4o", None, {"model": "claude-opus-4-6"}, ("2.5", "10")),
        ("azure/our-deployment", None, {"model": "gpt-4o-2024-11-20"}, ("2.5", "10")),
        ("openai/ft:gpt-4.1-mini-2025-04-14:org::id", None, {"model": "gpt-4.1-mini-2025-04-14"}, ("0.8", "3.2")),
    ],
)
def test_the_price_is_that_of_what_was_served(
    model: str, asked: str | None, how: Any, per_million: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tier, speed, region and model are what the answer says; where it does not say, what was asked for holds."""
    monkeypatch.setenv("AZURE_API_BASE", "https://ours.openai.azure.com")
    monkeypatch.setenv("OPENAI_API_BASE", "https://api.openai.com/v1")
    rates = served(model, asked=asked, **how)
    assert (rates.prices["input"] / M, rates.prices["output"] / M) == tuple(map(Decimal, per_million))
    assert not rates.at_least


@pytest.mark.parametrize(
    ("model", "how"),
    [
        ("anthropic/claude-haiku-4-5", {"tier": "fast"}),
        ("anthropic/claude-opus-4-6", {"region": "eu"}),
        ("anthropic/claude-haiku-4-5", {"tier": "priority"}),
    ],
)
def test_a_faster_way_without_a_price_costs_at_least_the_standard(model: str, how: dict[str, Any]) -> None:
    """Fast mode, priority and another region never cost less than the standard: that is a lower bound."""
    rates = served(model, **how)
    assert rates.at_least
    assert rates.prices == candidate(model).rates.prices
    assert price(Answer("", None, Usage(10, 10, source="provider")), rates).is_lower_bound


def test_a_cheaper_way_without_a_price_is_unknown() -> None:
    """A tier that may cost less than the standard has no bound from below in it."""
    assert served("mistral/mistral-large-2512", tier="flex").source == "unknown"


def test_prices_by_the_hour_are_those_of_the_sending() -> None:
    """What is settled later has the price of the hour at which it was sent."""
    names = [f"deepseek/deepseek-v4-{kind}" for kind in ("pro", "flash")]
    by_hour = [
        {served(name, when=datetime(2026, 11, 25, hour, tzinfo=UTC)).prices["input"] for hour in range(24)}
        for name in names
    ]
    assert max(map(len, by_hour)) > 1


def test_the_users_own_price_stays_whatever_was_served(tmp_path: Path) -> None:
    """AGENTSWARM_PRICES wins over the table also where the answer names another model."""
    path = tmp_path / "prices.json"
    path.write_text('{"openai/gpt-4.1": {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}}')
    who = candidate("openai/gpt-4.1", path)
    assert who.rates_as is not None
    rates = who.rates_as(Served(model="gpt-4.1-mini-2025-04-14"))
    assert (rates.prices, rates.version) == ({"input": M, "output": 2 * M}, who.rates.version)


@pytest.mark.parametrize(
    ("provider", "base", "own"),
    [
        ("openai", None, False),
        ("openai", "https://eu.api.openai.com/v1", False),
        ("openai", "https://openai.example.com/v1", True),
        ("openai", "https://notopenai.com/v1", True),
        ("openai", "http://127.0.0.1:8000/v1", True),
        ("azure", "https://ours.openai.azure.com", False),
        ("azure", "https://gateway.example/azure", True),
        ("gemini", "https://generativelanguage.googleapis.com/v1beta", False),
        ("dashscope", "https://dashscope-intl.aliyuncs.com/compatible-mode/v1", False),
        ("fireworks_ai", "https://api.fireworks.ai/inference/v1", False),
        ("fireworks_ai", "https://llm.example.com/v1", True),
        ("openai", "http://[", True),
    ],
)
def test_whose_endpoint_a_base_url_is(provider: str, base: str | None, own: bool) -> None:
    """A provider's endpoint is told by its domain, not by its name somewhere in the URL."""
    assert is_own_host(provider, base) is own


@pytest.mark.parametrize(
    ("model", "variable", "base", "source"),
    [
        ("openai/gpt-4o", "OPENAI_BASE_URL", "https://gateway.example/v1", "unknown"),
        ("openai/gpt-4o", "OPENAI_BASE_URL", "https://api.openai.com/v1", "table"),
        # A proxy or a recorder on this machine passes on to the provider that the name says.
        ("openai/gpt-4o", "OPENAI_BASE_URL", "http://127.0.0.1:4000/v1", "table"),
        ("hosted_vllm/llama", "HOSTED_VLLM_API_BASE", "http://127.0.0.1:8000/v1", "unknown"),
        ("lm_studio/llama", "LM_STUDIO_API_BASE", "http://127.0.0.1:1234/v1", "unknown"),
        ("ollama/llama3.2", "OLLAMA_API_BASE", "http://127.0.0.1:11434", "free"),
        ("ollama/llama3.2", "OLLAMA_API_BASE", "https://gpu.example", "unknown"),
    ],
)
def test_an_endpoint_of_the_users_own_has_no_list_price(
    model: str, variable: str, base: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's server has no price of the provider's, and is free only where its user says so."""
    monkeypatch.setenv(variable, base)
    assert candidate(model).rates.source == source


def test_a_region_of_openai_is_in_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regional processing costs a tenth more, at every tier."""
    monkeypatch.setenv("OPENAI_BASE_URL", "https://eu.api.openai.com/v1")
    assert candidate("openai/gpt-5.4").rates.prices["input"] == Decimal("2.75e-6")
    assert served("openai/gpt-5.4", tier="flex").prices["input"] == Decimal("1.375e-6")


def test_audio_of_gemini_costs_what_text_does_where_its_page_has_one_price() -> None:
    """Google names a price for audio only where it differs: elsewhere audio is no unknown."""
    rates = candidate("gemini/gemini-2.5-pro").rates
    assert rates.prices["input_audio"] == rates.prices["input"]
    assert candidate("gemini/gemini-2.5-flash").rates.prices["input_audio"] == M
    assert "input_audio" not in candidate("openai/gpt-5.4").rates.prices
