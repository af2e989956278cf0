"""Reservations count against budgets until they are released, once, and are no cost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.analytics import all_budgets, set_budget
from shared.budget import Budget, Limit
from shared.internal.clock import now_us
from shared.ledger.accounts import BudgetStatus
from shared.ledger.reservations import open_reservations, release
from shared.ledger.schema import account
from shared.ledger.store import Ledger
from tests.support.ledger_rows import assert_exact, begin, fresh, only, rows, settled, submit, write

LIMIT = Limit(Budget(1.0, "month"))


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger on each database."""
    postgresql = request.param == "postgresql"
    url = request.getfixturevalue("postgres_ledger") if postgresql else f"sqlite:///{tmp_path / 'store.sqlite3'}"
    ledger = Ledger(str(url))
    yield ledger
    ledger.close()


def unfinished(row: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The row of an attempt of which only a part is known."""
    known = {"status": "cancelled", "cost_nano": 2000, "cost_is_lower_bound": True, "reserved_nano": 5000}
    return settled(row) | known | changes


def status_of(store: Ledger, limit: Limit = LIMIT, **labels: str) -> BudgetStatus:
    """The status of a limit, with its parts, as a refusal has it."""
    admission = begin(store, fresh(bound_nano=10**15), limit, **labels)
    assert admission.refused_by is not None
    return admission.refused_by


def test_a_reservation_counts_and_is_no_cost(store: Ledger) -> None:
    """Spent, reserved and under way add up to what a budget counts, and only what is spent is a cost."""
    row, other = fresh(), fresh()
    for each in (row, other):
        begin(store, each, LIMIT)
    write(store, "settle", unfinished(row))
    found = status_of(store)
    assert (found.spent_nano, found.reserved_nano, found.reserved_requests) == (2000, 5000, 1)
    assert (found.under_way_nano, found.counted_nano) == (9000, 16_000)
    assert_exact(store)


@pytest.mark.parametrize("labels", [{}, {"customer": "acme"}])
def test_a_release_frees_the_accounts_once(store: Ledger, labels: dict[str, str]) -> None:
    """A released reservation leaves every budget that counted it, also by label, and its cost stays."""
    limit = Limit(Budget(1.0, "month"), tuple(labels))
    row = fresh()
    begin(store, row, limit, **labels)
    write(store, "settle", unfinished(row), **labels)
    assert [each.reserved_nano for each in release(store, call_id=row["call_id"])] == [5000]
    assert release(store, call_id=row["call_id"]) == []
    found = status_of(store, limit, **labels)
    assert (found.counted_nano, found.reserved_nano, found.reserved_requests) == (2000, 0, 0)


def test_what_was_released_stays_released(store: Ledger) -> None:
    """A record that is written again, as a replay of the spool does it, does not restore a reservation."""
    row = fresh()
    begin(store, row, LIMIT)
    write(store, "settle", unfinished(row))
    release(store, before_us=now_us() + 1)
    write(store, "settle", unfinished(row))
    assert only(store)["reserved_nano"] == 0
    assert status_of(store).counted_nano == 2000


def test_only_those_before_a_day_are_released(store: Ledger) -> None:
    """`before_us` leaves later reservations, and attempts under way, as they are."""
    old, new, under_way = fresh(ts_us=now_us() - 10**12), fresh(), fresh()
    for each in (old, new):
        write(store, "settle", unfinished(each))
    write(store, "start", under_way)
    assert [each.attempt_id for each in open_reservations(store)] == [old["attempt_id"], new["attempt_id"]]
    assert [each.attempt_id for each in release(store, before_us=now_us() - 10**9)] == [old["attempt_id"]]
    assert [each.attempt_id for each in open_reservations(store)] == [new["attempt_id"]]


def test_concurrent_releases_count_once(store: Ledger) -> None:
    """Four operators who release the same 300 reservations at once free each of them exactly once."""
    for _ in range(300):
        row = fresh()
        submit(store, "start", row, {}, [LIMIT])
        submit(store, "settle", unfinished(row))
    store.flush()
    released: list[int] = []
    workers = [
        threading.Thread(target=lambda: released.append(len(release(store, before_us=now_us())))) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sum(released) == 300
    (total,) = rows(store, account)
    assert total["counted_nano"] == 300 * 2000


def test_budgets_show_their_parts(ledger: Ledger) -> None:
    """`spent`, `reserved` and `under_way` of a budget add up to what is used."""
    set_budget("default", Budget(1.0, "month"))
    row = fresh()
    write(ledger, "start", fresh())
    write(ledger, "settle", unfinished(row))
    (budget,) = all_budgets()
    assert budget["reserved_requests"] == 1
    parts = [budget[name] for name in ("spent", "reserved", "under_way", "used", "left")]
    assert parts == [0.000002, 0.000005, 0.000009, 0.000016, 0.999984]
