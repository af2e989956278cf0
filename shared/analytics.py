"""What was spent: events in, sums out."""

from __future__ import annotations

import asyncio
import re
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import tzlocal

# Packages, not names out of them: a report of costs needs few of their modules.
from shared import ledger as ledgers, models, prices, reports
from shared.budget import FOREVER_US, Budget, Limit
from shared.config import Settings, database_url, load_settings
from shared.errors import ConfigurationError, InvalidRequest, LLMError
from shared.internal.clock import now_us
from shared.internal.fair_pool import FairPool
from shared.internal.money import to_usd
from shared.internal.pending import RecordedCall
from shared.ledger import GRAINS, Filter, Ledger, Window, budget_forecasts, catch_up, get_ledger
from shared.reports import (
    COLUMNS,
    OF_COSTS,
    check_names,
    dimensions,
    groups_of,
    narrowed,
    period_before,
    render,
    span_of,
    sum_costs,
    totals_of,
)
from shared.scope import Scope, current_scope, run_of_process
from shared.types import AnalyticsEvent, EventType

__all__ = ["AnalyticsEvent", "EventType", "get_llm_costs", "print_llm_costs", "record_event"]

_report_threads = FairPool("agentswarm-reports", threads=6, per_owner=2)


def record_event(event: AnalyticsEvent) -> None:
    """
    Record an event in the ledger.

    The client already records the cost of every call. An LLM_COST event about such a call only adds its metadata to
    it; any other LLM_COST event counts as a call of its own. An event is about a call that no other event was about,
    with the same `call_id`, or else the same model (any of its names) and cost (as it is, or rounded to six decimals),
    that was made in the same scope, in a scope inside it, or in a scope around it; where it is not the same scope, the
    tokens must not differ either. An event of a tool is about that tool's calls only, and only its own events are about
    the calls of a tool that an agent runs.
    One with a negative cost is an adjustment, such as a credit: it counts no call, and lowers the total of its day.


    Args:
        event: Its `metadata` may contain model, provider, cost (US$; a number, or the text of one), prompt_tokens,
            completion_tokens or total_tokens, call_id, reference, and entries of your own; never put prompts or keys
            there.

    Raises:
        InvalidRequest: The cost is negative, and an agent has called this tool.
    """
    ledger = _ledger()
    if ledger is None:
        return
    scope = current_scope()
    if event.event_type != EventType.LLM_COST:
        ledger.record(ledgers.event_row(event, scope))
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
    where: Mapping[str, str] | None = None,
    compare: bool = False,
) -> dict[str, Any]:
    """
    What was spent, according to the ledger; inside a scope with labels, only what those labels spent.

    Args:
        days: Days to look back (periods of 24 hours), when `since` is not given.

        since: First moment or period; text is ISO 8601 (a day, a time, 2026-W48, 2026-11 or 2026), today, yesterday,
            or so long ago: 24h, 7d, 2w.

        until: Last moment, exclusive; a day, week, month or year is inclusive.

        tz: IANA time zone that defines days. None: AGENTSWARM_TIMEZONE, else the system's.

        by: model, provider, tool, agent, hour, day, week, month, or a label such as "customer"; two with a comma, such
            as "customer,model". Adds "groups".

        where: Only calls of these values of model, provider, tool, agent or labels: {"customer": "acme"}.

        compare: Whether to add the costs of the period before: as many months, days or hours.

    Returns:
        total_cost (US$ known to be spent), total_cost_nano (the same in nano-dollars, exact), total_tokens,
        total_calls (answered calls), avg_cost_per_call (of calls whose cost is known, without adjustments; NaN if none
        is), adjustments (US$ that corrections and credits add to the total, or take from it), failed_calls,
        unpriced_calls (whose cost is unknown, at least in part) and unknown_cost_requests (whose cost is unknown, and
        in no total), cost_is_lower_bound (whether something that was billed has no known price, so that the totals are
        at least what was charged) and lower_bound_requests (how many requests that concerns), cost_by_provider,
        cost_by_model, cost_by_tool, cost_by_agent (highest cost first) and cost_by_day (US$; NaN where every cost is
        unknown), calls_by_model, avg_cost_by_model, unknown_cost_by_provider, unknown_cost_by_model,
        lower_bound_by_provider and lower_bound_by_model (requests, where there are any), agent_turns (answered turns
        of the agents themselves; None when agents used tools but their own turns were not tracked, so that no total
        includes those), budgets (see below), image_tokens_saved and image_cost_saved (by scaling images down before
        they were sent; US$), savings (None without AGENTSWARM_BASELINE_MODEL; else estimates in US$, none of which is
        in the totals: baseline_cost, what the same tokens would have cost with that model, uncached; saved, the
        difference to what these answers cost; saved_by_caches and saved_by_flex; with answers and rejected_answers),
        since, until, timezone, store, rows_read (why single requests had to be added up, which takes longer; None if
        they had not), removed_before (before when `ledger prune` has removed records; None if the window has none of
        them), is_incomplete (whether figures are missing because of that), waiting_records (records that could not be
        written yet, and are in no figure), and price_table (date and version of the built-in prices, and age_days).

        groups (with `by`): name, keys (the value of each dimension), cost (NaN if every cost is unknown), cost_nano
        (then None), avg_cost_per_call, tokens, input_tokens (cached_tokens among them), output_tokens, calls,
        failed_calls, unpriced_calls, cost_is_lower_bound, unknown_cost_requests, and share of the total (0 to 1; NaN
        where the cost is unknown). With `compare`, previous_cost and previous_cost_nano, if they are no periods.

        previous (with `compare`): the total of the period before, with the fields of a group, since and until.

        budgets, those that apply here now: limit, left and used in US$. What is used is spent (known costs), reserved
        (for reserved_requests, of which not all of the cost is known) or under_way (the most that running requests can
        cost). uncounted_requests have an unknown cost, and count with nothing. since and until are the ends of the
        window, None if it has none; lasts_s is the seconds that the rest lasts at the rate of the last 24 hours, None
        when nothing was spent.

    Raises:
        InvalidRequest: The window is not a span of time, or the ledger has no such dimension.

        ConfigurationError: The time zone is unknown, or cost tracking is off.

        StoreError: The ledger cannot be read.
    """
    which = Filter(labels=current_scope().labels)
    return costs_of(which, days, since=since, until=until, tz=tz, by=by, where=where, compare=compare)


