"""Which environment variables hold a provider's key and base URL."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import urlsplit

from pydantic import SecretStr

from shared.config import dotenv_of, environment, misspelt_settings
from shared.models.names import model_facts

logger = logging.getLogger("agentswarm_tools")

# Environment variables that hold a provider's key, in the order LiteLLM looks for them; every other
# provider's is <PROVIDER>_API_KEY. Source: litellm 1.91.5, the providers' validate_environment (read 2026-11-24).
KEY_VARIABLES: Mapping[str, tuple[str, ...]] = {
    "cohere": ("COHERE_API_KEY", "CO_API_KEY"),
    "cohere_chat": ("COHERE_API_KEY", "CO_API_KEY"),
    "fireworks_ai": ("FIREWORKS_API_KEY", "FIREWORKS_AI_API_KEY", "FIREWORKSAI_API_KEY", "FIREWORKS_AI_TOKEN"),
    "gemini": ("GOOGLE_API_KEY", "GEMINI_API_KEY"),
    "huggingface": ("HUGGINGFACE_API_KEY", "HF_TOKEN"),
    "openrouter": ("OPENROUTER_API_KEY", "OR_API_KEY"),
    "perplexity": ("PERPLEXITYAI_API_KEY", "PERPLEXITY_API_KEY"),
    "replicate": ("REPLICATE_API_KEY", "REPLICATE_API_TOKEN"),
    "together_ai": ("TOGETHERAI_API_KEY", "TOGETHER_API_KEY", "TOGETHER_AI_API_KEY", "TOGETHER_AI_TOKEN"),
}
# Providers that need no key because they run on the user's own machine.
KEYLESS_PROVIDERS = frozenset({"local", "ollama", "ollama_chat", "lm_studio", "llamafile", "hosted_vllm"})
# Variables that set a provider's base URL, in addition to <PROVIDER>_API_BASE and <PROVIDER>_BASE_URL.
BASE_VARIABLES: Mapping[str, tuple[str, ...]] = {
    "ollama_chat": ("OLLAMA_API_BASE", "OLLAMA_BASE_URL"),
    "cohere_chat": ("COHERE_API_BASE", "COHERE_BASE_URL"),
}


def key_variables(provider: str) -> tuple[str, ...]:
    """Names of the environment variables that may hold the key of `provider`."""
    return KEY_VARIABLES.get(provider, (f"{provider.upper()}_API_KEY",))


def provider_key(provider: str, variable: str | None = None) -> SecretStr | None:
    """
    The key of `provider`, or of `variable` when one is named.

    Returns:
        None when none is set.
    """
    values = environment()
    names = (variable,) if variable else key_variables(provider)
    return next((SecretStr(values[name]) for name in names if name in values), None)


def has_key(provider: str) -> bool:
    """Whether the environment holds a key of `provider`."""
    values = environment()
    return any(variable in values for variable in key_variables(provider))


def misspelt_names() -> dict[str, str]:
    """Variables that set nothing, though they look like a setting or a provider's key, with what to do about each."""
    return {**misspelt_settings(), **_misspelt_keys()}


def _misspelt_keys() -> dict[str, str]:
    names = [name for provider in model_facts()["suggested"] for name in key_variables(provider)]
    by_letters = {_letters(name): name for name in names}
    found = {}
    for name in environment().keys() - set(names):
        if not name.endswith("KEY"):
            continue
        close = difflib.get_close_matches(_letters(name), by_letters, n=1, cutoff=0.88)
        if close and by_letters[close[0]] not in environment():
            found[name] = f"did you mean {by_letters[close[0]]}?"
    return found


def warn_of_names() -> None:
    """Say once of each variable that it sets nothing: a mistyped budget is no budget."""
    for name, problem in misspelt_names().items():
        _warn_of_name(name, problem)


@lru_cache(maxsize=64)
def _warn_of_name(name: str, problem: str) -> None:
    logger.warning("%s sets nothing: %s", name, problem)


def _letters(name: str) -> str:
    """A variable's name without what people leave out or double: OPENAI_KEY and OPENAI_API_KEY are alike."""
    return name.replace("API", "").replace("_", "") if not name.startswith("API") else name


def provider_base(provider: str) -> str | None:
    """The base URL that the environment sets for `provider`, or None."""
    values = environment()
    upper = provider.upper()
    names = (f"{upper}_API_BASE", f"{upper}_BASE_URL", *BASE_VARIABLES.get(provider, ()))
    found = next((name for name in names if name in values), None)
    if found is None:
        return None
    if (path := dotenv_of(found)) is not None:
        _warn_of_base(found, values[found], path)
    return values[found]


@lru_cache(maxsize=64)
def _warn_of_base(name: str, url: str, path: str) -> None:
    """Warn once for each: whoever wrote the .env decides where prompts and keys are sent."""
    try:
        host = urlsplit(url).hostname
    except ValueError:
        host = None
    logger.warning(
        "%s from %s redirects requests, including the API key, to %s. Ignore this if you set it.", name, path, host
    )


# Where the hosts of a provider end whose domain does not name it. Source: the providers' API references (2026-11-27).
_HOSTS: Mapping[str, tuple[str, ...]] = {
    "azure": ("azure.com", "azure.us", "azure.cn"),
    "azure_ai": ("azure.com",),
    "bedrock": ("amazonaws.com",),
    "bedrock_converse": ("amazonaws.com",),
    "cohere_chat": ("cohere.com", "cohere.ai"),
    "dashscope": ("aliyuncs.com",),
    "databricks": ("databricks.com", "azuredatabricks.net"),
    "gemini": ("googleapis.com",),
    "github": ("github.ai", "azure.com"),
    "nvidia_nim": ("nvidia.com",),
    "openai": ("openai.com",),
    "sagemaker": ("amazonaws.com",),
    "together_ai": ("together.xyz", "together.ai"),
    "vertex_ai": ("googleapis.com",),
    "watsonx": ("ibm.com",),
    "xai": ("x.ai",),
    "zai": ("z.ai", "bigmodel.cn"),
}


def is_own_host(provider: str, base: str | None) -> bool:
    """Whether a base URL is none of the provider's own: a gateway, a server of the user's, this machine."""
    if base is None:
        return False
    try:
        host = (urlsplit(base).hostname or "").rstrip(".")
    except ValueError:
        return True
    if ends := _HOSTS.get(provider):
        return not any(host == end or host.endswith(f".{end}") for end in ends)
    return provider.partition("_")[0] not in "".join(host.split(".")[-2:-1]).replace("-", "")


def region_of(provider: str, base: str | None) -> str | None:
    """The region that a base URL of OpenAI keeps data in: "us" of https://us.api.openai.com; None for no region."""
    try:
        region, _, rest = (urlsplit(base or "").hostname or "").partition(".")
    except ValueError:
        return None
    return region if provider == "openai" and rest == "api.openai.com" else None


def is_loopback(base: str | None) -> bool:
    """Whether a base URL is this machine itself."""
    try:
        host = urlsplit(base or "").hostname or ""
    except ValueError:
        return False
    return host in ("localhost", "::1") or host.startswith("127.")


def provider_extra(provider: str) -> dict[str, str]:
    """Further parameters that LiteLLM's config for `provider` needs from the environment."""
    if provider != "azure":
        return {}
    version = environment().get("AZURE_API_VERSION")
    return {"api_version": version} if version else {}
