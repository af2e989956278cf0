"""PostgreSQL as it is run: by a role that creates nothing, through a pooler, by writers that do not wait in line."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from shared.budget import Budget, Limit
from shared.errors import StoreError
from shared.internal.clock import new_id
from shared.ledger.driver import Driver
from shared.ledger.row import AttemptRow
from shared.ledger.schema import event, meta
from shared.ledger.store import Ledger
from tests.support.ledger_rows import assert_exact, begin, rows, settled, started, write

LIMIT = Limit(Budget(1.0))


def as_role(url: str, role: str) -> str:
    """The URL for another role of the same database."""
    return url.replace("postgres:hunter2@", f"{role}:x@")


def test_the_role_of_a_running_program_creates_nothing(postgres_url: str) -> None:
    """A role with the rights to read and write rows is enough; the tables are made by another one, and it says so."""
    role = f"r{os.urandom(4).hex()}"
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        owner.execute(f"CREATE ROLE {role} LOGIN")
        early = Ledger(as_role(postgres_url, role))
        with pytest.raises(StoreError, match="permission denied"):
            early.check_writable()
        early.close()
        migration = Ledger(postgres_url)
        migration.check_writable()
        migration.close()
        owner.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
    store = Ledger(as_role(postgres_url, role))
    row = started()
    assert begin(store, row, LIMIT).refused_by is None
    write(store, "settle", settled(row))
    assert [each["status"] for each in rows(store)] == ["ok"]
    assert_exact(store)
    store.close()


@pytest.fixture
def pooled(postgres_url: str, tmp_path: Path) -> Iterator[str]:
    """The database behind PgBouncer, which gives each transaction whichever connection is free."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("PgBouncer is not installed.")
    name, folder = postgres_url.split("@/")[1].split("?host=")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = tmp_path / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n{name} = host={folder} dbname={name} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 2\n"
    )
    settings.chmod(0o644)
    for each in (tmp_path, *tmp_path.parents):
        if (mode := each.stat().st_mode) & 0o011 != 0o011:
            each.chmod(mode | 0o011)
    nobody: dict[str, Any] = {"user": pwd.getpwnam("nobody").pw_uid} if os.geteuid() == 0 else {}
    with subprocess.Popen([program, "-q", settings], **nobody) as bouncer:
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert bouncer.poll() is None
                assert time.monotonic() < until
        try:
            yield f"postgresql://postgres:x@127.0.0.1:{port}/{name}"
        finally:
            bouncer.terminate()


def test_a_pooler_may_change_the_connection_with_each_transaction(pooled: str) -> None:
    """Eight ledgers share two connections to the server: budgets hold, and nothing is kept in a session."""
    stores = [Ledger(pooled) for _ in range(8)]
    stores[0].check_writable()

    def work(store: Ledger) -> None:
        for _ in range(6):
            row = started()
            assert begin(store, row, LIMIT).refused_by is None
            write(store, "settle", settled(row))
            rows(store)

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rows(stores[0])) == 48
    assert_exact(stores[0])
    for store in stores:
        store.close()


def test_a_budget_that_is_held_up_holds_up_no_other(postgres_url: str) -> None:
    """While one customer's running total is locked, attempts of other customers go on; its own wait."""
    store, other = Ledger(postgres_url), Ledger(postgres_url)
    limits = (Limit(Budget(1.0, scope="customer")),)

    def start(ledger: Ledger, customer: str) -> AttemptRow:
        row = AttemptRow(**started(), labels={"customer": customer})
        assert ledger.start(row, limits).result(30).refused_by is None
        return row

    for customer in ("acme", "globex"):
        start(store, customer)
    with psycopg.connect(postgres_url) as held:
        held.execute("SELECT 1 FROM account WHERE whose LIKE '%acme%' FOR UPDATE")
        assert held.execute("SELECT count(*) FROM attempt").fetchone() == (2,)
        for _ in range(3):
            start(other, "globex")
        waiting = store.start(AttemptRow(**started(), labels={"customer": "acme"}), limits)
        assert not waiting.done()
        held.rollback()
    assert waiting.result(30).refused_by is None
    assert len(rows(store)) == 6
    assert_exact(store)
    for ledger in (store, other):
        ledger.close()


