"""While the ledger cannot be written: records wait on disk, calls go on, and each record is replayed once."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from shared.config import state_dir
from shared.errors import StoreError
from shared.ledger import store as store_module
from shared.ledger.deadline import progressed
from shared.ledger.engine import Patience
from shared.ledger.schema import event
from shared.ledger.spool import Spool, SpoolEntry
from shared.ledger.sqlite_library import open_file
from shared.ledger.store import Ledger, committed
from shared.ledger.writes import apply
from tests.support.ledger_rows import assert_exact, only, rows, settled, started, submit, write


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the ledger, and a temporary folder beside it."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "home" / "data").mkdir()
    return tmp_path / "home" / "data"


@pytest.fixture
def store(home: Path) -> Iterator[Ledger]:
    """A ledger that soon gives up on a lock, and tries again at once when it is told to."""
    ledger = Ledger(f"sqlite:///{home / 'ledger.sqlite3'}", Patience(0.2, 2.0))
    yield ledger
    ledger._writer.down_until = 0
    ledger.close()


def again(ledger: Ledger) -> None:
    """The time after which a ledger that was down is tried again has passed."""
    ledger._writer.down_until = 0
    ledger.flush()


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Another program holds the ledger's write lock."""
    Ledger(f"sqlite:///{home / 'ledger.sqlite3'}").check_writable()
    with closing(open_file(home / "ledger.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


def files(folder: Path) -> list[str]:
    """What lies in a folder beside the ledger itself."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("ledger.sqlite3"))


def entry(number: int = 0) -> SpoolEntry:
    """A record."""
    return "settle", {"attempt_id": uuid.UUID(int=number), "model": "m"}, {"customer": "acme"}


@pytest.mark.parametrize("how", ["locked", "a folder"])
def test_what_cannot_be_written_waits_and_is_replayed_once(
    how: str, home: Path, store: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    """With the ledger locked or broken, writes return, wait on disk under one warning, and are in it once later."""
    row, text = started(agent="A"), {"event_id": uuid.uuid4(), "ts_us": 1, "event_type": "x", "metadata": {"a": 1}}
    with caplog.at_level(logging.WARNING, "agentswarm_tools"):
        if how == "locked":
            with locked(home):
                write(store, "start", row, customer="acme")
                again(store)
                write(store, "settle", settled(row), customer="acme")
                write(store, "event", text)
        else:
            (home / "ledger.sqlite3").mkdir()
            write(store, "start", row, customer="acme")
            again(store)
            write(store, "settle", settled(row), customer="acme")
            write(store, "event", text)
            (home / "ledger.sqlite3").rmdir()
        assert store._spool.waiting()
        again(store)
        again(store)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"The ledger sqlite:///{home}/ledger.sqlite3 cannot be written (")
    assert warning.endswith(f"records wait in {store._spool.path}.")
    assert files(home) == []
    assert (only(store)["status"], only(store)["agent"]) == ("ok", "A")
    assert len(rows(store, event)) == 1
    assert_exact(store)


def test_records_survive_any_number_of_failing_replays(home: Path, store: Ledger) -> None:
    """Each failed try leaves everything where the next one finds it."""
    with locked(home):
        for number in range(5):
            write(store, "settle", settled(agent=f"a{number}"))
            again(store)
    again(store)
    assert sorted(row["agent"] for row in rows(store)) == [f"a{number}" for number in range(5)]
    assert files(home) == []
    assert_exact(store)


def test_a_record_is_on_disk_when_the_write_returns(home: Path, store: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spooled line is complete and flushed to the disk before anybody goes on."""
    synced: list[tuple[int, int]] = []

    def fsync(file: int) -> None:
        synced.append((os.fstat(file).st_ino, os.fstat(file).st_size))

    monkeypatch.setattr(os, "fsync", fsync)
    row = settled()
    with locked(home):
        write(store, "settle", row, customer="acme")
    path = store._spool.path
    assert synced == [(path.stat().st_ino, path.stat().st_size)]
    kind, waiting, labels = json.loads(path.read_text(encoding="utf-8"))
    assert (kind, waiting["attempt_id"], labels) == ("settle", str(row["attempt_id"]), {"customer": "acme"})
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent == home


def test_what_is_under_way_when_the_process_ends_waits_too(
    home: Path, store: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A database that answers, but is not done when the process ends, is given the same again later; it counts once."""
    store.check_writable()
    go_on = threading.Event()

    def slowly(*args: Any, **keywords: Any) -> Any:
        while not go_on.wait(0.02):
            progressed()
        return apply(*args, **keywords)

    monkeypatch.setattr(store_module, "apply", slowly)
    done = [submit(store, "settle", settled()) for _ in range(3)]
    store.finish()
    assert all(each.done() for each in done)
    assert store.waiting == 3
    assert "3 records wait in" in caplog.text
    go_on.set()
    again(store)
    assert len(rows(store)) == 3
    assert store.waiting == 0
    assert_exact(store)


def test_what_is_of_no_use_later_does_not_wait(home: Path, store: Ledger) -> None:
    """Settling an expired attempt is found out anew by whoever reads next."""
    with locked(home):
        write(store, "expire", settled())
    assert not store._spool.waiting()


def test_a_ledger_of_a_newer_program_keeps_nothing_back(
    home: Path, store: Ledger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused ledger's warning is the sentence that reading it raises."""

    def migrate(_connection: Any) -> None:
        raise StoreError("The ledger was written by a newer version")

    monkeypatch.setattr(store_module, "migrate", migrate)
    with caplog.at_level(logging.WARNING, "agentswarm_tools"):
        write(store, "settle", settled())
    assert "(The ledger was written by a newer version)" in caplog.text
    monkeypatch.undo()
    again(store)
    assert len(rows(store)) == 1


def test_a_cut_off_line_is_passed_over(home: Path) -> None:
    """A disk that filled up in the middle of a line costs that line alone, before or after others."""
    spool = Spool(home, "ledger")
    spool.add(entry(1))
    with spool.path.open("ab") as file:
        file.write(b'["settle", {"attempt_id": "0000')
    spool.add(entry(2))
    with spool.path.open("ab") as file:
        file.write(b'["settle", {')
    assert [each for batch in spool.take() for each in batch] == [entry(1), entry(2)]
    assert not spool.waiting()


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b'"settle"',
        b'["settle", 1, {}]',
        b'["settle", {"attempt_id": "no id"}, {}]',
        b'["settle", {"attempt_id": "00000000-0000-7000-8000-000000000001"}, {}]',
        b'["settle", {"attempt_id": "00000000-0000-7000-8000-000000000001", "no_such_column": 1}, {}]',
    ],
    ids=["list", "text", "number", "no-id", "no-columns", "unknown-column"],
)
def test_a_record_that_no_ledger_takes_keeps_no_other_back(
    line: bytes, home: Path, store: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits before and after a bad line goes in, once, and the line is set aside for a person to see."""
    with locked(home):
        write(store, "settle", settled(agent="before"))
        with store._spool.path.open("ab") as file:
            file.write(b"\n" + line + b"\n")
        write(store, "settle", settled(agent="after"))
    again(store)
    write(store, "settle", settled(agent="later"))
    assert sorted(row["agent"] for row in rows(store)) == ["after", "before", "later"]
    assert store.waiting == 0
    [letters] = store.dead_letters()
    assert line in letters.read_bytes() or json.loads(line) in [json.loads(x) for x in letters.read_bytes().split()]
    assert files(home) == [letters.name]
    assert_exact(store)


def test_what_waits_is_counted(home: Path) -> None:
    """Records are counted wherever they wait, also those that a killed replay has left aside."""
    spool = Spool(home, "ledger")
    for number in range(3):
        spool.add(entry(number))
    assert spool.waiting() == 3
    next(spool.take())
    spool.add(entry(3))
    assert Spool(home, "ledger").waiting() == 4


def test_a_line_written_in_part_is_written_again_elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the ledger's folder is full the record goes to the temporary folder, and nothing is lost or doubled."""
    spool, real = Spool(home, "ledger"), os.write
    full = True

    def write_some(file: int, data: bytes) -> int:
        short = full and os.path.samestat(os.fstat(file), spool.path.stat())
        return real(file, data[:5] if short else data)

    monkeypatch.setattr(os, "write", write_some)
    spool.add(entry(1))
    full = False
    spool.add(entry(2))
    assert sorted(each[1]["attempt_id"].int for batch in spool.take() for each in batch) == [1, 2]


def test_leftovers_of_a_replay_that_was_killed_are_picked_up(home: Path) -> None:
    """A process that died between moving the file aside and writing it loses nothing."""
    crashed = Spool(home, "ledger")
    crashed.add(entry(1))
    assert next(crashed.take()) == [entry(1)]  # Killed here: the batch was never finished.
    (aside,) = files(home)
    assert aside.endswith(".replay")
    later = Spool(home, "ledger")
    later.add(entry(2))
    assert [each for batch in later.take() for each in batch] == [entry(1), entry(2)]
    assert files(home) == []


def test_records_in_files_of_the_old_name_are_replayed(home: Path) -> None:
    """What an earlier version spooled, left in a killed replay or set aside is counted, replayed once and listed."""
    spool = Spool(home, "ledger")
    names = ["spill.jsonl.1-1.replay", "spill.jsonl", "spool.jsonl"]
    for number, name in enumerate(names):
        spool.add(entry(number))
        spool.path.rename(home / spool.path.name.replace("spool.jsonl", name))
    refused = home / spool.path.name.replace("spool.jsonl", "spill.jsonl.refused")
    refused.write_text("[]\n")
    later = Spool(home, "ledger")
    assert later.waiting() == 3
    assert [each for batch in later.take() for each in batch] == [entry(0), entry(1), entry(2)]
    assert (later.waiting(), later.dead_letters(), files(home)) == (0, [refused], [refused.name])


def test_a_batch_is_forgotten_only_when_the_next_is_asked_for(home: Path) -> None:
    """A replay that fails in the middle finds what it could not write the next time, once."""
    spool = Spool(home, "ledger")
    for number in range(3):
        spool.add(entry(number))
        batches = spool.take()
        assert next(batches) == [entry(0)]
        batches.close()  # type: ignore[attr-defined]
    found = [each[1]["attempt_id"].int for batch in spool.take() for each in batch]
    assert found == [0, 1, 2]
    assert list(spool.take()) == []


def test_a_file_moved_aside_while_it_is_written_to_loses_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that went into a file which another process has just read and deleted is written once more."""
    spool, fsync, moved = Spool(home, "ledger"), os.fsync, threading.Event()

    def replayed_meanwhile(file: int) -> None:
        fsync(file)
        if not moved.is_set():
            moved.set()
            spool.path.unlink()

    monkeypatch.setattr(os, "fsync", replayed_meanwhile)
    spool.add(entry(1))
    assert [each for batch in spool.take() for each in batch] == [entry(1)]


def test_without_any_folder_records_wait_in_memory(tmp_path: Path, home: Path) -> None:
    """Where neither the ledger's folder nor the temporary one takes a file, memory does, in order."""
    home.rmdir()
    home.write_text("no folder")
    (tmp_path / "tmp").rmdir()
    (tmp_path / "tmp").write_text("no folder")
    spool = Spool(home, "ledger")
    for number in range(2):
        spool.add(entry(number))
    batches = spool.take()
    assert next(batches) == [entry(0), entry(1)]
    batches.close()  # type: ignore[attr-defined]
    spool.add(entry(2))
    assert [each for batch in spool.take() for each in batch] == [entry(0), entry(1), entry(2)]
    assert not spool.waiting()


def test_ledgers_do_not_share_what_waits(home: Path, tmp_path: Path) -> None:
    """A server's records wait in the user's state folder, under the name of their own ledger."""
    one, other = Spool(None, "postgresql://a/x"), Spool(None, "postgresql://a/y")
    one.add(entry(1))
    assert one.path.parent == state_dir()
    assert one.path.is_relative_to(tmp_path)
    assert one.path.parent.stat().st_mode & 0o777 == 0o700
    assert list(other.take()) == []
    assert [each for batch in one.take() for each in batch] == [entry(1)]


values = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(codec="utf-8"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.dictionaries(st.sampled_from(["model", "tool", "cost_nano"]), values), values), max_size=4)
)
def test_what_waits_comes_back_as_it_was(home: Path, found: list[Any]) -> None:
    """Any text and number survives the file, line breaks and quotes included."""
    spool = Spool(home, "ledger")
    entries: list[SpoolEntry] = [
        ("settle", {"attempt_id": uuid.uuid4(), **row, "metadata": {"x": value}}, {"l": "v"}) for row, value in found
    ]
    for each in entries:
        spool.add(each)
    assert [each for batch in spool.take() for each in batch] == entries


