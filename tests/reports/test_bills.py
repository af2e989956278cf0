"""Files of providers' usage and cost APIs: every column is accounted for, money is exact, hostile files are refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from shared.errors import InvalidRequest
from shared.reports.bill_columns import FORMATS
from shared.reports.bills import EVERYTHING, Bill, read_bill

DATA = Path(__file__).parent / "data"
UTC_ZONE = ZoneInfo("UTC")
DAY = 1_793_577_600  # 2026-11-02T00:00Z


def costs(*lines: Any, start: int = DAY, **page: Any) -> dict[str, Any]:
    """A page of OpenAI's costs of one day: each line its name and its amount."""
    results = [
        {"object": "organization.costs.result", "amount": {"value": usd, "currency": "usd"}, "line_item": line}
        for line, usd in lines
    ]
    bucket = {"object": "bucket", "start_time": start, "end_time": start + 86_400, "results": results}
    return {"object": "page", "data": [bucket], "has_more": False, "next_page": None} | page


def usage(hour: int, tokens: int, *, width: int = 3600, model: str | None = "gpt-4o") -> dict[str, Any]:
    """A page of OpenAI's usage of one hour of 2026-11-02."""
    result = {
        "object": "organization.usage.completions.result", "input_tokens": tokens, "output_tokens": 1,
        "input_cached_tokens": 1, "num_model_requests": 1, "model": model,
    }  # fmt: skip
    start = DAY + hour * 3600
    bucket = {"object": "bucket", "start_time": start, "end_time": start + width, "results": [result]}
    return {"object": "page", "data": [bucket], "has_more": False, "next_page": None}


def read(tmp_path: Path, *contents: Any, provider: str = "openai", tz: str = "UTC", **keywords: Any) -> Bill:
    """The bill of files with these contents."""
    files = []
    for number, content in enumerate(contents):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_bill(provider, files, ZoneInfo(tz), **keywords)


@pytest.mark.parametrize(
    ("line", "name", "unit"),
    [
        ("gpt-4o-2024-08-06, input", "gpt-4o-2024-08-06", "input"),
        ("gpt-4o-2024-08-06, cached input", "gpt-4o-2024-08-06", "cached"),
        ("ft-gpt-4o-2024-08-06, output", "ft-gpt-4o-2024-08-06", "output"),
        ("priority | gpt-5.6-sol, output, long context", "gpt-5.6-sol", "output"),
        ("gpt-image-1 text, input", "gpt-image-1", "input"),
        ("gpt-image-1 image, output", "gpt-image-1", None),
        ("gpt-audio-mini-2025-12-15 audio, input", "gpt-audio-mini-2025-12-15", None),
        ("whisper-1, seconds", "whisper-1", None),
        ("dall-e-3", "dall-e-3", None),
        ("evals | gpt-4o-mini-2024-07-18, input", "evals | gpt-4o-mini-2024-07-18, input", None),
        ("assistants api | file search", "file search", None),
        ("web search tool calls", "web search", None),
        ("Vector storage", "Vector storage", None),
        (None, EVERYTHING, None),
    ],
)
def test_line_items_name_models_and_kinds_of_tokens(
    tmp_path: Path, line: str | None, name: str, unit: str | None
) -> None:
    """A line item names a model and a kind of token; another product's line, or one without a model, stays whole."""
    bill = read(tmp_path, costs((line, 1.5)))
    ((key, charged),) = bill.days["2026-11-02"].charged.items()
    assert (key, dict(charged.by_unit)) == (name, {unit: Decimal("1.5")})


def test_money_is_exact(tmp_path: Path) -> None:
    """Amounts stay as they are written, whatever a float would make of them; Anthropic's are cents."""
    text = json.dumps(costs(("gpt-4o, input", 0))).replace('"value": 0', '"value": 0.00032195744715549047')
    assert read(tmp_path, text).days["2026-11-02"].charged["gpt-4o"].usd == Decimal("0.00032195744715549047")
    bill = read_bill("anthropic", [DATA / "anthropic_cost_report_documented.json"], UTC_ZONE)
    assert bill.days["2025-08-01"].charged["claude-opus-4-6"].usd == Decimal("1.2378912")


