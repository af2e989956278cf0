"""Every test of a property, with many more examples than the suite has time for."""

from __future__ import annotations

import subprocess
import sys

from tests.support.paths import ROOT

TIMEOUT_S = 600


def test_properties_hold_for_many_examples() -> None:
    """What holds for any value holds for hundreds of new ones in each soak."""
    options = ["-n0", "-q", "-m", "hypothesis", "--hypothesis-profile=soak", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[100%]" in done.stdout
