"""The background event loop under the synchronous API."""

from __future__ import annotations

import os

import pytest

from tests.support.processes import run


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_fork_after_a_call() -> None:
    """A process that forks after a call leaves the child able to end, and to call afresh."""
    program = (
        "import os, sys\n"
        "from shared.calls import background\n"
        "async def nothing(): return 5\n"
        "assert background.run_blocking(nothing) == 5\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    assert background.run_blocking(nothing) == 5\n"
        "    sys.exit(7)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert run(program).returncode == 7
