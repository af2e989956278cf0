"""Streams: framing, ends, errors inside them, and predictions that are polled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, strategies as st

from shared import errors
from shared.errors import LLMError
from shared.providers.response import Reading, UnreadableError, take_openai, take_openai_event
from shared.providers.sse import Events, StreamReader
from shared.types import Usage
from tests.support.loopback import Reply, Told, ask, candidate, host_of, http, sse, streamed
from tests.support.wires import (
    COUNTED,
    candidates,
    chunk,
    completion,
    said,
)


def streams(*events: object, done: bool = True, then: str = "close", name: str = "openai") -> Told:
    """A stream of these events, read."""
    return ask(candidate(name, "m"), sse(*events, done=done, then=then), stream=True)


def test_done_without_a_finish_reason() -> None:
    """[DONE] is an end; the finish reason that nobody gave stays None."""
    told = streams(chunk("Hi"))
    assert (told.answer.text, told.answer.finish_reason) == ("Hi", None)
    assert told.answer.usage == Usage()


@pytest.mark.parametrize("then", ["close", "reset"])
def test_a_stream_without_an_end(then: str) -> None:
    """A connection that just ends, or is cut, after text is StreamInterrupted; the text has been told."""
    told = streams(chunk("Hi "), chunk("the"), done=False, then=then)
    assert type(told.failure) is errors.StreamInterrupted
    assert (told.texts, told.failure.outcome) == (["Hi ", "the"], "unknown")


@pytest.mark.parametrize(
    "events", [[], [": comment\n\n"], [chunk()], [{"choices": []}], ["data: {}\n\n"], [chunk(reasoning="x")]]
)
def test_a_stream_that_ends_before_its_text(events: Any) -> None:
    """Before any text has come, a stream without an end is a bad answer."""
    told = streams(*events, done=False)
    assert type(told.failure) is errors.BadResponse
    assert told.failure.outcome == "unknown"


def test_done_alone_is_no_answer() -> None:
    """A stream of nothing but its end mark is a bad answer."""
    assert type(streams().failure) is errors.BadResponse


def test_a_finish_reason_is_an_end() -> None:
    """With its finish reason a stream is whole, though neither [DONE] nor a proper end of the connection comes."""
    for then in ("close", "reset"):
        told = streams(chunk("Hi"), chunk(finish="length"), done=False, then=then)
        assert (told.answer.text, told.answer.finish_reason) == ("Hi", "length")


def test_silence_after_text() -> None:
    """A stream that falls silent after text is StreamInterrupted."""
    told = ask(candidate(), sse(chunk("Hi"), done=False, then="stall"), stream=True, timeout=0.2)
    assert type(told.failure) is errors.StreamInterrupted
    assert told.texts == ["Hi"]


INNER_ERRORS: Sequence[Any] = [
    ("openai", {"error": {"message": "Busy", "type": "overloaded_error"}}, errors.Overloaded),
    ("openai", {"error": {"message": "Too fast", "code": "rate_limit_exceeded"}}, errors.RateLimitError),
    ("openrouter", {**chunk("", "error"), "error": {"code": 502, "message": "X"}}, errors.ProviderUnavailable),
    (
        "groq",
        'event: error\ndata: {"error":{"message":"no","type":"invalid_request_error","code":"tool_use_failed"}}\n\n',
        errors.InvalidRequest,
    ),
    (
        "anthropic",
        'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n',
        errors.Overloaded,
    ),
    ("gemini", {"error": {"code": 503, "message": "Busy", "status": "UNAVAILABLE"}}, errors.Overloaded),
    ("cohere", {"type": "message-end", "delta": {"finish_reason": "ERROR"}}, errors.ProviderUnavailable),
]


@pytest.mark.parametrize(("name", "event", "kind"), INNER_ERRORS)
def test_an_error_as_the_first_event(name: str, event: Any, kind: type[LLMError]) -> None:
    """An error inside a stream that has not begun is that error, so that another model can be asked."""
    told = streams(event, name=name)
    assert type(told.failure) is kind, told.failure
    assert told.texts == []


@pytest.mark.parametrize(("name", "event", "kind"), INNER_ERRORS)
def test_an_error_after_text(name: str, event: Any, kind: type[LLMError]) -> None:
    """After text the same error is StreamInterrupted, saying why; chunks that follow it do not heal it."""
    text: dict[str, Any] = {
        "anthropic": {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
        "gemini": candidates("Hi"),
        "cohere": {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "Hi"}}}},
    }
    zeros = {"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}}
    told = streams(text.get(name, chunk("Hi")), event, zeros, name=name)
    assert type(told.failure) is errors.StreamInterrupted
    assert type(told.failure.__cause__) is kind
    assert told.texts == ["Hi"]


@pytest.mark.parametrize("junk", ["data: {nonsense\n\n", b"data: \xff\xfe\n\n", "data: 7\n\n", "data: {}}\n\n"])
def test_junk_in_a_stream(junk: str | bytes) -> None:
    """An event that cannot be read is a bad answer before the first text, and an interruption after it."""
    data = junk if isinstance(junk, bytes) else junk.encode()
    assert type(ask(candidate(), streamed(data), stream=True).failure) is errors.BadResponse
    begun = f"data: {json.dumps(chunk('Hi'))}\n\n".encode() + data
    told = ask(candidate(), streamed(begun), stream=True)
    assert type(told.failure) is errors.StreamInterrupted
    assert told.texts == ["Hi"]


def test_what_follows_the_end_is_ignored() -> None:
    """Chunks after [DONE] are not part of the answer."""
    told = streams(chunk("Hi"), chunk(finish="stop"), "data: [DONE]\n\n", chunk(" there"), said("late"))
    assert (told.texts, told.answer.text) == (["Hi"], "Hi")


def test_usage_in_streams() -> None:
    """Of several counts the last holds, they are never added up; Groq's own place for them is known."""
    first, last = {"prompt_tokens": 5, "completion_tokens": 1}, {"prompt_tokens": 5, "completion_tokens": 2}
    told = streams(chunk("a", usage=first), chunk("b", usage=None), chunk(finish="stop", usage=last))
    assert told.answer.usage == Usage(5, 2, source="provider")
    told = streams(chunk("a"), chunk(finish="stop", x_groq={"usage": last}), name="groq")
    assert told.answer.usage == Usage(5, 2, source="provider")


