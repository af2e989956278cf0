"""Holds the upper bound of an attempt in the ledger before it is sent; cuts the answer to what a budget has left."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial

from shared.calls.call import Attempt, Call, bound_of
from shared.errors import BudgetExceeded, DeadlineExceeded
from shared.internal.money import to_usd
from shared.ledger import Admission, BudgetStatus, LeastBound, committed
from shared.prices import affordable_output
from shared.types import Candidate, Request, TaskType

logger = logging.getLogger("agentswarm_tools")

# Seconds that a row may still take to be committed once the deadline has passed.
GRACE_S = 0.03
# A shorter answer than this is not worth paying for.
MIN_OUTPUT_TOKENS = 64
# How often the answer is cut again if other calls take the rest of the budget in the meantime.
_MAX_CUTS = 5
_MAX_WARNED = 1000
_warned: set[tuple[str, int]] = set()


async def hold(call: Call, attempt: Attempt, *, is_last: bool) -> None:
    """
    Commit the attempt's row, with the most that it can cost, before anything is sent.

    If a budget has less left than that, the answer is cut to what is left, unless the caller set its length.

    Args:
        is_last: Whether a refusal of this attempt ends the call even under a budget with on_exceed="downgrade".

    Raises:
        BudgetExceeded: A budget has no room for the attempt; the refusal is recorded.

        DeadlineExceeded: The ledger was not ready before the call's deadline.

        StoreError: A budget applies, and the ledger cannot be written.
    """
    least: LeastBound | None = partial(_shortest_bound, attempt.candidate, call.request)
    cuts = 0
    while True:
        admission = await _start(call, attempt, least, is_last)
        if admission.refused_by is None:
            if attempt.candidate.rates.source == "unknown":
                _warn_unpriced(attempt.candidate.requested)
            _bind(attempt, admission)
            return
        if admission.refused is not None:
            attempt.row = admission.refused
            raise _exceeded(call, attempt, admission.refused_by, admission.reason or "")
        cuts += 1
        if not _cut(call, attempt, admission.left_nano) or cuts == _MAX_CUTS:
            least = None


@lru_cache(maxsize=_MAX_WARNED)
def _warn_unpriced(model: str) -> None:
    """Warn once for each model."""
    logger.warning(
        "The price of %s is unknown: its calls are recorded without a cost, and no budget counts them.", model
    )


def _cut(call: Call, attempt: Attempt, left_nano: int) -> bool:
    """Shorten the answer to what is left; returns False if even the shortest useful answer does not fit."""
    tokens = affordable_output(attempt.candidate, call.request, left_nano)
    if tokens is None or tokens < MIN_OUTPUT_TOKENS:
        return False
    attempt.cut_to = tokens
    attempt.request = _with_output(attempt.request, tokens)
    attempt.row = attempt.row.with_bound(bound_of(attempt.candidate, attempt.request))
    return True


async def _start(call: Call, attempt: Attempt, least: LeastBound | None, is_last: bool) -> Admission:
    if call.ledger is None:
        return Admission()
    write = call.ledger.start(attempt.row, call.limits, least=least, is_last=is_last, is_part=call.is_part)
    try:
        return await committed(write, patience=max(call.seconds_left(), GRACE_S))
    except TimeoutError:
        raise DeadlineExceeded(
            "The deadline passed while the ledger was busy",
            provider=attempt.candidate.provider,
            model=attempt.candidate.requested,
        ) from None


def _bind(attempt: Attempt, admission: Admission) -> None:
    """Under a budget, send the maximum length of the answer: the bound only holds if the provider enforces it."""
    candidate = attempt.candidate
    if not admission.statuses or candidate.rates.source == "free" or not _may_cut(attempt.request):
        return
    max_output = affordable_output(candidate, attempt.request, attempt.row.bound_nano or 0)
    if max_output is not None and max_output >= MIN_OUTPUT_TOKENS:
        attempt.request = _with_output(attempt.request, max_output)


def _may_cut(request: Request) -> bool:
    """Whether we may limit the length of the answer: the caller did not."""
    limits = (request.params.get(name) for name in ("max_tokens", "max_completion_tokens"))
    return request.task is not TaskType.IMAGE_GENERATION and all(limit is None for limit in limits)


def _with_output(request: Request, tokens: int) -> Request:
    return replace(request, params={**request.params, "max_tokens": tokens})


def _exceeded(call: Call, attempt: Attempt, status: BudgetStatus, reason: str) -> BudgetExceeded:
    terms, name = status.limit.budget, attempt.candidate.requested
    hint: str | None = None
    if reason == "unknown price" and call.request.params.get("extra_body"):
        message = "The upper bound of a request with extra_body is unknown, and a budget applies"
        hint = 'Leave it out, or let it pass uncounted with on_unknown_price="allow".'
    elif reason == "unknown price":
        message = f"The price of {name} is unknown, and a budget applies"
        hint = "Use a model with a known price, or state one with ModelConfig or AGENTSWARM_PRICES."
    elif reason != "no room":
        message, hint = f"A budget applies, and {reason}", "Set this machine's clock."
    elif not call.scope.may_see(status.limit):
        message, hint = f"A budget of the operator's has no room for {name}", _model_that_fits(call, status)
    else:
        bound_nano, condition = attempt.row.bound_nano, ""
        if _may_cut(call.request):
            bound_nano = _least_bound(attempt.candidate, call.request)
            condition = f" with an answer of {MIN_OUTPUT_TOKENS} tokens"
        message = (
            f"{name} could cost ${to_usd(bound_nano):.6f}{condition}, and ${to_usd(status.left_nano):.6f} is left"
            f" of {status}, with running calls counted at their upper bound"
        )
        hint = _model_that_fits(call, status)
    return BudgetExceeded(
        message,
        provider=attempt.candidate.provider,
        model=name,
        hint=hint,
        action="next" if terms.on_exceed == "downgrade" else "raise",
    )


def _model_that_fits(call: Call, status: BudgetStatus) -> str | None:
    """A hint that names the most expensive of the caller's models that would fit; None if there is none."""
    bounds = {candidate.requested: _least_bound(candidate, call.request) for candidate in call.plan.candidates}
    fitting = {name: bound for name, bound in bounds.items() if bound is not None and bound <= status.left_nano}
    return f"{max(fitting, key=lambda name: fitting[name])} would fit." if fitting else None


def _shortest_bound(candidate: Candidate, request: Request) -> int | None:
    """The bound of the shortest answer worth paying for; None if the answer cannot be cut."""
    return _least_bound(candidate, request) if _may_cut(request) else None


def _least_bound(candidate: Candidate, request: Request) -> int | None:
    """The bound of the shortest useful answer, or of the whole answer if it must not be cut."""
    return bound_of(candidate, _with_output(request, MIN_OUTPUT_TOKENS) if _may_cut(request) else request)


@lru_cache(maxsize=1)
def warn_untracked() -> None:
    """Warn once for each process that cost tracking is off."""
    logger.warning("Cost tracking is off: calls are not recorded, and budgets stored in the ledger do not apply.")


def warn_when_near(statuses: Sequence[BudgetStatus]) -> None:
    """Warn once, for each budget and window, that the budget is nearly used up."""
    for each in statuses:
        terms, name = each.limit.budget, str(each)
        near = each.counted_nano >= terms.warn_at * terms.limit_nano
        if near and (name, each.since_us) not in _warned:
            if len(_warned) >= _MAX_WARNED:
                _warned.clear()
            _warned.add((name, each.since_us))
            logger.warning("A budget is nearly used up: $%.6f is left of %s.", to_usd(each.left_nano), name)
