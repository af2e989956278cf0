"""Three levels of agents and their tools on one bill, compared with the provider's and agency-swarm's own.

Run with: uv run examples/one_bill.py (in a checkout; it needs no key)

The provider is SCRIPTED: a server on this machine answers as a provider might, and counts what it would charge for.
Everything else is real: the agents, the tools, the client, the prices and the ledger.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.console import Console

console = Console(highlight=False, soft_wrap=True, markup=False)
console.print("Loading agency-swarm (some seconds) ...")

from agency_swarm import Agency, Agent
from agency_swarm.utils.usage_tracking import (
    calculate_usage_with_cost,
    extract_usage_from_run_result,
)
from agents import set_tracing_disabled

from shared.agent_model import budgeted
from shared.analytics import get_llm_costs
from tests.support.provider_double import Double
from tests.support.provider_double.script import ToolCall
from tests.support.provider_double.server import running
from tools import TextGeneration

AGENTS_MODEL, TOOLS_MODEL = "openai/gpt-5.4-mini", "openai/gpt-5.4-nano"
# US$ per million tokens (input, output). Source: LiteLLM 1.91.5's price table (read 2026-11-25).
PRICES = {AGENTS_MODEL: (Decimal("0.75"), Decimal("4.5")), TOOLS_MODEL: (Decimal("0.2"), Decimal("1.25"))}


def say(text: str) -> None:
    console.print(f"\n— {text}")


def script(double: Double) -> None:
    """Chief writes a line and asks Editor, who does the same and asks Printer, who writes a line too."""

    def turn(words: str, next_agent: str = "") -> None:
        calls = [ToolCall("TextGeneration", {"prompt": words, "model": TOOLS_MODEL})]
        if next_agent:
            message = {"recipient_agent": next_agent, "message": words, "additional_instructions": ""}
            calls.append(ToolCall("send_message", message))
        double.reply("openai", model="gpt-5.4-mini", tool_calls=calls)

    turn("A headline about autumn.", "Editor")
    turn("A shorter headline about autumn.", "Printer")
    turn("A caption for autumn leaves.")
    for answer in ("Printed.", "Edited and printed.", "Your page is printed."):
        double.reply("openai", model="gpt-5.4-mini", text=answer)
    double.always("openai", model="gpt-5.4-nano", text="Leaves fall, colours stay.")


def make_agency() -> Agency:
    """Three levels of agents, whose own turns go through the client."""

    def agent(name: str) -> Agent:
        return Agent(
            name=name,
            instructions=f"You are the {name}. Write with TextGeneration, then pass the work on.",
            model=budgeted(AGENTS_MODEL, []),
            tools=[TextGeneration],
        )

    chief, editor, printer = agent("Chief"), agent("Editor"), agent("Printer")
    return Agency(chief, communication_flows=[chief > editor, editor > printer])


def charged(double: Double) -> Decimal:
    """US$ that the provider charges for the usage it reported."""
    total = Decimal(0)
    for bill in double.billed:
        for_input, for_output = PRICES[f"openai/{bill.model}"]
        total += (bill.usage.input * for_input + bill.usage.output * for_output) / 1_000_000
    return total


def show(result: Any, double: Double) -> None:
    """Print the three figures."""
    costs = get_llm_costs(days=1)
    say("Our bill, from the ledger:")
    for name, cost in costs["cost_by_agent"].items():
        console.print(f"  {name}: ${cost:.9f}")
    usage = extract_usage_from_run_result(result)
    theirs = calculate_usage_with_cost(usage, run_result=result).total_cost
    say("The same work, counted three times:")
    console.print(f"  The provider charges:     ${charged(double):.9f} for {len(double.billed)} requests")
    console.print(f"  agentswarm-tools says:    ${costs['total_cost']:.9f} for {costs['total_calls']} calls")
    console.print(f"  agency-swarm itself says: ${theirs:.9f} (it misses the tools, and agents on the third level)")


def main() -> None:
    """Run the agency and print the bills."""
    console.print("The provider is SCRIPTED: a server on this machine. The rest is real.")
    set_tracing_disabled(True)
    with tempfile.TemporaryDirectory() as folder, running() as double:
        os.environ["AGENTSWARM_DATABASE_URL"] = f"sqlite:///{Path(folder) / 'demo.sqlite3'}"
        os.environ["OPENAI_API_BASE"], os.environ["OPENAI_API_KEY"] = double.api_base("openai"), "scripted"
        script(double)
        console.print("Loading LiteLLM at the first call (some seconds) ...")
        result = asyncio.run(make_agency().get_response("Print a page about autumn."))
        console.print(f"Chief: {result.final_output}")
        show(result, double)


if __name__ == "__main__":
    main()
