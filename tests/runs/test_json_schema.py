"""JSON Schemas and answers from others: the result of any other validator, within a number of steps."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend

from shared.errors import BadResponse
from shared.runs import ask_until_match, check_schema
from shared.runs.json_schema import (
    MAX_ANSWER_CHARS,
    MAX_DIGITS,
    MAX_STEPS,
    TooMuchWork,
    first_problem,
    read_json,
    read_schema,
)
from shared.types import LLMResponse
from tests.support.answering import ask_in_turn
from tests.support.examples import at_most


def _unique(_validator: Any, is_on: bool, value: Any, _schema: Any) -> Iterator[ValidationError]:
    """The keyword by brute force: jsonschema's own sorts first, and takes [[1], [true], [1]] for unique."""
    items = [json.dumps(_plain(item), sort_keys=True) for item in value] if isinstance(value, list) else []
    if is_on and len(set(items)) < len(items):
        yield ValidationError("not unique")


def _plain(value: Any) -> Any:
    """The value with 1.0 as 1, so that equal numbers are written the same."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


_OTHER = extend(Draft202012Validator, {"uniqueItems": _unique})  # type: ignore[no-untyped-call]  # jsonschema's
_NAMES = st.sampled_from("ab")
_NUMBERS = st.integers(-3, 3) | st.sampled_from([0.0, 1.0, -0.0, 1.5, 0.1, 1e300, 10**40, 1e-7])
_SCALARS = st.none() | st.booleans() | _NUMBERS | st.sampled_from(["", "a", "b", "ab"])
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES, inner, max_size=2), max_leaves=8
)
_TYPES = st.sampled_from(["array", "boolean", "integer", "null", "number", "object", "string"])
_SIZES = st.integers(-1, 3) | st.sampled_from([1.0, 2.0])


def _keywords(inner: st.SearchStrategy[Any]) -> dict[str, st.SearchStrategy[Any]]:
    """Every keyword that says something about a value, with arguments it takes (and a few it does not)."""
    names = "additionalProperties contains else if items not propertyNames then unevaluatedItems unevaluatedProperties"
    sizes = "maxContains maxItems maxLength maxProperties minContains minItems minLength minProperties"
    bounds = "exclusiveMaximum exclusiveMinimum maximum minimum"
    return {
        **dict.fromkeys(names.split(), inner),
        **dict.fromkeys(["allOf", "anyOf", "oneOf", "prefixItems"], st.lists(inner, min_size=1, max_size=3)),
        **dict.fromkeys(["dependentSchemas", "properties"], st.dictionaries(_NAMES, inner, max_size=2)),
        **dict.fromkeys(sizes.split(), _SIZES),
        **dict.fromkeys(bounds.split(), _NUMBERS),
        "const": _VALUES,
        "dependentRequired": st.dictionaries(_NAMES, st.lists(_NAMES, unique=True), max_size=2),
        "enum": st.lists(_VALUES, max_size=3),
        "multipleOf": st.sampled_from([0, 1, 2, 0.1, 0.5, 1e-300, 3.0]),
        "required": st.lists(_NAMES, max_size=2),
        "type": _TYPES | st.lists(_TYPES, max_size=3),
        "uniqueItems": st.booleans(),
    }


@st.composite
def _schemas(draw: st.DrawFn, depth: int = 3) -> Any:
    if depth < 3 and (depth == 0 or draw(st.integers(0, 9)) == 0):
        return draw(st.booleans())
    keywords = _keywords(_schemas(depth=depth - 1))
    chosen = draw(st.lists(st.sampled_from(sorted(keywords)), min_size=1, max_size=4, unique=True))
    return {name: draw(keywords[name]) for name in chosen}


@settings(max_examples=at_most(100), suppress_health_check=[HealthCheck.too_slow])
@given(_schemas(), st.lists(_VALUES, min_size=1, max_size=5), st.integers(20, 400))
def test_the_result_is_that_of_any_validator_or_a_refusal(schema: Any, values: list[Any], steps: int) -> None:
    """For every keyword and value: the same schemas are accepted, and the same values match, or the steps run out."""
    text = json.dumps(schema)
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError:
        with pytest.raises(ValueError, match=r"."):
            read_schema(text)
        return
    for value in values:
        expected = _OTHER(schema).is_valid(value)
        assert (first_problem(value, read_schema(text)) is None) is expected
        with suppress(TooMuchWork):
            assert (first_problem(value, schema, max_steps=steps) is None) is expected


def _nested(depth: int) -> Any:
    """The schema of a few hundred characters that stops other validators: 3.4 times as long for each level."""
    schema: Any = {}
    for _ in range(depth):
        schema = {"allOf": [schema], "unevaluatedProperties": False}
    return schema


def test_nesting_does_not_multiply_the_work() -> None:
    """A schema nested 16 times takes no more than a few steps for each level; other validators need minutes."""
    assert first_problem({}, _nested(16), max_steps=100) is None
    problem = first_problem({"a": 1}, _nested(16), max_steps=200)
    assert problem is not None
    assert "'a'" in problem.message


def _tree(depth: int) -> Any:
    """A schema with as many leaves as fit into the limit on its length."""
    return {"anyOf": [_tree(depth - 1)] * 2} if depth else {"type": "null"}


_COSTLY = {
    "many alternatives": ({"items": {"not": _tree(8)}}, [1] * 10_000),
    "items compared with each other": (
        {"items": {"items": {"uniqueItems": True}, "uniqueItems": True}, "uniqueItems": True},
        [[[{"a": i, "b": j} for i in range(80)] for j in range(10)] for _ in range(10)],
    ),
    "a large value compared with constants": (
        {"items": {"not": {"anyOf": [{"const": 1}] * 800}}},
        [["x" * 10_000]] * 80,
    ),
    "properties seen by many": (
        {"allOf": [{"additionalProperties": True}] * 500, "unevaluatedProperties": False},
        {str(i): i for i in range(5_000)},
    ),
    "items seen by many": ({"allOf": [{"items": True}] * 500, "unevaluatedItems": False}, list(range(10_000))),
    "items that may be contained": (
        {"allOf": [{"contains": {"type": "null"}, "minContains": 0}] * 300},
        list(range(10_000)),
    ),
    "names": ({"allOf": [{"propertyNames": {"maxLength": 9}}] * 500}, {str(i): i for i in range(5_000)}),
}


@pytest.mark.parametrize(("schema", "value"), _COSTLY.values(), ids=_COSTLY)
def test_steps_end_any_work(schema: Any, value: Any) -> None:
    """Whatever keeps a matcher busy is counted, so that it ends."""
    assert check_schema(json.dumps(schema))
    assert len(json.dumps(value)) <= MAX_ANSWER_CHARS
    with pytest.raises(TooMuchWork):
        first_problem(value, schema, max_steps=20_000)


def test_a_large_honest_answer_is_compared() -> None:
    """Ten thousand records are within the limit."""
    record = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert first_problem([{"a": i} for i in range(10_000)], {"type": "array", "items": record}) is None
    assert MAX_STEPS <= 1_000_000


@pytest.mark.parametrize(
    "text", ["NaN", "[Infinity]", '{"a": -Infinity}', "", "nothing", '{"a": 1,}', "[1", "01", "'a'"]
)
def test_what_is_not_json_is_a_value_error(text: str) -> None:
    """NaN and Infinity are no JSON, though Python reads them."""
    with pytest.raises(ValueError, match=r"."):
        read_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "9" * 400,
        f"[-{'9' * 5000}]",
        "1e400",
        f"0.{'1' * 1000}",
        "[" * 150 + "]" * 150,
        "[" * 100_000,
        '{"a":' * 150 + "1" + "}" * 150,
        f'"{"x" * MAX_ANSWER_CHARS}"',
    ],
    ids=lambda text: f"{text[:6]} of {len(text)}",
)
def test_what_no_reader_can_take_is_refused(text: str) -> None:
    """Numbers that overflow, deep nesting and megabytes are refused by the reader, not by whoever comes next."""
    with pytest.raises(TooMuchWork):
        read_json(text)


def test_messages_are_short_whatever_they_are_about() -> None:
    """A problem with a large value does not quote it."""
    for value in ("x" * 100_000, ["x" * 100_000] * 10, {"x" * 100_000: 1}, 10**MAX_DIGITS // 10):
        schemas: list[Any] = [
            {"type": "null"},
            {"enum": ["y" * 9000] * 2},
            {"not": {}},
            {"additionalProperties": False},
        ]
        for schema in (*schemas, {"required": ["z" * 9000]}, {"anyOf": [{"const": "y" * 9000}, {"type": "null"}]}):
            problem = first_problem(value, schema)
            assert problem is None or len(problem.message) < 400


def test_the_message_is_about_the_alternative_that_was_meant() -> None:
    """For an optional object the problem is in the object, not that it is not null."""
    schema = {"properties": {"home": {"anyOf": [{"properties": {"street": {"type": "string"}}}, {"type": "null"}]}}}
    problem = first_problem({"home": {"street": 1}}, schema)
    assert problem == ("1 is not of type 'string'", ("home", "street"))


def _answers(*texts: str) -> Any:
    """Ask function of a model that gives these answers, for 0.5 US$ each."""
    return ask_in_turn([LLMResponse(text, "m", "p", {}, 0.5, 1.0, {}) for text in texts])


@pytest.mark.parametrize("number", ["9" * 400, "[" * 500 + "]" * 500, "1e999"])
def test_an_answer_beyond_the_limits_is_paid_once(number: str) -> None:
    """It ends the call with its cost and without a retry: a second answer of the kind would be charged again."""
    with pytest.raises(BadResponse, match="cannot be compared with response_schema") as caught:
        asyncio.run(ask_until_match(_answers(number, "1"), "{}"))
    assert caught.value.cost == 0.5
    assert not caught.value.retryable
    with pytest.raises(BadResponse) as caught:
        asyncio.run(ask_until_match(_answers("no JSON", number), "{}"))
    assert caught.value.cost == 1.0


def test_an_answer_that_is_not_json_is_asked_for_once_more() -> None:
    """NaN is a mistake that a model can correct."""
    matched = asyncio.run(ask_until_match(_answers("NaN", "1"), '{"type": "number"}'))
    assert (matched.data, matched.cost) == (1, 1.0)
