"""Servers as people run them (Ollama, LM Studio, vLLM, llama.cpp and others): each failure says what to do about it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from shared.errors import AuthenticationError, ConfigurationError, LLMError, ModelNotFound, ProviderUnavailable
from shared.llm_client import LLMClient
from shared.providers.endpoints import import_litellm
from shared.providers.transport import ByProxy
from shared.types import LLMResponse
from tests.support.asking import HELLO, WAYS, Way

OPENAI_ANSWER = {
    "id": "1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "fine"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
}
OLLAMA_ANSWER = {
    "model": "m",
    "message": {"role": "assistant", "content": "fine"},
    "done": True,
    "done_reason": "stop",
    "prompt_eval_count": 10,
    "eval_count": 5,
}
NOBODY = "127.0.0.1:1"


async def ask(model: str) -> LLMResponse:
    """Say hello, once, over real sockets."""
    return await LLMClient(max_retries=0, transport=ByProxy).achat_completion(HELLO, model=model)


def ask_at(
    monkeypatch: pytest.MonkeyPatch, variable: str, model: str, status: int, body: Any, path: str = ""
) -> tuple[LLMResponse | LLMError, list[str], str]:
    """What comes of a question to a server that gives one answer; the heads it was sent, and its address."""
    heads: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        data = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        await writer.drain()
        writer.close()

    async def main() -> tuple[LLMResponse | LLMError, str]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            monkeypatch.setenv(variable, f"http://{address}{path}")
            try:
                return await ask(model), address
            except LLMError as error:
                return error, address

    told, address = asyncio.run(main())
    return told, heads, address


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """No keys and no addresses but those of the test."""
    for name in ("OPENAI_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL", "OLLAMA_API_BASE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variable", "path", "model", "answer", "target"),
    [
        ("OLLAMA_API_BASE", "", "ollama/m", OLLAMA_ANSWER, "/api/chat"),
        ("OLLAMA_API_BASE", "/v1", "ollama/m", OLLAMA_ANSWER, "/api/chat"),
        ("LM_STUDIO_API_BASE", "/v1", "lm_studio/m", OPENAI_ANSWER, "/v1/chat/completions"),
        ("HOSTED_VLLM_API_BASE", "/v1", "hosted_vllm/org/m", OPENAI_ANSWER, "/v1/chat/completions"),
        ("LLAMAFILE_API_BASE", "/v1", "llamafile/m", OPENAI_ANSWER, "/v1/chat/completions"),
    ],
)
def test_a_server_without_a_key_answers(
    variable: str, path: str, model: str, answer: Mapping[str, Any], target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind of server is asked at the address of its variable, without a key, by its own protocol."""
    told, heads, _ = ask_at(monkeypatch, variable, model, 200, answer, path)
    assert isinstance(told, LLMResponse)
    assert told.content == "fine"
    assert [head.split()[1] for head in heads] == [target]
    assert "authorization" not in heads[0].lower()


