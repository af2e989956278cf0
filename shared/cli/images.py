"""The images made so far."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from shared.analytics import image_lineages
from shared.cli.console import AsJson, out, print_json
from shared.cli.tables import print_wrapped
from shared.ledger import ImageLineage
from shared.reports import counted, printable, usd


def _known_cost(family: ImageLineage) -> float:
    """The sum of the known costs; NaN if there is none, and some are unknown."""
    return math.nan if family.unpriced_calls and not family.cost else family.cost


def images(
    name: Annotated[
        str | None, typer.Argument(help="Show only the family of this image, named as in the list.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the images made so far, with the total cost of each original and its edits."""
    found = [family for family in image_lineages() if name is None or name in family.images]
    if as_json:
        rows = (
            {
                "images": family.images,
                "calls": family.calls,
                "cost": _known_cost(family),
                "unpriced_calls": family.unpriced_calls,
            }
            for family in found
        )
        print_json(list(rows))
        return
    for family in found:
        cost, unknown = _known_cost(family), ""
        if family.unpriced_calls:
            unknown = f", {family.unpriced_calls:,} of unknown cost"
        at_least = "at least " if unknown and not math.isnan(cost) else ""
        calls = f"{at_least}{usd(cost)} in {counted(family.calls, 'call')}{unknown}"
        print_wrapped(f"{calls}: {printable(', '.join(family.images))}")
    if not found:
        out.print("The ledger has no such image." if name else "No images have been made.")
