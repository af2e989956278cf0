"""What an import costs, in CPU time of a whole process."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

from benchmarks.contest import ROOT, Claim, Found, environment, is_busy, publish, ratios, run

CPU, WALL = "CPU s", "s"
BASE, CLIENT = "import pydantic_settings, anyio, tenacity", "import shared.llm_client"
TERMINAL, HELP, REPORT = "import typer, rich", "agentswarm-tools --help", "agentswarm-tools report"
HOST, TOOLS = "import agency_swarm", "import tools"
PROGRAMS = {
    **{program: ("-c", program) for program in (BASE, CLIENT, TERMINAL, HOST, TOOLS)},
    HELP: ("-m", "agentswarm_tools", "--help"),
    REPORT: ("-m", "agentswarm_tools", "report"),
}


def measure(chosen: Namespace) -> None:
    """Measure and publish."""
    busy = is_busy()
    found: Found = {program: {CPU: [], WALL: []} for program in PROGRAMS}
    with tempfile.TemporaryDirectory() as folder:
        variables = environment(AGENTSWARM_DATABASE_URL=f"sqlite:///{Path(folder) / 'ledger.sqlite3'}")
        for program in PROGRAMS:
            _run(program, variables)  # compiles the modules, makes the ledger
        for _ in range(1 if chosen.quick else 7):
            for program in random.sample(list(PROGRAMS), len(PROGRAMS)):
                began, before = time.perf_counter(), os.times()
                _run(program, variables)
                after = os.times()
                used = after.children_user + after.children_system - before.children_user - before.children_system
                found[program][CPU].append(used)
                found[program][WALL].append(time.perf_counter() - began)
    claims = [
        Claim(f"CPU of `{CLIENT}`, as a multiple of `{BASE}`", "<= 1.3", ratios(found, CPU, CLIENT, BASE)),
        Claim(f"CPU of `{HELP}`, as a multiple of `{TERMINAL}`", "<= 2", ratios(found, CPU, HELP, TERMINAL)),
        Claim(f"CPU of `{REPORT}` (empty ledger)", "<= 0.8", found[REPORT][CPU], " s"),
        Claim(f"CPU of `{TOOLS}`, as a multiple of `{HOST}`", "<= 1.15", ratios(found, CPU, TOOLS, HOST)),
    ]
    publish("Imports", found, claims, chosen, busy=busy, note="Each in a new process, with compiled modules.")


def _run(program: str, variables: dict[str, str]) -> None:
    command = [sys.executable, *PROGRAMS[program]]
    subprocess.run(command, cwd=ROOT, env=variables, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    run(measure)
