"""
Store a ledger of the version that is checked out in the current folder, for tests of the migrations.

It writes three files beside this one: a SQLite file, a PostgreSQL dump, and the figures that this version reports of
them. The ones of version 1.1 were written by commit 7254b28, the ones of version 1.2 by commit e611017. To store those
of today's version:

    PYTHONPATH=. python tests/ledger/data/make_ledger.py
"""

from __future__ import annotations

import json
import os
import random
import re
import sqlite3
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import time_machine

from shared.analytics import all_budgets, get_llm_costs, set_budget
from shared.budget import Budget, Limit
from shared.ledger import Ledger, adjustment, enter
from shared.ledger.schema import bucket_of
from tests.support import postgres
from tests.support.ledger_rows import submit

HERE = Path(__file__).parent
FIRST = datetime(2026, 7, 3, tzinfo=UTC)
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
WINDOW: dict[str, Any] = {"since": "2026-07-15", "until": "2026-11-24T09:07", "tz": "Europe/Berlin"}
_LEASE_OVER_US = 1_795_000_000_000_000
_LEASE_RUNS_US = 4_102_444_800_000_000  # until 2100, so that it still runs whenever a test does
_ATTEMPTS = 60
# What this machine and its server are has no place in a stored file.
_NOISE = re.compile(r"(--|SET |\\|SELECT pg_catalog\.set_config|$)")

_MODELS = (
    ("openai", "openai/gpt-5.4-mini"),
    ("anthropic", "anthropic/claude-haiku-4-5"),
    ("gemini", "gemini/gemini-3-flash"),
)
_CUSTOMERS = ("acme", "Zo\N{LATIN SMALL LETTER E WITH DIAERESIS} & S\N{LATIN SMALL LETTER O WITH STROKE}n", "x" * 200)
_LIMITS = (
    Limit(Budget(900, "day", tz="Europe/Berlin")),
    Limit(Budget(900, "hour", scope="tool")),
    Limit(Budget(900, "month", scope="agent")),
    Limit(Budget(900, "total", scope="customer")),
    Limit(Budget(900, "run"), ("customer",)),
)
_KEPT = {
    "team": Budget(500, "month", on_exceed="downgrade", on_unknown_price="allow"),
    "customers": Budget(250, "total", scope="customer", warn_at=0.5, on_unknown_price="allow"),
    "agents": Budget(40, "day", scope="agent", tz="Asia/Kathmandu", on_unknown_price="allow"),
}
# What becomes of an attempt; those that are not listed are answered.
_FAILED = {"calls": 0, "failed_calls": 1}
_ENDS: dict[int, dict[str, Any]] = {
    5: {"status": "failed", "cost_nano": 0, "cost_source": "free", "http_status": 429, **_FAILED},
    11: {"status": "failed", "cost_nano": None, "cost_source": "unknown", "unpriced_calls": 1, **_FAILED},
    17: {"status": "cancelled", "cost_nano": 90_000_001, "cost_source": "bound", **_FAILED},
    23: {"status": "interrupted", "cost_nano": 4_321, "usage_source": "estimated", **_FAILED},
    29: {"status": "refused", "cost_nano": 0, "cost_source": "free", "error_type": "BudgetExceeded", **_FAILED},
    35: {"status": "unsettled", "cost_nano": 77_000_003, "cost_source": "bound", **_FAILED},
    41: {"status": "reported", "cost_source": "reported"},
    # Since 1.2.
    14: {"cost_is_lower_bound": True, "units": {"input": 10, "search": 2}, "service_tier": "priority"},
    26: {"cost_is_lower_bound": True, "reserved_nano": 5_000_000, "price_table": "2026-11-24"},
    38: {"status": "failed", "cost_nano": None, "cost_source": "unknown", "reserved_nano": 7_000_001, **_FAILED},
}
_UNDER_WAY = {47: _LEASE_OVER_US, 48: _LEASE_OVER_US, 58: _LEASE_RUNS_US, 59: _LEASE_RUNS_US}
_WITHOUT_PRICE = (8, 20, 48)
_NOTES: dict[int, dict[str, Any]] = {
    12: {"images": ["red.png", "red-2.png"]},
    24: {"images": ["blue.png"], "made_from": ["red.png"]},
    36: {"images": ["blue-\N{SNOWMAN}.png"], "made_from": ["blue.png"]},
    30: {"image_tokens_saved": 1200, "image_nano_saved": 3_000_000},
}


