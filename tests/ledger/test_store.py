"""The ledger on SQLite and PostgreSQL: one row per attempt, settled once, and sums that always equal the rows."""

from __future__ import annotations

import asyncio
import gc
import json
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings, strategies as st

from shared.errors import StoreError
from shared.internal.clock import new_id
from shared.ledger.accounts import Admission
from shared.ledger.query import UNALLOCATED, Filter, Window
from shared.ledger.records import RECORD_NAMES, attempt_lines, attempt_records, attempt_values
from shared.ledger.schema import BUCKET_S, MAJOR, MINOR, SUMS, attempt, event, label, meta
from shared.ledger.spool import MAX_BATCH
from shared.ledger.store import Ledger, committed
from shared.ledger.writer import _MAX_DELAY_S, Item
from shared.ledger.writes import Event
from shared.reports.costs import sum_costs
from shared.reports.groups import groups_of
from tests.support.examples import at_most
from tests.support.ledger_rows import (
    NOON_US,
    assert_exact,
    folded,
    held_nano,
    only,
    rows,
    settled,
    started,
    submit,
    write,
)
from tests.support.processes import race, run


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty ledger on each database."""
    postgresql = request.param == "postgresql"
    url = request.getfixturevalue("postgres_ledger") if postgresql else f"sqlite:///{tmp_path / 'store.sqlite3'}"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return str(url)


@pytest.fixture
def store(url: str) -> Iterator[Ledger]:
    """An empty ledger on each database, that must have taken everything when the test ends."""
    ledger = Ledger(url)
    yield ledger
    ledger.close()
    assert not ledger._spool.waiting()


def test_an_attempt_is_started_and_then_settled(store: Ledger) -> None:
    """The started row holds its bound; settling makes it final, moves the sums and frees the hold."""
    row = started(tool="T", agent="A", run="R", conversation="C")
    write(store, "start", row, customer="acme")
    assert only(store)["status"] == "started"
    assert held_nano(store) == 9000
    assert folded(store) == {}
    write(store, "settle", settled(row), customer="acme")
    final = only(store)
    assert {name: final[name] for name in ("attempt_id", "status", "cost_nano", "tool", "agent", "run")} == {
        "attempt_id": row["attempt_id"], "status": "ok", "cost_nano": 7000, "tool": "T", "agent": "A", "run": "R",
    }  # fmt: skip
    assert held_nano(store) == 0
    assert rows(store, label) == [{"attempt_id": row["attempt_id"], "name": "customer", "value": "acme"}]
    assert_exact(store)


def test_what_is_written_can_be_read_by_others_at_once(url: str, store: Ledger) -> None:
    """When a write is done it is committed: another connection sees it."""
    write(store, "settle", settled())
    other = Ledger(url)
    assert len(rows(other)) == 1
    other.close()


def test_settling_twice_counts_once_and_the_last_figures_hold(store: Ledger) -> None:
    """A repeated settle changes nothing; a corrected one moves the sums, also to another model's."""
    row = started()
    for final in (settled(row), settled(row), settled(row, cost_nano=9, model="other", provider="else", calls=0)):
        write(store, "settle", final)
        assert_exact(store)
    assert (only(store)["cost_nano"], only(store)["model"]) == (9, "other")
    assert folded(store) == {(row["bucket"], "else", "other", "", ""): (0, 0, 0, 9, 10, 20, 0, 0, 5)}


def test_order_does_not_matter(store: Ledger) -> None:
    """A settle without its start is the attempt, and a start that comes late changes nothing."""
    row = started()
    write(store, "settle", settled(row), customer="acme")
    write(store, "start", row, customer="acme")
    assert only(store)["status"] == "ok"
    assert len(rows(store, label)) == 1
    assert_exact(store)


def test_an_unknown_cost_stays_unknown(store: Ledger) -> None:
    """No price is NULL in the row and 0 in the sums, beside the count of what is unpriced."""
    write(store, "settle", settled(cost_nano=None, prompt_tokens=None, unpriced_calls=1))
    assert (only(store)["cost_nano"], only(store)["prompt_tokens"]) == (None, None)
    (total,) = (dict(zip(SUMS, values, strict=True)) for values in folded(store).values())
    assert (total["cost_nano"], total["prompt_tokens"], total["unpriced_calls"]) == (0, 0, 1)


