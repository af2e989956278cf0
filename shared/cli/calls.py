"""Single calls: which they were, what they cost, and why."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Any

import typer

from shared.analytics import call_of, calls_of, removed_calls, zone
from shared.cli.console import AsJson, err, out, print_json
from shared.cli.report import Where, conditions
from shared.cli.tables import print_names, print_wrapped
from shared.errors import InvalidRequest
from shared.reports import counted, money, printable

calls = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
_DECIMALS = 6


@calls.command(name="list")
def list_command(
    most_expensive: Annotated[bool, typer.Option("--most-expensive", help="Those that cost the most.")] = False,
    latest: Annotated[bool, typer.Option("--latest", help="The latest (default).")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="The latest that failed.")] = False,
    unknown: Annotated[
        bool, typer.Option("--unknown", help="The latest whose cost is unknown, or at least so much.")
    ] = False,
    since: Annotated[str | None, typer.Option(help="As for report: yesterday, 7d, 2026-11; 7d by default.")] = None,
    until: Annotated[str | None, typer.Option(help="As for report.")] = None,
    where: Where = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Calls on a page.")] = 20,
    page: Annotated[int, typer.Option(min=1, max=100_000, help="Which page.")] = 1,
    as_json: AsJson = False,
) -> None:
    """List single calls with their costs."""
    chosen = {"most-expensive": most_expensive, "latest": latest, "failed": failed, "unknown": unknown}
    kinds = [kind for kind, is_chosen in chosen.items() if is_chosen] or ["latest"]
    if len(kinds) > 1:
        raise InvalidRequest(f"--{kinds[0]} and --{kinds[1]} are two lists", hint="Ask for one of them.")
    found = calls_of(kinds[0], since=since or "7d", until=until, where=conditions(where), limit=limit, page=page)
    removed = removed_calls(since=since or "7d", until=until)
    if removed:
        err.print(f"Calls before {removed:%Y-%m-%d %H:%M} were removed (ledger prune), and are not in this list.")
    if as_json:
        print_json(found)
        return
    if not found:
        out.print("There are no such calls.")
        return
    rows = [(each["call_id"], _clock(each["time"]), cost_text(each), each["status"], each["model"]) for each in found]
    print_names(("Call", "Time", "Cost", "Status", "Model"), rows, words=2)
    if len(found) == limit:
        out.print(f"For more: --page {page + 1}")


@calls.command()
def show(
    call_id: Annotated[str, typer.Argument(help="The id of a call, from `calls list`, an answer or an error.")],
    as_json: AsJson = False,
) -> None:
    """Show a call with its attempts: why each was made, and why it costs what it costs."""
    try:
        named = uuid.UUID(call_id)
    except ValueError:
        hint = "Take it from `agentswarm-tools calls list`."
        raise InvalidRequest(f"{call_id[:60]!r} is not the id of a call", hint=hint) from None
    call = call_of(named)
    if as_json:
        print_json(call)
        return
    where = [f"{name}={value}" for name, value in call["labels"].items()]
    whose = [f"{name} {call[name]}" for name in ("tool", "agent", "run") if call[name]]
    out.print(f"Call {call['call_id']}  {_clock(call['time'])}  {call['operation']}")
    print_wrapped(f"{cost_text(call)}, {call['status']}, {counted(call['attempt_count'], 'attempt')}")
    if where or whose:
        print_wrapped(printable(", ".join([*whose, *where])))
    for each in call["attempts"]:
        _print_attempt(each)
    for each in call["adjustments"]:
        freed = f", ${-each['reserved_usd']:.6f} released" if each["reserved_usd"] < 0 else ""
        print_wrapped(printable(f"Adjustment: {cost_text(each)}{freed} ({each['kind']}, {_clock(each['time'])})"))


def cost_text(priced: dict[str, Any]) -> str:
    """A cost in words: the amount, "at least" the amount, or "unknown"."""
    nano = priced["cost_nano"]
    return f"{'at least ' if priced.get('cost_is_lower_bound') and nano is not None else ''}{money(nano, _DECIMALS)}"


def _print_attempt(each: dict[str, Any]) -> None:
    took = "" if each["duration_ms"] is None else f", {each['duration_ms'] / 1000:.2f} s"
    error = each["error_type"] and f", {each['error_type']}"
    http = each["http_status"] and f" (HTTP {each['http_status']})"
    served = f" (answered by {each['response_model']})" if each["response_model"] not in (None, each["model"]) else ""
    out.print("")
    ended = f"{each['status']}{error or ''}{http or ''}{took}"
    print_wrapped(printable(f"{each['attempt']}. {each['model']}{served}, {each['why']}: {ended}"))
    if each["happened"] is not None:
        entered = f"   Happened {_clock(each['happened'])}, in a month that was closed; entered {_clock(each['time'])}"
        print_wrapped(entered, "   ")
    counts = {
        "input": "input_tokens",
        "cached": "cached_tokens",
        "output": "output_tokens",
        "reasoning": "reasoning_tokens",
    }
    tokens = ", ".join(f"{each[own]:,} {name}" for name, own in counts.items() if each[own] is not None)
    tier = f", {each['service_tier']} tier" if each["service_tier"] else ""
    print_wrapped(printable(f"   Tokens: {tokens or 'not reported'}{tier}"), "   ")
    print_wrapped(printable(f"   Cost: {cost_text(each)}: {each['cost_why']}"), "   ")
    held = "none" if each["bound_usd"] != each["bound_usd"] else f"${each['bound_usd']:.6f}"
    reserved = f", ${each['reserved_usd']:.6f} still reserved" if each["reserved_usd"] else ""
    print_wrapped(f"   Upper bound: {held}{reserved}", "   ")


def _clock(time: datetime) -> str:
    return f"{time.astimezone(zone()):%Y-%m-%d %H:%M:%S}"
