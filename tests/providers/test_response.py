"""Answers and what only looks like one: text, tool calls, usage, cost."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest

from shared import errors
from shared.errors import LLMError
from shared.providers.usage import anthropic_usage, cohere_usage, gemini_usage, openai_usage
from shared.types import Usage
from tests.support.loopback import ask, candidate, http, sse, streamed
from tests.support.wires import (
    OPENAI_USAGE,
    candidates,
    chunk,
    completion,
    said,
)

BAD_BODIES: Sequence[Any] = [
    ("<html>hello</html>", errors.BadResponse, "unknown"),
    ("", errors.BadResponse, "unknown"),
    ("   \n", errors.BadResponse, "unknown"),
    ('{"choices": [{"mess', errors.BadResponse, "unknown"),
    ("[]", errors.BadResponse, "unknown"),
    ("null", errors.BadResponse, "unknown"),
    ("{}", errors.BadResponse, "unknown"),
    ("[" * 100_000, errors.BadResponse, "unknown"),
    (b"\xff\xfe\xfd", errors.BadResponse, "unknown"),
    ({"choices": []}, errors.BadResponse, "unknown"),
    ({"choices": ["x"]}, errors.BadResponse, "unknown"),
    ({"choices": [{"index": 0}]}, errors.BadResponse, "unknown"),
    ({"choices": [{"message": "x"}]}, errors.BadResponse, "unknown"),
    ({"choices": [{"message": {"content": 7}}]}, errors.BadResponse, "unknown"),
    (said("no", type="overloaded_error"), errors.Overloaded, "rejected"),
    (said("no", code=429), errors.RateLimitError, "rejected"),
    (said("no", code="insufficient_quota"), errors.QuotaExhausted, "rejected"),
    (said("no", type="invalid_request_error"), errors.InvalidRequest, "rejected"),
    (said("no", status="RESOURCE_EXHAUSTED"), errors.RateLimitError, "rejected"),
    ({"error": "strange"}, errors.ProviderUnavailable, "unknown"),
    ({"object": "error", "message": "rate limit", "type": "x"}, errors.RateLimitError, "rejected"),
    (completion({"content": "x"}, "error"), errors.ProviderUnavailable, "unknown"),
    (completion({"content": None, "refusal": "I will not."}), errors.ContentBlocked, "completed"),
    (completion({"content": ""}, "content_filter"), errors.ContentBlocked, "completed"),
]


@pytest.mark.parametrize(("body", "kind", "outcome"), BAD_BODIES)
def test_a_200_that_is_no_answer(body: Any, kind: type[LLMError], outcome: str) -> None:
    """An HTTP 200 is believed only when there is an answer in it; an error in it is that error."""
    error = ask(candidate(), http(body)).failure
    assert type(error) is kind, error
    assert (error.outcome, error.status_code) == (outcome, 200)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("anthropic", {"content": "x"}),
        ("anthropic", {"content": [7]}),
        ("anthropic", {}),
        ("gemini", {}),
        ("gemini", {"candidates": ["x"]}),
        ("gemini", {"candidates": [{"content": {"parts": "x"}}]}),
        ("cohere", {"message": "x"}),
        ("cohere", {"message": {"content": ["x"]}}),
        ("ollama", {"message": "x"}),
        ("ollama", {"response": "x"}),
        ("replicate", {"id": "x", "status": "succeeded", "output": {"a": 1}}),
        ("replicate", {"status": "processing"}),
        ("replicate", {"id": "../x", "status": "processing"}),
    ],
)
def test_other_wires_that_break_their_shape(name: str, body: Any) -> None:
    """A body of the wrong shape is a bad answer and no crash, on every wire."""
    error = ask(candidate(name, "m"), http(body)).failure
    assert isinstance(error, errors.BadResponse | errors.ProviderUnavailable)
    assert error.outcome == "unknown"


@pytest.mark.parametrize(
    ("message", "text", "finish"),
    [
        ({"content": None}, "", "length"),
        ({"content": ""}, "", "stop"),
        ({"content": "part"}, "part", "content_filter"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "thinking", "thinking": "b"}]}, "a", "stop"),
        ({"content": "a\ud83d\ude00b\udc00"}, "a\U0001f600b�", "stop"),
        ({"content": "x"}, "x", None),
    ],
)
def test_answers_that_are_some(message: Any, text: str, finish: str | None) -> None:
    """Little or no text is an answer when the provider says why, and nothing is made up where it does not."""
    body = json.dumps(completion(message, finish))
    answer = ask(candidate(), http(body)).answer
    assert (answer.text, answer.finish_reason) == (text, finish)


def test_an_unknown_finish_reason_is_passed_on() -> None:
    """A provider's own word for the end is passed on as it is; no word at all does not become one."""
    assert ask(candidate(), http(completion(finish="Galaxy"))).answer.finish_reason == "Galaxy"
    assert ask(candidate(), http(completion(finish=None))).answer.finish_reason is None


