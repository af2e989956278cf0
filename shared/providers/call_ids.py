"""Gives a conversation's tool calls ids that the next provider takes; each provider's own go back to it unchanged."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# The ids that a provider or a wire takes, and the length of those that replace others. Sources: Mistral's error 3280,
# OpenAI's string_above_max_length, Anthropic's and Amazon Bedrock's patterns (from general knowledge, 2026-11-28).
_TAKEN: Mapping[str, tuple[re.Pattern[str], int]] = {
    "mistral": (re.compile(r"[a-zA-Z0-9]{9}"), 9),
    "codestral": (re.compile(r"[a-zA-Z0-9]{9}"), 9),
    "anthropic": (re.compile(r"[a-zA-Z0-9_-]{1,64}"), 24),
    "bedrock": (re.compile(r"[a-zA-Z0-9_-]{1,64}"), 24),
    "vertex_ai": (re.compile(r"[a-zA-Z0-9_-]{1,64}"), 24),
    "openai": (re.compile(r".{1,40}", re.DOTALL), 24),
}
_ANY = (re.compile(r".+", re.DOTALL), 24)


def fit_call_ids(messages: Sequence[dict[str, Any]], provider: str, wire: str) -> list[dict[str, Any]]:
    """
    The messages with ids of tool calls that the provider takes: the same each time, so that its cache still fits.

    Ids that are missing, or that an earlier call has, are replaced too; results are matched to the calls before them.
    """
    taken, length = _TAKEN.get(provider, _TAKEN.get(wire, _ANY))
    ids = _Ids(taken, length)
    fitted: list[dict[str, Any]] = []
    for message in messages:
        calls = message.get("tool_calls")
        if isinstance(calls, list) and calls and all(isinstance(call, Mapping) for call in calls):
            ids.waiting.clear()
            fitted.append({**message, "tool_calls": [{**call, "id": ids.of_call(call.get("id"))} for call in calls]})
        elif message.get("role") == "tool":
            fitted.append({**message, "tool_call_id": ids.of_result(message.get("tool_call_id"))})
        else:
            fitted.append(message)
    return fitted


class _Ids:
    """The ids of one conversation: what they were and what they are."""

    def __init__(self, taken: re.Pattern[str], length: int) -> None:
        self._taken = taken
        self._length = length
        self._used: set[str] = set()
        self.waiting: list[tuple[Any, str]] = []
        """The calls of the last message that have no result yet."""

    def of_call(self, given: Any) -> str:
        is_new = isinstance(given, str) and bool(given) and given not in self._used
        new = self._fit(given) if is_new else self._made(f"{given}/{len(self._used)}")
        self._used |= {new} | ({given} if is_new else set())
        self.waiting.append((given, new))
        return new

    def of_result(self, given: Any) -> Any:
        """The id of the call that a result belongs to: the one with its id, without an id the next one in order."""
        found = next((pair for pair in self.waiting if pair[0] == given or not given), None)
        if found is None:
            return self._fit(given) if isinstance(given, str) and given else given
        self.waiting.remove(found)
        return found[1]

    def _fit(self, given: str) -> str:
        return given if self._taken.fullmatch(given) else self._made(given)

    def _made(self, text: str) -> str:
        """An id of letters and digits that depends on the text only."""
        number = int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest())
        letters = ""
        while len(letters) < self._length:
            number, rest = divmod(number, len(_ALPHABET))
            letters += _ALPHABET[rest]
        return letters
