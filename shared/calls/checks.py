"""Checks of a request that need no model: what no provider could answer is refused before planning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shared.errors import ConfigurationError, InvalidRequest
from shared.models import check_values
from shared.types import Request, TaskType

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


def check_request(request: Request, fallback_models: Sequence[str] | None) -> None:
    """
    Refuse a request that no provider could answer.

    Raises:
        InvalidRequest: An argument has the wrong type or is out of range.
    """
    if isinstance(request.messages, str) or not isinstance(request.messages, Sequence) or not request.messages:
        raise InvalidRequest("messages must be a list of at least one message", hint=_MESSAGE_HINT)
    for message in request.messages:
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            raise InvalidRequest("Each message must be a dict with a role", hint=_MESSAGE_HINT)
    if isinstance(fallback_models, str) or not all(isinstance(name, str) for name in fallback_models or ()):
        raise InvalidRequest("fallback_models must be a list of model names", hint='Give ["openai/gpt-5.4-mini"].')
    if request.prompt_cache not in (None, "auto", "1h"):
        raise InvalidRequest('prompt_cache must be "auto", "1h" or None')
    if request.fallback_on is not None:
        _check_fallback_on(request)
    if request.task is TaskType.IMAGE_GENERATION:
        prompt = request.messages[0]["content"]
        if not isinstance(prompt, str) or not prompt.strip():
            raise InvalidRequest("prompt must be a text that describes the image")
        check_values(request.params)
    if request.params.get("detail", "auto") not in ("low", "high", "auto"):
        raise InvalidRequest("detail must be low, high or auto")
    temperature, max_tokens = request.params.get("temperature"), request.params.get("max_tokens")
    if temperature is not None and (isinstance(temperature, bool) or not _within(temperature, 0, 2)):
        raise InvalidRequest("temperature must be a number from 0 to 2")
    if max_tokens is not None and (
        isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or not 1 <= max_tokens <= 10_000_000
    ):
        raise InvalidRequest("max_tokens must be a whole number of at least 1")


def _check_fallback_on(request: Request) -> None:
    if not callable(request.fallback_on):
        raise InvalidRequest("fallback_on must be a function of the response")
    if request.stream:
        raise InvalidRequest("fallback_on needs the whole answer, and a stream is read before it ends", hint=_NO_STREAM)
    if request.task is TaskType.IMAGE_GENERATION:
        raise InvalidRequest("fallback_on is for text: images are not paid for twice", hint="Leave it out.")


_NO_STREAM = "Leave out stream or fallback_on."
_MESSAGE_HINT = 'Give [{"role": "user", "content": "Hello"}].'


def _within(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and low <= value <= high


def check_seconds(name: str, value: Any) -> float:
    """
    `value` as a float.

    Raises:
        ConfigurationError: It is not a number of seconds, more than 0 and at most a day.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 86_400:
        raise ConfigurationError(f"{name} must be a number of seconds, more than 0 and at most 86,400")
    return float(value)
