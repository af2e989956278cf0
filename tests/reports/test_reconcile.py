"""The ledger against a provider's bill: each difference is named, none is invented, and the rest agrees to the cent."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shared import cli
from shared.analytics import zone
from shared.errors import InvalidRequest
from shared.ledger.grouped import grouped_sums
from shared.ledger.query import Window
from shared.ledger.store import Ledger, get_ledger
from tests.support.ledger_rows import assert_exact, rows, settled, started, submit

DATA = Path(__file__).parent / "data"
UTC_ZONE = zone("UTC")
NANO = 10**9
UNKNOWN: dict[str, Any] = {"cost_nano": None, "cost_source": "unknown", "unpriced_calls": 1}


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """The ledger of this test's commands, on each database."""
    if request.param == "postgresql":
        monkeypatch.setenv("AGENTSWARM_DATABASE_URL", request.getfixturevalue("postgres_url"))
    found = get_ledger(os.environ["AGENTSWARM_DATABASE_URL"])
    yield found
    found.close()


def us(day: str, hour: int = 9) -> int:
    """A time of a UTC day in microseconds since 1970."""
    return int(datetime.fromisoformat(f"{day}T{hour:02}:15:00+00:00").timestamp()) * 1_000_000


def asked(day: str, model: str, usd: float | None, tokens: tuple[int, ...] = (), **changes: Any) -> dict[str, Any]:
    """An attempt of a day: its model, as provider/asked and what answered, its cost, and input, output and cached."""
    name, _, answered = model.partition(" ")
    counts = dict(zip(("prompt_tokens", "completion_tokens", "cached_tokens"), tokens, strict=False))
    known: dict[str, Any] = {
        "ts_us": us(day),
        "provider": name.partition("/")[0],
        "model": name,
        "requested_model": name,
        "response_model": answered or None,
        "cost_nano": None if usd is None else round(usd * NANO),
        "prompt_tokens": None,
        "completion_tokens": None,
    }
    return settled(**{**known, **counts, **changes})


def fill(ledger: Ledger, found: list[dict[str, Any]]) -> None:
    """Write attempts; those under way are started only."""
    for row in found:
        submit(ledger, "start" if row["status"] == "started" else "settle", row).result(timeout=30)


def documented_openai() -> list[dict[str, Any]]:
    """What the ledger has of the days in OpenAI's documented sample."""
    tuned = "openai/ft:gpt-4o-2024-08-06:acme::abc ft:gpt-4o-2024-08-06:acme::abc"
    return [asked("2025-01-11", tuned, 0.12744), asked("2025-01-11", tuned, 0.00309)]


