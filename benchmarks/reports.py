"""Reports and a new customer's first call, in ledgers of more and more rows; `python -m benchmarks.reports`."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
import uuid
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.contest import ROOT, Claim, Measures, contest, environment, is_busy, publish, run
from benchmarks.ledgers import CUSTOMERS, flat, large_ledger
from benchmarks.provider import MESSAGES, MODEL, provider

SIZES = (100_000, 1_000_000, 10_000_000)
REPORTS = ("get_llm_costs(30)", "by customer", "in a customer's scope", "CostReport")
FIRST, NEXT = "first budgeted call of a customer", "a customer's next call"


def prepare(rows: int, terms: Namespace) -> Callable[[], Measures]:
    """A ledger of so many rows, with every report made once."""
    os.environ["AGENTSWARM_DATABASE_URL"] = f"sqlite:///{large_ledger(rows)}"
    os.environ["OPENAI_BASE_URL"] = terms.base
    from shared.analytics import get_llm_costs
    from shared.budget import Budget
    from shared.llm_client import LLMClient
    from shared.scope import scope
    from tools import CostReport

    client = LLMClient()

    def call(customer: str) -> None:
        with scope(customer=customer, budget=Budget(5, window="month", scope="customer")):
            client.chat_completion(MESSAGES, model=f"openai/{MODEL}")

    def inside(report: Callable[[], Any]) -> None:
        with scope(customer=f"customer-{CUSTOMERS // 2}"):
            report()

    reports = (
        lambda: get_llm_costs(30),
        lambda: get_llm_costs(30, by="customer"),
        lambda: inside(lambda: get_llm_costs(30)),
        lambda: inside(lambda: CostReport(days=30).run()),
    )

    def play() -> Measures:
        found = {name: _ms(report, terms.times) for name, report in zip(REPORTS, reports, strict=True)}
        # Each time another customer, that the ledger does not know yet.
        found[FIRST] = _ms(lambda: call(f"new-{uuid.uuid4()}"), terms.times)
        found[NEXT] = _ms(lambda: call("customer-1"), terms.times)
        return found

    for report in reports:
        report()
    call("customer-1")
    return play


def _ms(work: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1000


CONTESTANTS = {f"{rows:,} rows": partial(prepare, rows) for rows in (10_000, *SIZES)}


def measure(chosen: Namespace) -> None:
    """Measure and publish."""
    sizes = (10_000,) if chosen.quick else SIZES if chosen.large else SIZES[:-1]
    for rows in sizes:  # in processes of their own, which end before anything is measured
        making = f"from benchmarks.ledgers import large_ledger; large_ledger({rows})"
        subprocess.run([sys.executable, "-c", making], cwd=ROOT, env=environment(), check=True)
    busy = is_busy()
    names = [f"{rows:,} rows" for rows in sizes]
    with provider() as base:
        found = contest(names, {"base": base, "times": 2 if chosen.quick else 5}, 1 if chosen.quick else 3)
    few, many = found[names[0]], found[names[-1]]
    claims: list[Claim] = []
    for what in REPORTS:
        claims += flat(what, 100, few[what], many[what], sizes[-1])
    claims += flat(FIRST, 10, few[FIRST], many[FIRST], sizes[-1])
    publish("reports", found, claims, chosen, busy=busy, note="Milliseconds each; SQLite; 60 days, 1,000 customers.")


if __name__ == "__main__":
    run(measure, CONTESTANTS)
