"""Prompt caching at providers that bill it by their documented rules: it pays, or it costs nothing more."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine

from shared.calls import prompt_cache
from shared.errors import InvalidRequest
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient
from shared.scope import scope
from tests.support.asking import HAIKU, MINI
from tests.support.caching import CachingProviders
from tests.support.ledger_rows import records

LUNA = "openai/gpt-6-luna"
START = datetime(2026, 11, 28, 9, tzinfo=UTC)
TOOL = {"type": "function", "function": {"name": "look", "description": "Look it up. " * 400, "parameters": {}}}
INSTRUCTIONS = "You are a careful clerk who follows the handbook. " * 730
# In nano-dollars for a token: input, read from the cache, written to it.
PRICES = {HAIKU: (1000, 100, 1250), MINI: (750, 75, 750), LUNA: (100, 10, 125)}


@pytest.fixture(autouse=True)
def fresh(hosted: Any) -> Iterator[None]:
    """Nothing was sent before by this process, and nothing was warned of."""
    prompt_cache._sent.clear()
    prompt_cache._warn_collapsed.cache_clear()
    return iter([None])


def converse(
    providers: CachingProviders,
    model: str,
    turns: int,
    *,
    system: Any = INSTRUCTIONS,
    pause_s: float = 20,
    **params: Any,
) -> None:
    """A conversation of an agent that calls a tool in every other turn."""
    client = LLMClient(transport=providers)
    messages: list[dict[str, Any]] = [{"role": "system", "content": ""}, {"role": "user", "content": "Begin."}]
    for turn in range(turns):
        messages[0]["content"] = system(turn) if callable(system) else system
        with (
            time_machine.travel(START + timedelta(seconds=turn * pause_s), tick=False),
            scope(agent="Clerk", run="run_1", conversation="talk_1"),
        ):
            response = client.chat_completion(messages, model=model, fallback_models=[], tools=[TOOL], **params)
        if turn % 2:
            messages += [
                {"role": "assistant", "content": response.content},
                {"role": "user", "content": f"Question {turn}: what does the handbook say? " * 12},
            ]
        else:
            call = {"id": f"call_{turn}", "type": "function", "function": {"name": "look", "arguments": "{}"}}
            messages += [
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": call["id"], "content": f"Page {turn} of the handbook. " * 20},
            ]


def input_nano(ledger: Ledger, model: str) -> int:
    """The bill for input alone."""
    full, read, written = PRICES[model]
    total = 0
    for row in records(ledger):
        cached, wrote = row["cached_tokens"] or 0, row["cache_write_tokens"] or 0
        total += (row["prompt_tokens"] - cached - wrote) * full + cached * read + wrote * written
    return total


def bill(ledger: Ledger, model: str, **more: Any) -> tuple[int, CachingProviders]:
    """The bill for input of a conversation of 20 turns."""
    before, providers = input_nano(ledger, model), CachingProviders()
    converse(providers, model, 20, **more)
    return input_nano(ledger, model) - before, providers


def test_twenty_turns(ledger: Ledger) -> None:
    """The input of 20 turns after 10,000 fixed tokens costs at most a quarter with breakpoints at Anthropic."""
    plain, providers = bill(ledger, HAIKU)
    assert '"cache_control"' not in json.dumps(providers.bodies)
    assert records(ledger)[0]["prompt_tokens"] > 10_000
    cached, providers = bill(ledger, HAIKU, prompt_cache="auto")
    assert cached <= plain / 4
    assert '"cache_control"' not in json.dumps(providers.bodies[0]), "what was not seen before is not written"


def test_for_an_hour(ledger: Ledger) -> None:
    """Only "1h" writes for an hour: then turns that are minutes apart read what was written."""
    _, providers = bill(ledger, HAIKU, pause_s=400, prompt_cache="1h")
    assert '"ttl": "1h"' in json.dumps(providers.bodies[1])
    rows = records(ledger)
    assert all(row["cached_tokens"] > 10_000 for row in rows[2:])
    assert rows[1]["units"]["cache_write_1h"] > 10_000


@pytest.mark.parametrize("model", [MINI, LUNA])
def test_openai_costs_nothing_more(ledger: Ledger, model: str) -> None:
    """OpenAI caches by itself: with a key and a breakpoint behind the instructions it costs no more than without."""
    plain, _ = bill(ledger, model)
    cached, providers = bill(ledger, model, prompt_cache="auto")
    assert cached <= plain
    assert {body["prompt_cache_key"] for body in providers.bodies} == {"Clerk"}
    assert ("prompt_cache_breakpoint" in json.dumps(providers.bodies)) is (model == LUNA)


@pytest.mark.parametrize("model", [HAIKU, MINI, LUNA])
@pytest.mark.parametrize("in_system", [False, True])
def test_one_shot_calls_cost_nothing_more(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, model: str, in_system: bool
) -> None:
    """Ten long prompts of one length cost as much with caching as without: nothing is written."""

    def ask(**params: Any) -> int:
        client, before = LLMClient(transport=CachingProviders()), input_nano(ledger, model)
        for number in range(10, 20):
            text = f"Document {number}: " + "some words of it " * 3000
            messages = [{"role": "user", "content": "Summarise it." if in_system else text}]
            if in_system:
                messages.insert(0, {"role": "system", "content": text})
            with time_machine.travel(START + timedelta(seconds=number), tick=False):
                client.chat_completion(messages, model=model, fallback_models=[], **params)
        return input_nano(ledger, model) - before

    assert ask(prompt_cache="auto") <= ask()
    assert "cannot be cached" not in caplog.text, "they are no conversation whose beginning changes"


def test_one_shot_calls_of_many_processes(ledger: Ledger) -> None:
    """Prompts of one length that nothing follows are not taken for a conversation, whichever process sent them."""
    providers = CachingProviders()
    for number in range(10, 16):
        prompt_cache._sent.clear()
        messages = [{"role": "user", "content": f"Document {number}: " + "some words of it " * 3000}]
        with time_machine.travel(START + timedelta(seconds=number), tick=False):
            LLMClient(transport=providers).chat_completion(
                messages, model=HAIKU, fallback_models=[], prompt_cache="auto"
            )
    assert '"cache_control"' not in json.dumps(providers.bodies)


def test_other_conversations_share_the_instructions(ledger: Ledger) -> None:
    """Each new conversation of an agent reads what all of them begin with."""
    providers = CachingProviders()
    client = LLMClient(transport=providers)
    for number in range(6):
        messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": f"Question {number}?"}]
        with (
            time_machine.travel(START + timedelta(seconds=number), tick=False),
            scope(agent="Clerk", conversation=f"talk_{number}"),
        ):
            client.chat_completion(messages, model=HAIKU, fallback_models=[], prompt_cache="auto")
    assert [bool(row["cached_tokens"]) for row in records(ledger)] == [False, False, True, True, True, True]


def test_other_processes_share_the_state(ledger: Ledger) -> None:
    """A turn that another process answers goes on where the last one ended: the state is the ledger's."""
    providers = CachingProviders()
    messages: list[dict[str, Any]] = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": "Go."}]
    for turn in range(4):
        prompt_cache._sent.clear()
        with (
            time_machine.travel(START + timedelta(seconds=turn), tick=False),
            scope(agent="Clerk", conversation="talk", customer="acme"),
        ):
            LLMClient(transport=providers).chat_completion(
                messages, model=HAIKU, fallback_models=[], prompt_cache="auto"
            )
        messages += [{"role": "assistant", "content": "Fine."}, {"role": "user", "content": f"Next {turn}."}]
    rows = records(ledger)
    assert [bool(row["cached_tokens"]) for row in rows] == [False, False, True, True]
    assert rows[3]["cached_tokens"] == rows[2]["prompt_tokens"], "the conversation is read, not its instructions alone"
    with time_machine.travel(START + timedelta(seconds=9), tick=False), scope(agent="Clerk", customer="other"):
        LLMClient(transport=providers).chat_completion(messages, model=HAIKU, fallback_models=[], prompt_cache="auto")
    assert '"cache_control"' not in json.dumps(providers.bodies[-1]), "another customer's turns are not its own"


