"""Many calls while much goes wrong: outages, kills, crowds, and thousands of calls in a row."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from shared.analytics import get_llm_costs
from shared.calls import flow
from shared.ledger.records import attempt_records
from shared.ledger.store import Ledger, get_ledger
from shared.llm_client import LLMClient
from shared.providers import transport
from shared.scope import scope
from tests.support.asking import HAIKU, HELLO, MINI
from tests.support.fault_cases import CASES, FLASH, FaultCase
from tests.support.fault_runs import check, every_run, nano
from tests.support.paths import ROOT
from tests.support.provider_double import Double, Fault, Recorded, Reply

KILLS = 50


# The whole matrix


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_whole_matrix(case: FaultCase, hosted: Double, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fault ends as the table says for each operation, in each mode, with and without another model."""
    monkeypatch.setattr(flow, "_backoff", lambda _: 0.005)
    monkeypatch.setattr(transport, "MAX_RESPONSE_BYTES", 2 * 2**20)
    for run in every_run(case):
        check(case, run, hosted, ledger)


# A bad night

# Faults after which the provider charges exactly what the client knows: nothing, or what it was told.
_KNOWN: tuple[dict[str, Any], ...] = (
    {"status": 429, "headers": {"retry-after": "0.01"}},
    {"status": 503},
    {"status": 529},
    {"status": 401},
    {"error": "quota"},
    {"fault": Fault.REDIRECT},
    {"error": "not_found"},
)
# Faults that leave the outcome open; the double does not charge for them, and the ledger says "unknown".
_OPEN: tuple[dict[str, Any], ...] = (
    {"status": 500},
    {"fault": Fault.RESET_BEFORE_HEADERS},
    {"fault": Fault.HTML, "billed": False},
    {"fault": Fault.EMPTY, "billed": False},
)


def test_a_bad_night(hosted: Double, ledger: Ledger) -> None:
    """With a third of its requests failing, every call is answered, with few requests, and the bill is exact."""
    chance = random.Random(4)

    def choose(request: Recorded) -> Reply | None:
        fails = request.provider == "openai" and chance.random() < 0.3
        return Reply(**chance.choice(_KNOWN + _OPEN)) if fails else None

    hosted.decide(choose)
    client = LLMClient()

    async def night() -> list[str]:
        gate = asyncio.Semaphore(20)

        async def one(stream: bool) -> str:
            async with gate:
                answer: Any = await client.achat_completion(HELLO, MINI, [HAIKU, FLASH], stream=stream)
                return "".join([chunk async for chunk in answer]) if stream else answer.content

        return await asyncio.gather(*(one(number % 2 == 0) for number in range(1000)))

    texts = asyncio.run(night())
    assert all(text.startswith("Hello from") for text in texts)
    ledger.flush()
    rows = list(attempt_records(ledger))
    assert len(rows) == len(hosted.requests) <= 1500
    assert any(row["error_type"] for row in rows)
    billed = sorted(nano(bill.provider, bill.usage.input, bill.usage.output) for bill in hosted.billed)
    assert sorted(row["cost_nano"] for row in rows if row["status"] == "ok") == billed
    costs = get_llm_costs(days=1)
    assert (costs["total_cost_nano"], costs["total_calls"], costs["failed_calls"]) == (sum(billed), 1000, 0)


# Kills

_WORKER = """
import os, threading
from shared.llm_client import LLMClient

client = LLMClient(max_retries=0)

def work():
    while True:
        answer = client.chat_completion([{"role": "user", "content": "Hello!"}], model="openai/gpt-5.4-mini")
        os.write(1, f"{answer.metadata['call_id']} {round(answer.cost * 1e9)}\\n".encode())

os.write(1, b"ready\\n")
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
# One interpreter, warm from a call of its own, forks for each kill: starting fifty would take minutes.
_NURSERY = f"""
import os, sys
from shared.llm_client import LLMClient
LLMClient().chat_completion([{{"role": "user", "content": "Hello!"}}], model="openai/gpt-5.4-mini")
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        exec({_WORKER!r})
    os.write(2, f"{{child}}\\n".encode())
    os.waitpid(child, 0)
    os.write(1, b"dead\\n")