def costs_of(
    which: Filter,
    days: float = 7,
    *,
    since: datetime | date | str | None = None,
    until: datetime | date | str | None = None,
    tz: str | None = None,
    by: str | None = None,
    where: Mapping[str, str] | None = None,
    compare: bool = False,
) -> dict[str, Any]:
    """The same as `get_llm_costs`, for the attempts that match `which`."""
    span = span_of(days, since=since, until=until, zone=zone(tz))
    costs = _costs_in(span, which, by=by, where=where or {}, compare=compare)
    return costs | {"days": days if since is None and until is None else None}


def _costs_in(
    span: Window, which: Filter, *, by: str | None, where: Mapping[str, str], compare: bool
) -> dict[str, Any]:
    ledger = _up_to_date()
    names = dimensions(by) if by else ()
    check_names(ledger, names, which, known=(*COLUMNS, *GRAINS))
    check_names(ledger, tuple(where), which, known=COLUMNS)
    which = narrowed(which, where)
    several = (names,) if names else ()
    costs, found = _costs_and_groups(ledger, span, which, where, several)
    compared = several if set(names).isdisjoint(GRAINS) else ()
    previous, earlier = _before(ledger, span, which, compared) if compare else (None, [])
    if names:
        costs["by"] = ",".join(names)
        [groups] = groups_of(ledger, span, several, which, found, earlier)
        costs["groups"] = groups.groups
        costs["rows_read"] = costs["rows_read"] or groups.rows_read
        costs["is_incomplete"] |= groups.is_incomplete
    return costs if previous is None else costs | {"previous": previous}


def _costs_and_groups(
    ledger: Ledger, span: Window, which: Filter, where: Mapping[str, str], several: Sequence[Sequence[str]]
) -> tuple[dict[str, Any], list[ledgers.Grouped]]:
    """The costs of a window, and what the ledger has by several other keys, read as of one moment."""
    found = ledgers.all_grouped(ledger, span, (*OF_COSTS, *several), which)
    costs = sum_costs(ledger, span, which, found[: len(OF_COSTS)])
    costs["budgets"] = _budgets(ledger)
    costs["price_table"] = price_table_age()
    may_estimate = load_settings().baseline_model and not costs["removed_before"]  # by single answers
    costs["savings"] = _savings(ledgers.answers_of(ledger, span, which)) if may_estimate else None
    if where:
        costs["where"] = dict(where)
    return costs, found[len(OF_COSTS) :]


