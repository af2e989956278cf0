"""The report as one page of HTML: no script, nothing fetched, every text escaped."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from shared.internal.money import to_nano
from shared.ledger import LATENCY_MS, Filter, Grouped, Ledger, Unknown, Window, label_names, latencies, unknowns
from shared.reports.forecast import month_forecast, runs_out
from shared.reports.formats import counted, notes, prices_line, printable
from shared.reports.groups import groups_of
from shared.reports.periods import period_before, window_text
from shared.reports.tables import change, cost_cell, decimals_for, money, percent, total_group, usd_text

_TEMPLATE = "page.html.jinja"
_COLOURED = 6  # models with a colour of their own in the chart by day; the page's CSS has as many
_ROWS = 8
_UNKNOWN = 3  # more rows, for groups of which no cost is known
_LABELS = 3
_BUDGETS = 12
_REASONS = 12
_DAYS_SHOWN = 93  # in a longer window the chart has a bar for each month
_PERCENTILES = (0.5, 0.95)


def page_keys(ledger: Ledger, span: Window, which: Filter) -> list[tuple[str, ...]]:
    """
    What a page groups costs by: first its tables, compared with the period before, and last its chart.

    Raises:
        StoreError: The ledger cannot be read.
    """
    labels = sorted((name for name in label_names(ledger, which) if name not in which.labels), key=_customer_first)
    first, last = _days(span)
    grain = "day" if (last - first).days < _DAYS_SHOWN else "month"
    tables = dict.fromkeys((*labels[:_LABELS], "agent", "tool", "model"))  # a label may have such a name too
    return [*((name,) for name in tables), (grain, "model")]


def html_page(
    ledger: Ledger,
    span: Window,
    which: Filter,
    costs: Mapping[str, Any],
    budgets: Sequence[Mapping[str, Any]],
    found: Mapping[tuple[str, ...], Grouped],
    earlier: Sequence[Grouped],
) -> str:
    """
    The report of a window as a page.

    Args:
        costs: As `get_llm_costs` returns them, compared with the period before.

        budgets: As `get_llm_costs` documents them.

        found: What the ledger has by each of `page_keys`.

        earlier: The same of the period before, without the chart.

    Raises:
        StoreError: The ledger cannot be read.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    groups = groups_of(ledger, span, list(found), which, list(found.values()), earlier)
    shown = {keys: each.groups for keys, each in zip(found, groups, strict=True)}
    page = _page(ledger, span, which, costs, budgets, shown)
    return environment.get_template(_TEMPLATE).render(page | {"health": _health(ledger, span, which, found)}) + "\n"


