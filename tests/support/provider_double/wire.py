"""The parts every wire is made of: a request read, frames to answer with, and their bytes."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .script import Reply, Usage, count, pieces

type Body = dict[str, Any]
type Kind = Literal["start", "delta", "finish", "usage", "done", "error", "comment", "body"]
type Framing = Literal["json", "sse", "ndjson"]

CREATED = 1_767_225_600
"""2026-01-01, the double's only date: answers are the same on every run."""
IMAGE_OUTPUT = 1290
"""Documented output tokens of an image by gemini-2.5-flash-image."""
CREATED_ISO = "2026-01-01T00:00:00.000000Z"


@dataclass(frozen=True)
class Call:
    """One request, as far as a wire needs it."""

    provider: str
    operation: str
    model: str
    stream: bool
    body: Body
    ident: str
    """32 hexadecimal digits: the same request gets the same id in every run, its repetition another."""
    query: Mapping[str, str]
    origin: str
    """Scheme, host and prefix the client came by, for URLs in answers."""


@dataclass
class Frame:
    """One event of a stream, or a whole plain body."""

    data: Any = None
    """JSON; a str goes out as it is."""
    kind: Kind = "delta"
    event: str = ""
    raw: bytes | None = None
    pad: int = 0
    """Spaces before the last brace, as Anthropic has them."""
    tokens: int = 0
    """Output tokens this frame brings."""
    usage: bool = False
    """Whether the final usage is told here."""


@dataclass
class Answer:
    """What a wire makes of a call and a reply, before faults and framing."""

    status: int
    frames: list[Frame]
    framing: Framing = "json"
    headers: dict[str, str] = field(default_factory=dict)
    usage: Usage | None = None
    """None: nothing was generated, nothing is billed."""
    prefix: bytes = b""
    """White space before the body."""


def dumps(data: Any) -> bytes:
    """Compact UTF-8 JSON; a lone surrogate, which UTF-8 cannot hold, goes out escaped."""
    try:
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(data, separators=(",", ":")).encode()


def encode(frame: Frame, framing: Framing) -> bytes:
    """The bytes of one frame."""
    if frame.raw is not None:
        return frame.raw
    text = frame.data.encode() if isinstance(frame.data, str) else dumps(frame.data)
    if frame.pad:
        text = text[:-1] + b" " * frame.pad + text[-1:]
    if framing == "sse":
        event = f"event: {frame.event}\n".encode() if frame.event else b""
        return event + b"data: " + text + b"\n\n"
    return text + b"\n" if framing == "ndjson" else text


def plain(body: Any, usage: Usage | None, status: int = 200, **headers: str) -> Answer:
    """A plain JSON answer."""
    frame = Frame(body, "body", usage=usage is not None, tokens=usage.output if usage else 0)
    return Answer(status, [frame], headers=headers, usage=usage)


def walk(data: Any) -> Iterator[Body]:
    """Every dict inside, the outermost first."""
    if isinstance(data, dict):
        yield data
        for value in data.values():
            yield from walk(value)
    elif isinstance(data, list):
        for value in data:
            yield from walk(value)


_TEXT_KEYS = ("content", "text", "prompt", "system", "system_prompt")
_IMAGE_TYPES = ("image_url", "image", "input_image")


def prompt_of(body: Body) -> tuple[str, int]:
    """All text a request asks about, and its number of images."""
    texts: list[str] = []
    images = 0
    for part in walk(body):
        texts += [part[key] for key in _TEXT_KEYS if isinstance(part.get(key), str)]
        if part.get("type") in _IMAGE_TYPES or "inlineData" in part or "inline_data" in part:
            images += 1
        if isinstance(part.get("images"), list):
            images += len(part["images"])
    if body.get("tools"):
        texts.append(json.dumps(body["tools"]))
    return "\n".join(texts), images


def max_tokens_of(body: Body) -> int | None:
    """The request's limit on output tokens, wherever its wire has it."""
    for part in (body, body.get("generationConfig"), body.get("options"), body.get("input")):
        if isinstance(part, Mapping):
            for key in ("max_completion_tokens", "max_tokens", "maxOutputTokens", "max_output_tokens", "num_predict"):
                if isinstance(part.get(key), int) and part[key] > 0:
                    return int(part[key])
    return None


@dataclass(frozen=True)
class Content:
    """What the model says, decided once for all wires."""

    text: str | None
    chunks: list[str]
    finish: str
    """stop, length, tool_calls, content_filter or the test's own word."""
    model: str
    usage: Usage
    reasoning: list[str]


def content_of(call: Call, reply: Reply, image_tokens: int = 85) -> Content:
    """Text, deltas, finish reason and usage of a reply, derived from the request where the test left them open."""
    text, finish = reply.text, reply.finish_reason
    if text is ...:
        text = "".join(reply.chunks) if reply.chunks is not None else reply.refusal or f"Hello from {call.model}."
        if reply.tool_calls and reply.chunks is None:
            text = None
        elif reply.chunks is None and not finish:
            limit = max_tokens_of(call.body)
            parts = pieces(text)
            if limit is not None and len(parts) > limit:
                text, finish = "".join(parts[:limit]), "length"
    finish = finish or ("tool_calls" if reply.tool_calls else "stop")
    chunks = list(reply.chunks) if reply.chunks is not None else pieces(text or "")
    usage = reply.usage or _counted(call, reply, text, image_tokens)
    return Content(text, chunks, finish, reply.response_model or call.model, usage, pieces(reply.reasoning))


def _counted(call: Call, reply: Reply, text: str | None, image_tokens: int) -> Usage:
    prompt, images = prompt_of(call.body)
    reasoning = count(reply.reasoning)
    tools = sum(count(tool.name) + count(json.dumps(dict(tool.arguments))) for tool in reply.tool_calls)
    return Usage(
        input=count(prompt) + images * image_tokens,
        output=count(text or "") + reasoning + tools,
        reasoning=reasoning,
        input_images=images * image_tokens,
    )


def with_image(reply: Reply, content: Content) -> Content:
    """The same with an image made: no text unless scripted, and the image's tokens."""
    text = None if reply.text is ... and reply.chunks is None else content.text
    usage = reply.usage or replace(content.usage, output=count(text or "") + IMAGE_OUTPUT, images=1)
    return replace(content, text=text, chunks=content.chunks if text else [], usage=usage)


def spend(usage: Usage, tokens: int) -> Usage:
    """The usage of an answer of which only so many output tokens were made."""
    output = min(tokens, usage.output)
    return replace(usage, output=output, reasoning=min(usage.reasoning, output))
