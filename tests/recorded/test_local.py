"""A real model's answers, recorded from the local model server: a truth that nobody scripted."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import MagicMock

import pytest

from shared.ledger.records import attempt_records
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient
from shared.providers import local
from shared.providers.local import LOCAL_MODEL, LocalServer
from shared.types import LLMResponse
from tests.support.asking import WAYS, Way
from tests.support.recording.filters import LOCAL_HOST
from tests.support.recording.plugin import Wire

pytestmark = pytest.mark.vcr

FRANCE = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]
ANSWER = "The capital of France is Paris."


@pytest.fixture
def origin() -> str:
    """A real server."""
    return "local model"


@pytest.fixture
def server(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    """The real server while it is recorded; in replay a name for it that leads nowhere."""
    # A fresh one each time: what it still holds in its cache, its counts would tell.
    named = (
        local.serve_local_model() if wire.recording else LocalServer(f"{LOCAL_HOST}/v1", "nobody-listens", MagicMock())
    )
    monkeypatch.setattr(local, "ensure_running", lambda: named)
    yield named
    named.close()


def check(response: LLMResponse, finish: str = "stop") -> None:
    """The real answer, with the real counts, for nothing."""
    assert response.content.startswith(ANSWER[:20])
    assert response.metadata["finish_reason"] == finish
    assert response.metadata["usage_source"] == "provider"
    assert response.usage["prompt_tokens"] > 20
    assert response.usage["total_tokens"] == response.usage["prompt_tokens"] + response.usage["completion_tokens"]
    assert response.metadata["response_model"] == "smollm2-135m"


@pytest.mark.parametrize("way", [pytest.param(way, id=name) for name, way in WAYS.items()])
def test_chat(way: Way, server: LocalServer, ledger: Ledger) -> None:
    """The local model answers in each of the four ways, with its own counts, and costs nothing."""
    response = way(LLMClient(), FRANCE, model=LOCAL_MODEL, max_tokens=64)
    check(response)
    assert response.cost == 0
    ledger.flush()
    [row] = attempt_records(ledger)
    assert (row["status"], row["cost_nano"], row["usage_source"]) == ("ok", 0, "provider")


def test_length(server: LocalServer) -> None:
    """A real answer that was cut says so."""
    response = WAYS["sync"](LLMClient(), FRANCE, model=LOCAL_MODEL, max_tokens=5)
    check(response, "length")
    assert response.usage["completion_tokens"] == 5


@pytest.mark.parametrize("way", [pytest.param(WAYS[name], id=name) for name in ("sync", "astream")])
def test_anthropic_messages(way: Way, server: LocalServer) -> None:
    """The real server's own /v1/messages is read as Anthropic's, whole and as a stream."""
    response = way(
        LLMClient(),
        FRANCE,
        model="anthropic/smollm2-135m",
        api_base=server.base_url.removesuffix("/v1"),
        api_key=server.api_key,
        max_tokens=24,
        temperature=0,
    )
    check(response)
