"""The models that are known by name."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from shared.cli.console import AsJson, out
from shared.internal.serialize import to_json
from shared.models import chat_models, retired_models, usable_models
from shared.types import Rates, Unit


def models(
    words: Annotated[list[str] | None, typer.Argument(help="Show only names that hold all these words.")] = None,
    usable: Annotated[bool, typer.Option("--usable", help="Only models whose provider's key is set.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the chat models with known names and their prices (US$ per million tokens)."""
    found: list[dict[str, Any]] = [
        {
            "model": name,
            "provider": provider,
            "input_usd_per_million": _per_million(rates, "input"),
            "output_usd_per_million": _per_million(rates, "output"),
        }
        for name, provider, rates in chat_models(usable=usable)
        if all(word.lower() in name.lower() for word in words or ())
    ]
    if as_json:
        out.out(to_json(found, indent=2))
        return
    table = Table()
    table.add_column("Model", overflow="fold")
    table.add_column("Provider", overflow="fold")
    table.add_column("Input", justify="right")
    table.add_column("Output", justify="right")
    for row in found:
        prices = (row["input_usd_per_million"], row["output_usd_per_million"])
        table.add_row(row["model"], row["provider"], *("?" if price is None else f"${price:g}" for price in prices))
    out.print(table)
    gone = [name for name in retired_models() if all(word.lower() in name.lower() for word in words or ())]
    out.print(f"{len(found):,} models. One for each key that is set: {', '.join(usable_models()) or 'no key is set'}.")
    for name in gone if words else ():
        out.print(retired_models()[name])


def _per_million(rates: Rates, unit: Unit) -> float | None:
    return float(rates.prices[unit] * 1_000_000) if unit in rates.prices else None
