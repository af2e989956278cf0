"""The models that are known by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from shared.cli.console import AsJson, err, print_json
from shared.cli.prices import models_of_ledger, retirement_text, written
from shared.cli.tables import print_names, print_wrapped
from shared.config import Settings, load_settings
from shared.models import (
    KEYLESS_PROVIDERS,
    Catalogue,
    Retirement,
    chat_models,
    image_models,
    models_of_settings,
    retired_models,
    retiring,
    similar_models,
    usable_models,
)
from shared.reports import printable
from shared.types import Rates, Unit

_SPAN = re.compile(r"(\d{1,5})d?")


def models(
    words: Annotated[list[str] | None, typer.Argument(help="Show only names that contain all these words.")] = None,
    usable: Annotated[bool, typer.Option("--usable", help="Only models whose provider's key is set.")] = False,
    retiring_within: Annotated[
        str | None,
        typer.Option(
            "--retiring",
            metavar="DAYS",
            help="Only models in the ledger or the settings that retire within so many days, such as 60d.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the known models and their prices (US$ per million tokens or per image)."""
    wanted = [word.lower() for word in words or ()]
    if retiring_within is not None:
        _show_retiring(_days(retiring_within), wanted, as_json)
        return
    found = _found(wanted, usable)
    if as_json:
        print_json([{key: value for key, value in row.items() if key != "rates"} for row in found])
        return
    gone = [said for name, said in retired_models().items() if words and _matches(wanted, name)]
    if words and not found and not gone:
        raise _nothing(words)
    print_names(("Model", "Input", "Output"), [(row["model"], *_prices(row)) for row in found])
    keys = ", ".join(usable_models()) or "no key is set"
    print_wrapped(f"{len(found):,} models. One for each key that is set: {keys}.")
    for line in gone:
        print_wrapped(line)


def _found(wanted: Sequence[str], usable: bool) -> list[dict[str, Any]]:
    rows = [
        *((*row, "chat") for row in chat_models(usable=usable)),
        *((*row, "image_generation") for row in image_models(usable=usable)),
    ]
    return [
        {
            "model": name,
            "provider": provider,
            "mode": mode,
            "input_usd_per_million": _per_million(rates, "input"),
            "output_usd_per_million": _per_million(rates, "output"),
            "rates": rates,
        }
        for name, provider, rates, mode in rows
        if _matches(wanted, name if name.startswith(f"{provider}/") else f"{provider}/{name}")
    ]


def _matches(wanted: Sequence[str], name: str) -> bool:
    return all(word in name.lower() for word in wanted)


def _prices(row: dict[str, Any]) -> tuple[str, str]:
    rates: Rates = row["rates"]
    if row["provider"] in KEYLESS_PROVIDERS or rates.source == "free":
        return "free", "free"
    if "input" not in rates.prices and "image" in rates.prices:
        return "", f"{written('image', rates.prices['image']).removesuffix('/1')} an image"
    if "input" not in rates.prices and rates.sizes:
        return "", "by size"
    output: Unit = "output" if "output" in rates.prices else "output_image"
    units: tuple[Unit, Unit] = ("input", output)
    shown = (written(unit, rates.prices[unit]) if unit in rates.prices else "unknown" for unit in units)
    first, second = (price.removesuffix("/1M") for price in shown)
    return first, second


def _per_million(rates: Rates, unit: Unit) -> float | None:
    return float(rates.prices[unit] * 1_000_000) if unit in rates.prices else None


def _nothing(words: Sequence[str]) -> typer.Exit:
    similar = similar_models(" ".join(words), Catalogue.load(load_settings()))
    hint = f" Similar: {', '.join(similar)}." if similar else ""
    err.print(f"Error: no model's name contains {printable(' and '.join(words))}.{printable(hint)}")
    return typer.Exit(1)


def _days(text: str) -> int:
    span = _SPAN.fullmatch(text.strip())
    if span is None:
        raise typer.BadParameter(f"{text!r} is not a number of days such as 60d.", param_hint="--retiring")
    return int(span[1])


def _show_retiring(within_days: int, wanted: Sequence[str], as_json: bool) -> None:
    found = [each for each in retiring_models(load_settings(), within_days) if _matches(wanted, each[0].model)]
    if as_json:
        print_json([{**_fields(retirement), "named_by": named_by} for retirement, named_by in found])
        return
    for retirement, named_by in found:
        print_wrapped(f"{retirement.model}: {retirement_text(retirement)} ({', '.join(named_by)})")
    if not found:
        print_wrapped(f"No model in the ledger or the settings retires within {within_days:,} days.")


def retiring_models(settings: Settings, within_days: int) -> list[tuple[Retirement, list[str]]]:
    """
    The models in the ledger or the settings that retire soon, with who names them: the ledger, or variables.

    Those that are shut down already count only where the settings name them.
    """
    named = models_of_settings(settings)
    used = models_of_ledger() if settings.cost_tracking else []
    found = retiring(dict.fromkeys([*named, *used]), Catalogue.load(settings), within_days)
    return [
        (each, [*named.get(each.model, ()), *(["the ledger"] if each.model in used else [])])
        for each in found
        if each.model in named or (each.days_left is not None and each.days_left >= 0)
    ]


def _fields(retirement: Retirement) -> dict[str, Any]:
    return {
        "model": retirement.model,
        "date": retirement.date,
        "days_left": retirement.days_left,
        "successor": retirement.successor,
        "input_change_percent": retirement.input_change_percent,
        "output_change_percent": retirement.output_change_percent,
        "source": retirement.source,
    }
