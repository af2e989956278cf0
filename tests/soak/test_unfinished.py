"""A budget loop in which most things go wrong never bills more than the budget."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import sqlalchemy as sa

from shared.analytics import get_llm_costs
from shared.budget import Budget
from shared.calls.cooldown import cooldowns
from shared.errors import BudgetExceeded, LLMError
from shared.ledger.reservations import release
from shared.ledger.schema import account, attempt
from shared.ledger.store import Ledger, get_ledger
from shared.llm_client import LLMClient
from shared.scope import scope
from tests.support.asking import HAIKU, MINI
from tests.support.ledger_rows import assert_exact
from tests.support.provider_double import Double, Fault, Recorded, Reply, ToolCall, Usage
from tools.TextGeneration import TextGeneration

LIMIT_USD = 0.2
SEEDS = range(20)
GEMINI = "gemini/gemini-2.5-flash"
GROQ = "groq/openai/gpt-oss-120b"
# US$ for a million tokens in and out, by provider. Source: the providers' pages on prices (read 2026-11-27).
RATES = {"openai": (0.75, 4.5), "anthropic": (1.0, 5.0), "gemini": (0.30, 2.50), "groq": (0.15, 0.60)}
SCHEMA = json.dumps({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]})
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": f"look_up_{number}",
            "description": "Look up a thing in the shop and tell its price, its size and who sells it. " * 6,
            "parameters": {"type": "object", "properties": {"q": {"type": "string"}}},
        },
    }
    for number in range(12)
]
ENDS = ("whole", "hidden", "tools", "schema", "left", "left", "broken", "error", "page", "stall", "fallback")


class Provider:
    """Answers as the prompt says, and bills as much as a provider of that kind may."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self.billed_usd = 0.0

    def __call__(self, request: Recorded) -> Reply:
        """What the model writes, and what goes wrong with it."""
        text = json.dumps(request.body, ensure_ascii=False)
        end = next(end for end in ENDS if f"[{end}]" in text)
        # English text has about four bytes to a token, and JSON no fewer than three.
        prompt, most, dice = len(text) // 4, wire_limit(request.body), self._dice
        words = " ".join(["word"] * min(30, most))
        match end:
            case "hidden" | "whole" | "schema" | "tools":
                reasoning = dice.randint(0, most - 1) if end == "hidden" else 0
                usage = Usage(prompt, min(most, reasoning + dice.randint(1, 60)), reasoning=min(reasoning, most))
                self._bill(request, prompt, usage.output)
                calls = [ToolCall("look_up_1", {"q": "shoes"})] if end == "tools" else []
                text = dice.choice(['{"name": "Ann"}', '{"name": 7}', "no JSON"]) if end == "schema" else "Yes."
                return Reply(text=text, usage=usage, tool_calls=calls)
            case "left" | "broken":
                # OpenAI stops when the connection does; the others are not known to, and write to the end.
                shown = 30 if end == "left" else 3
                output = (
                    min(most, shown + dice.randint(0, 2000)) if request.provider == "openai" else dice.randint(1, most)
                )
                self._bill(request, prompt, output)
                if end == "left":
                    return Reply(text=words, usage=Usage(prompt, output))
                faults = (Fault.RESET_STREAM, Fault.CLEAN_EOF, Fault.ERROR_EVENT)
                return Reply(text=words, usage=Usage(prompt, output), fault=dice.choice(faults), after=2)
            case "error":
                if request.provider == "openai":  # says nothing of the bill for errors
                    self._bill(request, prompt, min(most, dice.randint(0, 2000)))
                elif request.provider == "groq":
                    self._bill(request, prompt, dice.randint(0, most))
                return Reply(error="server")
            case "page":
                self._bill(request, prompt, dice.randint(0, most))
                return Reply(status=502, body="<html>Bad gateway</html>", content_type="text/html")
            case "stall":
                self._bill(request, prompt, dice.randint(0, most))
                return Reply(fault=Fault.STALL_HEADERS)
            case _:  # fallback: the first model is overloaded
                if request.provider == "openai":
                    return Reply(error="overloaded")
                self._bill(request, prompt, 3)
                return Reply(text="Yes.", usage=Usage(prompt, 3))

    def _bill(self, request: Recorded, prompt: int, output: int) -> None:
        rate_in, rate_out = RATES[request.provider]
        self.billed_usd += (prompt * rate_in + output * rate_out) / 1e6


