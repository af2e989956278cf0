"""Real recordings of real providers, replayed byte for byte: text, usage, finish reason and error must be theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # its stubs are no dependency

from shared import errors
from shared.types import Answer, Request, TaskType
from tests.support.loopback import Reply, Told, ask, ask_for, candidate, host_of, http
from tests.support.paths import BESIDE
from tests.support.pictures import image
from tests.support.web import Web

FOLDER = BESIDE / "real_traffic"
ENTRIES = json.loads((FOLDER / "INDEX.json").read_text()) if (FOLDER / "INDEX.json").exists() else []

KINDS: Mapping[str, type[errors.LLMError]] = {
    "auth": errors.AuthenticationError,
    "rate_limit": errors.RateLimitError,
    "quota": errors.QuotaExhausted,
    "not_found": errors.ModelNotFound,
    "context_window": errors.ContextTooLong,
    "bad_request": errors.InvalidRequest,
    "overloaded": errors.Overloaded,
    "server": errors.ProviderUnavailable,
}


def recordings(*, of_images: bool = False) -> list[Any]:
    """The recordings of chat answers, or of images."""
    found = [
        pytest.param(entry, id=entry["file"]) for entry in ENTRIES if (entry["bucket"] == "image_gen") == of_images
    ]
    skip = pytest.mark.skip(reason=f"{FOLDER} is not there")
    return found or [pytest.param({}, id="absent", marks=skip)]


def replay(entry: Mapping[str, Any]) -> Told:
    """The recorded answer, given to our client under the provider's own host name."""
    [interaction] = yaml.safe_load((FOLDER / entry["file"]).read_text())["interactions"]
    response = interaction["response"]
    name, _, model = (entry["replay_as"] or entry["litellm_model"]).partition("/")
    who = candidate({"cohere_chat": "cohere"}.get(name, name), model)
    return ask(who, _recorded(response), stream=entry["stream"])


def _recorded(response: Mapping[str, Any]) -> Reply:
    body = response["body"]["string"]
    dropped = ("content-length", "content-encoding", "transfer-encoding", "connection")
    headers = {
        name.lower(): values[0] for name, values in (response["headers"] or {}).items() if name.lower() not in dropped
    }
    kind = headers.pop("content-type", "application/json")
    return http(body, status=response["status"]["code"], headers=headers, kind=kind)


@pytest.mark.parametrize("entry", recordings())
def test_recorded_answer(entry: Mapping[str, Any]) -> None:
    """What a provider once really sent gives exactly what it said, and the error that it meant."""
    told, expected = replay(entry), entry["expected"]
    [asked] = told.asked
    local = entry["provider"] == "ollama"
    if entry["replay_as"] is None and entry["provider"] != "together":  # whose host has changed since
        assert host_of(asked) == ("localhost" if local else entry["endpoint"].split("/")[0])
    if expected["http_status"] >= 400:
        check_error(told.failure, expected)
    elif expected.get("prompt_feedback"):
        assert type(told.failure) is errors.ContentBlocked
        assert expected["prompt_feedback"]["blockReasonMessage"].rstrip(".") in told.failure.message
    elif expected.get("stream_error"):
        assert type(told.failure) is errors.StreamInterrupted
        assert "".join(told.texts) == expected["content"]
        assert expected["error_message"] in told.failure.message
    else:
        check_answer(told.answer, expected)
        assert not entry["stream"] or "".join(told.texts) == expected["content"]


@pytest.mark.parametrize("entry", recordings(of_images=True))
def test_recorded_image(entry: Mapping[str, Any], web: Web) -> None:
    """An image that a provider once really sent is read, decoded or downloaded, and told as the provider told it."""
    web.everywhere = image(size=(256, 256))  # the real links have long ended
    [interaction] = yaml.safe_load((FOLDER / entry["file"]).read_text())["interactions"]
    name, _, model = entry["litellm_model"].partition("/")
    request = Request(TaskType.IMAGE_GENERATION, [{"role": "user", "content": "a sea otter"}])
    told, expected = ask_for(candidate(name, model), request, _recorded(interaction["response"])), entry["expected"]
    [asked] = told.asked
    assert f"{host_of(asked)}{asked.target}" == entry["endpoint"]
    made = told.answer.images
    assert len(made) == expected["image_count"]
    assert made[0].url == expected["image_url"]
    assert made[0].revised_prompt == expected["revised_prompt"]
    assert made[0].picture is not None
    assert (made[0].picture.format, made[0].picture.width, made[0].picture.height) == ("png", 256, 256)
    assert told.answer.usage.source == "unknown"


def check_error(error: errors.LLMError, expected: Mapping[str, Any]) -> None:
    """The error's class, status and time to wait are the recorded ones; nothing was billed unless the server broke."""
    assert type(error) is KINDS[expected["error_category"]]
    assert error.status_code == expected["http_status"]
    assert error.outcome == ("unknown" if expected["error_category"] == "server" else "rejected")
    wait = expected["retry_after"] or expected["retry_delay_in_body"]
    if expected.get("error_code") == "request_quota_exceeded":
        wait = "0.66"  # Cerebras says it in retry-after-ms, which the index does not look at
    assert error.retry_after == (float(wait) if wait else None)


def check_answer(answer: Answer, expected: Mapping[str, Any]) -> None:
    """Text, finish reason, counts, model, tool calls and cost are what the body says; null is None, and 0 is 0."""
    usage, raw = answer.usage, expected.get("usage_raw") or {}
    assert answer.text == expected["content"]
    assert answer.finish_reason == expected["finish_reason"]
    assert answer.response_model == expected.get("response_model")
    assert usage.prompt_tokens == expected["prompt_tokens"]
    assert usage.completion_tokens == expected["completion_tokens"]
    assert usage.cached_tokens == expected["cached_tokens"]
    assert usage.cache_write_tokens == expected.get("cache_creation_tokens", usage.cache_write_tokens)
    assert usage.reasoning_tokens == _reasoning(raw, expected)
    assert usage.source == ("unknown" if expected["prompt_tokens"] is None else "provider")
    called = [call["function"] for call in answer.message.get("tool_calls", [])]
    assert called == expected.get("tool_calls", [])
    cost = expected.get("provider_reported_cost_usd")
    assert answer.reported_cost == (None if cost is None else Decimal(str(cost)))
    assert ("reasoning_content" in answer.message) >= bool(expected.get("has_reasoning_text"))


def _reasoning(raw: Mapping[str, Any], expected: Mapping[str, Any]) -> int | None:
    """The index leaves out what Anthropic and Cohere call reasoning, though they sent it."""
    sent = raw.get("output_tokens_details", {}).get("thinking_tokens", raw.get("tokens", {}).get("reasoning_tokens"))
    known: int | None = expected["reasoning_tokens"] if sent is None else sent
    return known
