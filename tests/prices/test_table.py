"""The price table that this package brings, and the user's file that wins over it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from shared.config import Settings, load_settings, quiet_litellm
from shared.errors import ConfigurationError
from shared.models import catalogue
from shared.models.catalogue import Catalogue, resolve
from shared.models.names import model_facts
from shared.prices.bound import upper_bound
from shared.prices.cost import token_cost
from shared.prices.litellm_format import from_litellm
from shared.prices.rates import UNKNOWN, rates_of
from shared.prices.table import FORMAT, price_table
from shared.scope import Scope
from shared.types import Rates, Request, TaskType, Usage
from tests.support.paths import ROOT

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
    # LiteLLM takes the price of a region for the bare name.
    "moonshotai.kimi-k2.5": "region",
}


@cache
def litellms_table() -> Mapping[str, Mapping[str, Any]]:
    """The table of the LiteLLM that is installed, with exact decimals."""
    spec = importlib.util.find_spec("litellm")
    assert spec is not None
    path = Path(str(spec.origin)).parent / "model_prices_and_context_window_backup.json"
    table: dict[str, Mapping[str, Any]] = json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    return table


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
    """A tenth of its chat models."""
    names = [name for name, entry in litellms_table().items() if entry.get("mode") == "chat"][::10]
    return sorted(name for name in names if not name.startswith((*_LOGINS, *_DIFFERENT)))


def all_state(rates: Rates, unit: Any) -> bool:
    """Whether a price of this unit is stated for prompts of every size."""
    return unit in rates.prices and all(unit in prices for _, prices in rates.above)


CASES: dict[str, tuple[Usage, Callable[[Rates], bool]]] = {
    "plain": (Usage(1000, 500), lambda _: True),
    "long": (Usage(300_000, 500), lambda _: True),
    "cached": (Usage(1000, 500, cached_tokens=400), lambda rates: "cached" in rates.prices),
    # LiteLLM takes the small prompt's price of cached tokens for a long one that states none.
    "long and cached": (Usage(300_000, 500, cached_tokens=400), lambda rates: all_state(rates, "cached")),
    "reasoning": (Usage(1000, 500, reasoning_tokens=300), lambda _: True),
    "cache write": (Usage(1000, 500, cache_write_tokens=300), lambda rates: "cache_write" in rates.prices),
    "cache write for an hour": (
        Usage(1000, 500, cache_write_tokens=300, cache_write_1h_tokens=100),
        lambda rates: "cache_write_1h" in rates.prices,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_our_arithmetic_agrees_with_litellms_to_the_nano_dollar(case: str, litellm_cost: LiteLLMCost) -> None:
    """Over LiteLLM's table our arithmetic gives what LiteLLM's own gives, but for the differences listed above."""
    used, stated = CASES[case]
    wrong, right = {}, 0
    for name in compared():
        rates = rates_of(from_litellm(litellms_table()[name]))
        ours = token_cost(used, rates)
        if ours is None or not stated(rates):
            continue
        try:
            theirs = litellm_cost(name, used) * 1e9
        except Exception:  # noqa: BLE001, S112 - LiteLLM raises bare Exceptions for names it cannot place
            continue
        if abs(ours - theirs) > 1:
            wrong[name] = ours, theirs
        right += 1
    assert not wrong
    assert right >= (3 if case == "cache write for an hour" else 15)


def test_most_chat_models_of_the_table_are_priced() -> None:
    """The table is read as it is meant: little in it is unknown."""
    table = price_table()
    names = table.in_mode("chat")
    unknown = [name for name in names if rates_of(table[name]).source == "unknown"]
    assert len(names) > 4000
    assert len(unknown) < len(names) * 0.1


def test_every_price_of_the_table_can_be_read() -> None:
    """No entry of the table breaks the reading of it, for any service tier, and held is never less than billed."""
    table = price_table()
    for entry in (table[name] for name in table):
        for tier in (None, "priority", "flex"):
            rates = rates_of(entry, service_tier=tier)
            assert rates.source in ("table", "unknown", "free")
            assert [size for size, _ in rates.above] == sorted(size for size, _ in rates.above)
            held = rates.held or rates
            assert all(held.prices[unit] >= price for unit, price in rates.prices.items())


def test_the_table_is_well_formed() -> None:
    """One model a line, sorted, each of the format that a user's file must have too, and each alias leads to one."""
    from shared.prices.table import _Entry

    table = price_table()
    assert list(table) == sorted(table)
    assert set(table.sources) == {"litellm", "genai-prices"}
    for name in table:
        entry = table[name]
        if "alias" in entry:
            assert "alias" not in table[entry["alias"]]
            continue
        _Entry.model_validate(entry)
        assert name.partition("/")[0] in table.providers, name
        assert date.fromisoformat(entry.get("retires", "2026-01-01"))
        assert entry.get("successor", name) in table


