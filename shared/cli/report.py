"""The cost report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import typer

from shared.analytics import costs_page, get_llm_costs, zone
from shared.cli.completion import complete_group
from shared.cli.console import AsJson, err, out, print_json
from shared.cli.tables import print_wrapped
from shared.errors import InvalidRequest
from shared.reports import (
    budget_line,
    csv_text,
    footer,
    known_cost,
    markdown,
    notes,
    period_text,
    printable,
    provider_costs,
    removed_note,
    render,
    table_of,
    usd,
)

Format = Literal["table", "json", "csv", "markdown", "html"]
# How far back a report goes by default: enough periods to compare.
_DAYS = {"hour": 1.0, "hourly": 1.0, "week": 56.0, "weekly": 56.0, "month": 366.0, "monthly": 366.0}
_UNKNOWN = "yellow"

Where = Annotated[
    list[str] | None,
    typer.Option(help="Only of this label, agent, model, tool or provider: customer=acme; may be repeated."),
]


def report(
    short: Annotated[
        str | None, typer.Argument(metavar="[hourly|daily|weekly|monthly]", help="Short for --by hour, day, ...")
    ] = None,
    days: Annotated[
        float | None,
        typer.Option(help="Days to look back (periods of 24 hours); by default 7, and more by week or month."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="First day, period or time: yesterday, 7d, 2026-11-01, 2026-W48, 2026-11.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Last day or period (inclusive) or time (exclusive).")] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="model (default), provider, tool, agent, hour, day, week, month, or a label; two as customer,model.",
            autocompletion=complete_group,
        ),
    ] = None,
    where: Where = None,
    tz: Annotated[str | None, typer.Option(help="Time zone for days, such as Europe/Berlin.")] = None,
    form: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="By default a table on a terminal, else the guide's lines; html is a page, by default of this month.",
        ),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Show all decimals of US$ in the table.")] = False,
    as_json: AsJson = False,
) -> None:
    """
    Report what was spent, from the whole ledger.

    It is compared with the period before: as many months, days or hours.
    """
    if short is not None and by is not None:
        raise InvalidRequest(f"--by {by[:40]} and {short[:40]} say both how to group", hint="Leave one of them out.")
    by = short or by or "model"
    is_given = days is not None
    days = _DAYS.get(by.partition(",")[0], 7) if days is None else days
    if form == "html" and not as_json:
        if since is None and until is None and not is_given:
            since = f"{datetime.now(zone(tz)):%Y-%m}"
        out.out(costs_page(days, since=since, until=until, tz=tz, where=conditions(where)), end="")
        return
    costs = get_llm_costs(days, since=since, until=until, tz=tz, by=by, where=conditions(where), compare=True)
    match "json" if as_json else form or ("table" if out.is_terminal else None):
        case "json":
            print_json(costs)
        case "csv":
            if removed := removed_note(costs):
                err.print(f"{removed}.")
            out.out(csv_text(costs), end="")
        case "markdown":
            heads, rows, total = table_of(costs, exact=exact)
            out.out(markdown(costs, heads, [*rows, total]))
        case "table":
            _print_report(costs, exact=exact)
        case _:
            out.out(render(costs, "text"))


def conditions(where: Sequence[str] | None) -> dict[str, str]:
    """
    The values by name in texts such as "customer=acme".

    Raises:
        InvalidRequest: A text has another form, or a name is given twice.
    """
    found: dict[str, str] = {}
    for text in where or ():
        name, equals, value = text.partition("=")
        if not (name and equals and value) or name in found:
            raise InvalidRequest(f"--where {text[:60]!r} is not one condition", hint="Give --where customer=acme.")
        found[name] = value
    return found


def _print_report(costs: Mapping[str, Any], *, exact: bool = False) -> None:
    from rich.table import Table  # scripts have no use for it

    heads, rows, total = table_of(costs, exact=exact, width=out.width - 2, gap=2)
    names = len(costs["by"].split(","))
    table = Table(
        title=f"LLM costs ({period_text(costs)})",
        title_justify="left",
        show_footer=True,
        box=None,
        padding=(0, 2, 0, 0),
        header_style="bold",
        footer_style="bold",
    )
    for place, (head, end) in enumerate(zip(heads, total, strict=True)):
        if place < names:
            table.add_column(head, end, overflow="fold")
        else:
            style = _UNKNOWN if head == "Unknown" else None
            table.add_column(head, end, justify="right", no_wrap=True, style=style)
    for row in rows:
        table.add_row(*row)
    out.print(table)
    print_wrapped(f"Average cost per call: {usd(costs['avg_cost_per_call'])}")
    if costs["by"] != "provider" and costs["cost_by_provider"]:
        named = (f"{printable(name)} {cost}" for name, cost in provider_costs(costs).items())
        print_wrapped(f"Cost by provider: {', '.join(named)}")
    for each in notes(costs):
        print_wrapped(each)
    if costs.get("previous"):
        print_wrapped(_compared(costs))
    for each in costs["budgets"]:
        print_wrapped(printable(budget_line(each)))
    for line in footer(costs).splitlines():
        print_wrapped(line)


def _compared(costs: Mapping[str, Any]) -> str:
    """The total of the period before, in words."""
    before, now = costs["previous"], known_cost(costs)
    change = f", now {now / before['cost'] - 1:+,.0%}" if before["cost"] > 0 and now == now else ""  # noqa: PLR0124
    removed = ", without records that were removed" if before["is_incomplete"] else ""
    return f"The period before ({period_text(before)}): {usd(before['cost'])}{change}{removed}"
