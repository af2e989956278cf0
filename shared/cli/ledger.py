"""Look after the ledger: check, repair, back up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shared.cli.console import err, out
from shared.config import database_url, load_settings
from shared.ledger import Ledger, back_up, get_ledger, problems, repair
from shared.reports import printable

ledger = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


def _ledger() -> Ledger:
    return get_ledger(database_url(load_settings()))


@ledger.command()
def check() -> None:
    """Check the file, the sums, the clocks and what waits; exit with code 1 if there is a problem."""
    with err.status("Checking ..."):
        found = list(problems(_ledger()))
    for each in found:
        out.print(f"FAIL  {printable(each)}")
    if found:
        raise typer.Exit(1)
    out.print(f"The ledger {printable(_ledger().name)} is in order.")


@ledger.command(name="repair")
def repair_command() -> None:
    """Enter what waits, date records from a clock that was ahead to now, and compute all sums anew."""
    with err.status("Repairing ..."):
        done = repair(_ledger())
    for each in done:
        out.print(f"{printable(each[0].upper() + each[1:])}.")


@ledger.command()
def backup(path: Annotated[Path, typer.Argument(help="A new file.")]) -> None:
    """Copy a SQLite ledger to one file, while calls go on; its file alone may lack the newest records."""
    with err.status("Copying ..."):
        back_up(_ledger(), path)
    out.print(f"The ledger was copied to {printable(str(path))}.")
