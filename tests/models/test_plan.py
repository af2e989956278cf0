"""Planning: which models are tried, in which order, under which key, and why the others are not."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytest
import time_machine

from shared.config import Settings, load_settings
from shared.errors import (
    AllModelsFailed,
    AuthenticationError,
    ConfigurationError,
    LLMError,
    ModelNotFound,
    ModelRetired,
)
from shared.models import catalogue
from shared.models.catalogue import Catalogue, usable_models
from shared.models.names import model_facts
from shared.models.plan import OwnEndpoint, Plan, Planner
from shared.prices import FREE, UNKNOWN, price_table
from shared.scope import Scope, scope
from shared.types import ModelConfig, TaskType
from tests.support.asking import HAIKU, MINI, NANO

FLASH = "gemini/gemini-3.5-flash"
KEYS = {"OPENAI_API_KEY": "sk-openai", "ANTHROPIC_API_KEY": "sk-ant", "GEMINI_API_KEY": "AIza", "COHERE_API_KEY": "co"}


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of four providers, and every warning still to be given."""
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    catalogue.warn_once.cache_clear()


def planned(
    model: str | None = None,
    fallback_models: Any = None,
    *,
    configs: Mapping[str, ModelConfig] | None = None,
    settings: Settings | None = None,
    inside: Scope | None = None,
    **more: Any,
) -> Plan:
    """The plan of a call."""
    settings = settings or load_settings()
    catalogue = Catalogue.load(settings, configs)
    planner = Planner(catalogue, settings, inside or Scope(), more.pop("task", TaskType.CHAT_COMPLETION))
    own_endpoint = OwnEndpoint(more.pop("api_base", None), more.pop("api_key", None))
    return planner.plan(model, fallback_models, own_endpoint, **more)


def models(found: Plan) -> list[str]:
    return [candidate.model for candidate in found.candidates]


def own(**more: Any) -> dict[str, ModelConfig]:
    """A model of the caller's own, called "mine"."""
    return {"mine": ModelConfig(**{"name": "mine", "provider": "custom", "api_base": "http://127.0.0.1:1/v1", **more})}


def test_models_are_tried_in_the_callers_order_each_once() -> None:
    """The model asked for comes first, then its fallbacks as they were given; a name said twice is tried once."""
    found = planned(MINI, [HAIKU, MINI, FLASH, HAIKU])
    assert models(found) == [MINI, HAIKU, FLASH]
    assert found.requested == MINI
    assert [candidate.provider for candidate in found.candidates] == ["openai", "anthropic", "gemini"]
    assert found.candidates[0].wire_model == "gpt-5.4-mini"


def test_two_names_of_one_model_are_one_request() -> None:
    """A model is not asked again under its other name, be that the bare one or a retired one."""
    assert models(planned("gpt-5.4-mini", [MINI, HAIKU])) == ["gpt-5.4-mini", HAIKU]
    assert models(planned("gpt-4-turbo", ["gpt-4", "gpt-3.5-turbo"])) == ["openai/gpt-5.5", NANO]


def test_fallbacks_of_the_settings_are_the_default_and_an_empty_list_is_none() -> None:
    """None means the fallbacks of the settings, [] means none, and switched off means none whoever names them."""
    settings = Settings(default_fallback_models=(HAIKU, FLASH))
    assert models(planned(MINI, settings=settings)) == [MINI, HAIKU, FLASH]
    assert models(planned(MINI, [], settings=settings)) == [MINI]
    assert models(planned(MINI, [NANO], settings=settings)) == [MINI, NANO]
    assert models(planned(MINI, settings=settings, enable_fallback=False)) == [MINI]
    assert models(planned(MINI, [NANO], settings=settings, enable_fallback=False)) == [MINI]
    assert models(planned(MINI)) == [MINI]


@pytest.mark.parametrize("nothing", [None, ""])
def test_without_a_name_the_default_model_is_used(nothing: str | None) -> None:
    """A call that names no model asks the default of the settings."""
    assert models(planned(nothing)) == ["openai/gpt-5.4-mini"]
    assert models(planned(nothing, settings=Settings(default_text_model=HAIKU))) == [HAIKU]


@pytest.mark.parametrize(
    ("name", "provider", "wire_model"),
    [
        ("gpt-5.4-mini", "openai", "gpt-5.4-mini"),
        ("claude-haiku-4-5", "anthropic", "claude-haiku-4-5"),
        ("gemini-3.5-flash", "gemini", "gemini-3.5-flash"),
        ("command-r7b-12-2024", "cohere", "command-r7b-12-2024"),
        ("cohere_chat/command-r7b-12-2024", "cohere", "command-r7b-12-2024"),
        ("openai/gpt-6-luna", "openai", "gpt-6-luna"),
        ("gpt-6-luna", "openai", "gpt-6-luna"),
    ],
)
def test_bare_names_and_aliases_find_their_provider(name: str, provider: str, wire_model: str) -> None:
    """A name without its provider goes to the provider whose it is; bare Gemini names go to Google AI Studio."""
    candidate = planned(name).candidates[0]
    assert (candidate.provider, candidate.wire_model, candidate.model) == (provider, wire_model, name)
    assert candidate.rates != UNKNOWN


