"""Migrations of stored ledgers: carried out once, whole or not at all, and every figure stays as it was."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
import time_machine

from shared.analytics import all_budgets, get_llm_costs
from shared.budget import Budget, Limit
from shared.errors import StoreError
from shared.ledger import migrations, sums
from shared.ledger.migrations import STEPS
from shared.ledger.schema import MAJOR, MINOR, account, attempt, meta, metadata, sums_state
from shared.ledger.sqlite_library import library
from shared.ledger.store import Ledger, _is_invalid_entry, get_ledger
from tests.support import postgres
from tests.support.ledger_rows import assert_exact, rows, settled, started, submit, write
from tests.support.processes import race

DATA = Path(__file__).parent / "data"
STORED = sorted(path.stem.removeprefix("ledger-") for path in DATA.glob("ledger-*.json"))
NEW_COLUMNS = {
    "units": None,
    "service_tier": None,
    "price_table": None,
    "cost_is_lower_bound": False,
    "reserved_nano": None,
    "adjustment_kind": None,
    "adjusts": None,
    "machine": None,
}


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=STORED)
def stored(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """The URL of a ledger as an older version has left it, and the figures that it gave then."""
    figures = json.loads((DATA / f"ledger-{request.param}.json").read_text(encoding="utf-8"))
    figures |= {"version": request.param}
    if database == "sqlite":
        path = tmp_path / "stored.sqlite3"
        shutil.copyfile(DATA / f"ledger-{request.param}.db", path)
        return f"sqlite:///{path}", figures
    url = request.getfixturevalue("postgres_url")
    with psycopg.connect(url) as connection:
        connection.execute((DATA / f"ledger-{request.param}.sql").read_bytes())
    return url, figures


@pytest.fixture
def url(stored: tuple[str, dict[str, Any]]) -> str:
    return stored[0]


@pytest.fixture
def store(url: str) -> Iterator[Ledger]:
    """The stored ledger, opened by this version, that must have taken everything when the test ends."""
    ledger = Ledger(url)
    yield ledger
    ledger.close()
    assert not ledger.waiting


def migrate(*urls: str) -> None:
    """Open ledgers as this version does, and nothing else."""
    for url in urls:
        with closing(Ledger(url)) as ledger:
            ledger.check_writable()


def look(url: str) -> sa.Engine:
    """A way to see a database without opening it as a ledger."""
    options = {"module": library()} if url.startswith("sqlite") else {}
    return sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"), poolclass=sa.NullPool, **options)


def shape(url: str) -> dict[str, Any]:
    """Every table with its columns (name, type, NULL, default), its primary key and its indexes."""
    inspector = sa.inspect(look(url))
    return {
        table: (
            [(c["name"], repr(c["type"]), c["nullable"], c["default"]) for c in inspector.get_columns(table)],
            inspector.get_pk_constraint(table)["constrained_columns"],
            sorted((index["name"] or "", index["column_names"]) for index in inspector.get_indexes(table)),
        )
        for table in inspector.get_table_names()
    }


def content(url: str) -> dict[str, list[Any]]:
    """Every row of every table, as the database has it."""
    with look(url).connect() as connection:
        names = sa.inspect(connection).get_table_names()
        return {
            name: sorted(map(repr, connection.exec_driver_sql(f'SELECT * FROM "{name}"')))  # noqa: S608 - ours
            for name in names
        }


def version(url: str) -> tuple[int, int]:
    with look(url).connect() as connection:
        found = {row.name: row.value for row in connection.execute(sa.select(meta))}
    return found["major"], found["minor"]


def test_the_steps_lead_to_this_version() -> None:
    """Versions of steps rise up to this program's, and there is a stored ledger of the version before it."""
    versions = [step.version for step in STEPS]
    assert versions == sorted(set(versions))
    assert versions[-1] == (MAJOR, MINOR)
    assert {f"{major}.{minor}" for major, minor in versions[:-1]} == set(STORED)


GROUP_FIELDS_SINCE = (
    "avg_cost_per_call", "cost_nano", "cost_is_lower_bound", "unknown_cost_requests", "keys", "input_tokens",
    "output_tokens", "cached_tokens", "share",
)  # fmt: skip


def as_then(figures: Any) -> Any:
    """Figures as older versions gave them: with 0 for an unknown cost, and without the fields that came since."""
    if isinstance(figures, dict):
        is_group = {"name", "tokens"} <= figures.keys()
        return {
            name: as_then(value) for name, value in figures.items() if not (is_group and name in GROUP_FIELDS_SINCE)
        }
    if isinstance(figures, list):
        return [as_then(each) for each in figures]
    return 0.0 if isinstance(figures, float) and math.isnan(figures) else figures


def as_the_older_version_settled(row: Mapping[str, Any]) -> dict[str, Any]:
    """What an attempt whose lease has ended came to when the older version made its report: its bound, as a cost."""
    bound = row["bound_nano"]
    source = "unknown" if bound is None else "bound"
    end = {"status": "unsettled", "cost_nano": bound, "cost_source": source, "unpriced_calls": int(bound is None)}
    return end | {"failed_calls": 1}


