"""Chat requests in each provider's own form, and the text of the answers: for tests of the double and of clients."""

from typing import Any

import httpx

from .shapes import events_of

KEYS = {"authorization": "Bearer key", "x-api-key": "key", "x-goog-api-key": "key"}
PROMPT = "Say hello, please."
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 50}
GEMINI_ASK: dict[str, Any] = {"contents": [{"parts": [{"text": PROMPT}], "role": "user"}]}
GEMINI = "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:"
AZURE = "https://example.openai.azure.com/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21"

ENDPOINTS: dict[str, tuple[str, str]] = {
    "openai": ("https://api.openai.com/v1/chat/completions", "gpt-4o-mini"),
    "anthropic": ("https://api.anthropic.com/v1/messages", "claude-haiku-4-5"),
    "cohere": ("https://api.cohere.com/v2/chat", "command-a-03-2025"),
    "mistral": ("https://api.mistral.ai/v1/chat/completions", "mistral-small-latest"),
    "groq": ("https://api.groq.com/openai/v1/chat/completions", "llama-3.3-70b-versatile"),
    "together_ai": ("https://api.together.xyz/v1/chat/completions", "meta-llama/Llama-3.3-70B"),
    "deepseek": ("https://api.deepseek.com/beta/chat/completions", "deepseek-v4-flash"),
    "openrouter": ("https://openrouter.ai/api/v1/chat/completions", "openai/gpt-4o-mini"),
    "xai": ("https://api.x.ai/v1/chat/completions", "grok-3"),
    "perplexity": ("https://api.perplexity.ai/chat/completions", "sonar"),
    "cerebras": ("https://api.cerebras.ai/v1/chat/completions", "llama3.1-8b"),
    "huggingface": ("https://router.huggingface.co/together/v1/chat/completions", "meta-llama/Llama-4-Scout"),
    "ollama": ("http://localhost:11434/api/chat", "llama3.2"),
    "azure": (AZURE, "gpt-4o"),
    "gemini": (GEMINI, "gemini-2.5-flash"),
}
"""Each provider's chat URL and a model; Replicate's predictions are another matter."""


def question(provider: str, stream: bool = False, **more: Any) -> tuple[str, dict[str, Any]]:
    """URL and body of a chat request in the provider's own form."""
    url, model = ENDPOINTS[provider]
    if provider == "gemini":
        return url + ("streamGenerateContent?alt=sse" if stream else "generateContent"), GEMINI_ASK | more
    options = {"stream_options": {"include_usage": True}} if stream else {}
    return url, ASK | {"model": model, "stream": stream} | options | more


def ask(client: httpx.Client, provider: str, stream: bool = False, **more: Any) -> httpx.Response:
    """Ask and read the whole answer."""
    url, body = question(provider, stream, **more)
    return client.post(url, json=body)


def text_of(data: Any) -> str:
    """All text an answer or an event brings, on any wire."""
    if isinstance(data, list):
        return "".join(text_of(item) for item in data)
    if not isinstance(data, dict) or data.get("type") == "thinking":
        return ""
    own = [data[key] for key in ("text", "content", "response") if isinstance(data.get(key), str)]
    inner = (data.get(key) for key in ("choices", "candidates", "message", "delta", "content", "parts"))
    return (own[-1] if own else "") + "".join(text_of(value) for value in inner if not isinstance(value, str))


def streamed_text(body: bytes) -> str:
    """The text of a stream, without what a chunk repeats beside its delta."""
    texts = []
    for _, data in events_of(body):
        for choice in data.get("choices", []) if isinstance(data, dict) else []:
            for key in ("message", "text"):
                choice.pop(key, None)
        texts.append(text_of(data))
    return "".join(texts)
