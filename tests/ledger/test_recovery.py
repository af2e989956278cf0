"""A running process goes on when its store fails: it does not hang, loses nothing, and heals without a restart."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from shared.budget import Budget, Limit
from shared.config import state_dir
from shared.errors import ConfigurationError, StoreError
from shared.internal.clock import now_us
from shared.ledger import Admission, back_up, problems, repair
from shared.ledger.engine import Patience, network_file_system
from shared.ledger.row import AttemptRow
from shared.ledger.schema import account, attempt, bucket_of, sums as stored_sums
from shared.ledger.spool import MAX_BATCH, Spool
from shared.ledger.sqlite_library import connect
from shared.ledger.store import Ledger
from shared.ledger.writes import Entry, Start, apply
from tests.support.ledger_rows import assert_exact, begin, fresh, only, rows, settled, started, write
from tests.support.paths import ROOT
from tests.support.processes import run
from tests.support.silent_proxy import SilentProxy, silent_proxy

LIMIT = Limit(Budget(1, "total"))
SHORT = Patience(0.5, 0.5)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the ledger lies."""
    return tmp_path / "home" / "ledger.sqlite3"


@pytest.fixture
def store(file: Path) -> Iterator[Ledger]:
    """A ledger that is in use."""
    ledger = Ledger(f"sqlite:///{file}")
    write(ledger, "settle", settled(agent="before"))
    yield ledger
    ledger.close()


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[SilentProxy]:
    """A proxy in front of the PostgreSQL server."""
    with silent_proxy(postgres_url.split("host=")[1]) as found:
        yield found


@pytest.mark.parametrize("word", [b"", b"BEGIN", b"INSERT", b"COMMIT"], ids=["connect", "BEGIN", "INSERT", "COMMIT"])
def test_a_silent_server_is_not_waited_for(word: bytes, postgres_url: str, proxy: SilentProxy) -> None:
    """Wherever a server goes silent, records wait, budgets refuse, reports say so; when it answers all go in once."""
    name = postgres_url.split("@/")[1].split("?", maxsplit=1)[0]
    store = Ledger(f"postgresql://postgres:x@127.0.0.1:{proxy.port}/{name}", SHORT)
    write(store, "settle", settled(agent="before"))
    proxy.silent_at = word
    row = fresh(agent="silent")
    write(store, "start", row)
    write(store, "settle", settled(row))
    assert store.waiting >= 1
    with pytest.raises(StoreError, match="cannot be written"):
        begin(store, fresh(), LIMIT)
    proxy.silent_at = None
    store.flush(30)
    assert sorted(each["agent"] for each in rows(store)) == ["before", "silent"]
    assert_exact(store)
    store.close()


