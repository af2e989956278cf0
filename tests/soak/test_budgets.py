"""Four processes of twenty threads race for one dollar, and some of them are killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from shared.internal.clock import now_us
from shared.ledger.records import attempt_records
from shared.ledger.schema import account, attempt
from shared.ledger.store import Ledger, get_ledger
from tests.support.agencies import owed
from tests.support.provider_double import Double, Fault, Recorded, Reply, Usage

PROCESSES, THREADS = 4, 20
DOLLAR = 1_000_000_000  # nano-dollars
KILL_AFTER = 40
LIMIT_S = 120

_WORKER = """
import os, random, sys, threading
from shared.budget import Budget
from shared.errors import BudgetExceeded
from shared.llm_client import LLMClient
from shared.providers.endpoints import import_litellm

threads, number = map(int, sys.argv[1:])
client = LLMClient(budget=Budget(1.0, "total"), timeout=60, max_retries=0)
import_litellm()
os.write(1, b"ready\\n")
sys.stdin.readline()

def work(sizes):
    refused = 0
    while refused < 8:
        prompt = [{"role": "user", "content": f"{number} " + "x" * sizes.randrange(1, 400)}]
        try:
            client.chat_completion(prompt, model="openai/gpt-5.4-mini", max_tokens=sizes.randrange(64, 1000))
        except BudgetExceeded:
            refused += 1
        else:
            refused = 0

dice = random.Random(number)
threads = [threading.Thread(target=work, args=(random.Random(dice.random()),)) for _ in range(threads)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


class Provider:
    """Answers of any length up to what was asked for; of those who are to die none comes from some time on."""

    def __init__(self, dying: int) -> None:
        self.under_way = [threading.Event() for _ in range(dying)]
        self._asked: Counter[int] = Counter()

    def __call__(self, request: Recorded) -> Reply:
        """What is charged is by chance, and never more than the bound; an answer that does not come is charged too."""
        dice, content = random.Random(request.number), request.body["messages"][0]["content"]
        usage = Usage(dice.randint(1, len(content)), dice.randint(1, request.body["max_completion_tokens"]))
        number = int(content.split()[0])
        self._asked[number] += 1
        if number < len(self.under_way) and self._asked[number] > KILL_AFTER:
            self.under_way[number].set()
            return Reply(text="Yes.", usage=usage, fault=Fault.STALL_HEADERS, billed=True)
        return Reply(text="Yes.", usage=usage)


def start(double: Double, number: int) -> subprocess.Popen[bytes]:
    """A process that waits for the word."""
    environment = os.environ | {
        "OPENAI_API_KEY": "sk-test-0123456789",
        "OPENAI_BASE_URL": double.api_base("openai"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-c", _WORKER, str(THREADS), str(number)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def race(double: Double, provider: Provider) -> list[int]:
    """Give all processes the word at once, kill those who are to die while they wait for an answer; how all ended."""
    with ExitStack() as stack:
        workers = [stack.enter_context(start(double, number)) for number in range(PROCESSES)]
        for worker in workers:
            stack.callback(worker.kill)
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.close()
        for worker, waiting in zip(workers, provider.under_way, strict=False):  # those who live come after
            assert waiting.wait(LIMIT_S)
            worker.send_signal(signal.SIGKILL)
        return [worker.wait(LIMIT_S) for worker in workers]


def spent(ledger: Ledger) -> int:
    """Nano-dollars that the ledger counts, what is under way at its most."""
    with ledger.reading() as connection:
        amount = sa.func.sum(sa.func.coalesce(attempt.c.cost_nano, attempt.c.bound_nano))
        return int(connection.scalar(sa.select(amount)) or 0)


@pytest.mark.parametrize(("store", "killed"), [("sqlite", False), ("sqlite", True), ("postgres", True)])
def test_a_dollar_is_a_dollar(
    store: str, killed: bool, double: Double, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Not a nano-dollar more than the budget is spent, by the ledger and by the bill, and nine tenths of it can be."""
    if store == "postgres":
        monkeypatch.setenv("AGENTSWARM_DATABASE_URL", request.getfixturevalue("postgres_url"))
    ledger = get_ledger(os.environ["AGENTSWARM_DATABASE_URL"])
    ledger.flush()
    provider = Provider(dying=2 if killed else 0)
    double.decide(provider)
    ended = race(double, provider)
    double.wait_idle()

    assert ended == [-signal.SIGKILL] * len(provider.under_way) + [0] * (PROCESSES - len(provider.under_way))
    assert 0.9 * DOLLAR < spent(ledger) <= DOLLAR
    assert owed(double) <= DOLLAR
    statuses = [row["status"] for row in attempt_records(ledger)]
    assert "refused" in statuses
    if not killed:
        assert "started" not in statuses
        assert spent(ledger) == owed(double)
    else:
        settle_what_the_killed_left(ledger)
        assert owed(double) <= spent(ledger) <= DOLLAR
    with ledger.reading() as connection:
        assert connection.scalars(sa.select(account.c.counted_nano)).all() == [spent(ledger)]


def settle_what_the_killed_left(ledger: Ledger) -> None:
    """Their leases end; what they held counts as spent, and is no less than before."""
    before: Any = spent(ledger)
    with ledger.writing() as connection:
        left = sa.update(attempt).where(attempt.c.status == "started")
        under_way = connection.execute(left.values(lease_us=now_us() - 1)).rowcount
    assert 0 < under_way <= 2 * THREADS
    assert ledger.settle_expired() == under_way
    assert spent(ledger) == before
