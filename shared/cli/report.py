"""The cost report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from shared.analytics import get_llm_costs
from shared.cli.console import AsJson, out, print_json
from shared.cli.tables import print_wrapped
from shared.reports import (
    budget_line,
    footer,
    group_cost,
    known_cost,
    notes,
    period,
    printable,
    provider_costs,
    render,
    usd,
)


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
        print_json(costs)
    elif out.is_terminal:
        _print_report(costs)
    else:
        out.out(render(costs, "text"))


def _print_report(costs: dict[str, Any]) -> None:
    table = Table(title=f"LLM costs ({period(costs)})", title_justify="left", show_footer=True)
    total = {"calls": costs["total_calls"], "tokens": costs["total_tokens"], "cost": known_cost(costs)}
    heads = ["Calls", "Tokens", "Cost"] + ["Unknown"] * bool(costs["unknown_cost_requests"])
    table.add_column(costs["by"].capitalize(), "Total", overflow="fold")
    for head, cell in zip(heads, _figures(costs | total), strict=False):
        table.add_column(head, cell, justify="right")
    for group in costs["groups"]:
        table.add_row(printable(group["name"]), *_figures(group)[: len(heads)])
    out.print(table)
    print_wrapped(f"Average cost per call: {usd(costs['avg_cost_per_call'])}")
    if costs["by"] != "provider" and costs["cost_by_provider"]:
        named = (f"{printable(name)} {cost}" for name, cost in provider_costs(costs).items())
        print_wrapped(f"Cost by provider: {', '.join(named)}")
    for each in notes(costs):
        print_wrapped(each)
    for each in costs["budgets"]:
        print_wrapped(printable(budget_line(each)))
    for line in footer(costs).splitlines():
        print_wrapped(line)


def _figures(group: Mapping[str, Any]) -> list[str]:
    """The cells of a group: its calls, tokens and cost, and how many requests have an unknown cost."""
    return [f"{group['calls']:,}", f"{group['tokens']:,}", group_cost(group), f"{group['unknown_cost_requests']:,}"]
