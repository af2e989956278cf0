"""Requests as they leave for each provider, and answers as they are read: on real bytes, good and bad."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import errors, provider, transport
from shared.errors import LLMError
from shared.provider_answers import (
    UnreadableError,
    anthropic_usage,
    cohere_usage,
    gemini_usage,
    openai_usage,
    take_openai,
)
from shared.provider_streams import Events, StreamReader
from shared.types import Answer, Request, TaskType, Usage
from tests.loopback import HELLO, Loopback, Reply, Told, ask, candidate, dialled, host_of, http, sse, streamed

KEY = "sk-test-0123456789abcdef"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}

# ---- the wires --------------------------------------------------------------------------------------------------

OPENAI_USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 5,
    "total_tokens": 17,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


def completion(message: object = None, finish: str | None = "stop", **more: object) -> dict[str, Any]:
    """A whole answer in OpenAI's shape."""
    message = {"role": "assistant", "content": "Hello there"} if message is None else message
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"id": "c-1", "model": "m-1", "choices": [choice], "usage": OPENAI_USAGE, **more}


def chunk(content: str | None = None, finish: str | None = None, **more: object) -> dict[str, Any]:
    """One chunk of a stream in OpenAI's shape."""
    delta = {} if content is None else {"content": content}
    return {"id": "c-1", "model": "m-1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


OPENAI = (
    http(completion()),
    sse(chunk("Hello "), chunk("there"), chunk(finish="stop"), {"id": "c-1", "choices": [], "usage": OPENAI_USAGE}),
)
COUNTED = Usage(12, 5, 4, reasoning_tokens=2, source="provider")

ANTHROPIC = (
    http(
        {
            "id": "c-1",
            "type": "message",
            "role": "assistant",
            "model": "m-1",
            "content": [{"type": "text", "text": "Hello there"}],
            "stop_reason": "end_turn",
            "usage": {
                "input_tokens": 7,
                "cache_creation_input_tokens": 1,
                "cache_read_input_tokens": 4,
                "output_tokens": 5,
            },
        }
    ),
    sse(
        'event: message_start\ndata: {"type":"message_start","message":{"id":"c-1","model":"m-1","content":[],'
        '"usage":{"input_tokens":7,"cache_creation_input_tokens":1,"cache_read_input_tokens":4,"output_tokens":1}}}\n\n',
        'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n',
        'event: ping\ndata: {"type": "ping"}\n\n',
        'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello "}}\n\n',
        'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"there"}}\n\n',
        'data: {"type":"content_block_stop","index":0}\n\n',
        'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":5}}\n\n',
        'event: message_stop\ndata: {"type":"message_stop"}\n\n',
        done=False,
    ),
)


def candidates(text: str, finish: str | None = None, **usage: int) -> dict[str, Any]:
    """An answer of Gemini, or a chunk of one."""
    found: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    if finish:
        found["finishReason"] = finish
    return {"candidates": [found], "usageMetadata": usage, "modelVersion": "m-1", "responseId": "c-1"}


GEMINI_USAGE = {
    "promptTokenCount": 12,
    "candidatesTokenCount": 3,
    "thoughtsTokenCount": 2,
    "cachedContentTokenCount": 4,
    "totalTokenCount": 17,
}
GEMINI = (
    http(candidates("Hello there", "STOP", **GEMINI_USAGE)),
    sse(
        candidates("Hello ", promptTokenCount=12, totalTokenCount=12),
        candidates("there", "STOP", **GEMINI_USAGE),
        done=False,
    ),
)
COHERE_USAGE = {
    "billed_units": {"input_tokens": 1, "output_tokens": 1},
    "tokens": {"input_tokens": 12, "output_tokens": 5},
    "cached_tokens": 4,
}
COHERE = (
    http(
        {
            "id": "c-1",
            "message": {"role": "assistant", "content": [{"type": "text", "text": "Hello there"}]},
            "finish_reason": "COMPLETE",
            "usage": COHERE_USAGE,
        }
    ),
    sse(
        {"type": "message-start", "id": "c-1", "delta": {"message": {"role": "assistant", "content": []}}},
        {"type": "content-start", "index": 0, "delta": {"message": {"content": {"type": "text", "text": ""}}}},
        {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "Hello "}}}},
        {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "there"}}}},
        {"type": "content-end", "index": 0},
        {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": COHERE_USAGE}},
    ),
)
OLLAMA_END = {"model": "m-1", "done": True, "done_reason": "stop", "prompt_eval_count": 12, "eval_count": 5}
OLLAMA = (
    http({**OLLAMA_END, "message": {"role": "assistant", "content": "Hello there"}}),
    streamed(
        "".join(
            json.dumps(line) + "\n"
            for line in (
                {"model": "m-1", "message": {"role": "assistant", "content": "Hello "}, "done": False},
                {"model": "m-1", "message": {"role": "assistant", "content": "there"}, "done": False},
                {**OLLAMA_END, "message": {"role": "assistant", "content": ""}},
            )
        ),
        kind="application/x-ndjson",
    ),
)
PREDICTION = {"id": "p1", "model": "m-1", "status": "succeeded", "output": ["Hello ", "there"]}
REPLICATE = (
    http({**PREDICTION, "metrics": {"input_token_count": 12, "output_token_count": 5}}, status=201),
    http({**PREDICTION, "metrics": {"input_token_count": 12, "output_token_count": 5}}, status=201),
)

