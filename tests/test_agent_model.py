"""An agent's own turns: what is sent, what comes back, what is on the bill, and how a run ends."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from agency_swarm import Agency, Agent, Handoff
from agency_swarm.utils.usage_tracking import calculate_usage_with_cost, extract_usage_from_run_result
from agents import (
    ModelRetrySettings,
    ModelSettings,
    ModelTracing,
    RunConfig,
    Runner,
    set_tracing_disabled,
)
from agents.tracing import TracingProcessor, set_trace_processors
from pydantic import BaseModel

from shared.agent_model import budgeted
from shared.analytics import get_llm_costs
from shared.errors import AllModelsFailed, AuthenticationError, ConfigurationError, InvalidRequest
from shared.ledger.records import attempt_records
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient, get_llm_client
from shared.scope import scope
from tests.support.agencies import (
    PIXEL,
    Ask,
    Weather,
    agent,
    ask_plain,
    ask_streamed,
    messages_of,
    owed,
    who,
)
from tests.support.asking import HAIKU, MINI, NANO
from tests.support.caching import CachingProviders
from tests.support.provider_double import Double, Fault
from tests.support.provider_double.script import ToolCall, Usage
from tools import TextGeneration

set_tracing_disabled(True)

WRITE = ToolCall("TextGeneration", {"prompt": "Hi", "model": NANO})

plain_and_streamed = pytest.mark.parametrize("ask", [ask_plain, ask_streamed], ids=["plain", "streamed"])


@plain_and_streamed
def test_every_turn_is_on_the_bill(hosted: Double, ledger: Ledger, ask: Ask) -> None:
    """A turn is one attempt, under the same agent, run and conversation as the tools that it calls."""
    hosted.reply("openai", tool_calls=[WRITE])
    hosted.reply("openai", model="gpt-5.4-nano", text="a line")
    hosted.reply("openai", text="Here you are.")
    with scope(customer="acme"):
        told = ask(Agency(agent("Writer", tools=[TextGeneration])))
    assert told.output == "Here you are."
    assert who(ledger) == [("Writer", None, "ok"), ("Writer", "TextGeneration", "ok"), ("Writer", None, "ok")]
    rows = list(attempt_records(ledger))
    assert len({(row["run"], row["conversation"]) for row in rows}) == 1
    assert rows[0]["run"].startswith("agent_run_")
    assert all(row["labels"] == {"customer": "acme"} for row in rows)
    costs = get_llm_costs(days=1)
    assert costs["total_cost_nano"] == owed(hosted) > 0
    assert costs["agent_turns"] == 2


@plain_and_streamed
def test_three_levels_are_one_bill(hosted: Double, ledger: Ledger, ask: Ask) -> None:
    """Agents at any depth and their tools are on the bill to the nano-dollar; agency-swarm's own figure is less."""

    def tell(name: str) -> ToolCall:
        return ToolCall("send_message", {"recipient_agent": name, "message": "please", "additional_instructions": ""})

    script = [[WRITE, tell("Editor")], [WRITE, tell("Printer")], [WRITE], "printed", "edited", "done"]
    for step in script:
        counts = Usage(input=1000, output=50, cached=400, reasoning=10)
        if isinstance(step, str):
            hosted.reply("openai", model="gpt-5.4-mini", text=step, usage=counts)
        else:
            hosted.reply("openai", model="gpt-5.4-mini", tool_calls=step, usage=counts)
    chief, editor, printer = (agent(name, tools=[TextGeneration]) for name in ("Chief", "Editor", "Printer"))
    told = ask(Agency(chief, communication_flows=[chief > editor, editor > printer]))

    assert told.output == "done"
    assert sorted(who(ledger), key=str) == sorted(
        [(name, tool, "ok") for name in ("Chief", "Editor", "Printer") for tool in (None, None, "TextGeneration")],
        key=str,
    )
    costs = get_llm_costs(days=1)
    assert costs["total_calls"] == len(hosted.requests) == len(hosted.billed) == 9
    assert costs["total_cost_nano"] == owed(hosted)
    assert set(costs["cost_by_agent"]) == {"Chief", "Editor", "Printer"}
    usage = extract_usage_from_run_result(told.result)
    theirs = calculate_usage_with_cost(usage, run_result=told.result).total_cost
    turns = sum(
        row["cost_nano"] for row in attempt_records(ledger) if row["tool"] is None and row["agent"] != "Printer"
    )
    assert round(theirs * 1e9) == turns < costs["total_cost_nano"]


