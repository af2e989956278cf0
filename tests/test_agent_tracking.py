"""Turns of agents whose model is not ours: recorded, priced, counted once, and said to be missing where nobody does."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from agency_swarm import Agency, Agent
from agents import AgentHooks, ModelProvider, OpenAIChatCompletionsModel, RunConfig, set_tracing_disabled
from openai import AsyncOpenAI

from shared.agent_model import track_agency
from shared.analytics import get_llm_costs
from shared.ledger.records import attempt_records
from shared.ledger.store import Ledger, get_ledger
from shared.reports.formats import render
from shared.scope import scope
from tests.support.agencies import Ask, agent, ask_plain, ask_streamed, owed, who
from tests.support.asking import NANO
from tests.support.provider_double import Double
from tests.support.provider_double.script import ToolCall, Usage
from tools import CostReport, TextGeneration

set_tracing_disabled(True)

plain_and_streamed = pytest.mark.parametrize("ask", [ask_plain, ask_streamed], ids=["plain", "streamed"])
WRITE = ToolCall("TextGeneration", {"prompt": "Hi", "model": NANO})
COUNTS = Usage(input=1000, output=50, cached=400, reasoning=10)


def own_model(double: Double, name: str = "gpt-5.4-mini") -> OpenAIChatCompletionsModel:
    """openai-agents' own model, at the provider double; its connections are closed at once, since no loop is kept."""
    http = httpx.AsyncClient(limits=httpx.Limits(max_keepalive_connections=0))
    client = AsyncOpenAI(base_url=double.api_base("openai"), api_key="sk-test", max_retries=0, http_client=http)
    return OpenAIChatCompletionsModel(name, client)


@plain_and_streamed
def test_turns_are_recorded(hosted: Double, ledger: Ledger, ask: Ask) -> None:
    """Every turn at every level is on the bill to the nano-dollar, beside the tools, under its agent and run."""
    send = ToolCall("send_message", {"recipient_agent": "B", "message": "please", "additional_instructions": ""})
    hosted.reply("openai", model="gpt-5.4-mini", tool_calls=[WRITE, send], usage=COUNTS)
    hosted.always("openai", usage=COUNTS)
    a, b = agent("A", own_model(hosted), tools=[TextGeneration]), agent("B", own_model(hosted))
    agency = Agency(a, communication_flows=[a > b])
    track_agency(agency)
    with scope(customer="acme"):
        assert ask(agency).error == ""
    assert sorted(who(ledger), key=str) == sorted(
        [("A", None, "reported"), ("A", None, "reported"), ("B", None, "reported"), ("A", "TextGeneration", "ok")],
        key=str,
    )
    rows = [row for row in attempt_records(ledger) if row["status"] == "reported"]
    assert all(row["labels"] == {"customer": "acme"} for row in rows)
    assert {(row["prompt_tokens"], row["cached_tokens"], row["reasoning_tokens"]) for row in rows} == {(1000, 400, 10)}
    assert {(row["cost_source"], row["usage_source"]) for row in rows} == {("table", "provider")}
    assert len({row["run"] for row in rows}) == 2
    assert len({row["conversation"] for row in attempt_records(ledger)}) == 1
    costs = get_llm_costs(days=1)
    assert costs["total_cost_nano"] == owed(hosted)
    assert (costs["total_calls"], costs["agent_turns"]) == (4, 3)


@plain_and_streamed
def test_model_given_as_text(hosted: Double, ledger: Ledger, ask: Ask) -> None:
    """A model that the agent names as text stays text, and is priced by that name."""

    class Provider(ModelProvider):
        def get_model(self, model_name: str | None) -> OpenAIChatCompletionsModel:
            return own_model(hosted, (model_name or "").removeprefix("litellm/openai/"))

    for name in ("gpt-5.4-mini", "litellm/openai/gpt-5.4-nano"):
        agency = Agency(agent("A", name))
        track_agency(agency)
        config = RunConfig(model_provider=Provider())
        assert ask(agency, **{"run_config" if ask is ask_plain else "run_config_override": config}).error == ""
        assert agency.agents["A"].model == name
    assert [row["model"] for row in attempt_records(ledger)] == ["gpt-5.4-mini", "openai/gpt-5.4-nano"]
    assert get_llm_costs(days=1)["total_cost_nano"] == owed(hosted)


def test_twice_counts_once(hosted: Double, ledger: Ledger) -> None:
    """An agency that is tracked again, or an agent of two agencies, is recorded once."""
    shared = agent("A", own_model(hosted), hooks=Listener())
    first, second = Agency(shared), Agency(shared)
    for agency in (first, first, second):
        track_agency(agency)
    ask_plain(second)
    assert who(ledger) == [("A", None, "reported")]


