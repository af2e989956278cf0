"""The pytest plugin for users' own tests: a ledger of the test's own, scripted models, cassettes without secrets."""

from __future__ import annotations

import asyncio
import copy
import subprocess
import sys
from typing import Any

import httpx
import pytest

from shared.analytics import get_llm_costs
from shared.errors import InvalidRequest, RateLimitError
from shared.ledger.store import Ledger
from shared.llm_client import get_llm_client
from shared.pytest_plugin import Script
from tests.support.asking import WAYS, Way
from tests.support.paths import ROOT
from tests.support.recording.secrets import SECRET_REQUEST, SECRET_RESPONSE, secrets_in

HELLO: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": [{"type": "text", "text": "Hello you"}]},
]
MODELS = [
    "openai/gpt-5.4-mini",
    "anthropic/claude-haiku-4-5",
    "gemini/gemini-3.5-flash",
    "openai/gpt-5.4-pro",
    "watsonx/x",
]


@pytest.mark.parametrize("way", [pytest.param(way, id=name) for name, way in WAYS.items()])
@pytest.mark.parametrize("model", MODELS)
def test_any_model_in_any_way(model: str, way: Way, agentswarm_script: Script) -> None:
    """A scripted text is the answer of any provider's model in each way, with counts, a price and a row of its own."""
    agentswarm_script("Hello  to you,\nfriend ")
    response = way(get_llm_client(), HELLO, model=model)
    assert response.content == "Hello  to you,\nfriend "
    assert (response.model, response.metadata["finish_reason"]) == (model, "stop")
    assert (response.usage["prompt_tokens"], response.usage["completion_tokens"]) == (4, 4)
    assert response.cost > 0 or model.startswith("watsonx")
    [asked] = agentswarm_script.asked
    assert asked["messages"] == HELLO
    assert get_llm_costs()["calls_by_model"] == {model: 1}


def test_dicts_are_answers(agentswarm_script: Script) -> None:
    """A dict is a whole chat completion, whose own counts and ends are taken as they are, streamed or not."""
    usage = {"prompt_tokens": 1000, "completion_tokens": 500, "prompt_tokens_details": {"cached_tokens": 400}}
    message = {"role": "assistant", "content": "Cut of"}
    answer = {"choices": [{"index": 0, "message": message, "finish_reason": "length"}], "usage": usage}
    agentswarm_script(answer, answer)
    for way in (WAYS["sync"], WAYS["stream"]):
        response = way(get_llm_client(), HELLO, model="openai/gpt-5.4-mini")
        assert (response.content, response.metadata["finish_reason"]) == ("Cut of", "length")
        assert response.usage["cached_tokens"] == 400


def test_tool_calls(agentswarm_script: Script) -> None:
    """A model can be scripted to call a tool, streamed or not."""
    agentswarm_script.calls("look_up", city="Paris").calls("look_up", city="Rome")
    for way, city in ((WAYS["sync"], "Paris"), (WAYS["astream"], "Rome")):
        [call] = way(get_llm_client(), HELLO, model="openai/gpt-5.4-mini").metadata["tool_calls"]
        assert call["function"] == {"name": "look_up", "arguments": f'{{"city": "{city}"}}'}


def test_failures(agentswarm_script: Script) -> None:
    """A scripted failure is the error that its status means, and the next model answers."""
    slow = {"error": {"message": "slow down"}, "status": 429}
    agentswarm_script(slow, "There.", slow)
    client = get_llm_client(max_retries=0)
    response = client.chat_completion(HELLO, model="openai/gpt-5.4-mini", fallback_models=["cohere/command-a-03-2025"])
    assert (response.content, response.provider) == ("There.", "cohere")
    with pytest.raises(RateLimitError):
        client.chat_completion(HELLO, model="openai/gpt-5.4-mini")
    with pytest.raises(InvalidRequest, match="no answer left"):
        client.chat_completion(HELLO, model="openai/gpt-5.4-mini")


def test_its_http_client(agentswarm_script: Script) -> None:
    """Others who speak OpenAI's API are answered from the same script."""

    async def ask() -> Any:
        async with agentswarm_script("Hi").http_client() as client:
            return (await client.post("https://api.openai.com/v1/chat/completions", json={"messages": HELLO})).json()

    assert asyncio.run(ask())["choices"][0]["message"]["content"] == "Hi"


def test_ledger(agentswarm_ledger: Ledger) -> None:
    """The ledger is an empty file in the test's own folder, and the shared client is made for it."""
    assert get_llm_costs()["total_calls"] == 0
    assert get_llm_client()._ledger() is agentswarm_ledger


def test_vcr_config(agentswarm_vcr_config: dict[str, Any]) -> None:
    """What a user records with it holds none of the secrets that providers are sent or send back."""
    request = agentswarm_vcr_config["before_record_request"](copy.deepcopy(SECRET_REQUEST))
    response = agentswarm_vcr_config["before_record_response"](copy.deepcopy(SECRET_RESPONSE))
    assert request.uri == "https://api.example.org/v1/chat?alt=sse"
    kept = secrets_in(repr((request.uri, request.headers, response)))
    assert kept == ["org-AbCdEf123456"], "bodies are the user's own to look through"
    assert response["headers"] == {"Retry-After": ["3"]}


def test_it_loads_nothing_by_itself() -> None:
    """pytest loads the plugin in every run of whoever has installed us, so it brings pytest and nothing else."""
    program = (
        "import sys, pytest; before = set(sys.modules); import agentswarm_tools.pytest_plugin; "
        "print(*sorted({n.partition('.')[0] for n in sys.modules.keys() - before} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["agentswarm_tools", "shared"]


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No request of these tests leaves the process."""

    async def refuse(*_: Any, **__: Any) -> httpx.Response:
        raise AssertionError("a request went out")

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", refuse)
