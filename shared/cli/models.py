"""The models that are known by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any

import typer

from shared.cli.completion import complete_model, complete_provider
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
_GONE = 5
# What the table says of a model that people choose by; `images` is ours: it makes them.
_ABILITIES = ("tools", "vision", "images", "reasoning", "schema", "caching", "pdf", "search", "audio_input")


def models(
    words: Annotated[
        list[str] | None,
        typer.Argument(help="Show only names that contain all these words.", autocompletion=complete_model),
    ] = None,
    provider: Annotated[
        str | None, typer.Option(help="Only models of this provider.", autocompletion=complete_provider)
    ] = None,
    supports: Annotated[
        str | None, typer.Option(help=f"Only models that can do all of these: {', '.join(_ABILITIES)}.")
    ] = None,
    max_input_price: Annotated[
        float | None, typer.Option(min=0, help="Only models whose input costs at most US$ this per million tokens.")
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
    """
    List models, abilities and prices.

    Prices are US$ per million tokens, or per image. Models of providers whose key is set come first, then those of
    the providers that this package suggests.
    """
    wanted = [word.lower() for word in words or ()]
    if retiring_within is not None:
        _show_retiring(_days(retiring_within), wanted, as_json)
        return
    abilities = _abilities(supports)
    known_models = listed_models(Catalogue.load(load_settings()))
    _check_provider(provider, known_models)
    found = [
        row
        for known in known_models
        if _matches(wanted, known.name)
        and provider in (None, known.provider)
        and abilities <= set((row := _row(known))["supports"])
        and (max_input_price is None or _costs_at_most(row, max_input_price))
        and (not usable or has_key(row["provider"]))
    ]
    if as_json:
        print_json([{key: value for key, value in row.items() if key != "rates"} for row in found])
        return
    filtered = bool(abilities or usable or max_input_price is not None)
    gone = [] if filtered or not wanted else list(_gone(wanted, provider, {row["model"] for row in found}))
    if not found and not gone:
        raise _nothing(words or (), filtered=filtered or provider is not None)
    _print(found if show_all else found[:_ROWS], len(found))
    shown = gone if show_all else gone[:_GONE]
    for line in shown:
        print_wrapped(line)
    if len(shown) < len(gone):
        print_wrapped(f"{len(gone) - len(shown):,} more retired names match: add words, or --all.")


def _gone(wanted: Sequence[str], provider: str | None, listed: Collection[str]) -> Iterator[str]:
    """What to say of each model that was asked for by name and is shut down."""

    def is_part(item: tuple[str, str]) -> bool:
        return {item[0], item[0].partition("/")[2]}.isdisjoint(wanted)

    for name, said in sorted(retired_models().items(), key=is_part):  # what was asked for by its whole name first
        if name not in listed and _matches(wanted, name) and provider in (None, name.partition("/")[0]):
            yield said


def _print(rows: Sequence[dict[str, Any]], count: int) -> None:
    width = out.width if out.is_terminal else 200
    columns = [name for name, least in _COLUMNS.items() if width >= least]
    cells = [(row["model"], *(_cells(row)[name] for name in columns)) for row in rows]
    print_names(("Model", *columns), cells, words=sum(name in ("Can", "Retires") for name in columns))
    if len(rows) < count:
        print_wrapped(f"The first {len(rows)} of {count:,} models: add words, --provider or --supports, or --all.")
    else:
        print_wrapped("1 model." if count == 1 else f"{count:,} models.")
    if len(columns) < len(_COLUMNS):
        hidden = [name for name in _COLUMNS if name not in columns]
        print_wrapped(f"A wider terminal, or --json, also has: {', '.join(hidden)}.")


# The columns, and how wide a terminal has room for each.
_COLUMNS = {"Input": 0, "Cached": 100, "Output": 0, "Window": 80, "Can": 80, "Retires": 100}


def _cells(row: dict[str, Any]) -> dict[str, str]:
    rates: Rates = row["rates"]
    shown = [name for name in ("tools", "vision", "images") if name in row["supports"]]
    return {
        **_prices(row["provider"], rates),
        "Window": _short(row["window"]),
        "Can": " ".join(shown),
        "Retires": row["retires"] or "",
    }


def _short(tokens: int | None) -> str:
    """Tokens as people say them: 272k, 1M, 1.05M."""
    if tokens is None or tokens < 1000:
        return "" if tokens is None else str(tokens)
    return f"{tokens // 1000}k" if tokens < 1_000_000 else f"{tokens // 10_000 / 100:g}M"


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
        return {"Input": "", "Cached": "", "Output": f"{each}/image"}
    if "input" not in rates.prices and rates.sizes:
        return {"Input": "", "Cached": "", "Output": "by size"}
    output: Unit = "output" if "output" in rates.prices else "output_image"
    units: dict[str, Unit] = {"Input": "input", "Cached": "cached", "Output": output}
    shown = {
        name: written(unit, rates.prices[unit]).removesuffix("/1M") if unit in rates.prices else "unknown"
        for name, unit in units.items()
    }
    return {**shown, "Cached": "" if "cached" not in rates.prices else shown["Cached"]}


def _per_million(rates: Rates, unit: Unit) -> float | None:
    return float(rates.prices[unit] * 1_000_000) if unit in rates.prices else None


def _check_provider(name: str | None, known_models: Sequence[KnownModel]) -> None:
    providers = {known.provider for known in known_models}
    if name is not None and name not in providers:
        close = difflib.get_close_matches(name, sorted(providers), n=3)
        hint = f" Similar: {', '.join(close)}." if close else ""
        err.print(f"Error: no provider is called {printable(name)}.{hint}")
        raise typer.Exit(1)


def _nothing(words: Sequence[str], *, filtered: bool) -> typer.Exit:
    named = f" whose name contains {printable(' and '.join(words))}" if words else ""
    similar = [] if filtered else similar_models(" ".join(words), Catalogue.load(load_settings()))
    hint = f" Similar: {', '.join(similar)}." if similar else ""
    also = " passes these filters" if filtered else " is known"
    err.print(f"Error: no model{named}{also}.{printable(hint)}")
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
