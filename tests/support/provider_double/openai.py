"""Chat completions: OpenAI's wire and its many dialects."""

import json
from dataclasses import replace
from typing import Any

from . import pictures
from .quirks import QUIRKS, SAFE, Quirks, dress
from .script import Reply, ToolCall, count
from .wire import Answer, Body, Call, Content, Frame, content_of, plain, spend, with_image


def chat(call: Call, reply: Reply) -> Answer:
    """POST …/chat/completions."""
    quirks = QUIRKS[call.provider]
    if call.stream:
        return _stream(call, reply, quirks)
    content = content_of(call, reply)
    if pictures.asked_in_chat(call):
        content = with_image(reply, content)
    message = _message(call, reply, quirks, content)
    choice = {"index": 0, "message": message} | quirks.choice | {"finish_reason": content.finish}
    if "native_finish_reason" in choice:
        choice["native_finish_reason"] = content.finish
    if call.provider == "openai" and _reasons(call.model):
        del choice["logprobs"]
    body = dress(
        {
            "object": "chat.completion",
            "model": content.model,
            "choices": [choice],
            "usage": quirks.usage(content.usage, reply),
        }
        | quirks.top(call),
        quirks,
        call,
    )
    answer = plain(body, content.usage)
    answer.prefix = quirks.prefix
    return answer


def _reasons(model: str) -> bool:
    return model.startswith(("o1", "o3", "o4", "gpt-5"))


def _message(call: Call, reply: Reply, quirks: Quirks, content: Content) -> Body:
    refused = bool(reply.refusal) and quirks.refusal
    message: Body = {"role": "assistant", "content": None if refused else content.text} | quirks.message
    if refused:
        message["refusal"] = reply.refusal
    if content.reasoning and quirks.reasoning == "thinking":
        text = [{"type": "text", "text": content.text}] if content.text else []
        message["content"] = [_thinking(reply.reasoning), *text]
    elif content.reasoning and quirks.reasoning:
        message[quirks.reasoning] = reply.reasoning
    if reply.tool_calls:
        message["tool_calls"] = [_tool(call, index, tool) for index, tool in enumerate(reply.tool_calls)]
    images = pictures.asked_in_chat(call)
    if images:
        message["images"] = [
            {"type": "image_url", "image_url": {"url": pictures.data_url(call, reply)}, "index": index}
            for index in range(images)
        ]
    return message


def _thinking(text: str) -> Body:
    return {"type": "thinking", "thinking": [{"type": "text", "text": text}], "closed": True}


def _tool(call: Call, index: int, tool: ToolCall) -> Body:
    arguments = json.dumps(dict(tool.arguments), separators=(",", ":"))
    body: Body = {"id": f"call_{call.ident[index : index + 20]}", "type": "function"}
    body["function"] = {"name": tool.name, "arguments": arguments}
    return body | ({"index": index} if call.provider in ("mistral", "together_ai", "deepseek") else {})


def _stream(call: Call, reply: Reply, quirks: Quirks) -> Answer:
    content = content_of(call, reply)
    options = call.body.get("stream_options") or {}
    asked = bool(options.get("include_usage"))
    frames = [Frame(raw=b": OPENROUTER PROCESSING\n\n", kind="comment") for _ in range(quirks.comments)]
    if call.provider == "azure":
        frames.append(_chunk(call, quirks, content, None, "start"))
    if quirks.first is not None:
        frames.append(_chunk(call, quirks, content, quirks.first, "start"))
    frames += _deltas(call, reply, quirks, content)
    frames.append(_chunk(call, quirks, content, quirks.last, "finish", finish=content.finish))
    _tell_usage(call, reply, quirks, content, frames, asked)
    if call.provider == "openai" and asked:
        for frame in frames:
            frame.data.setdefault("usage", None)
    if call.provider == "openai" and options.get("include_obfuscation", True):
        for frame in frames:
            frame.data["obfuscation"] = call.ident[: 3 + count(str(frame.data["choices"])) % 9]
    if quirks.done:
        frames.append(Frame("[DONE]", "done"))
    return Answer(200, frames, "sse", usage=content.usage)


