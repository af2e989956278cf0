"""The flow of a call: plan, attempt, price, settle, then retry or fall back; for plain, sync and stream alike."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import anyio
import anyio.to_thread
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from shared import provider
from shared.calls import Attempt, Call, finalise, new_row, response_of
from shared.errors import DeadlineExceeded, LLMError, ModelNotAllowed, ProviderTimeout, StreamInterrupted
from shared.ledger import see_through
from shared.planning import failure
from shared.pricing import UNKNOWN, to_usd
from shared.transport import Exchange
from shared.types import Answer, Candidate, LLMResponse, TaskType

logger = logging.getLogger("agentswarm_tools")

IDLE_TIMEOUT_S = 30.0
MAX_RETRY_AFTER_S = 30.0
_MAX_ATTEMPTS_UNKNOWN = 2
_backoff = wait_random_exponential(multiplier=0.5, max=8.0)


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
            if error.action == "raise" or _may_be_paid_twice(call, error):
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
    row = new_row(call, candidate) | {"status": "refused", "cost_nano": 0, "cost_source": "free", "failed_calls": 1}
    row["error_type"] = error.error_type
    if call.ledger is not None:
        await call.ledger.write("settle", row, call.scope.labels)


async def _first_item(call: Call, candidate: Candidate) -> tuple[Attempt, str | Answer]:
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


async def _sleep(call: Call, seconds: float) -> None:
    if seconds >= call.left():
        raise DeadlineExceeded("The deadline passes before the next attempt could start")
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
    await provider.fit_pictures(ready, call.request)
    exchange = Exchange()
    limit = min(call.timeout, call.left())
    items = provider.send(ready, call.request, exchange=exchange, timeout=limit)
    attempt = Attempt(ready, new_row(call, ready), items, exchange)
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
            return await provider.ready(candidate, call.request.task)
    except TimeoutError:
        raise DeadlineExceeded(
            f"The deadline passed before {candidate.requested} could be asked", model=candidate.requested
        ) from None


async def _next(call: Call, attempt: Attempt, limit: float) -> str | Answer:
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


async def _answer(call: Call, attempt: Attempt, first: str | Answer) -> AsyncGenerator[str | LLMResponse]:
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


async def _settle_answered(call: Call, attempt: Attempt, answer: Answer) -> LLMResponse:
    if answer.usage.source != "provider" and not answer.images:
        count, messages = provider.count_tokens, provider.with_pictures(attempt.candidate, call.request)
        usage = await anyio.to_thread.run_sync(count, attempt.candidate, messages, answer.text)
        answer = replace(answer, usage=usage)
    attempt.answer = answer
    await _settle(call, attempt, answer, "ok", calls=1)
    return response_of(call, attempt, answer)


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
    await _settle(call, attempt, counted, "failed")
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
        finalise(call, attempt, Answer(text, None, usage), "interrupted" if by_provider else "cancelled", **counts)
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
    call: Call, attempt: Attempt, answer: Answer | None, status: str, *, calls: int = 0, failed_calls: int = 0
) -> None:
    """Make the attempt's row final, and see it into the ledger."""
    finalise(call, attempt, answer, status, calls=calls, failed_calls=failed_calls)
    if call.ledger is not None:
        await call.ledger.write("settle", attempt.row, call.scope.labels)
