"""Which models are known by name, what each is called on the wire, and what replaces those that are gone."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Any

from shared.config import Settings, environment
from shared.errors import (
    ConfigurationError,
    ModelNotFound,
    ModelRetired,
)
from shared.models.abilities import suggested
from shared.models.keys import KEYLESS_PROVIDERS, key_variables, provider_base
from shared.prices import (
    FREE,
    UNKNOWN,
    TableEntry,
    model_facts,
    price_overrides,
    price_table,
    rates_of,
    rates_of_config,
    with_sizes,
)
from shared.scope import Scope
from shared.types import Candidate, ModelConfig, Rates, TaskType

logger = logging.getLogger("agentswarm_tools")

LOCAL_MODEL = "local/smollm2-135m"
_LOCAL_WINDOW = 2048
_CHAT_MODES = frozenset({"chat", "responses", "completion"})
_SIZED_MODES = frozenset({"image_generation", "image_edit"})
# Providers that act with the operator's own login, or pass the call on to somebody else.
PROXY_PROVIDERS = frozenset({"github_copilot", "chatgpt", "litellm_proxy", "oobabooga", "custom", "custom_openai"})
ENDPOINT_OF_NOBODY = frozenset({"custom", "custom_openai"})
PROVIDER_NAMES = {"cohere_chat": "cohere", "text-completion-openai": "openai", "vertex_ai_beta": "vertex_ai"}


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The models that a client knows by name."""

    configs: Mapping[str, ModelConfig]
    overrides: Mapping[str, TableEntry]
    overrides_version: str | None = None

    @classmethod
    def load(cls, settings: Settings, configs: Mapping[str, ModelConfig] | None = None) -> Catalogue:
        """
        The built-in tables with the caller's own models and prices on top.

        Raises:
            ConfigurationError: The file named by AGENTSWARM_PRICES cannot be read.
        """
        if settings.prices is None:
            return cls(dict(configs or {}), {})
        try:
            changed = settings.prices.stat().st_mtime_ns
        except OSError:
            changed = 0
        overrides, version = price_overrides(settings.prices, changed)
        return cls(dict(configs or {}), overrides, version)


def resolve(
    name: str,
    *,
    catalogue: Catalogue,
    settings: Settings,
    scope: Scope,
    api_base: str | None = None,
    service_tier: str | None = None,
    task: TaskType = TaskType.CHAT_COMPLETION,
) -> Candidate:
    """
    The candidate that `name` stands for, without its key.

    Raises:
        ModelNotFound: Nobody knows the name, or (ModelRetired) its provider has shut it down and upgrades are off.
    """
    config = catalogue.configs.get(name)
    if config is not None:
        return _custom(name, config, api_base)
    if name.startswith("local/"):
        return _local(name)
    provider, wire_model, entry = look_up(name, task)
    if provider is None and (api_base or provider_base("openai")):
        provider = "custom" if api_base else "openai"
    base = api_base or (provider_base(provider) if provider else None)
    retired = retirement(provider, wire_model) if base is None else None
    if retired is not None:
        successor = _successor(name, provider, retired, settings)
        upgraded = resolve(
            successor, catalogue=catalogue, settings=settings, scope=scope, service_tier=service_tier, task=task
        )
        return replace(upgraded, requested=name, note=f"{name} was shut down; {successor} was used")
    if provider is None:
        raise ModelNotFound(f"No model is called {name}{_similar(name)}", model=name)
    limits = entry or {}
    return Candidate(
        requested=name,
        model=name,
        provider=provider,
        wire_model=wire_model,
        rates=_rates(name, provider, wire_model, entry, catalogue, service_tier, own_endpoint=api_base is not None),
        max_output_tokens=_size(limits.get("max_output_tokens") or limits.get("max_tokens")),
        max_input_tokens=_size(limits.get("max_input_tokens")),
        api_base=base,
        guarded=limits.get("mode", "chat") == "chat",
    )


def _custom(name: str, config: ModelConfig, api_base: str | None) -> Candidate:
    """The candidate of a model that the caller described."""
    wire = config.litellm_model or name
    prefix, _, rest = wire.partition("/")
    if rest and prefix in known_providers():
        provider, wire_model = PROVIDER_NAMES.get(prefix, prefix), rest
    else:
        provider, wire_model = config.provider, wire
    base = api_base or config.api_base or provider_base(provider)
    if base is None and (provider not in known_providers() or provider in ENDPOINT_OF_NOBODY):
        raise ConfigurationError(
            f"{name} has no endpoint",
            model=name,
            hint="Give its ModelConfig an api_base, or a litellm_model such as openai/gpt-5.4-mini.",
        )
    return Candidate(
        requested=name,
        model=name,
        provider=provider,
        wire_model=wire_model,
        rates=rates_of_config(config),
        max_output_tokens=config.max_tokens,
        max_input_tokens=config.max_input_tokens,
        api_base=base,
    )


def _local(name: str) -> Candidate:
    if name != LOCAL_MODEL:
        raise ModelNotFound(f"No local model is called {name}", model=name, hint=f"There is {LOCAL_MODEL}.")
    return Candidate(
        requested=name,
        model=name,
        provider="local",
        wire_model=name.removeprefix("local/"),
        rates=FREE,
        max_output_tokens=_LOCAL_WINDOW,
        max_input_tokens=_LOCAL_WINDOW,
    )


