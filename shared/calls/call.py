"""One call and its attempts: their state, their rows, and the response that the caller gets."""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from shared.budget import Limit
from shared.errors import InvalidRequest, Outcome
from shared.internal.clock import new_id
from shared.internal.money import to_usd
from shared.internal.pending import RecordedCall
from shared.internal.spend import SpendCounter
from shared.ledger import COUNTS, AttemptRow, Ledger, Status
from shared.models import Plan, image_request
from shared.prices import FREE_BOUND, UNKNOWN, Bound, Cost, all_units, image_bound, price
from shared.providers import Draft, Exchange, Network, ResponseStream, draft, request_with
from shared.scope import Scope
from shared.types import Answer, Candidate, LLMResponse, Rates, Request, Served, TaskType, Usage

logger = logging.getLogger("agentswarm_tools")

# How long after its time-out an attempt without an outcome is considered dead.
_LEASE_S = 900
# A million US$: no request costs more, and the sums of many stay within 64 bits.
_MAX_COST_NANO = 10**15
# What an answer contains besides its text: what continues the conversation, sources, sound, images, probabilities.
_BESIDE_TEXT = (
    "tool_calls",
    "function_call",
    "reasoning_content",
    "reasoning_details",
    "thinking_blocks",
    "refusal",
    "annotations",
    "citations",
    "search_results",
    "grounding_metadata",
    "citation_metadata",
    "url_context_metadata",
    "provider_specific_fields",
    "executed_tools",
    "context",
    "audio",
    "logprobs",
)


@dataclass(slots=True)
class Progress:
    """
    The counts of one call, shared by its parts: a call for images may make several requests at once.

    A call must be counted once, however many rows it has. Rows are written one by one while other parts are still
    running, so each row takes its share of the call's counts when it ends.
    """

    attempts: int = 0
    open_parts: int = 1
    is_answered: bool = False
    is_unpriced: bool = False

    def next_attempt(self) -> int:
        """The number of the next attempt, from 1."""
        self.attempts += 1
        return self.attempts

    def part_answered(self) -> int:
        """Count a part as answered; returns its share of answered calls: 1 for the first, else 0."""
        self.open_parts -= 1
        share, self.is_answered = int(not self.is_answered), True
        return share

    def part_failed(self) -> int:
        """Count a part as failed; returns its share of failed calls: 1 for the last if none was answered, else 0."""
        self.open_parts -= 1
        return int(self.open_parts == 0 and not self.is_answered)

    def unpriced(self) -> int:
        """Count an attempt of unknown cost; returns its share of unpriced calls: 1 for the first, else 0."""
        share, self.is_unpriced = int(not self.is_unpriced), True
        return share


# Gives the nano-dollars that an attempt reserves beyond its cost, from that cost; None where either is unknown.
type Reserve = Callable[[int | None], int | None]

# Processes an answer before its attempt is settled; returns metadata for the row.
type Finish = Callable[[Attempt, Answer], Awaitable[Mapping[str, Any] | None]]

# Called once a call has ended and all its attempts are settled, with what it raises; must not raise itself.
type OnEnd = Callable[[Call, BaseException | None], None]


@dataclass(slots=True)
class Call:
    """One call in progress, or one of the parallel requests of a call for images."""

    request: Request
    plan: Plan
    scope: Scope
    ledger: Ledger | None
    timeout: float
    max_retries: int
    spend_counter: SpendCounter
    network: Network
    limits: tuple[Limit, ...] = ()
    max_concurrency: int | None = None
    deadline_at: float = math.inf
    call_id: uuid.UUID = field(default_factory=new_id)
    attempts: list[Attempt] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)
    is_part: bool = False
    # Whether a row already counts the call, or this part of it, as answered or failed.
    is_counted: bool = False
    finish: Finish | None = None
    on_end: OnEnd | None = None
    # The largest context window, in tokens, that turned out to be too small for the input.
    too_small: int = 0

    def seconds_left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline_at - time.monotonic()

    @property
    def cost_nano(self) -> int:
        """Nano-dollars known to be spent on the call so far."""
        return sum(attempt.row.cost_nano or 0 for attempt in self.attempts)


