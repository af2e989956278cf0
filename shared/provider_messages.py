"""What an agent's conversation holds for one provider alone, taken out of requests to the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_THOUGHTS = frozenset({"thinking", "redacted_thinking"})
# Their wires take pictures in a tool's answer; the others take text there.
_TOOLS_SHOW_PICTURES = frozenset({"anthropic", "gemini"})
_NO_TEXT = "(an answer without text)"


def suited(messages: Sequence[dict[str, Any]], wire: str) -> list[dict[str, Any]]:
    """
    The messages for a provider that need not be the one which the conversation began with.

    Args:
        messages: As OpenAI has them; may hold thoughts that Anthropic signed, signatures of Gemini's, and pictures
            that tools gave.

        wire: The wire that they go out on.
    """
    return [_suited(message, wire) for message in messages]


def _suited(message: dict[str, Any], wire: str) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, list):
        if message.get("role") == "tool" and wire not in _TOOLS_SHOW_PICTURES:
            texts = [part for part in content if not isinstance(part, dict) or part.get("type") == "text"]
            message = {**message, "content": texts or _NO_TEXT}
        elif wire != "anthropic" and any(_is_thought(part) for part in content):
            said = [part for part in content if not _is_thought(part)]
            message = {**message, "content": said or None}
    if wire != "gemini" and isinstance(calls := message.get("tool_calls"), list):
        message = {**message, "tool_calls": [_unsigned(call) for call in calls]}
    return message


def _is_thought(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in _THOUGHTS


def _unsigned(call: Any) -> Any:
    if not isinstance(call, dict):
        return call
    return {name: value for name, value in call.items() if name != "provider_specific_fields"}
