"""What the host and its model see of our tools, through agency-swarm's own adapter."""

from __future__ import annotations

import asyncio
import json
from typing import Any, ClassVar

import pytest
from agency_swarm import Agency, Agent
from agency_swarm.tools import ToolFactory
from agents import set_tracing_disabled
from pydantic import Field, ValidationError, field_validator

from shared.analytics import get_llm_costs, record_event
from shared.base_tool import BaseTool
from shared.errors import ContentBlocked, RateLimitError
from shared.ledger.records import attempt_records
from shared.ledger.store import Ledger
from shared.llm_client import get_llm_client
from shared.scope import current_scope, scope
from shared.types import AnalyticsEvent, EventType, LLMResponse
from tests.support.agencies import Scripted
from tests.support.asking import HAIKU, MINI
from tests.support.processes import run
from tests.support.provider_double import Double, Fault
from tools import ALL_TOOLS, CostReport, ImageGeneration, TextGeneration

TRY_AGAIN = "An error occurred while running the tool. Please try again. Error: "

set_tracing_disabled(True)


def seen_by_model(tool: type[BaseTool], **arguments: Any) -> Any:
    """What the model reads when it calls the tool with these arguments."""
    adapted = ToolFactory.adapt_base_tool(tool)
    return asyncio.run(adapted.on_invoke_tool(None, json.dumps(arguments)))


class GuideTool(BaseTool):
    """Written as the guide has it: the client call, then record_event."""

    prompt: str = Field(..., description="What to write.")

    def _process(self) -> Any:
        client = get_llm_client()
        response: LLMResponse = client.chat_completion(messages=[{"role": "user", "content": self.prompt}], model=MINI)
        record_event(
            AnalyticsEvent(
                event_type=EventType.LLM_COST,
                tool_name=self.tool_name,
                metadata={
                    "model": response.model,
                    "provider": response.provider,
                    "cost": response.cost,
                    "task_type": "text_generation",
                },
            )
        )
        return {"text": response.content, "model": response.model, "cost": response.cost}


class AsyncGuideTool(BaseTool):
    """The same with an asynchronous _process."""

    prompt: str = Field(..., description="What to write.")

    async def _process(self) -> Any:
        response = await get_llm_client().achat_completion([{"role": "user", "content": self.prompt}], model=MINI)
        record_event(
            AnalyticsEvent(
                event_type=EventType.LLM_COST,
                tool_name=self.tool_name,
                metadata={"model": response.model, "cost": response.cost},
            )
        )
        return {"text": response.content, "cost": response.cost}


@pytest.mark.parametrize("tool", [GuideTool, AsyncGuideTool])
def test_guide_tool_counts_its_cost_once(hosted: Double, ledger: Ledger, tool: type[BaseTool]) -> None:
    """A tool that calls the client and then records LLM_COST is on the bill once, many at a time."""

    async def many() -> list[Any]:
        adapted = ToolFactory.adapt_base_tool(tool)
        calls = (adapted.on_invoke_tool(None, json.dumps({"prompt": f"number {i % 3}"})) for i in range(12))
        return await asyncio.gather(*calls)

    results = [json.loads(result) for result in asyncio.run(many())]
    costs = get_llm_costs(days=1)
    assert costs["total_calls"] == len(hosted.billed) == 12
    assert costs["total_cost_nano"] == round(sum(result["cost"] for result in results) * 1e9)
    assert costs["cost_by_tool"] == {tool.__name__: costs["total_cost"]}
    if tool is GuideTool:
        assert all(row["metadata"] == {"task_type": "text_generation"} for row in attempt_records(ledger))


def test_result_is_json_text(hosted: Double) -> None:
    """A dict reaches the model as JSON text, with an unknown cost as null."""

    class Unpriced(GuideTool):
        """Its model has no known price."""

        def _process(self) -> Any:
            return {"cost": float("nan"), "text": "é"}

    assert seen_by_model(Unpriced, prompt="x") == '{"cost": null, "text": "é"}'


class Failing(BaseTool):
    """Fails as it is told."""

    how: str = Field(..., description="blocked, limited or broken")

    def _process(self) -> Any:
        if self.how == "blocked":
            raise ContentBlocked("gpt-x refused the request", outcome="rejected")
        if self.how == "limited":
            raise RateLimitError("Rate limit exceeded for gpt-x", outcome="rejected")
        raise ValidationError.from_exception_data("Inner", [])


def test_failure_that_a_retry_cannot_heal_is_returned() -> None:
    """Such a failure is a JSON answer, since a raised one invites the model to pay again."""
    assert json.loads(seen_by_model(Failing, how="blocked")) == {
        "error": "gpt-x refused the request. Nothing was charged. Rephrase the request.",
        "error_type": "ContentBlocked",
        "cost": 0.0,
        "retry": False,
    }


