"""Cohere's v2 chat: upper-case finish reasons, billed units beside tokens, an event name on every line."""

import json
from typing import Any

from .script import Reply, ToolCall, Usage, count
from .wire import Answer, Body, Call, Frame, content_of, plain

FINISH_REASONS = {"stop": "COMPLETE", "length": "MAX_TOKENS", "tool_calls": "TOOL_CALL", "content_filter": "ERROR"}
PREAMBLE = 3
"""Tokens of Cohere's own preamble: counted in `tokens`, not in `billed_units`."""


def chat(call: Call, reply: Reply) -> Answer:
    """POST /v2/chat."""
    return _stream(call, reply) if call.stream else _plain(call, reply)


def _id(call: Call) -> str:
    return "-".join((call.ident[:8], call.ident[8:12], call.ident[12:16], call.ident[16:20], call.ident[20:]))


def _billed_input(usage: Usage) -> int:
    return max(usage.input - PREAMBLE, 0)


def _usage(usage: Usage) -> Body:
    tokens: Body = {"input_tokens": usage.input, "output_tokens": usage.output}
    if usage.reasoning:
        tokens["reasoning_tokens"] = usage.reasoning
    billed = {"input_tokens": _billed_input(usage), "output_tokens": usage.output}
    return {"billed_units": billed, "tokens": tokens, "cached_tokens": usage.cached}


def _tool(call: Call, index: int, tool: ToolCall, arguments: str) -> Body:
    name = {"name": tool.name, "arguments": arguments}
    return {"id": f"{tool.name}_{call.ident[index : index + 12]}", "type": "function", "function": name}


def _plain(call: Call, reply: Reply) -> Answer:
    content = content_of(call, reply)
    parts: list[Body] = [{"type": "thinking", "thinking": reply.reasoning}] if reply.reasoning else []
    if content.text is not None:
        parts.append({"type": "text", "text": content.text})
    message: Body = {"role": "assistant"}
    if reply.tool_calls:
        message["tool_plan"] = content.text or ""
        message["tool_calls"] = [
            _tool(call, index, tool, json.dumps(dict(tool.arguments))) for index, tool in enumerate(reply.tool_calls)
        ]
    else:
        message["content"] = parts
    body: Body = {"id": _id(call), "message": message}
    body["finish_reason"] = FINISH_REASONS.get(content.finish, content.finish)
    body["usage"] = _usage(content.usage)
    answer = plain(body, content.usage)
    answer.headers["num-tokens"] = str(_billed_input(content.usage) + content.usage.output)
    return answer


def _event(name: str, rest: Body, kind: Any = "start", tokens: int = 0) -> Frame:
    return Frame({"type": name} | rest, kind, event=name, tokens=tokens)


def _delta(name: str, index: int, message: Body, kind: Any, tokens: int = 0) -> Frame:
    return _event(name, {"index": index, "delta": {"message": message}}, kind, tokens)


def _stream(call: Call, reply: Reply) -> Answer:
    content = content_of(call, reply)
    start: Body = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
    opening = {"id": _id(call), "type": "message-start", "delta": {"message": start}}
    frames = [Frame(opening, "start", event="message-start")]
    blocks = [("thinking", content.reasoning), ("text", [] if reply.tool_calls else content.chunks)]
    index = 0
    for key, chunks in blocks:
        if not chunks:
            continue
        frames.append(_delta("content-start", index, {"content": {"type": key, key: ""}}, "start"))
        frames += [_delta("content-delta", index, {"content": {key: piece}}, "delta", count(piece)) for piece in chunks]
        frames.append(_event("content-end", {"index": index}))
        index += 1
    if reply.tool_calls:
        frames += _tools(call, reply, content.chunks)
    last = {"finish_reason": FINISH_REASONS.get(content.finish, content.finish), "usage": _usage(content.usage)}
    end = _event("message-end", {"delta": last}, "finish")
    end.usage = True
    frames += [end, Frame("[DONE]", "done")]
    return Answer(200, frames, "sse", usage=content.usage)


def _tools(call: Call, reply: Reply, plan: list[str]) -> list[Frame]:
    frames = [
        _event("tool-plan-delta", {"delta": {"message": {"tool_plan": piece}}}, "delta", count(piece)) for piece in plan
    ]
    for index, tool in enumerate(reply.tool_calls):
        arguments = json.dumps(dict(tool.arguments))
        half = len(arguments) // 2
        frames.append(_delta("tool-call-start", index, {"tool_calls": _tool(call, index, tool, "")}, "start"))
        for part in (arguments[:half], arguments[half:]):
            body = {"tool_calls": {"function": {"arguments": part}}}
            frames.append(_delta("tool-call-delta", index, body, "delta", count(part)))
        frames.append(_event("tool-call-end", {"index": index}))
    return frames
