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
import sqlalchemy as sa
from typer.testing import CliRunner

from shared import cli
from shared.analytics import get_llm_costs, zone
from shared.errors import InvalidRequest
from shared.ledger.adjustments import enter
from shared.ledger.bills import Reconciled, reconciling
from shared.ledger.grouped import grouped_sums
from shared.ledger.query import Window
from shared.ledger.schema import attempt
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
        monkeypatch.setenv("AGENTSWARM_DATABASE_URL", request.getfixturevalue("postgres_ledger"))
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


def bill(tmp_path: Path, day: str, *lines: tuple[str | None, str], name: str = "bill.json") -> str:
    """A file of OpenAI's costs of a day: each line its item and its US$, as a text so that its decimals stay."""
    start = us(day, 0) // 10**6 - 900
    results = [
        {"object": "organization.costs.result", "amount": {"value": usd, "currency": "usd"}, "line_item": item}
        for item, usd in lines
    ]
    bucket = {"object": "bucket", "start_time": start, "end_time": start + 86_400, "results": results}
    path = tmp_path / name
    path.write_text(json.dumps({"object": "page", "data": [bucket], "has_more": False, "next_page": None}))
    return str(path)


def parts(found: dict[str, Any]) -> dict[str, dict[str, int]]:
    """The parts of each line in millionths of US$, by the bill's name."""
    return {line["name"]: {part: millionths(usd) for part, usd in line["parts_usd"].items()} for line in found["lines"]}


DAY = "2026-11-02"


