"""The command line's output streams: any terminal, any encoding; and the --json option that every listing has."""

from __future__ import annotations

import io
import json
import re
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from shared.errors import InvalidRequest
from shared.internal.serialize import to_json
from shared.reports import printable

out = Console(highlight=False, soft_wrap=True, markup=False)

err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

Yes = Annotated[bool, typer.Option("--yes", help="Do it without asking.")]

# What a terminal obeys instead of showing it: control codes but for tab and newline, and marks that reorder a text.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NOT_ASCII = re.compile("[^\x00-\x7e]")


def accept_any_text() -> None:
    """Let the standard streams write a "?" for what their encoding lacks, rather than fail: the text was paid for."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def confirm(question: str, *, yes: bool) -> bool:
    """
    Ask on a terminal whether to do what cannot be undone; `yes` is the answer that was given with the command.

    Raises:
        InvalidRequest: There is no terminal to ask on.
    """
    if yes or (sys.stdin.isatty() and out.is_terminal):
        return yes or typer.confirm(question)
    raise InvalidRequest("This cannot be undone", hint="Add --yes to do it, or --dry-run to see what it would do.")


def printable_lines(message: str) -> str:
    """A message of several lines, without characters that move the cursor."""
    return "\n".join(printable(line) for line in message.split("\n"))


def write(text: str) -> None:
    """Write a model's text at once and as it is (tabs too), but for what a terminal would obey."""
    out.file.write(_OBEYED.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r", "")))
    out.file.flush()


def print_json(value: Any) -> None:
    """Print JSON; what the stream cannot write, or a terminal would obey, is escaped, and stays the same data."""
    escaped = _OBEYED if out.encoding.lower().startswith("utf") else _NOT_ASCII
    out.out(escaped.sub(lambda found: json.dumps(found[0])[1:-1], to_json(value, indent=2)))
