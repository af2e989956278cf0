"""Each fault of the double, met by a real client."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.provider_double import Double, Fault, ports
from tests.support.provider_double.asking import ENDPOINTS, ask, question, streamed_text, text_of
from tests.support.provider_double.shapes import events_of, order_of

pytest_plugins = ["tests.support.provider_double.fixtures"]


def bodies(dialled: httpx.Client, stream: bool) -> bytes:
    """The body of an answer, read to its end."""
    return ask(dialled, "openai", stream).content


@pytest.mark.parametrize(
    ("fault", "stream", "error"),
    [
        (Fault.RESET_BEFORE_HEADERS, False, httpx.ReadError),
        (Fault.RESET_AFTER_HEADERS, False, httpx.ReadError),
        (Fault.RESET_STREAM, True, httpx.ReadError),
        (Fault.RESET_STREAM, False, httpx.ReadError),
        (Fault.CLOSE_STREAM, True, httpx.RemoteProtocolError),
        (Fault.CLOSE_STREAM, False, httpx.RemoteProtocolError),
        (Fault.LENGTH_TOO_LONG, False, httpx.RemoteProtocolError),
        (Fault.BAD_UTF8, False, UnicodeDecodeError),
        (Fault.BAD_UTF8, True, UnicodeDecodeError),
        (Fault.TRUNCATED_JSON, False, json.JSONDecodeError),
        (Fault.LENGTH_TOO_SHORT, False, json.JSONDecodeError),
        (Fault.HTML, False, json.JSONDecodeError),
        (Fault.EMPTY, False, json.JSONDecodeError),
    ],
)
def test_broken_answers(
    fault: Fault, stream: bool, error: type[Exception], double: Double, dialled: httpx.Client
) -> None:
    """Each break in connection, framing or encoding is met by a real client as just that, and the next call is well."""
    double.reply("openai", fault=fault)

    with pytest.raises(error):
        json.loads(bodies(dialled, stream).decode())
    assert text_of(ask(dialled, "openai").json()) == "Hello from gpt-4o-mini."


def test_a_broken_stream_brings_what_came_before(double: Double, dialled: httpx.Client) -> None:
    """A reset after two deltas leaves the client with exactly these two, and the bill with their tokens."""
    double.reply("openai", text="one two three four", fault=Fault.RESET_STREAM, after=2)
    url, body = question("openai", stream=True)
    got: list[bytes] = []
    with dialled.stream("POST", url, json=body) as response, pytest.raises(httpx.ReadError):
        got.extend(response.iter_raw())

    assert streamed_text(b"".join(got)) == "one two"
    (bill,) = double.billed
    assert (bill.usage.output, bill.reported) == (2, False)


STRANGE: dict[Fault, Callable[[str], bool]] = {
    Fault.USAGE_MISSING: lambda text: "otal_tokens" not in text and "output_tokens" not in text,
    Fault.USAGE_NEGATIVE: lambda text: ":-" in text,
    Fault.USAGE_ABSURD: lambda text: "1000000000000000" in text,
    Fault.USAGE_STRING: lambda text: ' tokens"' in text,
    Fault.USAGE_NAN: lambda text: ":NaN" in text,
    Fault.OTHER_MODEL: lambda text: "another-model-1" in text,
    Fault.NO_CHOICES: lambda text: "[]" in text or '""' in text,
    Fault.NULL_CONTENT: lambda text: "Hello" not in text,
    Fault.ERROR_200: lambda text: "error" in text,
}


@pytest.mark.parametrize("provider", ENDPOINTS)
def test_strange_contents(provider: str, double: Double, dialled: httpx.Client) -> None:
    """Well-formed answers that say nonsense are said by every provider, plain and streamed, with status 200."""
    for fault, check in STRANGE.items():
        double.reply(provider, fault=fault, times=2)
        for stream in (False, True):
            response = ask(dialled, provider, stream)
            assert response.status_code == 200
            # Cohere names no model.
            assert check(response.text) or (fault, provider) == (Fault.OTHER_MODEL, "cohere"), fault


@pytest.mark.parametrize("provider", ENDPOINTS)
def test_streams_that_end_wrongly(provider: str, double: Double, dialled: httpx.Client) -> None:
    """Streams end without finish, without reason, with nothing but an end mark, or go on after it, as told."""
    whole = order_of(events_of(ask(dialled, provider, stream=True).content))
    faults = (Fault.CLEAN_EOF, Fault.DONE_WITHOUT_FINISH, Fault.ONLY_DONE, Fault.CHUNKS_AFTER_DONE)
    for fault in (*faults, Fault.DUPLICATED_CHUNKS, Fault.TWO_USAGE_CHUNKS):
        double.reply(provider, fault=fault)
    cut, unfinished, only, after, twice, usages = (ask(dialled, provider, stream=True).content for _ in range(6))

    assert len(order_of(events_of(cut))) < len(whole)
    assert streamed_text(cut).startswith("Hello from")
    assert '"stop"' not in unfinished.decode().lower()
    assert '"end_turn"' not in unfinished.decode()
    assert len(events_of(only)) <= 1
    assert len(events_of(after)) == 1 + len(events_of(unfinished))
    assert streamed_text(twice).startswith("HelloHello")
    assert streamed_text(usages) == streamed_text(unfinished)


def test_errors_inside_a_stream_have_four_shapes(double: Double, dialled: httpx.Client) -> None:
    """OpenAI goes on after its error, Anthropic begins with it, Groq ends with an event, OpenRouter adds a key."""
    for provider in ("openai", "groq", "openrouter"):
        double.reply(provider, fault=Fault.ERROR_EVENT, after=2)
    double.reply("anthropic", fault=Fault.ERROR_EVENT, after=0)
    openai, groq, openrouter, anthropic = (
        events_of(ask(dialled, provider, stream=True).content)
        for provider in ("openai", "groq", "openrouter", "anthropic")
    )

    assert [order_of([event]) for event in openai[-3:]] == [["error"], ["usage"], ["[DONE]"]]
    assert openai[-2][1]["usage"]["total_tokens"] == 0
    assert groq[-1][0] == "error"
    assert openrouter[-1][1].keys() >= {"choices", "error"}
    assert [name for name, _ in anthropic] == ["error"]
    assert [bill.usage.output for bill in double.billed] == [2, 2, 2]


def test_large_and_small_bodies(double: Double, dialled: httpx.Client) -> None:
    """The oversize text is as long as asked for; the bomb is small on the wire and large unpacked."""
    double.reply("openai", fault=Fault.OVERSIZE, size=200_000, times=2)
    double.reply("openai", fault=Fault.GZIP_BOMB, size=1_000_000)

    assert len(text_of(ask(dialled, "openai").json())) == 200_000
    assert len(streamed_text(ask(dialled, "openai", stream=True).content)) == 200_000
    url, body = question("openai")
    with dialled.stream("POST", url, json=body) as response:
        wire = b"".join(response.iter_raw())
    assert response.headers["content-encoding"] == "gzip"
    assert len(wire) < 2_000
    assert len(zlib.decompress(wire, 31)) > 1_000_000


def test_redirects_and_raw_bodies(double: Double, dialled: httpx.Client) -> None:
    """A redirect names another host; a body of the test's own goes out as it is."""
    double.reply("openai", fault=Fault.REDIRECT)
    double.reply("openai", body=[])
    double.reply("openai", body="plain words", content_type="text/plain", status=503)

    assert ask(dialled, "openai").headers["location"].startswith("https://elsewhere.example/")
    assert ask(dialled, "openai").json() == []
    assert ask(dialled, "openai").text == "plain words"
    assert len(double.billed) == 1


