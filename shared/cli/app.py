"""The command line: its commands, and errors as one sentence."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from shared.cli.budget import budget
from shared.cli.calls import calls
from shared.cli.compare import compare, estimate
from shared.cli.console import accept_any_text, err, out, printable_lines
from shared.cli.doctor import doctor
from shared.cli.images import images
from shared.cli.ledger import ledger
from shared.cli.local import local
from shared.cli.models import models
from shared.cli.prices import prices
from shared.cli.report import report
from shared.cli.text import text
from shared.errors import LLMError
from shared.reports import printable

app = typer.Typer(name="agentswarm-tools", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
for command in (text, estimate, compare, report, models, doctor):
    app.command()(command)
app.add_typer(images, name="images", help="Make images, and list those made so far with what they cost.")
app.add_typer(calls, name="calls", help="Single calls, with their attempts, and why each costs what it costs.")
app.add_typer(budget, name="budget", help="Budgets stored in the ledger, for every program that uses it.")
app.add_typer(ledger, name="ledger", help="Look after the ledger: corrections, checks, repair and backup.")
app.add_typer(prices, name="prices", help="What models cost by the price table, and what another table would change.")
app.add_typer(local, name="local", help="The tiny local model, for trials and tests without a key.")


# How hints name the arguments of Python functions that are options here.
_ARGUMENT = re.compile(r"\b(days|since|until|tz|by)=")


@app.callback(invoke_without_command=True)
def main_options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Text and images from any model, and what they cost."""
    if version:
        out.print(_version())
        raise typer.Exit


def _version() -> str:
    try:
        return metadata.version("agentswarm-tools")
    except metadata.PackageNotFoundError:  # a checkout that is used without being installed
        project = Path(__file__).parents[2] / "pyproject.toml"
        return f"{tomllib.loads(project.read_text(encoding='utf-8'))['project']['version']} (checkout)"


@contextmanager
def _errors_as_text() -> Iterator[None]:
    """Print our own errors as one sentence, without a traceback, and exit with code 1."""
    try:
        yield
    except LLMError as error:
        err.print(f"Error: {_ARGUMENT.sub(r'--\1 ', printable_lines(str(error)))}")
        if error.call_id is not None:
            err.print(f"See: agentswarm-tools calls show {error.call_id}")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(0) from None
    except OSError as error:
        # Otherwise Python tries to write the rest again at exit, and prints an error of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        what = f"{error.filename} cannot be used" if error.filename else "The output cannot be written"
        err.print(f"Error: {printable(what)} ({error.strerror}).")
        raise SystemExit(1) from None


def main() -> None:
    """Entry point of `agentswarm-tools`."""
    accept_any_text()
    with _errors_as_text():
        app()
