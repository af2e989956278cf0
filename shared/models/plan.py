"""Which models may answer a call, in which order, and why others may not."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from shared.config import Settings
from shared.errors import (
    AllModelsFailed,
    AuthenticationError,
    ConfigurationError,
    InvalidRequest,
    LLMError,
    ModelNotAllowed,
)
from shared.models.abilities import check_task, does, suggested
from shared.models.auto import Abilities, Choice, abilities_of, check_choice, is_auto, named_models, no_choice
from shared.models.catalogue import (
    PROVIDER_NAMES,
    PROXY_PROVIDERS,
    Catalogue,
    known_providers,
    look_up,
    resolve,
    retirement,
    usable_models,
    warn_once,
)
from shared.models.defaults import default_by_key, default_model, default_variable
from shared.models.keys import KEYLESS_PROVIDERS, is_own_host, key_variables, provider_key
from shared.models.names import model_facts
from shared.prices import TableEntry
from shared.scope import Scope
from shared.types import Candidate, ModelConfig, TaskType

logger = logging.getLogger("agentswarm_tools")

_MODEL_NAME = re.compile(r"[A-Za-z0-9][\w./:@*+-]{0,199}")


@dataclass(frozen=True, slots=True)
class Plan:
    """The models to try, in order, and the errors of those that were skipped."""

    requested: str
    candidates: tuple[Candidate, ...]
    skipped: tuple[LLMError, ...] = ()
    # For "auto": what each model can do, and once it is chosen, how.
    abilities: Mapping[str, Abilities] | None = None
    only_first: bool = False
    choice: Choice | None = None

    @property
    def is_open(self) -> bool:
        """Whether the order of the models depends on the request, and is still to be chosen."""
        return self.abilities is not None and self.choice is None


@dataclass(frozen=True, slots=True)
class OwnEndpoint:
    """The caller's own endpoint for the first model."""

    api_base: str | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Planner:
    """
    Chooses the models that may answer a call.

    `answered_at`: a transport of the client's own answers every model there, without a key.
    """

    catalogue: Catalogue
    settings: Settings
    scope: Scope
    task: TaskType = TaskType.CHAT_COMPLETION
    answered_at: str | None = None

    def plan(
        self,
        model: str | None,
        fallback_models: Sequence[str] | None,
        own: OwnEndpoint | None = None,
        *,
        enable_fallback: bool = True,
        service_tier: str | None = None,
    ) -> Plan:
        """
        Choose the models that may answer, in the caller's order.

        Args:
            model: The requested model; None means the default from the settings.

            fallback_models: Models to try next; None means those from the settings that support the task, [] means
                none.

            own: The caller's own endpoint for `model`; it never receives a key from the environment.

        Raises:
            ModelNotAllowed: One of the models is not on the allow-list.

            InvalidRequest: One of the models does not support the task.

            ConfigurationError: The scope has a key for an unknown provider.

            LLMError: None of the models can be called; the error of the only one, or AllModelsFailed.
        """
        stand_in = self._stand_in(own) if model is None else None
        names = [model or stand_in or default_model(self.task, self.settings)]
        if is_auto(names[0]) and names[0] not in self.catalogue.configs:
            only_first = not enable_fallback or (fallback_models is not None and not fallback_models)
            # A successor has another price, and nobody has named it.
            strict = replace(self, settings=self.settings.model_copy(update={"upgrade_retired_models": False}))
            return replace(strict._auto(names[0], fallback_models, own, service_tier), only_first=only_first)  # noqa: SLF001
        if enable_fallback:
            names += self._default_fallbacks() if fallback_models is None else fallback_models
        names = list(dict.fromkeys(names))
        for name in names:
            _check_name(name)
            self._check_allowed(name)
        self._check_keys()
        candidates: list[Candidate] = []
        skipped: list[LLMError] = []
        for name in names:
            try:
                found = self._at_tier(name, (own if name == names[0] else None) or OwnEndpoint(), service_tier)
            except LLMError as error:
                if error.action == "raise":
                    raise
                skipped.append(error)
                continue
            if name == stand_in:
                found = [replace(each, note=self._say_stand_in(name)) for each in found]
            if not any(_same_endpoint(found[0], other) for other in candidates):
                candidates += found
        if not candidates:
            raise skipped[0] if len(skipped) == 1 else failure(skipped)
        return Plan(names[0], tuple(candidates), tuple(skipped))

    def _auto(self, name: str, asked: Sequence[str] | None, own: OwnEndpoint | None, service_tier: str | None) -> Plan:
        """The models among which `auto` chooses for each request, and why the others are out in any case."""
        if own is not None and own != OwnEndpoint():
            raise ConfigurationError(
                f"An endpoint of your own needs a model's name, not {name}", hint="Name the model."
            )
        self._check_keys()
        configs = self.catalogue.configs
        candidates: list[Candidate] = []
        skipped: list[LLMError] = []
        for each in named_models(name, asked, self.settings, self.scope, self.task):
            try:
                _check_name(each)
                self._check_allowed(each)
                if self.scope.from_agent and not self._is_listed(each):
                    raise ModelNotAllowed("The operator did not name it")
                found = self._at_tier(each, OwnEndpoint(), service_tier)
                candidate = found[0]
                check_choice(candidate, self.task, self._look_up(candidate.model)[2], configs.get(each))
            except LLMError as error:
                error.model = each
                skipped.append(error)
                continue
            if twin := next((other for other in candidates if _same_endpoint(candidate, other)), None):
                skipped.append(InvalidRequest(f"It is the same as {twin.requested}", model=each, hint=""))
            else:
                candidates += found
        if not candidates:
            raise no_choice(name, skipped)
        abilities = {
            candidate.requested: abilities_of(self._look_up(candidate.model)[2], configs.get(candidate.requested))
            for candidate in candidates
        }
        return Plan(name, tuple(candidates), tuple(skipped), abilities)

    def _at_tier(self, name: str, own: OwnEndpoint, service_tier: str | None) -> list[Candidate]:
        """
        The candidate; at the flex tier, which is refused when it is full, the same at the standard tier after it.

        Where no flex price is known, the provider has no such tier for the model.
        Source: developers.openai.com/api/docs/guides/flex-processing, ai.google.dev/gemini-api/docs/flex-inference
        (read 2026-11-28).
        """
        candidate = self._candidate(name, own, service_tier)
        if service_tier != "flex" or candidate.rates.source == "free":
            return [candidate]
        note = "the flex tier was refused or late, so the standard tier was used"
        standard = replace(self._candidate(name, own, None), is_standard=True, note=note)
        if candidate.rates.source == "unknown" and standard.rates.source != "unknown":
            return [replace(standard, note=f"{name} has no flex tier, so the standard tier was used")]
        return [candidate, standard]

    def _candidate(self, name: str, own: OwnEndpoint, service_tier: str | None) -> Candidate:
        """The candidate that a name stands for, with its key."""
        candidate = resolve(
            name,
            catalogue=self.catalogue,
            settings=self.settings,
            scope=self.scope,
            api_base=own.api_base,
            service_tier=service_tier,
            task=self.task,
        )
        if candidate.model != name:  # the successor must be allowed too
            self._check_allowed(candidate.model)
        config = self.catalogue.configs.get(name)
        described = config is not None or own.api_base is not None
        entry = self._look_up(candidate.model)[2]
        if config is not None:
            _check_described(candidate, config, self.task)
        check_task(self.task, candidate, entry, own=described)
        candidate = replace(candidate, listed=self._is_listed(name), answered_at=self.answered_at)
        return candidate if self.answered_at is not None else self._with_key(candidate, own)

    def _stand_in(self, own: OwnEndpoint | None) -> str | None:
        """The model that is used instead of a default that nobody chose and that has no key; None for the default."""
        has_own_way = self.answered_at is not None or self.scope.keys or (own or OwnEndpoint()) != OwnEndpoint()
        if has_own_way or default_model(self.task, self.settings) in self.catalogue.configs:
            return None
        found = default_by_key(self.task, self.settings)
        lists = (self.scope.models, self.settings.allowed_models)
        return found if all(allowed is None or found in allowed for allowed in lists) else None

    def _say_stand_in(self, name: str) -> str:
        default, variable = default_model(self.task, self.settings), default_variable(self.task)
        provider = name.partition("/")[0]
        text = f"{name} is used instead of {default}: only {provider}'s key is set. Choose with {variable}={name}"
        warn_once(f"{text}.")
        return text

    def _look_up(self, name: str) -> tuple[str | None, str, TableEntry | None]:
        """Provider, name on the wire and table entry, the user's own prices included."""
        return look_up(name, self.task, self.catalogue.overrides)

    def _default_fallbacks(self) -> list[str]:
        """The fallback models from the settings that support the task, as far as is known."""
        if self.task is TaskType.CHAT_COMPLETION:
            return list(self.settings.default_fallback_models)
        found = ((name, self._look_up(name)) for name in self.settings.default_fallback_models)
        return [name for name, (provider, wire, entry) in found if does(self.task, provider or "", wire, entry)]

    def _is_listed(self, name: str) -> bool:
        """Whether the operator named the model, so that agents may use it even if it is unknown or not hosted."""
        settings = self.settings
        lists = (self.scope.models, settings.allowed_models, self.catalogue.configs, settings.default_fallback_models)
        auto = (names for _, names in settings.auto_models)
        named = any(name in names for names in (*lists, *auto) if names is not None)
        return named or name in (default_model(self.task, settings), default_by_key(self.task, settings))

    def _check_allowed(self, name: str) -> None:
        """Check `name` against the allow-lists and, for agents, against the known hosted models."""
        for allowed in (self.scope.models, self.settings.allowed_models):
            if allowed is not None and name not in allowed:
                listed = ", ".join(allowed[:20]) or "none"
                raise ModelNotAllowed(f"{name} is not an allowed model", model=name, hint=f"Allowed models: {listed}.")
        if not self.scope.from_agent or self._is_listed(name):
            return
        provider, wire_model, entry = self._look_up(name)
        if (retired := retirement(provider, wire_model)) is not None:
            provider, wire_model, entry = self._look_up(retired["successor"])
        hosted = entry is not None and provider not in KEYLESS_PROVIDERS | PROXY_PROVIDERS
        if not hosted or not does(self.task, provider or "", wire_model, entry):
            usable = ", ".join(usable_models(self.task)) or default_model(self.task, self.settings)
            raise ModelNotAllowed(
                f"{name} is not a model that agents may choose",
                model=name,
                hint=f"Leave out model, or use one such as {usable}.",
            )

    def _check_keys(self) -> None:
        """Refuse keys under unknown provider names: they would never be used, and the operator would pay instead."""
        custom = {config.provider for config in self.catalogue.configs.values()}
        for name in self.scope.keys:
            if name not in custom and (name in PROVIDER_NAMES or name not in known_providers()):
                close = difflib.get_close_matches(name, known_providers(), n=3) or model_facts()["suggested"]
                raise ConfigurationError(
                    f"The scope has a key for {name[:60]}, which is not the name of a provider",
                    hint=f"Give {PROVIDER_NAMES.get(name) or ' or '.join(close)}.",
                )

    def _with_key(self, candidate: Candidate, own: OwnEndpoint) -> Candidate:
        """
        The candidate with the key to use: the caller's, the scope's, else the environment's.

        Raises:
            AuthenticationError: The provider needs a key and none is set; names the variables and the usable models.
        """
        provider = candidate.provider
        config = self.catalogue.configs.get(candidate.model)
        if own.api_key is not None or own.api_base is not None:
            return replace(candidate, api_key=own.api_key, key_alias="call" if own.api_key else None)
        variable = config.api_key_env if config else None
        own_endpoint = config is not None and config.api_base is not None
        # A provider's key must not be sent to someone else's endpoint.
        foreign = own_endpoint and provider in model_facts()["suggested"]
        if provider in self.scope.keys and not foreign:
            secret = self.scope.keys[provider].get_secret_value()
            return replace(candidate, api_key=secret, key_alias=self.scope.key_aliases[provider])
        found = provider_key(provider, variable) if variable or not own_endpoint else None
        if found is not None:
            return replace(candidate, api_key=found.get_secret_value())
        if own_endpoint or provider in KEYLESS_PROVIDERS or not _needs_key(provider):
            return candidate
        names = " or ".join((variable,) if variable else key_variables(provider))
        raise AuthenticationError(
            f"Authentication failed for {provider}: no key is set",
            provider=provider,
            model=candidate.requested,
            hint=f"Set {names}{_any_text(candidate)}.{self._others(candidate.requested)}",
        )

    def _others(self, name: str) -> str:
        """What else can be used when a key is missing, and how it becomes the default."""
        others = usable_models(self.task)
        line = f", or set {default_variable(self.task)}" if name == default_model(self.task, self.settings) else ""
        if others:
            return f" Usable with the keys that are set: {', '.join(others)}. Name one{line and f'{line}={others[0]}'}."
        if self.task is TaskType.IMAGE_GENERATION:
            makers = suggested(self.task)
            return f" Images are made by {', '.join(makers.values())}: set the key of one, and name it{line}."
        return "" if self.scope.from_agent else " For a trial without a key, use local/smollm2-135m."


