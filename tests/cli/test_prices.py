"""The commands about prices and retirements, and what doctor says of both."""

from __future__ import annotations

import io
import json
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import time_machine
from rich.console import Console
from typer.testing import CliRunner, Result

from shared import cli
from shared.cli import models as models_command, prices as prices_command, tables
from shared.internal.clock import now_us
from shared.ledger.store import Ledger
from shared.prices import price_table
from tests.support.ledger_rows import settled, write

LUNA = "openai/gpt-5.6-luna"
HAIKU = "anthropic/claude-haiku-4-5"
TABLE = Path(__file__).resolve().parents[2] / "shared/prices/table.json"
# Two weeks before OpenAI shuts gpt-5-mini down.
BEFORE = "2026-11-27T12:00:00Z"


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> tuple[io.StringIO, io.StringIO]:
    """What goes to standard output and to standard error."""
    streams = io.StringIO(), io.StringIO()
    monkeypatch.setattr(cli.out, "_file", streams[0])
    monkeypatch.setattr(cli.err, "_file", streams[1])
    return streams


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments)


def said(printed: tuple[io.StringIO, io.StringIO], *arguments: str) -> str:
    """What a command that succeeds prints."""
    printed[0].truncate(0)
    printed[0].seek(0)
    assert run(*arguments).exit_code == 0
    return printed[0].getvalue()


def used(ledger: Ledger, *models: str) -> None:
    """One call of each model."""
    for model in models:
        write(ledger, "settle", settled(ts_us=now_us(), model=model, provider=model.partition("/")[0]))


def test_show_has_every_price_of_the_entry(printed: tuple[io.StringIO, io.StringIO]) -> None:
    """--json gives every tier, size and unit of the table's entry, to the last digit, with its source and date."""
    entry = price_table()[LUNA]
    shown = json.loads(said(printed, "prices", "show", "gpt-5.6-luna", "--json"))
    found = {(row["tier"], row["above"], row["unit"]): Decimal(row["usd"]) for row in shown["prices"]}
    expected = {
        (tier, 0, unit): Decimal(usd) for tier, prices in entry["prices"].items() for unit, usd in prices.items()
    }
    for size, tiers in entry["above"].items():
        for tier, prices in tiers.items():
            expected |= {(tier, int(size), unit): Decimal(usd) for unit, usd in prices.items()}
    assert found == expected
    assert (shown["model"], shown["can"], shown["window"]) == (LUNA, entry["can"], entry["window"])
    assert shown["table_date"] == price_table().date
    assert f"LiteLLM {price_table().sources['litellm']['version']}" in shown["source"]


def test_show_as_text(printed: tuple[io.StringIO, io.StringIO]) -> None:
    """The text has prices of a million tokens and of one search, the size above which others hold, and the source."""
    text = said(printed, "prices", "show", LUNA)
    lines = [line.split() for line in text.splitlines()]
    assert ["input", "default", "$0.20/1M"] in lines
    assert ["input", "default", "above", "272,000", "$0.40/1M"] in lines
    assert ["search", "default", "$0.01/1"] in lines
    assert f"Source: price table of {price_table().date}" in text


def test_show_says_disputes_corrections_hours_and_aliases(printed: tuple[io.StringIO, io.StringIO]) -> None:
    """What the sources differ on, a hand-written figure's page, prices of some hours, and what a name stands for."""
    text = said(printed, "prices", "show", "openai/gpt-4o-mini-search-preview")
    assert "Disputed: search (default): genai-prices $0.01/1, LiteLLM $0.025/1" in text
    assert "corrected by OpenAI pricing page" in text
    hours = price_table()["deepseek/deepseek-v4-flash"]["times"][0]["hours"]
    assert f"Hours 1: {', '.join(hours)} UTC" in said(printed, "prices", "show", "deepseek-v4-flash")
    assert "claude-opus-latest stands for it" in said(printed, "prices", "show", "claude-opus-latest")


