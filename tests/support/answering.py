"""A model that gives prepared answers, asked as the tools ask for an answer that matches a schema."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from shared.errors import ResponseRejected
from shared.runs.answer_schema import Ask, Mismatch
from shared.types import FallbackOn, LLMResponse, WantedSchema


def ask_in_turn(answers: Sequence[LLMResponse | Exception], asked: list[Any] | None = None) -> Ask:
    """Gives these answers in turn, or raises them; an answer that `fallback_on` rejects is raised as the flow does."""
    left = list(answers)

    async def ask(
        mismatch: Mismatch | None, wanted: WantedSchema | None, fallback_on: FallbackOn | None
    ) -> LLMResponse:
        if asked is not None:
            asked.append((mismatch, wanted))
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        reason = None if fallback_on is None else fallback_on(answer)
        reason = await reason if inspect.isawaitable(reason) else reason
        if reason:
            rejected = ResponseRejected("fallback_on rejected the answer", outcome="completed", cost=answer.cost)
            rejected.reason, rejected.response = str(reason), answer
            raise rejected
        return answer

    return ask
