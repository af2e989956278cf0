"""An agent writes text, a call falls back, a budget refuses one, and the bill shows every request.

Run with: make demo (or: uv run --extra local examples/quickstart.py)

Without a key a tiny local model writes the texts, and the agent's own turns are replayed from recorded_turns.json; with
the key of a provider (OPENAI_API_KEY, ANTHROPIC_API_KEY, ...) its model does both. The ledger is a temporary file.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.console import Console

console = Console(highlight=False, soft_wrap=True, markup=False)
console.print("Loading agency-swarm (some seconds) ...")

import httpx
from agency_swarm import Agency, Agent
from agents import set_tracing_disabled

from shared.agent_model import budgeted
from shared.analytics import get_llm_costs, print_llm_costs
from shared.budget import Budget
from shared.errors import BudgetExceeded, LLMError
from shared.llm_client import LLMClient
from shared.models.catalogue import LOCAL_MODEL, usable_models
from shared.providers import local
from shared.types import LLMResponse, ModelConfig
from tools import CostReport, TextGeneration

HERE = Path(__file__).parent
RECORDING = json.loads((HERE / "recorded_turns.json").read_text(encoding="utf-8"))


class Replay(httpx.AsyncBaseTransport):
    """Answers each request with the next of the recording; nothing leaves this machine."""

    base_url = "http://recording.invalid/v1"

    def __init__(self) -> None:
        self._answers = list(RECORDING["answers"])

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The recorded answer."""
        await request.aread()
        return httpx.Response(200, json=self._answers.pop(0))


def say(text: str) -> None:
    console.print(f"\n— {text}")


def stream(client: LLMClient, model: str) -> LLMResponse:
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
    assert chunks.response is not None, "the stream has ended"  # noqa: S101
    return chunks.response


def fall_back(client: LLMClient, model: str) -> LLMResponse:
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


async def agent_works(turns: LLMClient, model: str) -> tuple[list[dict[str, Any]], int]:
    """An agent calls TextGeneration, then CostReport; returns TextGeneration's results, and the number of its turns."""
    say(f"An agent at work; each of its turns is a call of {model} under budgeted():")
    writer = Agent(
        name="Writer",
        description="Writes short texts.",
        instructions="Use TextGeneration to name three colours of autumn leaves, then CostReport to report the bill.",
        model=budgeted(model, [], client=turns),
        tools=[TextGeneration, CostReport],
    )
    result = await Agency(writer).get_response("What colours are autumn leaves, and what did the answer cost?")
    outputs = [str(item.output) for item in result.new_items if item.type == "tool_call_output_item"]
    for output in outputs:
        console.print(output)
    console.print(f"Agent: {result.final_output}")
    return [json.loads(output) for output in outputs if output.startswith("{")], len(result.raw_responses)


def be_refused(transport: Replay | None, model: str) -> None:
    """A budget of a thousandth of a cent refuses a call before it is sent."""
    say("A call under a budget of $0.00001:")
    client = LLMClient(budget=Budget(0.00001, "total"), transport=transport)
    try:
        client.chat_completion(
            [{"role": "user", "content": "Write a poem."}], model=model, fallback_models=[], max_tokens=500
        )
    except BudgetExceeded as error:
        console.print(f"BudgetExceeded: {error}")


def show_bill(texts: int, turns: int) -> None:
    """Print the ledger's report, and count the calls above to compare."""
    say("The bill, from the ledger:")
    print_llm_costs(days=1)
    costs = get_llm_costs(days=1)
    console.print(f"\nAnswered above: {texts} texts and {turns} turns of the agent, {texts + turns} calls.")
    console.print(f"On the bill:    {costs['total_calls']} calls, {costs['agent_turns']} of them turns of agents.")


def run(ledger: Path) -> None:
    """Run the example."""
    keyed = usable_models()
    model = keyed[0] if keyed else LOCAL_MODEL
    os.environ["LITELLM_DEFAULT_TEXT_MODEL"] = model
    os.environ["AGENTSWARM_DATABASE_URL"] = f"sqlite:///{ledger}"
    if keyed:
        console.print(f"A key is set: {model} does the work.")
    else:
        console.print(
            f"No provider key is set: {model} writes the texts. It is tiny: the answers are real, but nonsense."
        )
        console.print(
            "It cannot choose tools, so the agent's turns are REPLAYED from examples/recorded_turns.json"
            f" at the prices of {RECORDING['model']}: nothing is sent, and nothing is charged to you."
        )
        local.ensure_running(on_progress=lambda line: console.print(f"{line} ..."))
    unreachable = ModelConfig(
        name="unreachable-model",
        provider="nowhere",
        api_base="http://127.0.0.1:9/v1",
        cost_per_1k_input_tokens=Decimal(0),
        cost_per_1k_output_tokens=Decimal(0),
    )
    client = LLMClient(model_configs={unreachable.name: unreachable}, max_retries=0)
    console.print("Loading LiteLLM at the first call (some seconds) ...")
    texts = [stream(client, model), fall_back(client, model)]
    replay = None if keyed else Replay()
    turning = model if keyed else RECORDING["model"]
    written, turns = asyncio.run(agent_works(LLMClient(transport=replay), turning))
    be_refused(replay, turning)
    show_bill(len(texts) + len(written), turns)


def main() -> None:
    """Run the example with a ledger of its own, which is deleted at the end."""
    began = time.monotonic()
    set_tracing_disabled(True)
    logging.getLogger("agentswarm_tools").setLevel(logging.ERROR)  # what it would warn of is shown on purpose
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder) / "demo.sqlite3")
    console.print(f"\nTook {time.monotonic() - began:.0f} s.")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        console.print("\nStopped.")
        raise SystemExit(130) from None
    except LLMError as error:
        console.print(f"\nError: {error}")
        raise SystemExit(1) from None
