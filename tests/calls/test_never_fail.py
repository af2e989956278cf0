"""The call flow under trouble: move on rather than wait, cool down, stay within limits, keep the deadline."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tenacity import wait_none

from shared.calls import flow
from shared.calls.cooldown import cooldowns
from shared.errors import (
    AllModelsFailed,
    ContextTooLong,
    DeadlineExceeded,
    InvalidRequest,
    LocalOverload,
    Overloaded,
)
from shared.ledger.sqlite_library import open_file
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient
from shared.scope import scope
from shared.types import ModelConfig
from tests.support.asking import HAIKU, HELLO, MINI
from tests.support.ledger_rows import records, rows
from tests.support.provider_double import Double, Fault

FLASH = "gemini/gemini-3.1-flash-lite"


def asked(double: Double) -> list[str]:
    """Who was asked, in order."""
    return [request.provider for request in double.requests]


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of our own choosing take no time."""
    monkeypatch.setattr(flow, "_backoff", wait_none())


def test_another_model_is_asked_before_a_pause(hosted: Double) -> None:
    """A model that has to be left alone for a while costs no time while another can answer."""
    hosted.reply("openai", status=429, headers={"retry-after": "20"})
    hosted.reply("anthropic", text="Here.")
    began = time.monotonic()
    assert LLMClient().chat_completion(HELLO, model=MINI, fallback_models=[HAIKU]).content == "Here."
    assert time.monotonic() - began < 15
    assert asked(hosted) == ["openai", "anthropic"]


def test_all_are_asked_again(hosted: Double, no_pause: None) -> None:
    """When every model is down for the moment, each is asked again until one answers."""
    hosted.reply("openai", status=503, times=2)
    hosted.reply("anthropic", status=529, times=3)
    hosted.reply("openai", text="At last.")
    response = LLMClient().chat_completion(HELLO, model=MINI, fallback_models=[HAIKU])
    assert response.content == "At last."
    assert Counter(asked(hosted)) <= Counter({"openai": 3, "anthropic": 3})


def test_a_model_that_cools_down_is_passed_over(hosted: Double) -> None:
    """After a 429 with a time to wait the next calls go to the next model, and a call with no other still tries."""
    hosted.reply("openai", status=429, headers={"retry-after": "20"})
    client = LLMClient(max_retries=0)
    for _ in range(3):
        assert client.chat_completion(HELLO, model=MINI, fallback_models=[HAIKU]).model == HAIKU
    assert asked(hosted) == ["openai", "anthropic", "anthropic", "anthropic"]
    assert client.chat_completion(HELLO, model=MINI, fallback_models=[]).model == MINI
    assert client.chat_completion(HELLO, model=MINI, fallback_models=[HAIKU]).model == MINI


def test_one_tenant_does_not_steer_the_calls_of_another(hosted: Double, no_pause: None) -> None:
    """What one customer's calls met neither cools a model down for another customer nor uses up its retries."""
    hosted.always("openai", status=503)
    client = LLMClient()
    with scope(customer="a"):
        for _ in range(10):
            with pytest.raises(Overloaded):
                client.chat_completion(HELLO, model=MINI)
        assert client.chat_completion(HELLO, model=MINI, fallback_models=[HAIKU]).model == HAIKU
    hosted.reset()
    hosted.reply("openai", status=503, times=2)
    hosted.reply("openai", text="Well.")
    with scope(customer="b"), scope(task="1"):
        assert client.chat_completion(HELLO, model=MINI).content == "Well."
        assert client.chat_completion(HELLO, model=MINI, fallback_models=[HAIKU]).model == MINI
    assert asked(hosted) == ["openai"] * 4


def test_an_outage_does_not_multiply_traffic(hosted: Double, no_pause: None) -> None:
    """A hundred calls to a provider that is down make little more than a hundred requests."""
    hosted.always("openai", status=503)
    client = LLMClient()

    async def many() -> list[Any]:
        calls = (client.achat_completion(HELLO, model=MINI) for _ in range(100))
        return await asyncio.gather(*calls, return_exceptions=True)

    assert {type(each) for each in asyncio.run(many())} == {Overloaded}
    assert 100 <= len(hosted.requests) <= 120


