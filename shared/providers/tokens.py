"""Estimates token counts offline, for requests whose provider reports none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shared.providers.endpoints import import_litellm
from shared.types import Candidate, Usage

_IMAGE_TOKENS = 800
_MESSAGE_TOKENS = 4
_SLICE = 20_000


def count_tokens(
    candidate: Candidate,  # noqa: ARG001 - so far all models are counted with one encoding
    messages: Sequence[Mapping[str, Any]],
    text: str,
) -> Usage:
    """
    Estimate the usage of a request whose provider reported none, without the network.

    Args:
        text: The model's output.

    Returns:
        Usage with source "counted"; unknown usage if counting fails.
    """
    try:
        import_litellm()
        prompt = sum(_MESSAGE_TOKENS + sum(_count(part) for part in _texts_of(message)) for message in messages)
        return Usage(prompt_tokens=prompt, completion_tokens=_count(text), source="counted")
    except Exception:  # noqa: BLE001 - a failed estimate must never fail the call that it is for
        return Usage()


def _texts_of(message: Mapping[str, Any]) -> Iterator[str | None]:
    """The texts of a message, with None for each picture or file."""
    content = message.get("content")
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            yield part
        elif isinstance(part, Mapping):
            yield part["text"] if isinstance(part.get("text"), str) else None
    if calls := message.get("tool_calls"):
        yield str(calls)


def _count(text: str | None) -> int:
    """Tokens in the encoding that LiteLLM bundles; a fixed number for a picture."""
    from litellm.litellm_core_utils.default_encoding import encoding

    if text is None:
        return _IMAGE_TOKENS
    # In slices, since the time grows quadratically with the length of a text without spaces.
    slices = (text[start : start + _SLICE] for start in range(0, len(text), _SLICE))
    return sum(len(encoding.encode(part, disallowed_special=())) for part in slices)