@plain_and_streamed
def test_settings_are_sent_and_nothing_else(hosted: Double, ask: Ask) -> None:
    """What the agent sets is a parameter of the request; what it leaves open is not sent."""
    settings = ModelSettings(
        temperature=0.3,
        top_p=0.9,
        max_tokens=77,
        parallel_tool_calls=False,
        tool_choice="Weather",
        extra_body={"seed": 7},
        extra_headers={"x-team": "blue"},
        extra_args={"stop": ["END"]},
    )
    told = ask(Agency(agent("A", budgeted("openai/gpt-4.1-mini", []), model_settings=settings, tools=[Weather])))
    assert told.error == ""
    [request, *_] = hosted.requests
    body = {
        k: v for k, v in request.body.items() if k not in ("model", "messages", "tools", "stream", "stream_options")
    }
    assert body == {
        "temperature": 0.3,
        "top_p": 0.9,
        "max_tokens": 77,
        "parallel_tool_calls": False,
        "tool_choice": {"type": "function", "function": {"name": "Weather"}},
        "seed": 7,
        "stop": ["END"],
        "prompt_cache_key": "A",
    }
    assert request.headers["x-team"] == "blue"
    [tool] = request.body["tools"]
    assert tool["function"]["name"] == "Weather"
    # Under this name the SDK has settings of its own, which a fallback need not take.
    for model in (MINI, "gpt-5.4-mini"):
        ask(Agency(agent("B", budgeted(model, []))))
        assert hosted.requests[-1].body.keys() <= {"model", "messages", "stream", "stream_options", "prompt_cache_key"}


@plain_and_streamed
def test_several_tools_at_once(hosted: Double, ask: Ask) -> None:
    """All tool calls of a turn are carried out, and their results go back under their own ids."""
    hosted.reply("openai", tool_calls=[ToolCall("Weather", {"place": place}) for place in ("Rome", "Oslo")])
    ask(Agency(agent("A", tools=[Weather])))
    asked, rome, oslo = messages_of(hosted)[-3:]
    assert [call["id"] for call in asked["tool_calls"]] == [rome["tool_call_id"], oslo["tool_call_id"]]
    assert [json.loads(message["content"])["place"] for message in (rome, oslo)] == ["Rome", "Oslo"]


@plain_and_streamed
def test_pictures_are_seen(hosted: Double, ask: Ask) -> None:
    """A picture in the message reaches the model."""
    look = [{"type": "input_text", "text": "What is it?"}, {"type": "input_image", "image_url": PIXEL, "detail": "low"}]
    assert ask(Agency(agent("A")), [{"role": "user", "content": look}]).error == ""
    assert {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}} in messages_of(hosted)[-1]["content"]


class Judgement(BaseModel):
    """A structured answer."""

    good: bool
    why: str


@plain_and_streamed
@pytest.mark.parametrize("model", [MINI, HAIKU])
def test_structured_output(hosted: Double, ask: Ask, model: str) -> None:
    """An output_type is asked for as a JSON Schema, and the answer is of that type."""
    hosted.always("openai", text='{"good": true, "why": "it works"}')
    hosted.always("anthropic", text='{"good": true, "why": "it works"}')
    told = ask(Agency(agent("A", budgeted(model, []), output_type=Judgement)))
    assert told.output == Judgement(good=True, why="it works")
    assert '"why"' in json.dumps(hosted.requests[0].body)


@plain_and_streamed
def test_outage_falls_back(hosted: Double, ledger: Ledger, ask: Ask) -> None:
    """When the model is down the next one takes the turn, tools included, and both attempts are recorded."""
    hosted.always("openai", status=503, headers={"retry-after": "0"})
    hosted.reply("anthropic", tool_calls=[ToolCall("Weather", {"place": "Rome"})])
    hosted.reply("anthropic", text="Blue.")
    client = get_llm_client(max_retries=0)
    told = ask(Agency(agent("A", budgeted(MINI, [HAIKU], client=client), tools=[Weather])))
    assert told.output == "Blue."
    assert [status for _, _, status in who(ledger)] == ["failed", "ok"] * 2
    assert '"sky": "blue"' in json.dumps(hosted.requests[-1].body).replace("\\", "")
    assert get_llm_costs(days=1)["total_cost_nano"] == owed(hosted)


