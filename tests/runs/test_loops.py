"""A run that goes in circles ends, and what counts as a circle."""

from __future__ import annotations

import gc
import json
from types import SimpleNamespace
from typing import Any

import pytest
from agency_swarm import Agency
from agents import function_tool, set_tracing_disabled
from hypothesis import given, strategies as st

from shared.errors import AllModelsFailed, BudgetExceeded, LLMError, LoopStopped, ModelNotAllowed, RateLimitError
from shared.ledger.store import Ledger
from shared.runs import loops
from shared.runs.loops import Watch, watch_of
from tests.support.agencies import Ask, Scripted, agent, ask_plain, ask_streamed, who
from tests.support.asking import MINI
from tests.support.provider_double import Double
from tests.support.provider_double.script import ToolCall
from tools import CostReport, TextGeneration

set_tracing_disabled(True)

plain_and_streamed = pytest.mark.parametrize("ask", [ask_plain, ask_streamed], ids=["plain", "streamed"])
NOT_ALLOWED = ToolCall("TextGeneration", {"prompt": "Hi", "model": "ollama/llama3"})


def in_circles(watch: Watch) -> bool:
    """Whether the run would end now."""
    try:
        watch.check()
    except LoopStopped:
        return True
    return False


@function_tool
def look_up(word: str) -> str:
    """Look a word up."""
    return f"{word}: nothing found"


@plain_and_streamed
def test_identical_calls_end_the_run(hosted: Double, ledger: Ledger, ask: Ask) -> None:
    """After five calls of any tool with the same arguments there is an error and no further paid turn."""
    hosted.always("openai", tool_calls=[ToolCall("look_up", {"word": "x"})])
    told = ask(Agency(agent("A", tools=[look_up])), max_turns=20)
    if ask is ask_plain:
        assert isinstance(told.cause, LoopStopped)
        told.error = str(told.cause)
    assert told.error == (
        "The run was stopped after 5 calls of look_up with the same arguments. Nothing was charged. "
        "Change the instructions; AGENTSWARM_MAX_IDENTICAL_CALLS sets the limit."
    )
    assert len(hosted.requests) == 5


def test_messages_to_an_agent_are_calls_too(hosted: Double) -> None:
    """An agent that sends another the same message again and again is stopped."""
    message = {"recipient_agent": "B", "message": "please", "additional_instructions": ""}

    def answer(request: Any) -> Any:
        return None if "You are B" in str(request.body["messages"][0]) else send

    send = hosted.reply("openai", tool_calls=[ToolCall("send_message", message)])
    hosted.decide(answer)
    a, b = agent("A"), agent("B")
    told = ask_plain(Agency(a, communication_flows=[a > b]), max_turns=20)
    assert isinstance(told.cause, LoopStopped)
    assert len(hosted.requests) == 10


@plain_and_streamed
def test_refusals_end_the_run(hosted: Double, ledger: Ledger, ask: Ask) -> None:
    """After three calls that an allow-list refused, however they differ, the run ends."""
    for word in "abcd":
        hosted.reply("openai", tool_calls=[ToolCall("TextGeneration", {"prompt": word, "model": "ollama/llama3"})])
    told = ask(Agency(agent("A", tools=[TextGeneration])))
    assert "LoopStopped" in told.error or "after 3 calls that a budget or an allow-list refused" in told.error
    assert len(hosted.requests) == 3
    assert [status for _, _, status in who(ledger)] == ["ok", "refused"] * 3


