"""Asking the public client as a scene wants it, and judging its answer."""

from __future__ import annotations

import json
import math
from typing import Any

from shared.llm_client import LLMClient
from shared.types import LLMResponse
from tests.support.asking import Way, stream, sync
from tests.support.recording.groups import Group
from tests.support.recording.plugin import Wire
from tests.support.recording.scenes import Scene


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
    assert not response.metadata["cost_is_lower_bound"]
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