class Relay:
    """A way to the server that counts round trips: how often the program speaks after the server has."""

    def __init__(self, postgres_url: str) -> None:
        self.name, folder = postgres_url.split("@/")[1].split("?host=")
        self._server = f"{folder}/.s.PGSQL.5432"
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"postgresql://postgres:x@127.0.0.1:{self._listening.getsockname()[1]}/{self.name}"
        self.trips = 0
        self._spoke_last: socket.socket | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listening.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                for ends in ((client, server, 1), (server, client, 0)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, trips: int) -> None:
        with source, suppress(OSError):
            while data := source.recv(65536):
                if trips and self._spoke_last is not source:  # only the program's thread writes: none is lost
                    self.trips += trips
                self._spoke_last = source
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Take no more connections."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


def test_two_round_trips_for_each_write(postgres_url: str) -> None:
    """A start, and a settle, reads and locks all that it needs at once, and writes all at once with the commit."""
    relay = Relay(postgres_url)
    store = Ledger(relay.url)
    for _ in range(2):
        begin(store, started(), LIMIT)  # begins the running total, and learns that there is one
    before = relay.trips
    begin(store, row := started(), LIMIT)
    assert relay.trips - before == 2
    write(store, "settle", settled(row))
    assert relay.trips - before == 4
    store.close()
    relay.close()


@pytest.mark.parametrize("is_first", [False, True])
def test_a_refused_statement_costs_no_connection(
    is_first: bool, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What the server refuses among statements sent together is raised as it is; the connection stays in use."""
    pid = sa.text("SELECT pg_backend_pid()")
    store = Ledger(postgres_url)
    store.check_writable()
    with store.writing() as connection:
        first = connection.scalar(pid)
    with pytest.raises(sa.exc.IntegrityError, match="ledger_meta"), store.writing() as connection:
        write_one_twice(connection, is_first=is_first)
    with store.writing() as connection:
        assert connection.scalar(pid) == first
        assert set(connection.scalars(sa.select(meta.c.name))) == {"major", "minor"}
    store.close()
    assert caplog.messages == []


def write_one_twice(connection: sa.Connection, *, is_first: bool) -> None:
    """Rows of which one is there already: the first, or one between two that are not."""
    driver = Driver.of(connection)
    with driver.together(and_commit=True):
        for name in ("major", "first", "next") if is_first else ("first", "major", "next"):
            driver.insert(meta, [{"name": name, "value": 1}], ("name", "value"), may_be=False)


TEXTS = ("O'Hara", "\\", "\\'; DROP TABLE event; --", "%s %(a)s %%", '{"a",NULL}', "NULL", "$1 :a ?", "\N{SNOWMAN}\n")


@pytest.mark.parametrize("backslash", ["on", "off"])
@pytest.mark.parametrize("rows_at_once", [1, len(TEXTS)])
def test_a_text_is_never_a_statement(rows_at_once: int, backslash: str, postgres_url: str) -> None:
    """Texts that look like SQL, patterns or arrays are stored as they are, alone and with others, new and changed."""
    store = Ledger(postgres_url)
    written: list[dict[str, Any]] = [
        {"event_id": new_id(), "ts_us": place, "event_type": "x", "tool": text, "labels": {text: text}}
        for place, text in enumerate(TEXTS)
    ]
    changed = [each | {"tool": each["tool"][::-1], "labels": [each["tool"]]} for each in written]
    with store.writing() as connection:
        connection.exec_driver_sql(f"SET LOCAL standard_conforming_strings = {backslash}")
        driver, names = Driver.of(connection), ("event_id", "ts_us", "event_type", "tool", "labels")
        query = sa.select(*(event.c[name] for name in names)).order_by(event.c.ts_us)
        for first in range(0, len(TEXTS), rows_at_once):
            driver.insert(event, written[first : first + rows_at_once], names)
        assert [dict(row) for row in connection.execute(query).mappings()] == written
        for first in range(0, len(TEXTS), rows_at_once):
            driver.change(event, changed[first : first + rows_at_once], ("tool", "labels"))
        assert [dict(row) for row in connection.execute(query).mappings()] == changed
        for text in TEXTS:
            assert driver.read(("SELECT %s::text", [text]), ("SELECT %s = ANY(%s)", [text, list(TEXTS)])) == [
                [(text,)],
                [(True,)],
            ]
    store.close()