def _before(
    ledger: Ledger, span: Window, which: Filter, several: Sequence[Sequence[str]]
) -> tuple[dict[str, Any], list[ledgers.Grouped]]:
    """The total of the period before, as "previous" is documented, and what the ledger has of it by several keys."""
    before = period_before(span)
    total, *found = ledgers.all_grouped(ledger, before, ((), *several), which)
    return totals_of(total) | dict(zip(("since", "until"), before.ends, strict=True)), found


def costs_page(
    days: float = 7,
    *,
    since: datetime | date | str | None = None,
    until: datetime | date | str | None = None,
    tz: str | None = None,
    where: Mapping[str, str] | None = None,
) -> str:
    """
    The report as one page of HTML, without scripts, which fetches nothing.

    Args:
        days, since, until, tz, where: As for `get_llm_costs`.

    Raises:
        InvalidRequest, ConfigurationError, StoreError: As for `get_llm_costs`.
    """
    span, inside, where = span_of(days, since=since, until=until, zone=zone(tz)), current_scope().labels, where or {}
    ledger = _up_to_date()
    check_names(ledger, tuple(where), Filter(labels=inside), known=COLUMNS)
    which = narrowed(Filter(labels=inside), where)
    keys = reports.page_keys(ledger, span, which)
    costs, found = _costs_and_groups(ledger, span, which, where, keys)
    costs["previous"], earlier = _before(ledger, span, which, keys[:-1])
    budgets = costs["budgets"] if inside else all_budgets()
    return reports.html_page(ledger, span, which, costs, budgets, dict(zip(keys, found, strict=True)), earlier)


async def report_off_loop[T](function: Callable[..., T], *args: Any, **keywords: Any) -> T:
    """Run a function that reads the ledger in a thread for reports, of which other tenants always find one free."""
    return await _report_threads.run(current_scope().owner, function, *args, **keywords)


def _savings(found: Sequence[ledgers.Answers]) -> dict[str, Any] | None:
    """
    Estimates in US$, apart from what was spent; None if the baseline model has no known price.

    Rejected answers cost what they cost, but are no answers that the baseline model would have had to give.
    """
    settings = load_settings()
    name = settings.baseline_model or ""
    catalogue = models.Catalogue.load(settings)
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


def _prices(name: str, tier: str | None, catalogue: models.Catalogue, settings: Settings) -> Mapping[str, Decimal]:
    """What a model costs, US$ by unit; empty if that is unknown."""
    try:
        found = models.resolve(name, catalogue=catalogue, settings=settings, scope=current_scope(), service_tier=tier)
    except LLMError:
        return {}
    return {str(unit): price for unit, price in found.rates.prices.items()}


def price_table_age() -> dict[str, Any]:
    """The date and version of the built-in price table, and its age in days."""
    day = prices.table_date()
    age = datetime.now(UTC).date() - date.fromisoformat(day)
    return {"date": day, "version": prices.table_version(day), "age_days": max(age.days, 0)}


def _budgets(ledger: Ledger) -> list[dict[str, Any]]:
    """The status of the budgets that apply here: those of the settings, of the scope and of the ledger."""
    scope, settings = current_scope(), load_settings()
    limits = [*([] if settings.budget is None else [Limit(settings.budget)]), *scope.limits]
    here = {"ts_us": now_us(), "agent": scope.agent, "tool": scope.tool, "run": scope.run or run_of_process()}
    forecasts = budget_forecasts(ledger, limits, here, scope.labels)
    applicable = [each for each in forecasts if any(each.status.whose) or not each.status.limit.dimensions]
    return [_as_dict(each) for each in applicable if scope.may_see(each.status.limit)]


def calls_of(
    kind: str = "latest",
    *,
    since: datetime | date | str | None = "7d",
    until: datetime | date | str | None = None,
    where: Mapping[str, str] | None = None,
    limit: int = 20,
    page: int = 1,
) -> list[dict[str, Any]]:
    """
    Single calls; inside a scope with labels, only those of the labels.

    Args:
        kind: latest, most-expensive, failed, or unknown (whose cost is unknown, at least in part).

        since, until, where: As for `get_llm_costs`.

        limit: Calls on a page, 1 to 1,000.

        page: Which page, from 1.

    Returns:
        Of each call_id, time, status, model, provider, attempts, tool, agent, labels, input_tokens, output_tokens,
        cost_usd (NaN if unknown), cost_nano, cost_is_lower_bound, unknown_cost_requests, reserved_usd and error_type.

    Raises:
        InvalidRequest: There is no such list, or no such name in the ledger.

        StoreError: The ledger cannot be read.
    """
    found = next((each for each in ledgers.KINDS if each == kind), None)
    if found is None or not 1 <= limit <= 1000 or page < 1:
        hint = f"Give {', '.join(ledgers.KINDS)}, and at most 1,000 on a page."
        raise InvalidRequest(f"There is no list of calls {kind[:40]!r}", hint=hint)
    ledger, span = _up_to_date(), span_of(since=since, until=until, zone=zone())
    which = Filter(labels=current_scope().labels)
    check_names(ledger, tuple(where or ()), which, known=COLUMNS)
    which = narrowed(which, where or {})
    return [
        reports.call_dict(each)
        for each in ledgers.calls_in(ledger, span, found, which, limit=limit, offset=(page - 1) * limit)
    ]


