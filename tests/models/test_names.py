"""Which model names are let through: the allow-lists of settings and scopes, and what an agent may say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from shared.config import Settings
from shared.errors import AuthenticationError, ModelNotAllowed
from shared.models import catalogue
from shared.models.catalogue import Catalogue, known_providers
from shared.models.keys import KEYLESS_PROVIDERS
from shared.models.plan import Plan, Planner
from shared.prices import price_table
from shared.scope import Scope, scope
from shared.types import ModelConfig, TaskType
from tests.support.asking import HAIKU, MINI, NANO

LOCAL = "local/smollm2-135m"
AGENT = Scope(from_agent=True)
MINE = {"mine": ModelConfig(name="mine", provider="custom", api_base="http://127.0.0.1:1/v1")}


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of two providers."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant")


def planned(
    model: str | None,
    fallback_models: Any = None,
    *,
    inside: Scope | None = None,
    allowed: tuple[str, ...] | None = None,
    **settings: Any,
) -> Plan:
    """The plan of a call, under an allow-list of the settings."""
    found = Settings(allowed_models=allowed, **settings)
    return Planner(Catalogue.load(found, MINE), found, inside or Scope()).plan(model, fallback_models)


def models(found: Plan) -> list[str]:
    return [candidate.model for candidate in found.candidates]


@pytest.mark.parametrize("inside", [None, AGENT], ids=["code", "agent"])
def test_the_allow_list_of_the_settings_is_the_whole_list(inside: Scope | None) -> None:
    """With AGENTSWARM_ALLOWED_MODELS set, code and agents alike call what it lists and nothing else."""
    allowed = (MINI, LOCAL, "mine")
    for name in allowed:
        assert models(planned(name, inside=inside, allowed=allowed)) == [name]
    for name in (NANO, "gpt-5.4-mini", "gpt-4", "local/other", "no-such-model"):
        with pytest.raises(ModelNotAllowed, match="is not an allowed model") as caught:
            planned(name, inside=inside, allowed=allowed)
        assert f"Allowed models: {MINI}, {LOCAL}, mine." in str(caught.value)


def test_fallbacks_and_defaults_are_held_to_the_allow_list() -> None:
    """A call is refused when any of its models is not allowed, wherever its name comes from."""
    with pytest.raises(ModelNotAllowed, match=NANO):
        planned(MINI, [NANO], allowed=(MINI,))
    with pytest.raises(ModelNotAllowed, match=HAIKU):
        planned(MINI, allowed=(MINI,), default_fallback_models=(HAIKU,))
    with pytest.raises(ModelNotAllowed, match=MINI):
        planned(None, allowed=(NANO,))
    with pytest.raises(ModelNotAllowed, match=r"Allowed models: none\."):
        planned(MINI, allowed=())


def test_the_successor_of_a_retired_name_must_be_allowed_too() -> None:
    """A retired name on the list does not let in a model that is not."""
    with pytest.raises(ModelNotAllowed, match=r"openai/gpt-5\.4-nano is not an allowed model"):
        planned("gpt-3.5-turbo", allowed=("gpt-3.5-turbo",))
    assert models(planned("gpt-3.5-turbo", allowed=("gpt-3.5-turbo", NANO))) == [NANO]


def test_the_scopes_list_narrows_that_of_the_settings() -> None:
    """Both lists must allow a name; a scope cannot allow what the settings do not."""
    with scope(models=[MINI, HAIKU]) as inside:
        assert models(planned(MINI, inside=inside, allowed=(MINI, NANO))) == [MINI]
        for name in (NANO, HAIKU, LOCAL):
            with pytest.raises(ModelNotAllowed):
                planned(name, inside=inside, allowed=(MINI, NANO))
        assert models(planned(MINI, [HAIKU], inside=inside)) == [MINI, HAIKU]
        with pytest.raises(ModelNotAllowed, match=NANO):
            planned(MINI, [NANO], inside=inside)


@pytest.mark.parametrize(
    "name",
    [
        "https://evil.example/v1",
        "openai/https://evil.example",
        "//evil.example/x",
        "openai/../../admin",
        "../secrets",
        "openai/gpt 5",
        "openai/gpt\n5",
        "openai/gpt-5.4-mini\n",
        "openai/gpt-5.4-mini\x00",
        "openai/gpt-5.4-mini?key=1",
        "openai/gpt-5.4-mini#x",
        "openai\\gpt",
        "'; drop table attempt; --",
        "{model}",
        "-rf",
        "\u202eopenai/gpt",
        "m" * 201,
    ],
    ids=lambda name: name[:24].encode("unicode_escape").decode(),
)
@pytest.mark.parametrize("inside", [None, AGENT], ids=["code", "agent"])
def test_what_is_no_name_is_refused_to_everybody(name: str, inside: Scope | None) -> None:
    """URLs, paths, odd characters and very long names are no model names, and are shown without their control codes."""
    with pytest.raises(ModelNotAllowed, match="is not a model name") as caught:
        planned(name, inside=inside)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "name",
    [
        "no-such-model",
        "openai/gpt-99",
        LOCAL,
        "local/other",
        "ollama/llama3",
        "ollama_chat/llama3",
        "hosted_vllm/x",
        "lm_studio/x",
        "litellm_proxy/gpt-5.4-mini",
        "github_copilot/gpt-4o",
        "chatgpt/gpt-5.4",
        "custom/x",
        "text-embedding-3-small",
        "openai/gpt-image-2",
        "whisper-1",
        "dall-e-3",
        "m" * 200,
    ],
)
def test_an_agent_may_choose_only_known_hosted_chat_models(name: str) -> None:
    """Unknown, local, proxied and other kinds of models are refused to an agent, with models that it may use."""
    with pytest.raises(ModelNotAllowed, match="is not a model that agents may choose") as caught:
        planned(name, inside=AGENT)
    assert MINI in str(caught.value)
    with pytest.raises(ModelNotAllowed, match="agents may choose"):
        planned(MINI, [name], inside=AGENT)


@pytest.mark.parametrize("name", [MINI, "gpt-5.4-mini", HAIKU, "gpt-4", "mine"])
def test_an_agent_may_choose_what_is_known_hosted_or_listed(name: str) -> None:
    """Known hosted models, retired names of them and the operator's own models are open to an agent."""
    assert planned(name, inside=AGENT).candidates[0].requested == name


