"""What was answered in a window, by model and tier: the counts that estimates of savings are made of."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from shared.ledger.query import Filter, Window, conditions
from shared.ledger.schema import attempt
from shared.ledger.store import Ledger

_REJECTED = "rejected_response"
_ANSWERED = ("ok", "reported", _REJECTED)


@dataclass(frozen=True, slots=True)
class Answers:
    """The priced answers of one model at one tier: their tokens and cost, and how many the caller rejected."""

    model: str
    service_tier: str | None
    answers: int
    rejected: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    cost_nano: int
    accepted_prompt_tokens: int
    accepted_completion_tokens: int


def answers_of(ledger: Ledger, span: Window, which: Filter) -> list[Answers]:
    """
    The priced answers to requests for text.

    Raises:
        StoreError: The ledger cannot be read.
    """
    accepted = attempt.c.status != _REJECTED
    prompt, completion = attempt.c.prompt_tokens, attempt.c.completion_tokens
    counts = (
        sa.func.count(),
        sa.func.sum(sa.case((accepted, 0), else_=1)),
        *(sa.func.sum(sa.func.coalesce(column, 0)) for column in (
            prompt, completion, attempt.c.cached_tokens, attempt.c.cache_write_tokens, attempt.c.cost_nano,
        )),
        *(sa.func.sum(sa.case((accepted, sa.func.coalesce(column, 0)), else_=0)) for column in (prompt, completion)),
    )  # fmt: skip
    query = sa.select(attempt.c.model, attempt.c.service_tier, *counts).where(
        attempt.c.ts_us >= span.since_us,
        attempt.c.ts_us < span.until_us,
        attempt.c.status.in_(_ANSWERED),
        attempt.c.operation != "image_generation",
        attempt.c.cost_nano.is_not(None),
        *conditions(which),
    )
    with ledger.reading() as connection:
        rows = connection.execute(query.group_by(attempt.c.model, attempt.c.service_tier)).all()
    return [Answers(model, tier, *map(int, numbers)) for model, tier, *numbers in rows]