def release_when(condition: threading.Event, other: Any) -> threading.Thread:
    """Give the write lock back as soon as the condition holds."""

    def wait() -> None:
        assert condition.wait(30)
        other.execute("ROLLBACK")

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("opened", [True, False], ids=["open", "not yet open"])
def test_a_write_never_blocks_the_event_loop(opened: bool, home: Path) -> None:
    """While another program holds the ledger, also while it is first opened, everything else goes on."""
    path = home / "ledger.sqlite3"
    Ledger(f"sqlite:///{path}").check_writable()
    ledger, seen = Ledger(f"sqlite:///{path}"), threading.Event()
    if opened:
        ledger.check_writable()

    async def main() -> int:
        first = asyncio.ensure_future(committed(submit(ledger, "settle", settled())))
        for _ in range(500):
            await asyncio.sleep(0)
        second = asyncio.ensure_future(committed(submit(ledger, "settle", settled())))
        for _ in range(500):
            await asyncio.sleep(0)
        assert not first.done()
        assert not second.done()
        seen.set()
        await asyncio.wait_for(asyncio.gather(first, second), 30)
        return len(rows(ledger))

    with closing(open_file(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        thread = release_when(seen, other)
        assert asyncio.run(main()) == 2
        thread.join()
    ledger.close()


def test_a_write_is_seen_through_when_its_task_is_cancelled(home: Path) -> None:
    """Cancelling a call waits for its row, however often it is cancelled, and then cancels."""
    path = home / "ledger.sqlite3"
    ledger, cancelled = Ledger(f"sqlite:///{path}"), threading.Event()
    ledger.check_writable()

    async def main() -> None:
        task = asyncio.ensure_future(committed(submit(ledger, "settle", settled())))
        for _ in range(3):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        cancelled.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(rows(ledger)) == 1

    with closing(open_file(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        thread = release_when(cancelled, other)
        asyncio.run(main())
        thread.join()
    ledger.close()
