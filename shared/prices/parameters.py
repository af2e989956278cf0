"""What a request may contain without costing more than its tokens: parameters.toml, read once."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from shared.types import Unit


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that a body may name: what each use is charged as, and what limits the number of uses."""

    unit: Unit | None = None
    uses: str | int = 0
    again: bool = False
    tokens: int = 0
    models: str = "*"


@dataclass(frozen=True, slots=True)
class Rules:
    """The fields of one wire format, as `plain` names."""

    free: frozenset[str]
    inside: str | None
    options: frozenset[str]
    limits: tuple[tuple[str, ...], ...]
    thinking: tuple[tuple[str, ...], ...]
    message: frozenset[str]
    parts: Mapping[str, str]
    tools: Mapping[str, Tool]
    tools_are_keys: bool

    def tool(self, word: str, model: str) -> Tool | None:
        """The tool of this type, where the model takes it; None if nothing is known of it."""
        known = plain(word)
        fitting = (tool for name, tool in self.tools.items() if fnmatchcase(known, name))
        return next((tool for tool in fitting if fnmatchcase(model, tool.models)), None)


@dataclass(frozen=True, slots=True)
class TierRules:
    """How a provider is asked for a service tier and a region, and what it serves unasked."""

    field: str
    pin: str | None
    unsaid: tuple[str, ...]
    auto: tuple[str, ...]
    exact: bool
    standard: frozenset[str]
    known: frozenset[str]
    region_field: str | None
    everywhere: frozenset[str]
    unsaid_regions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Searching:
    """A model that searches by itself: how often at most, and whether it reads what it finds as input."""

    uses: int | None
    reads: bool


@lru_cache(maxsize=1024)
def plain(name: object) -> str:
    """A field's name without underscores and capitals: both spellings of Gemini's are the same."""
    return str(name).replace("_", "").lower()


@lru_cache(maxsize=1)
def parameters() -> Mapping[str, Any]:
    """The tables of parameters.toml."""
    return tomllib.loads((Path(__file__).parent / "parameters.toml").read_text(encoding="utf-8"))


@lru_cache(maxsize=16)
def rules_of(wire: str) -> Rules:
    """The rules of one wire format."""
    table = parameters()[wire]
    return Rules(
        free=_names(table["free"]),
        inside=plain(table["inside"]) if "inside" in table else None,
        options=_names(table.get("options", ())),
        limits=tuple(_path(path) for path in table["limits"]),
        thinking=tuple(_path(path) for path in table["thinking"]),
        message=_names(table["message"]),
        parts={plain(name): kind for name, kind in table["parts"].items()},
        tools={plain(name): Tool(**tool) for name, tool in table.get("tools", {}).items()},
        tools_are_keys=wire == "gemini",
    )


@lru_cache(maxsize=64)
def tier_rules(provider: str) -> TierRules:
    """How a provider is asked for a service tier and a region."""
    tables, words = parameters()["tiers"], parameters()["words"]
    table = tables.get(provider, tables["others"])
    regions = parameters()["regions"].get(provider, {})
    return TierRules(
        field=table["field"],
        pin=table.get("pin"),
        unsaid=tuple(table["unsaid"]),
        auto=tuple(table.get("auto", ("default", *words["tiers"]))),
        exact=table.get("exact", False),
        standard=frozenset((*words["standard"], *table.get("same", ()))),
        known=frozenset(words["tiers"]),
        region_field=regions.get("field"),
        everywhere=frozenset(regions.get("everywhere", ())),
        unsaid_regions=tuple(regions.get("unsaid", ())),
    )


@lru_cache(maxsize=1024)
def searching_of(model: str) -> Searching | None:
    """How a model, by provider/model, searches by itself; None if it does not."""
    for row in parameters()["searching"]:
        if any(fnmatchcase(model.lower(), name) for name in row["models"]):
            return Searching(row.get("uses"), row.get("reads", False))
    return None


@lru_cache(maxsize=1024)
def passes_on(model: str) -> bool:
    """Whether a model, by provider/model, passes requests on to others at their prices."""
    return any(fnmatchcase(model.lower(), name) for name in parameters()["routing"]["models"])


@lru_cache(maxsize=1024)
def makes_images(model: str) -> bool:
    """Whether a chat model, by provider/model, may answer with images without being asked to."""
    return any(fnmatchcase(model.lower(), name) for name in parameters()["making_images"]["models"])


def is_free_of_images(name: str) -> bool:
    """Whether a parameter of a request for images changes nothing that is charged."""
    return name in parameters()["images"]["free"]


def has_no_bound(provider: str, part: str) -> bool:
    """Whether a part of this type is charged by the provider in a way that nothing bounds."""
    return part in parameters()["unbounded"]["parts"].get(provider, ())


def is_free_header(name: str, value: Any) -> bool:
    """Whether a header that the caller added changes nothing that is charged."""
    known, lower = parameters()["headers"], str(name).lower()
    if lower == "anthropic-beta":
        return all(beta.strip() in known["betas"] for beta in str(value).split(","))
    return lower in known["free"]


def live_search_most() -> int:
    """How many sources xAI's live search uses where no number is given."""
    return int(parameters()["live_search"]["most"])


def exa() -> tuple[Decimal, int]:
    """US$ for each result of OpenRouter's search with Exa, and how many there are where no number is given."""
    table = parameters()["exa"]
    return Decimal(table["usd"]), int(table["most"])


def _names(names: Any) -> frozenset[str]:
    return frozenset(plain(name) for name in names)


def _path(path: str) -> tuple[str, ...]:
    return tuple(plain(name) for name in path.split("."))
