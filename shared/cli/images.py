"""Images: making them, and those made so far."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from shared.analytics import image_lineages
from shared.cli.completion import complete_image_model
from shared.cli.console import AsJson, err, out, print_json
from shared.cli.tables import print_wrapped
from shared.cli.text import summary
from shared.ledger import ImageLineage
from shared.reports import counted, printable, usd


def _known_cost(family: ImageLineage) -> float:
    """The sum of the known costs; NaN if there is none, and some are unknown."""
    return math.nan if family.unpriced_calls and not family.cost else family.cost


images = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@images.command()
def create(
    prompt: Annotated[str, typer.Argument(help="Description of the image.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="By default the one from the settings.", autocompletion=complete_image_model
        ),
    ] = None,
    fallback: Annotated[
        list[str] | None,
        typer.Option(
            "--fallback", "-f", help="Model to try next; may be repeated.", autocompletion=complete_image_model
        ),
    ] = None,
    size: Annotated[str | None, typer.Option(help="Such as 1024x1024, or a ratio such as 16:9.")] = None,
    quality: Annotated[str | None, typer.Option(help="low, medium or high, where the model has it.")] = None,
    count: Annotated[int, typer.Option("-n", min=1, max=10, help="How many images.")] = 1,
    reference: Annotated[
        list[str] | None, typer.Option("--reference", "-r", help="Image to start from; may be repeated.")
    ] = None,
    mask: Annotated[str | None, typer.Option(help="Image whose transparent parts may change.")] = None,
    output_format: Annotated[str | None, typer.Option("--format", help="png, jpeg or webp.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the file, without an ending.")] = None,
    as_json: AsJson = False,
) -> None:
    """
    Make images, and print their paths.

    The cost goes to standard error.
    """
    from shared.llm_client import get_llm_client

    given = {"reference_images": reference, "mask": mask, "output_format": output_format, "file_name": name}
    with err.status("Making the image ..." if count == 1 else f"Making {count} images ..."):
        response = get_llm_client().generate_image(
            prompt,
            model,
            fallback or None,
            size,
            quality,
            count,
            **{key: value for key, value in given.items() if value is not None},
        )
    if as_json:
        print_json(response)
        return
    for image in response.images:
        out.print(printable(str(image["path"] or image["url"])))
    for problem in response.metadata.get("images_failed", ()):
        err.print(f"An image is missing: {printable(str(problem))}")
    err.print(summary(response))


@images.command(name="list")
def list_command(
    name: Annotated[str | None, typer.Argument(help="Show only families of an image with this in its name.")] = None,
    as_json: AsJson = False,
) -> None:
    """
    List the images made so far.

    Each original stands with its edits, and what they cost together.
    """
    found = [family for family in image_lineages() if name is None or any(name in each for each in family.images)]
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
