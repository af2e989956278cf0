"""The endpoint, wire format and LiteLLM config of each provider."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from shared.config import quiet_litellm
from shared.errors import ConfigurationError
from shared.providers.newer_models import known_as
from shared.types import Candidate

Wire = Literal["openai", "anthropic", "gemini", "cohere", "ollama", "replicate"]

# Passed to LiteLLM's configs in place of a missing key; without a value they would read one from the environment.
NO_KEY = "no-key-7f3d1c"
# Provider names that only stand for the user's own OpenAI-compatible endpoint.
OWN_ENDPOINT = frozenset({"local", "custom"})

# Providers whose chat API has a different name in LiteLLM.
_LITELLM_NAMES = {"cohere": "cohere_chat", "ollama": "ollama_chat"}
_WIRES: Mapping[str, Wire] = {
    "anthropic": "anthropic",
    "azure": "openai",
    "cohere_chat": "cohere",
    "gemini": "gemini",
    "ollama_chat": "ollama",
    "replicate": "replicate",
}
# Endpoints that LiteLLM keeps in its wrapper instead of its configs (litellm 1.91.5, main.py, read 2026-11-24).
_BASES = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com",
    "cohere_chat": "https://api.cohere.com/v2",
    "gemini": "https://generativelanguage.googleapis.com",
    "ollama_chat": "http://localhost:11434",
    "openrouter": "https://openrouter.ai/api/v1",
    "replicate": "https://api.replicate.com/v1",
    "vercel_ai_gateway": "https://ai-gateway.vercel.sh/v1",
}
# Providers that have no public endpoint: the user runs or rents one.
USERS_ENDPOINT = frozenset(
    {"azure", "custom", "custom_openai", "hosted_vllm", "litellm_proxy", "lm_studio", "openai_like"}
)
# Configs that write their own headers but need only a key for that.
_PLAIN_KEY = frozenset({"xai", "novita", "featherless_ai"})
# OpenAI-shaped configs that need a cloud login or use an endpoint other than chat/completions.
_NOT_CHAT = frozenset({"vertex_ai", "aiohttp_openai", "clarifai", "datarobot"})

_import_lock = threading.Lock()
litellm_imported = threading.Event()
_hints_lock = threading.Lock()
# The host program's setting, and one more entry for each `no_hints` that runs; empty when none does.
_quiet: list[bool] = []


def import_litellm() -> None:
    """
    Import LiteLLM (about 5 s the first time), without its downloads and without letting it read .env.

    Raises:
        ConfigurationError: It cannot be imported.
    """
    with _import_lock:
        if litellm_imported.is_set():
            return
        with quiet_litellm():
            try:
                import litellm  # noqa: F401 - only to have it imported
            except ImportError as error:
                raise ConfigurationError(f"LiteLLM cannot be imported: {error}") from error
        litellm_imported.set()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How to reach a model: its wire format and LiteLLM's config. `parameters` None: any parameter is sent."""

    provider: str
    wire: Wire
    config: Any
    parameters: frozenset[str] | None


@lru_cache(maxsize=1024)
def find_endpoint(provider: str, wire_model: str) -> Endpoint | None:
    """The model's endpoint; None when only LiteLLM's own wrapper can call it. LiteLLM must have been imported."""
    from litellm.utils import ProviderConfigManager

    name = _LITELLM_NAMES.get(provider, provider)
    known = litellm_providers().get(name)
    if provider in OWN_ENDPOINT or known is None:
        from litellm.llms.openai.chat.gpt_transformation import OpenAIGPTConfig

        return Endpoint("custom", "openai", OpenAIGPTConfig(), None)
    with no_hints():
        try:
            config: Any = ProviderConfigManager.get_provider_chat_config(wire_model, known)
        except Exception:  # noqa: BLE001 - a config may need an optional package that is not installed
            return None
        wire = _wire(name, wire_model, config)
        if wire is None:
            return None
        return Endpoint(name, wire, config, frozenset(config.get_supported_openai_params(wire_model)))


def endpoint_of(candidate: Candidate) -> Endpoint | None:
    """The endpoint that a candidate's chat requests go to; None if only LiteLLM's own client reaches it."""
    if candidate.answered_at is not None:
        return find_endpoint("custom", candidate.wire_model)
    return find_endpoint(candidate.provider, known_as(candidate))


def is_guarded(provider: str, wire_model: str) -> bool:
    """Whether requests to the model go through our transport instead of LiteLLM's own clients."""
    import_litellm()
    return find_endpoint(provider, wire_model) is not None


def guard_by_provider() -> dict[str, bool]:
    """Every provider that LiteLLM knows, and whether its chat models are guarded."""
    import_litellm()
    return {name: find_endpoint(name, "model") is not None for name in sorted(litellm_providers())}


def _wire(name: str, wire_model: str, config: Any) -> Wire | None:
    """The wire format, if a key is all that a request needs; else None."""
    from litellm.llms.cohere.chat.v2_transformation import CohereV2ChatConfig

    if name == "cohere_chat" and not isinstance(config, CohereV2ChatConfig):
        return None
    if name in _WIRES:
        return _WIRES[name]
    if not _speaks_openai(name, config):
        return None
    own_url = base_url(name, wire_model, None) or name in USERS_ENDPOINT or not _inherits(config, "get_complete_url")
    return "openai" if own_url else None


def _speaks_openai(name: str, config: Any) -> bool:
    """Whether the provider accepts OpenAI's chat/completions with a key and nothing else."""
    from litellm.llms.base_llm.completion.transformation import BaseTextCompletionConfig
    from litellm.llms.openai.chat.gpt_transformation import OpenAIGPTConfig

    return (
        isinstance(config, OpenAIGPTConfig)
        and not isinstance(config, BaseTextCompletionConfig)
        and name not in _NOT_CHAT
        and not config.has_custom_stream_wrapper
        and _inherits(config, "sign_request")
        and (name in _PLAIN_KEY or _inherits(config, "validate_environment"))
    )


def _inherits(config: Any, method: str) -> bool:
    """Whether a config uses OpenAI's version of a method."""
    from litellm.llms.openai.chat.gpt_transformation import OpenAIGPTConfig

    return getattr(type(config), method) is getattr(OpenAIGPTConfig, method)


@lru_cache(maxsize=1)
def litellm_providers() -> Mapping[str, Any]:
    """LiteLLM's own enumeration of providers, by name."""
    from litellm.types.utils import LlmProviders

    return {known.value: known for known in LlmProviders}


@lru_cache(maxsize=1024)
def base_url(provider: str, wire_model: str, api_base: str | None) -> str | None:
    """The caller's base URL in the form that the provider's config expects, else the provider's default, else None."""
    import litellm

    if provider in _BASES:
        return api_base or _BASES[provider]
    if provider in USERS_ENDPOINT:
        return api_base  # LiteLLM would read the environment, and this cache would keep what it found
    with no_hints():
        found: str | None = litellm.get_llm_provider(f"{provider}/{wire_model}", api_base=api_base, api_key=NO_KEY)[3]
    return found or api_base


@contextmanager
def no_hints() -> Iterator[None]:
    """
    Keep LiteLLM from printing hints and banners meanwhile, also across an `await`.

    Its setting is global, so the host program has it back as soon as nothing of ours runs.
    """
    import litellm

    with _hints_lock:
        if not _quiet:
            _quiet.append(litellm.suppress_debug_info)
        _quiet.append(True)
        litellm.suppress_debug_info = True
    try:
        yield
    finally:
        with _hints_lock:
            _quiet.pop()
            if len(_quiet) == 1:
                litellm.suppress_debug_info = _quiet.pop()
