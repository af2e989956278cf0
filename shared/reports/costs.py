"""The costs of a window as the dict that `get_llm_costs` documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shared.internal.money import to_usd
from shared.ledger import FIGURES, UNALLOCATED, Filter, Grouped, Ledger, Window, agents_used_tools, all_grouped
from shared.reports.groups import COLUMNS, average_cost, known_nano

Sums = dict[str, int]
Groups = Mapping[str, Sums]
# What the costs of a window are made of.
OF_COSTS: tuple[tuple[str, ...], ...] = (COLUMNS, (), ("day",), *((name,) for name in COLUMNS))


def sum_costs(
    ledger: Ledger, span: Window, which: Filter | None = None, found: Sequence[Grouped] | None = None
) -> dict[str, Any]:
    """
    What was spent in a window.

    Args:
        found: What the ledger has by each of OF_COSTS. None: it is read.

    Returns:
        Of the dict that `get_llm_costs` documents, what the ledger's sums say.

    Raises:
        StoreError: The ledger cannot be read.
    """
    which = which or Filter()
    used_tools = agents_used_tools(ledger, span, which)
    by_columns, total, by_day, *groups = all_grouped(ledger, span, OF_COSTS, which) if found is None else found
    return {
        **_totals(total.sums.get((), dict.fromkeys(FIGURES, 0))),
        **_by_columns({name: _named(each) for name, each in zip(COLUMNS, groups, strict=True)}),
        "cost_by_day": {day: _cost(sums) for (day,), sums in sorted(by_day.sums.items()) if sums["requests"]},
        **dict(zip(("since", "until"), span.ends, strict=True)),
        "timezone": str(span.zone),
        "store": ledger.name,
        "waiting_records": ledger.waiting,
        "agent_turns": _agent_turns(by_columns.sums, which, used_tools=used_tools),
        "rows_read": by_columns.rows_read,
        "removed_before": None if not by_columns.removed_us else span.moment(by_columns.removed_us),
        "is_incomplete": by_columns.is_incomplete or by_day.is_incomplete,
    }


def _totals(total: Sums) -> dict[str, Any]:
    return {
        "total_cost": to_usd(total["cost_nano"]),
        "total_cost_nano": total["cost_nano"],
        "total_tokens": total["prompt_tokens"] + total["completion_tokens"],
        "total_calls": total["calls"],
        "avg_cost_per_call": average_cost(total),
        "adjustments": to_usd(total["adjustment_nano"]),
        "failed_calls": total["failed_calls"],
        "unpriced_calls": total["unpriced_calls"],
        "cost_is_lower_bound": bool(total["lower_bound_requests"]),
        "lower_bound_requests": total["lower_bound_requests"],
        "unknown_cost_requests": total["unknown_requests"],
        "image_tokens_saved": total["image_tokens_saved"],
        "image_cost_saved": to_usd(total["image_nano_saved"]),
    }


def _by_columns(groups: Mapping[str, Groups]) -> dict[str, Any]:
    models = _sorted(groups["model"])
    return {
        **{f"cost_by_{name}": _most_expensive_first(groups[name]) for name in COLUMNS},
        "calls_by_model": {name: sums["calls"] for name, sums in models},
        "avg_cost_by_model": {name: average_cost(sums) for name, sums in models},
        **{
            f"{shown}_by_{name}": {group: sums[counted] for group, sums in _sorted(groups[name]) if sums[counted]}
            for name in ("provider", "model")
            for shown, counted in (("unknown_cost", "unknown_requests"), ("lower_bound", "lower_bound_requests"))
        },
    }


def _agent_turns(found: Mapping[tuple[str, ...], Sums], which: Filter, *, used_tools: bool) -> int | None:
    """Number of agents' own answered turns; None when only their tools' calls were recorded, not the turns."""
    by_agents = [(bool(tool), sums) for (_, _, tool, agent), sums in found.items() if agent and sums["requests"]]
    turns = [sums for by_tool, sums in by_agents if not by_tool]
    if any(sums["calls"] + sums["failed_calls"] for sums in turns):
        return sum(sums["calls"] for sums in turns)
    if which.columns:
        return 0  # the filter has left the turns out, or there are none
    return None if by_agents or used_tools else 0


def _sorted(groups: Groups) -> list[tuple[str, Sums]]:
    return sorted(groups.items(), key=lambda item: (-item[1]["cost_nano"], -item[1]["calls"], item[0]))


def _most_expensive_first(groups: Groups) -> dict[str, float]:
    shown = ("calls", "cost_nano", "unknown_requests")
    return {name: _cost(sums) for name, sums in _sorted(groups) if any(sums[each] for each in shown)}


def _cost(sums: Sums) -> float:
    return to_usd(known_nano(sums))


def _named(found: Grouped) -> dict[str, Sums]:
    """The groups of a column by name. What was taken back, as a correction to another model, leaves no requests."""
    named: dict[str, Sums] = {}
    for (value,), sums in found.sums.items():
        name = value or UNALLOCATED  # which may be a name too
        same = named.get(name)
        named[name] = sums if same is None else {each: same[each] + sums[each] for each in FIGURES}
    return {name: sums for name, sums in named.items() if sums["requests"]}