BEARER = ("authorization", f"Bearer {KEY}")
COMPLETIONS = "/v1/chat/completions"
# provider, model, where it goes (plain, stream), how the key goes, what answers, what is then read.
WIRES: Sequence[Any] = [
    ("openai", "gpt-4o-mini", "api.openai.com", COMPLETIONS, None, BEARER, OPENAI, COUNTED),
    ("mistral", "mistral-small-latest", "api.mistral.ai", COMPLETIONS, None, BEARER, OPENAI, COUNTED),
    ("groq", "llama-3.3-70b", "api.groq.com", "/openai/v1/chat/completions", None, BEARER, OPENAI, COUNTED),
    ("together_ai", "meta-llama/Llama-3.3-70B", "api.together.xyz", COMPLETIONS, None, BEARER, OPENAI, COUNTED),
    ("deepseek", "deepseek-chat", "api.deepseek.com", "/beta/chat/completions", None, BEARER, OPENAI, COUNTED),
    ("xai", "grok-4", "api.x.ai", COMPLETIONS, None, BEARER, OPENAI, COUNTED),
    ("openrouter", "qwen/qwen3", "openrouter.ai", "/api/v1/chat/completions", None, BEARER, OPENAI, COUNTED),
    ("perplexity", "sonar", "api.perplexity.ai", "/chat/completions", None, BEARER, OPENAI, COUNTED),
    (
        "azure",
        "my-gpt",
        "res.openai.azure.com",
        "/openai/deployments/my-gpt/chat/completions?api-version=2025-02-01-preview",
        None,
        ("api-key", KEY),
        OPENAI,
        COUNTED,
    ),
    (
        "anthropic",
        "claude-haiku-4-5",
        "api.anthropic.com",
        "/v1/messages",
        None,
        ("x-api-key", KEY),
        ANTHROPIC,
        Usage(12, 5, 4, 1, source="provider"),
    ),
    (
        "gemini",
        "gemini-2.5-flash",
        "generativelanguage.googleapis.com",
        "/v1beta/models/gemini-2.5-flash:generateContent",
        "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
        ("x-goog-api-key", KEY),
        GEMINI,
        COUNTED,
    ),
    (
        "cohere",
        "command-a-03-2025",
        "api.cohere.com",
        "/v2/chat",
        None,
        BEARER,
        COHERE,
        Usage(12, 5, 4, source="provider"),
    ),
    ("ollama_chat", "llama3", "localhost", "/api/chat", None, BEARER, OLLAMA, Usage(12, 5, source="provider")),
    (
        "replicate",
        "meta/meta-llama-3-8b-instruct",
        "api.replicate.com",
        "/v1/models/meta/meta-llama-3-8b-instruct/predictions",
        None,
        BEARER,
        REPLICATE,
        Usage(12, 5, source="provider"),
    ),
]
BASES = {"azure": "https://res.openai.azure.com"}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("wire", WIRES, ids=[wire[0] for wire in WIRES])
def test_each_provider_is_asked_and_read_in_its_own_words(wire: Any, stream: bool) -> None:
    """Host, path, key, model, messages and limit leave as the provider documents them, and its answer comes back."""
    name, model, host, path, stream_path, (header, key), replies, usage = wire
    told = ask(candidate(name, model, api_base=BASES.get(name)), replies[stream], stream=stream, max_tokens=9)
    [asked] = told.asked
    assert (asked.method, host_of(asked)) == ("POST", host)
    assert asked.target == (stream_path if stream and stream_path else path)
    assert asked.headers[header] == key
    assert asked.headers["accept-encoding"] == "identity"
    sent = json.dumps(asked.body)
    assert "Be kind." in sent
    assert "Hello!" in sent
    assert 9 in _numbers(asked.body)
    assert KEY not in sent + asked.target
    _check_told(told, usage, stream)


