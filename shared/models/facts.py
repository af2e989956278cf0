"""What is known about a model, for people: its entry, its retirement, and what other prices would change."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal

from shared.config import Settings
from shared.models.abilities import check_task
from shared.models.auto import is_auto
from shared.models.catalogue import MONEY, Catalogue, announced_retirement, keys_of, look_up, resolve, retirement, split
from shared.models.keys import has_key, key_variables, provider_key
from shared.models.names import model_facts
from shared.prices import TableEntry, price_table, rates_of
from shared.scope import Scope
from shared.types import Candidate, TaskType, Unit

_CALLABLE = ("chat", "image_generation", "image_edit")

Quotes = dict[tuple[str, int, str], Decimal]


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model of the price table; `own`: the user's file prices it."""

    name: str
    provider: str
    wire_model: str
    entry: TableEntry
    own: bool


@dataclass(frozen=True, slots=True)
class Retirement:
    """The announced end of a model; changes are those of the successor's price, in percent, None if unknown."""

    model: str
    date: str | None
    days_left: int | None
    successor: str | None
    input_change_percent: float | None
    output_change_percent: float | None
    source: str


@dataclass(frozen=True, slots=True)
class PriceChange:
    """One price that another table has differently: US$ for one unit, None where one of them has none."""

    model: str
    tier: str
    above: int
    unit: str
    before: Decimal | None
    after: Decimal | None

    @property
    def percent(self) -> float | None:
        """By how much it changes."""
        return _percent(self.before, self.after)


def known_model(name: str, catalogue: Catalogue) -> KnownModel | None:
    """The model that a name stands for; None if neither the table nor the user's file has it."""
    for task in (TaskType.CHAT_COMPLETION, TaskType.IMAGE_GENERATION):
        provider, wire_model, entry = look_up(name, task, catalogue.overrides)
        if provider is not None and entry is not None:
            keys = keys_of(name, provider, wire_model)
            own = any(not MONEY.isdisjoint(catalogue.overrides.get(key, ())) for key in keys)
            return KnownModel(f"{provider}/{wire_model}", provider, wire_model, entry, own)
    return None


def listed_models(catalogue: Catalogue) -> list[KnownModel]:
    """
    Every model of the table and the user's file that can be called and is not gone, by provider and name.

    The providers whose key is set come first, then those that this package suggests.
    """
    table = price_table()
    names = (name for mode in _CALLABLE for name in table.in_mode(mode))
    found = {name: KnownModel(name, *split(name), table[name], own=False) for name in names}
    own = (known for name in catalogue.overrides if (known := known_model(name, catalogue)) is not None)
    found.update({known.name: known for known in own})
    rank = {provider: 0 if has_key(provider) else 1 for provider in model_facts()["suggested"]}
    alive = (
        known
        for known in found.values()
        if "vanished" not in known.entry and retirement(known.provider, known.wire_model) is None
    )
    return sorted(alive, key=lambda known: (rank.get(known.provider, 2), known.name))


def check_model(name: str, task: TaskType, catalogue: Catalogue, settings: Settings) -> Candidate:
    """
    The candidate that a name stands for, if it can do the task.

    Raises:
        LLMError: No model is called so, it is retired, or it cannot do the task.
    """
    found = resolve(name, catalogue=catalogue, settings=settings, scope=Scope(), task=task)
    entry = look_up(found.model, task, catalogue.overrides)[2]
    check_task(task, found, entry, own=name in catalogue.configs)
    return found


def missing_key(candidate: Candidate) -> str | None:
    """The variables that could hold the key that a model still needs; None if there is one, or none is needed."""
    needed = candidate.api_base is None and candidate.provider in model_facts()["suggested"]
    if not needed or provider_key(candidate.provider) is not None:
        return None
    return " or ".join(key_variables(candidate.provider))


def similar_models(name: str, catalogue: Catalogue, count: int = 3) -> list[str]:
    """Names of the table that are close to one that it lacks, without those that are shut down."""
    table = price_table()
    names = [*table, *table.bare, *catalogue.overrides]
    close = difflib.get_close_matches(name, names, n=3 * count, cutoff=0.7)
    return [each for each in close if retirement(*split(table.bare.get(each, each))) is None][:count]


