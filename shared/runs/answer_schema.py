"""JSON Schemas from agents: checked for keywords that could stall a validator, and compared with a model's answer."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

from shared.errors import BadResponse, InvalidRequest, LLMError
from shared.types import LLMResponse, WantedSchema

MAX_SCHEMA_CHARS = 20_000
SCHEMA_HINT = (
    'response_schema must be a JSON Schema as text, such as {"type": "object", "properties": '
    '{"name": {"type": "string"}}, "required": ["name"]}, without pattern and without $ref'
)
# Keywords with which a few lines of schema can keep a validator busy for hours.
_COSTLY = frozenset({"pattern", "patternProperties", "$ref", "$dynamicRef", "$recursiveRef"})
_FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)```", re.DOTALL)
_THOUGHTS = re.compile(r"<think(ing)?>.*?</think(ing)?>", re.DOTALL)
_MAX_PLACES = 50
# In a provider's sentence about a JSON mode that it does not have for this schema.
_ABOUT_FORMAT = re.compile(r"response.?(format|schema|mime)|json|schema|output.?(format|config)|structured")


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


type Ask = Callable[[Mismatch | None, WantedSchema | None], Awaitable[LLMResponse]]


async def ask_until_match(ask: Ask, schema: str) -> Matched:
    """
    Ask a model for JSON, and a second time if its answer does not match the schema.

    Args:
        ask: Makes the call; gets the mismatch of the previous answer, None the first time, and the response_format.

    Raises:
        BadResponse: The second answer does not match either; its `cost` includes both. Or an answer was cut off, which
            another one within the same limit would be too.

        LLMError: A call failed; its `cost` includes the answer before it.
    """
    wanted: WantedSchema | None = _wanted(schema)
    try:
        first = await ask(None, wanted)
    except InvalidRequest as error:
        if type(error) is not InvalidRequest or not _ABOUT_FORMAT.search(error.message.lower()):
            raise
        wanted = None  # the refusal cost nothing; the instruction says it all too
        first = await ask(None, wanted)
    data, problem = match_schema(first.content, schema)
    if problem is None:
        return Matched(first, data, first.cost)
    _check_not_cut(first, first.cost)
    try:
        second = await ask(Mismatch(first.content, problem), wanted)
    except LLMError as error:
        error.cost += first.cost
        raise
    data, problem = match_schema(second.content, schema)
    if problem is None:
        return Matched(second, data, first.cost + second.cost)
    _check_not_cut(second, first.cost + second.cost)
    raise BadResponse(
        f"The answer does not match response_schema: {problem}",
        provider=second.provider,
        model=second.model,
        outcome="completed",
        cost=first.cost + second.cost,
        hint="Use a stronger model or a simpler schema.",
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
    raise BadResponse(
        f"The answer was cut off at {by}, so its JSON is not complete",
        provider=response.provider,
        model=response.model,
        outcome="completed",
        cost=cost,
        hint="Set a larger max_tokens, or ask for less. The same request would be cut off again.",
    )


def schema_instruction(schema: str) -> str:
    """The instruction for a model to answer with JSON that matches the schema."""
    return f"Answer with JSON only, matching this JSON Schema:\n{schema}"


def match_schema(text: str, schema: str) -> tuple[Any, str | None]:
    """The JSON in a model's answer, and why it does not match the schema (None when it does)."""
    # An empty registry: the default one would fetch the URL of a $ref.
    validator = Draft202012Validator(json.loads(schema), registry=Registry())
    first: tuple[Any, str | None] = None, "it is not JSON"
    for number, data in enumerate(_values(text)):
        try:
            problem = best_match(validator.iter_errors(data))
        except (OverflowError, RecursionError, ValueError):
            continue  # numbers that no float holds, or nesting that is too deep
        if problem is None:
            return data, None
        if not number:
            place = "/".join(str(part) for part in problem.absolute_path)
            first = data, f"{problem.message[:200]}{f' at {place}' if place else ''}"
    return first


def _values(text: str) -> Iterator[Any]:
    """What may be the JSON of an answer: the whole text, what is in a fence, and what begins amid other words."""
    text = _THOUGHTS.sub("", text).strip()
    fenced = [found[1] for found in _FENCE.finditer(text)]
    for part in (text, *fenced):
        try:
            yield _DECODER.decode(part.strip())
        except (ValueError, RecursionError):
            continue
    end = places = 0
    for start in (found.start() for found in re.finditer(r"[{\[]", text)):
        if start < end or places == _MAX_PLACES:
            continue
        places += 1
        try:
            data, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        yield data


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# NaN and Infinity are no JSON, although Python's decoder takes them.
_DECODER = json.JSONDecoder(parse_constant=_no_number)


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