def _check_told(told: Told, usage: Usage, stream: bool) -> None:
    answer = told.answer
    if answer.response_id == "p1":
        assert "".join(told.texts) == ("Hello there" if stream else "")
    else:
        assert told.texts == (["Hello ", "there"] if stream else [])
    assert (answer.text, answer.finish_reason, answer.usage) == (
        "Hello there",
        None if answer.response_id == "p1" else "stop",
        usage,
    )
    assert answer.message["content"] == "Hello there"
    assert told.exchange.sent
    assert told.exchange.status in (200, 201)


def _numbers(body: object) -> list[object]:
    """Every number in nested data."""
    if isinstance(body, dict):
        return [number for value in body.values() for number in _numbers(value)]
    return [body] if isinstance(body, int) else []


@pytest.mark.parametrize("wire", WIRES, ids=[wire[0] for wire in WIRES])
def test_streams_are_asked_for_with_their_usage(wire: Any) -> None:
    """A stream is asked for as one, with include_usage just where the provider knows it."""
    name, model, *_, replies, _ = wire
    [asked] = ask(candidate(name, model, api_base=BASES.get(name)), replies[1], stream=True).asked
    if name not in ("gemini", "replicate"):
        assert asked.body["stream"] is True
    knows = name in ("openai", "groq", "together_ai", "deepseek", "xai", "openrouter", "azure")
    assert ("stream_options" in asked.body) == knows
    if knows:
        assert asked.body["stream_options"]["include_usage"] is True


@pytest.mark.parametrize(
    ("name", "base", "target"),
    [
        ("openai", "http://127.0.0.1:1/v1", "/v1/chat/completions"),
        ("openai", "http://127.0.0.1:1/v1/", "/v1/chat/completions"),
        ("custom", "http://127.0.0.1:1/v1", "/v1/chat/completions"),
        ("nobody-knows-this", "http://127.0.0.1:1/v1", "/v1/chat/completions"),
        ("mistral", "http://127.0.0.1:1/v1", "/v1/chat/completions"),
        ("anthropic", "http://127.0.0.1:1", "/v1/messages"),
        ("anthropic", "http://127.0.0.1:1/v1", "/v1/messages"),
        ("anthropic", "http://127.0.0.1:1/proxy/v1/messages", "/proxy/v1/messages"),
        ("gemini", "http://127.0.0.1:1", "/v1beta/models/m:generateContent"),
        ("gemini", "http://127.0.0.1:1/v1alpha", "/v1alpha/models/m:generateContent"),
        ("cohere", "http://127.0.0.1:1", "/v2/chat"),
        ("cohere", "http://127.0.0.1:1/v2/chat", "/v2/chat"),
        ("ollama", "http://127.0.0.1:1/", "/api/chat"),
        ("ollama_chat", "http://127.0.0.1:1/v1", "/api/chat"),
        ("azure", "http://127.0.0.1:1/openai/v1", "/openai/v1/chat/completions"),
        ("azure", "http://127.0.0.1:1/openai", "/openai/deployments/m/chat/completions?api-version=2025-02-01-preview"),
        ("replicate", "http://127.0.0.1:1/v1", "/v1/models/m/predictions"),
    ],
)
def test_own_endpoints(name: str, base: str, target: str) -> None:
    """An endpoint of the caller's own is taken in any of the forms that people write, with the provider's path."""
    [asked] = ask(candidate(name, "m", api_base=base), http({})).asked
    assert (host_of(asked), asked.target) == ("127.0.0.1", target)