def removed_calls(
    *, since: datetime | date | str | None = None, until: datetime | date | str | None = None
) -> datetime | None:
    """
    Before when calls of a time have been removed by `ledger prune`; None if none of that time have.

    Args:
        since, until: As for `get_llm_costs`.
    """
    found, span = ledgers.removed_before(_required_ledger(), zone()), span_of(since=since, until=until, zone=zone())
    return found if found is not None and found.timestamp() * 1e6 > span.since_us else None


def call_of(call_id: uuid.UUID) -> dict[str, Any]:
    """
    One call with its attempts: why each was made, and why it costs what it costs.

    Raises:
        InvalidRequest: The ledger has no such call.

        StoreError: The ledger cannot be read.
    """
    ledger = _up_to_date()
    found = ledgers.call_record(ledger, call_id)
    if dict(found.last.labels) | dict(current_scope().labels) != dict(found.last.labels):
        raise InvalidRequest(f"This scope has no call {call_id}", hint="See `agentswarm-tools calls list`.")
    adjustments = [
        {
            "kind": row.adjustment_kind,
            "time": datetime.fromtimestamp(row.ts_us / 1e6, UTC),
            "cost_nano": row.cost_nano,
            "cost_usd": to_usd(row.cost_nano),
            "reserved_usd": to_usd(row.reserved_nano or 0),
        }
        for row in found.adjustments
    ]
    attempts = [reports.attempt_dict(row, found.attempts[0]) for row in found.attempts]
    return reports.call_dict(found) | {"attempt_count": len(attempts), "attempts": attempts, "adjustments": adjustments}


def set_budget(name: str, budget: Budget) -> None:
    """
    Store a budget in the ledger, where it applies immediately to every program that uses this ledger.

    Raises:
        StoreError: The ledger cannot be written.
    """
    with _required_ledger().changing() as connection:
        ledgers.store_budget(connection, name, budget)


def deliver_alerts() -> list[dict[str, Any]]:
    """
    Look whether a budget has reached 50, 80 or 100 %, or spending has jumped, and send what is due to the webhook.

    Returns:
        Of each alert that was sent: id, text (with all names), delivered, and the problem if it was not.

    Raises:
        StoreError: The ledger cannot be read or written.
    """
    ledger = _up_to_date()
    return [
        {"id": str(each.alert.alert_id), "text": each.text, "delivered": each.problem is None, "problem": each.problem}
        for each in reports.check_alerts(ledger)
    ]


def remove_budget(name: str) -> bool:
    """Remove a budget from the ledger; returns whether it existed."""
    with _required_ledger().changing() as connection:
        return ledgers.forget_budget(connection, name)


def release_reservations(
    *, call_id: uuid.UUID | None = None, before_us: int | None = None, write: bool = False
) -> list[ledgers.Reservation]:
    """
    What budgets reserve for requests of unknown cost, oldest first; freed if `write` is set.

    Args:
        call_id: Only that of one call. None: of all.

        before_us: Only that of requests before, in microseconds since 1970.
    """
    ledger = _up_to_date()
    return (ledgers.release if write else ledgers.open_reservations)(ledger, call_id=call_id, before_us=before_us)


