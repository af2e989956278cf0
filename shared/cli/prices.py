"""What models cost by the price table, and what another table would change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

from shared.analytics import get_llm_costs
from shared.cli.completion import complete_model
from shared.cli.console import AsJson, err, out, print_json
from shared.cli.tables import print_listing, print_wrapped
from shared.config import load_settings
from shared.errors import ConfigurationError
from shared.models import (
    Catalogue,
    KnownModel,
    PriceChange,
    Retirement,
    known_model,
    price_changes,
    quotes,
    retirement_of,
    similar_models,
)
from shared.prices import TOKENS, price_overrides, price_table
from shared.reports import printable

prices = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

_WHOLE_LEDGER_DAYS = 36_500
_SOURCES = {"litellm": "LiteLLM", "genai-prices": "genai-prices", "unconfirmed": "not confirmed yet"}
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@prices.command()
def show(
    model: Annotated[str, typer.Argument(help="The model's name.", autocompletion=complete_model)],
    as_json: AsJson = False,
) -> None:
    """Show every price of a model, with its source, limits, abilities and retirement."""
    catalogue = Catalogue.load(load_settings())
    retirement = retirement_of(model, catalogue)
    known = known_model(model, catalogue)
    if known is None and retirement is not None and retirement.successor is not None:
        err.print(f"The price table has no model {printable(model)}: {printable(retirement_text(retirement))}.")
        model = retirement.successor
        known, retirement = known_model(model, catalogue), retirement_of(model, catalogue)
    if known is None:
        raise _no_model(model, catalogue)
    if as_json:
        print_json(_as_dict(known, catalogue, retirement))
    else:
        _print_model(model, known, catalogue, retirement)


@prices.command()
def diff(
    file: Annotated[Path, typer.Argument(help="A price table, in this package's format or in LiteLLM's JSON.")],
    as_json: AsJson = False,
) -> None:
    """Show what another price table would change for the models in the ledger."""
    now = Catalogue.load(load_settings())
    other = Catalogue(now.configs, _read(file))
    used = models_of_ledger()
    missing = [name for name in used if (known := known_model(name, other)) is None or not known.own]
    changes = [change for name in used if name not in missing for change in price_changes(name, now, other)]
    changes = list(dict.fromkeys(changes))
    if as_json:
        rows = [_change_as_dict(change) for change in changes]
        print_json({"models": used, "not_in_file": missing, "changes": rows})
        return
    if not used:
        out.print("The ledger is empty: there is no model to compare.")
        return
    if changes:
        groups: dict[str, list[tuple[str, ...]]] = {}
        for change in changes:
            groups.setdefault(change.model, []).append(_change_row(change))
        print_listing(("Unit", "Tier", "Now", "Then", "Change"), groups, words=2, title="Model")
    print_wrapped(f"{len(changes):,} prices would change, of {len(used):,} models in the ledger.")
    if missing:
        print_wrapped(f"Not in {file.name}: {', '.join(missing)}.")


def models_of_ledger() -> list[str]:
    """
    Every model that the ledger has calls of.

    Raises:
        ConfigurationError: Cost tracking is off.

        StoreError: The ledger cannot be read.
    """
    return sorted(get_llm_costs(_WHOLE_LEDGER_DAYS)["calls_by_model"])


def _no_model(name: str, catalogue: Catalogue) -> typer.Exit:
    similar = similar_models(name, catalogue)
    hint = f" Similar: {', '.join(similar)}." if similar else " `agentswarm-tools models WORD` searches for names."
    err.print(f"Error: the price table has no model {printable(name)}.{printable(hint)}")
    return typer.Exit(1)


def _read(file: Path) -> Mapping[str, Any]:
    try:
        changed = file.stat().st_mtime_ns
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read ({error.strerror})", hint="Give the path of a file.") from None
    try:
        return price_overrides(file, changed)[0]
    except ConfigurationError as error:
        # The reader speaks of the variable that usually names the file.
        raise ConfigurationError(error.message.replace("AGENTSWARM_PRICES", str(file)), hint=error.next_step) from None


# As text


def _print_model(name: str, known: KnownModel, catalogue: Catalogue, retirement: Retirement | None) -> None:
    entry = known.entry
    out.print(printable(known.name))
    for line in _facts(name, known, retirement):
        print_wrapped(printable(line), "    ")
    rows = [
        (unit, tier, f"above {above:,}" if above else "", written(unit, usd))
        for (tier, above, unit), usd in sorted(quotes(entry).items(), key=lambda item: _order(item[0]))
    ]
    if rows:
        out.print()
        print_listing(("Unit", "Tier", "Prompt", "Price"), {"": rows}, words=3)
        out.print()
    else:
        out.print("  Price: unknown")
    for line in (*_notes(entry), f"Source: {_source(known, catalogue)}"):
        print_wrapped(printable(f"  {line}"), "    ")


def _order(key: tuple[str, int, str]) -> tuple[int, str, int, str]:
    """The default tier first; input before output before what is rarer."""
    tier, above, unit = key
    common = {"input": 0, "cached": 1, "cache_write": 2, "output": 3}
    return tier != "default", tier, above, f"{common.get(unit, 9)}{unit}"


def _facts(name: str, known: KnownModel, retirement: Retirement | None) -> Iterator[str]:
    entry = known.entry
    if name not in (known.name, known.wire_model):
        yield f"  {name} stands for it"
    limits = [
        f"{entry[field]:,} tokens {where}"
        for field, where in (("window", "in"), ("max_output", "out"))
        if entry.get(field)
    ]
    yield f"  Kind: {entry.get('mode', 'chat').replace('_', ' ')}{'; ' if limits else ''}{', '.join(limits)}"
    for title, field in (("Can", "can"), ("Cannot", "cannot"), ("Makes", "makes")):
        if entry.get(field):
            yield f"  {title}: {', '.join(entry[field])}"
    if retirement is not None:
        yield f"  Retires: {retirement_text(retirement)}"
    if entry.get("deprecated"):
        yield "  Deprecated by its provider"
    if "vanished" in entry:
        yield f"  In neither source any more since {entry['vanished']}"


def retirement_text(retirement: Retirement) -> str:
    """When a model ends, what replaces it, and what that costs."""
    day, left = retirement.date or "day not verified", retirement.days_left
    when = "" if left is None else f" (in {_days(left)})" if left > 0 else " (shut down)"
    if retirement.successor is None:
        return f"{day}{when}; no successor is known"
    changes = [
        f"{name} {change:+g} %" if change else f"{name} unchanged"
        for name, change in (
            ("input", retirement.input_change_percent),
            ("output", retirement.output_change_percent),
        )
        if change is not None
    ]
    return f"{day}{when}; successor {retirement.successor}, {', '.join(changes) or 'change of price unknown'}"


def _days(count: int) -> str:
    return "1 day" if count == 1 else f"{count:,} days"


def _notes(entry: Mapping[str, Any]) -> Iterator[str]:
    for number, window in enumerate(entry.get("times", ()), 1):
        days = "every day" if len(window["days"]) == 7 else ", ".join(_DAYS[day - 1] for day in window["days"])
        yield f"Hours {number}: {', '.join(window['hours'])} UTC, {days}"
    if entry.get("multipliers"):
        yield "Every price times: " + ", ".join(f"{factor} for {name}" for name, factor in entry["multipliers"].items())
    for change in entry.get("changes", ()):
        new = (
            f"{unit} {written(unit, usd)}{'' if tier == 'default' else f' ({tier})'}"
            for (tier, _, unit), usd in quotes({**change, "above": {}}).items()
        )
        yield f"From {change['from']}: {', '.join(new)}"
    for each in _disputes(entry):
        told = ", ".join(
            f"{_SOURCES.get(source, source)} {written(each['unit'], Decimal(usd))}"
            for source, usd in each["sources"].items()
        )
        above = f" above {each['above']:,}" if each["above"] else ""
        yield f"Disputed: {each['unit']} ({each['tier']}{above}): {told}; budgets hold the highest"


def _disputes(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for at, units in entry.get("disputed", {}).items():
        tier, _, above = at.partition(">")
        for unit, sources in units.items():
            yield {"tier": tier, "above": int(above or 0), "unit": unit, "sources": sources}


def _source(known: KnownModel, catalogue: Catalogue) -> str:
    if known.own:
        return str(catalogue.overrides_version)
    table = price_table()
    named = [known.entry["only_in"]] if "only_in" in known.entry else list(table.sources)
    versions = " and ".join(
        f"{_SOURCES[name]} {table.sources[name]['version']}" for name in named if name in table.sources
    )
    corrected = known.entry.get("corrected")
    correction = f"; corrected by {corrected['source']} (read {corrected['read']})" if corrected else ""
    return f"price table of {table.date} ({versions}){correction}"


def written(unit: str, usd: Decimal) -> str:
    """A price in US$: of a million for tokens, else of one."""
    amount, per = (usd * 1_000_000, "1M") if unit in TOKENS else (usd, "1")
    exact = f"{amount.normalize():f}"
    whole, _, decimals = exact.partition(".")
    return f"${whole}.{decimals.ljust(2, '0')}/{per}"


def _change_row(change: PriceChange) -> tuple[str, ...]:
    tier = f"{change.tier} >{change.above // 1000}k" if change.above else change.tier
    before, after = ("none" if usd is None else written(change.unit, usd) for usd in (change.before, change.after))
    percent = "" if change.percent is None else f"{change.percent:+g} %"
    return change.unit, tier, before, after, percent


# As JSON


def _as_dict(known: KnownModel, catalogue: Catalogue, retirement: Retirement | None) -> dict[str, Any]:
    entry = known.entry
    return {
        "model": known.name,
        "provider": known.provider,
        "mode": entry.get("mode", "chat"),
        "window": entry.get("window"),
        "max_output": entry.get("max_output"),
        "can": entry.get("can", []),
        "cannot": entry.get("cannot", []),
        "prices": [
            {"tier": tier, "above": above, "unit": unit, "usd": f"{usd:f}", "usd_per_million": _per_million(unit, usd)}
            for (tier, above, unit), usd in sorted(quotes(entry).items(), key=lambda item: _order(item[0]))
        ],
        "hours": entry.get("times", []),
        "changes": entry.get("changes", []),
        "multipliers": entry.get("multipliers", {}),
        "disputed": list(_disputes(entry)),
        "source": _source(known, catalogue),
        "table_date": None if known.own else price_table().date,
        "corrected": None if known.own else entry.get("corrected"),
        "retirement": retirement,
        "deprecated": bool(entry.get("deprecated")),
        "vanished": entry.get("vanished"),
    }


def _per_million(unit: str, usd: Decimal) -> float | None:
    return float(usd * 1_000_000) if unit in TOKENS else None


def _change_as_dict(change: PriceChange) -> dict[str, Any]:
    return {
        "model": change.model,
        "tier": change.tier,
        "above": change.above,
        "unit": change.unit,
        "before_usd": None if change.before is None else f"{change.before:f}",
        "after_usd": None if change.after is None else f"{change.after:f}",
        "change_percent": change.percent,
    }
