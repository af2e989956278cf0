"""Fixtures of the cassette tests: strict replay by default, recording from where the test and the options say."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest
from vcr import VCR
from vcr.cassette import Cassette

from shared.providers import response_stream, use_transport
from tests.support.paths import CASSETTES
from tests.support.provider_double import Double, dial
from tests.support.recording import groups, live, strict
from tests.support.recording.cassette import Persister, read
from tests.support.recording.filters import Filters

pytest.register_assert_rewrite("tests.support.recording.asking")

FOLDER = CASSETTES

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL|ORGANI[SZ]ATION|PROJECT_ID")
# As they were before a test cleans them away; conftest.py imports this after agency_swarm has read its .env.
ENVIRONMENT = dict(os.environ)

# Fixtures of pytest-recording that every test would have, and with them half of what an empty test takes.
_AUTOMATIC = ("vcr", "vcr_markers", "vcr_cassette_dir", "block_network", "record_mode", "disable_recording")

_shape_changes: dict[str, list[str]] = {}
_origin = pytest.StashKey[str]()
_filters = pytest.StashKey[Filters]()
_complaints = pytest.StashKey[list[str]]()
_cassette = pytest.StashKey[Cassette]()


def pytest_configure(config: pytest.Config) -> None:
    provider = config.getoption("--live")
    if provider is not None:
        live.check(provider, ENVIRONMENT)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a live recording only the provider's own tests take part, of any recording only those with a cassette."""
    for item in items:
        if isinstance(item, pytest.Function) and not item.get_closest_marker("vcr"):
            item.fixturenames[:] = [name for name in item.fixturenames if name not in _AUTOMATIC]
    if not is_recording(config):
        return
    provider = config.getoption("--live")
    kept = [item for item in items if item.get_closest_marker("vcr") and (not provider or live.plays(item, provider))]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What a live recording has changed in the shape of the answers."""
    if not config.getoption("--live"):
        return
    terminalreporter.section("shapes: + only live, - only before")
    for name, changes in sorted(_shape_changes.items()):
        terminalreporter.write_line(f"{name}: {'the same' if not changes else ''}")
        for change in changes:
            terminalreporter.write_line(f"  {change}")


def is_recording(pytestconfig: pytest.Config) -> bool:
    """Whether this run writes cassettes."""
    return (pytestconfig.getoption("--record-mode") or "none") != "none"


def recorders_secrets() -> list[str]:
    """Values of the recorder's environment that no cassette may hold."""
    found = {value for name, value in ENVIRONMENT.items() if _SECRET.search(name.upper()) and len(value) >= 8}
    return sorted(value for value in found if "/" not in value and not value.isdigit())


class Wary(Persister):
    """Refuses to write what holds a secret of the recorder."""

    def save_cassette(self, cassette_path: str, cassette_dict: dict[str, Any], serializer: Any) -> None:
        text = repr([(r.uri, r.headers, r.body) for r in cassette_dict["requests"]]) + repr(cassette_dict["responses"])
        held = [value for value in recorders_secrets() if value in text]
        assert not held, f"{Path(cassette_path).name} would hold {len(held)} values of your environment: not written"
        path = Path(cassette_path)
        before = read(path) if path.is_file() else None
        super().save_cassette(cassette_path, cassette_dict, serializer)
        if before is not None:
            _shape_changes[f"{path.parent.name}/{path.stem}"] = list(live.shape_changes(before, read(path)))


def pytest_recording_configure(config: pytest.Config, vcr: VCR) -> None:
    persister = Wary(config.stash.get(_origin, "provider double"), recording=is_recording(config))
    vcr.register_persister(persister)
    vcr.register_matcher("same request", strict.same_request)


@pytest.fixture
def origin(request: pytest.FixtureRequest) -> str:
    """Where this test's cassette is recorded from; modules and options say otherwise."""
    return "live" if request.config.getoption("--live") else "provider double"


@pytest.fixture
def vcr_config(origin: str, pytestconfig: pytest.Config) -> dict[str, Any]:
    """vcrpy's settings."""
    filters = Filters()
    pytestconfig.stash[_origin] = origin
    return {
        "before_record_request": filters.request,
        "before_record_response": filters.response,
        "decode_compressed_response": True,
        "match_on": ["same request"],
    }


@pytest.fixture
def vcr_cassette_dir(request: pytest.FixtureRequest) -> str:
    """cassettes/<subject>/, as the test module is called."""
    return str(FOLDER / request.path.stem.removeprefix("test_"))


class Wire:
    """What a cassette test needs to know of the other end."""

    def __init__(self, origin: str, double: Double | None, *, recording: bool) -> None:
        self.origin = origin
        self.recording = recording
        self._double = double

    def script(self, provider: str, **reply: Any) -> None:
        """What the double is to answer next, while it is recorded; in replay the cassette has it."""
        if self._double is not None:
            self._double.reply(provider, **reply)

    def unguarded(self, provider: str) -> dict[str, str]:
        """Where LiteLLM's own clients find the double, which they cannot be dialled to; the cassette has the host."""
        if self._double is None:
            return {}
        return {"api_base": self._double.api_base(provider), "api_key": groups.KEY}


def recorded_from(cassette: Cassette, default: str) -> str:
    """The origin in the cassette's header."""
    path = Path(cassette.path)
    return str(read(path)["recorded_from"]) if path.is_file() else default


class _NoNetwork(httpcore.AsyncNetworkBackend):
    """Nobody is there: what is not in the cassette cannot be asked."""

    async def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        raise AssertionError(f"A connection to {host}:{port} was opened in replay")


def nowhere() -> httpx.AsyncBaseTransport:
    inner = dial.async_transport(lambda _: ("", 0))
    inner._pool = httpcore.AsyncConnectionPool(network_backend=_NoNetwork())
    return inner


def _real_network() -> httpx.AsyncBaseTransport:
    """The network as it is; connections end with their answer, since nobody closes them later."""
    return httpx.AsyncHTTPTransport(limits=httpx.Limits(max_keepalive_connections=0))


@pytest.fixture
def wire(
    vcr: Cassette, origin: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Wire]:
    """The client's network in a cassette test: a cassette, or what it is recorded from."""
    recording = is_recording(request.config)
    double: Double | None = None
    network: Callable[[], httpx.AsyncBaseTransport] = nowhere
    if recording and origin == "provider double":
        double = request.getfixturevalue("double")
        address = double.address
        network = lambda: dial.async_transport(address, max_keepalive_connections=0)  # noqa: E731
    elif recording:
        network = _real_network
    else:
        request.node.stash[_complaints] = strict.make_strict(vcr)
        request.node.stash[_cassette] = vcr
        origin = recorded_from(vcr, origin)
    if origin != "live":
        monkeypatch.setattr(response_stream, "_POLL_S", 0.0)
    groups.set_up(tmp_path, monkeypatch, ENVIRONMENT if origin == "live" and recording else {})
    with use_transport(network):
        yield Wire(origin, double, recording=recording)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Whatever a test makes of it: a request that is not in its cassette, or is left over there, fails it."""
    try:
        return (yield)
    finally:
        complaints = pyfuncitem.stash.get(_complaints, [])
        if complaints:
            pytest.fail(complaints[0], pytrace=False)
        cassette = pyfuncitem.stash.get(_cassette, None)
        if cassette is not None and (left := strict.left_over(cassette)):
            pytest.fail(left, pytrace=False)
