"""Gemini's generateContent: running totals on every chunk, a stream that just ends, images inside the answer."""

from dataclasses import replace
from typing import Any

from . import pictures
from .script import Reply, Usage, count
from .wire import CREATED_ISO, Answer, Body, Call, Content, Frame, content_of, plain, spend, with_image

FINISH_REASONS = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP", "content_filter": "SAFETY"}
IMAGE_TOKENS = 258
"""Documented tokens of a small input image."""


def generate(call: Call, reply: Reply) -> Answer:
    """POST …:generateContent and …:streamGenerateContent?alt=sse."""
    if reply.refusal:
        return _blocked(call, reply)
    content = content_of(call, reply, image_tokens=IMAGE_TOKENS)
    if _wants_image(call):
        content = with_image(reply, content)
    if call.stream:
        return _stream(call, reply, content)
    parts = _thought(call, reply) + ([{"text": content.text}] if content.text else []) + _other(call, reply)
    return plain(_answer(call, content, parts, content.usage, last=True), content.usage)


def predict(call: Call, reply: Reply) -> Answer:
    """POST …:predict, Imagen's images."""
    parameters = call.body.get("parameters") or {}
    number = int(parameters.get("sampleCount") or 1)
    item = {"mimeType": "image/png", "bytesBase64Encoded": pictures.b64(call, reply)}
    answer = plain({"predictions": [item] * number}, reply.usage or Usage(0, 0, images=number))
    answer.frames[0].usage = False
    return answer


def _old(call: Call) -> bool:
    return "gemini-2.0" in call.model or "gemini-1" in call.model


def _config(call: Call) -> Body:
    config = call.body.get("generationConfig")
    return config if isinstance(config, dict) else {}


def _wants_image(call: Call) -> bool:
    config = _config(call)
    wanted = config.get("responseModalities") or config.get("response_modalities") or ()
    return "IMAGE" in [str(item).upper() for item in wanted] or "-image" in call.model


def _thought(call: Call, reply: Reply) -> list[Body]:
    thinking = _config(call).get("thinkingConfig") or {}
    shown = reply.reasoning and thinking.get("includeThoughts")
    return [{"text": reply.reasoning, "thought": True}] if shown else []


def _other(call: Call, reply: Reply) -> list[Body]:
    parts: list[Body] = [
        {"functionCall": {"name": tool.name, "args": dict(tool.arguments)}} for tool in reply.tool_calls
    ]
    if _wants_image(call):
        parts.append({"inlineData": {"mimeType": "image/png", "data": pictures.b64(call, reply)}})
    return parts


def _usage(call: Call, usage: Usage, last: bool) -> Body:
    text = usage.input - usage.input_images
    details = [{"modality": "TEXT", "tokenCount": text}]
    if usage.input_images:
        details.append({"modality": "IMAGE", "tokenCount": usage.input_images})
    body: Body = {"promptTokenCount": usage.input}
    if last or not _old(call):
        body["candidatesTokenCount"] = usage.output - usage.reasoning
    body["totalTokenCount"] = usage.input + (usage.output if last or not _old(call) else 0)
    if usage.cached:
        body["cachedContentTokenCount"] = usage.cached
    body["promptTokensDetails"] = details
    if usage.images:
        body["candidatesTokensDetails"] = [{"modality": "IMAGE", "tokenCount": usage.output}]
    elif last and _old(call):
        body["candidatesTokensDetails"] = [{"modality": "TEXT", "tokenCount": usage.output}]
    if usage.reasoning:
        body["thoughtsTokenCount"] = usage.reasoning
    body["serviceTier"] = "standard"
    if call.provider == "vertex_ai":
        body["trafficType"] = "ON_DEMAND"
    return body


def _head(call: Call, model: str) -> Body:
    head: Body = {"modelVersion": model, "responseId": call.ident[:22]}
    return head | ({"createTime": CREATED_ISO} if call.provider == "vertex_ai" else {})


def _answer(call: Call, content: Content, parts: list[Body], usage: Usage, last: bool) -> Body:
    candidate: Body = {"content": {"parts": parts, "role": "model"}}
    if not parts:
        candidate["content"] = {"role": "model"}
    if last:
        candidate["finishReason"] = FINISH_REASONS.get(content.finish, content.finish)
    if not _old(call):
        candidate["index"] = 0
    body: Body = {"candidates": [candidate], "usageMetadata": _usage(call, usage, last)}
    return body | _head(call, content.model)


def _stream(call: Call, reply: Reply, content: Content) -> Answer:
    items: list[tuple[list[Body], int]] = [([part], content.usage.reasoning) for part in _thought(call, reply)]
    items += [([{"text": piece}], count(piece)) for piece in content.chunks]
    other = _other(call, reply)
    if other:
        items.append((other, content.usage.output))
    items = items or [([], 0)]
    frames, tokens = [], 0
    for number, (parts, more) in enumerate(items, start=1):
        tokens += more
        last = number == len(items)
        usage = content.usage if last else _so_far(content.usage, tokens)
        kind: Any = "finish" if last else "delta"
        frames.append(Frame(_answer(call, content, parts, usage, last), kind, tokens=more, usage=last))
    if call.query.get("alt") == "sse":
        return Answer(200, frames, "sse", usage=content.usage)
    return plain([frame.data for frame in frames], content.usage)


def _so_far(usage: Usage, tokens: int) -> Usage:
    """Thinking comes before the text, so its tokens are in every running total."""
    return replace(spend(usage, tokens + usage.reasoning), reasoning=usage.reasoning)


def _blocked(call: Call, reply: Reply) -> Answer:
    """A prompt the filter stopped: no candidate and no counts."""
    vertex = call.provider == "vertex_ai"
    usage: Body = {"trafficType": "ON_DEMAND"} if vertex else {"promptTokenCount": 0, "totalTokenCount": 0}
    feedback = {"blockReason": "SAFETY", "blockReasonMessage": reply.refusal}
    body = {"promptFeedback": feedback, "usageMetadata": usage} | _head(call, reply.response_model or call.model)
    if call.stream:
        return Answer(200, [Frame(body, "finish")], "sse")
    return Answer(200, [Frame(body, "body")])
