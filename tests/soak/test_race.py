"""Several processes write one ledger, and one of them is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from shared.analytics import get_llm_costs
from shared.internal.clock import now_us
from shared.ledger.records import attempt_records
from shared.ledger.schema import attempt, sums as stored_sums
from shared.ledger.store import Ledger, get_ledger
from shared.llm_client import LLMClient
from tests.support.ledger_rows import assert_exact
from tests.support.provider_double import Double

PROCESSES, THREADS, CALLS = 4, 8, 50
KILL_AFTER = 150

_WORKER = """
import os, sys, threading
from shared.llm_client import LLMClient
from shared.scope import scope

client = LLMClient(timeout=30)

def work(number):
    with scope(customer=f"thread{number}"):
        for call in range(int(sys.argv[2])):
            prompt = [{"role": "user", "content": "x" * (call + 1)}]
            answer = client.chat_completion(prompt, model="openai/gpt-5.4-mini")
            os.write(1, f"{answer.metadata['call_id']} {round(answer.cost * 1e9)}\\n".encode())

threads = [threading.Thread(target=work, args=(number,)) for number in range(int(sys.argv[1]))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def start(double: Double) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "OPENAI_API_KEY": "sk-test-0123456789",
        "OPENAI_BASE_URL": double.api_base("openai"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-c", _WORKER, str(THREADS), str(CALLS)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)


def acknowledged(process: subprocess.Popen[bytes], into: list[tuple[str, int]], kill_after: int | None) -> None:
    """Every call that returned in `process`, which is killed when `kill_after` have."""
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            call_id, cost = line.split()
            into.append((call_id.decode(), int(cost)))
            if len(into) == kill_after:
                process.send_signal(signal.SIGKILL)


def sums(ledger: Ledger, table: sa.Table, *conditions: Any) -> tuple[int, int]:
    with ledger.reading() as connection:
        columns = (sa.func.sum(table.c.cost_nano), sa.func.sum(table.c.calls))
        cost, calls = connection.execute(sa.select(*columns).where(*conditions)).one()
        return int(cost or 0), int(calls or 0)


def check_totals(ledger: Ledger, folder: Path) -> None:
    """Costs, sums, rows and exports tell the same figure, to the nano-dollar."""
    costs = get_llm_costs(days=1)
    raw = sums(ledger, attempt, attempt.c.status != "started")
    assert_exact(ledger)  # and nothing is left to fold
    of_quarters = (stored_sums.c.owner == "", stored_sums.c.split == 0, stored_sums.c.grain == 900)
    assert raw == sums(ledger, stored_sums, *of_quarters) == (costs["total_cost_nano"], costs["total_calls"])
    assert sum(round(cost * 1e9) for cost in costs["cost_by_day"].values()) == raw[0]
    LLMClient().export_cost_records(folder / "all.json")
    exported = json.loads((folder / "all.json").read_text())
    assert sum(row["cost_nano"] or 0 for row in exported if row["status"] != "started") == raw[0]


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_processes_and_a_kill(
    double: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, store: str
) -> None:
    """Every call that returned is in the ledger exactly once, also those of a process that was killed midway."""
    if store == "postgres":
        monkeypatch.setenv("AGENTSWARM_DATABASE_URL", request.getfixturevalue("postgres_url"))
    ledger = get_ledger(os.environ["AGENTSWARM_DATABASE_URL"])
    ledger.flush()
    processes = [start(double) for _ in range(PROCESSES)]
    returned: list[list[tuple[str, int]]] = [[] for _ in processes]
    readers = [
        threading.Thread(target=acknowledged, args=(process, returned[i], KILL_AFTER if i == 0 else None))
        for i, process in enumerate(processes)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [process.returncode for process in processes] == [-signal.SIGKILL, 0, 0, 0]
    assert [len(calls) for calls in returned[1:]] == [THREADS * CALLS] * 3
    told = dict(call for calls in returned for call in calls)
    rows = [row for row in attempt_records(ledger) if str(row["call_id"]) in told]
    assert sorted((str(row["call_id"]), row["cost_nano"]) for row in rows) == sorted(told.items())
    assert {row["status"] for row in rows} == {"ok"}
    check_totals(ledger, tmp_path)

    with ledger.writing() as connection:
        left = sa.update(attempt).where(attempt.c.status == "started")
        under_way = connection.execute(left.values(lease_us=now_us() - 1)).rowcount
    assert under_way <= THREADS
    assert ledger.settle_expired() == under_way
    assert [row for row in attempt_records(ledger) if row["status"] == "started"] == []
    check_totals(ledger, tmp_path)
