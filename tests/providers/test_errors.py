"""Errors by status, by words and by what became of the connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from shared import errors
from shared.errors import LLMError
from shared.providers import send, transport
from shared.types import Request, TaskType
from tests.support.loopback import HELLO, Loopback, Reply, ask, candidate, dialled, http, sse
from tests.support.wires import (
    KEY,
    chunk,
    completion,
    said,
)

STATUSES: Sequence[Any] = [
    (400, said("wrong"), errors.InvalidRequest, "rejected"),
    (422, said("wrong"), errors.InvalidRequest, "rejected"),
    (400, said("x", code="context_length_exceeded"), errors.ContextTooLong, "rejected"),
    (400, said("prompt is too long: 210000 tokens > 200000 maximum"), errors.ContextTooLong, "rejected"),
    (400, said("The input token count (9) exceeds the maximum number"), errors.ContextTooLong, "rejected"),
    (400, said("This model's maximum prompt length is 5 but"), errors.ContextTooLong, "rejected"),
    (400, said("max_tokens: 9 > 8, the maximum allowed number of output tokens"), errors.InvalidRequest, "rejected"),
    (413, said("too big"), errors.ContextTooLong, "rejected"),
    (400, said("x", code="content_filter"), errors.ContentBlocked, "rejected"),
    (400, said("x", innererror={"code": "ResponsibleAIPolicyViolation"}), errors.ContentBlocked, "rejected"),
    (400, said("Content Exists Risk"), errors.ContentBlocked, "rejected"),
    (403, said("Content violates usage guidelines"), errors.ContentBlocked, "rejected"),
    (403, said("Your input was flagged", metadata={"reasons": ["x"]}), errors.ContentBlocked, "rejected"),
    (401, said("no"), errors.AuthenticationError, "rejected"),
    (403, said("You may not"), errors.AuthenticationError, "rejected"),
    (400, said("API key not valid. Please pass a valid API key."), errors.AuthenticationError, "rejected"),
    (400, {"code": "x", "error": "Incorrect API key provided: in***ey."}, errors.AuthenticationError, "rejected"),
    (401, said("You exceeded your current quota"), errors.QuotaExhausted, "rejected"),
    (402, said("Insufficient Balance"), errors.QuotaExhausted, "rejected"),
    (400, said("Your credit balance is too low"), errors.QuotaExhausted, "rejected"),
    (403, said("Key limit exceeded"), errors.QuotaExhausted, "rejected"),
    (429, said("You exceeded your current quota", code="insufficient_quota"), errors.QuotaExhausted, "rejected"),
    (429, said("You exceeded your current quota"), errors.QuotaExhausted, "rejected"),
    (429, {"message": "Trial keys are limited to 1000 API calls / month"}, errors.QuotaExhausted, "rejected"),
    (429, said("slow down"), errors.RateLimitError, "rejected"),
    (429, said("Rate limit reached ... on requests per min. Add a payment method"), errors.RateLimitError, "rejected"),
    (404, said("nothing here"), errors.ModelNotFound, "rejected"),
    (404, "<html>404</html>", errors.ModelNotFound, "rejected"),
    (410, said("gone"), errors.ModelNotFound, "rejected"),
    (400, said("Model Not Exist"), errors.ModelNotFound, "rejected"),
    (400, said("zzz is not a valid model ID"), errors.ModelNotFound, "rejected"),
    (400, {"object": "error", "message": "Invalid model: zzz", "code": "1500"}, errors.ModelNotFound, "rejected"),
    (400, said("The model `x` has been decommissioned"), errors.ModelNotFound, "rejected"),
    (408, said("late"), errors.ProviderTimeout, "unknown"),
    (409, said("conflict"), errors.ProviderUnavailable, "unknown"),
    (500, said("oops"), errors.ProviderUnavailable, "unknown"),
    (502, "<html>bad gateway</html>", errors.ProviderUnavailable, "unknown"),
    (504, "", errors.ProviderUnavailable, "unknown"),
    (520, "", errors.ProviderUnavailable, "unknown"),
    (503, "upstream is busy", errors.Overloaded, "rejected"),
    (529, {"type": "error", "error": {"type": "overloaded_error", "message": "O"}}, errors.Overloaded, "rejected"),
    (418, "", errors.InvalidRequest, "rejected"),
    (304, "", errors.BadResponse, "rejected"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(("status", "body", "kind", "outcome"), STATUSES)
def test_errors_by_status_and_words(status: int, body: Any, kind: type[LLMError], outcome: str, stream: bool) -> None:
    """The class says what to do next, the outcome whether it may have been billed; one request was made for it."""
    told = ask(candidate(), http(body, status=status), stream=stream)
    error = told.failure
    assert type(error) is kind, error
    assert (error.outcome, error.status_code, error.provider, error.model) == (
        outcome,
        status,
        "openai",
        "openai/gpt-4o-mini",
    )
    assert (error.cost == 0) == (outcome == "rejected")
    assert len(told.asked) == 1
    assert not error.message.endswith(".")
    assert "<" not in error.message


def test_the_guides_words() -> None:
    """Errors begin as the guide has them, and say what the provider said."""
    assert ask(candidate(), http(said("No such key"), status=401)).failure.message == (
        "Authentication failed for openai (openai/gpt-4o-mini): No such key"
    )
    assert ask(candidate(), http(said("Slow down."), status=429)).failure.message == (
        "Rate limit exceeded for openai/gpt-4o-mini: Slow down"
    )


def test_a_request_larger_than_the_limit_is_not_repeated() -> None:
    """OpenAI's 429 for one request that is larger than the limit per minute goes to the next model at once."""
    body = said(
        "Request too large for gpt-4o on tokens per min (TPM): Limit 1, Requested 2", code="rate_limit_exceeded"
    )
    error = ask(candidate(), http(body, status=429)).failure
    assert isinstance(error, errors.RateLimitError)
    assert str(error.action) == "next"