def main() -> None:
    folder = postgres.programs()
    assert folder is not None, "PostgreSQL is not installed"
    with tempfile.TemporaryDirectory() as home, postgres.running(folder) as server:
        path, url = Path(home) / "ledger.sqlite3", postgres.new_database(server)
        with filled(f"sqlite:///{path}") as ledger:
            version = version_of(ledger)
            store_sqlite(path, HERE / f"ledger-{version}.db")
            found = figures(ledger)
        with filled(url) as ledger:
            pg_dump = (folder / "pg_ctl").resolve().with_name("pg_dump")
            dump = [pg_dump, "--no-owner", "--no-acl", "--inserts", "--rows-per-insert=100", f"--dbname={url}"]
            done = subprocess.run(list(map(str, dump)), check=True, capture_output=True, encoding="utf-8")
            lines = [line for line in done.stdout.splitlines() if not _NOISE.match(line)]
            (HERE / f"ledger-{version}.sql").write_text("\n".join(lines) + "\n", encoding="utf-8")
            assert figures(ledger) == found, "the databases differ"
    text = json.dumps(found, indent=1, sort_keys=True)
    (HERE / f"ledger-{version}.json").write_text(text + "\n", encoding="utf-8")


@contextmanager
def filled(url: str) -> Iterator[Ledger]:
    """A ledger with everything in it, while the clock stands still."""
    os.environ["AGENTSWARM_DATABASE_URL"] = url
    ledger = Ledger(url)
    with time_machine.travel(NOW, tick=False):
        for name, budget in _KEPT.items():
            set_budget(name, budget)
        chance = random.Random(12)
        for number in range(_ATTEMPTS):
            _attempt(ledger, chance, number)
        for number in range(6):
            _event(ledger, chance, number)
        _adjust(ledger)
        ledger.flush()
        yield ledger
        ledger.close()


def _attempt(ledger: Ledger, chance: random.Random, number: int) -> None:
    row, labels = _started(chance, number), _labels(number)
    limits = _LIMITS[: number % (len(_LIMITS) + 1)] if number % 3 and row["bound_nano"] is not None else ()
    end = _ENDS.get(number, {})
    if end.get("status") not in ("refused", "reported"):
        begun = submit(ledger, "start", row, labels, limits).result()
        assert begun.refused_by is None
    if number not in _UNDER_WAY:
        submit(ledger, "settle", _settled(chance, row) | end, labels).result()
    if number % 10 == 1:  # the provider's own figure, which comes later
        submit(ledger, "settle", _settled(chance, row) | end, labels).result()
    if number in _NOTES:
        submit(ledger, "metadata", {"attempt_id": row["attempt_id"], "metadata": _NOTES[number]}, labels).result()


def _adjust(ledger: Ledger) -> None:
    """Corrections of what was billed, which there are since 1.2: a credit, and a charge to a customer."""
    day_us = int(NOW.timestamp()) * 1_000_000 - 9 * 24 * 3600 * 1_000_000
    credit = adjustment(-12_345_678, day_us, "manual", adjusts="invoice 7")
    charge = adjustment(
        7, day_us + 1, "manual", adjusts=None, provider="openai", model=_MODELS[0][1], labels={"customer": "acme"}
    )
    ids = random.Random(13)
    enter(ledger, *(replace(row, attempt_id=_id(ids), call_id=_id(ids)) for row in (credit, charge)))


def _started(chance: random.Random, number: int) -> dict[str, Any]:
    provider, model = _MODELS[number % 3]
    step_us = int((NOW - FIRST).total_seconds()) * 1_000_000 // _ATTEMPTS
    ts_us = int(FIRST.timestamp()) * 1_000_000 + number * step_us + chance.randrange(step_us)
    image, vision = "images" in _NOTES.get(number, {}), "image_tokens_saved" in _NOTES.get(number, {})
    return {
        "attempt_id": _id(chance),
        "call_id": _id(chance),
        "attempt_number": 1 + number % 2,
        "ts_us": ts_us,
        "bucket": bucket_of(ts_us),
        "status": "started",
        "operation": "image_generation" if image else "vision" if vision else "chat_completion",
        "provider": provider,
        "requested_model": model,
        "model": model,
        "tool": (None, "TextGeneration", "CostReport")[number % 3],
        "agent": (None, "Analyst", "Writer", "CEO")[number % 4],
        "run": f"run-{number // 10}",
        "conversation": f"conversation-{number % 7}" if number % 7 else None,
        "key_alias": "acme" if number % 9 == 0 else None,
        "stream": number % 4 == 0,
        "bound_nano": None if number in _WITHOUT_PRICE else 10**8 + chance.randrange(10**9),
        "lease_us": _UNDER_WAY.get(number, ts_us + 600_000_000),
    }


