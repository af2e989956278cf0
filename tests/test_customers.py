"""Two customers at once behind agency-swarm's web server: nothing of one is seen by the other."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from agency_swarm import Agency
from agents import set_tracing_disabled
from pydantic import Field
from starlette.types import ASGIApp, Receive, Scope as Connection, Send

from shared.base_tool import BaseTool
from shared.budget import Budget
from shared.calls.stream import _pumps
from shared.ledger.records import attempt_records
from shared.ledger.schema import event
from shared.ledger.store import Ledger
from shared.llm_client import get_llm_client
from shared.providers import endpoints
from shared.scope import Scope, current_scope, scope
from tests.support.agencies import agent, owed_for
from tests.support.asking import HAIKU, MINI, NANO
from tests.support.loopback import Loopback, http
from tests.support.provider_double import Billed, Double, Fault, Recorded, Reply, ToolCall, Usage
from tests.support.serving import serving
from tools import CostReport, ImageGeneration, TextGeneration, UnderstandImages

IMAGES = "openai/gpt-image-2"
# What an agent of each customer writes with; the other may not use it.
MODELS = {"acme": NANO, "bolt": HAIKU}
KEYS = {
    "acme": {"openai": "sk-acme-0123456789"},
    "bolt": {"openai": "sk-bolt-0123456789", "anthropic": "sk-ant-bolt-0123456789"},
}
OTHER = {"acme": "bolt", "bolt": "acme"}
ENOUGH = {"acme": 50.0, "bolt": 70.0}
LIMIT_S = 30.0

set_tracing_disabled(True)


class InThread(BaseTool):
    """Write a line in a thread of its own."""

    prompt: str = Field(..., description="What to write.")

    def _process(self) -> dict[str, Any]:
        client = get_llm_client()
        stream = client.chat_completion([{"role": "user", "content": self.prompt}], model=MINI, stream=True)
        return {"text": "".join(stream), "total": client.get_total_cost()}


class Tenants:
    """
    The middleware that the docs recommend: one scope around the whole of each request.

    What it did is kept for the tests: the scope that the server's own task was in after each request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.budgets: dict[str, Budget] = {}
        self.ended: list[Scope] = []

    async def __call__(self, connection: Connection, receive: Receive, send: Send) -> None:
        customer = dict(connection["headers"])[b"x-customer"].decode()
        models = [MINI, MODELS[customer], IMAGES]
        try:
            with scope(customer=customer, budget=self.budgets[customer], models=models, keys=KEYS[customer]):
                await self.app(connection, receive, send)
        finally:
            self.ended.append(current_scope())


def desk(load_threads_callback: Any = None) -> Agency:
    """An agent with tools of each kind, and another one below it."""
    helper = agent("Helper", tools=[TextGeneration])
    chief = agent("Chief", tools=[TextGeneration, InThread, CostReport])
    return Agency(chief, communication_flows=[chief > helper], load_threads_callback=load_threads_callback)


@pytest.fixture(scope="module")
def web() -> Iterator[tuple[Tenants, str]]:
    """The app and its URL, one server for all tests of this module."""
    endpoints.import_litellm()  # first, since it would look up prices in the network when agency-swarm imports it
    from agency_swarm.integrations.fastapi import run_fastapi

    tools: Any = [TextGeneration, CostReport, ImageGeneration, UnderstandImages, InThread]
    app = Tenants(run_fastapi(agencies={"desk": desk}, tools=tools, return_app=True))
    with serving(app) as url:
        yield app, url


