"""Text from a model, streamed to the terminal."""

from __future__ import annotations

import sys
from itertools import chain
from typing import Annotated

import typer

from shared.cli.console import AsJson, err, print_json, write
from shared.errors import InvalidRequest
from shared.reports import printable


def text(
    prompt: Annotated[str, typer.Argument(help="Prompt; - reads it from standard input.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model to use; by default the one from the settings.")
    ] = None,
    fallback: Annotated[
        list[str] | None, typer.Option("--fallback", "-f", help="Model to try next; may be repeated.")
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", "-s", help="System prompt: role and rules for the model.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature, 0 to 2.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Maximum tokens of the answer.")] = None,
    as_json: AsJson = False,
) -> None:
    """Generate text, streamed to the terminal; the cost goes to standard error."""
    from shared.llm_client import get_llm_client

    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": _standard_input() if prompt == "-" else prompt})
    with err.status("Asking the model ..."):
        stream = get_llm_client().chat_completion(
            messages, model, fallback or None, temperature, max_tokens, stream=True
        )
        first = next(stream, "")
    with stream:
        for chunk in chain([first], stream):
            if not as_json:
                write(chunk)
    response = stream.response
    if response is None:
        return
    if as_json:
        print_json(response)
        return
    write("" if response.content.endswith("\n") else "\n")
    tokens = response.usage.get("total_tokens")
    cost = "unknown cost" if response.cost != response.cost else f"${response.cost:.6f}"
    model = printable(f"{response.model} ({response.provider})")
    err.print(f"{model}, {'?' if tokens is None else tokens} token{'' if tokens == 1 else 's'}, {cost}")


def _standard_input() -> str:
    """
    The prompt from standard input.

    Raises:
        InvalidRequest: It is not text in the encoding of standard input.
    """
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise InvalidRequest(f"Standard input is not {sys.stdin.encoding} text", hint="Convert it first.") from None
