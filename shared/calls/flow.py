"""The flow of a call: plan, attempt, price, settle, then retry or fall back; for plain, sync and stream alike."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import anyio
import anyio.to_thread
from tenacity import AsyncRetrying, retry_if_exception, stop_never, wait_random_exponential

from shared.calls.call import Attempt, Call, finish_row, new_row, response_of
from shared.calls.concurrency import acquire_slot
from shared.calls.cooldown import cooldowns
from shared.calls.hold import GRACE_S, hold, warn_when_near
from shared.calls.retry_schedule import RetrySchedule
from shared.errors import (
    BudgetExceeded,
    ContextTooLong,
    DeadlineExceeded,
    InvalidRequest,
    LLMError,
    ModelNotAllowed,
    ProviderTimeout,
    StoreError,
    StreamInterrupted,
)
from shared.images import fit_pictures
from shared.internal.aio import wait_shielded
from shared.internal.money import to_usd
from shared.ledger import Admission
from shared.models import failure
from shared.prices import UNKNOWN, max_prompt_tokens, only_text
from shared.providers import count_tokens, make_ready, open_response, with_pictures
from shared.types import Answer, Candidate, LLMResponse, TaskType

logger = logging.getLogger("agentswarm_tools")

IDLE_TIMEOUT_S = 30.0
_MAX_ATTEMPTS_UNKNOWN = 2
_COUNT_TOLERANCE = 1.25
_REFUSALS = (BudgetExceeded, StoreError)
_backoff = wait_random_exponential(multiplier=0.5, max=8.0)


async def run_call(call: Call) -> AsyncGenerator[str | LLMResponse]:
    """
    Carry out a call.

    Yields:
        Chunks of text when the request is a stream, and last the LLMResponse.

    Raises:
        LLMError: The only model's own error, or AllModelsFailed.
    """
    schedule = RetrySchedule(call.plan.candidates, cooldowns, max_retries=call.max_retries)
    try:
        attempt, first = await _first_item(call, schedule)
    except LLMError as error:
        failures = [*call.plan.skipped, *schedule.errors]
        final = error if _ends_call(call, error) else _final_error(failures)
        await _close_as_failed(call, final)
        raise final from None
    try:
        async with aclosing(_answer(call, attempt, first)) as items:
            async for item in items:
                yield item
    finally:
        attempt.leave()


def _final_error(failures: Sequence[LLMError]) -> LLMError:
    """The error of a call whose every model failed: its own where all failed alike for want of money."""
    alone = len(failures) == 1 or all(isinstance(each, BudgetExceeded) for each in failures)
    return failures[0] if alone else failure(failures)


async def refuse_call(call: Call, error: LLMError) -> None:
    """Record a call that no model was asked for."""
    model = error.model or "(refused)"
    candidate = Candidate(model, model, error.provider or "(none)", model, rates=UNKNOWN)
    row = new_row(call, candidate) | {"status": "refused", "cost_nano": 0, "cost_source": "free", "failed_calls": 1}
    row["error_type"] = error.error_type
    await _write(call, row)


async def _first_item(call: Call, schedule: RetrySchedule) -> tuple[Attempt, str | Answer]:
    """The first thing that any model says; until then models may be asked again, and after it never."""

    def again(error: BaseException) -> bool:
        return isinstance(error, LLMError) and schedule.left and not _ends_call(call, error)

    retrying = AsyncRetrying(
        retry=retry_if_exception(again),
        wait=lambda retry_state: schedule.wait(_backoff(retry_state)),
        stop=stop_never,
        sleep=lambda seconds: _sleep(call, schedule, seconds),
        reraise=True,
    )
    return await retrying(_open_next, call, schedule)


async def _open_next(call: Call, schedule: RetrySchedule) -> tuple[Attempt, str | Answer]:
    """Ask the model whose state it is, and take note of how it did."""
    state = schedule.next()
    try:
        await _check_room(call, state.candidate)
        opened = await _open(call, state.candidate)
    except LLMError as error:
        if type(error) is InvalidRequest and error.outcome == "not_sent" and state is not schedule.states[0]:
            error.action = "next"  # what this model does not take says nothing against the request
        cooldowns.failed(state.candidate, error)
        schedule.failed(state, error, may_repeat=_may_repeat(call, state.candidate, error), seconds_left=call.left())
        raise
    except BaseException:
        cooldowns.stopped(state.candidate)
        raise
    cooldowns.answered(state.candidate)
    return opened


def _may_repeat(call: Call, candidate: Candidate, error: LLMError) -> bool:
    """What cost nothing may be repeated; what may have been billed only once, and never when it makes images."""
    if error.action != "retry":
        return False
    if error.outcome in ("not_sent", "rejected"):
        return True
    asked = [a for a in call.attempts if a.candidate.requested == candidate.requested and a.outcome == "unknown"]
    return len(asked) < _MAX_ATTEMPTS_UNKNOWN and call.request.task is not TaskType.IMAGE_GENERATION


def _ends_call(call: Call, error: LLMError) -> bool:
    """Whether no other model is asked after this: the request is at fault, or images may be on their way."""
    return error.action == "raise" or _may_be_paid_twice(call, error)


def _may_be_paid_twice(call: Call, error: LLMError) -> bool:
    """Images that were perhaps made are not asked of another model; the error says why."""
    if call.request.task is not TaskType.IMAGE_GENERATION or error.outcome in ("not_sent", "rejected"):
        return False
    if error.outcome == "unknown":
        error.next_step = (
            "That is the most that it can have cost: the images may have been made and charged, so they are not asked "
            "for again by themselves."
        )
    return True


async def _check_room(call: Call, candidate: Candidate) -> None:
    """
    Leave out a model whose window is known to be too small.

    Raises:
        ContextTooLong: The input is longer, or was already too long for a window of this size.
    """
    window = candidate.max_input_tokens
    if window is None:
        return
    if window <= call.too_small:
        raise ContextTooLong(
            f"{candidate.requested} takes {window:,} tokens, and the input was too long for {call.too_small:,}",
            provider=candidate.provider,
            model=candidate.requested,
        )
    if max_prompt_tokens(call.request) <= window or not only_text(call.request):
        return
    count = (await anyio.to_thread.run_sync(count_tokens, candidate, call.request.messages, "")).prompt_tokens
    # Counted with one encoding for all; near the limit the provider's own count decides.
    if count is not None and count > window * _COUNT_TOLERANCE:
        raise ContextTooLong(
            f"The input has about {count:,} tokens, and {candidate.requested} takes {window:,}",
            provider=candidate.provider,
            model=candidate.requested,
        )


async def _sleep(call: Call, schedule: RetrySchedule, seconds: float) -> None:
    if seconds >= call.left():
        causes = "; ".join(error.message for error in schedule.errors)
        raise DeadlineExceeded(f"The deadline passes before a model may be asked again ({causes})")
    await asyncio.sleep(seconds)


async def _open(call: Call, candidate: Candidate) -> tuple[Attempt, str | Answer]:
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
    await fit_pictures(ready, call.request)
    leave = await acquire_slot(ready.provider, limit=call.max_concurrency, patience=min(call.timeout, call.left()))
    attempt = Attempt(ready, call.request, new_row(call, ready), leave)
    call.attempts.append(attempt)
    try:
        await hold(call, attempt)
        attempt.began = time.monotonic()
        limit = max(min(call.timeout, call.left()), GRACE_S)
        attempt.items = open_response(ready, attempt.request, exchange=attempt.exchange, timeout=limit)
        return attempt, await _next(call, attempt, attempt.items, limit)
    except BaseException as error:
        leave()
        if isinstance(error, ContextTooLong):
            call.too_small = max(call.too_small, ready.max_input_tokens or 0)
        await _settle_failed(call, attempt, error)
        raise


async def _write(call: Call, row: Mapping[str, Any]) -> Admission | None:
    """See a settled row into the ledger; the deadline ends the waiting, but never the writing."""
    if call.ledger is None:
        return None
    patience = max(call.left(), GRACE_S)
    try:
        return await call.ledger.write("settle", dict(row), call.scope.labels, limits=call.limits, patience=patience)
    except TimeoutError:
        return None


async def _ready(call: Call, candidate: Candidate) -> Candidate:
    """What is slow before the first request (importing LiteLLM, starting the local model), within the deadline."""
    try:
        with anyio.fail_after(call.left()):
            return await make_ready(candidate, call.request.task)
    except TimeoutError:
        raise DeadlineExceeded(
            f"The deadline passed before {candidate.requested} could be asked", model=candidate.requested
        ) from None


async def _next(call: Call, attempt: Attempt, items: AsyncGenerator[str | Answer], limit: float) -> str | Answer:
    """The next item within `limit` seconds, and within the deadline."""
    try:
        with anyio.fail_after(min(limit, call.left())):
            return await anext(items)
    except TimeoutError:
        kind = DeadlineExceeded if call.left() <= 0 else ProviderTimeout
        raise kind(
            f"{attempt.candidate.provider} did not answer in {time.monotonic() - attempt.began:.1f} s",
            provider=attempt.candidate.provider,
            model=attempt.candidate.requested,
            outcome="unknown" if attempt.exchange.sent else "not_sent",
        ) from None


async def _answer(call: Call, attempt: Attempt, first: str | Answer) -> AsyncGenerator[str | LLMResponse]:
    """Pass on what the model says, and settle the attempt once, however it ends."""
    item = first
    assert attempt.items is not None, "what has answered was asked"  # noqa: S101
    attempt.row["first_chunk_us"] = round((time.monotonic() - attempt.began) * 1e6)
    try:
        while isinstance(item, str):
            attempt.text.append(item)
            yield item
            item = await _next(call, attempt, attempt.items, min(IDLE_TIMEOUT_S, call.timeout))
    except BaseException as error:
        interrupted = await _settle_interrupted(call, attempt, error)
        if interrupted is error:
            raise
        raise interrupted from None
    yield await _settle_answered(call, attempt, item)


async def _settle_answered(call: Call, attempt: Attempt, answer: Answer) -> LLMResponse:
    if answer.usage.source != "provider" and not answer.images:
        count, messages = count_tokens, with_pictures(attempt.candidate, call.request)
        usage = await anyio.to_thread.run_sync(count, attempt.candidate, messages, answer.text)
        answer = replace(answer, usage=usage)
    attempt.answer = answer
    admission = await _settle(call, attempt, answer, "ok", calls=1)
    return response_of(call, attempt, answer, _left_nano(call, admission))


def _left_nano(call: Call, admission: Admission | None) -> int | None:
    """What is left of the tightest budget that the caller may know of."""
    statuses = admission.statuses if admission is not None else ()
    warn_when_near(statuses)
    return min((each.left_nano for each in statuses if call.scope.may_see(each.limit)), default=None)


async def _settle_failed(call: Call, attempt: Attempt, error: BaseException) -> None:
    """Settle an attempt that said nothing."""
    attempt.row |= {"error_type": type(error).__name__, "http_status": attempt.exchange.status}
    if not isinstance(error, LLMError):
        attempt.outcome = "unknown" if attempt.exchange.sent else "not_sent"
        await _settle(call, attempt, None, "cancelled", failed_calls=1)
        return
    attempt.outcome = error.outcome
    attempt.row["http_status"] = error.status_code
    counted = None if error.usage is None else Answer("", None, error.usage)
    await _settle(call, attempt, counted, "refused" if isinstance(error, _REFUSALS) else "failed")
    error.cost = to_usd(attempt.row["cost_nano"])
    logger.debug("%s failed: %s", attempt.candidate.requested, attempt.row["error_type"])


async def _settle_interrupted(call: Call, attempt: Attempt, error: BaseException) -> BaseException:
    """
    Settle a stream that ended before its end: broken off by the provider, or by its reader.

    Returns:
        What to raise: StreamInterrupted for a fault of the provider, else the error itself.
    """
    cancelled = False
    try:
        if attempt.items is not None:
            await attempt.items.aclose()
    except asyncio.CancelledError:
        cancelled = True
    by_provider = isinstance(error, LLMError)
    if isinstance(error, LLMError):
        cooldowns.failed(attempt.candidate, error)
    attempt.row["error_type"] = None if isinstance(error, GeneratorExit) else type(error).__name__
    attempt.row["http_status"] = error.status_code if isinstance(error, LLMError) else attempt.exchange.status

    def settle() -> None:
        text = "".join(attempt.text)
        usage = error.usage if isinstance(error, LLMError) else None
        usage = usage or count_tokens(attempt.candidate, call.request.messages, text)
        counts = {"failed_calls": 1} if by_provider else {"calls": 1}
        finish_row(call, attempt, Answer(text, None, usage), "interrupted" if by_provider else "cancelled", **counts)
        if call.ledger is not None:
            call.ledger.submit("settle", attempt.row, call.scope.labels).result()

    try:
        # In a thread, because an event loop that is shutting down cancels whatever it waits for.
        done = asyncio.get_running_loop().run_in_executor(None, settle)
    except RuntimeError:
        settle()  # Python itself is shutting down, and starts no more threads
    else:
        cancelled = await wait_shielded(done) or cancelled
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
        await refuse_call(call, error)
        return
    last = call.attempts[-1]
    last.row["failed_calls"] = 1
    await _write(call, last.row)


async def _settle(
    call: Call, attempt: Attempt, answer: Answer | None, status: str, *, calls: int = 0, failed_calls: int = 0
) -> Admission | None:
    """Make the attempt's row final, and see it into the ledger."""
    finish_row(call, attempt, answer, status, calls=calls, failed_calls=failed_calls)
    return await _write(call, attempt.row)
