"""Each provider asked and read in its own words, and what goes through LiteLLM's wrapper instead."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from shared import errors
from shared.errors import LLMError
from shared.providers import endpoints, send, tokens
from shared.types import Answer, Request, TaskType, Usage
from tests.support.loopback import HELLO, Loopback, Reply, Told, ask, candidate, host_of, http, sse
from tests.support.wires import (
    ANTHROPIC,
    COHERE,
    COUNTED,
    GEMINI,
    KEY,
    OLLAMA,
    OPENAI,
    REPLICATE,
    TOOL,
    chunk,
    said,
)

BEARER = ("authorization", f"Bearer {KEY}")
COMPLETIONS = "/v1/chat/completions"
# provider, model, where it goes (plain, stream), how the key goes, what answers, what is then read.
WIRES: Sequence[Any] = [
    ("openai", "gpt-4o-mini", "api.openai.com", COMPLETIONS, None, BEARER, OPENAI, COUNTED),
    ("mistral", "mistral-small-latest", "api.mistral.ai", COMPLETIONS, None, BEARER, OPENAI, COUNTED),
    ("groq", "llama-3.3-70b", "api.groq.com", "/openai/v1/chat/completions", None, BEARER, OPENAI, COUNTED),
    ("together_ai", "meta-llama/Llama-3.3-70B", "api.together.xyz", COMPLETIONS, None, BEARER, OPENAI, COUNTED),
    ("deepseek", "deepseek-v4-flash", "api.deepseek.com", "/beta/chat/completions", None, BEARER, OPENAI, COUNTED),
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
        # What is billed is said apart from what was processed; it was left out before.
        Usage(12, 5, 4, source="provider", units={"input": 1, "output": 1}),
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


def test_counting_needs_no_network_and_never_fails() -> None:
    """Tokens are counted offline, pictures at a flat figure; what cannot be counted is unknown."""
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hello there"}, picture]}]
    usage = tokens.count_tokens(candidate(), messages, "one two three")
    assert usage.source == "counted"
    assert usage.completion_tokens == 3
    assert usage.prompt_tokens is not None
    assert 500 < usage.prompt_tokens < 1500
    long = tokens.count_tokens(candidate(), [{"role": "user", "content": "x" * 500_000}], "")
    assert long.prompt_tokens is not None
    assert long.prompt_tokens > 10_000
    assert tokens.count_tokens(candidate(), [7], "").source == "unknown"  # type: ignore[list-item]


FOURTEEN = [wire[0] for wire in WIRES]


def test_what_is_guarded() -> None:
    """The providers of the guide go through our transport, those with a login of their own through LiteLLM."""
    known = endpoints.guard_by_provider()
    assert {name: known[name] for name in FOURTEEN} == dict.fromkeys(FOURTEEN, True)
    logins = ["vertex_ai", "bedrock", "sagemaker", "watsonx", "oci", "github_copilot", "chatgpt", "databricks"]
    assert {name: known[name] for name in logins} == dict.fromkeys(logins, False)
    assert endpoints.is_guarded("custom", "x")
    ready = asyncio.run(send.make_ready(candidate("vertex_ai", "gemini-2.5-flash")))
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
    from litellm.llms.custom_httpx.async_client_cleanup import close_litellm_async_clients

    try:
        return await work
    finally:
        await close_litellm_async_clients()  # type: ignore[no-untyped-call]


def through_litellm(*replies: Reply, stream: bool = False) -> Told:
    """An unguarded request, which dials by itself."""

    async def scene() -> Told:
        told = Told()
        async with Loopback(replies) as server:
            told.asked = server.asked
            who = candidate("openai", "gpt-4o-mini", api_base=f"http://127.0.0.1:{server.port}", guarded=False)
            request = Request(TaskType.CHAT_COMPLETION, HELLO, stream=stream)
            try:
                async for piece in send.open_response(
                    await send.make_ready(who), request, timeout=5, exchange=told.exchange
                ):
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
