"""The demo, as somebody runs it: with no key, and with a wrong one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.provider_double import Double


def run_demo(home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What the demo prints in a clean home."""
    kept = {name: value for name, value in os.environ.items() if not name.endswith(("_API_KEY", "_TOKEN"))}
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "quickstart.py")],
        cwd=home,
        env={**kept, "PYTHONPATH": str(ROOT), "HOME": str(home), "XDG_DATA_HOME": str(home / "data"), **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_without_a_key(tmp_path: Path) -> None:
    """The bill is not zero, has every request of the demo, and lies in no ledger of the user's."""
    home = tmp_path / "visitor"
    home.mkdir()
    done = run_demo(home)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "REPLAYED from examples/recorded_turns.json" in done.stdout
    assert "BudgetExceeded: openai/gpt-5.4-mini could cost $" in done.stdout
    assert "openai/gpt-5.4-mini: $0.003569 (3 calls" in done.stdout
    assert "On the bill:    6 calls, 3 of them turns of agents." in done.stdout
    assert not list(home.rglob("ledger.sqlite3"))


@pytest.mark.parametrize("status", [401, 403])
def test_with_a_wrong_key(tmp_path: Path, double: Double, status: int) -> None:
    """One sentence, no traceback, no banner."""
    double.always("openai", status=status)
    done = run_demo(tmp_path, OPENAI_API_KEY="sk-wrong-0123456789", OPENAI_BASE_URL=double.api_base("openai"))
    assert done.returncode == 1
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in done.stdout
    assert "sk-wrong" not in done.stdout
