"""Calls by what really comes back: bad requests, larger windows, servers that stream on their own, and silence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from shared import errors
from shared.calls import flow
from shared.calls.cooldown import FAILURES_IN_A_ROW, cooldowns
from shared.ledger.records import attempt_records
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient
from tests.support.asking import HAIKU, HELLO, MINI, Way
from tests.support.loopback import ask as ask_once, candidate, http, sse, streamed
from tests.support.provider_double import Double
from tests.support.wires import OPENAI_USAGE, chunk, completion, said

NAMES = ["get_monthly_sales", "list_flagged_posts", "check_api_key_missing", "context_length_exceeds_maximum"]


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_request_is_not_sent_to_each_fallback(hosted: Double, name: str) -> None:
    """A wrong schema is refused by the first model only, for nothing, and does not cool a healthy endpoint down."""
    tool = {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    message = f"Invalid schema for function '{name}': In context=(), 'required' is required to be supplied."
    hosted.always("openai", status=400, body=said(message, type="invalid_request_error"))
    client = LLMClient(max_retries=2)
    for _ in range(FAILURES_IN_A_ROW):
        with pytest.raises(errors.InvalidRequest, match=name) as caught:
            client.chat_completion(HELLO, model=MINI, fallback_models=[HAIKU], tools=[tool])
        assert (type(caught.value), caught.value.cost) == (errors.InvalidRequest, 0)
    assert {request.provider for request in hosted.requests} == {"openai"}
    assert len(hosted.requests) == FAILURES_IN_A_ROW
    assert not cooldowns._states


@pytest.mark.parametrize(
    ("status", "message"), [(400, "Prompt exceeds max length"), (500, "Context size has been exceeded.")]
)
def test_a_long_input_goes_to_the_larger_window(hosted: Double, ask: Way, status: int, message: str) -> None:
    """An input that is too long in the provider's own words is not retried; the next model answers."""
    hosted.always("openai", status=status, body=said(message))
    response = ask(LLMClient(max_retries=2), model="openai/gpt-4o-mini", fallback_models=[HAIKU])
    assert [attempt["error_type"] for attempt in response.metadata["attempts"]] == ["ContextTooLong", None]


def test_a_429_that_says_when_is_waited_for(hosted: Double, ask: Way) -> None:
    """A short time to wait in the sentence is waited for; one beyond the deadline ends the model's turn at once."""
    hosted.reply("openai", status=429, body=said("Rate limit reached. Please try again in 20ms."))
    assert ask(LLMClient(max_retries=1), model=MINI).metadata["attempts"][0]["error_type"] == "RateLimitError"
    hosted.always("openai", status=429, body=said("Rate limit reached. Please try again in 1m9.696s."))
    before = len(hosted.requests)
    with pytest.raises(errors.RateLimitError) as caught:
        ask(LLMClient(max_retries=2), model="openai/gpt-4.1-mini")
    assert caught.value.retry_after == pytest.approx(69.696)
    assert len(hosted.requests) == before + 1


def test_ollamas_missing_model_is_free(hosted: Double, ledger: Ledger) -> None:
    """A model that is not pulled costs nothing, and the error says how to get it."""
    hosted.always("ollama", status=404, body={"error": 'model "llama3.3" not found, try pulling it first'})
    with pytest.raises(errors.ModelNotFound, match="try pulling it first"):
        LLMClient().chat_completion(HELLO, model="ollama/llama3.3", fallback_models=[])
    ledger.flush()
    [row] = attempt_records(ledger)
    assert (row["error_type"], row["cost_nano"]) == ("ModelNotFound", 0)


# Servers that stream on their own


def whole_and_flowing() -> list[Any]:
    """One answer, as servers send it to a call that asked for no stream."""
    events = [
        chunk("Hello "),
        chunk("there"),
        chunk(finish="stop"),
        {"id": "c-1", "choices": [], "usage": OPENAI_USAGE},
    ]
    body = json.dumps(completion())
    return [
        pytest.param(http(body), id="JSON"),
        pytest.param(sse(*events), id="events"),
        pytest.param(sse(": OPENROUTER PROCESSING\n\n", *events), id="a comment and events"),
        pytest.param(http(f"{body}\n\ndata: [DONE]\n\n"), id="JSON and its end mark"),
        pytest.param(http(f"{body}[DONE]"), id="JSON and the bare mark"),
        pytest.param(http(f": PROCESSING\n\n: PROCESSING\n\n{body}"), id="comments and JSON"),
        pytest.param(http(f"\n\n\n{body}\n"), id="empty lines and JSON"),
        pytest.param(http(f"\ufeff{body}"), id="a byte order mark and JSON"),
    ]


@pytest.mark.parametrize("reply", whole_and_flowing())
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_body_is_read_in_either_form(reply: Any, stream: bool) -> None:
    """Whether a stream was asked for or not, events and JSON are both read, with what stands around them."""
    told = ask_once(candidate(), reply, stream=stream)
    assert (told.answer.text, told.answer.finish_reason) == ("Hello there", "stop")
    assert told.answer.usage.completion_tokens == 5
    assert told.asked[0].body["stream"] is stream
    if stream:
        assert "".join(told.texts) == "Hello there"


