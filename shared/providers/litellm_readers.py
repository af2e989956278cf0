"""Reads Anthropic's and Gemini's responses: content through LiteLLM's readers, usage and finish reason directly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import httpx

from shared.providers.request import Outgoing
from shared.providers.response import Reading, UnreadableError, clean, take_tool_call
from shared.providers.usage import anthropic_served, anthropic_usage, details, gemini_grounding, gemini_usage

# What Gemini says about its answer, in the last part of a stream, and where it is kept.
_GEMINI_BESIDE = {
    "groundingMetadata": "grounding_metadata",
    "citationMetadata": "citation_metadata",
    "urlContextMetadata": "url_context_metadata",
    "logprobsResult": "logprobs",
}

type Take = Callable[[Reading, Mapping[str, Any]], None]


class NoLog:
    """A logging object for LiteLLM's readers that logs nothing."""

    optional_params: Mapping[str, Any] = {}

    def post_call(self, *_: Any, **__: Any) -> None:
        """Do nothing."""


def as_raw_response(body: Mapping[str, Any], text: str = "") -> Any:
    """A successful response with this JSON body, as LiteLLM's readers take it."""
    return SimpleNamespace(json=lambda: body, text=text, headers=httpx.Headers(), status_code=200)


def read_anthropic(reading: Reading, body: Mapping[str, Any], outgoing: Outgoing) -> None:
    """Read a complete response of Anthropic's /v1/messages."""
    if not isinstance(body.get("content"), list):
        raise UnreadableError("an answer without content")
    # LiteLLM would count and map these fields itself, and fails on values that it does not expect.
    plain = {**body, "usage": {"input_tokens": 0, "output_tokens": 0}, "stop_reason": "end_turn", "model": ""}
    reading.began = True
    reading.identify(body)
    reading.finish(body.get("stop_reason"))
    _add_usage(reading, body)
    _take_message(reading, _transform(outgoing, plain))
    if outgoing.json_mode and reading.finish_reason == "tool_calls" and not reading.tool_calls:
        reading.finish_reason = "stop"


def anthropic_events(outgoing: Outgoing) -> Take:
    """A reader for the events of Anthropic's stream."""
    from litellm.llms.anthropic.chat.handler import ModelResponseIterator
    from litellm.llms.anthropic.chat.transformation import ANTHROPIC_TOOL_NAME_REVERSE_MAP_KEY

    # Names of tools that the request had to rename.
    names = outgoing.litellm_params.get(ANTHROPIC_TOOL_NAME_REVERSE_MAP_KEY)
    parser = ModelResponseIterator(None, sync_stream=False, json_mode=outgoing.json_mode, tool_name_reverse_map=names)

    def take(reading: Reading, event: Mapping[str, Any]) -> None:
        kind = event.get("type")
        if kind == "message_start" and isinstance(message := event.get("message"), dict):
            reading.began = True
            reading.identify(message)
            _add_usage(reading, message)
        elif kind == "message_delta":
            _add_usage(reading, event)
            delta = event.get("delta")
            reading.finish(delta.get("stop_reason") if isinstance(delta, dict) else None)
            if parser.converted_response_format_tool and reading.finish_reason == "tool_calls":
                reading.finish_reason = "stop"
        elif kind == "message_stop":
            reading.ended = True
        elif isinstance(kind, str) and kind.startswith("content_block_"):
            reading.began = True
            _take_chunk(reading, parser, event)

    return take


def _add_usage(reading: Reading, source: Mapping[str, Any]) -> None:
    """Merge usage counts, and how the request was served. Anthropic's counts are running totals."""
    reading.take_usage(source.get("usage"), lambda usage: anthropic_usage(usage, reading.response_model))
    reading.service_tier, reading.region = anthropic_served(reading.raw_usage)


def read_gemini(reading: Reading, body: Mapping[str, Any], outgoing: Outgoing) -> None:
    """Read a complete response of Gemini's generateContent."""
    if take_gemini_metadata(reading, body):
        zero = {"promptTokenCount": 0, "candidatesTokenCount": 0, "totalTokenCount": 0}
        _take_message(reading, _transform(outgoing, {**_gemini_plain(body, finish="STOP"), "usageMetadata": zero}))
    elif not reading.began:
        raise UnreadableError("an answer without candidates")


def gemini_events(_: Outgoing) -> Take:
    """A reader for the events of Gemini's stream."""
    from litellm.llms.vertex_ai.gemini.vertex_and_google_ai_studio_gemini import ModelResponseIterator

    parser = ModelResponseIterator(None, sync_stream=False, logging_obj=NoLog())  # type: ignore[arg-type]  # our stub

    def take(reading: Reading, event: Mapping[str, Any]) -> None:
        if take_gemini_metadata(reading, event):
            _take_chunk(reading, parser, _gemini_plain(event, finish=None), whole_calls=True)

    return take


