"""Look after the ledger: corrections, closed months, old records, checks, backup."""

from __future__ import annotations

import uuid
from dataclasses import asdict, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer

from shared.analytics import adjust_cost, close_books, closed_books, release_reservations, reprice_costs, zone
from shared.cli.console import AsJson, Yes, confirm, err, out, print_json
from shared.cli.report import conditions
from shared.config import database_url, load_settings
from shared.errors import InvalidRequest
from shared.internal.money import to_nano, to_usd
from shared.internal.serialize import to_json
from shared.ledger import (
    FORGOTTEN,
    ClosedMonth,
    Ledger,
    Window,
    back_up,
    forget,
    get_ledger,
    known_of,
    problems,
    prunable,
    prune,
    repair,
    vacuum,
)
from shared.reports import COLUMNS, EXACT, counted, money, printable

ledger = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Write = Annotated[bool, typer.Option("--write/--dry-run", help="Do it, or only show what would be done.")]
_NOT_DONE = "Nothing was changed."


@ledger.command()
def release(
    call_id: Annotated[str | None, typer.Argument(help="The call whose reservations to free.")] = None,
    before: Annotated[str | None, typer.Option(help="Free those of requests before this day: 2026-11-24.")] = None,
    write: Write = True,
    as_json: AsJson = False,
) -> None:
    """Free what budgets reserve for requests of unknown cost; without arguments, list all of it."""
    if call_id is not None and before is not None:
        raise InvalidRequest("Give a call id or --before, not both", hint="Leave one of them out.")
    write = write and (call_id is not None or before is not None)
    named = None if call_id is None else _uuid(call_id)
    before_us = None if before is None else _us(_day(before), hour=0)
    found = release_reservations(call_id=named, before_us=before_us, write=write)
    if as_json:
        out.out(to_json({"released": write, "reservations": [_as_dict(each) for each in found]}, indent=2))
        return
    for each in found:
        what = f"{each.status}{f' ({each.error_type})' if each.error_type else ''}"
        out.print(
            f"{_time(each.ts_us)}  ${to_usd(each.reserved_nano):.6f}  {printable(each.model)}  {what}  {each.call_id}"
        )
    total = sum(each.reserved_nano for each in found)
    verb = "released" if write else "reserved"
    out.print(f"${to_usd(total):.6f} {verb} for {len(found)} {'request' if len(found) == 1 else 'requests'}.")
    if found and not write and (call_id or before):
        out.print(_NOT_DONE)


@ledger.command(context_settings={"ignore_unknown_options": True})
def adjust(
    amount: Annotated[str, typer.Argument(help="US$ to add to what was spent; negative for a credit: -4.20.")],
    day: Annotated[str | None, typer.Option("--date", help="The day that it corrects; today by default.")] = None,
    call: Annotated[str | None, typer.Option(help="The call that it corrects; then the day is the call's.")] = None,
    provider: Annotated[str | None, typer.Option(help="Provider that it concerns.")] = None,
    model: Annotated[str | None, typer.Option(help="Model that it concerns, as provider/model.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Whom it concerns, such as customer=acme.")] = None,
    reference: Annotated[str | None, typer.Option(help="What it refers to, such as an invoice.")] = None,
    write: Write = False,
    as_json: AsJson = False,
) -> None:
    """Correct what was spent, by a credit or a charge of its own; the requests stay as they are."""
    nano = _nano(amount)
    if call is not None and (day or provider or model or label):
        raise InvalidRequest("--call says already what is corrected", hint="Leave out the others, or --call.")
    row = adjust_cost(
        nano,
        call_id=None if call is None else _uuid(call),
        ts_us=_us(_today() if day is None else _day(day), hour=12),
        provider=provider,
        model=model,
        labels=dict(map(_label, label or ())),
        reference=reference,
        write=write,
    )
    if as_json:
        shown = {"id": str(row.attempt_id), "time": _iso(row.ts_us), "cost_usd": to_usd(row.cost_nano)}
        shown |= {"corrects": None if row.happened_us is None else _iso(row.happened_us)}
        what = {"provider": row.provider, "model": row.model, "labels": dict(row.labels), "adjusts": row.adjusts}
        out.out(to_json({"written": write, **shown, **what}, indent=2))
        return
    labels = "".join(f", {name}={value}" for name, value in row.labels.items())
    about = printable(f"{row.provider}, {row.model}{labels}{f', {row.adjusts}' if row.adjusts else ''}")
    out.print(f"{_time(row.ts_us)}  {_signed(nano)}  {about}")
    if row.happened_us is not None:
        out.print(f"It is dated to now, because {_time(row.happened_us)} is in a month that is closed.")
    if not write:
        out.print(f"{_NOT_DONE} Add --write to enter it.")


