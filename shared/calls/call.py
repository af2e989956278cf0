"""One call and its attempts: what is known of each, as the ledger keeps it and as the caller gets it."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

from shared.budget import Limit
from shared.errors import InvalidRequest, Outcome
from shared.internal.clock import new_id, now_us
from shared.internal.money import to_usd
from shared.internal.pending import RecordedCall
from shared.internal.spend import SpendCounter
from shared.ledger import Ledger, bucket_of
from shared.models import Plan, image_request
from shared.prices import price, upper_bound
from shared.providers import Exchange
from shared.scope import Scope, run_of_process
from shared.types import Answer, Candidate, LLMResponse, Request, TaskType, Usage

_LEASE_S = 900
# What an answer holds beside its text, for whoever carries the conversation on.
_SAID = ("tool_calls", "reasoning_content", "thinking_blocks")
COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")


@dataclass(slots=True)
class Call:
    """One call under way, and what its attempts have come to so far."""

    request: Request
    plan: Plan
    scope: Scope
    ledger: Ledger | None
    timeout: float
    max_retries: int
    spend_counter: SpendCounter
    limits: tuple[Limit, ...] = ()
    max_concurrency: int | None = None
    deadline_at: float = math.inf
    call_id: uuid.UUID = field(default_factory=new_id)
    attempts: list[Attempt] = field(default_factory=list)
    # The largest window, in tokens, that the input was found to be too long for.
    too_small: int = 0

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline_at - time.monotonic()

    @property
    def cost_nano(self) -> int:
        """Nano-dollars known to be spent on the call so far."""
        return sum(attempt.row["cost_nano"] or 0 for attempt in self.attempts)


@dataclass(slots=True)
class Attempt:
    """One request for the call: its row in the ledger, and the stream of what comes back."""

    candidate: Candidate
    request: Request
    row: dict[str, Any]
    leave: Callable[[], None]
    exchange: Exchange = field(default_factory=Exchange)
    items: AsyncGenerator[str | Answer] | None = None
    # Output tokens that a budget has left room for, where that is less than the model would write.
    cut_to: int | None = None
    began: float = field(default_factory=time.monotonic)
    text: list[str] = field(default_factory=list)
    outcome: Outcome = "unknown"
    answer: Answer | None = None


def bound_of(candidate: Candidate, request: Request) -> int | None:
    """The most that one attempt can cost, in nano-dollars; None when no bound is known."""
    if request.task is not TaskType.IMAGE_GENERATION:
        return upper_bound(candidate, request)
    try:
        return upper_bound(candidate, request, image_request(candidate, request))
    except InvalidRequest:
        return None


def finish_row(
    call: Call, attempt: Attempt, answer: Answer | None, status: str, *, calls: int = 0, failed_calls: int = 0
) -> None:
    """Fill in what became of the attempt, and its price."""
    row = attempt.row
    row |= {
        "status": status,
        "duration_us": round((time.monotonic() - attempt.began) * 1e6),
        "calls": calls,
        "failed_calls": failed_calls,
    }
    if attempt.outcome in ("not_sent", "rejected"):
        row |= {"cost_nano": 0, "cost_source": "free"}
    elif answer is not None:
        row["cost_nano"], row["cost_source"] = price(answer, attempt.candidate.rates)
    if call.request.task is TaskType.IMAGE_GENERATION and status != "ok" and row["cost_nano"] is None:
        bound = row["bound_nano"]
        row |= {"cost_nano": bound, "cost_source": "unknown" if bound is None else "bound"}
        if status == "failed" and attempt.outcome == "unknown":
            row["status"] = "unsettled"
    if answer is not None:
        row |= {name: getattr(answer.usage, name) for name in COUNTS}
        row |= {
            "usage_source": answer.usage.source,
            "finish_reason": answer.finish_reason,
            "response_model": answer.response_model,
            "response_id": answer.response_id,
            "http_status": attempt.exchange.status,
        }
    known = any(other.row["unpriced_calls"] for other in call.attempts if other is not attempt)
    row["unpriced_calls"] = int(row["cost_nano"] is None and not known)
    call.spend_counter.add(row["cost_nano"] or 0, call.scope.spend)


def new_row(call: Call, candidate: Candidate) -> dict[str, Any]:
    """The attempt's row as it starts."""
    now = now_us()
    scope = call.scope
    return {
        "attempt_id": new_id(),
        "call_id": call.call_id,
        "attempt_number": len(call.attempts) + 1,
        "ts_us": now,
        "bucket": bucket_of(now),
        "status": "started",
        "operation": call.request.task.value,
        "provider": candidate.provider,
        "requested_model": candidate.requested,
        "model": candidate.model,
        "tool": scope.tool,
        "agent": scope.agent,
        "run": scope.run or run_of_process(),
        "conversation": scope.conversation,
        "key_alias": candidate.key_alias,
        "stream": call.request.stream,
        "usage_source": "unknown",
        "cost_nano": None,
        "cost_source": "unknown",
        "price_version": candidate.rates.version,
        "bound_nano": bound_of(candidate, call.request),
        "lease_us": now + int((_LEASE_S + call.timeout) * 1e6),
        "calls": 0,
        "failed_calls": 0,
        "unpriced_calls": 0,
    }