def test_a_stream_that_was_not_asked_for_is_no_interruption() -> None:
    """A plain call whose events break off has had nothing of them: the answer is bad, and the next model is asked."""
    reply = sse(chunk("Hello "), done=False)
    error = ask_once(candidate(), reply).failure
    assert type(error) is errors.BadResponse


@pytest.mark.parametrize(
    "nothing",
    [
        ": keepalive",
        "data: : keepalive",
        "data: :",
        "data: null",
        "data: {}",
        "data: []",
        'data: ""',
        "data: ping",
        'data: "ping"',
        "data: [ping]",
        "data: keep-alive",
        "data: HEARTBEAT",
        "event: ping\ndata: x",
        "event: heartbeat\ndata: {nonsense",
        "event: keepalive\ndata:",
        "data:",
    ],
)
def test_frames_that_carry_nothing_are_skipped(nothing: str) -> None:
    """What a server sends to keep a stream open is no part of the answer, wherever it comes."""
    frame = f"{nothing}\n\n"
    told = ask_once(candidate(), sse(frame, chunk("one "), frame, frame, chunk("two", "stop"), frame), stream=True)
    assert told.answer.text == "one two"
    if not nothing.startswith("event"):
        joined = streamed(f"{nothing}\ndata: {json.dumps(chunk('one', 'stop'))}\n\n")
        assert ask_once(candidate(), joined, stream=True).answer.text == "one"


# Silence


@asynccontextmanager
async def paced(events: Sequence[str], then: str = "") -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that sends these events, one every 40 ms, then `then` for ever; and what it was asked."""
    asked: list[bytes] = []
    serving: list[asyncio.Task[Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.append(task)
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        try:
            for event in events:
                writer.write(event.encode())
                await writer.drain()
                await asyncio.sleep(0.04)
            while then:
                writer.write(then.encode())
                await writer.drain()
                await asyncio.sleep(0.04)
        except (ConnectionError, asyncio.CancelledError):
            pass
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", asked
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


def event(delta: dict[str, Any], finish: str | None = None) -> str:
    """A chunk as an event."""
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': finish}]})}\n\n"


async def read(base: str, timeout: float) -> Any:
    """A stream of a server of the user's own, read to its end."""
    client = LLMClient(max_retries=1, timeout=timeout)
    stream = await client.achat_completion(
        HELLO, model="custom/m", stream=True, api_base=base, api_key="k-0001", fallback_models=[]
    )
    async for _ in stream:
        pass
    return stream.response


THOUGHTS = [event({"reasoning_content": "hm "})] * 25
ARGUMENTS = [event({"tool_calls": [{"index": 0, "function": {"arguments": " "}}]})] * 25
CALLED = event({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{"}}]})
PART = event({"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]})
ENDED = [event({}, "stop"), "data: [DONE]\n\n"]


def test_thoughts_and_arguments_are_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that thinks, or writes arguments, for longer than any limit is neither stopped nor paid twice."""
    monkeypatch.setattr(flow, "IDLE_TIMEOUT_S", 0.5)

    async def scene(events: Sequence[str]) -> tuple[Any, int]:
        async with paced(events) as (base, asked):
            return await read(base, 0.5), len(asked)

    response, times = asyncio.run(scene([*THOUGHTS, event({"content": "Hi"}), *ENDED]))
    assert (response.content, times) == ("Hi", 1)
    response, times = asyncio.run(scene([event({"content": "Hi"}), CALLED, *ARGUMENTS, PART, *ENDED]))
    assert (response.content, times) == ("Hi", 1)
    assert json.loads(response.metadata["tool_calls"][0]["function"]["arguments"]) == {}


@pytest.mark.parametrize("nothing", [": keepalive\n\n", "data: : keepalive\n\n", ":\n"])
def test_comments_are_silence(nothing: str) -> None:
    """Comments, which a proxy may send for ever, keep no stream alive: before its text it is ProviderTimeout."""

    async def scene(events: Sequence[str]) -> None:
        async with paced(events, then=nothing) as (base, _):
            await read(base, 0.3)

    with pytest.raises(errors.ProviderTimeout):
        asyncio.run(scene([]))
    with pytest.raises(errors.StreamInterrupted):
        asyncio.run(scene([event({"content": "Hi"})]))


def test_the_deadline_ends_what_is_alive() -> None:
    """The deadline of a call holds for a stream that is still at work."""

    async def scene() -> None:
        async with paced([], then=THOUGHTS[0]) as (base, _):
            client = LLMClient(max_retries=0, timeout=5)
            stream = await client.achat_completion(
                HELLO, model="custom/m", stream=True, api_base=base, api_key="k-0001", deadline=0.4, fallback_models=[]
            )
            async for _ in stream:
                pass

    with pytest.raises(errors.DeadlineExceeded):
        asyncio.run(scene())
