"""The flow of a call: plan, attempt, price, settle, then retry or fall back; for plain, sync and stream alike."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
import anyio.to_thread
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from shared import provider
from shared.errors import DeadlineExceeded, LLMError, ModelNotAllowed, Outcome, ProviderTimeout, StreamInterrupted
from shared.ledger import Ledger, bucket_of, new_id, now_us, see_through
from shared.planning import Plan, failure
from shared.pricing import UNKNOWN, price, to_usd, upper_bound
from shared.scope import RecordedCall, Scope
from shared.transport import Exchange
from shared.types import Answer, Candidate, LLMResponse, Request, TaskType, Usage

logger = logging.getLogger("agentswarm_tools")

IDLE_TIMEOUT_S = 30.0
MAX_RETRY_AFTER_S = 30.0
_LEASE_S = 900
_COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")
_MAX_ATTEMPTS_UNKNOWN = 2
_backoff = wait_random_exponential(multiplier=0.5, max=8.0)


class Meter:
    """Nano-dollars that a client has spent, counted from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.nano = 0

    def add(self, nano: int) -> None:
        """Count what an attempt cost."""
        with self._lock:
            self.nano += nano


@dataclass(slots=True)
class Call:
    """One call under way, and what its attempts have come to so far."""

    request: Request
    plan: Plan
    scope: Scope
    ledger: Ledger | None
    timeout: float
    max_retries: int
    meter: Meter
    deadline_at: float = math.inf
    call_id: uuid.UUID = field(default_factory=new_id)
    attempts: list[_Attempt] = field(default_factory=list)

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline_at - time.monotonic()

    @property
    def cost_nano(self) -> int:
        """Nano-dollars known to be spent on the call so far."""
        return sum(attempt.row["cost_nano"] or 0 for attempt in self.attempts)


@dataclass(slots=True)
class _Attempt:
    """One request for the call: its row in the ledger, and the stream of what comes back."""

    candidate: Candidate
    row: dict[str, Any]
    items: AsyncGenerator[str | Answer]
    exchange: Exchange
    began: float = field(default_factory=time.monotonic)
    text: list[str] = field(default_factory=list)
    outcome: Outcome = "unknown"


async def run(call: Call) -> AsyncGenerator[str | LLMResponse]:
    """
    Carry out a call.

    Yields:
        Chunks of text when the request is a stream, and last the LLMResponse.

    Raises:
        LLMError: The only model's own error, or AllModelsFailed.
    """
    failures = list(call.plan.skipped)
    for candidate in call.plan.candidates:
        try:
            attempt, first = await _first_item(call, candidate)
        except LLMError as error:
            failures.append(error)
            if error.action == "raise":
                await _close_as_failed(call, error)
                raise
            continue
        async with aclosing(_answer(call, attempt, first)) as items:
            async for item in items:
                yield item
        return
    final = failures[0] if len(failures) == 1 else failure(failures)
    await _close_as_failed(call, final)
    raise final


async def refuse(call: Call, error: LLMError) -> None:
    """Record a call that no model was asked for."""
    model = error.model or "(refused)"
    candidate = Candidate(model, model, error.provider or "(none)", model, rates=UNKNOWN)
    row = _row(call, candidate) | {"status": "refused", "cost_nano": 0, "cost_source": "free", "failed_calls": 1}
    row["error_type"] = error.error_type
    if call.ledger is not None:
        await call.ledger.write("settle", row, call.scope.labels)


async def _first_item(call: Call, candidate: Candidate) -> tuple[_Attempt, str | Answer]:
    """The first thing that a model says; until then it may be asked again, and after it never."""

    def again(error: BaseException) -> bool:
        return isinstance(error, LLMError) and _may_repeat(call, candidate, error)

    def wait(state: RetryCallState) -> float:
        asked = _retry_after(state)
        return _backoff(state) if asked is None else asked

    def stop(state: RetryCallState) -> bool:
        too_long = (_retry_after(state) or 0.0) > min(MAX_RETRY_AFTER_S, call.left())
        return too_long or state.attempt_number > call.max_retries

    retrying = AsyncRetrying(
        retry=retry_if_exception(again),
        wait=wait,
        stop=stop,
        sleep=lambda seconds: _sleep(call, seconds),
        reraise=True,
    )
    return await retrying(_open, call, candidate)


def _retry_after(state: RetryCallState) -> float | None:
    error = state.outcome.exception() if state.outcome else None
    return error.retry_after if isinstance(error, LLMError) else None


def _may_repeat(call: Call, candidate: Candidate, error: LLMError) -> bool:
    """What cost nothing may be repeated; what may have been billed only once, and never when it makes images."""
    if error.action != "retry":
        return False
    if error.outcome in ("not_sent", "rejected"):
        return True
    if call.request.task is TaskType.IMAGE_GENERATION:
        return False
    asked = [a for a in call.attempts if a.candidate.requested == candidate.requested and a.outcome == "unknown"]
    return len(asked) < _MAX_ATTEMPTS_UNKNOWN


