"""Ends of answers: what is understood, what is passed on, and what is no success."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any

import pytest
from agents import ModelSettings, ModelTracing
from hypothesis import given, settings, strategies as st

from shared import errors
from shared.agent_model import budgeted
from shared.errors import LLMError
from shared.llm_client import LLMClient
from shared.providers.response import Reading, take_openai, take_openai_event
from shared.providers.sse import StreamReader
from tests.support.examples import at_most
from tests.support.loopback import Reply, ask, candidate, http, sse, streamed
from tests.support.provider_double import Double
from tests.support.wires import chunk, completion

# An answer with nothing in it and the given finish reason, whole and as the events of a stream, for each wire.
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def openai(reason: Any, text: str | None = None, calls: list[Any] | None = None) -> tuple[Any, list[Any]]:
    message = {"content": text, "tool_calls": calls}
    return completion(message, reason), [
        {"id": "c", "choices": [{"index": 0, "delta": message, "finish_reason": None}]},
        {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]},
    ]


def anthropic(reason: Any, text: str | None = None, calls: list[Any] | None = None) -> tuple[Any, list[Any]]:
    blocks: list[Any] = [{"type": "text", "text": text}] if text else []
    blocks += [{"type": "tool_use", "id": "c", "name": "f", "input": {}}] if calls else []
    whole = {"type": "message", "role": "assistant", "content": blocks, "model": "m", "stop_reason": reason}
    events: list[Any] = [{"type": "message_start", "message": {"model": "m", "content": []}}]
    for number, block in enumerate(blocks):
        begin = {**block, "text": ""} if text and not calls else block
        events.append({"type": "content_block_start", "index": number, "content_block": begin})
        delta = {"type": "text_delta", "text": text} if "text" in block else {"type": "input_json_delta"}
        delta |= {} if "text" in block else {"partial_json": "{}"}
        events.append({"type": "content_block_delta", "index": number, "delta": delta})
        events.append({"type": "content_block_stop", "index": number})
    return whole, [*events, {"type": "message_delta", "delta": {"stop_reason": reason}}, {"type": "message_stop"}]


def gemini(reason: Any, text: str | None = None, calls: list[Any] | None = None) -> tuple[Any, list[Any]]:
    parts: list[Any] = [{"text": text}] if text else []
    parts += [{"functionCall": {"name": "f", "args": {}}}] if calls else []
    found = {"index": 0, **({"content": {"role": "model", "parts": parts}} if parts else {})}
    if reason is not None:
        found["finishReason"] = reason
    return {"candidates": [found]}, [{"candidates": [found]}]


def cohere(reason: Any, text: str | None = None, calls: list[Any] | None = None) -> tuple[Any, list[Any]]:
    message = {"role": "assistant", "content": [{"type": "text", "text": text}] if text else [], "tool_calls": calls}
    events: list[Any] = [{"type": "message-start", "id": "c", "delta": {"message": {"content": []}}}]
    if text:
        events.append({"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": text}}}})
    if calls:
        events.append({"type": "tool-call-start", "index": 0, "delta": {"message": {"tool_calls": calls[0]}}})
    return {"id": "c", "message": message, "finish_reason": reason}, [
        *events,
        {"type": "message-end", "delta": {"finish_reason": reason}},
    ]


def ollama(reason: Any, text: str | None = None, calls: list[Any] | None = None) -> tuple[Any, list[Any]]:
    functions = [{"function": {"name": "f", "arguments": {}}}] if calls else None
    body = {"model": "m", "message": {"content": text or "", "tool_calls": functions}, "done": True}
    return body | {"done_reason": reason}, [body | {"done_reason": reason}]


def replicate(_reason: Any, text: str | None = None, calls: list[Any] | None = None) -> tuple[Any, list[Any]]:
    body = {"id": "p1", "status": "succeeded", "output": [text] if text else None}
    return body, [body]


WIRES = {
    "openai": openai,
    "anthropic": anthropic,
    "gemini": gemini,
    "cohere": cohere,
    "ollama": ollama,
    "replicate": replicate,
}
MODELS = {
    "openai": "openai/gpt-4.1-mini",
    "anthropic": "anthropic/claude-haiku-4-5",
    "gemini": "gemini/gemini-2.5-flash",
    "cohere": "cohere/command-a-03-2025",
    "ollama": "ollama/llama3.2",
    "replicate": "replicate/meta/meta-llama-3-8b-instruct",
}
WITH_CALLS = [name for name in WIRES if name != "replicate"]
# What providers send when they gave up, threw the answer away, or ended in a way that nobody here has heard of.
STRANGE = [
    "MALFORMED_FUNCTION_CALL",
    "UNEXPECTED_TOOL_CALL",
    "TOO_MANY_TOOL_CALLS",
    "MISSING_THOUGHT_SIGNATURE",
    "FINISH_REASON_UNSPECIFIED",
    "OTHER",
    "abort",
    "cancelled",
    "load_shed",
    "load",
    "tool_calls",
    "galaxy",
    None,
]


def reply_of(name: str, reason: Any, *, stream: bool, **content: Any) -> Reply:
    whole, events = WIRES[name](reason, **content)
    if name == "replicate" or not stream:
        return http(whole)
    if name == "ollama":
        return streamed("".join(json.dumps(event) + "\n" for event in events))
    return sse(*events, done=name == "openai")


@pytest.mark.parametrize("stream", [False, True], ids=["chat", "stream"])
@pytest.mark.parametrize("name", WIRES)
@pytest.mark.parametrize("reason", STRANGE)
def test_a_strange_end_with_nothing_is_no_success(reason: Any, name: str, stream: bool) -> None:
    """An end that is not understood and has nothing to show is an error that goes to the next model, on every wire."""
    error = ask(candidate(name, "m"), reply_of(name, reason, stream=stream), stream=stream).failure
    assert type(error) in (errors.BadResponse, errors.ProviderUnavailable, errors.Overloaded), error
    assert (str(error.action), error.outcome) == ("retry", "unknown")


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("name", WIRES)
@pytest.mark.parametrize("reason", ["MALFORMED_FUNCTION_CALL", "galaxy", "abort"])
def test_nor_in_an_agents_turn(
    hosted: Double, monkeypatch: pytest.MonkeyPatch, reason: str, name: str, stream: bool
) -> None:
    """An agent's turn of that kind ends with the error too, and not with an empty message."""
    monkeypatch.setenv("REPLICATE_API_KEY", "r8-test-0123456789")
    whole, events = WIRES[name](reason)
    if name == "ollama":
        body: Any = "".join(json.dumps(event) + "\n" for event in events)
    elif stream and name != "replicate":
        body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    else:
        body = whole
    hosted.always(name, body=body, content_type="text/event-stream" if isinstance(body, str) else "")
    model: Any = budgeted(MODELS[name], [], client=LLMClient(max_retries=0))
    arguments: Any = (None, "hi", ModelSettings(), [], None, [], ModelTracing.DISABLED)

    async def turn() -> Any:
        if stream:
            return [event async for event in model.stream_response(*arguments)]
        return await model.get_response(*arguments)

    with pytest.raises(LLMError) as caught:
        asyncio.run(turn())
    assert type(caught.value) in (errors.BadResponse, errors.ProviderUnavailable)
    assert len(hosted.requests) == 1


