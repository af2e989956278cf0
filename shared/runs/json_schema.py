"""
JSON and JSON Schema from others, read and compared within limits that really end the work.

An agent chooses the schema, and whoever wrote what the model has read can choose the answer. A general validator cannot
be bounded from outside: a thread cannot be killed, and a single one of its comparisons may take minutes. Here each
keyword is a few lines that count their steps, and the count ends the work. Keywords of Draft 2020-12, except those in
`_REFUSED`; unknown keywords and `format` say nothing about an answer, as the standard has it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

MAX_SCHEMA_CHARS = 20_000
MAX_SCHEMA_DEPTH = 60
MAX_ANSWER_CHARS = 1_000_000
MAX_ANSWER_DEPTH = 100
MAX_DIGITS = 300
# At most about a second of work; a list of 10,000 records with five values each takes 300,000 steps.
MAX_STEPS = 500_000
_PAUSE_STEPS = 500
_PAUSE_S = 0.002

# A regular expression cannot be stopped, and a reference makes a few lines of schema as large as one likes.
_REFUSED = frozenset({"pattern", "patternProperties", "$ref", "$dynamicRef", "$recursiveRef"})


class TooMuchWork(Exception):
    """A text that would take too long to read or to compare; the message says which limit it exceeds."""


class NotASchema(ValueError):
    """A text that is not a JSON Schema, or uses a keyword that is not allowed."""


class Problem(NamedTuple):
    """Why a value does not match a schema, and where: the keys and indexes that lead to it."""

    message: str
    path: tuple[str | int, ...] = ()

    def inside(self, place: str | int) -> Problem:
        """The same problem, as seen from the value around."""
        return Problem(self.message, (place, *self.path))


def read_json(text: str, *, max_chars: int = MAX_ANSWER_CHARS, max_depth: int = MAX_ANSWER_DEPTH) -> Any:
    """
    The value of a JSON text.

    Raises:
        ValueError: It is not JSON; NaN and Infinity are not JSON either.

        TooMuchWork: It is too long, nested too deeply, or contains a number that is too large for a float.
    """
    if len(text) > max_chars:
        raise TooMuchWork(f"it is longer than {max_chars:,} characters")
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise TooMuchWork(f"it is nested more than {max_depth} levels deep") from None
    if _is_deeper(value, max_depth):
        raise TooMuchWork(f"it is nested more than {max_depth} levels deep")
    return value


def read_json_at(text: str, start: int) -> tuple[Any, int]:
    """
    The JSON value that begins amid a text, and where it ends.

    Raises:
        ValueError: No JSON begins there.

        TooMuchWork: As `read_json` does.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError:
        raise TooMuchWork(f"it is nested more than {MAX_ANSWER_DEPTH} levels deep") from None
    if _is_deeper(value, MAX_ANSWER_DEPTH):
        raise TooMuchWork(f"it is nested more than {MAX_ANSWER_DEPTH} levels deep")
    return value, end


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise TooMuchWork(f"it contains a number of more than {MAX_DIGITS} digits")
    return int(digits)


