"""Budgets stored in the ledger, for every program that uses it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand

from shared.analytics import (
    all_budgets,
    budgets_of,
    deliver_alerts,
    forecast_costs,
    get_llm_costs,
    remove_budget,
    set_budget,
    zone,
)
from shared.budget import Budget, Window
from shared.cli.console import AsJson, err, out, print_json
from shared.cli.report import Where, conditions
from shared.cli.tables import print_wrapped
from shared.errors import InvalidRequest
from shared.reports import budget_line, printable, runs_out, total_cost, usd

_LONGEST = 60  # characters of a budget's name

_NEGATIVE_NUMBER = re.compile(r"-\.?\d.*")


class _Set(TyperCommand):
    """A negative limit is refused as one: click takes `-5` for an option that there is not."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with_value = {name for each in self.params if not getattr(each, "is_flag", True) for name in each.opts}
        for before, each in pairwise(["", *args]):
            if _NEGATIVE_NUMBER.fullmatch(each) and before not in with_value:
                raise _negative_limit()
        return super().parse_args(ctx, args)


def _negative_limit() -> InvalidRequest:
    return InvalidRequest("A limit cannot be negative", hint="Give 0 to stop everything that is not free.")


budget = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@budget.command(name="set", cls=_Set)
def set_command(
    limit_usd: Annotated[float, typer.Argument(help="US$; 0 stops everything that is not free.")],
    name: Annotated[
        str | None,
        typer.Option(help="Name of the budget; replaces one of the same name. By default default, or that of --where."),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(help="Only this one, such as customer=acme, instead of one for each with the same window."),
    ] = None,
    window: Annotated[str, typer.Option(help="run, hour, day, month or total.")] = "month",
    scope: Annotated[
        str | None, typer.Option(help="global (default), agent, tool, run, or a label such as customer.")
    ] = None,
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
    if limit_usd < 0:
        raise _negative_limit()
    if where is not None and scope is not None:
        raise InvalidRequest("--where says already what the budget is for", hint="Leave --scope out.")
    [(scope, value)] = conditions([where]).items() if where is not None else [(scope or "global", None)]
    if value is not None and name is None and len(where or "") > _LONGEST:
        raise InvalidRequest("This budget needs a name", hint="Give --name acme.")
    name = name or where or "default"
    declared = Budget(
        limit_usd,
        cast("Window", window),
        scope,
        tz,
        warn_at,
        "downgrade" if downgrade else "refuse",
        "allow" if allow_unknown else "refuse",
        value,
    )
    set_budget(name, declared)
    out.print(printable(f"Budget {name}: {declared}."))


@budget.command()
def show(where: Where = None, as_json: AsJson = False) -> None:
    """Show every budget: what is left for each group that it counts, how long that lasts, and when it runs out."""
    found = budgets_of(conditions(where)) if where else all_budgets()
    now = datetime.now(zone())
    for each in found:
        when = runs_out(each, now)
        each["runs_out"] = None if when is None else when.isoformat(timespec="seconds")
    if as_json:
        print_json(found)
        return
    for each in found:
        print_wrapped(printable(f"{each['name']}: " if "name" in each else "") + printable(budget_line(each)))
    if not found:
        out.print("No budget is set. Set one with: agentswarm-tools budget set 10")


@budget.command()
def check(
    limit: Annotated[
        float | None, typer.Option(min=0, help="US$; without it, the budgets, each at the fraction where it warns.")
    ] = None,
    since: Annotated[str, typer.Option(help="First day, period or time, as for report.")] = "1d",
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """
    Exit with code 1 if more was spent than a limit, or a budget has little left; for cron.

    Alerts that are due are sent to the webhook of AGENTSWARM_ALERT_URL.
    """
    alerts = deliver_alerts()
    if limit is None:
        found = budgets_of(conditions(where)) if where else all_budgets()
        over = [each for each in found if each["used"] >= each["limit"] * each["warn_at"] and each["used"] > 0]
        if as_json:
            print_json({"ok": not over, "budgets": over, "alerts": alerts})
        for each in [] if as_json else over:
            print_wrapped(printable(budget_line(each)))
    else:
        costs = get_llm_costs(since=since, where=conditions(where))
        # What is not known may well be over the limit, which a total of known costs must not hide.
        over = [costs] if costs["total_cost"] > limit else []
        names = (
            "total_cost",
            "total_cost_nano",
            "unknown_cost_requests",
            "cost_is_lower_bound",
            "is_incomplete",
            "since",
            "until",
        )
        if as_json:
            print_json({"ok": not over, "limit": limit, **{name: costs[name] for name in names}, "alerts": alerts})
        else:
            removed = ", without records that were removed" if costs["is_incomplete"] else ""
            print_wrapped(f"{total_cost(costs)} since {costs['since']}{removed}; the limit is {usd(limit)}.")
    if not as_json:
        _print_alerts(alerts)
    if over:
        raise typer.Exit(1)
    if limit is None and not as_json:
        out.print("Every budget has enough left.")


def _print_alerts(alerts: Sequence[Mapping[str, Any]]) -> None:
    for each in alerts:
        if each["delivered"]:
            print_wrapped(printable(f"Alert sent: {each['text']}"))
        else:
            err.print(f"Alert not delivered ({printable(each['problem'])}): {printable(each['text'])}")


@budget.command()
def forecast(where: Where = None, as_json: AsJson = False) -> None:
    """Say what this month will cost at its end at the present rate, with its range."""
    found = forecast_costs(conditions(where))
    if as_json:
        print_json(found)
    elif found is None:
        out.print("There is no forecast yet: it needs three complete days.")
    else:
        print_wrapped(
            f"About {usd(found['expected'])} until {found['until'][:10]}, and in 8 cases of 10 {usd(found['low'])} to "
            f"{usd(found['high'])}, at the mean rate of the last {found['days']} days. {usd(found['spent'])} is spent."
        )


@budget.command()
def remove(name: Annotated[str, typer.Argument(help="The budget's name.")] = "default") -> None:
    """Remove a budget from the ledger."""
    if not remove_budget(name):
        err.print(f"Error: there is no budget {printable(name)}.")
        raise typer.Exit(1)
    out.print(f"Budget {printable(name)} removed.")