@pytest.mark.parametrize(
    ("variable", "model", "provider"),
    [
        ("OLLAMA_API_BASE", "ollama/m", "ollama"),
        ("LM_STUDIO_API_BASE", "lm_studio/m", "lm_studio"),
        ("HOSTED_VLLM_API_BASE", "hosted_vllm/m", "hosted_vllm"),
        ("OPENAI_API_BASE", "openai/m", "openai"),
    ],
)
def test_a_server_that_is_down_is_named_by_its_address(
    variable: str, model: str, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing listens the message asks whether it is running there, and nothing was charged."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv(variable, f"http://{NOBODY}/v1")
    with pytest.raises(ProviderUnavailable) as caught:
        asyncio.run(ask(model))
    assert str(caught.value) == (
        f"Could not connect to {provider}: the connection was refused or lost. Nothing was charged. "
        f"Is it running at {NOBODY}?"
    )


@pytest.mark.parametrize(
    ("variable", "path", "model", "body", "advice"),
    [
        (
            "OLLAMA_API_BASE", "", "ollama/llama3.2", {"error": "model 'llama3.2' not found, try pulling it first"},
            "Pull it first: ollama pull llama3.2",
        ),
        (
            "LM_STUDIO_API_BASE", "/v1", "lm_studio/qwen",
            {"error": {"message": "Model 'qwen' not found", "code": "model_not_found"}}, "Load it first: lms load qwen",
        ),
        (
            "HOSTED_VLLM_API_BASE", "/v1", "hosted_vllm/qwen",
            {"error": {"message": "The model `qwen` does not exist.", "type": "NotFoundError", "code": 404}},
            "Give the name that vLLM was started with (vllm serve NAME).",
        ),
        (
            "LLAMAFILE_API_BASE", "/v1", "llamafile/qwen",
            {"error": {"message": "model not found", "code": 404}}, "Give a name that http://ADDRESS/v1/models lists.",
        ),
    ],
)  # fmt: skip
def test_a_model_that_is_not_there_says_how_to_get_it(
    variable: str, path: str, model: str, body: Any, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that the server has not is ModelNotFound, was free, and says in that server's words how to get it."""
    told, _, address = ask_at(monkeypatch, variable, model, 404, body, path)
    assert isinstance(told, ModelNotFound)
    assert (told.outcome, told.cost) == ("rejected", 0)
    assert str(told).endswith(f"Nothing was charged. {advice.replace('ADDRESS', address)}")


def test_a_server_that_asks_for_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server started with a key is not answered with advice about the provider's account."""
    told, _, address = ask_at(
        monkeypatch, "HOSTED_VLLM_API_BASE", "hosted_vllm/m", 401, {"error": "Unauthorized"}, "/v1"
    )
    assert isinstance(told, AuthenticationError)
    assert str(told).endswith(f"Set HOSTED_VLLM_API_KEY to the key of the server at {address}.")


def test_any_text_will_do_as_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address of the user's own under OpenAI's name needs a key set, and the message says that any will do."""
    monkeypatch.setenv("OPENAI_API_BASE", f"http://{NOBODY}/v1")
    with pytest.raises(AuthenticationError, match="Set OPENAI_API_KEY; if your server needs no key, any text will do"):
        asyncio.run(ask("openai/m"))
    monkeypatch.delenv("OPENAI_API_BASE")
    with pytest.raises(AuthenticationError) as caught:
        asyncio.run(ask("openai/gpt-5.4-mini"))
    assert "any text" not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    told, heads, _ = ask_at(monkeypatch, "OPENAI_API_BASE", "openai/m", 200, OPENAI_ANSWER, "/v1")
    assert isinstance(told, LLMResponse)
    assert "authorization: bearer none" in heads[0].lower()


def test_an_address_without_a_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that lacks http:// is said, with the one that was probably meant."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("OPENAI_API_BASE", "127.0.0.1:18434/v1")
    with pytest.raises(ConfigurationError) as caught:
        asyncio.run(ask("openai/m"))
    assert str(caught.value).endswith("or set OPENAI_API_BASE. Perhaps you mean http://127.0.0.1:18434/v1")


def test_an_address_that_is_gone_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the variable with the address is gone, nothing is sent there from memory."""
    told, _, _ = ask_at(monkeypatch, "HOSTED_VLLM_API_BASE", "hosted_vllm/gone", 200, OPENAI_ANSWER, "/v1")
    assert isinstance(told, LLMResponse)
    monkeypatch.delenv("HOSTED_VLLM_API_BASE")
    with pytest.raises(ConfigurationError, match="Pass api_base, or set HOSTED_VLLM_API_BASE"):
        asyncio.run(ask("hosted_vllm/gone"))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_litellm_prints_no_banner(way: Way, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Where LiteLLM's own client fails, its banner is on no stream, and its global setting is as the program had it."""
    import_litellm()
    import litellm

    capfd.readouterr()
    monkeypatch.setenv("DATABRICKS_API_KEY", "dapi-0123456789")
    monkeypatch.setenv("DATABRICKS_API_BASE", f"http://{NOBODY}")
    monkeypatch.setattr(litellm, "suppress_debug_info", False)
    with pytest.raises(ProviderUnavailable):
        way(LLMClient(max_retries=0), HELLO, model="databricks/m")
    assert capfd.readouterr() == ("", "")
    assert litellm.suppress_debug_info is False
