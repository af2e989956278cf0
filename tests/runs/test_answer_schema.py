"""Answers that must match a JSON Schema: how the JSON in them is found, and when a model is not asked again."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from shared.errors import BadResponse, ContextTooLong, InvalidRequest
from shared.runs.answer_schema import Mismatch, ask_until_match, match_schema
from shared.types import LLMResponse, WantedSchema
from tests.support.answering import ask_in_turn

SCHEMA = json.dumps({"type": "object", "properties": {"port": {"type": "integer"}}, "required": ["port"]})


@pytest.mark.parametrize(
    "text",
    [
        '{"port": 8080}',
        '```json\n{"port": 8080}\n```',
        '```\n{"port": 8080}\n```',
        'Here it is:\n\n```json\n{"port": 8080}\n```\nAnything else?',
        'Sure! {"port": 8080}',
        'The port is {"port": 8080}, as you asked.',
        '{"note": "no port"} is wrong, so {"port": 8080}',
        '<think>{"port": 1}</think>{"port": 8080}',
        '[1, 2] or rather {"port": 8080}',
        'In {braces} and [brackets]: {"port": 8080}',
        '\n\n {"port": 8080} \n',
    ],
)
def test_json_is_found(text: str) -> None:
    """JSON behind a sentence, before one, or in a fence is read."""
    assert match_schema(text, SCHEMA) == ({"port": 8080}, None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Certainly!", "it is not JSON"),
        ('{"port": ', "it is not JSON"),
        ('{"port": NaN}', "it is not JSON"),
        ("{" * 100_000, "it is not JSON"),
        ('{"port": "x"}', "'x' is not of type 'integer' at port"),
        ('Here: {"port": "x"}', "'x' is not of type 'integer' at port"),
        ('{"a": {"port": 1}}', "'port' is a required property"),
    ],
)
def test_what_does_not_match(text: str, problem: str) -> None:
    """The problem is the first JSON's, and broken or hostile text is simply none."""
    assert match_schema(text, SCHEMA)[1] == problem


def response(text: str, finish: str = "stop", **metadata: Any) -> LLMResponse:
    """An answer that cost a dollar."""
    return LLMResponse(text, "openai/m", "openai", {}, 1.0, 1.0, {"finish_reason": finish, **metadata})


def run(*answers: LLMResponse | Exception) -> tuple[Any, list[tuple[Mismatch | None, WantedSchema | None]]]:
    """What comes of these answers in turn, and what was asked."""
    asked: list[tuple[Mismatch | None, WantedSchema | None]] = []

    try:
        return asyncio.run(ask_until_match(ask_in_turn(answers, asked), SCHEMA)), asked
    except Exception as error:  # noqa: BLE001 - handed to the test
        return error, asked


def test_a_cut_answer_is_not_asked_for_again() -> None:
    """An answer that was cut off says so, with what it cost and what to change, and is not paid for twice."""
    error, asked = run(response('{"port": 80', "length"))
    assert type(error) is BadResponse
    assert len(asked) == 1
    assert error.cost == 1.0
    assert "cut off" in error.message
    assert "max_tokens" in error.next_step
    error, asked = run(response("no"), response('{"port": 80', "length"))
    assert "cut off" in error.message
    assert (len(asked), error.cost) == (2, 2.0)
    error, _ = run(response('{"po', "length", output_cut_to_tokens=5))
    assert "5 tokens that the budget allows" in error.message


def test_an_answer_that_is_whole_all_the_same() -> None:
    """An answer that ends at the limit but matches is an answer."""
    matched, asked = run(response('{"port": 80}', "length"))
    assert (matched.data, len(asked)) == ({"port": 80}, 1)


def test_a_json_mode_that_is_refused_is_left_out() -> None:
    """A provider that refuses the schema as its JSON mode, for nothing, is asked in words; other errors are raised."""
    refused = InvalidRequest("openai rejected the request: response_format is not supported", outcome="rejected")
    matched, asked = run(refused, response('{"port": 80}'))
    assert matched.data == {"port": 80}
    assert [wanted is None for _, wanted in asked] == [False, True]
    for other in (InvalidRequest("no such voice"), ContextTooLong("too long for response_format")):
        error, asked = run(other)
        assert error is other
        assert len(asked) == 1
