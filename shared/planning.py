"""Which models may answer a call, in which order, and why not the others."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Any

from shared.abilities import check_task, does, suggested
from shared.config import (
    KEYLESS_PROVIDERS,
    Settings,
    environment,
    key_variables,
    provider_base,
    provider_key,
)
from shared.errors import (
    AllModelsFailed,
    AuthenticationError,
    ConfigurationError,
    LLMError,
    ModelNotAllowed,
    ModelNotFound,
    ModelRetired,
)
from shared.image_pricing import with_sizes
from shared.pricing import FREE, UNKNOWN, Entry, model_facts, price_overrides, price_table, rates_of, rates_of_config
from shared.scope import Scope
from shared.types import Candidate, ModelConfig, Rates, TaskType

logger = logging.getLogger("agentswarm_tools")

LOCAL_MODEL = "local/smollm2-135m"
_LOCAL_WINDOW = 2048
_CHAT_MODES = frozenset({"chat", "responses", "completion"})
_SIZED_MODES = frozenset({"image_generation", "image_edit"})
# Providers that act with the operator's own login, or pass the call on to somebody else.
_PROXY_PROVIDERS = frozenset({"github_copilot", "chatgpt", "litellm_proxy", "oobabooga", "custom", "custom_openai"})
_ENDPOINT_OF_NOBODY = frozenset({"custom", "custom_openai"})
_PROVIDER_NAMES = {"cohere_chat": "cohere", "text-completion-openai": "openai", "vertex_ai_beta": "vertex_ai"}
_MODEL_NAME = re.compile(r"[A-Za-z0-9][\w./:@*+-]{0,199}")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The models that a client knows by name."""

    configs: Mapping[str, ModelConfig]
    overrides: Mapping[str, Entry]
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


@dataclass(frozen=True, slots=True)
class Plan:
    """The models to try, in order, for the one that was asked for, and the errors of those left out."""

    requested: str
    candidates: tuple[Candidate, ...]
    skipped: tuple[LLMError, ...] = ()


def plan(
    model: str | None,
    fallback_models: Sequence[str] | None,
    *,
    catalogue: Catalogue,
    settings: Settings,
    scope: Scope,
    enable_fallback: bool = True,
    api_base: str | None = None,
    api_key: str | None = None,
    service_tier: str | None = None,
    task: TaskType = TaskType.CHAT_COMPLETION,
) -> Plan:
    """
    The models that may answer, in the caller's order.

    Args:
        model: What the caller asked for; None means the default of Settings.

        fallback_models: What to try next; None means those of Settings that do the task, [] means none.

        api_base, api_key: The caller's own endpoint for `model`; it never receives a key from the environment.

    Raises:
        ModelNotAllowed: Any of the names is not on the allow-list.

        InvalidRequest: Any of the names cannot do the task.

        ConfigurationError: The scope has a key for a provider that nobody knows.

        LLMError: None of the models can be called; the error of the only one, or AllModelsFailed.
    """
    names = [model or default_model(task, settings)]
    if enable_fallback:
        names += _default_fallbacks(task, settings) if fallback_models is None else fallback_models
    names = list(dict.fromkeys(names))
    for name in names:
        _check_name(name)
        _check_allowed(name, catalogue=catalogue, settings=settings, scope=scope, task=task)
    _check_keys(catalogue, scope)
    candidates: list[Candidate] = []
    skipped: list[LLMError] = []
    for position, name in enumerate(names):
        own = (api_base, api_key) if position == 0 else (None, None)
        try:
            candidate = resolve(
                name,
                catalogue=catalogue,
                settings=settings,
                scope=scope,
                api_base=own[0],
                service_tier=service_tier,
                task=task,
            )
            if candidate.model != name:  # a successor of what was asked for, which the lists must hold too
                _check_allowed(candidate.model, catalogue=catalogue, settings=settings, scope=scope, task=task)
            described = name in catalogue.configs or own[0] is not None
            check_task(task, candidate, _look_up(candidate.model, task)[2], own=described)
            candidate = _with_key(candidate, catalogue, scope, api_base=own[0], api_key=own[1], task=task)
            candidate = replace(candidate, listed=_listed(name, catalogue, settings, scope, task))
            if not any(_same_endpoint(candidate, other) for other in candidates):
                candidates.append(candidate)
        except LLMError as error:
            if error.action == "raise":
                raise
            skipped.append(error)
    if not candidates:
        raise skipped[0] if len(skipped) == 1 else failure(skipped)
    return Plan(names[0], tuple(candidates), tuple(skipped))


