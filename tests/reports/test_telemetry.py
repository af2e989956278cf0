"""Telemetry: what OpenTelemetry's own SDK gets of calls, and what it never gets."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest
from agency_swarm import Agency
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.trace import SpanKind, StatusCode

from shared.budget import Budget
from shared.errors import AllModelsFailed, BudgetExceeded, InvalidRequest, LLMError
from shared.ledger import AttemptRow
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient, flush_telemetry
from shared.reports import telemetry
from shared.scope import Scope, scope
from shared.types import Candidate, Rates, TaskType
from tests.support.agencies import Ask, agent, ask_plain, ask_streamed
from tests.support.asking import HAIKU, MINI, WAYS, Way
from tests.support.ledger_rows import only, records, rows
from tests.support.paths import ROOT
from tests.support.processes import LITELLM, run
from tests.support.provider_double import Double, Fault, ToolCall, Usage
from tools import ImageGeneration, TextGeneration

PROMPT, ANSWER = "the quarterly numbers of Nimbus", "They rose by eleven percent"
SAY = [{"role": "user", "content": PROMPT}]
DELTA: dict[type, AggregationTemporality] = dict.fromkeys(
    (Counter, Histogram, ObservableCounter), AggregationTemporality.DELTA
)


class Collected:
    """What the SDK has collected."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader(preferred_temporality=DELTA)
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        trace.set_tracer_provider(self.provider)
        metrics.set_meter_provider(MeterProvider([self.reader]))

    def reset(self) -> None:
        flush_telemetry()
        self.exporter.clear()
        self.reader.get_metrics_data()

    def all_spans(self) -> list[ReadableSpan]:
        """Every span, also those of the test's own."""
        flush_telemetry()
        return list(self.exporter.get_finished_spans())

    def spans(self) -> list[ReadableSpan]:
        """Our spans in the order of their starts, a call before its attempts."""
        ours = [
            span
            for span in self.all_spans()
            if span.instrumentation_scope and span.instrumentation_scope.name == telemetry.SCOPE_NAME
        ]
        known = {*telemetry.CALL_ATTRIBUTES, *telemetry.ATTEMPT_ATTRIBUTES}
        names = {name for span in ours for name in attributes(span) if not name.startswith("agentswarm.label.")}
        assert names <= known, names - known
        return sorted(ours, key=lambda span: (span.start_time or 0, span.kind is SpanKind.CLIENT))

    def points(self) -> dict[str, list[tuple[dict[str, Any], Any]]]:
        """The points of each metric of ours, since they were last asked for: attributes and point."""
        flush_telemetry()
        data = self.reader.get_metrics_data()
        scopes = [each for resource in (data.resource_metrics if data else ()) for each in resource.scope_metrics]
        return {
            metric.name: [
                (dict(point.attributes or {}), point)
                for point in metric.data.data_points
                if getattr(point, "value", None) != 0  # of earlier tests
            ]
            for each in scopes
            if each.scope.name == telemetry.SCOPE_NAME
            for metric in each.metrics
        }


@cache
def _collected() -> Collected:
    return Collected()  # a process has one SDK