def test_stream_is_what_the_plain_answer_is(hosted: Double) -> None:
    """Text comes piece by piece, each thing at a place of its own, and the items are the same as of a plain turn."""
    counts = Usage(input=100, output=50, cached=40, reasoning=20)
    answer: dict[str, Any] = {"text": "Let me look.", "reasoning": "Hm.", "usage": counts}
    hosted.reply("deepseek", tool_calls=[ToolCall("Weather", {"place": "Rome"})], **answer)
    hosted.reply("deepseek", tool_calls=[ToolCall("Weather", {"place": "Rome"})], **answer)
    model = budgeted("deepseek/deepseek-v4-flash", [])
    turn: list[Any] = [None, "go", ModelSettings(), [], None, [], ModelTracing.DISABLED]

    async def both() -> tuple[Any, list[Any]]:
        plain = await model.get_response(*turn, **_NOTHING_KEPT)
        return plain, [event async for event in model.stream_response(*turn, **_NOTHING_KEPT)]

    plain, events = asyncio.run(both())
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Let me look."
    places = {event.item.type: event.output_index for event in events if event.type == "response.output_item.done"}
    assert sorted(places.values()) == [0, 1, 2]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1].response
    assert _told(last.output) == _told(plain.output)
    assert [item.type for item in last.output] == ["reasoning", "message", "function_call"]
    assert last.usage.input_tokens_details.cached_tokens == plain.usage.input_tokens_details.cached_tokens == 40
    assert last.usage.output_tokens_details.reasoning_tokens == plain.usage.output_tokens_details.reasoning_tokens == 20
    assert (last.usage.input_tokens, last.usage.output_tokens) == (plain.usage.input_tokens, plain.usage.output_tokens)


_NOTHING_KEPT: dict[str, Any] = {"previous_response_id": None, "conversation_id": None, "prompt": None}


def _told(items: list[Any]) -> list[dict[str, Any]]:
    return [item.model_dump(exclude={"call_id"}) for item in items]


@plain_and_streamed
def test_error_ends_the_run(hosted: Double, ledger: Ledger, ask: Ask) -> None:
    """A failed turn ends the run with the package's own error, and is asked for once, whatever the SDK would retry."""
    hosted.always("openai", error="auth")
    always = ModelSettings(retry=ModelRetrySettings(max_retries=3, policy=lambda _: True))
    told = ask(Agency(agent("A", model_settings=always)))
    said = (
        "Authentication failed for openai (openai/gpt-5.4-mini): Incorrect API key provided: [redacted]. "
        "Nothing was charged."
    )
    if ask is ask_streamed:
        assert told.error.startswith(said)
    else:
        assert told.error == "Runner execution failed for agent A (cause: AuthenticationError)"
        assert isinstance(told.cause, AuthenticationError)
        assert str(told.cause).startswith(said)
    assert who(ledger) == [("A", None, "failed")]


@plain_and_streamed
def test_refused_turn_is_not_sent(hosted: Double, ledger: Ledger, ask: Ask) -> None:
    """A turn that the scope does not allow ends the run before anything is sent, and is recorded as refused."""
    with scope(models=[NANO]):
        told = ask(Agency(agent("A")))
    assert "ModelNotAllowed" in told.error or "is not an allowed model" in told.error
    assert who(ledger) == [("A", None, "refused")]
    assert hosted.requests == []


def test_sub_agent_that_fails_is_told_to_its_chief(hosted: Double, ledger: Ledger) -> None:
    """The failure of a sub-agent's turn names its kind to the agent that asked, which goes on."""
    call = ToolCall("send_message", {"recipient_agent": "B", "message": "please", "additional_instructions": ""})
    hosted.reply("openai", tool_calls=[call])
    hosted.always("anthropic", error="auth")
    a, b = agent("A"), agent("B", budgeted(HAIKU, []))
    told = ask_plain(Agency(a, communication_flows=[a > b]))
    assert told.output == "Hello from gpt-5.4-mini."
    assert "(cause: AuthenticationError)" in messages_of(hosted)[-1]["content"]
    assert who(ledger) == [("A", None, "ok"), ("B", None, "failed"), ("A", None, "ok")]


