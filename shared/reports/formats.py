"""Costs as text for people, agents and other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from shared.internal.serialize import to_json

Format = Literal["text", "json", "markdown"]
_PLAIN_GROUPS = ("provider", "model")
# A price table that is older than this may miss models and changes of price.
_OLD_DAYS = 60


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
    return f"last {days:g} days" if days is not None else f"{costs['since']} to {costs['until']}"


def footer(costs: Mapping[str, Any]) -> str:
    """Where the figures and the prices come from, and how many records are not counted yet."""
    lines = [f"Store: {printable(costs['store'])} (time zone {costs['timezone']})"]
    if costs.get("price_table"):
        lines.insert(0, f"Prices: {prices_line(costs['price_table'])}")
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


def _text(costs: Mapping[str, Any]) -> str:
    lines = [
        f"=== LiteLLM Cost Metrics ({period(costs)}) ===",
        f"Total Cost: ${costs['total_cost']:.6f}",
        f"Total Tokens: {costs['total_tokens']:,}",
        f"Average Cost per Call: ${costs['avg_cost_per_call']:.6f}",
    ]
    if costs.get("cost_is_lower_bound"):
        lines.append(f"The total is {_at_least(costs)}: {_requests(costs)} used something without a known price")
    if costs["unpriced_calls"]:
        lines.append(f"Unpriced calls: {costs['unpriced_calls']:,}")
    if costs["failed_calls"]:
        lines.append(f"Failed calls: {costs['failed_calls']:,}")
    if costs["agent_turns"] is None:
        lines.append("Agent turns not tracked: their cost is not in these totals")
    if costs.get("image_tokens_saved"):
        lines.append(f"Saved by scaling images: {_saved(costs)}")
    if costs.get("savings"):
        lines.append(f"Estimate, not in the totals: {savings_text(costs['savings'])}")
    lines += ["", "Cost by Provider:"]
    lines += [f"  {printable(name)}: ${cost:.6f}" for name, cost in costs["cost_by_provider"].items()]
    lines += ["", "Cost by Model:"]
    lines += [
        f"  {printable(name)}: ${cost:.6f} ({_calls(costs['calls_by_model'][name], cost)})"
        for name, cost in costs["cost_by_model"].items()
    ]
    if costs.get("by") and costs["by"] not in _PLAIN_GROUPS:
        lines += ["", f"Cost by {printable(costs['by']).title()}:"]
        lines += [
            f"  {printable(group['name'])}: ${group['cost']:.6f} ({_calls(group['calls'], group['cost'])})"
            for group in costs["groups"]
        ]
    if costs["budgets"]:
        lines += ["", "Budgets:", *(f"  {printable(line)}" for line in map(budget_line, costs["budgets"]))]
    return "\n".join([*lines, "", footer(costs)])


def budget_line(budget: Mapping[str, Any]) -> str:
    """A budget's status in words."""
    lasts = budget["lasts_s"]
    rate = "" if lasts is None else f", lasts {_span(lasts)} at the current rate"
    return f"${budget['left']:.6f} left of {budget['budget']}{rate}"


def _span(seconds: float) -> str:
    """A time span in its largest whole unit."""
    for unit, size in (("year", 31_536_000), ("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"about {count:,} {unit}{'s' if count != 1 else ''}" if count < 1_000_000 else "indefinitely"
    return "less than a minute"


def _turns(costs: Mapping[str, Any]) -> str:
    """The number of the agents' own turns; when these are not tracked, their cost is in no total."""
    turns = costs["agent_turns"]
    return "not tracked" if turns is None else f"{turns:,}"


def _at_least(costs: Mapping[str, Any]) -> str:
    return f"at least ${costs['total_cost']:.6f}"


def _requests(costs: Mapping[str, Any]) -> str:
    count = costs["lower_bound_requests"]
    return f"{count:,} request{'s' if count != 1 else ''}"


def _saved(costs: Mapping[str, Any]) -> str:
    return f"{costs['image_tokens_saved']:,} tokens, ${costs['image_cost_saved']:.6f}"


def savings_text(found: Mapping[str, Any]) -> str:
    """What was saved, never without the share of answers that were rejected."""
    less, difference = ("less", found["saved"]) if found["saved"] >= 0 else ("more", -found["saved"])
    share = found["rejected_answers"] / found["answers"] if found["answers"] else 0.0
    return (
        f"the same tokens with {printable(found['baseline_model'])} would have cost ${found['baseline_cost']:.6f}, so "
        f"${difference:.6f} {less} was spent, with {share:.1%} of {found['answers']:,} answers rejected (saved by "
        f"providers' caches: ${found['saved_by_caches']:.6f}, by the flex tier: ${found['saved_by_flex']:.6f})"
    )


def _calls(calls: int, cost: float) -> str:
    return f"{calls:,} calls, ${cost / calls if calls else 0.0:.6f}/call"


def _markdown(costs: Mapping[str, Any]) -> str:
    by = costs.get("by") or "model"
    groups = costs.get("groups") or [
        {"name": name, "cost": cost, "calls": costs["calls_by_model"][name]}
        for name, cost in costs["cost_by_model"].items()
    ]
    summary = [
        ("Total cost", _at_least(costs) if costs.get("cost_is_lower_bound") else f"${costs['total_cost']:.6f}"),
        ("Total tokens", f"{costs['total_tokens']:,}"),
        ("Calls", f"{costs['total_calls']:,}"),
        ("Average cost per call", f"${costs['avg_cost_per_call']:.6f}"),
        ("Failed calls", f"{costs['failed_calls']:,}"),
        ("Unpriced calls", f"{costs['unpriced_calls']:,}"),
        ("Agent turns", _turns(costs)),
    ]
    summary += [("Budget", budget_line(budget)) for budget in costs["budgets"]]
    if costs.get("image_tokens_saved"):
        summary.append(("Saved by scaling images", _saved(costs)))
    if costs.get("savings"):
        summary.append(("Estimate, not in the totals", savings_text(costs["savings"])))
    rows = [(group["name"], f"${group['cost']:.6f}", f"{group['calls']:,}") for group in groups]
    parts = [
        f"## LLM costs ({period(costs)})",
        _table(("", ""), summary),
        _table((by.capitalize(), "Cost", "Calls"), rows),
        footer(costs),
    ]
    return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(printable(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
