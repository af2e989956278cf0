"""The flow of one call: attempt, price, settle, then retry or fall back; the same for plain and streamed calls."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from tenacity import AsyncRetrying, retry_if_exception, stop_never, wait_random_exponential

from shared.calls.call import (
    Attempt,
    Call,
    draft_of,
    needs_count,
    provisional_response,
    response_of,
    settle_row,
    start_row,
)
from shared.calls.concurrency import acquire_slot
from shared.calls.cooldown import cooldowns
from shared.calls.hold import GRACE_S, hold, warn_when_near
from shared.calls.prompt_cache import Marked, request_for
from shared.calls.retry_schedule import RetrySchedule
from shared.calls.selection import chosen_plan, observe
from shared.calls.unfinished import settle_unfinished
from shared.errors import (
    BudgetExceeded,
    ContextTooLong,
    DeadlineExceeded,
    InvalidRequest,
    LLMError,
    ModelNotAllowed,
    ProviderTimeout,
    ResponseRejected,
    StoreError,
    StreamInterrupted,
)
from shared.images import fit_pictures
from shared.internal.aio import wait_shielded
from shared.internal.clock import new_id
from shared.internal.money import to_usd
from shared.ledger import STOPPED_PATIENCE_S, Admission, AttemptRow, Ledger, Status, committed
from shared.models import failure
from shared.prices import UNKNOWN, max_prompt_tokens, only_text
from shared.providers import Exchange, count_tokens, make_ready, open_response, with_pictures
from shared.scope import Scope
from shared.types import Answer, Candidate, FallbackOn, LLMResponse, Request, TaskType

logger = logging.getLogger("agentswarm_tools")

IDLE_TIMEOUT_S = 30.0
_MAX_ATTEMPTS_UNKNOWN = 2
_COUNT_TOLERANCE = 1.25
_backoff = wait_random_exponential(multiplier=0.5, max=8.0)


async def run_call(call: Call) -> AsyncGenerator[str | LLMResponse]:
    """
    Carry out a call.

    Yields:
        Chunks of text when the request is a stream; "" after the last, to let the reader catch up before the answer is
            settled; and last the LLMResponse.

    Raises:
        LLMError: The only model's own error, or AllModelsFailed.
    """
    with _ending(call):
        if call.plan.is_open:
            await _choose(call)
        schedule = RetrySchedule(
            call.plan.candidates, cooldowns, max_retries=call.max_retries, tenant=call.scope.tenant
        )
        try:
            attempt, first = await _first_item(call, schedule)
        except LLMError as error:
            final = error if _ends_call(call, error) else _final_error([*call.plan.skipped, *schedule.errors])
            if not call.is_counted:
                await refuse_call(call, final)
            raise final from None
        except BaseException as error:
            # Stopped between two attempts, or before the first of one of several requests: no row counts it yet.
            if not call.is_counted and (call.attempts or call.is_part):
                await refuse_call(call, error)
            raise
        try:
            async with aclosing(_answer(call, attempt, first)) as items:
                async for item in items:
                    yield item
        finally:
            attempt.release()


@contextmanager
def _ending(call: Call) -> Iterator[None]:
    """Name the call in its error, and say when it has ended; a stream that its reader leaves ends with GeneratorExit."""
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        if isinstance(raised, LLMError):
            raised.call_id = str(call.call_id)
        raise
    finally:
        if call.on_end is not None:
            call.on_end(call, error)


async def _choose(call: Call) -> None:
    """
    Let `auto` put the models in order for this request.

    Raises:
        LLMError: None of them can take it.
    """
    try:
        call.plan = await anyio.to_thread.run_sync(chosen_plan, call)
    except LLMError as error:
        await refuse_call(call, error)
        raise


async def answer_of(call: Call) -> LLMResponse:
    """The response to a call that is not streamed."""
    last: str | LLMResponse = ""
    async for item in run_call(call):
        last = item
    assert isinstance(last, LLMResponse), "the flow ends with an answer or an error"  # noqa: S101
    return last


def _final_error(failures: Sequence[LLMError]) -> LLMError:
    """The error of a call for which every model failed: the first model's own if budgets refused them all."""
    first_is_enough = len(failures) == 1 or all(isinstance(each, BudgetExceeded) for each in failures)
    return failures[0] if first_is_enough else failure(failures)


