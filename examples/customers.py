"""A web app for two customers with their own keys, models and budgets; one disconnects, one runs out of money.

Run with: uv run examples/customers.py (in a checkout)

Without a key the provider is SCRIPTED: a server on this machine that answers as a provider might. With OPENAI_API_KEY
set it is OpenAI, and both customers use that key (for less than a cent). Everything else is real: agency-swarm's
web server, its agents, the client, the prices and the ledger.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from rich.console import Console

console = Console(highlight=False, soft_wrap=True, markup=False)
console.print("Loading agency-swarm (some seconds) ...")

# agency-swarm's web server imports LiteLLM, which would otherwise download its price table.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

from agency_swarm import Agency, Agent
from agency_swarm.integrations.fastapi import run_fastapi
from agents import set_tracing_disabled

from shared.agent_model import budgeted
from shared.analytics import get_llm_costs
from shared.budget import Budget
from shared.scope import scope
from tests.support.provider_double import Fault
from tests.support.provider_double.server import running
from tools import CostReport

MODEL = "openai/gpt-5.4-nano"
TOKENS = {"token-a": "acme", "token-b": "bolt"}
BUDGETS = {"acme": Budget(0.0008, "day"), "bolt": Budget(5.0, "month")}
# Not in the environment, where agency-swarm would use it for any model that a request names.
OWN_KEY = os.environ.pop("OPENAI_API_KEY", None)
KEYS = {customer: OWN_KEY or f"scripted-{customer}" for customer in BUDGETS}


class Customers:
    """Middleware that opens a customer's scope around each whole request, streamed answers included."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, connection: Any, receive: Any, send: Any) -> None:
        """Called by the web server for each request; one without a valid token is refused."""
        token = dict(connection["headers"]).get(b"authorization", b"").decode().removeprefix("Bearer ")
        if token not in TOKENS:
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b"unknown customer"})
            return
        name = TOKENS[token]
        with scope(customer=name, budget=BUDGETS[name], models=[MODEL], keys={"openai": KEYS[name]}):
            await self.app(connection, receive, send)


def make_agency(load_threads_callback: Any = None) -> Agency:
    """The agency that answers a request."""
    desk = Agent(name="Desk", instructions="Answer in two sentences.", model=budgeted(MODEL, []), tools=[CostReport])
    return Agency(desk, load_threads_callback=load_threads_callback)


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The app's URL, while a web server runs in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class Visitor:
    """A web client with a customer's token."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._options: dict[str, Any] = {"headers": {"authorization": f"Bearer {token}"}, "timeout": 60}

    def ask(self, question: str, *, words: int = 1000) -> str:
        """The streamed answer, or the error that ended it; disconnects after `words` pieces of text."""
        pieces: list[str] = []
        body = {"message": question}
        with httpx.stream("POST", f"{self._url}/desk/get_response_stream", json=body, **self._options) as response:
            for line in response.iter_lines():
                event = json.loads(line[6:]) if line.startswith("data: {") else {}
                data = event.get("data", {})
                if data.get("type") == "error":
                    return f"ERROR: {data['content']}"
                if data.get("data", {}).get("type") == "response.output_text.delta":
                    pieces.append(data["data"]["delta"])
                if len(pieces) == words:
                    return f"{''.join(pieces)}... (disconnected)"
        return "".join(pieces)

    def report(self) -> str:
        """The report that CostReport gives this customer."""
        answer = httpx.post(f"{self._url}/tool/CostReport", json={"days": 1}, **self._options).json()
        return str(answer["response"])


def tour(url: str) -> None:
    """Make the requests of both customers."""
    acme, bolt = Visitor(url, "token-a"), Visitor(url, "token-b")
    console.print("Loading LiteLLM at the first call (some seconds) ...")
    console.print(f"\n— bolt asks:\n{bolt.ask('Why is the sky blue?')}")
    console.print(f"\n— bolt asks, and disconnects:\n{bolt.ask('Why is grass green?', words=3)}")
    answer = ""
    while not answer.startswith("ERROR"):
        answer = acme.ask("Why is snow white?")
        console.print(f"\n— acme asks:\n{answer}")
    console.print(f"\n— bolt continues:\n{bolt.ask('Why is the night dark?')}")
    for name, visitor in (("acme", acme), ("bolt", bolt)):
        console.print(f"\n— The report for {name}:\n{visitor.report()}")


def main() -> None:
    """Serve both customers, then show the operator's view."""
    console.print(
        "OpenAI answers." if OWN_KEY else "The provider is SCRIPTED: a server on this machine. The rest is real."
    )
    set_tracing_disabled(True)
    with tempfile.TemporaryDirectory() as folder, running() as double:
        os.environ["AGENTSWARM_DATABASE_URL"] = f"sqlite:///{Path(folder) / 'demo.sqlite3'}"
        if not OWN_KEY:
            os.environ["OPENAI_API_BASE"] = double.api_base("openai")
            double.always("openai", text="Light is scattered. That is why it looks so to us.", fault=Fault.DRIP)
        with serving(Customers(run_fastapi({"desk": make_agency}, [CostReport], return_app=True))) as url:
            tour(url)
        console.print("\n— What the operator sees:")
        for group in get_llm_costs(days=1, by="customer")["groups"]:
            console.print(f"  {group['name']}: ${group['cost']:.6f} for {group['calls']} answers")


if __name__ == "__main__":
    main()
