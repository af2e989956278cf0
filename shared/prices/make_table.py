"""
Writes table.json anew from the newest tables of LiteLLM and genai-prices: `make prices`.

Both wheels are fetched with pip into a throw-away folder. LiteLLM's is only read, as the archive that it is;
genai-prices is Python, which is installed in that folder and dumped by a process of its own. What was read is left in
build/prices, where tests compare the table with it.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from shared.prices import genai_format, litellm_format
from shared.prices.rates import within
from shared.prices.table import FORMAT
from shared.prices.units import TOKENS, plain

HERE = Path(__file__).parent
DUMPS = Path("build/prices")
# LiteLLM's names of what is one provider for us.
PROVIDERS = {
    "cohere_chat": "cohere",
    "text-completion-openai": "openai",
    "vertex_ai_beta": "vertex_ai",
    "azure_text": "azure",
}
MODES = frozenset({"chat", "responses", "completion", "image_generation", "image_edit"})
LITELLM, GENAI = "litellm", "genai-prices"

Entry = dict[str, Any]
# (tier, above how many input tokens, unit)
Key = tuple[str, int, str]
Quotes = dict[Key, Decimal]


@dataclass(frozen=True)
class Corrections:
    """What people have looked up themselves, from corrections.toml."""

    prefer: Mapping[str, str] = field(default_factory=dict)
    corrected: tuple[Mapping[str, Any], ...] = ()
    confirmed: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def read(cls, text: str) -> Corrections:
        """Corrections from TOML."""
        found = tomllib.loads(text)
        prefer = {provider: said["source"] for provider, said in found.get("prefer", {}).items()}
        return cls(prefer, tuple(found.get("correction", ())), tuple(found.get("confirmed", ())))

    def confirms(self, model: str) -> bool:
        """Whether somebody has confirmed that the prices of a model moved far."""
        return any(fnmatch.fnmatchcase(model, name) for one in self.confirmed for name in one["models"])


def make(
    litellm: Mapping[str, Any],
    genai: Mapping[str, Any],
    committed: Mapping[str, Entry],
    corrections: Corrections,
    today: date,
) -> tuple[dict[str, Entry], list[str], list[str]]:
    """
    The models of the new table by "provider/model", all providers, and what a person should look at.

    Args:
        litellm, genai: The sources as they were read, numbers as Decimal.

        committed: The models of the table as it is.
    """
    names = _names(litellm)
    ours = {
        name: litellm_format.from_litellm(litellm[theirs], zero_is_free=name.lower().endswith("free"))
        for theirs, name in names.models.items()
    }
    for name, sizes in litellm_format.sizes_of_models(litellm).items():
        if name in ours or name.startswith("openai/"):
            ours.setdefault(name, {"mode": "image_generation"})["sizes"] = sizes
    theirs = genai_format.quotes_by_model(genai, ours, today)
    found: dict[str, Entry] = {}
    for name in sorted({*ours, *theirs}):
        provider = name.partition("/")[0]
        found[name] = _merge(ours.get(name), theirs.get(name), corrections.prefer.get(provider))
    for name in names.bare:
        found[name] = {"bare": True, **found[name]}
    for name, target in names.aliases.items():
        if target in found:
            found[name] = {**({"bare": True} if name in names.bare_aliases else {}), "alias": target}
    _canonical_successors(found, names.models)
    notes = _correct(found, corrections)
    notes += _hold_back(found, committed, corrections)
    others = {_full(name, entry, names.providers) for name, entry in litellm.items() if entry.get("mode") not in MODES}
    notes += _keep_vanished(found, {name: old for name, old in committed.items() if name not in others}, today)
    return found, sorted(names.providers), notes


# Names


@dataclass
class _Names:
    models: dict[str, str] = field(default_factory=dict)  # LiteLLM's name -> provider/model
    bare: set[str] = field(default_factory=set)
    aliases: dict[str, str] = field(default_factory=dict)
    bare_aliases: set[str] = field(default_factory=set)
    providers: set[str] = field(default_factory=set)


def provider_of(entry: Mapping[str, Any]) -> str:
    """The provider of an entry of LiteLLM's, by our name."""
    provider = str(entry.get("litellm_provider", ""))
    return "vertex_ai" if provider.startswith("vertex_ai") else PROVIDERS.get(provider, provider)