async def refuse_call(call: Call, error: BaseException) -> None:
    """Record the failure of a call that no attempt's row has counted yet."""
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
        patience=max(call.seconds_left(), GRACE_S) if isinstance(error, LLMError) else STOPPED_PATIENCE_S,
    )


async def record_refusal(
    ledger: Ledger | None,
    scope: Scope,
    request: Request,
    error: BaseException,
    *,
    call_id: uuid.UUID | None = None,
    attempt_number: int = 1,
    failed_calls: int = 1,
    patience: float = math.inf,
) -> None:
    """Record that a call, or one more attempt of it, was refused before anything was sent."""
    if ledger is None:
        return
    known = error if isinstance(error, LLMError) else LLMError()
    model = known.model or "(refused)"
    row = AttemptRow.started(
        Candidate(model, model, known.provider or "(none)", model, rates=UNKNOWN),
        scope,
        call_id=call_id or new_id(),
        attempt_number=attempt_number,
        operation=request.task.value,
        stream=request.stream,
        bound_nano=None,
        lease_s=0,
    )
    with suppress(TimeoutError):
        await committed(ledger.settle(row.refused(type(error).__name__, failed_calls=failed_calls)), patience)


async def _first_item(call: Call, schedule: RetrySchedule) -> tuple[Attempt, str | Answer]:
    """
    The first item that any model yields: a chunk of text, or the whole answer.

    Until then the call may retry and fall back. Afterwards it must not: the caller may already have the chunk.
    """

    def may_continue(error: BaseException) -> bool:
        return isinstance(error, LLMError) and not _is_over(call, schedule, error)

    # tenacity only runs the loop: it catches the error, asks `may_continue`, sleeps, and computes the random back-off.
    # Everything else is the retry schedule's decision, which tenacity has no notion of: which model is next, whether
    # a `Retry-After` or a cool-down applies, and when no model is left. So the wait is the schedule's, the loop never
    # stops by itself, and each round may try a different model.
    retrying = AsyncRetrying(
        retry=retry_if_exception(may_continue),
        wait=lambda _: schedule.wait(),
        stop=stop_never,
        sleep=_sleep,
        reraise=True,
    )
    async for retry in retrying:
        with retry:
            return await _try_next(call, schedule, _backoff(retry.retry_state))
    raise AssertionError("tenacity ends with a result or an error")


def _is_over(call: Call, schedule: RetrySchedule, error: LLMError) -> bool:
    """Whether the call ends with this error; then the row of the attempt that raised it counts the call as failed."""
    return _ends_call(call, error) or not schedule.left


async def _try_next(call: Call, schedule: RetrySchedule, pause: float) -> tuple[Attempt, str | Answer]:
    """
    Send one request to the next model; if it fails, settle the attempt.

    A failed attempt is settled once, so whether it ends the call must be decided before: the row that ends the call
    counts it as failed.
    """
    state = schedule.next()
    attempt: Attempt | None = None
    try:
        candidate = await _prepare(call, state.candidate)
        attempt = await _begin(call, candidate, await request_for(call, candidate))
        await hold(call, attempt, is_last=not schedule.has_others(state))
        first = await _send(call, attempt)
        if call.request.fallback_on is not None and isinstance(first, Answer):
            first = await _accepted(call, attempt, first, call.request.fallback_on)
    except LLMError as error:
        if (
            type(error) is InvalidRequest
            and error.outcome == "not_sent"
            and (state is not schedule.states[0] or call.plan.choice is not None)
        ):
            error.action = "next"  # a fallback model that does not support the request does not make it invalid
        if attempt is not None and attempt.answer is not None:
            cooldowns.answered(state.candidate, call.scope.tenant)
            attempt.outcome = "completed"
        else:
            _note_failure(call, state.candidate, error)
            if attempt is not None:
                attempt.outcome = error.outcome
        may_repeat, seconds_left = _may_repeat(call, state.candidate, error), call.seconds_left()
        schedule.failed(state, error, may_repeat=may_repeat, pause=pause, seconds_left=seconds_left)
        if isinstance(error, ResponseRejected):
            schedule.drop(state.candidate.requested)
        is_over = _is_over(call, schedule, error)
        is_late = not is_over and schedule.wait() >= call.seconds_left()
        if attempt is not None:
            await _settle_failed(call, attempt, error, ends_call=is_over or is_late)
            schedule.rest(state)
            # Settling takes time too.
            is_late = is_late or (not is_over and schedule.wait() >= call.seconds_left())
        if is_late:
            raise _too_late(schedule) from None
        raise
    except BaseException as error:
        cooldowns.stopped(state.candidate, call.scope.tenant)
        if attempt is not None:
            await _settle_cancelled(call, attempt, error)
        raise
    cooldowns.answered(state.candidate, call.scope.tenant)
    return attempt, first


