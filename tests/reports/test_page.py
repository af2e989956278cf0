"""The page of HTML: it runs nothing, fetches nothing, adds up, and is read on a laptop, a phone and paper."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import time_machine
from typer.testing import CliRunner

from shared.analytics import costs_page, get_llm_costs, set_budget
from shared.budget import Budget
from shared.cli import app
from shared.ledger.store import Ledger
from shared.reports.forecast import _forecast
from shared.scope import scope
from tests.support import month
from tests.support.ledger_rows import settled, write

EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NOVEMBER: dict[str, Any] = {"since": "2026-11", "until": "2026-11"}
# Loads the page in a frame of a phone's width, and writes down what it finds there.
FRAME = """<!doctype html><body><pre></pre><iframe srcdoc="{page}" style="width:{width}px;height:600px"></iframe>
<script>document.querySelector('iframe').onload = event => {{
  const page = event.target.contentDocument;
  const top = name => [...page.querySelectorAll('h2')].find(head => head.textContent === name)
    .parentElement.getBoundingClientRect();
  document.querySelector('pre').textContent = JSON.stringify({{
    title: page.title, scripts: page.scripts.length, images: page.images.length,
    width: page.documentElement.scrollWidth,
    summary: page.querySelector('section').getBoundingClientRect().bottom,
    bars: [...page.querySelectorAll('.chart g')].length,
    body: getComputedStyle(page.body).backgroundColor }});
}}</script>"""


@pytest.fixture
def november(ledger: Ledger) -> Ledger:
    """A month of traffic, with a label and an agent that are markup."""
    month.fill(ledger)
    row = settled(ts_us=month.NOVEMBER_US + 3 * month.DAY_US, agent=EVIL, model=f"openai/{EVIL}", cost_nano=3 * 10**8)
    write(ledger, "settle", row, customer=EVIL)
    set_budget("default", Budget(100))
    set_budget("of customers", Budget(2, scope="customer"))
    return ledger


def test_a_page_adds_up(november: Ledger) -> None:
    """The total, every table and the number of unknown costs are those of the report, to the nano-dollar."""
    page, costs = costs_page(**NOVEMBER), get_llm_costs(**NOVEMBER)
    total = Decimal(costs["total_cost_nano"]) / 10**9
    assert Decimal(re.findall(r'id="total" value="([-\d.]+)"', page)[0]) == total
    assert f"Total, exact: ${total}" in page
    assert int(re.findall(r'id="unknown" value="(\d+)"', page)[0]) == costs["unknown_cost_requests"] > 0
    tables = [part for part in page.split("<table>") if 'class="cost"' in part]
    assert len(tables) == 5  # by customer, team, agent, tool and model
    for table in tables:
        assert sum(Decimal(cost or 0) for cost in re.findall(r'class="cost" value="([-\d.]*)"', table)) == total
    assert page.count(">unknown</data>") >= 1
    assert "no known price" in page


def test_a_page_says_what_is_asked_first(november: Ledger) -> None:
    """Spent, against the period before, by whom, what is unknown and when a budget runs out come first."""
    summary = costs_page(**NOVEMBER).partition("</section>")[0]
    for head in ("Spent", "Against the period before", "By whom", "Unknown", "Budgets"):
        assert f"<h2>{head}</h2>" in summary
    assert "by customer" in summary
    assert "of unknown cost, in no total" in summary


def test_a_page_is_text_only(november: Ledger) -> None:
    """Nothing that a caller named is markup, the page forbids scripts and fetches, and it has neither."""
    page = costs_page(**NOVEMBER)
    assert html.escape(EVIL, quote=False).replace("'", "&#39;").replace('"', "&#34;") in page
    assert "default-src 'none'; style-src 'unsafe-inline'" in page
    assert not re.search(r"<(script|img|link|iframe|object|form|a)\b|\bon\w+=\"|url\(|@import|https?://", page)
    assert "\x1b" not in page


def test_an_empty_ledger_and_a_scope_have_pages(november: Ledger) -> None:
    """Without any call a page says so; inside a scope it is of the scope's own costs, and names no other customer."""
    assert "Nothing was spent." in costs_page(since="2020-01-01", until="2020-01-02")
    with scope(customer="acme"):
        page = costs_page(**NOVEMBER)
    assert "Zoë" not in page
    assert "owned" not in page


def test_a_year_is_shown_by_month(november: Ledger) -> None:
    """A window of more than three months has a bar for each month, so that it can be read, and the page stays small."""
    page = costs_page(since="2025", until="2026")
    assert "By month and model" in page
    assert len(page) < 100_000


def test_the_command_writes_a_page_of_this_month(november: Ledger) -> None:
    """--format html is the page, of the current month where no time is given, with the forecast for its end."""
    with time_machine.travel("2026-11-20T12:00:00Z", tick=False):
        done = CliRunner().invoke(app, ["report", "--format", "html"])
    assert done.exit_code == 0
    assert done.stdout.startswith("<!doctype html>")
    assert "2026-11-01 to 2026-11-20 12:00" in done.stdout
    assert "This month, at its end: about $" in done.stdout


def test_a_forecast_is_the_rate_with_its_range() -> None:
    """The month's end is what is spent plus the mean of the days; equal days leave no doubt, unequal ones do."""
    from datetime import UTC, datetime

    end = datetime(2026, 12, 1, tzinfo=UTC)
    even = _forecast(100, [10] * 14, 5.0, end)
    assert (even.expected_nano, even.low_nano, even.high_nano) == (150, 150, 150)
    uneven = _forecast(100, [0, 20] * 7, 5.0, end)
    assert uneven.expected_nano == 150
    assert 100 <= uneven.low_nano < 150 < uneven.high_nano


@pytest.mark.skipif(BROWSER is None, reason="No Chromium was found, so that no browser has shown the page.")
@pytest.mark.parametrize("width", [360, 1366])
def test_a_browser_shows_the_page(november: Ledger, width: int, tmp_path: Path) -> None:
    """In a real Chromium no script runs, nothing is wider than a phone, and a laptop shows the summary at once."""
    page = FRAME.format(page=html.escape(costs_page(**NOVEMBER)), width=width)
    (tmp_path / "frame.html").write_text(page, encoding="utf-8")
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000", "--dump-dom"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [*command, profile, f"file://{tmp_path / 'frame.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = json.loads(html.unescape(re.findall(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)[0]))
    assert found["title"] == "LLM costs, 2026-11-01 to 2026-11-30"
    assert (found["scripts"], found["images"], found["bars"]) == (0, 0, 30)
    assert found["width"] <= width
    if width > 1000:
        assert found["summary"] < 768