CALLS = [{"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_tool_calls_alone(stream: bool) -> None:
    """An answer that only calls tools is an answer, put together from the parts of a stream."""
    parts = [
        {"index": 0, "id": "t1", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"a"'}},
        {"index": 0, "function": {"arguments": ": 1}"}},
    ]
    chunks = [{"choices": [{"index": 0, "delta": {"tool_calls": [part]}, "finish_reason": None}]} for part in parts]
    plain = http(completion({"content": None, "tool_calls": CALLS}, "tool_calls"))
    answer = ask(candidate(), sse(*chunks, chunk(finish="tool_calls")) if stream else plain, stream=stream).answer
    assert (answer.text, answer.finish_reason) == ("", "tool_calls")
    assert answer.message == {"role": "assistant", "content": None, "tool_calls": CALLS}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("name", ["anthropic", "gemini", "cohere", "ollama"])
def test_tool_calls_on_other_wires(name: str, stream: bool) -> None:
    """Each wire's tool calls become OpenAI's."""
    function = {"name": "f", "arguments": {"a": 1}}
    use = {"type": "tool_use", "id": "t1", "name": "f", "input": {} if stream else {"a": 1}}
    part = {"functionCall": {"name": "f", "args": {"a": 1}}}
    cohere = {"tool_calls": CALLS[0] if stream else CALLS}
    bodies: dict[str, list[Any]] = {
        "anthropic": [
            {"content": [use], "model": "m", "stop_reason": "tool_use", "usage": {}},
            {"type": "message_start", "message": {"model": "m"}},
            {"type": "content_block_start", "index": 0, "content_block": use},
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "input_json_delta", "partial_json": '{"a": 1}'},
            },
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "tool_use"}},
            {"type": "message_stop"},
        ],
        "gemini": [{"candidates": [{"content": {"parts": [part]}, "finishReason": "STOP"}]}] * 2,
        "cohere": [
            {"message": cohere, "finish_reason": "TOOL_CALL"},
            {"type": "tool-call-start", "index": 0, "delta": {"message": cohere}},
            {"type": "message-end", "delta": {"finish_reason": "TOOL_CALL"}},
        ],
        "ollama": [
            {"message": {"content": "", "tool_calls": [{"function": function}]}, "done": True, "done_reason": "stop"}
        ]
        * 2,
    }
    plain, *events = bodies[name]
    reply = sse(*events, done=False) if name != "ollama" else streamed(json.dumps(plain))
    answer = ask(candidate(name, "m"), reply if stream else http(plain), stream=stream).answer
    [call] = answer.message["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("f", {"a": 1})
    assert answer.finish_reason == "tool_calls"


def test_json_by_way_of_a_tool() -> None:
    """Where LiteLLM asks for JSON by a tool, because the model has no JSON mode, the answer is text all the same."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    call = {"id": "1", "type": "function", "function": {"name": "json_tool_call", "arguments": '{"a": 1}'}}
    reply = http(completion({"content": None, "tool_calls": [call]}, "tool_calls"))
    told = ask(candidate("groq", "llama-3.1-8b-instant"), reply, stream=True, response_format=wanted)
    assert told.asked[0].body["stream"] is False
    assert (told.texts, told.answer.text, told.answer.finish_reason) == (['{"a": 1}'], '{"a": 1}', "stop")
    use = {"type": "tool_use", "id": "t", "name": "json_tool_call", "input": {"a": 1}}
    body = {"content": [use], "model": "m", "stop_reason": "tool_use", "usage": {"input_tokens": 1, "output_tokens": 1}}
    answer = ask(candidate("anthropic", "claude-3-haiku-20240307"), http(body), response_format=wanted).answer
    assert (json.loads(answer.text), answer.finish_reason) == ({"a": 1}, "stop")


def test_thoughts_are_kept_for_the_next_turn() -> None:
    """What a model thought is not its text, and the signed thoughts that the next turn needs are in the message."""
    events = [
        {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 1, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm."}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "S"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]
    answer = ask(candidate("anthropic", "claude-haiku-4-5"), sse(*events, done=False), stream=True).answer
    assert answer.text == "Hi"
    assert answer.message["reasoning_content"] == "Hm."
    assert answer.message["thinking_blocks"] == [{"type": "thinking", "thinking": "Hm.", "signature": "S"}]


def test_gemini_holds_back_only_what_it_says() -> None:
    """Text that came before Gemini's filter is kept; a prompt that it refuses is ContentBlocked with its reason."""
    answer = ask(candidate("gemini", "m"), http(candidates("Some text", "SAFETY"))).answer
    assert (answer.text, answer.finish_reason) == ("Some text", "content_filter")
    error = ask(candidate("gemini", "m"), http({"promptFeedback": {"blockReason": "SAFETY"}})).failure
    assert type(error) is errors.ContentBlocked
    assert "SAFETY" in error.message


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, Usage()),
        ({}, Usage()),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, Usage()),
        ({"prompt_tokens": 5, "completion_tokens": 0}, Usage(5, 0, source="provider")),
        ({"prompt_tokens": 5}, Usage(5, None, source="provider")),
        ({"prompt_tokens": -5, "completion_tokens": 3}, Usage()),
        ({"prompt_tokens": 5, "completion_tokens": 10**15}, Usage()),
        ({"prompt_tokens": "5", "completion_tokens": 3}, Usage()),
        ({"prompt_tokens": math.nan, "completion_tokens": 3}, Usage()),
        ({"prompt_tokens": True, "completion_tokens": 3}, Usage()),
        ({"prompt_tokens": 1.5, "completion_tokens": 3}, Usage()),
        ({"prompt_tokens": 5.0, "completion_tokens": 3}, Usage(5, 3, source="provider")),
        ({"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": "x"}, Usage(5, 3, source="provider")),
        (
            {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 9}},
            Usage(5, 3, source="provider"),
        ),
        (
            {"prompt_tokens": 5, "completion_tokens": 3, "prompt_cache_hit_tokens": 2},
            Usage(5, 3, 2, source="provider"),
        ),
        ({"prompt_tokens": 5, "completion_tokens": 3, "cached_tokens": 2}, Usage(5, 3, 2, source="provider")),
        ({"prompt_tokens": 5, "completion_tokens": 3, "cached_tokens": 0}, Usage(5, 3, source="provider")),
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 3,
                "total_tokens": 18,
                "completion_tokens_details": {"reasoning_tokens": 10},
            },
            Usage(5, 13, reasoning_tokens=10, source="provider"),
        ),
    ],
)
def test_counts_that_can_be_true(usage: Any, expected: Usage) -> None:
    """Usage is what the provider said if it can be true, else unknown; never zero because it is missing."""
    body = json.dumps(completion(usage=usage))
    assert ask(candidate(), http(body)).answer.usage == expected