def _names(litellm: Mapping[str, Any]) -> _Names:
    """LiteLLM's names as provider/model; of a model that it lists twice, the full name's entry if it has a price."""
    found = _Names()
    found.providers = {provider_of(entry) for name, entry in litellm.items() if name != "sample_spec"} - {""}
    listed = {name: entry for name, entry in litellm.items() if entry.get("mode") in MODES and "-x-" not in name}
    for name, entry in listed.items():
        if "litellm_provider" in entry and not _low_to_high(name):
            found.models[name] = _full(name, entry, found.providers)
    full = {ours: theirs for theirs, ours in found.models.items() if theirs == ours}
    for theirs, ours in list(found.models.items()):
        if _is_bare(theirs, ours):
            found.bare.add(ours)
            if ours in full:
                priced = litellm[ours].get("input_cost_per_token") or not litellm[theirs].get("input_cost_per_token")
                del found.models[theirs if priced else ours]
    for name, entry in litellm.items():
        target = entry.get("alias_of")
        if target in litellm:
            full_target = _full(target, litellm[target], found.providers)
            provider, _, rest = name.partition("/")
            ours = name if rest and provider in found.providers else f"{full_target.partition('/')[0]}/{name}"
            found.aliases[ours] = full_target
            if not rest:
                found.bare_aliases.add(ours)
    return found


def _full(name: str, entry: Mapping[str, Any], providers: Iterable[str]) -> str:
    provider, (prefix, _, rest) = provider_of(entry), name.partition("/")
    if rest and prefix in providers:
        return f"{PROVIDERS.get(prefix, prefix)}/{rest}"
    return f"{provider}/{name}"


def _is_bare(theirs: str, ours: str) -> bool:
    return ours.partition("/")[2] == theirs


def _low_to_high(name: str) -> bool:
    """Names such as low/1024x1024/gpt-image-1, which are prices and not models."""
    return name.partition("/")[0] in ("low", "medium", "high", "hd", "standard")


def _canonical_successors(found: Mapping[str, Entry], names: Mapping[str, str]) -> None:
    """Successors by their full names, where the table has them."""
    for name, entry in found.items():
        if (said := entry.get("successor")) is None:
            continue
        provider = name.partition("/")[0]
        full = next((one for one in (names.get(said), said, f"{provider}/{said}") if one in found), None)
        if full is None:
            del entry["successor"]
        else:
            entry["successor"] = full


# Two sources into one entry


def _merge(litellm: Entry | None, genai: genai_format.Quoted | None, prefer: str | None) -> Entry:
    """One entry of what both sources say, with both figures where they differ."""
    entry: Entry = dict(litellm or {})
    if genai is None:
        return {**entry, "only_in": LITELLM}
    entry.setdefault("mode", "chat")
    if genai.window is not None:
        entry.setdefault("window", genai.window)
    if genai.free and litellm is None:
        entry["free"] = True
    if genai.deprecated:
        entry["deprecated"] = True
    if litellm is None:
        entry["only_in"] = GENAI
    said = {LITELLM: _quotes(litellm or {}), GENAI: genai.quotes}
    if ("default", 0, "search_low") in said[LITELLM]:
        # The fee of a request that searches, which the other source has without its sizes.
        said[GENAI] = {key: price for key, price in genai.quotes.items() if key[2] not in ("request", "search")}
    hours = {name: times for name, times in ((LITELLM, entry.get("times")), (GENAI, genai.times)) if times}
    by_hour = {name: _Hours(_units_at(quotes), hours.get(name, [])) for name, quotes in said.items()}
    for name, quotes in said.items():
        quotes.update({("default", 0, unit): price for unit, price in by_hour[name].most().items()})
    billed, disputed = _billed(_same_sizes(said), prefer)
    entry.pop("above", None)
    entry |= written(billed)
    if disputed:
        entry["disputed"] = disputed
    if hours:
        entry["times"] = _times(by_hour, _units_at(billed), prefer)
    if genai.changes:
        entry["changes"] = [_change(day, quotes, billed) for day, quotes in genai.changes]
    return entry


def _change(day: str, quotes: Quotes, billed: Quotes) -> Entry:
    """What holds from a day on: all prices of tokens are new, and nothing that depends on the hour is known."""
    lasting = {key: price for key, price in billed.items() if key[2] not in TOKENS}
    nothing: Entry = {"above": {}, "disputed": {}, "times": []}
    return {"from": day, **nothing, **written({**lasting, **quotes})}