def test_failure_that_a_retry_can_heal_is_raised() -> None:
    """The host's own "try again" stands before it."""
    expected = "Rate limit exceeded for gpt-x. Nothing was charged. Wait, or name fallback_models."
    assert seen_by_model(Failing, how="limited") == TRY_AGAIN + expected


def test_inner_validation_error_does_not_blame_the_arguments() -> None:
    """A ValidationError from inside is not reported as bad arguments."""
    assert "Invalid JSON input" not in seen_by_model(Failing, how="broken")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "prompt is required"),
        ({"prompt": "x", "temperature": 9}, "temperature: Input should be less than or equal to 2"),
        (
            {"prompt": "SECRET-PROMPT", "api_base": "http://evil"},
            "there is no argument api_base; the arguments are prompt",
        ),
        ({"prompt": ["SECRET-PROMPT"]}, "prompt: Input should be a valid string"),
        (
            {"prompt": "x", "response_schema": "SECRET-PROMPT"},
            'must be a JSON Schema as text, such as {"type": "object"',
        ),
    ],
    ids=["missing", "range", "unknown", "type", "schema"],
)
def test_bad_arguments_say_what_to_send(arguments: dict[str, Any], expected: str) -> None:
    """The model is told what to send instead, without an echo of what it sent or a link to pydantic."""
    seen = seen_by_model(TextGeneration, **arguments)
    assert seen.startswith(TRY_AGAIN)
    assert expected in seen
    assert "SECRET-PROMPT" not in seen
    assert "pydantic.dev" not in seen
    assert len(seen) < 500


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            {"title": "x"},
            "prompt: is required; title: there is no such argument; the arguments are ",
        ),
        (
            {"prompt": "x", "temperature": 9, "max_tokens": 0},
            (
                "temperature: Input should be less than or equal to 2; "
                "max_tokens: Input should be greater than or equal to 1"
            ),
        ),
    ],
)
def test_several_problems_name_each_argument_once(arguments: dict[str, Any], expected: str) -> None:
    """The host puts the argument's name before each of several problems, so our sentences leave it out there."""
    assert seen_by_model(TextGeneration, **arguments).startswith(TRY_AGAIN + expected)


def test_a_pattern_is_said_in_words() -> None:
    """An agent reads what to send instead, and no regular expression."""
    seen = seen_by_model(ImageGeneration, prompt="a fox", size="big")
    assert seen == f"{TRY_AGAIN}size: use 1024x1024 or an aspect ratio such as 16:9"


def test_a_failure_that_may_be_charged_does_not_say_try_again(hosted: Double) -> None:
    """What a failure advises agrees with its `retry`: false, for one model and for several."""
    hosted.always("openai", status=500)
    hosted.always("anthropic", status=500)
    for fallback_models in ([], [HAIKU]):
        seen = json.loads(seen_by_model(TextGeneration, prompt="x", model=MINI, fallback_models=fallback_models))
        assert seen["retry"] is False
        assert "Do not repeat it" in seen["error"]
        assert "again later" not in seen["error"]


def test_own_validator_message_is_passed_on() -> None:
    """A tool's own validator speaks to the model word for word, braces included."""

    class Picky(BaseTool):
        """Takes only {x}."""

        word: str = Field(..., description="The word.")

        @field_validator("word")
        @classmethod
        def _is_x(cls, value: str) -> str:
            if value != "{x}":
                raise ValueError("word must be {x}")
            return value

        def _process(self) -> Any:
            return "fine"

    assert seen_by_model(Picky, word="y") == TRY_AGAIN + "word must be {x}"
    assert seen_by_model(Picky, word="{x}") == "fine"


@pytest.mark.parametrize("tool", ALL_TOOLS, ids=lambda tool: tool.__name__)
def test_schema_has_only_the_tools_own_fields(tool: type[BaseTool]) -> None:
    """The model sees the tool's own arguments and nothing of ours, each with a description, and a clean docstring."""
    adapted = ToolFactory.adapt_base_tool(tool)
    expected = {
        "TextGeneration": {
            "prompt",
            "system_prompt",
            "model",
            "fallback_models",
            "temperature",
            "max_tokens",
            "response_schema",
        },
        "ImageGeneration": {
            "prompt",
            "model",
            "fallback_models",
            "size",
            "quality",
            "n",
            "reference_images",
            "mask",
            "background",
            "output_format",
            "file_name",
        },
        "UnderstandImages": {
            "media_url",
            "instruction",
            "model",
            "fallback_models",
            "detail",
            "response_schema",
            "max_tokens",
        },
        "CostReport": {"days", "group_by", "output_format"},
    }
    properties = adapted.params_json_schema["properties"]
    assert set(properties) == expected[tool.__name__]
    assert all(field["description"] for field in properties.values())
    assert adapted.params_json_schema["additionalProperties"] is False
    assert "\n    " not in adapted.description
    assert 40 < len(adapted.description) < 500


