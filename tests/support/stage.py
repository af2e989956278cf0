"""What every test stands on: a clean environment, a ledger of its own, and no network but loopback."""

from __future__ import annotations

import itertools
import os
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest
from pytest_socket import enable_socket, socket_allow_hosts

from shared.calls import selection
from shared.calls.cooldown import cooldowns
from shared.ledger.store import Ledger, get_ledger
from shared.llm_client import reset_llm_client
from shared.providers import endpoints, use_transport
from tests.support import postgres, processes, statements
from tests.support.provider_double import Double, dial

_OURS = ("AGENTSWARM_", "LITELLM_")
_OLLAMA_PORT = 11434
_SECRET = ("_API_KEY", "_API_TOKEN", "_API_BASE", "_BASE_URL", "HF_TOKEN")


# Looked up once: pytest-socket would look "localhost" up for each test.
_LOOPBACK: dict[str, set[str]] = {"localhost": {"127.0.0.1", "::1"}}
_folders = itertools.count()

statements.share()


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the test's own, by number: pytest's own fixture takes longer than many a test does."""
    path = tmp_path_factory.getbasetemp() / f"test-{next(_folders)}"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger as it is created, to be copied: creating it takes longer than most tests do."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite3"
    ledger = Ledger(f"sqlite:///{path}")
    ledger._open()
    ledger.close()
    return path


@pytest.fixture(autouse=True)
def clean_environment(empty_ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No settings, keys, .env or data folder of the person who runs the tests."""
    for name in list(os.environ):
        if name.startswith(_OURS) or name.endswith(_SECRET):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    monkeypatch.setenv("AGENTSWARM_DATABASE_URL", f"sqlite:///{shutil.copy(empty_ledger, tmp_path)}")
    monkeypatch.setenv("AGENTSWARM_TIMEZONE", "UTC")
    monkeypatch.chdir(home)
    reset_llm_client()
    cooldowns.reset()
    selection.forget()
    yield
    get_ledger.cache_clear()
    reset_llm_client()


@pytest.fixture(autouse=True)
def loopback_only(pytestconfig: pytest.Config) -> Iterator[None]:
    """Any connection to another machine fails, unless a person records from a real endpoint."""
    if pytestconfig.getoption("--live"):
        yield
        return
    # For each test anew: pytest-socket lets everything through after each.
    socket_allow_hosts(["127.0.0.1", "::1", "localhost"], allow_unix_socket=True, resolution_cache=_LOOPBACK)
    yield
    enable_socket()


@pytest.fixture(autouse=True, scope="session")
def programs_end() -> Iterator[None]:
    """The process that programs of tests are forked from ends with the tests."""
    yield
    processes.end()


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


@pytest.fixture(autouse=True, scope="session")
def dial_the_double(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test can reach a provider: their names lead to the double, for every client of this process."""
    if all(item.get_closest_marker("vcr") for item in request.session.items):
        yield  # cassettes need no server
        return
    provider_double: Double = request.getfixturevalue("provider_double")

    context = ssl.create_default_context()  # reading the system's certificates takes 20 ms

    def network() -> httpx.AsyncBaseTransport:
        inner = dial.async_transport(provider_double.address)
        inner._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            # A host that a test takes down must not be reached through an older connection.
            max_keepalive_connections=0,
            network_backend=_Dial(provider_double.address),
        )
        return inner

    with use_transport(network):
        yield


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
def ledger() -> Ledger:
    """The ledger that this test's clients and tools write to."""
    return get_ledger(os.environ["AGENTSWARM_DATABASE_URL"])