def test_an_expired_lease_reserves_its_bound_and_is_corrected_later(store: Ledger) -> None:
    """A killed process's attempt counts as failed, and reserves its bound until its true cost is known."""
    known, unknown, alive = started(lease_us=1), started(lease_us=1, bound_nano=None), started()
    for row in (known, unknown, alive):
        write(store, "start", row)
    assert store.settle_expired() == 2
    assert store.settle_expired() == 0
    found = {row["attempt_id"]: row for row in rows(store)}
    facts = ("status", "cost_nano", "reserved_nano", "cost_source", "failed_calls", "unpriced_calls")
    assert [found[known["attempt_id"]][name] for name in facts] == ["unsettled", None, 9000, "unknown", 1, 1]
    assert [found[unknown["attempt_id"]][name] for name in facts] == ["unsettled", None, None, "unknown", 1, 1]
    assert found[alive["attempt_id"]]["status"] == "started"
    assert_exact(store)
    write(store, "settle", settled(known))
    write(store, "expire", found[known["attempt_id"]])
    (corrected,) = [row for row in rows(store) if row["attempt_id"] == known["attempt_id"]]
    assert (corrected["cost_nano"], corrected["reserved_nano"]) == (7000, None)
    assert_exact(store)


def test_events_and_metadata_are_kept_once(store: Ledger) -> None:
    """An event written twice is one; metadata is added to what an attempt has, and to no other attempt."""
    row = {"event_id": new_id(), "ts_us": 1, "event_type": "tool_start", "labels": {}, "metadata": {"a": 1}}
    for _ in range(2):
        write(store, "event", row)
    assert len(rows(store, event)) == 1
    attempted = settled()
    write(store, "settle", attempted)
    for more in ({"a": 1, "b": 1}, {"b": 2}):
        write(store, "metadata", {"attempt_id": attempted["attempt_id"], "metadata": more})
    write(store, "metadata", {"attempt_id": new_id(), "metadata": {"x": 1}})
    assert only(store)["metadata"] == {"a": 1, "b": 2}


def test_a_report_reads_the_same_from_every_database(store: Ledger) -> None:
    """Totals, groups, days, labels, filters and exports mean the same on SQLite and PostgreSQL."""
    for number in range(6):
        row = settled(ts_us=NOON_US + number * 10**9, cost_nano=10**number, conversation=f"c{number % 3}")
        row["tool"] = "T" if number % 2 else None
        write(store, "settle", row, **({"customer": "acme"} if number > 3 else {}))
    write(store, "start", started(ts_us=NOON_US - 1))
    span = Window(NOON_US - 1, NOON_US + 10**10, ZoneInfo("UTC"))
    costs = sum_costs(store, span)
    assert (costs["total_cost_nano"], costs["total_calls"], costs["total_tokens"]) == (111_111, 6, 180)
    groups = groups_of(store, span, [("customer",)], Filter())[0].groups
    assert [(group["name"], group["cost"]) for group in groups] == [
        ("acme", 11e-5),
        (UNALLOCATED, 1111e-9),
    ]
    assert costs["cost_by_tool"] == {"T": 101_010e-9, UNALLOCATED: 10_101e-9}
    assert sum_costs(store, span, Filter({"customer": "acme"}))["total_cost_nano"] == 110_000
    assert sum_costs(store, span, Filter(conversation="c1", any_conversation=False))["total_cost_nano"] == 10
    found = list(attempt_records(store, span))
    assert [record["cost_nano"] for record in found] == [None, *(10**number for number in range(6))]
    assert [record["labels"] for record in found if record["labels"]] == [{"customer": "acme"}] * 2


figures = st.fixed_dictionaries(
    {
        "cost_nano": st.none() | st.integers(0, 2**60),
        "model": st.sampled_from(["m1", "m2"]),
        "tool": st.sampled_from([None, "T"]),
        "calls": st.integers(0, 1),
        "failed_calls": st.integers(0, 1),
        "unpriced_calls": st.integers(0, 1),
        "prompt_tokens": st.none() | st.integers(0, 10**9),
        "duration_us": st.none() | st.integers(0, 10**9),
        "status": st.sampled_from(["ok", "failed", "cancelled"]),
    }
)
step = st.tuples(st.sampled_from(["start", "settle", "settle", "expire", "metadata"]), st.integers(0, 3), figures)


