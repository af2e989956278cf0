"""Closed months: whatever comes late, their figures stay, and everything is counted once."""

from __future__ import annotations

import csv
import threading
import uuid
from contextlib import closing
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings, strategies as st

from shared.budget import Budget, Limit
from shared.errors import InvalidRequest
from shared.internal.clock import now_us
from shared.ledger import sums
from shared.ledger.accounts import statuses, statuses_of_all, with_parts
from shared.ledger.adjustments import adjustment, adjustment_of, attempt_of, enter, priced_attempts, repriced
from shared.ledger.closing import ClosedMonth, as_entered, close_month, closed_months
from shared.ledger.export import write_records
from shared.ledger.maintenance import problems, repair
from shared.ledger.query import Window
from shared.ledger.records import attempt_records
from shared.ledger.reservations import open_reservations, release
from shared.ledger.row import AttemptRow
from shared.ledger.schema import account, attempt, closed_month, metadata
from shared.ledger.store import Ledger
from shared.reports.periods import span_of
from tests.support.examples import at_most
from tests.support.ledger_rows import assert_exact, begin, fresh, rows, settled, started, write

BERLIN = ZoneInfo("Europe/Berlin")
MONTH = "2026-05"
SPAN = span_of(since=MONTH, until=MONTH, zone=BERLIN)
FOREVER = Limit(Budget(1_000.0, "total"))
THIS_MONTH = Limit(Budget(1_000.0, "month"))
HOUR_US = 3600 * 10**6


def inside(hours: int = 1, **changes: Any) -> dict[str, Any]:
    """A settled attempt, so many hours after the month began."""
    return settled(**{"ts_us": SPAN.since_us + hours * HOUR_US, **changes})


def expired(**changes: Any) -> dict[str, Any]:
    """An attempt of the month that was swept up: its outcome is unknown, and it reserves its bound."""
    unknown = {"status": "unsettled", "cost_nano": None, "cost_source": "unknown", "reserved_nano": 9000}
    counts = {"calls": 0, "failed_calls": 1, "unpriced_calls": 1, "prompt_tokens": None, "completion_tokens": None}
    return inside() | unknown | counts | changes


def close(store: Ledger, month: str = MONTH, zone: ZoneInfo = BERLIN) -> ClosedMonth:
    return close_month(store, month, span_of(since=month, until=month, zone=zone))


def of_month(store: Ledger) -> list[tuple[Any, ...]]:
    """The rows of the month, with all that is in them."""
    query = sa.select(attempt).where(attempt.c.ts_us >= SPAN.since_us, attempt.c.ts_us < SPAN.until_us)
    with store.reading() as connection:
        return sorted((tuple(map(str, row)) for row in connection.execute(query)), key=str)


def total(store: Ledger, name: str = "cost_nano") -> int:
    return sum(row[name] or 0 for row in rows(store) if row["status"] != "started")


def counted(store: Ledger, limit: Limit) -> tuple[int, int]:
    """What a budget counts now, and how much of it is reserved: as stored, and as `budget show` adds it up."""
    with store.reading() as connection:
        (stored,) = (with_parts(connection, each) for each in statuses(connection, fresh(), {}, [limit]))
        (added,) = statuses_of_all(connection, limit, now_us())
    assert added.counted_nano == stored.counted_nano
    return stored.counted_nano, stored.reserved_nano


def test_a_closed_month_has_its_figures(store: Ledger) -> None:
    """Closing stores what the month adds up to in the zone of the books, and a later look finds the same."""
    write(store, "settle", inside(0, ts_us=SPAN.since_us))
    write(store, "settle", inside(0, ts_us=SPAN.until_us - 1))
    write(store, "settle", inside(0, ts_us=SPAN.until_us))
    write(store, "settle", expired())
    found = close(store)
    assert (found.month, found.zone, found.figures.cost_nano, found.figures.calls) == (MONTH, "Europe/Berlin", 14000, 2)
    assert (found.figures.requests, found.figures.unknown_requests, found.figures.reserved_nano) == (3, 1, 9000)
    assert closed_months(store) == [(found, found.figures)]


