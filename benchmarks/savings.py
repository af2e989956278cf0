"""What is saved, and how many answers are right: two models on a real test set, and a simulated day.

Run with: make savings

Every request goes through the client, is held, priced and recorded as any other; only the providers are stand-ins.
docs/COST_OPTIMIZATION.md and README.md quote what this printed, and nothing else, as a saving.
"""

from __future__ import annotations

import ast
import csv
import gzip
import json
import operator
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import time_machine

from benchmarks.simulated_day import SimulatedRequest, requests
from shared.errors import AllModelsFailed, ResponseRejected
from shared.llm_client import LLMClient
from shared.prices import UNKNOWN
from shared.providers import count_tokens
from shared.scope import scope
from shared.types import Candidate, FallbackOn, LLMResponse, ModelConfig
from tests.support.caching import CachingProviders

ROOT = Path(__file__).resolve().parent.parent
ROUTING = ROOT.parent / "shared" / "routing" / "gsm8k_two_models.csv.gz"
PICTURE = ROOT / "docs" / "savings.svg"


@dataclass(frozen=True, slots=True)
class Result:
    """One strategy: its bill in US$, the share of answers that are right, and the share that a check rejected."""

    name: str
    usd: float
    right: float
    rejected: float

    def row(self, most_usd: float) -> str:
        """A row of the table."""
        saved = "" if self.usd == most_usd else f"{1 - self.usd / most_usd:.0%}"
        return f"| {self.name} | ${self.usd:.2f} | {saved} | {self.right:.1%} | {self.rejected:.1%} |"


def table(results: Sequence[Result]) -> str:
    """The results as a Markdown table; what is saved stands beside the share of right answers."""
    most = max(result.usd for result in results)
    head = "| Strategy | Bill | Saved | Right | Answers rejected |\n| --- | ---: | ---: | ---: | ---: |"
    return "\n".join([head, *(result.row(most) for result in results)])


# The real test set: 1,319 questions of GSM8K, with the answers of both models.

CHEAP, EXPENSIVE = "mixtral-8x7b", "gpt-4-1106-preview"
# US$ for 1,000 tokens, of the day of the answers. Source: lm-sys/RouteLLM (Apache-2.0), read 2026-11-27.
PRICES = {CHEAP: ("0.00024", "0.00024"), EXPENSIVE: ("0.01", "0.03")}


class Recorded(httpx.AsyncBaseTransport):
    """Answers each question as the model did; the usage is our own count, since none was recorded."""

    base_url = "http://recorded.invalid/v1"

    def __init__(self, rows: Sequence[Mapping[str, str]]) -> None:
        self._rows = {row["prompt"]: row for row in rows}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer in OpenAI's format."""
        body = json.loads(await request.aread())
        row = self._rows[body["messages"][0]["content"]]
        answer = row["cheap_answer" if body["model"] == CHEAP else "dear_answer"]
        usage = count_tokens(NOBODY, body["messages"], answer)
        return answered(body["model"], answer, usage.prompt_tokens or 0, usage.completion_tokens or 0)


NOBODY = Candidate("", "", "", "", UNKNOWN)


