"""An agent that keeps calling its model is stopped by the budget of its run, before the turn that would exceed it.

Run with: uv run examples/budgeted_agent.py (in a checkout)

Without a key the provider is SCRIPTED: a server on this machine that answers as a provider might. With OPENAI_API_KEY
set it is OpenAI (for less than a cent). The agent, its tool, the client, the prices and the ledger are real.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console

console = Console(highlight=False, soft_wrap=True, markup=False)
console.print("Loading agency-swarm (some seconds) ...")

from agency_swarm import Agency, Agent
from agents import set_tracing_disabled
from agents.exceptions import AgentsException
from pydantic import Field

from shared.agent_model import budgeted
from shared.analytics import get_llm_costs
from shared.base_tool import BaseTool
from shared.budget import Budget
from shared.errors import BudgetExceeded
from shared.scope import scope
from tests.support.provider_double import Double, Recorded, Reply, ToolCall
from tests.support.provider_double.server import running

MODEL = "openai/gpt-5.4-nano"
BUDGET = Budget(0.002, "run")


class ReadPage(BaseTool):
    """Read one page of the report."""

    number: int = Field(..., ge=1, description="Page number.")

    def _process(self) -> str:
        console.print(f"  reading page {self.number}")
        return f"Page {self.number}: see page {self.number + 1}."


def script(double: Double) -> None:
    """Script a model that reads page after page."""
    pages = count(1)

    def turn(_: Recorded) -> Reply:
        return Reply(tool_calls=[ToolCall("ReadPage", {"number": next(pages)})])

    double.decide(turn)


async def ask(agency: Agency) -> Any:
    """The agency's answer, or the refusal that ended its run."""
    with scope(budget=BUDGET):
        try:
            return (await agency.get_response("What does the report say? Start on page 1.")).final_output
        except AgentsException as error:
            if not isinstance(error.__cause__, BudgetExceeded):
                raise
            return error.__cause__


def main() -> None:
    """Let the agent read until the budget of its run is spent."""
    own_key = "OPENAI_API_KEY" in os.environ
    console.print(
        "OpenAI answers." if own_key else "The provider is SCRIPTED: a server on this machine. The rest is real."
    )
    set_tracing_disabled(True)
    with tempfile.TemporaryDirectory() as folder, running() as double:
        os.environ["AGENTSWARM_DATABASE_URL"] = f"sqlite:///{Path(folder) / 'demo.sqlite3'}"
        if not own_key:
            os.environ["OPENAI_API_BASE"], os.environ["OPENAI_API_KEY"] = double.api_base("openai"), "scripted"
            script(double)
        console.print("Loading LiteLLM at the first call (some seconds) ...")
        reader = Agent(
            name="Reader",
            instructions="Read pages with ReadPage, one at a time, until one names no further page.",
            model=budgeted(MODEL, []),
            tools=[ReadPage],
        )
        console.print(f"\n— The agent may spend {BUDGET}:")
        console.print(f"\n— How it ended:\n{asyncio.run(ask(Agency(reader)))}")
        costs = get_llm_costs(days=1)
        console.print(f"\n— Spent: ${costs['total_cost']:.6f} for {costs['agent_turns']} turns.")


if __name__ == "__main__":
    main()