def test_a_month_is_closed_once_and_in_order(store: Ledger) -> None:
    """A month that is closed, not over, before a closed one, after an open one or in another zone is refused."""
    write(store, "settle", inside())
    now = datetime.now(BERLIN)
    with pytest.raises(InvalidRequest, match="is not over"):
        close(store, f"{now:%Y-%m}")
    with pytest.raises(InvalidRequest, match=r"2026-05 is open and has requests\..* Close 2026-05 first"):
        close(store, "2026-06")
    close(store)
    with pytest.raises(InvalidRequest, match=r"was closed on .* with \$0\.000007000 for 1 call"):
        close(store)
    with pytest.raises(InvalidRequest, match="all before that is closed"):
        close(store, "2026-04")
    with pytest.raises(InvalidRequest, match="books are in the time zone Europe/Berlin"):
        close(store, "2026-06", ZoneInfo("UTC"))
    assert close(store, "2026-07").figures.requests == 0


def test_what_is_under_way_must_end_first(store: Ledger) -> None:
    """Attempts of the month whose lease has ended are settled by closing; others stop it, and it says how many."""
    write(store, "start", started(ts_us=SPAN.since_us, lease_us=1))
    running = started(ts_us=SPAN.until_us - 1)
    write(store, "start", running)
    with pytest.raises(InvalidRequest, match="1 request from before 2026-06-01 00:00 is still under way"):
        close(store)
    write(store, "settle", settled(running))
    assert (found := close(store).figures).requests == 2
    assert (found.unknown_requests, found.reserved_nano) == (1, 9000)


def test_a_late_row_is_dated_to_now(store: Ledger) -> None:
    """A row of a closed month that comes later counts now, keeps when it happened, and counts once when replayed."""
    close(store)
    late = inside()
    before = now_us()
    for kind, row in (("start", started(ts_us=late["ts_us"], attempt_id=late["attempt_id"])), ("settle", late)):
        write(store, kind, row)
    write(store, "settle", late)
    (row,) = rows(store)
    assert before <= row["ts_us"] <= now_us()
    assert (row["happened_us"], row["cost_nano"], row["bucket"]) == (
        late["ts_us"],
        7000,
        row["ts_us"] // (900 * 10**6),
    )
    assert_exact(store)


def test_the_spool_is_dated_too(store: Ledger) -> None:
    """What waited in the spool while the month was closed is entered now, start and end of an attempt together."""
    close(store)
    late = inside()
    start = started(ts_us=late["ts_us"], attempt_id=late["attempt_id"], call_id=late["call_id"])
    for kind, row in (("start", start), ("settle", late)):
        store._spool.add((kind, AttemptRow(**row).columns(), {"customer": "acme"}))
    store.flush()
    write(store, "settle", settled(fresh()))
    store.flush()
    (row,) = [each for each in rows(store) if each["happened_us"]]
    assert (row["happened_us"], row["status"]) == (late["ts_us"], "ok")
    assert of_month(store) == []
    assert_exact(store)


def test_late_truth_is_an_adjustment(store: Ledger) -> None:
    """An attempt that was swept up keeps its row when its end is reported after the close; the rest counts now."""
    begin(store, fresh(bound_nano=0), FOREVER)
    begin(store, fresh(bound_nano=0), THIS_MONTH)
    row = expired()
    write(store, "settle", row, customer="acme")
    found, kept = close(store), of_month(store)
    answer = settled(started(ts_us=row["ts_us"], attempt_id=row["attempt_id"], call_id=row["call_id"]), cost_nano=4000)
    for _ in range(2):  # a second time adds nothing
        write(store, "settle", answer, customer="acme")
    assert of_month(store) == kept
    (late,) = [each for each in rows(store) if each["adjustment_kind"]]
    assert (late["adjusts"], late["happened_us"], late["operation"]) == (
        str(row["attempt_id"]),
        row["ts_us"],
        "adjustment",
    )
    assert (late["cost_nano"], late["reserved_nano"], late["calls"], late["unpriced_calls"]) == (4000, -9000, 0, 0)
    assert (late["prompt_tokens"], late["completion_tokens"]) == (10, 20)
    assert counted(store, FOREVER) == (4000, 0)
    assert counted(store, THIS_MONTH) == (4000, 0)
    write(store, "settle", answer | {"cost_nano": 5000}, customer="acme")  # and a third word only what is new
    assert total(store) == 5000
    assert closed_months(store) == [(found, found.figures)]
    assert_exact(store)