def answered(model: str, text: str, prompt: int, completion: int, **details: Any) -> httpx.Response:
    """A chat completion."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return httpx.Response(200, json={"id": "x", "model": model, "choices": choices, "usage": usage})


_OPERATIONS: Mapping[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


def value(expression: str) -> float | None:
    """The value of a sum, a product and so on; None if it is something else."""

    def of(node: ast.AST) -> float:
        match node:
            case ast.BinOp(left, op, right) if type(op) in _OPERATIONS:
                return float(_OPERATIONS[type(op)](of(left), of(right)))
            case ast.UnaryOp(ast.USub(), operand):
                return -of(operand)
            case ast.Constant(int() | float() as number):
                return float(number)
        raise ValueError

    try:
        return of(ast.parse(expression.replace(",", "").replace("$", "").strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError):
        return None


def wrong_arithmetic(response: LLMResponse) -> str | None:
    """Why the answer is rejected: a calculation in it is wrong, or its result is missing."""
    for left, right in re.findall(r"<<([^<>=]+)=([^<>=]+)>>", response.content):
        one, other = value(left), value(right)
        if one is None or other is None or abs(one - other) > 0.01:
            return f"{left} is not {right}"
    return None if re.search(r"####\s*-?[\d,.$]+", response.content) else "there is no result"


def routing() -> str | None:
    """The strategies on the real test set, as a table; None where it is missing."""
    if not ROUTING.exists():
        return None
    with gzip.open(ROUTING, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    is_right = {
        row["prompt"]: {CHEAP: row["cheap_correct"] == "1", EXPENSIVE: row["dear_correct"] == "1"} for row in rows
    }
    configs = {
        name: ModelConfig(
            name=name,
            provider="openai",
            litellm_model=f"openai/{name}",
            cost_per_1k_input_tokens=Decimal(into),
            cost_per_1k_output_tokens=Decimal(out),
        )
        for name, (into, out) in PRICES.items()
    }
    client = LLMClient(configs, transport=Recorded(rows))

    def ask(name: str, models: Sequence[str], check: Callable[[str], FallbackOn | None]) -> Result:
        usd, right, rejected = 0.0, 0, 0
        for row in rows:
            question = row["prompt"]
            response = client.chat_completion(
                [{"role": "user", "content": question}], models[0], models[1:], fallback_on=check(question)
            )
            usd += response.cost
            right += is_right[question][response.model]
            rejected += len(response.metadata["attempts"]) > 1
        return Result(name, usd, right / len(rows), rejected / len(rows))

    def of_cheap(check: FallbackOn) -> FallbackOn:
        return lambda response: response.model == CHEAP and check(response)

    results = [
        ask("always the expensive model", [EXPENSIVE], lambda _: None),
        ask("always the cheap model", [CHEAP], lambda _: None),
        ask("`fallback_on`, checking the arithmetic", [CHEAP, EXPENSIVE], lambda _: of_cheap(wrong_arithmetic)),
        ask(
            "limit: a check that finds every wrong answer",
            [CHEAP, EXPENSIVE],
            lambda question: of_cheap(lambda response: not is_right[question][response.model]),
        ),
    ]
    PICTURE.write_text(picture(results), encoding="utf-8")
    return table(results)


def picture(results: Sequence[Result]) -> str:
    """The results as an SVG: the bill to the right, the share of right answers upwards."""
    most = max(result.usd for result in results)
    marks = []
    for result in results:
        x, y = 70 + 560 * result.usd / most, 330 - 300 * (result.right - 0.5) / 0.5
        shift, anchor = (-10, "end") if x > 400 else (10, "start")
        label = f"{result.name.replace('`', '')}: ${result.usd:.2f}, {result.right:.1%} right"
        marks.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="6" fill="#1f6feb"/>')
        marks.append(f'<text x="{x + shift:.0f}" y="{y - 10:.0f}" text-anchor="{anchor}">{label}</text>')
    ticks = [f'<text x="60" y="{334 - 60 * i}" text-anchor="end">{50 + 10 * i}%</text>' for i in range(6)]
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 380" font-family="sans-serif" font-size="13">',
            '<rect width="700" height="380" fill="white"/>',
            '<path d="M70 30V330H640" fill="none" stroke="#555"/>',
            *ticks,
            '<text x="355" y="362" text-anchor="middle">bill for 1,319 questions, from $0 on</text>',
            '<text x="70" y="20">answers that are right</text>',
            *marks,
            "</svg>\n",
        ]
    )


# The simulated day: see benchmarks/simulated_day.py.

MODELS = {"small": "openai/gpt-6-luna", "medium": "anthropic/claude-sonnet-5-5", "large": "openai/gpt-5.5"}
SIZES = {model: size for size, model in MODELS.items()}
START = datetime(2026, 11, 28, tzinfo=UTC)
# Four characters are a token, for the stand-ins of the providers.
WORD = "abc "


def simulated_day() -> str:
    """The strategies on the simulated day, as a table."""
    all_models = list(MODELS.values())
    return table(
        [
            day("all premium", model=MODELS["large"], fallback_models=[]),
            day("the guide's tiered fallback (on failures)", model=MODELS["small"], fallback_models=all_models[1:]),
            day("`auto`, with checks in code", checks=True, model="auto", fallback_models=all_models),
            day(
                "`auto`, with checks, caching and flex", checks=True, flex=True, model="auto",
                fallback_models=all_models, prompt_cache="auto",
            ),
        ]
    )  # fmt: skip


def day(name: str, *, checks: bool = False, flex: bool = False, **params: Any) -> Result:
    """One strategy on the whole day, with a ledger of its own."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AGENTSWARM_DATABASE_URL"] = f"sqlite:///{Path(folder) / 'ledger.sqlite3'}"
        client = LLMClient(transport=CachingProviders(answer=_answer))
        talks: dict[int, list[dict[str, Any]]] = {}
        usd, right, rejected, answers = 0.0, 0, 0, 0
        for number, each in enumerate(REQUESTS_OF_THE_DAY):
            messages = talks.setdefault(each.conversation, _beginning(each))
            messages.append({"role": "user", "content": f"#{number} {WORD * each.own}"})
            more: dict[str, Any] = {"fallback_on": _check(each)} if checks and each.kind.checkable else {}
            more |= {"service_tier": "flex"} if flex and each.kind.can_wait else {}
            with (
                time_machine.travel(START + timedelta(seconds=each.second), tick=False),
                scope(agent=each.kind.name, conversation=str(each.conversation)),
            ):
                response, cost, tried = _ask(client, messages, {**params, **more})
            messages.append({"role": "assistant", "content": response.content})
            usd, right = usd + cost, right + each.is_right(SIZES[response.model])
            answers, rejected = answers + tried, rejected + tried - 1
    return Result(name, usd, right / len(REQUESTS_OF_THE_DAY), rejected / answers)