def november_openai() -> list[dict[str, Any]]:
    """What the ledger has of the days in the OpenAI bill of November, each difference planted once."""
    one, two = "2026-11-02", "2026-11-03"
    large, mini, four = (
        "openai/gpt-5.4 gpt-5.4-2026-03-05",
        "openai/gpt-5.4-mini gpt-5.4-mini-2026-03-17",
        "openai/gpt-4o",
    )
    interrupted = {"status": "interrupted", "cost_source": "counted", "reserved_nano": NANO // 5, "calls": 0}
    return [
        asked(one, large, 1.0, (300_000, 25_000, 50_000)),
        asked(one, large, 0.775, (200_000, 25_000, 50_000)),
        asked(one, mini, 1.2, (1_000_000, 100_000)),
        asked(one, f"{four} gpt-4o-2024-08-06", 0.42, (120_000, 12_000)),
        asked(
            one, four, None, **UNKNOWN | {"status": "unsettled", "calls": 0, "failed_calls": 1}, bound_nano=35 * 10**7
        ),
        *(asked(one, "openai/gpt-4.1 gpt-4.1-2025-04-14", 0.056, (20_000, 2_000)) for _ in range(3)),
        asked(two, mini, 0.225, (60_000, 40_000)),
        asked(two, mini, 0.03, (30_000, 1_000), **interrupted),
        asked(two, "openai/gpt-6-preview", None, (50_000, 10_000), **UNKNOWN),
        asked(two, large, 0.5025, (50_400, 25_100)),
        asked(two, f"{four} gpt-4o-2024-08-06", 0.5, (200_000, 0)),
        asked("2026-11-04", large, 9.0, (1, 1)),  # a day that the bill does not have
        asked(one, "anthropic/claude-opus-4-6", 9.0, (1, 1)),  # another provider
    ]


def documented_anthropic() -> list[dict[str, Any]]:
    """What the ledger has of the day in Anthropic's documented samples."""
    day, opus = "2025-08-01", "anthropic/claude-opus-4-6"
    cancelled = {"status": "cancelled", "cost_source": "counted", "reserved_nano": NANO // 10, "calls": 0}
    return [asked(day, opus, 1.1878912, (237_578, 0)), asked(day, opus, 0.01, (2_000, 0), **cancelled)]


def november_anthropic() -> list[dict[str, Any]]:
    """What the ledger has of the days in the Anthropic bill of November."""
    one, two = "2026-11-02", "2026-11-03"
    sonnet = "anthropic/claude-sonnet-4-5"
    return [
        asked(one, "anthropic/claude-opus-4-6", 6.1, (1_200_000, 40_000, 200_000)),
        asked(one, "anthropic/claude-haiku-4-5 claude-haiku-4-5-20251001", 3.0, (2_000_000, 200_000)),
        asked(one, f"{sonnet} claude-sonnet-4-5-20250929", 0.8, (160_000, 21_000)),
        started(
            ts_us=us(one), provider="anthropic", model=sonnet, requested_model=sonnet, bound_nano=NANO // 2,
            lease_us=us(two),
        ),
        asked(two, "anthropic/claude-opus-4-6", 0.5, (100_000, 0)),
    ]  # fmt: skip


# By file: the provider, the ledger, and each planted difference by day and the bill's name, in millionths of US$.
PLANTED: dict[str, tuple[str, Callable[[], list[dict[str, Any]]], dict[tuple[str, str], dict[str, int]]]] = {
    "openai_costs_documented.json": (
        "openai",
        documented_openai,
        {
            ("2025-01-11", "file search"): {"not ours": 274},
            ("2025-01-12", "evals | gpt-4o-mini-2024-07-18, input"): {"not ours": 28_607},
        },
    ),
    "openai_2026-11.json": (
        "openai",
        november_openai,
        {
            ("2026-11-02", "gpt-5.4-mini-2026-03-17"): {"price changed": 150_000},
            ("2026-11-02", "gpt-4o-2024-08-06"): {"unfinished": 280_000},
            ("2026-11-02", "o3-2025-04-16"): {"not ours": 2_000_000},
            ("2026-11-02", "gpt-4.1-2025-04-14"): {"not ours": 112_000},
            ("2026-11-03", "gpt-5.4-mini-2026-03-17"): {"reserved": 90_000},
            ("2026-11-03", "gpt-6-preview"): {"unknown price": 400_000},
            ("2026-11-03", "gpt-5.4-2026-03-05"): {"rounding": 7_500},
            ("2026-11-03", "gpt-4o-2024-08-06"): {"unexplained": 250_000},
        },
    ),
    "anthropic_cost_report_documented.json": (
        "anthropic",
        documented_anthropic,
        {("2025-08-01", "claude-opus-4-6"): {"reserved": 40_000}},
    ),
    "anthropic_2026-11.jsonl": (
        "anthropic",
        november_anthropic,
        {
            ("2026-11-02", "claude-haiku-4-5-20251001"): {"price changed": 300_000},
            ("2026-11-02", "claude-sonnet-4-5-20250929"): {"unfinished": 200_000},
            ("2026-11-02", "code execution"): {"not ours": 125_000},
            ("2026-11-03", "claude-opus-4-6"): {"unexplained": -500_000},
        },
    ),
}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, code: int = 1) -> str:
    """What the command prints."""
    printed = io.StringIO()
    monkeypatch.setattr(cli.out, "_file", printed)
    result = CliRunner().invoke(cli.app, ["reconcile", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, printed.getvalue() + result.output
    return printed.getvalue()


def compared(monkeypatch: pytest.MonkeyPatch, *arguments: str, code: int = 1) -> dict[str, Any]:
    """The command's JSON."""
    found = json.loads(run(monkeypatch, *arguments, "--json", code=code))
    assert isinstance(found, dict)
    return found


def millionths(text: str) -> int:
    """US$ as the JSON has it, in millionths; nothing is lost."""
    nano = round(float(text) * NANO)
    assert nano % 1000 == 0
    return nano // 1000


@pytest.mark.parametrize("name", PLANTED)
def test_every_planted_difference_is_named_and_none_is_invented(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Each planted difference is named with its exact amount; all other lines are equal; nothing is written."""
    provider, attempts, planted = PLANTED[name]
    fill(ledger, attempts())
    before = rows(ledger)
    found = compared(monkeypatch, provider, str(DATA / name))
    named = {
        (line["day"], line["name"]): {part: millionths(usd) for part, usd in line["parts_usd"].items()}
        for line in found["lines"]
        if line["parts_usd"]
    }
    assert named == planted
    equal = [line for line in found["lines"] if not line["parts_usd"]]
    assert all(line["ledger_usd"] == line["bill_usd"] and not line["differs"] for line in equal)
    assert equal or name == "anthropic_cost_report_documented.json"
    assert rows(ledger) == before


@pytest.mark.parametrize("name", PLANTED)
def test_writing_makes_the_ledger_equal_the_bill_once(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With --write the ledger is the bill to the cent where it is ours, by day and model; twice adds nothing."""
    provider, attempts, planted = PLANTED[name]
    fill(ledger, attempts())
    first = compared(monkeypatch, provider, str(DATA / name), "--write")
    assert first["written"]
    written = rows(ledger)
    again = compared(
        monkeypatch,
        provider,
        str(DATA / name),
        "--write",
        code=1 if any("not ours" in p for p in planted.values()) else 0,
    )
    assert rows(ledger) == written
    for line in again["lines"]:
        left = {part: usd for part, usd in line["parts_usd"].items() if part != "not ours"}
        assert set(left) <= {"rounding"}
        assert sum(abs(millionths(usd)) for usd in left.values()) < 10_000
    assert not [row for row in written if row["provider"] == provider and row["reserved_nano"]]
    assert_exact(ledger)
    days = sorted({line["day"] for line in first["lines"]})
    span = Window(us(days[0], 0), us(days[-1], 23) + 3_600_000_000, UTC_ZONE)
    spent = grouped_sums(ledger, span, ("day", "model"))
    for line in first["lines"]:
        if line["models"]:
            ours = sum(
                spent[line["day"], model]["cost_nano"] for model in line["models"] if (line["day"], model) in spent
            )
            not_ours = float(line["parts_usd"].get("not ours", 0))
            assert abs(ours / NANO - (float(line["bill_usd"]) - not_ours)) < 0.005, line


def test_reservations_that_the_bill_settles_are_released(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """--write frees what the days of the bill reserve for its models, and nothing of other days or models."""
    fill(ledger, november_openai())
    kept = asked("2026-11-04", "openai/gpt-4o", 0.1, reserved_nano=5, status="interrupted")
    fill(ledger, [kept])
    dry = compared(monkeypatch, "openai", str(DATA / "openai_2026-11.json"))
    done = compared(monkeypatch, "openai", str(DATA / "openai_2026-11.json"), "--write")
    assert dry["released_nano"] == done["released_nano"] == 2 * 10**8
    assert [row["attempt_id"] for row in rows(ledger) if row["reserved_nano"]] == [kept["attempt_id"]]


def test_an_unknown_column_is_refused_by_name(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A column that is not known may hold money: it is named, and nothing is written, at any depth."""
    fill(ledger, november_openai())
    before = rows(ledger)
    for place in ("page", "bucket", "result", "amount"):
        pages = json.loads((DATA / "openai_2026-11.json").read_text())
        bucket = pages[0]["data"][0]
        result = bucket["results"][0]
        {"page": pages[0], "bucket": bucket, "result": result, "amount": result["amount"]}[place]["surcharge"] = 1
        path = tmp_path / f"{place}.json"
        path.write_text(json.dumps(pages))
        with pytest.raises(InvalidRequest, match="surcharge"):
            run(monkeypatch, "openai", str(path), "--write")
    assert rows(ledger) == before