def test_usage_of_other_wires() -> None:
    """Prompt tokens include what the cache gave, completion tokens what was thought, on every wire."""
    assert anthropic_usage({"input_tokens": 1, "cache_read_input_tokens": 5, "output_tokens": 2}).prompt_tokens == 6
    steps = [{"input_tokens": 3, "output_tokens": 1}, {"input_tokens": 4, "output_tokens": 2}]
    compacted = anthropic_usage({"input_tokens": 4, "output_tokens": 2, "iterations": steps})
    assert (compacted.prompt_tokens, compacted.completion_tokens) == (7, 3)
    thinking = {"output_tokens": 9, "input_tokens": 1, "output_tokens_details": {"thinking_tokens": 4}}
    assert anthropic_usage(thinking).reasoning_tokens == 4
    only_thoughts = {"promptTokenCount": 3, "thoughtsTokenCount": 7, "totalTokenCount": 10}
    assert gemini_usage(only_thoughts) == Usage(3, 7, reasoning_tokens=7, source="provider")
    assert gemini_usage({"promptTokenCount": 3, "totalTokenCount": 3}) == Usage(3, 0, source="provider")
    inclusive = {"promptTokenCount": 3, "candidatesTokenCount": 9, "thoughtsTokenCount": 4, "totalTokenCount": 12}
    assert gemini_usage(inclusive).completion_tokens == 9
    fed_back = {"promptTokenCount": 3, "toolUsePromptTokenCount": 5, "candidatesTokenCount": 1}
    assert gemini_usage(fed_back).prompt_tokens == 8
    assert gemini_usage({"trafficType": "ON_DEMAND"}) == Usage()
    assert cohere_usage({"billed_units": {"input_tokens": 1, "output_tokens": 2}}) == Usage(1, 2, source="provider")
    assert openai_usage({"input_tokens": 1}) == Usage()


@pytest.mark.parametrize(
    ("name", "usage", "cost"),
    [
        ("openrouter", {"cost": 0.00219855}, Decimal("0.00219855")),
        ("openrouter", {"cost": 0}, Decimal(0)),
        (
            "openrouter",
            {"cost": 0.01, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.2}},
            Decimal("0.21"),
        ),
        ("openrouter", {"cost": -1}, None),
        ("openrouter", {"cost": "free"}, None),
        ("openrouter", {}, None),
        ("perplexity", {"cost": {"total_cost": 0.006}}, Decimal("0.006")),
        ("xai", {"cost_in_usd_ticks": 37756000}, Decimal("0.0037756")),
        # A server of the user's own has no list price: what it says is all that is known. It was left out before.
        ("custom", {"cost": 5}, Decimal(5)),
        ("custom", {"cost": 0}, None),
        ("openai", {"cost": 5}, None),
    ],
)
def test_reported_cost(name: str, usage: Any, cost: Decimal | None) -> None:
    """The exact price is taken, to the last digit, from the providers that tell it in US$ and from the user's own."""
    base = "http://127.0.0.1:1" if name == "custom" else None
    body = completion(usage={**OPENAI_USAGE, **usage})
    assert ask(candidate(name, "m", api_base=base), http(body)).answer.reported_cost == cost
