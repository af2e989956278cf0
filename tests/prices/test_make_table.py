"""How `make prices` makes one table of two sources: disputes, preferences, moves that need a person, vanished names."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, strategies as st

from shared.prices.make_table import Corrections, _ranges, make, render
from shared.prices.rates import rates_of, within
from shared.prices.table import PriceTable
from shared.prices.units import plain, units_of

TODAY = date(2026, 11, 27)
SOURCES = {name: {"version": "1", "sha256": "0"} for name in ("litellm", "genai-prices")}


def litellm(**models: Any) -> dict[str, Any]:
    """LiteLLM's table of these models by their names with _ for -, read as it is."""
    table = {
        name.replace("_", "-"): {"litellm_provider": "openai", "mode": "chat", **entry}
        for name, entry in models.items()
    }
    read: dict[str, Any] = json.loads(json.dumps(table), parse_float=Decimal)
    return read


def genai(*models: dict[str, Any], provider: str = "openai") -> dict[str, Any]:
    """The dump of genai-prices with these models."""
    return {"providers": [{"id": provider, "models": list(models)}]}


def model(name: str, prices: Any, **more: Any) -> dict[str, Any]:
    """One model of genai-prices, of exactly this name."""
    return {"id": name, "match": {"is": "ClauseEquals", "equals": name}, "prices": prices, **more}


def priced(input: float, output: float, **more: float) -> dict[str, Any]:  # noqa: A002 - a unit's name
    """An entry of LiteLLM's, in US$ per million tokens."""
    prices = {"input_cost_per_token": input / 1e6, "output_cost_per_token": output / 1e6}
    return {name: float(f"{value:.9g}") for name, value in prices.items()} | more


def made(
    litellm: dict[str, Any],
    genai: dict[str, Any] | None = None,
    *,
    committed: dict[str, Any] | None = None,
    corrections: str = "",
) -> tuple[dict[str, Any], list[str]]:
    """The models of the new table, and what a person should look at."""
    models, _, notes = make(litellm, genai or {"providers": []}, committed or {}, Corrections.read(corrections), TODAY)
    return models, notes


ONE = {"input_mtok": "2", "output_mtok": "8"}


def test_sources_that_agree_make_one_undisputed_entry() -> None:
    """Figures within one percent are no dispute; a unit that only one source has is taken from it."""
    models, notes = made(
        litellm(gpt_7=priced(2, 8, max_output_tokens=100)), genai(model("gpt-7", {**ONE, "cache_read_mtok": "0.2"}))
    )
    assert models == {
        "openai/gpt-7": {
            "bare": True,
            "mode": "chat",
            "max_output": 100,
            "prices": {"default": {"cached": "0.2e-6", "input": "2e-6", "output": "8e-6"}},
        }
    }
    assert notes == []


def test_of_sources_that_differ_the_more_expensive_is_billed_and_held() -> None:
    """With no preference, each unit is billed at the higher figure, and both figures stand in the entry."""
    models, _ = made(litellm(gpt_7=priced(3, 6)), genai(model("gpt-7", ONE)))
    entry = models["openai/gpt-7"]
    assert entry["prices"] == {"default": {"input": "3e-6", "output": "8e-6"}}
    assert entry["disputed"]["default"] == {
        "input": {"genai-prices": "2e-6", "litellm": "3e-6"},
        "output": {"genai-prices": "8e-6", "litellm": "6e-6"},
    }


def test_a_preferred_source_is_billed_and_the_more_expensive_is_still_held() -> None:
    """A preference decides what is billed for a provider, and nothing about what is held."""
    prefer = '[prefer.openai]\nsource = "litellm"\nwhy = "its page"\nread = 2026-11-27'
    models, _ = made(litellm(gpt_7=priced(3, 6)), genai(model("gpt-7", ONE)), corrections=prefer)
    rates = rates_of(models["openai/gpt-7"], version="test")
    assert rates.prices == {"input": Decimal("3e-6"), "output": Decimal("6e-6")}
    assert rates.held is not None
    assert rates.held.prices == {"input": Decimal("3e-6"), "output": Decimal("8e-6")}


CORRECTION = """
[[correction]]
model = "openai/gpt-7"
source = "its page"
read = 2026-11-27
says = "input is $1.00"
prices.default.input = "1e-6"
"""


def test_a_correction_is_billed_and_says_when_nobody_needs_it_any_more() -> None:
    """A figure that a person looked up wins over both sources, carries its own, and is reported once it is theirs."""
    models, notes = made(litellm(gpt_7=priced(2, 8)), corrections=CORRECTION)
    entry = models["openai/gpt-7"]
    assert entry["prices"]["default"] == {"input": "1e-6", "output": "8e-6"}
    assert entry["corrected"] == {"source": "its page", "read": "2026-11-27"}
    assert notes == []
    _, notes = made(litellm(gpt_7=priced(1, 8)), corrections=CORRECTION)
    assert notes == ["openai/gpt-7: the sources say the same as its correction now"]


