"""Old records go, and reports stay: to the nano-dollar with their sums, and never less in silence without them."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from shared.budget import Budget, Limit
from shared.errors import InvalidRequest, StoreError
from shared.internal.clock import now_us
from shared.ledger import accounts
from shared.ledger.accounts import statuses_of_all
from shared.ledger.closing import close_month, closed_months
from shared.ledger.engine import Patience
from shared.ledger.forgetting import FORGOTTEN, forget, known_of
from shared.ledger.grouped import all_grouped, label_names
from shared.ledger.health import latencies
from shared.ledger.maintenance import problems, repair, vacuum
from shared.ledger.query import Filter, Window
from shared.ledger.records import attempt_records
from shared.ledger.reservations import open_reservations, release
from shared.ledger.retention import prunable, prune
from shared.ledger.schema import alert, event, label, metadata, sums as stored_sums
from shared.ledger.sqlite_library import library
from shared.ledger.store import Ledger
from shared.reports.periods import span_of
from tests.support.ledger_rows import begin, fresh, rows, settled, started, submit, write

ZONES = tuple(map(ZoneInfo, ("UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns", "Pacific/Apia")))
FIRST_US = 1_779_840_000_000_000  # 2026-05-27T00:00Z
DAY_US = 86_400 * 10**6
FOREVER = Limit(Budget(1_000.0, "total", "customer"))


def fill(store: Ledger, days: int = 6) -> None:
    """Some days of calls by customers of teams, and of nobody, with unknown costs, at all quarters of an hour."""
    chance = random.Random(7)
    for number in range(300):
        unknown = {"cost_nano": None, "cost_source": "unknown", "unpriced_calls": 1} if number % 11 == 0 else {}
        row = settled(
            started(ts_us=FIRST_US + chance.randrange(days * DAY_US)),
            **{
                "cost_nano": chance.randrange(10**9),
                "model": chance.choice(["openai/a", "openai/b"]),
                "tool": chance.choice([None, "Writer"]),
                "agent": chance.choice([None, "Boss"]),
                "duration_us": chance.randrange(10**7),
                **unknown,
            },
        )
        names = {"customer": chance.choice(["acme", "zoe"]), "team": chance.choice(["red", "blue"])}
        submit(store, "settle", row, names if number % 5 else {})
    store.flush()


def before(day: int, zone: str = "UTC") -> Window:
    """Until a day of June 2026."""
    until = (
        datetime(2026, 6, day, tzinfo=ZoneInfo(zone)) if day > 0 else datetime(2026, 5, 31 + day, tzinfo=ZoneInfo(zone))
    )
    return Window(0, round(until.timestamp() * 1e6), ZoneInfo(zone))


BY = (
    (),
    ("day",),
    ("day", "model"),
    ("tool",),
    ("agent",),
    ("provider",),
    ("customer",),
    ("day", "customer"),
    ("hour",),
)
WHICH = (Filter(), Filter({"customer": "acme"}), Filter(columns={"model": "openai/a"}), Filter(any_conversation=False))


def reports(store: Ledger, zones: Sequence[ZoneInfo] = ZONES) -> dict[Any, Any]:
    """What is asked of whole days of time zones, by single dimensions: each zone and filter, in one of two spans."""
    found: dict[Any, Any] = {}
    for number, zone in enumerate(zones):
        for other, (since, until) in enumerate((("2026-05-20", "2026-06-10"), ("2026-05-29", "2026-05-30"))):
            span = span_of(since=since, until=until, zone=zone)
            for which in WHICH[(number + other) % 2 :: 2]:
                # Of one label's value, or of nobody, there are no sums by labels, nor by hours of odd zones.
                is_of_some = which.labels or not which.any_conversation
                by = [keys for keys in BY if not (is_of_some and {"customer", "hour"} & {*keys})]
                for keys, grouped in zip(by, all_grouped(store, span, by, which), strict=True):
                    assert not grouped.is_incomplete, (zone, since, keys, which)
                    found[zone.key, since, str(which), keys] = grouped.sums
    return found


def test_with_their_sums_all_reports_stay(store: Ledger) -> None:
    """
    Pruned with --keep-sums, days, models, tools, agents, customers and the rest are the same in five time zones.

    Days begin within an hour in Kathmandu, at its beginning in UTC.
    """
    fill(store)
    was, span = reports(store), before(-1, "Asia/Kathmandu")
    speeds = latencies(store, span_of(since="2026-05-20", until="2026-06-10", zone=ZONES[0]), Filter())
    assert (found := prunable(store, span)).records > 100
    prune(store, span, keep_sums=True)
    assert prunable(store, span).records == 0
    assert len(rows(store)) == 300 - found.records
    assert {row["attempt_id"] for row in rows(store, label)} <= {row["attempt_id"] for row in rows(store)}
    assert reports(store) == was
    assert latencies(store, span_of(since="2026-05-20", until="2026-06-10", zone=ZONES[0]), Filter()) == speeds
    assert list(problems(store)) == []
    assert label_names(store) == ["customer", "team"]
    prune(store, before(1), keep_sums=True)  # and again, for a later day, of another zone
    with store.changing() as connection:
        connection.execute(sa.update(stored_sums).where(stored_sums.c.start > 1_780_400_000).values(cost_nano=1))
    repair(store)
    assert reports(store) == was
    prune(store, before(5), keep_sums=True)
    assert rows(store) == []
    assert reports(store) == was
    assert label_names(store) == ["customer", "team"]


def test_what_only_records_say_is_said_to_be_missing(store: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    """Pairs of labels, parts of a quarter of an hour and exports of pruned time say that records are missing."""
    fill(store)
    prune(store, before(-1), keep_sums=True)
    span = span_of(since="2026-05-27", until="2026-06-10", zone=ZONES[0])
    pair, single = all_grouped(store, span, (("customer", "team"), ("customer",)))
    assert (pair.is_incomplete, single.is_incomplete) == (True, False)
    assert pair.removed_us == single.removed_us == before(-1).until_us
    odd = Window(FIRST_US + DAY_US + 1, span.until_us, ZONES[0])
    assert all_grouped(store, odd, ((),))[0].is_incomplete
    later = span_of(since="2026-05-30", until="2026-06-10", zone=ZONES[0])
    (whole,) = all_grouped(store, later, (("customer", "team"),))
    assert (whole.is_incomplete, whole.removed_us) == (False, 0)
    assert sum(each["cost_nano"] or 0 for each in attempt_records(store)) < single.sums["acme",]["cost_nano"] * 3
    assert "Records before 2026-05-30 00:00 UTC were removed" in caplog.text


def test_without_their_sums_the_time_is_missing(store: Ledger) -> None:
    """Pruned without sums, windows that begin earlier say that they are incomplete, and later ones are as before."""
    fill(store)
    later = span_of(since="2026-05-31", until="2026-06-10", zone=ZONES[2])
    was = all_grouped(store, later, BY)
    prune(store, before(-1, "Asia/Kathmandu"), keep_sums=False)
    assert all_grouped(store, later, BY) == was
    whole = span_of(since="2026-05-27", until="2026-06-10", zone=ZONES[2])
    (total, by_customer) = all_grouped(store, whole, ((), ("customer",)))
    assert total.is_incomplete
    assert by_customer.is_incomplete
    rest = sum(row["cost_nano"] or 0 for row in rows(store))
    assert total.sums[()]["cost_nano"] == sum(sums["cost_nano"] for sums in by_customer.sums.values()) == rest
    assert list(problems(store)) == []
    ends = [row["start"] + row["grain"] for row in rows(store, stored_sums)]
    assert min(ends) > before(-1, "Asia/Kathmandu").until_us // 10**6


def test_what_is_unknown_stays_and_what_is_under_way_is_waited_for(store: Ledger) -> None:
    """Records that reserve something, or whose outcome is unknown, are kept; a started one stops the pruning."""
    kept = settled(ts_us=FIRST_US, status="cancelled", reserved_nano=50)
    lost = settled(ts_us=FIRST_US, status="unsettled", cost_nano=None, cost_source="unknown")
    running = started(ts_us=FIRST_US)
    for row in (kept, lost, settled(ts_us=FIRST_US)):
        write(store, "settle", row)
    write(store, "start", running)
    with pytest.raises(InvalidRequest, match="1 request from before 2026-06-01 00:00 is still under way"):
        prune(store, before(1), keep_sums=True)
    write(store, "settle", settled(running))
    prune(store, before(1), keep_sums=True)
    assert {row["attempt_id"] for row in rows(store)} == {kept["attempt_id"], lost["attempt_id"]}
    assert [each.reserved_nano for each in open_reservations(store)] == [50]
    release(store, before_us=now_us())
    assert open_reservations(store) == []
    write(store, "settle", lost | {"status": "ok", "cost_nano": 70, "cost_source": "table"})
    (total,) = all_grouped(store, Window(0, now_us(), ZONES[0]), ((),))
    assert (total.sums[()]["cost_nano"], total.is_incomplete) == (7000 * 3 + 70, False)


def test_an_interrupted_pruning_goes_on(store: Ledger) -> None:
    """Stopped after a page of many, reports are the same at once and after the rest was removed."""
    fill(store)
    was = reports(store, ZONES[:3:2])

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    sizes: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shared.ledger.retention._PAGE", 20)
        with pytest.raises(KeyboardInterrupt):
            prune(store, before(-1), keep_sums=True, progress=stop)
        assert len(rows(store)) == 280
        assert reports(store, ZONES[:3:2]) == was
        assert list(problems(store)) == []
        prune(store, before(-1), keep_sums=True, progress=sizes.append)
    assert max(sizes) == 20
    assert reports(store, ZONES[:3:2]) == was


def test_late_rows_of_a_pruned_time_are_dated_to_now(store: Ledger) -> None:
    """What comes late for a time that was pruned is entered now, and is in the totals once."""
    fill(store)
    prune(store, before(-1), keep_sums=True)
    write(store, "settle", settled(ts_us=FIRST_US, cost_nano=123))
    (row,) = [each for each in rows(store) if each["happened_us"]]
    assert (row["happened_us"], row["ts_us"] > before(1).until_us) == (FIRST_US, True)
    assert list(problems(store)) == []


def test_budgets_count_what_was_removed(store: Ledger) -> None:
    """A total budget still shows what was spent before the pruning, and a running window stops it."""
    for name in ("acme", "acme", "zoe"):
        write(store, "settle", settled(ts_us=FIRST_US), customer=name)
    for name in ("acme", "zoe"):
        begin(store, fresh(bound_nano=0), FOREVER, customer=name)
    prune(store, before(1), keep_sums=True)
    repair(store)
    with store.reading() as connection:
        found = {each.whose: each.counted_nano for each in statuses_of_all(connection, FOREVER, now_us())}
    assert found == {("acme",): 14000, ("zoe",): 7000}
    begin(store, fresh(bound_nano=0), Limit(Budget(1.0, "month")))
    until = now_us() // (900 * 10**6) * 900 * 10**6
    with pytest.raises(InvalidRequest, match="A budget counts what was spent since"):
        prune(store, Window(0, until, ZONES[0]), keep_sums=True)


def test_a_closed_month_is_checked_by_its_sums(store: Ledger) -> None:
    """A closed month keeps its figures when its records go; without its sums it cannot be checked."""
    fill(store, days=4)
    may = span_of(since="2026-05", until="2026-05", zone=ZONES[1])
    closed = close_month(store, "2026-05", may)
    prune(store, before(1, "Europe/Berlin"), keep_sums=True)
    assert closed_months(store) == [(closed, closed.figures)]
    prune(store, before(1, "Europe/Berlin"), keep_sums=False)
    assert closed_months(store) == [(closed, None)]
    assert list(problems(store)) == []


def test_events_go_too(store: Ledger) -> None:
    """Events from before the day are removed."""
    for number, ts_us in enumerate((FIRST_US, now_us())):
        write(store, "event", {"event_id": fresh()["attempt_id"], "ts_us": ts_us, "event_type": f"e{number}"})
    store.flush()
    prune(store, before(1), keep_sums=True)
    assert [row["event_type"] for row in rows(store, event)] == ["e1"]


def everything(store: Ledger) -> str:
    """All that is stored, as text."""
    return " ".join(str(row) for table in metadata.sorted_tables for row in rows(store, table))


OTHERS = (Filter(), Filter({"customer": "zoe"}), Filter({"team": "red"}), Filter(any_conversation=False))


def of_others(store: Ledger) -> list[Any]:
    span = span_of(since="2026-05-20", until="2026-06-10", zone=ZONES[1])
    return [all_grouped(store, span, ((), ("day",), ("model",), ("team",)), which) for which in OTHERS]


@pytest.mark.parametrize("has_pruned", [False, True])
def test_forgetting_leaves_the_money(store: Ledger, tmp_path: Path, has_pruned: bool) -> None:
    """A customer's name is nowhere any more, its costs are under a name that says nothing, all others stay."""
    fill(store, days=4)
    private = {"images": ["acme-logo.png"], "image_tokens_saved": 5}
    named: list[dict[str, Any]] = [{"operation": "vision", "metadata": private}, {"adjusts": "acme invoice"}]
    for number, more in enumerate(named):
        row = settled(ts_us=FIRST_US + number, run="acme-run", key_alias="customer=acme", response_id="acme-1", **more)
        write(store, "settle", row | {"conversation": "acme-chat"}, customer="acme", team="red")
    happened = {"event_id": fresh()["attempt_id"], "ts_us": FIRST_US + 5 * DAY_US, "event_type": "x", "run": "acme-run"}
    write(store, "event", happened | {"labels": {"customer": "acme"}, "metadata": {"note": "acme"}})
    begin(store, fresh(bound_nano=0), FOREVER, customer="acme")
    with store.changing() as connection:
        accounts.store_budget(connection, "customer=acme", Budget(5.0, "month", "customer", value="acme"))
        times = dict.fromkeys(("since_us", "until_us", "limit_nano", "spent_nano", "reserved_nano", "at_us"), 0)
        times |= {"lease_us": 0, "again_us": 0, "tries": 0, "alert_id": fresh()["attempt_id"], "threshold": 80}
        whose = {"dimensions": '["label:customer"]', "whose": '["acme"]', "kind": "budget", "window": "month"}
        connection.execute(sa.insert(alert), {**times, **whose})
    store._spool.add_dead_letter(("settle", {"run": "acme-run", "metadata": {"a": "acme"}}, {"customer": "acme"}))
    if has_pruned:
        prune(store, before(-1), keep_sums=True)
    was = of_others(store)
    spent = all_grouped(store, Window(0, now_us(), ZONES[0]), ((),), Filter({"customer": "acme"}))[0].sums
    found = known_of(store, "customer", "acme")
    assert (found.events, found.accounts, found.budgets, bool(found.sums)) == (1, 1, 1, True)
    forget(store, "customer", "acme")
    assert of_others(store) == was
    now = all_grouped(store, Window(0, now_us(), ZONES[0]), ((),), Filter({"customer": FORGOTTEN}))[0].sums
    assert now == spent
    assert "acme" not in everything(store)
    assert "acme" not in "".join(path.read_text() for path in store.dead_letters())
    assert store.dead_letters()
    assert list(problems(store)) == [
        f"some records were rejected and are in no report; check {store.dead_letters()[0]}, then delete it"
    ]
    assert not known_of(store, "customer", "acme")
    forget(store, "customer", "acme")  # a second time there is nothing to do
    assert of_others(store) == was
    vacuum(store)
    assert not any(b"acme" in path.read_bytes() for path in tmp_path.glob("ledger.sqlite3*"))