def look_up(name: str, task: TaskType = TaskType.CHAT_COMPLETION) -> tuple[str | None, str, TableEntry | None]:
    """Provider, name on the wire and table entry; provider None when nobody knows the name."""
    table = _table()
    prefix, _, rest = name.partition("/")
    if rest and prefix in known_providers():
        provider = PROVIDER_NAMES.get(prefix, prefix)
        entry = table.get(name)
        if entry is None and (bare := table.get(rest)) is not None and _provider_of(bare) == provider:
            entry = bare
        return provider, rest, entry
    if f"gemini/{name}" in table:
        return "gemini", name, table[f"gemini/{name}"]
    entry = table.get(name)
    modes = _CHAT_MODES | {"image_generation"} if task is TaskType.IMAGE_GENERATION else _CHAT_MODES
    if entry is not None and entry.get("mode", "chat") in modes:
        return _provider_of(entry), name, entry
    for retired in model_facts()["retired"]:
        if retired.split("/", 1)[1] == name:
            return retired.split("/", 1)[0], name, None
    return None, name, None


@lru_cache(maxsize=1)
def _table() -> Mapping[str, TableEntry]:
    return {**price_table(), **model_facts()["prices"]}


@lru_cache(maxsize=1)
def known_providers() -> frozenset[str]:
    """Providers that LiteLLM's table or this package's catalogue names."""
    named = {str(entry["litellm_provider"]) for entry in _table().values() if "litellm_provider" in entry}
    return frozenset(named | set(model_facts()["suggested"]) | KEYLESS_PROVIDERS | PROXY_PROVIDERS)


def _provider_of(entry: TableEntry) -> str:
    provider = str(entry.get("litellm_provider", ""))
    if provider.startswith("vertex_ai"):
        return "vertex_ai"
    return PROVIDER_NAMES.get(provider, provider)


def _rates(
    name: str,
    provider: str,
    wire_model: str,
    entry: TableEntry | None,
    catalogue: Catalogue,
    service_tier: str | None,
    *,
    own_endpoint: bool,
) -> Rates:
    """The user's price first, then the table's; a model at somebody's own endpoint has no price in the table."""
    for key in (name, f"{provider}/{wire_model}", wire_model):
        if key in catalogue.overrides:
            version = catalogue.overrides_version
            own = rates_of(catalogue.overrides[key], zero_is_free=True, service_tier=service_tier, version=version)
            return with_sizes(own, wire_model, catalogue.overrides, provider=provider)
    if provider in KEYLESS_PROVIDERS:
        return FREE
    if own_endpoint or entry is None:
        return UNKNOWN
    ours = model_facts()["prices"].keys() & {wire_model, f"{provider}/{wire_model}"}
    version = "agentswarm-tools" if ours else None
    free = wire_model.lower().endswith("free")
    rates = rates_of(entry, zero_is_free=free, service_tier=service_tier, version=version)
    return with_sizes(rates, wire_model, _table(), provider=provider) if entry.get("mode") in _SIZED_MODES else rates


def _size(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) or str(value).isdigit() else None


def retirement(provider: str | None, wire_model: str) -> Mapping[str, Any] | None:
    """What the catalogue knows of a model that is shut down by today; None when it is alive."""
    found: Mapping[str, Any] | None = model_facts()["retired"].get(f"{provider}/{wire_model}")
    if found is None or (found["date"] and date.fromisoformat(found["date"]) > datetime.now(UTC).date()):
        return None
    return found


def _successor(name: str, provider: str | None, retired: Mapping[str, Any], settings: Settings) -> str:
    """
    The model to use instead, said once per process.

    Raises:
        ModelRetired: Upgrades are switched off, or the data would go to a provider that nobody named.
    """
    successor = str(retired["successor"])
    day = f" on {retired['date']}" if retired["date"] else ""
    if not settings.upgrade_retired_models or not successor.startswith(f"{provider}/"):
        error = ModelRetired(f"{name} was shut down{day}", successor=successor)
        error.model = name
        raise error
    _warn_once(f"{name} was shut down{day}; using {successor} instead.")
    return successor


@lru_cache(maxsize=200)
def _warn_once(message: str) -> None:
    logger.warning(message)


def usable_models(task: TaskType = TaskType.CHAT_COMPLETION) -> list[str]:
    """One known model of each provider whose key is set."""
    values = environment()
    return [
        name
        for provider, name in suggested(task).items()
        if any(variable in values for variable in key_variables(provider))
    ]


def _similar(name: str) -> str:
    close = difflib.get_close_matches(name, _chat_models(), n=3, cutoff=0.75)
    return f"; similar: {', '.join(close)}" if close else ""


@lru_cache(maxsize=1)
def _chat_models() -> tuple[str, ...]:
    return tuple(name for name, entry in _table().items() if entry.get("mode") == "chat")


def chat_models(*, usable: bool = False) -> list[tuple[str, str, Rates]]:
    """Known chat models as (name, provider, rates); `usable` leaves out those whose key is not set."""
    table, values = _table(), environment()
    return [
        (name, provider, rates_of(table[name], zero_is_free=name.lower().endswith("free")))
        for name, provider in ((name, _provider_of(table[name])) for name in _chat_models())
        if not usable or any(variable in values for variable in key_variables(provider))
    ]


def retired_models() -> dict[str, str]:
    """What to say of each model that its provider has shut down, or will."""
    return {
        name: f"{name}: shut down {facts['date'] or '(day not verified)'}, use {facts['successor']} ({facts['source']})"
        for name, facts in model_facts()["retired"].items()
    }
