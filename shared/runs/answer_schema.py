"""JSON Schemas from agents: checked, and compared with a model's answer, within limits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from shared.errors import BadResponse, LLMError, ResponseRejected
from shared.internal.fair_pool import FairPool
from shared.runs.json_schema import MAX_SCHEMA_CHARS, TooMuchWork, first_problem, read_json, read_schema
from shared.scope import current_scope
from shared.types import FallbackOn, LLMResponse

__all__ = ["MAX_SCHEMA_CHARS", "Matched", "Mismatch", "ask_until_match", "check_schema", "schema_instruction"]

SCHEMA_HINT = (
    'response_schema must be a JSON Schema as text, such as {"type": "object", "properties": '
    '{"name": {"type": "string"}}, "required": ["name"]}, without pattern and without $ref'
)
_threads = FairPool("agentswarm-schemas", threads=2, per_owner=1)


def check_schema(schema: str | None) -> str | None:
    """
    The schema, unchanged.

    Raises:
        ValueError: It is not a JSON Schema, or uses a keyword that is not allowed.
    """
    if schema is not None:
        try:
            read_schema(schema)
        except (ValueError, TooMuchWork):
            raise ValueError(SCHEMA_HINT) from None
    return schema


@dataclass(frozen=True, slots=True)
class Mismatch:
    """An answer that does not match the schema, and why."""

    answer: str
    problem: str

    def correction(self) -> list[dict[str, str]]:
        """The answer and what is wrong with it, as the next messages of the conversation."""
        return [
            {"role": "assistant", "content": self.answer or "(nothing)"},
            {"role": "user", "content": f"That does not match the schema: {self.problem}. Answer with the JSON only."},
        ]


@dataclass(frozen=True, slots=True)
class Matched:
    """An answer that matches the schema, the JSON in it, and the US$ for all calls that it took."""

    response: LLMResponse
    data: Any
    cost: float


async def ask_until_match(
    ask: Callable[[Mismatch | None, FallbackOn | None], Awaitable[LLMResponse]], schema: str
) -> Matched:
    """
    Ask a model for JSON; if its answer does not match the schema, the next model, or the only one a second time.

    Args:
        ask: Makes the call; gets the mismatch of the previous answer, None the first time, and when to ask the next
            model.

    Raises:
        BadResponse: The second answer does not match either, or one cannot be compared within the limits; its `cost`
            includes both.

        LLMError: A call failed; its `cost` includes the answers before it.
    """

    async def reject(response: LLMResponse) -> str | None:
        return (await _matched(response, schema, response.cost))[1]

    try:
        first = await ask(None, reject)
    except LLMError as error:
        rejected = [each for each in getattr(error, "failures", (error,)) if isinstance(each, ResponseRejected)]
        if len(rejected) != 1:
            raise
        return await _second(ask, rejected[0], error.cost, schema)
    return Matched(first, (await _matched(first, schema, first.cost))[0], first.cost)


async def _second(
    ask: Callable[[Mismatch | None, FallbackOn | None], Awaitable[LLMResponse]],
    first: ResponseRejected,
    cost: float,
    schema: str,
) -> Matched:
    answer = first.response.content if first.response is not None else ""
    try:
        second = await ask(Mismatch(answer, first.reason), None)
    except LLMError as error:
        error.cost += cost
        raise
    data, problem = await _matched(second, schema, cost + second.cost)
    if problem is None:
        return Matched(second, data, cost + second.cost)
    raise BadResponse(
        f"The answer does not match response_schema: {problem}",
        provider=second.provider,
        model=second.model,
        outcome="completed",
        cost=cost + second.cost,
        hint="Use a stronger model or a simpler schema.",
    )


def schema_instruction(schema: str) -> str:
    """The instruction for a model to answer with JSON that matches the schema."""
    return f"Answer with JSON only, matching this JSON Schema:\n{schema}"


async def _matched(response: LLMResponse, schema: str, cost: float) -> tuple[Any, str | None]:
    """
    `match_schema` off the event loop, in a thread that no other tenant has to wait for.

    Raises:
        BadResponse: The answer cannot be compared within the limits; asking again would only be charged again.
    """
    try:
        return await _threads.run(current_scope().owner, match_schema, response.content, schema)
    except TooMuchWork as error:
        raise BadResponse(
            f"The answer cannot be compared with response_schema: {error}",
            provider=response.provider,
            model=response.model,
            outcome="completed",
            cost=cost,
            action="raise",
            hint="Ask for less, or use a simpler schema.",
        ) from None


def match_schema(text: str, schema: str) -> tuple[Any, str | None]:
    """
    The JSON in a model's answer, and why it does not match the schema (None when it does).

    Raises:
        TooMuchWork: That cannot be found out within the limits.
    """
    try:
        data = read_json(_unfenced(text))
    except ValueError:
        return None, "it is not JSON"
    problem = first_problem(data, read_schema(schema))
    if problem is None:
        return data, None
    place = "/".join(str(part) for part in problem.path)[:200]
    return data, f"{problem.message[:200]}{f' at {place}' if place else ''}"


def _unfenced(text: str) -> str:
    """The answer without the Markdown fence that models often put around JSON."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text.split("\n", 1)[1].rsplit("```", 1)[0]
    return text
