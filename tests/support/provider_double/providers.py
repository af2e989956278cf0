"""Which provider a request is for, by host, prefix or path, and what that provider's endpoints are."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from . import anthropic, cohere, gemini, ollama, openai, pictures, replicate
from .script import Reply
from .wire import Answer, Call

HOSTS = {
    "api.openai.com": "openai",
    pictures.FILES_HOST: "openai",
    "api.anthropic.com": "anthropic",
    "generativelanguage.googleapis.com": "gemini",
    "api.cohere.com": "cohere",
    "api.cohere.ai": "cohere",
    "api.mistral.ai": "mistral",
    "api.groq.com": "groq",
    "api.together.xyz": "together_ai",
    "api.together.ai": "together_ai",
    "api.deepseek.com": "deepseek",
    "openrouter.ai": "openrouter",
    "api.x.ai": "xai",
    "api.perplexity.ai": "perplexity",
    "api.cerebras.ai": "cerebras",
    "router.huggingface.co": "huggingface",
    "api.replicate.com": "replicate",
    "stream.replicate.com": "replicate",
}
SUFFIXES = {
    ".openai.azure.com": "azure",
    ".cognitiveservices.azure.com": "azure",
    "aiplatform.googleapis.com": "vertex_ai",
}
ALIASES = {
    "cohere_chat": "cohere",
    "ollama_chat": "ollama",
    "together": "together_ai",
    "vertex_ai_beta": "vertex_ai",
}
"""Other names LiteLLM has for these providers."""

LOCAL = ("127.0.0.1", "localhost", "::1", "testserver")

BASES = {
    "openai": "/v1",
    "mistral": "/v1",
    "groq": "/openai/v1",
    "together_ai": "/v1",
    "deepseek": "/beta",
    "openrouter": "/api/v1",
    "xai": "/v1",
    "cerebras": "/v1",
    "gemini": "/v1beta",
}
"""What a client calls the provider's base, below its host."""

type Render = Callable[[Call, Reply], Answer]


@dataclass(frozen=True)
class Endpoint:
    """One path of one provider."""

    provider: str
    method: str
    path: re.Pattern[str]
    operation: str
    render: Render | None
    """None: Replicate's, which need what was made before."""


def _compatible(provider: str, path: str) -> Endpoint:
    return Endpoint(provider, "POST", re.compile(path + "/chat/completions"), "chat", openai.chat)


def _images(provider: str, path: str) -> list[Endpoint]:
    return [
        Endpoint(provider, "POST", re.compile(f"{path}/images/{name}"), operation, pictures.images)
        for name, operation in (("generations", "images"), ("edits", "edits"))
    ]


def _google(provider: str, path: str) -> list[Endpoint]:
    model = path + r"/models/(?P<model>[^/:]+):"
    return [
        Endpoint(provider, "POST", re.compile(model + "(generateContent)"), "chat", gemini.generate),
        Endpoint(provider, "POST", re.compile(model + "(?P<stream>streamGenerateContent)"), "chat", gemini.generate),
        Endpoint(provider, "POST", re.compile(model + "predict"), "images", gemini.predict),
    ]


_AZURE = r"/openai/deployments/(?P<model>[^/]+)"

ENDPOINTS: list[Endpoint] = [
    _compatible("openai", "/v1"),
    *_images("openai", "/v1"),
    Endpoint("openai", "GET", re.compile("/double/(?P<model>[^/]+)"), "file", pictures.file),
    Endpoint("anthropic", "POST", re.compile("/v1/messages"), "chat", anthropic.messages),
    *_google("gemini", "/v1(?:beta|alpha)?"),
    *_google("vertex_ai", "/v1(?:beta1)?/projects/[^/]+/locations/[^/]+/publishers/google"),
    Endpoint("cohere", "POST", re.compile("/v2/chat"), "chat", cohere.chat),
    Endpoint("ollama", "POST", re.compile("/api/chat"), "chat", ollama.chat),
    Endpoint("ollama", "POST", re.compile("/api/generate"), "generate", ollama.generate),
    _compatible("azure", _AZURE),
    *_images("azure", _AZURE),
    Endpoint(
        "replicate", "POST", re.compile("/v1/models/(?P<model>[^/]+/[^/]+)/predictions"), "chat", replicate.create
    ),
    Endpoint("replicate", "GET", re.compile("/v1/predictions/(?P<model>[^/]+)"), "poll", None),
    Endpoint("replicate", "GET", re.compile("/v1/files/(?P<model>[^/]+)"), "stream", None),
    _compatible("openrouter", "/api/v1"),
    _compatible("groq", "/openai/v1"),
    _compatible("deepseek", "(?:/beta|/v1)?"),
    _compatible("mistral", "/v1"),
    _compatible("together_ai", "/v1"),
    *_images("together_ai", "/v1"),
    _compatible("xai", "/v1"),
    *_images("xai", "/v1"),
    _compatible("perplexity", ""),
    _compatible("cerebras", "/v1"),
    _compatible("huggingface", "(?:/[^/]+)?/v1"),
]
"""In order: the first that fits is taken where only the path can tell."""