def ask_agency(*calls: tuple[str, dict[str, Any]], name: str = "Writer") -> list[str]:
    """What an agent's model saw of the tools it called."""
    model = Scripted(*calls)
    agent = Agent(name=name, instructions="x", model=model, tools=[*ALL_TOOLS, GuideTool])
    asyncio.run(Agency(agent).get_response("go"))
    return model.seen


def test_agent_writes_and_reports(hosted: Double, ledger: Ledger) -> None:
    """In a real Agency the calls carry agent, run and tool, and CostReport shows this conversation's spend only."""
    get_llm_client().chat_completion([{"role": "user", "content": "not the agent's"}], model=MINI)
    written, report = ask_agency(("TextGeneration", {"prompt": "Hi"}), ("CostReport", {"output_format": "json"}))
    [_, row] = list(attempt_records(ledger))
    assert (row["agent"], row["tool"]) == ("Writer", "TextGeneration")
    assert row["run"].startswith("agent_run_")
    assert json.loads(written)["cost"] == row["cost_usd"]
    assert json.loads(report)["total_cost_nano"] == row["cost_nano"]
    assert get_llm_costs(days=1)["total_calls"] == 2


def test_cost_report_keeps_to_its_labels(hosted: Double) -> None:
    """Inside a scope with labels an agent sees the spend of these labels, and never another customer's."""
    with scope(customer="acme"):
        ask_agency(("TextGeneration", {"prompt": "Hi"}))
        [again] = ask_agency(("CostReport", {"output_format": "json", "group_by": "customer"}))
    with scope(customer="other"):
        [foreign] = ask_agency(("CostReport", {"output_format": "json"}))
    assert [group["name"] for group in json.loads(again)["groups"]] == ["acme"]
    assert json.loads(foreign)["total_calls"] == 0
    [unlabelled] = ask_agency(("CostReport", {"output_format": "json"}))
    assert json.loads(unlabelled)["total_calls"] == 0


@pytest.mark.parametrize("model", ["local/smollm2-135m", "ollama/llama3", "http://evil.test/v1", "no-such", "x" * 201])
def test_agent_cannot_choose_any_model(hosted: Double, model: str) -> None:
    """A name that an agent made up, or a model on the operator's own machine, is refused with nothing sent."""
    [seen] = ask_agency(("TextGeneration", {"prompt": "Hi", "model": model}))
    assert "Nothing was charged" in seen or "at most 200 characters" in seen
    assert hosted.requests == []


def test_schema_answer_is_asked_again_once(hosted: Double, ledger: Ledger) -> None:
    """An answer that does not match response_schema is asked for once more, and both calls are on the bill."""
    schema = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
    hosted.reply("openai", text="Certainly!")
    hosted.reply("openai", text='```json\n{"n": 5}\n```')
    result = json.loads(seen_by_model(TextGeneration, prompt="Five", response_schema=schema))
    assert result["data"] == {"n": 5}
    rows = list(attempt_records(ledger))
    assert result["cost"] == pytest.approx(sum(row["cost_usd"] for row in rows), abs=1e-12)
    assert len(rows) == 2
    assert "not JSON" in hosted.requests[1].body["messages"][-1]["content"]


def test_schema_answer_that_never_matches(hosted: Double) -> None:
    """After the second mismatch the agent is told what is wrong and what was charged."""
    hosted.always("openai", text='{"n": "five"}')
    schema = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
    result = json.loads(seen_by_model(TextGeneration, prompt="Five", response_schema=schema))
    assert result["error_type"] == "BadResponse"
    assert "is not of type 'integer'" in result["error"]
    assert result["cost"] > 0
    assert result["retry"] is False
    assert len(hosted.requests) == 2


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "9" * 400, "[" * 300 + "]" * 300])
def test_a_paid_answer_that_no_validator_can_take(hosted: Double, ledger: Ledger, text: str) -> None:
    """The agent gets the cost of what was paid for, and is not told to try again."""
    hosted.always("openai", text=text)
    result = json.loads(seen_by_model(TextGeneration, prompt="x", response_schema='{"multipleOf": 0.5}'))
    assert (result["error_type"], result["retry"]) == ("BadResponse", False)
    assert result["cost"] == pytest.approx(sum(row["cost_usd"] for row in attempt_records(ledger)), abs=1e-12)
    assert result["cost"] > 0


