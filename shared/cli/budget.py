"""Budgets stored in the ledger, for every program that uses it."""

from __future__ import annotations

from typing import Annotated, cast

import typer

from shared.analytics import all_budgets, remove_budget, set_budget
from shared.budget import Budget, Window
from shared.cli.console import AsJson, err, out, print_json
from shared.cli.tables import print_wrapped
from shared.reports import budget_line, printable

budget = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@budget.command(name="set")
def set_command(
    limit_usd: Annotated[float, typer.Argument(help="US$.")],
    name: Annotated[str, typer.Option(help="Name of the budget; replaces one of the same name.")] = "default",
    window: Annotated[str, typer.Option(help="run, hour, day, month or total.")] = "month",
    scope: Annotated[str, typer.Option(help="global, agent, tool, run, or a label such as customer.")] = "global",
    tz: Annotated[str | None, typer.Option(help="Time zone of days and months; UTC by default.")] = None,
    warn_at: Annotated[float, typer.Option(help="Fraction of the limit at which to warn.")] = 0.8,
    downgrade: Annotated[
        bool, typer.Option("--downgrade", help="Try the next model that fits instead of refusing.")
    ] = False,
    allow_unknown: Annotated[
        bool, typer.Option("--allow-unknown", help="Allow models with an unknown price, without counting their cost.")
    ] = False,
) -> None:
    """Store a budget in the ledger; it takes effect at once."""
    declared = Budget(
        limit_usd,
        cast("Window", window),
        scope,
        tz,
        warn_at,
        "downgrade" if downgrade else "refuse",
        "allow" if allow_unknown else "refuse",
    )
    set_budget(name, declared)
    out.print(f"Budget {printable(name)}: {declared}.")


@budget.command()
def show(as_json: AsJson = False) -> None:
    """Show every budget: what is left for each group that it counts, and how long that lasts."""
    found = all_budgets()
    if as_json:
        print_json(found)
        return
    for each in found:
        print_wrapped(printable(f"{each['name']}: {budget_line(each)}"))
    if not found:
        out.print("No budget is set. Set one with: agentswarm-tools budget set 10")


@budget.command()
def remove(name: Annotated[str, typer.Argument(help="The budget's name.")] = "default") -> None:
    """Remove a budget from the ledger."""
    if not remove_budget(name):
        err.print(f"Error: there is no budget {printable(name)}.")
        raise typer.Exit(1)
    out.print(f"Budget {printable(name)} removed.")