def nan_as_text(figures: Any) -> Any:
    """Figures in which one unknown cost equals another."""
    if isinstance(figures, dict):
        return {name: nan_as_text(value) for name, value in figures.items()}
    if isinstance(figures, list):
        return [nan_as_text(each) for each in figures]
    return "unknown" if isinstance(figures, float) and math.isnan(figures) else figures


def check_rows(ledger: Ledger, expected: dict[str, Any]) -> None:
    """Rows and running totals are as they were; new columns have their defaults."""
    found = rows(ledger)
    for name, count in expected["rows"].items():
        assert name == "rollup" or len(rows(ledger, metadata.tables[name])) == count
    assert sum(row["cost_nano"] or 0 for row in found) == expected["cost_nano"]
    assert sum(row["bound_nano"] or 0 for row in found) == expected["bound_nano"]
    for row in found if expected["version"] == "1.1" else ():
        # A settled attempt of unknown cost has always counted with its bound; now its row says so.
        reserved = row["bound_nano"] if row["cost_nano"] is None and row["status"] != "started" else None
        assert {name: row[name] for name in NEW_COLUMNS} == NEW_COLUMNS | {"reserved_nano": reserved}
    accounts = {
        f"{row['dimensions']} {row['whose']} {row['since_us']}-{row['until_us']}": row["counted_nano"]
        for row in rows(ledger, account)
    }
    assert accounts == expected["accounts"]


def check_figures(expected: dict[str, Any]) -> None:
    """Reports and budgets say what they said."""
    is_first = expected["version"] == "1.1"
    with time_machine.travel(expected["now"], tick=False):
        for by, costs in expected["costs"].items():
            now = get_llm_costs(**expected["window"], by=by)
            if is_first:
                assert not any(group["cost_is_lower_bound"] for group in now["groups"])
                assert now["avg_cost_per_call"] > costs["avg_cost_per_call"]  # it leaves out calls of unknown cost now
                figures = as_then(now | {"avg_cost_per_call": costs["avg_cost_per_call"]})
                assert {name: figures[name] for name in costs} == costs
            else:
                groups = [{name: group[name] for name in costs["groups"][0]} for group in now["groups"]]
                assert nan_as_text({name: now[name] for name in costs} | {"groups": groups}) == nan_as_text(costs)
        terms = ("name", "window", "limit", "used", "left")
        assert [[budget[name] for name in terms] for budget in all_budgets()] == [
            [budget[name] for name in terms] for budget in expected["budgets"]
        ]


@pytest.mark.parametrize("build_page", [25, 1000])
def test_every_figure_stays(
    stored: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, build_page: int
) -> None:
    """A migrated ledger reports what the older version reported of it, to the nano-dollar, and so do its budgets."""
    url, expected = stored
    monkeypatch.setenv("AGENTSWARM_DATABASE_URL", url)
    monkeypatch.setattr(sums, "_BUILD_PAGE", build_page)
    ledger = Ledger(url)
    check_rows(ledger, expected)
    if expected["version"] == "1.1":
        for row in rows(ledger):
            if row["status"] == "started" and row["lease_us"] < 2 * 10**15:
                write(ledger, "settle", row | as_the_older_version_settled(row))
    monkeypatch.setattr(sums, "_CATCHING_UP_S", 0.0)
    while rows(ledger, sums_state):  # reports are the same while the older attempts are not in the sums yet
        check_figures(expected)
        sums.fold(ledger)
    check_figures(expected)
    assert_exact(ledger)
    ledger.close()
    get_ledger(url).close()
    assert version(url) == (MAJOR, MINOR)


OPEN = """
from shared.ledger import Ledger, store
from shared.ledger.migrations import is_current
from tests.support.ledger_rows import rows

def run(number, together, url):
    def wait_for_the_others(connection):
        print(is_current(connection), flush=True)
        together.wait(60)
        return False

    store.is_current = wait_for_the_others
    print(len(rows(Ledger(url))), flush=True)
"""


def test_processes_that_start_at_once_migrate_once(stored: tuple[str, dict[str, Any]]) -> None:
    """Of several processes that find an old ledger at the same moment one migrates it, and all of them can use it."""
    url, expected = stored
    said = race(OPEN, url, count=4)
    assert said == ["False"] * 4 + [str(expected["rows"]["attempt"])] * 4
    assert version(url) == (MAJOR, MINOR)


