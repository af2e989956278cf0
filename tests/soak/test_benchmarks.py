"""The benchmarks run: one of calls, and one of ledgers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT


@pytest.mark.parametrize("name", ["reports"])
def test_each_benchmark_runs(name: str) -> None:
    """At its smallest size a benchmark ends, with a value for each of its claims and figures."""
    written = ROOT / "build" / "benchmarks" / f"{name}.json"
    written.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick"]
    subprocess.run(command, cwd=ROOT, env=dict(os.environ), check=True, timeout=280, stdout=subprocess.DEVNULL)
    result = json.loads(written.read_text(encoding="utf-8"))
    assert result["claims"]
    assert all(value > 0 for claim in result["claims"] for value in claim["values"])
    assert all(measures for measures in result["found"].values())