def _note_failure(call: Call, candidate: Candidate, error: LLMError) -> None:
    """Let the endpoint cool down; but a full flex tier says nothing about the standard tier, which is tried next."""
    is_flex = call.request.params.get("service_tier") == "flex" and not candidate.is_standard
    if not is_flex:
        cooldowns.failed(candidate, error, call.scope.tenant)
        return
    cooldowns.stopped(candidate, call.scope.tenant)
    if type(error) is InvalidRequest and error.outcome == "rejected":
        error.action = "next"  # it may be the tier that the model does not take; a refusal costs nothing


def _too_late(schedule: RetrySchedule) -> DeadlineExceeded:
    causes = "; ".join(error.message for error in schedule.errors)
    return DeadlineExceeded(f"The deadline passes before a model can be tried again ({causes})")


async def _sleep(seconds: float) -> None:
    if seconds:
        await asyncio.sleep(seconds)


def _may_repeat(call: Call, candidate: Candidate, error: LLMError) -> bool:
    """Whether the model may be retried: if the failure was free; once if it may have been billed; images never then."""
    if error.action != "retry":
        return False
    if error.outcome in ("not_sent", "rejected"):
        return True
    unknown = [a for a in call.attempts if a.candidate.requested == candidate.requested and a.outcome == "unknown"]
    return len(unknown) < _MAX_ATTEMPTS_UNKNOWN and call.request.task is not TaskType.IMAGE_GENERATION


def _ends_call(call: Call, error: LLMError) -> bool:
    """Whether no other model is tried: the request is at fault, or the images may already have been made."""
    return error.action == "raise" or _may_be_paid_twice(call, error)


def _may_be_paid_twice(call: Call, error: LLMError) -> bool:
    """Whether the images may already have been made, so that no other model may be tried; the error then says so."""
    if call.request.task is not TaskType.IMAGE_GENERATION or error.outcome in ("not_sent", "rejected"):
        return False
    if error.outcome == "unknown":
        bound_nano = call.attempts[-1].row.bound_nano if call.attempts else None
        most = "" if bound_nano is None else f"The most that it can have cost is ${to_usd(bound_nano):.6f}. "
        error.next_step = (
            f"{most}The images may have been made, so the request is not retried: a retry would be charged again."
        )
    return True


