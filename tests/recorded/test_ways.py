"""One answer in each of the client's four ways, and calls of several requests, replayed from cassettes."""

from __future__ import annotations

import pytest

from shared.errors import AllModelsFailed
from shared.ledger.records import attempt_records
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient
from tests.support.asking import WAYS, Way
from tests.support.provider_double import Usage
from tests.support.recording.asking import ask, judge
from tests.support.recording.groups import BY_NAME, Group
from tests.support.recording.plugin import Wire
from tests.support.recording.scenes import ANSWERS, Scene

pytestmark = pytest.mark.vcr

PLAIN = ANSWERS[0]
OPENAI, ANTHROPIC = BY_NAME["openai"], BY_NAME["anthropic"]


@pytest.mark.parametrize("way", [pytest.param(way, id=name) for name, way in WAYS.items()])
@pytest.mark.parametrize("group", [pytest.param(BY_NAME[name], id=name) for name in ("openai", "anthropic", "gemini")])
def test_ways(group: Group, way: Way, wire: Wire) -> None:
    """Plain or streamed, awaited or not: the same answer at the same price."""
    judge(ask(group, PLAIN, wire, way), group, PLAIN, wire)


def _call(scene: Scene, *, retries: int = 0, fallback: bool = False) -> object:
    client = LLMClient(max_retries=retries)
    others = [ANTHROPIC.named("plain")] if fallback else []
    return client.chat_completion(scene.messages, model=OPENAI.named("plain"), fallback_models=others)


def test_retry(wire: Wire, ledger: Ledger) -> None:
    """What was rejected with a time to wait is asked again, request by request, and charged once."""
    wire.script("openai", error="rate_limit", headers={"retry-after": "0"})
    wire.script("openai", usage=Usage(11, 7), text=PLAIN.text)
    _call(PLAIN, retries=1)
    ledger.flush()
    assert [row["cost_nano"] for row in attempt_records(ledger)] == [0, OPENAI.nano(OPENAI.usage(Usage(11, 7)))]


def test_unknown_outcome_is_asked_once_more(wire: Wire, ledger: Ledger) -> None:
    """What may have been billed is asked once more and no more, however many retries are left."""
    for _ in range(2):
        wire.script("openai", error="server", headers={"retry-after": "0"})
    with pytest.raises(Exception, match="had an error"):
        _call(PLAIN, retries=5)
    ledger.flush()
    assert [row["status"] for row in attempt_records(ledger)] == ["failed", "failed"]


def test_fallback(wire: Wire, ledger: Ledger) -> None:
    """When the first model is overloaded the next answers, in the order that the caller gave."""
    wire.script("openai", error="overloaded")
    wire.script("anthropic", usage=Usage(11, 7), text=PLAIN.text)
    response = _call(PLAIN, fallback=True)
    judge(response, ANTHROPIC, PLAIN, wire)  # type: ignore[arg-type]
    ledger.flush()
    assert [row["model"] for row in attempt_records(ledger)] == [OPENAI.named("plain"), ANTHROPIC.named("plain")]


def test_all_fail(wire: Wire) -> None:
    """When every model fails the error holds each one's own, in order."""
    wire.script("openai", error="auth")
    wire.script("anthropic", error="overloaded")
    with pytest.raises(AllModelsFailed) as caught:
        _call(PLAIN, fallback=True)
    assert [type(error).__name__ for error in caught.value.failures] == ["AuthenticationError", "Overloaded"]
