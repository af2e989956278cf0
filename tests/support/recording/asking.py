"""Asking the public client as a scene wants it, in each of its four ways, and judging its answer."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any

from shared.calls.stream import LLMStream
from shared.llm_client import LLMClient
from shared.types import LLMResponse
from tests.support.recording.groups import Group
from tests.support.recording.plugin import Wire
from tests.support.recording.scenes import Scene

type Way = Callable[..., LLMResponse]


def sync(client: LLMClient, messages: Any, **params: Any) -> LLMResponse:
    """chat_completion."""
    response: LLMResponse = client.chat_completion(messages, **params)
    return response


def stream(client: LLMClient, messages: Any, **params: Any) -> LLMResponse:
    """chat_completion with stream=True."""
    chunks = client.chat_completion(messages, stream=True, **params)
    return _whole(chunks, list(chunks))


def a_sync(client: LLMClient, messages: Any, **params: Any) -> LLMResponse:
    """achat_completion."""
    response: LLMResponse = asyncio.run(client.achat_completion(messages, **params))
    return response


def a_stream(client: LLMClient, messages: Any, **params: Any) -> LLMResponse:
    """achat_completion with stream=True."""

    async def read() -> LLMResponse:
        chunks: LLMStream = await client.achat_completion(messages, stream=True, **params)
        return _whole(chunks, [text async for text in chunks])

    return asyncio.run(read())


def _whole(chunks: LLMStream, texts: list[str]) -> LLMResponse:
    assert chunks.response is not None
    assert "".join(texts) == chunks.response.content
    return chunks.response


WAYS: dict[str, Way] = {"sync": sync, "async": a_sync, "stream": stream, "astream": a_stream}


def ask(group: Group, scene: Scene, wire: Wire, way: Way | None = None, **client: Any) -> LLMResponse:
    """Ask for what the scene wants, with one attempt."""
    wire.script(group.name, **({} if scene.error else {"usage": scene.usage}), **scene.reply)
    model = f"{group.name}/{scene.model}" if scene.model else group.named(scene.name)
    way = way or (stream if scene.stream else sync)
    return way(LLMClient(max_retries=0, **client), scene.messages, model=model, fallback_models=[], **scene.params)


def judge(response: LLMResponse, group: Group, scene: Scene, wire: Wire) -> None:
    """The answer is the scripted one; a real endpoint's is of the same kind, with the cost of its own counts."""
    assert (response.provider, response.model) == (group.name, group.named(scene.name))
    assert response.metadata["finish_reason"] == (scene.finish if group.ends else None)
    assert response.metadata["usage_source"] == "provider"
    calls = response.metadata.get("tool_calls", [])
    assert [call["function"]["name"] for call in calls] == (["get_weather"] if scene.finish == "tool_calls" else [])
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"city": "Paris"}] * len(calls)
    if wire.origin != "live":
        assert response.content == scene.text
        assert response.usage == group.usage(scene.usage)
        assert round(response.cost * 1e9) == group.nano(response.usage)
        return
    assert bool(response.content) == bool(scene.text) or scene.name in ("reasoning", "length")
    assert response.usage["prompt_tokens"] > 0
    assert response.usage["completion_tokens"] > 0
    assert not math.isnan(response.cost)
    assert group.tells_cost or round(response.cost * 1e9) == group.nano(response.usage)
