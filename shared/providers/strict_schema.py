"""Which JSON Schemas fit the strict mode of OpenAI's structured outputs, and which models are sent one at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.prices import price_table
from shared.types import Candidate, WantedSchema

# Keywords that strict mode takes. Source: platform.openai.com/docs/guides/structured-outputs (from general knowledge,
# 2026-11-28).
_KEYWORDS = frozenset(
    {
        *("type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf", "$ref", "$defs"),
        *("definitions", "title", "description", "format", "pattern", "minimum", "maximum", "multipleOf"),
        *("exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems"),
    }
)
# Providers with a JSON mode but without one for schemas.
# Source: api-docs.deepseek.com/guides/json_mode (from general knowledge, 2026-11-28).
_JSON_ONLY = frozenset({"deepseek"})
_MAX_DEPTH = 10
_MAX_PROPERTIES = 5000


def fits_strict(schema: Any) -> bool:
    """Whether every object of a schema is closed and requires all of its properties, with no keyword beyond these."""
    count = _properties(schema, 0)
    is_object = isinstance(schema, Mapping) and schema.get("type") == "object" and "anyOf" not in schema
    return is_object and count is not None and count <= _MAX_PROPERTIES


def _properties(schema: Any, depth: int) -> int | None:
    """The number of properties in a schema that fits; None if it does not."""
    if not isinstance(schema, Mapping) or not schema or depth > _MAX_DEPTH or not schema.keys() <= _KEYWORDS:
        return None
    properties = schema.get("properties", {})
    kind = schema.get("type")
    if kind == "object" or (isinstance(kind, list) and "object" in kind) or properties:
        if schema.get("additionalProperties") is not False or not isinstance(properties, Mapping):
            return None
        if set(schema.get("required", ())) != set(properties):
            return None
    elif not schema.keys() & {"type", "enum", "const", "anyOf", "$ref"}:
        return None
    named = (schema.get(name, {}) for name in ("properties", "$defs", "definitions"))
    parts = [part for group in named if isinstance(group, Mapping) for part in group.values()]
    parts += [schema["items"]] if "items" in schema else []
    parts += schema["anyOf"] if isinstance(schema.get("anyOf"), list) else []
    if kind == "array" and "items" not in schema:
        return None
    total = len(properties)
    for part in parts:
        inner = _properties(part, depth + 1)
        if inner is None:
            return None
        total += inner
    return total


def is_small_expanded(value: Any, most: int) -> bool:
    """
    Whether nested data has at most so many parts once each `$ref` in it is replaced by what it refers to.

    A few references to schemas that refer to others can stand for millions of parts.
    """
    waiting: list[tuple[Any, Mapping[str, Any], frozenset[str]]] = [(value, {}, frozenset())]
    for _ in range(most):
        if not waiting:
            break
        part, known, inside = waiting.pop()
        if isinstance(part, list):
            waiting += [(each, known, inside) for each in part]
        elif isinstance(part, Mapping):
            for own in (part.get("$defs"), part.get("definitions")):
                known = {**known, **own} if isinstance(own, Mapping) else known
            name = str(part["$ref"]).rpartition("/")[2] if "$ref" in part else None
            if name is None:
                waiting += [(each, known, inside) for each in part.values()]
            elif name in known and name not in inside:
                waiting.append((known[name], known, inside | {name}))
    return not waiting


def fitted_format(candidate: Candidate, response_format: Any) -> Any:
    """
    A response_format that was made from a class or a schema, strict only where the schema fits.

    Returns:
        None where the model has no JSON mode of its own for a `WantedSchema`.
    """
    wanted = response_format.get("json_schema") if isinstance(response_format, dict) else None
    if not isinstance(wanted, dict):
        return response_format
    fits = fits_strict(wanted.get("schema"))
    if isinstance(response_format, WantedSchema) and not _takes_schemas(candidate, fits=fits):
        is_object = wanted.get("schema", {}).get("type") == "object"
        return {"type": "json_object"} if candidate.provider in _JSON_ONLY and is_object else None
    return {**response_format, "json_schema": {**wanted, "strict": bool(wanted.get("strict")) and fits}}


def _takes_schemas(candidate: Candidate, *, fits: bool) -> bool:
    if candidate.answered_at is not None or candidate.provider in _JSON_ONLY:
        return False
    can = (price_table().get(f"{candidate.provider}/{candidate.wire_model}") or {}).get("can", ())
    if candidate.provider == "anthropic":
        return fits and "native_schema" in can  # it refuses objects that are not closed
    return "schema" in can