def test_another_version_of_a_model_is_not_ours(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What answered decides: a dated name that never answered us is not ours, though we ask for the same model."""
    fill(ledger, [asked(DAY, "openai/gpt-4o gpt-4o-2024-08-06", 0.5, (10, 10))])
    path = bill(tmp_path, DAY, ("gpt-4o-2024-08-06, input", "0.50"), ("gpt-4o-2024-11-20, input", "3.00"))
    found = compared(monkeypatch, "openai", path, "--write")
    assert parts(found) == {"gpt-4o-2024-08-06": {}, "gpt-4o-2024-11-20": {"not ours": 3_000_000}}
    assert not [row for row in rows(ledger) if row["adjustment_kind"]]


@pytest.mark.parametrize(
    ("asked_for", "billed_as"),
    [
        ("anthropic/claude-haiku-4-5", "claude-haiku-4-5-20251001"),
        ("anthropic/claude-3-5-haiku-latest", "claude-3-5-haiku-20241022"),
        ("anthropic/claude-opus-4-6", "claude-opus-4-6"),
    ],
)
def test_an_undated_name_is_found_by_its_dated_one(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked_for: str, billed_as: str
) -> None:
    """Where no answer names the version, the bill's dated name is that of the model that was asked."""
    fill(ledger, [asked(DAY, asked_for, 0.5, (10, 10), cost_source="counted")])
    result = {"amount": "50.0", "currency": "USD", "model": billed_as, "token_type": "output_tokens"}
    bucket = {"starting_at": f"{DAY}T00:00:00Z", "ending_at": "2026-11-03T00:00:00Z", "results": [result]}
    path = tmp_path / "bill.json"
    path.write_text(json.dumps({"data": [bucket], "has_more": False, "next_page": None}))
    assert parts(compared(monkeypatch, "anthropic", str(path), code=0)) == {billed_as: {}}


def test_tools_that_a_bill_lists_apart_are_compared_apart(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Searches are a line of their own in the bill, and part of their model's cost in the ledger: both agree."""
    units = {"input": 1000, "output": 100, "search": 3}
    fill(ledger, [asked(DAY, "openai/gpt-4o gpt-4o-2024-08-06", 0.0335, (1000, 100), units=units)])
    path = bill(
        tmp_path, DAY, ("gpt-4o-2024-08-06, input", "0.0025"), ("gpt-4o-2024-08-06, output", "0.001"),
        ("web search tool calls", "0.03"),
    )  # fmt: skip
    assert parts(compared(monkeypatch, "openai", path, code=0)) == {"gpt-4o-2024-08-06": {}, "web search": {}}
    path = bill(tmp_path, DAY, ("gpt-4o-2024-08-06, input", "0.0035"), ("web search tool calls", "0.04"))
    assert parts(compared(monkeypatch, "openai", path, "--write"))["web search"] == {"unexplained": 10_000}
    assert parts(compared(monkeypatch, "openai", path, "--write", code=0))["web search"] == {}


@pytest.mark.parametrize(
    ("paid", "billed_input", "billed_output", "named"),
    [
        # The input agrees, so the requests are the same; the output has another price.
        (3.5, "2.50000", "1.50000", {"price changed": 500_000}),
        # All costs what it costs by today's table; the ledger's price is an older one.
        (7.0, "2.50000", "1.00000", {"price changed": -3_500_000}),
        # All are a tenth more, which is no number of requests.
        (3.5, "2.75000", "1.10000", {"price changed": 350_000}),
        # All are twice as much: another price, or twice the requests.
        (3.5, "5.00000", "2.00000", {"unexplained": 3_500_000}),
        (3.5, "3.50000", "1.10000", {"unexplained": 1_100_000}),
    ],
)
def test_a_price_is_said_to_have_changed_only_where_the_tokens_are_the_same(
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    paid: float,
    billed_input: str,
    billed_output: str,
    named: dict[str, int],
) -> None:
    """Without the bill's tokens, costs by kind of token must show that they are the ledger's."""
    fill(ledger, [asked(DAY, "openai/gpt-4o gpt-4o-2024-08-06", paid, (1_000_000, 100_000))])
    path = bill(tmp_path, DAY, ("gpt-4o-2024-08-06, input", billed_input), ("gpt-4o-2024-08-06, output", billed_output))
    assert parts(compared(monkeypatch, "openai", path)) == {"gpt-4o-2024-08-06": named}


def test_a_total_without_models_is_compared_and_not_entered(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A bill that was not grouped is compared as a whole; it says not for which model, so nothing is entered."""
    fill(ledger, [asked(DAY, "openai/gpt-4o", 1.0, (1, 1)), asked(DAY, "openai/gpt-5.4", 2.0, (1, 1))])
    found = compared(monkeypatch, "openai", bill(tmp_path, DAY, (None, "3.5000")), "--write")
    (line,) = found["lines"]
    assert line["models"] == ["openai/gpt-4o", "openai/gpt-5.4"]
    assert (line["name"], line["parts_usd"]) == ("(all models)", {"unexplained": "0.500000000"})
    assert line["not_entered_because"] == "the bill does not say for which model"
    assert len(rows(ledger)) == 2


def test_what_is_under_way_is_not_entered_until_it_ends(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A request that may still settle would be counted twice, so its line waits for it."""
    under_way = started(ts_us=us(DAY), model="openai/gpt-4o", requested_model="openai/gpt-4o", bound_nano=NANO)
    fill(ledger, [under_way])
    path = bill(tmp_path, DAY, ("gpt-4o-2024-08-06, input", "0.25000"))
    (line,) = compared(monkeypatch, "openai", path, "--write")["lines"]
    assert line["parts_usd"] == {"unfinished": "0.250000000"}
    assert line["not_entered_because"] == "1 still under way"
    submit(ledger, "settle", settled(under_way, cost_nano=NANO // 4, bound_nano=NANO)).result(timeout=30)
    assert parts(compared(monkeypatch, "openai", path, "--write", code=0)) == {"gpt-4o-2024-08-06": {}}


def test_a_later_bill_of_the_same_day_adds_only_what_is_new(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A bill that was corrected is entered against what the first one has entered."""
    fill(ledger, [asked(DAY, "openai/gpt-4o gpt-4o-2024-08-06", 1.0, (1, 1))])
    for usd, part in (("1.50000", 500_000), ("1.20000", -300_000)):
        path = bill(tmp_path, DAY, ("gpt-4o-2024-08-06, input", usd), name=f"{usd}.json")
        assert parts(compared(monkeypatch, "openai", path, "--write")) == {"gpt-4o-2024-08-06": {"unexplained": part}}
    entered = [(row["adjusts"], row["cost_nano"]) for row in rows(ledger) if row["adjustment_kind"] == "reconcile"]
    assert sorted(entered) == [
        (f"{DAY}/gpt-4o-2024-08-06/1.20000.json", -300_000_000),
        (f"{DAY}/gpt-4o-2024-08-06/1.50000.json", 500_000_000),
    ]


def test_two_people_who_enter_the_same_bill_enter_it_once(ledger: Ledger) -> None:
    """Both have seen the ledger before the other wrote; the adjustment of both is the same row."""
    one, other = (
        reconciling(
            Reconciled(), Reconciled(NANO, 0), us(DAY), provider="openai", model="openai/gpt-4o", line=(DAY, "gpt-4o"),
            file=f"{name}/bill.json",
        )
        for name in ("a", "b")
    )  # fmt: skip
    enter(ledger, one)
    enter(ledger, other)
    (row,) = rows(ledger)
    assert (row["cost_nano"], row["adjusts"].rpartition("/")[0]) == (NANO, f"{DAY}/gpt-4o")
    assert_exact(ledger)


def test_a_correction_counts_for_its_day_wherever_it_is_dated(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A closed month takes no adjustment, so that it is dated later: it is not entered again for that."""
    fill(ledger, [asked(DAY, "openai/gpt-4o gpt-4o-2024-08-06", 1.0, (1, 1))])
    moved = asked(
        "2026-11-20", "openai/gpt-4o", 0.5, status="reported", operation="adjustment", calls=0, usage_source="unknown",
        adjustment_kind="reconcile", adjusts=f"{DAY}/gpt-4o-2024-08-06/bill.json",
    )  # fmt: skip
    fill(ledger, [moved])
    path = bill(tmp_path, DAY, ("gpt-4o-2024-08-06, input", "1.50000"))
    assert parts(compared(monkeypatch, "openai", path, "--write", code=0)) == {"gpt-4o-2024-08-06": {}}
    other = bill(tmp_path, "2026-11-20", ("gpt-4o-2024-08-06, input", "0.25000"))
    assert parts(compared(monkeypatch, "openai", other)) == {"gpt-4o-2024-08-06": {"not ours": 250_000}}


def test_a_day_that_agrees_is_compared_by_its_sums(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A day that agrees reads no rows; one that does not, or that keeps a reservation, is read by what answered."""
    model = "openai/gpt-4o gpt-4o-2024-08-06"
    fill(ledger, [asked(DAY, model, 0.1, (1, 1)) for _ in range(10)])
    path = bill(tmp_path, DAY, ("gpt-4o-2024-08-06, input", "1.00000"))

    def read_rows(*_: Any) -> None:
        raise AssertionError("rows were read")

    with monkeypatch.context() as patched:
        patched.setattr("shared.reports.reconcile.billed", read_rows)
        assert parts(compared(monkeypatch, "openai", path, code=0)) == {"gpt-4o-2024-08-06": {}}
    fill(ledger, [asked(DAY, model, 0.0, (1, 1), reserved_nano=5, status="interrupted")])
    assert compared(monkeypatch, "openai", path, code=0)["released_nano"] == 5


def test_a_credit_of_no_model_is_left_alone(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An adjustment that a person entered counts for its model; one of no model is no line, and is not undone."""
    model = "openai/gpt-4o"
    credit: dict[str, Any] = {"status": "reported", "operation": "adjustment", "adjustment_kind": "manual", "calls": 0}
    fill(ledger, [asked(DAY, f"{model} gpt-4o-2024-08-06", 1.0, (1, 1)), asked(DAY, model, -0.25, **credit)])
    fill(ledger, [asked(DAY, "(adjustment)", -4.2, **credit, provider="openai")])
    path = bill(tmp_path, DAY, ("gpt-4o-2024-08-06, input", "0.75000"))
    assert parts(compared(monkeypatch, "openai", path, "--write", code=0)) == {"gpt-4o-2024-08-06": {}}


def test_a_day_whose_records_are_gone_is_left_out(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where only sums are left of a day, nothing can be said of what answered: it is left out, and not "not ours"."""
    for day in (DAY, "2026-11-03"):
        fill(ledger, [asked(day, "openai/gpt-4o gpt-4o-2024-08-06", 1.0, (1, 1))])
    assert_exact(ledger)  # the sums are complete
    with ledger.changing() as connection:
        connection.execute(sa.delete(attempt).where(attempt.c.ts_us < us("2026-11-03", 0)))
    one, two = (
        bill(tmp_path, day, ("gpt-4o-2024-08-06, input", "1.50000"), name=f"{day}.json") for day in (DAY, "2026-11-03")
    )
    found = compared(monkeypatch, "openai", one, two, "--write")
    assert [line["day"] for line in found["lines"]] == ["2026-11-03"]
    assert found["warnings"] == [f"{DAY} is left out: the ledger has sums of it, and no longer all of its records."]


def test_usage_alone_compares_tokens(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A usage report has no money: its tokens are compared, and nothing can be entered."""
    fill(ledger, [asked("2025-08-01", "anthropic/claude-opus-4-6", 1.0, (3200, 500, 200), cache_write_tokens=1500)])
    found = compared(monkeypatch, "anthropic", str(DATA / "anthropic_usage_documented.json"), "--write", code=0)
    (line,) = found["lines"]
    assert (line["ledger_tokens"], line["bill_tokens"], line["bill_usd"]) == (3700, 3700, None)
    assert found["warnings"] == [
        "anthropic_usage_documented.json says that more pages follow (has_more): days may be missing."
    ]


def test_the_table_says_what_each_difference_is_made_of(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """On screen: each line with its parts, the totals, what would be entered, and that nothing was changed."""
    fill(ledger, november_openai())
    text = run(monkeypatch, "openai", str(DATA / "openai_2026-11.json"))
    lines = text.splitlines()
    assert lines[0].split() == ["Day", "and", "model", "Ledger", "Bill", "Difference", "Made", "of"]
    rows_shown = [" ".join(line.split()) for line in lines]
    assert "2026-11-02 gpt-4o-2024-08-06 at least $0.4200 $0.7000 +$0.2800 unfinished +$0.2800" in rows_shown
    assert "2026-11-03 gpt-6-preview unknown $0.4000 +$0.4000 unknown price +$0.4000" in rows_shown
    assert "6 adjustments of +$1.177500 together would be entered" in text
    assert lines[-1] == "Nothing was changed. Add --write to enter it."
    done = run(monkeypatch, "openai", str(DATA / "openai_2026-11.json"), "--write")
    assert "6 adjustments of +$1.177500 together were entered, and $0.200000 of reservations were released." in done
    table = run(monkeypatch, "openai", str(DATA / "openai_2026-11.json"), "--format", "csv").splitlines()
    assert table[0] == "day,name,ledger_usd,bill_usd,difference_usd,not_ours_usd"
    assert table[2] == "2026-11-02,gpt-4o-2024-08-06,0.700000000,0.700000000,0.000000000,0.000000000"


def test_a_line_with_unknown_costs_is_not_called_equal(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where the bill has no more than what is known of a line, the table says so; the unknown stays unknown."""
    fill(ledger, [asked(DAY, "openai/gpt-6-preview", None), asked(DAY, "openai/gpt-4o gpt-4o-2024-08-06", 0.75)])
    path = bill(tmp_path, DAY, ("gpt-4o-2024-08-06, input", "0.75"))
    shown = [" ".join(line.split()) for line in run(monkeypatch, "openai", path, code=0).splitlines()]
    assert shown[1:3] == [
        f"{DAY} gpt-4o-2024-08-06 $0.7500 $0.7500 $0.0000 equal",
        f"{DAY} gpt-6-preview unknown $0.0000 $0.0000 nothing billed for the unknown",
    ]


def test_a_correction_is_in_the_reports_of_its_day(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a bill has corrected is part of the day's total, beside the calls, which stay as they are."""
    fill(ledger, november_openai())
    before = get_llm_costs(since=DAY, until=DAY, tz="UTC")
    compared(monkeypatch, "openai", str(DATA / "openai_2026-11.json"), "--write")
    after = get_llm_costs(since=DAY, until=DAY, tz="UTC")
    assert after["total_cost"] == pytest.approx(before["total_cost"] + 0.43)
    assert after["adjustments"] == pytest.approx(0.43)
    assert after["total_calls"] == before["total_calls"]