def test_a_name_of_a_known_provider_is_sent_even_when_the_table_lacks_it() -> None:
    """Newer models than the table can be called by code, at an unknown price."""
    candidate = planned("openai/gpt-99").candidates[0]
    assert (candidate.provider, candidate.wire_model, candidate.rates) == ("openai", "gpt-99", UNKNOWN)


def test_a_name_that_nobody_knows_is_not_found() -> None:
    """A misspelt name is refused before anything is sent, with the names that it resembles."""
    with pytest.raises(ModelNotFound, match=r"No model is called gpt-5\.4-minni; similar: .*gpt-5\.4-mini"):
        planned("gpt-5.4-minni")
    with pytest.raises(ModelNotFound, match="No local model is called local/other"):
        planned("local/other")


def test_the_local_model_needs_nothing_and_costs_nothing() -> None:
    """The local model can be named anywhere, without a key and at price 0."""
    found = planned("gpt-5.4-mini", ["local/smollm2-135m"])
    assert found.candidates[1].rates == FREE
    assert (found.candidates[1].provider, found.candidates[1].api_key) == ("local", None)


def test_models_without_a_key_are_skipped_with_their_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing key costs no time: the next model is tried, and the failure is kept for the report."""
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    found = planned(HAIKU, [MINI])
    assert models(found) == [MINI]
    assert found.requested == HAIKU
    assert isinstance(found.skipped[0], AuthenticationError)
    assert found.skipped[0].model == HAIKU


def test_a_missing_key_names_its_variables_and_what_could_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who lacks a key is told where it belongs, and which models the keys at hand open."""
    monkeypatch.delenv("GEMINI_API_KEY")
    with pytest.raises(AuthenticationError, match="Authentication failed for gemini") as caught:
        planned(FLASH)
    assert "Set GOOGLE_API_KEY or GEMINI_API_KEY." in str(caught.value)
    suggested = model_facts()["suggested"]
    assert f"keys that are set: {suggested['openai']}, {suggested['anthropic']}, {suggested['cohere']}." in str(
        caught.value
    )
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    assert usable_models() == []
    with pytest.raises(AuthenticationError) as caught:
        planned(FLASH)
    assert "Usable" not in str(caught.value)


def test_when_no_model_can_be_called_every_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """One model's error is raised as it is; several are AllModelsFailed with each of them."""
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(AllModelsFailed, match="All 2 models failed") as caught:
        planned(HAIKU, ["no-such-model"])
    assert [type(error) for error in caught.value.failures] == [AuthenticationError, ModelNotFound]
    with pytest.raises(AuthenticationError):
        planned(HAIKU, [HAIKU])