@pytest.fixture
def collected(hosted: Double, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collected]:
    """A program with OpenTelemetry's SDK, and with our telemetry on."""
    monkeypatch.setenv("AGENTSWARM_TELEMETRY", "otel")
    found = _collected()
    found.reset()
    yield found
    found.reset()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """A span's attributes."""
    return dict(span.attributes or {})


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_call_is_one_span_that_says_what_its_row_says(
    hosted: Double, collected: Collected, ledger: Ledger, way: Way
) -> None:
    """A call with one attempt is one CLIENT span: its names, times, tokens and cost are those of the ledger's row."""
    usage = Usage(input=1000, output=50, cached=400, reasoning=10)
    hosted.reply("openai", text=ANSWER, usage=usage, response_model="gpt-5.4-mini-2026-03-17")
    with scope(tool="Writer", agent="Ann", conversation="c-1", customer="acme"):
        response = way(LLMClient(), SAY, model=MINI, max_tokens=77, temperature=0)
    row, [span] = only(ledger), collected.spans()
    assert (span.name, span.kind, span.status.status_code) == ("chat gpt-5.4-mini", SpanKind.CLIENT, StatusCode.UNSET)
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.schema_url == "https://opentelemetry.io/schemas/1.41.0"
    found = attributes(span)
    streamed = {
        "gen_ai.request.stream": True,
        "gen_ai.response.time_to_first_chunk": pytest.approx((row["first_chunk_us"] or 0) / 1e6),
    }
    assert found == {
        "agentswarm.agent": "Ann",
        "agentswarm.attempt.status": "ok",
        "agentswarm.call.attempts": 1,
        "agentswarm.call.id": response.metadata["call_id"],
        "agentswarm.cost.amount": response.cost,
        "agentswarm.cost.source": "table",
        "agentswarm.tool": "Writer",
        "gen_ai.conversation.id": "c-1",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.max_tokens": 77,
        "gen_ai.request.model": "gpt-5.4-mini",
        "gen_ai.request.temperature": 0.0,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.id": response.metadata["response_id"],
        "gen_ai.response.model": "gpt-5.4-mini-2026-03-17",
        "gen_ai.usage.cache_read.input_tokens": 400,
        "gen_ai.usage.input_tokens": 1000,
        "gen_ai.usage.output_tokens": 50,
        "gen_ai.usage.reasoning.output_tokens": 10,
        "server.address": "api.openai.com",
        "server.port": 443,
        **(streamed if row["stream"] else {}),
    }
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.end_time - span.start_time == row["duration_us"] * 1000


def test_a_call_and_its_metrics_agree(hosted: Double, collected: Collected, ledger: Ledger) -> None:
    """Duration, tokens, time to the first chunk and cost are in the metrics of the conventions, with their buckets."""
    hosted.reply("openai", text=ANSWER, usage=Usage(input=1000, output=50), times=2)
    WAYS["sync"](LLMClient(), SAY, model=MINI)
    WAYS["stream"](LLMClient(), SAY, model=MINI)
    points = collected.points()
    key = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5.4-mini",
    }
    [(of_duration, duration)] = points["gen_ai.client.operation.duration"]
    found = rows(ledger)
    assert of_duration == key
    assert duration.count == 2
    assert duration.sum == pytest.approx(sum(row["duration_us"] for row in found) / 1e6)
    assert duration.explicit_bounds[:3] == (0.01, 0.02, 0.04)
    [(of_chunk, chunk)] = points["gen_ai.client.operation.time_to_first_chunk"]
    assert (of_chunk, chunk.count) == (key, 1)
    tokens = {each["gen_ai.token.type"]: point for each, point in points["gen_ai.client.token.usage"]}
    assert {kind: point.sum for kind, point in tokens.items()} == {"input": 2000, "output": 100}
    assert tokens["input"].explicit_bounds[-2:] == (16777216, 67108864)
    [(of_cost, cost)] = points["agentswarm.cost.amount"]
    assert of_cost == key
    assert cost.value == pytest.approx(sum(row["cost_nano"] for row in found) / 1e9, abs=1e-12)
    assert not points.get("agentswarm.cost.unknown")


def test_a_failed_call_says_its_error_and_nothing_of_its_message(hosted: Double, collected: Collected) -> None:
    """The error is named by class and HTTP status; its message, which may repeat the prompt, is nowhere."""
    hosted.reply("openai", status=400, message=f"cannot answer {PROMPT}")
    with pytest.raises(InvalidRequest):
        LLMClient().chat_completion(SAY, model=MINI)
    [span] = collected.spans()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
    found = attributes(span)
    assert (found["error.type"], found["http.response.status_code"]) == ("InvalidRequest", 400)
    assert (found["agentswarm.attempt.status"], found["agentswarm.cost.amount"]) == ("failed", 0.0)
    assert span.events == ()
    [(of_duration, _)] = collected.points()["gen_ai.client.operation.duration"]
    assert of_duration["error.type"] == "InvalidRequest"


