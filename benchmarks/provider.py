"""A provider for benchmarks: a server in a process of its own that gives fixed answers as fast as it can."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from benchmarks.contest import ROOT

MODEL = "gpt-5.4-mini"
MESSAGES = [{"role": "user", "content": "Hello!"}]

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_CHUNKS = re.compile(rb'"max_(?:completion_)?tokens": *(\d+)')
_STREAM = re.compile(rb'"stream": *true')


@contextmanager
def provider() -> Iterator[str]:
    """The base URL of a server that answers in OpenAI's format; a stream has as many chunks as `max_tokens` says."""
    with subprocess.Popen([sys.executable, "-m", "benchmarks.provider"], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None, "it was asked for"  # noqa: S101
        port = int(process.stdout.readline())
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


_HEAD = {"id": "chatcmpl-1", "created": 1_795_521_600, "model": MODEL}


@cache
def _answer() -> bytes:
    message = {"role": "assistant", "content": "Good day to you."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
    body = json.dumps({**_HEAD, "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def words(chunks: int) -> list[str]:
    """The text of a stream, chunk by chunk; no word is repeated, because LiteLLM takes that for a fault."""
    return [f"{number} " for number in range(chunks)]


@cache
def _stream(chunks: int) -> bytes:
    usage = {"prompt_tokens": 9, "completion_tokens": chunks, "total_tokens": 9 + chunks}
    events = [_event({"content": word}) for word in words(chunks)]
    events += [_event({}, finish_reason="stop"), _event(None, usage=usage), b"data: [DONE]\n\n"]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events) + b"0\r\n\r\n"


def _event(delta: dict[str, str] | None, finish_reason: str | None = None, **more: object) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    event = {**_HEAD, "object": "chat.completion.chunk", "choices": choices, **more}
    return f"data: {json.dumps(event)}\n\n".encode()


class _Connection(asyncio.Protocol):
    """One connection: every request on it is answered when it is complete."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport), "a TCP connection"  # noqa: S101
        self.transport = transport
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        while True:
            head, complete, rest = self.received.partition(b"\r\n\r\n")
            found = _LENGTH.search(head)
            length = int(found[1]) if found else 0
            if not complete or len(rest) < length:
                return
            body, self.received = rest[:length], rest[length:]
            limit = _CHUNKS.search(body)
            self.transport.write(_stream(int(limit[1]) if limit else 20) if _STREAM.search(body) else _answer())


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
