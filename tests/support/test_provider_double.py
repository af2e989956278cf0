"""The provider double: as real recordings are, exact in its count, and failing on command."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped]

from tests.support.paths import BESIDE
from tests.support.provider_double import Double, Fault, Reply, ToolCall, Usage, count, dial, running
from tests.support.provider_double.asking import (
    ASK,
    ENDPOINTS,
    GEMINI,
    GEMINI_ASK,
    KEYS,
    PROMPT,
    ask,
    streamed_text,
    text_of,
)
from tests.support.provider_double.errors import KINDS
from tests.support.provider_double.shapes import differences, events_of, merged, order_of, shape_of

pytest_plugins = ["tests.support.provider_double.fixtures"]

RECORDINGS = BESIDE / "real_traffic"
OPENAI = ENDPOINTS["openai"][0]


# Faithful to real recordings


def recorded() -> list[Any]:
    """The index of real recordings, empty where they are not at hand."""
    index = RECORDINGS / "INDEX.json"
    entries = json.loads(index.read_text()) if index.exists() else []
    return [pytest.param(entry, id=entry["file"]) for entry in entries]


ERRORS = {"context_window": "context_length", "quota": "rate_limit", None: "validation"}
LATER = {
    "openai": {"obfuscation"},
    "anthropic": {"stop_details", "inference_geo", "cache_creation", "input_tokens"}
    | {"cache_creation_input_tokens", "cache_read_input_tokens"},
    "mistral": {"p", "prompt_tokens_details", "service_tier"},
    "openrouter": {"service_tier"},
}
"""Keys that providers added after some of the recordings were made; each is in a later one."""
GONE = {"mistral": {"logprobs"}}
"""Keys that providers have dropped since."""
FREE = (".input.", ".args.")
"""Below these stands what the request asked for, not the provider's shape."""


