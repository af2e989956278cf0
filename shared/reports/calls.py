"""Single calls in words: what each attempt was, what it cost, and why."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from shared.internal.money import to_usd
from shared.ledger import AttemptRow, CallRecord

_SOURCES = {
    "provider": "as the provider reported it",
    "table": "from the reported tokens, by the price table",
    "config": "from the reported tokens, by your own price",
    "counted": "from our own count of tokens, because the provider reported none",
    "bound": "the most that it can have cost",
    "reported": "as it was reported to the ledger",
    "free": "not billed",
    "unknown": "unknown",
}


def call_dict(record: CallRecord) -> dict[str, Any]:
    """A call as JSON has it; its cost is None where nothing of it is known."""
    last, rows = record.last, record.attempts
    failed = next((row for row in reversed(rows) if row.error_type), None)
    return {
        "call_id": str(record.call_id),
        "time": _time(rows[0]),
        "status": last.status,
        "operation": last.operation,
        "requested_model": rows[0].requested_model,
        "model": last.model,
        "provider": last.provider,
        "fallback_used": last.model != rows[0].model,
        "attempts": len(rows),
        "tool": last.tool,
        "agent": last.agent,
        "run": last.run,
        "labels": dict(last.labels),
        "input_tokens": _sum(rows, "prompt_tokens"),
        "output_tokens": _sum(rows, "completion_tokens"),
        "cost_usd": to_usd(record.cost_nano),
        "cost_nano": record.cost_nano,
        "cost_is_lower_bound": record.is_lower_bound,
        "unknown_cost_requests": record.unknown_requests,
        "reserved_usd": to_usd(sum(row.reserved_nano or 0 for row in rows)),
        "error_type": failed.error_type if failed and last.status != "ok" else None,
    }


def attempt_dict(row: AttemptRow, first: AttemptRow) -> dict[str, Any]:
    """An attempt of a call as JSON has it, with why it was made and why it costs what it costs."""
    return {
        "attempt_id": str(row.attempt_id),
        "attempt": row.attempt_number,
        "time": _time(row),
        "happened": None if row.happened_us is None else datetime.fromtimestamp(row.happened_us / 1e6, UTC),
        "why": why_made(row, first),
        "status": row.status,
        "model": row.model,
        "response_model": row.response_model,
        "provider": row.provider,
        "service_tier": row.service_tier,
        "duration_ms": None if row.duration_us is None else row.duration_us / 1000,
        "finish_reason": row.finish_reason,
        "error_type": row.error_type,
        "http_status": row.http_status,
        "input_tokens": row.prompt_tokens,
        "cached_tokens": row.cached_tokens,
        "output_tokens": row.completion_tokens,
        "reasoning_tokens": row.reasoning_tokens,
        "units": row.units,
        "usage_source": row.usage_source,
        "cost_usd": to_usd(row.cost_nano),
        "cost_nano": row.cost_nano,
        "cost_source": row.cost_source,
        "cost_why": why_cost(row),
        "cost_is_lower_bound": row.cost_is_lower_bound,
        "price_version": row.price_version,
        "bound_usd": to_usd(row.bound_nano),
        "reserved_usd": to_usd(row.reserved_nano or 0),
    }


def why_made(row: AttemptRow, first: AttemptRow) -> str:
    """Why this attempt was made: the first one, a retry of the same model, or a fallback to another."""
    if row.attempt_number == first.attempt_number:
        return "first"
    return "retry" if row.model == first.model else "fallback"


def why_cost(row: AttemptRow) -> str:
    """Why an attempt costs what it costs, or why that is unknown."""
    if row.status == "started":
        return "under way"
    if row.cost_nano is not None:
        why = _SOURCES[row.cost_source]
        priced = f" ({row.price_version})" if row.price_version and row.cost_source in ("table", "config") else ""
        part = (
            "; at least that, because something that was billed has no known price" if row.cost_is_lower_bound else ""
        )
        return f"{why}{priced}{part}"
    if row.status == "unsettled":
        return "the process ended before the answer was recorded"
    if row.prompt_tokens is None and row.completion_tokens is None:
        ended = f" ({row.error_type})" if row.error_type else ""
        return f"no usage was reported{ended}, and it may have been charged"
    return f"there is no known price for {row.response_model or row.model}"


def _sum(rows: tuple[AttemptRow, ...], name: str) -> int:
    return sum(getattr(row, name) or 0 for row in rows)


def _time(row: AttemptRow) -> datetime:
    return datetime.fromtimestamp(row.ts_us / 1e6, UTC)