@pytest.mark.parametrize("fault", [Fault.STALL_HEADERS, Fault.STALL_FIRST_CHUNK, Fault.STALL_STREAM, Fault.DRIP])
@pytest.mark.parametrize("stream", [False, True])
def test_stalls_last_until_released(fault: Fault, stream: bool, double: Double, dialled: httpx.Client) -> None:
    """A stalled or dripping answer comes whole once its gate is opened."""
    held = double.reply("openai", fault=fault, interval_s=30.0)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(bodies, dialled, stream)
        assert held.gate.reached.wait(5)
        assert not answer.done()
        held.gate.release()
        body = answer.result(5)

    assert "Hello from gpt-4o-mini." in (streamed_text(body) if stream else text_of(json.loads(body)))


def test_a_client_that_hangs_up_is_noticed(double: Double, dialled: httpx.Client) -> None:
    """Hanging up in the middle of a stream is recorded, and only what was sent is billed."""
    held = double.reply("openai", text="one two three", fault=Fault.STALL_STREAM, after=1)
    url, body = question("openai", stream=True)
    with dialled.stream("POST", url, json=body):
        assert held.gate.reached.wait(5)
    (request,) = double.requests

    assert request.done.wait(5)
    assert request.closed_early
    assert double.billed[0].usage.output == 1
    assert not double.billed[0].reported


def test_the_script_may_say_what_is_billed(double: Double, dialled: httpx.Client) -> None:
    """An answer that never arrived is billed when the script says so, and not told as reported."""
    for billed in (None, True):
        double.reply("openai", fault=Fault.RESET_BEFORE_HEADERS, billed=billed)
        with pytest.raises(httpx.ReadError):
            ask(dialled, "openai")

    (bill,) = double.billed
    assert bill.request is double.requests[1]
    assert not bill.reported


def test_addresses_without_an_answer(double: Double, dialled: httpx.Client) -> None:
    """A refused host, a silent port, and a certificate nobody trusts fail as they do in the world."""
    double.refuse("openai")
    with pytest.raises(httpx.ConnectError):
        ask(dialled, "openai")
    double.refuse("openai", False)
    assert ask(dialled, "openai").status_code == 200

    with ports.untrusted() as port, pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(f"https://127.0.0.1:{port}/")
    with pytest.raises(httpx.ConnectError, match="SSL"):
        httpx.get(f"https://127.0.0.1:{double.port}/")
    with ports.silent() as port, pytest.raises(httpx.ReadTimeout):
        httpx.get(f"http://127.0.0.1:{port}/", timeout=0.05)