def test_a_release_leaves_the_month_and_gives_no_room(store: Ledger) -> None:
    """A reservation of a closed month is freed where it was taken: not in a window that began after it."""
    begin(store, fresh(bound_nano=0), THIS_MONTH)
    row = expired()
    write(store, "settle", row)
    begin(store, fresh(bound_nano=0), FOREVER)
    found, kept = close(store), of_month(store)
    assert counted(store, FOREVER) == (9000, 9000)
    assert [each.reserved_nano for each in release(store, call_id=row["call_id"])] == [9000]
    assert release(store, before_us=now_us()) == open_reservations(store) == []
    assert of_month(store) == kept
    assert counted(store, FOREVER) == (0, 0)
    assert counted(store, THIS_MONTH) == (0, 0)
    assert total(store, "reserved_nano") == 0
    repair(store)  # the running totals are computed from the rows again
    begin(store, fresh(bound_nano=0), FOREVER, THIS_MONTH)
    assert counted(store, FOREVER) == counted(store, THIS_MONTH) == (0, 0)
    assert closed_months(store) == [(found, found.figures)]


def test_adjustments_are_dated_to_now(store: Ledger) -> None:
    """An adjustment of a closed month counts in the budgets of now, and refers to the row that it corrects."""
    begin(store, fresh(bound_nano=0), THIS_MONTH)
    row = inside()
    write(store, "settle", row)
    found = close(store)
    of_call = adjustment_of(attempt_of(store, row["call_id"]), -500, "manual")
    assert as_entered(store, of_call).happened_us == row["ts_us"]
    enter(store, of_call, adjustment(-20, row["ts_us"], "manual", adjusts="invoice 7"))
    assert counted(store, THIS_MONTH) == (-520, 0)
    by_reference = {each["adjusts"]: each["happened_us"] for each in rows(store) if each["adjustment_kind"]}
    assert by_reference == {str(row["attempt_id"]): row["ts_us"], "invoice 7": row["ts_us"]}
    assert closed_months(store) == [(found, found.figures)]


def test_repricing_a_closed_month_twice_adds_nothing(store: Ledger) -> None:
    """Repricing finds what earlier repricing has entered for a closed month."""
    unknown = {"cost_nano": None, "cost_source": "unknown", "unpriced_calls": 1}
    write(store, "settle", inside(units={"input": 10, "output": 20}) | unknown)
    close(store)
    for after in (9000, 9500):
        ((row, before),) = priced_attempts(store, SPAN.since_us, SPAN.until_us)
        enter(store, *[repriced(row, before, after, "prices:x")] * 2)
    ((_, before),) = priced_attempts(store, SPAN.since_us, SPAN.until_us)
    assert before == 9500
    assert total(store) == 9500
    assert total(store, "unpriced_calls") == 1  # of the month; none of the time since is negative


def test_check_finds_a_closed_month_that_was_changed(store: Ledger) -> None:
    """`ledger check` names a closed month whose stored figures are not those of its rows."""
    write(store, "settle", inside())
    close(store)
    assert list(problems(store)) == []
    with store.changing() as connection:
        connection.execute(sa.update(closed_month).values(cost_nano=1))
    assert "2026-05" in " ".join(problems(store))


def test_a_close_and_late_rows_at_once(store: Ledger) -> None:
    """Rows that are settled while the month is being closed are in its figures, or are dated to after it."""
    for number in range(40):
        write(store, "settle", inside(number))
    go = threading.Barrier(4)

    def settle_some() -> None:
        with closing(Ledger(store._url.render_as_string(hide_password=False))) as other:
            go.wait()
            for number in range(40):
                write(other, "settle", inside(number))

    writers = [threading.Thread(target=settle_some) for _ in range(3)]
    for each in writers:
        each.start()
    go.wait()
    found = close(store)
    for each in writers:
        each.join()
    assert closed_months(store) == [(found, found.figures)]
    assert found.figures.cost_nano == 7000 * len(of_month(store))
    assert total(store) == 7000 * 160


# Whatever comes after the close: small programs of random steps.

costs = st.none() | st.integers(0, 10**12)
late_steps = st.lists(
    st.one_of(
        st.tuples(st.just("late"), st.integers(0, 900), costs),
        st.tuples(st.just("settle"), st.integers(0, 30), costs),
        st.tuples(st.just("credit"), st.integers(0, 900), st.integers(-(10**9), 10**9)),
        st.tuples(st.just("adjust"), st.integers(0, 30), st.integers(-(10**9), 10**9)),
        st.tuples(st.just("release"), st.integers(0, 30), st.none()),
        st.tuples(st.just("annotate"), st.integers(0, 30), st.integers(1, 10**6)),
        st.tuples(st.just("now"), st.none(), costs),
        st.tuples(st.just("fold"), st.none(), st.none()),
        st.tuples(st.just("rebuild"), st.none(), st.none()),
    ),
    max_size=20,
)