@pytest.fixture
def tenants(
    web: tuple[Tenants, str], hosted: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Tenants]:
    """The middleware, with enough money for everybody, on a server that has no keys of its own."""
    for name in [name for name in os.environ if name.endswith("_API_KEY")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AGENTSWARM_OUTPUT_DIR", str(tmp_path / "out"))
    monkeypatch.setenv("AGENTSWARM_BUDGET_USD", "9100")  # the operator's, of which no customer hears
    hosted.decide(play)
    tenants, _ = web
    tenants.budgets = {name: Budget(usd, "total") for name, usd in ENOUGH.items()}
    tenants.ended.clear()
    yield tenants
    assert all(ended == Scope() for ended in tenants.ended)


class Client:
    """Somebody who works for a customer."""

    def __init__(self, web: httpx.AsyncClient, customer: str) -> None:
        self.customer = customer
        self._web = web
        self._headers = {"x-customer": customer}
        self.heard: list[str] = []

    async def ask(self, what: str) -> Any:
        """The agency's whole answer."""
        return await self._post("/desk/get_response", {"message": f"{self.customer}: {what}"})

    async def tool(self, name: str, **arguments: Any) -> Any:
        """What a tool says, called without an agent."""
        said = await self._post(f"/tool/{name}", arguments)
        return said.get("response", said)

    async def listen(self, what: str) -> list[Any]:
        """The agency's answer, event by event."""
        async with self._stream(what) as events:
            return [event async for event in events]

    async def leave(self, what: str) -> None:
        """Hang up at the first word."""
        async with self._stream(what) as events:
            async for said in events:
                if "response.output_text.delta" in json.dumps(said):
                    return
        raise AssertionError(f"no word came: {self.heard[-1]}")

    async def _post(self, path: str, body: Any) -> Any:
        response = await self._web.post(path, json=body, headers=self._headers)
        self.heard.append(response.text)
        return response.json()

    @asynccontextmanager
    async def _stream(self, what: str) -> AsyncIterator[AsyncIterator[Any]]:
        path, body = "/desk/get_response_stream", {"message": f"{self.customer}: {what}"}

        async def events() -> AsyncIterator[Any]:
            async for line in response.aiter_lines():
                self.heard.append(line)
                if line.startswith("data: {"):
                    yield json.loads(line.removeprefix("data: "))

        async with self._web.stream("POST", path, json=body, headers=self._headers) as response:
            yield events()


@asynccontextmanager
async def clients(url: str) -> AsyncIterator[dict[str, Client]]:
    """One client for each customer."""
    # uvicorn hangs up after an answer whose request had failed.
    limits = httpx.Limits(max_connections=60, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S, limits=limits) as web:
        yield {name: Client(web, name) for name in KEYS}


def play(request: Recorded) -> Reply | None:
    """The providers' part: Chief calls all that it has, Helper writes, both report; some answers stall half way."""
    if request.operation != "chat" and "messages" not in (request.body or {}):
        return None
    said = json.dumps(request.body["messages"])
    customer = re.findall(r"\b(acme|bolt)\b", said)[0]
    offered = {tool["function"]["name"] for tool in request.body.get("tools", ())}
    if "and leave" in said:
        return Reply(chunks=["One ", "two"], fault=Fault.STALL_STREAM)
    if not offered or request.body["messages"][-1]["role"] == "tool":
        return Reply(text=f"Done for {customer}.")
    calls = [ToolCall("TextGeneration", {"prompt": f"{customer}", "model": MODELS[customer], "max_tokens": 60})]
    if "send_message" in offered:
        order = {"recipient_agent": "Helper", "message": f"{customer} again", "additional_instructions": ""}
        calls += [ToolCall("InThread", {"prompt": customer}), ToolCall("CostReport", {"group_by": "customer"})]
        calls += [ToolCall("send_message", order)]
    return Reply(tool_calls=calls)


def customer_of(request: Recorded) -> str:
    """Whose key came with a request."""
    key = request.headers.get("authorization") or request.headers["x-api-key"]
    [customer] = [name for name in KEYS if f"-{name}-" in key]
    return customer


def rows_of(ledger: Ledger) -> dict[str, list[dict[str, Any]]]:
    """The ledger's attempts by customer, once all are settled."""
    for pump in list(_pumps):  # streams whose readers have gone
        asyncio.run_coroutine_threadsafe(asyncio.wait([pump]), pump.get_loop()).result(LIMIT_S)
    ledger.flush()
    rows = list(attempt_records(ledger))
    assert all(row["status"] != "started" for row in rows)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in KEYS}
    for row in rows:
        assert row["labels"].keys() == {"customer"}, row
        found[row["labels"]["customer"]].append(row)
    return found


def bills_of(double: Double) -> dict[str, list[Billed]]:
    """What the providers charge, by whose key it is, without what its client did not wait for."""
    found: dict[str, list[Billed]] = {name: [] for name in KEYS}
    for bill in double.billed:
        assert bill.request is not None
        if not bill.request.closed_early:
            found[customer_of(bill.request)].append(bill)
    return found


def nano(usd: float) -> int:
    return round(usd * 1e9)