def _number(text: str) -> float:
    if len(text) > 2 * MAX_DIGITS or not math.isfinite(number := float(text)):
        raise TooMuchWork("it contains a number that is too large or too long")
    return number


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_int=_integer, parse_float=_number)


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects are nested more than `depth` levels deep."""
    level = [value]
    for _ in range(depth + 1):
        level = [item for outer in level for item in _items(outer)]
        if not level:
            return False
    return True


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


# What an argument of a keyword must be: checked once, so that matching can rely on it.


def read_schema(text: str) -> Any:
    """
    The JSON Schema in a text.

    Takes milliseconds at most, so it may run on an event loop.

    Raises:
        ValueError: It is not JSON, or NotASchema.

        TooMuchWork: It is too long or nested too deeply.
    """
    schema = read_json(text, max_chars=MAX_SCHEMA_CHARS, max_depth=MAX_SCHEMA_DEPTH)
    if not isinstance(schema, dict):
        raise NotASchema("it is not an object")
    _check_schema(schema)
    return schema


def _check_schema(schema: Any) -> None:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise NotASchema("a schema must be an object, true or false")
    for keyword, argument in schema.items():
        if keyword in _REFUSED:
            raise NotASchema(f"{keyword} is not allowed")
        if not _ARGUMENTS.get(keyword, _is_anything)(argument):
            raise NotASchema(f"{keyword} has an argument that it does not take")


def _is_anything(_argument: Any) -> bool:
    return True


def _is_schema(argument: Any) -> bool:
    _check_schema(argument)
    return True


def _are_schemas(argument: Any) -> bool:
    return isinstance(argument, list) and bool(argument) and all(map(_is_schema, argument))


def _are_named_schemas(argument: Any) -> bool:
    return isinstance(argument, dict) and all(map(_is_schema, argument.values()))


def _is_count(argument: Any) -> bool:
    return _is_number(argument) and argument >= 0 and argument == int(argument)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_names(argument: Any) -> bool:
    return isinstance(argument, list) and _is_texts(argument) and len(set(argument)) == len(argument)


def _is_texts(argument: list[Any]) -> bool:
    return all(isinstance(each, str) for each in argument)


def _is_type(argument: Any) -> bool:
    if isinstance(argument, str):
        return argument in _TYPES
    return _are_names(argument) and bool(argument) and _TYPES.keys() >= set(argument)


def _is_text(argument: Any) -> bool:
    return isinstance(argument, str)


def _is_flag(argument: Any) -> bool:
    return isinstance(argument, bool)


def _is_list(argument: Any) -> bool:
    return isinstance(argument, list)


def _are_dependencies(argument: Any) -> bool:
    return isinstance(argument, dict) and all(map(_are_names, argument.values()))


def _are_old_dependencies(argument: Any) -> bool:
    return isinstance(argument, dict) and all(_are_names(each) or _is_schema(each) for each in argument.values())


def _all(keywords: str, check: Callable[[Any], bool]) -> dict[str, Callable[[Any], bool]]:
    return dict.fromkeys(keywords.split(), check)


_ARGUMENTS: dict[str, Callable[[Any], bool]] = {
    **_all("additionalProperties contains contentSchema else if items not propertyNames then", _is_schema),
    **_all("unevaluatedItems unevaluatedProperties", _is_schema),
    **_all("allOf anyOf oneOf prefixItems", _are_schemas),
    **_all("$defs definitions dependentSchemas properties", _are_named_schemas),
    **_all("maxContains maxItems maxLength maxProperties minContains minItems minLength minProperties", _is_count),
    **_all("exclusiveMaximum exclusiveMinimum maximum minimum", _is_number),
    **_all("$anchor $comment $id $schema contentEncoding contentMediaType description format title", _is_text),
    **_all("deprecated readOnly uniqueItems writeOnly", _is_flag),
    **_all("enum examples", _is_list),
    "dependencies": _are_old_dependencies,
    "dependentRequired": _are_dependencies,
    "multipleOf": lambda argument: _is_number(argument) and argument > 0,
    "required": _are_names,
    "type": _is_type,
}


# Matching. A check gets the keyword's argument, the value, the schema around and the state of the work.


@dataclass(slots=True)
class _Work:
    """The steps that are left, and what is computed once for each list of allowed values."""

    left: int
    pause_at: int
    allowed: dict[int, frozenset[str]] = field(default_factory=dict)

    def spend(self, steps: int = 1) -> None:
        """
        Count steps before they are done.

        Raises:
            TooMuchWork: None are left.
        """
        self.left -= steps
        if self.left < 0:
            raise TooMuchWork("it takes too long to compare with the schema")
        if self.left < self.pause_at:
            # Leaves Python's lock to others two thirds of the time: an event loop would else wait 5 ms for each step.
            self.pause_at = self.left - _PAUSE_STEPS
            time.sleep(_PAUSE_S)


@dataclass(slots=True)
class _Seen:
    """The properties and items of a value that a schema has looked at; `unevaluated...` is about the others."""

    names: set[str] = field(default_factory=set)
    items: set[int] = field(default_factory=set)

    def add(self, other: _Seen, work: _Work) -> None:
        """Add what a schema inside has looked at."""
        work.spend(len(other.names) + len(other.items))
        self.names |= other.names
        self.items |= other.items


def first_problem(value: Any, schema: Any, *, max_steps: int = MAX_STEPS) -> Problem | None:
    """
    Why a value does not match a schema from `read_schema`; None when it does.

    Call it off the event loop.

    Raises:
        TooMuchWork: It takes more than `max_steps` steps to find out.
    """
    return _problem(schema, value, _Work(max_steps, max_steps - _PAUSE_STEPS), _Seen())


def _problem(schema: Any, value: Any, work: _Work, seen: _Seen) -> Problem | None:
    if isinstance(schema, bool):
        work.spend()
        return None if schema else Problem(f"{_shown(value)} is not allowed")
    work.spend(1 + len(schema))
    for keyword, argument in schema.items():
        check = _CHECKS.get(keyword)
        if check is not None and (problem := check(argument, value, schema, work, seen)) is not None:
            return problem
    # These depend on what all the other keywords have looked at.
    for keyword, check in _LAST_CHECKS.items():
        if keyword in schema and (problem := check(schema[keyword], value, schema, work, seen)) is not None:
            return problem
    return None


def _shown(value: Any) -> str:
    """A value in a message, short whatever it is."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else f"{value[:60]!r}..."
    if isinstance(value, dict):
        return "the object" if value else "{}"
    if isinstance(value, list):
        return f"the list of {len(value)}" if value else "[]"
    return json.dumps(value)[:60]