CONFIRMED = '[[confirmed]]\nmodels = ["openai/*"]\nwhy = "its blog"\nread = 2026-11-27'


@pytest.mark.parametrize(("new", "kept"), [(2.9, False), (3.1, True), (1.1, False), (0.9, True)])
def test_a_price_that_moves_far_needs_a_person(new: float, kept: bool) -> None:
    """A move by more than half keeps the old price as billed, holds the higher one, and says so until confirmed."""
    committed, _ = made(litellm(gpt_7=priced(2, 8)))
    models, notes = made(litellm(gpt_7=priced(new, 8)), committed=committed)
    entry = models["openai/gpt-7"]
    assert entry["prices"]["default"]["input"] == ("2e-6" if kept else f"{new}e-6")
    assert bool(notes) is kept
    if kept:
        assert (rates_of(entry).held or rates_of(entry)).prices["input"] == max(Decimal("2e-6"), Decimal(f"{new}e-6"))
    again, _ = made(litellm(gpt_7=priced(new, 8)), committed=models)
    assert again == models
    models, notes = made(litellm(gpt_7=priced(new, 8)), committed=models, corrections=CONFIRMED)
    assert models["openai/gpt-7"]["prices"]["default"]["input"] == f"{new}e-6"
    assert notes == []


def test_a_price_that_is_gone_or_zero_keeps_the_old_one() -> None:
    """A source that suddenly has no price, or 0, does not make a model free or unknown."""
    committed, _ = made(litellm(gpt_7=priced(2, 8)))
    for entry in ({}, priced(0, 0)):
        models, notes = made(litellm(gpt_7=entry), committed=committed)
        assert models["openai/gpt-7"]["prices"] == committed["openai/gpt-7"]["prices"]
        assert "kept the old ones" in notes[0]


def test_a_vanished_name_is_kept_with_its_day() -> None:
    """A model that both sources dropped keeps its price and successor, and the day on which it was first missed."""
    committed, _ = made(litellm(gpt_6=priced(1, 2), gpt_7=priced(2, 8)))
    models, notes = made(litellm(gpt_7=priced(2, 8)), committed=committed)
    assert models["openai/gpt-6"] == {**committed["openai/gpt-6"], "vanished": "2026-11-27"}
    assert notes == ["openai/gpt-6: is in neither source any more; kept"]
    old = {**models, "openai/gpt-6": {**models["openai/gpt-6"], "vanished": "2026-01-01"}}
    models, notes = made(litellm(gpt_7=priced(2, 8)), committed=old)
    assert models["openai/gpt-6"]["vanished"] == "2026-01-01"
    assert notes == []
    models, _ = made(litellm(gpt_6=priced(1, 2)), committed=old)
    assert "vanished" not in models["openai/gpt-6"]


def test_a_size_of_one_source_is_compared_with_the_present_price_of_the_other() -> None:
    """A source without a higher price for long prompts says that the base price holds; 199,999 is 200,000."""
    long = {"input_cost_per_token_above_200k_tokens": 4e-6, "output_cost_per_token_above_200k_tokens": 8e-6}
    tiered = {"is": "TieredPrices", "base": "2", "tiers": [{"is": "Tier", "start": 199999, "price": "4"}]}
    models, _ = made(litellm(gpt_7={**priced(2, 8), **long}), genai(model("gpt-7", {**ONE, "input_mtok": tiered})))
    assert models["openai/gpt-7"]["above"] == {"199999": {"default": {"input": "4e-6", "output": "8e-6"}}}
    assert "disputed" not in models["openai/gpt-7"]
    models, _ = made(litellm(gpt_7={**priced(2, 8), **long}), genai(model("gpt-7", ONE)))
    assert models["openai/gpt-7"]["disputed"] == {
        "default>200000": {"input": {"genai-prices": "2e-6", "litellm": "4e-6"}}
    }


def hours(start: str, end: str) -> dict[str, Any]:
    """A condition of genai-prices: an interval of the day, in UTC."""
    return {"is": "TimeOfDateConstraint", "start_time": f"{start}:00+00:00", "end_time": f"{end}:00+00:00"}