def test_one_probe_after_a_cool_down(hosted: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a cool-down ends one call tries the model out; those beside it go to the next model at once."""
    now = [1000.0]
    monkeypatch.setattr(cooldowns, "_clock", lambda: now[0])
    hosted.reply("openai", status=429, headers={"retry-after": "9"})
    client = LLMClient(max_retries=0)
    client.chat_completion(HELLO, model=MINI, fallback_models=[HAIKU])
    now[0] += 10
    probe = hosted.reply("openai", text="Well again.", fault=Fault.STALL_HEADERS)
    answers: list[str] = []

    def first() -> None:
        answers.append(client.chat_completion(HELLO, model=MINI, fallback_models=[HAIKU]).model)

    thread = threading.Thread(target=first)
    thread.start()
    assert probe.gate.reached.wait(10)
    assert client.chat_completion(HELLO, model=MINI, fallback_models=[HAIKU]).model == HAIKU
    probe.gate.release()
    thread.join(10)
    assert answers == [MINI]
    assert client.chat_completion(HELLO, model=MINI, fallback_models=[HAIKU]).model == MINI


def test_a_limit_per_provider(hosted: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more requests than the limit are under way to one provider, and whoever waits too long costs nothing."""
    monkeypatch.setenv("AGENTSWARM_MAX_CONCURRENCY", "2")
    stalled = hosted.reply("openai", fault=Fault.STALL_HEADERS, times=2)
    client = LLMClient(timeout=0.5, max_retries=0)

    async def many() -> list[Any]:
        slow = [asyncio.create_task(client.achat_completion(HELLO, model=MINI, timeout=30)) for _ in range(2)]
        await asyncio.to_thread(stalled.gate.reached.wait, 10)
        with pytest.raises(LocalOverload):
            await client.achat_completion(HELLO, model=MINI)
        assert (await client.achat_completion(HELLO, model=HAIKU)).model == HAIKU
        stalled.gate.release()
        return await asyncio.gather(*slow, client.achat_completion(HELLO, model=MINI, timeout=30))

    assert len(asyncio.run(many())) == 3


def test_context_falls_back_to_a_model_with_room_only(
    hosted: Double, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was too long for one window is not sent to a model whose window is no larger."""
    monkeypatch.setenv("MY_KEY", "my-own-secret")
    small = {
        name: ModelConfig(
            name=name,
            provider="custom",
            api_base=hosted.api_base("openai"),
            api_key_env="MY_KEY",
            max_input_tokens=window,
            cost_per_1k_input_tokens=1,
            cost_per_1k_output_tokens=1,
        )
        for name, window in (("first", 8000), ("same", 8000), ("large", 100_000))
    }
    hosted.reply("openai", error="context_length")
    hosted.reply("openai", text="It fits.")
    response = LLMClient(model_configs=small).chat_completion(HELLO, model="first", fallback_models=["same", "large"])
    assert (response.content, response.model) == ("It fits.", "large")
    assert len(hosted.requests) == len(records(ledger)) == 2


def test_what_a_fallback_does_not_take(hosted: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parameter that a fallback does not take leaves that model out, and does not hide why it was needed."""
    monkeypatch.setenv("REPLICATE_API_KEY", "r8-0123456789")
    hosted.always("openai", status=503)
    with pytest.raises(AllModelsFailed, match=r"(?s)openai is overloaded.*does not take") as caught:
        LLMClient(max_retries=0).chat_completion(
            HELLO, model=MINI, fallback_models=["replicate/meta/meta-llama-3-8b-instruct"], tools=[{"type": "function"}]
        )
    assert len(caught.value.failures) == 2


def test_input_that_cannot_fit_is_not_sent(hosted: Double, ledger: Ledger) -> None:
    """Input far larger than the known windows costs nothing: it is counted before anything is sent."""
    huge = [{"role": "user", "content": "word " * 900_000}]
    with pytest.raises(AllModelsFailed) as caught:
        LLMClient().chat_completion(huge, model=MINI, fallback_models=[HAIKU])
    assert [type(error) for error in caught.value.failures] == [ContextTooLong, ContextTooLong]
    assert hosted.requests == []
    assert [row["status"] for row in records(ledger)] == ["refused"]


def test_a_busy_ledger_does_not_break_the_deadline(hosted: Double, ledger: Ledger, tmp_path: Path) -> None:
    """While another program holds the ledger a call ends with its deadline, unsent, and is recorded later."""
    ledger.check_writable()
    other = open_file(tmp_path / "ledger.sqlite3", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="while the ledger was busy"):
        LLMClient(deadline=0.3).chat_completion(HELLO, model=MINI)
    assert time.monotonic() - began < 10
    assert hosted.requests == []
    other.execute("ROLLBACK")
    other.close()
    [row] = records(ledger)
    assert (row["status"], row["error_type"], row["cost_nano"]) == ("failed", "DeadlineExceeded", 0)


def test_a_refusal_keeps_the_deadline(ledger: Ledger, tmp_path: Path) -> None:
    """A call that is refused at once does not wait for a busy ledger beyond its deadline; it is recorded later."""
    ledger.check_writable()
    other = open_file(tmp_path / "ledger.sqlite3", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    with pytest.raises(InvalidRequest):
        LLMClient(deadline=0.3).chat_completion([], model=MINI)
    assert time.monotonic() - began < 10
    other.execute("ROLLBACK")
    other.close()
    [row] = rows(ledger)
    assert (row["status"], row["error_type"], row["failed_calls"]) == ("refused", "InvalidRequest", 1)


def test_a_wait_beyond_the_deadline_is_not_begun(hosted: Double) -> None:
    """A time to wait that is longer than the deadline leaves is not waited for, and the failure is told as it is."""
    hosted.always("openai", status=503, headers={"retry-after": "3"})
    with pytest.raises(Overloaded, match="openai is overloaded"):
        LLMClient(deadline=1.0).chat_completion(HELLO, model=MINI)