@pytest.mark.parametrize(
    "schema",
    [
        "[1",
        '"text"',
        '{"type": "nonsense"}',
        '{"$ref": "https://example.test/schema.json"}',
        '{"$ref": "#"}',
        '{"properties": {"a": {"pattern": "(a+)+$"}}}',
        "[" * 5000,
    ],
)
def test_hostile_schemas_are_refused(hosted: Double, schema: str) -> None:
    """A schema that is none, fetches a URL, recurses for ever or holds a regular expression is refused unsent."""
    assert "response_schema must be a JSON Schema" in seen_by_model(TextGeneration, prompt="x", response_schema=schema)
    assert hosted.requests == []


def test_property_called_pattern_is_fine(hosted: Double) -> None:
    """A property may be called "pattern"; only the keyword is refused."""
    hosted.always("openai", text='{"pattern": "stripes"}')
    schema = '{"type": "object", "properties": {"pattern": {"type": "string"}}}'
    result = json.loads(seen_by_model(TextGeneration, prompt="x", response_schema=schema))
    assert result["data"] == {"pattern": "stripes"}


def test_cancelled_tool_stops_its_calls(hosted: Double, ledger: Ledger) -> None:
    """A tool with a blocking _process that the host cancels ends its call, and the attempt is settled."""
    reply = hosted.reply("openai", fault=Fault.STALL_HEADERS)

    async def cancel() -> None:
        task = asyncio.create_task(GuideTool(prompt="x").run())
        await asyncio.to_thread(reply.gate.reached.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert hosted.requests[0].done.wait(5)
    ledger.flush()
    assert [row["status"] for row in attempt_records(ledger)] == ["cancelled"]


KEEPS_OPEN = """
import asyncio, json, os, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from tools import TextGeneration

callers = []

class Model(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        callers.append(self.client_address)
        self.rfile.read(int(self.headers["content-length"]))
        choice = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        body = json.dumps({"id": "1", "model": "gpt-5.4-mini", "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {"OPENAI_BASE_URL": f"http://127.0.0.1:{server.server_port}/v1", "OPENAI_API_KEY": "sk-test"}
tool = TextGeneration(prompt="Hi", model="openai/gpt-5.4-mini")

async def in_a_notebook():
    return tool.run_sync()

for said in (tool.run_sync(), tool.run_sync(), asyncio.run(in_a_notebook())):
    print(json.loads(said)["text"])
print(len(callers), len(set(callers)))
"""


def test_run_sync_keeps_the_connection_open() -> None:
    """Tools that a script runs one after the other, also inside an event loop, use one connection to the provider."""
    done = run(KEEPS_OPEN)
    assert (done.stdout, done.stderr) == ("Hi\nHi\nHi\n3 1\n", "")


def test_run_sync_is_trusted(hosted: Double, ledger: Ledger) -> None:
    """A script runs a tool without an event loop; what it names is its own choice."""
    result = json.loads(TextGeneration(prompt="Hi", model="openai/brand-new", fallback_models=[]).run_sync())
    assert result["model"] == "openai/brand-new"
    assert result["cost"] is None
    assert "Unpriced calls: 1" in CostReport(days=1).run_sync()


def test_events_of_a_run(hosted: Double, ledger: Ledger) -> None:
    """Each run leaves TOOL_START and TOOL_SUCCESS or TOOL_ERROR."""
    seen_by_model(TextGeneration, prompt="Hi")
    seen_by_model(Failing, how="blocked")
    with ledger.reading() as connection:
        found = connection.exec_driver_sql("SELECT event_type, tool FROM event ORDER BY ts_us, event_id").all()
    assert sorted(tuple(row) for row in found) == [
        ("tool_error", "Failing"),
        ("tool_start", "Failing"),
        ("tool_start", "TextGeneration"),
        ("tool_success", "TextGeneration"),
    ]


def test_context_of_other_hosts() -> None:
    """Callers without a conversation of their own (MCP, HTTP) are kept apart from a person's scripts."""

    class Who(BaseTool):
        """Says who calls."""

        def _process(self) -> Any:
            inside = current_scope()
            return [inside.tool, inside.agent, inside.conversation]

    adapted = ToolFactory.adapt_base_tool(Who)

    class Holder:
        context: ClassVar[Any] = {"a": 1}

    assert asyncio.run(adapted.on_invoke_tool(Holder(), "{}")) == '["Who", null, "(no conversation)"]'
    assert asyncio.run(adapted.on_invoke_tool(None, "{}")) == '["Who", null, "(no conversation)"]'
