"""Processes that do the same at once, forked from one that has done nothing but import what takes a second."""

from __future__ import annotations

import subprocess
import sys

from tests.support.paths import ROOT

# One write a line: where Python's output is not buffered, print() makes two, and the lines of two processes would mix.
_PRINT = """
import os

def print(*values, flush=True):
    os.write(1, (" ".join(map(str, values)) + "\\n").encode())
"""

_FORKS = """
import multiprocessing, sys
context = multiprocessing.get_context("fork")
count, *arguments = sys.argv[1:]
together = context.Barrier(int(count))
children = [context.Process(target=run, args=(number, together, *arguments)) for number in range(int(count))]
for child in children:
    child.start()
for child in children:
    child.join()
sys.exit(sum(child.exitcode != 0 for child in children))
"""


def race(program: str, *arguments: str, count: int = 2) -> list[str]:
    """
    What several processes print, line by line, without an order among them.

    Args:
        program: Python that defines `run(number, together, *arguments)`; `together` is a barrier for all of them.

    Raises:
        AssertionError: One of them failed, or wrote to standard error.
    """
    command = [sys.executable, "-c", _PRINT + program + _FORKS, str(count), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout.splitlines()