async def _check_room(call: Call, candidate: Candidate) -> None:
    """
    Check that the input fits into the model's context window, if its size is known.

    Raises:
        ContextTooLong: The input is longer, or was already too long for a window of this size or a larger one.
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
    # Our count uses one encoding for all models, so near the limit the provider's own count must decide.
    if count is not None and count > window * _COUNT_TOLERANCE:
        raise ContextTooLong(
            f"The input has about {count:,} tokens, and {candidate.requested} takes {window:,}",
            provider=candidate.provider,
            model=candidate.requested,
        )


async def _prepare(call: Call, candidate: Candidate) -> Candidate:
    """Prepare an attempt: check that the input fits, import LiteLLM, check permission, resize pictures."""
    await _check_room(call, candidate)
    if call.seconds_left() <= 0:
        raise DeadlineExceeded("The deadline has passed", model=candidate.requested, provider=candidate.provider)
    ready = await _make_ready(call, candidate)
    if call.scope.from_agent and not (ready.guarded or ready.listed):
        raise ModelNotAllowed(
            f"{candidate.requested} is not a model that agents may choose",
            model=candidate.requested,
            hint="It is reached without this package's protections, so the operator must list it first.",
        )
    await _fit_pictures(call, ready)
    return ready


async def _fit_pictures(call: Call, candidate: Candidate) -> None:
    """Fit the pictures to the model, within the deadline."""
    try:
        with anyio.fail_after(call.seconds_left()):
            await fit_pictures(candidate, call.request)
    except TimeoutError:
        raise DeadlineExceeded(
            f"The deadline passed before the images were ready for {candidate.requested}", model=candidate.requested
        ) from None


async def _begin(call: Call, candidate: Candidate, marked: Marked) -> Attempt:
    """A new attempt, once a connection is free for it."""
    release = await acquire_slot(
        candidate.provider, limit=call.max_concurrency, patience=min(call.timeout, call.seconds_left())
    )
    try:
        drafted = draft_of(candidate, marked.request, under_budget=bool(call.limits))
        row = start_row(call, candidate, drafted.bound)
    except BaseException:
        release()
        raise
    exchange = Exchange(call.network)
    attempt = Attempt(candidate, marked.request, row, release, exchange, drafted, note=marked.note)
    call.attempts.append(attempt)
    return attempt


async def _send(call: Call, attempt: Attempt) -> str | Answer:
    """Send the request, and wait for the first item of its response."""
    attempt.began = time.monotonic()
    limit = max(min(call.timeout, call.seconds_left()), GRACE_S)
    attempt.items = open_response(
        attempt.candidate, attempt.request, exchange=attempt.exchange, timeout=limit, drafted=attempt.drafted
    )
    return await _next_item(call, attempt, attempt.items, limit)


async def _wait_for_commit(call: Call, write: Future[Admission], most_s: float = math.inf) -> Admission:
    """Wait until a settled row is committed; the deadline ends the wait, but the row is still written."""
    try:
        return await committed(write, patience=min(most_s, max(call.seconds_left(), GRACE_S)))
    except TimeoutError:
        return Admission()


async def _make_ready(call: Call, candidate: Candidate) -> Candidate:
    """Do what is slow before the first request (import LiteLLM, start the local model), within the deadline."""
    try:
        with anyio.fail_after(call.seconds_left()):
            return await make_ready(candidate, call.request.task)
    except TimeoutError:
        raise DeadlineExceeded(
            f"The deadline passed before {candidate.requested} was ready", model=candidate.requested
        ) from None


async def _next_item(call: Call, attempt: Attempt, items: AsyncGenerator[str | Answer], limit: float) -> str | Answer:
    """
    The next item, within the deadline.

    Args:
        limit: Seconds of silence. Thoughts and the arguments of tool calls are no items, but no silence either.
    """

    def wait_anew() -> None:
        scope.deadline = anyio.current_time() + min(limit, call.seconds_left())

    try:
        with anyio.fail_after(min(limit, call.seconds_left())) as scope:
            attempt.exchange.heard = wait_anew
            return await anext(items)
    except TimeoutError:
        kind = DeadlineExceeded if call.seconds_left() <= 0 else ProviderTimeout
        raise kind(
            f"{attempt.candidate.provider} did not answer in {time.monotonic() - attempt.began:.1f} s",
            provider=attempt.candidate.provider,
            model=attempt.candidate.requested,
            outcome="unknown" if attempt.exchange.sent else "not_sent",
        ) from None


async def _answer(call: Call, attempt: Attempt, first: str | Answer) -> AsyncGenerator[str | LLMResponse]:
    """Yield the model's answer, and settle the attempt exactly once, however it ends."""
    item = first
    assert attempt.items is not None, "the request of an answer was sent"  # noqa: S101
    attempt.first_chunk_us = attempt.elapsed_us()
    try:
        while isinstance(item, str):
            attempt.text.append(item)
            yield item
            if attempt.items.pieces:  # no wait to limit, and limits cost more than the piece
                item = attempt.items.pieces.popleft()
            else:
                item = await _next_item(call, attempt, attempt.items, min(IDLE_TIMEOUT_S, call.timeout))
            if not isinstance(item, str):
                yield ""
    except BaseException as error:
        interrupted = await _settle_interrupted(call, attempt, error)
        if interrupted is error:
            raise
        raise interrupted from None
    yield await _settle_answered(call, attempt, item)