@dataclass(slots=True)
class Attempt:
    """One request for the call: its row in the ledger, and the stream of its response."""

    candidate: Candidate
    request: Request
    row: AttemptRow
    release: Callable[[], None]
    exchange: Exchange
    drafted: Draft
    items: ResponseStream[Any] | None = None
    # Output tokens that a budget can pay for, if that is less than the model could write.
    cut_to: int | None = None
    began: float = field(default_factory=time.monotonic)
    first_chunk_us: int | None = None
    text: list[str] = field(default_factory=list)
    outcome: Outcome = "unknown"
    answer: Answer | None = None
    images: list[dict[str, Any]] = field(default_factory=list)
    # What the row keeps about the provider's cache of prompts.
    note: Mapping[str, Any] = field(default_factory=dict)

    def elapsed_us(self) -> int:
        """Microseconds since the request was sent."""
        return round((time.monotonic() - self.began) * 1e6)


def start_row(call: Call, candidate: Candidate, bound: Bound) -> AttemptRow:
    """The row of an attempt that is about to start."""
    return AttemptRow.started(
        candidate,
        call.scope,
        call_id=call.call_id,
        attempt_number=call.progress.next_attempt(),
        operation=call.request.task.value,
        stream=call.request.stream,
        bound_nano=bound.nano(),
        lease_s=_LEASE_S + call.timeout,
    )


def settle_row(
    call: Call,
    attempt: Attempt,
    status: Status,
    answer: Answer | None,
    *,
    calls: int = 0,
    failed_calls: int = 0,
    error_type: str | None = None,
    http_status: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    reserve: Reserve | None = None,
    is_final: bool = True,
) -> None:
    """
    Make the attempt's row final, with its price.

    Args:
        reserve: What it reserves beyond its cost, if the cost of all of it is not known.

        is_final: False only looks at how the row would be, and counts nothing.
    """
    rates = _rates_of(attempt, answer)
    nano, source, is_lower_bound = _cost_of(call, attempt, answer, rates)
    if nano is not None and nano > _MAX_COST_NANO:
        # More than the ledger's sums can hold; kept as a text, and counted as unknown.
        metadata = {**(metadata or {}), "cost_beyond_range": f"{nano / 1e9:.6g} US$"}
        nano, source, is_lower_bound = None, "unknown", False
    if answer is not None and answer.region is not None:
        metadata = {**(metadata or {}), "region": answer.region}  # it has prices of its own
    reserved_nano: int | None = None
    if reserve is not None and source != "free":
        is_lower_bound, reserved_nano = nano is not None, reserve(nano)
    if call.request.task is TaskType.IMAGE_GENERATION and status == "failed" and attempt.outcome == "unknown":
        status = "unsettled"  # the provider may have made the images, and charged for them
    attempt.row = attempt.row.settled(
        status,
        cost_nano=nano,
        cost_source=source,
        usage=None if answer is None else answer.usage,
        duration_us=attempt.elapsed_us(),
        first_chunk_us=attempt.first_chunk_us,
        calls=calls,
        failed_calls=failed_calls,
        unpriced_calls=call.progress.unpriced() if nano is None and is_final else 0,
        finish_reason=None if answer is None else answer.finish_reason,
        response_model=None if answer is None else answer.response_model,
        response_id=None if answer is None else answer.response_id,
        error_type=error_type,
        http_status=attempt.exchange.status if http_status is None else http_status,
        metadata={**(metadata or {}), **attempt.note} or None,
        units=None if answer is None else all_units(answer.usage),
        service_tier=None if answer is None else answer.service_tier,
        price_version=rates.version,
        cost_is_lower_bound=is_lower_bound,
        reserved_nano=reserved_nano,
    )
    if is_final:
        call.spend_counter.add(nano or 0, call.scope.spend)
    if is_final and logger.isEnabledFor(logging.DEBUG):
        logger.debug("%s", _log_line(attempt))


