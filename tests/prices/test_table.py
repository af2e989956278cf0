"""Where prices come from: LiteLLM's table, our own additions, and the user's file that wins over both."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from shared.config import Settings, load_settings, quiet_litellm
from shared.errors import ConfigurationError
from shared.models import catalogue
from shared.models.catalogue import Catalogue, resolve
from shared.prices.cost import token_cost
from shared.prices.table import UNKNOWN, model_facts, price_table, rates_of, table_version
from shared.scope import Scope
from shared.types import Rates, Usage

# The day on which somebody last read the providers' pages and brought catalogue.json up to date.
REVIEWED = date(2026, 11, 24)
RETIRED = sorted(model_facts()["retired"].items())
LiteLLMCost = Callable[..., float]

# Asking LiteLLM about these starts a login at GitHub or OpenAI.
_LOGINS = ("github_copilot/", "chatgpt/")
# Where LiteLLM's calculator and ours differ, and why ours is kept.
_DIFFERENT = {
    # LiteLLM slices a prompt over the tiers; Alibaba and Volcengine charge the whole request at the prompt's tier
    # (help.aliyun.com, model pricing; BerriAI/litellm#34729).
    "dashscope/": "tiers",
    "volcengine/": "tiers",
    # LiteLLM leaves the price per request out.
    "perplexity/pplx-": "request",
    "perplexity/sonar-medium-online": "request",
    "perplexity/sonar-small-online": "request",
    # LiteLLM leaves the table's price of cached tokens out.
    "fireworks_ai/": "cached",
    # LiteLLM adds the price of the router to that of a model of that name.
    "azure_ai/model_router": "router",
    # The same name at two providers: bare Gemini names are Google AI Studio's here, Vertex AI's in LiteLLM.
    "gemini-2.0-flash-001": "provider",
    # LiteLLM takes the price of a region for the bare name.
    "moonshotai.kimi-k2.5": "region",
}


@pytest.fixture(scope="module")
def litellm_cost() -> Iterator[LiteLLMCost]:
    """LiteLLM's own calculator, over the table that it ships."""
    with warnings.catch_warnings(), quiet_litellm():
        warnings.simplefilter("ignore")
        import litellm
        from litellm.types.utils import (
            CacheCreationTokenDetails,
            CompletionTokensDetailsWrapper,
            PromptTokensDetailsWrapper,
            Usage as LiteLLMUsage,
        )

    def cost(name: str, used: Usage) -> float:
        prompt, completion = used.prompt_tokens or 0, used.completion_tokens or 0
        written, hour = used.cache_write_tokens or 0, used.cache_write_1h_tokens or 0
        thought = used.reasoning_tokens or 0
        details = PromptTokensDetailsWrapper(  # type: ignore[no-untyped-call]
            cached_tokens=used.cached_tokens or 0,
            cache_creation_tokens=written or None,
            cache_creation_token_details=CacheCreationTokenDetails(
                ephemeral_5m_input_tokens=written - hour, ephemeral_1h_input_tokens=hour
            ),
        )
        of_completion = CompletionTokensDetailsWrapper(reasoning_tokens=thought, text_tokens=completion - thought)
        both = litellm.cost_per_token(
            model=name,
            usage_object=LiteLLMUsage(
                prompt_tokens=prompt,
                completion_tokens=completion,
                total_tokens=prompt + completion,
                prompt_tokens_details=details,
                completion_tokens_details=of_completion if thought else None,
            ),
        )
        return sum(both)

    before = litellm.suppress_debug_info
    litellm.suppress_debug_info = True
    yield cost
    litellm.suppress_debug_info = before


def compared() -> list[str]:
    """A tenth of the table's chat models, and all that we suggest or upgrade to."""
    ours = [*model_facts()["suggested"].values(), *(facts["successor"] for _, facts in RETIRED)]
    names = [*catalogue._chat_models()[::10], *ours, "openai/gpt-5.5", "gemini/gemini-2.5-pro", "xai/grok-4.3"]
    skipped = (*_LOGINS, *_DIFFERENT)
    return sorted({name for name in names if not name.startswith(skipped) and name not in model_facts()["prices"]})


