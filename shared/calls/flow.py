"""The flow of a call: plan, attempt, price, settle, then retry or fall back; for plain, sync and stream alike."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial

import anyio
import anyio.to_thread
from tenacity import AsyncRetrying, retry_if_exception, stop_never, wait_random_exponential

from shared.budget import Limit
from shared.calls.call import Attempt, Call, needs_count, response_of, settle_row, start_row
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
from shared.internal.clock import new_id
from shared.internal.money import to_usd
from shared.ledger import Admission, AttemptRow, Ledger, committed
from shared.models import failure
from shared.prices import UNKNOWN, max_prompt_tokens, only_text
from shared.providers import Exchange, count_tokens, make_ready, open_response, with_pictures
from shared.scope import Scope
from shared.types import Answer, Candidate, LLMResponse, Request, TaskType

logger = logging.getLogger("agentswarm_tools")

IDLE_TIMEOUT_S = 30.0
_MAX_ATTEMPTS_UNKNOWN = 2
_COUNT_TOLERANCE = 1.25
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
        final = error if _ends_call(call, error) else _final_error([*call.plan.skipped, *schedule.errors])
        if not call.is_counted:
            await refuse_call(call, final)
        raise final from None
    try:
        async with aclosing(_answer(call, attempt, first)) as items:
            async for item in items:
                yield item
    finally:
        attempt.release()


async def answer_of(call: Call) -> LLMResponse:
    """The answer of a call that is not streamed."""
    last: str | LLMResponse = ""
    async for item in run_call(call):
        last = item
    assert isinstance(last, LLMResponse), "the flow ends with an answer or an error"  # noqa: S101
    return last


def _final_error(failures: Sequence[LLMError]) -> LLMError:
    """The error of a call whose every model failed: its own when budgets refused them all."""
    alone = len(failures) == 1 or all(isinstance(each, BudgetExceeded) for each in failures)
    return failures[0] if alone else failure(failures)


async def refuse_call(call: Call, error: LLMError) -> None:
    """Record the end of a call that no attempt's row counts."""
    call.is_counted = True
    failed = call.progress.part_failed()
    await record_refusal(
        call.ledger,
        call.scope,
        call.request,
        error,
        call_id=call.call_id,
        attempt_number=call.progress.next_attempt(),
        failed_calls=failed,
        patience=max(call.left(), GRACE_S),
    )


async def record_refusal(
    ledger: Ledger | None,
    scope: Scope,
    request: Request,
    error: LLMError,
    *,
    call_id: uuid.UUID | None = None,
    attempt_number: int = 1,
    failed_calls: int = 1,
    patience: float = math.inf,
) -> None:
    """Record that a call, or one more attempt of it, was refused before anything was sent."""
    if ledger is None:
        return
    model = error.model or "(refused)"
    row = AttemptRow.started(
        Candidate(model, model, error.provider or "(none)", model, rates=UNKNOWN),
        scope,
        call_id=call_id or new_id(),
        attempt_number=attempt_number,
        operation=request.task.value,
        stream=request.stream,
        bound_nano=None,
        lease_s=0,
    )
    with suppress(TimeoutError):
        await committed(ledger.settle(row.refused(error.error_type, failed_calls=failed_calls)), patience)


async def _first_item(call: Call, schedule: RetrySchedule) -> tuple[Attempt, str | Answer]:
    """The first thing that any model says; until then models may be asked again, and after it never."""

    def again(error: BaseException) -> bool:
        return isinstance(error, LLMError) and not _is_over(call, schedule, error)

    # tenacity asks whether to go on and sleeps; which model is next, and when, is the schedule's to say.
    retrying = AsyncRetrying(
        retry=retry_if_exception(again), wait=lambda _: schedule.wait(), stop=stop_never, sleep=_sleep, reraise=True
    )
    async for retry in retrying:
        with retry:
            return await _try_next(call, schedule, _backoff(retry.retry_state))
    raise AssertionError("tenacity ends with a result or an error")


