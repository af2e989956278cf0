"""A server on loopback that answers with given bytes, dialled under any host name, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from shared.errors import LLMError
from shared.providers import send, use_transport
from shared.providers.transport import Exchange
from shared.types import Answer, Candidate, Rates, Request, TaskType
from tests.support.provider_double import dial

HELLO: Sequence[Mapping[str, Any]] = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello!"})


@dataclass
class Reply:
    """Bytes to answer with, and what to do after them: `close`, `reset` or `stall`."""

    data: bytes
    then: str = "close"


@dataclass
class Asked:
    """One request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> Any:
        """The body's JSON."""
        return json.loads(self.content)


@dataclass
class Told:
    """What `provider.send` made of the replies."""

    texts: list[str] = field(default_factory=list)
    result: Answer | None = None
    error: LLMError | None = None
    asked: list[Asked] = field(default_factory=list)
    exchange: Exchange = field(default_factory=Exchange)

    @property
    def answer(self) -> Answer:
        """The Answer, which must have come."""
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result

    @property
    def failure(self) -> LLMError:
        """The error, which must have come."""
        assert self.error is not None, self.result
        return self.error


class Loopback:
    """The server; `replies` are used up in turn, the last one stays."""

    def __init__(self, replies: Sequence[Reply]) -> None:
        self.replies = list(replies)
        self.asked: list[Asked] = []
        self.gone = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Loopback:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._open):
            writer.close()

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.gone.set()
            self._open.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        method, target, _ = first.split(" ")
        self.asked.append(Asked(method, target, headers, content))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        writer.write(reply.data)
        await writer.drain()
        if reply.then == "reset":
            writer.transport.abort()
        elif reply.then == "stall":
            await reader.read()
        return reply.then == "keep"


@contextmanager
def dialled(port: int) -> Iterator[None]:
    """Every connection that a client opens meanwhile goes to `port` on loopback, https ones without TLS."""
    with use_transport(lambda: dial.async_transport(lambda _: ("127.0.0.1", port))):
        yield


def http(
    content: bytes | str | object,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    kind: str = "application/json",
    then: str = "close",
) -> Reply:
    """A whole HTTP answer; what is neither bytes nor str goes out as JSON."""
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else json.dumps(content)).encode()
    given = {"content-type": kind, "content-length": str(len(content)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return Reply(f"HTTP/1.1 {status} Said\r\n{head}\r\n".encode("latin-1") + content, then)


def sse(*events: object, done: bool = True, then: str = "close") -> Reply:
    """A stream of server-sent events in chunked encoding, ended properly unless something else comes then."""
    lines = [event if isinstance(event, str) else f"data: {json.dumps(event)}\n\n" for event in events]
    return streamed("".join(lines) + ("data: [DONE]\n\n" if done else ""), then=then)


def streamed(content: str | bytes, *, kind: str = "text/event-stream", then: str = "close") -> Reply:
    """A body in chunked encoding, one chunk, ended properly unless something else comes then."""
    content = content if isinstance(content, bytes) else content.encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    end = b"0\r\n\r\n" if then in ("close", "keep") else b""
    return Reply(head + f"{len(content):x}\r\n".encode() + content + b"\r\n" + end, then)


def candidate(provider_name: str = "openai", model: str = "gpt-4o-mini", **changes: Any) -> Candidate:
    """A candidate with a key."""
    given = {"api_key": "sk-test-0123456789abcdef", **changes}
    name = f"{provider_name}/{model}"
    return Candidate(requested=name, model=name, provider=provider_name, wire_model=model, rates=Rates(), **given)


def ask(
    who: Candidate,
    *replies: Reply,
    messages: Sequence[Mapping[str, Any]] = HELLO,
    stream: bool = False,
    timeout: float = 5.0,
    **params: Any,
) -> Told:
    """Make one request of `who`, whatever its address, to a server that gives `replies`."""
    return asyncio.run(_ask(who, replies, Request(TaskType.CHAT_COMPLETION, messages, params, stream), timeout))


def ask_for(who: Candidate, request: Request, *replies: Reply, timeout: float = 5.0) -> Told:
    """The same for a request of any kind."""
    return asyncio.run(_ask(who, replies, request, timeout))


async def _ask(who: Candidate, replies: Sequence[Reply], request: Request, timeout: float) -> Told:
    async with Loopback(replies or [http({})]) as server:
        with dialled(server.port):
            told = Told(asked=server.asked)
            try:
                ready = await send.make_ready(who, request.task)
                async for piece in send.open_response(ready, request, timeout=timeout, exchange=told.exchange):
                    if isinstance(piece, str):
                        told.texts.append(piece)
                    else:
                        assert told.result is None, "two answers"
                        told.result = piece
            except LLMError as error:
                told.error = error
    return told


def host_of(asked: Asked) -> str:
    """The host that a request was meant for."""
    return re.sub(r":\d+$", "", asked.headers["host"])