def test_hours_of_two_sources_meet_at_the_more_expensive() -> None:
    """The base price is that of the peak; an hour is cheaper only where both sources say so."""
    off_peak = {
        "input_cost_per_token": 1e-6,
        "output_cost_per_token": 4e-6,
        "windows": [{"hours_utc": ["10:00-00:00"], "weekdays": [1]}, {"hours_utc": "00:00-00:00", "weekdays": [7]}],
    }
    conditions = [
        {"is": "ConditionalPrice", "prices": {"input_mtok": "1", "output_mtok": "4"}},
        {"is": "ConditionalPrice", "prices": ONE, "constraint": hours("00:00", "10:00")},
    ]
    models, _ = made(litellm(gpt_7={**priced(2, 8), "off_peak_pricing": off_peak}), genai(model("gpt-7", conditions)))
    entry = models["openai/gpt-7"]
    assert "disputed" not in entry
    assert entry["prices"]["default"] == {"input": "2e-6", "output": "8e-6"}
    assert entry["times"] == [{"days": [1, 7], "hours": ["10:00-00:00"], "prices": {"input": "1e-6", "output": "4e-6"}}]


def test_the_price_of_the_day_is_taken_and_a_later_one_announced() -> None:
    """Of dated prices the last that has begun holds; one that begins later stands in the entry with its day."""
    conditions = [
        {"prices": {**ONE, "input_mtok": price}, "constraint": {"is": "StartDateConstraint", "start_date": day}}
        for price, day in (("1", "2026-01-01"), ("2", "2026-11-27"), ("3", "2026-11-28"))
    ]
    models, _ = made({}, genai(model("gpt-7", conditions)))
    entry = models["openai/gpt-7"]
    assert entry["prices"]["default"]["input"] == "2e-6"
    assert entry["changes"][0]["from"] == "2026-11-28"
    assert entry["changes"][0]["prices"]["default"]["input"] == "3e-6"


def test_names_lead_to_one_entry_each() -> None:
    """Prefixed and bare names are one model, an alias leads to its model, and a size is no model of its own."""
    table = {
        "deepseek-v9": {"litellm_provider": "deepseek", "mode": "chat", **priced(1, 2)},
        "deepseek/deepseek-v9": {"litellm_provider": "deepseek", "mode": "chat", **priced(1, 2)},
        "deepseek/deepseek-latest": {"alias_of": "deepseek/deepseek-v9"},
        "claude-latest": {"alias_of": "claude-9"},
        "claude-9": {"litellm_provider": "anthropic", "mode": "chat", **priced(1, 2), "successor_model": "claude-10"},
        "claude-10": {"litellm_provider": "anthropic", "mode": "chat", **priced(1, 2)},
        "dall-e-9": {"litellm_provider": "openai", "mode": "image_generation"},
        "hd/1024-x-1792/dall-e-9": {
            "litellm_provider": "openai",
            "mode": "image_generation",
            "input_cost_per_image": 1,
        },
        "whisper-9": {"litellm_provider": "openai", "mode": "audio_transcription"},
    }
    models, _ = made(json.loads(json.dumps(table), parse_float=Decimal))
    assert sorted(models) == [
        "anthropic/claude-10",
        "anthropic/claude-9",
        "anthropic/claude-latest",
        "deepseek/deepseek-latest",
        "deepseek/deepseek-v9",
        "openai/dall-e-9",
    ]
    assert models["anthropic/claude-latest"] == {"bare": True, "alias": "anthropic/claude-9"}
    assert models["anthropic/claude-9"]["successor"] == "anthropic/claude-10"
    assert models["deepseek/deepseek-v9"]["bare"]
    assert models["openai/dall-e-9"]["sizes"] == [["hd", "1024x1792", "1"]]


def test_the_same_sources_give_the_same_bytes_and_can_be_read_again() -> None:
    """The text depends on what was read alone, has one model a line, and reads back as what was written."""
    tables = (litellm(gpt_7=priced(2, 8), gpt_6=priced(1, 4)), litellm(gpt_6=priced(1, 4), gpt_7=priced(2, 8)))
    texts = {render(made(table)[0], ["openai"], SOURCES, TODAY) for table in tables}
    [text] = texts
    assert [line for line in text.splitlines() if line.startswith('"openai/')] == sorted(
        line for line in text.splitlines() if line.startswith('"openai/')
    )
    table = PriceTable(text)
    assert json.loads(text)["models"] == {name: table[name] for name in table}
    assert (table.date, table.bare["gpt-6"]) == ("2026-11-27", "openai/gpt-6")


@given(st.sampled_from(["input", "image", "search"]), st.decimals(0, 1000, places=9, allow_nan=False))
def test_a_written_price_reads_back_to_the_last_digit(unit: str, price: Decimal) -> None:
    """Prices are written with all their digits, those of tokens with US$ per million before e-6."""
    assert units_of({unit: plain(unit, price)}) == {unit: price}


@given(st.sets(st.integers(0, 47)))
def test_half_hours_as_ranges_hold_at_the_same_times(halves: set[int]) -> None:
    """A window covers exactly the half hours that it was made of."""
    ranges = _ranges(sorted(halves))
    clocks = [f"{half // 2:02}:{half % 2 * 30:02}" for half in range(48)]
    assert {half for half, clock in enumerate(clocks) if any(within(hours, clock) for hours in ranges)} == halves
