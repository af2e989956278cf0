"""JSON Schemas from agents: checked, and compared with a model's answer, within limits."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from shared.errors import Action, BadResponse, InvalidRequest, LLMError, ResponseRejected
from shared.internal.fair_pool import FairPool
from shared.runs.json_schema import MAX_SCHEMA_CHARS, TooMuchWork, first_problem, read_json, read_json_at, read_schema
from shared.scope import current_scope
from shared.types import FallbackOn, LLMResponse, WantedSchema

__all__ = ["MAX_SCHEMA_CHARS", "Matched", "Mismatch", "ask_until_match", "check_schema", "schema_instruction"]

SCHEMA_HINT = (
    'response_schema must be a JSON Schema as text, such as {"type": "object", "properties": '
    '{"name": {"type": "string"}}, "required": ["name"]}, without pattern and without $ref'
)
_threads = FairPool("agentswarm-schemas", threads=2, per_owner=1, yields=True)
_FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)```", re.DOTALL)
_THOUGHTS_END = ("</think>", "</thinking>")
# In an answer of many words and pieces of JSON: how many places are read, and how many values are compared.
_MAX_PLACES = 50
_MAX_VALUES = 4
# In a provider's sentence about a JSON mode that it does not have for this schema.
_ABOUT_FORMAT = re.compile(r"response.?(format|schema|mime)|json|schema|output.?(format|config)|structured")

type Ask = Callable[[Mismatch | None, WantedSchema | None, FallbackOn | None], Awaitable[LLMResponse]]


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


async def ask_until_match(ask: Ask, schema: str) -> Matched:
    """
    Ask a model for JSON; if its answer does not match the schema, the next model, or the only one a second time.

    Args:
        ask: Makes the call; gets the mismatch of the previous answer (None the first time), the response_format, and
            when to ask the next model.

    Raises:
        BadResponse: No answer matches, or one cannot be compared within the limits, or one was cut off, as another one
            within the same limit would be; its `cost` includes all of them.

        LLMError: A call failed; its `cost` includes the answers before it.
    """
    wanted: WantedSchema | None = _wanted(schema)

    async def reject(response: LLMResponse) -> str | None:
        problem = (await _matched(response, schema, response.cost))[1]
        if problem is not None:
            _check_not_cut(response, response.cost)
        return problem

    try:
        try:
            first = await ask(None, wanted, reject)
        except InvalidRequest as error:
            if type(error) is not InvalidRequest or not _ABOUT_FORMAT.search(error.message.lower()):
                raise
            wanted = None  # the refusal cost nothing; the instruction says it all too
            first = await ask(None, wanted, reject)
    except LLMError as error:
        rejected = [each for each in getattr(error, "failures", (error,)) if isinstance(each, ResponseRejected)]
        if not rejected:
            raise
        if len(rejected) > 1:
            raise _no_match(rejected[-1], rejected[-1].reason, error.cost) from None
        return await _second(ask, rejected[0], error.cost, schema, wanted)
    return Matched(first, (await _matched(first, schema, first.cost))[0], first.cost)


async def _second(ask: Ask, first: ResponseRejected, cost: float, schema: str, wanted: WantedSchema | None) -> Matched:
    answer = first.response.content if first.response is not None else ""
    try:
        second = await ask(Mismatch(answer, first.reason), wanted, None)
    except LLMError as error:
        error.cost += cost
        raise
    data, problem = await _matched(second, schema, cost + second.cost)
    if problem is None:
        return Matched(second, data, cost + second.cost)
    _check_not_cut(second, cost + second.cost)
    raise _no_match(second, problem, cost + second.cost)


def _no_match(last: LLMResponse | ResponseRejected, problem: str, cost: float) -> BadResponse:
    message = f"The answer does not match response_schema: {problem}"
    return _unusable(last, message, cost, "Use a stronger model or a simpler schema.")


def _unusable(
    last: LLMResponse | ResponseRejected, message: str, cost: float, hint: str, action: Action | None = None
) -> BadResponse:
    """The error for an answer that came whole and was paid for; `cost` is the US$ for all calls so far."""
    return BadResponse(
        message,
        provider=last.provider,
        model=last.model,
        outcome="completed",
        cost=cost,
        action=action,
        hint=hint,
    )


def _wanted(schema: str) -> WantedSchema:
    wanted = {"name": "answer", "schema": json.loads(schema), "strict": True}
    return WantedSchema(type="json_schema", json_schema=wanted)


def _check_not_cut(response: LLMResponse, cost: float) -> None:
    """
    Check that an answer that does not match was not cut off.

    Raises:
        BadResponse: It was; `cost` is the US$ for all calls so far.
    """
    if response.metadata.get("finish_reason") != "length":
        return
    tokens = response.metadata.get("output_cut_to_tokens")
    by = f"the {tokens} tokens that the budget allows" if tokens else "its limit of length (max_tokens)"
    hint = "Set a larger max_tokens, or ask for less. The same request would be cut off again."
    raise _unusable(response, f"The answer was cut off at {by}, so its JSON is not complete", cost, hint, "raise")


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
        message = f"The answer cannot be compared with response_schema: {error}"
        raise _unusable(response, message, cost, "Ask for less, or use a simpler schema.", "raise") from None


def match_schema(text: str, schema: str) -> tuple[Any, str | None]:
    """
    The JSON in a model's answer, and why it does not match the schema (None when it does).

    Raises:
        TooMuchWork: That cannot be found out within the limits.
    """
    parsed = read_schema(schema)
    first: tuple[Any, str | None] = None, "it is not JSON"
    for number, data in enumerate(islice(_values(text), _MAX_VALUES)):
        problem = first_problem(data, parsed)
        if problem is None:
            return data, None
        if not number:
            place = "/".join(str(part) for part in problem.path)[:200]
            first = data, f"{problem.message[:200]}{f' at {place}' if place else ''}"
    return first


def _values(text: str) -> Iterator[Any]:
    """What may be the JSON of an answer: the whole text, what is in a fence, and what begins amid other words."""
    for end_of_thoughts in _THOUGHTS_END:
        text = text.rpartition(end_of_thoughts)[2]
    text = text.strip()
    for part in (text, *islice((found[1] for found in _FENCE.finditer(text)), _MAX_PLACES)):
        try:
            yield read_json(part.strip())
        except ValueError:
            continue
    end = 0
    for start in islice((found.start() for found in re.finditer(r"[{\[]", text)), _MAX_PLACES):
        if start < end:
            continue
        try:
            data, end = read_json_at(text, start)
        except ValueError:
            continue
        yield data