def _page(
    ledger: Ledger,
    span: Window,
    which: Filter,
    costs: Mapping[str, Any],
    budgets: Sequence[Mapping[str, Any]],
    groups: Mapping[tuple[str, ...], Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    now = datetime.now(UTC).astimezone(span.zone)
    before = period_before(span)
    total = total_group(costs)
    decimals = decimals_for([total["cost_nano"]])
    *names, chart = groups
    tables = [_table(keys[0], groups[keys], decimals) for keys in names]
    whose = next((table for table in tables if table["is_of_somebody"]), tables[-1])
    reasons = unknowns(ledger, span, which)
    return {
        "title": f"LLM costs, {window_text(span)}",
        "window": window_text(span),
        "where": ", ".join(f"{name}={value}" for name, value in costs.get("where", {}).items()),
        "total": money(total["cost_nano"], decimals),
        "at_least": cost_cell(total, decimals).startswith("at least"),
        "exact": usd_text(total["cost_nano"]),
        "before": money(total["previous_cost_nano"], decimals),
        "before_window": window_text(before),
        "change": change(total),
        "calls": f"{costs['total_calls']:,}",
        "failed": f"{costs['failed_calls']:,}",
        "forecast": _forecast(ledger, which, span, now),
        "whose": whose,
        "unknown": _unknown_card(costs, reasons, decimals),
        "budgets": [_budget(each, now) for each in _nearest(budgets, now)[:_BUDGETS]],
        "more_budgets": max(len(budgets) - _BUDGETS, 0),
        "days": _chart(span, chart[0], groups[chart], decimals),
        "tables": tables,
        "reasons": [_reason(each) for each in reasons[:_REASONS]],
        "more_reasons": sum(each.requests for each in reasons[_REASONS:]),
        "notes": notes(costs),
        "prices": prices_line(costs["price_table"]),
        "store": costs["store"],
        "zone": str(span.zone),
        "waiting": costs["waiting_records"],
        "made": f"{now:%Y-%m-%d %H:%M}",
    }


def _table(name: str, groups: Sequence[Mapping[str, Any]], decimals: int) -> dict[str, Any]:
    """The most expensive groups, and the others together, so that the table adds up to the total."""
    unknown = [group for group in groups[_ROWS:] if group["cost_nano"] is None][:_UNKNOWN]
    rest = [group for group in groups[_ROWS:] if group not in unknown]
    shown = [*groups[:_ROWS], *unknown]
    if len(rest) == 1:
        shown, rest = list(groups), []
    most = max((group["cost_nano"] or 0 for group in groups), default=0)
    rows = [_row(group["name"], group, decimals, most) for group in shown]
    if rest:
        rows.append(_row(f"{len(rest):,} others", _together(rest), decimals, most))
    return {
        "by": name.capitalize(),
        "rows": rows,
        "is_of_somebody": any(group["name"] != "(unallocated)" for group in groups),
        "has_unknown": any(group["unknown_cost_requests"] for group in groups),
    }


def _row(name: str, group: Mapping[str, Any], decimals: int, most: int) -> dict[str, Any]:
    nano = group["cost_nano"]
    return {
        "name": name,
        "cost": money(nano, decimals),
        "at_least": cost_cell(group, decimals).startswith("at least"),
        "exact": usd_text(nano),
        "share": percent(group["share"]),
        "bar": _part(max(nano or 0, 0), most),
        "change": change(group),
        "calls": f"{group['calls']:,}",
        "unknown": group["unknown_cost_requests"],
    }


def _together(groups: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    groups = list(groups)
    known = [group["cost_nano"] for group in groups if group["cost_nano"] is not None]
    before = [group["previous_cost_nano"] or 0 for group in groups]
    shares = [group["share"] for group in groups if not math.isnan(group["share"])]
    return {
        "cost_nano": sum(known) if known else None,
        "share": sum(shares) if shares else math.nan,
        "previous_cost_nano": sum(before),
        "cost_is_lower_bound": len(known) < len(groups) or any(group["cost_is_lower_bound"] for group in groups),
        "calls": sum(group["calls"] for group in groups),
        "unknown_cost_requests": sum(group["unknown_cost_requests"] for group in groups),
    }


def _customer_first(name: str) -> tuple[bool, str]:
    return (name != "customer", name)


def _days(span: Window) -> tuple[date, date]:
    """The first and the last day of a window."""
    ends = (span.since_us, span.until_us - 1)
    first, last = (datetime.fromtimestamp(ts_us // 1_000_000, span.zone).date() for ts_us in ends)
    return first, last


def _chart(span: Window, grain: str, groups: Sequence[Mapping[str, Any]], decimals: int) -> dict[str, Any]:
    """The chart by day, or by month: for each a pile of models, as parts of the most expensive one."""
    first, last = _days(span)
    names = {group["keys"][grain] for group in groups}
    every = [f"{first + timedelta(days=number)}" for number in range((last - first).days + 1)] if names else []
    if grain == "month":
        every = sorted({day[:7] for day in every if min(names) <= day[:7] <= max(names)})
    return {"by": grain} | _bars(every, groups, grain, decimals)


def _bars(every: Sequence[str], groups: Sequence[Mapping[str, Any]], grain: str, decimals: int) -> dict[str, Any]:
    models: Counter[str] = Counter()
    for group in groups:
        models[group["keys"]["model"]] += group["cost_nano"] or 0
    coloured = {model: place for place, (model, nano) in enumerate(models.most_common(_COLOURED - 1)) if nano > 0}
    piles: dict[str, Counter[int]] = {name: Counter() for name in every}
    unknown: Counter[str] = Counter()
    for group in groups:
        day = group["keys"][grain]
        piles[day][coloured.get(group["keys"]["model"], _COLOURED - 1)] += group["cost_nano"] or 0
        unknown[day] += group["unknown_cost_requests"]
    most = max((sum(nano for nano in pile.values() if nano > 0) for pile in piles.values()), default=0)
    names = [*coloured, *(["others"] if len(models) > len(coloured) else [])]
    places = [*coloured.values(), *([_COLOURED - 1] if len(models) > len(coloured) else [])]
    return {
        "bars": [_bar(day, pile, most, decimals, unknown[day]) for day, pile in piles.items()],
        "legend": list(zip(names, places, strict=True)),
        "most": money(most, decimals),
        "half": money(most // 2, decimals),
        "first": every[0] if every else "",
        "last": every[-1] if every else "",
    }


def _bar(day: str, pile: Mapping[int, int], most: int, decimals: int, unknown: int) -> dict[str, Any]:
    parts, top = [], 100.0
    for place, nano in sorted(pile.items()):
        height = _part(max(nano, 0), most)
        top -= height
        parts.append({"place": place, "top": round(top, 3), "height": height})
    nano = sum(pile.values())
    plus = f", plus {counted(unknown, 'request')} of unknown cost" if unknown else ""
    return {"day": day, "parts": parts, "title": f"{day}: {money(nano, decimals)}{plus}", "exact": usd_text(nano)}


def _part(amount: float, whole: float) -> float:
    """A part of a whole in per cent, as a number for SVG."""
    return round(min(amount / whole, 1) * 100, 3) if whole > 0 else 0.0


def _forecast(ledger: Ledger, which: Filter, span: Window, now: datetime) -> dict[str, Any] | None:
    """The forecast, on a page that reaches until now."""
    if span.until_us < now.timestamp() * 1e6 - 60e6:
        return None
    found = month_forecast(ledger, which, now)
    if found is None:
        return None
    decimals = decimals_for([found.expected_nano])
    low, high = money(found.low_nano, decimals), money(found.high_nano, decimals)
    return {"expected": money(found.expected_nano, decimals), "low": low, "high": high, "days": found.days}


def _unknown_card(costs: Mapping[str, Any], reasons: Sequence[Unknown], decimals: int) -> dict[str, Any]:
    reserved = sum(each.reserved_nano for each in reasons)
    return {
        "requests": f"{costs['unknown_cost_requests']:,}",
        "any": bool(costs["unknown_cost_requests"]),
        "lower_bound": costs["lower_bound_requests"],
        "reserved": money(reserved, decimals) if reserved else "",
    }


def _nearest(budgets: Sequence[Mapping[str, Any]], now: datetime) -> list[Mapping[str, Any]]:
    """The budgets, first those that run out first, then those of which the most is used."""

    def order(budget: Mapping[str, Any]) -> tuple[Any, ...]:
        out = runs_out(budget, now)
        used = budget["used"] / budget["limit"] if budget["limit"] else math.inf
        return (out is None, out.timestamp() if out else 0, -used)

    return sorted(budgets, key=order)


def _budget(budget: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    limit, out = budget["limit"], runs_out(budget, now)
    decimals = 2 if limit >= 1 else 6

    def shown(usd: float) -> str:
        return money(to_nano(usd), decimals)

    if budget["left"] <= 0:
        says = "used up: calls are refused"
    elif out is not None:
        says = f"runs out on {out:%Y-%m-%d %H:%M} at the rate of the last day"
    elif budget["lasts_s"] is None:
        says = "nothing was spent in the last day"
    else:
        says = "lasts until it begins anew" if budget["until"] else "lasts for years at the rate of the last day"
    uncounted = budget["uncounted_requests"]
    return {
        "name": f"{budget['name']}: {budget['budget']}" if "name" in budget else budget["budget"],
        "spent": _part(max(budget["spent"], 0), limit),
        "reserved": _part(budget["reserved"], limit),
        "under_way": _part(budget["under_way"], limit),
        "text": f"{shown(budget['spent'])} spent, {shown(budget['reserved'])} reserved, "
        f"{shown(budget['under_way'])} under way; {shown(budget['left'])} of {shown(limit)} left",
        "without": f"without {counted(uncounted, 'request')} of unknown cost" if uncounted else "",
        "says": says,
        "is_near": out is not None,
    }


def _health(
    ledger: Ledger, span: Window, which: Filter, found: Mapping[tuple[str, ...], Grouped]
) -> list[dict[str, Any]]:
    """By model: how long answers took, and which share of requests failed, and of answers came after a failure."""
    by_model = found["model",].sums.items()
    sent = [(key[0], sums) for key, sums in by_model if sums["requests"] > sums["adjustment_requests"]]
    times = latencies(ledger, span, which)
    return [
        {
            "model": model,
            "requests": f"{sums['requests'] - sums['adjustment_requests']:,}",
            "times": [_seconds(_percentile(times.get(model, {}), share)) for share in _PERCENTILES],
            "failed": f"{sums['failed_requests'] / (sums['requests'] - sums['adjustment_requests']):.1%}",
            "has_failed": bool(sums["failed_requests"]),
            "retried": f"{sums['retried_calls'] / sums['calls']:.1%}" if sums["calls"] else "",
        }
        for model, sums in sorted(sent, key=lambda item: -item[1]["requests"])[: _ROWS * 2]
    ]


def _percentile(places: Mapping[int, int], share: float) -> float | None:
    """About how many milliseconds this share of the answers took at most, from how many lie in which place."""
    limits = (0, *LATENCY_MS, LATENCY_MS[-1])
    left = share * sum(places.values())
    for place, answers in sorted(places.items()):
        if left <= answers:  # as if the answers of a place were spread evenly over it
            return limits[place] + (limits[place + 1] - limits[place]) * left / answers
        left -= answers
    return None


def _seconds(duration_ms: float | None) -> str:
    if duration_ms is None:
        return "unknown"
    return f"over {LATENCY_MS[-1] / 1000:.0f} s" if duration_ms >= LATENCY_MS[-1] else f"{duration_ms / 1000:.2g} s"


def _reason(each: Unknown) -> dict[str, Any]:
    if each.is_lower_bound:
        why = (
            "known in part: more may have been charged"
            if each.reserved_nano
            else "used something without a known price"
        )
    elif each.status == "unsettled":
        why = "the process ended before the answer was recorded"
    elif each.has_usage:
        why = "there is no known price for the model"
    else:
        why = "no usage was reported, and it may have been charged"
    return {
        "model": each.model,
        "why": f"{why} ({each.error_type})" if each.error_type else why,
        "status": each.status,
        "requests": f"{each.requests:,}",
        "reserved": money(each.reserved_nano, 6) if each.reserved_nano else "",
    }