def script_for(entry: dict[str, Any]) -> dict[str, Any]:
    """A script of the same kind as a recording, with words and ids of our own."""
    expected = entry["expected"]
    if expected["http_status"] >= 400:
        category = expected.get("error_category")
        kind = ERRORS.get(category, category)
        return {"error": kind if kind in KINDS else "validation", "status": expected["http_status"]}
    if expected.get("stream_error"):
        return {"fault": Fault.ERROR_EVENT, "error": "invalid", "reasoning": "Thinking about it.", "after": 5}
    if expected.get("prompt_feedback"):
        return {"refusal": "Not this prompt."}
    thinks = bool(expected["reasoning_tokens"]) or "thinking" in entry["file"] or expected.get("has_reasoning_text")
    script: dict[str, Any] = {"reasoning": "I think."} if thinks else {}
    if expected["prompt_tokens"]:
        reasoning = expected["reasoning_tokens"] or (expected["completion_tokens"] // 2 if thinks else 0)
        cached = expected["cached_tokens"] or 0
        usage = Usage(expected["prompt_tokens"], expected["completion_tokens"], cached, reasoning=reasoning)
        script["usage"] = usage
    if expected.get("tool_calls"):
        calls = [ToolCall("look_up", {"place": "here"}) for _ in expected["tool_calls"]]
        return script | {"tool_calls": calls} | ({"text": "I will look."} if expected["content"] else {})
    return script | {"finish_reason": expected["finish_reason"]} | ({"text": ""} if expected["content"] == "" else {})


def json_or_none(body: bytes | str) -> Any:
    """JSON, or None for what is none."""
    try:
        return json.loads(body)
    except ValueError:
        return None


@pytest.mark.skipif(not recorded(), reason="../shared/real_traffic is not here")
@pytest.mark.parametrize("entry", recorded() or [None])
def test_answers_have_the_shape_of_real_ones(entry: dict[str, Any], double: Double, dialled: httpx.Client) -> None:
    """An answer of the double has the keys, types and order of events of a real recording of its kind."""
    exchange = yaml.safe_load((RECORDINGS / entry["file"]).read_text())["interactions"][0]
    asked, real = exchange["request"], exchange["response"]
    body = real["body"]["string"]
    body = body if isinstance(body, bytes) else body.encode()
    question = json_or_none(asked.get("body") or "") or ASK | {"model": entry["model"], "stream": entry["stream"]}
    double.reply(entry["provider"], **script_for(entry))

    response = dialled.post(asked["uri"], json=question)

    assert response.status_code == real["status"]["code"]
    media = [value.split(";")[0] for value in real["headers"].get("content-type", [])]
    assert response.headers["content-type"].split(";")[0] in media
    assert ("retry-after" in response.headers) == ("retry-after" in real["headers"])
    if entry["stream"]:
        mine, theirs = events_of(response.content), events_of(body)
        assert order_of(mine) == order_of(theirs)
        own, other = (merged([shape_of(data) for _, data in events if data != "[DONE]"]) for events in (mine, theirs))
    else:
        own, other = (shape_of(json_or_none(text)) for text in (response.content, body))
    found = [line for line in differences(own, other) if not any(place in line for place in FREE)]
    leaf = {line: line.rsplit(".", 1)[-1].lstrip("+-") for line in found}
    later, gone = LATER.get(entry["provider"], set()), GONE.get(entry["provider"], set())
    known = [line for line in found if leaf[line] in (later if line[0] == "+" else gone)]
    assert [line for line in found if line not in known] == []


# Every provider


@pytest.mark.parametrize("provider", ENDPOINTS)
def test_plain_answer_and_bill(provider: str, double: Double, dialled: httpx.Client) -> None:
    """Under its real URL every provider answers from the request and bills exactly what it reports."""
    response = ask(dialled, provider)

    assert response.status_code == 200
    assert text_of(response.json()).strip() == f"Hello from {ENDPOINTS[provider][1]}."
    (bill,) = double.billed
    expected = Usage(input=count(PROMPT), output=count(f"Hello from {ENDPOINTS[provider][1]}."))
    assert (bill.provider, bill.model, bill.usage) == (provider, ENDPOINTS[provider][1], expected)
    assert bill.reported


@pytest.mark.parametrize("provider", ENDPOINTS)
def test_streamed_answer_and_bill(provider: str, double: Double, dialled: httpx.Client) -> None:
    """A stream says the same as a plain answer and is billed the same."""
    plain, streamed = ask(dialled, provider), ask(dialled, provider, stream=True)

    assert streamed_text(streamed.content) == text_of(plain.json())
    assert [bill.usage for bill in double.billed] == [double.billed[0].usage] * 2
    assert double.billed[1].reported


@pytest.mark.parametrize("provider", ENDPOINTS)
def test_errors_cost_nothing(provider: str, double: Double, dialled: httpx.Client) -> None:
    """Every provider refuses in its own words, plain or streamed alike, and bills nothing for it."""
    for kind in ("auth", "not_found", "rate_limit", "server", "overloaded", "context_length"):
        double.reply(provider, error=kind, times=2, headers={"retry-after": "7"})
        plain, streamed = ask(dialled, provider), ask(dialled, provider, stream=True)
        assert plain.status_code == streamed.status_code >= 400, kind
        assert plain.headers["retry-after"] == "7"
        assert shape_of(json_or_none(plain.content)) == shape_of(json_or_none(streamed.content)), kind
    assert double.billed == []


@pytest.mark.parametrize("provider", ENDPOINTS)
def test_finish_reasons_tools_and_reasoning(provider: str, double: Double, dialled: httpx.Client) -> None:
    """A cut, a tool call and cached and reasoning tokens can be scripted for every provider, plain and streamed."""
    usage = Usage(input=100, output=20, cached=60, reasoning=9)
    for fields in (
        {"text": "Cut", "finish_reason": "length"},
        {"tool_calls": [ToolCall("look", {"at": "me"})]},
        {"usage": usage, "reasoning": "Hm."},
    ):
        double.reply(provider, times=2, **fields)
    answers = [ask(dialled, provider, stream) for _ in range(3) for stream in (False, True)]

    assert [answer.status_code for answer in answers] == [200] * 6
    for answer in answers[:2]:
        assert "length" in answer.text.lower() or "max_tokens" in answer.text.lower()
    for answer in answers[2:4]:
        assert '"look"' in answer.text
    assert [bill.usage for bill in double.billed[4:]] == [usage, usage]


def test_default_answer_keeps_max_tokens(double: Double, dialled: httpx.Client) -> None:
    """The default answer stops at max_tokens and says so, as a model would."""
    body = ask(dialled, "openai", max_tokens=2).json()

    assert body["choices"][0]["message"]["content"] == "Hello from"
    assert body["choices"][0]["finish_reason"] == "length"
    assert double.billed[0].usage.output == body["usage"]["completion_tokens"] == 2


def test_usage_in_streams_is_where_each_provider_has_it(double: Double, dialled: httpx.Client) -> None:
    """Unasked, OpenAI tells no usage, Groq only under x_groq, xAI and Mistral do; the bill knows who was told."""
    for provider in ("openai", "groq", "xai", "mistral"):
        url, model = ENDPOINTS[provider]
        events = events_of(dialled.post(url, json=ASK | {"model": model, "stream": True}).content)
        told = [data for _, data in events if isinstance(data, dict) and data.get("usage")]
        assert len(told) == (provider in ("xai", "mistral"))
    assert [bill.reported for bill in double.billed] == [False, True, True, True]


def test_anthropic_input_excludes_cached_tokens(double: Double, dialled: httpx.Client) -> None:
    """Anthropic's input_tokens leave out what was read from or written to the cache."""
    double.reply("anthropic", usage=Usage(input=100, output=5, cached=60, cache_write=30))

    usage = ask(dialled, "anthropic").json()["usage"]

    assert usage["input_tokens"] == 10
    assert (usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]) == (60, 30)