async def _sleep(call: Call, seconds: float) -> None:
    if seconds >= call.left():
        raise DeadlineExceeded("The deadline passes before the next attempt could start")
    await asyncio.sleep(seconds)


async def _open(call: Call, candidate: Candidate) -> tuple[_Attempt, str | Answer]:
    """Start an attempt and wait for the first thing it says; the attempt is settled when that is an error."""
    if call.left() <= 0:
        raise DeadlineExceeded("The deadline has passed", model=candidate.requested, provider=candidate.provider)
    ready = await _ready(call, candidate)
    if call.scope.from_agent and not (ready.guarded or ready.listed):
        raise ModelNotAllowed(
            f"{candidate.requested} is not a model that agents may choose",
            model=candidate.requested,
            hint="It is reached without this package's guard, so the operator must list it first.",
        )
    exchange = Exchange()
    limit = min(call.timeout, call.left())
    items = provider.send(ready, call.request, exchange=exchange, timeout=limit)
    attempt = _Attempt(ready, _row(call, ready), items, exchange)
    call.attempts.append(attempt)
    try:
        if call.ledger is not None:
            await call.ledger.write("start", attempt.row, call.scope.labels)
        attempt.began = time.monotonic()
        return attempt, await _next(call, attempt, limit)
    except BaseException as error:
        await _settle_failed(call, attempt, error)
        raise


async def _ready(call: Call, candidate: Candidate) -> Candidate:
    """What is slow before the first request (importing LiteLLM, starting the local model), within the deadline."""
    try:
        with anyio.fail_after(call.left()):
            return await provider.ready(candidate)
    except TimeoutError:
        raise DeadlineExceeded(
            f"The deadline passed before {candidate.requested} could be asked", model=candidate.requested
        ) from None


async def _next(call: Call, attempt: _Attempt, limit: float) -> str | Answer:
    """The next item within `limit` seconds, and within the deadline."""
    try:
        with anyio.fail_after(min(limit, call.left())):
            return await anext(attempt.items)
    except TimeoutError:
        kind = DeadlineExceeded if call.left() <= 0 else ProviderTimeout
        raise kind(
            f"{attempt.candidate.provider} did not answer in {time.monotonic() - attempt.began:.1f} s",
            provider=attempt.candidate.provider,
            model=attempt.candidate.requested,
            outcome="unknown" if attempt.exchange.sent else "not_sent",
        ) from None


async def _answer(call: Call, attempt: _Attempt, first: str | Answer) -> AsyncGenerator[str | LLMResponse]:
    """Pass on what the model says, and settle the attempt once, however it ends."""
    item = first
    attempt.row["first_chunk_us"] = round((time.monotonic() - attempt.began) * 1e6)
    try:
        while isinstance(item, str):
            attempt.text.append(item)
            yield item
            item = await _next(call, attempt, min(IDLE_TIMEOUT_S, call.timeout))
    except BaseException as error:
        interrupted = await _settle_interrupted(call, attempt, error)
        if interrupted is error:
            raise
        raise interrupted from None
    yield await _settle_answered(call, attempt, item)


async def _settle_answered(call: Call, attempt: _Attempt, answer: Answer) -> LLMResponse:
    if answer.usage.source != "provider":
        count = provider.count_tokens
        usage = await anyio.to_thread.run_sync(count, attempt.candidate, call.request.messages, answer.text)
        answer = replace(answer, usage=usage)
    await _settle(call, attempt, answer, "ok", calls=1)
    return _response(call, attempt, answer)


async def _settle_failed(call: Call, attempt: _Attempt, error: BaseException) -> None:
    """Settle an attempt that said nothing."""
    attempt.row |= {"error_type": type(error).__name__, "http_status": attempt.exchange.status}
    if not isinstance(error, LLMError):
        attempt.outcome = "unknown" if attempt.exchange.sent else "not_sent"
        await _settle(call, attempt, None, "cancelled", failed_calls=1)
        return
    attempt.outcome = error.outcome
    attempt.row["http_status"] = error.status_code
    counted = None if error.usage is None else Answer("", None, error.usage)
    await _settle(call, attempt, counted, "failed")
    error.cost = to_usd(attempt.row["cost_nano"])
    logger.debug("%s failed: %s", attempt.candidate.requested, attempt.row["error_type"])


