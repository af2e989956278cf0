"""The cost report."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from shared.analytics import get_llm_costs
from shared.cli.console import AsJson, out
from shared.reports import budget_line, footer, period, printable, render, savings_text


def report(
    days: Annotated[float, typer.Option(help="Days to look back (periods of 24 hours).")] = 7,
    since: Annotated[
        str | None, typer.Option(help="First day or time, such as 2026-11-01 or 2026-11-01T12:00.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Last day (inclusive) or time (exclusive).")] = None,
    by: Annotated[str, typer.Option(help="model, provider, tool, agent, day, or a label such as customer.")] = "model",
    tz: Annotated[str | None, typer.Option(help="Time zone for days, such as Europe/Berlin.")] = None,
    as_json: AsJson = False,
) -> None:
    """Report what was spent, from the whole ledger."""
    costs = get_llm_costs(days, since=since, until=until, tz=tz, by=by)
    if as_json:
        out.out(render(costs, "json"))
    elif out.is_terminal:
        _print_report(costs)
    else:
        out.out(render(costs, "text"))


def _print_report(costs: dict[str, Any]) -> None:
    table = Table(title=f"LLM costs ({period(costs)})", title_justify="left", show_footer=True)
    totals = f"{costs['total_calls']:,}", f"{costs['total_tokens']:,}", f"${costs['total_cost']:.6f}"
    table.add_column(costs["by"].capitalize(), "Total")
    for head, total in zip(("Calls", "Tokens", "Cost"), totals, strict=True):
        table.add_column(head, total, justify="right")
    for group in costs["groups"]:
        figures = f"{group['calls']:,}", f"{group['tokens']:,}", f"${group['cost']:.6f}"
        table.add_row(printable(group["name"]), *figures)
    out.print(table)
    out.print(f"Failed calls: {costs['failed_calls']:,}. Unpriced calls: {costs['unpriced_calls']:,}.")
    for each in costs["budgets"]:
        out.print(printable(budget_line(each)))
    if costs["image_tokens_saved"]:
        tokens, usd = costs["image_tokens_saved"], costs["image_cost_saved"]
        out.print(f"Saved by scaling images: {tokens:,} tokens, ${usd:.6f}.")
    if costs["savings"]:
        out.print(f"Estimate, not in the totals: {savings_text(costs['savings'])}.")
    out.print(footer(costs))
