"""The examples that need neither key nor model do what they say."""

from __future__ import annotations

import os
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def environment() -> Iterator[None]:
    """What an example sets in the environment is forgotten."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_one_bill(environment: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Our bill is the provider's to the last digit, agency-swarm's own is less, and the script is called one."""
    runpy.run_path(str(EXAMPLES / "one_bill.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert "The provider is SCRIPTED" in shown
    provider, ours, theirs = re.findall(r"(?:charges|says): +\$([0-9.]+)", shown)
    assert provider == ours
    assert 0 < float(theirs) < float(ours)
    assert "for 9 requests" in shown
    assert "for 9 calls" in shown


def test_budgeted_agent(environment: None, capsys: pytest.CaptureFixture[str]) -> None:
    """The run ends with a refusal before its budget is broken, and what was spent is within it."""
    runpy.run_path(str(EXAMPLES / "budgeted_agent.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert "The provider is SCRIPTED" in shown
    assert "is left of $0.002 a run" in shown
    assert "Nothing was charged." in shown
    [(spent, turns)] = re.findall(r"Spent: \$([0-9.]+) for (\d+) turns", shown)
    assert 0 < float(spent) <= 0.002
    assert int(turns) == shown.count("reading page") > 3


def test_customers(environment: None, capsys: pytest.CaptureFixture[str]) -> None:
    """One customer disconnects and continues, the other runs out of money, and each sees only its own report."""
    runpy.run_path(str(EXAMPLES / "customers.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert "The provider is SCRIPTED" in shown
    assert "... (disconnected)" in shown
    assert "is left of $0.0008 a day (customer=acme)" in shown
    acme, bolt, operator = re.split(
        r"— (?:The report for bolt|What the operator sees):", shown.partition("report for acme:")[2]
    )
    assert "customer=acme" in acme
    assert "customer=bolt" not in acme
    assert "customer=bolt" in bolt
    assert "customer=acme" not in bolt
    seen = dict(re.findall(r"(acme|bolt): \$([0-9.]+)", operator))
    assert f"Total Cost: ${seen['acme']}" in acme
    assert f"Total Cost: ${seen['bolt']}" in bolt