@ledger.command()
def reprice(
    since: Annotated[str, typer.Option(help="First day: 2026-11-01.")],
    until: Annotated[str | None, typer.Option(help="Last day; today by default.")] = None,
    write: Write = True,
    as_json: AsJson = False,
) -> None:
    """Price requests again by today's table, and enter the differences; doing it twice adds nothing."""
    end = (_today() if until is None else _day(until)) + timedelta(days=1)
    found, by_model = reprice_costs(_us(_day(since), hour=0), _us(end, hour=0), write=write)
    total = sum(nano for _, _, nano in by_model)
    if as_json:
        models = [{"model": name, "requests": count, "cost_usd": to_usd(nano)} for name, count, nano in by_model]
        out.out(to_json({"written": write, "cost_usd": to_usd(total), "models": models}, indent=2))
        return
    for name, count, nano in by_model:
        out.print(f"{_signed(nano)}  {printable(name)}  {count} {'request' if count == 1 else 'requests'}")
    out.print(f"{_signed(total)} by today's prices, for {len(found)} {'request' if len(found) == 1 else 'requests'}.")
    if found and not write:
        out.print(_NOT_DONE)


@ledger.command()
def close(
    month: Annotated[str | None, typer.Argument(help="The month: 2026-11.")] = None,
    tz: Annotated[str | None, typer.Option(help="Time zone of the books; that of the last closed month.")] = None,
    show: Annotated[bool, typer.Option("--list", help="List the closed months, and check their figures.")] = False,
    as_json: AsJson = False,
) -> None:
    """Close a month: its figures never change again, and what comes late is dated to when it is entered."""
    if show or month is None:
        _print_closed(as_json=as_json)
        return
    found = close_books(month, tz=tz)
    if as_json:
        print_json(_closed_dict(found))
        return
    out.print(f"{month} is closed ({found.zone}). Its figures stay as they are:")
    out.print(_figures_text(found))


def _print_closed(*, as_json: bool) -> None:
    """Print the closed months; exit with code 1 if the figures of one have changed."""
    found = closed_books()
    changed = [each.month for each, now in found if now not in (None, each.figures)]
    if as_json:
        print_json(
            [_closed_dict(each) | {"unchanged": None if now is None else each.figures == now} for each, now in found]
        )
    elif not found:
        out.print("No month is closed. Close one with: agentswarm-tools ledger close 2026-11")
    for each, now in found if not as_json else ():
        out.print(_figures_text(each))
        if now is None:
            out.print("  (not checked: its records and sums have been removed)")
        elif each.figures != now:
            out.print(f"FAIL  now it is {_figures_text(replace(each, figures=now))}")
    if changed:
        raise typer.Exit(1)


def _figures_text(closed: ClosedMonth) -> str:
    figures = closed.figures
    cost = money(figures.cost_nano, EXACT)
    is_part = figures.unknown_requests or figures.lower_bound_requests
    unknown = f", plus {counted(figures.unknown_requests, 'request')} of unknown cost" * bool(figures.unknown_requests)
    reserved = f", {money(figures.reserved_nano, EXACT)} reserved" if figures.reserved_nano else ""
    when = f"closed {datetime.fromtimestamp(closed.closed_us / 1e6, ZoneInfo(closed.zone)):%Y-%m-%d %H:%M}"
    return (
        f"{closed.month}  {'at least ' if is_part else ''}{cost}{unknown}{reserved}, "
        f"{counted(figures.calls, 'call')}, {counted(figures.requests, 'record')} ({when}, {closed.zone})"
    )


def _closed_dict(closed: ClosedMonth) -> dict[str, Any]:
    figures = asdict(closed.figures)
    ends = {"since": _iso(closed.since_us), "until": _iso(closed.until_us), "closed": _iso(closed.closed_us)}
    usd = {"cost_usd": to_usd(figures["cost_nano"]), "reserved_usd": to_usd(figures["reserved_nano"])}
    return {"month": closed.month, "timezone": closed.zone, **ends, **figures, **usd}


def _ledger() -> Ledger:
    return get_ledger(database_url(load_settings()))


@ledger.command()
def check() -> None:
    """Check the file, the sums, the clocks and what waits; exit with code 1 if there is a problem."""
    with err.status("Checking ..."):
        found = list(problems(_ledger()))
    for each in found:
        out.print(f"FAIL  {printable(each)}")
    if found:
        raise typer.Exit(1)
    out.print(f"The ledger {printable(_ledger().name)} is in order.")


@ledger.command(name="repair")
def repair_command() -> None:
    """Enter what waits, date records from a clock that was ahead to now, and compute all sums anew."""
    with err.status("Repairing ..."):
        done = repair(_ledger())
    for each in done:
        out.print(f"{printable(each[0].upper() + each[1:])}.")