def test_twenty_requests(web: tuple[Tenants, str], tenants: Tenants, hosted: Double, ledger: Ledger) -> None:
    """Plain, streamed, dropped and tool requests in any order: each customer sees, pays and is told its own alone."""

    async def all_at_once() -> dict[str, Client]:
        async with clients(web[1]) as found:
            jobs: list[Coroutine[Any, Any, Any]] = []
            for each in found.values():
                jobs += [each.ask(f"plain {number}") for number in range(2)]
                jobs += [each.listen(f"streamed {number}") for number in range(2)]
                jobs += [each.leave(f"stream {number} and leave") for number in range(2)]
                jobs += [each.tool("TextGeneration", prompt=each.customer) for _ in range(2)]
                jobs += [each.tool("InThread", prompt=each.customer), each.tool("CostReport", group_by="customer")]
            assert len(jobs) == 20
            await asyncio.gather(*(jobs[place] for place in sorted(range(20), key=lambda place: place * 7 % 10)))
            return found

    found = asyncio.run(asyncio.wait_for(all_at_once(), LIMIT_S))
    hosted.wait_idle()
    rows, bills = rows_of(ledger), bills_of(hosted)
    order = [customer_of(request) for request in hosted.requests]
    assert sum(one != other for one, other in pairwise(order)) > 10, "they did not interleave"
    for request, customer in zip(hosted.requests, order, strict=True):
        assert OTHER[customer] not in json.dumps(request.body)
    for customer, own in rows.items():
        assert {row["key_alias"] for row in own} == {f"customer={customer}"}
        assert not any(MODELS[OTHER[customer]] == row["model"] for row in own)
        assert sum(row["cost_nano"] for row in own if row["status"] == "ok") == owed_for(bills[customer])
        assert Counter((row["agent"], row["tool"], row["status"]) for row in own) == {
            ("Chief", None, "ok"): 8,
            ("Chief", None, "cancelled"): 2,
            ("Chief", "TextGeneration", "ok"): 4,
            ("Chief", "InThread", "ok"): 4,
            ("Helper", None, "ok"): 8,
            ("Helper", "TextGeneration", "ok"): 4,
            (None, "TextGeneration", "ok"): 2,
            (None, "InThread", "ok"): 1,
        }
        assert_heard_nothing_of_the_other(found[customer])
    for name in ("run", "conversation"):
        acme, bolt = ({row[name] for row in own if row["agent"]} for own in rows.values())
        assert not acme & bolt
    with ledger.reading() as connection:
        assert set(connection.scalars(sa.select(event.c.labels["customer"].as_string()))) == set(KEYS)
    assert len(tenants.ended) == 20


def assert_heard_nothing_of_the_other(client: Client) -> None:
    """No name, model, key or amount of the other customer."""
    heard, other = "\n".join(client.heard), OTHER[client.customer]
    heard = re.sub(r"lasts_s[^,}]*", "", heard)  # a forecast in seconds, of any size
    assert other not in heard
    assert MODELS[other] not in heard
    assert "sk-" not in heard
    assert "sqlite" not in heard
    assert not re.search(r"\b9,?(100|0\d\d)\.\d", heard)
    assert f"${ENOUGH[other]}" not in heard
    assert f"${ENOUGH[other] - 1:.0f}." not in heard


def test_figures(web: tuple[Tenants, str], tenants: Tenants, ledger: Ledger) -> None:
    """Reports, totals and what is left are those of the customer who asks, to the nano-dollar."""

    async def story() -> dict[str, tuple[Any, Any, Any]]:
        async with clients(web[1]) as found:
            await asyncio.gather(*(each.ask("plain") for each in (*found.values(), found["bolt"])))
            told = {}
            for name, each in found.items():
                text = json.loads(await each.tool("TextGeneration", prompt=name))
                thread = json.loads(await each.tool("InThread", prompt=name))
                told[name] = (json.loads(await each.tool("CostReport", output_format="json")), text, thread)
                assert_heard_nothing_of_the_other(each)
            return told

    told, rows = asyncio.run(story()), rows_of(ledger)
    for customer, (report, text, thread) in told.items():
        spent = sum(row["cost_nano"] for row in rows[customer])
        assert report["total_cost_nano"] == spent
        assert report["total_calls"] == len(rows[customer])
        [budget] = report["budgets"]
        assert (nano(budget["used"]), nano(budget["left"])) == (spent, nano(ENOUGH[customer]) - spent)
        last = rows[customer][-1]["cost_nano"]
        assert nano(text["remaining_budget_usd"]) == nano(ENOUGH[customer]) - spent + last
        assert nano(thread["total"]) == last, "a total is that of the request's own scope"
    assert told["bolt"][0]["total_calls"] > told["acme"][0]["total_calls"]


