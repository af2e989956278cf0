"""The client against the provider double: plain, sync, async and stream are one flow."""

from __future__ import annotations

import asyncio
import copy
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest

from shared import llm_client
from shared.agent_model import budgeted
from shared.budget import Budget
from shared.calls.stream import LLMStream
from shared.errors import (
    AllModelsFailed,
    AuthenticationError,
    ConfigurationError,
    DeadlineExceeded,
    InvalidRequest,
    LLMError,
    ModelNotAllowed,
    ModelRetired,
    ProviderTimeout,
    ProviderUnavailable,
    RateLimitError,
    StreamInterrupted,
)
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient, get_llm_client
from shared.scope import scope
from shared.types import ModelConfig
from tests.support.asking import HAIKU, HELLO, MINI, WAYS, Way, stream
from tests.support.ledger_rows import records
from tests.support.provider_double import Double, Fault, Reply, Usage

# US$ per token of the two models in LiteLLM 1.91.5's table.
MINI_IN, MINI_OUT = 750, 4500  # nano-dollars
HAIKU_IN, HAIKU_OUT = 1000, 5000


def test_answers(hosted: Double, ledger: Ledger, ask: Way) -> None:
    """An answer carries text, model, provider, usage, exact cost and what became of it, and the ledger has it once."""
    hosted.reply("openai", text="Good day.", usage=Usage(1000, 500, cached=400))
    response = ask(LLMClient(), model=MINI)
    assert (response.content, response.model, response.provider) == ("Good day.", MINI, "openai")
    assert response.usage == {
        "prompt_tokens": 1000,
        "completion_tokens": 500,
        "total_tokens": 1500,
        "cached_tokens": 400,
        **({"reasoning_tokens": 0} if "reasoning_tokens" in response.usage else {}),
    }
    nano = 600 * MINI_IN + 400 * MINI_IN // 10 + 500 * MINI_OUT
    assert response.cost == nano / 1e9
    assert response.latency_ms > 0
    assert response.metadata["fallback_used"] is False
    assert response.metadata["finish_reason"] == "stop"
    [row] = records(ledger)
    assert (row["status"], row["cost_nano"], row["usage_source"], row["model"]) == ("ok", nano, "provider", MINI)
    assert len(hosted.requests) == 1


def test_falls_back(hosted: Double, ledger: Ledger, ask: Way) -> None:
    """When a model is down the next one answers; each attempt is a row, and the call counts once."""
    hosted.refuse("openai")
    hosted.reply("anthropic", text="Here.", usage=Usage(10, 5))
    response = ask(LLMClient(max_retries=0), model=MINI, fallback_models=[HAIKU])
    assert (response.model, response.provider) == (HAIKU, "anthropic")
    assert response.metadata["fallback_used"] is True
    assert response.metadata["requested_model"] == MINI
    assert [a["status"] for a in response.metadata["attempts"]] == ["failed", "ok"]
    assert [row["cost_nano"] for row in records(ledger)] == [0, 10 * HAIKU_IN + 5 * HAIKU_OUT]
    assert sum(1 for row in records(ledger) if row["error_type"]) == 1


def test_retries_what_cost_nothing(hosted: Double, ledger: Ledger, ask: Way) -> None:
    """A 429 with Retry-After is asked again after the wait, one request per attempt."""
    hosted.reply("openai", status=429, headers={"retry-after": "0"})
    response = ask(LLMClient(), model=MINI)
    assert response.model == MINI
    assert len(hosted.requests) == len(records(ledger)) == 2


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, AuthenticationError), (429, RateLimitError), (503, ProviderUnavailable), (400, InvalidRequest)],
)
def test_single_model_raises_its_own_error(
    hosted: Double, ledger: Ledger, ask: Way, status: int, kind: type[LLMError]
) -> None:
    """With one model its own error is raised, charged nothing, and recorded as one failed call."""
    hosted.always("openai", status=status)
    with pytest.raises(kind) as caught:
        ask(LLMClient(max_retries=0), model=MINI)
    assert not isinstance(caught.value, AllModelsFailed)
    assert "Nothing was charged." in str(caught.value)
    recorded = records(ledger)
    assert [row["status"] for row in recorded] == ["failed"]
    assert get_costs(ledger)["failed_calls"] == 1


