"""What was spent, for code and people: events in, sums out."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import tzlocal

from shared import config, ledger_accounts, ledger_images, ledger_query
from shared.budget import Budget, Limit
from shared.errors import ConfigurationError
from shared.ledger import Ledger, bucket_of, get_ledger, new_id, now_us
from shared.ledger_query import Filter, Stands
from shared.pricing import to_nano, to_usd
from shared.redaction import redact
from shared.report import render
from shared.runs import run_of_process
from shared.scope import Scope, current_scope
from shared.types import AnalyticsEvent, EventType

__all__ = ["AnalyticsEvent", "EventType", "get_llm_costs", "print_llm_costs", "record_event"]

_MAX_VALUE_CHARS = 500
_MAX_ENTRIES = 30
_MAX_COST_USD = 1_000_000.0


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
    write: Future[Any]
    if event.event_type == EventType.LLM_COST:
        write = _cost_write(ledger, event, scope)
    else:
        write = ledger.submit("event", _event_row(event, scope), scope.labels)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        write.result()
    else:
        scope.journal.owe(write)


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
        knows, not in the totals), cost_by_provider, cost_by_model, calls_by_model, cost_by_tool, cost_by_agent
        (dearest first), cost_by_day, agent_turns (answered turns of agents themselves; None when agents used tools
        and nobody tracked their turns, whose cost is then in no total), budgets (those that hold here now: limit, used
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
    span = ledger_query.window(days, since=since, until=until, zone=zone(tz))
    ledger.flush()
    ledger.settle_expired()
    costs = ledger_query.costs(ledger, span, which, by)
    costs |= ledger_images.savings(ledger, span, which)
    costs["days"] = days if since is None and until is None else None
    costs["budgets"] = _budgets(ledger)
    return costs


def _budgets(ledger: Ledger) -> list[dict[str, Any]]:
    """How the budgets stand that hold here: of the settings, of the scope and of the ledger."""
    scope, settings = current_scope(), config.load_settings()
    limits = [*([] if settings.budget is None else [Limit(settings.budget)]), *scope.limits]
    here = {"ts_us": now_us(), "agent": scope.agent, "tool": scope.tool, "run": scope.run or run_of_process()}
    found = ledger_query.standings(ledger, limits, here, scope.labels)
    mine = [each for each in found if any(each.standing.whose) or not each.standing.limit.dimensions]
    return [_as_dict(each) for each in mine if scope.may_see(each.standing.limit)]


def set_budget(name: str, budget: Budget) -> None:
    """
    Keep a budget in the ledger, where it holds at once for every program that uses it.

    Raises:
        StoreError: The ledger cannot be written.
    """
    with _needed_ledger().changing() as connection:
        ledger_accounts.store(connection, name, budget)


def remove_budget(name: str) -> bool:
    """Remove a budget from the ledger; whether it was there."""
    with _needed_ledger().changing() as connection:
        return ledger_accounts.forget(connection, name)


def all_budgets() -> list[dict[str, Any]]:
    """Every budget of the settings and of the ledger, for each whose spending it counts: name, and as in `budgets`."""
    settings = config.load_settings()
    own = {} if settings.budget is None else {"AGENTSWARM_BUDGET_USD": Limit(settings.budget)}
    ledger = _needed_ledger()
    ledger.flush()
    return [{"name": name, **_as_dict(each)} for name, each in ledger_query.all_standings(ledger, own, now_us())]


def _needed_ledger() -> Ledger:
    ledger = _ledger()
    if ledger is None:
        raise ConfigurationError("Cost tracking is off", hint="Set LITELLM_COST_TRACKING=true.")
    return ledger


def _as_dict(stands: Stands) -> dict[str, Any]:
    standing, terms = stands.standing, stands.standing.limit.budget
    return {
        "budget": str(standing),
        "limit": terms.limit_usd,
        "left": to_usd(standing.left_nano),
        "used": to_usd(standing.counted_nano),
        "window": terms.window,
        "lasts_s": stands.lasts_s,
    }


def image_families(which: Filter | None = None) -> list[ledger_images.Family]:
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
    return ledger_images.families(ledger, which or Filter(labels=current_scope().labels))


def print_llm_costs(days: float = 7) -> None:
    """Print what was spent in the last `days` times 24 hours."""
    print(render(get_llm_costs(days), "text"))  # noqa: T201 - printing is what it is for


def zone(name: str | None = None) -> ZoneInfo:
    """
    The time zone of reports.

    Raises:
        ConfigurationError: There is no such zone.
    """
    name = name or config.load_settings().timezone
    try:
        return ZoneInfo(name or tzlocal.get_localzone_name() or "UTC")
    except (KeyError, ValueError, OSError):
        raise ConfigurationError("The time zone is not known", hint="Give a name such as Europe/Berlin.") from None


def _ledger() -> Ledger | None:
    settings = config.load_settings()
    return get_ledger(config.database_url(settings)) if settings.cost_tracking else None


def _cost_write(ledger: Ledger, event: AnalyticsEvent, scope: Scope) -> Future[Any]:
    cost = _cost_nano(event.metadata.get("cost"))
    model = event.metadata.get("model")
    recorded = scope.journal.claim(model, cost, _uuid(event.metadata.get("call_id")))
    if recorded is not None:
        spoken = {k: v for k, v in event.metadata.items() if k not in ("model", "provider", "cost", "call_id")}
        return ledger.submit("metadata", {"attempt_id": recorded.attempt_id, "metadata": _safe(spoken)}, {})
    return ledger.submit("settle", _cost_row(event, cost, scope), scope.labels)


def _cost_row(event: AnalyticsEvent, cost: int | None, scope: Scope) -> dict[str, Any]:
    """A cost that came from elsewhere, as a call of one attempt."""
    said = event.metadata
    ts_us = _time_us(event)
    prompt, completion = _count(said.get("prompt_tokens")), _count(said.get("completion_tokens"))
    if prompt is None and completion is None:
        prompt = _count(said.get("total_tokens"))
    model = _name(said.get("model")) or "(unknown)"
    return {
        "attempt_id": event.event_id or new_id(),
        "call_id": _uuid(said.get("call_id")) or new_id(),
        "attempt_number": 1,
        "ts_us": ts_us,
        "bucket": bucket_of(ts_us),
        "status": "reported",
        "operation": _name(said.get("task_type")) or "chat_completion",
        "provider": _name(said.get("provider")) or "(unknown)",
        "requested_model": model,
        "model": model,
        "tool": event.tool_name or scope.tool,
        "agent": scope.agent,
        "run": scope.run or run_of_process(),
        "conversation": scope.conversation,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "usage_source": "unknown",
        "cost_nano": cost,
        "cost_source": "unknown" if cost is None else "reported",
        "calls": 1,
        "failed_calls": 0,
        "unpriced_calls": int(cost is None),
        "stream": False,
        "metadata": _safe(said),
    }


def _event_row(event: AnalyticsEvent, scope: Scope) -> dict[str, Any]:
    return {
        "event_id": event.event_id or new_id(),
        "ts_us": _time_us(event),
        "event_type": str(event.event_type)[:40],
        "tool": event.tool_name or scope.tool,
        "agent": scope.agent,
        "run": scope.run or run_of_process(),
        "conversation": scope.conversation,
        "labels": dict(scope.labels),
        "metadata": _safe(event.metadata),
    }


def _time_us(event: AnalyticsEvent) -> int:
    try:
        return now_us() if event.timestamp is None else round(event.timestamp.timestamp() * 1e6)
    except (OverflowError, ValueError):  # The first and the last day of the calendar have no UTC in some zones.
        return now_us()


def _safe(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and short texts without secrets; nothing else belongs in the ledger."""
    kept: dict[str, Any] = {}
    for key, value in list(metadata.items())[:_MAX_ENTRIES]:
        name = redact(key, limit=60)
        if isinstance(value, float) and not math.isfinite(value):
            kept[name] = None
        elif value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63):
            kept[name] = value
        else:
            kept[name] = redact(_text(value), limit=_MAX_VALUE_CHARS)
    return kept


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - what a tool puts into its metadata must not make its call fail
        return f"({type(value).__name__})"


def _cost_nano(value: Any) -> int | None:
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_COST_USD:
        return None
    return to_nano(float(value))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**12 else None


def _name(value: Any) -> str | None:
    return redact(value) if isinstance(value, str) and value else None


def _uuid(value: Any) -> uuid.UUID | None:
    try:
        return uuid.UUID(_text(value)) if value else None
    except ValueError:
        return None