def _settled(chance: random.Random, row: dict[str, Any]) -> dict[str, Any]:
    unknown = row["bound_nano"] is None
    answered = {
        "status": "ok",
        "response_model": row["model"].partition("/")[2],
        "response_id": f"response-{chance.randrange(10**6)}",
        "duration_us": chance.randrange(10**7),
        "first_chunk_us": chance.randrange(10**6) if row["stream"] else None,
        "prompt_tokens": chance.randrange(10**5),
        "completion_tokens": chance.randrange(10**4),
        "cached_tokens": chance.choice([None, 0, 512]),
        "cache_write_tokens": chance.choice([None, 0, 256]),
        "reasoning_tokens": chance.choice([None, 128]),
        "usage_source": "provider",
        "cost_nano": None if unknown else chance.randrange(10**8),
        "cost_source": "unknown" if unknown else chance.choice(["table", "provider"]),
        "price_version": "litellm:1.91.0",
        "finish_reason": "stop",
        "calls": 1,
        "failed_calls": 0,
        "unpriced_calls": int(unknown),
    }
    return row | answered


def _labels(number: int) -> dict[str, str]:
    labels = {"customer": _CUSTOMERS[number % 4]} if number % 4 < len(_CUSTOMERS) else {}
    return labels | ({"team": "red"} if number % 5 == 0 else {})


def _event(ledger: Ledger, chance: random.Random, number: int) -> None:
    row = {
        "event_id": _id(chance),
        "ts_us": int(NOW.timestamp()) * 1_000_000 - number * 10**12,
        "event_type": ("tool_start", "tool_end", "tool_error")[number % 3],
        "tool": "TextGeneration",
        "agent": "Writer" if number % 2 else None,
        "run": f"run-{number}",
        "conversation": None,
        "labels": _labels(number),
        "metadata": {"seconds": number / 4, "note": "\N{SNOWMAN}", "ok": True, "nothing": None},
    }
    submit(ledger, "event", row, {}).result()


def _id(chance: random.Random) -> uuid.UUID:
    return uuid.UUID(int=chance.getrandbits(128), version=4)


def version_of(ledger: Ledger) -> str:
    with ledger.reading() as connection:
        rows = connection.execute(sa.text("SELECT name, value FROM ledger_meta"))
        found = {row.name: row.value for row in rows}
    return f"{found['major']}.{found['minor']}"


def store_sqlite(path: Path, target: Path) -> None:
    """A copy with small pages, since most tables have few rows."""
    target.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA page_size = 512")
    connection.execute("VACUUM INTO ?", [str(target)])
    connection.close()


def figures(ledger: Ledger) -> dict[str, Any]:
    """What is stored, and what this version reports; the report settles attempts whose lease has ended."""
    tables = ("attempt", "label", "event", "budget", "account", "account_kind")
    with ledger.reading() as connection:

        def read(statement: str) -> list[Any]:
            return [list(row) for row in connection.execute(sa.text(statement))]

        stored = {
            "rows": {name: read(f"SELECT count(*) FROM {name}")[0][0] for name in tables},  # noqa: S608 - ours
            "cost_nano": int(read("SELECT sum(cost_nano) FROM attempt")[0][0]),
            "bound_nano": int(read("SELECT sum(bound_nano) FROM attempt")[0][0]),
            "statuses": dict(read("SELECT status, count(*) FROM attempt GROUP BY status ORDER BY status")),
            "accounts": {
                f"{dimensions} {whose} {since_us}-{until_us}": counted_nano
                for dimensions, whose, since_us, until_us, counted_nano in read("SELECT * FROM account")
            },
        }
    reports = {by: get_llm_costs(**WINDOW, by=by) for by in ("model", "customer")}
    for costs in reports.values():
        # Where it is stored, the budgets of whoever asks, and the prices of today.
        del costs["store"], costs["budgets"], costs["price_table"]
    return stored | {"window": WINDOW, "now": NOW.isoformat(), "costs": reports, "budgets": all_budgets()}


if __name__ == "__main__":
    main()
