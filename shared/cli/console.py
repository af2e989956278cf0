"""The command line's output streams, and the --json option that every listing has."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from shared.reports import printable

out = Console(highlight=False, soft_wrap=True, markup=False)

err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def printable_lines(message: str) -> str:
    """A message of several lines, without characters that move the cursor."""
    return "\n".join(printable(line) for line in message.split("\n"))