def _canonical(value: Any, work: _Work) -> str:
    """A text that is the same for equal values, in the sense of JSON Schema: 1 equals 1.0, but not true."""
    work.spend(2)
    if isinstance(value, str):
        work.spend(len(value) // 100)
        return json.dumps(value)
    if isinstance(value, dict):
        work.spend(2 * len(value))
        return f"{{{','.join(f'{json.dumps(name)}:{_canonical(value[name], work)}' for name in sorted(value))}}}"
    if isinstance(value, list):
        return f"[{','.join([_canonical(item, work) for item in value])}]"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value)


def _type(types: str | list[str], value: Any, *_: Any) -> Problem | None:
    names = [types] if isinstance(types, str) else types
    if any(_TYPES[name](value) for name in names):
        return None
    return Problem(f"{_shown(value)} is not of type {', '.join(map(repr, names))}")


_TYPES: dict[str, Callable[[Any], bool]] = {
    "array": lambda value: isinstance(value, list),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: _is_number(value) and (isinstance(value, int) or value.is_integer()),
    "null": lambda value: value is None,
    "number": _is_number,
    "object": lambda value: isinstance(value, dict),
    "string": lambda value: isinstance(value, str),
}


def _enum(allowed: list[Any], value: Any, _schema: Any, work: _Work, _seen: Any) -> Problem | None:
    if id(allowed) not in work.allowed:
        work.allowed[id(allowed)] = frozenset(_canonical(each, work) for each in allowed)
    if _canonical(value, work) in work.allowed[id(allowed)]:
        return None
    return Problem(f"{_shown(value)} is not one of {', '.join(map(_shown, allowed[:10]))}")


def _const(expected: Any, value: Any, _schema: Any, work: _Work, _seen: Any) -> Problem | None:
    return (
        None if _canonical(value, work) == _canonical(expected, work) else Problem(f"{_shown(expected)} was expected")
    )


def _unique_items(is_on: bool, value: Any, _schema: Any, work: _Work, _seen: Any) -> Problem | None:
    if not is_on or not isinstance(value, list):
        return None
    if len({_canonical(item, work) for item in value}) == len(value):
        return None
    return Problem(f"{_shown(value)} has non-unique elements")


def _multiple_of(unit: float, value: Any, *_: Any) -> Problem | None:
    if not _is_number(value):
        return None
    if isinstance(unit, float):
        quotient = value / unit
        is_multiple = (
            quotient.is_integer() if math.isfinite(quotient) else (Fraction(value) / Fraction(unit)).denominator == 1
        )
    else:
        is_multiple = value % unit == 0
    return None if is_multiple else Problem(f"{_shown(value)} is not a multiple of {_shown(unit)}")


def _bound(is_kept: Callable[[Any, Any], bool], words: str) -> _Check:
    """A check of a number against a bound."""

    def check(bound: Any, value: Any, *_: Any) -> Problem | None:
        if not _is_number(value) or is_kept(value, bound):
            return None
        return Problem(f"{_shown(value)} is {words} {_shown(bound)}")

    return check