def test_own_prices_are_named_as_the_source(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, printed: tuple[io.StringIO, io.StringIO]
) -> None:
    """A model that AGENTSWARM_PRICES prices shows those prices, and that file as their source."""
    own = tmp_path / "own.json"
    own.write_text(json.dumps({LUNA: {"input_cost_per_token": 3e-6, "output_cost_per_token": 4e-6}}))
    monkeypatch.setenv("AGENTSWARM_PRICES", str(own))
    shown = json.loads(said(printed, "prices", "show", LUNA, "--json"))
    assert [(row["unit"], row["usd_per_million"]) for row in shown["prices"]] == [("input", 3.0), ("output", 4.0)]
    assert shown["source"].startswith("AGENTSWARM_PRICES+")
    assert shown["table_date"] is None


def test_unknown_models_name_similar_ones(printed: tuple[io.StringIO, io.StringIO]) -> None:
    """A name that the table lacks is exit code 1 with the names that are close to it."""
    assert run("prices", "show", "openai/gtp-5.4-mini").exit_code == 1
    assert "no model openai/gtp-5.4-mini. Similar: openai/gpt-5.4-mini" in printed[1].getvalue()
    assert run("models", "gtp-5.4-mini").exit_code == 1
    assert "Similar: gpt-5.4-mini" in printed[1].getvalue()


def test_diff(ledger: Ledger, tmp_path: Path, printed: tuple[io.StringIO, io.StringIO]) -> None:
    """Only models in the ledger are compared; what the file lacks is named; the table itself changes nothing."""
    used(ledger, LUNA, HAIKU)
    other = {"prices": {"default": {"input": "0.5e-6", "output": "1.2e-6"}}}
    table = {"format": "agentswarm-prices/1", "models": {LUNA: other}}
    file = tmp_path / "other.json"
    file.write_text(json.dumps(table))
    found = json.loads(said(printed, "prices", "diff", str(file), "--json"))
    assert (found["models"], found["not_in_file"]) == ([HAIKU, LUNA], [HAIKU])
    changed = {(row["tier"], row["above"], row["unit"]): row for row in found["changes"]}
    assert changed["default", 0, "input"]["change_percent"] == 150.0
    assert Decimal(changed["default", 0, "input"]["before_usd"]) == Decimal("2e-7")
    assert changed["flex", 0, "output"]["after_usd"] is None
    assert ("default", 0, "output") not in changed
    assert "0 prices would change, of 2 models" in said(printed, "prices", "diff", str(TABLE))


def test_diff_of_an_empty_ledger(printed: tuple[io.StringIO, io.StringIO]) -> None:
    """Without calls there is nothing to compare, and that is said."""
    assert "The ledger is empty" in said(printed, "prices", "diff", str(TABLE))
    found = json.loads(said(printed, "prices", "diff", str(TABLE), "--json"))
    assert found == {"models": [], "not_in_file": [], "changes": []}


@pytest.mark.parametrize("content", [None, "not JSON", '{"format": "another/9", "models": {}}'])
def test_diff_of_what_is_no_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, printed: tuple[io.StringIO, io.StringIO], content: str | None
) -> None:
    """A file that is no price table is named, not the variable that is not set."""
    file = tmp_path / "broken.json"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr("sys.argv", ["agentswarm-tools", "prices", "diff", str(file)])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert printed[1].getvalue().startswith(f"Error: {file}")
    assert "AGENTSWARM_PRICES" not in printed[1].getvalue()


