"""The view for dashboards: the rows to the nano-dollar, on both databases, with the columns of the page about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from shared.ledger.grouped import grouped_sums
from shared.ledger.migrations import migrate
from shared.ledger.store import Ledger
from shared.ledger.views import COLUMNS, NAME
from shared.reports.periods import span_of
from tests.support import month
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "dashboards.md").read_text(encoding="utf-8")
QUERIES = re.findall(r"## (\w+)\n.*?```sql\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    """A ledger with a month of traffic in each database."""
    on_sqlite = request.param == "sqlite"
    ledger = Ledger(
        f"sqlite:///{tmp_path / 'own.sqlite3'}" if on_sqlite else request.getfixturevalue("postgres_ledger")
    )
    month.fill(ledger)
    yield ledger
    ledger.close()


def select(ledger: Ledger, sql: str) -> list[dict[str, Any]]:
    """The rows of a query."""
    with ledger.reading() as connection:
        return [dict(row) for row in connection.execute(sa.text(sql)).mappings()]


def test_the_view_adds_up_to_the_report(store: Ledger) -> None:
    """Sums of the view by customer are the report's, in cost, calls, tokens and requests of unknown cost."""
    span = span_of(since="2026-11", until="2026-11", zone=ZoneInfo("UTC"))
    found = select(
        store,
        f"""
        SELECT coalesce(labels ->> 'customer', '') AS customer, sum(cost_nano) AS cost_nano, sum(calls) AS calls,
          sum(input_tokens) AS prompt_tokens, sum(failed_calls) AS failed_calls,
          sum(CASE WHEN cost_is_unknown THEN 1 ELSE 0 END) AS unknown_requests
        FROM {NAME} WHERE time_us >= {span.since_us} AND time_us < {span.until_us} GROUP BY 1
        """,  # noqa: S608 - our own numbers
    )
    report = grouped_sums(store, span, ("customer",))
    assert len(found) == len(report) == 6
    for row in found:
        sums = report[(row.pop("customer"),)]
        assert {name: int(value or 0) for name, value in row.items()} == {name: sums[name] for name in row}
    assert sum(sums["unknown_requests"] for sums in report.values()) > 22


def test_the_columns_are_those_of_the_page(store: Ledger) -> None:
    """Every column of the view is on the page, in its order, with its meaning; the first versions' are all there."""
    assert list(select(store, f"SELECT * FROM {NAME} LIMIT 1")[0]) == [name for name, _, _ in COLUMNS]  # noqa: S608
    assert re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE, re.MULTILINE) == [(name, what) for name, _, what in COLUMNS]


def test_one_row_says_the_time_and_the_cost(store: Ledger) -> None:
    """The time is UTC, the cost in US$ is the nano-dollars, and an unknown cost is NULL in both."""
    first = select(store, f"SELECT * FROM {NAME} WHERE cost_nano > 0 ORDER BY time_us LIMIT 1")[0]  # noqa: S608
    assert str(first["time"]).startswith("2026-11-01 ")
    assert round(float(first["cost_usd"]) * 10**9) == first["cost_nano"]
    assert len(str(first["call_id"]).replace("-", "")) == 32
    [unknown] = select(store, f"SELECT count(*) AS n FROM {NAME} WHERE cost_is_unknown AND cost_usd IS NOT NULL")  # noqa: S608
    assert unknown["n"] == 0


@pytest.mark.parametrize(("name", "query"), QUERIES, ids=[name for name, _ in QUERIES])
def test_the_queries_of_the_page_run(store: Ledger, name: str, query: str) -> None:
    """Each example of the page has rows; what needs PostgreSQL says so."""
    if name == "Grafana" and "sqlite" in store.name:
        assert "with a PostgreSQL data source" in PAGE
        return
    assert select(store, query.replace("$__timeFilter(time)", "time IS NOT NULL"))


def test_migrating_makes_the_view_anew(store: Ledger) -> None:
    """A ledger that is migrated has the view of this version, and is not harmed by an older view."""
    with store.changing() as connection:
        connection.exec_driver_sql(f"DROP VIEW {NAME}")
        connection.exec_driver_sql(f"CREATE VIEW {NAME} AS SELECT 1 AS old")
        migrate(connection)
    assert "cost_nano" in select(store, f"SELECT * FROM {NAME} LIMIT 1")[0]  # noqa: S608