def test_after_the_retention(ledger: Ledger) -> None:
    """Turns further apart than the cache lives are not written to it."""
    plain, _ = bill(ledger, HAIKU, pause_s=400)
    cached, providers = bill(ledger, HAIKU, pause_s=400, prompt_cache="auto")
    assert cached == plain
    assert '"cache_control"' not in json.dumps(providers.bodies)


@pytest.mark.parametrize("forgets", [False, True])
def test_a_collapsed_cache_is_named_once(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, forgets: bool
) -> None:
    """A time in the instructions makes the cache useless: that is said once, and it is no longer paid for."""
    if forgets:  # as if each turn were another process's
        monkeypatch.setattr(prompt_cache._Sent, "is_other", lambda *_: False)
    timed = lambda turn: f"It is 09:{turn:02}. {INSTRUCTIONS}"  # noqa: E731
    plain, _ = bill(ledger, HAIKU, system=timed)
    prompt_cache._sent.clear()
    with caplog.at_level(logging.WARNING, "agentswarm_tools"):
        cached, _ = bill(ledger, HAIKU, system=timed, prompt_cache="auto")
    said = [each.message for each in caplog.records if "cannot be cached" in each.message]
    assert len(said) == 1
    assert said[0].startswith("The prompts of Clerk cannot be cached: their beginning changes from turn to turn")
    # Only two turns in every five minutes find out again, if no process knows what the others have sent.
    assert cached <= plain * (1.06 if forgets else 1)


def test_breakpoints_of_the_caller(ledger: Ledger) -> None:
    """Where the caller has set breakpoints there are no others, and plain calls get none unless they ask."""
    providers = CachingProviders()
    own = [{"type": "text", "text": INSTRUCTIONS, "cache_control": {"type": "ephemeral"}}]
    converse(providers, HAIKU, 4, system=own, prompt_cache="auto")
    assert all(json.dumps(body).count('"cache_control"') == 1 for body in providers.bodies)
    with pytest.raises(InvalidRequest, match="prompt_cache"):
        converse(providers, HAIKU, 1, prompt_cache="always")


def test_the_key_holds_the_labels(ledger: Ledger) -> None:
    """Customers have caches of their own at OpenAI, and a long key is a digest; an own endpoint gets no key."""
    providers = CachingProviders()
    with scope(customer="acme"):
        converse(providers, MINI, 1, prompt_cache="auto")
    with scope(customer="a" * 100):
        converse(providers, MINI, 1, prompt_cache="auto")
    assert providers.bodies[0]["prompt_cache_key"] == "Clerk,customer=acme"
    assert len(providers.bodies[1]["prompt_cache_key"]) == 64
    converse(providers, MINI, 1, prompt_cache="auto", api_base="https://models.example/v1")
    assert "prompt_cache_key" not in providers.bodies[2]
