"""The only reader of the environment and of .env."""

from __future__ import annotations

import difflib
import logging
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import platformdirs
from dotenv import dotenv_values, find_dotenv
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.sources import EnvSettingsSource

from shared.budget import Budget, Window
from shared.errors import ConfigurationError

logger = logging.getLogger("agentswarm_tools")

APP_NAME = "agentswarm-tools"

# Names of variables that hold secrets, but not paths (TIKTOKEN_CACHE_DIR).
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL)(?!.*_(DIR|PATH|HOME)$)")


class Settings(BaseSettings):
    """Settings from the environment and .env; the environment takes precedence."""

    model_config = SettingsConfigDict(extra="ignore", populate_by_name=True, env_ignore_empty=True, frozen=True)

    fallback_enabled: bool = Field(
        True, validation_alias="LITELLM_FALLBACK_ENABLED", description="Try the fallback models when a model fails."
    )
    cost_tracking: bool = Field(
        True, validation_alias="LITELLM_COST_TRACKING", description="Record every call in the ledger."
    )
    verbose: bool = Field(
        False, validation_alias="LITELLM_VERBOSE", description="Log each attempt to stderr, without prompts or keys."
    )
    default_text_model: str = Field(
        "openai/gpt-5.4-mini",
        validation_alias="LITELLM_DEFAULT_TEXT_MODEL",
        description="Model for text when a call names none.",
    )
    default_image_model: str = Field(
        "openai/gpt-image-2",
        validation_alias="LITELLM_DEFAULT_IMAGE_MODEL",
        description="Model that makes images when a call names none.",
    )
    default_vision_model: str = Field(
        "openai/gpt-5.4-mini",
        validation_alias="LITELLM_DEFAULT_VISION_MODEL",
        description="Model that looks at images when a call names none.",
    )
    default_fallback_models: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        validation_alias="LITELLM_DEFAULT_FALLBACK_MODELS",
        description="Fallback models when a call names none, separated by commas.",
    )
    upgrade_retired_models: bool = Field(
        True,
        validation_alias="LITELLM_UPGRADE_RETIRED_MODELS",
        description="Replace a retired model with its successor; `false` raises ModelRetired instead.",
    )
    database_url: str | None = Field(
        None,
        validation_alias="AGENTSWARM_DATABASE_URL",
        description="SQLAlchemy URL of the ledger (SQLite or PostgreSQL). Unset: a SQLite file in the user data "
        "folder.",
        repr=False,
    )
    store_timeout: float = Field(
        2.0,
        ge=0.1,
        le=60,
        allow_inf_nan=False,
        validation_alias="AGENTSWARM_STORE_TIMEOUT",
        description="Seconds that a call waits for the ledger, to connect, get a lock and write. Then it goes on "
        "without the ledger, or is refused if a budget applies.",
    )
    store_read_timeout: float = Field(
        3.0,
        ge=0.1,
        le=3600,
        allow_inf_nan=False,
        validation_alias="AGENTSWARM_STORE_READ_TIMEOUT",
        description="Seconds that one query of a report may take in PostgreSQL.",
    )
    budget_usd: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        validation_alias="AGENTSWARM_BUDGET_USD",
        description="Limit in US$ per window for all calls recorded in the ledger together. Unset: no limit.",
    )
    budget_window: Window = Field(
        "month",
        validation_alias="AGENTSWARM_BUDGET_WINDOW",
        description="Window of that limit: run, hour, day, month or total.",
    )
    timezone: str | None = Field(
        None,
        validation_alias="AGENTSWARM_TIMEZONE",
        description="IANA time zone for days in reports. Unset: the system's.",
    )
    allowed_models: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        None,
        validation_alias="AGENTSWARM_ALLOWED_MODELS",
        description="The only models that may be called, fallbacks included, separated by commas. Unset: any model "
        "for code, known hosted models for agents.",
    )
    auto_models: Annotated[tuple[tuple[str, tuple[str, ...]], ...], NoDecode] = Field(
        (),
        validation_alias="AGENTSWARM_AUTO_MODELS",
        description="The models that `auto` chooses among, separated by commas; `; NAME=...` adds a list for "
        "`auto/NAME`. Unset: those of AGENTSWARM_ALLOWED_MODELS.",
    )
    max_concurrency: int | None = Field(
        None,
        ge=1,
        validation_alias="AGENTSWARM_MAX_CONCURRENCY",
        description="Maximum concurrent requests per provider and event loop. Unset: no separate limit.",
    )
    prices: Path | None = Field(
        None,
        validation_alias="AGENTSWARM_PRICES",
        description="JSON file with prices that override the built-in table, in its format or in LiteLLM's.",
    )
    alert_url: str | None = Field(
        None,
        validation_alias="AGENTSWARM_ALERT_URL",
        description="Webhook that is sent a message when a budget reaches 50, 80 or 100 %, or spending jumps. From the "
        "process environment only: a .env cannot set it. Unset: no alerts.",
        repr=False,
    )
    alert_names: bool = Field(
        False,
        validation_alias="AGENTSWARM_ALERT_NAMES",
        description="Name customers, agents and tools in alerts, instead of a code for each. From the process "
        "environment only.",
    )
    baseline_model: str | None = Field(
        None,
        validation_alias="AGENTSWARM_BASELINE_MODEL",
        description="Reports estimate what the same tokens would have cost with this model. Unset: no estimate.",
    )
    max_refusals: int = Field(
        3,
        ge=0,
        validation_alias="AGENTSWARM_MAX_REFUSALS",
        description="How many calls a budget or an allow-list may refuse before an agent's run is ended; 0: no limit.",
    )
    max_identical_calls: int = Field(
        5,
        ge=0,
        validation_alias="AGENTSWARM_MAX_IDENTICAL_CALLS",
        description="How often an agent may call a tool with the same arguments before its run is ended; 0: no limit.",
    )
    output_dir: str | None = Field(
        None,
        validation_alias="AGENTSWARM_OUTPUT_DIR",
        description="Where images are saved: a folder, or a URL that fsspec can write to, such as s3://bucket/images. "
        " Unset: the folder `output` in the user data folder.",
        repr=False,
    )
    image_preview: bool = Field(
        True,
        validation_alias="AGENTSWARM_IMAGE_PREVIEW",
        description="Show agents a small preview of each image they make, in addition to its path.",
    )
    output_url: str | None = Field(
        None,
        validation_alias="AGENTSWARM_OUTPUT_URL",
        description="Public base URL of the output folder, used for links to saved images.",
    )
    input_dirs: Annotated[tuple[Path, ...], NoDecode] = Field(
        (),
        validation_alias="AGENTSWARM_INPUT_DIRS",
        description="Folders that agents may read images from, in addition to the output folder, separated by commas.",
    )
    allow_private_hosts: bool = Field(
        False,
        validation_alias="AGENTSWARM_ALLOW_PRIVATE_HOSTS",
        description="Allow images to be fetched over http, from private addresses and on any port, as an intranet "
        "needs; cloud metadata addresses stay blocked.",
    )
    telemetry: Literal["off", "otel"] = Field(
        "off",
        validation_alias="AGENTSWARM_TELEMETRY",
        description="`otel` exports spans and metrics of calls through OpenTelemetry, if the program has set it up.",
    )
    telemetry_labels: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        validation_alias="AGENTSWARM_TELEMETRY_LABELS",
        description="Labels of the scope, such as `customer`, that spans carry too, separated by commas. Unset: none.",
    )

    @property
    def budget(self) -> Budget | None:
        """The budget that the environment sets, or None."""
        if self.budget_usd is None:
            return None
        return Budget(self.budget_usd, self.budget_window, tz=self.timezone)

    @field_validator("default_fallback_models", "allowed_models", "input_dirs", "telemetry_labels", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("auto_models", mode="before")
    @classmethod
    def _split_lists(cls, value: Any) -> Any:
        """By name; that of the first list, which has none, is ""."""
        if not isinstance(value, str):
            return value
        named = (part.rpartition("=")[::2] for part in value.split(";"))
        lists = ((name.strip(), cls._split(models)) for name, models in named)
        return tuple((name, models) for name, models in lists if models)

    @field_validator("output_url")
    @classmethod
    def _web_address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*", value):
            raise ValueError("is not the http or https URL of a folder")
        return value

    @field_validator("alert_url")
    @classmethod
    def _webhook(cls, value: str | None) -> str | None:
        try:
            parts = urlsplit(value or "https://host")
            is_web = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            is_web = False
        if not is_web or parts.username is not None or re.search(r"\s", value or ""):
            raise ValueError("is not an http or https URL without a user name")
        return value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ZoneInfo(value)
            except (KeyError, ValueError, OSError):
                raise ValueError("is not an IANA time zone such as Europe/Berlin") from None
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_args: PydanticBaseSettingsSource,
        **_sources: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Explicit arguments first, then `environment()`."""
        source = EnvSettingsSource(settings_cls, case_sensitive=True)
        source.env_vars = environment()
        return init_settings, source


def load_settings() -> Settings:
    """
    Load the current settings; they are read anew only when the environment or .env has changed.

    Raises:
        ConfigurationError: A variable has an invalid value; the message does not repeat the value.
    """
    path, from_file = _dotenv()
    values = _over(from_file)
    widening = tuple(
        name
        for name, harmless in _WIDENING.items()
        if from_file.get(name, "").lower() not in ("", *harmless) and not os.environ.get(name)
    )
    if widening:
        _warn_of_widening(path, widening)
    return _settings(tuple(values.get(str(field.validation_alias)) for field in Settings.model_fields.values()))


@lru_cache(maxsize=8)
def _settings(_values: tuple[str | None, ...]) -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
        raise ConfigurationError(f"Invalid settings: {problems}", hint="Correct the environment or .env.") from None


_OURS = "AGENTSWARM_"
# Only the operator may say where figures are sent to, and whether names are among them.
_OPERATORS = frozenset({"AGENTSWARM_ALERT_URL", "AGENTSWARM_ALERT_NAMES"})
# The host's own. Source: agency_swarm 1.11.0, ui/demos (read 2026-11-28).
_NOT_OURS = frozenset({"AGENTSWARM_BIN"})
# A line of .env that looks like YAML: it sets nothing.
_YAML_LINE = re.compile(r"\s*(?:export\s+)?([A-Z][A-Z0-9_]+)\s*:\s")


def setting_names() -> dict[str, str]:
    """The environment variable of each setting, by field."""
    return {field: str(info.validation_alias) for field, info in Settings.model_fields.items()}


def misspelt_settings() -> dict[str, str]:
    """
    Names in the environment or .env that set nothing, though they look like settings of this package.

    Returns:
        What to do about each, by name: "did you mean AGENTSWARM_BUDGET_USD?", for one.
    """
    known = list(setting_names().values())
    found = {}
    for name in environment():
        if name in known or name in _NOT_OURS or not name.startswith((_OURS, "LITELLM_")):
            continue
        # LiteLLM has variables of its own, so only a close misspelling counts there.
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.6 if name.startswith(_OURS) else 0.85)
        if close or name.startswith(_OURS):
            found[name] = f"did you mean {close[0]}?" if close else "there is no such setting"
    path, _ = _dotenv()
    for name in filter(_is_of_dotenv, sorted(_OPERATORS)):
        found[name] = f"only the process environment may set it, and {path} does"
    for number, line in enumerate(_lines(path), 1):
        match = _YAML_LINE.match(line)
        if match is not None and match[1] in known:
            found[match[1]] = f"line {number} of {path} has no = sign"
    return found


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines() if path else []
    except (OSError, ValueError):
        return []


def source_of(name: str) -> str:
    """Where a variable's value comes from: "environment", the path of a .env, or "default"."""
    if name in _OPERATORS:
        return "environment" if name in environment() else "default"
    return dotenv_of(name) or ("environment" if os.environ.get(name) else "default")


def environment() -> dict[str, str]:
    """The nearest .env, overridden by the process environment; empty values are left out."""
    return _over(_dotenv()[1])


def _over(from_file: Mapping[str, str]) -> dict[str, str]:
    """The process environment over what a .env has, without what only an operator may set."""
    values = {**from_file, **{name: value for name, value in os.environ.items() if value}}
    for name in _OPERATORS & values.keys():
        if _is_of_dotenv(name):
            del values[name]
    return values


def _is_of_dotenv(name: str) -> bool:
    """
    Whether a variable's value is, or may be, that of the nearest .env.

    agency-swarm loads .env files over the environment when it is imported, and programs do so themselves. So a value
    that is the same in both counts as that of the file, and so does any where the file's refers to other variables.
    """
    raw = _dotenv(is_raw=True)[1].get(name)
    return raw is not None and ("$" in raw or os.environ.get(name) in (None, "", raw))


def dotenv_of(name: str) -> str | None:
    """Path of the .env that sets a variable; None when the process environment sets it, or nothing does."""
    path, values = _dotenv()
    return path if name in values and not os.environ.get(name) else None


# Settings that widen what agents may do, or decide where records go, and the values that do not. A .env may lie in a
# folder that is not trusted. Base URLs are said where they are used.
_OFF, _ON = ("", "0", "false", "no", "off"), ("", "1", "true", "yes", "on")
_WIDENING = {
    "AGENTSWARM_INPUT_DIRS": (),
    "AGENTSWARM_OUTPUT_DIR": (),
    "AGENTSWARM_ALLOW_PRIVATE_HOSTS": _OFF,
    "AGENTSWARM_ALLOWED_MODELS": (),
    "AGENTSWARM_PRICES": (),
    "AGENTSWARM_DATABASE_URL": (),
    "AGENTSWARM_BUDGET_USD": (),
    "AGENTSWARM_MAX_REFUSALS": (),
    "AGENTSWARM_MAX_IDENTICAL_CALLS": (),
    "LITELLM_COST_TRACKING": _ON,
}


@lru_cache(maxsize=64)
def _warn_of_widening(path: str, names: tuple[str, ...]) -> None:
    """Warn once of settings that a .env makes, and that a person should know of."""
    logger.warning("%s sets %s, which change what agents may do. Is that file yours?", path, ", ".join(names))


def _dotenv(*, is_raw: bool = False) -> tuple[str, dict[str, str]]:
    """Path and values of the nearest .env; empty when there is none, or when the working directory is gone."""
    try:
        path = _dotenv_path()
        return path, dict(_read_dotenv(path, Path(path).stat().st_mtime_ns, is_raw=is_raw)) if path else {}
    except FileNotFoundError:
        return "", {}


def _dotenv_path() -> str:
    """Path of the nearest .env, or "". A call asks up to four times; dotenv's own search takes four times as long."""
    folder = os.getcwd()  # noqa: PTH109 - pathlib takes longest
    while not os.access(f"{folder}{os.sep}.env", os.F_OK):
        if not folder:
            return ""
        folder = folder.rpartition(os.sep)[0]
    return find_dotenv(usecwd=True)


@lru_cache(maxsize=4)
def _read_dotenv(path: str, _mtime_ns: int, *, is_raw: bool = False) -> tuple[tuple[str, str], ...]:
    try:
        return tuple((name, value) for name, value in dotenv_values(path, interpolate=not is_raw).items() if value)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f".env cannot be read ({type(error).__name__})", hint="Save it as UTF-8.") from None