@pytest.mark.parametrize("stream", [False, True], ids=["chat", "stream"])
@pytest.mark.parametrize("name", WITH_CALLS)
@pytest.mark.parametrize(
    ("reason", "passed_on"),
    [
        ("galaxy", "galaxy"),
        ("pause_turn", "pause_turn"),
        ("max_output_tokens", "length"),
        ("MAX_TOKENS", "length"),
        ("max_new_tokens", "length"),
        ("MALFORMED_FUNCTION_CALL", "MALFORMED_FUNCTION_CALL"),
    ],
)
def test_a_word_of_the_providers_is_passed_on(reason: str, passed_on: str, name: str, stream: bool) -> None:
    """With text, the provider's word for the end is passed on as it is; each word of a limit is `length`."""
    answer = ask(candidate(name, "m"), reply_of(name, reason, stream=stream, text="Hi"), stream=stream).answer
    assert (answer.text, answer.finish_reason) == ("Hi", passed_on)


@pytest.mark.parametrize("stream", [False, True], ids=["chat", "stream"])
@pytest.mark.parametrize("name", WITH_CALLS)
@pytest.mark.parametrize("reason", ["stop", "STOP", "end_turn", "COMPLETE"])
def test_tool_calls_end_as_tool_calls(reason: str, name: str, stream: bool) -> None:
    """An answer with tool calls ends as `tool_calls` on every wire, whatever its own word for a normal end."""
    answer = ask(candidate(name, "m"), reply_of(name, reason, stream=stream, calls=[CALL]), stream=stream).answer
    assert answer.finish_reason == "tool_calls"
    assert len(answer.message["tool_calls"]) == 1


@pytest.mark.parametrize("reason", ["abort", "aborted", "cancelled", "USER_CANCEL", "load_shed", "disconnected"])
def test_an_interruption_is_one(reason: str) -> None:
    """An answer that was stopped under way is no whole answer: after text in a stream it is StreamInterrupted."""
    told = ask(candidate(), reply_of("openai", reason, stream=True, text="Half an"), stream=True)
    assert type(told.failure) is errors.StreamInterrupted
    assert told.texts == ["Half an"]
    error = ask(candidate(), reply_of("openai", reason, stream=False, text="Half an")).failure
    assert isinstance(error, errors.ProviderUnavailable)
    assert error.outcome == "unknown"