@settings(max_examples=at_most(25), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(step, max_size=25), st.booleans())
def test_the_sums_equal_the_rows_after_any_program(store: Ledger, program: list[Any], at_once: bool) -> None:
    """However attempts start, settle, expire and are corrected, one by one or together, the sums are exact."""
    first, times = uuid.uuid4().int >> 16, [NOON_US + number * BUCKET_S * 400_000 for number in range(4)]
    for kind, which, final in program:
        row = started(attempt_id=uuid.UUID(int=first << 16 | which), ts_us=times[which])
        if kind == "metadata":
            row = {"attempt_id": row["attempt_id"], "metadata": {"x": 1}}
        elif kind != "start":
            row |= final
        done = submit(store, kind, row, {"customer": "acme"})
        if not at_once:
            done.result(timeout=30)
    store.flush()
    assert_exact(store)


def test_what_waits_is_committed_together(store: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many threads' writes share one transaction, since each transaction costs the disk a flush."""
    apply, sizes = store._apply, []
    entered, gate = threading.Event(), threading.Event()

    def slow(entries: Any) -> Any:
        entered.set()
        assert gate.wait(30)
        sizes.append(len(entries))
        return apply(entries)

    monkeypatch.setattr(store, "_apply", slow)
    first = submit(store, "settle", settled(), {})
    assert entered.wait(30)
    with ThreadPoolExecutor(8) as pool:
        waiting = list(pool.map(lambda _: submit(store, "settle", settled(), {}), range(100)))
    assert not any(done.done() for done in (first, *waiting))
    gate.set()
    for done in (first, *waiting):
        done.result(timeout=30)
    assert sizes == [1, 50, 50]
    assert len(rows(store)) == 101
    assert_exact(store)


def test_a_write_cannot_be_taken_back(store: Ledger) -> None:
    """Cancelling the future of a write neither loses the record nor hurts the ledger."""
    done = submit(store, "settle", settled(), {})
    assert not done.cancel()
    write(store, "settle", settled())
    assert len(rows(store)) == 2


def test_no_error_ends_the_writing(store: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody thought of delays the records that it hits, and no other."""

    def broken(*_: Any) -> None:
        raise ValueError("unforeseen")

    with monkeypatch.context() as patch:
        patch.setattr(store, "_apply", broken)
        write(store, "settle", settled())
    assert store._spool.waiting()
    store._writer.down_until = 0
    write(store, "settle", settled())
    assert len(rows(store)) == 2
    assert_exact(store)


@pytest.mark.parametrize(
    "hostile",
    [
        {"response_model": "nul \x00 in it"},
        {"response_id": "half \ud800 of a pair"},
        {"tool": "t" * 5000, "agent": "a" * 5000, "conversation": "c" * 5000},
        {"provider": "p" * 5000, "finish_reason": "f" * 5000, "operation": "o" * 5000},
        {"prompt_tokens": 10**30, "cost_nano": 2**63},
        {"metadata": {"x": "\ud800 \x00", "y": [1, None]}},
    ],
    ids=lambda hostile: next(iter(hostile)),
)
def test_no_value_stops_the_ledger(store: Ledger, hostile: dict[str, Any]) -> None:
    """Text that a database cannot hold is cut or replaced, a number too large is unknown, and writing goes on."""
    write(store, "settle", settled(**hostile), customer="\x00\ud800", status="x" * 200)
    write(store, "settle", settled())
    assert len(rows(store)) == 2
    assert {row["name"]: row["value"] for row in rows(store, label)} == {"customer": "??", "status": "x" * 200}
    assert_exact(store)


def test_two_who_settle_the_same_attempt_at_once_count_it_once(url: str, store: Ledger) -> None:
    """Two processes that settle one attempt, new or expired, at the same moment leave exact sums."""
    others = [Ledger(url) for _ in range(4)]
    for number, kind in enumerate(["settle", "settle", "expire"] * 3):
        row = started(lease_us=1)
        if number % 3:
            write(store, "start", row)
        final = settled(row)
        for done in [submit(other, kind, final, {}) for other in others]:
            done.result(timeout=30)
        assert_exact(store)
    for other in others:
        other.close()
    assert sum(values[SUMS.index("calls")] for values in folded(store).values()) == 9


WRITER = """
import uuid
from tests.support.ledger_rows import settled, started, submit
from shared.ledger import Ledger

def run(number, together, url):
    ledger, name, done = Ledger(url), "ab"[number], []
    together.wait(60)
    for index in range(60):
        own = started(agent=name)
        done.append(submit(ledger, "start", own, {"process": name}))
        done.append(submit(ledger, "settle", settled(own), {"process": name}))
        done.append(submit(ledger, "settle", settled(started(attempt_id=uuid.UUID(int=index), agent=name)), {}))
    for each in done:
        each.result(timeout=60)
    ledger.close()
"""


def test_two_processes_write_at_once(url: str, store: Ledger) -> None:
    """Processes that share a ledger lose nothing, count nothing twice and leave exact sums."""
    store.flush()
    race(WRITER, url)
    found = rows(store)
    assert len(found) == 60 + 2 * 60
    assert {row["status"] for row in found} == {"ok"}
    assert len(rows(store, label)) == 120
    assert_exact(store)


def set_version(ledger: Ledger, major: int, minor: int) -> None:
    """Make the ledger look like another program's."""
    with ledger.writing() as connection:
        for name, value in (("major", major), ("minor", minor)):
            connection.execute(sa.update(meta).where(meta.c.name == name).values(value=value))


def test_a_newer_minor_version_keeps_working(url: str, store: Ledger) -> None:
    """A column and a table that only a newer program knows do not disturb this one, and stay."""
    store.check_writable()
    with store.writing() as connection:
        connection.execute(sa.text("ALTER TABLE attempt ADD COLUMN invented_later TEXT DEFAULT 'x'"))
        connection.execute(sa.text("CREATE TABLE invented_later (id INTEGER)"))
    set_version(store, MAJOR, MINOR + 1)
    older = Ledger(url)
    write(older, "start", row := started())
    write(older, "settle", settled(row))
    older.close()
    assert only(store)["status"] == "ok"
    assert_exact(store)
    assert {row["name"]: row["value"] for row in rows(store, meta)} == {"major": MAJOR, "minor": MINOR + 1}


def test_a_newer_major_version_is_refused_with_a_sentence(url: str, tmp_path: Path) -> None:
    """A ledger that this program would damage is neither read nor written, and nothing is lost meanwhile."""
    newer = Ledger(url)
    newer.check_writable()
    set_version(newer, MAJOR + 1, 0)
    older = Ledger(url)
    with pytest.raises(StoreError, match=rf"newer version of agentswarm-tools \(schema {MAJOR + 1}\.0") as caught:
        rows(older)
    assert "Upgrade agentswarm-tools" in str(caught.value)
    submit(older, "settle", settled(), {}).result(timeout=30)
    assert older._spool.waiting()
    set_version(newer, MAJOR, MINOR)
    assert rows(newer) == []
    older._writer.down_until = 0
    older.flush()
    assert len(rows(newer)) == 1
    newer.close()


FORK = """
import os, sys
from shared.ledger import get_ledger
from tests.support.ledger_rows import held_nano, only, rows, settled, submit, write
url = sys.argv[1]
parent = get_ledger(url)
write(parent, "settle", settled(agent="parent"))
child = os.fork()
if child == 0:
    assert get_ledger(url) is not parent
    write(get_ledger(url), "settle", settled(agent="child"))
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
write(parent, "settle", settled(agent="parent"))
print(sorted(row["agent"] for row in rows(parent)))
"""


def test_a_forked_process_has_a_ledger_of_its_own(url: str) -> None:
    """No connection crosses a fork: parent and child both go on writing, and the child can end."""
    done = run(FORK, url)
    assert (done.stdout, done.stderr) == ("['child', 'parent', 'parent']\n", "")


def test_what_was_handed_over_last_is_written_before_the_program_ends(url: str) -> None:
    """A program that ends without waiting for its last record does not lose it."""
    code = (
        "import sys; from shared.ledger import Ledger; from tests.support.ledger_rows import settled, submit;"
        "[submit(Ledger(sys.argv[1]), 'settle', settled()) for _ in range(2)]"
    )
    assert run(code, url).returncode == 0
    ledger = Ledger(url)
    assert len(rows(ledger)) == 2
    ledger.close()


def test_settling_again_keeps_what_an_event_has_added(store: Ledger) -> None:
    """An entry that is replayed after it was committed takes no metadata away."""
    row = settled(metadata={"images": ["a.png"]})
    write(store, "settle", row)
    write(store, "metadata", {"attempt_id": row["attempt_id"], "metadata": {"note": "kept"}})
    write(store, "settle", row)
    assert only(store)["metadata"] == {"images": ["a.png"], "note": "kept"}
    write(store, "settle", row | {"metadata": None})
    assert only(store)["metadata"] == {"images": ["a.png"], "note": "kept"}


def test_a_flood_of_events_is_committed_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that never stop coming are committed after a second all the same."""
    store = Ledger(f"sqlite:///{tmp_path / 'new.sqlite3'}")
    committed_: list[int] = []
    monkeypatch.setattr(store, "_apply", lambda items: committed_.append(len(items)))
    writer, overdue = store._writer, Item(Event({}), since=time.monotonic() - _MAX_DELAY_S)
    for _ in range(100):
        writer._take(Item(Event({})))
        writer._start_write()
    assert writer._job is None
    writer._waiting.insert(0, overdue)
    writer._start_write()
    assert writer._job is not None
    assert len(writer._job.items) == MAX_BATCH


def test_an_error_that_comes_too_late_is_not_printed() -> None:
    """A write that fails after its waiter has given up says nothing to the host program's event loop."""
    said: list[dict[str, Any]] = []

    async def give_up() -> None:
        loop, write_ = asyncio.get_running_loop(), Future[Admission]()
        loop.set_exception_handler(lambda _loop, context: said.append(context))
        with pytest.raises(TimeoutError):
            await committed(write_, patience=0)
        write_.set_exception(StoreError("The ledger cannot be written"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gc.collect()

    asyncio.run(give_up())
    assert said == []


texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20)
values = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts
)
ROWS = st.fixed_dictionaries(
    {
        "ts_us": st.integers(-(10**12), 4 * 10**15),
        "cost_nano": st.none() | st.integers(-(2**53), 2**53),
        "model": texts,
        "agent": st.none() | texts,
        "stream": st.booleans(),
        "cost_is_lower_bound": st.booleans(),
        "units": st.none() | st.dictionaries(texts, st.integers(0, 2**53), max_size=2),
        "metadata": st.none() | st.dictionaries(texts, values | st.lists(values, max_size=2), max_size=3),
    }
)


@settings(max_examples=at_most(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS, st.dictionaries(st.sampled_from(["customer", "team"]), texts))
def test_the_database_writes_what_is_in_a_row(store: Ledger, changes: dict[str, Any], labels: dict[str, str]) -> None:
    """A record has what the ledger was given, to the nano-dollar and the microsecond, and null for an unknown cost."""
    row = settled(**changes)
    with store.changing() as connection:
        connection.execute(sa.insert(attempt), row)
        for name, value in labels.items():
            connection.execute(sa.insert(label), {"attempt_id": row["attempt_id"], "name": name, "value": value})
    day = Window(changes["ts_us"], changes["ts_us"] + 1, ZoneInfo("UTC"))
    [record] = [each for each in attempt_records(store, day) if each["attempt_id"] == row["attempt_id"]]
    assert {name: record[name] for name in changes if name in record} == {
        name: value for name, value in changes.items() if name != "ts_us"
    }
    assert record["labels"] == labels
    assert (record["time"] - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) == changes["ts_us"]
    exact = {
        line["attempt_id"]: line
        for line in (json.loads(text, parse_float=Decimal) for text in attempt_lines(store, day))
    }
    cost, in_usd = changes["cost_nano"], exact[str(row["attempt_id"])]["cost_usd"]
    assert in_usd is None if cost is None else in_usd * 10**9 == cost
    lines = [json.loads(text) for text in attempt_lines(store)]
    assert [json.loads(text) for text in attempt_values(store)] == [list(each.values()) for each in lines]
    assert all(list(each) == list(RECORD_NAMES) for each in lines)


def test_records_in_pages_are_each_there_once(store: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts of one moment, on the border of two pages, are read once and in order."""
    monkeypatch.setattr("shared.ledger.records._PAGE", 2)
    for number in range(5):
        write(store, "settle", settled(ts_us=NOON_US + number // 3))
    found = [(each["time"], str(each["attempt_id"])) for each in attempt_records(store)]
    assert len(set(found)) == 5
    assert found == sorted(found)
