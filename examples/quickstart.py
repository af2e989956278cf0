"""An agent writes text, falls back to another model, and reports the bill.

Run with: make demo (or: uv run --extra local examples/quickstart.py)

Without a key it uses a tiny local model, and the agent's own turns are scripted; with a provider's key set
(OPENAI_API_KEY, ANTHROPIC_API_KEY, ...) the provider's model does both.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.console import Console

console = Console(highlight=False, soft_wrap=True, markup=False)
console.print("Loading agency-swarm (some seconds) ...")

from agency_swarm import Agency, Agent
from agents import Model, ModelResponse, Usage, set_tracing_disabled
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
)

from shared.analytics import get_llm_costs, print_llm_costs
from shared.llm_client import LLMClient
from shared.models.catalogue import LOCAL_MODEL, usable_models
from shared.providers import local
from shared.types import ModelConfig
from tools import CostReport, TextGeneration


class ScriptedTurns(Model):
    """Replaces the agent's own model: a model with 135 million parameters cannot choose tools."""

    def __init__(self, calls: list[tuple[str, dict[str, Any]]]) -> None:
        self._calls = list(calls)

    async def get_response(self, *_args: Any, **_kwargs: Any) -> ModelResponse:
        """The next tool call of the script, or a closing message when none is left."""
        if self._calls:
            name, arguments = self._calls.pop(0)
            call_id = f"call_{len(self._calls)}"
            item: Any = ResponseFunctionToolCall(
                type="function_call", id=call_id, call_id=call_id, name=name, arguments=json.dumps(arguments)
            )
        else:
            closing = ResponseOutputText(type="output_text", text="Done: see above.", annotations=[])
            item = ResponseOutputMessage(
                id="last", type="message", role="assistant", status="completed", content=[closing]
            )
        return ModelResponse(output=[item], usage=Usage(), response_id=None)

    def stream_response(self, *_args: Any, **_kwargs: Any) -> Any:
        """Not used: the script is not streamed."""
        raise NotImplementedError


def say(text: str) -> None:
    console.print(f"\n— {text}")


async def agent_writes(model: str, scripted: bool) -> list[dict[str, Any]]:
    """A real agent calls TextGeneration, then CostReport; returns TextGeneration's results."""
    turns: Any = f"litellm/{model}"
    if scripted:
        turns = ScriptedTurns(
            [
                ("TextGeneration", {"prompt": "Name three colours of autumn leaves.", "max_tokens": 40}),
                ("CostReport", {"days": 1}),
            ]
        )
        say("The agent's own turns are SCRIPTED (the local model is too small to choose tools); its tools are real.")
    writer = Agent(
        name="Writer",
        description="Writes short texts.",
        instructions="Use TextGeneration to name three colours of autumn leaves, then CostReport to report the bill.",
        model=turns,
        tools=[TextGeneration, CostReport],
    )
    result = await Agency(writer).get_response("What colours are autumn leaves, and what did the answer cost?")
    outputs = [str(item.output) for item in result.new_items if item.type == "tool_call_output_item"]
    for output in outputs:
        console.print(output)
    console.print(f"Agent: {result.final_output}")
    return [json.loads(output) for output in outputs if output.startswith("{")]


def stream(client: LLMClient, model: str) -> Any:
    """Stream one answer to the terminal."""
    say(f"A streamed answer from {model}:")
    chunks = client.chat_completion(
        [{"role": "user", "content": "Why is the sky blue? Answer in two sentences."}],
        model=model,
        fallback_models=[],
        max_tokens=80,
        stream=True,
    )
    for chunk in chunks:
        console.out(chunk, end="")
    console.print()
    return chunks.response


def fall_back(client: LLMClient, model: str) -> Any:
    """The first model cannot be reached, so the next one answers."""
    say(f"A fallback: unreachable-model cannot be reached, so {model} answers:")
    response = client.chat_completion(
        [{"role": "user", "content": "Say hello in one short sentence."}],
        model="unreachable-model",
        fallback_models=[model],
        max_tokens=30,
    )
    console.print(response.content)
    for attempt in response.metadata["attempts"]:
        console.print(f"  {attempt['model']}: {attempt['status']} {attempt['error_type'] or ''}")
    return response


def show_bill(responses: list[Any], written: list[dict[str, Any]]) -> None:
    """Print the ledger's report, and the sum of the calls above to compare."""
    say("The bill, from the ledger:")
    print_llm_costs(days=1)
    costs = get_llm_costs(days=1)
    cost = sum(r.cost for r in responses) + sum(w["cost"] for w in written)
    tokens = sum(r.usage["total_tokens"] for r in responses) + sum(w["tokens"] for w in written)
    console.print(f"\nThe {len(responses) + len(written)} calls above: ${cost:.6f}, {tokens:,} tokens.")
    console.print(f"The ledger:        ${costs['total_cost']:.6f}, {costs['total_tokens']:,} tokens.")


def main() -> None:
    """Run the example."""
    began = time.monotonic()
    keyed = usable_models()
    model = keyed[0] if keyed else LOCAL_MODEL
    os.environ["LITELLM_DEFAULT_TEXT_MODEL"] = model
    if keyed:
        console.print(f"A key is set: {model} does the work.")
    else:
        console.print(f"No provider key is set: {model} does the work. It is tiny: expect real answers, but nonsense.")
        local.ensure_running(on_progress=lambda line: console.print(f"{line} ..."))
    set_tracing_disabled(True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AGENTSWARM_DATABASE_URL"] = f"sqlite:///{Path(folder) / 'demo.sqlite3'}"
        unreachable = ModelConfig(
            name="unreachable-model",
            provider="nowhere",
            api_base="http://127.0.0.1:9/v1",
            cost_per_1k_input_tokens=Decimal(0),
            cost_per_1k_output_tokens=Decimal(0),
        )
        client = LLMClient(model_configs={unreachable.name: unreachable}, max_retries=0)
        console.print("Loading LiteLLM at the first call (some seconds) ...")
        written = asyncio.run(agent_writes(model, scripted=not keyed))
        responses = [stream(client, model), fall_back(client, model)]
        show_bill(responses, written)
    console.print(f"\nTook {time.monotonic() - began:.0f} s.")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        console.print("\nStopped.")
        raise SystemExit(130) from None