def test_a_fallback_is_a_call_with_its_attempts_inside(hosted: Double, collected: Collected, ledger: Ledger) -> None:
    """Several attempts are CLIENT spans inside one span of the call, which has no usage: nothing is counted twice."""
    hosted.reply("openai", status=503)
    hosted.reply("anthropic", text=ANSWER)
    response = LLMClient(max_retries=0).chat_completion(SAY, model=MINI, fallback_models=[HAIKU])
    call, first, second = collected.spans()
    assert (call.name, call.kind, call.status.status_code) == (f"call {MINI}", SpanKind.INTERNAL, StatusCode.UNSET)
    assert attributes(call) == {"agentswarm.call.id": response.metadata["call_id"], "agentswarm.call.attempts": 2}
    assert [each.name for each in (first, second)] == ["chat gpt-5.4-mini", "chat claude-haiku-4-5"]
    assert call.context is not None
    for number, each in enumerate((first, second), 1):
        assert each.parent is not None
        assert (each.parent.span_id, each.parent.trace_id) == (call.context.span_id, call.context.trace_id)
        assert attributes(each)["agentswarm.attempt.number"] == number
        assert (call.start_time or 0) <= (each.start_time or 0) <= (each.end_time or 0) <= (call.end_time or 0)
    assert (first.end_time or 0) <= (second.start_time or 0)
    assert attributes(first)["error.type"] == records(ledger)[0]["error_type"] == "Overloaded"
    assert (second.status.status_code, attributes(second)["agentswarm.requested_model"]) == (StatusCode.UNSET, MINI)
    assert [attributes(each)["gen_ai.provider.name"] for each in (first, second)] == ["openai", "anthropic"]


def test_a_call_that_no_model_answers_ends_in_its_error(hosted: Double, collected: Collected) -> None:
    """The span of a call that failed has the call's error, those of its attempts have theirs."""
    hosted.reply("openai", status=401)
    hosted.reply("anthropic", status=503)
    with pytest.raises(AllModelsFailed):
        LLMClient(max_retries=0).chat_completion(SAY, model=MINI, fallback_models=[HAIKU])
    assert [attributes(span)["error.type"] for span in collected.spans()] == [
        "AllModelsFailed",
        "AuthenticationError",
        "Overloaded",
    ]


def test_what_a_budget_refuses_was_not_sent(hosted: Double, collected: Collected) -> None:
    """A refusal is a span with its error and no host, and in no metric of what was sent."""
    with pytest.raises(BudgetExceeded):
        LLMClient(budget=Budget(0.000001)).chat_completion(SAY, model=MINI)
    [span] = collected.spans()
    found = attributes(span)
    assert (found["error.type"], found["agentswarm.attempt.status"]) == ("BudgetExceeded", "refused")
    assert "server.address" not in found
    assert not any(collected.points().values())


def test_a_stream_left_early_ends_its_span_without_an_error(
    hosted: Double, collected: Collected, ledger: Ledger
) -> None:
    """A reader who leaves a stream ends its span, with what was used until then; that is no error."""
    held = hosted.reply("openai", text="one two three", fault=Fault.STALL_STREAM)
    with LLMClient().chat_completion(SAY, model=MINI, stream=True) as stream:
        assert next(stream)
    held.gate.release()
    row, [span] = only(ledger), collected.spans()
    found = attributes(span)
    assert (row["status"], found["agentswarm.attempt.status"], span.status.status_code) == (
        "cancelled",
        "cancelled",
        StatusCode.UNSET,
    )
    assert "error.type" not in found
    assert found["gen_ai.response.time_to_first_chunk"] > 0
    assert found["agentswarm.usage.source"] == "counted"
    assert found["agentswarm.cost.lower_bound"] is True
    assert found["agentswarm.cost.reserved"] == pytest.approx(row["reserved_nano"] / 1e9)


def test_a_stream_that_breaks_off_is_an_error(hosted: Double, collected: Collected) -> None:
    """A stream that the provider ends is an error, at its own time."""
    hosted.reply("openai", text="one two three", fault=Fault.RESET_STREAM)
    with pytest.raises(LLMError):
        list(LLMClient().chat_completion(SAY, model=MINI, stream=True))
    [span] = collected.spans()
    assert (span.status.status_code, attributes(span)["agentswarm.attempt.status"]) == (
        StatusCode.ERROR,
        "interrupted",
    )


