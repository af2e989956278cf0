"""What tests ask the client for, and the four ways of asking: sync, async, stream and async stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from shared.calls.stream import LLMStream
from shared.llm_client import LLMClient
from shared.types import LLMResponse

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello!"}]
MINI = "openai/gpt-5.4-mini"
NANO = "openai/gpt-5.4-nano"
HAIKU = "anthropic/claude-haiku-4-5"

type Way = Callable[..., LLMResponse]


def sync(client: LLMClient, messages: Any, **params: Any) -> LLMResponse:
    """Call chat_completion."""
    response: LLMResponse = client.chat_completion(messages, **params)
    return response


def stream(client: LLMClient, messages: Any, **params: Any) -> LLMResponse:
    """Call chat_completion with stream=True and read to the end."""
    chunks = client.chat_completion(messages, stream=True, **params)
    return _whole(chunks, list(chunks))


def a_sync(client: LLMClient, messages: Any, **params: Any) -> LLMResponse:
    """Call achat_completion."""
    response: LLMResponse = asyncio.run(client.achat_completion(messages, **params))
    return response


def a_stream(client: LLMClient, messages: Any, **params: Any) -> LLMResponse:
    """Call achat_completion with stream=True and read to the end."""

    async def read() -> LLMResponse:
        chunks: LLMStream = await client.achat_completion(messages, stream=True, **params)
        return _whole(chunks, [text async for text in chunks])

    return asyncio.run(read())


def _whole(chunks: LLMStream, texts: list[str]) -> LLMResponse:
    assert chunks.response is not None
    assert "".join(texts) == chunks.text == chunks.response.content
    return chunks.response


WAYS: dict[str, Way] = {"sync": sync, "async": a_sync, "stream": stream, "astream": a_stream}


@pytest.fixture(params=WAYS)
def ask(request: pytest.FixtureRequest) -> Way:
    """Say hello in each of the four ways: `ask(client, model=...)`."""
    way = WAYS[request.param]
    return lambda client, **params: way(client, HELLO, **params)