def test_a_router_hides_a_strange_end() -> None:
    """OpenRouter's `stop` for an answer that the provider behind it threw away is no success."""
    body = completion({"content": ""}, "stop")
    body["choices"][0]["native_finish_reason"] = "MALFORMED_FUNCTION_CALL"
    error = ask(candidate("openrouter", "google/g"), http(body)).failure
    assert type(error) is errors.BadResponse
    assert "MALFORMED_FUNCTION_CALL" in error.message
    body["choices"][0]["native_finish_reason"] = "end_turn"
    assert ask(candidate("openrouter", "google/g"), http(body)).answer.finish_reason == "stop"


def test_openais_older_function_call() -> None:
    """The older form of a tool call is one like any other, whole and streamed."""
    message = {"content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}}
    whole = ask(candidate(), http(completion(message, "function_call"))).answer
    parts: list[dict[str, Any]] = [{"name": "f", "arguments": ""}, {"arguments": '{"a"'}, {"arguments": ": 1}"}]
    chunks = [{"choices": [{"index": 0, "delta": {"function_call": part}}]} for part in parts]
    flowing = ask(candidate(), sse(*chunks, chunk(finish="function_call")), stream=True).answer
    for answer in (whole, flowing):
        assert answer.finish_reason == "tool_calls"
        assert answer.message["function_call"] == message["function_call"]
        assert [call["function"] for call in answer.message["tool_calls"]] == [message["function_call"]]


# Tool calls in parts


def head(index: int | None, call_id: str | None, arguments: str = "", name: str = "look") -> dict[str, Any]:
    """The first part of a tool call."""
    part: dict[str, Any] = {"function": {"name": name, "arguments": arguments}}
    return part | ({} if index is None else {"index": index}) | ({} if call_id is None else {"id": call_id})


def tail(index: int | None, arguments: str, call_id: str | None = None) -> dict[str, Any]:
    """A later part."""
    part: dict[str, Any] = {"function": {"arguments": arguments}}
    return part | ({} if index is None else {"index": index}) | ({} if call_id is None else {"id": call_id})


OSLO, ROME = '{"city": "Oslo"}', '{"city": "Rome"}'
TWO: dict[str, list[dict[str, Any]]] = {
    "indices": [head(0, "a"), tail(0, OSLO), head(1, "b"), tail(1, ROME)],
    "interleaved": [
        head(0, "a"),
        head(1, "b"),
        tail(0, OSLO[:5]),
        tail(1, ROME[:7]),
        tail(0, OSLO[5:]),
        tail(1, ROME[7:]),
    ],
    "one index, ids": [head(0, "a", OSLO), head(0, "b", ROME)],
    "one index, ids, parts": [head(0, "a"), tail(0, OSLO), head(0, "b"), tail(0, ROME)],
    "one index, ids in each part": [
        *(head(0, "a"), head(0, "b"), tail(0, OSLO[:5], "a"), tail(0, ROME[:5], "b")),
        *(tail(0, OSLO[5:], "a"), tail(0, ROME[5:], "b")),
    ],
    "no index, ids": [head(None, "a", OSLO), head(None, "b", ROME)],
    "no index, ids, parts": [head(None, "a"), tail(None, OSLO), head(None, "b"), tail(None, ROME)],
    "no index, ids in each part": [
        *(head(None, "a", OSLO[:5]), tail(None, OSLO[5:], "a"), head(None, "b", ROME[:5]), tail(None, ROME[5:], "b")),
    ],
    "no ids": [head(0, None), tail(0, OSLO), head(1, None), tail(1, ROME)],
    "empty ids": [head(0, ""), tail(0, OSLO, ""), head(1, ""), tail(1, ROME, "")],
    "neither": [head(None, None), tail(None, OSLO), head(None, None), tail(None, ROME)],
    "neither, whole": [head(None, None, OSLO), head(None, None, ROME)],
    "one index, no ids, whole": [head(0, None, OSLO), head(0, None, ROME)],
    "one index, no ids": [head(0, None), tail(0, OSLO), head(0, None), tail(0, ROME)],
    "one id": [head(0, "a"), tail(0, OSLO), head(1, "a"), tail(1, ROME)],
    "one id, whole": [head(0, "a", OSLO), head(1, "a", ROME)],
    "an index from 1": [head(1, "a"), tail(1, OSLO), head(2, "b"), tail(2, ROME)],
    "names repeated": [head(0, "a", OSLO[:5]), head(0, "a", OSLO[5:]), head(1, "b", ROME[:5]), head(1, "b", ROME[5:])],
    "an id for each part": [
        head(0, "a"),
        tail(0, OSLO[:5], "x"),
        tail(0, OSLO[5:], "y"),
        head(1, "b"),
        tail(1, ROME, "z"),
    ],
    "the whole again": [head(0, "a", OSLO), head(1, "b", ROME), head(0, "a", OSLO), head(1, "b", ROME)],
    "an id that is too long": [head(0, "a" * 70), tail(0, OSLO), head(1, "b" * 70), tail(1, ROME)],
}


@pytest.mark.parametrize("parts", TWO.values(), ids=TWO)
def test_streamed_tool_calls_are_joined(parts: list[dict[str, Any]]) -> None:
    """Parts belong together by id, then index, then order; a new id is a new call; each call has an id of its own."""
    chunks = [{"choices": [{"index": 0, "delta": {"tool_calls": [part]}}]} for part in parts]
    calls = ask(candidate(), sse(*chunks, chunk(finish="tool_calls")), stream=True).answer.message["tool_calls"]
    assert [call["function"] for call in calls] == [{"name": "look", "arguments": a} for a in (OSLO, ROME)]
    ids = [call["id"] for call in calls]
    assert len(set(ids)) == 2
    assert all(1 <= len(each) <= 40 for each in ids)


@pytest.mark.parametrize("ids", [("a", "b"), ("a", "a"), ("", ""), (None, None), (None, "b"), ("x" * 70, "y")])
def test_whole_tool_calls_have_ids(ids: tuple[Any, Any]) -> None:
    """In an answer that is not streamed each call is one, with an id of its own that other providers take too."""
    made = [head(None, call_id, arguments) for call_id, arguments in zip(ids, (OSLO, ROME), strict=True)]
    calls = ask(candidate(), http(completion({"content": None, "tool_calls": made}, "stop"))).answer.message[
        "tool_calls"
    ]
    assert [call["function"]["arguments"] for call in calls] == [OSLO, ROME]
    assert len({call["id"] for call in calls}) == 2
    assert all(1 <= len(call["id"]) <= 40 for call in calls)
    kept = [given for given in ids if given and ids.count(given) == 1 and len(given) <= 40]
    assert [call["id"] for call in calls if call["id"] in kept] == kept


# One answer, many streams

THOUGHT, TEXT = "Six times seven, so", 'Forty-two: grün 😀, \u2028 and "quotes".'
HEARTBEATS = (
    b": keepalive\n\n",
    b"data: : keepalive\n\n",
    b"event: ping\ndata: {}\n\n",
    b"data: null\n\n",
    b"data: {}\n\n",
    b"\r\n",
    b"data: ping\n\n",
    b'data: {"choices": []}\n\n',
    b"id: 7\nretry: 10\n\n",
)


def cut(text: str, places: list[int]) -> list[str]:
    bounds = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in pairwise(bounds)]