def secrets() -> tuple[str, ...]:
    """Every value in the environment that may be a secret, longest first, for redaction."""
    values = environment()
    found = {value.strip() for name, value in values.items() if _SECRET_NAME.search(name.upper())}
    found |= _parts_of_webhook(values.get("AGENTSWARM_ALERT_URL", ""))
    return tuple(sorted((value for value in found if len(value) >= 8), key=len, reverse=True))


def webhook_host(url: str) -> str:
    """The host of a webhook, which is all of its URL that may be shown."""
    return urlsplit(url).hostname or ""


def _parts_of_webhook(url: str) -> set[str]:
    """A webhook's URL, and what follows its host: whoever knows that can write to it."""
    rest = url.partition("://")[2].partition("/")[2]
    return {url, rest} if rest else set()


def proxy_settings() -> dict[str, str]:
    """
    The proxies that the process environment names, by "http", "https" and "all", and "no" for what needs none.

    As everywhere, the small letters win, and an empty value switches a proxy off. A .env names none, because it may
    belong to the folder and not to the user.
    """
    found: dict[str, str] = {}
    for kind in ("http", "https", "all", "no"):
        names = [f"{kind}_proxy", f"{kind.upper()}_PROXY"]
        if kind == "http" and "REQUEST_METHOD" in os.environ:
            names.pop()  # in a CGI script HTTP_PROXY is a header that the client has sent
        value = next((os.environ[name] for name in names if name in os.environ), "").strip()
        if value:
            found[kind] = value
    return found