REQUESTS_OF_THE_DAY = requests()


def _ask(client: LLMClient, messages: Any, params: dict[str, Any]) -> tuple[LLMResponse, float, int]:
    """The answer, what the call cost, and how many models answered; if all are rejected, the last one's answer."""
    try:
        response = client.chat_completion(messages, **params)
    except AllModelsFailed as error:
        answers = [each.response for each in error.failures if isinstance(each, ResponseRejected)]
        last = answers[-1]
        if last is None:
            raise
        return last, error.cost, len(answers)
    return response, response.cost, len(response.metadata["attempts"])


def _beginning(each: SimulatedRequest) -> list[dict[str, Any]]:
    return [{"role": "system", "content": f"You {each.kind.name}. {WORD * each.kind.fixed}"}]


def _check(each: SimulatedRequest) -> FallbackOn:
    return lambda response: not each.is_accepted(SIZES[response.model])


def _answer(body: dict[str, Any]) -> str:
    """An answer as long as the request's, by the number in its last message."""
    content = body["messages"][-1]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    return WORD * REQUESTS_OF_THE_DAY[int(text[1:].split(" ", 1)[0])].output


def main() -> int:
    """Print the tables."""
    for provider in ("OPENAI", "ANTHROPIC"):
        os.environ[f"{provider}_API_KEY"] = "sk-test-0123456789"
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    print(f"{today}: simulated day of {len(REQUESTS_OF_THE_DAY):,} requests; {', '.join(MODELS.values())}\n")
    print(simulated_day())
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AGENTSWARM_DATABASE_URL"] = f"sqlite:///{Path(folder) / 'ledger.sqlite3'}"
        print(f"\n{today}: 1,319 questions of GSM8K, real answers of {CHEAP} and {EXPENSIVE}\n")
        print(routing() or "Skipped: the answers (../shared/routing) are not here.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
