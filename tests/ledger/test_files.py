"""How a ledger is opened: its file, its URL, its schema's version, and the journal mode that is safe."""

from __future__ import annotations

import os
import stat
import time
import uuid
from pathlib import Path

import pytest

from shared.config import load_settings
from shared.errors import ConfigurationError, StoreError
from shared.internal.clock import new_id, now_us
from shared.ledger.sqlite_library import wal_is_safe
from shared.ledger.store import Ledger, get_ledger
from tests.support.ledger_rows import rows, settled, write


def test_an_unreadable_ledger_is_a_store_error(tmp_path: Path) -> None:
    """A file that is no database is said so, by name, when it is read or tried."""
    (tmp_path / "notes.txt").write_text("This is no database. " * 100)
    ledger = Ledger(f"sqlite:///{tmp_path / 'notes.txt'}")
    for use in (lambda: rows(ledger), ledger.check_writable, ledger.settle_expired):
        with pytest.raises(StoreError, match=r"notes\.txt cannot be read \(file is not a database\)"):
            use()


def test_the_ledger_is_open_to_its_owner_only(tmp_path: Path) -> None:
    """What an agent spent is nobody else's business: the file is 0600, a folder made for it 0700."""
    path = tmp_path / "new" / "ledger.sqlite3"
    before = os.umask(0)
    try:
        ledger = Ledger(f"sqlite:///{path}")
        write(ledger, "settle", settled())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_sqlite_is_durable_when_a_write_returns(tmp_path: Path) -> None:
    """Each commit reaches the disk, in the journal mode that is safe for this SQLite, and locks are waited for."""
    ledger = Ledger(f"sqlite:///{tmp_path / 'new.sqlite3'}")
    with ledger.reading() as connection:
        pragma = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("synchronous", "journal_mode", "busy_timeout")
        }
    assert 0 < (pragma.pop("busy_timeout") or 0) <= 1000 * load_settings().store_timeout
    assert pragma == {
        "synchronous": 2,
        "journal_mode": "wal" if wal_is_safe() else "truncate",
    }


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "is not a database URL"),
        ("", "is not a database URL"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///file:ledger?mode=memory&cache=shared&uri=true", "names no file"),
        ("sqlite:///file::memory:?uri=true", "names no file"),
        ("sqlite:////tmp/ledger.sqlite3?mode=memory&uri=true", "names no file"),
        ("sqlite:////tmp/ledger.sqlite3?vfs=memdb&uri=true", "names no file"),
        ("mysql://me:hunter2@db/ledger", "names mysql, which is not supported"),
    ],
)
def test_a_wrong_url_is_a_configuration_error(url: str, message: str) -> None:
    """A URL that cannot be a ledger is refused when the ledger is made, without its password."""
    with pytest.raises(ConfigurationError, match=f"AGENTSWARM_DATABASE_URL {message}") as caught:
        Ledger(url)
    assert "hunter2" not in str(caught.value)


def test_the_name_of_a_ledger_hides_its_password() -> None:
    """Reports name the store without its password, as its user wrote it."""
    assert Ledger("postgresql://me:hunter2@db:5433/ledger").name == "postgresql://me:***@db:5433/ledger"
    assert Ledger("sqlite:////data/ledger.sqlite3").name == "sqlite:////data/ledger.sqlite3"


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 7, 0), False), ((3, 40, 1), False), ((3, 44, 5), False), ((3, 44, 6), True), ((3, 44, 9), True),
        ((3, 45, 0), False), ((3, 50, 6), False), ((3, 50, 7), True), ((3, 51, 0), False), ((3, 51, 2), False),
        ((3, 51, 3), True), ((3, 52, 0), True), ((3, 54, 1), True), ((4, 0, 0), True),
    ],
)  # fmt: skip
def test_write_ahead_logging_is_used_only_where_it_is_safe(version: tuple[int, ...], safe: bool) -> None:
    """SQLite 3.7.0 to 3.51.2 can lose pages of a shared WAL file, but for the two repaired branches."""
    assert wal_is_safe(version) is safe


def test_ids_are_uuid7_and_in_the_order_of_time() -> None:
    """New rows lie together on disk: an id of a later millisecond is larger."""
    ids = []
    for _ in range(3):
        ids.append(new_id())
        began = time.time_ns() // 1_000_000
        while time.time_ns() // 1_000_000 == began:
            pass
    assert ids == sorted(ids)
    assert {(each.version, each.variant) for each in ids} == {(7, uuid.RFC_4122)}
    assert abs((ids[0].int >> 80) - now_us() // 1000) < 60_000


def test_a_url_has_one_ledger_in_a_process(tmp_path: Path) -> None:
    """Clients with the same URL share connections and the writing thread."""
    first, second = (f"sqlite:///{tmp_path / name}" for name in ("a.sqlite3", "b.sqlite3"))
    assert get_ledger(first) is get_ledger(first)
    assert get_ledger(first) is not get_ledger(second)