def test_vacuum_gives_the_room_back(store: Ledger) -> None:
    """After pruning, vacuum makes a SQLite file smaller, and says so; a PostgreSQL table is no larger."""
    fill(store)
    prune(store, before(5), keep_sums=False)
    was, now = vacuum(store)
    assert now < was if store.file is not None else 0 < now <= was
    assert_readable(store)


def assert_readable(store: Ledger) -> None:
    write(store, "settle", settled(fresh()))
    assert list(problems(store)) == []


def test_vacuum_says_that_the_ledger_is_used(tmp_path: Path) -> None:
    """While another program writes, vacuum gives up in time and says why."""
    path = tmp_path / "ledger.sqlite3"
    with closing(Ledger(f"sqlite:///{path}", Patience(0.2, 5.0))) as store:
        write(store, "settle", settled(fresh()))
        with closing(library().connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="another program uses it"):
                vacuum(store)
            other.execute("ROLLBACK")
        vacuum(store)


def test_pruning_beside_writers_loses_nothing(store: Ledger) -> None:
    """Records that are settled while others are pruned, of that time and of now, are in the totals once."""
    fill(store)
    go = threading.Barrier(3)

    def settle_some() -> None:
        with closing(store.with_patience(30.0)) as other:
            go.wait()
            for number in range(30):
                write(other, "settle", settled(ts_us=FIRST_US + number * DAY_US // 10, cost_nano=3), customer="zoe")
                write(other, "settle", settled(fresh(), cost_nano=3), customer="acme")

    whole = Window(0, now_us() + DAY_US, ZONES[0])
    (was,) = all_grouped(store, whole, ((),))
    writers = [threading.Thread(target=settle_some) for _ in range(2)]
    for each in writers:
        each.start()
    go.wait()
    prune(store, before(-1), keep_sums=True)
    for each in writers:
        each.join()
    total, by_customer = all_grouped(store, whole, ((), ("customer",)))
    assert total.sums[()]["cost_nano"] == was.sums[()]["cost_nano"] + 3 * 120
    assert sum(sums["cost_nano"] for sums in by_customer.sums.values()) == total.sums[()]["cost_nano"]
    assert not by_customer.is_incomplete
    assert list(problems(store)) == []