CASES: dict[str, tuple[Usage, Callable[[Rates], bool]]] = {
    "plain": (Usage(1000, 500), lambda _: True),
    "long": (Usage(300_000, 500), lambda _: True),
    "cached": (Usage(1000, 500, cached_tokens=400), lambda rates: rates.cached is not None),
    "long and cached": (
        Usage(300_000, 500, cached_tokens=400),
        # LiteLLM takes the small prompt's price of cached tokens for a long one that states none.
        lambda rates: rates.cached is not None and all(tier.cached is not None for _, tier in rates.tiers),
    ),
    "reasoning": (Usage(1000, 500, reasoning_tokens=300), lambda _: True),
    "cache write": (Usage(1000, 500, cache_write_tokens=300), lambda rates: rates.cache_write is not None),
    "cache write for an hour": (
        Usage(1000, 500, cache_write_tokens=300, cache_write_1h_tokens=100),
        lambda rates: rates.cache_write_1h is not None,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_prices_agree_with_litellms_to_the_nano_dollar(case: str, litellm_cost: LiteLLMCost) -> None:
    """Our arithmetic over LiteLLM's table gives what LiteLLM's own gives, but for the differences listed above."""
    used, stated = CASES[case]
    settings, scope, catalogue = load_settings(), Scope(), Catalogue({}, {})
    wrong, right = {}, 0
    for name in compared():
        candidate = resolve(name, catalogue=catalogue, settings=settings, scope=scope)
        ours = token_cost(used, candidate.rates)
        if ours is None or candidate.note or not stated(candidate.rates):
            continue
        try:
            theirs = litellm_cost(name, used) * 1e9
        except Exception:  # noqa: BLE001, S112 - LiteLLM raises bare Exceptions for names it cannot place
            continue
        if abs(ours - theirs) > 1:
            wrong[name] = ours, theirs
        right += 1
    assert not wrong
    assert right >= (5 if case == "cache write for an hour" else 20)


def test_most_chat_models_of_the_table_are_priced() -> None:
    """The table is read as it is meant: what it prices is priced here, and little is unknown."""
    names = catalogue._chat_models()
    unknown = [name for name in names if rates_of(catalogue._table()[name]).source == "unknown"]
    assert len(names) > 1500
    assert len(unknown) < len(names) * 0.1


def test_every_price_of_the_table_can_be_read() -> None:
    """No entry of the table breaks the reading of it, for any service tier."""
    for entry in price_table().values():
        for tier in (None, "priority", "flex"):
            rates = rates_of(entry, service_tier=tier)
            assert rates.source in ("table", "unknown")
            assert [size for size, _ in rates.tiers] == sorted(size for size, _ in rates.tiers)


def test_the_version_of_the_table_is_recorded() -> None:
    """Each price says which table it is from."""
    assert table_version().startswith("litellm:1.")
    assert rates_of({"input_cost_per_token": 1, "output_cost_per_token": 1}).version == table_version()


def rates(name: str, prices: Any = None, *, path: Path = Path("prices.json")) -> Rates:
    """The rates of a model with these prices in the user's file."""
    if prices is not None:
        path.write_text(prices if isinstance(prices, str) else json.dumps(prices), encoding="utf-8")
    settings = Settings(prices=path)
    return resolve(name, catalogue=Catalogue.load(settings), settings=settings, scope=Scope()).rates


@pytest.mark.parametrize("key", ["openai/gpt-5.4-mini", "gpt-5.4-mini"])
def test_the_users_own_prices_win(key: str) -> None:
    """A price in AGENTSWARM_PRICES is used instead of the table's, under the model's full or bare name."""
    own = rates("openai/gpt-5.4-mini", {key: {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}})
    assert token_cost(Usage(10, 10), own) == 10 * 1000 + 10 * 2000
    assert (own.version or "").startswith("AGENTSWARM_PRICES+")
    assert rates("openai/gpt-5.4-nano").version == table_version()


def test_a_price_of_zero_in_the_users_file_is_free() -> None:
    """A person who writes 0 means it."""
    own = rates("openai/my-own", {"openai/my-own": {"input_cost_per_token": 0, "output_cost_per_token": 0.0}})
    assert own.source == "free"


def test_a_changed_file_is_read_again_and_recorded_as_another() -> None:
    """New prices count from the next client on, and are told apart from the old in the ledger."""
    entry = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}
    before = rates("openai/gpt-5.4-mini", {"gpt-5.4-mini": entry})
    Path("prices.json").write_text(json.dumps({"gpt-5.4-mini": {**entry, "input_cost_per_token": 5e-6}}))
    os.utime("prices.json", ns=(1, 1))
    after = rates("openai/gpt-5.4-mini")
    assert token_cost(Usage(1, 0), after) == 5000
    assert before.version != after.version


@pytest.mark.parametrize(
    ("prices", "message"),
    [
        ("not json", r"cannot be read \(JSONDecodeError\)"),
        ("[]", r"cannot be read \(ValueError\)"),
        ('{"m": 1}', r"cannot be read \(ValueError\)"),
        ('{"m": {"input_cost_per_token": "1e-6"}}', "no price as input_cost_per_token of m"),
        ('{"m": {"input_cost_per_token": -1}}', "no price as input_cost_per_token of m"),
        ('{"m": {"output_cost_per_token": true}}', "no price as output_cost_per_token of m"),
        ('{"m": {"output_cost_per_token": NaN}}', "no price as output_cost_per_token of m"),
        ('{"m": {"cache_read_input_token_cost": Infinity}}', "no price as cache_read_input_token_cost of m"),
        ('{"m": {"tiered_pricing": [{"range": [0], "input_cost_per_token": -1}]}}', "no price as input_cost_per_token"),
        ('{"m": {"tiered_pricing": 7}}', "tiered_pricing of m"),
        ('{"m": {"tiered_pricing": [7]}}', "tiered_pricing of m"),
        ('{"m": {"tiered_pricing": [{"range": ["a"]}]}}', "tiered_pricing of m"),
    ],
)
def test_a_file_that_holds_no_prices_is_a_configuration_error(prices: str, message: str) -> None:
    """A wrong price is refused by name before any call is made, not found out by a crash in one."""
    with pytest.raises(ConfigurationError, match=message):
        rates("openai/gpt-5.4-mini", prices)


@pytest.mark.parametrize("path", ["missing.json", "."])
def test_a_missing_file_is_a_configuration_error(path: str) -> None:
    """Prices that were asked for and cannot be read are not silently the table's."""
    with pytest.raises(ConfigurationError, match="AGENTSWARM_PRICES cannot be read"):
        rates("openai/gpt-5.4-mini", path=Path(path))


def entry_of(name: str) -> dict[str, Any]:
    """What the tables say of a model."""
    provider, wire_model, entry = catalogue.look_up(name)
    assert entry is not None, f"{name} is in no table"
    assert provider == name.split("/", 1)[0]
    assert wire_model == name.split("/", 1)[1]
    return dict(entry)


def alive(name: str) -> bool:
    """Whether nobody has announced an end of the model that has come by the day of the review."""
    day = entry_of(name).get("deprecation_date")
    return name not in model_facts()["retired"] and (day is None or date.fromisoformat(day) > REVIEWED)


@pytest.mark.parametrize(("name", "facts"), RETIRED, ids=[name for name, _ in RETIRED])
def test_a_retired_model_has_a_day_a_source_and_a_successor_that_lives(name: str, facts: dict[str, Any]) -> None:
    """Each retired name has a day (or null where nobody could verify it), a source with its own, and a living heir."""
    assert set(facts) == {"date", "successor", "source"}
    assert "/" in name
    assert facts["date"] is None or date.fromisoformat(facts["date"]).isoformat() == facts["date"]
    assert "2026-" in facts["source"]
    assert alive(facts["successor"])
    rates = rates_of(entry_of(facts["successor"]))
    assert rates.input is not None


def test_suggestions_and_defaults_are_alive_and_priced() -> None:
    """What we tell people to use exists, can be called and has a price."""
    named = {**model_facts()["suggested"], "default": load_settings().default_text_model}
    for name in named.values():
        assert alive(name), name
        assert entry_of(name)["mode"] == "chat"
        assert rates_of(entry_of(name)) != UNKNOWN
    assert all(name.startswith(f"{provider}/") for provider, name in model_facts()["suggested"].items())


def test_our_own_prices_have_a_source_and_stand_in_no_other_table() -> None:
    """A price of ours says where and when it was read, and goes when LiteLLM has its own."""
    for name, entry in model_facts()["prices"].items():
        assert "2026" in entry["source"]
        assert name not in price_table(), f"LiteLLM's table has {name} now"
        assert entry["litellm_provider"] in model_facts()["suggested"]
        assert rates_of(entry) != UNKNOWN
