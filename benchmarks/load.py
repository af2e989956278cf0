"""Many calls at once: from 50 threads, and from 500 tasks of one event loop."""

from __future__ import annotations

import asyncio
import statistics
import time
from argparse import Namespace
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from benchmarks.clients import OFF, OURS, RECORDED, async_call, sync_call
from benchmarks.contest import Claim, Measures, contest, is_busy, publish, ratios, run
from benchmarks.provider import provider

THREADS, TASKS = 50, 500
RATE, SLOW = f"calls/s, {THREADS} threads", f"p99 ms, {TASKS} tasks"


def prepare(name: str, terms: Namespace) -> Callable[[], Measures]:
    """One client, after the calls in which it loads what it needs."""
    call, acall = sync_call(name, terms.base), async_call(name, terms.base)
    pool, runner = ThreadPoolExecutor(THREADS), asyncio.Runner()
    _per_second(pool, call, 1)
    runner.run(_seconds(acall, 5))

    def play() -> Measures:
        rate = _per_second(pool, call, terms.calls)
        times = runner.run(_seconds(acall, terms.tasks))
        return {RATE: rate, SLOW: statistics.quantiles(times, n=100)[98] * 1000}

    return play


def _per_second(pool: ThreadPoolExecutor, call: Callable[[], object], each: int) -> float:
    def work(_: int) -> None:
        for _ in range(each):
            call()

    began = time.perf_counter()
    list(pool.map(work, range(THREADS)))
    return THREADS * each / (time.perf_counter() - began)


async def _seconds(call: Callable[[], Awaitable[object]], tasks: int) -> list[float]:
    """The seconds that each call took, of tasks that make one each."""

    async def work() -> float:
        began = time.perf_counter()
        await call()
        return time.perf_counter() - began

    return await asyncio.gather(*(work() for _ in range(tasks)))


CONTESTANTS = {name: partial(prepare, name) for name in ("httpx", "openai", "litellm", *OURS)}


def measure(chosen: Namespace) -> None:
    """Measure and publish."""
    busy = is_busy()
    with provider() as base:
        terms = {"base": base, "tasks": 20 if chosen.quick else TASKS, "calls": 1 if chosen.quick else 3}
        found = contest(list(CONTESTANTS), terms, 1 if chosen.quick else 3)
    claims = [
        Claim(
            f"{THREADS} threads, recorded calls/s, as a multiple of LiteLLM's",
            ">= 1.0",
            ratios(found, RATE, RECORDED, "litellm"),
        ),
        Claim("With the ledger off", ">= 1.0", ratios(found, RATE, OFF, "litellm")),
        Claim(
            f"{TASKS} tasks, p99 of a recorded call, as a multiple of LiteLLM's",
            "<= 1.0",
            ratios(found, SLOW, RECORDED, "litellm"),
        ),
    ]
    publish("Many calls at once", found, claims, chosen, busy=busy, note="All calls start at once; SQLite.")


if __name__ == "__main__":
    run(measure, CONTESTANTS)
