"""The ledger against a provider's bill."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from shared.analytics import zone
from shared.cli.console import AsJson, err, out, print_json
from shared.cli.tables import print_names, print_wrapped
from shared.config import database_url, load_settings
from shared.ledger import csv_cell, get_ledger
from shared.models import Catalogue
from shared.reports import Line, Reconciliation, counted, decimals_for, money, printable, reconcile_bill, usd_text

Provider = Literal["openai", "anthropic"]
Format = Literal["table", "json", "csv"]


def reconcile(
    provider: Annotated[Provider, typer.Argument(help="Whose bill it is.")],
    files: Annotated[list[Path], typer.Argument(help="The answers of its usage and cost API, as JSON.")],
    write: Annotated[
        bool, typer.Option("--write/--dry-run", help="Enter the differences, and free what budgets reserve for them.")
    ] = False,
    tz: Annotated[str, typer.Option(help="Time zone of the days; the days of both APIs are those of UTC.")] = "UTC",
    form: Annotated[Format, typer.Option("--format", help="How to print it.")] = "table",
    as_json: AsJson = False,
) -> None:
    """
    Compare the ledger with a provider's bill, by day and model.

    It says what each difference is made of, and enters the differences with --write. The exit code is 1 where they
    differ by more than rounding, and 0 where they agree.
    """
    settings = load_settings()
    with err.status("Comparing ..."):
        found = reconcile_bill(
            get_ledger(database_url(settings)),
            provider,
            files,
            zone(tz),
            lambda: Catalogue.load(settings),
            write=write,
        )
    match "json" if as_json else form:
        case "json":
            print_json(_as_dict(found))
        case "csv":
            out.out(_csv(found), end="")
        case _:
            _print(found)
    if found.differs:
        raise typer.Exit(1)


def _print(found: Reconciliation) -> None:
    for warning in found.warnings:
        err.print(f"Warning: {printable(warning)}")
    if found.lines:
        amounts = [nano for line in found.lines for nano in (line.ledger_nano, line.bill_nano)]
        decimals = decimals_for(amounts)
        rows = [_row(line, decimals) for line in found.lines]
        print_names(["Day and model", "Ledger", "Bill", "Difference", "Made of"], rows, words=1)
    for sentence in _sentences(found):
        print_wrapped(sentence)


def _row(line: Line, decimals: int) -> list[str]:
    difference = line.difference_nano
    bill = "no amount" if line.bill_nano is None else money(line.bill_nano, decimals)
    shown = "" if difference is None else _signed(difference, decimals)
    return [f"{line.day}  {line.name}", _known(line, decimals), bill, shown, _made_of(line, decimals)]


def _known(line: Line, decimals: int) -> str:
    """What the ledger has, as reports say it: "at least" so much where that is not all, or "unknown"."""
    is_part = line.known_nano is not None and line.unknown_requests
    return f"{'at least ' if is_part else ''}{money(line.known_nano, decimals)}"


def _made_of(line: Line, decimals: int) -> str:
    if line.bill_nano is None:
        if line.tokens is None:
            return ""
        ours, theirs = line.tokens
        return "same tokens" if ours == theirs else f"{ours:,} tokens in the ledger, {theirs:,} in the bill"
    said = ", ".join(f"{name} {_signed(nano, decimals)}" for name, nano in line.parts.items())
    return said or ("nothing billed for the unknown" if line.unknown_requests else "equal")


def _signed(nano: int, decimals: int) -> str:
    return f"{'+' if nano > 0 else ''}{money(nano, decimals)}"


def _sentences(found: Reconciliation) -> list[str]:
    """What the table adds up to, and what is done about it."""
    billed = [line for line in found.lines if line.bill_nano is not None]
    ledger, bill = sum(line.ledger_nano for line in billed), sum(line.bill_nano or 0 for line in billed)
    parts = _total(found)
    shown = []
    if billed:
        said = ", ".join(f"{name} {_signed(nano, 6)}" for name, nano in parts.items())
        equal = sum(not line.differs for line in billed)
        at_least = "at least " if any(line.unknown_requests for line in billed) else ""
        shown.append(f"Ledger {at_least}{money(ledger, 6)}, bill {money(bill, 6)}{f': {said}' if said else ', equal'}.")
        shown.append(f"{equal} of {counted(len(billed), 'line')} agree, but for rounding.")
    shown += [
        f"Not entered: {line.day} {printable(line.name)}, because {line.why_not}."
        for line in found.lines
        if line.why_not is not None
    ]
    entered = found.adjustments
    if entered or found.released_nano:
        total = sum(row.cost_nano or 0 for row in entered)
        done = "were" if found.written else "would be"
        shown.append(
            f"{counted(len(entered), 'adjustment')} of {_signed(total, 6)} together {done} entered, and "
            f"{money(found.released_nano, 6)} of reservations {done} released."
        )
    if found.unused:
        shown.append(f"Known columns that are not compared: {', '.join(found.unused)}.")
    if not found.written:
        shown.append("Nothing was changed." + (" Add --write to enter it." if entered or found.released_nano else ""))
    return shown


def _total(found: Reconciliation) -> Counter[str]:
    parts: Counter[str] = Counter()
    for line in found.lines:
        for name, nano in line.parts.items():
            parts[name] += nano
    return parts


def _as_dict(found: Reconciliation) -> dict[str, Any]:
    return {
        "provider": found.provider,
        "tz": found.zone,
        "reports": found.reports,
        "differs": found.differs,
        "written": found.written,
        "ledger_nano": sum(line.ledger_nano for line in found.lines if line.bill_nano is not None),
        "bill_nano": sum(line.bill_nano or 0 for line in found.lines),
        "parts_nano": dict(_total(found)),
        "released_nano": found.released_nano,
        "lines": [_line_dict(line) for line in found.lines],
        "unused_columns": found.unused,
        "warnings": found.warnings,
    }


def _line_dict(line: Line) -> dict[str, Any]:
    """A line as JSON has it; US$ are texts, so that they stay exact."""
    return {
        "day": line.day,
        "name": line.name,
        "models": line.models,
        "attempts": line.attempts,
        "ledger_usd": None if line.known_nano is None else usd_text(line.known_nano),
        "unknown_cost_requests": line.unknown_requests,
        "bill_usd": None if line.bill_nano is None else usd_text(line.bill_nano),
        "difference_usd": None if line.difference_nano is None else usd_text(line.difference_nano),
        "differs": line.differs,
        "parts_usd": {name: usd_text(nano) for name, nano in line.parts.items()},
        "reserved_usd": usd_text(line.reserved_nano),
        "ledger_tokens": None if line.tokens is None else line.tokens[0],
        "bill_tokens": None if line.tokens is None else line.tokens[1],
        "adjustment_usd": None if line.adjustment is None else usd_text(line.adjustment.cost_nano),
        "adjustment_id": None if line.adjustment is None else line.adjustment.attempt_id,
        "not_entered_because": line.why_not,
    }


def _csv(found: Reconciliation) -> str:
    """The lines as CSV; each reason has a column of its own."""
    reasons = list(_total(found))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    head = ("day", "name", "ledger_usd", "bill_usd", "difference_usd")
    writer.writerow([*head, *(f"{name.replace(' ', '_')}_usd" for name in reasons)])
    for line in found.lines:
        figures = (line.known_nano, line.bill_nano, line.difference_nano)
        parts = (line.parts.get(name, 0) for name in reasons)
        writer.writerow([line.day, csv_cell(line.name), *map(usd_text, (*figures, *parts))])
    return file.getvalue()