def test_repeated_chunks_are_text() -> None:
    """The protocol has no numbers, so a chunk that comes twice is text twice, a hundred times too."""
    told = streams(*[chunk("ab")] * 150, chunk(finish="stop"))
    assert told.answer.text == "ab" * 150


def test_a_server_that_does_not_stream() -> None:
    """A whole answer to a request for a stream is one piece of text; an error or a page is what it is."""
    told = ask(candidate(), http(completion()), stream=True)
    assert (told.texts, told.answer.usage) == (["Hello there"], COUNTED)
    assert type(ask(candidate(), http(json.dumps(said("x", code=429), indent=1)), stream=True).failure) is (
        errors.RateLimitError
    )
    page = http("<!DOCTYPE html>\n<html>\n</html>", kind="text/html")
    assert type(ask(candidate(), page, stream=True).failure) is errors.BadResponse
    assert type(ask(candidate(), http(""), stream=True).failure) is errors.BadResponse
    for name in ("ollama", "anthropic", "gemini", "cohere"):
        assert type(ask(candidate(name, "m"), page, stream=True).failure) is errors.BadResponse


def test_framing_as_servers_really_have_it() -> None:
    """Comments, white space, CRLF, a byte order mark, data over several lines and missing empty lines are all read."""
    begin, end = json.dumps(chunk("Hi")), json.dumps(chunk(finish="stop"))
    half = begin.index(":") + 1
    body = (
        "\ufeff: OPENROUTER PROCESSING\r\n\r\n   \r\n"
        f"id: 7\r\nretry: 5\r\ndata:{begin}\r\n\r\n"
        f"event: x\ndata: {begin[:half]}\ndata: {begin[half:]}\n\n"
        f"data: {begin}\ndata: {end}\n\n"
        "data: [DONE]"
    )
    told = ask(candidate(), streamed(body), stream=True)
    assert told.texts == ["Hi", "Hi", "Hi"]
    assert told.answer.finish_reason == "stop"