def test_all_models_failed_names_each(hosted: Double, ask: Way) -> None:
    """When every model fails the error says of each what happened."""
    hosted.always("openai", status=401)
    hosted.always("anthropic", status=529)
    with pytest.raises(AllModelsFailed) as caught:
        ask(LLMClient(max_retries=0), model=MINI, fallback_models=[HAIKU])
    assert [type(f).__name__ for f in caught.value.failures] == ["AuthenticationError", "Overloaded"]
    assert "Authentication failed for openai" in str(caught.value)
    assert HAIKU in str(caught.value)


def test_bad_request_is_not_shopped_around(hosted: Double, ask: Way) -> None:
    """A request that is wrong in itself is raised at once, not tried on the next model."""
    hosted.always("openai", status=400)
    with pytest.raises(InvalidRequest):
        ask(LLMClient(), model=MINI, fallback_models=[HAIKU])
    assert [request.provider for request in hosted.requests] == ["openai"]


def test_slow_answer_times_out(hosted: Double, ledger: Ledger, ask: Way) -> None:
    """An attempt ends at its timeout, is repeated once at most, and says that it may have been charged."""
    hosted.always("openai", fault=Fault.STALL_HEADERS)
    with pytest.raises(ProviderTimeout) as caught:
        ask(LLMClient(timeout=0.3), model=MINI)
    assert caught.value.outcome == "unknown"
    assert "may have been charged" in str(caught.value)
    assert [row["cost_nano"] for row in records(ledger)] == [None, None]
    assert get_costs(ledger)["unpriced_calls"] == 1


def test_deadline_ends_the_whole_call(hosted: Double, ask: Way) -> None:
    """The deadline ends the call over all its attempts, though the timeout would allow more."""
    hosted.always("openai", fault=Fault.STALL_HEADERS)
    with pytest.raises(DeadlineExceeded):
        ask(LLMClient(timeout=30), model=MINI, fallback_models=[HAIKU], deadline=0.7)
    assert [request.provider for request in hosted.requests] == ["openai"]


# Streams


def test_stream_is_sent_at_first_next(hosted: Double, ledger: Ledger) -> None:
    """A stream that nobody reads sends nothing and records nothing, though a bad model is refused at once."""
    stream = LLMClient().chat_completion(HELLO, model=MINI, stream=True)
    with pytest.raises(LLMError):
        LLMClient().chat_completion(HELLO, model="no-such-model", fallback_models=[], stream=True)
    assert hosted.requests == []
    assert next(stream)
    assert len(hosted.requests) == 1


def leave_by_close(stream: LLMStream) -> None:
    for _ in range(3):
        next(stream)
    stream.close()


def leave_by_break(stream: LLMStream) -> None:
    for number, _ in enumerate(stream):
        if number == 2:
            break


def leave_by_with(stream: LLMStream) -> None:
    with stream:
        for _ in range(3):
            next(stream)


@pytest.mark.parametrize("leave", [leave_by_close, leave_by_break, leave_by_with])
def test_abandoned_stream(hosted: Double, ledger: Ledger, leave: Callable[[LLMStream], None]) -> None:
    """A stream left after 3 chunks is one settled attempt whose usage was counted, and its connection is closed."""
    reply = hosted.reply("openai", text="one two three four five six", fault=Fault.STALL_STREAM, after=3)
    leave(LLMClient().chat_completion(HELLO, model=MINI, stream=True))
    [row] = records(ledger)
    assert (row["status"], row["usage_source"], row["cost_source"]) == ("cancelled", "counted", "counted")
    assert row["completion_tokens"] >= 1
    assert row["cost_nano"] == row["prompt_tokens"] * MINI_IN + row["completion_tokens"] * MINI_OUT
    [request] = hosted.requests
    assert request.done.wait(5)
    reply.gate.release()


def test_abandoned_async_stream(hosted: Double, ledger: Ledger) -> None:
    """An asynchronous stream that is dropped is settled by the time its event loop has ended."""
    hosted.reply("openai", text="one two three four five six", fault=Fault.STALL_STREAM, after=3)

    async def drop() -> None:
        stream = await LLMClient().achat_completion(HELLO, model=MINI, stream=True)
        async for _ in stream:
            break

    asyncio.run(drop())
    [row] = records(ledger)
    assert (row["status"], row["usage_source"]) == ("cancelled", "counted")


