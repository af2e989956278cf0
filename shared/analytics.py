"""What was spent, for code and people: events in, sums out."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import tzlocal

from shared.budget import Budget, Limit
from shared.config import database_url, load_settings
from shared.errors import ConfigurationError
from shared.internal.clock import now_us
from shared.internal.money import to_usd
from shared.ledger import (
    Admission,
    BudgetForecast,
    Filter,
    ImageLineage,
    Ledger,
    all_budget_forecasts,
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
from shared.reports import render
from shared.scope import Scope, current_scope, run_of_process
from shared.types import AnalyticsEvent, EventType

__all__ = ["AnalyticsEvent", "EventType", "get_llm_costs", "print_llm_costs", "record_event"]


def record_event(event: AnalyticsEvent) -> None:
    """
    Record an event in the ledger.

    The client records every call's cost by itself. An LLM_COST event that speaks of such a call (by `call_id`, else
    by `model` and `cost`) adds its metadata to it and counts nothing; any other counts as a call of its own.

    Args:
        event: Its `metadata` may hold model, provider, cost (US$), prompt_tokens, completion_tokens or
            total_tokens, call_id, and more of your own; never put prompts or keys there.
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
        scope.pending.owe(write)


def get_llm_costs(
    days: float = 7,
    *,
    since: datetime | date | str | None = None,
    until: datetime | date | str | None = None,
    tz: str | None = None,
    by: str | None = None,
) -> dict[str, Any]:
    """
    What was spent, from the ledger (of the scope, inside one with labels).

    Args:
        days: The last so many times 24 hours, when `since` is not given.

        since: First moment or day; text is ISO 8601.

        until: Last moment, exclusive; a day is inclusive.

        tz: IANA time zone whose days count. None: AGENTSWARM_TIMEZONE, else the system's.

        by: model, provider, tool, agent, day, or a label such as "customer": adds "groups".

    Returns:
        total_cost (US$ known to be spent), total_cost_nano (the same, exact, in nano-dollars), total_tokens,
        total_calls (that were answered), avg_cost_per_call, failed_calls, unpriced_calls (with a cost nobody
        knows, not in the totals), cost_is_lower_bound (whether something that was billed has no known price, so that
        the totals are at least what was charged) and lower_bound_requests (of how many requests), cost_by_provider,
        cost_by_model, calls_by_model, cost_by_tool, cost_by_agent (dearest first), cost_by_day, agent_turns (answered
        turns of agents themselves; None when agents used tools and nobody tracked their turns, whose cost is then in
        no total), budgets (those that hold here now: limit, used
        and left in US$, calls under way counted at their most, and lasts_s, the seconds that the rest lasts at the rate
        of the last day, None when nothing was spent), image_tokens_saved and image_cost_saved (by scaling images down
        before models looked at them; US$), since, until, timezone, store, and waiting_records
        (that could not be written yet, and are in no figure).

    Raises:
        InvalidRequest: The window is not a span of time.

        ConfigurationError: The zone is not known, or cost tracking is off.

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
    """The same as `get_llm_costs`, of the attempts that `which` lets through."""
    ledger = _needed_ledger()
    span = window(days, since=since, until=until, zone=zone(tz))
    ledger.flush()
    ledger.settle_expired()
    costs = sum_costs(ledger, span, which, by)
    costs |= image_savings(ledger, span, which)
    costs["days"] = days if since is None and until is None else None
    costs["budgets"] = _budgets(ledger)
    return costs


def _budgets(ledger: Ledger) -> list[dict[str, Any]]:
    """How the budgets stand that hold here: of the settings, of the scope and of the ledger."""
    scope, settings = current_scope(), load_settings()
    limits = [*([] if settings.budget is None else [Limit(settings.budget)]), *scope.limits]
    here = {"ts_us": now_us(), "agent": scope.agent, "tool": scope.tool, "run": scope.run or run_of_process()}
    found = budget_forecasts(ledger, limits, here, scope.labels)
    mine = [each for each in found if any(each.status.whose) or not each.status.limit.dimensions]
    return [_as_dict(each) for each in mine if scope.may_see(each.status.limit)]


def set_budget(name: str, budget: Budget) -> None:
    """
    Keep a budget in the ledger, where it holds at once for every program that uses it.

    Raises:
        StoreError: The ledger cannot be written.
    """
    with _needed_ledger().changing() as connection:
        store_budget(connection, name, budget)


def remove_budget(name: str) -> bool:
    """Remove a budget from the ledger; whether it was there."""
    with _needed_ledger().changing() as connection:
        return forget_budget(connection, name)


def all_budgets() -> list[dict[str, Any]]:
    """Every budget of the settings and of the ledger, for each whose spending it counts: name, and as in `budgets`."""
    settings = load_settings()
    own = {} if settings.budget is None else {"AGENTSWARM_BUDGET_USD": Limit(settings.budget)}
    ledger = _needed_ledger()
    ledger.flush()
    return [{"name": name, **_as_dict(each)} for name, each in all_budget_forecasts(ledger, own, now_us())]


def _needed_ledger() -> Ledger:
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
    The images that were made, each with what it was made from and its edits.

    Args:
        which: Calls to look at. None: those of the scope, inside one with labels.

    Raises:
        ConfigurationError: Cost tracking is off.

        StoreError: The ledger cannot be read.
    """
    ledger = _needed_ledger()
    ledger.flush()
    return lineages_of(ledger, which or Filter(labels=current_scope().labels))


def print_llm_costs(days: float = 7) -> None:
    """Print what was spent in the last `days` times 24 hours."""
    print(render(get_llm_costs(days), "text"))  # noqa: T201 - printing is what it is for


def zone(name: str | None = None) -> ZoneInfo:
    """
    The time zone of reports.

    Raises:
        ConfigurationError: There is no such zone.
    """
    name = name or load_settings().timezone
    try:
        return ZoneInfo(name or tzlocal.get_localzone_name() or "UTC")
    except (KeyError, ValueError, OSError):
        raise ConfigurationError("The time zone is not known", hint="Give a name such as Europe/Berlin.") from None


def _ledger() -> Ledger | None:
    settings = load_settings()
    return get_ledger(database_url(settings)) if settings.cost_tracking else None


def _record_cost(ledger: Ledger, event: AnalyticsEvent, scope: Scope) -> Future[Admission] | None:
    """Add the event's metadata to the call that it speaks of; record it as a call of its own where there is none."""
    cost = cost_nano_of(event.metadata.get("cost"))
    model = event.metadata.get("model")
    recorded = scope.pending.claim(model, cost, uuid_of(event.metadata.get("call_id")))
    if recorded is None:
        return ledger.settle(cost_row(event, cost, scope))
    more = {k: v for k, v in event.metadata.items() if k not in ("model", "provider", "cost", "call_id")}
    ledger.annotate(recorded.attempt_id, safe_metadata(more))
    return None
