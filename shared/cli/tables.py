"""Listings whose names stay whole at any width of the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from shared.cli.console import out
from shared.reports import printable

_GAP = "  "


def print_listing(
    head: Sequence[str], groups: Mapping[str, Sequence[Sequence[str]]], *, words: int, title: str = ""
) -> None:
    """
    Print rows in aligned columns, those of each group under its name, which has a line to itself.

    Args:
        groups: The rows by their group's name; the name "" has no line.

        words: How many columns, from the first on, hold words; the others are aligned to the right.

        title: The heading of the groups' names.
    """
    indent = "  " if title else ""
    shown = {printable(name): [list(map(printable, row)) for row in rows] for name, rows in groups.items()}
    lines = [list(head), *(row for rows in shown.values() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]

    def print_row(cells: Sequence[str]) -> None:
        aligned = [
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        out.print((indent + _GAP.join(aligned)).rstrip())

    if title:
        out.print(title)
    print_row(head)
    for name, rows in shown.items():
        if name:
            out.print(name)
        for row in rows:
            print_row(row)


def print_names(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 0) -> None:
    """
    Print rows of a name and figures; a name that leaves no room for them has a line to itself.

    Args:
        words: How many columns at the end hold words, which are aligned to the left.
    """
    lines = [list(map(printable, row)) for row in (head, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    if out.is_terminal:
        widths[0] = max(min(widths[0], out.width - sum(widths[1:]) - len(_GAP) * (len(widths) - 1)), 1)
    for line in lines:
        aligned = [
            cell.ljust(width) if column >= len(line) - words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        name, figures = line[0], aligned[1:]
        if len(name) > widths[0]:
            out.print(name)
            name = ""
        out.print(_GAP.join([name.ljust(widths[0]), *figures]).rstrip())


def print_wrapped(text: str, indent: str = "  ") -> None:
    """Print a paragraph, broken between words where it is wider than the terminal."""
    if not out.is_terminal:
        out.print(text)
        return
    lines = textwrap.wrap(
        text, max(out.width, 20), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    for line in lines:
        out.print(line)