PROVIDERS = sorted({endpoint.provider for endpoint in ENDPOINTS})


def canonical(provider: str) -> str:
    """The double's name of a provider; KeyError when it has none."""
    name = ALIASES.get(provider, provider)
    if name not in PROVIDERS:
        raise KeyError(f"the double knows no provider {provider!r}; it knows {', '.join(PROVIDERS)}")
    return name


def provider_of_host(host: str) -> str:
    """The provider behind a host name; "" when the host is the loopback or unknown."""
    name = host.rsplit(":", 1)[0].strip("[]").lower() if not host.endswith("]") else host.strip("[]")
    if name in HOSTS:
        return HOSTS[name]
    return next((provider for suffix, provider in SUFFIXES.items() if name.endswith(suffix)), "")


def split(host: str, path: str) -> tuple[str, str, str]:
    """Provider, prefix and the provider's own path; provider "" when only the path's shape can tell."""
    provider = provider_of_host(host)
    if provider:
        return provider, "", path
    first, _, rest = path.removeprefix("/").partition("/")
    name = ALIASES.get(first, first)
    if name in PROVIDERS and not path.startswith("/openai/deployments/"):
        return name, f"/{first}", f"/{rest}"
    return "", "", path


def find(provider: str, method: str, path: str) -> tuple[Endpoint, Mapping[str, str]] | None:
    """The endpoint a request is for and what its path says; None: there is no such path."""
    for endpoint in ENDPOINTS:
        if provider and endpoint.provider != provider:
            continue
        match = endpoint.path.fullmatch(path)
        if match and endpoint.method == method:
            return endpoint, {key: value for key, value in match.groupdict().items() if value}
    return None


def has_key(provider: str, headers: Mapping[str, str], query: Mapping[str, str]) -> bool:
    """Whether the request carries a key where this provider looks for one."""
    bearer = headers.get("authorization", "")
    if provider == "ollama":
        return True
    if provider == "anthropic":
        return bool(headers.get("x-api-key") or bearer)
    if provider == "gemini":
        return bool(headers.get("x-goog-api-key") or query.get("key") or bearer)
    if provider == "azure":
        return bool(headers.get("api-key") or bearer)
    return len(bearer.split()) == 2


def own_headers(call: Call) -> dict[str, str]:
    """The headers a provider sends with everything."""
    ident = call.ident
    if call.provider == "openai":
        limits = {"limit-requests": "10000", "limit-tokens": "2000000", "remaining-requests": "9999"}
        limits |= {"remaining-tokens": "1999000", "reset-requests": "6ms", "reset-tokens": "30ms"}
        return {f"x-ratelimit-{name}": value for name, value in limits.items()} | {
            "x-request-id": f"req_{ident}",
            "openai-organization": "org-double",
            "openai-processing-ms": "42",
            "openai-version": "2020-10-01",
            "set-cookie": "__cf_bm=double; path=/; HttpOnly; Secure",
        }
    if call.provider == "anthropic":
        return {
            "request-id": f"req_011{ident[:22]}",
            "anthropic-organization-id": "00000000-0000-4000-8000-000000000000",
            "anthropic-ratelimit-requests-limit": "1000",
            "anthropic-ratelimit-requests-remaining": "999",
            "anthropic-ratelimit-requests-reset": "2026-01-01T00:00:01Z",
        }
    if call.provider == "groq":
        return {"x-groq-region": "double", "x-request-id": f"req_{ident[:26]}"}
    if call.provider == "mistral":
        return {"x-ratelimit-limit-tokens-minute": "100000", "x-ratelimit-remaining-tokens-minute": "99000"}
    if call.provider in ("gemini", "vertex_ai"):
        return {"server": "scaffolding on HTTPServer2"}
    if call.provider == "azure":
        return {"apim-request-id": ident, "x-ms-region": "Double"}
    return {}


STREAM_TYPES = {
    "openai": "text/event-stream; charset=utf-8",
    "anthropic": "text/event-stream; charset=utf-8",
    "mistral": "text/event-stream; charset=utf-8",
}
JSON_TYPES = {
    "gemini": "application/json; charset=UTF-8",
    "vertex_ai": "application/json; charset=UTF-8",
    "huggingface": "application/json; charset=utf-8",
}


def content_type(call: Call, framing: str) -> str:
    """The content type a provider gives a plain answer or a stream."""
    if framing == "sse":
        return STREAM_TYPES.get(call.provider, "text/event-stream")
    if framing == "ndjson":
        return "application/x-ndjson"
    return JSON_TYPES.get(call.provider, "application/json")
