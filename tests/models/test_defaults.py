"""The default model, and what stands in for it when only one provider's key is set."""

from __future__ import annotations

import logging

import pytest

from shared.config import load_settings
from shared.errors import AuthenticationError, ModelNotAllowed
from shared.llm_client import LLMClient
from shared.models.abilities import sees, suggested
from shared.models.catalogue import look_up, warn_once
from shared.models.defaults import default_by_key
from shared.models.keys import key_variables, misspelt_names
from shared.scope import scope
from shared.types import ModelConfig, TaskType
from tests.support.asking import HAIKU, HELLO, MINI
from tests.support.provider_double import Double

CHAT = TaskType.CHAT_COMPLETION


@pytest.fixture(autouse=True)
def every_warning_is_new() -> None:
    """Each test hears each warning."""
    warn_once.cache_clear()


@pytest.fixture
def only_anthropic(hosted: Double, monkeypatch: pytest.MonkeyPatch) -> Double:
    """The double, with the key of one provider."""
    for provider in suggested(CHAT):
        for name in key_variables(provider):
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-0123456789")
    return hosted


def test_the_only_keys_provider_answers(only_anthropic: Double, caplog: pytest.LogCaptureFixture) -> None:
    """Where nobody chose a default, the one provider with a key answers, which is said once and in the response."""
    with caplog.at_level(logging.WARNING):
        answers = [LLMClient().chat_completion(HELLO) for _ in range(2)]
    assert [answer.model for answer in answers] == [HAIKU, HAIKU]
    assert "only anthropic's key is set" in answers[1].metadata["note"]
    assert caplog.text.count("LITELLM_DEFAULT_TEXT_MODEL=anthropic/claude-haiku-4-5") == 1
    assert {request.host for request in only_anthropic.requests} == {"api.anthropic.com"}


@pytest.mark.parametrize("provider", list(suggested(CHAT)))
def test_each_suggested_providers_key_is_enough(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any one of the keys gives a model for text, and one that looks at images where the provider has one."""
    for name in key_variables(provider):
        monkeypatch.setenv(name, "sk-0123456789")
    settings = load_settings()
    expected = None if provider == "openai" else suggested(CHAT)[provider]
    assert default_by_key(CHAT, settings) == expected
    found = default_by_key(TaskType.VISION, settings)
    assert found == (None if provider == "openai" else suggested(TaskType.VISION).get(provider))
    if found is not None:
        assert sees(*look_up(found)[1:]) is not False


def test_a_chosen_default_stays(only_anthropic: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    """A default that the user chose gives way to nobody, be it the same as ours."""
    monkeypatch.setenv("LITELLM_DEFAULT_TEXT_MODEL", MINI)
    with pytest.raises(AuthenticationError, match="Set OPENAI_API_KEY"):
        LLMClient().chat_completion(HELLO)
    assert not only_anthropic.requests


def test_two_keys_are_no_choice(only_anthropic: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the keys of two providers data goes to neither, and the error is the line to set."""
    monkeypatch.setenv("XAI_API_KEY", "xai-0123456789")
    with pytest.raises(AuthenticationError, match=f"set LITELLM_DEFAULT_TEXT_MODEL={HAIKU}"):
        LLMClient().chat_completion(HELLO)
    assert not only_anthropic.requests


def test_a_common_token_is_no_key(only_anthropic: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that many programs use, such as Hugging Face's, neither stands for a choice nor spoils one."""
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    assert default_by_key(CHAT, load_settings()) == HAIKU
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    assert default_by_key(CHAT, load_settings()) is None
    assert not only_anthropic.requests


def test_a_scope_with_keys_uses_no_other(only_anthropic: Double) -> None:
    """A customer's scope with keys of its own never sends its data under the operator's key instead."""
    with scope(keys={"openai": "sk-customer-0123456789"}):
        assert LLMClient().chat_completion(HELLO).model == MINI
    assert {request.host for request in only_anthropic.requests} == {"api.openai.com"}


def test_the_allow_list_comes_first(only_anthropic: Double) -> None:
    """A model that the lists leave out does not stand in."""
    with scope(models=["mistral/mistral-small-latest"]), pytest.raises(ModelNotAllowed):
        LLMClient().chat_completion(HELLO)
    assert not only_anthropic.requests


def test_a_default_at_an_address_of_ones_own_stays(only_anthropic: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    """A default that a base URL or a ModelConfig leads somewhere needs no stand-in."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    assert default_by_key(CHAT, load_settings()) is None
    monkeypatch.delenv("OPENAI_BASE_URL")
    config = ModelConfig(name=MINI, provider="openai", litellm_model=MINI)
    with pytest.raises(AuthenticationError):
        LLMClient(model_configs={MINI: config}).chat_completion(HELLO)
    assert not only_anthropic.requests


def test_who_makes_images(only_anthropic: Double) -> None:
    """Where no key is that of a provider that makes images, the error names models that do."""
    with pytest.raises(AuthenticationError, match=r"Images are made by openai/gpt-image-2, gemini/"):
        LLMClient().generate_image("A fox")
    assert not only_anthropic.requests


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("AGENTSWARM_BUDGET", "AGENTSWARM_BUDGET_USD"),
        ("AGENTSWARM_BUGDET_USD", "AGENTSWARM_BUDGET_USD"),
        ("AGENTSWARM_DATABASEURL", "AGENTSWARM_DATABASE_URL"),
        ("LITELLM_DEFAULT_MODEL", "LITELLM_DEFAULT_TEXT_MODEL"),
        ("LITELLM_DEFAULT_TXT_MODEL", "LITELLM_DEFAULT_TEXT_MODEL"),
        ("OPENAI_KEY", "OPENAI_API_KEY"),
        ("ANTHROPIC_APIKEY", "ANTHROPIC_API_KEY"),
        ("OPENIA_API_KEY", "OPENAI_API_KEY"),
    ],
)
def test_a_mistyped_name_is_said_once(
    name: str, meant: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A variable that sets nothing is named at first use, with the one meant: a mistyped budget is no budget."""
    monkeypatch.setenv(name, "0.0001")
    with caplog.at_level(logging.WARNING):
        LLMClient()
        LLMClient()
    assert caplog.text.count(f"{name} sets nothing: did you mean {meant}?") == 1


@pytest.mark.parametrize(
    "name", ["LITELLM_LOG", "LITELLM_MASTER_KEY", "AGENTSWARM_BIN", "AZURE_OPENAI_API_KEY", "MY_KEY"]
)
def test_others_names_are_theirs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of LiteLLM, of the host and of other programs are not taken for misspellings."""
    monkeypatch.setenv(name, "anything")
    assert not misspelt_names()