@pytest.mark.parametrize("fault", [Fault.RESET_STREAM, Fault.CLEAN_EOF, Fault.ERROR_EVENT])
@pytest.mark.parametrize("way", ["stream", "astream"])
def test_stream_that_breaks_off(hosted: Double, ledger: Ledger, way: str, fault: Fault) -> None:
    """A stream that fails midway raises StreamInterrupted with its text and cost, and is one settled attempt."""
    hosted.reply("openai", text="one two three four", fault=fault, after=2)
    with pytest.raises(StreamInterrupted) as caught:
        WAYS[way](LLMClient(), HELLO, model=MINI, fallback_models=[HAIKU])
    assert caught.value.text == ("one two three four" if fault is Fault.CLEAN_EOF else "one two")
    assert caught.value.cost > 0
    [row] = records(ledger)
    assert (row["status"], row["error_type"], row["usage_source"]) == ("interrupted", "StreamInterrupted", "counted")
    assert get_costs(ledger)["failed_calls"] == 1


def test_stream_that_fails_before_its_first_chunk_falls_back(hosted: Double, ask: Way) -> None:
    """Until the first chunk a stream falls back like any call, and no text is delivered twice."""
    hosted.reply("openai", status=503)
    hosted.reply("anthropic", text="From the second.")
    response = ask(LLMClient(max_retries=0), model=MINI, fallback_models=[HAIKU])
    assert response.content == "From the second."


def test_usage_nobody_gave_is_counted(hosted: Double, ledger: Ledger, ask: Way) -> None:
    """An answer without usage is counted by us, and says so."""
    hosted.reply("openai", text="one two three", fault=Fault.USAGE_MISSING)
    response = ask(LLMClient(), model=MINI)
    assert response.metadata["usage_source"] == response.metadata["cost_source"] == "counted"
    [row] = records(ledger)
    assert (row["status"], row["usage_source"]) == ("ok", "counted")
    assert row["cost_nano"] > 0


# Names, keys and settings


def test_retired_name_uses_its_successor(hosted: Double, ledger: Ledger) -> None:
    """A model that was shut down is answered by its successor, with both names in the metadata."""
    response = LLMClient().chat_completion(HELLO, model="gpt-3.5-turbo")
    assert response.model == "openai/gpt-5.4-nano"
    assert response.metadata["requested_model"] == "gpt-3.5-turbo"
    assert "shut down" in response.metadata["note"]
    assert hosted.requests[0].body["model"] == "gpt-5.4-nano"


