"""One call after the other: our client, LiteLLM's, OpenAI's and plain httpx."""

from __future__ import annotations

import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial

from benchmarks.clients import BUDGETED, OFF, OURS, RECORDED, sync_call
from benchmarks.contest import Claim, Measures, contest, is_busy, publish, ratios, run
from benchmarks.provider import provider


def prepare(name: str, terms: Namespace) -> Callable[[], Measures]:
    """One client, after the calls in which it loads what it needs."""
    call = sync_call(name, terms.base)
    for _ in range(5):
        call()

    def play() -> Measures:
        times = []
        for _ in range(terms.calls):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        return {"ms a call": statistics.median(times) * 1000}

    return play


CONTESTANTS = {name: partial(prepare, name) for name in ("httpx", "openai", "litellm", *OURS)}


def measure(chosen: Namespace) -> None:
    """Measure and publish."""
    busy = is_busy()
    with provider() as base:
        terms = {"base": base, "calls": 5 if chosen.quick else 150}
        found = contest(list(CONTESTANTS), terms, 1 if chosen.quick else 5)
    against = partial(ratios, found, "ms a call", other="litellm")
    claims = [
        Claim("A recorded call, as a multiple of litellm.completion", "<= 1.0", against(RECORDED)),
        Claim("With a budget", "<= 1.25", against(BUDGETED)),
        Claim("With the ledger off", "<= 0.6", against(OFF)),
    ]
    publish(
        "One call after the other",
        found,
        claims,
        chosen,
        busy=busy,
        note="One synchronous call after the other, SQLite.",
    )


if __name__ == "__main__":
    run(measure, CONTESTANTS)
