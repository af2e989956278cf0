"""Rows as the flow writes them, for tests of the ledger and of the reports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import sqlalchemy as sa

from shared.budget import Limit
from shared.internal.clock import new_id, now_us
from shared.ledger.accounts import Admission
from shared.ledger.records import attempt_records
from shared.ledger.row import AttemptRow
from shared.ledger.schema import (
    BUCKET_S,
    DIMENSIONS,
    SUMS,
    attempt,
    bucket_of,
    sums as stored_sums,
    taken_back,
    unsummed,
)
from shared.ledger.store import Ledger
from shared.ledger.sums import fold, wrong
from shared.ledger.writes import Expired, stored

CENT = 10_000_000  # nano-dollars
NOON_US = 1_795_521_600_000_000  # 2026-11-24T12:00Z


def started(**changes: Any) -> dict[str, Any]:
    """The row of an attempt under way."""
    ts_us = changes.get("ts_us", NOON_US)
    return {
        "attempt_id": new_id(),
        "call_id": new_id(),
        "attempt_number": 1,
        "ts_us": ts_us,
        "bucket": bucket_of(ts_us),
        "status": "started",
        "operation": "chat_completion",
        "provider": "openai",
        "requested_model": "openai/gpt-5.4-mini",
        "model": "openai/gpt-5.4-mini",
        "stream": False,
        "usage_source": "unknown",
        "cost_nano": None,
        "cost_source": "unknown",
        "bound_nano": 9000,
        "lease_us": now_us() + 10**9,
        "calls": 0,
        "failed_calls": 0,
        "unpriced_calls": 0,
    } | changes


def fresh(**changes: Any) -> dict[str, Any]:
    """The row of an attempt that begins now."""
    return started(**{"ts_us": now_us(), **changes})


def settled(row: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """The row of an attempt that was answered."""
    answer = {"status": "ok", "cost_nano": 7000, "cost_source": "table", "prompt_tokens": 10, "completion_tokens": 20}
    return (row or started(**changes)) | answer | {"duration_us": 5, "calls": 1} | changes


def rows(ledger: Ledger, table: sa.Table = attempt) -> list[dict[str, Any]]:
    """The rows of a table as they are stored."""
    with ledger.reading() as connection:
        return [dict(row) for row in connection.execute(sa.select(table)).mappings()]


def records(ledger: Ledger) -> list[dict[str, Any]]:
    """The attempts as users read them, oldest first."""
    ledger.flush()
    return list(attempt_records(ledger))


def only(ledger: Ledger) -> dict[str, Any]:
    """The one attempt of a ledger."""
    (row,) = rows(ledger)
    return row


def sums(found: list[dict[str, Any]]) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """What the attempts that are settled add up to, by bucket and dimensions."""
    added: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0] * len(SUMS))
    for row in found:
        if row.get("status") != "started":
            key = (row["bucket"], *(row[name] or "" for name in DIMENSIONS))
            added[key] = [total + (row[name] or 0) for total, name in zip(added[key], SUMS, strict=True)]
    return {key: tuple(values) for key, values in added.items() if any(values)}


def folded(ledger: Ledger) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """The sums of quarters of an hour of everything as they are stored, after what was left has been folded in."""
    ledger.flush()
    while fold(ledger):
        pass
    added: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0] * len(SUMS))
    for row in rows(ledger, stored_sums):
        if (row["split"], row["grain"], row["owner"]) == (1, BUCKET_S, ""):
            key = (row["start"] // BUCKET_S, *(row[name] for name in DIMENSIONS))
            added[key] = [total + (row[name] or 0) for total, name in zip(added[key], SUMS, strict=True)]
    return {key: tuple(values) for key, values in added.items() if any(values)}


def assert_exact(ledger: Ledger) -> None:
    """The sums are what the rows add up to, to the nano-dollar."""
    assert folded(ledger) == sums(rows(ledger))
    assert not rows(ledger, unsummed)
    assert not rows(ledger, taken_back)
    with ledger.reading() as connection:
        assert wrong(connection) == 0


def held_nano(ledger: Ledger) -> int:
    """Nano-dollars that attempts under way may still cost."""
    return sum(row["bound_nano"] or 0 for row in rows(ledger) if row["status"] == "started")


def submit(
    ledger: Ledger,
    kind: str,
    row: dict[str, Any],
    labels: Mapping[str, str] | None = None,
    limits: Sequence[Limit] = (),
) -> Future[Admission]:
    """Hand an entry to the ledger: "start", "settle", "expire", "event" or "metadata"."""
    match kind:
        case "start":
            return ledger.start(AttemptRow(**row, labels=labels or {}), limits)
        case "settle":
            return ledger.settle(AttemptRow(**row, labels=labels or {}), limits, with_statuses=bool(limits))
        case "expire":
            return ledger._submit(Expired(stored(AttemptRow(**row))))
        case "event":
            ledger.record(row)
        case "metadata":
            ledger.annotate(row["attempt_id"], row["metadata"])
    return ledger._submit(None)


def begin(ledger: Ledger, row: dict[str, Any], *limits: Limit, **labels: str) -> Admission:
    """Start an attempt under limits."""
    admission = submit(ledger, "start", row, labels, limits).result(timeout=60)
    assert admission is not None
    return admission


def write(ledger: Ledger, kind: str, row: dict[str, Any], **labels: str) -> None:
    """Hand an entry to the ledger and wait until it is stored."""
    submit(ledger, kind, row, labels).result(timeout=30)
