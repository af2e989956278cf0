"""The command line: its commands, and errors as one sentence."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from shared.cli.console import accept_any_text, err, out, printable_lines
from shared.errors import LLMError
from shared.reports import printable

# Every command: what the list of commands says of it, and its module if that has another name.
_COMMANDS = {
    "text": ("Generate text, also about images.", ""),
    "estimate": ("Estimate what a prompt would cost.", "compare"),
    "compare": ("Ask several models, and compare answers.", ""),
    "report": ("Report what was spent, from the whole ledger.", ""),
    "models": ("List models, abilities and prices.", ""),
    "doctor": ("Check keys, extras, store and settings.", ""),
    "images": ("Make images, and list those made so far with what they cost.", ""),
    "calls": ("Single calls, with their attempts, and why each costs what it costs.", ""),
    "budget": ("Budgets stored in the ledger, for every program that uses it.", ""),
    "ledger": ("Look after the ledger: corrections, closed months, old records, checks, backup.", ""),
    "reconcile": ("Compare the ledger with a provider's bill, by day and model.", ""),
    "prices": ("Prices of models, and what another price table would change.", ""),
    "local": ("The tiny local model, for trials and tests without a key.", ""),
}


class _Commands(TyperGroup):
    """Imports a command's module when that command is used: each needs other parts of the product, which are slow."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in _COMMANDS:
            self.commands[args[0]] = command(args[0])
        return super().resolve_command(ctx, args)


def command(name: str) -> Any:
    """A command, or a group of them, as click has it."""
    summary, module = _COMMANDS[name]
    found = getattr(import_module(f"{__package__}.{module or name}"), name)
    only = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    if isinstance(found, typer.Typer):
        only.add_typer(found, name=name, help=summary)
    else:
        only.command(name)(found)  # its own help says more
    return typer.main.get_group(only).commands[name]


app = typer.Typer(
    name="agentswarm-tools", cls=_Commands, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)
for _name, (_summary, _) in _COMMANDS.items():
    app.command(_name, help=_summary)(lambda: None)


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
    import tomllib  # only this needs them, and every command would load them
    from importlib import metadata

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