def test_a_lost_connection_refuses_no_budget(postgres_url: str) -> None:
    """A connection that the server has ended is replaced at once, also in the middle of a transaction."""
    store = Ledger(postgres_url)
    write(store, "settle", settled())
    applied = store._check_clock

    def end_connection(connection: sa.Connection, started_us: list[int]) -> None:
        store._check_clock = applied  # type: ignore[method-assign]
        pid = connection.scalar(sa.text("SELECT pg_backend_pid()"))
        with psycopg.connect(postgres_url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", [pid])
        applied(connection, started_us)

    store._check_clock = end_connection  # type: ignore[method-assign]
    assert begin(store, fresh(), LIMIT).refused_by is None
    assert (len(rows(store)), store.waiting) == (2, 0)
    store.close()


def admit(connection: sa.Connection, start: Start, *, is_repeated: bool = False) -> Admission:
    """What the ledger says to one start."""
    return apply(connection, [start], is_repeated=is_repeated)[id(start)]


def test_a_start_whose_commit_is_unknown_is_held_once(store: Ledger) -> None:
    """An attempt that is committed twice is admitted twice, though its own hold leaves no room for a second one."""
    row = AttemptRow(**fresh(bound_nano=900_000_000))
    for is_repeated in (False, True):
        with store.writing() as connection:
            assert admit(connection, Start(row, (LIMIT,)), is_repeated=is_repeated).refused_by is None
    with store.writing() as connection:
        other = AttemptRow(**fresh(bound_nano=900_000_000))
        assert admit(connection, Start(other, (LIMIT,))).refused_by is not None
        connection.execute(sa.delete(account))
        connection.execute(sa.delete(attempt).where(attempt.c.attempt_id == row.attempt_id))
        assert admit(connection, Start(other, (LIMIT,)), is_repeated=True).refused_by is None
    assert_exact(store)


@pytest.mark.parametrize("how", ["moved", "deleted", "replaced"])
def test_a_ledger_that_is_gone_is_made_anew(how: str, file: Path, store: Ledger) -> None:
    """A running process neither reads nor writes a file that was moved, deleted or replaced."""
    if how == "replaced":
        other = Ledger(f"sqlite:///{file.with_name('other.sqlite3')}")
        write(other, "settle", settled(agent="other"))
        other.close()
        file.with_name("other.sqlite3").replace(file)
    elif how == "moved":
        file.rename(file.with_name("moved"))
    else:
        file.unlink()
    expected = ["other"] if how == "replaced" else []
    assert [row["agent"] for row in rows(store)] == expected
    write(store, "settle", settled(agent="after"))
    assert [row["agent"] for row in rows(store)] == [*expected, "after"]
    with closing(connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM attempt").fetchone() == (len(expected) + 1,)


def test_what_waits_is_entered_batch_by_batch(store: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay never holds the lock for more than a few records, so that others get their turn."""
    store._writer.down_until = float("inf")
    for _ in range(2 * MAX_BATCH + 1):
        write(store, "settle", settled())
    sizes: list[int] = []
    commit = store._commit

    def counted(entries: list[Entry], *, is_repeated: bool) -> dict[int, Admission]:
        sizes.append(len(entries))
        return commit(entries, is_repeated=is_repeated)

    monkeypatch.setattr(store, "_commit", counted)
    store._writer.down_until = 0
    store.flush(30)
    assert sizes == [MAX_BATCH, MAX_BATCH, 1]
    assert_exact(store)


def plant(line: object, folder: Path, store: Ledger) -> None:
    """Put a line into the spool file that the ledger would use in a folder."""
    path = folder / store._spool.path.name
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(line) + "\n")
    path.chmod(0o600)


def spooled(**changes: object) -> list[object]:
    """A settled record, as it waits in the spool."""
    row = {**settled(), **changes}
    return ["settle", {k: str(v) if k.endswith("_id") else v for k, v in row.items()}, {}]


@pytest.mark.parametrize(
    "changes",
    [
        {"cost_nano": -1_000_000_000},
        {"bound_nano": -1},
        {"prompt_tokens": -1},
        {"cost_nano": 10**18},
        {"cost_nano": "7"},
        {"cost_nano": True},
        {"bucket": 1},
        {"status": "free"},
        {"calls": 5},
        {"metadata": "text"},
        {"model": None},
        {"invented": 1},
    ],
    ids=lambda changes: "-".join(map(str, *changes.items())),
)
def test_what_waits_is_checked_like_any_input(changes: dict[str, object], file: Path, store: Ledger) -> None:
    """A record that this program cannot have written is set aside, and opens no budget."""
    plant(spooled(**changes), file.parent, store)
    store._spool.is_used = True
    store.flush()
    assert only(store)["agent"] == "before"
    assert [letters.parent for letters in store.dead_letters()] == [file.parent]


def test_an_adjustment_may_be_negative(file: Path, store: Ledger) -> None:
    """What corrects a bill downwards is an adjustment, also when it had to wait."""
    plant(spooled(operation="adjustment", status="reported", calls=0, cost_nano=-5), file.parent, store)
    store._spool.is_used = True
    store.flush()
    assert sorted(row["cost_nano"] for row in rows(store)) == [-5, 7000]


def test_lines_that_are_no_records_keep_no_other_back(file: Path, store: Ledger) -> None:
    """Lines that cannot be parsed, however they are broken, are set aside, and what stands between them goes in."""
    path = store._spool.path
    lines = [b"garbage", b"[" * 100_000, b'["settle", {"a": ' + b"9" * 5000 + b"}, {}]", b"\xff\xfe", b"{}"]
    good = json.dumps(spooled(agent="good")).encode()
    path.write_bytes(b"\n".join([lines[0], good, *lines[1:]]) + b"\n")
    path.chmod(0o600)
    store._spool.is_used = True
    store.flush()
    assert sorted(row["agent"] for row in rows(store)) == ["before", "good"]
    [letters] = store.dead_letters()
    assert [line for line in letters.read_bytes().split(b"\n") if line] == lines


@pytest.mark.parametrize("how", ["open to all", "a link", "somebody else's"])
def test_a_spool_that_others_can_write_is_not_read(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that another user could have prepared is neither read nor written."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder, elsewhere = state_dir(), tmp_path / "elsewhere"
    planted = Spool(None, "ledger")
    elsewhere.mkdir()
    (elsewhere / planted.path.name).write_text(json.dumps(spooled()) + "\n")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if how == "a link":
        folder.symlink_to(elsewhere)
    else:
        shutil.copytree(elsewhere, folder)
        folder.chmod(0o777 if how == "open to all" else 0o700)
    if how == "somebody else's":
        if os.getuid():
            pytest.skip("only root can give a folder away")
        os.chown(folder, 12345, -1)
    spool = Spool(None, "ledger")
    assert spool.waiting() == 0
    assert list(spool.take()) == []
    spool.add(("event", {"a": 1}, {}))
    assert not spool.path.is_relative_to(folder)
    assert not spool.path.is_relative_to(elsewhere)


def test_a_record_from_a_clock_that_was_ahead_is_mended(store: Ledger) -> None:
    """The refusal names the row's machine and time; repair dates it to now, and the budget is open again."""
    later = now_us() + 7 * 24 * 3600 * 1_000_000
    daily = Limit(Budget(5, "day"))
    write(store, "settle", settled(ts_us=later, bucket=bucket_of(later), machine="web-3"))
    refused = begin(store, fresh(), daily)
    assert refused.reason is not None
    assert "by the clock of web-3" in refused.reason
    assert [each for each in problems(store) if "ahead" in each] == ["1 records are from a clock that was ahead"]
    repair(store)
    assert list(problems(store)) == []
    assert begin(store, fresh(), daily).refused_by is None
    assert_exact(store)


def test_wrong_sums_are_found_and_mended(store: Ledger) -> None:
    """Check compares the sums with the records, and repair computes them anew."""
    assert_exact(store)
    with store.changing() as connection:
        changed = connection.execute(sa.update(stored_sums).values(cost_nano=1)).rowcount
    assert list(problems(store)) == [f"{changed:,} sums differ from their records"]
    repair(store)
    assert list(problems(store)) == []
    assert_exact(store)


def test_a_backup_is_whole_while_the_ledger_is_open(file: Path, store: Ledger, postgres_url: str) -> None:
    """The copy has what was written a moment ago, is not written over, and is a ledger itself."""
    target = file.with_name("backup.sqlite3")
    back_up(store, target)
    assert [row["agent"] for row in rows(Ledger(f"sqlite:///{target}"))] == ["before"]
    assert target.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigurationError, match="exists already"):
        back_up(store, target)
    with pytest.raises(ConfigurationError, match="not a file"):
        back_up(Ledger(postgres_url), file.with_name("other"))
    write(store, "settle", settled())
    assert len(rows(store)) == 2


def test_a_network_folder_is_recognised(tmp_path: Path) -> None:
    """The mount around a path decides, the innermost one, also with a space in its name."""
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/a / ext4 rw 0 0\nsrv:/x /mnt/my\\040share nfs4 rw 0 0\ntmp /mnt/my\\040share/t tmpfs rw 0 0\n"
    )
    found = {
        place: network_file_system(Path(place), mounts)
        for place in ("/home/x.db", "/mnt/my share/x.db", "/mnt/my share/t/x.db", "/mnt/my sharex")
    }
    assert list(found.values()) == [None, "nfs4", None, None]


BUSY_FORK = """
import os, sys, threading
from shared.ledger import get_ledger
from shared.ledger.sqlite_library import connect
from tests.support.ledger_rows import settled, submit, rows
url = sys.argv[1]
stop = threading.Event()
def work():
    while not stop.is_set():
        submit(get_ledger(url), "settle", settled()).result(30)
        with get_ledger(url).reading() as connection:
            connection.exec_driver_sql("SELECT count(*) FROM attempt").scalar()
threads = [threading.Thread(target=work) for _ in range(3)]
[each.start() for each in threads]
for _ in range(4):
    child = os.fork()
    if child == 0:
        submit(get_ledger(url), "settle", settled(agent="child")).result(30)
        get_ledger(url).flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
[each.join() for each in threads]
print(sum(row["agent"] == "child" for row in rows(get_ledger(url))))
"""


def test_a_busy_process_can_fork(file: Path) -> None:
    """A child of a process whose threads are writing and reading writes as well; it does not hang."""
    done = run(BUSY_FORK, f"sqlite:///{file}")
    assert (done.stdout, done.stderr) == ("4\n", "")


def test_importing_starts_no_thread() -> None:
    """Importing the package, and making a client, starts no thread that a fork could break, and no LiteLLM and such."""
    code = (
        "import threading, sys; import shared.llm_client, shared.analytics, shared.ledger.store, shared.calls; "
        "shared.llm_client.LLMClient(); print(threading.active_count(), "
        "*(name for name in sys.modules if name.partition('.')[0] in ('litellm', 'opentelemetry')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "1\n"


def test_a_deleted_working_directory_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absolute ledger works without a working directory; a relative one is refused with a sentence."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    relative = Ledger("sqlite:///here.sqlite3")
    folder.rmdir()
    store = Ledger(f"sqlite:///{tmp_path / 'there.sqlite3'}")
    write(store, "settle", settled())
    assert len(rows(store)) == 1
    store.close()
    assert relative.file == folder / "here.sqlite3"
    with pytest.raises(ConfigurationError, match="working directory, which was deleted"):
        Ledger("sqlite:///here.sqlite3")


def test_a_hung_write_is_given_up(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the database's thread never comes back, as on a dead network folder, callers get their answer."""
    store, blocked = Ledger(f"sqlite:///{file}", Patience(0.2, 0.2)), threading.Event()
    monkeypatch.setattr(store, "_apply", lambda _items: blocked.wait(60))
    write(store, "settle", settled(started(agent="kept")))
    assert store.waiting == 1
    monkeypatch.undo()
    blocked.set()
    store.flush(30)
    assert only(store)["agent"] == "kept"
    store.close()