async def _counted(call: Call, attempt: Attempt, answer: Answer) -> tuple[Answer, BaseException | None]:
    """The answer with counts of our own where none were reported, and what to raise once it is settled."""
    if not needs_count(answer):
        return answer, None
    messages = with_pictures(attempt.candidate, call.request)
    count = partial(count_tokens, params=call.request.params, answer=answer)
    counting = asyncio.get_running_loop().run_in_executor(None, count, attempt.candidate, messages, answer.text)
    problem = asyncio.CancelledError() if await wait_shielded(counting) else None
    return replace(answer, usage=counting.result()), problem


async def _accepted(call: Call, attempt: Attempt, answer: Answer, fallback_on: FallbackOn) -> Answer:
    """
    The answer, if the caller's `fallback_on` has nothing against it.

    Raises:
        ResponseRejected: It has.

        LLMError: It made a call itself, which failed: that ends this call too.
    """
    attempt.answer, problem = await _counted(call, attempt, answer)
    if problem is not None:
        raise problem
    response = provisional_response(call, attempt, attempt.answer)
    try:
        # In a thread: it may be slow, or make calls of its own.
        decision = await anyio.to_thread.run_sync(fallback_on, response)
        if inspect.isawaitable(decision):
            decision = await decision
    except LLMError as error:
        error.action = "raise"
        raise
    if decision:
        raise _rejection(attempt, response, decision if isinstance(decision, str) else "")
    return attempt.answer


def _rejection(attempt: Attempt, response: LLMResponse, reason: str) -> ResponseRejected:
    error = ResponseRejected(
        f"fallback_on rejected the answer of {attempt.candidate.requested}" + (f": {reason}" if reason else ""),
        provider=attempt.candidate.provider,
        model=attempt.candidate.requested,
        outcome="rejected_response",
    )
    error.reason, error.response = reason, response
    return error


async def _settle_answered(call: Call, attempt: Attempt, answer: Answer) -> LLMResponse:
    answer, problem = await _counted(call, attempt, answer)
    attempt.answer = answer
    metadata = None
    try:
        metadata = await call.finish(attempt, answer) if call.finish is not None else None
    except BaseException as error:  # noqa: BLE001 - the answer was paid for and must be settled first; raised below
        problem = error
    settle_row(call, attempt, "ok", answer, calls=call.progress.part_answered(), metadata=metadata)
    call.is_counted = True
    observe(call, attempt.candidate, answer)
    admission = await _settle(call, attempt, with_statuses=True)
    if isinstance(problem, LLMError):
        problem.cost = to_usd(attempt.row.cost_nano)
    if problem is not None:
        raise problem
    return response_of(call, attempt, answer, _visible_budget_left(call, admission))


def _visible_budget_left(call: Call, admission: Admission) -> int | None:
    """Nano-dollars left of the tightest budget that the caller may see; None when there is none."""
    warn_when_near(admission.statuses)
    return min((each.left_nano for each in admission.statuses if call.scope.may_see(each.limit)), default=None)


async def _settle_failed(call: Call, attempt: Attempt, error: LLMError, *, ends_call: bool) -> None:
    """Settle an attempt that failed before its first item."""
    attempt.release()
    if isinstance(error, ContextTooLong):
        call.too_small = max(call.too_small, attempt.candidate.max_input_tokens or 0)
    if ends_call:
        call.is_counted = True
    failed = call.progress.part_failed() if ends_call else 0
    if attempt.row.status == "refused":  # the ledger has already recorded the refusal
        if failed > attempt.row.failed_calls:
            attempt.row = attempt.row.refused(error.error_type, failed_calls=1)
            await _settle(call, attempt)
        return
    status: Status = "refused" if isinstance(error, BudgetExceeded | StoreError) else "failed"
    if isinstance(error, ResponseRejected) and attempt.answer is not None:
        status = "rejected_response"
        observe(call, attempt.candidate, attempt.answer)
    ended = {"failed_calls": failed, "error_type": error.error_type, "http_status": error.status_code}
    cancelled = await _settle_row(call, attempt, status, error, **ended)
    await _settle(call, attempt)
    error.cost, error.cost_is_lower_bound = to_usd(attempt.row.cost_nano), attempt.row.cost_is_lower_bound
    if cancelled:
        raise asyncio.CancelledError