def _units_at(quotes: Quotes) -> dict[str, Decimal]:
    return {unit: price for (tier, size, unit), price in quotes.items() if (tier, size) == ("default", 0)}


def _same_sizes(sources: Mapping[str, Quotes]) -> dict[str, Quotes]:
    """Above 199,999 and above 200,000 tokens are one size, written in two ways: the lower one counts."""
    sizes = {size for quotes in sources.values() for _, size, _ in quotes}
    return {
        name: {(tier, size - 1 if size - 1 in sizes and size > 1 else size, unit): price
               for (tier, size, unit), price in quotes.items()}
        for name, quotes in sources.items()
    }  # fmt: skip


# Hours


@dataclass(frozen=True)
class _Hours:
    """One source's prices by the hour: the base prices, and windows with others."""

    base: Mapping[str, Decimal]
    windows: Sequence[Mapping[str, Any]]

    def at(self, day: int, clock: str) -> dict[str, Decimal]:
        """The prices at a time of the week (UTC)."""
        for window in self.windows:
            if day in window["days"] and any(within(hours, clock) for hours in window["hours"]):
                return {**self.base, **{unit: Decimal(usd) for unit, usd in window["prices"].items()}}
        return dict(self.base)

    def most(self) -> dict[str, Decimal]:
        """The most expensive price of each unit."""
        found = dict(self.base)
        for window in self.windows:
            for unit, usd in window["prices"].items():
                found[unit] = max(Decimal(usd), found.get(unit, Decimal(0)))
        return found


_CLOCKS = [f"{half // 2:02}:{half % 2 * 30:02}" for half in range(48)]


def _times(sources: Mapping[str, _Hours], base: Mapping[str, Decimal], prefer: str | None) -> list[Entry]:
    """The hours at which less is billed than at the most expensive one, in UTC, by half hours."""
    slots: dict[str, dict[int, list[int]]] = {}
    for day in range(1, 8):
        for half, clock in enumerate(_CLOCKS):
            said = {name: hours.at(day, clock) for name, hours in sources.items() if hours.base}
            figures = {unit: {name: prices[unit] for name, prices in said.items() if unit in prices} for unit in base}
            billed = {unit: by.get(prefer or "", max(by.values())) for unit, by in figures.items() if by}
            other = {unit: plain(unit, price) for unit, price in sorted(billed.items()) if price != base[unit]}
            if other:
                slots.setdefault(json.dumps(other), {}).setdefault(day, []).append(half)
    return [
        {"days": days, "hours": hours, "prices": json.loads(prices)}
        for prices, by_day in sorted(slots.items())
        for hours, days in _alike({day: _ranges(halves) for day, halves in by_day.items()})
    ]


def _alike(hours_of_days: Mapping[int, list[str]]) -> list[tuple[list[str], list[int]]]:
    """Days that have the same hours, together."""
    found: dict[tuple[str, ...], list[int]] = {}
    for day, hours in hours_of_days.items():
        found.setdefault(tuple(hours), []).append(day)
    return [(list(hours), days) for hours, days in found.items()]


def _ranges(halves: list[int]) -> list[str]:
    """Half hours of a day as "04:00-06:00"; "00:00" ends at midnight."""
    starts = [half for half in halves if half - 1 not in halves]
    ends = [half + 1 for half in halves if half + 1 not in halves]
    return [f"{_CLOCKS[start]}-{_CLOCKS[end % 48]}" for start, end in zip(starts, ends, strict=True)]


# One entry's prices


def _quotes(entry: Mapping[str, Any]) -> Quotes:
    """The prices of an entry, flat."""
    found = {(tier, 0, unit): Decimal(usd) for tier, at in entry.get("prices", {}).items() for unit, usd in at.items()}
    for size, tiers in entry.get("above", {}).items():
        found |= {(tier, int(size), unit): Decimal(usd) for tier, at in tiers.items() for unit, usd in at.items()}
    return found


