"""A month of traffic as a ledger has it: models, customers, images, faults, corrections and unknown costs."""

from __future__ import annotations

import random
import tempfile
from contextlib import closing
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from shared.ledger.store import Ledger
from tests.support.ledger_rows import settled, started, submit

NOVEMBER_US = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp()) * 1_000_000
DAY_US = 86_400 * 1_000_000
CUSTOMERS = ("acme", "=cmd|'/c calc'!A1", "<script>alert(1)</script>", "Zoë & Söhne | GmbH", "b\x1b[2J")
PRICED = (
    "openai/gpt-5.4-mini", "openai/gpt-5.4", "anthropic/claude-haiku-4-5", "anthropic/claude-opus-4-6",
    "gemini/gemini-3-flash", "mistral/mistral-large-3", "xai/grok-4.3",
)  # fmt: skip
NEVER_HEARD_OF, IMAGES = "openai/never-heard-of", "openai/gpt-image-2"
UNKNOWN: dict[str, Any] = {"cost_nano": None, "cost_source": "unknown", "unpriced_calls": 1}


def fill(ledger: Ledger) -> None:
    """
    Put November 2026 into an empty ledger that nobody has opened yet.

    250 calls of 9 models for 5 customers, 12 of them images, with faults and corrections. A SQLite file is a copy of
    the first one, since writing them takes longer than most reports.
    """
    if ledger.file is None:
        _write(ledger)
    else:
        ledger.file.touch(0o600)
        ledger.file.write_bytes(_file())


@cache
def _file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "november.sqlite3"
        with closing(Ledger(f"sqlite:///{path}")) as ledger:
            _write(ledger)
        return path.read_bytes()


def _write(ledger: Ledger) -> None:
    chance = random.Random(19)
    for number in range(250):
        ts_us = NOVEMBER_US + chance.randrange(28 * DAY_US)
        labels = {"customer": CUSTOMERS[number % 5], "team": chance.choice(["red", "blue"])} if number % 9 else {}
        model = IMAGES if number < 12 else NEVER_HEARD_OF if number < 34 else chance.choice(PRICED)
        row = settled(
            ts_us=ts_us,
            model=model,
            provider=model.partition("/")[0],
            requested_model=model,
            tool=chance.choice([None, "TextGeneration", "ImageGeneration"]),
            agent=chance.choice([None, "Writer", "Analyst"]),
            cost_nano=chance.randrange(1, 2 * 10**8),
            prompt_tokens=chance.randrange(20_000),
            completion_tokens=chance.randrange(4000),
            cached_tokens=chance.choice([None, chance.randrange(5000)]),
            duration_us=chance.randrange(10**7),
            price_version="prices:2026-11-01",
        )
        if number < 12:
            row |= {"operation": "image_generation"}
        elif number < 34:
            row |= UNKNOWN | {"reserved_nano": chance.choice([None, 5_000_000])}
        elif number % 17 == 0:  # an outage: the first attempt fails, another model answers
            failed = settled(
                call_id=row["call_id"], ts_us=ts_us - 10**6, model="openai/gpt-5.4", status="failed", calls=0,
                error_type="Overloaded", http_status=503, cost_nano=0, cost_source="free", prompt_tokens=None,
                completion_tokens=None,
            )  # fmt: skip
            submit(ledger, "settle", failed, labels)
            row |= {"attempt_number": 2, "model": PRICED[2], "provider": "anthropic"}
        elif number % 19 == 0:
            row |= UNKNOWN | {
                "status": "failed", "calls": 0, "failed_calls": 1, "error_type": "ProviderTimeout",
                "reserved_nano": 9_000_000,
            }  # fmt: skip
        elif number % 23 == 0:
            row |= {"cost_is_lower_bound": True, "unpriced_calls": 1}
        submit(ledger, "settle", row, labels)
    credit = settled(
        ts_us=NOVEMBER_US + 5 * DAY_US, cost_nano=-1_234_567_891, operation="adjustment", adjustment_kind="manual",
        adjusts="invoice 7", status="reported", calls=0, prompt_tokens=None, completion_tokens=None,
    )  # fmt: skip
    submit(ledger, "settle", credit, {"customer": "acme"})
    under_way = started(ts_us=NOVEMBER_US + DAY_US, model="under way", lease_us=NOVEMBER_US + 10**15)
    submit(ledger, "start", under_way, {})
    ledger.flush()
