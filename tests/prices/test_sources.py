"""Our table against the two sources as `make prices` left them in build/prices; skips where they are not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import pytest

from shared.models.catalogue import look_up
from shared.prices.genai_format import _find
from shared.prices.rates import rates_of
from shared.prices.table import price_table
from shared.prices.units import plain
from shared.types import Unit
from tests.support.paths import ROOT

DUMPS = ROOT / "build" / "prices"
pytestmark = pytest.mark.skipif(
    not (DUMPS / "sources.json").exists()
    or json.loads((DUMPS / "sources.json").read_text()) != dict(price_table().sources),
    reason="build/prices has not the sources of this table: run `make prices`",
)

# Ours, LiteLLM's and genai-prices' names of the providers whose models are compared.
PROVIDERS = {
    "openai": ("openai", "openai"),
    "anthropic": ("anthropic", "anthropic"),
    "gemini": ("gemini", "google"),
    "cohere": ("cohere_chat", "cohere"),
    "mistral": ("mistral", "mistral"),
    "groq": ("groq", "groq"),
    "deepseek": ("deepseek", "deepseek"),
    "xai": ("xai", "x-ai"),
}
UNITS: Mapping[Unit, tuple[str, str]] = {
    "input": ("input_cost_per_token", "input_mtok"),
    "output": ("output_cost_per_token", "output_mtok"),
    "cached": ("cache_read_input_token_cost", "cache_read_mtok"),
}


# genai-prices does not say what a model is for.
NO_CHAT = re.compile(r"realtime|-tts|transcribe|-live|embed")


def figures(value: Any, key: str) -> Iterator[Decimal]:
    """All figures of one kind that genai-prices has for a model, at any size, hour or day."""
    if isinstance(value, list):
        for one in value:
            yield from figures(one, key)
    elif isinstance(value, dict) and "prices" in value:
        yield from figures(value["prices"], key)
    elif isinstance(value, dict) and (price := value.get(key)) is not None:
        yield Decimal(price["base"] if isinstance(price, dict) else price) / 1_000_000


def live_models() -> dict[str, dict[Unit, set[Decimal]]]:
    """Live, priced chat models of either source by our names, with each source's figures."""
    litellm = json.loads((DUMPS / "litellm.json").read_text(), parse_float=Decimal)
    genai = {one["id"]: one["models"] for one in json.loads((DUMPS / "genai.json").read_text())["providers"]}
    found: dict[str, dict[Unit, set[Decimal]]] = {}
    for name, entry in litellm.items():
        ours = next((ours for ours, (theirs, _) in PROVIDERS.items() if entry.get("litellm_provider") == theirs), None)
        gone = str(entry.get("deprecation_date", "9999")) <= price_table().date
        if ours is None or entry.get("mode") != "chat" or gone or not entry.get("input_cost_per_token"):
            continue
        full = name if name.startswith(f"{ours}/") else f"{ours}/{name}"
        for unit, (key, _) in UNITS.items():
            found.setdefault(full, {}).setdefault(unit, set()).update([entry[key]] if key in entry else [])
    for ours, (_, theirs) in PROVIDERS.items():
        for model in genai[theirs]:
            named = (ours != "gemini" or model["id"].startswith("gem")) and not NO_CHAT.search(model["id"])
            gone = price_table().get(f"{ours}/{model['id']}", {}).get("retires", "9999") <= price_table().date
            if named and not gone and not model.get("deprecated") and list(figures(model["prices"], "output_mtok")):
                own = {unit: set(figures(model["prices"], key)) for unit, (_, key) in UNITS.items()}
                found.setdefault(f"{ours}/{model['id']}", own)
        for full, by_unit in found.items():
            matched = _find(genai[theirs], full.partition("/")[2]) if full.startswith(f"{ours}/") else None
            for unit, (_, key) in UNITS.items() if matched else ():
                by_unit[unit].update(figures(matched["prices"], key) if matched else ())
    return found


def test_live_models_of_the_sources_are_priced_as_one_of_them_does() -> None:
    """At least 99 % have a price here, and each equals one of the sources' or a correction to the last digit."""
    models = live_models()
    unpriced, wrong = [], {}
    for name, by_unit in models.items():
        entry = look_up(name)[2]
        rates = None if entry is None else rates_of(entry)
        if entry is None or rates is None or not {"input", "output"} <= rates.prices.keys():
            unpriced.append(name)
            continue
        for unit, known in by_unit.items():
            ours = rates.prices.get(unit)
            written = {Decimal(plain(unit, figure)) for figure in known}
            if "corrected" not in entry and ours not in written and not (ours is None and not written):
                wrong[name, unit] = ours, known
    assert len(models) > 200
    assert not wrong
    assert len(unpriced) <= len(models) / 100, unpriced
