"""Stores that cannot be written: every call is answered, nothing is lost, and each record goes in once, later."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from shared.analytics import get_llm_costs
from shared.budget import Budget
from shared.errors import StoreError
from shared.ledger.engine import may_use_wal
from shared.ledger.records import attempt_records
from shared.ledger.schema import account
from shared.ledger.store import Ledger, get_ledger
from shared.llm_client import LLMClient
from tests.support.asking import HELLO
from tests.support.provider_double import Double

CALLS = 60
# How much longer than promised a loaded machine may take.
SLACK_S = 1.0
_HOLD = """
import sqlite3, sys
other = sqlite3.connect(sys.argv[1], isolation_level=None)
other.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What waits elsewhere than beside the ledger, waits here."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for nothing but the ledger."""
    folder = tmp_path / "store"
    folder.mkdir()
    monkeypatch.setenv("AGENTSWARM_DATABASE_URL", f"sqlite:///{folder / 'ledger.sqlite3'}")
    return folder


@pytest.fixture
def store(home: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """The ledger there, in use already, that gives up on a lock after a tenth of a second."""
    monkeypatch.setenv("AGENTSWARM_STORE_TIMEOUT", "0.1")
    get_ledger.cache_clear()
    ledger = get_ledger(os.environ["AGENTSWARM_DATABASE_URL"])
    ledger.check_writable()
    return ledger


def call(count: int) -> list[str]:
    """Make so many calls; every one of them must be answered."""
    client = LLMClient(max_retries=0)
    answers = [client.chat_completion(HELLO, model="openai/gpt-5.4-mini") for _ in range(count)]
    return [answer.metadata["call_id"] for answer in answers]


def all_there(ledger: Ledger, acknowledged: list[str]) -> None:
    """The store is well again, and each call is in it once."""
    ledger._writer.down_until = 0
    ledger.flush()
    assert ledger.waiting == 0
    assert ledger.dead_letters() == []
    rows = list(attempt_records(ledger))
    assert sorted(str(row["call_id"]) for row in rows) == sorted(acknowledged)
    assert {row["status"] for row in rows} == {"ok"}
    costs = get_llm_costs(days=1)
    assert costs["total_calls"] == len(acknowledged)
    assert costs["total_cost_nano"] == sum(row["cost_nano"] for row in rows)
    with ledger.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """Something is mounted on a folder; the test is skipped where that is not allowed."""
    done = subprocess.run(["/bin/mount", *options, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting needs the rights of root: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["/bin/umount", "--lazy", str(folder)], check=True)


@contextmanager
def files_stay_small(_: Path) -> Iterator[None]:
    """No file of this process grows beyond 48 KiB, neither the ledger's nor what waits beside it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (48 * 1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def folder_full(home: Path) -> Iterator[None]:
    """The ledger's folder has no block left."""
    filler = home / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 1024):
            pass
    try:
        yield
    finally:
        filler.unlink()


@pytest.mark.parametrize("full", [files_stay_small, folder_full])
def test_disk_full(
    full: Callable[[Path], AbstractContextManager[None]], hosted: Double, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk is full calls are answered and records wait elsewhere; when there is room again they go in."""
    tiny = mounted(home, "-t", "tmpfs", "-o", "size=1m", "none") if full is folder_full else nullcontext()
    with tiny:
        ledger = get_ledger(os.environ["AGENTSWARM_DATABASE_URL"])
        acknowledged = call(3)
        with full(home):
            acknowledged += call(CALLS)
            assert ledger.waiting > 0
            if full is folder_full:  # a limit on files also keeps SQLite from rolling back, which reading may need
                costs = get_llm_costs(days=1)
                assert costs["waiting_records"] == ledger.waiting
                assert costs["total_calls"] >= 3
        all_there(ledger, acknowledged + call(3))
        ledger.close()


def test_read_only_folder(hosted: Double, home: Path, store: Ledger) -> None:
    """In a folder that cannot be written calls are answered, records wait in the state folder, and go in later."""
    acknowledged = call(3)
    store.close()
    get_ledger.cache_clear()
    with mounted(home, "--bind", str(home)):
        subprocess.run(["/bin/mount", "-o", "remount,ro,bind", str(home)], check=True)
        acknowledged += call(CALLS)
        ledger = get_ledger(os.environ["AGENTSWARM_DATABASE_URL"])
        assert ledger.waiting == 2 * CALLS
        assert Path(ledger.waiting_in).is_file()
        assert home not in Path(ledger.waiting_in).parents
        assert get_llm_costs(days=1)["waiting_records"] == ledger.waiting
    all_there(ledger, acknowledged + call(3))


def test_locked_store(hosted: Double, home: Path, store: Ledger) -> None:
    """While another program holds the ledger calls are answered and records wait; when it lets go they go in."""
    acknowledged = call(3)
    command = [sys.executable, "-c", _HOLD, str(home / "ledger.sqlite3")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        acknowledged += call(CALLS)
        assert store.waiting == 2 * CALLS
        if may_use_wal(home):  # readers do not wait for writers
            assert get_llm_costs(days=1)["waiting_records"] == 2 * CALLS
        else:
            with pytest.raises(StoreError):
                get_llm_costs(days=1)
        other.communicate()
    all_there(store, acknowledged + call(3))


@pytest.mark.parametrize("opened", [True, False], ids=["while open", "before it is opened"])
def test_corrupt_store(hosted: Double, home: Path, store: Ledger, opened: bool) -> None:
    """
    With a damaged ledger calls are answered and reports say so; moved away, a new one takes what waited.

    A small ledger that is open is whole in its write-ahead log, which mends the file.
    """
    before = call(3)
    if not opened:
        store.close()
        get_ledger.cache_clear()
    file, damage = home / "ledger.sqlite3", b"no database " * 4096
    for beside in home.glob("ledger.sqlite3-*"):
        beside.unlink()
    file.write_bytes(damage)
    acknowledged = call(CALLS)
    ledger = get_ledger(os.environ["AGENTSWARM_DATABASE_URL"])
    if opened and may_use_wal(home):
        all_there(ledger, [*before, *acknowledged, *call(3)])
        return
    assert ledger.waiting == 2 * CALLS
    with pytest.raises(StoreError, match="cannot be read"):
        get_llm_costs(days=1)
    assert file.read_bytes() == damage
    ledger.close()
    file.rename(home / "damaged")
    get_ledger.cache_clear()
    all_there(get_ledger(os.environ["AGENTSWARM_DATABASE_URL"]), [*acknowledged, *call(3)])


TERMINATED, WITHIN_S = 20, 5.0


def test_connections_that_the_server_ends(
    hosted: Double, postgres_url: str, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """While the server ends every connection again and again, calls go on, budgeted ones all but for a moment."""
    monkeypatch.setenv("AGENTSWARM_DATABASE_URL", postgres_url)
    ledger = get_ledger(postgres_url)
    ledger.check_writable()
    over = threading.Event()
    answered: list[str] = []
    refused: list[float] = []
    admitted: list[float] = []

    def work(budget: Budget | None) -> None:
        client = LLMClient(max_retries=0, budget=budget)
        while not over.is_set():
            try:
                answer = client.chat_completion(HELLO, model="openai/gpt-5.4-mini")
            except StoreError:
                assert budget is not None
                refused.append(time.monotonic())
            else:
                answered.append(answer.metadata["call_id"])
                if budget is not None:
                    admitted.append(time.monotonic())

    with ThreadPoolExecutor(6) as pool, psycopg.connect(postgres_url, autocommit=True) as operator:
        workers = [pool.submit(work, Budget(1000.0) if number % 2 else None) for number in range(6)]
        try:
            for _ in range(TERMINATED):
                over.wait(WITHIN_S / TERMINATED)
                operator.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            while not admitted or (refused and refused[-1] > admitted[-1]):
                over.wait(0.05)
        finally:
            over.set()
        for worker in workers:
            worker.result()
    hosted.wait_idle()
    for first in refused:
        assert min(each for each in admitted if each > first) - first < 1.0 + SLACK_S
    ledger._writer.down_until = 0
    ledger.flush(30)
    assert (ledger.waiting, ledger.dead_letters()) == (0, [])
    rows = list(attempt_records(ledger))
    sent = [row for row in rows if row["status"] != "refused"]
    assert len(sent) == len(hosted.requests) == len(answered)
    assert {str(row["call_id"]) for row in sent} == set(answered)
    costs = get_llm_costs(days=1)
    assert (costs["total_calls"], costs["total_cost_nano"]) == (len(sent), sum(row["cost_nano"] for row in sent))
    with ledger.reading() as connection:
        assert connection.scalars(sa.select(account.c.counted_nano)).all() == [costs["total_cost_nano"]]
