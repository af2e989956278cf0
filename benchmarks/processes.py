"""Many processes on one PostgreSQL server: with a budget each, and with one budget for all."""

from __future__ import annotations

import os
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from itertools import cycle, product

from benchmarks.contest import Claim, Found, Measures, console, is_busy, players, publish, run
from benchmarks.distance import ROUND_TRIP_S, distant_database
from benchmarks.provider import MESSAGES, MODEL, provider

PROCESSES = 16
RATE, MEDIAN, SLOW, LOCK = "calls/s", "median ms", "slowest p99 ms", "ms a change of the hottest total"
WAYS = OWN, SHARED = "a budget each", "one budget for all"


def prepare(number: int, terms: Namespace) -> Callable[[], Measures]:
    """One process, after the calls in which it loads what it needs; its rounds are of WAYS in turn."""
    os.environ["OPENAI_BASE_URL"] = terms.base
    from shared.budget import Budget
    from shared.llm_client import LLMClient
    from shared.scope import scope

    client = LLMClient()
    budgets = {OWN: Budget(1000, window="day", scope="customer"), SHARED: Budget(1000, window="day")}
    ways = cycle(WAYS)

    def call(way: str) -> float:
        began = time.perf_counter()
        with scope(customer=f"customer-{number}", budget=budgets[way]):
            client.chat_completion(MESSAGES, model=f"openai/{MODEL}")
        return (time.perf_counter() - began) * 1000

    def play() -> Measures:
        way, end = next(ways), time.monotonic() + terms.seconds
        times = []
        while time.monotonic() < end:
            times.append(call(way))
        return {RATE: len(times) / terms.seconds, MEDIAN: statistics.median(times), SLOW: _p99(times)}

    for way in WAYS:
        call(way)
    return play


def _p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[98] if len(times) > 1 else times[0]


CONTESTANTS = {str(number): partial(prepare, number) for number in range(PROCESSES)}


def measure(chosen: Namespace) -> None:
    """Measure and publish."""
    count, seconds, rounds = (2, 0.5, 1) if chosen.quick else (PROCESSES, 5.0, 3)
    busy = is_busy()
    with provider() as base, distant_database() as database:
        terms = {"base": base, "seconds": seconds, "environment": {"AGENTSWARM_DATABASE_URL": database}}
        found = _played([str(number) for number in range(count)], terms, rounds)
    found[SHARED][LOCK] = [1000 / rate / 2 for rate in found[SHARED][RATE]]  # each call changes it twice
    spread = [slow / median for slow, median in zip(found[OWN][SLOW], found[OWN][MEDIAN], strict=True)]
    claims = [
        Claim(f"{PROCESSES} processes with a budget each", ">= 120", found[OWN][RATE], " calls/s"),
        Claim("The slowest process's p99, as a multiple of the median", "<= 4", spread),
        Claim(
            "One budget for all, at most from one change of its total to the next", "<= 5", found[SHARED][LOCK], " ms"
        ),
    ]
    note = (
        f"Budgeted calls; each query travels {ROUND_TRIP_S * 1000:g} ms; fsync is off, so that the disk adds nothing."
    )
    publish("Many processes on PostgreSQL", found, claims, chosen, busy=busy, note=note)


def _played(names: list[str], terms: dict[str, object], rounds: int) -> Found:
    """All processes at once: their calls a second together, the median of their medians, and the worst p99."""
    found: Found = {way: {RATE: [], MEDIAN: [], SLOW: []} for way in WAYS}
    with players(names, terms) as ready:
        for number, way in product(range(rounds), WAYS):
            console.print(f"round {number + 1} of {rounds}: {way}", style="dim")
            for each in ready.values():
                each.begin()
            played = [each.end() for each in ready.values()]
            found[way][RATE].append(sum(each[RATE] for each in played))
            found[way][MEDIAN].append(statistics.median(each[MEDIAN] for each in played))
            found[way][SLOW].append(max(each[SLOW] for each in played))
    return found


if __name__ == "__main__":
    run(measure, CONTESTANTS)