@ledger.command(name="prune")
def prune_command(
    before: Annotated[str, typer.Option(help="The first day to keep: 2026-01-01.")],
    keep_sums: Annotated[
        bool, typer.Option("--keep-sums", help="Keep the sums, so that reports stay as they are.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    yes: Yes = False,
) -> None:
    """Remove old records; what is under way, or whose outcome is unknown, stays."""
    first, own = _day(before), _ledger()
    span = Window(0, _us(first, hour=0), zone())
    found = prunable(own, span)
    kept = f" {counted(found.kept, 'record')} of unknown outcome or under way stay." if found.kept else ""
    sums = "Their sums stay." if keep_sums else "Their sums are removed too: reports will not know of that time."
    what = f"{counted(found.records, 'record')} and {counted(found.events, 'event')} from before {first}"
    out.print(f"{what} {'would be' if dry_run else 'are to be'} removed.{kept} {sums}")
    if dry_run or not confirm("Remove them?", yes=yes):
        out.print(_NOT_DONE)
        return
    done = 0
    with err.status("Removing ...") as status:

        def progress(removed: int) -> None:
            nonlocal done
            done += removed
            status.update(f"Removing ... {done:,} of {found.records:,}")

        prune(own, span, keep_sums=keep_sums, budget=load_settings().budget, progress=progress)
    out.print(f"{counted(done, 'record')} removed. `ledger vacuum` gives their room back.")


@ledger.command(name="forget")
def forget_command(
    where: Annotated[str, typer.Option(help="Whom to forget, by a label: customer=acme.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be changed.")] = False,
    yes: Yes = False,
) -> None:
    """Forget whose calls were: their costs stay in all totals, under a name that says nothing."""
    [(name, value)] = conditions([where]).items()
    if name in COLUMNS or value == FORGOTTEN:
        raise InvalidRequest(f"{name[:40]}={value[:40]} is nobody to forget", hint="Give a label: customer=acme.")
    own = _ledger()
    found = known_of(own, name, value)
    if not found and not yes:
        out.print(f"The ledger has nothing of {printable(where)}.")
        return
    out.print(
        f"{printable(where)} {'would become' if dry_run else 'is to become'} {FORGOTTEN} in "
        f"{counted(found.records, 'record')}, {counted(found.sums, 'sum')} and {counted(found.events, 'event')}. "
        f"{counted(found.budgets, 'stored budget')} and {counted(found.accounts, 'running total')} are removed. "
        "Costs stay."
    )
    if dry_run or not confirm("Forget it?", yes=yes):
        out.print(_NOT_DONE)
        return
    with err.status("Forgetting ..."):
        forget(own, name, value)
    out.print("Done. `ledger vacuum` removes it from the file too; backups and other machines' spools still have it.")


@ledger.command(name="vacuum")
def vacuum_command() -> None:
    """Give back the room of what was deleted; a SQLite file then holds nothing of it any more."""
    with err.status("Vacuuming ..."):
        before, after = vacuum(_ledger())
    out.print(f"The ledger took {before / 1e6:,.1f} MB, and takes {after / 1e6:,.1f} MB now.")


@ledger.command()
def backup(path: Annotated[Path, typer.Argument(help="A new file.")]) -> None:
    """Copy a SQLite ledger to one file, while calls go on; its file alone may lack the newest records."""
    with err.status("Copying ..."):
        back_up(_ledger(), path)
    out.print(f"The ledger was copied to {printable(str(path))}.")


def _signed(nano: int) -> str:
    return f"{'-' if nano < 0 else '+'}${to_usd(abs(nano)):.6f}"


def _nano(amount: str) -> int:
    """US$ as nano-dollars, exactly."""
    try:
        usd = Decimal(amount.strip().replace("$", ""))
    except InvalidOperation:
        raise InvalidRequest(f"{amount[:40]!r} is not an amount", hint="Give US$, such as -4.20.") from None
    if not usd.is_finite() or not usd or abs(usd) > 1_000_000:
        raise InvalidRequest("An adjustment must be US$, not 0, and a million at most", hint="Give -4.20, for example.")
    return to_nano(usd)


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise InvalidRequest(f"{text[:40]!r} is not a label", hint="Give --label customer=acme.")
    return name, value


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise InvalidRequest(f"{text[:60]!r} is not the id of a call", hint="Take it from `ledger release`.") from None


def _day(text: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(f"{text[:40]!r} is not a day", hint="Give 2026-11-24, for example.") from None
    if not day.year >= 2000 or day > _today() + timedelta(days=1):
        raise InvalidRequest("The day must be past", hint="Give 2026-11-24, for example.")
    return day


def _today() -> date:
    return datetime.now(zone()).date()


def _us(day: date, *, hour: int) -> int:
    """An hour of a day of the reports, in microseconds since 1970; never later than now where it is of today."""
    moment = datetime(day.year, day.month, day.day, hour, tzinfo=zone())
    if hour and day >= _today():
        moment = min(moment, datetime.now(UTC))
    return round(moment.timestamp() * 1e6)


def _iso(ts_us: int) -> str:
    return datetime.fromtimestamp(ts_us / 1e6, UTC).isoformat(timespec="seconds")


def _time(ts_us: int) -> str:
    return f"{datetime.fromtimestamp(ts_us / 1e6, zone()):%Y-%m-%d %H:%M}"


def _as_dict(each: Any) -> dict[str, Any]:
    return {
        "call_id": str(each.call_id),
        "attempt_id": str(each.attempt_id),
        "time": _iso(each.ts_us),
        "provider": each.provider,
        "model": each.model,
        "status": each.status,
        "error_type": each.error_type,
        "cost_usd": to_usd(each.cost_nano),
        "reserved_usd": to_usd(each.reserved_nano),
    }