def _any_text(candidate: Candidate) -> str:
    own = is_own_host(candidate.provider, candidate.api_base)
    return "; if your server needs no key, any text will do" if own else ""


def _same_endpoint(one: Candidate, other: Candidate) -> bool:
    """Whether both lead to the same request, as two retired names with one successor do."""
    return (one.provider, one.wire_model, one.api_base) == (other.provider, other.wire_model, other.api_base)


def failure(failures: Sequence[LLMError]) -> AllModelsFailed:
    """The error of a call for which every model failed."""
    return AllModelsFailed(f"All {len(failures)} models failed", failures=failures)


def _check_name(name: str) -> None:
    if not isinstance(name, str) or "://" in name or ".." in name or not _MODEL_NAME.fullmatch(name):
        printable = "".join(c for c in str(name)[:60] if c.isprintable())
        raise ModelNotAllowed(f"{printable!r} is not a model name", hint="Give a name such as openai/gpt-5.4-mini.")


def _check_described(candidate: Candidate, config: ModelConfig, task: TaskType) -> None:
    """
    Check the task of a user-defined model against its ModelConfig.

    Raises:
        InvalidRequest: It makes images and is used for text, or the other way round.
    """
    makes_images = config.task_type is TaskType.IMAGE_GENERATION
    if "task_type" in config.model_fields_set and makes_images is not (task is TaskType.IMAGE_GENERATION):
        does_what = "only makes images" if makes_images else "does not make images"
        raise InvalidRequest(
            f"{candidate.requested} {does_what}, by its ModelConfig",
            provider=candidate.provider,
            model=candidate.requested,
            hint=f"Set its task_type to {task.value}, or use another model.",
        )


def _needs_key(provider: str) -> bool:
    """Whether the provider needs an API key; LiteLLM's configs handle the logins of cloud accounts."""
    return not provider.startswith(("vertex_ai", "bedrock", "sagemaker", "watsonx", "oci", "github_copilot", "chatgpt"))