def test_azure_api_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """AZURE_API_VERSION is the version that Azure is asked in."""
    monkeypatch.setenv("AZURE_API_VERSION", "2099-01-01")
    [asked] = ask(candidate("azure", "m", api_base="https://r.openai.azure.com"), OPENAI[0]).asked
    assert asked.target.endswith("?api-version=2099-01-01")


# ---- parameters, keys, names ------------------------------------------------------------------------------------


def test_parameters_in_the_models_own_words() -> None:
    """Where LiteLLM's config knows another name for a parameter, that one is sent."""
    [asked] = ask(candidate("openai", "gpt-5.4-mini"), OPENAI[0], max_tokens=5).asked
    assert asked.body["max_completion_tokens"] == 5
    assert "max_tokens" not in asked.body
    [asked] = ask(candidate("gemini", "gemini-2.5-flash"), GEMINI[0], max_tokens=5, stop=["x"]).asked
    assert asked.body["generationConfig"] == {"max_output_tokens": 5, "stop_sequences": ["x"]}


@pytest.mark.parametrize(
    ("name", "model", "params", "named"),
    [
        ("openai", "gpt-4o", {"nonsense": 1}, "nonsense"),
        ("openai", "o3-mini", {"temperature": 0.2}, "temperature"),
        ("openai", "gpt-5", {"temperature": 0.2}, "temperature"),
        ("mistral", "m", {"logprobs": True}, "logprobs"),
        ("replicate", "a/b", {"tools": [TOOL]}, "tools"),
        ("openai", "gpt-4o", {"n": 2}, "n must be 1"),
        ("custom", "m", {"api_key": "other"}, "api_key"),
        ("custom", "m", {"base_url": "http://x"}, "base_url"),
        ("openai", "gpt-4o", {"fallbacks": ["x"]}, "fallbacks"),
        ("openai", "gpt-4o", {"extra_body": "x"}, "extra_body"),
        ("openai", "gpt-4o", {"temperature": math.nan}, "JSON"),
        ("openai", "gpt-4o", {"seed": object()}, "JSON"),
    ],
)
def test_parameters_that_the_model_does_not_take(name: str, model: str, params: Any, named: str) -> None:
    """What cannot be sent is refused before anything leaves, with the parameter and the model named."""
    base = "http://127.0.0.1:1" if name == "custom" else None
    told = ask(candidate(name, model, api_base=base), **params)
    assert type(told.failure) is errors.InvalidRequest
    assert named in told.failure.message
    assert model in told.failure.message
    assert told.failure.outcome == "not_sent"
    assert "drop_params" not in told.failure.message
    assert told.asked == []


def test_none_is_not_a_parameter() -> None:
    """A parameter of None was not given, and n=1 is what is done anyway."""
    [asked] = ask(candidate("mistral", "m"), OPENAI[0], temperature=None, logprobs=None, n=1).asked
    assert asked.body.keys() == {"model", "messages"}


def test_a_custom_server_gets_what_it_is_given() -> None:
    """Nobody knows what an OpenAI-compatible server of one's own takes, so it gets it all."""
    [asked] = ask(candidate("custom", "m", api_base="http://127.0.0.1:1/v1"), OPENAI[0], repeat_penalty=1.1).asked
    assert asked.body["repeat_penalty"] == 1.1


def test_extra_body_and_headers_add_and_never_replace() -> None:
    """extra_body and extra_headers reach the provider, but change neither the model nor the key nor the host."""
    extra_body = {"service_tier": "flex", "model": "dearer"}
    extra_headers = {"X-Trace": "1", "Authorization": "Bearer other", "Host": "elsewhere"}
    [asked] = ask(candidate(), OPENAI[0], extra_body=extra_body, extra_headers=extra_headers).asked
    assert (asked.body["service_tier"], asked.body["model"]) == ("flex", "gpt-4o-mini")
    assert (asked.headers["x-trace"], asked.headers["authorization"]) == ("1", f"Bearer {KEY}")
    assert host_of(asked) == "api.openai.com"


