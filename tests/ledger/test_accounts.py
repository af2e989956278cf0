"""Running totals in the ledger: exact, complete, and refused in one piece, in SQLite and PostgreSQL."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from shared.budget import Budget, Limit
from shared.internal.clock import new_id, now_us
from shared.ledger import accounts
from shared.ledger.schema import account, attempt
from shared.ledger.store import Ledger
from tests.support.ledger_rows import CENT, begin, fresh, rows, submit
from tests.support.processes import race


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    """An empty ledger in each database."""
    if request.param == "postgresql":
        return Ledger(request.getfixturevalue("postgres_ledger"))
    return Ledger(f"sqlite:///{tmp_path / 'accounts.sqlite3'}")


def settle(store: Ledger, row: dict[str, Any], cost: int | None, **labels: str) -> None:
    """Settle it."""
    final = row | {"status": "ok" if cost is not None else "failed", "cost_nano": cost, "calls": 1}
    submit(store, "settle", final, labels).result(timeout=60)


def test_what_does_not_fit_is_not_written(store: Ledger) -> None:
    """An attempt that could break a limit leaves no row and takes nothing, and one that fits is held at its most."""
    limit = Limit(Budget(0.10, "total"))
    assert begin(store, fresh(bound_nano=6 * CENT), limit).refused_by is None
    admission = begin(store, fresh(bound_nano=5 * CENT), limit)
    assert admission.refused_by is not None
    assert (admission.reason, admission.refused_by.left_nano) == ("no room", 4 * CENT)
    assert [(row["status"], row["cost_nano"]) for row in rows(store)] == [("started", None), ("refused", 0)]
    assert begin(store, fresh(bound_nano=4 * CENT), limit).refused_by is None
    assert begin(store, fresh(bound_nano=1), limit).refused_by is not None
    assert begin(store, fresh(bound_nano=0), limit).refused_by is None


def test_settling_gives_back_what_was_not_used(store: Ledger) -> None:
    """A settled attempt counts with its cost; one of unknown cost counts with its upper bound."""
    limit = Limit(Budget(0.10, "total"))
    one, other = fresh(bound_nano=5 * CENT), fresh(bound_nano=5 * CENT)
    begin(store, one, limit)
    begin(store, other, limit)
    settle(store, one, CENT)
    settle(store, other, None)
    admission = submit(store, "settle", one | {"status": "ok", "cost_nano": 2 * CENT}, {}, [limit]).result(timeout=60)
    assert admission is not None
    assert admission.statuses[0].left_nano == 3 * CENT
    settle(store, other, 0)
    assert begin(store, fresh(bound_nano=8 * CENT), limit).refused_by is None


def test_what_was_spent_before_counts(store: Ledger) -> None:
    """A limit that is new counts what its window already holds, also what was under way, and nothing older."""
    settle(store, fresh(bound_nano=None), 3 * CENT)
    settle(store, fresh(bound_nano=None, ts_us=now_us() - 45 * 86_400 * 1_000_000), 50 * CENT)
    submit(store, "start", fresh(bound_nano=CENT), {}).result(timeout=60)
    assert begin(store, fresh(bound_nano=7 * CENT), Limit(Budget(0.10, "month"))).refused_by is not None
    assert begin(store, fresh(bound_nano=6 * CENT), Limit(Budget(0.10, "month"))).refused_by is None
    assert begin(store, fresh(bound_nano=CENT), Limit(Budget(0.10, "total"))).refused_by is not None


def test_a_new_customer_starts_at_zero_without_adding_up(store: Ledger) -> None:
    """The first total of a customer without calls adds up no attempts; that of one who has called does."""
    each = Limit(Budget(1.0, scope="customer"))
    for number in range(3):
        settle(store, fresh(model=f"openai/m{number}"), CENT, customer="old")
    store.flush()
    asked: list[str] = []
    engine = store._engine
    assert engine is not None
    sa.event.listen(engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    found = begin(store, fresh(bound_nano=CENT), each, customer="new").statuses
    assert [status.counted_nano for status in found] == [0]
    assert not [statement for statement in asked if "sum(" in statement]
    found = begin(store, fresh(bound_nano=CENT), each, customer="old").statuses
    assert [status.counted_nano for status in found] == [3 * CENT]
    assert [statement for statement in asked if "sum(" in statement]


def test_those_who_know_of_no_limit_count_too(store: Ledger) -> None:
    """What is spent without a limit, by another program perhaps, counts against everybody's."""
    limit = Limit(Budget(0.10, "day"))
    begin(store, fresh(bound_nano=CENT), limit)
    unaware = fresh(bound_nano=2 * CENT)
    submit(store, "start", unaware, {}).result(timeout=60)
    settle(store, unaware, 9 * CENT)
    assert begin(store, fresh(bound_nano=1), limit).refused_by is not None


def test_each_has_a_limit_of_its_own(store: Ledger) -> None:
    """A limit by label, agent or run is one for each value; attempts without one share one too."""
    customer, agent = Limit(Budget(0.10, "total", scope="customer")), Limit(Budget(0.05, "total", scope="agent"))
    assert begin(store, fresh(bound_nano=8 * CENT), customer, customer="acme").refused_by is None
    assert begin(store, fresh(bound_nano=3 * CENT), customer, customer="acme").refused_by is not None
    assert begin(store, fresh(bound_nano=8 * CENT), customer, customer="bolt").refused_by is None
    assert begin(store, fresh(bound_nano=8 * CENT), customer).refused_by is None
    assert begin(store, fresh(bound_nano=3 * CENT), customer, project="x").refused_by is not None
    assert begin(store, fresh(bound_nano=3 * CENT, agent="A"), customer, agent, customer="dora").refused_by is None
    admission = begin(store, fresh(bound_nano=3 * CENT, agent="A"), customer, agent, customer="dora")
    assert admission.refused_by is not None
    assert admission.refused_by.limit is agent
    assert begin(store, fresh(bound_nano=3 * CENT, agent="B"), customer, agent, customer="dora").refused_by is None


