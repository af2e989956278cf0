"""What may leave and what may not: parameters, keys, names, endpoints, links."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from shared import errors
from tests.support.loopback import ask, candidate, host_of, http
from tests.support.wires import (
    GEMINI,
    KEY,
    OPENAI,
    TOOL,
)

BASES = {"azure": "https://res.openai.azure.com"}


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
    assert asked.body.keys() == {"model", "messages", "stream"}
    assert asked.body["stream"] is False


def test_a_custom_server_gets_what_it_is_given() -> None:
    """What an OpenAI-compatible server of the user's own accepts is unknown, so it is sent every parameter."""
    [asked] = ask(candidate("custom", "m", api_base="http://127.0.0.1:1/v1"), OPENAI[0], repeat_penalty=1.1).asked
    assert asked.body["repeat_penalty"] == 1.1


def test_extra_body_and_headers_add_and_never_replace() -> None:
    """extra_body and extra_headers reach the provider, but change neither the model nor the key nor the host."""
    extra_body = {"service_tier": "flex", "model": "larger"}
    extra_headers = {"X-Trace": "1", "Authorization": "Bearer other"}
    [asked] = ask(candidate(), OPENAI[0], extra_body=extra_body, extra_headers=extra_headers).asked
    assert (asked.body["service_tier"], asked.body["model"]) == ("flex", "gpt-4o-mini")
    assert (asked.headers["x-trace"], asked.headers["authorization"]) == ("1", f"Bearer {KEY}")
    assert host_of(asked) == "api.openai.com"


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Trace": "1\r\nX-Admin: yes"},
        {"X-Trace": "1\n"},
        {"X-Trace": "a\x00b"},
        {"X-Trace\r\nX-Admin": "yes"},
        {"X Trace": "1"},
        {"": "1"},
        {"X-Tr\u00e4ce": "1"},
        {"X-Trace": "\u2713"},
        {"X-Trace": "caf\u00e9"},
        {"X-Trace": None},
        {"X-Trace": True},
        {"X-Trace": ["1"]},
        {7: "1"},
        {"Content-Length": "5"},
        {"content-length": 5},
        {"Transfer-Encoding": "chunked"},
        {"Host": "elsewhere"},
        {"Connection": "close"},
        [("X-Trace", "1")],
        "X-Trace: 1",
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("name", "model"), [("openai", "gpt-4o-mini"), ("gemini", "gemini-2.5-flash"), ("bedrock", "m")]
)
def test_a_header_that_cannot_be_sent_is_refused(name: str, model: str, headers: Any) -> None:
    """An extra header that would end early, contradict the body or go elsewhere is refused before anything is sent."""
    told = ask(candidate(name, model), extra_headers=headers)
    assert isinstance(told.failure, errors.InvalidRequest)
    assert "extra_headers" in told.failure.message
    assert told.failure.message.isprintable()
    assert told.failure.outcome == "not_sent"
    assert told.asked == []


def test_a_number_is_the_value_of_a_header() -> None:
    """Numbers are sent as text, and spaces around a value, which mean nothing, are left out."""
    [asked] = ask(candidate(), OPENAI[0], extra_headers={"X-Budget": 5, "x-tag": " a\tb "}).asked
    assert (asked.headers["x-budget"], asked.headers["x-tag"]) == ("5", "a\tb")


def test_the_request_is_not_changed() -> None:
    """LiteLLM's configs change what they are given; the caller's messages and parameters stay as they are."""
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "x"},
        {"role": "user", "content": [{"type": "text", "text": "y"}]},
    ]
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


def test_references_that_stand_for_millions_of_parts_are_refused() -> None:
    """Schemas that would grow without end when their references are replaced, as Gemini needs, are refused at once."""
    names = [f"a{number}" for number in range(30)]
    defs = {
        name: {"type": "object", "properties": {key: {"$ref": f"#/$defs/{after}"} for key in "xy"}}
        for name, after in zip(names, [*names[1:], "last"], strict=True)
    }
    defs["last"] = {"type": "integer"}
    schema: dict[str, Any] = {"type": "object", "$defs": defs, "properties": {"r": {"$ref": "#/$defs/a0"}}}
    tools = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": schema}}]
    told = ask(candidate("gemini", "gemini-2.5-flash"), tools=tools)
    assert type(told.failure) is errors.InvalidRequest
    assert told.asked == []
    schema["properties"] = {"r": {"$ref": "#/$defs/a25"}}
    schema["$defs"] = {name: defs[name] for name in [*names[25:], "last"]}
    assert len(ask(candidate("gemini", "gemini-2.5-flash"), tools=tools).asked) == 1