def _is_over(call: Call, schedule: RetrySchedule, error: LLMError) -> bool:
    """Whether the call ends with this error, so that the attempt that raised it counts the call as failed."""
    return _ends_call(call, error) or not schedule.left


async def _try_next(call: Call, schedule: RetrySchedule, pause: float) -> tuple[Attempt, str | Answer]:
    """Ask the next model, and settle its attempt when it fails, knowing whether that ends the call."""
    state = schedule.next()
    attempt: Attempt | None = None
    try:
        candidate = await _prepare(call, state.candidate)
        attempt = await _begin(call, candidate)
        await hold(call, attempt, is_last=not schedule.has_others(state))
        first = await _send(call, attempt)
    except LLMError as error:
        if type(error) is InvalidRequest and error.outcome == "not_sent" and state is not schedule.states[0]:
            error.action = "next"  # what this model does not take says nothing against the request
        cooldowns.failed(state.candidate, error)
        if attempt is not None:
            attempt.outcome = error.outcome
        may_repeat, left = _may_repeat(call, state.candidate, error), call.left()
        schedule.failed(state, error, may_repeat=may_repeat, pause=pause, seconds_left=left)
        over = _is_over(call, schedule, error)
        late = not over and schedule.wait() >= call.left()
        if attempt is not None:
            await _settle_failed(call, attempt, error, ends_call=over or late)
            schedule.rest(state)
        if late:
            raise _too_late(schedule) from None
        raise
    except BaseException as error:
        cooldowns.stopped(state.candidate)
        if attempt is not None:
            await _settle_cancelled(call, attempt, error)
        raise
    cooldowns.answered(state.candidate)
    return attempt, first


def _too_late(schedule: RetrySchedule) -> DeadlineExceeded:
    causes = "; ".join(error.message for error in schedule.errors)
    return DeadlineExceeded(f"The deadline passes before a model may be asked again ({causes})")


async def _sleep(seconds: float) -> None:
    if seconds:
        await asyncio.sleep(seconds)


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


async def _prepare(call: Call, candidate: Candidate) -> Candidate:
    """What comes before an attempt: room for the input, LiteLLM's import, permission, pictures of the right size."""
    await _check_room(call, candidate)
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
    return ready


async def _begin(call: Call, candidate: Candidate) -> Attempt:
    """A new attempt, with a connection of its own."""
    release = await acquire_slot(
        candidate.provider, limit=call.max_concurrency, patience=min(call.timeout, call.left())
    )
    attempt = Attempt(candidate, call.request, start_row(call, candidate), release, Exchange(call.network))
    call.attempts.append(attempt)
    return attempt


async def _send(call: Call, attempt: Attempt) -> str | Answer:
    """Send the request, and wait for the first thing that comes back."""
    attempt.began = time.monotonic()
    limit = max(min(call.timeout, call.left()), GRACE_S)
    attempt.items = open_response(attempt.candidate, attempt.request, exchange=attempt.exchange, timeout=limit)
    return await _next(call, attempt, attempt.items, limit)


async def _written(call: Call, write: Future[Admission]) -> Admission:
    """See a settled row into the ledger; the deadline ends the waiting, but never the writing."""
    try:
        return await committed(write, patience=max(call.left(), GRACE_S))
    except TimeoutError:
        return Admission()


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
    attempt.first_chunk_us = attempt.elapsed_us()
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
    if needs_count(answer):
        messages = with_pictures(attempt.candidate, call.request)
        count = partial(count_tokens, params=call.request.params, answer=answer)
        usage = await anyio.to_thread.run_sync(count, attempt.candidate, messages, answer.text)
        answer = replace(answer, usage=usage)
    attempt.answer = answer
    metadata, problem = None, None
    try:
        metadata = await call.finish(attempt, answer) if call.finish is not None else None
    except BaseException as error:  # noqa: BLE001 - the answer is paid, whatever becomes of it; raised again below
        problem = error
    settle_row(call, attempt, "ok", answer, calls=call.progress.part_answered(), metadata=metadata)
    call.is_counted = True
    admission = await _settle(call, attempt, call.limits)
    if problem is not None:
        raise problem
    return response_of(call, attempt, answer, _left_nano(call, admission))