def test_what_the_operator_lists_is_open_to_agents() -> None:
    """Local and unknown models may be called by an agent when the settings or the scope name them."""
    for name in (LOCAL, "openai/gpt-99"):
        assert models(planned(name, inside=AGENT, allowed=(name,))) == [name]
        assert models(planned(name, inside=AGENT, default_text_model=name)) == [name]
        assert models(planned(MINI, inside=AGENT, default_fallback_models=(name,))) == [MINI, name]
        with scope(models=[name], from_agent=True) as inside:
            assert models(planned(name, inside=inside)) == [name]


def test_code_may_name_what_an_agent_may_not() -> None:
    """Code is trusted with local and newer models, and told of no list."""
    assert models(planned(LOCAL)) == [LOCAL]
    assert models(planned("openai/gpt-99")) == ["openai/gpt-99"]


providers = st.sampled_from(sorted(known_providers()))
known_names = st.sampled_from(sorted(price_table()))
names = (
    st.text(min_size=1)
    | known_names
    | st.tuples(providers, st.text(max_size=20)).map("/".join)
    | st.tuples(providers, known_names).map("/".join)
    | st.tuples(known_names, st.text(max_size=3)).map("".join)
)


@given(names)
@example("ollama/" + MINI)
def test_whatever_an_agent_says_only_known_hosted_chat_models_pass(name: str) -> None:
    """Any text is either refused as a name or is a chat model of a hosted provider that the table knows."""
    try:
        found = planned(name, inside=AGENT)
    except ModelNotAllowed:
        return
    except AuthenticationError as error:
        provider = error.provider
    else:
        provider = found.candidates[0].provider
    if name in MINE:
        return
    _, wire_model, entry = catalogue.look_up(name)
    if entry is None or (retired := catalogue.retirement(provider, wire_model)):
        retired = catalogue.retirement(provider, wire_model)
        assert retired is not None
        entry = catalogue.look_up(retired["successor"])[2]
    assert entry is not None
    assert entry["mode"] == "chat"
    assert provider not in KEYLESS_PROVIDERS | catalogue.PROXY_PROVIDERS
    assert len(name) <= 200
    assert "://" not in name


