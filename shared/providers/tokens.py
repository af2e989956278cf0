"""Tokens of a request whose provider gave no counts, estimated offline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shared.providers.endpoints import import_litellm
from shared.types import Candidate, Usage

_IMAGE_TOKENS = 800
_MESSAGE_TOKENS = 4
_SLICE = 20_000


def count_tokens(
    candidate: Candidate,  # noqa: ARG001 - all are counted with one encoding so far
    messages: Sequence[Mapping[str, Any]],
    text: str,
) -> Usage:
    """
    An estimate for a request whose provider gave no counts, made offline.

    Returns:
        Usage with source "counted"; unknown usage when it cannot be counted.
    """
    try:
        import_litellm()
        prompt = sum(_MESSAGE_TOKENS + sum(_count(part) for part in _texts_of(message)) for message in messages)
        return Usage(prompt_tokens=prompt, completion_tokens=_count(text), source="counted")
    except Exception:  # noqa: BLE001 - LiteLLM raises bare Exceptions for names it cannot place
        return Usage()


def _texts_of(message: Mapping[str, Any]) -> Iterator[str | None]:
    """The texts of a message; None for each picture or file."""
    content = message.get("content")
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            yield part
        elif isinstance(part, Mapping):
            yield part["text"] if isinstance(part.get("text"), str) else None
    if calls := message.get("tool_calls"):
        yield str(calls)


def _count(text: str | None) -> int:
    """Tokens in the encoding that LiteLLM brings along; a flat figure for a picture."""
    from litellm.litellm_core_utils.default_encoding import encoding

    if text is None:
        return _IMAGE_TOKENS
    # In slices, since its time grows with the square of a text without spaces.
    slices = (text[start : start + _SLICE] for start in range(0, len(text), _SLICE))
    return sum(len(encoding.encode(part, disallowed_special=())) for part in slices)