def test_all_models_failing_names_each(hosted: Double) -> None:
    """With fallbacks the error holds every model's own."""
    hosted.always("openai", error="auth")
    hosted.always("anthropic", error="auth")
    told = ask_plain(Agency(agent("A", budgeted(MINI, [HAIKU]))))
    assert isinstance(told.cause, AllModelsFailed)
    assert [failure.model for failure in told.cause.failures] == [MINI, HAIKU]


def test_broken_stream_is_an_error(hosted: Double, ledger: Ledger) -> None:
    """A stream that breaks after its first words ends the run with StreamInterrupted, and is priced by what came."""
    hosted.reply("openai", text="one two three four", fault=Fault.CLOSE_STREAM, after=2)
    told = ask_streamed(Agency(agent("A")))
    assert "broke off" in told.error
    [row] = attempt_records(ledger)
    assert row["status"] == "interrupted"
    assert row["cost_nano"] > 0


def test_abandoned_stream_is_settled(hosted: Double, ledger: Ledger) -> None:
    """A turn whose reader leaves closes its connection and is on the bill."""
    hosted.reply("openai", chunks=["one ", "two"], fault=Fault.STALL_STREAM, after=1)
    model = budgeted(MINI, [])

    async def leave() -> None:
        events: Any = model.stream_response(
            None,
            "go",
            ModelSettings(),
            [],
            None,
            [],
            ModelTracing.DISABLED,
            **_NOTHING_KEPT,
        )
        async for event in events:
            if event.type == "response.output_text.delta":
                break
        await events.aclose()

    asyncio.run(leave())
    assert hosted.requests[0].done.wait(5)
    assert who(ledger) == [(None, None, "cancelled")]


def test_cancelled_stream_is_settled(hosted: Double, ledger: Ledger) -> None:
    """A run that its user cancels in the middle of a turn leaves no attempt open."""
    hosted.reply("openai", chunks=["one ", "two"], fault=Fault.STALL_STREAM, after=1)

    async def cancel() -> None:
        stream = Agency(agent("A")).get_response_stream("go")
        async for event in stream:
            if getattr(getattr(event, "data", None), "type", "") == "response.output_text.delta":
                stream.cancel()

    asyncio.run(cancel())
    assert hosted.requests[0].done.wait(5)
    assert who(ledger) == [("A", None, "cancelled")]


@plain_and_streamed
def test_handoff_changes_the_agent(hosted: Double, ledger: Ledger, ask: Ask) -> None:
    """After a handoff turns and tools are those of the agent that took over, with its own model."""
    hosted.reply("openai", tool_calls=[ToolCall("transfer_to_B", {"recipient_agent": "B"})])
    hosted.reply("anthropic", tool_calls=[WRITE])
    hosted.reply("anthropic", text="Taken over.")
    a, b = agent("A"), agent("B", budgeted(HAIKU, []), tools=[TextGeneration])
    told = ask(Agency(a, communication_flows=[(a > b, Handoff)]))
    assert told.output == "Taken over."
    assert who(ledger) == [("A", None, "ok"), ("B", None, "ok"), ("B", "TextGeneration", "ok"), ("B", None, "ok")]


def test_without_an_agency(hosted: Double, ledger: Ledger) -> None:
    """An agent that openai-agents' own Runner runs is on the bill by its name."""
    assert asyncio.run(Runner.run(agent("A"), "go")).final_output == "Hello from gpt-5.4-mini."
    assert who(ledger) == [("A", None, "ok")]


def test_conversations_do_not_mix(hosted: Double, ledger: Ledger) -> None:
    """Many agencies at once on one loop keep their turns apart."""
    made = [Agency(agent(f"Agent{number}", tools=[Weather])) for number in range(8)]

    async def all_at_once() -> None:
        async def one(number: int, agency: Agency) -> None:
            with scope(customer=f"customer{number}"):
                await agency.get_response("go")
                await agency.get_response("again")

        await asyncio.gather(*(one(number, agency) for number, agency in enumerate(made)))

    asyncio.run(all_at_once())
    ledger.flush()
    rows = list(attempt_records(ledger))
    seen = {(row["agent"], row["labels"]["customer"], row["conversation"]) for row in rows}
    assert len(rows) == 16
    assert len(seen) == 8
    assert all(name.removeprefix("Agent") == customer.removeprefix("customer") for name, customer, _ in seen)