def _left_nano(call: Call, admission: Admission) -> int | None:
    """What is left of the tightest budget that the caller may know of."""
    warn_when_near(admission.statuses)
    return min((each.left_nano for each in admission.statuses if call.scope.may_see(each.limit)), default=None)


async def _settle_failed(call: Call, attempt: Attempt, error: LLMError, *, ends_call: bool) -> None:
    """Settle an attempt that said nothing."""
    attempt.release()
    if isinstance(error, ContextTooLong):
        call.too_small = max(call.too_small, attempt.candidate.max_input_tokens or 0)
    if ends_call:
        call.is_counted = True
    failed = call.progress.part_failed() if ends_call else 0
    if attempt.row.status == "refused":  # the ledger has recorded that itself
        if call.is_part and failed:
            attempt.row = attempt.row.refused(error.error_type, failed_calls=1)
            await _settle(call, attempt)
        return
    settle_row(
        call,
        attempt,
        "refused" if isinstance(error, BudgetExceeded | StoreError) else "failed",
        None if error.usage is None else Answer("", None, error.usage),
        failed_calls=failed,
        error_type=error.error_type,
        http_status=error.status_code,
    )
    await _settle(call, attempt)
    error.cost = to_usd(attempt.row.cost_nano)
    logger.debug("%s failed: %s", attempt.candidate.requested, error.error_type)


async def _settle_cancelled(call: Call, attempt: Attempt, error: BaseException) -> None:
    """Settle an attempt that was stopped before it said anything."""
    attempt.release()
    attempt.outcome = "unknown" if attempt.exchange.sent else "not_sent"
    call.is_counted = True
    failed = call.progress.part_failed()
    settle_row(call, attempt, "cancelled", None, failed_calls=failed, error_type=type(error).__name__)
    await _settle(call, attempt)


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
    if isinstance(error, LLMError):
        cooldowns.failed(attempt.candidate, error)
    try:
        # In a thread, because an event loop that is shutting down cancels whatever it waits for.
        done = asyncio.get_running_loop().run_in_executor(None, _settle_stream, call, attempt, error)
    except RuntimeError:
        _settle_stream(call, attempt, error)  # Python itself is shutting down, and starts no more threads
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
        cost=to_usd(attempt.row.cost_nano),
    )


def _settle_stream(call: Call, attempt: Attempt, error: BaseException) -> None:
    """Settle a stream that ended before its end with what is known of it, and wait until that is committed."""
    text, call.is_counted = "".join(attempt.text), True
    if isinstance(error, LLMError):
        usage = error.usage or count_tokens(attempt.candidate, call.request.messages, text)
        settle_row(
            call,
            attempt,
            "interrupted",
            Answer(text, None, usage),
            failed_calls=call.progress.part_failed(),
            error_type=error.error_type,
            http_status=error.status_code,
        )
    else:
        usage = count_tokens(attempt.candidate, call.request.messages, text)
        settle_row(
            call,
            attempt,
            "cancelled",
            Answer(text, None, usage),
            calls=call.progress.part_answered(),
            error_type=None if isinstance(error, GeneratorExit) else type(error).__name__,
        )
    if call.ledger is not None:
        call.ledger.settle(attempt.row).result()


async def _settle(call: Call, attempt: Attempt, limits: Sequence[Limit] = ()) -> Admission:
    """See the attempt's final row into the ledger."""
    return Admission() if call.ledger is None else await _written(call, call.ledger.settle(attempt.row, limits))