def _size(kind: type[Sized], is_kept: Callable[[int, Any], bool], words: str) -> _Check:
    """A check of the size of a text, a list or an object."""

    def check(limit: Any, value: Any, *_: Any) -> Problem | None:
        if not isinstance(value, kind) or is_kept(len(value), limit):
            return None
        return Problem(f"{_shown(value)} {words}: {_shown(limit)} is the limit")

    return check


def _required(names: list[str], value: Any, _schema: Any, work: _Work, _seen: Any) -> Problem | None:
    work.spend(len(names))
    missing = (name for name in names if name not in value) if isinstance(value, dict) else ()
    return next((Problem(f"{_shown(name)} is a required property") for name in missing), None)


def _dependent_required(others: Any, value: Any, _schema: Any, work: _Work, seen: Any) -> Problem | None:
    if isinstance(value, dict):
        work.spend(len(others))
        for name, needed in others.items():
            if name in value and (problem := _required(needed, value, _schema, work, seen)) is not None:
                return Problem(f"{problem.message} where there is {_shown(name)}")
    return None


def _properties(schemas: dict[str, Any], value: Any, _schema: Any, work: _Work, seen: _Seen) -> Problem | None:
    if not isinstance(value, dict):
        return None
    work.spend(len(schemas))
    names = [name for name in schemas if name in value]
    return _each(((name, schemas[name]) for name in names), value, work, seen.names)


def _each(parts: Iterable[tuple[Any, Any]], value: Any, work: _Work, seen: set[Any]) -> Problem | None:
    """The first problem of the parts of a value: pairs of a key or index, which is then seen, and its schema."""
    for place, schema in parts:
        problem = _problem(schema, value[place], work, _Seen())
        if problem is not None:
            return problem.inside(place)
        seen.add(place)
    return None


def _additional_properties(schema: Any, value: Any, around: Any, work: _Work, seen: _Seen) -> Problem | None:
    if not isinstance(value, dict):
        return None
    work.spend(len(value))
    known = around.get("properties", {})
    return _others([name for name in value if name not in known], schema, value, work, seen)


def _others(names: list[str], schema: Any, value: Any, work: _Work, seen: _Seen) -> Problem | None:
    """The first problem of properties that no other keyword is about."""
    if schema is False and names:
        return Problem(f"Additional properties are not allowed: {', '.join(map(_shown, names[:10]))}")
    return _each(((name, schema) for name in names), value, work, seen.names)


def _unevaluated_properties(schema: Any, value: Any, _around: Any, work: _Work, seen: _Seen) -> Problem | None:
    if not isinstance(value, dict):
        return None
    work.spend(len(value))
    return _others([name for name in value if name not in seen.names], schema, value, work, seen)


def _property_names(schema: Any, value: Any, _around: Any, work: _Work, _seen: Any) -> Problem | None:
    names = value if isinstance(value, dict) else ()
    return next((problem for name in names if (problem := _problem(schema, name, work, _Seen())) is not None), None)


def _prefix_items(schemas: list[Any], value: Any, _around: Any, work: _Work, seen: _Seen) -> Problem | None:
    if not isinstance(value, list):
        return None
    places = range(min(len(schemas), len(value)))
    return _each(zip(places, schemas, strict=False), value, work, seen.items)


def _items_after(schema: Any, value: Any, around: Any, work: _Work, seen: _Seen) -> Problem | None:
    if not isinstance(value, list):
        return None
    return _rest(range(len(around.get("prefixItems", ())), len(value)), schema, value, work, seen)


def _rest(places: Iterable[int], schema: Any, value: Any, work: _Work, seen: _Seen) -> Problem | None:
    """The first problem of items that no other keyword is about."""
    return _each(((place, schema) for place in places), value, work, seen.items)


def _unevaluated_items(schema: Any, value: Any, _around: Any, work: _Work, seen: _Seen) -> Problem | None:
    if not isinstance(value, list):
        return None
    work.spend(len(value))
    return _rest([place for place in range(len(value)) if place not in seen.items], schema, value, work, seen)


def _contains(schema: Any, value: Any, around: Any, work: _Work, seen: _Seen) -> Problem | None:
    if not isinstance(value, list):
        return None
    found = [place for place, item in enumerate(value) if _problem(schema, item, work, _Seen()) is None]
    least, most = around.get("minContains", 1), around.get("maxContains", math.inf)
    seen.items.update(found)
    if least <= len(found) <= most:
        return None
    return Problem(f"{len(found)} items of {_shown(value)} match what it must contain")


