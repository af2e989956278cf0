"""What was spent: events in, sums out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import tzlocal

from shared.budget import Budget, Limit
from shared.config import Settings, database_url, load_settings
from shared.errors import ConfigurationError, LLMError
from shared.internal.clock import now_us
from shared.internal.money import to_usd
from shared.ledger import (
    Admission,
    Answers,
    BudgetForecast,
    Filter,
    ImageLineage,
    Ledger,
    all_budget_forecasts,
    answers_of,
    budget_forecasts,
    cost_nano_of,
    cost_row,
    event_row,
    forget_budget,
    get_ledger,
    image_savings,
    lineages_of,
    safe_metadata,
    store_budget,
    sum_costs,
    uuid_of,
    window,
)
from shared.models import Catalogue, resolve
from shared.prices import price_table
from shared.reports import render
from shared.scope import Scope, current_scope, run_of_process
from shared.types import AnalyticsEvent, EventType

__all__ = ["AnalyticsEvent", "EventType", "get_llm_costs", "print_llm_costs", "record_event"]


def record_event(event: AnalyticsEvent) -> None:
    """
    Record an event in the ledger.

    The client already records the cost of every call. An LLM_COST event that matches such a call (by `call_id`, else
    by `model` and `cost`) only adds its metadata to it; any other LLM_COST event counts as a call of its own.

    Args:
        event: Its `metadata` may contain model, provider, cost (US$), prompt_tokens, completion_tokens or
            total_tokens, call_id, and entries of your own; never put prompts or keys there.
    """
    ledger = _ledger()
    if ledger is None:
        return
    scope = current_scope()
    if event.event_type != EventType.LLM_COST:
        ledger.record(event_row(event, scope))
        return
    write = _record_cost(ledger, event, scope)
    if write is None:
        return
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        write.result()
    else:
        scope.pending.add_write(write)


def get_llm_costs(
    days: float = 7,
    *,
    since: datetime | date | str | None = None,
    until: datetime | date | str | None = None,
    tz: str | None = None,
    by: str | None = None,
) -> dict[str, Any]:
    """
    What was spent, according to the ledger; inside a scope with labels, only what those labels spent.

    Args:
        days: Days to look back (periods of 24 hours), when `since` is not given.

        since: First moment or day; text is ISO 8601.

        until: Last moment, exclusive; a day is inclusive.

        tz: IANA time zone that defines days. None: AGENTSWARM_TIMEZONE, else the system's.

        by: model, provider, tool, agent, day, or a label such as "customer": adds "groups".

    Returns:
        total_cost (US$ known to be spent), total_cost_nano (the same in nano-dollars, exact), total_tokens,
        total_calls (answered calls), avg_cost_per_call, failed_calls, unpriced_calls (whose cost is unknown; not in
        the totals), cost_is_lower_bound (whether something that was billed has no known price, so that the totals are
        at least what was charged) and lower_bound_requests (how many requests that concerns), cost_by_provider,
        cost_by_model, calls_by_model, cost_by_tool, cost_by_agent (highest cost first), cost_by_day, agent_turns
        (answered turns of the agents themselves; None when agents used tools but their own turns were not tracked, so
        that no total includes those), budgets (those that apply here now: limit, used and left in US$, with running
        calls counted at their upper bound, and lasts_s, the seconds that the rest lasts at the rate of the last 24
        hours, None when nothing was spent), image_tokens_saved and image_cost_saved (by scaling images down before
        they were sent; US$), savings (None without AGENTSWARM_BASELINE_MODEL; else estimates in US$, none of which is
        in the totals: baseline_cost, what the same tokens would have cost with that model, uncached; saved, the
        difference to what these answers cost; saved_by_caches and saved_by_flex; with answers and rejected_answers),
        since, until, timezone, store, waiting_records (records that could not be written yet,
        and are in no figure), and price_table (date and version of the built-in prices, and age_days).

    Raises:
        InvalidRequest: The window is not a span of time.

        ConfigurationError: The time zone is unknown, or cost tracking is off.

        StoreError: The ledger cannot be read.
    """
    return costs_of(Filter(labels=current_scope().labels), days, since=since, until=until, tz=tz, by=by)


def costs_of(
    which: Filter,
    days: float = 7,
    *,
    since: datetime | date | str | None = None,
    until: datetime | date | str | None = None,
    tz: str | None = None,
    by: str | None = None,
) -> dict[str, Any]:
    """The same as `get_llm_costs`, for the attempts that match `which`."""
    ledger = _required_ledger()
    span = window(days, since=since, until=until, zone=zone(tz))
    ledger.flush()
    ledger.settle_expired()
    costs = sum_costs(ledger, span, which, by)
    costs |= image_savings(ledger, span, which)
    costs["days"] = days if since is None and until is None else None
    costs["budgets"] = _budgets(ledger)
    costs["price_table"] = price_table_age()
    costs["savings"] = _savings(answers_of(ledger, span, which)) if load_settings().baseline_model else None
    return costs


def _savings(found: Sequence[Answers]) -> dict[str, Any] | None:
    """
    Estimates in US$, apart from what was spent; None if the baseline model has no known price.

    Rejected answers cost what they cost, but are no answers that the baseline model would have had to give.
    """
    settings = load_settings()
    name = settings.baseline_model or ""
    catalogue = Catalogue.load(settings)
    baseline = _prices(name, None, catalogue, settings)
    if "input" not in baseline or "output" not in baseline:
        return None
    there = spent = cached = flex = Decimal(0)
    for each in found:
        spent += Decimal(each.cost_nano) / 10**9
        there += each.accepted_prompt_tokens * baseline["input"] + each.accepted_completion_tokens * baseline["output"]
        standard, own = (_prices(each.model, tier, catalogue, settings) for tier in (None, each.service_tier))
        if "input" in own:
            cached += each.cached_tokens * (own["input"] - own.get("cached", own["input"]))
            cached -= each.cache_write_tokens * (own.get("cache_write", own["input"]) - own["input"])
        if each.service_tier == "flex" and {"input", "output"} <= standard.keys() & own.keys():
            uncached = each.prompt_tokens - each.cached_tokens
            flex += uncached * (standard["input"] - own["input"])
            flex += each.completion_tokens * (standard["output"] - own["output"])
    answers, rejected = sum(each.answers for each in found), sum(each.rejected for each in found)
    return {
        "baseline_model": name,
        "baseline_cost": float(there),
        "saved": float(there - spent),
        "saved_by_caches": float(cached),
        "saved_by_flex": float(flex),
        "answers": answers,
        "rejected_answers": rejected,
        "is_estimate": True,
    }


def _prices(name: str, tier: str | None, catalogue: Catalogue, settings: Settings) -> Mapping[str, Decimal]:
    """What a model costs, US$ by unit; empty if that is unknown."""
    try:
        found = resolve(name, catalogue=catalogue, settings=settings, scope=current_scope(), service_tier=tier)
    except LLMError:
        return {}
    return {str(unit): price for unit, price in found.rates.prices.items()}


def price_table_age() -> dict[str, Any]:
    """The date and version of the built-in price table, and its age in days."""
    table = price_table()
    age = datetime.now(UTC).date() - date.fromisoformat(table.date)
    return {"date": table.date, "version": table.version, "age_days": max(age.days, 0)}


def _budgets(ledger: Ledger) -> list[dict[str, Any]]:
    """The status of the budgets that apply here: those of the settings, of the scope and of the ledger."""
    scope, settings = current_scope(), load_settings()
    limits = [*([] if settings.budget is None else [Limit(settings.budget)]), *scope.limits]
    here = {"ts_us": now_us(), "agent": scope.agent, "tool": scope.tool, "run": scope.run or run_of_process()}
    forecasts = budget_forecasts(ledger, limits, here, scope.labels)
    applicable = [each for each in forecasts if any(each.status.whose) or not each.status.limit.dimensions]
    return [_as_dict(each) for each in applicable if scope.may_see(each.status.limit)]


def set_budget(name: str, budget: Budget) -> None:
    """
    Store a budget in the ledger, where it applies immediately to every program that uses this ledger.

    Raises:
        StoreError: The ledger cannot be written.
    """
    with _required_ledger().changing() as connection:
        store_budget(connection, name, budget)


def remove_budget(name: str) -> bool:
    """Remove a budget from the ledger; returns whether it existed."""
    with _required_ledger().changing() as connection:
        return forget_budget(connection, name)


def all_budgets() -> list[dict[str, Any]]:
    """Every budget of the settings and of the ledger, once for each group it counts: its name, and as in `budgets`."""
    settings = load_settings()
    from_settings = {} if settings.budget is None else {"AGENTSWARM_BUDGET_USD": Limit(settings.budget)}
    ledger = _required_ledger()
    ledger.flush()
    return [{"name": name, **_as_dict(each)} for name, each in all_budget_forecasts(ledger, from_settings, now_us())]


def _required_ledger() -> Ledger:
    ledger = _ledger()
    if ledger is None:
        raise ConfigurationError("Cost tracking is off", hint="Set LITELLM_COST_TRACKING=true.")
    return ledger


def _as_dict(forecast: BudgetForecast) -> dict[str, Any]:
    status, terms = forecast.status, forecast.status.limit.budget
    return {
        "budget": str(status),
        "limit": terms.limit_usd,
        "left": to_usd(status.left_nano),
        "used": to_usd(status.counted_nano),
        "window": terms.window,
        "lasts_s": forecast.lasts_s,
    }


def image_lineages(which: Filter | None = None) -> list[ImageLineage]:
    """
    The images that were made, each with the images it was made from and its edits.

    Args:
        which: Calls to include. None: inside a scope with labels, the calls of those labels; else all.

    Raises:
        ConfigurationError: Cost tracking is off.

        StoreError: The ledger cannot be read.
    """
    ledger = _required_ledger()
    ledger.flush()
    return lineages_of(ledger, which or Filter(labels=current_scope().labels))


def print_llm_costs(days: float = 7) -> None:
    """Print what was spent in the last `days` days (periods of 24 hours)."""
    print(render(get_llm_costs(days), "text"))  # noqa: T201 - printing is this function's purpose


def zone(name: str | None = None) -> ZoneInfo:
    """
    The time zone of reports.

    Raises:
        ConfigurationError: The time zone is unknown.
    """
    name = name or load_settings().timezone
    try:
        return ZoneInfo(name or tzlocal.get_localzone_name() or "UTC")
    except (KeyError, ValueError, OSError):
        raise ConfigurationError("The time zone is unknown", hint="Give a name such as Europe/Berlin.") from None


def _ledger() -> Ledger | None:
    settings = load_settings()
    return get_ledger(database_url(settings)) if settings.cost_tracking else None


def _record_cost(ledger: Ledger, event: AnalyticsEvent, scope: Scope) -> Future[Admission] | None:
    """Add the event's metadata to the call that it matches; without a match, record it as a call of its own."""
    cost = cost_nano_of(event.metadata.get("cost"))
    model = event.metadata.get("model")
    recorded = scope.pending.claim(model, cost, uuid_of(event.metadata.get("call_id")))
    if recorded is None:
        return ledger.settle(cost_row(event, cost, scope))
    more = {k: v for k, v in event.metadata.items() if k not in ("model", "provider", "cost", "call_id")}
    ledger.annotate(recorded.attempt_id, safe_metadata(more))
    return None
