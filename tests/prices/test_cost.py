"""Pricing: exact nano-dollars, unknown is not zero, and no request can cost more than its bound."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any

import pytest
from hypothesis import assume, given, strategies as st
from pydantic import ValidationError

from shared.internal.money import to_nano, to_usd
from shared.prices.bound import max_prompt_tokens, upper_bound
from shared.prices.cost import price, token_cost
from shared.prices.litellm_format import from_litellm
from shared.prices.rates import FREE, UNKNOWN, rates_of as rates_of_entry, rates_of_config
from shared.types import Answer, Candidate, ModelConfig, Rates, Request, TaskType, Usage

ENTRY: Mapping[str, Any] = json.loads(
    """{
    "input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05, "cache_read_input_token_cost": 3e-07,
    "cache_creation_input_token_cost": 3.75e-06, "cache_creation_input_token_cost_above_1hr": 6e-06,
    "output_cost_per_reasoning_token": 2e-05,
    "input_cost_per_token_above_200k_tokens": 6e-06, "output_cost_per_token_above_200k_tokens": 2.25e-05,
    "input_cost_per_token_priority": 6e-06, "output_cost_per_token_priority": 3e-05
    }""",
    parse_float=Decimal,
)


def rates_of(entry: Mapping[str, Any], *, zero_is_free: bool = False, service_tier: str | None = None) -> Rates:
    """The rates of an entry in LiteLLM's format."""
    return rates_of_entry(from_litellm(entry, zero_is_free=zero_is_free), service_tier=service_tier)


RATES = rates_of(ENTRY)


def usage(prompt: int | None, completion: int | None, **more: Any) -> Usage:
    return Usage(prompt_tokens=prompt, completion_tokens=completion, **more)


@pytest.mark.parametrize(
    ("used", "nano"),
    [
        (usage(1000, 500), 3_000_000 + 7_500_000),
        (usage(0, 0), 0),
        (usage(1000, 0, cached_tokens=400), 600 * 3000 + 400 * 300),
        (usage(1000, 0, cache_write_tokens=400), 600 * 3000 + 400 * 3750),
        (usage(1000, 0, cache_write_tokens=400, cache_write_1h_tokens=100), 600 * 3000 + 300 * 3750 + 100 * 6000),
        (usage(1000, 0, cached_tokens=500, cache_write_tokens=500), 500 * 300 + 500 * 3750),
        (usage(0, 500, reasoning_tokens=200), 300 * 15000 + 200 * 20000),
        (usage(0, 500, reasoning_tokens=900), 500 * 20000),
        (usage(200_000, 1), 200_000 * 3000 + 15000),
        (usage(200_001, 1), 200_001 * 6000 + 22500),
        (usage(200_001, 0, cached_tokens=200_001), 200_001 * 6000),  # Above 200k no price of a cache is stated.
        (usage(None, 5), None),
        (usage(5, None), None),
        (usage(5, 5, cached_tokens=6), None),
    ],
)
def test_tokens_are_priced_to_the_nano_dollar(used: Usage, nano: int | None) -> None:
    """Each kind of token has its own rate, the prompt's size chooses the tier, and an impossible count has no price."""
    assert token_cost(used, RATES) == nano


def test_what_an_hour_of_cache_costs_defaults_to_what_five_minutes_cost() -> None:
    """Rates that are not stated are those of the next simpler kind of token."""
    plain = Rates({"input": Decimal("1e-6"), "output": Decimal("2e-6")}, source="table")
    used = usage(100, 10, cached_tokens=10, cache_write_tokens=20, cache_write_1h_tokens=20, reasoning_tokens=5)
    assert token_cost(used, plain) == 100 * 1000 + 10 * 2000
    assert (
        token_cost(used, replace(plain, prices={**plain.prices, "cache_write": Decimal("5e-6")}))
        == 80 * 1000 + 20 * 5000 + 10 * 2000
    )


@pytest.mark.parametrize(
    ("usd", "nano"),
    [("5E-10", 0), ("1.5E-9", 2), ("2.5E-9", 2), ("2.51E-9", 3), ("12345678.9", 12_345_678_900_000_000)],
)
def test_a_fraction_of_a_nano_dollar_is_rounded_half_to_even(usd: str, nano: int) -> None:
    """Nano-dollars are whole, and halves do not drift."""
    assert to_nano(Decimal(usd)) == nano


