"""Exports: rows a second, memory, and how long calls wait meanwhile."""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.appends import answered
from benchmarks.contest import ROOT, Claim, Contestant, Found, Measures, is_busy, players, publish, run
from benchmarks.ledgers import large_ledger

RATE, MEMORY = "rows/s", "MB more than before"
QUIET, MEANWHILE = "p99 ms of a write, quiet", "p99 ms of a write, during the export"
WRITER = "writer"


def export(extension: str, terms: Namespace) -> Callable[[], Measures]:
    """Every attempt to a file."""
    os.environ["AGENTSWARM_DATABASE_URL"] = f"sqlite:///{large_ledger(terms.rows)}"
    from shared.llm_client import LLMClient

    client = LLMClient()
    target = Path(terms.folder) / f"records.{extension}"

    def play() -> Measures:
        before, began = _peak_mb(), time.perf_counter()
        rows = client.export_cost_records(target)
        taken = time.perf_counter() - began
        target.unlink()
        return {RATE: rows / taken, MEMORY: _peak_mb() - before}

    return play


def writer(terms: Namespace) -> Callable[[], Measures]:
    """Starts and settles attempts, one after the other, for some seconds."""
    from shared.ledger import get_ledger

    ledger = get_ledger(f"sqlite:///{large_ledger(terms.rows)}")

    def play() -> Measures:
        times: list[float] = []
        end = time.monotonic() + terms.seconds
        while time.monotonic() < end:
            began = time.perf_counter()
            ledger.settle(answered()).result()
            times.append(time.perf_counter() - began)
        return {"p99": statistics.quantiles(times, n=100)[98] * 1000}

    play()
    return play


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


JSONL, CSV = "JSON lines", "CSV, through Python"
CONTESTANTS: dict[str, Contestant] = {JSONL: partial(export, "jsonl"), CSV: partial(export, "csv"), WRITER: writer}


def measure(chosen: Namespace) -> None:
    """Measure and publish."""
    rows = 10_000 if chosen.quick else 10_000_000 if chosen.large else 1_000_000
    large_ledger(rows)
    busy = is_busy()
    found: Found = {}
    terms = {"rows": rows, "seconds": 1 if chosen.quick else 5, "folder": str(ROOT / "build" / "benchmarks")}
    with players([JSONL, CSV, WRITER], terms) as ready:
        for _ in range(1 if chosen.quick else 2):
            for name in (JSONL, CSV):
                quiet = ready[WRITER].round()["p99"]
                ready[name].begin()
                meanwhile = ready[WRITER].round()["p99"]
                measures = ready[name].end() | {QUIET: quiet, MEANWHILE: meanwhile}
                for each, value in measures.items():
                    found.setdefault(name, {}).setdefault(each, []).append(value)
    waits = [b / a for a, b in zip(found[JSONL][QUIET], found[JSONL][MEANWHILE], strict=True)]
    claims = [
        Claim("Export to JSON lines", ">= 40,000", found[JSONL][RATE], " rows/s"),
        Claim("Export through Python (CSV)", ">= 15,000", found[CSV][RATE], " rows/s"),
        Claim("p99 of a write during an export, as a multiple of that without", "<= 2", waits),
    ]
    note = f"A SQLite ledger of {rows:,} rows; another process writes during the first seconds of each export."
    publish("Exports", found, claims, chosen, busy=busy, note=note)


if __name__ == "__main__":
    run(measure, CONTESTANTS)