def _chunk(call: Call, quirks: Quirks, content: Content, delta: Body | None, kind: Any, finish: str = "") -> Frame:
    """One chunk; no delta: no choice."""
    body: Body = {"object": "chat.completion.chunk", "model": content.model} | quirks.chunk_top(call)
    body["choices"] = []
    if delta is not None:
        choice: Body = {"index": 0, "delta": quirks.delta | delta} | quirks.chunk_choice
        if finish or not quirks.bare:
            choice["finish_reason"] = finish or None
        if finish and "native_finish_reason" in choice:
            choice["native_finish_reason"] = finish
        body["choices"] = [choice]
    elif call.provider == "azure" and kind == "start":
        body["prompt_filter_results"] = [{"prompt_index": 0, "content_filter_results": SAFE}]
    if call.provider == "mistral" and kind != "start":
        body["p"] = "abcdefghijklmnopqrstuvwxyz"[: 4 + len(str(delta)) % 20]
    if call.provider == "groq" and kind == "start":
        body["x_groq"] = {"id": f"req_{call.ident[:26]}", "seed": 1}
    return Frame(dress(body, quirks, call), kind)


def _deltas(call: Call, reply: Reply, quirks: Quirks, content: Content) -> list[Frame]:
    def delta(body: Body, tokens: int) -> Frame:
        frame = _chunk(call, quirks, content, body, "delta")
        frame.tokens = tokens
        if "text" in quirks.chunk_choice:
            frame.data["choices"][0]["text"] = body.get("content") or ""
        return frame

    frames = []
    for piece in content.reasoning if quirks.reasoning else []:
        body: Body = {"content": [_thinking(piece)]} if quirks.reasoning == "thinking" else {quirks.reasoning: piece}
        if call.provider == "deepseek":
            body["content"] = None
        if call.provider == "groq" and "gpt-oss" in call.model:
            body["channel"] = "analysis"
        frames.append(delta(body, count(piece)))
    key = "refusal" if reply.refusal and quirks.refusal else "content"
    chunks = content.chunks
    if frames and chunks and quirks.reasoning == "thinking":  # the first text comes with the last thought
        parts = [_thinking(content.reasoning[-1]), {"type": "text", "text": chunks[0]}]
        frames[-1] = delta({"content": parts}, frames[-1].tokens + count(chunks[0]))
        chunks = chunks[1:]
    frames += [delta({key: piece}, count(piece)) for piece in chunks]
    for index, tool in enumerate(reply.tool_calls):
        whole: Body = {"index": index} | _tool(call, index, tool)
        if quirks.tools_at_once:
            frames.append(delta({"tool_calls": [whole]}, count(str(whole["function"]))))
            continue
        arguments = whole["function"]["arguments"]
        opening = whole | {"function": {"name": tool.name, "arguments": ""}}
        frames.append(delta({"tool_calls": [opening]}, count(tool.name)))
        for part in (arguments[: len(arguments) // 2], arguments[len(arguments) // 2 :]):
            body = {"tool_calls": [{"index": index, "function": {"arguments": part}}]}
            frames.append(delta(body, count(part)))
    return frames


def _tell_usage(call: Call, reply: Reply, quirks: Quirks, content: Content, frames: list[Frame], asked: bool) -> None:
    """Put the usage where this provider has it."""
    finish = frames[-1]
    usage = quirks.usage(content.usage, reply)
    if quirks.usage_on == "every":
        _running_totals(reply, quirks, content, frames)
    elif quirks.usage_on == "x_groq":
        finish.data["x_groq"] = {"id": f"req_{call.ident[:26]}", "usage": usage}
        finish.usage = True
    elif quirks.usage_on == "finish":
        finish.data["usage"] = usage
        finish.usage = True
        if call.provider == "together_ai":
            for frame in frames[:-1]:
                frame.data["usage"] = None
        if call.provider == "cerebras":
            finish.data["time_info"] = quirks.top(call)["time_info"]
    elif quirks.usage_on == "after":
        frames.append(_chunk(call, quirks, content, {}, "usage"))
        frames[-1].data["usage"] = usage
        frames[-1].usage = True
    if quirks.usage_on == "own_always" or (asked and quirks.usage_on in ("own", "x_groq")):
        frames.append(_chunk(call, quirks, content, None, "usage"))
        frames[-1].data["usage"] = usage
        frames[-1].usage = True


def _running_totals(reply: Reply, quirks: Quirks, content: Content, frames: list[Frame]) -> None:
    """Perplexity: the usage so far and the text so far on every chunk."""
    tokens, text = 0, ""
    for frame in frames:
        tokens += frame.tokens
        choice = frame.data["choices"][0]
        text += choice["delta"].get("content") or ""
        choice["message"] = {"role": "assistant", "content": text}
        last = frame is frames[-1]
        usage = content.usage if last else replace(spend(content.usage, tokens), reasoning=0)
        frame.data["usage"] = quirks.usage(usage, reply)
        frame.usage = last
