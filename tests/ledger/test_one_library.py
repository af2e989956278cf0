"""One SQLite library for each process and ledger, with a write-ahead log where that is safe."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from shared.errors import StoreError
from shared.ledger import connect
from shared.ledger.engine import Patience, may_use_wal
from shared.ledger.sqlite_library import library, wal_is_safe
from shared.ledger.store import Ledger
from tests.support.ledger_rows import assert_exact, only, rows, settled, write
from tests.support.paths import ROOT
from tests.support.processes import race

apart = pytest.mark.skipif(library() is sqlite3, reason="Python's own SQLite opens the ledger here")
logged = pytest.mark.skipif(not wal_is_safe(), reason="this SQLite is not safe with a write-ahead log")

COUNT = "SELECT count(*) FROM attempt"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the ledger lies, in a folder of its own."""
    folder = tmp_path / "own"
    folder.mkdir()
    return folder / "ledger.sqlite3"


@pytest.fixture
def store(file: Path) -> Iterator[Ledger]:
    """A ledger with one row, open in this process."""
    ledger = Ledger(f"sqlite:///{file}")
    write(ledger, "settle", settled(agent="before"))
    yield ledger
    ledger.close()


def by_itself(program: str, *arguments: object) -> str:
    """What a program prints that has nothing of this process but its Python."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout.strip()


@apart
@pytest.mark.parametrize("name", ["{}", "file:{}?mode=ro"])
def test_the_other_library_keeps_off_an_open_ledger(name: str, file: Path, store: Ledger) -> None:
    """Python's own SQLite would drop the ledger's locks: it is refused while the ledger is open, and only then."""
    with pytest.raises(sqlite3.OperationalError, match=r"shared\.ledger\.connect"):
        sqlite3.connect(name.format(file), uri=True)
    with closing(connect(file)) as reader:
        assert reader.execute(COUNT).fetchone() == (1,)
        with pytest.raises(library().OperationalError, match="readonly"):
            reader.execute("DELETE FROM attempt")
    assert (
        by_itself(f"import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute('{COUNT}').fetchone())", file)
        == "1"
    )
    store.close()
    with closing(sqlite3.connect(file)) as reader:
        assert reader.execute(COUNT).fetchone() == (1,)


@apart
def test_a_ledger_that_the_other_library_has_open_is_not_opened(file: Path, store: Ledger) -> None:
    """While Python's own SQLite has the file open in this process, records wait, and go in once it is closed."""
    store.close()
    with closing(sqlite3.connect(file)) as reader:
        reader.execute(COUNT)
        write(store, "settle", settled(agent="waited"))
        assert store.waiting == 1
        with pytest.raises(StoreError, match="open in this process by something else"):
            rows(store)
    store.flush(30)
    assert [row["agent"] for row in rows(store)] == ["before", "waited"]
    assert_exact(store)


READ_AND_WRITE = """
import sqlite3, threading
from contextlib import closing
from tests.support.ledger_rows import settled, started, submit
from shared.ledger import Ledger, connect

def run(number, together, url, path):
    ledger, stop = Ledger(url), threading.Event()
    ledger.check_writable()

    def read():
        while not stop.is_set():
            try:
                sqlite3.connect(path).close()
            except sqlite3.OperationalError:
                pass
            with closing(connect(path)) as reader:
                reader.execute("SELECT count(*), sum(cost_nano) FROM attempt").fetchone()

    reader = threading.Thread(target=read)
    reader.start()
    together.wait(60)
    for _ in range(150):
        own = started(agent="ab"[number])
        submit(ledger, "start", own, {}).result(timeout=60)
        submit(ledger, "settle", settled(own), {}).result(timeout=60)
    stop.set()
    reader.join()
    ledger.close()
"""


def test_readers_in_the_same_process_lose_nothing(file: Path, store: Ledger) -> None:
    """Two processes write while a thread of each reads by either library: each row is there, and the file is whole."""
    store.close()
    race(READ_AND_WRITE, f"sqlite:///{file}", str(file))
    assert len(rows(store)) == 301
    with store.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    assert_exact(store)


SWITCH = """
from tests.support.ledger_rows import settled, submit
from shared.ledger import Ledger

def run(number, together, url):
    together.wait(60)
    ledger = Ledger(url)
    for _ in range(20):
        submit(ledger, "settle", settled(agent="abcd"[number]), {}).result(timeout=60)
    assert not ledger.waiting
    ledger.close()
"""


@logged
def test_a_ledger_with_a_rollback_file_gets_a_wal(file: Path, store: Ledger) -> None:
    """Several processes that open an older ledger at once switch it, and none loses a record over that."""
    store.close()
    with closing(sqlite3.connect(file)) as older:
        assert older.execute("PRAGMA journal_mode = TRUNCATE").fetchone() == ("truncate",)
    race(SWITCH, f"sqlite:///{file}", count=4)
    with store.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    assert len(rows(store)) == 81
    assert_exact(store)


WITHOUT = """
import sys
sys.modules["pysqlite3"] = None
from shared.ledger.store import Ledger
from tests.support.ledger_rows import settled, submit
ledger = Ledger(sys.argv[1])
submit(ledger, "settle", settled(agent="other"), {}).result(timeout=60)
ledger.flush()
print(ledger.waiting)
ledger.close()
"""


@apart
def test_a_program_without_the_library_does_not_write_into_the_log(file: Path, store: Ledger) -> None:
    """It keeps its records while others have the ledger open with a log, and enters them when they have ended."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, f"sqlite:///{file}"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout == "1\n"
    assert "another program uses it with a write-ahead log" in done.stderr
    assert only(store)["agent"] == "before"
    store.close()
    assert by_itself(WITHOUT, f"sqlite:///{file}") == "0"
    assert sorted(row["agent"] for row in rows(store)) == ["before", "other", "other"]


@logged
def test_a_ledger_that_was_moved_is_whole(file: Path, store: Ledger) -> None:
    """What lay in the log of a ledger that was moved is in that file, and in no other."""
    moved = file.with_name("moved.sqlite3")
    file.rename(moved)
    write(store, "settle", settled(agent="after"))
    assert [row["agent"] for row in rows(store)] == ["after"]
    other = Ledger(f"sqlite:///{moved}")
    assert [row["agent"] for row in rows(other)][:1] == ["before"]
    other.close()


@logged
def test_a_log_that_was_deleted_loses_nothing_more(file: Path, store: Ledger) -> None:
    """A running process notices that its log is gone, and writes into the one that is the ledger's."""
    file.with_name(f"{file.name}-wal").unlink()
    write(store, "settle", settled(agent="after"))
    with closing(connect(file)) as reader:
        assert reader.execute("SELECT agent FROM attempt WHERE agent = 'after'").fetchall() == [("after",)]


def test_a_folder_of_another_machine_gets_no_log(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a file system that is known to share memory between processes has a ledger with a log."""
    assert may_use_wal(file) is wal_is_safe()
    mounts = file.with_name("mounts")
    mounts.write_text("host / virtiofs rw 0 0\n")
    monkeypatch.setattr("shared.ledger.engine._MOUNTS", mounts)
    assert not may_use_wal(file)
    store = Ledger(f"sqlite:///{file}", Patience(5, 5))
    with store.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "truncate"
    store.close()