def test_a_price_needs_neither_litellm_nor_the_whole_table() -> None:
    """A price is found without importing LiteLLM, and without parsing the other 5,000 lines."""
    code = (
        "import sys\n"
        "from shared.prices import price_table, rates_of\n"
        "from shared.prices.table import _entry\n"
        "rates_of(price_table()['openai/gpt-5.4-mini'])\n"
        "print('litellm' in sys.modules, _entry.cache_info().currsize)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == ["False", "1"]


def test_the_version_of_the_table_is_recorded() -> None:
    """Each price says which table it is from."""
    assert date.fromisoformat(price_table().date)
    assert rates_of(price_table()["openai/gpt-5.4-mini"]).version == f"prices:{price_table().date}"


HOURS = {
    "prices": {"default": {"input": "4e-6", "output": "8e-6"}, "flex": {"input": "1e-6", "output": "2e-6"}},
    "times": [{"days": [1, 5], "hours": ["10:00-12:00", "22:00-00:00"], "prices": {"input": "2e-6"}}],
}


@pytest.mark.parametrize(
    ("now", "price"),
    [
        ("2026-11-23T09:59", 4000),
        ("2026-11-23T10:00", 2000),
        ("2026-11-23T11:59", 2000),
        ("2026-11-23T12:00", 4000),
        ("2026-11-27T23:59", 2000),
        ("2026-11-24T10:00", 4000),
    ],
)
def test_the_hour_decides_the_price_and_the_most_expensive_is_held(now: str, price: int) -> None:
    """Where a price depends on the hour (UTC), that of the request is billed; a bound holds at any hour."""
    rates = rates_of(HOURS, now=datetime.fromisoformat(now).replace(tzinfo=UTC))
    assert token_cost(Usage(1, 0), rates) == price
    assert (rates.held or rates).prices["input"] == Decimal("4e-6")
    flex = rates_of(HOURS, service_tier="flex", now=datetime.fromisoformat(now).replace(tzinfo=UTC))
    assert token_cost(Usage(1, 0), flex) == 1000


def test_an_announced_price_holds_from_its_day_on() -> None:
    """A change that a source announces is used from its day on, and not before; what it does not name is unknown."""
    entry = {
        "prices": {"default": {"input": "1e-6", "output": "2e-6"}, "flex": {"input": "5e-7", "output": "1e-6"}},
        "above": {"10": {"default": {"input": "3e-6", "output": "3e-6"}}},
        "changes": [{"from": "2026-12-01", "above": {}, "prices": {"default": {"input": "7e-6", "output": "9e-6"}}}],
    }
    before, after = (datetime(2026, month, day, tzinfo=UTC) for month, day in ((11, 30), (12, 1)))
    assert token_cost(Usage(11, 0), rates_of(entry, now=before)) == 33_000
    assert token_cost(Usage(11, 0), rates_of(entry, now=after)) == 77_000
    assert rates_of(entry, service_tier="flex", now=after) == UNKNOWN


def test_where_the_sources_differ_the_more_expensive_is_held() -> None:
    """A disputed price is billed as the table says and held at the highest figure, at each size of the prompt."""
    entry = {
        "prices": {"default": {"input": "1e-6", "output": "2e-6"}},
        "above": {"5000": {"default": {"input": "3e-6", "output": "4e-6"}}},
        "disputed": {
            "default": {"input": {"one": "1e-6", "other": "5e-6"}},
            "default>5000": {"output": {"one": "4e-6", "other": "6e-6"}},
        },
    }
    rates = rates_of(entry)
    assert token_cost(Usage(10, 10), rates) == 10 * 1000 + 10 * 2000
    assert rates.held is not None
    assert (rates.held.prices["input"], rates.held.above[0][1]["output"]) == (Decimal("5e-6"), Decimal("6e-6"))


# The user's own prices


def candidate(name: str, prices: Any = None, *, path: Path = Path("prices.json")) -> Any:
    """A model, with these prices in the user's file."""
    if prices is not None:
        path.write_text(prices if isinstance(prices, str) else json.dumps(prices), encoding="utf-8")
    settings = Settings(prices=path)
    return resolve(name, catalogue=Catalogue.load(settings), settings=settings, scope=Scope())


def rates(name: str, prices: Any = None, *, path: Path = Path("prices.json")) -> Rates:
    """The rates of a model with these prices in the user's file."""
    found: Rates = candidate(name, prices, path=path).rates
    return found


@pytest.mark.parametrize("key", ["openai/gpt-5.4-mini", "gpt-5.4-mini"])
def test_the_users_own_prices_win(key: str) -> None:
    """A price in AGENTSWARM_PRICES is used instead of the table's, under the model's full or bare name."""
    own = rates("openai/gpt-5.4-mini", {key: {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}})
    assert token_cost(Usage(10, 10), own) == 10 * 1000 + 10 * 2000
    assert (own.version or "").startswith("AGENTSWARM_PRICES+")
    assert rates("openai/gpt-5.4-nano").version == price_table().version


def test_the_users_file_may_have_our_format() -> None:
    """A table as `make prices` writes it is told apart by its `format`, and wins with all its tiers and sizes."""
    entry = {"prices": {"default": {"input": "1e-6", "output": "2e-6"}, "flex": {"input": "3e-6", "output": "4e-6"}}}
    table = {"format": FORMAT, "date": "2027-01-01", "models": {"openai/gpt-5.4-mini": entry}}
    assert token_cost(Usage(10, 10), rates("openai/gpt-5.4-mini", table)) == 10 * 1000 + 10 * 2000
    settings = Settings(prices=Path("prices.json"))
    flex = resolve(
        "gpt-5.4-mini", catalogue=Catalogue.load(settings), settings=settings, scope=Scope(), service_tier="flex"
    )
    assert token_cost(Usage(10, 10), flex.rates) == 10 * 3000 + 10 * 4000


def test_our_own_table_can_be_the_users_file() -> None:
    """The table of a newer release is a valid file of prices, as it is."""
    path = ROOT / "shared" / "prices" / "table.json"
    assert rates("openai/gpt-5.4-mini", path=path).prices == rates_of(price_table()["openai/gpt-5.4-mini"]).prices


@pytest.mark.parametrize("name", ["openai/gpt-99", "my-provider-model"])
def test_a_stated_price_and_limit_lift_every_refusal(name: str) -> None:
    """A model that no table knows has a price and a bound once the user's file states both."""
    entry = {
        "litellm_provider": "openai",
        "input_cost_per_token": 1e-6,
        "output_cost_per_token": 2e-6,
        "max_output_tokens": 77,
    }
    own = candidate(name, {name: entry})
    assert (own.provider, own.max_output_tokens) == ("openai", 77)
    request = Request(TaskType.CHAT_COMPLETION, [{"role": "user", "content": "Hi"}])
    bound, less = (
        upper_bound(own, request),
        upper_bound(own, Request(request.task, request.messages, {"max_tokens": 7})),
    )
    assert bound is not None
    assert less is not None
    assert bound - less == 70 * 2000


def test_a_stated_limit_leaves_the_tables_prices() -> None:
    """Who states no price keeps the table's, and who states prices keeps the table's limits and abilities."""
    known = candidate("openai/gpt-5.4-mini", {})
    limited = candidate("openai/gpt-5.4-mini", {"gpt-5.4-mini": {"max_output_tokens": 5}})
    assert (limited.max_output_tokens, limited.rates) == (5, known.rates)
    priced = candidate(
        "openai/gpt-5.4-mini", {"gpt-5.4-mini": {"input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6}}
    )
    assert (priced.max_output_tokens, priced.max_input_tokens) == (known.max_output_tokens, known.max_input_tokens)


def test_sizes_of_images_may_be_stated_as_litellm_does() -> None:
    """Names such as hd/1024-x-1792/dall-e-9 in the user's file price that size of that model."""
    table = {
        "openai/dall-e-9": {"mode": "image_generation", "litellm_provider": "openai"},
        "hd/1024-x-1792/dall-e-9": {"litellm_provider": "openai", "input_cost_per_image": 0.12},
    }
    assert rates("openai/dall-e-9", table).sizes == (("hd", "1024x1792", Decimal("0.12")),)


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


OURS = f'{{"format": "{FORMAT}", "models": {{"m": %s}}}}'


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
        ('{"format": "agentswarm-prices/9", "models": {}}', "in the format 'agentswarm-prices/9'"),
        (f'{{"format": "{FORMAT}"}}', r"cannot be read \(KeyError\)"),
        (f'{{"format": "{FORMAT}", "models": 7}}', r"cannot be read \(TypeError\)"),
        (OURS % "7", "the entry of m"),
        (OURS % '{"prices": {"default": {"input": 1}}}', "prices.default.input of m"),
        (OURS % '{"prices": {"default": {"input": "-1"}}}', "prices.default.input of m"),
        (OURS % '{"prices": {"default": {"input": "NaN"}}}', "prices.default.input of m"),
        (OURS % '{"prices": {"default": {"input": "much"}}}', "prices.default.input of m"),
        (OURS % '{"above": {"x": {}}}', "above.x"),
        (OURS % '{"max_output": "many"}', "max_output of m"),
        (OURS % '{"sizes": [["hd", "1x1"]]}', "sizes.0 of m"),
        (OURS % '{"times": [{"days": [8], "hours": [], "prices": {}}]}', "times.0.days.0 of m"),
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


# Alive


def entry_of(name: str) -> dict[str, Any]:
    """What the table says of a model."""
    provider, wire_model, entry = catalogue.look_up(name, TaskType.IMAGE_GENERATION)
    assert entry is not None, f"{name} is not in the table"
    assert provider == name.split("/", 1)[0]
    assert wire_model == name.split("/", 1)[1]
    return dict(entry)


def alive(name: str) -> bool:
    """Whether no end of the model has come by the table's day."""
    entry, table = entry_of(name), price_table()
    gone = model_facts()["retired"].get(name, {}).get("date", "9999") <= table.date
    return not gone and entry.get("retires", "9999") > table.date and "vanished" not in entry


def priced(name: str) -> bool:
    """Whether the table has a price for it."""
    return rates_of(entry_of(name)).source != "unknown"


@pytest.mark.parametrize(("name", "facts"), RETIRED, ids=[name for name, _ in RETIRED])
def test_a_retired_model_has_a_source_and_a_successor_that_lives(name: str, facts: dict[str, Any]) -> None:
    """Each retired name has a source with its own day, a day where one is verified, and a living, priced successor."""
    assert {"successor", "source"} <= set(facts) <= {"date", "successor", "source"}
    assert "/" in name
    assert "date" not in facts or date.fromisoformat(facts["date"]).isoformat() == facts["date"]
    assert "2026-" in facts["source"]
    assert alive(facts["successor"])
    assert priced(facts["successor"])


def test_suggestions_and_defaults_are_alive_and_priced() -> None:
    """What we tell people to use exists, can be called and has a price."""
    settings = load_settings()
    defaults = (settings.default_text_model, settings.default_vision_model, settings.default_image_model)
    for task in ("suggested", "suggested_vision", "suggested_images"):
        for provider, name in model_facts()[task].items():
            assert name.startswith(f"{provider}/")
            assert alive(name), name
            assert priced(name), name
            assert (entry_of(name)["mode"] == "image_generation") is (task == "suggested_images")
    assert all(alive(name) and priced(name) for name in defaults)


def test_the_hosts_default_model_is_priced_and_alive() -> None:
    """An agency-swarm agent that names no model has a bill: its default model is in the table."""
    from agency_swarm.agent.constants import FRAMEWORK_DEFAULT_MODEL

    provider, wire_model, _ = catalogue.look_up(FRAMEWORK_DEFAULT_MODEL)
    name = f"{provider}/{wire_model}"
    assert alive(name)
    assert priced(name)
    assert entry_of(name)["max_output"]


_NAMED = re.compile(r"[a-z_]+/[A-Za-z0-9][\w./:-]*\w|\b(?:gpt|claude|gemini|command|mistral|grok|dall-e)-[\w.-]*\w")


# What answered the questions that benchmarks/savings.py reads, years ago; nobody is told to call it.
_OF_THE_BENCHMARK = "gpt-4-1106-preview"


def test_every_model_named_in_readme_docs_and_examples_is_alive_and_priced() -> None:
    """What our pages tell people to call can be called and has a price, or is named as gone, with its successor."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.py")]
    named = {word: page.name for page in pages for word in _NAMED.findall(page.read_text(encoding="utf-8"))}
    del named[_OF_THE_BENCHMARK]
    table, seen = price_table(), 0
    for word, page in named.items():
        provider, wire_model, entry = catalogue.look_up(word, TaskType.IMAGE_GENERATION)
        full = f"{provider}/{wire_model}"
        if full in model_facts()["retired"] or entry is None or full not in table:
            continue
        assert alive(full), f"{page} names {word}"
        assert rates_of(entry).source != "unknown", f"{page} names {word}"
        seen += 1
    assert seen > 20
