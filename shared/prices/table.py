"""The price table: ours, which is read a line at a time, and the user's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from functools import cached_property, lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from shared.errors import ConfigurationError
from shared.prices.litellm_format import from_litellm, sizes_of_models

FORMAT = "agentswarm-prices/1"
TableEntry = Mapping[str, Any]

_FILE = Path(__file__).parent / "table.json"
_MODELS = '\n"models": {\n'
_PRICES = ("input_cost_per_", "output_cost_per_", "cache_", "citation_cost_per_")


class PriceTable(Mapping[str, TableEntry]):
    """
    Models by "provider/model", each parsed when it is asked for: the file has one model a line.

    Args:
        text: A table as `make prices` writes it.
    """

    def __init__(self, text: str) -> None:
        head, _, models = text.partition(_MODELS)
        about = _about(head)
        self.date: str = about["date"]
        self.sources: Mapping[str, Mapping[str, str]] = about["sources"]
        self.providers: frozenset[str] = frozenset(about["providers"])
        lines = (line.partition('": ') for line in models.splitlines() if line.startswith('"'))
        self._lines = {name[1:]: entry for name, _, entry in lines}

    def __getitem__(self, name: str) -> TableEntry:
        line = self._lines[name]
        return _entry(line)

    def __contains__(self, name: object) -> bool:
        return name in self._lines

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def version(self) -> str:
        """What to record with every price."""
        return table_version(self.date)

    @cached_property
    def bare(self) -> Mapping[str, str]:
        """The models that may be named without their provider, by that name."""
        return {name.partition("/")[2]: name for name, line in self._lines.items() if line.startswith('{"bare": true')}

    def in_mode(self, mode: str) -> list[str]:
        """Names of the models of one mode, found without parsing them."""
        return [name for name, line in self._lines.items() if f'"mode": "{mode}"' in line]

    def naming(self, field: str) -> list[str]:
        """Names of the models whose entry has a field, found without parsing them."""
        return [name for name, line in self._lines.items() if f'"{field}": ' in line]


@lru_cache(maxsize=4096)
def _entry(line: str) -> TableEntry:
    found: dict[str, Any] = json.loads(line.rstrip(","))
    return found


@lru_cache(maxsize=1)
def price_table() -> PriceTable:
    """The table that this package brings."""
    return PriceTable(_FILE.read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def table_date() -> str:
    """The date of that table, read without its models."""
    with _FILE.open(encoding="utf-8") as lines:
        return str(_about("".join(takewhile(lambda line: line != _MODELS.lstrip(), lines)))["date"])


def table_version(day: str) -> str:
    """What to record with every price of the table of a day."""
    return f"prices:{day}"


def _about(head: str) -> dict[str, Any]:
    """What the table says of itself, before its models."""
    about: dict[str, Any] = json.loads(head.rstrip(",\n") + "}")
    return about


@lru_cache(maxsize=4)
def price_overrides(path: Path, _mtime_ns: int) -> tuple[Mapping[str, TableEntry], str]:
    """
    The user's own prices, in our format or in that of LiteLLM's table, and the version to record with them.

    Raises:
        ConfigurationError: The file cannot be read as such a table.
    """
    try:
        data = path.read_bytes()
        table = json.loads(data, parse_float=Decimal)
        found = _ours(table) if isinstance(table, dict) and isinstance(table.get("format"), str) else _litellms(table)
    except ConfigurationError:
        raise
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigurationError(
            f"AGENTSWARM_PRICES cannot be read ({type(error).__name__})",
            hint='Give a JSON file such as {"openai/my-model": {"input_cost_per_token": 1e-6, ...}}.',
        ) from None
    return found, f"AGENTSWARM_PRICES+{hashlib.sha256(data).hexdigest()[:8]}"


def _ours(table: Mapping[str, Any]) -> Mapping[str, TableEntry]:
    if table["format"] != FORMAT:
        raise ConfigurationError(
            f"AGENTSWARM_PRICES is in the format {table['format'][:40]!r}", hint=f"This release reads {FORMAT}."
        )
    models: dict[str, TableEntry] = dict(table["models"])
    for name, entry in models.items():
        try:
            _Entry.model_validate(entry)
        except ValidationError as error:
            at = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise ConfigurationError(
                f"AGENTSWARM_PRICES cannot be understood: {at[:80] or 'the entry'} of {name[:60]}",
                hint='Give US$ as text, such as {"prices": {"default": {"input": "2.5e-6", "output": "10e-6"}}}.',
            ) from None
    return models


def _amount(text: str) -> str:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise ValueError("not a number") from None
    if not amount.is_finite() or amount < 0:
        raise ValueError("not an amount")
    return text


# A unit that this release does not know is let through, and left out: the table of a newer one may have it.
_Amounts = dict[str, Annotated[str, AfterValidator(_amount)]]
_Tiers = dict[str, _Amounts]


class _Window(BaseModel, defer_build=True):
    """Hours with prices of their own."""

    days: list[Annotated[int, Field(ge=1, le=7)]]
    hours: list[Annotated[str, Field(pattern=r"^\d\d:\d\d-\d\d:\d\d$")]]
    prices: _Amounts


class _Change(BaseModel, defer_build=True):
    """What holds from a day on."""

    day: Annotated[str, Field(alias="from", pattern=r"^\d{4}-\d\d-\d\d$")]
    prices: _Tiers = {}
    above: dict[str, _Tiers] = {}


class _Entry(BaseModel):
    """What the reader of an entry relies on."""

    model_config = ConfigDict(strict=True, defer_build=True)

    mode: str = "chat"
    provider: str | None = None
    window: int | None = None
    max_output: int | None = None
    prices: _Tiers = {}
    above: dict[Annotated[str, Field(pattern=r"^\d+$")], _Tiers] = {}
    times: list[_Window] = []
    disputed: dict[str, dict[str, _Amounts]] = {}
    sizes: list[Annotated[list[str], Field(min_length=3, max_length=3)]] = []
    can: list[str] = []
    cannot: list[str] = []
    changes: list[_Change] = []


def _litellms(table: Any) -> Mapping[str, TableEntry]:
    if not isinstance(table, dict) or not all(isinstance(entry, dict) for entry in table.values()):
        raise ValueError("not an object of objects")
    for name, entry in table.items():
        if name != "sample_spec":
            _check_prices(name, entry)
    found = {
        name: _stated(entry, from_litellm(entry, zero_is_free=True))
        for name, entry in table.items()
        if name != "sample_spec"
    }
    for name, sizes in sizes_of_models(table).items():
        bare = name.partition("/")[2]
        key = bare if name not in found and bare in found else name
        found[key] = {"mode": "image_generation", **found.get(key, {}), "sizes": sizes}
    return found


def _stated(entry: TableEntry, converted: dict[str, Any]) -> TableEntry:
    """What the user's file says of a model: no mode where it gives none, so that our table's goes on to hold."""
    if "mode" not in entry:
        del converted["mode"]
    if "litellm_provider" in entry:
        converted["provider"] = entry["litellm_provider"]
    return converted


def _check_prices(name: str, entry: TableEntry) -> None:
    hint = "Give US$ as a number of at least 0."
    for key, value in entry.items():
        if key.startswith(_PRICES) and value is not None and not _is_amount(value):
            raise ConfigurationError(f"AGENTSWARM_PRICES gives no price as {key} of {name[:60]}", hint=hint)
    bands = entry.get("tiered_pricing", [])
    for band in bands if isinstance(bands, list) else [bands]:
        if not isinstance(band, dict) or ("range" in band and not all(map(_is_amount, band["range"]))):
            raise ConfigurationError(f"AGENTSWARM_PRICES gives no tiers as tiered_pricing of {name[:60]}", hint=hint)
        _check_prices(name, band)


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | Decimal) and not isinstance(value, bool) and value >= 0
