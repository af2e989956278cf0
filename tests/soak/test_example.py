"""The example for images, run as somebody without a key runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_runs_without_a_key(tmp_path: Path) -> None:
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
