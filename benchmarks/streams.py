"""Streams: how many chunks a second, and how soon the first."""

from __future__ import annotations

import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from functools import partial

from benchmarks.clients import OFF, RECORDED, sync_stream
from benchmarks.contest import Claim, Measures, contest, is_busy, publish, ratios, run
from benchmarks.provider import provider, words

CHUNKS, SHORT = 5000, 20
RATE, FIRST = "chunks/s", "ms to the first chunk"


def prepare(name: str, terms: Namespace) -> Callable[[], Measures]:
    """One client, after the streams in which it loads what it needs."""
    stream = sync_stream(name, terms.base)
    for _ in range(3):
        list(stream(SHORT))

    def play() -> Measures:
        return {RATE: _rate(stream), FIRST: statistics.median(_first(stream) for _ in range(terms.calls)) * 1000}

    return play


def _rate(stream: Callable[[int], Iterable[str]]) -> float:
    began = time.perf_counter()
    text = "".join(stream(CHUNKS))
    taken = time.perf_counter() - began
    if text != "".join(words(CHUNKS)):
        raise SystemExit("the stream is incomplete")
    return CHUNKS / taken


def _first(stream: Callable[[int], Iterable[str]]) -> float:
    began = time.perf_counter()
    chunks = iter(stream(SHORT))
    while not next(chunks):
        pass
    taken = time.perf_counter() - began
    for _ in chunks:
        pass
    return taken


CONTESTANTS = {name: partial(prepare, name) for name in ("openai", "litellm", OFF, RECORDED)}


def measure(chosen: Namespace) -> None:
    """Measure and publish."""
    busy = is_busy()
    with provider() as base:
        found = contest(list(CONTESTANTS), {"base": base, "calls": 3 if chosen.quick else 20}, 1 if chosen.quick else 3)
    claims = [
        Claim(
            "Chunks a second of a recorded stream, as a multiple of OpenAI's SDK",
            ">= 1.0",
            ratios(found, RATE, RECORDED, "openai"),
        ),
        Claim(
            "Time to the first chunk of a recorded stream, as a multiple of OpenAI's SDK",
            "<= 2.5",
            ratios(found, FIRST, RECORDED, "openai"),
        ),
    ]
    publish("Streams", found, claims, chosen, busy=busy, note=f"Synchronous streams of {CHUNKS:,} chunks; SQLite.")


if __name__ == "__main__":
    run(measure, CONTESTANTS)