@pytest.mark.parametrize("form", ["page", "list", "buckets", "lines", "joined", "bom"])
def test_pages_may_be_saved_in_any_way(tmp_path: Path, form: str) -> None:
    """One page, a list of pages or buckets, lines, pages one after the other: all are the same bill."""
    pages = [costs(("gpt-4o, input", 1.5)), costs(("gpt-4o, input", 2), start=DAY + 86_400)]
    texts = [json.dumps(page) for page in pages]
    content = {
        "page": json.dumps(pages[0] | {"data": [bucket for page in pages for bucket in page["data"]]}),
        "list": json.dumps(pages),
        "buckets": json.dumps([bucket for page in pages for bucket in page["data"]]),
        "lines": "\n".join(texts) + "\n",
        "joined": "".join(texts),
        "bom": "\ufeff" + json.dumps(pages, indent=2),
    }[form]
    bill = read(tmp_path, content)
    assert {day: part.charged["gpt-4o"].usd for day, part in bill.days.items()} == {
        "2026-11-02": Decimal("1.5"),
        "2026-11-03": 2,
    }
    assert bill.warnings == []


def test_missing_pages_and_days_that_are_not_over_are_said(tmp_path: Path) -> None:
    """`has_more` warns unless the next page is there; a day that is not over is left out, because it grows."""
    now = datetime.fromtimestamp(DAY + 86_400 + 3600, UTC)
    bill = read(
        tmp_path,
        costs(("gpt-4o, input", 1), has_more=True, next_page="page_2"),
        costs(("gpt-4o, input", 1), start=DAY + 86_400),
        now=now,
    )
    assert list(bill.days) == ["2026-11-02"]
    with pytest.raises(InvalidRequest, match="surcharge"):  # its columns are checked all the same
        read(
            tmp_path,
            json.dumps(costs(("gpt-4o, input", 1))).replace("line_item", "surcharge"),
            now=datetime.fromtimestamp(DAY, UTC),
        )
    assert bill.warnings == ["2026-11-03 was not over, and is left out."]
    bill = read(tmp_path, costs(("gpt-4o, input", 1), has_more=True, next_page="page_2"), usage(0, 2))
    assert bill.warnings == ["0.json says that more pages follow (has_more): days may be missing."]


def test_hours_add_up_to_days_of_any_zone(tmp_path: Path) -> None:
    """Buckets of an hour are summed by the day of the zone; a day of UTC is no day of another zone."""
    hours = [usage(hour, 10) for hour in range(24)]
    bill = read(tmp_path, *hours, tz="Europe/Berlin")
    assert {day: part.charged["gpt-4o"].used["input"] for day, part in bill.days.items()} == {
        "2026-11-02": 23 * 9,
        "2026-11-03": 9,
    }
    with pytest.raises(InvalidRequest, match="more than one day of Europe/Berlin"):
        read(tmp_path, costs(("gpt-4o, input", 1)), tz="Europe/Berlin")


def test_known_columns_that_are_not_compared_are_listed() -> None:
    """What is known and has no use is listed where it holds something."""
    bill = read_bill("anthropic", [DATA / "anthropic_usage_documented.json"], UTC_ZONE)
    assert {"workspace_id", "service_tier", "server_tool_use.web_search_requests"} <= bill.unused
    assert "model" not in bill.unused


@pytest.mark.parametrize("provider", FORMATS)
def test_columns_have_one_meaning_each(provider: str) -> None:
    """Figures are columns of their report, and no report has money without a currency."""
    for report in FORMATS[provider].reports.values():
        assert {name for name in report.figures if "." not in name and name in report.columns} <= set(report.columns)
        assert report.has_money == ("currency" in report.columns.values())


