"""What is asked of every provider, what it is scripted to answer, and what our client must make of that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from shared import errors
from tests.support.provider_double import ToolCall, Usage

# One red pixel.
PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def _says(text: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "Answer in one short sentence."}, {"role": "user", "content": text}]


@dataclass(frozen=True)
class Scene:
    """One operation: the question, the scripted reply, and the answer or error to expect."""

    name: str
    messages: list[dict[str, Any]]
    params: Mapping[str, Any] = field(default_factory=dict)
    reply: Mapping[str, Any] = field(default_factory=dict)
    stream: bool = False
    text: str = ""
    usage: Usage = field(default_factory=lambda: Usage(11, 7))
    finish: str = "stop"
    error: type[errors.LLMError] | None = None
    model: str = ""
    """Another model than the provider's own for it."""
    live: bool = True
    """A real endpoint can be brought to it."""


_CAPITAL = "The capital of France is Paris."
_CALL = ToolCall("get_weather", {"city": "Paris"})

ANSWERS = (
    Scene("plain", _says("What is the capital of France?"), reply={"text": _CAPITAL}, text=_CAPITAL),
    Scene(
        "stream",
        _says("What is the capital of France?"),
        reply={"text": _CAPITAL},
        stream=True,
        text=_CAPITAL,
        usage=Usage(13, 9),
    ),
    Scene(
        "vision",
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Which colour is this?"},
                    {"type": "image_url", "image_url": {"url": PNG}},
                ],
            }
        ],
        reply={"text": "Red."},
        text="Red.",
        usage=Usage(95, 3, input_images=85),
    ),
    Scene(
        "cached",
        _says("Which is the longest river of France?"),
        reply={"text": "The Loire."},
        text="The Loire.",
        usage=Usage(1200, 20, cached=1024),
        live=False,
    ),
    Scene(
        "reasoning",
        _says("Is 91 a prime number?"),
        reply={"text": "No, it is 7 times 13.", "reasoning": "91 is 7 times 13."},
        text="No, it is 7 times 13.",
        usage=Usage(30, 60, reasoning=48),
    ),
    Scene(
        "length",
        _says("Name ten rivers."),
        params={"max_tokens": 16},
        reply={"text": "The Loire, the Seine and", "finish_reason": "length"},
        text="The Loire, the Seine and",
        usage=Usage(8, 16),
        finish="length",
    ),
    Scene(
        "tools",
        _says("What is the weather in Paris?"),
        params={"tools": [TOOL]},
        reply={"tool_calls": [_CALL], "text": None},
        usage=Usage(60, 14),
        finish="tool_calls",
    ),
    Scene(
        "tools-stream",
        _says("What is the weather in Paris?"),
        params={"tools": [TOOL]},
        reply={"tool_calls": [_CALL], "text": None},
        stream=True,
        usage=Usage(60, 14),
        finish="tool_calls",
    ),
)

_REFUSAL = "I cannot help with that."
_STOLEN = _says("How are secrets stolen?")


def _blocks(provider: str, **reply: Any) -> tuple[str, Scene]:
    return provider, Scene("refusal", _STOLEN, reply=reply, usage=Usage(9, 6), error=errors.ContentBlocked, live=False)


REFUSALS = (
    _blocks("openai", refusal=_REFUSAL),
    _blocks("gemini", refusal=_REFUSAL),
    _blocks("azure", error="content_policy"),
    _blocks("xai", refusal=_REFUSAL),
    _blocks("openrouter", refusal=_REFUSAL),
    _blocks("deepseek", text=None, finish_reason="content_filter"),
    _blocks("anthropic", text=None, finish_reason="content_filter"),
)
"""Elsewhere a refusal is a text like any other."""


def _fails(name: str, kind: type[errors.LLMError], **reply: Any) -> Scene:
    return Scene(name, _says("What is the capital of Spain?"), reply=reply, error=kind, live=False)


# A key that opens nothing and a model that is not there bring a real endpoint to say so.
ERRORS = (
    _fails("400", errors.InvalidRequest, error="invalid"),
    replace(_fails("401", errors.AuthenticationError, error="auth"), params={"api_key": "wrong-key"}, live=True),
    replace(_fails("404", errors.ModelNotFound, error="not_found"), model="no-such-model", live=True),
    _fails("429", errors.RateLimitError, error="rate_limit", headers={"retry-after": "7"}),
    _fails("500", errors.ProviderUnavailable, error="server"),
    _fails("overloaded", errors.Overloaded, error="overloaded"),
)