def tls_context() -> ssl.SSLContext:
    """
    The TLS settings of connections: the certificates of SSL_CERT_FILE or SSL_CERT_DIR, else httpx's and the system's.

    Raises:
        ConfigurationError: The certificates cannot be read.
    """
    return _tls_context(os.environ.get("SSL_CERT_FILE") or None, os.environ.get("SSL_CERT_DIR") or None)


@lru_cache(maxsize=8)
def _tls_context(cafile: str | None, capath: str | None) -> ssl.SSLContext:
    try:
        if cafile or capath:
            return ssl.create_default_context(cafile=cafile, capath=capath)
        import httpx  # not needed to read a report

        context = httpx.create_ssl_context(trust_env=False)
        context.load_default_certs()  # a company's own certificate is usually in the system's store only
    except (OSError, ValueError) as error:
        name = "SSL_CERT_FILE" if cafile else "SSL_CERT_DIR"
        problem = f"{name} cannot be read as certificates ({type(error).__name__})"
        raise ConfigurationError(problem, hint="Give a file in PEM format.") from None
    return context


@contextmanager
def quiet_litellm() -> Iterator[None]:
    """Keep LiteLLM's import from downloading its price map and from loading .env into the environment."""
    flags = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}
    before = {name: os.environ.get(name) for name in flags}
    os.environ.update(flags)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def data_dir() -> Path:
    """The user data folder of this package; not created."""
    return Path(platformdirs.user_data_dir(APP_NAME, appauthor=False))


def state_dir() -> Path:
    """The user's folder for this package's state, such as records that wait for the ledger; not created."""
    return Path(platformdirs.user_state_dir(APP_NAME, appauthor=False))


def database_url(settings: Settings) -> str:
    """The ledger's SQLAlchemy URL; by default a SQLite file in the user data folder."""
    if settings.database_url:
        return settings.database_url
    path = data_dir() / "ledger.sqlite3"
    return f"sqlite:///{path}"


def output_dir(settings: Settings) -> str:
    """Where images are saved: an absolute folder, or an fsspec URL; not created."""
    place = settings.output_dir or str(data_dir() / "output")
    if place.startswith("file://"):
        place = place.removeprefix("file://")
    return place if "://" in place else str(Path(place).expanduser().absolute())
