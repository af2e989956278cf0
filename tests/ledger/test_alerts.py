"""Alerts in the ledger: each threshold once a window, and one process at a time delivers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from shared.budget import Budget, Limit
from shared.ledger.accounts import store_budget
from shared.ledger.alerts import (
    Alert,
    Seen,
    add_alerts,
    claim,
    due,
    mark_delivered,
    mark_failed,
    spike,
    undelivered,
)
from shared.ledger.schema import account, alert
from shared.ledger.store import Ledger
from tests.support.ledger_rows import CENT, NOON_US, begin, rows, settled, started, write
from tests.support.processes import race

DAY_US = 86_400 * 10**6
LEASE_US = 60 * 10**6
EACH = Budget(1.0, "day", scope="customer")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    postgresql = request.param == "postgresql"
    return str(request.getfixturevalue("postgres_ledger") if postgresql else f"sqlite:///{tmp_path / 'alerts.sqlite3'}")


@pytest.fixture
def store(url: str) -> Iterator[Ledger]:
    """An empty ledger on each database."""
    ledger = Ledger(url)
    yield ledger
    ledger.close()


def spend(store: Ledger, cents: int, ts_us: int = NOON_US, **labels: str) -> None:
    """An attempt that was held under the ledger's budgets, and settled."""
    row = started(ts_us=ts_us, bound_nano=cents * CENT)
    begin(store, row, **labels)
    write(store, "settle", settled(row, cost_nano=cents * CENT), **labels)


def stored(store: Ledger, name: str, budget: Budget) -> None:
    with store.changing() as connection:
        store_budget(connection, name, budget)


def found(store: Ledger, *limits: Limit, now_us: int = NOON_US, seen: tuple[Seen, ...] = (), **how: Any) -> list[Any]:
    """Whose, and how many per cent, of the alerts that are due; they are then stored."""
    alerts = due(store, limits, seen, now_us, **how)
    add_alerts(store, alerts, now_us)
    return [(json.loads(each.whose), each.threshold) for each in alerts]


def one(store: Ledger, at_us: int = NOON_US) -> Alert:
    """An alert that waits to be delivered."""
    alert = spike(NOON_US, NOON_US + DAY_US, "UTC", 3 * CENT, CENT, at_us)
    add_alerts(store, [alert], at_us)
    return alert


def test_each_threshold_alerts_once_a_window(store: Ledger) -> None:
    """A budget alerts once at each threshold, again in the next window, and again when its limit has changed."""
    stored(store, "each", EACH)
    spend(store, 49, customer="acme")
    assert found(store) == []
    spend(store, 1, customer="acme")
    spend(store, 85, customer="bolt")
    assert sorted(found(store)) == [(["acme"], 50), (["bolt"], 50), (["bolt"], 80)]
    assert found(store) == []
    spend(store, 15, customer="bolt")
    assert found(store) == [(["bolt"], 100)]
    spend(store, 60, NOON_US + DAY_US, customer="acme")
    assert found(store, now_us=NOON_US + DAY_US) == [(["acme"], 50)]
    stored(store, "each", Budget(1.9, "day", scope="customer"))
    assert found(store) == [(["bolt"], 50)]


def test_what_is_under_way_does_not_count_and_what_is_reserved_does(store: Ledger) -> None:
    """The most that a running request may cost is no alert; a reservation is used up like what is spent."""
    stored(store, "all", Budget(1.0, "day"))
    begin(store, started(bound_nano=95 * CENT))
    assert found(store) == []
    write(store, "settle", settled(cost_nano=30 * CENT, reserved_nano=25 * CENT))
    [alert] = due(store, (), (), NOON_US)
    assert (alert.threshold, alert.spent_nano, alert.reserved_nano) == (50, 30 * CENT, 25 * CENT)


def test_a_budget_of_one_customer_replaces_the_one_for_each(store: Ledger) -> None:
    """Only the limit that holds for a customer alerts; limits of 0 and of runs never do."""
    stored(store, "each", EACH)
    stored(store, "acme", Budget(100.0, "day", scope="customer", value="acme"))
    stored(store, "off", Budget(0.0, "day", scope="customer", value="bolt"))
    stored(store, "run", Budget(1.0, "run"))
    for name in ("acme", "bolt", "cord"):
        write(store, "settle", settled(cost_nano=90 * CENT), customer=name)
    for how in ({"of_all": True}, {"seen": (Seen((), (None, None), (("customer", "cord"),)),)}):
        with store.changing() as connection:
            connection.execute(sa.delete(alert))
        assert found(store, **how) == [(["cord"], 50), (["cord"], 80)]


