"""Reports and a new customer's first call, in ledgers of more and more rows."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
import uuid
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.contest import Claim, Measures, contest, is_busy, publish, run
from benchmarks.ledgers import CUSTOMERS, large_ledger
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
        with scope(customer=customer, budget=Budget(1_000_000, window="month", scope="customer")):
            client.chat_completion(MESSAGES, model=f"openai/{MODEL}")

    def inside(report: Callable[[], Any]) -> None:
        with scope(customer=f"customer-{CUSTOMERS // 2}"):
            report()

    reports = (
        lambda: get_llm_costs(30),
        lambda: get_llm_costs(30, by="customer"),
        lambda: inside(lambda: get_llm_costs(30)),
        lambda: inside(lambda: asyncio.run(CostReport(days=30).run())),
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
    for rows in sizes:
        large_ledger(rows)
    busy = is_busy()
    names = [f"{rows:,} rows" for rows in sizes]
    with provider() as base:
        found = contest(names, {"base": base, "times": 2 if chosen.quick else 5}, 1 if chosen.quick else 3)
    goals = {**dict.fromkeys(REPORTS, 100), FIRST: 10}
    few, many = found[names[0]], found[names[-1]]
    claims = [Claim(f"{what}, {names[-1]}", f"<= {goal}", many[what], " ms") for what, goal in goals.items()]
    if few is not many:
        growth = {what: [a / b for a, b in zip(many[what], few[what], strict=True)] for what in goals}
        claims += [Claim(f"{what}, as a multiple of {names[0]}", "<= 1.5", growth[what]) for what in goals]
    publish(
        "Reports, and a new customer's first call",
        found,
        claims,
        chosen,
        busy=busy,
        note="Milliseconds each; SQLite; a year, 200 customers.",
    )


if __name__ == "__main__":
    run(measure, CONTESTANTS)
