"""Costs as text for people, agents and other programs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from shared.internal.serialize import to_json

Format = Literal["text", "json", "markdown"]
_PLAIN_GROUPS = ("provider", "model")
# A price table that is older than this may miss models and changes of price.
_OLD_DAYS = 60
# What would be markup, a link or an entity in a cell of a Markdown table.
_MARKUP = re.compile(r"[\\|`*\[\]<>~]|&(?=#?\w+;)")


def render(costs: Mapping[str, Any], output_format: Format = "text") -> str:
    """
    Format the dict from `get_llm_costs` as a report, without a final newline.

    Args:
        output_format: "text" (the guide's lines), "json", or "markdown" (tables).
    """
    if output_format == "json":
        return to_json(costs, indent=2)
    return _markdown(costs) if output_format == "markdown" else _text(costs)


def period(costs: Mapping[str, Any]) -> str:
    """The report's window in words."""
    days = costs.get("days")
    return (
        f"last {days:g} day{'' if days == 1 else 's'}" if days is not None else f"{costs['since']} to {costs['until']}"
    )


def period_text(costs: Mapping[str, Any]) -> str:
    """The same, with days and minutes where they say enough."""
    if costs.get("days") is not None:
        return period(costs)
    ends = (costs[end][:16].replace("T", " ").removesuffix(" 00:00") for end in ("since", "until"))
    return " until ".join(ends)


def usd(amount: float) -> str:
    """US$ to the millionth; "unknown" for NaN."""
    return "unknown" if math.isnan(amount) else f"{'-' if amount < 0 else ''}${abs(amount):.6f}"


def counted(number: int, noun: str) -> str:
    """A number of things, with its noun in the singular or plural."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def group_cost(group: Mapping[str, Any]) -> str:
    """A group's cost: the sum of what is known, "at least" so much if that is not all, or "unknown"."""
    return _cost(group["cost"], group["unknown_cost_requests"] or group["cost_is_lower_bound"])


def total_cost(costs: Mapping[str, Any]) -> str:
    """The total in the same words, with the number of requests that are not in it."""
    unknown = costs["unknown_cost_requests"]
    cost = _cost(known_cost(costs), unknown or costs["cost_is_lower_bound"])
    return f"{cost}, plus {counted(unknown, 'request')} of unknown cost" if unknown and cost != "unknown" else cost


def provider_costs(costs: Mapping[str, Any]) -> dict[str, str]:
    """The cost of each provider in words."""
    return {name: _named_cost(costs, "provider", name) for name in costs["cost_by_provider"]}


def notes(costs: Mapping[str, Any]) -> list[str]:
    """What a reader must know beside the totals; nothing where there is nothing to say."""
    found = [_where_note(costs), removed_note(costs), _total_note(costs)]
    found += [f"{what} calls: {number:,}" for what, number in _call_counts(costs) if number]
    if costs["adjustments"]:
        found.append(f"Adjustments: {usd(costs['adjustments'])}, part of the total")
    if costs["agent_turns"] is None:
        found.append("Agent turns not tracked: their cost is not in these totals")
    if costs.get("image_tokens_saved"):
        found.append(f"Saved by scaling images: {_saved(costs)}")
    if costs.get("savings"):
        found.append(f"Estimate, not in the totals: {savings_text(costs['savings'])}")
    return [each for each in found if each]


def footer(costs: Mapping[str, Any]) -> str:
    """Where the figures and the prices come from, and how many records are not counted yet."""
    lines = [f"Store: {printable(costs['store'])} (time zone {costs['timezone']})"]
    if costs.get("price_table"):
        lines.insert(0, f"Prices: {prices_line(costs['price_table'])}")
    if costs.get("rows_read"):
        lines.append(f"Added up from single requests, which takes longer: {costs['rows_read']}.")
    if costs.get("waiting_records"):
        lines.append(
            f"{costs['waiting_records']:,} records are waiting to be written and are not counted; see `doctor`."
        )
    return "\n".join(lines)


def prices_line(table: Mapping[str, Any]) -> str:
    """The date of the price table, and what to do if it is old."""
    date = f"table of {table['date']}"
    if table["age_days"] <= _OLD_DAYS:
        return date
    return f"{date}, {table['age_days']} days old; upgrade this package, or set AGENTSWARM_PRICES to a newer table"


def printable(name: Any) -> str:
    """`name` without characters that move the cursor or break a line."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(name))


def _guides_period(costs: Mapping[str, Any]) -> str:
    """The window in the guide's words, which programs may look for: "last 1 days" too."""
    days = costs.get("days")
    return period(costs) if days is None else f"last {days:g} days"


def _text(costs: Mapping[str, Any]) -> str:
    lines = [
        f"=== LiteLLM Cost Metrics ({_guides_period(costs)}) ===",
        f"Total Cost: {usd(known_cost(costs))}",
        f"Total Tokens: {costs['total_tokens']:,}",
        f"Average Cost per Call: {usd(costs['avg_cost_per_call'])}",
        *notes(costs),
    ]
    lines += ["", "Cost by Provider:"]
    lines += [f"  {printable(name)}: {cost}" for name, cost in provider_costs(costs).items()]
    lines += ["", "Cost by Model:"]
    lines += [
        f"  {printable(name)}: {_named_cost(costs, 'model', name)} ({_model_calls(costs, name)})"
        for name in costs["cost_by_model"]
    ]
    if costs.get("by") and costs["by"] not in _PLAIN_GROUPS:
        lines += ["", f"Cost by {printable(costs['by']).title()}:"]
        lines += [
            f"  {printable(group['name'])}: {group_cost(group)} "
            f"({_calls(group['calls'], group['avg_cost_per_call'], group['unknown_cost_requests'])})"
            for group in costs["groups"]
        ]
    if costs["budgets"]:
        lines += ["", "Budgets:", *(f"  {printable(line)}" for line in map(budget_line, costs["budgets"]))]
    return "\n".join([*lines, "", footer(costs)])


def budget_line(budget: Mapping[str, Any]) -> str:
    """A budget's status in words."""
    lasts = budget["lasts_s"]
    rate = "" if lasts is None else f", lasts {_span(lasts)} at the current rate"
    if budget["left"] > 0 and budget.get("runs_out"):
        rate += f", until {budget['runs_out'][:16].replace('T', ' ')}"
    return f"{usd(budget['left'])} left of {budget['budget']}{rate}{_parts(budget)}"


def _parts(budget: Mapping[str, Any]) -> str:
    """What a budget has counted: what is spent, reserved and under way, which add up to it."""
    uncounted = budget.get("uncounted_requests")
    without = f", without {counted(uncounted, 'request')} of unknown cost" if uncounted else ""
    if not budget.get("used"):
        return without
    requests = counted(budget["reserved_requests"], "request")
    reserved = f"{usd(budget['reserved'])} reserved" + (f" ({requests})" if budget["reserved_requests"] else "")
    since = f" since {budget['since']}" if budget["since"] else ""
    return (
        f"; {usd(budget['spent'])} spent + {reserved} + {usd(budget['under_way'])} under way"
        f" = {usd(budget['used'])} counted{since}{without}"
    )


def _span(seconds: float) -> str:
    """A time span in its largest whole unit."""
    for unit, size in (("year", 31_536_000), ("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"about {counted(count, unit)}" if count < 1_000_000 else "indefinitely"
    return "less than a minute"


def _turns(costs: Mapping[str, Any]) -> str:
    """The number of the agents' own turns; when these are not tracked, their cost is in no total."""
    turns = costs["agent_turns"]
    return "not tracked" if turns is None else f"{turns:,}"


def known_cost(costs: Mapping[str, Any]) -> float:
    """The sum of the known costs; NaN if there is none, and something that was charged is unknown."""
    is_part = costs["unknown_cost_requests"] or costs["lower_bound_requests"]
    return math.nan if is_part and not costs["total_cost"] else costs["total_cost"]


def _where_note(costs: Mapping[str, Any]) -> str:
    where = ", ".join(f"{printable(name)}={printable(value)}" for name, value in (costs.get("where") or {}).items())
    return where and f"Only of {where}"


def removed_note(costs: Mapping[str, Any]) -> str:
    """That records have been removed, and whether they are missing; nothing if none have."""
    if not costs.get("removed_before"):
        return ""
    when = costs["removed_before"][:16].replace("T", " ").removesuffix(" 00:00")
    what = "are missing here" if costs["is_incomplete"] else "count here by their sums"
    return f"The records before {when} were removed (ledger prune), and {what}"


def _total_note(costs: Mapping[str, Any]) -> str:
    """That the total is not all, and why; nothing if it is."""
    unknown, incomplete = costs["unknown_cost_requests"], costs["lower_bound_requests"]
    unpriced = f"{counted(incomplete, 'request')} used something without a known price"
    if not unknown:
        return f"The total is {total_cost(costs)}: {unpriced}" if incomplete else ""
    said = f"The total is {total_cost(costs)}"
    if math.isnan(known_cost(costs)):
        said += f": {counted(unknown, 'request')} of unknown cost"
    return f"{said}; {unpriced}" if incomplete else said


def _call_counts(costs: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [("Unpriced", costs["unpriced_calls"]), ("Failed", costs["failed_calls"])]


def _cost(amount: float, at_least: object) -> str:
    return f"at least {usd(amount)}" if at_least and not math.isnan(amount) else usd(amount)


def _named_cost(costs: Mapping[str, Any], kind: str, name: str) -> str:
    at_least = name in costs[f"unknown_cost_by_{kind}"] or name in costs[f"lower_bound_by_{kind}"]
    return _cost(costs[f"cost_by_{kind}"][name], at_least)


def _saved(costs: Mapping[str, Any]) -> str:
    return f"{counted(costs['image_tokens_saved'], 'token')}, {usd(costs['image_cost_saved'])}"


def savings_text(found: Mapping[str, Any]) -> str:
    """What was saved, never without the share of answers that were rejected."""
    less, difference = ("less", found["saved"]) if found["saved"] >= 0 else ("more", -found["saved"])
    share = found["rejected_answers"] / found["answers"] if found["answers"] else 0.0
    return (
        f"the same tokens with {printable(found['baseline_model'])} would have cost ${found['baseline_cost']:.6f}, so "
        f"${difference:.6f} {less} was spent, with {share:.1%} of {found['answers']:,} answers rejected (saved by "
        f"providers' caches: ${found['saved_by_caches']:.6f}, by the flex tier: ${found['saved_by_flex']:.6f})"
    )


def _model_calls(costs: Mapping[str, Any], name: str) -> str:
    unknown = costs["unknown_cost_by_model"].get(name, 0)
    return _calls(costs["calls_by_model"][name], costs["avg_cost_by_model"][name], unknown)


def _calls(calls: int, average: float, unknown: int) -> str:
    """
    A group's calls, the average cost of those whose cost is known, and the requests whose cost is not.

    "1 calls" is the guide's line, which programs may look for.
    """
    each = f", {usd(average)}/call" if calls and not math.isnan(average) else ""
    requests = f", {counted(unknown, 'request')} of unknown cost" if unknown and (each or unknown != calls) else ""
    return f"{calls:,} calls{each}{requests}"


def markdown(costs: Mapping[str, Any], head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A report as Markdown: the summary, and a table of its groups."""
    summary = [
        ("Total cost", total_cost(costs)),
        ("Total tokens", f"{costs['total_tokens']:,}"),
        ("Calls", f"{costs['total_calls']:,}"),
        ("Average cost per call", usd(costs["avg_cost_per_call"])),
        ("Failed calls", f"{costs['failed_calls']:,}"),
        ("Unpriced calls", f"{costs['unpriced_calls']:,}"),
        ("Agent turns", _turns(costs)),
    ]
    if costs["unknown_cost_requests"]:
        summary.append(("Requests of unknown cost", f"{costs['unknown_cost_requests']:,}"))
    if costs["lower_bound_requests"]:
        summary.append(("Requests that used something without a known price", f"{costs['lower_bound_requests']:,}"))
    if costs["adjustments"]:
        summary.append(("Adjustments, part of the total", usd(costs["adjustments"])))
    if removed := removed_note(costs):
        summary.append(("Note", removed))
    summary += [("Budget", budget_line(budget)) for budget in costs["budgets"]]
    if costs.get("image_tokens_saved"):
        summary.append(("Saved by scaling images", _saved(costs)))
    if costs.get("savings"):
        summary.append(("Estimate, not in the totals", savings_text(costs["savings"])))
    parts = [f"## LLM costs ({period(costs)})", _table(("", ""), summary), _table(head, rows), footer(costs)]
    return "\n\n".join(parts)


def _markdown(costs: Mapping[str, Any]) -> str:
    by = costs.get("by") or "model"
    rows = [
        (group["name"], group_cost(group), f"{group['calls']:,}", *_unknown(costs, group)) for group in _groups(costs)
    ]
    head = (by.capitalize(), "Cost", "Calls", *(["Unknown cost"] if costs["unknown_cost_requests"] else []))
    return markdown(costs, head, rows)


def _groups(costs: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The groups that were asked for, else those by model."""
    return costs.get("groups") or [
        {
            "name": name,
            "cost": cost,
            "calls": costs["calls_by_model"][name],
            "cost_is_lower_bound": name in costs["lower_bound_by_model"],
            "unknown_cost_requests": costs["unknown_cost_by_model"].get(name, 0),
        }
        for name, cost in costs["cost_by_model"].items()
    ]


def _unknown(costs: Mapping[str, Any], group: Mapping[str, Any]) -> list[str]:
    """The cell with a group's requests of unknown cost, in a table that has this column."""
    return [f"{group['unknown_cost_requests']:,}"] if costs["unknown_cost_requests"] else []


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    """A text as a cell of a Markdown table: on one line, and without markup."""
    return _MARKUP.sub(lambda found: "&amp;" if found[0] == "&" else f"\\{found[0]}", printable(text))