def test_retiring(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, printed: tuple[io.StringIO, io.StringIO]) -> None:
    """Models in the ledger and the settings that retire in time, with successor and change of price, and no others."""
    with time_machine.travel(BEFORE, tick=False):
        used(ledger, "openai/gpt-5-mini", HAIKU, "openai/gpt-4")
        monkeypatch.setenv("LITELLM_DEFAULT_FALLBACK_MODELS", "openai/gpt-5-nano,openai/gpt-4")
        found = json.loads(said(printed, "models", "--retiring", "60d", "--json"))
        assert [(row["model"], row["days_left"], row["successor"], row["named_by"]) for row in found] == [
            ("openai/gpt-4", -35, "openai/gpt-5.5", ["LITELLM_DEFAULT_FALLBACK_MODELS", "the ledger"]),
            ("openai/gpt-5-mini", 14, "openai/gpt-5.4-mini", ["the ledger"]),
            ("openai/gpt-5-nano", 14, "openai/gpt-5.4-nano", ["LITELLM_DEFAULT_FALLBACK_MODELS"]),
        ]
        assert (found[1]["input_change_percent"], found[1]["output_change_percent"]) == (200.0, 125.0)
        text = said(printed, "models", "--retiring", "60d")
        assert (
            "openai/gpt-5-mini: 2026-12-11 (in 14 days); successor openai/gpt-5.4-mini, input +200 %, output +125 % "
            "(the ledger)"
        ) in text
        assert "gpt-5-mini" not in said(printed, "models", "--retiring", "13")
        assert "retiring: openai/gpt-5-mini, 2026-12-11" in said(printed, "doctor")
    assert run("models", "--retiring", "soon").exit_code == 2


@pytest.mark.parametrize(
    ("variable", "model", "code", "sentence"),
    [
        ("LITELLM_DEFAULT_TEXT_MODEL", "gtp-5.4", 1, "FAIL  default text model: No model is called gtp-5.4"),
        ("LITELLM_DEFAULT_VISION_MODEL", "openai/gtp-6", 0, "note  default vision model: openai/gtp-6 is not in the"),
        ("LITELLM_DEFAULT_IMAGE_MODEL", "openai/gpt-5.4", 1, "FAIL  default image model: openai/gpt-5.4 does not make"),
        ("LITELLM_DEFAULT_TEXT_MODEL", "openai/gpt-4", 0, "note  default text model: openai/gpt-4 was shut down"),
        ("LITELLM_DEFAULT_TEXT_MODEL", HAIKU, 0, f"note  default text model: {HAIKU} needs ANTHROPIC_API_KEY"),
        ("LITELLM_DEFAULT_TEXT_MODEL", LUNA, 0, f"ok    default text model: {LUNA}"),
    ],
)
def test_doctor_checks_each_default(
    monkeypatch: pytest.MonkeyPatch,
    printed: tuple[io.StringIO, io.StringIO],
    variable: str,
    model: str,
    code: int,
    sentence: str,
) -> None:
    """A default model that is unknown, dead, unfit or without a key is said, and what cannot work is a failure."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    monkeypatch.setenv(variable, model)
    assert run("doctor").exit_code == code
    assert sentence in printed[0].getvalue()


def test_doctor_says_how_old_the_table_is(printed: tuple[io.StringIO, io.StringIO]) -> None:
    """The table's date is in doctor, and from the 61st day on its age is a note."""
    made = date.fromisoformat(price_table().date)
    with time_machine.travel(made, tick=False):
        assert f"ok    prices: table of {made} (from" in said(printed, "doctor")
    with time_machine.travel(made + timedelta(days=61), tick=False):
        assert f"note  prices: table of {made}, 61 days old" in said(printed, "doctor")


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize(
    "arguments", [("models", "fireworks", "deepseek"), ("prices", "show", LUNA), ("prices", "diff", str(TABLE))]
)
def test_names_stay_whole(
    monkeypatch: pytest.MonkeyPatch, ledger: Ledger, columns: int, arguments: tuple[str, ...]
) -> None:
    """In a terminal of any width no name is broken or cut, and figures keep within it."""
    long_name = "fireworks_ai/accounts/fireworks/models/deepseek-v4-flash-vision-exp"
    used(ledger, long_name, "openai/never-heard-of")
    stream = io.StringIO()
    terminal = Console(file=stream, force_terminal=True, width=columns, highlight=False, soft_wrap=True, markup=False)
    for module in (tables, models_command, prices_command):
        monkeypatch.setattr(module, "out", terminal)
    assert run(*arguments).exit_code == 0
    lines: list[Any] = stream.getvalue().splitlines()
    too_long = [line for line in lines if len(line) > columns and " " in line.strip()]
    assert too_long == []
    if arguments[0] == "models":
        assert any(line.split()[0] == long_name for line in lines if line.split())
