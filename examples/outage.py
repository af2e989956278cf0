"""An outage: one invalid key, one exhausted quota, one provider down; the fourth answers, and the bill says why.

Run with: uv run examples/outage.py

The providers are SCRIPTED: a server on this machine replaces all four, so the example needs no keys and costs nothing.
The client, its requests, the fallback and the ledger are real.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from shared.analytics import get_llm_costs
from shared.ledger.records import attempt_records
from shared.ledger.store import get_ledger
from shared.llm_client import LLMClient
from tests.support.provider_double import Double, dial, running

console = Console(highlight=False, soft_wrap=True, markup=False)

MODELS = (
    "openai/gpt-5.4-mini",
    "anthropic/claude-haiku-4-5",
    "mistral/mistral-small-latest",
    "gemini/gemini-3.5-flash",
)
CALLS = 5


def script_outage(double: Double) -> None:
    """Script the failure of each provider."""
    double.always("openai", error="auth")
    double.always("anthropic", error="quota")
    double.refuse("mistral")
    double.always("gemini", text="The other three failed, so I answer.")


def ask(client: LLMClient) -> None:
    """Ask the first model, with the others as fallbacks."""
    for _ in range(CALLS):
        messages = [{"role": "user", "content": "Who is available?"}]
        response = client.chat_completion(messages, model=MODELS[0], fallback_models=MODELS[1:])
    console.print(f"{response.model} answers: {response.content}\n")


def explain(url: str) -> None:
    """Explain the outage in ten lines, from the ledger."""
    rows = list(attempt_records(get_ledger(url)))
    costs = get_llm_costs(days=1)
    console.print(f"{costs['total_calls']} calls, {costs['failed_calls']} of them unanswered; {len(rows)} attempts.")
    for model in MODELS:
        console.print(f"  {model}: {_story([row for row in rows if row['model'] == model])}")
    console.print(f"Total: ${costs['total_cost']:.6f}; {costs['unpriced_calls']} calls have an unknown cost.")
    console.print("After three failures in a row a model is skipped for half a minute while others can answer.")


def _story(rows: list[Mapping[str, Any]]) -> str:
    """What happened to one model's attempts."""
    answered = sum(row["status"] == "ok" for row in rows)
    reasons = sorted({f"{row['error_type']}, HTTP {row['http_status'] or '-'}" for row in rows if row["error_type"]})
    parts = [f"answered {answered} calls"] if answered else []
    if reasons:
        parts.append(
            f"failed {len(rows) - answered} times ({'; '.join(reasons)}), then skipped in {CALLS - len(rows)} calls"
        )
    cost = sum(row["cost_nano"] or 0 for row in rows) / 1e9
    return f"{', '.join(parts)}, ${cost:.6f}"


def main() -> None:
    """Run the example."""
    console.print("The four providers are SCRIPTED, by a server on this machine; everything else is real.")
    console.print("Loading LiteLLM (some seconds) ...\n")
    for model in MODELS:
        os.environ[f"{model.partition('/')[0].upper()}_API_KEY"] = "sk-scripted-0123456789"
    with tempfile.TemporaryDirectory() as folder, running() as double:
        url = os.environ["AGENTSWARM_DATABASE_URL"] = f"sqlite:///{Path(folder) / 'demo.sqlite3'}"
        script_outage(double)
        ask(LLMClient(max_retries=0, transport=lambda: dial.async_transport(double.address)))
        explain(url)
        get_ledger(url).close()


if __name__ == "__main__":
    main()
