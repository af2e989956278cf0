"""JSON Schemas from agents: checked for keywords that could stall a validator, and compared with a model's answer."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

from shared.errors import BadResponse, LLMError, ResponseRejected
from shared.types import FallbackOn, LLMResponse

MAX_SCHEMA_CHARS = 20_000
SCHEMA_HINT = (
    'response_schema must be a JSON Schema as text, such as {"type": "object", "properties": '
    '{"name": {"type": "string"}}, "required": ["name"]}, without pattern and without $ref'
)
# Keywords with which a few lines of schema can keep a validator busy for hours.
_COSTLY = frozenset({"pattern", "patternProperties", "$ref", "$dynamicRef", "$recursiveRef"})


def check_schema(schema: str | None) -> str | None:
    """
    The schema, unchanged.

    Raises:
        ValueError: It is not a JSON Schema, or uses a keyword that is not allowed.
    """
    if schema is not None:
        try:
            parsed = json.loads(schema)
            Draft202012Validator.check_schema(parsed)
            if not isinstance(parsed, dict) or _has_costly_keyword(parsed):
                raise ValueError(SCHEMA_HINT)
            match_schema("{}", schema)
        except (ValueError, RecursionError, SchemaError, Unresolvable):
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
        BadResponse: No answer matches; its `cost` includes all of them.

        LLMError: A call failed; its `cost` includes the answers before it.
    """
    try:
        first = await ask(None, lambda response: match_schema(response.content, schema)[1])
    except LLMError as error:
        rejected = [each for each in getattr(error, "failures", (error,)) if isinstance(each, ResponseRejected)]
        if not rejected:
            raise
        if len(rejected) > 1:
            raise _no_match(rejected[-1], rejected[-1].reason, error.cost) from None
        return await _second(ask, rejected[0], error.cost, schema)
    return Matched(first, match_schema(first.content, schema)[0], first.cost)


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
    data, problem = match_schema(second.content, schema)
    if problem is None:
        return Matched(second, data, cost + second.cost)
    raise _no_match(second, problem, cost + second.cost)


def _no_match(last: LLMResponse | ResponseRejected, problem: str, cost: float) -> BadResponse:
    return BadResponse(
        f"The answer does not match response_schema: {problem}",
        provider=last.provider,
        model=last.model,
        outcome="completed",
        cost=cost,
        hint="Use a stronger model or a simpler schema.",
    )


def schema_instruction(schema: str) -> str:
    """The instruction for a model to answer with JSON that matches the schema."""
    return f"Answer with JSON only, matching this JSON Schema:\n{schema}"


def match_schema(text: str, schema: str) -> tuple[Any, str | None]:
    """The JSON in a model's answer, and why it does not match the schema (None when it does)."""
    try:
        data = json.loads(_unfenced(text))
    except (ValueError, RecursionError):
        return None, "it is not JSON"
    # An empty registry: the default one would fetch the URL of a $ref.
    problem = best_match(Draft202012Validator(json.loads(schema), registry=Registry()).iter_errors(data))
    if problem is None:
        return data, None
    place = "/".join(str(part) for part in problem.absolute_path)
    return data, f"{problem.message[:200]}{f' at {place}' if place else ''}"


def _unfenced(text: str) -> str:
    """The answer without the Markdown fence that models often put around JSON."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text.split("\n", 1)[1].rsplit("```", 1)[0]
    return text


def _has_costly_keyword(schema: Any, *, names: bool = False) -> bool:
    """Whether a schema contains a regular expression or a reference; `names`: its keys are names, not keywords."""
    if isinstance(schema, list):
        return any(_has_costly_keyword(part) for part in schema)
    if not isinstance(schema, dict):
        return False
    if not names and not _COSTLY.isdisjoint(schema):
        return True
    named = ("properties", "$defs", "definitions", "dependentSchemas")
    return any(_has_costly_keyword(part, names=not names and key in named) for key, part in schema.items())