def take_gemini_metadata(reading: Reading, body: Mapping[str, Any], *, image_output: bool = False) -> bool:
    """
    Read everything but the content: model, id, usage, block reason and finish reason.

    Args:
        image_output: Whether the model generates images, as for `gemini_usage`.

    Returns:
        Whether there is a candidate whose content can be read.
    """
    reading.identify(body, "modelVersion", "responseId")
    candidates = body.get("candidates")
    first = candidates[0] if isinstance(candidates, list) and candidates else None
    image_output = image_output or _has_image(first) or "images" in reading.extras
    usage = body.get("usageMetadata")
    reading.take_usage(usage, lambda usage: gemini_usage(usage, image_output=image_output))
    reading.take_tier(reading.raw_usage.get("trafficType"))
    feedback = body.get("promptFeedback")
    if isinstance(feedback, dict) and feedback.get("blockReason"):
        reading.began = True
        reading.finish_reason = "content_filter"
        reading.refusal = clean(str(feedback.get("blockReasonMessage") or feedback["blockReason"]))
    if first is None:
        return False
    if not isinstance(first, dict):
        raise UnreadableError("a candidate that is not an object")
    reading.began = True
    reading.take_units(gemini_grounding(first))
    reading.finish(first.get("finishReason"))
    for name, kept_as in _GEMINI_BESIDE.items():
        if first.get(name):
            reading.extras[kept_as] = first[name]
    return True


def _has_image(candidate: Any) -> bool:
    """Whether a candidate holds an image that the model made."""
    parts = details(candidate, "content").get("parts") if isinstance(candidate, dict) else None
    datas = [part.get("inlineData") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return any(str(details({"data": data}, "data").get("mimeType")).startswith("image/") for data in datas)


def _gemini_plain(body: Mapping[str, Any], *, finish: str | None) -> dict[str, Any]:
    """The first candidate alone, without usage and without finish reasons for which LiteLLM would drop the text."""
    first = {name: value for name, value in body["candidates"][0].items() if name != "finishReason"}
    if finish:
        first["finishReason"] = finish
        first.setdefault("content", {"parts": []})
    return {"candidates": [first], **({"responseId": body["responseId"]} if "responseId" in body else {})}


def _transform(outgoing: Outgoing, body: dict[str, Any]) -> Any:
    """The message that LiteLLM's config makes from a complete response."""
    from litellm.types.utils import ModelResponse

    try:
        response = outgoing.config.transform_response(
            model="",
            raw_response=as_raw_response(body),
            model_response=ModelResponse(),
            logging_obj=NoLog(),
            request_data={},
            messages=outgoing.messages,
            optional_params={},
            litellm_params=outgoing.litellm_params,
            encoding=None,
            json_mode=outgoing.json_mode,
        )
        return response.choices[0].message
    except Exception as error:  # LiteLLM's readers raise exceptions of any type
        raise UnreadableError("an answer with an unknown structure") from error


def _take_chunk(reading: Reading, parser: Any, event: Mapping[str, Any], *, whole_calls: bool = False) -> None:
    """Read one event through LiteLLM's iterator."""
    try:
        chunk = parser.chunk_parser(dict(event))
        choices = chunk.choices if chunk is not None else ()
    except Exception as error:
        raise UnreadableError("an event with an unknown structure") from error
    for choice in choices:
        _take_message(reading, choice.delta, whole_calls=whole_calls)


def _take_message(reading: Reading, message: Any, *, whole_calls: bool = True) -> None:
    """Read a message or a delta in LiteLLM's format; `whole_calls`: its tool calls are complete."""
    if isinstance(content := getattr(message, "content", None), str):
        reading.pieces.append(clean(content))
    if isinstance(thought := getattr(message, "reasoning_content", None), str) and thought:
        reading.reasoning.append(clean(thought))
    for call in getattr(message, "tool_calls", None) or ():
        take_tool_call(reading, call if isinstance(call, dict) else call.model_dump(), whole=whole_calls)
    take_beside(reading, message)
    for block in getattr(message, "thinking_blocks", None) or ():
        # A streamed block is repeated as a whole, with its signature; the next turn needs that one.
        if block.get("signature") or block.get("type") == "redacted_thinking":
            reading.extras.setdefault("thinking_blocks", []).append(dict(block))


def take_beside(reading: Reading, message: Any) -> None:
    """Keep what a message in LiteLLM's format holds beside its text: images, sound, sources."""
    for name in ("images", "audio", "annotations"):
        value = getattr(message, name, None)
        value = [_plain(each) for each in value] if isinstance(value, list) else _plain(value)
        reading.add(name, value)
    fields = getattr(message, "provider_specific_fields", None)
    if not isinstance(fields, dict):
        return
    if citation := fields.get("citation"):
        reading.add("citations", [citation])  # one by one in a stream
    kept = {name: value for name, value in fields.items() if value and name not in ("thinking_blocks", "citation")}
    if found := kept.get("citations"):
        reading.extras["citations"] = [c for block in found for c in (block if isinstance(block, list) else [block])]
    if kept:
        reading.extras.setdefault("provider_specific_fields", {}).update(kept)


def _plain(value: Any) -> Any:
    return value.model_dump() if hasattr(value, "model_dump") else value
