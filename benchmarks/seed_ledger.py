"""
Fill an empty ledger with attempts of the last year, for measuring reports on a large one.

    python benchmarks/seed_ledger.py sqlite:///large.sqlite3 1000000 --customers 200 --agents 40

The rows go in by bulk statements and the sums are computed from them as after a migration, so that all that the product
keeps is as if the calls had been made. There are no budgets, so no running totals either.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import uuid
from collections.abc import Iterator, Sequence
from itertools import batched
from typing import Any

import sqlalchemy as sa

from shared.internal.clock import now_us
from shared.ledger import Ledger, sums
from shared.ledger.schema import attempt, bucket_of, label

YEAR_US = 365 * 24 * 3600 * 1_000_000
_BATCH = 10_000
_MODELS = (
    ("openai", "openai/gpt-5.4-mini"), ("openai", "openai/gpt-5.4"), ("openai", "openai/gpt-5.4-nano"),
    ("anthropic", "anthropic/claude-haiku-4-5"), ("anthropic", "anthropic/claude-sonnet-4-5"),
    ("gemini", "gemini/gemini-3-flash"), ("gemini", "gemini/gemini-3-pro"), ("mistral", "mistral/mistral-large"),
    ("groq", "groq/llama-4"),
)  # fmt: skip
_TOOLS = ("TextGeneration", "TextGeneration", "UnderstandImages", None)


def seed(
    url: str, attempts: int, *, customers: int = 200, agents: int = 40, labels: int = 1, until_us: int | None = None
) -> None:
    """
    Fill an empty ledger.

    Args:
        customers: Number of values of the label "customer".

        agents: Number of agents, each of which uses two models.

        labels: Number of labels of each attempt: "customer", "label-1", "label-2" and so on, with 20 values each.

        until_us: Time of the last attempt, in microseconds since 1970. None: now.
    """
    until_us = until_us or now_us()
    ledger = Ledger(url)
    with ledger.writing() as connection:
        if connection.scalar(sa.select(attempt.c.attempt_id).limit(1)) is not None:
            raise SystemExit("The ledger is not empty.")
        connection.execute(sa.text("INSERT INTO sums_state VALUES (:since)"), {"since": until_us + 1})
    chance = random.Random(1)  # noqa: S311 - the same attempts each time
    step_us = YEAR_US / attempts
    made = (_attempt(chance, round(until_us - YEAR_US + (n + 1) * step_us), agents) for n in range(attempts))
    for rows in batched(made, _BATCH):
        names = [(row["attempt_id"], _labels(chance, customers, labels)) for row in rows]
        tags = [
            {"attempt_id": attempt_id, "name": name, "value": value}
            for attempt_id, own in names
            for name, value in own.items()
        ]
        with ledger.writing() as connection:
            _insert(connection, attempt, rows)
            _insert(connection, label, tags)
    sums._BUILD_PAGE = 10_000  # noqa: SLF001 - nobody else waits
    while sums.fold(ledger):
        pass
    with ledger.writing() as connection:
        connection.exec_driver_sql("ANALYZE")
    ledger.close()


def _insert(connection: sa.Connection, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert many rows in the driver's own words, which is many times as fast."""
    if not rows:
        return
    names = list(rows[0])
    cursor = connection.connection.cursor()
    columns = f"{table.name} ({', '.join(names)})"
    values = (tuple(row.values()) for row in rows)
    if connection.dialect.name == "sqlite":
        marks = ", ".join("?" * len(names))
        raw = [tuple(v.hex if isinstance(v, uuid.UUID) else v for v in each) for each in values]
        cursor.executemany(f"INSERT INTO {columns} VALUES ({marks})", raw)  # noqa: S608 - our own names
        return
    with cursor.copy(f"COPY {columns} FROM STDIN") as copy:
        for each in values:
            copy.write_row(each)


def _attempt(chance: random.Random, ts_us: int, agents: int) -> dict[str, Any]:
    agent = chance.randrange(agents)
    provider, model = _MODELS[(agent + chance.randrange(2)) % len(_MODELS)]
    is_ok = chance.random() < 0.97
    is_unknown = chance.random() < 0.005
    tool = chance.choice(_TOOLS)
    saved = {"image_tokens_saved": 700, "image_nano_saved": 90_000} if tool == "UnderstandImages" else {}
    return {
        # As new_id() makes them, but of that time.
        "attempt_id": _id(chance, ts_us),
        "call_id": _id(chance, ts_us),
        "attempt_number": 1,
        "ts_us": ts_us,
        "bucket": bucket_of(ts_us),
        "status": "ok" if is_ok else "failed",
        "operation": "vision" if saved else "chat_completion",
        "provider": provider,
        "requested_model": model,
        "model": model,
        "response_model": model.partition("/")[2],
        "response_id": f"chatcmpl-{chance.getrandbits(96):024x}",
        "tool": tool,
        "agent": f"Agent {agent}",
        "run": f"run-{ts_us // 3_600_000_000}",
        "conversation": f"conversation-{chance.getrandbits(20)}",
        "stream": False,
        "duration_us": int(chance.lognormvariate(14.3, 0.7)),
        "prompt_tokens": chance.randrange(100, 9000),
        "completion_tokens": chance.randrange(10, 900) if is_ok else None,
        "cached_tokens": chance.choice((None, 0, 1024)),
        "usage_source": "provider",
        "cost_nano": None if is_unknown else chance.randrange(10**5, 10**8) if is_ok else 0,
        "cost_source": "unknown" if is_unknown else "table",
        "price_version": "2026-11-24",
        "bound_nano": 2 * 10**8,
        "lease_us": ts_us + 600_000_000,
        "finish_reason": "stop" if is_ok else None,
        "calls": int(is_ok),
        "failed_calls": int(not is_ok),
        "unpriced_calls": int(is_unknown),
        "metadata": json.dumps({"prompt_chars": [200, 4000], "breakpoints": 0} | saved),
        "units": json.dumps({"input": 900, "output": 90}),
        "price_table": "2026-11-24",
        "cost_is_lower_bound": chance.random() < 0.002,
        "reserved_nano": None,
        "machine": "web-1",
    }


def _id(chance: random.Random, ts_us: int) -> uuid.UUID:
    return uuid.UUID(int=(ts_us // 1000 << 80) | (7 << 76) | (2 << 62) | chance.getrandbits(62))


def _labels(chance: random.Random, customers: int, count: int) -> dict[str, str]:
    own = {"customer": f"customer-{chance.randrange(customers)}"} if count else {}
    return own | {f"label-{place}": f"value-{chance.randrange(20)}" for place in range(1, count)}


def _arguments() -> Iterator[tuple[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("attempts", type=int)
    parser.add_argument("--customers", type=int, default=200)
    parser.add_argument("--agents", type=int, default=40)
    parser.add_argument("--labels", type=int, default=1)
    yield from vars(parser.parse_args()).items()


if __name__ == "__main__":
    began = time.perf_counter()
    seed(**dict(_arguments()))
    print(f"{time.perf_counter() - began:.1f} s")