def test_an_unknown_cost_is_absent_and_never_zero(hosted: Double, collected: Collected) -> None:
    """Where no cost is known there is no amount; its source is `unknown`, and a counter of its own counts it."""
    hosted.reply("openai", text=ANSWER)
    LLMClient().chat_completion(SAY, model="openai/never-heard-of")
    [span] = collected.spans()
    found = attributes(span)
    assert found["agentswarm.cost.source"] == "unknown"
    assert "agentswarm.cost.amount" not in found
    points = collected.points()
    [(_, unknown)] = points["agentswarm.cost.unknown"]
    assert unknown.value == 1
    assert not points.get("agentswarm.cost.amount")


def test_an_image_tool_and_what_it_made(
    hosted: Double, collected: Collected, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making an image is `generate_content` with the output type `image`, under the tool's name."""
    monkeypatch.setenv("AGENTSWARM_OUTPUT_DIR", str(tmp_path / "out"))
    ImageGeneration(prompt=PROMPT, model="openai/gpt-image-2").run_sync()
    [span] = collected.spans()
    found = attributes(span)
    assert span.name == "generate_content gpt-image-2"
    assert (found["gen_ai.output.type"], found["agentswarm.tool"]) == ("image", "ImageGeneration")
    assert found["agentswarm.cost.amount"] > 0


@pytest.mark.parametrize("ask", [ask_plain, ask_streamed], ids=["plain", "streamed"])
def test_turns_of_an_agent_are_spans_too(hosted: Double, collected: Collected, ask: Ask) -> None:
    """The turns of an agent under budgeted() and the calls of its tools are spans of the same run."""
    hosted.reply("openai", tool_calls=[ToolCall("TextGeneration", {"prompt": "Hi", "model": MINI})])
    hosted.reply("openai", text="a line")
    hosted.reply("openai", text="Here you are.")
    ask(Agency(agent("Writer", tools=[TextGeneration])))
    found = [attributes(span) for span in collected.spans()]
    assert [(each["agentswarm.agent"], each.get("agentswarm.tool")) for each in found] == [
        ("Writer", None),
        ("Writer", "TextGeneration"),
        ("Writer", None),
    ]
    assert len({each["agentswarm.run"] for each in found}) == 1


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_spans_are_children_of_the_users_span(hosted: Double, collected: Collected, way: Way) -> None:
    """A call's parent is the span that was current where it was called, also across the bridge to our own loop."""
    tracer = trace.get_tracer("the user's program")
    with tracer.start_as_current_span("handler") as handler:
        way(LLMClient(), SAY, model=MINI)
    context = handler.get_span_context()
    [span] = collected.spans()
    assert span.parent is not None
    assert (span.parent.span_id, span.parent.trace_id) == (context.span_id, context.trace_id)


def test_calls_at_the_same_time_keep_their_parents(hosted: Double, collected: Collected) -> None:
    """Concurrent calls under different spans do not mix them up."""
    tracer, client = trace.get_tracer("the user's program"), LLMClient()

    async def one(name: str) -> None:
        with tracer.start_as_current_span(name):
            await client.achat_completion(SAY, model=MINI, user=name)

    async def many() -> None:
        await asyncio.gather(*(one(f"task {number}") for number in range(8)))

    asyncio.run(many())
    parents = [span.parent.span_id for span in collected.spans() if span.parent is not None]
    theirs = [span for span in collected.all_spans() if span.name.startswith("task ")]
    assert sorted(parents) == sorted(span.context.span_id for span in theirs if span.context is not None)
    assert len(set(parents)) == 8


def _texts(values: Sequence[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, tuple | list):
            yield from _texts(value)


def test_no_content_and_no_key_is_exported(
    hosted: Double, collected: Collected, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a prompt nor an answer, a system prompt, a schema, an error's message, a label or a key is exported."""
    monkeypatch.setenv("AGENTSWARM_OUTPUT_DIR", str(tmp_path / "out"))
    secret = os.environ["OPENAI_API_KEY"]
    schema = {"type": "json_schema", "json_schema": {"name": "secret_plan", "schema": {"type": "object"}}}
    hosted.reply("openai", text=ANSWER)
    hosted.reply("openai", text=ANSWER)
    hosted.reply("openai", text='{"plan": "secret_plan"}')
    hosted.reply("openai", status=400, message=f"{PROMPT} {ANSWER} {secret}", times=2)
    client = LLMClient(max_retries=0)
    with scope(customer="acme-secret-name"):
        client.chat_completion([{"role": "system", "content": PROMPT}, *SAY], model=MINI)
        list(client.chat_completion(SAY, model=MINI, stream=True))
        client.chat_completion(SAY, model=MINI, response_format=schema, user="secret_user")
        for way in ("sync", "stream"):
            with pytest.raises(LLMError):
                WAYS[way](client, SAY, model=MINI)
        ImageGeneration(prompt=PROMPT, model="openai/gpt-image-2").run_sync()
    spans = collected.spans()
    assert len(spans) == 6
    exported = "\n".join(span.to_json() for span in spans) + json.dumps(
        [[name, *_texts(list(found.values()))] for name, points in collected.points().items() for found, _ in points]
    )
    for text in (PROMPT, ANSWER, "Nimbus", "eleven", "secret", "sk-test", secret, "acme"):
        assert text not in exported
    assert "gpt-5.4-mini" in exported


def test_labels_are_exported_only_if_named(
    hosted: Double, collected: Collected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AGENTSWARM_TELEMETRY_LABELS names the labels that spans carry; no metric carries any."""
    monkeypatch.setenv("AGENTSWARM_TELEMETRY_LABELS", "customer, team")
    with scope(customer="acme", order="4711"):
        LLMClient().chat_completion(SAY, model=MINI)
    [span] = collected.spans()
    labels = {name: value for name, value in attributes(span).items() if name.startswith("agentswarm.label.")}
    assert labels == {"agentswarm.label.customer": "acme"}
    assert "acme" not in str([found for points in collected.points().values() for found, _ in points])


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What this package has logged; servers of other tests may still log too."""
    return [record.getMessage() for record in caplog.records if record.name == "agentswarm_tools"]


def test_a_failure_of_telemetry_fails_no_call(
    hosted: Double, collected: Collected, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong in telemetry, calls go on; the log says it once."""

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    telemetry._warn.cache_clear()
    client = LLMClient()
    for place in ("_ended", "_make_spans"):
        with monkeypatch.context() as patch:
            patch.setattr(telemetry, place, broken)
            for _ in range(2):
                assert client.chat_completion(SAY, model=MINI).content
            flush_telemetry()
    assert said(caplog) == [
        "Telemetry is on (AGENTSWARM_TELEMETRY) but failed: ZeroDivisionError. Calls go on without it."
    ]
    assert collected.spans() == []


def test_without_opentelemetry_calls_go_on(
    hosted: Double, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the extra is not installed, the log says what installs it, and calls go on."""
    monkeypatch.setenv("AGENTSWARM_TELEMETRY", "otel")
    monkeypatch.setitem(sys.modules, "opentelemetry.context", None)
    telemetry._warn.cache_clear()
    assert LLMClient().chat_completion(SAY, model=MINI).content
    [record] = said(caplog)
    assert 'pip install "opentelemetry-api' in record


OFF = """
import sys, threading
from shared.llm_client import LLMClient
from shared.pytest_plugin import Script, _transport
from shared.providers import use_transport
script = Script()
script("Hello")
with use_transport(_transport(script)):
    print(LLMClient().chat_completion([{"role": "user", "content": "Hi"}], model="openai/gpt-5.4-mini").content)
# LiteLLM brings FastAPI along, which imports OpenTelemetry itself; tests/ledger/test_recovery.py looks before that.
print(*(name for name in sys.modules if name == "shared.reports.telemetry"))
print(*(thread.name for thread in threading.enumerate() if "telemetry" in thread.name))
"""


def test_off_it_costs_nothing() -> None:
    """By default our part for OpenTelemetry is not imported by a call, and no thread is started for it."""
    done = run(OFF, imports=LITELLM)
    assert (done.stdout.splitlines(), done.returncode) == (["Hello", "", ""], 0), done.stderr


AT_EXIT = """
import os, sys
os.environ["AGENTSWARM_TELEMETRY"] = "otel"
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from shared.llm_client import LLMClient
from shared.pytest_plugin import Script, _transport
from shared.providers import use_transport
show = lambda span: f"{os.getpid() == parent} {span.name}\\n"
parent = os.getpid()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=show)))
trace.set_tracer_provider(provider)
script = Script()
def ask(model):
    script("Hello")
    with use_transport(_transport(script)):
        LLMClient().chat_completion([{"role": "user", "content": "Hi"}], model=model)
ask("openai/one")
if os.fork() == 0:
    ask("openai/two")
    sys.exit()
os.wait()
ask("openai/three")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_what_waits_is_exported_at_exit_by_the_process_that_made_the_call() -> None:
    """At exit the spans that wait are made, once each: a forked process makes those of its own calls only."""
    done = run(AT_EXIT, imports=LITELLM)
    assert sorted(done.stdout.splitlines()) == ["False chat two", "True chat one", "True chat three"], done.stderr
    assert done.returncode == 0


def test_the_example_of_the_page_runs() -> None:
    """The program on the page of telemetry prints what the page says, in a process of its own."""
    page = (ROOT / "docs" / "telemetry.md").read_text(encoding="utf-8")
    program, printed = re.findall(r"```(?:python|text)\n(.*?)```", page, re.DOTALL)
    scripted = """
from shared.providers import use_transport
from shared.pytest_plugin import Script, _transport
script = Script()
script("Hello from gpt-5.4-mini.")
scripted = use_transport(_transport(script))
scripted.__enter__()
"""
    done = run(scripted + program, imports=LITELLM)
    assert (done.stdout, done.returncode) == (printed, 0), done.stderr


def test_the_page_has_every_attribute() -> None:
    """What the page's tables say is what a span can have, and nothing else."""
    began = telemetry._Began(Context(), 0, 0.0, ())
    row = AttemptRow(
        ts_us=0, bucket=0, status="failed", provider="xai", requested_model="m", model="m", response_model="m",
        response_id="r", stream=True, duration_us=1, first_chunk_us=1, prompt_tokens=1, completion_tokens=1,
        cached_tokens=1, cache_write_tokens=1, reasoning_tokens=1, usage_source="counted", cost_nano=1,
        cost_is_lower_bound=True, reserved_nano=1, finish_reason="stop", error_type="BadResponse", http_status=502,
    )  # fmt: skip
    params = {"max_tokens": 1, "temperature": 1, "top_p": 1, "response_format": {"type": "json_object"}}
    tried = telemetry._Tried(row, Candidate("a", "m", "xai", "m", Rates()), params, "host", 1, 0.0)
    told = Scope(tool="t", agent="a", run="r", conversation="c")
    found: set[str] = set()
    for attempts in ((tried,), (tried, tried)):
        call = telemetry._Ended(began, row.call_id, TaskType.VISION, told, "other", attempts, None, 0.0)
        found |= telemetry._of_call(call).keys() | telemetry._of_attempt(call, tried).keys()
    page = {*telemetry.CALL_ATTRIBUTES, *telemetry.ATTEMPT_ATTRIBUTES}
    assert found | {"error.type", "http.response.status_code"} == page


def test_names_are_those_of_the_conventions() -> None:
    """Each name in the conventions' name space is one of theirs, as the package of their names has them."""
    attributes_known = {value for value in vars(gen_ai_attributes).values() if isinstance(value, str)}
    metrics_known = {value for value in vars(gen_ai_metrics).values() if isinstance(value, str)}
    names = [*telemetry.CALL_ATTRIBUTES, *telemetry.ATTEMPT_ATTRIBUTES]
    assert {name for name in names if name.startswith("gen_ai.")} <= attributes_known
    assert {name for name in telemetry.METRICS if name.startswith("gen_ai.")} <= metrics_known
    assert set(telemetry._PROVIDERS.values()) <= {each.value for each in gen_ai_attributes.GenAiProviderNameValues} | {
        each.value for each in gen_ai_attributes.GenAiSystemValues
    }
    operations = {each.value for each in gen_ai_attributes.GenAiOperationNameValues}
    assert {"chat", *telemetry._OPERATIONS.values()} <= operations
    assert set(telemetry._OPERATIONS) < set(TaskType)
