"""JSON Schemas from agents: checked for what could stall a validator, and matched with what a model answered."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

from shared.errors import BadResponse, LLMError
from shared.types import LLMResponse

MAX_SCHEMA_CHARS = 20_000
SCHEMA_HINT = (
    'response_schema must be a JSON Schema as text, such as {"type": "object", "properties": '
    '{"name": {"type": "string"}}, "required": ["name"]}, without pattern and without $ref'
)
# Keywords with which a schema of a few lines can keep a validator busy for hours.
_COSTLY = frozenset({"pattern", "patternProperties", "$ref", "$dynamicRef", "$recursiveRef"})


def check_schema(schema: str | None) -> str | None:
    """
    The schema as it was given.

    Raises:
        ValueError: It is none that an answer can be matched with.
    """
    if schema is not None:
        try:
            found = json.loads(schema)
            Draft202012Validator.check_schema(found)
            if not isinstance(found, dict) or _has_pattern(found):
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
        """The answer and what is wrong with it, as messages that go on with the conversation."""
        return [
            {"role": "assistant", "content": self.answer or "(nothing)"},
            {"role": "user", "content": f"That does not match the schema: {self.problem}. Answer with the JSON only."},
        ]


@dataclass(frozen=True, slots=True)
class Matched:
    """An answer that matches the schema, the JSON in it, and US$ for all that were asked for."""

    response: LLMResponse
    data: Any
    cost: float


async def ask_until_match(ask: Callable[[Mismatch | None], Awaitable[LLMResponse]], schema: str) -> Matched:
    """
    Ask a model for JSON, and once more when its answer does not match.

    Args:
        ask: Makes the call; is given what was wrong with the answer before, None at first.

    Raises:
        BadResponse: The second answer does not match either; its `cost` counts both.

        LLMError: A call failed; its `cost` counts the answer before it.
    """
    first = await ask(None)
    data, problem = match_schema(first.content, schema)
    if problem is None:
        return Matched(first, data, first.cost)
    try:
        second = await ask(Mismatch(first.content, problem))
    except LLMError as error:
        error.cost += first.cost
        raise
    data, problem = match_schema(second.content, schema)
    if problem is None:
        return Matched(second, data, first.cost + second.cost)
    raise BadResponse(
        f"The answer does not match response_schema: {problem}",
        provider=second.provider,
        model=second.model,
        outcome="completed",
        cost=first.cost + second.cost,
        hint="Use a stronger model or a simpler schema.",
    )


def schema_instruction(schema: str) -> str:
    """What a model is told so that its answer matches the schema."""
    return f"Answer with JSON only, matching this JSON Schema:\n{schema}"


def match_schema(text: str, schema: str) -> tuple[Any, str | None]:
    """The JSON in a model's answer, and why it does not match (None when it does)."""
    try:
        data = json.loads(_unfenced(text))
    except (ValueError, RecursionError):
        return None, "it is not JSON"
    # A registry of its own never fetches the URL of a $ref.
    problem = best_match(Draft202012Validator(json.loads(schema), registry=Registry()).iter_errors(data))
    if problem is None:
        return data, None
    place = "/".join(str(part) for part in problem.absolute_path)
    return data, f"{problem.message[:200]}{f' at {place}' if place else ''}"


def _unfenced(text: str) -> str:
    """The answer without the Markdown fence that models like to put around JSON."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text.split("\n", 1)[1].rsplit("```", 1)[0]
    return text


def _has_pattern(schema: Any, *, names: bool = False) -> bool:
    """Whether a schema holds a regular expression or a reference; `names`: its keys are names of properties."""
    if isinstance(schema, list):
        return any(_has_pattern(part) for part in schema)
    if not isinstance(schema, dict):
        return False
    if not names and not _COSTLY.isdisjoint(schema):
        return True
    named = ("properties", "$defs", "definitions", "dependentSchemas")
    return any(_has_pattern(part, names=not names and key in named) for key, part in schema.items())