def default_model(task: TaskType, settings: Settings) -> str:
    """The model for a task when a call names none."""
    if task is TaskType.IMAGE_GENERATION:
        return settings.default_image_model
    return settings.default_vision_model if task is TaskType.VISION else settings.default_text_model


def _default_fallbacks(task: TaskType, settings: Settings) -> list[str]:
    """The fallback models of Settings that can do the task, or of which nobody knows."""
    if task is TaskType.CHAT_COMPLETION:
        return list(settings.default_fallback_models)
    found = ((name, _look_up(name, task)) for name in settings.default_fallback_models)
    return [name for name, (provider, wire, entry) in found if does(task, provider or "", wire, entry)]


def _same_endpoint(one: Candidate, other: Candidate) -> bool:
    """Whether both would be the same request, as two retired names with one successor are."""
    return (one.provider, one.wire_model, one.api_base) == (other.provider, other.wire_model, other.api_base)


def failure(failures: Sequence[LLMError]) -> AllModelsFailed:
    """The error of a call whose every model failed."""
    return AllModelsFailed(f"All {len(failures)} models failed", failures=failures)


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
    provider, wire_model, entry = _look_up(name, task)
    if provider is None and (api_base or provider_base("openai")):
        provider = "custom" if api_base else "openai"
    base = api_base or (provider_base(provider) if provider else None)
    retired = _retired(provider, wire_model) if base is None else None
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


def _check_name(name: str) -> None:
    if not isinstance(name, str) or "://" in name or ".." in name or not _MODEL_NAME.fullmatch(name):
        shown = "".join(c for c in str(name)[:60] if c.isprintable())
        raise ModelNotAllowed(f"{shown!r} is not a model name", hint="Give a name such as openai/gpt-5.4-mini.")


def _listed(name: str, catalogue: Catalogue, settings: Settings, scope: Scope, task: TaskType) -> bool:
    """Whether the operator named the model, so that it may be used whatever it is."""
    lists = (scope.models, settings.allowed_models, catalogue.configs, settings.default_fallback_models)
    return name == default_model(task, settings) or any(name in names for names in lists if names is not None)


def _check_allowed(name: str, *, catalogue: Catalogue, settings: Settings, scope: Scope, task: TaskType) -> None:
    """Whether the scope, the settings and (for agents) the known hosted models let `name` be called."""
    for allowed in (scope.models, settings.allowed_models):
        if allowed is not None and name not in allowed:
            listed = ", ".join(allowed[:20]) or "none"
            raise ModelNotAllowed(f"{name} is not an allowed model", model=name, hint=f"Allowed models: {listed}.")
    if not scope.from_agent or _listed(name, catalogue, settings, scope, task):
        return
    provider, wire_model, entry = _look_up(name, task)
    if (retired := _retired(provider, wire_model)) is not None:
        provider, wire_model, entry = _look_up(retired["successor"], task)
    hosted = entry is not None and provider not in KEYLESS_PROVIDERS | _PROXY_PROVIDERS
    if not hosted or not does(task, provider or "", wire_model, entry):
        usable = ", ".join(usable_models(task)) or default_model(task, settings)
        raise ModelNotAllowed(
            f"{name} is not a model that agents may choose",
            model=name,
            hint=f"Leave out model, or use one such as {usable}.",
        )


def _check_keys(catalogue: Catalogue, scope: Scope) -> None:
    """A key under a wrong name would never be used, and the operator would pay instead."""
    own = {config.provider for config in catalogue.configs.values()}
    for name in scope.keys:
        if name not in own and (name in _PROVIDER_NAMES or name not in known_providers()):
            close = difflib.get_close_matches(name, known_providers(), n=3) or model_facts()["suggested"]
            raise ConfigurationError(
                f"The scope has a key for {name[:60]}, which is no provider's name",
                hint=f"Give {_PROVIDER_NAMES.get(name) or ' or '.join(close)}.",
            )