STREAM = (
    '\ufeff: hello\r\n\r\nevent: message\r\ndata: {"text": "grün 😀"}\r\n\r\n'
    "data: one\ndata: two\n\ndata:three\r\rid: 1\n\n\r\ndata: [DONE]\n\ndata: last"
).encode()
STREAM_EVENTS = [("message", '{"text": "grün 😀"}'), ("", "one\ntwo"), ("", "three"), ("", "[DONE]"), ("", "last")]


@given(st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_any_cut_of_the_bytes_gives_the_same_events(cuts: list[int]) -> None:
    """However the network cuts a stream, inside a character or a line end too, the events are the same."""
    places = [0, *sorted(cuts), len(STREAM)]
    events = Events(ndjson=False)
    found = [event for a, b in pairwise(places) for event in events.feed(STREAM[a:b])]
    assert [*found, *events.close()] == STREAM_EVENTS


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_break_the_reader(data: bytes, stream: bool) -> None:
    """Whatever comes, it is an answer or one of our errors, and text that was told is never taken back."""
    reading = Reading()
    reader = StreamReader(candidate(), reading, take_openai_event, take_openai, ndjson=stream)
    told: list[str] = []
    failure: LLMError | None = None
    try:
        told.extend(reader.feed(data))
        told.extend(reader.close())
    except LLMError as error:
        failure = error
    assert "".join(told) == reading.answer().text
    assert isinstance(failure, errors.StreamInterrupted) == bool(failure and told)


def test_a_line_without_end() -> None:
    """A line longer than any answer is refused before it fills the memory."""
    events, block = Events(ndjson=False), b"x" * 2**20
    for _ in range(32):
        assert list(events.feed(block)) == []
    with pytest.raises(UnreadableError, match="too long"):
        list(events.feed(block))


def prediction(status: str, *output: str, **more: object) -> Reply:
    """A prediction as it stands."""
    body = {"id": "p1", "status": status, "output": list(output) or None, "error": None, **more}
    return http(body, status=201)


def test_replicate_is_looked_at_until_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prediction is created once and looked at where it was created, not where its answer says."""
    monkeypatch.setattr("shared.providers.response_stream._POLL_S", 0.0)
    urls = {"get": "https://evil.example/steal"}
    replies = [
        prediction("starting", urls=urls),
        prediction("processing", "Hel", urls=urls),
        prediction("processing", "Hel", "lo", urls=urls),
        prediction("succeeded", "Hel", "lo", "!", metrics={"input_token_count": 3, "output_token_count": 2}),
    ]
    told = ask(candidate("replicate", "meta/llama:v1"), *replies, stream=True)
    assert [(asked.method, host_of(asked), asked.target) for asked in told.asked] == [
        ("POST", "api.replicate.com", "/v1/predictions"),
        *[("GET", "api.replicate.com", "/v1/predictions/p1")] * 3,
    ]
    assert told.asked[0].body["version"] == "v1"
    assert (told.texts, told.answer.text) == (["Hel", "lo", "!"], "Hello!")
    assert told.answer.usage == Usage(3, 2, source="provider")


def test_replicate_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prediction that fails is the provider's failure, and StreamInterrupted once text has come."""
    monkeypatch.setattr("shared.providers.response_stream._POLL_S", 0.0)
    who = candidate("replicate", "a/b")
    assert type(ask(who, prediction("failed", error="CUDA")).failure) is errors.ProviderUnavailable
    assert type(ask(who, prediction("canceled")).failure) is errors.ProviderUnavailable
    told = ask(who, prediction("processing", "Hi"), http({}, status=500), stream=True)
    assert type(told.failure) is errors.StreamInterrupted
    assert told.texts == ["Hi"]
