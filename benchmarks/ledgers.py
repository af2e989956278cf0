"""Large ledgers for benchmarks, made once and kept in build/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.contest import BUILD, ROOT, console, environment

CUSTOMERS = 200


def large_ledger(rows: int) -> Path:
    """A SQLite ledger of so many attempts of the last year, with two labels each."""
    file = BUILD / f"ledger-{rows}.sqlite3"
    if not file.exists():
        console.print(f"making a ledger of {rows:,} rows ...", style="dim")
        unfinished = BUILD / f"unfinished-{rows}.sqlite3"
        for left in BUILD.glob(f"{unfinished.name}*"):
            left.unlink()
        # In a process that ends before the file is renamed: what has a ledger open may write to it until then.
        command = [sys.executable, "-m", "benchmarks.seed_ledger", f"sqlite:///{unfinished}", str(rows)]
        more = ["--customers", str(CUSTOMERS), "--labels", "2"]
        variables = environment(AGENTSWARM_STORE_TIMEOUT="60")
        subprocess.run([*command, *more], cwd=ROOT, env=variables, check=True)
        for part in sorted(BUILD.glob(f"{unfinished.name}*"), reverse=True):
            part.rename(BUILD / part.name.replace(unfinished.name, file.name))
    return file