def test_tools_alone_pay_no_more(hosted: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an agent whose model is not ours, its tools refuse to go on, whatever they are asked."""
    same, other = {"prompt": "Hi", "model": MINI}, {"prompt": "Ho", "model": MINI}
    model = Scripted(*[("TextGeneration", same)] * 6, ("TextGeneration", other), ("CostReport", {}))
    ask_plain(Agency(agent("A", model, tools=[TextGeneration, CostReport])))
    assert len(hosted.requests) == 5
    answers = [json.loads(seen) for seen in model.seen if seen.startswith("{")]
    assert [answer.get("error_type") for answer in answers] == [None] * 5 + ["LoopStopped"] * 3
    assert answers[-1]["retry"] is False


def test_another_run_starts_anew(hosted: Double) -> None:
    """What one run has done is not held against the next one of the same conversation."""
    agency = Agency(agent("A", tools=[look_up]))
    for _ in range(3):
        for _ in range(3):
            hosted.reply("openai", tool_calls=[ToolCall("look_up", {"word": "x"})])
        assert ask_plain(agency).error == ""


@pytest.mark.parametrize(("limit", "turns"), [("2", 2), ("0", 8)])
def test_limits_are_settings(hosted: Double, monkeypatch: pytest.MonkeyPatch, limit: str, turns: int) -> None:
    """AGENTSWARM_MAX_IDENTICAL_CALLS and AGENTSWARM_MAX_REFUSALS set the limits; 0 means none."""
    monkeypatch.setenv("AGENTSWARM_MAX_IDENTICAL_CALLS", limit)
    monkeypatch.setenv("AGENTSWARM_MAX_REFUSALS", limit)
    for _ in range(7):
        hosted.reply("openai", tool_calls=[NOT_ALLOWED])
    told = ask_plain(Agency(agent("A", tools=[TextGeneration])))
    assert len(hosted.requests) == turns
    assert isinstance(told.cause, LoopStopped) == (limit != "0")


def test_only_refusals_count_as_such() -> None:
    """A budget's and an allow-list's word counts, also when it is every model's; an outage does not."""
    watch = Watch()
    outage, refused = RateLimitError("x", outcome="rejected"), ModelNotAllowed("x")
    error: LLMError
    for error in (outage, AllModelsFailed("x", failures=[outage, refused]), AllModelsFailed("x")):
        for _ in range(3):
            watch.failed(error)
    assert not in_circles(watch)
    for error in (refused, BudgetExceeded("x"), AllModelsFailed("x", failures=[refused, refused])):
        assert not in_circles(watch)
        watch.failed(error)
    assert in_circles(watch)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=4)


@given(st.dictionaries(st.text(), JSON, max_size=4), st.randoms())
def test_the_order_of_arguments_does_not_matter(arguments: dict[str, Any], chance: Any) -> None:
    """The same arguments in another order are the same call, as text or as data; others are not."""
    watch = Watch()
    for number in range(5):
        assert not in_circles(watch)
        names = list(arguments)
        chance.shuffle(names)
        shuffled = {name: arguments[name] for name in names}
        watch.called("model", "t", json.dumps(shuffled) if number % 2 else shuffled)
        watch.called("model", "t", {**arguments, "number": number})
        watch.called("model", f"t{number}", arguments)
    assert in_circles(watch)


@pytest.mark.parametrize("arguments", ["[" * 100_000, "{not json", "\ud800", {1: 2, "a": object}, float("nan")])
def test_any_arguments_can_be_counted(arguments: Any) -> None:
    """What a model makes up as arguments never breaks the count."""
    watch = Watch()
    for _ in range(5):
        watch.called("model", "t\x1b[2J" * 100, arguments)
    with pytest.raises(LoopStopped) as caught:
        watch.check()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_model_and_tool_count_for_themselves() -> None:
    """A call that both its model and its tool saw is one call."""
    watch = Watch()
    for _ in range(4):
        watch.called("model", "t", {})
        watch.called("tool", "t", {})
    assert not in_circles(watch)


def test_a_watch_goes_with_its_run() -> None:
    """The host's record of a run has one watch, which is gone when the record is; hosts without runs have none."""

    class Record:
        thread_manager = object()

    record = Record()
    assert watch_of(record) is watch_of(record)
    assert watch_of({}) is watch_of(None) is watch_of(SimpleNamespace(thread_manager=None)) is None
    key = id(record)
    del record
    gc.collect()
    assert key not in loops._watches
