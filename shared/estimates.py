"""What a call would cost: at most, and as things have gone so far."""

from __future__ import annotations

import time

from shared import provider
from shared.calls import Call
from shared.ledger_query import average_output
from shared.pricing import to_usd, token_cost, upper_bound
from shared.types import Candidate, Estimate, Usage

_DAYS_US = 30 * 86_400 * 1_000_000


def estimate(call: Call, candidate: Candidate) -> Estimate:
    """The most that one attempt costs, and what it costs when its answer is as long as the last month's were."""
    counted = provider.count_tokens(candidate, call.request.messages, "").prompt_tokens
    asked = [call.request.params.get(name) for name in ("max_completion_tokens", "max_tokens")]
    output = _usual_output(call, candidate)
    if output is not None:
        output = min([output, *(most for most in asked if isinstance(most, int))])
    expected = token_cost(Usage(prompt_tokens=counted, completion_tokens=output), candidate.rates)
    return Estimate(
        model=candidate.requested,
        upper_bound=to_usd(upper_bound(candidate, call.request)),
        expected=to_usd(expected),
        prompt_tokens=counted,
        completion_tokens=output,
    )


def _usual_output(call: Call, candidate: Candidate) -> int | None:
    """Output tokens of the model's answers in the last 30 days, on average; None where the ledger has none."""
    if call.ledger is None:
        return None
    return average_output(call.ledger, candidate.model, time.time_ns() // 1000 - _DAYS_US)
