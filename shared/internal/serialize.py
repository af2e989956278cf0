"""The one place that writes JSON: unknown numbers are null, money and times are exact, nothing is a Python repr."""

from __future__ import annotations

import dataclasses
import json
import math
import uuid
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any


def to_json(value: Any, *, indent: int | None = None) -> str:
    """`value` as JSON text; NaN and infinity become null."""
    return json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False, indent=indent)


def jsonable(value: Any) -> Any:
    """
    `value` converted to types that JSON supports.

    Raises:
        TypeError: `value` contains something that has no JSON form.
    """
    match value:
        case None | bool() | int():
            return value
        case Enum():
            return jsonable(value.value)
        case str():
            # A lone surrogate cannot be encoded as UTF-8, and providers do send them.
            return value.encode("utf-8", "replace").decode("utf-8")
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return str(value) if value.is_finite() else None
        case datetime() | date():
            return value.isoformat()
        case uuid.UUID() | Path():
            return str(value)
        case Mapping():
            return {jsonable(str(key)): jsonable(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [jsonable(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):
        return jsonable(value.model_dump())
    raise TypeError(f"{type(value).__name__} has no JSON form")