def _all_of(schemas: list[Any], value: Any, _around: Any, work: _Work, seen: _Seen) -> Problem | None:
    for schema in schemas:
        inside = _Seen()
        problem = _problem(schema, value, work, inside)
        if problem is not None:
            return problem
        seen.add(inside, work)
    return None


def _matching(schemas: list[Any], value: Any, work: _Work, seen: _Seen) -> Iterator[Problem | None]:
    """The problem with each of several schemas, None for those that match; those count as having looked at it."""
    for schema in schemas:
        inside = _Seen()
        problem = _problem(schema, value, work, inside)
        if problem is None:
            seen.add(inside, work)
        yield problem


def _any_of(schemas: list[Any], value: Any, _around: Any, work: _Work, seen: _Seen) -> Problem | None:
    problems = list(_matching(schemas, value, work, seen))
    return None if None in problems else _nearest(value, problems)


def _one_of(schemas: list[Any], value: Any, _around: Any, work: _Work, seen: _Seen) -> Problem | None:
    problems = list(_matching(schemas, value, work, seen))
    matches = problems.count(None)
    if matches > 1:
        return Problem(f"{_shown(value)} matches {matches} of the schemas of which it must match one")
    return None if matches else _nearest(value, problems)


def _nearest(value: Any, problems: list[Problem | None]) -> Problem:
    """The problem deepest inside, of the alternative that was probably meant."""
    deepest = max((each for each in problems if each is not None), key=lambda each: len(each.path))
    return deepest if deepest.path else Problem(f"{_shown(value)} is not valid under any of the given schemas")


def _not(schema: Any, value: Any, _around: Any, work: _Work, _seen: Any) -> Problem | None:
    if _problem(schema, value, work, _Seen()) is not None:
        return None
    return Problem(f"{_shown(value)} matches what it must not match")


def _if(schema: Any, value: Any, around: Any, work: _Work, seen: _Seen) -> Problem | None:
    inside = _Seen()
    is_met = _problem(schema, value, work, inside) is None
    if is_met:
        seen.add(inside, work)
    branch = "then" if is_met else "else"
    return _all_of([around[branch]], value, around, work, seen) if branch in around else None


def _dependent_schemas(schemas: dict[str, Any], value: Any, around: Any, work: _Work, seen: _Seen) -> Problem | None:
    if not isinstance(value, dict):
        return None
    work.spend(len(schemas))
    return _all_of([schema for name, schema in schemas.items() if name in value], value, around, work, seen)


type _Check = Callable[[Any, Any, Any, _Work, _Seen], Problem | None]

_CHECKS: dict[str, _Check] = {
    "additionalProperties": _additional_properties,
    "allOf": _all_of,
    "anyOf": _any_of,
    "const": _const,
    "contains": _contains,
    "dependentRequired": _dependent_required,
    "dependentSchemas": _dependent_schemas,
    "enum": _enum,
    "exclusiveMaximum": _bound(lambda value, bound: value < bound, "greater than or equal to the maximum of"),
    "exclusiveMinimum": _bound(lambda value, bound: value > bound, "less than or equal to the minimum of"),
    "if": _if,
    "items": _items_after,
    "maximum": _bound(lambda value, bound: value <= bound, "greater than the maximum of"),
    "maxItems": _size(list, lambda size, limit: size <= limit, "is too long"),
    "maxLength": _size(str, lambda size, limit: size <= limit, "is too long"),
    "maxProperties": _size(dict, lambda size, limit: size <= limit, "has too many properties"),
    "minimum": _bound(lambda value, bound: value >= bound, "less than the minimum of"),
    "minItems": _size(list, lambda size, limit: size >= limit, "is too short"),
    "minLength": _size(str, lambda size, limit: size >= limit, "is too short"),
    "minProperties": _size(dict, lambda size, limit: size >= limit, "does not have enough properties"),
    "multipleOf": _multiple_of,
    "not": _not,
    "oneOf": _one_of,
    "prefixItems": _prefix_items,
    "properties": _properties,
    "propertyNames": _property_names,
    "required": _required,
    "type": _type,
    "uniqueItems": _unique_items,
}
_LAST_CHECKS: dict[str, _Check] = {
    "unevaluatedItems": _unevaluated_items,
    "unevaluatedProperties": _unevaluated_properties,
}