def _log_line(attempt: Attempt) -> str:
    """One attempt for the log: its model, how it ended, how long it took, what it used and cost; never its content."""
    row = attempt.row
    tokens = "/".join("?" if count is None else str(count) for count in (row.prompt_tokens, row.completion_tokens))
    cost = "unknown cost" if row.cost_nano is None else f"${to_usd(row.cost_nano):.6f}"
    why = "" if row.error_type is None else f" ({row.error_type}, HTTP {row.http_status or '-'})"
    ms = (row.duration_us or 0) // 1000
    return f"{row.model}: {row.status}{why} in {ms} ms, {tokens} tokens in/out, {cost}, call {row.call_id}"


def needs_count(answer: Answer) -> bool:
    """Whether counts of our own fill what the provider did not report; what it did is never replaced."""
    usage = answer.usage
    if answer.images:
        return False
    if usage.source == "provider":
        return None in (usage.prompt_tokens, usage.completion_tokens)
    return not answer.reports_usage


def _rates_of(attempt: Attempt, answer: Answer | None, model: str | None = None) -> Rates:
    """The rates of the answer as it was served, or of another model that has helped with it."""
    candidate, when = attempt.candidate, datetime.fromtimestamp(attempt.row.ts_us / 1e6, UTC)
    if answer is None or candidate.rates_as is None:
        return candidate.rates if model is None else UNKNOWN
    if model is not None:
        return candidate.rates_as(Served(model=model, when=when, is_other=True))
    if answer.service_tier is answer.region is None and answer.response_model in (None, candidate.wire_model):
        return candidate.rates
    return candidate.rates_as(Served(answer.response_model, answer.service_tier, answer.region, when))


def _cost_of(call: Call, attempt: Attempt, answer: Answer | None, rates: Rates) -> Cost:
    """The attempt's cost in nano-dollars (None when unknown), and its source."""
    if attempt.outcome in ("not_sent", "rejected"):
        return Cost(0, "free")
    if answer is None:
        nano, source, is_lower_bound = Cost(None, "unknown")
    else:
        nano, source, is_lower_bound = price(answer, rates, lambda model: _rates_of(attempt, answer, model))
    bound = attempt.row.bound_nano
    is_image = call.request.task is TaskType.IMAGE_GENERATION
    if nano is None and is_image and attempt.outcome == "completed" and bound is not None:
        return Cost(bound, "bound")  # charged, as the provider has answered, but with nothing that tells how much
    return Cost(nano, source, is_lower_bound)


def draft_of(candidate: Candidate, request: Request, *, under_budget: bool = False) -> Draft:
    """
    The request as it will be sent, and the most that one attempt can cost.

    Args:
        under_budget: Whether a budget is known to apply: then the request asks for the standard service tier, and says
            how long the answer may be.
    """
    if candidate.rates.source == "free":
        return Draft(request, FREE_BOUND)
    if request.task is TaskType.IMAGE_GENERATION:
        return Draft(request, _bound_of_images(candidate, request))
    if under_budget and may_cut(request) and candidate.max_output_tokens is not None:
        request = request_with(request, candidate.max_output_tokens)
    return draft(candidate, request, pinned=under_budget)


def bound_of(candidate: Candidate, request: Request) -> int | None:
    """The most that one attempt can cost, in nano-dollars; None when no bound is known, or it cannot be sent."""
    drafted = draft_of(candidate, request)
    return None if drafted.problem is not None else drafted.bound.nano()


def may_cut(request: Request) -> bool:
    """Whether we may limit the length of the answer: the caller did not."""
    limits = (request.params.get(name) for name in ("max_tokens", "max_completion_tokens"))
    return request.task is not TaskType.IMAGE_GENERATION and all(limit is None for limit in limits)


def _bound_of_images(candidate: Candidate, request: Request) -> Bound:
    try:
        return image_bound(candidate, request, image_request(candidate, request))
    except InvalidRequest:
        return Bound(unknown="price")


