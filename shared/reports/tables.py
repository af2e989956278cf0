"""Groups of costs as columns, for terminals, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared import ledger
from shared.reports.formats import printable

Group = Mapping[str, Any]
EXACT = 9
_FOLDED = 14  # characters of a name that is folded over several lines where there is no room
_NANO = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Column:
    """
    A column of figures.

    `rank`: where there is no room the highest are left out first, and 0 never. `present`: whether a group has something
    to say in it.
    """

    head: str
    cell: Callable[[Group, int], str]
    rank: int
    present: Callable[[Group], object]


def money(nano: int | None, decimals: int) -> str:
    """Nano-dollars as US$ with so many decimals, never rounded to nothing; "unknown" for None."""
    if nano is None:
        return "unknown"
    step = 10 ** (EXACT - decimals)
    rounded = (abs(nano) + step // 2) // step
    sign = "-" if nano < 0 else ""
    if nano and not rounded:
        return f"{'>' if nano < 0 else '<'}{sign}$0.{'1'.rjust(decimals, '0')}"
    units, rest = divmod(rounded, 10**decimals)
    return f"{sign}${units:,}.{rest:0{decimals}}"


def decimals_for(amounts: Iterable[int | None]) -> int:
    """How many decimals a column of amounts needs, so that its largest is read to four digits or to the cent."""
    largest = max((abs(each) for each in amounts if each), default=0)
    return 2 if largest >= 10 * _NANO else 4 if largest >= _NANO // 10 else 6


def percent(share: float) -> str:
    """A share as per cent; nothing for NaN."""
    return "" if math.isnan(share) else f"{share:.1%}"


def cost_cell(group: Group, decimals: int) -> str:
    """A group's cost: the sum of what is known, "at least" so much if that is not all, or "unknown"."""
    part = group["cost_nano"] is not None and (group["unknown_cost_requests"] or group["cost_is_lower_bound"])
    return f"{'at least ' if part else ''}{money(group['cost_nano'], decimals)}"


def change(group: Group) -> str:
    """By how much the cost has changed since the time before; nothing where that cannot be said."""
    now, before = group["cost_nano"], group.get("previous_cost_nano")
    if now is None or before is None or before <= 0:
        return ""
    return f"{now / before - 1:+,.0%}"


COLUMNS = (
    Column("Calls", lambda group, _: f"{group['calls']:,}", 1, lambda _: True),
    Column("Failed", lambda group, _: f"{group['failed_calls']:,}", 7, lambda group: group["failed_calls"]),
    Column("Input", lambda group, _: f"{group['input_tokens']:,}", 4, lambda _: True),
    Column("Output", lambda group, _: f"{group['output_tokens']:,}", 3, lambda _: True),
    Column("Cached", lambda group, _: f"{group['cached_tokens']:,}", 6, lambda group: group["cached_tokens"]),
    Column("Cost", cost_cell, 0, lambda _: True),
    Column("Share", lambda group, _: percent(group["share"]), 2, lambda _: True),
    Column(
        "Before",
        lambda group, decimals: money(group["previous_cost_nano"], decimals) if "previous_cost_nano" in group else "",
        5,
        lambda group: group.get("previous_cost_nano"),
    ),
    Column("Change", lambda group, _: change(group), 5, change),
    Column("Unknown", lambda group, _: f"{group['unknown_cost_requests']:,}", 0, lambda g: g["unknown_cost_requests"]),
)
# Name, and how a group has it: a number is written as it is, for programs to add up.
_CSV = {
    "calls": "calls",
    "failed_calls": "failed_calls",
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cached_tokens": "cached_tokens",
    "cost_usd": "cost_nano",
    "previous_cost_usd": "previous_cost_nano",
    "cost_is_lower_bound": "cost_is_lower_bound",
    "unknown_cost_requests": "unknown_cost_requests",
    "unpriced_calls": "unpriced_calls",
}


def table_of(
    costs: Mapping[str, Any], *, exact: bool = False, width: int | None = None, gap: int = 2
) -> tuple[list[str], list[list[str]], list[str]]:
    """
    The groups of a report as a table.

    Args:
        exact: Whether to show all decimals of US$.

        width: Characters that there is room for, `gap` of them between two columns. None: any number.

    Returns:
        The heads, the rows, and the row of the total, each with the group's names first.
    """
    groups, total = costs["groups"], total_group(costs)
    decimals = EXACT if exact else decimals_for(each["cost_nano"] for each in (*groups, total))
    shown = [column for column in COLUMNS if any(map(column.present, (*groups, total)))]
    names = {name: [printable(group["keys"][name]) for group in groups] for name in costs["by"].split(",")}
    cells = {each.head: [each.cell(group, decimals) for group in (*groups, total)] for each in shown}
    sizes = {head: max(map(len, (head, *values))) + gap for head, values in cells.items()}
    longest = [max(map(len, (name, "Total", *values))) for name, values in names.items()]
    room = math.inf if width is None else width - sum(min(size, _FOLDED) + gap for size in longest)
    for each in sorted(shown, key=lambda column: -column.rank):
        if each.rank and sum(sizes[column.head] for column in shown) > room:
            shown.remove(each)
    heads = [*(printable(name).capitalize() for name in names), *(column.head for column in shown)]
    rows = [
        [*(values[place] for values in names.values()), *(cells[column.head][place] for column in shown)]
        for place in range(len(groups))
    ]
    return heads, rows, ["Total", *[""] * (len(names) - 1), *(cells[column.head][-1] for column in shown)]


def total_group(costs: Mapping[str, Any]) -> dict[str, Any]:
    """The total of a report, as a group."""
    known = ("input_tokens", "output_tokens", "cached_tokens", "calls", "failed_calls")
    nano = costs["total_cost_nano"]
    is_part = costs["unknown_cost_requests"] or costs["cost_is_lower_bound"]
    total = {name: sum(group[name] for group in costs.get("groups", ())) for name in known}
    total |= {
        "name": "Total",
        "cost_nano": None if is_part and not nano else nano,
        "cost_is_lower_bound": costs["cost_is_lower_bound"],
        "unknown_cost_requests": costs["unknown_cost_requests"],
        "share": 1.0 if nano > 0 else math.nan,
    }
    previous = costs.get("previous")
    return total | ({} if previous is None else {"previous_cost_nano": previous["cost_nano"]})


def csv_text(costs: Mapping[str, Any]) -> str:
    """The groups as CSV, with all decimals of US$; an unknown cost is an empty cell, and is counted beside it."""
    names = costs["by"].split(",")
    columns = {name: own for name, own in _CSV.items() if not costs["groups"] or own in costs["groups"][0]}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*map(ledger.csv_cell, names), *columns])
    for group in costs["groups"]:
        figures = [usd_text(group[own]) if own.endswith("_nano") else int(group[own]) for own in columns.values()]
        writer.writerow([*(ledger.csv_cell(group["keys"][name]) for name in names), *figures])
    return file.getvalue()


def usd_text(nano: int | None) -> str:
    """Nano-dollars as an exact decimal number of US$; empty for None."""
    if nano is None:
        return ""
    units, rest = divmod(abs(nano), _NANO)
    return f"{'-' if nano < 0 else ''}{units}.{rest:09}"


def lines_of(heads: Sequence[str], rows: Sequence[Sequence[str]], *, words: int) -> list[str]:
    """A table in aligned lines; its first `words` columns are aligned to the left."""
    widths = [max(len(row[place]) for row in (heads, *rows)) for place in range(len(heads))]
    return [
        "  ".join(
            cell.ljust(width) if place < words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (heads, *rows)
    ]
