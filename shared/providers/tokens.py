"""Estimates token counts offline, for requests whose provider reports none."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from shared.providers.endpoints import import_litellm
from shared.providers.response import Partial
from shared.types import Answer, Candidate, Usage

_IMAGE_TOKENS = 800
_MESSAGE_TOKENS = 4
_SLICE = 20_000


def count_tokens(
    candidate: Candidate,  # noqa: ARG001 - so far all models are counted with one encoding
    messages: Sequence[Mapping[str, Any]],
    text: str,
    *,
    params: Mapping[str, Any] | None = None,
    answer: Answer | None = None,
) -> Usage:
    """
    Estimate the usage of a request whose provider reported none, without the network.

    Args:
        text: The model's output.

        params: The request's, whose tools and schema are input too.

        answer: Its reasoning and tool calls are output too, and what it reports of its usage stays.

    Returns:
        Usage with source "counted"; unknown usage if counting fails.
    """
    try:
        import_litellm()
        prompt = _count_prompt(messages, params or {})
        completion = _count(text) + sum(_count(extra) for extra in _beside_text(answer.message if answer else {}))
        known = Usage() if answer is None else answer.usage
        return replace(
            known,
            prompt_tokens=prompt if known.prompt_tokens is None else known.prompt_tokens,
            completion_tokens=completion if known.completion_tokens is None else known.completion_tokens,
            source="counted",
        )
    except Exception:  # noqa: BLE001 - an estimate must never fail a call that has already been paid for
        return Usage()


def count_partial(
    messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any], partial: Partial | None = None
) -> Usage:
    """
    The usage of a request that did not finish: what was reported, and our own count of the rest.

    Args:
        params: The request's, whose tools and schema are input too.

        partial: What has arrived of its answer. None: nothing.

    Returns:
        Usage with source "provider" where nothing had to be counted, else "counted"; unknown usage if counting fails.
    """
    known = Usage() if partial is None else partial.answer.usage
    written = [] if partial is None else [text for text in partial.uncounted if text]
    if known.prompt_tokens is not None and known.completion_tokens is not None and not written:
        return known
    try:
        import_litellm()
        prompt, completion = known.prompt_tokens, known.completion_tokens
        if prompt is None:
            prompt = _count_prompt(messages, params)
        completion = (completion or 0) + sum(_count(text) for text in written)
        return replace(known, prompt_tokens=prompt, completion_tokens=completion, source="counted")
    except Exception:  # noqa: BLE001 - as above
        return known


def _count_prompt(messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> int:
    prompt = sum(_MESSAGE_TOKENS + sum(_count(part) for part in _texts_of(message)) for message in messages)
    return prompt + sum(_count(extra) for extra in _extras(params))


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


def _extras(params: Mapping[str, Any]) -> Iterator[str]:
    """What a request has beside its messages that the model reads: tools and the schema of its answer."""
    for name in ("tools", "functions", "response_format"):
        if value := params.get(name):
            schema = getattr(value, "model_json_schema", None) if isinstance(value, type) else None
            yield json.dumps(schema() if schema else value, ensure_ascii=False, default=str)


def _beside_text(message: Mapping[str, Any]) -> Iterator[str]:
    """What a model wrote beside its text: reasoning, and its calls of tools."""
    if isinstance(thought := message.get("reasoning_content"), str):
        yield thought
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        yield f"{function.get('name') or ''} {function.get('arguments') or ''}"


def _count(text: str | None) -> int:
    """Tokens in the encoding that LiteLLM bundles; a fixed number for a picture."""
    from litellm.litellm_core_utils.default_encoding import encoding

    if text is None:
        return _IMAGE_TOKENS
    # In slices, since the time grows quadratically with the length of a text without spaces.
    slices = (text[start : start + _SLICE] for start in range(0, len(text), _SLICE))
    return sum(len(encoding.encode(part, disallowed_special=())) for part in slices)