@pytest.mark.parametrize(
    ("name", "successor"),
    [("gpt-4-turbo", "openai/gpt-5.5"), ("openai/gpt-3.5-turbo", NANO), ("command", "cohere/command-a-03-2025"),
     ("gemini-pro", "gemini/gemini-3.1-flash-lite"), ("claude-3-haiku-20240307", HAIKU)],
)  # fmt: skip
def test_a_retired_name_uses_its_successor_with_one_warning(
    name: str, successor: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An old name is understood, said so once per process, and both names stay visible."""
    with caplog.at_level(logging.WARNING, "agentswarm_tools"):
        found = [planned(name).candidates[0] for _ in range(3)]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert name in caplog.text
    assert successor in caplog.text
    assert (found[0].requested, found[0].model) == (name, successor)
    assert found[0].note == f"{name} was shut down; {successor} was used"
    assert found[0].rates != UNKNOWN


def test_with_upgrades_off_a_retired_name_is_an_error() -> None:
    """Who wants no upgrade is told the day and the successor, and a living fallback is still tried."""
    settings = Settings(upgrade_retired_models=False)
    with pytest.raises(ModelRetired, match=r"gpt-4 was shut down on 2026-10-23\. .* Use openai/gpt-5\.5\.") as caught:
        planned("gpt-4", settings=settings)
    assert (caught.value.successor, caught.value.model) == ("openai/gpt-5.5", "gpt-4")
    found = planned("gpt-4", [HAIKU], settings=settings)
    assert models(found) == [HAIKU]
    assert isinstance(found.skipped[0], ModelRetired)


def test_an_upgrade_never_goes_to_another_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data goes only to providers that were named; a successor elsewhere is told, not used."""
    elsewhere = {"date": None, "successor": "openai/gpt-5.5", "source": "made up"}
    with monkeypatch.context() as patch:
        patch.setitem(model_facts()["retired"], "gemini/gemini-ultra", elsewhere)
        with pytest.raises(ModelRetired, match=r"Use openai/gpt-5\.5"):
            planned("gemini/gemini-ultra")
    monkeypatch.setenv("DEEPSEEK_API_KEY", "sk-deepseek")
    monkeypatch.setenv("STABILITY_API_KEY", "sk-stability")
    for name, facts in model_facts()["retired"].items():
        with time_machine.travel("2030-01-01", tick=False):
            try:
                candidate = planned(name).candidates[0]
            except ModelRetired:
                continue
        assert candidate.provider == name.split("/", 1)[0]
        successor = facts["successor"]
        while "retires" in (entry := price_table()[successor]) and "successor" in entry:
            successor = entry["successor"]
        assert candidate.model == successor


def test_a_model_lives_until_the_day_it_is_shut_down() -> None:
    """An announced end changes nothing before its day."""
    with time_machine.travel("2026-12-10T23:59:00Z", tick=False):
        assert planned("gpt-5").candidates[0].note is None
        assert models(planned("gpt-5")) == ["gpt-5"]
    with time_machine.travel("2026-12-11T00:00:00Z", tick=False):
        assert models(planned("gpt-5")) == ["openai/gpt-5.5"]


def test_a_callers_own_endpoint_knows_the_old_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an api_base, a base-URL variable or a config of one's own, an old name is sent as it is."""
    assert models(planned("gpt-4", api_base="http://127.0.0.1:1/v1")) == ["gpt-4"]
    configs = {"gpt-4": own()["mine"].model_copy(update={"name": "gpt-4"})}
    assert planned("gpt-4", configs=configs).candidates[0].wire_model == "gpt-4"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:2/v1")
    candidate = planned("gpt-4").candidates[0]
    assert (candidate.wire_model, candidate.note, candidate.api_base) == ("gpt-4", None, "http://127.0.0.1:2/v1")
    # Any name can be served there.
    assert planned("my-fine-tune").candidates[0].provider == "openai"


def test_the_callers_endpoint_is_for_the_first_model_only() -> None:
    """Fallbacks go to their own providers, without the caller's endpoint and key."""
    found = planned("any-name", [HAIKU], api_base="http://127.0.0.1:1/v1", api_key="sk-mine")
    first, second = found.candidates
    assert (first.provider, first.api_base, first.api_key) == ("custom", "http://127.0.0.1:1/v1", "sk-mine")
    assert (first.key_alias, first.rates) == ("call", UNKNOWN)
    assert (second.api_base, second.api_key, second.key_alias) == (None, "sk-ant", None)


def test_a_key_goes_only_to_the_endpoint_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the environment's key nor the scope's is sent to an endpoint of somebody else."""
    elsewhere = "http://127.0.0.1:1/v1"
    assert planned(MINI, api_base=elsewhere).candidates[0].api_key is None
    configs = own(provider="openai", api_base=elsewhere)
    assert planned("mine", configs=configs).candidates[0].api_key is None
    with scope(keys={"openai": "sk-customer"}) as inside:
        assert planned("mine", configs=configs, inside=inside).candidates[0].api_key is None
        assert planned(MINI, api_base=elsewhere, inside=inside).candidates[0].api_key is None
        assert planned(MINI, inside=inside).candidates[0].api_key == "sk-customer"
    # A successor that is the caller's own model is at the caller's own endpoint, too.
    configs = {"openai/gpt-5.5": configs["mine"].model_copy(update={"name": "openai/gpt-5.5"})}
    candidate = planned("gpt-4", configs=configs).candidates[0]
    assert (candidate.api_base, candidate.api_key) == (elsewhere, None)
    monkeypatch.setenv("MINE_KEY", "sk-mine")
    configs = own(provider="openai", api_base=elsewhere, api_key_env="MINE_KEY")
    assert planned("mine", configs=configs).candidates[0].api_key == "sk-mine"


@pytest.mark.parametrize("name", ["google", "cohere_chat", "OpenAI", "opneai"])
def test_a_key_under_a_wrong_name_is_refused(name: str) -> None:
    """A customer's key that would never be used is an error, since the operator's would be used instead."""
    refused = pytest.raises(ConfigurationError, match=f"a key for {name}, which is not the name of a provider")
    with scope(keys={name: "sk-customer"}) as inside, refused as caught:
        planned(MINI, inside=inside)
    assert "sk-customer" not in str(caught.value)


def test_a_provider_of_ones_own_may_have_a_key() -> None:
    """The provider of a model that the caller described is a name that a scope may have a key for."""
    own = ModelConfig(name="mine", provider="ours", api_base="https://models.example/v1")
    with scope(keys={"ours": "sk-customer"}) as inside:
        assert planned("mine", configs={"mine": own}, inside=inside).candidates[0].api_key == "sk-customer"


def test_the_scopes_key_wins_under_the_name_of_its_labels() -> None:
    """A customer's own key is used instead of the environment's, and reported by the scope's labels."""
    with scope(keys={"openai": "sk-customer"}, customer="acme") as inside:
        first, second = planned(MINI, [HAIKU], inside=inside).candidates
        mine = planned(MINI, inside=inside, api_key="sk-call").candidates[0]
    assert (first.api_key, first.key_alias) == ("sk-customer", "customer=acme")
    assert (second.api_key, second.key_alias) == ("sk-ant", None)
    assert (mine.api_key, mine.key_alias) == ("sk-call", "call")


def test_no_secret_shows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans, candidates, scopes and errors hold no readable key, whoever brought it."""
    monkeypatch.setenv("MINE_KEY", "visible-1")
    monkeypatch.setenv("OPENAI_API_KEY", "visible-2")
    monkeypatch.delenv("GEMINI_API_KEY")
    configs = own(api_key_env="MINE_KEY")
    with scope(keys={"anthropic": "visible-3"}) as inside:
        found = planned("mine", [MINI, HAIKU, FLASH], configs=configs, inside=inside)
        called = planned(MINI, api_key="visible-4", inside=inside)
        assert [c.api_key for c in (*found.candidates, *called.candidates)] == [f"visible-{n}" for n in (1, 2, 3, 4)]
        with pytest.raises(LLMError) as caught:
            planned(FLASH, inside=inside)
    for shown in (found, called, found.skipped, inside, configs, caught.value, vars(caught.value)):
        assert "visible" not in f"{shown!r} {shown}"


@pytest.mark.parametrize(
    ("config", "provider", "wire_model", "api_base"),
    [
        ({}, "custom", "mine", "http://127.0.0.1:1/v1"),
        ({"litellm_model": "openai/gpt-x"}, "openai", "gpt-x", "http://127.0.0.1:1/v1"),
        ({"litellm_model": "anthropic/claude-haiku-4-5", "api_base": None}, "anthropic", "claude-haiku-4-5", None),
        ({"litellm_model": "team/model-7"}, "custom", "team/model-7", "http://127.0.0.1:1/v1"),
        ({"provider": "openai", "api_base": None}, "openai", "mine", None),
    ],
)
def test_a_custom_model_is_reached_as_it_says(
    config: dict[str, Any], provider: str, wire_model: str, api_base: str | None
) -> None:
    """A ModelConfig's litellm_model, provider and api_base decide where its requests go, and its prices hold."""
    configs = own(cost_per_1k_input_tokens=1, cost_per_1k_output_tokens=2, max_tokens=77, **config)
    candidate = planned("mine", configs=configs).candidates[0]
    assert (candidate.provider, candidate.wire_model, candidate.api_base) == (provider, wire_model, api_base)
    assert (candidate.rates.source, candidate.max_output_tokens) == ("config", 77)


def test_a_custom_model_without_an_endpoint_is_a_configuration_error() -> None:
    """The guide's own example names no endpoint; that is said at once, with what to add."""
    with pytest.raises(ConfigurationError, match="mine has no endpoint") as caught:
        planned("mine", configs=own(api_base=None))
    assert "api_base" in str(caught.value)
    with pytest.raises(ConfigurationError, match="mine has no endpoint"):
        planned("mine", configs=own(api_base=None, provider="acme"))
    assert planned("mine", configs=own(api_base=None), api_base="http://127.0.0.1:2/v1").candidates[0].api_base


def test_a_calls_own_endpoint_wins_over_the_configs() -> None:
    """An `api_base` given with the call is where it goes, without the config's key."""
    candidate = planned("mine", configs=own(), api_base="http://127.0.0.1:2/v1").candidates[0]
    assert (candidate.api_base, candidate.api_key) == ("http://127.0.0.1:2/v1", None)


def test_a_config_adds_to_the_catalogue_and_wins_over_it() -> None:
    """A config under a known name replaces what is known; all other names stay."""
    configs = {MINI: ModelConfig(name=MINI, provider="openai", cost_per_1k_input_tokens=1, cost_per_1k_output_tokens=1)}
    assert planned(MINI, configs=configs).candidates[0].rates.source == "config"
    assert planned(NANO, configs=configs).candidates[0].rates.source == "table"


def test_a_missing_key_of_a_config_names_its_own_variable() -> None:
    """`api_key_env` is the only variable that is looked into."""
    configs = own(provider="openai", api_base=None, api_key_env="MINE_KEY")
    with pytest.raises(AuthenticationError, match=r"Set MINE_KEY\."):
        planned("mine", configs=configs)