# The names that people have from older guides and code; most are gone.
OF_OLD = [
    "gpt-4-turbo", "gpt-4", "gpt-3.5-turbo", "claude-3-opus-20240229", "claude-3-opus", "claude-3-sonnet-20240229",
    "claude-3-sonnet", "claude-3-haiku-20240307", "claude-3-haiku", "gemini-pro", "gemini-pro-vision", "command",
    "command-light", "dall-e-3", "dall-e-2", "stable-diffusion-xl",
]  # fmt: skip


@pytest.mark.parametrize("name", OF_OLD)
def test_a_name_of_old_leads_to_a_model_that_is_priced(name: str) -> None:
    """Each retired name that people still write is served by a priced successor at the same provider."""
    image = name.startswith(("dall-e", "stable"))
    task = TaskType.IMAGE_GENERATION if image else TaskType.CHAT_COMPLETION
    provider = catalogue.look_up(name, task)[0]
    found = catalogue.resolve(name, catalogue=Catalogue({}, {}), settings=Settings(), scope=Scope(), task=task)
    assert (found.requested, found.provider) == (name, provider)
    assert found.model != name
    assert found.rates.source == "table"


@pytest.mark.parametrize(
    ("name", "provider", "wire_model"),
    [
        ("claude-opus-latest", "anthropic", "claude-opus-5-5"),
        ("deepseek/deepseek-flash-latest", "deepseek", "deepseek-v4-flash"),
        ("gemini/gemini-flash-latest", "gemini", "gemini-flash-latest"),
        ("mistral/mistral-small-latest", "mistral", "mistral-small-latest"),
        ("ft:gpt-4o-mini-2024-07-18:my-org:custom:id", "openai", "ft:gpt-4o-mini-2024-07-18:my-org:custom:id"),
        ("openai/ft:gpt-4.1-mini-2025-04-14:my-org::abc", "openai", "ft:gpt-4.1-mini-2025-04-14:my-org::abc"),
    ],
)
def test_names_that_stand_for_others_are_priced(name: str, provider: str, wire_model: str) -> None:
    """An alias that only LiteLLM knows is sent as its model; a provider's own alias and a tuned model as they are."""
    found = catalogue.resolve(name, catalogue=Catalogue({}, {}), settings=Settings(), scope=Scope())
    assert (found.provider, found.wire_model, found.rates.source) == (provider, wire_model, "table")


def test_a_tuned_model_has_the_price_of_tuned_models() -> None:
    """A fine-tuned model is priced as one, and never as the model that it was tuned from."""
    tuned, base = (
        catalogue.resolve(name, catalogue=Catalogue({}, {}), settings=Settings(), scope=Scope()).rates.prices["input"]
        for name in ("ft:gpt-4o-mini-2024-07-18:my-org::id", "gpt-4o-mini-2024-07-18")
    )
    assert tuned > base
    unknown = catalogue.resolve(
        "openai/ft:gpt-99:o::i", catalogue=Catalogue({}, {}), settings=Settings(), scope=Scope()
    )
    assert unknown.rates.source == "unknown"
