"""What breaks a budget's footing: with a budget nothing is sent, without one the call goes on with one warning."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine

from shared.budget import Budget
from shared.calls import hold
from shared.errors import BudgetExceeded, ConfigurationError, LLMError, StoreError
from shared.ledger.store import get_ledger
from shared.llm_client import LLMClient
from shared.scope import scope
from tests.support.asking import HELLO, MINI, Way
from tests.support.provider_double import Double

FAULTS: dict[str, tuple[type[LLMError], str]] = {
    "ledger": (StoreError, "no budget can be enforced"),
    "price": (BudgetExceeded, "is unknown, and a budget applies"),
    "tracking": (ConfigurationError, "needs cost tracking"),
    "clock": (BudgetExceeded, "clock is 3[56].. s behind"),
}
SAID = {
    "ledger": "cannot be written",
    "price": "is unknown: its calls are recorded without a cost",
    "tracking": "Cost tracking is off",
    "clock": "clock is 3[56].. s behind",
}


@pytest.fixture(params=FAULTS)
def fault(request: pytest.FixtureRequest, hosted: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Something is wrong from here on; what was sent before is forgotten."""
    name = str(request.param)
    hold._warn_unpriced.cache_clear()
    hold.warn_untracked.cache_clear()
    match name:
        case "ledger":
            path = tmp_path / "broken.sqlite3"
            path.write_text("This is no database. " * 100)
            monkeypatch.setenv("AGENTSWARM_DATABASE_URL", f"sqlite:///{path}")
        case "tracking":
            monkeypatch.setenv("LITELLM_COST_TRACKING", "false")
        case "clock":
            with time_machine.travel(datetime.now(UTC) + timedelta(hours=1)):
                LLMClient().chat_completion(HELLO, model=MINI)
            get_ledger.cache_clear()
            hosted.reset()
    return name


def ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What this package has logged; other libraries' threads may log at any time."""
    return [record for record in caplog.records if record.name == "agentswarm_tools"]


def model(fault: str) -> str:
    return "openai/brand-new" if fault == "price" else MINI


@contextmanager
def under(source: str, budget: Budget, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A budget from one of the places that it can come from; yields the client's arguments."""
    if source == "settings":
        monkeypatch.setenv("AGENTSWARM_BUDGET_USD", str(budget.limit_usd))
    with scope(customer="acme", budget=budget if source == "scope" else None):
        yield {"budget": budget} if source == "client" else {}


@pytest.mark.parametrize("source", ["client", "scope", "settings"])
def test_with_a_budget_nothing_is_sent(
    fault: str, source: str, hosted: Double, ask: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call is refused before anything is sent, says why, and costs nothing."""
    kind, message = FAULTS[fault]
    with under(source, Budget(5), monkeypatch) as given, pytest.raises(kind, match=message) as caught:
        ask(LLMClient(**given), model=model(fault))
    assert hosted.requests == []
    assert caught.value.cost == 0


def test_without_one_it_goes_on(fault: str, hosted: Double, ask: Way, caplog: pytest.LogCaptureFixture) -> None:
    """Calls are answered, and the first of them logs one warning that says what is wrong."""
    with caplog.at_level(logging.WARNING, "agentswarm_tools"):
        for _ in range(2):
            assert ask(LLMClient(), model=model(fault)).content.startswith("Hello from")
    assert len(hosted.requests) == 2
    [said] = ours(caplog)
    assert said.levelname == "WARNING"
    assert re.search(SAID[fault], said.getMessage())


def test_a_clock_that_was_set_right_needs_no_warning(hosted: Double, caplog: pytest.LogCaptureFixture) -> None:
    """Records of the last minutes, as of another machine whose clock is a little ahead, are no reason to warn."""
    with time_machine.travel(datetime.now(UTC) + timedelta(minutes=4)):
        LLMClient().chat_completion(HELLO, model=MINI)
    get_ledger.cache_clear()
    with caplog.at_level(logging.WARNING, "agentswarm_tools"):
        assert LLMClient(budget=Budget(5)).chat_completion(HELLO, model=MINI).content
    assert ours(caplog) == []