def _billed(sources: Mapping[str, Quotes], prefer: str | None) -> tuple[Quotes, dict[str, Any]]:
    """What is billed: the only figure, the preferred one, else the more expensive; and where the two differ."""
    bands = sorted({(tier, size) for quotes in sources.values() for tier, size, _ in quotes})
    units = sorted({unit for quotes in sources.values() for _, _, unit in quotes})
    billed: Quotes = {}
    disputed: dict[str, Any] = {}
    for tier, size in bands:
        for unit in units if size == 0 else TOKENS.intersection(units):
            figures = {
                name: price for name, quotes in sources.items() if (price := _at(quotes, tier, size, unit)) is not None
            }
            if not figures:
                continue
            most, least = max(figures.values()), min(figures.values())
            billed[tier, size, unit] = figures.get(prefer or "", most)
            if most - least > most / 100:
                at = tier if size == 0 else f"{tier}>{size}"
                said = {name: plain(unit, price) for name, price in sorted(figures.items())}
                disputed.setdefault(at, {})[unit] = said
    return billed, {at: dict(sorted(units.items())) for at, units in sorted(disputed.items())}


def _at(quotes: Quotes, tier: str, size: int, unit: str) -> Decimal | None:
    """What a source says for prompts above a size: its own figure, else that of the next lower size that it has."""
    sizes = {at for of, at, _ in quotes if of == tier and at <= size}
    return quotes.get((tier, max(sizes), unit)) if sizes else None


def written(quotes: Quotes) -> Entry:
    """Flat prices as the table has them, without sizes that change nothing."""
    prices: dict[str, dict[str, str]] = {}
    above: dict[int, dict[str, dict[str, str]]] = {}
    for (tier, size, unit), price in sorted(quotes.items()):
        at = prices if size == 0 else above.setdefault(size, {})
        at.setdefault(tier, {})[unit] = plain(unit, price)
    tokens = {tier: {unit: usd for unit, usd in at.items() if unit in TOKENS} for tier, at in prices.items()}
    changing = {str(size): tiers for size, tiers in sorted(above.items()) if tiers != tokens}
    return {"prices": prices, **({"above": changing} if changing else {})}


# What people decide


def _correct(found: dict[str, Entry], corrections: Corrections) -> list[str]:
    """Put the hand-written figures in, and name those that nobody needs any more."""
    notes = []
    for one in corrections.corrected:
        entry = found.setdefault(one["model"], {"mode": "chat"})
        before = json.dumps(entry, sort_keys=True)
        for tier, prices in one.get("prices", {}).items():
            entry.setdefault("prices", {}).setdefault(tier, {}).update(
                {unit: plain(unit, Decimal(usd)) for unit, usd in prices.items()}
            )
        for size, tiers in one.get("above", {}).items():
            for tier, prices in tiers.items():
                entry.setdefault("above", {}).setdefault(size, {}).setdefault(tier, {}).update(
                    {unit: plain(unit, Decimal(usd)) for unit, usd in prices.items()}
                )
        entry |= one.get("facts", {})
        if before == json.dumps(entry, sort_keys=True):
            notes.append(f"{one['model']}: the sources say the same as its correction now")
        entry["corrected"] = {"source": one["source"], "read": str(one["read"])}
    return notes


def _hold_back(found: dict[str, Entry], committed: Mapping[str, Entry], corrections: Corrections) -> list[str]:
    """Keep the old price where one moves by more than half or to zero and nobody has confirmed it."""
    notes = []
    for name, entry in found.items():
        old = committed.get(name, {})
        if "vanished" in old or corrections.confirms(name) or "corrected" in entry:
            continue
        before, after = _quotes(old), _quotes(entry)
        if before and not after and not entry.get("alias"):
            kept: Entry = {key: old[key] for key in ("prices", "above", "times", "disputed") if key in old}
            found[name] = {**entry, **kept}
            notes.append(f"{name}: has no price any more; kept the old ones")
            continue
        moved = {key: new for key, new in after.items() if key in before and _far(before[key], new)}
        if not moved:
            continue
        disputed = entry.setdefault("disputed", {})
        for (tier, size, unit), new in moved.items():
            at = disputed.setdefault(tier if size == 0 else f"{tier}>{size}", {}).setdefault(unit, {})
            at["unconfirmed"] = plain(unit, new)
            notes.append(
                f"{name}: {tier} {unit} {before[tier, size, unit]} -> {new} is not confirmed; kept the old one"
            )
        found[name] = {**entry, **written({**after, **{key: before[key] for key in moved}})}
    return notes


def _far(old: Decimal, new: Decimal) -> bool:
    return abs(new - old) > old / 2 or (new == 0) != (old == 0)


def _keep_vanished(found: dict[str, Entry], committed: Mapping[str, Entry], today: date) -> list[str]:
    """Keep the names that the sources have dropped, with the day on which that was seen."""
    notes = []
    for name, old in committed.items():
        if name in found:
            continue
        found[name] = {**old, "vanished": old.get("vanished", today.isoformat())}
        if "vanished" not in old:
            notes.append(f"{name}: is in neither source any more; kept")
    return notes


