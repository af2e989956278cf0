"""The models that are known by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from shared.cli.console import AsJson, err, out, print_json
from shared.cli.prices import models_of_ledger, retirement_text, written
from shared.cli.tables import print_names, print_wrapped
from shared.config import Settings, load_settings
from shared.models import (
    KEYLESS_PROVIDERS,
    Catalogue,
    KnownModel,
    Retirement,
    has_key,
    listed_models,
    makes_images,
    models_of_settings,
    retired_models,
    retiring,
    similar_models,
)
from shared.prices import rates_of
from shared.reports import printable
from shared.types import Rates, Unit

_SPAN = re.compile(r"(\d{1,5})d?")
_ROWS = 40
# What the table says of a model that people choose by; `images` is ours: it makes them.
_ABILITIES = ("tools", "vision", "images", "reasoning", "schema", "caching", "pdf", "search", "audio_input")


def models(
    words: Annotated[list[str] | None, typer.Argument(help="Show only names that contain all these words.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only models of this provider.")] = None,
    supports: Annotated[
        str | None, typer.Option(help=f"Only models that can do all of these: {', '.join(_ABILITIES)}.")
    ] = None,
    max_input_price: Annotated[
        float | None, typer.Option(min=0, help="Only models with a known price of at most this for input.")
    ] = None,
    usable: Annotated[bool, typer.Option("--usable", help="Only models whose provider's key is set.")] = False,
    retiring_within: Annotated[
        str | None,
        typer.Option(
            "--retiring",
            metavar="DAYS",
            help="Only models in the ledger or the settings that retire within so many days, such as 60d.",
        ),
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help=f"List all of them, not only the first {_ROWS}.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the known models, what they can do, and their prices (US$ per million tokens or per image)."""
    wanted = [word.lower() for word in words or ()]
    if retiring_within is not None:
        _show_retiring(_days(retiring_within), wanted, as_json)
        return
    abilities = _abilities(supports)
    catalogue = Catalogue.load(load_settings())
    found = [
        row
        for known in listed_models(catalogue)
        if _matches(wanted, known.name)
        and provider in (None, known.provider)
        and abilities <= set((row := _row(known))["supports"])
        and (max_input_price is None or _costs_at_most(row, max_input_price))
        and (not usable or has_key(row["provider"]))
    ]
    if as_json:
        print_json([{key: value for key, value in row.items() if key != "rates"} for row in found])
        return
    gone = [said for name, said in retired_models().items() if wanted and _matches(wanted, name)]
    if not found and not gone:
        raise _nothing(words or [provider or supports or "these filters"])
    _print(found if show_all else found[:_ROWS], len(found), gone)


def _print(rows: Sequence[dict[str, Any]], count: int, gone: Sequence[str]) -> None:
    width = out.width if out.is_terminal else 200
    columns = [name for name, least in _COLUMNS.items() if width >= least]
    cells = [(row["model"], *(_cells(row)[name] for name in columns)) for row in rows]
    print_names(("Model", *columns), cells, words=sum(name in ("Can", "Retires") for name in columns))
    if len(rows) < count:
        print_wrapped(f"The first {len(rows)} of {count:,} models: add words, --provider or --supports, or --all.")
    else:
        print_wrapped("1 model." if count == 1 else f"{count:,} models.")
    for line in gone:
        print_wrapped(line)


# The columns, and how wide a terminal has room for each.
_COLUMNS = {"Input": 0, "Cached": 100, "Output": 0, "Window": 80, "Can": 80, "Retires": 100}


def _cells(row: dict[str, Any]) -> dict[str, str]:
    rates: Rates = row["rates"]
    shown = [name for name in ("tools", "vision", "images") if name in row["supports"]]
    window = row["window"]
    return {
        **_prices(row["provider"], rates),
        "Window": "" if window is None else f"{window // 1000:,}k" if window >= 1000 else str(window),
        "Can": " ".join(shown),
        "Retires": row["retires"] or "",
    }


def _row(known: KnownModel) -> dict[str, Any]:
    rates, entry = rates_of(known.entry), known.entry
    images = ["images"] if makes_images(known.provider, known.wire_model, entry) else []
    return {
        "model": known.name,
        "provider": known.provider,
        "mode": entry.get("mode", "chat"),
        "input_usd_per_million": _per_million(rates, "input"),
        "cached_usd_per_million": _per_million(rates, "cached"),
        "output_usd_per_million": _per_million(rates, "output"),
        "window": entry.get("window"),
        "max_output": entry.get("max_output"),
        "supports": [*images, *entry.get("can", ())],
        "retires": entry.get("retires"),
        "successor": entry.get("successor"),
        "rates": rates,
    }


def _abilities(supports: str | None) -> set[str]:
    wanted = {word.strip() for word in (supports or "").split(",") if word.strip()}
    if unknown := wanted - set(_ABILITIES):
        raise typer.BadParameter(
            f"{', '.join(sorted(unknown))}: not one of {', '.join(_ABILITIES)}.", param_hint="--supports"
        )
    return wanted


def _costs_at_most(row: dict[str, Any], usd: float) -> bool:
    price = row["input_usd_per_million"]
    return price is not None and price <= usd


def _matches(wanted: Sequence[str], name: str) -> bool:
    return all(word in name.lower() for word in wanted)


def _prices(provider: str, rates: Rates) -> dict[str, str]:
    if provider in KEYLESS_PROVIDERS or rates.source == "free":
        return {"Input": "free", "Cached": "free", "Output": "free"}
    if "input" not in rates.prices and "image" in rates.prices:
        each = written("image", rates.prices["image"]).removesuffix("/1")
        return {"Input": "", "Cached": "", "Output": f"{each} an image"}
    if "input" not in rates.prices and rates.sizes:
        return {"Input": "", "Cached": "", "Output": "by size"}
    output: Unit = "output" if "output" in rates.prices else "output_image"
    units: dict[str, Unit] = {"Input": "input", "Cached": "cached", "Output": output}
    shown = {
        name: written(unit, rates.prices[unit]).removesuffix("/1M") if unit in rates.prices else "unknown"
        for name, unit in units.items()
    }
    return {**shown, "Cached": "" if "cached" not in rates.prices else shown["Cached"]}


def complete_model(incomplete: str) -> Iterator[str]:
    """The models whose name begins with what was typed, for the shell."""
    for known in listed_models(Catalogue.load(load_settings())):
        if known.name.startswith(incomplete):
            yield known.name


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
