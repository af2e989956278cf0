"""What a prompt would cost, and what several models make of it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from shared.cli.completion import complete_model
from shared.cli.console import AsJson, err, out, print_json, printable_lines
from shared.cli.tables import print_names, print_wrapped
from shared.cli.text import MaxTokens, Prompt, System, cost_text, messages_of
from shared.errors import AllModelsFailed, AuthenticationError, LLMError
from shared.types import Estimate, LLMResponse

_AT_ONCE = 8

Models = Annotated[
    list[str] | None,
    typer.Option("--model", "-m", help="Model; may be repeated.", autocompletion=complete_model),
]


def estimate(
    prompt: Prompt, model: Models = None, system: System = None, max_tokens: MaxTokens = None, as_json: AsJson = False
) -> None:
    """
    Estimate what a prompt would cost.

    Nothing is sent, and no key is needed.
    """
    messages = messages_of(prompt, system)
    found: list[Estimate] = []
    failures: list[LLMError] = []
    names: Sequence[str | None] = model or [None]
    for name in names:
        try:
            found += _estimates(messages, name, max_tokens)
        except LLMError as error:
            if len(names) == 1:
                raise
            failures.append(error)
    if as_json:
        print_json(found)
    elif found:
        rows = [(each.model, _count(each.prompt_tokens), _usd(each.expected), _usd(each.upper_bound)) for each in found]
        print_names(("Model", "Input tokens", "Expected", "At most"), rows)
        print_wrapped(
            "Expected: an answer as long as this model's were on average in the last 30 days; unknown if it gave none."
        )
    for failure in failures:
        err.print(f"Error: {printable_lines(str(failure))}")
    if not found:
        raise typer.Exit(1)


def _estimates(messages: list[dict[str, Any]], name: str | None, max_tokens: int | None) -> list[Estimate]:
    """What a model and its fallbacks would cost, with their keys or without."""
    from shared.llm_client import get_llm_client

    client, fallback_models = get_llm_client(), None if name is None else ()
    try:
        return client.estimate(messages, name, fallback_models, max_tokens)
    except (AuthenticationError, AllModelsFailed):
        # A key is looked for, but nothing is sent with it.
        return client.estimate(messages, name, fallback_models, max_tokens, api_key="none")


def compare(
    prompt: Prompt,
    model: Annotated[
        list[str], typer.Option("--model", "-m", help="Model; repeat it for each.", autocompletion=complete_model)
    ],
    system: System = None,
    max_tokens: MaxTokens = None,
    as_json: AsJson = False,
) -> None:
    """
    Ask several models, and compare answers.

    Costs, tokens and seconds stand below them. Each answer is paid for.
    """
    names = list(dict.fromkeys(model))
    answers = asyncio.run(_ask_all(messages_of(prompt, system), names, max_tokens))
    rows = [_row(name, answers[name]) for name in names]
    if as_json:
        print_json(rows)
    else:
        _print(rows)
    if all(row["error"] for row in rows):
        raise typer.Exit(1)


async def _ask_all(
    messages: list[dict[str, Any]], names: Sequence[str], max_tokens: int | None
) -> dict[str, LLMResponse | LLMError]:
    """Each model's answer, or its error; Ctrl-C cancels those that are under way, and their rows are settled."""
    from shared.llm_client import get_llm_client

    client = get_llm_client()
    answers: dict[str, LLMResponse | LLMError] = {}
    slots = asyncio.Semaphore(_AT_ONCE)

    async def ask(name: str) -> None:
        async with slots:
            try:
                answers[name] = await client.achat_completion(messages, name, [], None, max_tokens)
            except LLMError as error:
                answers[name] = error
        status.update(f"{len(answers)} of {len(names)} models have answered ...")

    with err.status(f"Asking {len(names)} models ...") as status:
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(ask(name))
    return answers


def _row(name: str, answer: LLMResponse | LLMError) -> dict[str, Any]:
    if isinstance(answer, LLMError):
        return {
            "model": name,
            "answer": None,
            "error": str(answer),
            "cost": answer.cost,
            "tokens": None,
            "seconds": None,
        }
    return {
        "model": answer.model,
        "answer": answer.content,
        "error": None,
        "cost": answer.cost,
        "tokens": answer.usage.get("total_tokens"),
        "seconds": round(answer.latency_ms / 1000, 2),
    }


def _print(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        out.print(f"— {row['model']}")
        out.print(printable_lines(row["answer"] if row["error"] is None else f"Error: {row['error']}").rstrip())
        out.print("")
    known = sum(row["cost"] for row in rows if not math.isnan(row["cost"]))
    cells = [
        (
            row["model"],
            cost_text(row["cost"]).removesuffix(" cost"),
            "" if row["error"] else _count(row["tokens"]),
            "" if row["seconds"] is None else f"{row['seconds']:.2f}",
        )
        for row in rows
    ]
    print_names(("Model", "Cost", "Tokens", "Seconds"), cells)
    unknown = sum(math.isnan(row["cost"]) for row in rows)
    plus = f", plus {unknown} request{'s' if unknown != 1 else ''} of unknown cost" if unknown else ""
    print_wrapped(f"Together ${known:.6f}{plus}.")


def _count(tokens: int | None) -> str:
    return "unknown" if tokens is None else f"{tokens:,}"


def _usd(usd: float) -> str:
    return cost_text(usd).removesuffix(" cost")
