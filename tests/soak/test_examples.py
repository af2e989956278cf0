"""The examples, run as somebody without a key runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT


def test_generate_look_fix(tmp_path: Path) -> None:
    """Without a key the example replays its cassette, says so, and shows the bill."""
    kept = {name: value for name, value in os.environ.items() if not name.endswith(("_API_KEY", "_TOKEN"))}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "generate_look_fix.py")],
        cwd=tmp_path,
        env={**kept, "PYTHONPATH": str(ROOT), "AGENTSWARM_OUTPUT_DIR": str(tmp_path / "out"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "REPLAYED from" in done.stdout
    assert "recorded from the provider double" in done.stdout
    assert "robot.png, robot-2.png cost $" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["robot-2.png", "robot.png"]


def test_outage() -> None:
    """With one key wrong, one quota used up and one provider down the fourth answers, and ten lines say why."""
    command = [sys.executable, str(ROOT / "examples" / "outage.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    head, answer, night = done.stdout.strip().split("\n\n")
    assert "SCRIPTED" in head
    assert answer.startswith("gemini/gemini-3.5-flash answers: ")
    lines = night.splitlines()
    assert len(lines) <= 10
    assert lines[0] == "5 calls, 0 of them unanswered; 14 attempts."
    for line, reason in zip(lines[1:4], ("AuthenticationError", "QuotaExhausted", "ProviderUnavailable"), strict=True):
        assert f"failed 3 times ({reason}" in line
        assert line.endswith("then skipped in 2 calls, $0.000000")
    assert "answered 5 calls, $0.000" in lines[4]
