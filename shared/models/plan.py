"""Which models may answer a call, in which order, and why the others may not."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from shared.config import Settings
from shared.errors import (
    AllModelsFailed,
    AuthenticationError,
    ConfigurationError,
    LLMError,
    ModelNotAllowed,
)
from shared.models.abilities import check_task, does
from shared.models.catalogue import (
    PROVIDER_NAMES,
    PROXY_PROVIDERS,
    Catalogue,
    known_providers,
    look_up,
    resolve,
    retirement,
    usable_models,
)
from shared.models.keys import KEYLESS_PROVIDERS, key_variables, provider_key
from shared.models.names import model_facts
from shared.scope import Scope
from shared.types import Candidate, TaskType

logger = logging.getLogger("agentswarm_tools")

_MODEL_NAME = re.compile(r"[A-Za-z0-9][\w./:@*+-]{0,199}")


@dataclass(frozen=True, slots=True)
class Plan:
    """The models to try, in order, for the one that was asked for, and the errors of those left out."""

    requested: str
    candidates: tuple[Candidate, ...]
    skipped: tuple[LLMError, ...] = ()


def make_plan(
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
            check_task(task, candidate, look_up(candidate.model, task, catalogue.overrides)[2], own=described)
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
    found = ((name, look_up(name, task)) for name in settings.default_fallback_models)
    return [name for name, (provider, wire, entry) in found if does(task, provider or "", wire, entry)]


def _same_endpoint(one: Candidate, other: Candidate) -> bool:
    """Whether both would be the same request, as two retired names with one successor are."""
    return (one.provider, one.wire_model, one.api_base) == (other.provider, other.wire_model, other.api_base)


def failure(failures: Sequence[LLMError]) -> AllModelsFailed:
    """The error of a call whose every model failed."""
    return AllModelsFailed(f"All {len(failures)} models failed", failures=failures)


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
    provider, wire_model, entry = look_up(name, task, catalogue.overrides)
    if (retired := retirement(provider, wire_model)) is not None:
        provider, wire_model, entry = look_up(retired["successor"], task, catalogue.overrides)
    hosted = entry is not None and provider not in KEYLESS_PROVIDERS | PROXY_PROVIDERS
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
        if name not in own and (name in PROVIDER_NAMES or name not in known_providers()):
            close = difflib.get_close_matches(name, known_providers(), n=3) or model_facts()["suggested"]
            raise ConfigurationError(
                f"The scope has a key for {name[:60]}, which is no provider's name",
                hint=f"Give {PROVIDER_NAMES.get(name) or ' or '.join(close)}.",
            )


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