def response_of(call: Call, attempt: Attempt, answer: Answer, left_nano: int | None = None) -> LLMResponse:
    """
    What the caller gets.

    Args:
        left_nano: Nano-dollars left of the tightest budget that the caller may know of; None where there is none.
    """
    row, candidate = attempt.row, attempt.candidate
    cost = to_usd(None if row["cost_nano"] is None else call.cost_nano)
    if call.ledger is not None:
        known = None if math.isnan(cost) else call.cost_nano
        call.scope.pending.add(RecordedCall(call.call_id, row["attempt_id"], candidate.model, known))
    requested = call.plan.requested
    metadata: dict[str, Any] = {
        "requested_model": requested,
        "response_model": answer.response_model,
        "fallback_used": candidate.requested != requested,
        "attempts": [summary_of(a) for a in call.attempts],
        "finish_reason": answer.finish_reason,
        "response_id": answer.response_id,
        "call_id": str(call.call_id),
        "cost_source": row["cost_source"],
        "usage_source": row["usage_source"],
        "price_version": row["price_version"],
        "guarded": candidate.guarded,
    }
    if candidate.note:
        metadata["note"] = candidate.note
    if attempt.cut_to is not None:
        metadata["output_cut_to_tokens"] = attempt.cut_to
    if left_nano is not None:
        metadata["remaining_budget_usd"] = to_usd(left_nano)
    metadata |= {name: answer.message[name] for name in _SAID if answer.message.get(name)}
    return LLMResponse(
        content=answer.text,
        model=candidate.model,
        provider=candidate.provider,
        usage=_usage(answer.usage),
        cost=cost,
        latency_ms=row["duration_us"] / 1000,
        metadata=metadata,
    )


def summary_of(attempt: Attempt) -> dict[str, Any]:
    """The attempt as an answer's metadata tells it."""
    row = attempt.row
    return {
        "model": row["model"],
        "provider": row["provider"],
        "status": row["status"],
        "error_type": row.get("error_type"),
        "http_status": row.get("http_status"),
        "cost": to_usd(row["cost_nano"]),
        "latency_ms": row["duration_us"] / 1000,
    }


def _usage(usage: Usage) -> dict[str, int]:
    """The counts that somebody gave, as plain integers."""
    counts = {name: count for name in COUNTS if (count := getattr(usage, name)) is not None}
    if {"prompt_tokens", "completion_tokens"} <= counts.keys():
        counts["total_tokens"] = counts["prompt_tokens"] + counts["completion_tokens"]
    return counts
