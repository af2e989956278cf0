"""JSON: unknown numbers are null, money and time are exact, and whatever has no JSON form is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydantic import BaseModel, SecretStr

from shared.internal.serialize import jsonable, to_json
from shared.types import EventType, LLMResponse


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Model(BaseModel):
    name: str
    cost: float | None = None


@pytest.mark.parametrize(
    "unknown", [math.nan, math.inf, -math.inf, Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"), None], ids=repr
)
def test_an_unknown_number_is_null(unknown: Any) -> None:
    """NaN and infinity are null in JSON, wherever they stand and whichever type holds them."""
    assert to_json({"cost": unknown, "all": [unknown]}) == '{"cost": null, "all": [null]}'


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (True, True),
        (7, 7),
        (2**70, 2**70),
        (0.1, 0.1),
        (Decimal("0.1000"), "0.1000"),
        (Colour.RED, "red"),
        (Level.LOW, 1),
        (EventType.LLM_COST, "llm_cost"),
        (datetime(2026, 11, 24, 12, tzinfo=UTC), "2026-11-24T12:00:00+00:00"),
        (date(2026, 11, 24), "2026-11-24"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Path("a") / "b", "a/b"),
        ((1, 2), [1, 2]),
        (frozenset({3}), [3]),
        ({Level.LOW: "x", 2: "y", uuid.UUID(int=0): "z"}, {"1": "x", "2": "y", str(uuid.UUID(int=0)): "z"}),
        (Model(name="m", cost=math.nan), {"name": "m", "cost": None}),
    ],
    ids=repr,
)
def test_what_has_a_plain_form_gets_it(value: Any, plain: Any) -> None:
    """Enums are their values, money is exact text, times are ISO 8601, and keys are text."""
    assert jsonable(value) == plain
    assert json.loads(to_json(value)) == plain


@pytest.mark.parametrize("value", [object(), b"bytes", SecretStr("secret"), 1j, {"x": object()}, LLMResponse])
def test_what_has_no_json_form_is_refused(value: Any) -> None:
    """Nothing reaches a reader as a Python repr; a secret has no JSON form at all."""
    with pytest.raises(TypeError, match="has no JSON form") as caught:
        to_json(value)
    assert "secret" not in str(caught.value).lower().removeprefix("secretstr")


def test_a_response_is_json() -> None:
    """An LLMResponse of unknown cost has a JSON form with null in it."""
    response = LLMResponse("hi", "m", "p", {"prompt_tokens": 1}, math.nan, 2.5, {"attempts": [{"cost": math.nan}]})
    assert json.loads(to_json(response)) == {
        "content": "hi",
        "model": "m",
        "provider": "p",
        "usage": {"prompt_tokens": 1},
        "cost": None,
        "latency_ms": 2.5,
        "metadata": {"attempts": [{"cost": None}]},
        "images": [],
    }


def test_a_lone_surrogate_can_be_written() -> None:
    """Text that UTF-8 cannot hold, as a value or as a key, is replaced and not raised at."""
    text = to_json({"bad \ud83d key": "half \ud83d", "good": "😀"})
    assert json.loads(text.encode()) == {"bad ? key": "half ?", "good": "😀"}


def test_text_stays_readable() -> None:
    """Text of other scripts is not escaped."""
    assert to_json({"名": "값"}) == '{"名": "값"}'


@dataclasses.dataclass
class Nested:
    value: Any


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.decimals() | st.text(st.characters()) | st.uuids()
values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner) | inner.map(Nested)
)


@given(values)
def test_everything_plain_is_strict_json(value: Any) -> None:
    """Whatever is built of plain values is JSON that any strict parser and UTF-8 take."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(to_json(value).encode("utf-8"), parse_constant=refuse)
    assert jsonable(jsonable(value)) == jsonable(value)