def test_x_should_retry() -> None:
    """A 429 that the provider says not to repeat is a limit used up."""
    error = ask(candidate(), http(said("x"), status=429, headers={"x-should-retry": "false"})).failure
    assert type(error) is errors.QuotaExhausted


def test_errors_tell_no_secrets() -> None:
    """Whatever a provider repeats, neither the key nor a key in a link nor more than an excerpt gets into the error."""
    body = said(f"Bad {KEY} at https://x.example/y?key=abc123 and sk-proj-abcdefghijkl " + "x" * 900)
    for status in (400, 401, 403, 429, 500):
        text = str(ask(candidate(), http(body, status=status)).failure)
        assert KEY not in text
        assert "abc123" not in text
        assert "sk-proj" not in text
        assert len(text) < 500


def test_a_routers_error_names_the_cause() -> None:
    """OpenRouter's "Provider returned error" is told with what the provider behind it had said."""
    raw = json.dumps(said("The moon is in the way"))
    body = said("Provider returned error", code=502, metadata={"raw": raw, "provider_name": "X"})
    assert "The moon is in the way" in ask(candidate("openrouter", "a/b"), http(body, status=502)).failure.message


def test_validation_errors_do_not_repeat_the_input() -> None:
    """A list of validation errors is told by place and message, without the prompt that some servers repeat."""
    item = {"loc": ["body", "messages", 0], "msg": "should be a string", "input": "the prompt"}
    message = ask(candidate("mistral", "m"), http({"detail": [item]}, status=422)).failure.message
    assert message.endswith("body.messages.0: should be a string")


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"retry-after": "2"}, {}, 2.0),
        ({"retry-after": "1.5"}, {}, 1.5),
        ({"retry-after": "0"}, {}, 0.0),
        ({"retry-after": "999999999"}, {}, 999999999.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, {}, 0.25),
        ({"retry-after": "-1"}, {}, None),
        ({"retry-after": "NaN"}, {}, None),
        ({"retry-after": "inf"}, {}, None),
        ({"retry-after": "soon"}, {}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, {}, None),
        ({}, said("x", details=[{"retryDelay": "38s"}]), 38.0),
        ({}, said("x", details=[{"retryDelay": "-3s"}, {"retryDelay": 4}, "x"]), None),
        ({}, [said("x", details=[{"retryDelay": "1.5s"}])], 1.5),
        ({}, {}, None),
    ],
)
def test_retry_after(headers: Mapping[str, str], body: Any, seconds: float | None) -> None:
    """The time to wait is read in all its spellings; what is none is no time."""
    assert ask(candidate(), http(body, status=503, headers=headers)).failure.retry_after == seconds


