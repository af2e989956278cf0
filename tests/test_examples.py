"""The examples that need neither key nor model do what they say."""

from __future__ import annotations

import os
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


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