@given(st.integers(0, 2**53 // 1000))
def test_dollars_and_nano_dollars_convert_back_and_forth(nano: int) -> None:
    """An event that repeats a response's cost means the same nano-dollars."""
    assert to_nano(to_usd(nano)) == nano
    assert math.isnan(to_usd(None))


def test_the_sum_is_rounded_once() -> None:
    """Kinds of tokens that cost half a nano-dollar each are added up before they are rounded."""
    half = Rates(dict.fromkeys(("input", "output", "cached"), Decimal("5e-10")), source="table")
    assert token_cost(usage(2, 1, cached_tokens=1), half) == 2  # 1.5, where each rounded alone would be 0
    with localcontext() as context:
        context.rounding = "ROUND_UP"
        assert token_cost(usage(1, 1), half) == 1


def test_a_price_for_the_request_itself_is_added_once() -> None:
    """Providers that charge for each request have that in the price and in the bound."""
    rates = rates_of({**ENTRY, "input_cost_per_request": Decimal("0.005")})
    assert token_cost(usage(1, 0), rates) == 5_000_000 + 3000
    assert rates_of({**ENTRY, "input_cost_per_request": 1}, service_tier="priority").prices["request"] == 1


@pytest.mark.parametrize(
    ("entry", "prompt", "rate"),
    [
        ({"tiered_pricing": [{"range": [0, 10], "input_cost_per_token": 1, "output_cost_per_token": 2},
                             {"range": [10, 20], "input_cost_per_token": 3, "output_cost_per_token": 4}]}, 10, 1),
        ({"tiered_pricing": [{"range": [0, 10], "input_cost_per_token": 1, "output_cost_per_token": 2},
                             {"range": [10, 20], "input_cost_per_token": 3, "output_cost_per_token": 4}]}, 11, 3),
        ({"input_cost_per_token": 1, "output_cost_per_token": 1, "input_cost_per_token_above_256k_tokens": 7,
          "output_cost_per_token_above_256k_tokens": 7, "input_cost_per_token_above_32k_tokens": 5,
          "output_cost_per_token_above_32k_tokens": 5}, 256_001, 7),
        ({"input_cost_per_token": 1, "output_cost_per_token": 1, "input_cost_per_token_above_256k_tokens": 7,
          "output_cost_per_token_above_256k_tokens": 7, "input_cost_per_token_above_32k_tokens": 5,
          "output_cost_per_token_above_32k_tokens": 5}, 32_001, 5),
    ],
)  # fmt: skip
def test_the_whole_request_has_the_rate_of_its_tier(entry: dict[str, Any], prompt: int, rate: int) -> None:
    """All tokens of a request are charged at the rate of the prompt's size (Alibaba's and Google's rule)."""
    assert token_cost(usage(prompt, 0), rates_of(entry)) == prompt * rate * 10**9


def test_a_service_tier_has_its_own_prices_or_none() -> None:
    """A tier without a price, for the whole or for long prompts only, is unknown and not the standard price."""
    priority = rates_of(ENTRY, service_tier="priority")
    assert token_cost(usage(10, 10), priority) == 10 * 6000 + 10 * 30000
    assert token_cost(usage(200_001, 10), priority) is None
    assert rates_of(ENTRY, service_tier="flex") == UNKNOWN
    assert rates_of(ENTRY, service_tier="default") == rates_of(ENTRY, service_tier="auto") == RATES
    above = {f"{way}_cost_per_token_above_200k_tokens_priority": Decimal(1) for way in ("input", "output")}
    assert token_cost(usage(200_001, 0), rates_of({**ENTRY, **above}, service_tier="priority")) == 200_001 * 10**9


def test_deepseeks_name_for_cached_tokens_is_understood() -> None:
    """The table calls the cached rate by a second name, and a stated price of 0 stays 0."""
    entry = {"input_cost_per_token": 2, "output_cost_per_token": 3, "input_cost_per_token_cache_hit": 1}
    assert rates_of(entry).prices["cached"] == 1
    assert rates_of({**entry, "cache_read_input_token_cost": 0}).prices["cached"] == 0


def test_unknown_free_and_zero_are_three_things() -> None:
    """No price is unknown, 0 in LiteLLM's table mostly too, and free only what somebody called free."""
    zero = {"input_cost_per_token": Decimal(0), "output_cost_per_token": Decimal(0)}
    assert rates_of({}) == rates_of(zero) == UNKNOWN
    assert rates_of(zero, zero_is_free=True) == FREE
    for used in (usage(5, 5), usage(0, 0), Usage()):
        assert token_cost(used, UNKNOWN) is None
        assert token_cost(used, FREE) == 0
        assert price(Answer("", None, used), FREE) == (0, "free", False)
        assert price(Answer("", None, used), UNKNOWN) == (None, "unknown", False)


def test_what_the_provider_charged_wins() -> None:
    """A cost that the provider reports is recorded instead of ours, 0 included, whatever else is unknown."""
    for reported in ("0.0123", "0"):
        answer = Answer("", None, usage(5, 5), reported_cost=Decimal(reported))
        assert price(answer, RATES) == price(answer, UNKNOWN) == (to_nano(Decimal(reported)), "provider", False)


def test_the_source_of_a_cost_is_told() -> None:
    """Whether a cost rests on counts of our own, on the table or on a caller's config stands beside it."""
    assert price(Answer("", None, usage(1, 0, source="provider")), RATES) == (3000, "table", False)
    assert price(Answer("", None, usage(1, 0, source="counted")), RATES) == (3000, "counted", False)
    config = ModelConfig(name="m", provider="p", cost_per_1k_input_tokens=0.5, cost_per_1k_output_tokens=1)
    assert price(Answer("", None, usage(1, 1)), rates_of_config(config)) == (1_500_000, "config", False)


@pytest.mark.parametrize(
    ("given_prices", "rates"),
    [
        ({}, UNKNOWN),
        ({"cost_per_1k_input_tokens": 0, "cost_per_1k_output_tokens": 0}, FREE),
        ({"cost_per_image": 0}, FREE),
        ({"cost_per_1k_input_tokens": 0}, Rates({"input": Decimal(0)}, source="config")),
        ({"cost_per_1k_output_tokens": 0}, Rates({"output": Decimal(0)}, source="config")),
        ({"cost_per_1k_output_tokens": "0.1"}, Rates({"output": Decimal("0.0001")}, source="config")),
        ({"cost_per_image": "0.04"}, Rates({"image": Decimal("0.04")}, source="config")),
    ],
)
def test_a_callers_own_prices(given_prices: dict[str, Any], rates: Rates) -> None:
    """What a ModelConfig leaves out is unknown, even beside a price of 0; only all zeros are free."""
    assert rates_of_config(ModelConfig(name="m", provider="p", **given_prices)) == rates


@pytest.mark.parametrize("bad", [-1, math.nan, math.inf, "many"])
def test_a_price_that_is_none_is_refused(bad: Any) -> None:
    """A ModelConfig cannot have a negative or endless price."""
    with pytest.raises(ValidationError):
        ModelConfig(name="m", provider="p", cost_per_1k_input_tokens=bad)


prices = st.integers(0, 10**6).map(lambda tenths: Decimal(tenths) / 10**10)


@st.composite
def rates_with(draw: Callable[[Any], Any], *, tiers: bool = True) -> Rates:
    """Rates as the table can have them: above a size they may be lower, higher or without some of their prices."""
    further = dict.fromkeys(("cached", "cache_write", "cache_write_1h", "reasoning", "request"), prices)
    base = draw(st.fixed_dictionaries({"input": prices, "output": prices}, optional=further))
    if not tiers:
        return Rates(base, source="table")
    sizes = sorted(draw(st.sets(st.integers(0, 2000), max_size=3)))
    own = dict.fromkeys(("input", "output", "cached", "cache_write", "reasoning"), prices)
    above = tuple((size, draw(st.fixed_dictionaries({}, optional=own))) for size in sizes)
    return Rates(base, above, source="table")


@st.composite
def usages(draw: Callable[[Any], Any], prompt: int = 3000, completion: int = 3000) -> Usage:
    """Counts of a request that had at most so many tokens."""
    used_prompt, used_completion = draw(st.integers(0, prompt)), draw(st.integers(0, completion))
    cached = draw(st.integers(0, used_prompt))
    written = draw(st.none() | st.integers(0, used_prompt - cached))
    return Usage(
        prompt_tokens=used_prompt,
        completion_tokens=used_completion,
        cached_tokens=draw(st.sampled_from([None, cached])),
        cache_write_tokens=written,
        cache_write_1h_tokens=draw(st.none() | st.integers(0, written or 0)),
        reasoning_tokens=draw(st.none() | st.integers(0, used_completion)),
    )


def add(one: Usage, other: Usage) -> Usage:
    """The counts of both together; what neither says is 0."""
    names = [field.name for field in fields(Usage) if field.name not in ("source", "units", "others")]
    counts: dict[str, Any] = {name: (getattr(one, name) or 0) + (getattr(other, name) or 0) for name in names}
    return replace(one, **counts)


@given(rates_with(tiers=False), usages(), usages())
def test_costs_add_up(rates: Rates, one: Usage, other: Usage) -> None:
    """Without tiers, two requests cost what one with all their tokens costs, to the one rounding of each."""
    rates = replace(rates, prices={unit: price for unit, price in rates.prices.items() if unit != "request"})
    apart = [token_cost(part, rates) for part in (one, other)]
    together = token_cost(add(one, other), rates)
    assert None not in (*apart, together)
    assert abs(sum(part or 0 for part in apart) - (together or 0)) <= 1


@given(rates_with(tiers=False), usages(), st.integers(0, 50), st.integers(0, 50))
def test_more_tokens_never_cost_less(rates: Rates, used: Usage, prompt: int, completion: int) -> None:
    """Each further token costs something or nothing."""
    less, more = token_cost(used, rates), token_cost(add(used, usage(prompt, completion)), rates)
    assert less is not None
    assert more is not None
    assert more >= less


@given(rates_with(), usages())
def test_a_cost_is_the_exact_sum_rounded_once(rates: Rates, used: Usage) -> None:
    """The figure is what fractions give, at the highest tier below the prompt."""
    above = [prices for size, prices in rates.above if (used.prompt_tokens or 0) > size]
    at = above[-1] if above else rates.prices
    cost = token_cost(used, rates)
    assume(cost is not None)
    write, hour = used.cache_write_tokens or 0, min(used.cache_write_1h_tokens or 0, used.cache_write_tokens or 0)
    cached, thought = used.cached_tokens or 0, used.reasoning_tokens or 0
    zero = Decimal(0)
    plain, answer = at.get("input", zero), at.get("output", zero)
    write_rate = at.get("cache_write", plain)
    exact = (
        ((used.prompt_tokens or 0) - cached - write) * plain
        + cached * at.get("cached", plain)
        + (write - hour) * write_rate
        + hour * at.get("cache_write_1h", write_rate)
        + ((used.completion_tokens or 0) - thought) * answer
        + thought * at.get("reasoning", answer)
        + rates.prices.get("request", zero)
    )
    assert cost == int((exact * 10**9).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


contents = st.text(st.characters(codec="utf-8"), max_size=60)
parts = contents | st.lists(contents.map(lambda text: {"type": "text", "text": text}), max_size=3)
messages = st.lists(parts.map(lambda content: {"role": "user", "content": content}), min_size=1, max_size=4)
params = st.fixed_dictionaries(
    {},
    optional={
        "max_tokens": st.integers(1, 500),
        "max_completion_tokens": st.integers(1, 500),
        "n": st.integers(1, 4),
        "tools": st.just([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]),
        "response_format": st.just({"type": "json_schema", "json_schema": {"name": "s", "schema": {}}}),
    },
)


def candidate(rates: Rates, **more: Any) -> Candidate:
    return Candidate("m", "m", "p", "m", rates, **{"max_output_tokens": 700, "max_input_tokens": 5000, **more})


def request(messages: list[dict[str, Any]], params: Mapping[str, Any]) -> Request:
    return Request(TaskType.CHAT_COMPLETION, messages, params)


@given(rates_with(), messages, params, st.data())
def test_no_request_costs_more_than_its_bound(
    rates: Rates, messages: list[dict[str, Any]], params: dict[str, Any], data: st.DataObject
) -> None:
    """The money rule: whatever a provider counts for a request within its limits, it costs at most the hold."""
    asked = request(messages, params)
    bound = upper_bound(candidate(rates), asked)
    output = max(params.get("max_tokens", 0), params.get("max_completion_tokens", 0)) or 700
    used = data.draw(usages(max_prompt_tokens(asked), output * params.get("n", 1)))
    cost = token_cost(used, rates)
    if bound is None:
        reachable = [prices for size, prices in rates.above if size < max_prompt_tokens(asked)]
        assert any("input" not in prices or "output" not in prices for prices in reachable)
    else:
        assert cost is not None
        assert cost <= bound


def test_a_bound_is_reached_by_the_most_expensive_answer() -> None:
    """The bound is the most expensive kind of input and of output for all that is allowed, and not more."""
    asked = request([{"role": "user", "content": "Hello"}], {"max_tokens": 100, "n": 3})
    prompt = max_prompt_tokens(asked)
    assert upper_bound(candidate(RATES), asked) == prompt * 6000 + 300 * 20000  # No tier of 200k tokens in reach.
    assert upper_bound(candidate(FREE), asked) == 0


def test_a_bound_takes_every_tier_that_is_in_reach_and_the_larger_limit() -> None:
    """A tier counts as soon as one prompt within the bound is above it; of two limits a provider may obey either."""
    asked = request([{"role": "user", "content": "Hello"}], {"max_tokens": 100, "max_completion_tokens": 30})
    prompt = max_prompt_tokens(asked)
    high = {**RATES.above[0][1], "input": Decimal(1), "output": Decimal(2)}
    in_reach = replace(RATES, above=((prompt - 1, high),))
    assert upper_bound(candidate(in_reach), asked) == (prompt * 1 + 100 * 2) * 10**9
    out_of_reach = replace(RATES, above=((prompt, high),))
    assert upper_bound(candidate(out_of_reach), asked) == prompt * 6000 + 100 * 20000


@pytest.mark.parametrize(
    ("rates", "params", "more"),
    [
        (UNKNOWN, {"max_tokens": 5}, {}),
        (replace(RATES, prices={"input": Decimal(1)}), {"max_tokens": 5}, {}),
        (RATES, {}, {"max_output_tokens": None}),
        (RATES, {"n": 0}, {}),
        (RATES, {"n": -3}, {}),
        (RATES, {"n": "7"}, {}),
    ],
)
def test_without_a_limit_or_a_price_there_is_no_bound(
    rates: Rates, params: dict[str, Any], more: dict[str, Any]
) -> None:
    """A bound that rests on a guess is none."""
    assert upper_bound(candidate(rates, **more), request([{"role": "user", "content": "Hi"}], params)) is None


@pytest.mark.parametrize("limit", [-5, 0, "10", 2.5, None])
def test_a_limit_that_is_none_leaves_the_models_own(limit: Any) -> None:
    """A provider may ignore a limit that is no number of tokens, so the model's maximum holds."""
    hello = [{"role": "user", "content": "Hi"}]
    for name in ("max_tokens", "max_completion_tokens"):
        assert upper_bound(candidate(RATES), request(hello, {name: limit})) == upper_bound(
            candidate(RATES), request(hello, {})
        )


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://e.com/a.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGODlhAQABAAAAACw="}},
        {"type": "file", "file": {"file_id": "file-1"}},
    ],
    ids=lambda part: part["type"],
)
def test_what_is_no_text_is_bounded_by_the_models_window(part: dict[str, Any]) -> None:
    """The size of an image's URL says nothing about its tokens; audio, which has no price here, has no bound at all."""
    asked = request([{"role": "user", "content": [{"type": "text", "text": "Hi"}, part]}], {"max_tokens": 1})
    assert upper_bound(candidate(RATES), asked) == 5000 * 6000 + 20000
    assert upper_bound(candidate(RATES, max_input_tokens=None), asked) is None
    audio = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
    heard = request([{"role": "user", "content": [part, audio]}], {"max_tokens": 1})
    assert upper_bound(candidate(RATES), heard) is None


def test_the_bound_of_a_prompt_covers_all_that_is_sent() -> None:
    """Tools and schemas are input too, as is what a provider adds to explain them (346 tokens at Anthropic)."""
    hello = [{"role": "user", "content": "Hi"}]
    plain = max_prompt_tokens(request(hello, {}))
    tools = [{"type": "function", "function": {"name": "f" * 500}}]
    assert max_prompt_tokens(request(hello, {"tools": tools})) >= plain + 500 + 346
    assert max_prompt_tokens(request(hello, {"response_format": {"type": "json_object"}})) >= plain + 346
    assert max_prompt_tokens(request([{"role": "user", "content": "é" * 100}], {})) >= plain + 2 * 98
    assert max_prompt_tokens(request(hello * 10, {})) >= 10 * len("Hi") + 10 * 4