# Files


def render(models: Mapping[str, Entry], providers: list[str], sources: Mapping[str, Any], today: date) -> str:
    """The table as text, one model a line."""
    head = {"format": FORMAT, "date": today.isoformat(), "sources": sources, "providers": providers}
    about = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items())
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(_ordered(models[name]))}" for name in sorted(models))
    return f'{{\n{about},\n"models": {{\n{lines}\n}}\n}}\n'


def _ordered(entry: Mapping[str, Any]) -> Entry:
    """`bare` first, where the reader looks for it; the rest by name."""
    return dict(sorted(entry.items(), key=lambda item: (item[0] != "bare", item[0])))


def fetch(run: Callable[[list[str]], None]) -> Mapping[str, Any]:
    """Fetch both sources into build/prices, and say which they are."""
    DUMPS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        python = str(Path(folder, "venv", "bin", "python"))
        run([sys.executable, "-m", "venv", str(Path(folder, "venv"))])
        pip = [python, "-m", "pip", "-q", "--disable-pip-version-check"]
        # One platform, so that the hash is the same wherever this runs.
        linux = ["--platform", "manylinux_2_28_x86_64", "--python-version", "3.12"]
        run([*pip, "download", "--no-deps", "--only-binary", ":all:", *linux, "-d", folder, "litellm", "genai-prices"])
        (litellm,) = Path(folder).glob("litellm-*.whl")
        (genai,) = Path(folder).glob("genai_prices-*.whl")
        with zipfile.ZipFile(litellm) as wheel:
            table = wheel.read("litellm/model_prices_and_context_window_backup.json")
        (DUMPS / "litellm.json").write_bytes(table)
        run([*pip, "install", "--only-binary", ":all:", "--target", str(Path(folder, "genai")), str(genai)])
        dump = (HERE / "genai_dump.py").read_text(encoding="utf-8")
        run([python, "-c", dump, str(Path(folder, "genai")), str((DUMPS / "genai.json").resolve())])
        sources = {LITELLM: _wheel(litellm), GENAI: _wheel(genai)}
    (DUMPS / "sources.json").write_text(json.dumps(sources), encoding="utf-8")
    return sources


def _wheel(path: Path) -> dict[str, str]:
    return {"version": path.name.split("-")[1], "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def read_sources() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What `fetch` has left."""
    litellm = json.loads((DUMPS / "litellm.json").read_text(encoding="utf-8"), parse_float=Decimal)
    genai = json.loads((DUMPS / "genai.json").read_text(encoding="utf-8"))
    return litellm, genai


def main() -> None:
    """Write the table and say what a person should look at."""
    parser = argparse.ArgumentParser(prog="make prices", description=__doc__)
    parser.add_argument("--offline", action="store_true", help="use what was fetched last")
    offline = parser.parse_args().offline
    sources = json.loads((DUMPS / "sources.json").read_text(encoding="utf-8")) if offline else fetch(_run)
    path = HERE / "table.json"
    committed = json.loads(path.read_text(encoding="utf-8"))["models"] if path.exists() else {}
    corrections = Corrections.read((HERE / "corrections.toml").read_text(encoding="utf-8"))
    today = datetime.now(UTC).date()
    models, named, notes = make(*read_sources(), committed, corrections, today)
    providers = sorted({*named, *(name.partition("/")[0] for name in models)})
    path.write_text(render(models, providers, sources, today), encoding="utf-8")
    for line in _summary(models, committed, notes):
        sys.stdout.write(f"{line}\n")


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True)


def _summary(models: Mapping[str, Entry], committed: Mapping[str, Entry], notes: list[str]) -> Iterator[str]:
    """What changed."""
    yield f"{len(models):,} models, {sum('disputed' in entry for entry in models.values()):,} of them disputed."
    new = [name for name in models if name not in committed]
    yield f"{len(new):,} are new{': ' + ', '.join(new[:40]) if committed else ''}."
    for name in sorted(models.keys() & committed.keys()):
        before, after = _quotes(committed[name]), _quotes(models[name])
        for key in sorted(before.keys() & after.keys()):
            if before[key] != after[key]:
                yield f"{name}: {' '.join(map(str, key))} {before[key]} -> {after[key]}"
    yield from notes


if __name__ == "__main__":
    main()
