"""Anthropic's messages: named events, input_tokens without the cached ones, no [DONE]."""

import json
from typing import Any

from .errors import error_answer
from .script import Reply, ToolCall, Usage, count
from .wire import Answer, Body, Call, Content, Frame, content_of, plain

STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


def messages(call: Call, reply: Reply) -> Answer:
    """POST /v1/messages."""
    if "max_tokens" not in call.body:
        return error_answer(call, Reply(error="invalid", message="max_tokens: Field required"))
    content = content_of(call, reply)
    return _stream(call, reply, content) if call.stream else _plain(call, reply, content)


def _usage(usage: Usage) -> Body:
    return {
        "input_tokens": usage.input - usage.cached - usage.cache_write,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cached,
    }


def _full_usage(usage: Usage, output: int) -> Body:
    return _usage(usage) | {
        "cache_creation": {"ephemeral_5m_input_tokens": usage.cache_write, "ephemeral_1h_input_tokens": 0},
        "output_tokens": output,
        "service_tier": "standard",
        "inference_geo": "not_available",
    }


def _stop(content: Content, reply: Reply) -> Body:
    reason = "refusal" if reply.refusal else STOP_REASONS.get(content.finish, content.finish)
    return {"stop_reason": reason, "stop_sequence": None, "stop_details": None}


def _message(call: Call, content: Content, blocks: list[Body], stop: Body, usage: Body) -> Body:
    head = {"model": content.model, "id": f"msg_01{call.ident[:22]}", "type": "message", "role": "assistant"}
    return head | {"content": blocks} | stop | {"usage": usage}


def _tool(call: Call, index: int, tool: ToolCall) -> Body:
    return {"type": "tool_use", "id": f"toolu_01{call.ident[index : index + 20]}", "name": tool.name}


def _signature(call: Call) -> str:
    return f"c2ln{call.ident}"


def _plain(call: Call, reply: Reply, content: Content) -> Answer:
    blocks: list[Body] = []
    if reply.reasoning:
        blocks.append({"type": "thinking", "thinking": reply.reasoning, "signature": _signature(call)})
    if content.text:
        blocks.append({"type": "text", "text": content.text})
    for index, tool in enumerate(reply.tool_calls):
        blocks.append(_tool(call, index, tool) | {"input": dict(tool.arguments)})
    usage = content.usage
    body = _message(call, content, blocks, _stop(content, reply), _full_usage(usage, usage.output))
    if usage.reasoning:
        body["usage"]["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
    return plain(body, usage)


def _event(data: Body, kind: Any = "start", tokens: int = 0, usage: bool = False) -> Frame:
    return Frame(data, kind, event=data["type"], pad=len(str(data)) % 16, tokens=tokens, usage=usage)


def _delta(index: int, delta: Body, tokens: int) -> Frame:
    return _event({"type": "content_block_delta", "index": index, "delta": delta}, "delta", tokens)


def _blocks(call: Call, reply: Reply, content: Content) -> list[tuple[Body, list[tuple[Body, int]]]]:
    """Each content block of the answer: how it starts and its deltas with their tokens."""
    blocks: list[tuple[Body, list[tuple[Body, int]]]] = []
    if content.reasoning:
        deltas: list[tuple[Body, int]] = [
            ({"type": "thinking_delta", "thinking": piece}, count(piece)) for piece in content.reasoning
        ]
        deltas.append(({"type": "signature_delta", "signature": _signature(call)}, 0))
        blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, deltas))
    if content.chunks:
        deltas = [({"type": "text_delta", "text": piece}, count(piece)) for piece in content.chunks]
        blocks.append(({"type": "text", "text": ""}, deltas))
    for index, tool in enumerate(reply.tool_calls):
        text = json.dumps(dict(tool.arguments))
        parts = ("", text[: len(text) // 2], text[len(text) // 2 :])
        deltas = [({"type": "input_json_delta", "partial_json": part}, count(part)) for part in parts]
        blocks.append((_tool(call, index, tool) | {"input": {}}, deltas))
    return blocks


def _stream(call: Call, reply: Reply, content: Content) -> Answer:
    usage = content.usage
    no_stop: Body = {"stop_reason": None, "stop_sequence": None, "stop_details": None}
    message = _message(call, content, [], no_stop, _full_usage(usage, min(1, usage.output)))
    frames = [_event({"type": "message_start", "message": message})]
    for index, (start, deltas) in enumerate(_blocks(call, reply, content)):
        frames.append(_event({"type": "content_block_start", "index": index, "content_block": start}))
        if index == 0:
            frames.append(Frame({"type": "ping"}, "start", event="ping"))
        frames += [_delta(index, delta, tokens) for delta, tokens in deltas]
        frames.append(_event({"type": "content_block_stop", "index": index}))
    final = _usage(usage) | {"output_tokens": usage.output}
    if usage.reasoning:
        final["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
    last = {"type": "message_delta", "delta": _stop(content, reply), "usage": final}
    frames.append(_event(last, "finish", usage=True))
    frames.append(_event({"type": "message_stop"}, "done"))
    return Answer(200, frames, "sse", usage=usage)
