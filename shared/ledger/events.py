"""Analytics events as rows of the ledger."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from typing import Any

from shared.internal.clock import new_id, now_us
from shared.internal.money import to_nano
from shared.ledger.row import AttemptRow
from shared.ledger.schema import bucket_of
from shared.redaction import redact
from shared.scope import Scope, run_of_process
from shared.types import AnalyticsEvent

_MAX_VALUE_CHARS = 500
_MAX_ENTRIES = 30
_MAX_COST_USD = 1_000_000
# A name of a few words cannot be a secret.
_PLAIN_NAME = re.compile(r"[a-z]{1,12}(_[a-z]{1,12}){0,4}")


def cost_row(event: AnalyticsEvent, cost: int | None, scope: Scope) -> AttemptRow:
    """A cost that the user reported, as a call with one attempt."""
    metadata = event.metadata
    ts_us = _time_us(event)
    prompt, completion = _count(metadata.get("prompt_tokens")), _count(metadata.get("completion_tokens"))
    if prompt is None and completion is None:
        prompt = _count(metadata.get("total_tokens"))
    model = _name(metadata.get("model")) or "(unknown)"
    return AttemptRow(
        attempt_id=event.event_id or new_id(),
        call_id=uuid_of(metadata.get("call_id")) or new_id(),
        ts_us=ts_us,
        bucket=bucket_of(ts_us),
        status="reported",
        operation=_name(metadata.get("task_type")) or "chat_completion",
        provider=_name(metadata.get("provider")) or "(unknown)",
        requested_model=model,
        model=model,
        tool=event.tool_name or scope.tool,
        agent=scope.agent,
        run=scope.run or run_of_process(),
        conversation=scope.conversation,
        prompt_tokens=prompt,
        completion_tokens=completion,
        cost_nano=cost,
        cost_source="unknown" if cost is None else "reported",
        calls=1,
        unpriced_calls=int(cost is None),
        metadata=safe_metadata(metadata),
        labels=scope.labels,
    )


def event_row(event: AnalyticsEvent, scope: Scope) -> dict[str, Any]:
    """An event as a row of the table `event`."""
    return {
        "event_id": event.event_id or new_id(),
        "ts_us": _time_us(event),
        "event_type": str(event.event_type)[:40],
        "tool": event.tool_name or scope.tool,
        "agent": scope.agent,
        "run": scope.run or run_of_process(),
        "conversation": scope.conversation,
        "labels": dict(scope.labels),
        "metadata": safe_metadata(event.metadata),
    }


def _time_us(event: AnalyticsEvent) -> int:
    try:
        return now_us() if event.timestamp is None else round(event.timestamp.timestamp() * 1e6)
    except (OverflowError, ValueError):  # year 1 or 9999: in some zones the time has no UTC equivalent
        return now_us()


def safe_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata as numbers and short texts without secrets; nothing else may be stored in the ledger."""
    kept: dict[str, Any] = {}
    for key, value in list(metadata.items())[:_MAX_ENTRIES]:
        name = key if _PLAIN_NAME.fullmatch(key) else redact(key, limit=60)
        if isinstance(value, float) and not math.isfinite(value):
            kept[name] = None
        elif value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63):
            kept[name] = value
        else:
            kept[name] = redact(_text(value), limit=_MAX_VALUE_CHARS)
    return kept


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a user's object in the metadata must not make the call fail
        return f"({type(value).__name__})"


def adjustment_row(event: AnalyticsEvent, cost: int, scope: Scope) -> AttemptRow:
    """A credit that the user reported, in the day of its event, for the caller's tool, agent, run and labels."""
    row = cost_row(event, cost, scope)
    reference = event.metadata.get("reference") or event.metadata.get("call_id")
    return replace(
        row,
        operation="adjustment",
        adjustment_kind="event",
        adjusts=None if reference is None else redact(_text(reference), limit=200),
        calls=0,
    )


def cost_nano_of(value: Any) -> int | None:
    """
    A reported cost in US$ as nano-dollars; negative for a credit.

    Args:
        value: A number, or its text as JSON keeps a Decimal.

    Returns:
        None if it is no number, or more than a million US$ either way.
    """
    if isinstance(value, str):
        try:
            value = Decimal(value.strip()[:60])
        except InvalidOperation:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    if isinstance(value, float):
        value = Decimal(repr(value))
    exact = Decimal(value)
    return to_nano(exact) if exact.is_finite() and abs(exact) <= _MAX_COST_USD else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**12 else None


def _name(value: Any) -> str | None:
    return redact(value) if isinstance(value, str) and value else None


def uuid_of(value: Any) -> uuid.UUID | None:
    """`value` as a UUID; None if it is not one."""
    try:
        return uuid.UUID(_text(value)) if value else None
    except ValueError:
        return None