def test_the_ledgers_own_limits_hold_for_all(store: Ledger) -> None:
    """A budget that the ledger keeps holds at once, for attempts that bring no limit of their own."""
    with store.writing() as connection:
        accounts.store_budget(connection, "team", Budget(0.10, "total"))
        accounts.store_budget(connection, "team", Budget(0.05, "total", warn_at=0.5))
    assert begin(store, fresh(bound_nano=6 * CENT)).refused_by is not None
    assert begin(store, fresh(bound_nano=5 * CENT)).refused_by is None
    with store.writing() as connection:
        assert accounts.stored_budgets(connection) == [("team", Budget(0.05, "total", warn_at=0.5))]
        assert accounts.forget_budget(connection, "team")
        assert not accounts.forget_budget(connection, "team")
    assert begin(store, fresh(bound_nano=6 * CENT)).refused_by is None


def test_an_unknown_price(store: Ledger) -> None:
    """What nobody can bound is refused, unless the budget lets it pass uncounted."""
    assert begin(store, fresh(bound_nano=None), Limit(Budget(5, "total"))).reason == "unknown price"
    allowed = Limit(Budget(5, "total", on_unknown_price="allow"))
    assert begin(store, fresh(bound_nano=None), allowed).refused_by is None


def test_a_clock_that_went_back(store: Ledger) -> None:
    """While the clock lies behind the ledger a limit by hours or days allows nothing, one for all time goes on."""
    begin(store, fresh(bound_nano=CENT))
    early = fresh(bound_nano=CENT, ts_us=now_us() - 3600 * 1_000_000)
    admission = begin(store, early, Limit(Budget(5, "day")))
    assert admission.refused_by is not None
    assert "clock is 3" in str(admission.reason)
    assert begin(store, early | {"attempt_id": new_id()}, Limit(Budget(5, "total"))).refused_by is None


def test_totals_are_the_sum_of_the_rows(store: Ledger) -> None:
    """Whatever is started, settled, settled anew or replayed in any order, each total is the sum of its rows."""
    chance = random.Random(7)
    limits = [
        Limit(Budget(100, "day")),
        Limit(Budget(100, "total", scope="customer")),
        Limit(Budget(9, "run"), ("customer",)),
    ]
    known: list[tuple[dict[str, Any], dict[str, str]]] = []
    for _ in range(120):
        labels = {"customer": chance.choice("abc")} if chance.random() < 0.7 else {}
        if known and chance.random() < 0.6:
            row, labels = chance.choice(known)
            settle(store, row, chance.choice([None, 0, chance.randrange(CENT)]), **labels)
        else:
            row = fresh(bound_nano=chance.choice([None, chance.randrange(CENT)]), run=chance.choice([None, "r1", "r2"]))
            known.append((row, labels))
            bring = chance.sample(limits, chance.randrange(4)) if chance.random() < 0.5 else []
            submit(store, chance.choice(["start", "settle"]), row, labels, bring).result(timeout=60)
    with store.reading() as connection:
        for found in connection.execute(sa.select(account)).mappings():
            limit = next(each for each in limits if accounts._key(each.dimensions) == found["dimensions"])
            total = 0
            for row in map(dict, connection.execute(sa.select(attempt)).mappings()):
                _, labels = next(each for each in known if each[0]["attempt_id"] == row["attempt_id"])
                group = accounts.group_of(limit.dimensions, row, labels)
                inside = found["since_us"] <= row["ts_us"] < found["until_us"]
                total += accounts.counted(row) if inside and accounts._digest(group) == found["whose"] else 0
            assert found["counted_nano"] == total


def test_a_long_label_is_no_trouble(store: Ledger) -> None:
    """However long and strange a label is, its total is its own."""
    limit = Limit(Budget(0.10, "total", scope="customer"))
    for name in ("\N{SNOWMAN}" * 200, "\N{SNOWMAN}" * 199, "\\" * 200):
        assert begin(store, fresh(bound_nano=8 * CENT), limit, customer=name).refused_by is None
        assert begin(store, fresh(bound_nano=8 * CENT), limit, customer=name).refused_by is not None


def test_threads_race(store: Ledger) -> None:
    """Fifty threads that race for a limit never hold more than it together, and leave less than one attempt unused."""
    limit = Limit(Budget(1.0, "total"))

    def one(_: int) -> int:
        return 0 if begin(store, fresh(bound_nano=3 * CENT), limit).refused_by else 3 * CENT

    with ThreadPoolExecutor(50) as pool:
        assert sum(pool.map(one, range(100))) == 99 * CENT


RACER = """
from shared.budget import Budget, Limit
from shared.ledger import Ledger
from tests.support.ledger_rows import CENT, begin, fresh

def run(number, together, url):
    store, limit = Ledger(url), Limit(Budget(1.0, "total"))
    together.wait(60)
    print(sum(not begin(store, fresh(bound_nano=3 * CENT), limit).refused_by for _ in range(20)), flush=True)
"""


def test_processes_race(store: Ledger) -> None:
    """Processes that share a ledger share its limits."""
    allowed = race(RACER, store._url.render_as_string(hide_password=False))
    assert len(allowed) == 2
    assert sum(map(int, allowed)) == 33