def test_new_rows_go_into_a_migrated_ledger(store: Ledger) -> None:
    """What is new since the stored version can be written and read back, beside the old rows, under old budgets."""
    before = len(rows(store))
    new = {
        "units": {"input": 10, "search": 2},
        "service_tier": "priority",
        "price_table": "2026-11-27",
        "cost_is_lower_bound": True,
        "reserved_nano": 2**40,
        "adjustment_kind": "credit",
        "adjusts": "invoice 7",
    }
    row = started(agent="Writer")
    admission = submit(store, "start", row, {"customer": "acme"}, [Limit(Budget(900, "total"))]).result(timeout=30)
    assert admission is not None
    assert admission.refused_by is None
    write(store, "settle", settled(row) | new, customer="acme")
    (found,) = (each for each in rows(store) if each["attempt_id"] == row["attempt_id"])
    assert {name: found[name] for name in new} == new
    assert len(rows(store)) == before + 1
    assert_exact(store)


def test_unknown_units_are_null(store: Ledger) -> None:
    """Units that nobody counted are NULL in SQL, and not the JSON text "null"."""
    write(store, "settle", row := settled(units=None))
    with store.reading() as connection:
        query = sa.select(sa.func.count()).where(
            attempt.c.attempt_id == row["attempt_id"], attempt.c.units.is_(sa.null())
        )
        assert connection.scalar(query) == 1


def test_a_second_open_changes_nothing(url: str) -> None:
    """A ledger of this version is opened without a single write."""
    migrate(url)

    def trace() -> Any:
        if url.startswith("sqlite"):
            return hashlib.sha256(Path(url.removeprefix("sqlite:///")).read_bytes()).hexdigest()
        with psycopg.connect(url) as connection:  # the transactions that have written the version and the columns
            return connection.execute(
                "SELECT array_agg(xmin::text) FROM ledger_meta UNION ALL "
                "SELECT array_agg(xmin::text ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'attempt'::regclass"
            ).fetchall()

    before, kept = trace(), content(url)
    with closing(Ledger(url)) as again:
        assert rows(again)
    assert trace() == before
    assert content(url) == kept


def test_opening_waits_for_no_writer(url: str) -> None:
    """A ledger of this version is opened and read while another process holds the locks of a writer."""
    migrate(url)
    # A wait that nobody ends becomes an error, as SQLite has it anyway.
    patient = url if url.startswith("sqlite") else f"{url}&options=-c%20lock_timeout%3D5s"
    with closing(Ledger(url)) as first, first.writing() as connection, closing(Ledger(patient)) as second:
        if connection.dialect.name == "postgresql":
            connection.execute(migrations._ONE_MIGRATION)
        assert rows(second)


@pytest.mark.parametrize("done", [0, 3, len(STEPS[-1].statements)])
def test_a_step_that_fails_leaves_the_ledger_as_it_was(url: str, done: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However far a step has come when it fails, no table, row or version changes, and the next try carries it out."""
    before = (shape(url), content(url))
    broken = STEPS[-1]._replace(statements=(*STEPS[-1].statements[:done], "SELECT no_such_function()"))
    monkeypatch.setattr(migrations, "STEPS", (*STEPS[:-1], broken))
    store = Ledger(url)
    with pytest.raises(StoreError, match=r"no.such.function"):
        rows(store)
    assert (shape(url), content(url)) == before
    monkeypatch.undo()
    assert rows(store)
    assert version(url) == (MAJOR, MINOR)
    store.close()


def fresh_url(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """The URL of an empty ledger in the same kind of database."""
    if database == "sqlite":
        return f"sqlite:///{tmp_path / 'fresh.sqlite3'}"
    return postgres.new_database(request.getfixturevalue("postgres_server"))


def test_a_fresh_and_a_migrated_ledger_are_the_same(
    url: str, database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Tables, columns, keys and indexes of a migrated ledger are those of a new one."""
    fresh = fresh_url(database, tmp_path, request)
    migrate(url, fresh)
    assert shape(url) == shape(fresh)
    assert version(url) == version(fresh) == (MAJOR, MINOR)


def test_the_first_version_is_migrated_too(
    stored: tuple[str, dict[str, Any]], database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A ledger of version 1.0, which had no budgets, comes to be like a new one."""
    url, expected = stored
    if expected["version"] != "1.1":
        pytest.skip("made of the one that is nearest to it")
    with look(url).begin() as connection:
        for table in ("budget", "account", "account_kind"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
        connection.exec_driver_sql("UPDATE ledger_meta SET value = 0 WHERE name = 'minor'")
    fresh = fresh_url(database, tmp_path, request)
    migrate(url, fresh)
    assert shape(url) == shape(fresh)
    assert version(url) == (MAJOR, MINOR)


OLDER_SETTLE = "INSERT INTO rollup (bucket) VALUES (1)"


def test_an_older_program_cannot_settle_any_more(url: str) -> None:
    """An older program that has the ledger open fails to settle, as a whole, and may not open it anew."""
    migrate(url)
    with look(url).begin() as connection, pytest.raises(sa.exc.DBAPIError, match="rollup") as caught:
        connection.exec_driver_sql(OLDER_SETTLE)
    assert not _is_invalid_entry(caught.value)  # so that it keeps the entry in its spool
    assert version(url)[0] > 1  # which an older program refuses