def wire_limit(body: dict[str, Any]) -> int:
    """The most output tokens that the request allows; under a budget every request says it."""
    names = ("max_tokens", "max_completion_tokens")
    limits = [body.get(name) for name in names]
    settings = body.get("generationConfig", {})
    limits += [settings.get(name) for name in ("maxOutputTokens", "max_output_tokens")]
    return max(limit for limit in limits if isinstance(limit, int))


def calls(dice: random.Random, numbers: Iterator[int]) -> None:
    """One call of a random kind, which may fail in any way but by a budget."""
    model, end = dice.choice([MINI, HAIKU, GEMINI, GROQ]), dice.choice(ENDS)
    prompt = f"[{end}] {next(numbers)} " + "some words to read " * dice.randrange(200)
    params: dict[str, Any] = {"max_tokens": dice.choice([64, 500, 3000, 8000])}
    if dice.random() < 0.3 or end == "tools":
        params["tools"] = TOOLS
    client = LLMClient(timeout=0.3 if end == "stall" else 20, max_retries=dice.choice([0, 1]))
    messages = [{"role": "user", "content": prompt}]
    if end == "schema":
        tool = TextGeneration(prompt=prompt, model=model, response_schema=SCHEMA, max_tokens=500)
        asyncio.run(tool.run())
    elif end in ("left", "broken"):
        stream = client.chat_completion(messages, model, [], stream=True, **params)
        for _ in stream:
            if end == "left":
                break
        stream.close()
    elif end == "fallback":
        client.chat_completion(messages, MINI, [HAIKU, GEMINI], **params)
    else:
        client.chat_completion(messages, model, [], stream=False, **params)


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_budget_loop_bills_no_more_than_the_budget(
    seed: int, store: str, hosted: Double, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Whatever is left early, broken, hidden, re-asked or refused: the bill stays within the budget."""
    if store == "postgres":
        monkeypatch.setenv("AGENTSWARM_DATABASE_URL", request.getfixturevalue("postgres_url"))
    now = [time.monotonic()]
    monkeypatch.setattr(cooldowns, "_clock", lambda: now[0])
    ledger = get_ledger(os.environ["AGENTSWARM_DATABASE_URL"])
    dice, numbers = random.Random(seed), count()
    provider = Provider(random.Random(seed))
    hosted.decide(provider)
    refused = 0
    with scope(run=f"seed-{seed}", budget=Budget(LIMIT_USD, "total")):
        while refused < 12 and len(hosted.requests) < 600:
            now[0] += 3600
            before = len(hosted.requests)
            try:
                calls(dice, numbers)
            except BudgetExceeded:
                refused += 1
            except LLMError:
                pass
            refused = 0 if len(hosted.requests) > before else refused
            hosted.release()
        costs = get_llm_costs()
    hosted.decide(None)

    assert len(hosted.requests) > 8
    assert provider.billed_usd <= LIMIT_USD
    check_sums(ledger, costs["budgets"][0], provider.billed_usd)
    ledger.close()


def check_sums(ledger: Ledger, budget: dict[str, Any], billed_usd: float) -> None:
    """What the budget says of itself adds up, covers the bill, and is what the rows add up to, also when released."""
    assert_exact(ledger)
    assert budget["spent"] + budget["reserved"] + budget["under_way"] == pytest.approx(budget["used"], abs=1e-9)
    assert billed_usd <= budget["used"] + 1e-9
    with ledger.reading() as connection:
        reserved = sa.func.coalesce(attempt.c.reserved_nano, 0)
        amount = sa.func.sum(sa.func.coalesce(attempt.c.cost_nano, 0) + reserved)
        assert connection.scalars(sa.select(account.c.counted_nano)).all() == [connection.scalar(sa.select(amount))]
    release(ledger)
    with ledger.reading() as connection:
        spent = connection.scalar(sa.select(sa.func.sum(sa.func.coalesce(attempt.c.cost_nano, 0))))
        assert connection.scalars(sa.select(account.c.counted_nano)).all() == [spent]