def test_refusals(double: Double, dialled: httpx.Client) -> None:
    """A refusal is a field at OpenAI, a stop reason at Anthropic, a blocked prompt without candidates at Gemini."""
    for provider in ("openai", "anthropic", "gemini"):
        double.reply(provider, refusal="No.")

    assert ask(dialled, "openai").json()["choices"][0]["message"]["refusal"] == "No."
    assert ask(dialled, "anthropic").json()["stop_reason"] == "refusal"
    gemini = ask(dialled, "gemini").json()
    assert "candidates" not in gemini
    assert gemini["promptFeedback"]["blockReason"] == "SAFETY"
    assert len(double.billed) == 2


def test_images(double: Double, dialled: httpx.Client) -> None:
    """Images are valid PNGs of the asked size, with the documented token counts, on every wire that has them."""
    generate = {"model": "gpt-image-1", "prompt": "A red square", "n": 2, "size": "1536x1024", "quality": "low"}
    made = dialled.post("https://api.openai.com/v1/images/generations", json=generate).json()
    files = [("image[]", ("a.png", b"one")), ("image[]", ("b.png", b"two"))]
    form = {"model": "gpt-image-1", "prompt": "Both"}
    edited = dialled.post("https://api.openai.com/v1/images/edits", data=form, files=files).json()
    dall_e = {"model": "dall-e-3", "prompt": "A cat", "size": "1792x1024"}
    by_url = dialled.post("https://api.openai.com/v1/images/generations", json=dall_e).json()["data"][0]["url"]
    config = {"generationConfig": {"responseModalities": ["IMAGE", "TEXT"]}}
    gemini = dialled.post(GEMINI + "generateContent", json=GEMINI_ASK | config).json()

    assert made["usage"]["output_tokens"] == 800
    assert edited["usage"]["input_tokens_details"]["image_tokens"] == 2 * 194
    encoded = [item["b64_json"] for item in made["data"] + edited["data"]]
    encoded.append(gemini["candidates"][0]["content"]["parts"][-1]["inlineData"]["data"])
    sizes = [png_size(base64.b64decode(text)) for text in encoded]
    assert sizes == [(1536, 1024)] * 2 + [(1024, 1024)] * 2
    assert png_size(dialled.get(by_url).content) == (1792, 1024)
    assert [bill.usage.images for bill in double.billed] == [2, 1, 1, 1]


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG, every checksum and the pixels' number checked."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, place = {}, 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        name, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        assert struct.unpack(">I", data[place + 8 + length : place + 12 + length])[0] == zlib.crc32(name + body)
        chunks[name] = body
        place += 12 + length
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    assert len(zlib.decompress(chunks[b"IDAT"])) == height * (1 + (width + 7) // 8)
    return width, height


def test_replicate(double: Double, dialled: httpx.Client) -> None:
    """A prediction is created, is processing as often as scripted, then succeeds with its counts; or it fails."""
    url = "https://api.replicate.com/v1/models/meta/llama-3/predictions"
    double.reply("replicate", text="Done, surely.", polls=1)
    double.reply("replicate", fault=Fault.ERROR_EVENT, message="Out of memory")
    made, failing = (dialled.post(url, json={"input": {"prompt": PROMPT}}) for _ in range(2))
    urls = made.json()["urls"]

    states = [dialled.get(urls["get"]).json() for _ in range(2)]
    stream = dialled.get(urls["stream"])

    assert made.status_code == 201
    assert [state["status"] for state in states] == ["processing", "succeeded"]
    assert "".join(states[1]["output"]) == "Done, surely."
    assert "".join(text for name, text in raw_events(stream.text) if name == "output") == "Done, surely."
    failed = dialled.get(failing.json()["urls"]["get"]).json()
    assert (failed["status"], failed["error"]) == ("failed", "Out of memory")
    assert len(double.billed) == 2


def raw_events(text: str) -> list[tuple[str, str]]:
    """Events as they stand, white space kept."""
    parts = [event.removeprefix("event: ").split("\ndata: ", 1) for event in text.split("\n\n") if event]
    return [(name, data) for name, data in parts]


# Scripts and records


def test_replies_are_taken_in_order_and_by_model(double: Double, dialled: httpx.Client) -> None:
    """Replies queue first in, first out; a model's own queue goes first; then decide, then always, then the default."""
    double.reply("openai", text="any")
    double.reply("openai", text="mine", model="gpt-4o-mini", times=2)
    double.always("openai", text="standing")
    double.decide(lambda request: Reply(text="decided") if request.number == 3 else None)

    texts = [text_of(ask(dialled, "openai").json()) for _ in range(5)]

    assert texts == ["mine", "mine", "any", "decided", "standing"]


def test_requests_are_recorded_whole(double: Double, dialled: httpx.Client) -> None:
    """The record has what was sent, and where to, and what became of it."""
    ask(dialled, "groq", seed=7)
    (request,) = double.requests

    assert (request.provider, request.model, request.operation) == ("groq", "llama-3.3-70b-versatile", "chat")
    assert (request.method, request.host, request.path) == ("POST", "api.groq.com", "/openai/v1/chat/completions")
    assert request.body["seed"] == 7
    assert request.headers["authorization"] == "Bearer key"
    assert (request.status, request.closed_early) == (200, False)


def test_answers_are_the_same_on_every_run(double: Double, dialled: httpx.Client) -> None:
    """The same request gets the same answer in every run, a repetition its own id."""
    first = [ask(dialled, "openai").content for _ in range(2)]
    double.reset()
    again = [ask(dialled, "openai").content for _ in range(2)]

    assert first == again
    assert first[0] != first[1]


def test_prefix_and_path_stand_for_the_host(double: Double) -> None:
    """Dialled on the loopback the provider is told by a prefix, else by the shape of the path."""
    urls = {
        "groq": double.api_base("groq") + "/chat/completions",
        "openai": double.api_base("openai") + "/chat/completions",
        "anthropic": f"{double.url}/v1/messages",
        "perplexity": f"{double.url}/perplexity/chat/completions",
        "azure": f"{double.url}/openai/deployments/gpt-4o/chat/completions",
    }
    for provider, url in urls.items():
        assert httpx.post(url, json=ASK | {"model": "m"}, headers=KEYS).status_code == 200
        assert double.requests[-1].provider == provider


def test_wrong_requests_are_refused(double: Double, dialled: httpx.Client) -> None:
    """A path the provider does not have, a missing key and a broken body are refused, and leave the queue alone."""
    double.reply("openai", text="still here")

    assert dialled.post("https://api.openai.com/chat/completions", json=ASK).status_code == 404
    assert dialled.post(OPENAI, json=ASK, headers={"authorization": ""}).status_code == 401
    assert dialled.post(OPENAI, content=b"{").status_code == 400
    assert text_of(ask(dialled, "openai").json()) == "still here"
    assert len(double.billed) == 1


def test_scripts_that_cannot_play_are_told(provider_double: Double) -> None:
    """A fault that needs a stream is not passed over in silence when the answer is plain."""
    provider_double.reset()
    provider_double.reply("openai", fault=Fault.CLEAN_EOF)
    with httpx.Client(transport=dial.transport(provider_double.address), headers=KEYS) as client:
        assert ask(client, "openai").status_code == 500
    assert "CLEAN_EOF" in provider_double.problems[0]


def test_many_at_once(double: Double) -> None:
    """Threads and asyncio tasks by the hundred get their own answers, and the double counts every one."""

    def in_thread(number: int) -> str:
        return text_of(shared.post(OPENAI, json=ASK | {"model": f"m{number}"}).json())

    async def in_tasks() -> list[str]:
        async def in_task(number: int) -> str:
            async with places:
                return text_of((await client.post(OPENAI, json=ASK | {"model": f"m{number}"})).json())

        places = asyncio.Semaphore(50)  # httpcore's own pool is slow with hundreds waiting
        transport = dial.async_transport(double.address, max_connections=50)
        async with httpx.AsyncClient(transport=transport, headers=KEYS, timeout=30) as client:
            return await asyncio.gather(*(in_task(number) for number in range(100)))

    transport = dial.transport(double.address, max_connections=50)
    with httpx.Client(transport=transport, headers=KEYS, timeout=30) as shared, ThreadPoolExecutor(50) as pool:
        threads = list(pool.map(in_thread, range(100)))

    assert threads == asyncio.run(in_tasks()) == [f"Hello from m{number}." for number in range(100)]
    assert len(double.requests) == len(double.billed) == 200
    assert len({request.number for request in double.requests}) == 200


def test_the_server_goes_away(double: Double) -> None:
    """After its block a double leaves no thread and no open port, even with an answer stalled."""
    before = set(threading.enumerate())
    with running() as own, ThreadPoolExecutor(1) as pool:
        held = own.reply("openai", fault=Fault.STALL_HEADERS)
        url = own.api_base("openai") + "/chat/completions"
        answer = pool.submit(httpx.post, url, json=ASK, headers=KEYS)
        assert held.gate.reached.wait(5)
        own.close()
        assert answer.result(5).status_code == 200

    with pytest.raises(httpx.ConnectError):
        httpx.post(url, json=ASK)
    assert set(threading.enumerate()) == before
    assert double.requests == []
