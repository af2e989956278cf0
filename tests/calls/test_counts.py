"""A call that has asked for anything is one answered call or one failed call in the ledger, however it ends."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from shared import errors
from shared.budget import Budget
from shared.calls import flow
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient
from tests.support.asking import HELLO, MINI, NANO
from tests.support.ledger_rows import assert_exact, only, rows
from tests.support.provider_double import Double, Fault

GEMINI = "gemini/gemini-3.1-flash-image"


def counts(ledger: Ledger) -> tuple[int, int]:
    """Answered and failed calls, over all rows."""
    assert_exact(ledger)
    found = rows(ledger)
    return sum(row["calls"] for row in found), sum(row["failed_calls"] for row in found)


def test_a_deadline_that_passes_during_a_refusal(
    hosted: Double, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal that would leave the next model its turn ends the call when the deadline has passed: it has failed."""
    hold = flow.hold  # type: ignore[attr-defined]  # it is replaced where the flow looks it up

    async def slow(call: Any, attempt: Any, *, is_last: bool) -> None:
        try:
            await hold(call, attempt, is_last=is_last)
        finally:
            call.deadline_at = time.monotonic()

    monkeypatch.setattr(flow, "hold", slow)
    client = LLMClient(budget=Budget(0.0000001, on_exceed="downgrade"))
    with pytest.raises(errors.DeadlineExceeded):
        client.chat_completion(HELLO, model=MINI, fallback_models=[NANO], deadline=60)
    assert counts(ledger) == (0, 1)


async def cancelled(work: Any, when: asyncio.Event) -> None:
    """Cancel a call at a moment of its own."""
    task = asyncio.create_task(work)
    await when.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_call_that_is_cancelled_during_a_pause(
    hosted: Double, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled while it waits to ask a model again, a call has failed."""
    hosted.always("openai", status=503)

    async def run() -> None:
        pausing = asyncio.Event()

        async def pause(_seconds: float) -> None:
            pausing.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(flow, "_sleep", pause)
        await cancelled(LLMClient().achat_completion(HELLO, model=MINI), pausing)

    asyncio.run(run())
    assert counts(ledger) == (0, 1)


@pytest.mark.parametrize("at_once", ["1", "2", "3"])
def test_a_call_for_images_that_is_cancelled(
    at_once: str, hosted: Double, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """However many of its requests were under way when it was cancelled, a call for images has failed once."""
    monkeypatch.setenv("AGENTSWARM_OUTPUT_DIR", str(tmp_path / "out"))
    monkeypatch.setenv("AGENTSWARM_MAX_CONCURRENCY", at_once)

    async def run() -> None:
        all_sent, sent = asyncio.Event(), []

        async def send(_call: Any, attempt: Any) -> None:
            attempt.exchange.sent = True
            sent.append(attempt)
            if len(sent) == int(at_once):
                all_sent.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(flow, "_send", send)
        await cancelled(LLMClient().agenerate_image("a cat", model=GEMINI, n=3), all_sent)

    asyncio.run(run())
    assert counts(ledger) == (0, 1)
    assert all(row["status"] != "started" for row in rows(ledger))


def test_an_answer_that_is_cancelled_while_it_is_counted(
    hosted: Double, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled while the tokens of an answer without usage are counted, a call is settled as answered."""
    hosted.always("openai", fault=Fault.USAGE_MISSING)
    count = flow.count_tokens  # type: ignore[attr-defined]  # it is replaced where the flow looks it up

    async def run() -> None:
        loop, counting, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

        def slow(*given: Any) -> Any:
            loop.call_soon_threadsafe(counting.set)
            go_on.wait(30)
            return count(*given)

        monkeypatch.setattr(flow, "count_tokens", slow)
        task = asyncio.create_task(LLMClient().achat_completion(HELLO, model=MINI))
        await counting.wait()
        task.cancel()
        loop.call_soon(go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert counts(ledger) == (1, 0)
    row = only(ledger)
    assert (row["status"], row["usage_source"]) == ("ok", "counted")
    assert row["cost_nano"] > 0