def _custom(name: str, config: ModelConfig, api_base: str | None) -> Candidate:
    """The candidate of a model that the caller described."""
    wire = config.litellm_model or name
    prefix, _, rest = wire.partition("/")
    if rest and prefix in known_providers():
        provider, wire_model = _PROVIDER_NAMES.get(prefix, prefix), rest
    else:
        provider, wire_model = config.provider, wire
    base = api_base or config.api_base or provider_base(provider)
    if base is None and (provider not in known_providers() or provider in _ENDPOINT_OF_NOBODY):
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


def _look_up(name: str, task: TaskType = TaskType.CHAT_COMPLETION) -> tuple[str | None, str, Entry | None]:
    """Provider, name on the wire and table entry; provider None when nobody knows the name."""
    table = _table()
    prefix, _, rest = name.partition("/")
    if rest and prefix in known_providers():
        provider = _PROVIDER_NAMES.get(prefix, prefix)
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
def _table() -> Mapping[str, Entry]:
    return {**price_table(), **model_facts()["prices"]}


@lru_cache(maxsize=1)
def known_providers() -> frozenset[str]:
    """Providers that LiteLLM's table or this package's catalogue names."""
    named = {str(entry["litellm_provider"]) for entry in _table().values() if "litellm_provider" in entry}
    return frozenset(named | set(model_facts()["suggested"]) | KEYLESS_PROVIDERS | _PROXY_PROVIDERS)


def _provider_of(entry: Entry) -> str:
    provider = str(entry.get("litellm_provider", ""))
    if provider.startswith("vertex_ai"):
        return "vertex_ai"
    return _PROVIDER_NAMES.get(provider, provider)


def _rates(
    name: str,
    provider: str,
    wire_model: str,
    entry: Entry | None,
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


def _retired(provider: str | None, wire_model: str) -> Mapping[str, Any] | None:
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


def _with_key(
    candidate: Candidate,
    catalogue: Catalogue,
    scope: Scope,
    *,
    api_base: str | None,
    api_key: str | None,
    task: TaskType = TaskType.CHAT_COMPLETION,
) -> Candidate:
    """
    The candidate with the key to use: the caller's, the scope's, else the environment's.

    Raises:
        AuthenticationError: The provider needs a key and none is set; names the variables and what could be used.
    """
    provider = candidate.provider
    config = catalogue.configs.get(candidate.model)
    if api_key is not None or api_base is not None:
        return replace(candidate, api_key=api_key, key_alias="call" if api_key else None)
    variable = config.api_key_env if config else None
    own_endpoint = config is not None and config.api_base is not None
    # A key for a provider that has an endpoint of its own is not for an endpoint of somebody else.
    foreign = own_endpoint and provider in model_facts()["suggested"]
    if provider in scope.keys and not foreign:
        secret = scope.keys[provider].get_secret_value()
        return replace(candidate, api_key=secret, key_alias=scope.key_aliases[provider])
    found = provider_key(provider, variable) if variable or not own_endpoint else None
    if found is not None:
        return replace(candidate, api_key=found.get_secret_value())
    if own_endpoint or provider in KEYLESS_PROVIDERS or not _needs_key(provider):
        return candidate
    names = " or ".join((variable,) if variable else key_variables(provider))
    others = usable_models(task)
    also = f" Usable with the keys present: {', '.join(others)}." if others else ""
    raise AuthenticationError(
        f"Authentication failed for {provider}: no key is set",
        provider=provider,
        model=candidate.requested,
        hint=f"Set {names}.{also}",
    )


def _needs_key(provider: str) -> bool:
    """Cloud accounts with logins of their own are left to LiteLLM's configs."""
    return not provider.startswith(("vertex_ai", "bedrock", "sagemaker", "watsonx", "oci", "github_copilot", "chatgpt"))


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
