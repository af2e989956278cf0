"""Holds the upper bound of an attempt in the ledger before it is sent; cuts the answer to what a budget has left."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial

from shared.calls.call import Attempt, Call, draft_of, may_cut
from shared.errors import BudgetExceeded, DeadlineExceeded
from shared.internal.money import to_usd
from shared.ledger import Admission, BudgetStatus, LeastBound, committed
from shared.prices import Bound, highest_bound
from shared.providers import limited, pin, request_with
from shared.types import Request

logger = logging.getLogger("agentswarm_tools")

# Seconds that a row may still take to be committed once the deadline has passed.
GRACE_S = 0.03
# How often the answer is cut again if other calls take the rest of the budget in the meantime.
_MAX_CUTS = 5
_MAX_WARNED = 1000
_CENT = 10_000_000
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
    least: LeastBound | None = partial(_shortest_bound, attempt, call.request)
    cuts = 0
    while True:
        admission = await _start(call, attempt, least, is_last)
        if admission.refused_by is None:
            if attempt.candidate.rates.source == "unknown":
                _warn_unpriced(attempt.candidate.requested)
            if admission.statuses:
                _bind(attempt)
            return
        if admission.refused is not None:
            attempt.row = admission.refused
            raise _exceeded(call, attempt, admission.refused_by, admission.reason or "")
        if admission.reason == "hold_max":
            _hold_most(attempt)
            continue
        cuts += 1
        if not _cut(attempt, admission.left_nano) or cuts == _MAX_CUTS:
            least = None


@lru_cache(maxsize=_MAX_WARNED)
def _warn_unpriced(model: str) -> None:
    """Warn once for each model."""
    logger.warning(
        "The price of %s is unknown: its calls are recorded without a cost, and no budget counts them.", model
    )


def _cut(attempt: Attempt, left_nano: int) -> bool:
    """Shorten the answer to what is left; returns False if even the shortest useful answer does not fit."""
    bound = attempt.drafted.bound
    tokens = bound.affordable(left_nano)
    if tokens is None or tokens < bound.least_output:
        return False
    attempt.cut_to = tokens
    _limit(attempt, tokens)
    attempt.row = attempt.row.with_bound(attempt.drafted.bound.nano())
    return True


def _limit(attempt: Attempt, tokens: int) -> None:
    """Ask for an answer of at most so many tokens."""
    attempt.request = request_with(attempt.request, tokens)
    attempt.drafted = limited(attempt.candidate, attempt.request, attempt.drafted, tokens)


def _hold_most(attempt: Attempt) -> None:
    """Hold what the provider's most expensive models would cost, since nothing else is known."""
    answers = attempt.request.params.get("n", 1)
    bound = highest_bound(attempt.candidate, answers if isinstance(answers, int) else 1)
    limits = (attempt.request.params.get(name) for name in ("max_tokens", "max_completion_tokens"))
    output = max((limit for limit in limits if isinstance(limit, int)), default=bound.output)
    attempt.drafted = replace(attempt.drafted, bound=replace(bound, output=output))
    attempt.row = attempt.row.with_bound(attempt.drafted.bound.nano())


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


def _bind(attempt: Attempt) -> None:
    """
    Under a budget, send the maximum length of the answer and the standard service tier.

    The bound only holds if the provider enforces the one and serves the other.
    """
    candidate, bound = attempt.candidate, attempt.drafted.bound
    if candidate.rates.source == "free" or attempt.drafted.problem is not None:
        return
    tokens = bound.output if bound.most_output is None else min(bound.output, bound.most_output)
    is_known = bound.unknown is None and candidate.max_output_tokens is not None and tokens >= bound.least_output
    if may_cut(attempt.request) and is_known:
        _limit(attempt, tokens)
    else:
        pin(candidate, attempt.drafted)


