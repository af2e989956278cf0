"""Ollama's /api/chat and /api/generate: one JSON object a line, streaming unless told not to."""

from .script import Reply, Usage, count
from .wire import CREATED_ISO, Answer, Body, Call, Content, Frame, content_of, plain


def chat(call: Call, reply: Reply) -> Answer:
    """POST /api/chat."""
    return _answer(call, reply, chat=True)


def generate(call: Call, reply: Reply) -> Answer:
    """POST /api/generate."""
    return _answer(call, reply, chat=False)


def _answer(call: Call, reply: Reply, chat: bool) -> Answer:
    content = content_of(call, reply)
    if not call.stream:
        body = _line(content, content.text or "", reply.reasoning, chat) | _end(content, chat)
        _add_tools(body, reply)
        return plain(body, content.usage)
    frames = [Frame(_line(content, "", piece, chat), tokens=count(piece)) for piece in content.reasoning]
    frames += [Frame(_line(content, piece, "", chat), tokens=count(piece)) for piece in content.chunks]
    if reply.tool_calls:
        body = _line(content, "", "", chat)
        _add_tools(body, reply)
        frames.append(Frame(body, tokens=count(str(body["message"]["tool_calls"])) if chat else 0))
    frames.append(Frame(_line(content, "", "", chat) | _end(content, chat), "finish", usage=True))
    return Answer(200, frames, "ndjson", usage=content.usage)


def _line(content: Content, text: str, thinking: str, chat: bool) -> Body:
    head: Body = {"model": content.model, "created_at": CREATED_ISO}
    thought = {"thinking": thinking} if thinking else {}
    if chat:
        return head | {"message": {"role": "assistant", "content": text} | thought, "done": False}
    return head | {"response": text} | thought | {"done": False}


def _add_tools(body: Body, reply: Reply) -> None:
    if reply.tool_calls and "message" in body:
        body["message"]["tool_calls"] = [
            {"function": {"name": tool.name, "arguments": dict(tool.arguments)}} for tool in reply.tool_calls
        ]


def _end(content: Content, chat: bool) -> Body:
    finish = "stop" if content.finish == "tool_calls" else content.finish
    context = {} if chat else {"context": [1, 2, 3]}
    return {"done": True, "done_reason": finish} | context | _counts(content.usage)


def _counts(usage: Usage) -> Body:
    return {
        "total_duration": 500_000_000,
        "load_duration": 20_000_000,
        "prompt_eval_count": usage.input,
        "prompt_eval_duration": 30_000_000,
        "eval_count": usage.output,
        "eval_duration": 400_000_000,
    }