TWICE = costs(("gpt-4o, input", 1))
DEEP = "[" * 100_000
NUMBERS = json.dumps(costs(("gpt-4o, input", 0)))


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ([""], "is empty"),
        (["\n \n"], "is empty"),
        (["{"], "no JSON from line 1 on"),
        (['{"data": []}\n{"b"'], "no JSON from line 2 on"),
        ([DEEP], "nested too deeply"),
        (["[1, 2]"], "a number where a page should be"),
        (['"x"'], "a text where a page should be"),
        (['{"data": {}}'], "an object where the data"),
        (['{"object": "page", "data": [[]]}'], "a list where a bucket"),
        (
            ['{"error": {"message": "You have insufficient permissions"}}'],
            "an error, not a page: You have insufficient",
        ),
        (['{"data": [{"object": "bucket", "start_time": 1, "end_time": 2, "results": []}]}'], "start_time is no time"),
        ([NUMBERS.replace(str(DAY), "1e400")], "start_time is no time"),
        ([NUMBERS.replace(str(DAY), "true")], "start_time is no time"),
        ([NUMBERS.replace('"value": 0', '"value": NaN')], "NaN is not a number"),
        ([NUMBERS.replace('"value": 0', '"value": 1e999999999')], "amount"),
        ([NUMBERS.replace('"value": 0', '"value": 1e-999999999')], "amount"),
        ([NUMBERS.replace('"value": 0', f'"value": {"9" * 5000}')], "no JSON"),
        ([NUMBERS.replace('"value": 0', f'"value": 0.{"9" * 5000}')], "too many digits"),
        ([NUMBERS.replace('"value": 0', '"value": "1; DROP TABLE attempt"')], "no number"),
        ([NUMBERS.replace('"value": 0', '"value": [1]')], "a list in the column amount.value"),
        ([NUMBERS.replace('"value": 0', '"value": true')], "no number"),
        ([NUMBERS.replace('"value": 0', '"value": 1, "value": 2')], "a name twice"),
        ([NUMBERS.replace('"usd"', '"eur"')], "in eur, not in US"),
        ([NUMBERS.replace("gpt-4o, input", "x" * 1000)], "longer than"),
        ([NUMBERS.replace('"gpt-4o, input"', "7")], "A name is a number"),
        ([NUMBERS.replace("organization.costs.result", "organization.new.result")], "report that is unknown"),
        ([TWICE, TWICE], "in the files twice"),
        ([costs((None, 5)), costs(("gpt-4o, input", 1))], "as a total and by line"),
        ([usage(0, 1), usage(0, 1, width=86_400)], "in two buckets"),
        ([usage(0, 0)], "more cached input tokens"),
        ([json.dumps(usage(0, 7)).replace('"input_tokens": 7', '"input_tokens": 1.5')], "no count"),
        ([json.dumps(usage(0, 7)).replace('"output_tokens": 1', '"output_tokens": -1')], "no count"),
        ([NUMBERS.replace(f'"end_time": {DAY + 86_400}', f'"end_time": {DAY + 3600}')], "costs of a part of a day"),
    ],
)
def test_what_is_no_answer_of_the_api_is_refused_in_one_sentence(
    tmp_path: Path, contents: list[Any], said: str
) -> None:
    """A file that is broken, hostile, doubled or of something else is an error that says what is wrong."""
    with pytest.raises(InvalidRequest, match=said) as error:
        read(tmp_path, *contents)
    assert len(str(error.value)) < 500


def test_files_are_read_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is too large, no file, or no text is refused before it is taken apart."""
    monkeypatch.setattr("shared.reports.bills._MAX_BYTES", 100)
    with pytest.raises(InvalidRequest, match="larger than"):
        read(tmp_path, costs(("gpt-4o, input", 1)))
    with pytest.raises(InvalidRequest, match="is no file"):
        read_bill("openai", [tmp_path / "none.json"], UTC_ZONE)
    with pytest.raises(InvalidRequest, match="is no file"):
        read_bill("openai", [tmp_path], UTC_ZONE)
    (tmp_path / "image.json").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(InvalidRequest, match="no text"):
        read_bill("openai", [tmp_path / "image.json"], UTC_ZONE)


@pytest.mark.parametrize(
    ("provider", "name", "other"),
    [("openai", "anthropic_usage_documented.json", "anthropic"), ("anthropic", "openai_2026-11.json", "openai")],
)
def test_a_bill_of_another_provider_is_named(provider: str, name: str, other: str) -> None:
    """A file of the other provider is not taken for an unknown column, but for what it is."""
    with pytest.raises(InvalidRequest, match=f"is of {other}"):
        read_bill(provider, [DATA / name], UTC_ZONE)
