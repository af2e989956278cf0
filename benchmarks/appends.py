"""Durable appends to the ledger: each is on disk before it counts."""

from __future__ import annotations

import os
import sqlite3
import time
from argparse import Namespace
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.contest import Claim, Contestant, Measures, contest, is_busy, publish, run

RATE = "rows/s"
OURS_64, OURS_1 = "ours, 64 outstanding", "ours, one at a time"


def ours(outstanding: int, terms: Namespace) -> Callable[[], Measures]:
    """Settled attempts, of which so many may wait for the disk at a time."""
    from shared.ledger import get_ledger

    ledger = get_ledger(os.environ["AGENTSWARM_DATABASE_URL"])

    def play() -> Measures:
        return _timed(terms.rows, outstanding, lambda: ledger.settle(answered()))

    play()
    return play


def plain(terms: Namespace) -> Callable[[], Measures]:
    """One table of one column, a commit for each row: what Python's SQLite and this disk can do."""
    database = sqlite3.connect(Path("/", os.environ["AGENTSWARM_DATABASE_URL"].removeprefix("sqlite:///")))
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE rows (text TEXT)")

    def play() -> Measures:
        began = time.perf_counter()
        for _ in range(terms.rows):
            with database:
                database.execute("INSERT INTO rows VALUES (?)", ("x" * 300,))
        return {RATE: terms.rows / (time.perf_counter() - began)}

    return play


def answered(**changes: Any) -> Any:
    """An attempt that was answered now, for one of a hundred customers."""
    from shared.internal.clock import new_id, now_us
    from shared.ledger import AttemptRow

    row_id, ts_us = new_id(), now_us()
    return AttemptRow(
        **{
            "attempt_id": row_id,
            "ts_us": ts_us,
            "bucket": ts_us // 900_000_000,
            "status": "ok",
            "provider": "openai",
            "requested_model": "openai/gpt-5.4-mini",
            "model": "openai/gpt-5.4-mini",
            "cost_nano": 7000,
            "cost_source": "table",
            "prompt_tokens": 10,
            "completion_tokens": 20,
            "duration_us": 900_000,
            "calls": 1,
            "labels": {"customer": f"customer-{row_id.int % 100}"},
            **changes,
        }
    )


def _timed(rows: int, outstanding: int, append: Callable[[], Future[Any]]) -> Measures:
    waiting: deque[Future[Any]] = deque()
    began = time.perf_counter()
    for _ in range(rows):
        if len(waiting) == outstanding:
            waiting.popleft().result()
        waiting.append(append())
    for each in waiting:
        each.result()
    return {RATE: rows / (time.perf_counter() - began)}


CONTESTANTS: dict[str, Contestant] = {
    OURS_64: partial(ours, 64),
    OURS_1: partial(ours, 1),
    "sqlite3, one row a commit": plain,
}


def measure(chosen: Namespace) -> None:
    """Measure and publish."""
    busy = is_busy()
    found = contest(list(CONTESTANTS), {"rows": 100 if chosen.quick else 3000}, 1 if chosen.quick else 3)
    claims = [Claim("Durable appends, 64 outstanding", ">= 2,000", found[OURS_64][RATE], "/s")]
    publish(
        "Durable appends to the ledger",
        found,
        claims,
        chosen,
        busy=busy,
        note="Attempts with one label, settled in SQLite.",
    )


if __name__ == "__main__":
    run(measure, CONTESTANTS)