def models_of_settings(settings: Settings) -> dict[str, list[str]]:
    """Every model that the settings name, with the variables that name it."""
    found: dict[str, list[str]] = {}
    for field in ("default_text_model", "default_image_model", "default_vision_model"):
        if not is_auto(name := getattr(settings, field)):
            found.setdefault(name, []).append(_variable(field))
    for name in (name for _, names in settings.auto_models for name in names):
        found.setdefault(name, []).append(_variable("auto_models"))
    if settings.baseline_model is not None:
        found.setdefault(settings.baseline_model, []).append(_variable("baseline_model"))
    for field in ("default_fallback_models", "allowed_models"):
        for name in getattr(settings, field) or ():
            found.setdefault(name, []).append(_variable(field))
    return found


def _variable(field: str) -> str:
    return str(Settings.model_fields[field].validation_alias)


def retirement_of(name: str, catalogue: Catalogue, today: date | None = None) -> Retirement | None:
    """The end of a model, past or announced; None if none is known."""
    known = known_model(name, catalogue)
    full = known.name if known else "/".join(filter(None, look_up(name)[:2]))
    facts = announced_retirement(full)
    if facts is None and known is not None and "retires" in known.entry:
        source = f"price table of {price_table().date}"
        facts = {"date": known.entry["retires"], "successor": known.entry.get("successor"), "source": source}
    if facts is None:
        return None
    today = today or datetime.now(UTC).date()
    days = (date.fromisoformat(facts["date"]) - today).days if facts["date"] else None
    successor = known_model(facts["successor"], catalogue) if facts["successor"] else None
    return Retirement(
        name,
        facts["date"],
        days,
        facts["successor"],
        _change(known, successor, "input"),
        _change(known, successor, "output"),
        facts["source"],
    )


def retiring(
    names: Iterable[str], catalogue: Catalogue, within_days: int, today: date | None = None
) -> list[Retirement]:
    """Those of the models that retire within so many days, or have retired, soonest first."""
    found = (retirement_of(name, catalogue, today) for name in names)
    soon = [each for each in found if each is not None and (each.days_left is None or each.days_left <= within_days)]
    return sorted(soon, key=lambda each: (each.date or "", each.model))


def _change(old: KnownModel | None, new: KnownModel | None, unit: Unit) -> float | None:
    if old is None or new is None:
        return None
    return _percent(rates_of(old.entry).prices.get(unit), rates_of(new.entry).prices.get(unit))


def _percent(old: Decimal | None, new: Decimal | None) -> float | None:
    return None if old is None or new is None or not old else float(round((new / old - 1) * 100, 1))


def price_changes(name: str, before: Catalogue, after: Catalogue) -> list[PriceChange]:
    """What the prices of `after` would change for a model."""
    old, new = known_model(name, before), known_model(name, after)
    was, becomes = (quotes(known.entry) if known else {} for known in (old, new))
    full = (new or old).name if new or old else name  # type: ignore[union-attr]
    return [
        PriceChange(full, *key, was.get(key), becomes.get(key))
        for key in sorted(was.keys() | becomes.keys())
        if was.get(key) != becomes.get(key)
    ]


def quotes(entry: TableEntry) -> Quotes:
    """
    Every price of an entry by tier, size of the prompt above which it holds, and unit: US$ for one unit.

    The tiers "hours 1", "hours 2" and so on are the default tier's at the hours that the entry's `times` list.
    """
    found: Quotes = {}
    for tier, above, prices in _groups(entry):
        found |= {(tier, above, unit): Decimal(price) for unit, price in prices.items()}
    for quality, size, price in entry.get("sizes", ()):
        found["default", 0, " ".join(filter(None, ("image", quality, size)))] = Decimal(price)
    if entry.get("free"):
        found |= {("default", 0, "input"): Decimal(0), ("default", 0, "output"): Decimal(0)}
    return found


def _groups(entry: TableEntry) -> Iterator[tuple[str, int, Mapping[str, str]]]:
    for tier, prices in entry.get("prices", {}).items():
        yield tier, 0, prices
    for size, tiers in entry.get("above", {}).items():
        for tier, prices in tiers.items():
            yield tier, int(size), prices
    for number, window in enumerate(entry.get("times", ()), 1):
        yield f"hours {number}", 0, window["prices"]
