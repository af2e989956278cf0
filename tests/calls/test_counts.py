"""A call that has asked for anything is one answered call or one failed call in the ledger, however it ends."""

from __future__ import annotations

import time
from typing import Any

import pytest

from shared import errors
from shared.budget import Budget
from shared.calls import flow
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient
from tests.support.asking import HELLO, MINI, NANO
from tests.support.ledger_rows import assert_exact, rows
from tests.support.provider_double import Double

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
    hold = flow.hold

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
