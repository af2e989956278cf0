"""The fault matrix against a real socket: every fault, in every mode, with and without another model to turn to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared import attempts, transport
from shared.analytics import get_llm_costs
from shared.ledger import Ledger
from tests.fault_cases import CASES, FaultCase
from tests.fault_runs import check, some_runs
from tests.provider_double import Double


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No pause between attempts but the one that a provider asks for, and a cap that small answers can break."""
    monkeypatch.setattr(attempts, "_backoff", lambda _: 0.0)
    monkeypatch.setattr(transport, "MAX_RESPONSE_BYTES", 2 * 2**20)
    return


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fault(case: FaultCase, hosted: Double, ledger: Ledger) -> None:
    """Each fault ends as the table says: for the caller, on the wire, in the ledger and in time."""
    runs = some_runs(case)
    for run in runs:
        try:
            check(case, run, hosted, ledger)
        except AssertionError as error:
            error.add_note(f"in the run {run}")
            raise
    answered = sum(case.then == "answered" or (run.fallback and case.falls_back) for run in runs)
    costs = get_llm_costs(days=1)
    assert (costs["total_calls"], costs["failed_calls"]) == (answered, len(runs) - answered)