@pytest.mark.parametrize(
    "kept", [{"previous_response_id": "resp_1"}, {"conversation_id": "conv_1"}, {"prompt": {"id": "pmpt_1"}}]
)
def test_what_openai_keeps_is_refused(hosted: Double, kept: dict[str, Any]) -> None:
    """A turn that would go on from what OpenAI keeps is refused unsent, since the rest of it would be lost."""
    turn: list[Any] = [None, "go", ModelSettings(), [], None, [], ModelTracing.DISABLED]
    with pytest.raises(InvalidRequest, match="cannot use what is stored at OpenAI"):
        asyncio.run(budgeted(MINI).get_response(*turn, **{**_NOTHING_KEPT, **kept}))
    assert hosted.requests == []


@pytest.mark.parametrize(
    "settings",
    [
        {"extra_args": {"api_base": "http://evil.test/v1"}},
        {"extra_args": {"timeout": 1}},
        {"extra_args": {"base_url": "http://evil.test/v1"}},
        {"extra_query": {"a": "b"}},
        {"top_logprobs": 3},
    ],
    ids=str,
)
def test_settings_that_are_refused(hosted: Double, settings: dict[str, Any]) -> None:
    """What no agent may set, or what would be lost, ends the run unsent."""
    told = ask_plain(Agency(agent("A", model_settings=ModelSettings(**settings))))
    assert isinstance(told.cause, InvalidRequest)
    assert hosted.requests == []


@pytest.mark.parametrize("names", [("", None), (None, None), (MINI, HAIKU), (MINI, [""]), (MINI, [1])])
def test_names_that_are_none(names: tuple[Any, Any]) -> None:
    """What is no name of a model is refused when the agent is made."""
    with pytest.raises(ConfigurationError, match="takes a model name and a list of model names"):
        budgeted(*names)


def test_a_turn_is_traced(hosted: Double) -> None:
    """openai-agents' tracing sees a turn as it sees those of its own models, and its data only where that is wanted."""
    seen: list[Any] = []

    class Collector(TracingProcessor):
        def on_trace_start(self, trace: Any) -> None: ...
        def on_trace_end(self, trace: Any) -> None: ...
        def on_span_start(self, span: Any) -> None: ...
        def shutdown(self) -> None: ...
        def force_flush(self) -> None: ...
        def on_span_end(self, span: Any) -> None:
            if span.span_data.type == "generation":
                seen.append(span.span_data)

    set_trace_processors([Collector()])
    set_tracing_disabled(False)
    try:
        for wanted in (True, False):
            config = RunConfig(trace_include_sensitive_data=wanted)
            assert ask_plain(Agency(agent("A")), run_config=config).error == ""
    finally:
        set_tracing_disabled(True)
        set_trace_processors([])
    whole, bare = seen
    assert whole.model == bare.model == MINI
    assert whole.output[0]["content"] == "Hello from gpt-5.4-mini."
    assert bare.input is bare.output is None
    assert whole.usage == bare.usage == {"input_tokens": 5, "output_tokens": 10}


@pytest.mark.usefixtures("hosted")
def test_turns_are_cached(ledger: Ledger) -> None:
    """Each turn of a budgeted agent reads from Anthropic's cache what turns before it have sent, unless it is off."""
    providers = CachingProviders()
    instructions = "You are a careful clerk who follows the handbook. " * 500

    def bodies(**params: Any) -> list[str]:
        providers.bodies.clear()
        model = budgeted(HAIKU, [], client=LLMClient(transport=providers), **params)
        agency = Agency(Agent(name="Clerk", instructions=instructions, model=model))

        async def talk() -> None:
            for turn in range(4):
                await agency.get_response(f"Question {turn}?")

        asyncio.run(talk())
        return [json.dumps(body) for body in providers.bodies]

    assert ['"cache_control"' in body for body in bodies()] == [False, True, True, True]
    assert [bool(row["cached_tokens"]) for row in attempt_records(ledger)] == [False, False, True, True]
    assert not any('"cache_control"' in body for body in bodies(prompt_cache=None))