def test_a_scopes_budget_is_its_own_groups(store: Ledger) -> None:
    """Two scopes with different limits for the same label are each measured by their own limit."""
    small, large = (Limit(Budget(usd, "day"), ("customer",)) for usd in (1.0, 100.0))
    seen = tuple(Seen((limit,), (None, None), (("customer", name),)) for limit, name in ((small, "a"), (large, "b")))
    for name in "ab":
        write(store, "settle", settled(cost_nano=60 * CENT), customer=name)
    assert found(store, seen=seen) == [(["a"], 50)]
    assert found(store, seen=seen) == []


def test_what_a_process_that_died_had_spent_is_found(store: Ledger) -> None:
    """Another process finds a budget of the ledger or of the settings by its running total, whoever spent."""
    own = Limit(Budget(1.0, "month"))
    row = started(bound_nano=60 * CENT)
    begin(store, row, own)
    write(store, "settle", settled(row, cost_nano=60 * CENT))
    assert found(store, own) == [([], 50)]


def test_a_name_that_is_too_long_alerts_too(store: Ledger) -> None:
    """A group whose values are kept as a hash alerts, and has no name to show."""
    stored(store, "each", Budget(1.0, "day", scope="customer"))
    spend(store, 60, customer='"' * 200)
    [alert] = due(store, (), (), NOON_US)
    assert alert.group == {"customer": None}


ADDS = """
from shared.ledger import Ledger, add_alerts, claim
from tests.support.ledger_rows import NOON_US
from shared.ledger.alerts import spike

def run(number, together, url):
    ledger = Ledger(url)
    ledger.check_writable()
    together.wait()
    add_alerts(ledger, [spike(NOON_US, NOON_US + 1, "UTC", 3, 1, NOON_US)], NOON_US)
    together.wait()
    alert = claim(ledger, NOON_US, 60_000_000, most_tries=10)
    print("none" if alert is None else alert.alert_id)
    ledger.close()
"""


def test_processes_race_for_an_alert(url: str, store: Ledger) -> None:
    """Of the processes that find the same alert one stores it, and while its lease holds one delivers it."""
    store.check_writable()
    said = race(ADDS, url, count=3)
    [row] = rows(store, alert)
    assert sorted(said) == sorted([str(row["alert_id"]), "none", "none"])


def test_a_lease_lapses(store: Ledger) -> None:
    """The alert of a process that died is delivered by another one, under the same id, and then no more."""
    alert_id = one(store).alert_id
    first = claim(store, NOON_US, LEASE_US, most_tries=10)
    assert first is not None
    assert first.alert_id == alert_id
    assert claim(store, NOON_US + LEASE_US - 1, LEASE_US, most_tries=10) is None
    second = claim(store, NOON_US + LEASE_US, LEASE_US, most_tries=10)
    assert second is not None
    assert (second.alert_id, second.tries) == (alert_id, 2)
    mark_failed(store, first, "HTTP 500", NOON_US)  # it was only slow, and must not end the other's lease
    assert claim(store, NOON_US + LEASE_US, LEASE_US) is None
    mark_delivered(store, second, NOON_US)
    assert undelivered(store) == []
    assert claim(store, NOON_US + 9 * LEASE_US, LEASE_US) is None


def test_a_failed_alert_waits_for_its_next_try(store: Ledger) -> None:
    """After a failure it is tried again only when that is due, and so many times; a person can try at once."""
    one(store)
    claimed = claim(store, NOON_US, LEASE_US, most_tries=2)
    assert claimed is not None
    mark_failed(store, claimed, "HTTP 500", NOON_US + 500)
    assert claim(store, NOON_US + 499, LEASE_US, most_tries=2) is None
    again = claim(store, NOON_US + 500, LEASE_US, most_tries=2)
    assert again is not None
    mark_failed(store, again, "HTTP 502", NOON_US + 1_000)
    assert claim(store, NOON_US + DAY_US, LEASE_US, most_tries=2) is None
    assert undelivered(store, most_tries=2) == []
    assert [each.problem for each in undelivered(store)] == ["HTTP 502"]
    assert claim(store, NOON_US, LEASE_US) is not None


def test_old_alerts_are_deleted(store: Ledger) -> None:
    """An alert goes 40 days after its window, when its budget cannot alert for that window any more."""
    one(store)
    add_alerts(store, [], NOON_US + 41 * DAY_US)
    assert len(rows(store, alert)) == 1
    add_alerts(store, [], NOON_US + 41 * DAY_US + 1)
    assert rows(store, alert) == []


def test_alerts_hold_up_no_running_total(store: Ledger) -> None:
    """To look at a budget that has no running total begins none: that would keep other writers out."""
    stored(store, "each", EACH)
    write(store, "settle", settled(cost_nano=60 * CENT), customer="acme")
    assert found(store, seen=(Seen((), (None, None), (("customer", "acme"),)),)) == [(["acme"], 50)]
    assert rows(store, account) == []