"""


def test_kills(double: Double, tmp_path: Path) -> None:
    """Killed fifty times at any moment, no acknowledged call is lost or doubled, and the store opens cleanly."""
    path, chance = tmp_path / "ledger.sqlite3", random.Random(5)
    environment = os.environ | {
        "OPENAI_API_KEY": "sk-test-0123456789",
        "OPENAI_BASE_URL": double.api_base("openai"),
        "PYTHONPATH": str(ROOT),
    }
    told: dict[str, int] = {}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _NURSERY]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, **pipes) as nursery:  # type: ignore[call-overload]
        try:
            for _ in range(KILLS):
                nursery.stdin.write(b"go\n")
                nursery.stdin.flush()
                child = int(nursery.stderr.readline())
                assert nursery.stdout.readline() == b"ready\n"
                timer = threading.Timer(chance.uniform(0.0, 0.4), os.kill, (child, signal.SIGKILL))
                timer.start()
                while (line := nursery.stdout.readline()) != b"dead\n":
                    call_id, cost = line.split()
                    told[call_id.decode()] = int(cost)
        finally:
            nursery.kill()
    assert len(told) > KILLS
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    ledger = get_ledger(os.environ["AGENTSWARM_DATABASE_URL"])
    ledger.flush()
    rows = list(attempt_records(ledger))
    known = {str(row["call_id"]): row["cost_nano"] for row in rows if str(row["call_id"]) in told}
    assert known == told
    assert len({row["call_id"] for row in rows}) == len(rows)
    assert {row["status"] for row in rows} <= {"ok", "started"}
    assert len(rows) >= len(double.requests)
    assert ledger.waiting == 0


# Crowds


def test_a_crowd(hosted: Double, ledger: Ledger) -> None:
    """200 threads and 500 tasks share a client: each gets its own answer, and each call its own label."""
    client = LLMClient(timeout=120)
    most = Counter[str]()
    lock = threading.Lock()

    def echo(request: Recorded) -> Reply:
        with lock:
            most["under way"] = max(most["under way"], hosted._under_way)
        return Reply(text=request.body["messages"][0]["content"])

    hosted.decide(echo)

    def work(name: str) -> bool:
        with scope(customer=name):
            return client.chat_completion([{"role": "user", "content": name}], model=MINI).content == name

    async def awork(name: str) -> bool:
        async with scope(customer=name):
            answer = await client.achat_completion([{"role": "user", "content": name}], model=MINI)
            return bool(answer.content == name)

    async def all_tasks() -> list[bool]:
        return await asyncio.gather(*(awork(f"task-{number}") for number in range(500)))

    with ThreadPoolExecutor(200) as pool:
        threads = [pool.submit(work, f"thread-{number}") for number in range(200)]
        tasks = pool.submit(lambda: asyncio.run(all_tasks()))
        assert all(tasks.result(120))
        assert all(thread.result(120) for thread in threads)
    ledger.flush()
    labels = Counter(row["labels"]["customer"] for row in attempt_records(ledger))
    assert len(labels) == 700
    assert set(labels.values()) == {1}
    assert most["under way"] <= 2 * transport.MAX_CONNECTIONS


# Thousands of calls


def _open_sockets() -> int:
    return sum(str(link.readlink()).startswith("socket:") for link in _links())


def _links() -> list[Path]:
    return [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system has no /proc")
def test_thousands_of_calls_leave_nothing_behind(hosted: Double, ledger: Ledger) -> None:
    """After 6,000 calls, some of them failing, memory and open sockets are where they were."""
    client = LLMClient()

    async def calls(count: int) -> None:
        async def worker(numbers: range) -> None:
            for number in numbers:
                stream = number % 4 == 0
                answer: Any = await client.achat_completion(HELLO, MINI, [FLASH], stream=stream)
                if stream:
                    async for _ in answer:
                        if number % 8 == 0:
                            break
                    await answer.aclose()

        await asyncio.gather(*(worker(range(start, count, 25)) for start in range(25)))

    def round_of(count: int) -> None:
        hosted.reset()
        hosted.reply("openai", times=count // 50, status=503)
        asyncio.run(calls(count))
        hosted.reset()  # its own record of requests and bills is not the client's memory
        gc.collect()

    round_of(1000)
    sockets, memory, began = _open_sockets(), _resident_mib(), time.monotonic()
    for _ in range(5):
        round_of(1000)
    assert _open_sockets() <= sockets + 2
    assert _resident_mib() < memory + 40, time.monotonic() - began
    assert get_llm_costs(days=1)["total_calls"] == 6_000