def test_retry_after_as_a_date() -> None:
    """A date to come back at is so many seconds from now."""
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    seconds = ask(candidate(), http({}, status=503, headers={"retry-after": later})).failure.retry_after
    assert seconds is not None
    assert 55 < seconds <= 60


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(
    ("reply", "kind", "outcome"),
    [
        (Reply(b""), errors.ProviderUnavailable, "unknown"),
        (Reply(b"", "reset"), errors.ProviderUnavailable, "unknown"),
        (Reply(b"SSH-2.0-nonsense\r\n\r\n"), errors.ProviderUnavailable, "unknown"),
        (Reply(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{"), errors.BadResponse, "unknown"),
        (http("", status=307, headers={"location": "https://evil.example/"}), errors.BadResponse, "rejected"),
        (http(b"\x1f\x8b", headers={"content-encoding": "gzip"}), errors.BadResponse, "unknown"),
    ],
)
def test_connections_that_break(reply: Reply, kind: type[LLMError], outcome: str, stream: bool) -> None:
    """Once the request has been sent its outcome is unknown, except for a redirect, which is not followed."""
    told = ask(candidate(), reply, stream=stream)
    assert type(told.failure) is kind, told.failure
    assert told.failure.outcome == outcome
    assert len(told.asked) == 1


@pytest.mark.parametrize("reply", [Reply(b"", "stall"), sse(": wait\n\n", done=False, then="stall")])
def test_silence_is_a_timeout(reply: Reply) -> None:
    """A provider that says nothing for too long is ProviderTimeout, and may have been at work."""
    error = ask(candidate(), reply, stream=True, timeout=0.1).failure
    assert type(error) is errors.ProviderTimeout
    assert error.outcome == "unknown"


def test_a_refused_connection_was_never_sent() -> None:
    """Nobody listening: nothing left, nothing was billed."""

    async def scene() -> None:
        async with Loopback([]) as server:
            port = server.port
        with dialled(port):
            ready = await send.make_ready(candidate())
            await anext(send.open_response(ready, Request(TaskType.CHAT_COMPLETION, HELLO), timeout=5))

    with pytest.raises(errors.ProviderUnavailable) as caught:
        asyncio.run(scene())
    assert (caught.value.outcome, caught.value.cost, caught.value.status_code) == ("not_sent", 0, None)
    assert caught.value.message.startswith("Could not connect to openai")


def test_no_tls_where_tls_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """An https address that speaks no TLS is not asked in clear text; nothing was sent."""
    monkeypatch.setattr(transport, "_network", transport.Network(lambda: httpx.AsyncHTTPTransport(trust_env=False)))

    async def plain(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def scene() -> None:
        async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            who = await send.make_ready(candidate(api_base=f"https://127.0.0.1:{port}/v1"))
            await anext(send.open_response(who, Request(TaskType.CHAT_COMPLETION, HELLO), timeout=5))

    with pytest.raises(errors.ProviderUnavailable) as caught:
        asyncio.run(scene())
    assert caught.value.outcome == "not_sent"
    assert "secure connection" in caught.value.message


def test_closing_a_stream_closes_its_connection() -> None:
    """A stream that is closed early lets go of its connection at once, and can be closed twice."""

    async def scene() -> None:
        async with Loopback([sse(chunk("one"), chunk("two"), done=False, then="stall")]) as server:
            with dialled(server.port):
                ready = await send.make_ready(candidate())
                request = Request(TaskType.CHAT_COMPLETION, HELLO, stream=True)
                pieces = send.open_response(ready, request, timeout=5)
                assert await anext(pieces) == "one"
                await pieces.aclose()
                await asyncio.wait_for(server.gone.wait(), 2)
                await pieces.aclose()
                with pytest.raises(StopAsyncIteration):
                    await anext(pieces)

    asyncio.run(scene())


def test_cancelling_lets_go_at_once() -> None:
    """A cancelled request passes the cancellation on and lets go of its connection."""

    async def scene() -> None:
        async with Loopback([Reply(b"", "stall")]) as server:
            with dialled(server.port):
                ready = await send.make_ready(candidate())
                pieces = send.open_response(ready, Request(TaskType.CHAT_COMPLETION, HELLO), timeout=5)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(pieces), 0.1)
                await asyncio.wait_for(server.gone.wait(), 2)

    asyncio.run(scene())


def test_connections_are_used_again() -> None:
    """A stream read to its end mark leaves a connection that the next request uses."""

    async def scene() -> int:
        reply = sse(chunk("Hello"), chunk(finish="stop"), then="keep")
        async with Loopback([reply]) as server:
            with dialled(server.port):
                ready = await send.make_ready(candidate())
                for _ in range(3):
                    request = Request(TaskType.CHAT_COMPLETION, HELLO, stream=True)
                    async with aclosing(send.open_response(ready, request, timeout=5)) as pieces:
                        async for _ in pieces:
                            pass
                assert not server.gone.is_set()
            return len(server.asked)

    assert asyncio.run(scene()) == 3


def test_no_cookie_is_kept() -> None:
    """A cookie that a provider sets with one request is not sent along with the next, which may be another's."""

    async def scene() -> list[str | None]:
        async with Loopback([http(completion(), headers={"set-cookie": "who=me; Path=/"})]) as server:
            with dialled(server.port):
                ready = await send.make_ready(candidate())
                for _ in range(2):
                    await anext(send.open_response(ready, Request(TaskType.CHAT_COMPLETION, HELLO), timeout=5))
            return [asked.headers.get("cookie") for asked in server.asked]

    assert asyncio.run(scene()) == [None, None]