def response_of(call: Call, attempt: Attempt, answer: Answer, left_nano: int | None = None) -> LLMResponse:
    """
    The response that the caller gets.

    Args:
        left_nano: Nano-dollars left of the tightest budget that the caller may see; None when there is none.
    """
    row = attempt.row
    if call.ledger is not None and not call.is_part:
        total_nano = None if row.cost_nano is None else call.cost_nano
        call.scope.pending.add(
            RecordedCall(
                call.call_id,
                row.attempt_id,
                attempt.candidate.model,
                total_nano,
                names_of(call, attempt.candidate, answer.response_model),
                _usage(answer.usage),
                call.ledger.name,
            )
        )
    return _response_of(call, attempt, answer, left_nano)


def provisional_response(call: Call, attempt: Attempt, answer: Answer) -> LLMResponse:
    """The response as the caller would get it, for the caller's `fallback_on`; nothing is counted yet."""
    row = attempt.row
    settle_row(call, attempt, "ok", answer, is_final=False)
    response = _response_of(call, attempt, answer, None)
    attempt.row = row
    return response


def _response_of(call: Call, attempt: Attempt, answer: Answer, left_nano: int | None) -> LLMResponse:
    row, candidate = attempt.row, attempt.candidate
    cost = to_usd(None if row.cost_nano is None else call.cost_nano)
    requested, choice = call.plan.requested, call.plan.choice
    metadata: dict[str, Any] = {
        "requested_model": requested,
        "response_model": answer.response_model,
        "fallback_used": candidate.requested != choice.candidates[0].requested
        if choice
        else candidate.requested != requested,
        "attempts": [summary_of(a) for a in call.attempts],
        "finish_reason": answer.finish_reason,
        "response_id": answer.response_id,
        "call_id": str(call.call_id),
        "cost_source": row.cost_source,
        "cost_is_lower_bound": any(a.row.cost_is_lower_bound for a in call.attempts),
        "service_tier": row.service_tier,
        "usage_source": row.usage_source,
        "price_version": row.price_version,
        "guarded": candidate.guarded,
    }
    if choice is not None:
        metadata["selection"] = choice.as_metadata()
    if candidate.note:
        metadata["note"] = candidate.note
    if attempt.cut_to is not None:
        metadata["output_cut_to_tokens"] = attempt.cut_to
    if left_nano is not None:
        metadata["remaining_budget_usd"] = to_usd(left_nano)
    metadata |= {name: answer.message[name] for name in _BESIDE_TEXT if answer.message.get(name)}
    if made := answer.message.get("images"):
        metadata["answer_images"] = made  # in a call with images, "images" are those that were sent
    return LLMResponse(
        content=answer.text,
        model=candidate.model,
        provider=candidate.provider,
        usage=_usage(answer.usage),
        cost=cost,
        latency_ms=(row.duration_us or 0) / 1000,
        metadata=metadata,
        images=attempt.images,
    )


def names_of(call: Call, candidate: Candidate, answered: str | None) -> frozenset[str]:
    """Every name by which an event may call the model that answered, in lower case."""
    names = [call.plan.requested, candidate.requested, candidate.model]
    for name in (candidate.wire_model, answered):
        names += [name, f"{candidate.provider}/{name}"] if name else []
    return frozenset(name.strip().lower() for name in names)


def summary_of(attempt: Attempt) -> dict[str, Any]:
    """The attempt, for a response's metadata."""
    row = attempt.row
    return {
        "model": row.model,
        "provider": row.provider,
        "status": row.status,
        "error_type": row.error_type,
        "http_status": row.http_status,
        "cost": to_usd(row.cost_nano),
        "latency_ms": (row.duration_us or 0) / 1000,
    }


def _usage(usage: Usage) -> dict[str, int]:
    """The reported or counted numbers of tokens; unknown ones are left out."""
    counts = {name: count for name in COUNTS if (count := getattr(usage, name)) is not None}
    if {"prompt_tokens", "completion_tokens"} <= counts.keys():
        counts["total_tokens"] = counts["prompt_tokens"] + counts["completion_tokens"]
    return counts
