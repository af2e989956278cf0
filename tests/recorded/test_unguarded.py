"""A provider that LiteLLM asks by itself (aiml, through OpenAI's SDK), replayed from cassettes all the same."""

from __future__ import annotations

from typing import Any

import pytest

from shared.llm_client import LLMClient
from tests.support.asking import WAYS, Way
from tests.support.provider_double import Usage
from tests.support.recording.plugin import Wire

# LiteLLM reads pydantic's fields from instances, which pydantic 2.11 deprecates.
pytestmark = [pytest.mark.vcr, pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning")]

MODEL = "aiml/mistral-small"
HELLO = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.mark.parametrize("way", [pytest.param(way, id=name) for name, way in WAYS.items()])
def test_unguarded(way: Way, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes through LiteLLM's own client replays too, in each way, and is marked as unguarded."""
    monkeypatch.setenv("AIML_API_KEY", "sk-test-0123456789abcdef")
    params: dict[str, Any] = {"model": MODEL, "fallback_models": [], **wire.unguarded("openai")}
    wire.script("openai", text="Paris.", usage=Usage(11, 7))
    response = way(LLMClient(max_retries=0), HELLO, **params)
    assert response.content == "Paris."
    assert (response.usage["prompt_tokens"], response.usage["completion_tokens"]) == (11, 7)
    assert response.metadata["usage_source"] == "provider"
    assert response.metadata["finish_reason"] == "stop"
    assert response.metadata["guarded"] is False