def test_the_request_is_not_changed() -> None:
    """LiteLLM's configs change what they are given; the caller's messages and parameters stay as they are."""
    messages = [{"role": "developer", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "y"}]}]
    params: dict[str, Any] = {"tools": [TOOL], "max_tokens": 3}
    before = json.dumps([messages, params])
    for name, model in (("openai", "gpt-5"), ("anthropic", "claude-haiku-4-5"), ("gemini", "gemini-2.5-flash")):
        ask(candidate(name, model), messages=messages, **params)
    assert json.dumps([messages, params]) == before


@pytest.mark.parametrize("name", ["openai", "anthropic", "gemini", "cohere", "replicate", "azure"])
def test_a_missing_key_is_said_before_anything_is_sent(name: str) -> None:
    """Without a key nothing leaves, and the error names the variables that could hold it."""
    told = ask(candidate(name, "m", api_key=None, api_base=BASES.get(name)))
    assert type(told.failure) is errors.AuthenticationError
    assert told.failure.message.startswith(f"Authentication failed for {name}")
    assert f"{name.upper()}_API_KEY" in told.failure.next_step
    assert told.asked == []


@pytest.mark.parametrize("name", ["openai", "anthropic", "custom", "mistral", "hosted_vllm", "xai", "ollama", "cohere"])
def test_no_key_is_taken_from_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that the candidate does not carry never leaves, though LiteLLM's configs would look for one."""
    for prefix in ("OPENAI", "ANTHROPIC", "MISTRAL", "HOSTED_VLLM", "XAI", "OLLAMA", "COHERE", "CO"):
        monkeypatch.setenv(f"{prefix}_API_KEY", "sk-from-the-environment")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "sk-from-the-environment")
    [asked] = ask(candidate(name, "m", api_key=None, api_base="http://127.0.0.1:1"), http({})).asked
    assert not {"authorization", "x-api-key", "api-key"} & asked.headers.keys()
    assert "sk-" not in str(asked)


@pytest.mark.parametrize("key", ["sk-test\n", "sk-tést", "sk test"])
def test_keys_that_are_none(key: str) -> None:
    """A key that no header can carry is said to be one, without being repeated."""
    told = ask(candidate(api_key=key))
    assert type(told.failure) is errors.AuthenticationError
    assert "sk" not in str(told.failure)
    assert told.asked == []


@pytest.mark.parametrize(
    "model", ["http://evil.example/x", "a b", "a\nb", "", "/etc/passwd", "../x", "a/../../b", "a\\b", "a/./b"]
)
@pytest.mark.parametrize("name", ["openai", "gemini", "azure", "replicate"])
def test_a_model_name_never_becomes_an_address(name: str, model: str) -> None:
    """Names that could lead elsewhere are no models, and nothing is sent."""
    told = ask(candidate(name, model, api_base=BASES.get(name)))
    assert type(told.failure) is errors.ModelNotFound
    assert told.asked == []


@pytest.mark.parametrize("name", ["gemini", "azure", "replicate"])
@pytest.mark.parametrize("model", ["m?x=1", "m#y", "m%2e%2e"])
def test_a_model_name_stays_in_its_place(name: str, model: str) -> None:
    """A name that goes into a path cannot add a query or a fragment to it."""
    told = ask(candidate(name, model, api_base=BASES.get(name)))
    assert type(told.failure) is errors.ModelNotFound
    assert told.asked == []


@pytest.mark.parametrize("base", ["ftp://x", "nonsense", "http://", "http://[", "file:///etc/passwd"])
def test_endpoints_that_are_none(base: str) -> None:
    """An api_base that is no http or https address is a mistake in the settings, and nothing is sent."""
    told = ask(candidate(api_base=base))
    assert type(told.failure) is errors.ConfigurationError
    assert told.asked == []


