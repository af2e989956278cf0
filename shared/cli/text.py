"""Text from a model, streamed to the terminal."""

from __future__ import annotations

import math
import sys
from itertools import chain
from typing import Annotated, Any

import typer

from shared.cli.completion import complete_model
from shared.cli.console import AsJson, err, print_json, write
from shared.errors import InvalidRequest
from shared.reports import counted, printable
from shared.types import LLMResponse

Prompt = Annotated[str, typer.Argument(help="Prompt; - reads it from standard input.")]
System = Annotated[str | None, typer.Option("--system", "-s", help="System prompt: role and rules for the model.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Maximum tokens of the answer.")]


def text(
    prompt: Prompt,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Model to use; by default the one from the settings.",
            autocompletion=complete_model,
        ),
    ] = None,
    fallback: Annotated[
        list[str] | None,
        typer.Option("--fallback", "-f", help="Model to try next; may be repeated.", autocompletion=complete_model),
    ] = None,
    system: System = None,
    attach: Annotated[
        list[str] | None, typer.Option("--attach", "-a", help="Image to look at: a file or URL; may be repeated.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="Sampling temperature, 0 to 2.")] = None,
    max_tokens: MaxTokens = None,
    as_json: AsJson = False,
) -> None:
    """
    Generate text, also about images.

    It is streamed to the terminal; the cost goes to standard error.
    """
    messages = messages_of(prompt, system)
    if attach:
        response: LLMResponse | None = _look(messages, attach, model, fallback, temperature, max_tokens)
        if not as_json and response is not None:
            write(response.content)
    else:
        response = _stream(messages, model, fallback, temperature, max_tokens, silent=as_json)
    if response is None:
        return
    if as_json:
        print_json(response)
        return
    write("" if response.content.endswith("\n") else "\n")
    err.print(summary(response))


def messages_of(prompt: str, system: str | None) -> list[dict[str, Any]]:
    """The conversation that asks for a prompt; "-" reads it from standard input."""
    messages = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": _standard_input() if prompt == "-" else prompt}]


def summary(response: LLMResponse) -> str:
    """Which model answered, and what it used and cost, in a line."""
    tokens = response.usage.get("total_tokens")
    used = "tokens unknown" if tokens is None else counted(tokens, "token")
    return f"{printable(f'{response.model} ({response.provider})')}, {used}, {cost_text(response.cost)}"


def cost_text(usd: float) -> str:
    """US$, or that the cost is unknown."""
    return "unknown cost" if math.isnan(usd) else f"${usd:.6f}"


def _look(
    messages: list[dict[str, Any]],
    pictures: list[str],
    model: str | None,
    fallback: list[str] | None,
    temperature: float | None,
    max_tokens: int | None,
) -> LLMResponse:
    from shared.llm_client import get_llm_client

    given: dict[str, Any] = {} if temperature is None else {"temperature": temperature}
    with err.status("Asking the model ..."):
        return get_llm_client().vision_completion(messages, pictures, model, fallback or None, max_tokens, **given)


def _stream(
    messages: list[dict[str, Any]],
    model: str | None,
    fallback: list[str] | None,
    temperature: float | None,
    max_tokens: int | None,
    *,
    silent: bool,
) -> LLMResponse | None:
    from shared.llm_client import get_llm_client

    with err.status("Asking the model ..."):
        stream = get_llm_client().chat_completion(
            messages, model, fallback or None, temperature, max_tokens, stream=True
        )
        first = next(stream, "")
    with stream:
        for chunk in chain([first], stream):
            if not silent:
                write(chunk)
    return stream.response


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
