"""A pytest plugin for users' own tests: a ledger for one test, a scripted model, and cassettes without secrets."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import httpx

    from shared.ledger import Ledger

SECRET_HEADERS = (
    "authorization",
    "api-key",
    "x-api-key",
    "x-goog-api-key",
    "cookie",
    "openai-organization",
    "openai-project",
    "proxy-authorization",
)
SECRET_QUERY = ("key", "api_key", "api-key", "token", "access_token", "sig", "signature")
_RESPONSE_SECRETS = re.compile(
    r"cookie|organi[sz]ation|project|request-id|^x-request|^date$|cf-ray|trace", re.IGNORECASE
)
_QUERY = re.compile(rf"([?&])({'|'.join(SECRET_QUERY)})=[^&#]*", re.IGNORECASE)

type Scripted = str | Mapping[str, Any]
_SCRIPTED = ("agentswarm_tools", "scripted")


def scrub_request(request: Any) -> Any:
    """A vcrpy request without keys, cookies and organisations in its headers and its URL."""
    request.headers = {name: value for name, value in request.headers.items() if name.lower() not in SECRET_HEADERS}
    url = _QUERY.sub(r"\1", request.uri)
    request.uri = re.sub(r"([?&])&+", r"\1", url).rstrip("?&")
    return request


def scrub_response(response: dict[str, Any]) -> dict[str, Any]:
    """A vcrpy response without cookies, organisations and request ids."""
    kept = {name: value for name, value in response["headers"].items() if not _RESPONSE_SECRETS.search(name)}
    return {**response, "headers": kept}


@pytest.fixture(scope="session")
def agentswarm_vcr_config() -> dict[str, Any]:
    """
    Settings for pytest-recording that keep secrets out of cassettes.

    Use it as your own `vcr_config`: `def vcr_config(agentswarm_vcr_config): return agentswarm_vcr_config`.
    """
    return {
        "before_record_request": scrub_request,
        "before_record_response": scrub_response,
        "decode_compressed_response": True,
        "match_on": ["method", "scheme", "host", "port", "path", "query", "body"],
    }


@pytest.fixture
def agentswarm_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """A SQLite ledger and a new shared client for this test only."""
    from shared.ledger import get_ledger
    from shared.llm_client import reset_llm_client

    url = f"sqlite:///{tmp_path / 'agentswarm-ledger.sqlite3'}"
    monkeypatch.setenv("AGENTSWARM_DATABASE_URL", url)
    monkeypatch.delenv("AGENTSWARM_ALERT_URL", raising=False)  # what a test spends alerts nobody
    reset_llm_client()
    ledger = get_ledger(url)
    yield ledger
    ledger.flush()
    reset_llm_client()


class Script:
    """
    Answers for the requests of a test, in order, whatever their model; `asked` has the requests in OpenAI's format.

    A text is a whole answer; a dict is a whole chat completion, or {"error": {...}} with an optional "status".
    """

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.left: list[Scripted] = []

    def __call__(self, *answers: Scripted) -> Script:
        """Add answers."""
        self.left += answers
        return self

    def calls(self, tool: str, **arguments: Any) -> Script:
        """Add an answer in which the model calls a tool."""
        call = {"id": f"call_{len(self.left)}", "type": "function"}
        function = {"name": tool, "arguments": json.dumps(arguments)}
        message = {"role": "assistant", "content": None, "tool_calls": [{**call, "function": function}]}
        return self({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]})

    def http_client(self) -> httpx.AsyncClient:
        """An httpx client that gets its answers from this script, for `AsyncOpenAI(http_client=...)`."""
        import httpx

        return httpx.AsyncClient(transport=_transport(self))

    def respond(self, body: dict[str, Any]) -> tuple[int, str, bytes]:
        """Status, content type and body for one request."""
        self.asked.append(body)
        exhausted = {"error": {"message": "The script of this test has no answer left"}, "status": 400}
        answer: Any = self.left.pop(0) if self.left else exhausted
        if not isinstance(answer, str) and "error" in answer:
            return int(answer.get("status", 500)), "application/json", json.dumps(answer).encode()
        whole = _completion(body, answer)
        if not body.get("stream"):
            return 200, "application/json", json.dumps(whole).encode()
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in _chunks(whole)]
        return 200, "text/event-stream", "".join([*lines, "data: [DONE]\n\n"]).encode()


@pytest.fixture
def agentswarm_script(
    agentswarm_ledger: Ledger,  # noqa: ARG001 - requested for its effect: calls go to a ledger of this test
    record_property: Callable[[str, object], None],
) -> Iterator[Script]:
    """Scripted answers for every model name, without key or network: `agentswarm_script("Hello", ...)`."""
    from shared.providers import use_transport

    script = Script()
    record_property(*_SCRIPTED)
    with use_transport(_transport(script)):
        yield script
    if script.left:
        pytest.fail(f"{len(script.left)} scripted answers were not used")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Add to the summary that models were scripted, so that their answers are not mistaken for a provider's."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    count = sum(_SCRIPTED in getattr(r, "user_properties", ()) and r.when == "call" for r in reports)
    if count:
        terminalreporter.write_line(f"agentswarm-tools: models were scripted in {count} tests, no provider was called")


def _transport(script: Script) -> httpx.AsyncBaseTransport:
    import httpx

    class Body(httpx.AsyncByteStream):
        def __init__(self, content: bytes) -> None:
            self._content = content

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield self._content

    class Scripted(httpx.AsyncBaseTransport):
        # With a base_url, the client sends requests for every model here, in OpenAI's format and without a key.
        base_url = "http://scripted.invalid/v1"

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            status, kind, content = script.respond(json.loads(await request.aread()))
            return httpx.Response(status, headers={"content-type": kind}, stream=Body(content))

    return Scripted()


def _completion(body: Mapping[str, Any], answer: Scripted) -> dict[str, Any]:
    """An answer in the format of OpenAI's API; without usage of its own, its counts are words."""
    if isinstance(answer, str):
        message = {"role": "assistant", "content": answer}
        answer = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    prompt = sum(_words(message.get("content")) for message in body.get("messages", ()))
    words = sum(_words(choice.get("message", {}).get("content")) for choice in answer.get("choices", ()))
    usage = {"prompt_tokens": prompt, "completion_tokens": words, "total_tokens": prompt + words}
    head = {"id": "chatcmpl-scripted", "object": "chat.completion", "created": 0, "model": body.get("model")}
    return {**head, "usage": usage, **answer}


def _words(content: Any) -> int:
    if isinstance(content, Sequence) and not isinstance(content, str):
        return sum(_words(part.get("text")) for part in content if isinstance(part, Mapping))
    return len(str(content or "").split())


def _chunks(whole: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A chat completion as the chunks of a stream: one word each, then the finish reason, then the usage."""
    head = {**{key: whole.get(key) for key in ("id", "created", "model")}, "object": "chat.completion.chunk"}
    for choice in list(whole.get("choices", ()))[:1]:
        message = dict(choice.get("message", {}))
        words = re.findall(r"\s*\S+|\s+$", message.pop("content", None) or "")
        if message.get("tool_calls"):
            message["tool_calls"] = [{"index": n, **call} for n, call in enumerate(message["tool_calls"])]
        for delta in [message, *({"content": word} for word in words)]:
            yield {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        yield {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": choice.get("finish_reason")}]}
    if whole.get("usage"):
        yield {**head, "choices": [], "usage": whole["usage"]}
