"""Settings: the environment wins over .env, empty is unset, and a bad value is named but never repeated."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydantic import SecretStr

from shared import config
from shared.config import Settings, database_url, environment, load_settings, quiet_litellm
from shared.errors import ConfigurationError
from shared.models.keys import key_variables, provider_base, provider_extra, provider_key


def dotenv(text: str, folder: Path | None = None) -> None:
    """Write a .env in `folder`, or in the current one."""
    ((folder or Path()) / ".env").write_text(text, encoding="utf-8")


def test_without_anything_set_the_defaults_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty environment is a working configuration."""
    monkeypatch.delenv("AGENTSWARM_DATABASE_URL")
    monkeypatch.delenv("AGENTSWARM_TIMEZONE")
    found = load_settings()
    assert (found.fallback_enabled, found.cost_tracking, found.verbose) == (True, True, False)
    assert found.upgrade_retired_models
    assert (found.default_text_model, found.default_fallback_models) == ("openai/gpt-5.4-mini", ())
    assert (found.database_url, found.timezone, found.allowed_models, found.prices) == (None, None, None, None)
    assert (found.output_dir, found.output_url, found.input_dirs, found.allow_private_hosts) == (None, None, (), False)


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("LITELLM_FALLBACK_ENABLED", "false", "fallback_enabled", False),
        ("LITELLM_COST_TRACKING", "0", "cost_tracking", False),
        ("LITELLM_VERBOSE", "True", "verbose", True),
        ("LITELLM_UPGRADE_RETIRED_MODELS", "no", "upgrade_retired_models", False),
        ("LITELLM_DEFAULT_TEXT_MODEL", "a/b", "default_text_model", "a/b"),
        ("LITELLM_DEFAULT_FALLBACK_MODELS", " a/b , c/d ,,", "default_fallback_models", ("a/b", "c/d")),
        ("AGENTSWARM_ALLOWED_MODELS", "a/b", "allowed_models", ("a/b",)),
        ("AGENTSWARM_ALLOWED_MODELS", " , ", "allowed_models", ()),
        ("AGENTSWARM_DATABASE_URL", "sqlite:///x", "database_url", "sqlite:///x"),
        ("AGENTSWARM_TIMEZONE", "Asia/Kathmandu", "timezone", "Asia/Kathmandu"),
        ("AGENTSWARM_PRICES", "prices.json", "prices", Path("prices.json")),
        ("AGENTSWARM_OUTPUT_DIR", "s3://bucket/x", "output_dir", "s3://bucket/x"),
        ("AGENTSWARM_OUTPUT_URL", "https://cdn.example/x/", "output_url", "https://cdn.example/x/"),
        ("AGENTSWARM_INPUT_DIRS", " /a b , c ,,", "input_dirs", (Path("/a b"), Path("c"))),
        ("AGENTSWARM_ALLOW_PRIVATE_HOSTS", "true", "allow_private_hosts", True),
    ],
)
@pytest.mark.parametrize("source", ["environment", "dotenv"])
def test_each_variable_sets_its_field(
    variable: str, text: str, field: str, value: Any, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every documented variable is read, from the environment and from .env alike."""
    if source == "environment":
        monkeypatch.setenv(variable, text)
    else:
        monkeypatch.delenv(variable, raising=False)
        dotenv(f"{variable}='{text}'\n")
    assert getattr(load_settings(), field) == value


def test_every_field_has_a_variable_and_a_description() -> None:
    """The README's table is made of the fields, so each names its variable and says what it does."""
    aliases = [str(field.validation_alias) for field in Settings.model_fields.values()]
    assert all(alias.startswith(("LITELLM_", "AGENTSWARM_")) and alias.isupper() for alias in aliases)
    assert len(set(aliases)) == len(aliases)
    assert all((field.description or "").endswith(".") for field in Settings.model_fields.values())


def test_the_environment_wins_over_dotenv(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the shell says counts; .env fills in the rest."""
    dotenv("LITELLM_DEFAULT_TEXT_MODEL=from/dotenv\nLITELLM_VERBOSE=true\nOPENAI_API_KEY=sk-dotenv\n")
    monkeypatch.setenv("LITELLM_DEFAULT_TEXT_MODEL", "from/shell")
    found = load_settings()
    assert (found.default_text_model, found.verbose) == ("from/shell", True)
    assert Settings(default_text_model="from/code").default_text_model == "from/code"
    assert provider_key("openai") == SecretStr("sk-dotenv")


def test_an_empty_value_is_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """`NAME=` in the shell or in .env is as good as not there, and does not hide the other's value."""
    dotenv("LITELLM_COST_TRACKING=\nANTHROPIC_API_KEY=\nOPENAI_API_KEY=sk-dotenv\n")
    monkeypatch.setenv("LITELLM_VERBOSE", "")
    monkeypatch.setenv("AGENTSWARM_ALLOWED_MODELS", "")
    monkeypatch.setenv("OPENAI_API_KEY", "")
    found = load_settings()
    assert (found.verbose, found.cost_tracking, found.allowed_models) == (False, True, None)
    assert provider_key("anthropic") is None
    assert provider_key("openai") == SecretStr("sk-dotenv")
    assert "" not in environment().values()


def test_dotenv_of_a_folder_above_is_found_and_a_change_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nearest .env upwards counts, as it is now."""
    inner = tmp_path / "project" / "src"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    dotenv("LITELLM_DEFAULT_TEXT_MODEL=a/b\n", inner.parent)
    assert load_settings().default_text_model == "a/b"
    dotenv("LITELLM_DEFAULT_TEXT_MODEL=c/d\n", inner.parent)
    os.utime(inner.parent / ".env", ns=(1, 1))
    assert load_settings().default_text_model == "c/d"


def test_dotenv_is_not_put_into_the_environment() -> None:
    """Reading .env changes nothing for the rest of the program."""
    dotenv("OPENAI_API_KEY=sk-dotenv\n")
    assert provider_key("openai") is not None
    assert "OPENAI_API_KEY" not in os.environ


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LITELLM_FALLBACK_ENABLED", "sk-secret-perhaps"),
        ("LITELLM_COST_TRACKING", "2secret"),
        ("AGENTSWARM_TIMEZONE", "Mars/Secret"),
        ("AGENTSWARM_TIMEZONE", "../secret"),
        ("AGENTSWARM_TIMEZONE", "/secret\x01"),
        ("AGENTSWARM_OUTPUT_URL", "javascript:secret"),
        ("AGENTSWARM_OUTPUT_URL", "https://cdn.example/?secret"),
        ("AGENTSWARM_OUTPUT_URL", "https:///secret"),
    ],
)
def test_a_bad_value_is_named_and_not_repeated(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that cannot be is a ConfigurationError naming the variable, and nothing of the value is in it."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=variable) as caught:
        load_settings()
    assert "ecret" not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
    assert caught.value.__suppress_context__


def test_an_unreadable_dotenv_is_a_configuration_error() -> None:
    """A .env that is no UTF-8 text is said so, without what it holds."""
    Path(".env").write_bytes(b"OPENAI_API_KEY=sk-\xff\xfe\n")
    with pytest.raises(ConfigurationError, match=r"\.env cannot be read") as caught:
        load_settings()
    assert "sk-" not in str(caught.value)


def test_settings_never_show_the_databases_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """The repr of the settings holds no password."""
    monkeypatch.setenv("AGENTSWARM_DATABASE_URL", "postgresql://me:hunter2@db/ledger")
    assert "hunter2" not in f"{load_settings()!r} {load_settings()}"


@pytest.mark.parametrize(
    ("provider", "variables"),
    [
        ("openai", ("OPENAI_API_KEY",)),
        ("anthropic", ("ANTHROPIC_API_KEY",)),
        ("gemini", ("GOOGLE_API_KEY", "GEMINI_API_KEY")),
        ("cohere", ("COHERE_API_KEY", "CO_API_KEY")),
        ("acme", ("ACME_API_KEY",)),
    ],
)
def test_a_provider_key_comes_from_its_own_variables_in_order(
    provider: str, variables: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first set variable of a provider holds its key, and no other variable does."""
    assert key_variables(provider) == variables
    assert provider_key(provider) is None
    for number, variable in reversed(list(enumerate(variables))):
        monkeypatch.setenv(variable, f"key-{number}")
        assert provider_key(provider) == SecretStr(f"key-{number}")
    monkeypatch.setenv("MY_KEY", "mine")
    assert provider_key(provider, "MY_KEY") == SecretStr("mine")
    assert provider_key(provider, "NOT_SET") is None


def test_a_key_does_not_show_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key read from the environment has no readable repr."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-visible")
    assert "visible" not in f"{provider_key('openai')!r} {provider_key('openai')}"


@pytest.mark.parametrize("variable", ["OPENAI_API_BASE", "OPENAI_BASE_URL"])
def test_a_base_url_of_a_provider_is_read(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both usual names move a provider to another endpoint."""
    assert provider_base("openai") is None
    monkeypatch.setenv(variable, "http://127.0.0.1:1/v1")
    assert provider_base("openai") == "http://127.0.0.1:1/v1"
    assert provider_base("anthropic") is None


def test_a_base_url_of_a_dotenv_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a folder's .env sends keys is said, once and without what the URL may hide."""
    dotenv("OPENAI_BASE_URL=https://user:hunter22@elsewhere.example/v1?key=hunter22")
    monkeypatch.setenv("GROQ_BASE_URL", "https://mine.example/v1")
    for _ in range(3):
        assert provider_base("openai")
        assert provider_base("groq")
    [record] = caplog.records
    assert f"OPENAI_BASE_URL from {Path.cwd() / '.env'} redirects requests" in record.getMessage()
    assert "to elsewhere.example." in record.getMessage()
    assert "hunter22" not in record.getMessage()


def test_a_deleted_working_directory_is_as_good_as_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings and keys come from the environment when the current folder is gone."""
    folder = Path.cwd() / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    key = provider_key("openai")
    assert key is not None
    assert key.get_secret_value() == "sk-0123456789"
    assert load_settings().fallback_enabled


def test_azures_api_version_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure's version is the one more thing that its config needs, and only Azure's."""
    monkeypatch.setenv("AZURE_API_VERSION", "2026-01-01")
    assert provider_extra("azure") == {"api_version": "2026-01-01"}
    assert provider_extra("openai") == {}
    monkeypatch.delenv("AZURE_API_VERSION")
    assert provider_extra("azure") == {}


marks = st.sampled_from(["KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "key", "Token"])
values = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=8).map(str.strip)


@given(marks, values.filter(lambda value: len(value) >= 8))
def test_every_value_that_may_be_a_secret_is_known_for_redaction(mark: str, value: str) -> None:
    """Any variable whose name smells of a secret is one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(f"MY_{mark}_VALUE", value)
        assert value in config.secrets()
    assert value not in config.secrets()


def test_litellm_is_imported_quietly_and_the_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """While LiteLLM is imported it downloads nothing and reads no .env; afterwards nothing is left of that."""
    monkeypatch.setenv("LITELLM_MODE", "DEV")
    with quiet_litellm():
        assert os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"
        assert os.environ["LITELLM_MODE"] == "PRODUCTION"
    assert os.environ["LITELLM_MODE"] == "DEV"
    assert "LITELLM_LOCAL_MODEL_COST_MAP" not in os.environ


def test_the_default_ledger_lies_in_the_user_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a URL the ledger is a SQLite file in the platform's folder for user data."""
    monkeypatch.delenv("AGENTSWARM_DATABASE_URL")
    url = database_url(load_settings())
    assert url == f"sqlite:///{config.data_dir() / 'ledger.sqlite3'}"
    assert config.data_dir().is_relative_to(Path.home())