def adjust_cost(
    cost_nano: int,
    *,
    ts_us: int,
    call_id: uuid.UUID | None = None,
    provider: str | None = None,
    model: str | None = None,
    labels: Mapping[str, str] | None = None,
    reference: str | None = None,
    write: bool = False,
) -> ledgers.AttemptRow:
    """
    The adjustment that adds to what was spent; entered if `write` is set.

    Args:
        ts_us: In the day that it corrects, in microseconds since 1970; that of the call where one is given. In a month
            that is closed it becomes now.

    Raises:
        InvalidRequest: There is no such call.

        StoreError: The ledger cannot be read, or written.
    """
    ledger = _required_ledger()
    if call_id is not None:
        row = ledgers.adjustment_of(ledgers.attempt_of(ledger, call_id), cost_nano, "manual", reference or str(call_id))
    else:
        known = {"provider": provider or (model or "").partition("/")[0] or None, "model": model}
        named = {name: value for name, value in known.items() if value}
        row = ledgers.adjustment(cost_nano, ts_us, "manual", adjusts=reference, labels=labels, **named)
    row = ledgers.as_entered(ledger, row)
    if write:
        ledgers.enter(ledger, row)
    return row


def reprice_costs(
    since_us: int, until_us: int, *, write: bool = False
) -> tuple[list[reports.Repriced], list[tuple[str, int, int]]]:
    """The requests of a time that cost another amount by today's prices, and by model how many and by how much."""
    ledger = _required_ledger()
    ledger.flush()
    found = reports.reprice(ledger, models.Catalogue.load(load_settings()), since_us, until_us, write=write)
    return found, list(reports.totals(found))


def close_books(month: str, *, tz: str | None = None) -> ledgers.ClosedMonth:
    """
    Close a month: its figures never change again, and what comes late is dated to when it is entered.

    Args:
        month: Such as 2026-11.

        tz: The time zone of the books. None: that of the last closed month, else that of reports.

    Raises:
        InvalidRequest: It cannot be closed; the message says why.

        StoreError: The ledger cannot be read, or written.
    """
    ledger = _up_to_date()
    if not re.fullmatch(r"\d{4}-\d{2}", month):
        raise InvalidRequest(f"{month[:40]!r} is not a month", hint="Give 2026-11, for example.")
    before = None if tz else next((each.zone for each, _ in reversed(ledgers.closed_months(ledger))), None)
    return ledgers.close_month(ledger, month, span_of(since=month, until=month, zone=zone(tz or before)))


def closed_books() -> list[tuple[ledgers.ClosedMonth, ledgers.Figures | None]]:
    """
    Every closed month, oldest first, with its figures as they are now, which should be those that it has; None if its
    records and sums have been removed.
    """
    return ledgers.closed_months(_up_to_date())


def all_budgets() -> list[dict[str, Any]]:
    """Every budget of the settings and of the ledger, once for each group it counts: its name, and as in `budgets`."""
    settings = load_settings()
    from_settings = {} if settings.budget is None else {"AGENTSWARM_BUDGET_USD": Limit(settings.budget)}
    ledger = _up_to_date()
    return [
        {"name": name, **_as_dict(each)} for name, each in ledgers.all_budget_forecasts(ledger, from_settings, now_us())
    ]


def budgets_of(where: Mapping[str, str]) -> list[dict[str, Any]]:
    """
    The budgets of the settings and of the ledger that apply to calls of these labels, agent or tool, as in `budgets`.

    Raises:
        InvalidRequest: A budget knows no such name.
    """
    ledger, settings = _up_to_date(), load_settings()
    named = {name: value for name, value in where.items() if name in ("agent", "tool")}
    if refused := [name for name in where if name in COLUMNS and name not in named]:
        hint = "Give an agent, a tool or a label such as customer=acme."
        raise InvalidRequest(f"No budget is of a {refused[0]}", hint=hint)
    labels = {name: value for name, value in where.items() if name not in named}
    limits = [] if settings.budget is None else [Limit(settings.budget)]
    found = budget_forecasts(ledger, limits, {"ts_us": now_us(), "run": run_of_process(), **named}, labels)
    return [_as_dict(each) for each in found if any(each.status.whose) or not each.status.limit.dimensions]


def forecast_costs(where: Mapping[str, str] | None = None, *, tz: str | None = None) -> dict[str, Any] | None:
    """
    What the current month will cost at its end, at the mean rate of the last 14 complete days.

    Args:
        where, tz: As for `get_llm_costs`.

    Returns:
        US$: spent so far, expected, and low and high, between which it ends up in 8 cases of 10; the number of days
        that the rate is of, and until, the month's end. None while fewer than three days are complete. Requests of
        unknown cost are in none of it.

    Raises:
        InvalidRequest, ConfigurationError, StoreError: As for `get_llm_costs`.
    """
    ledger, which = _up_to_date(), Filter(labels=current_scope().labels)
    check_names(ledger, tuple(where or ()), which, known=COLUMNS)
    found = reports.month_forecast(ledger, narrowed(which, where or {}), datetime.now(UTC).astimezone(zone(tz)))
    if found is None:
        return None
    amounts = {name: to_usd(getattr(found, f"{name}_nano")) for name in ("spent", "expected", "low", "high")}
    return {**amounts, "days": found.days, "until": found.until.isoformat()}


