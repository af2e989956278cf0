"""The price table: LiteLLM's, this package's and the user's, as rates."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from shared.errors import ConfigurationError
from shared.types import ModelConfig, Rates

FREE = Rates(input=Decimal(0), output=Decimal(0), source="free")
UNKNOWN = Rates()
_PRICES = ("input_cost_per_", "output_cost_per_", "cache_")
_THRESHOLD = re.compile(r"input_cost_per_token_above_(\d+)k_tokens")

TableEntry = Mapping[str, Any]


@lru_cache(maxsize=1)
def price_table() -> Mapping[str, TableEntry]:
    """LiteLLM's bundled price table with exact decimals, read without importing LiteLLM (which takes seconds)."""
    spec = importlib.util.find_spec("litellm")
    if spec is None or spec.origin is None:
        raise ConfigurationError("LiteLLM is not installed", hint='Install it with: pip install "litellm>=1.84,<1.92"')
    text = (Path(spec.origin).parent / "model_prices_and_context_window_backup.json").read_text(encoding="utf-8")
    table: dict[str, TableEntry] = json.loads(text, parse_float=Decimal)
    table.pop("sample_spec", None)
    return table


@lru_cache(maxsize=1)
def model_facts() -> Mapping[str, Any]:
    """Our own facts about models: retired names, suggestions, and prices that LiteLLM's table lacks."""
    text = (Path(__file__).parent / "catalogue.json").read_text(encoding="utf-8")
    facts: dict[str, Any] = json.loads(text, parse_float=Decimal)
    return facts


@lru_cache(maxsize=4)
def price_overrides(path: Path, _mtime_ns: int) -> tuple[Mapping[str, TableEntry], str]:
    """
    The user's own prices, in the format of LiteLLM's table, and the version to record with them.

    Raises:
        ConfigurationError: The file cannot be read as such a table.
    """
    try:
        data = path.read_bytes()
        table = json.loads(data, parse_float=Decimal)
        if not isinstance(table, dict) or not all(isinstance(entry, dict) for entry in table.values()):
            raise ValueError("not an object of objects")
        for name, entry in table.items():
            _check_prices(name, entry)
    except ConfigurationError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"AGENTSWARM_PRICES cannot be read ({type(error).__name__})",
            hint='Give a JSON file such as {"openai/my-model": {"input_cost_per_token": 1e-6, ...}}.',
        ) from None
    return table, f"AGENTSWARM_PRICES+{hashlib.sha256(data).hexdigest()[:8]}"


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


@lru_cache(maxsize=1)
def table_version() -> str:
    """Version of the price table, to record with every price."""
    return f"litellm:{importlib.metadata.version('litellm')}"


def rates_of(
    entry: TableEntry, *, zero_is_free: bool = False, service_tier: str | None = None, version: str | None = None
) -> Rates:
    """
    The rates of an entry in the price table.

    Args:
        entry: One model of the table.

        zero_is_free: What a price of 0 means; in LiteLLM's own table it mostly stands for "not known".

        service_tier: "priority" or "flex", where the request asks for it; such a tier without a price is unknown.

        version: What to record as the source of the price.
    """
    suffix = f"_{service_tier}" if service_tier in ("priority", "flex") else ""

    def rate(*names: str) -> Decimal | None:
        return next((Decimal(entry[name]) for name in names if entry.get(name) is not None), None)

    def at(above: str) -> Rates:
        return Rates(
            input=rate(f"input_cost_per_token{above}"),
            output=rate(f"output_cost_per_token{above}"),
            cached=rate(f"cache_read_input_token_cost{above}", f"input_cost_per_token_cache_hit{above}"),
            cache_write=rate(f"cache_creation_input_token_cost{above}"),
            cache_write_1h=rate(f"cache_creation_input_token_cost_above_1hr{above}"),
            reasoning=rate(f"output_cost_per_reasoning_token{above}"),
            per_request=rate("input_cost_per_request"),
            image_input=rate(f"input_cost_per_image_token{above}"),
            image_output=rate(f"output_cost_per_image_token{above}"),
            # Where both are given, the first is that of an image which the model is shown.
            per_image=rate("output_cost_per_image", "input_cost_per_image"),
            per_pixel=rate("input_cost_per_pixel", "output_cost_per_pixel"),
            source="table",
            version=version or table_version(),
        )

    base = at(suffix)
    if base.input == base.output == 0 and not base.per_request:
        return FREE if zero_is_free else UNKNOWN
    thresholds = [int(found[1]) for key in entry if (found := _THRESHOLD.fullmatch(key))]
    # A size whose price the service tier leaves open has none; the standard price is not what is charged.
    tiers = [(size * 1000, at(f"_above_{size}k_tokens{suffix}")) for size in thresholds]
    tiers += (
        (int(band["range"][0]), rates_of(band, service_tier=service_tier, version=version))
        for band in entry.get("tiered_pricing", ())
        if "range" in band
    )
    return _with_tiers(base, tuple(sorted(tiers, key=lambda tier: tier[0])))


def _with_tiers(base: Rates, tiers: tuple[tuple[int, Rates], ...]) -> Rates:
    if base.input is None and tiers and tiers[0][0] == 0:
        base = tiers[0][1]
    prices = (base.input, base.output, base.per_request, base.image_output, base.per_image, base.per_pixel)
    if all(price is None for price in prices):
        return UNKNOWN
    return replace(base, tiers=tiers)


def rates_of_config(config: ModelConfig) -> Rates:
    """The rates that a ModelConfig states; unknown where it states none."""
    given = (config.cost_per_1k_input_tokens, config.cost_per_1k_output_tokens)
    per_image = config.cost_per_image
    if all(price is None for price in (*given, per_image)):
        return UNKNOWN
    if not any((*given, per_image)) and given.count(None) != 1:
        return FREE
    per_token = [None if price is None else price / 1000 for price in given]
    return Rates(input=per_token[0], output=per_token[1], per_image=per_image, source="config")
