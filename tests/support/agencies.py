"""Real agencies for tests, asked plainly or as a stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from agency_swarm import Agency, Agent
from agents import Model, ModelResponse, Usage
from agents.exceptions import AgentsException
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText
from pydantic import Field

from shared.agent_model import budgeted
from shared.base_tool import BaseTool
from shared.errors import LLMError
from shared.ledger.records import attempt_records
from shared.ledger.store import Ledger
from tests.support.asking import MINI
from tests.support.provider_double import Billed, Double

PIXEL = "data:image/png;base64,iVBORw0KGgo="

# US$ per million tokens (input, cached input, output), from LiteLLM 1.91.5's price table (read 2026-11-25).
_RATES = {
    "gpt-5.4-mini": (Decimal("0.75"), Decimal("0.075"), Decimal("4.5")),
    "gpt-5.4-nano": (Decimal("0.2"), Decimal("0.02"), Decimal("1.25")),
    "claude-haiku-4-5": (Decimal(1), Decimal("0.1"), Decimal(5)),
}


@dataclass
class Told:
    """What an agency answered, or the error that ended its run."""

    output: Any = None
    error: str = ""
    cause: BaseException | None = None
    result: Any = None
    events: list[Any] = field(default_factory=list)


type Ask = Callable[..., Told]


class Scripted(Model):
    """An agent's model whose calls of tools are scripted; `inputs` holds what it was sent, turn by turn."""

    def __init__(self, *calls: tuple[str, dict[str, Any]]) -> None:
        self._calls = list(calls)
        self.inputs: list[list[Any]] = []

    @property
    def seen(self) -> list[str]:
        """The results of its calls, as it has them in its last turn."""
        return [str(item["output"]) for item in self.inputs[-1] if item.get("type") == "function_call_output"]

    async def get_response(self, *_args: Any, **turn: Any) -> ModelResponse:
        """The next call, then a closing word."""
        self.inputs.append(list(turn["input"]))
        item: Any
        if self._calls:
            name, arguments = self._calls.pop(0)
            number = f"call_{len(self._calls)}"
            item = ResponseFunctionToolCall(
                type="function_call", id=number, call_id=number, name=name, arguments=json.dumps(arguments)
            )
        else:
            word = ResponseOutputText(type="output_text", text="Done.", annotations=[])
            item = ResponseOutputMessage(id="m", type="message", role="assistant", status="completed", content=[word])
        return ModelResponse(output=[item], usage=Usage(), response_id=None)

    def stream_response(self, *_args: Any, **_kwargs: Any) -> Any:
        """Streams are for the models of `budgeted`."""
        raise NotImplementedError


class Weather(BaseTool):
    """Says what the weather is like."""

    place: str = Field(..., description="Where.")

    def _process(self) -> dict[str, str]:
        return {"place": self.place, "sky": "blue"}


def agent(name: str, model: Any = None, **more: Any) -> Agent:
    """An agent on the bill, unless it is given another model."""
    return Agent(name=name, instructions=f"You are {name}.", model=model or budgeted(MINI, []), **more)


def ask_plain(agency: Agency, message: Any = "go", **more: Any) -> Told:
    """Ask for the whole answer."""
    try:
        result = asyncio.run(agency.get_response(message, **more))
    except (AgentsException, LLMError) as error:
        return Told(error=str(error), cause=error.__cause__ or error)
    return Told(result.final_output, result=result)


def ask_streamed(agency: Agency, message: Any = "go", **more: Any) -> Told:
    """Ask for the answer event by event."""

    async def listen() -> Told:
        told = Told()
        stream = agency.get_response_stream(message, **more)
        async for event in stream:
            told.events.append(event)
            if isinstance(event, dict) and event.get("type") == "error":
                told.error = event["content"]
        told.result = stream.final_result
        told.output = told.result.final_output if told.result else None
        return told

    return asyncio.run(listen())


def owed(double: Double) -> int:
    """Nano-dollars that the providers charge for what the double billed."""
    return owed_for(double.billed)


def owed_for(bills: Iterable[Billed]) -> int:
    """Nano-dollars that the providers charge for these bills, each request rounded once."""
    total = 0
    for bill in bills:
        fresh, cached, output = _RATES[bill.model]
        usage = bill.usage
        total += round(((usage.input - usage.cached) * fresh + usage.cached * cached + usage.output * output) * 1000)
    return total


def who(ledger: Ledger) -> list[tuple[str | None, str | None, str]]:
    """Agent, tool and status of every attempt, oldest first."""
    ledger.flush()
    return [(row["agent"], row["tool"], row["status"]) for row in attempt_records(ledger)]


def messages_of(double: Double, number: int = -1) -> list[dict[str, Any]]:
    """The messages of a request."""
    found: list[dict[str, Any]] = double.requests[number].body["messages"]
    return found
