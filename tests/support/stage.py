"""What every test stands on: a clean environment, a ledger of its own, and no network but loopback."""

from __future__ import annotations

import itertools
import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest
from pytest_socket import socket_allow_hosts

from shared.calls import selection
from shared.calls.cooldown import cooldowns
from shared.ledger import store
from shared.ledger.store import Ledger, get_ledger
from shared.ledger.writer import Item, Writer, _Job
from shared.llm_client import reset_llm_client
from shared.providers import endpoints, use_transport
from tests.support import postgres, processes, statements
from tests.support.provider_double import Double, dial
from tests.support.provider_double.fixtures import the_double

_OURS = ("AGENTSWARM_", "LITELLM_")
_OLLAMA_PORT = 11434
_SECRET = ("_API_KEY", "_API_TOKEN", "_API_BASE", "_BASE_URL", "HF_TOKEN")


_folders = itertools.count()
_folder = Path()
_rest = ExitStack()
_patch = pytest.StashKey[pytest.MonkeyPatch]()

statements.share()


def pytest_collection_finish(session: pytest.Session) -> None:
    """From here on any connection to another machine fails, unless a person records from a real endpoint."""
    if session.config.option.collectonly:  # perhaps a test lists tests
        return
    if not session.config.getoption("--live"):
        socket_allow_hosts(["127.0.0.1", "::1", "localhost"], allow_unix_socket=True)
    _rest.enter_context(use_transport(_network))


# Hooks instead of fixtures: pytest spends half a millisecond on a fixture before it does anything, and all tests pass
# here.
@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Give a test its folder and its ledger, and none of the settings, keys and files of whoever runs the tests."""
    global _folder
    base: pytest.TempPathFactory = item.config._tmp_path_factory  # type: ignore[attr-defined]
    _folder = base.getbasetemp() / f"test-{next(_folders)}"
    home = _folder / "home"
    _folder.mkdir(mode=0o700)
    home.mkdir()
    patch = item.stash[_patch] = pytest.MonkeyPatch()
    for name in list(os.environ):
        if name.startswith(_OURS) or name.endswith(_SECRET):
            patch.delenv(name)
    patch.setenv("HOME", str(home))
    patch.setenv("XDG_DATA_HOME", str(home / "data"))
    patch.setenv("AGENTSWARM_TIMEZONE", "UTC")
    patch.chdir(home)
    ledger = _folder / "ledger.sqlite3"
    _write(ledger, _empty_ledger(base.getbasetemp()))
    patch.setenv("AGENTSWARM_DATABASE_URL", f"sqlite:///{ledger}")
    if not item.get_closest_marker("vcr"):  # a cassette needs no server
        the_double()
    reset_llm_client()
    cooldowns.reset()
    selection.forget()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """After all fixtures of the test."""
    try:
        return (yield)
    finally:
        get_ledger.cache_clear()
        reset_llm_client()
        for ledger in [each for each in store._started if each.file and each.file.is_relative_to(_folder)]:
            store._started.remove(ledger)
            _end(ledger)
        item.stash[_patch].undo()


class _End(Item):
    """What a ledger's writer ends with, when it looks at it."""

    @property
    def entry(self) -> None:
        raise SystemExit


def _end(ledger: Ledger) -> None:
    """End a ledger's threads, which wait for work as long as a program runs: a thousand tests would leave thousands."""
    writer = ledger._writer
    writer._messages.put(object.__new__(_End))
    if writer._jobs is not None:
        writer._jobs.put(_Job(lambda: None, [], 0.0, is_abandoned=True))
    ledger._forget_engine()
    ledger.finish = lambda: None  # type: ignore[method-assign]  # nobody would answer it at exit


def _until_ended(writer: Writer, run: Callable[[Writer], None] = Writer._run) -> None:
    with suppress(SystemExit):  # pytest would report it
        run(writer)


Writer._run = _until_ended  # type: ignore[assignment,method-assign]


@cache
def _empty_ledger(folder: Path) -> bytes:
    """A ledger as it is created, to be copied: creating it takes longer than most tests do."""
    path = folder / "empty-ledger.sqlite3"
    ledger = Ledger(f"sqlite:///{path}")
    ledger._open()
    ledger.close()
    return path.read_bytes()


def _write(path: Path, content: bytes) -> None:
    """Write a file that only this user may read, as the ledger creates its own."""
    file = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    os.write(file, content)
    os.close(file)


@pytest.fixture
def tmp_path() -> Path:
    """A folder of the test's own, by number: pytest's own fixture takes longer than many a test does."""
    return _folder


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The process that programs of tests are forked from ends with the tests."""
    if not session.config.option.collectonly:
        processes.end()
        _rest.close()


class _Dial(dial.AsyncBackend):
    """Provider hosts lead to the double; servers that a test runs on loopback are dialled as they are."""

    async def connect_tcp(self, host: str, port: int, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        if host in ("127.0.0.1", "localhost") and port != _OLLAMA_PORT:
            return await httpcore.AnyIOBackend().connect_tcp(host, port, *args, **kwargs)
        return await super().connect_tcp(host, port, *args, **kwargs)


@pytest.fixture
def hosted(double: Double, monkeypatch: pytest.MonkeyPatch) -> Double:
    """The provider double behind the real host names of all providers, with keys for them."""
    endpoints.import_litellm()  # takes seconds the first time, which a test's deadline must not pay for
    for name in ("OPENAI", "ANTHROPIC", "GEMINI", "COHERE", "MISTRAL", "GROQ", "DEEPSEEK", "XAI", "OPENROUTER"):
        monkeypatch.setenv(f"{name}_API_KEY", f"sk-test-{name.lower()}-0123456789")
    return double


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()  # reading the system's certificates takes 20 ms


def _network() -> httpx.AsyncBaseTransport:
    """No test can reach a provider: their names lead to the double, for every client of this process."""
    address = the_double().address
    inner = dial.async_transport(address)
    inner._pool = httpcore.AsyncConnectionPool(
        ssl_context=_tls(),
        # A host that a test takes down must not be reached through an older connection.
        max_keepalive_connections=0,
        network_backend=_Dial(address),
    )
    return inner


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A PostgreSQL server for all tests of this process."""
    folder = postgres.programs()
    if folder is None:
        pytest.skip("PostgreSQL is not installed (initdb and pg_ctl were not found).")
    with postgres.running(folder) as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """The URL of an empty PostgreSQL database."""
    return postgres.new_database(postgres_server)


@pytest.fixture
def postgres_ledger(postgres_server: str) -> str:
    """The URL of a ledger in PostgreSQL, as it is created."""
    return postgres.new_ledger(postgres_server)


@pytest.fixture
def ledger() -> Ledger:
    """The ledger that this test's clients and tools write to."""
    return get_ledger(os.environ["AGENTSWARM_DATABASE_URL"])
