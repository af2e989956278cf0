"""From an entry of the table to the rates of one request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

from shared.prices.table import TableEntry, price_table
from shared.prices.units import TOKENS, units_of
from shared.types import ModelConfig, Rates, Unit

FREE = Rates({"input": Decimal(0), "output": Decimal(0)}, source="free")
UNKNOWN = Rates()

_Prices = dict[Unit, Decimal]
_TIERS = frozenset({"priority", "flex", "fast", "batch"})
_ALONE: tuple[Unit, ...] = ("input", "output", "request", "output_image", "image", "pixel")


def rates_of(
    entry: TableEntry, *, service_tier: str | None = None, version: str | None = None, now: datetime | None = None
) -> Rates:
    """
    The rates of an entry in the price table.

    Args:
        entry: One model of the table.

        service_tier: "priority", "flex", "fast" or "batch", where it is asked for or was given; such a tier without a
            price is unknown.

        version: What to record as the source of the price.

        now: When the request is sent, since some prices depend on the hour or change on a day.
    """
    if entry.get("free"):
        return FREE
    tier = service_tier if service_tier in _TIERS else "default"
    now = now or datetime.now(UTC)
    entry = _dated(entry, now)
    base, above = _stated(entry, tier)
    sizes = tuple((of, at, Decimal(usd)) for of, at, usd in entry.get("sizes", ()) if "output_image" not in base)
    if not sizes and not any(unit in base for unit in _ALONE):
        return UNKNOWN
    rates = Rates(base, above, sizes=sizes, source="table", version=version or price_table().version)
    if tier == "default" and (then := _at_hour(entry, now)):
        rates = replace(rates, prices={**base, **then})
    held = _held(entry, tier, rates, base)
    return rates if held == rates else replace(rates, held=held)


def _stated(entry: TableEntry, tier: str) -> tuple[_Prices, tuple[tuple[int, Mapping[Unit, Decimal]], ...]]:
    """The prices of one tier, and those above each size of the prompt; the default tier's where it is no token's."""
    prices = entry.get("prices", {})
    shared = {unit: price for unit, price in units_of(prices.get("default", {})).items() if unit not in TOKENS}
    base = {**shared, **units_of(prices.get(tier, {}))}
    # A size whose price the service tier leaves open has none; the standard price is not what is charged.
    sizes = {int(size): units_of(tiers.get(tier, {})) for size, tiers in entry.get("above", {}).items()}
    return base, tuple((size, {**shared, **sizes[size]}) for size in sorted(sizes))


def _dated(entry: TableEntry, now: datetime) -> TableEntry:
    """The entry with the prices that hold from some day until now."""
    for change in entry.get("changes", ()):
        if change["from"] <= now.date().isoformat():
            entry = {**entry, **{key: value for key, value in change.items() if key != "from"}}
    return entry


def _at_hour(entry: TableEntry, now: datetime) -> _Prices:
    """The prices of this hour, where it has its own."""
    for window in entry.get("times", ()):
        if now.isoweekday() in window["days"] and any(within(hours, f"{now:%H:%M}") for hours in window["hours"]):
            return units_of(window["prices"])
    return {}


def within(hours: str, clock: str) -> bool:
    """Whether "10:00-00:00" holds at "23:15"; both ends at midnight mean the whole day."""
    start, _, end = hours.partition("-")
    return start <= clock < end if start < end else clock >= start or clock < end


def _held(entry: TableEntry, tier: str, rates: Rates, base: Mapping[Unit, Decimal]) -> Rates:
    """The most that the sources and the hours of the day have for each unit."""
    hours = [units_of(window["prices"]) for window in entry.get("times", ()) if tier == "default"]
    disputed = entry.get("disputed", {})
    prices = _most(rates.prices, base, *hours, *_figures(disputed.get(tier, {})))
    above = tuple((size, _most(at, *_figures(disputed.get(f"{tier}>{size}", {})))) for size, at in rates.above)
    return replace(rates, prices=prices, above=above)


def _figures(by_unit: Mapping[str, Mapping[str, str]]) -> Iterator[_Prices]:
    """What each source says, of the units on which they differ."""
    for unit, by_source in by_unit.items():
        for price in by_source.values():
            yield units_of({unit: price})


def _most(*prices: Mapping[Unit, Decimal]) -> _Prices:
    found: _Prices = {}
    for one in prices:
        for unit, price in one.items():
            found[unit] = max(price, found.get(unit, price))
    return found


def scaled(rates: Rates, factor: Decimal) -> Rates:
    """The rates with every price of a token multiplied, as a region or a speed does it."""

    def times(prices: Mapping[Unit, Decimal]) -> _Prices:
        return {unit: price * factor if unit in TOKENS else price for unit, price in prices.items()}

    above = tuple((size, times(at)) for size, at in rates.above)
    held = None if rates.held is None else scaled(rates.held, factor)
    return replace(rates, prices=times(rates.prices), above=above, held=held)


def rates_of_config(config: ModelConfig) -> Rates:
    """The rates that a ModelConfig states; unknown where it states none."""
    given = (config.cost_per_1k_input_tokens, config.cost_per_1k_output_tokens)
    per_image = config.cost_per_image
    if all(price is None for price in (*given, per_image)):
        return UNKNOWN
    if not any((*given, per_image)) and given.count(None) != 1:
        return FREE
    prices: _Prices = {}
    if given[0] is not None:
        prices["input"] = given[0] / 1000
    if given[1] is not None:
        prices["output"] = given[1] / 1000
    if per_image is not None:
        prices["image"] = per_image
    return Rates(prices, source="config")


class Highest(NamedTuple):
    """The highest price of each unit, the longest answer and the largest window that a provider has."""

    rates: Rates
    max_output_tokens: int
    max_input_tokens: int


_LONGEST, _LARGEST = 128_000, 1_048_576


@lru_cache(maxsize=64)
def highest_rates(provider: str) -> Highest:
    """
    What the most expensive models of a provider cost, over every tier and size of the prompt.

    Those of all providers together where the price table has none of this one.
    """
    table = price_table()
    entries = [table[name] for name in table if name.startswith(f"{provider}/")]
    entries = [entry for entry in entries if "prices" in entry] or [e for e in table.values() if "prices" in e]
    prices: _Prices = {}
    for entry in entries:
        tiers = [*entry["prices"].items(), *(each for at in entry.get("above", {}).values() for each in at.items())]
        found = [units_of(stated) for tier, stated in tiers if tier != "batch"]
        prices = _most(prices, *found, *(each for by in entry.get("disputed", {}).values() for each in _figures(by)))
    prices = {"input": Decimal(0), "output": Decimal(0), **prices}
    longest = max((entry["max_output"] for entry in entries if "max_output" in entry), default=_LONGEST)
    largest = max((entry["window"] for entry in entries if "window" in entry), default=_LARGEST)
    return Highest(Rates(prices, source="table", version=table.version), longest, largest)
