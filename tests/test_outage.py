"""The example of a bad night, run as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_outage() -> None:
    """With one key wrong, one quota used up and one provider down the fourth answers, and ten lines say why."""
    command = [sys.executable, str(ROOT / "examples" / "outage.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    head, answer, night = done.stdout.strip().split("\n\n")
    assert "SCRIPTED" in head
    assert answer.startswith("gemini/gemini-2.5-flash answers: ")
    lines = night.splitlines()
    assert len(lines) <= 10
    assert lines[0] == "5 calls, 0 of them unanswered; 14 attempts."
    for line, reason in zip(lines[1:4], ("AuthenticationError", "QuotaExhausted", "ProviderUnavailable"), strict=True):
        assert f"failed 3 times ({reason}" in line
        assert line.endswith("then left alone in 2 calls, $0.000000")
    assert "answered 5 calls, $0.000" in lines[4]
