"""The background event loop under the synchronous API."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_fork_after_a_call() -> None:
    """A process that forks after a call leaves the child able to end, and to call afresh."""
    program = (
        "import os, sys\n"
        "from shared import background\n"
        "async def nothing(): return 5\n"
        "assert background.run(nothing) == 5\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    assert background.run(nothing) == 5\n"
        "    sys.exit(7)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == 7