def test_retired_name_without_upgrade(hosted: Double, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """With upgrades off a retired name is refused before any request, and the successor is named."""
    monkeypatch.setenv("LITELLM_UPGRADE_RETIRED_MODELS", "false")
    with pytest.raises(ModelRetired, match=r"Use openai/gpt-5\.4-nano"):
        LLMClient().chat_completion(HELLO, model="gpt-3.5-turbo")
    assert hosted.requests == []
    assert [row["status"] for row in records(ledger)] == ["refused"]


def test_missing_key_is_known_before_sending(hosted: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model without a key is skipped with the reason, and the next one answers."""
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(AuthenticationError, match=r"^Authentication failed for openai.*Set OPENAI_API_KEY"):
        LLMClient().chat_completion(HELLO, model=MINI)
    assert LLMClient().chat_completion(HELLO, model=MINI, fallback_models=[HAIKU]).model == HAIKU
    assert [request.provider for request in hosted.requests] == ["anthropic"]


def test_custom_model_is_really_called(hosted: Double, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of the caller's own is called at its api_base, with its own key, and priced by its own rates."""
    monkeypatch.setenv("MY_KEY", "my-own-secret")
    config = ModelConfig(
        name="my-custom-model",
        provider="custom",
        cost_per_1k_input_tokens=0.001,
        cost_per_1k_output_tokens=0.002,
        max_tokens=8192,
        api_base=hosted.api_base("openai"),
        api_key_env="MY_KEY",
    )
    hosted.reply("openai", text="Mine.", usage=Usage(1000, 100))
    response = LLMClient(model_configs={"my-custom-model": config}).chat_completion(HELLO, model="my-custom-model")
    assert (response.model, response.provider, response.cost) == ("my-custom-model", "custom", 0.0012)
    assert hosted.requests[0].headers["authorization"] == "Bearer my-own-secret"


def test_unknown_price_is_not_zero(hosted: Double, ledger: Ledger) -> None:
    """A model without a known price costs NaN, is counted as unpriced, and is in no total."""
    response = LLMClient().chat_completion(HELLO, model="openai/brand-new-model", fallback_models=[])
    assert math.isnan(response.cost)
    costs = get_costs(ledger)
    assert (costs["total_cost"], costs["unpriced_calls"], costs["total_calls"]) == (0.0, 1, 1)


def test_a_scopes_key_is_used_in_that_scope_only(hosted: Double) -> None:
    """A customer's key is used inside the scope that supplied it, and never by the same client outside of it."""
    client = LLMClient()
    for keys in ({"openai": "sk-acme-42"}, {"openai": "sk-bolt-42"}, None):
        with scope(keys=keys):
            client.chat_completion(HELLO, model=MINI)
    sent = [request.headers["authorization"] for request in hosted.requests]
    assert sent[:2] == ["Bearer sk-acme-42", "Bearer sk-bolt-42"]
    assert sent[2] not in sent[:2]


def test_own_endpoint_never_gets_the_environment_key(hosted: Double) -> None:
    """An api_base in the call is sent only the api_key of the call."""
    with pytest.raises(AuthenticationError):
        LLMClient().chat_completion(HELLO, model="my-llama", api_base=hosted.api_base("openai"))
    LLMClient().chat_completion(HELLO, model="my-llama", api_base=hosted.api_base("openai"), api_key="mine-mine")
    for request in hosted.requests:
        assert "sk-test-openai" not in str(request.headers)
    assert hosted.requests[1].headers["authorization"] == "Bearer mine-mine"


def test_allow_list_is_the_whole_list(hosted: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an allow-list a call that names another model, even as a fallback, is refused whole."""
    monkeypatch.setenv("AGENTSWARM_ALLOWED_MODELS", MINI)
    with pytest.raises(ModelNotAllowed, match=r"Allowed models: openai/gpt-5\.4-mini"):
        LLMClient().chat_completion(HELLO, model=MINI, fallback_models=[HAIKU])
    assert hosted.requests == []


@pytest.mark.parametrize(
    "bad",
    [
        {"messages": []},
        {"messages": "hi"},
        {"messages": [{"content": "hi"}]},
        {"temperature": 3},
        {"temperature": float("nan")},
        {"max_tokens": 0},
        {"max_tokens": True},
        {"fallback_models": "gpt-5.4-mini"},
    ],
)
def test_bad_arguments_cost_nothing(hosted: Double, bad: dict[str, Any]) -> None:
    """What no provider could answer is refused before anything is sent."""
    with pytest.raises(InvalidRequest):
        LLMClient().chat_completion(**{"messages": HELLO, "model": MINI, **bad})
    assert hosted.requests == []


@pytest.mark.parametrize("bad", [{"timeout": 0}, {"timeout": "60"}, {"max_retries": -1}, {"deadline": -5}])
def test_bad_settings(bad: dict[str, Any]) -> None:
    """A client is not made with settings that cannot work."""
    with pytest.raises(ConfigurationError):
        LLMClient(**bad)


def test_fallback_off(hosted: Double) -> None:
    """A client without fallback asks only the model of the call."""
    hosted.always("openai", status=503)
    with pytest.raises(ProviderUnavailable):
        LLMClient(enable_fallback=False, max_retries=0).chat_completion(HELLO, model=MINI, fallback_models=[HAIKU])
    assert [request.provider for request in hosted.requests] == ["openai"]


def test_cost_tracking_off(hosted: Double, ledger: Ledger) -> None:
    """Without cost tracking nothing is recorded, and the answer still has its price."""
    response = LLMClient(enable_cost_tracking=False).chat_completion(HELLO, model=MINI)
    assert response.cost > 0
    assert records(ledger) == []


def test_total_cost_is_this_clients(hosted: Double) -> None:
    """get_total_cost is what went through this client, streams and failed attempts included."""
    one, other = LLMClient(), LLMClient()
    costs = [one.chat_completion(HELLO, model=MINI).cost, stream(one, HELLO, model=HAIKU).cost]
    other.chat_completion(HELLO, model=MINI)
    assert one.get_total_cost() == pytest.approx(sum(costs), abs=1e-12)


def test_shared_client() -> None:
    """get_llm_client gives one client per process; with overrides another one, and the shared one stays."""
    found: list[LLMClient] = []
    threads = [threading.Thread(target=lambda: found.append(get_llm_client())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(client) for client in found}) == 1
    assert get_llm_client(max_retries=0) is not found[0]
    assert get_llm_client() is found[0]
    assert llm_client._shared is found[0]


def test_scope_reaches_the_ledger(hosted: Double, ledger: Ledger) -> None:
    """Labels, keys and models of the scope hold inside it; the ledger has the alias of its key, never the key."""
    with scope(customer="acme", keys={"openai": "sk-acme-secret-42"}, models=[MINI]):
        LLMClient().chat_completion(HELLO, model=MINI)
        with pytest.raises(ModelNotAllowed):
            LLMClient().chat_completion(HELLO, model=HAIKU)
    assert hosted.requests[0].headers["authorization"] == "Bearer sk-acme-secret-42"
    row = records(ledger)[0]
    assert (row["labels"], row["key_alias"]) == ({"customer": "acme"}, "customer=acme")
    assert "sk-acme" not in str(records(ledger))


# Many at once, and being stopped


def test_many_threads_and_tasks(hosted: Double, ledger: Ledger) -> None:
    """Threads and tasks share one client without mixing up answers or attribution."""
    client = LLMClient()
    hosted.decide(lambda request: Reply(text=request.body["messages"][0]["content"]))
    wrong: list[str] = []

    def work(name: str) -> None:
        with scope(customer=name):
            for number in range(5):
                text = f"{name}-{number}"
                answer = client.chat_completion([{"role": "user", "content": text}], model=MINI)
                if answer.content != text:
                    wrong.append(text)

    async def awork(name: str) -> None:
        async with scope(customer=name):
            for number in range(5):
                text = f"{name}-{number}"
                answer = await client.achat_completion([{"role": "user", "content": text}], model=MINI)
                if answer.content != text:
                    wrong.append(text)

    async def all_tasks() -> None:
        await asyncio.gather(*(awork(f"task{i}") for i in range(10)))

    threads = [threading.Thread(target=work, args=(f"thread{i}",)) for i in range(10)]
    for thread in threads:
        thread.start()
    asyncio.run(all_tasks())
    for thread in threads:
        thread.join()
    assert wrong == []
    found = records(ledger)
    assert len(found) == len(hosted.billed) == 100
    counts = [
        sum(row["labels"] == {"customer": f"{kind}{i}"} for row in found)
        for kind in ("task", "thread")
        for i in range(10)
    ]
    assert counts == [5] * 20


def test_cancelled_task_is_settled(hosted: Double, ledger: Ledger) -> None:
    """Cancelling a task ends its request at once, and its attempt is settled as cancelled with an unknown cost."""
    reply = hosted.reply("openai", fault=Fault.STALL_HEADERS)

    async def stop() -> None:
        task = asyncio.create_task(LLMClient().achat_completion(HELLO, model=MINI))
        await asyncio.to_thread(reply.gate.reached.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(stop())
    [row] = records(ledger)
    assert (row["status"], row["cost_nano"]) == ("cancelled", None)
    assert hosted.requests[0].done.wait(5)


def get_costs(ledger: Ledger) -> dict[str, Any]:
    from shared.analytics import get_llm_costs

    ledger.flush()
    return get_llm_costs(days=1)


def test_a_client_is_not_copied_with_what_holds_it(hosted: Double) -> None:
    """Agents, crews and flows deep-copy their state: the copy goes on with the same client, and its budgets."""
    client = LLMClient(budget=Budget(1.0))
    models = [budgeted(MINI), budgeted(MINI, client=client)]
    held = copy.deepcopy(client)
    assert held is client
    LLMClient().chat_completion(HELLO, model=MINI)
    assert client.get_total_cost() == 0
    answer = copy.deepcopy(held.chat_completion(HELLO, model=MINI))
    assert client.get_total_cost() == answer.cost > 0
    for model, copied in zip(models, copy.deepcopy(models), strict=True):
        assert copied is not model
        assert copied.__dict__ == model.__dict__