@settings(max_examples=at_most(60))
@given(st.data())
def test_one_answer_in_any_stream_is_one_result(data: st.DataObject) -> None:
    """However thoughts, text and calls are cut, mixed and interrupted by heartbeats, the answer is the same."""
    places = st.lists(st.integers(0, 1000), max_size=6)
    queues: list[list[dict[str, Any]]] = [
        [{"reasoning_content": piece} for piece in cut(THOUGHT, data.draw(places))],
        [{"content": piece} for piece in cut(TEXT, data.draw(places))],
    ]
    for number, arguments in enumerate((OSLO, ROME)):
        parts = [head(number, f"id{number}"), *(tail(number, piece) for piece in cut(arguments, data.draw(places)))]
        queues.append([{"tool_calls": [part]} for part in parts])
    stream = b""
    while any(queues):
        queue = data.draw(st.sampled_from([queue for queue in queues if queue]))
        delta = queue.pop(0)
        if data.draw(st.booleans()):
            stream += data.draw(st.sampled_from(HEARTBEATS))
        ends = data.draw(st.sampled_from(["\n\n", "\r\n\r\n", "\r\r"]))
        stream += f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}{ends}".encode()
    usage = {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}
    stream += f"data: {json.dumps(chunk(finish='stop', usage=usage))}\n\ndata: [DONE]\n\n".encode()
    reader = StreamReader(candidate(), Reading(), take_openai_event, take_openai, ndjson=False)
    told: list[str] = []
    start = 0
    while start < len(stream):
        size = data.draw(st.integers(1, 400))
        told.extend(reader.feed(stream[start : start + size]))
        start += size
    told.extend(reader.close())
    answer = reader.reading.answer()
    assert "".join(told) == answer.text == TEXT
    assert answer.message["reasoning_content"] == THOUGHT
    assert [(c["id"], c["function"]["arguments"]) for c in answer.message["tool_calls"]] == [
        ("id0", OSLO),
        ("id1", ROME),
    ]
    assert answer.finish_reason == "tool_calls"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 9)
