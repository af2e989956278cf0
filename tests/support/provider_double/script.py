"""What a test scripts and what it reads back: replies, usage, gates, recorded requests and bills."""

import asyncio
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any

from .fault import Fault

SAFETY_S = 30.0
"""No stall lasts longer than this, in seconds, however a test ends."""

_PIECE = re.compile(r"\s*(?:\w+|[^\w\s])|\s+")


def pieces(text: str) -> list[str]:
    """The double's tokens: each word or punctuation mark with the white space before it; joined they are the text."""
    return _PIECE.findall(text)


def count(text: str) -> int:
    """How many tokens the double bills for a text."""
    return sum(1 for piece in pieces(text) if piece.strip())


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer in the project's words: input includes cached, output includes reasoning."""

    input: int
    output: int
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    input_images: int = 0
    """Tokens of `input` that are images."""
    images: int = 0
    """Images made (a number of images, not tokens)."""


@dataclass(frozen=True)
class ToolCall:
    """One function the model wants called."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


class Gate:
    """A stall under the test's control: the server says `reached`, the test says `release`."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._lock = threading.Lock()
        self._open = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    @property
    def released(self) -> bool:
        """Whether answers behind this gate may go on."""
        return self._open

    def release(self) -> None:
        """Let every answer behind this gate go on, now and later; from any thread."""
        with self._lock:
            self._open = True
            waiting, self._waiting = self._waiting, []
        for loop, event in waiting:
            loop.call_soon_threadsafe(event.set)

    async def wait(self) -> None:
        """Return when released (server side)."""
        event = asyncio.Event()
        with self._lock:
            if self._open:
                event.set()
            else:
                self._waiting.append((asyncio.get_running_loop(), event))
        self.reached.set()
        try:
            await event.wait()
        finally:
            with self._lock:
                self._waiting = [entry for entry in self._waiting if entry[1] is not event]


@dataclass
class Reply:
    """One scripted answer; every field left alone is what the provider would do for this request."""

    text: str | EllipsisType | None = ...
    """Ellipsis: "Hello from {model}.", cut at the request's max_tokens. None: no content at all."""
    chunks: Sequence[str] | None = None
    """The text as stream deltas; default: one per token."""
    reasoning: str = ""
    tool_calls: Sequence[ToolCall] = ()
    refusal: str = ""
    finish_reason: str = ""
    """stop, length, tool_calls or content_filter, translated to the wire; any other word goes out as it is."""
    usage: Usage | None = None
    """None: counted from request and answer."""
    cost_usd: float | None = None
    """What a provider that reports cost says it cost (OpenRouter, Perplexity, xAI)."""
    response_model: str = ""
    image: bytes | None = None
    """Bytes to give out as each image; default: a PNG of the asked size."""
    status: int | None = None
    """200 unless `error` says otherwise; any other status gives the provider's own error body."""
    error: str = ""
    """A kind of error, see errors.KINDS; gives the provider's own status, body and headers for it."""
    message: str = ""
    """The error's message, in place of the double's own."""
    headers: Mapping[str, str | None] = field(default_factory=dict)
    """Added to the provider's own; None takes one away."""
    body: Any = ...
    """The whole body instead of the wire's: bytes and str as they are, anything else as JSON."""
    content_type: str = ""
    fault: Fault | None = None
    after: int = 1
    """How many deltas of a stream go out before the fault."""
    interval_s: float = 0.02
    """Pause between the pieces of a drip, in seconds."""
    size: int = 0
    """Bytes of the oversize answer or of the unpacked bomb; 0: 10 MiB and 64 MiB."""
    polls: int = 0
    """Replicate: how often the prediction is still "processing" when asked."""
    billed: bool | None = None
    """None: as the provider would."""
    gate: Gate = field(default_factory=Gate)


@dataclass(eq=False)
class Recorded:
    """One request as the double received it."""

    number: int
    provider: str
    operation: str
    model: str
    stream: bool
    method: str
    host: str
    path: str
    query: str
    headers: dict[str, str]
    body: Any
    """JSON, or for a form its fields (files as bytes), or None."""
    raw: bytes
    at_s: float
    """Monotonic clock, seconds."""
    reply: Reply | None = None
    status: int | None = None
    """The status sent; None while nothing was."""
    closed_early: bool = False
    """The client hung up before the answer was complete."""
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False)
class Billed:
    """One answer the provider would charge for."""

    provider: str
    model: str
    usage: Usage
    reported: bool = False
    """Whether the client was sent this usage."""
    request: Recorded | None = None