class Listener(AgentHooks[Any]):
    """A user's own hooks."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def on_llm_start(self, *_: Any) -> None:
        self.heard.append("start")

    async def on_llm_end(self, *_: Any) -> None:
        self.heard.append("end")


@plain_and_streamed
def test_hooks_of_others_go_on(hosted: Double, ledger: Ledger, ask: Ask) -> None:
    """The user's hooks and the host's reminders work as before."""
    hooks = Listener()
    tracked = agent("A", own_model(hosted), hooks=hooks, system_reminders="Mind the gap.")
    agency = Agency(tracked)
    track_agency(agency)
    assert ask(agency).error == ""
    assert hooks.heard == ["start", "end"]
    assert "Mind the gap." in str(hosted.requests[0].body["messages"])
    assert who(ledger) == [("A", None, "reported")]


def test_our_own_model_is_not_counted_again(hosted: Double, ledger: Ledger) -> None:
    """Agents with budgeted() may be in a tracked agency."""
    agency = Agency(agent("A"))
    track_agency(agency)
    ask_plain(agency)
    assert who(ledger) == [("A", None, "ok")]


@pytest.mark.parametrize("name", ["no-such-model", "gpt-4-turbo"])
def test_unknown_price_is_unpriced(hosted: Double, ledger: Ledger, name: str) -> None:
    """A turn of a model of unknown price is recorded with an unknown cost, never 0."""
    agency = Agency(agent("A", own_model(hosted, name)))
    track_agency(agency)
    assert ask_plain(agency).error == ""
    [row] = attempt_records(ledger)
    assert (row["model"], row["cost_nano"], row["cost_source"]) == (name, None, "unknown")
    assert get_llm_costs(days=1)["unpriced_calls"] == 1


def test_it_never_stops_a_turn(hosted: Double, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """When a turn cannot be recorded the run goes on, with a warning."""
    agency = Agency(agent("A", own_model(hosted)))
    track_agency(agency)
    monkeypatch.setenv("AGENTSWARM_TIMEZONE", "Nowhere/Land")
    assert ask_plain(agency).output == "Hello from gpt-5.4-mini."
    assert "A turn of A was not recorded" in caplog.text


def test_tracking_off_records_nothing(hosted: Double, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without cost tracking nothing is written."""
    agency = Agency(agent("A", own_model(hosted)))
    track_agency(agency)
    monkeypatch.setenv("LITELLM_COST_TRACKING", "false")
    ask_plain(agency)
    assert who(ledger) == []


@pytest.mark.parametrize("tool", [WRITE, ToolCall("CostReport", {})], ids=["paid", "free"])
def test_missing_turns_are_said_to_be_missing(hosted: Double, ledger: Ledger, tool: ToolCall) -> None:
    """A report of agents' tools without their turns says so, in every form; with the turns it does not."""

    def ask_again(tracked: bool) -> dict[str, Any]:
        hosted.reply("openai", model="gpt-5.4-mini", tool_calls=[tool])
        agency = Agency(Agent(name="A", model=own_model(hosted), tools=[TextGeneration, CostReport]))
        if tracked:
            track_agency(agency)
        with scope(customer="acme"):
            assert ask_plain(agency).error == ""
        ledger.flush()
        return get_llm_costs(days=1)

    missing = "Agent turns not tracked: their cost is not in these totals"
    assert get_llm_costs(days=1)["agent_turns"] == 0
    costs = ask_again(tracked=False)
    assert costs["agent_turns"] is None
    assert missing in render(costs).splitlines()
    assert "| Agent turns | not tracked |" in render(costs, "markdown")
    assert '"agent_turns": null' in render(costs, "json")
    with scope(customer="acme"):
        assert get_llm_costs(days=1)["agent_turns"] is None
    with scope(customer="other"):
        assert get_llm_costs(days=1)["agent_turns"] == 0
    costs = ask_again(tracked=True)
    assert costs["agent_turns"] == 2
    assert missing not in render(costs)
    assert "| Agent turns | 2 |" in render(costs, "markdown")


def test_missing_turns_in_postgresql(hosted: Double, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose tools were used is found by labels in PostgreSQL too."""
    monkeypatch.setenv("AGENTSWARM_DATABASE_URL", postgres_url)
    hosted.reply("openai", tool_calls=[ToolCall("CostReport", {})])
    with scope(customer="acme"):
        assert ask_plain(Agency(agent("A", own_model(hosted), tools=[CostReport]))).error == ""
        assert get_llm_costs(days=1)["agent_turns"] is None
    with scope(customer="other"):
        assert get_llm_costs(days=1)["agent_turns"] == 0
    get_ledger(postgres_url).close()