async def _settle_interrupted(call: Call, attempt: _Attempt, error: BaseException) -> BaseException:
    """
    Settle a stream that ended before its end: broken off by the provider, or by its reader.

    Returns:
        What to raise: StreamInterrupted for a fault of the provider, else the error itself.
    """
    cancelled = False
    try:
        await attempt.items.aclose()
    except asyncio.CancelledError:
        cancelled = True
    by_provider = isinstance(error, LLMError)
    attempt.row["error_type"] = None if isinstance(error, GeneratorExit) else type(error).__name__
    attempt.row["http_status"] = error.status_code if isinstance(error, LLMError) else attempt.exchange.status

    def settle() -> None:
        text = "".join(attempt.text)
        usage = error.usage if isinstance(error, LLMError) else None
        usage = usage or provider.count_tokens(attempt.candidate, call.request.messages, text)
        counts = {"failed_calls": 1} if by_provider else {"calls": 1}
        _finalise(call, attempt, Answer(text, None, usage), "interrupted" if by_provider else "cancelled", **counts)
        if call.ledger is not None:
            call.ledger.submit("settle", attempt.row, call.scope.labels).result()

    try:
        # In a thread, because an event loop that is shutting down cancels whatever it waits for.
        done = asyncio.get_running_loop().run_in_executor(None, settle)
    except RuntimeError:
        settle()  # Python itself is shutting down, and starts no more threads
    else:
        cancelled = await see_through(done) or cancelled
        done.result()
    if cancelled:
        raise asyncio.CancelledError
    if not isinstance(error, LLMError):
        return error
    return StreamInterrupted(
        f"The answer of {attempt.candidate.requested} broke off: {error.message}",
        text="".join(attempt.text),
        provider=attempt.candidate.provider,
        model=attempt.candidate.requested,
        status_code=error.status_code,
        cost=to_usd(attempt.row["cost_nano"]),
    )


async def _close_as_failed(call: Call, error: LLMError) -> None:
    """Count the call as failed, on the row of its last attempt."""
    if not call.attempts:
        await refuse(call, error)
        return
    last = call.attempts[-1]
    last.row["failed_calls"] = 1
    if call.ledger is not None:
        await call.ledger.write("settle", last.row, call.scope.labels)


async def _settle(
    call: Call, attempt: _Attempt, answer: Answer | None, status: str, *, calls: int = 0, failed_calls: int = 0
) -> None:
    """Make the attempt's row final, and see it into the ledger."""
    _finalise(call, attempt, answer, status, calls=calls, failed_calls=failed_calls)
    if call.ledger is not None:
        await call.ledger.write("settle", attempt.row, call.scope.labels)


def _finalise(
    call: Call, attempt: _Attempt, answer: Answer | None, status: str, *, calls: int = 0, failed_calls: int = 0
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
    if answer is not None:
        row |= {name: getattr(answer.usage, name) for name in _COUNTS}
        row |= {
            "usage_source": answer.usage.source,
            "finish_reason": answer.finish_reason,
            "response_model": answer.response_model,
            "response_id": answer.response_id,
            "http_status": attempt.exchange.status,
        }
    known = any(other.row["unpriced_calls"] for other in call.attempts if other is not attempt)
    row["unpriced_calls"] = int(row["cost_nano"] is None and not known)
    call.meter.add(row["cost_nano"] or 0)


def _row(call: Call, candidate: Candidate) -> dict[str, Any]:
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
        "run": scope.run,
        "conversation": scope.conversation,
        "key_alias": candidate.key_alias,
        "stream": call.request.stream,
        "usage_source": "unknown",
        "cost_nano": None,
        "cost_source": "unknown",
        "price_version": candidate.rates.version,
        "bound_nano": upper_bound(candidate, call.request),
        "lease_us": now + int((_LEASE_S + call.timeout) * 1e6),
        "calls": 0,
        "failed_calls": 0,
        "unpriced_calls": 0,
    }


def _response(call: Call, attempt: _Attempt, answer: Answer) -> LLMResponse:
    row, candidate = attempt.row, attempt.candidate
    cost = to_usd(None if row["cost_nano"] is None else call.cost_nano)
    if call.ledger is not None:
        known = None if math.isnan(cost) else call.cost_nano
        call.scope.journal.add(RecordedCall(call.call_id, row["attempt_id"], candidate.model, known))
    requested = call.plan.requested
    metadata: dict[str, Any] = {
        "requested_model": requested,
        "response_model": answer.response_model,
        "fallback_used": candidate.requested != requested,
        "attempts": [_summary(a) for a in call.attempts],
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
    if tool_calls := answer.message.get("tool_calls"):
        metadata["tool_calls"] = tool_calls
    return LLMResponse(
        content=answer.text,
        model=candidate.model,
        provider=candidate.provider,
        usage=_usage(answer.usage),
        cost=cost,
        latency_ms=row["duration_us"] / 1000,
        metadata=metadata,
    )


def _summary(attempt: _Attempt) -> dict[str, Any]:
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
    counts = {name: count for name in _COUNTS if (count := getattr(usage, name)) is not None}
    if {"prompt_tokens", "completion_tokens"} <= counts.keys():
        counts["total_tokens"] = counts["prompt_tokens"] + counts["completion_tokens"]
    return counts
