"""The images made so far."""

from __future__ import annotations

from typing import Annotated

import typer

from shared.analytics import image_lineages
from shared.cli.console import AsJson, out
from shared.internal.serialize import to_json
from shared.reports import printable


def images(
    name: Annotated[
        str | None, typer.Argument(help="Show only the family of this image, named as in the list.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the images made so far, with the total cost of each original and its edits."""
    found = [family for family in image_lineages() if name is None or name in family.images]
    if as_json:
        rows = ({"images": family.images, "calls": family.calls, "cost": family.cost} for family in found)
        out.out(to_json(list(rows), indent=2))
        return
    for family in found:
        unknown = f", {family.unpriced_calls} of unknown cost" if family.unpriced_calls else ""
        out.print(f"${family.cost:.6f} in {family.calls} calls{unknown}: {printable(', '.join(family.images))}")
    if not found:
        out.print("The ledger has no such image." if name else "No images have been made.")
