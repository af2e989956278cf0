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
from shared.calls.hold import hold
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient
from shared.providers import count_tokens
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

    async def run() -> None:
        loop, counting, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

        def slow(*given: Any, **more: Any) -> Any:
            loop.call_soon_threadsafe(counting.set)
            go_on.wait(30)
            return count_tokens(*given, **more)

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


def test_a_pause_that_no_longer_fits_is_not_begun(
    hosted: Double, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When settling an attempt has taken what the deadline left for the pause, the call ends at once and has failed."""
    hosted.always("openai", status=503, headers={"retry-after": "20"})
    settle, pauses = flow._settle, []

    async def slow(call: Any, attempt: Any) -> Any:
        admission = await settle(call, attempt)
        call.deadline_at = time.monotonic() + 10
        return admission

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(flow, "_settle", slow)
    monkeypatch.setattr(flow, "_sleep", pause)
    with pytest.raises(errors.DeadlineExceeded):
        LLMClient().chat_completion(HELLO, model=MINI, deadline=60)
    assert pauses == []
    assert len(hosted.requests) == 1
    assert counts(ledger) == (0, 1)


def test_an_image_that_cannot_be_saved_has_its_cost(
    hosted: Double, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The error of an image that was made and could be saved nowhere says what was charged for it."""
    monkeypatch.setenv("AGENTSWARM_OUTPUT_DIR", str(tmp_path / "out"))

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise errors.StoreError("The image could not be saved")

    monkeypatch.setattr("shared.calls.images.save_picture", fail)
    with pytest.raises(errors.StoreError, match="Charged") as caught:
        LLMClient().generate_image("a cat")
    assert caught.value.cost == only(ledger)["cost_nano"] / 1e9 > 0
    assert counts(ledger) == (1, 0)