@pytest.mark.parametrize("name", ["azure", "custom", "litellm_proxy"])
def test_providers_without_an_endpoint(name: str) -> None:
    """A provider that has no endpoint but the user's own is not asked at anybody else's."""
    told = ask(candidate(name, "m"))
    assert type(told.failure) is errors.ConfigurationError
    assert told.asked == []


@pytest.mark.parametrize("link", ["https://example.com/x.png", "http://example.com/x", "gs://bucket/x", "www.x.org/y"])
@pytest.mark.parametrize("name", ["anthropic", "gemini", "ollama", "cohere", "replicate"])
def test_nothing_is_fetched(name: str, link: str) -> None:
    """A link in a message, which LiteLLM would download, is refused where the provider does not take links itself."""
    part = {"type": "image_url", "image_url": {"url": link}}
    told = ask(candidate(name, "m"), messages=[{"role": "user", "content": [part]}])
    assert type(told.failure) is errors.InvalidRequest
    assert told.asked == []


def test_links_that_the_provider_takes_itself() -> None:
    """OpenAI's shape takes image links as they are; a link to a file, which LiteLLM would download, is refused."""
    part = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}
    [asked] = ask(candidate(), OPENAI[0], messages=[{"role": "user", "content": [part]}]).asked
    assert asked.body["messages"][0]["content"] == [part]
    file = {"type": "file", "file": {"file_id": "https://example.com/x.pdf"}}
    assert type(ask(candidate(), messages=[{"role": "user", "content": [file]}]).failure) is errors.InvalidRequest


@pytest.mark.parametrize("messages", [[], [{}], ["hello"], [{"role": 1}]])
def test_messages_that_are_none(messages: Any) -> None:
    """What is no list of messages is refused before anything is sent."""
    told = ask(candidate(), messages=messages)
    assert type(told.failure) is errors.InvalidRequest
    assert told.asked == []


# ---- errors by status -------------------------------------------------------------------------------------------


def said(message: str, **more: object) -> dict[str, Any]:
    """An error body in OpenAI's shape."""
    return {"error": {"message": message, **more}}


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
        "Authentication failed for openai (openai/gpt-4o-mini)"
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
    assert error.action == "next"


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


# ---- answers that are none --------------------------------------------------------------------------------------

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


def test_an_unknown_finish_reason_is_a_stop() -> None:
    """A provider's own word for the end counts as an end; no word at all does not become one."""
    assert ask(candidate(), http(completion(finish="galaxy"))).answer.finish_reason == "stop"
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
    assert "stream" not in told.asked[0].body
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


# ---- usage and cost ---------------------------------------------------------------------------------------------


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
    """Usage is what the provider said if it can be true, else unknown; never zero for want of a word."""
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
        ("custom", {"cost": 5}, None),
        ("openai", {"cost": 5}, None),
    ],
)
def test_reported_cost(name: str, usage: Any, cost: Decimal | None) -> None:
    """The exact price is taken from the providers that tell it in US$, to the last digit, and from no other."""
    base = "http://127.0.0.1:1" if name == "custom" else None
    body = completion(usage={**OPENAI_USAGE, **usage})
    assert ask(candidate(name, "m", api_base=base), http(body)).answer.reported_cost == cost


# ---- the connection ---------------------------------------------------------------------------------------------


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
    """Once the request has left nobody knows what became of it, except for a redirect, which is not followed."""
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
            ready = await provider.ready(candidate())
            await anext(provider.send(ready, Request(TaskType.CHAT_COMPLETION, HELLO), timeout=5))

    with pytest.raises(errors.ProviderUnavailable) as caught:
        asyncio.run(scene())
    assert (caught.value.outcome, caught.value.cost, caught.value.status_code) == ("not_sent", 0, None)
    assert caught.value.message.startswith("Could not connect to openai")