def _up_to_date() -> Ledger:
    """The ledger with everything of this process in it, nothing under way that has ended, and its sums as they are."""
    ledger = _required_ledger()
    ledger.flush()
    ledger.settle_expired()
    catch_up(ledger)
    return ledger


def _required_ledger() -> Ledger:
    ledger = _ledger()
    if ledger is None:
        raise ConfigurationError("Cost tracking is off", hint="Set LITELLM_COST_TRACKING=true.")
    return ledger


def _as_dict(forecast: ledgers.BudgetForecast) -> dict[str, Any]:
    status, terms = forecast.status, forecast.status.limit.budget
    return {
        "budget": str(status),
        "limit": terms.limit_usd,
        "left": to_usd(status.left_nano),
        "used": to_usd(status.counted_nano),
        "spent": to_usd(status.spent_nano),
        "reserved": to_usd(status.reserved_nano),
        "reserved_requests": status.reserved_requests,
        "under_way": to_usd(status.under_way_nano),
        "uncounted_requests": forecast.uncounted_requests,
        "window": terms.window,
        "warn_at": terms.warn_at,
        **_ends(forecast),
        "lasts_s": forecast.lasts_s,
    }


def _ends(forecast: ledgers.BudgetForecast) -> dict[str, str | None]:
    """The ends of a budget's window, in its time zone; None for a window without end."""
    status = forecast.status
    ends = {"since": status.since_us, "until": status.until_us}
    if status.until_us >= FOREVER_US:
        return dict.fromkeys(ends)
    tz = ZoneInfo(status.limit.budget.tz or "UTC")
    return {name: datetime.fromtimestamp(end_us / 1e6, tz).isoformat() for name, end_us in ends.items()}


def image_lineages(which: Filter | None = None) -> list[ledgers.ImageLineage]:
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
    return ledgers.lineages_of(ledger, which or Filter(labels=current_scope().labels))


def print_llm_costs(days: float = 7) -> None:
    """Print what was spent in the last `days` days (periods of 24 hours)."""
    text = render(get_llm_costs(days), "text")
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # labels may have letters that the console has not
    print(text.encode(encoding, "replace").decode(encoding))  # noqa: T201 - printing is this function's purpose


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
    return open_ledger(settings) if settings.cost_tracking else None


def open_ledger(settings: Settings) -> Ledger:
    """This process's ledger, watched for alerts where they are set up."""
    ledger = get_ledger(database_url(settings))
    if settings.alert_url is not None:
        reports.watch(ledger)
    return ledger


def _record_cost(ledger: Ledger, event: AnalyticsEvent, scope: Scope) -> Future[ledgers.Admission] | None:
    """Add the event's metadata to the call that it matches; without a match, record it as a call of its own."""
    cost = ledgers.cost_nano_of(event.metadata.get("cost"))
    if cost is not None and cost < 0:
        if scope.from_agent:
            raise InvalidRequest("Agents cannot enter a credit", hint="Enter it from your own code.")
        return ledger.settle(ledgers.adjustment_row(event, cost, scope))
    recorded = _recorded(event, scope, cost, ledger.name)
    if recorded is None:
        return ledger.settle(ledgers.cost_row(event, cost, scope))
    more = {k: v for k, v in event.metadata.items() if k not in ("model", "provider", "cost", "call_id")}
    ledger.annotate(recorded.attempt_id, ledgers.safe_metadata(more))
    return None


def _recorded(event: AnalyticsEvent, scope: Scope, cost: int | None, store: str) -> RecordedCall | None:
    """The call of the client that an event is about, by its model's name as it is, or by what that name stands for."""
    model, call_id = event.metadata.get("model"), ledgers.uuid_of(event.metadata.get("call_id"))
    name = model if isinstance(model, str) else None
    recorded = scope.pending.claim(name, cost, call_id, usage=event.metadata, store=store)
    if recorded is not None or name is None or call_id is not None:
        return recorded
    known = models.known_model(name, models.Catalogue.load(load_settings()))
    return None if known is None else scope.pending.claim(known.name, cost, usage=event.metadata, store=store)