async def _settle_cancelled(call: Call, attempt: Attempt, error: BaseException) -> None:
    """Settle an attempt that was cancelled before its first item."""
    attempt.release()
    attempt.outcome = "unknown" if attempt.exchange.sent else "not_sent"
    call.is_counted = True
    failed = call.progress.part_failed()
    await _settle_row(call, attempt, "cancelled", error, failed_calls=failed, error_type=type(error).__name__)
    await _settle(call, attempt, most_s=STOPPED_PATIENCE_S)


async def _settle_row(call: Call, attempt: Attempt, status: Status, error: BaseException, **ended: Any) -> bool:
    """Make the row of an attempt without a usable answer final; returns whether this task was cancelled meanwhile."""
    if attempt.answer is not None:  # it came whole, and the caller's `fallback_on` rejected it
        settle_row(call, attempt, status, attempt.answer, **ended)
        return False
    settle = partial(settle_unfinished, call, attempt, status, error, **ended)
    if attempt.outcome in ("not_sent", "rejected"):
        settle()  # nothing to count
        return False
    return await _in_thread(settle)


async def _in_thread(work: Callable[[], None]) -> bool:
    """Do something that takes time, even if this task is cancelled meanwhile; returns whether it was."""
    try:
        # In a thread: an event loop that is shutting down cancels its tasks, but cannot cancel a thread.
        done = asyncio.get_running_loop().run_in_executor(None, work)
    except RuntimeError:
        work()  # Python itself is shutting down and starts no more threads
        return False
    cancelled = await wait_shielded(done)
    done.result()
    return cancelled


async def _settle_interrupted(call: Call, attempt: Attempt, error: BaseException) -> BaseException:
    """
    Settle a stream that ended early: broken off by the provider, or left by its reader.

    Returns:
        What to raise: StreamInterrupted for a failure of the provider, else the error itself.
    """
    cancelled = False
    try:
        if attempt.items is not None:
            await attempt.items.aclose()
    except asyncio.CancelledError:
        cancelled = True
    except RuntimeError as closed:  # its event loop was closed, and with it the connection
        logger.debug("The connection of %s was gone: %s", attempt.candidate.requested, closed)
    if isinstance(error, LLMError):
        cooldowns.failed(attempt.candidate, error, call.scope.tenant)
    if await _in_thread(partial(_settle_stream, call, attempt, error)) or cancelled:
        raise asyncio.CancelledError
    if not isinstance(error, LLMError):
        return error
    interrupted = StreamInterrupted(
        f"The answer of {attempt.candidate.requested} broke off: {error.message}",
        text="".join(attempt.text),
        provider=attempt.candidate.provider,
        model=attempt.candidate.requested,
        status_code=error.status_code,
        cost=to_usd(attempt.row.cost_nano),
    )
    interrupted.cost_is_lower_bound = attempt.row.cost_is_lower_bound
    return interrupted


def _settle_stream(call: Call, attempt: Attempt, error: BaseException) -> None:
    """Settle a stream that ended early with what is known so far, and wait until the row is committed."""
    call.is_counted = True
    attempt.outcome = "unknown"
    if isinstance(error, LLMError):
        failed = call.progress.part_failed()
        settle = partial(settle_unfinished, call, attempt, "interrupted", error, failed_calls=failed)
        settle(error_type=error.error_type, http_status=error.status_code)
    else:
        kind = None if isinstance(error, GeneratorExit) else type(error).__name__
        calls = call.progress.part_answered()
        settle_unfinished(call, attempt, "cancelled", error, calls=calls, error_type=kind)
    if call.ledger is not None:
        patience_s = max(call.seconds_left(), GRACE_S) if isinstance(error, LLMError) else STOPPED_PATIENCE_S
        with suppress(TimeoutError):  # it is written all the same
            call.ledger.settle(attempt.row).result(None if math.isinf(patience_s) else patience_s)


async def _settle(call: Call, attempt: Attempt, *, with_statuses: bool = False, most_s: float = math.inf) -> Admission:
    """Write the attempt's final row to the ledger, and wait until it is committed, at most `most_s` seconds."""
    if call.ledger is None:
        return Admission()
    write = call.ledger.settle(attempt.row, call.limits, with_statuses=with_statuses)
    return await _wait_for_commit(call, write, most_s)