def test_one_runs_out_of_money(web: tuple[Tenants, str], tenants: Tenants, hosted: Double, ledger: Ledger) -> None:
    """Whose budget is used up is refused, as an answer, a stream and a tool; the other works on and hears nothing."""
    tenants.budgets["acme"] = Budget(0.02, "total")

    def answer(request: Any) -> Reply:
        limits = (request.body.get(name) for name in ("max_tokens", "max_completion_tokens"))
        most = min([1000, *(limit for limit in limits if limit is not None)])
        return replace(play(request) or Reply(), usage=Usage(100, most))

    hosted.decide(answer)

    async def work(each: Client) -> list[str]:
        await each.ask("plain")
        said = [str(await each.ask("plain")), str(await each.listen("streamed"))]
        return [*said, str(await each.tool("TextGeneration", prompt=each.customer, model=MINI, max_tokens=5000))]

    async def both() -> tuple[dict[str, Client], list[list[str]]]:
        async with clients(web[1]) as found:
            return found, await asyncio.gather(*(work(each) for each in found.values()))

    found, (acme, bolt) = asyncio.run(asyncio.wait_for(both(), LIMIT_S))
    rows = rows_of(ledger)
    assert all("Done for bolt." in said for said in bolt)
    assert not any("Done for acme." in said for said in acme)
    assert all("BudgetExceeded" in said or "is left of $0.02 in all (customer=acme)" in said for said in acme), acme
    assert {row["status"] for row in rows["bolt"]} == {"ok"}
    assert sum(row["cost_nano"] for row in rows["acme"]) <= nano(0.02)
    for each in found.values():
        assert_heard_nothing_of_the_other(each)
    assert "acme" not in str(bolt)


def test_files(web: tuple[Tenants, str], tenants: Tenants) -> None:
    """A customer's pictures lie in a folder of its own, and another's are refused like any other file."""

    async def story() -> tuple[str, str]:
        async with clients(web[1]) as found:
            paths = {}
            for name, each in found.items():
                [text, *_] = await each.tool("ImageGeneration", prompt=name, model=IMAGES, file_name="fox")
                paths[name] = json.loads(text["text"])["image_path"]
                seen = await each.tool("UnderstandImages", media_url=paths[name], instruction=name, model=MINI)
                assert f"Done for {name}." in seen
            look = {"media_url": paths["acme"], "instruction": "bolt", "model": MINI}
            return paths["acme"], str(await found["bolt"].tool("UnderstandImages", **look))

    path, refused = asyncio.run(story())
    assert "InvalidRequest" in refused
    assert "acme" not in refused
    assert Path(path).parent.name.startswith("customer-acme-")


@pytest.mark.parametrize(
    "more",
    [
        {"client_config": {"model": "gpt-5.5"}},
        {"client_config": {"base_url": "{elsewhere}"}},
        {"client_config": {"base_url": "{elsewhere}", "model": "gpt-5.5"}},
        {"generate_chat_name": True},
    ],
    ids=["model", "address", "both", "name of the chat"],
)
def test_nothing_goes_past_the_scope(
    more: dict[str, Any], web: tuple[Tenants, str], tenants: Tenants, hosted: Double, ledger: Ledger
) -> None:
    """With keys in scopes alone, nothing is sent past them for what a request may ask of agency-swarm itself."""

    async def story() -> tuple[httpx.Response, list[Any]]:
        async with Loopback([http({})]) as elsewhere, httpx.AsyncClient(base_url=web[1], timeout=LIMIT_S) as client:
            body = json.dumps({"message": "acme: go", **more})
            body = body.replace("{elsewhere}", f"http://127.0.0.1:{elsewhere.port}/v1")
            headers = {"x-customer": "acme", "content-type": "application/json"}
            return await client.post("/desk/get_response", content=body, headers=headers), elsewhere.asked

    response, asked = asyncio.run(story())
    assert asked == []
    assert ("chat_name" in response.json()) is False
    assert len(rows_of(ledger)["acme"]) == len(hosted.requests)
    assert response.status_code == (200 if "generate_chat_name" in more else 500)