def with_cost(row: dict[str, Any], cost: int | None) -> dict[str, Any]:
    unknown = {"cost_nano": None, "cost_source": "unknown", "reserved_nano": 9000, "unpriced_calls": 1}
    return row | ({"cost_nano": cost, "unpriced_calls": 0} if cost is not None else unknown)


def carry_out(store: Ledger, known: list[dict[str, Any]], program: list[tuple[str, Any, Any]]) -> int:
    """Do what comes late; returns what all of it adds to the cost, by what each attempt last said."""
    truth = {row["attempt_id"]: row["cost_nano"] or 0 for row in known}
    more = -sum(truth.values())
    for what, first, second in program:
        row = known[(first or 0) % len(known)]
        match what:
            case "late" | "now":
                new = fresh() if what == "now" else started(ts_us=SPAN.since_us + first * HOUR_US // 2)
                known.append(new := with_cost(settled(new), second))
                truth[new["attempt_id"]] = second or 0
                write(store, "settle", new, customer="acme")
            case "settle":
                write(store, "settle", with_cost(settled(row), second), customer="acme")
                is_closed = row["ts_us"] < SPAN.until_us and row in known[:CLOSED]
                if second is not None or not is_closed:  # a cost that is known does not become unknown again
                    truth[row["attempt_id"]] = second or 0
            case "credit":
                enter(store, adjustment(second, SPAN.since_us + first * HOUR_US // 2, "manual", adjusts="credit"))
                more += second
            case "adjust":
                enter(store, adjustment_of(AttemptRow(**row), second, "manual"))
                more += second
            case "release":
                release(store, call_id=row["call_id"])
            case "annotate":
                write(store, "metadata", row | {"metadata": {"image_nano_saved": second}})
            case "fold":
                while sums.fold(store):
                    pass
            case "rebuild":
                sums.rebuild(store)
    return more + sum(truth.values())


CLOSED = 6


def exported(store: Ledger, span: Window | None, folder: Path) -> Decimal:
    """The cost in a CSV, in US$."""
    path = folder / f"{uuid.uuid4().hex}.csv"
    write_records(path, attempt_records(store, span))
    with path.open(newline="") as file:
        return sum((Decimal(row["cost_usd"] or "0") for row in csv.DictReader(file)), Decimal(0))


def in_view(store: Ledger, *ends: int) -> int:
    query = "SELECT coalesce(sum(cost_nano), 0) FROM costs_v1 WHERE time_us >= :since AND time_us < :until"
    with store.reading() as connection:
        return int(connection.scalar(sa.text(query), dict(zip(("since", "until"), ends, strict=True))) or 0)


@settings(max_examples=at_most(30), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(late_steps)
def test_whatever_comes_late_a_closed_month_stays(
    store: Ledger, tmp_path: Path, program: list[tuple[str, Any, Any]]
) -> None:
    """After late rows, ends, adjustments and releases its rows, sums, CSV and view are as before; nothing is lost."""
    with store.changing() as connection:
        for table in reversed(metadata.sorted_tables):
            if table.name not in ("ledger_meta", "sums_state"):
                connection.execute(sa.delete(table))
    known = [inside(number * 100, cost_nano=1000 * number) for number in range(3)] + [expired() for _ in range(3)]
    for row in known:
        write(store, "settle", row, customer="acme")
    begin(store, fresh(bound_nano=0), FOREVER, THIS_MONTH)
    found, kept = close(store), [row[:2] + row[3:] for row in without_metadata(store)]
    more = carry_out(store, known, program)
    ends = (SPAN.since_us, SPAN.until_us)
    assert [row[:2] + row[3:] for row in without_metadata(store)] == kept
    assert closed_months(store) == [(found, found.figures)]
    assert in_view(store, *ends) == found.figures.cost_nano == int(exported(store, SPAN, tmp_path) * 10**9)
    assert total(store) == found.figures.cost_nano + more
    assert exported(store, None, tmp_path) * 10**9 == total(store)
    assert_exact(store)
    before = counted(store, FOREVER), counted(store, THIS_MONTH)
    with store.changing() as connection:
        connection.execute(sa.delete(account))
    begin(store, fresh(bound_nano=0), FOREVER, THIS_MONTH)
    assert (counted(store, FOREVER), counted(store, THIS_MONTH)) == before


def without_metadata(store: Ledger) -> list[tuple[Any, ...]]:
    columns = [column for column in attempt.c if column.name != "metadata"]
    query = sa.select(*columns).where(attempt.c.ts_us >= SPAN.since_us, attempt.c.ts_us < SPAN.until_us)
    with store.reading() as connection:
        return sorted((tuple(row) for row in connection.execute(query)), key=str)