def test_no_tls_where_tls_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """An https address that speaks no TLS is not asked in clear text; nothing was sent."""
    monkeypatch.setattr(transport, "network", lambda: httpx.AsyncHTTPTransport(trust_env=False))

    async def plain(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def scene() -> None:
        async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            who = await provider.ready(candidate(api_base=f"https://127.0.0.1:{port}/v1"))
            await anext(provider.send(who, Request(TaskType.CHAT_COMPLETION, HELLO), timeout=5))

    with pytest.raises(errors.ProviderUnavailable) as caught:
        asyncio.run(scene())
    assert caught.value.outcome == "not_sent"
    assert "secure connection" in caught.value.message


def test_closing_a_stream_closes_its_connection() -> None:
    """A stream that is closed early lets go of its connection at once, and can be closed twice."""

    async def scene() -> None:
        async with Loopback([sse(chunk("one"), chunk("two"), done=False, then="stall")]) as server:
            with dialled(server.port):
                ready = await provider.ready(candidate())
                request = Request(TaskType.CHAT_COMPLETION, HELLO, stream=True)
                pieces = provider.send(ready, request, timeout=5)
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
                ready = await provider.ready(candidate())
                pieces = provider.send(ready, Request(TaskType.CHAT_COMPLETION, HELLO), timeout=5)
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
                ready = await provider.ready(candidate())
                for _ in range(3):
                    request = Request(TaskType.CHAT_COMPLETION, HELLO, stream=True)
                    async with aclosing(provider.send(ready, request, timeout=5)) as pieces:
                        async for _ in pieces:
                            pass
                assert not server.gone.is_set()
            return len(server.asked)

    assert asyncio.run(scene()) == 3


# ---- streams ----------------------------------------------------------------------------------------------------


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
    assert type(told.failure.__cause__ or told.failure.__context__) in (kind, type(None))
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
    reader = StreamReader(candidate(), take_openai, take_openai, ndjson=stream)
    told: list[str] = []
    failure: LLMError | None = None
    try:
        told.extend(reader.feed(data))
        told.extend(reader.close())
    except LLMError as error:
        failure = error
    assert "".join(told) == reader.answer().text
    assert isinstance(failure, errors.StreamInterrupted) == bool(failure and told)


def test_a_line_without_end() -> None:
    """A line longer than any answer is refused before it fills the memory."""
    events, block = Events(ndjson=False), b"x" * 2**20
    for _ in range(32):
        assert list(events.feed(block)) == []
    with pytest.raises(UnreadableError, match="without end"):
        list(events.feed(block))


# ---- Replicate --------------------------------------------------------------------------------------------------


def prediction(status: str, *output: str, **more: object) -> Reply:
    """A prediction as it stands."""
    body = {"id": "p1", "status": status, "output": list(output) or None, "error": None, **more}
    return http(body, status=201)


def test_replicate_is_looked_at_until_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prediction is created once and looked at where it was created, not where its answer says."""
    monkeypatch.setattr("shared.provider_sending._POLL_S", 0.0)
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
    monkeypatch.setattr("shared.provider_sending._POLL_S", 0.0)
    who = candidate("replicate", "a/b")
    assert type(ask(who, prediction("failed", error="CUDA")).failure) is errors.ProviderUnavailable
    assert type(ask(who, prediction("canceled")).failure) is errors.ProviderUnavailable
    told = ask(who, prediction("processing", "Hi"), http({}, status=500), stream=True)
    assert type(told.failure) is errors.StreamInterrupted
    assert told.texts == ["Hi"]


# ---- the rest of the edge ---------------------------------------------------------------------------------------


def test_counting_needs_no_network_and_never_fails() -> None:
    """Tokens are counted offline, pictures at a flat figure; what cannot be counted is unknown."""
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hello there"}, picture]}]
    usage = provider.count_tokens(candidate(), messages, "one two three")
    assert usage.source == "counted"
    assert usage.completion_tokens == 3
    assert usage.prompt_tokens is not None
    assert 500 < usage.prompt_tokens < 1500
    long = provider.count_tokens(candidate(), [{"role": "user", "content": "x" * 500_000}], "")
    assert long.prompt_tokens is not None
    assert long.prompt_tokens > 10_000
    assert provider.count_tokens(candidate(), [7], "").source == "unknown"  # type: ignore[list-item]


FOURTEEN = [wire[0] for wire in WIRES]


def test_what_is_guarded() -> None:
    """The providers of the guide go through our transport, those with a login of their own through LiteLLM."""
    known = provider.providers()
    assert {name: known[name] for name in FOURTEEN} == dict.fromkeys(FOURTEEN, True)
    logins = ["vertex_ai", "bedrock", "sagemaker", "watsonx", "oci", "github_copilot", "chatgpt", "databricks"]
    assert {name: known[name] for name in logins} == dict.fromkeys(logins, False)
    assert provider.guarded("custom", "x")
    ready = asyncio.run(provider.ready(candidate("vertex_ai", "gemini-2.5-flash")))
    assert not ready.guarded


def test_nothing_is_printed_and_no_global_changed(capfd: pytest.CaptureFixture[str]) -> None:
    """LiteLLM prints a hint for each name that its table lacks; we keep it quiet and leave its switch as it was."""
    import litellm

    before = litellm.suppress_debug_info, litellm.drop_params, litellm.api_base, litellm.api_key
    for name, model in (("openrouter", "a/zzz-9"), ("anthropic", "claude-zzz-9"), ("openai", "gpt-5.9-zzz")):
        ask(candidate(name, model), tools=[TOOL], max_tokens=1)
    assert capfd.readouterr() == ("", "")
    assert (litellm.suppress_debug_info, litellm.drop_params, litellm.api_base, litellm.api_key) == before


async def _closing_litellm(work: Any) -> Any:
    """LiteLLM keeps its clients open; a test must not."""
    import litellm

    try:
        return await work
    finally:
        await litellm.close_litellm_async_clients()  # type: ignore[no-untyped-call]


def through_litellm(*replies: Reply, stream: bool = False) -> Told:
    """An unguarded request, which dials by itself."""

    async def scene() -> Told:
        told = Told()
        async with Loopback(replies) as server:
            told.asked = server.asked
            who = candidate("openai", "gpt-4o-mini", api_base=f"http://127.0.0.1:{server.port}", guarded=False)
            request = Request(TaskType.CHAT_COMPLETION, HELLO, stream=stream)
            try:
                async for piece in provider.send(await provider.ready(who), request, timeout=5, exchange=told.exchange):
                    if isinstance(piece, Answer):
                        told.result = piece
                    else:
                        told.texts.append(piece)
            except LLMError as error:
                told.error = error
        return told

    told: Told = asyncio.run(_closing_litellm(scene()))
    return told


# LiteLLM's stream wrapper reads a name that pydantic has deprecated.
DEPRECATED = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211")


@DEPRECATED
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_unguarded_providers(stream: bool) -> None:
    """What goes through LiteLLM's wrapper gives the same answer, by one request with the candidate's own key."""
    told = through_litellm(OPENAI[stream], stream=stream)
    assert "".join(told.texts) == ("Hello there" if stream else "")
    assert (told.answer.text, told.answer.finish_reason) == ("Hello there", "stop")
    assert (told.answer.usage.prompt_tokens, told.answer.usage.completion_tokens) == (12, 5)
    [asked] = told.asked
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert told.exchange.sent


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (http(said("x"), status=500), errors.ProviderUnavailable),
        (http(said("x"), status=429, headers={"retry-after": "3"}), errors.RateLimitError),
        (http(said("x"), status=401), errors.AuthenticationError),
        (http(said("maximum context length is 5 tokens"), status=400), errors.ContextTooLong),
    ],
)
def test_unguarded_errors(reply: Reply, kind: type[LLMError]) -> None:
    """LiteLLM's exceptions are read by their status; its retries are off."""
    told = through_litellm(reply)
    assert type(told.failure) is kind
    assert len(told.asked) == 1
    assert told.failure.retry_after == (3 if kind is errors.RateLimitError else None)


@DEPRECATED
def test_an_unguarded_stream_without_an_end() -> None:
    """LiteLLM makes up an end for a stream that just stops; we do not believe it."""
    told = through_litellm(sse(chunk("Hi"), done=False), stream=True)
    assert type(told.failure) is errors.StreamInterrupted
    assert told.texts == ["Hi"]