def _exceeded(call: Call, attempt: Attempt, status: BudgetStatus, reason: str) -> BudgetExceeded:
    terms, name, bound = status.limit.budget, attempt.candidate.requested, attempt.drafted.bound
    hint: str | None
    if reason == "unknown price":
        message, hint = _without_bound(name, bound.unknown)
    elif reason != "no room":
        message = f"A budget applies, and {reason}"
        hint = "Set the clock that is wrong. If it was the other one, run: agentswarm-tools ledger repair."
    elif not call.scope.may_see(status.limit):
        message, hint = f"A budget of the operator's has no room for {name}", _model_that_fits(call, status)
    else:
        bound_nano, condition = attempt.row.bound_nano, ""
        if may_cut(call.request):
            bound_nano = bound.nano(bound.least_output)
            condition = f" with an answer of {bound.least_output} tokens"
        message = (
            f"{name} could cost ${to_usd(bound_nano):.6f}{condition}, and ${to_usd(status.left_nano):.6f} is left"
            f" of {status}, with running calls counted at their upper bound{_reserved(status, bound_nano)}"
        )
        hint = _model_that_fits(call, status)
    if reason in ("unknown price", "no room"):
        _explain_bounds()
    return BudgetExceeded(
        message,
        provider=attempt.candidate.provider,
        model=name,
        hint=hint,
        action="next" if terms.on_exceed == "downgrade" else "raise",
    )


def _without_bound(name: str, unknown: str | None) -> tuple[str, str]:
    """The message and the hint for a request whose bound is unknown."""
    if unknown in (None, "price"):
        return (
            f"The price of {name} is unknown, and a budget applies",
            "Use a model with a known price, or state one with ModelConfig or AGENTSWARM_PRICES.",
        )
    if unknown == "max_tokens":
        return f"The longest answer of {name} is unknown, and a budget applies", "Set max_tokens."
    return (
        f"The upper bound of a request with {unknown} is unknown, and a budget applies",
        'Leave it out, or let it pass uncounted with on_unknown_price="allow".',
    )


@lru_cache(maxsize=1)
def _explain_bounds() -> None:
    """Say once for each process why a request may be refused that was not refused before."""
    logger.warning(
        "A budget refused a request. Budgets hold more for each request than before 0.1.0: the bound now covers "
        "everything in the body that is sent, such as schemas, searches, audio and images. See docs/budgets.md."
    )


def _reserved(status: BudgetStatus, bound_nano: int | None) -> str:
    """What is reserved, where the attempt would fit if that were released; else nothing."""
    if not status.reserved_nano or (bound_nano or 0) > status.left_nano + status.reserved_nano:
        return ""
    requests = "1 request" if status.reserved_requests == 1 else f"{status.reserved_requests} requests"
    reserved, limit = (f"${to_usd(nano):,.2f}" for nano in (status.reserved_nano, status.limit.budget.limit_nano))
    if status.reserved_nano < _CENT:
        reserved = f"${to_usd(status.reserved_nano):.6f}"
    return f"; {reserved} of {limit.removesuffix('.00')} is reserved for {requests} of unknown cost (ledger release)"


def _model_that_fits(call: Call, status: BudgetStatus) -> str | None:
    """A hint that names the most expensive of the caller's models that would fit; None if there is none."""
    drafts = {each.requested: draft_of(each, call.request) for each in call.plan.candidates}
    bounds = {name: _least(each.bound, call.request) for name, each in drafts.items() if each.problem is None}
    fitting = {name: bound for name, bound in bounds.items() if bound is not None and bound <= status.left_nano}
    return f"{max(fitting, key=lambda name: fitting[name])} would fit." if fitting else None


def _shortest_bound(attempt: Attempt, request: Request) -> int | None:
    """The bound of the shortest answer worth paying for; None if the answer cannot be cut."""
    return _least(attempt.drafted.bound, request) if may_cut(request) else None


def _least(bound: Bound, request: Request) -> int | None:
    """The bound of the shortest useful answer, or of the whole answer if it must not be cut."""
    return bound.nano(bound.least_output if may_cut(request) else None)


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
