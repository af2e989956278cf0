"""The cassettes themselves: each has one test, a header, no secrets, and replays strictly or not at all."""

from __future__ import annotations

import copy
import datetime
import json
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_socket import SocketConnectBlockedError
from vcr import VCR
from vcr.cassette import Cassette
from vcr.request import Request

from shared.llm_client import LLMClient
from shared.providers import use_transport
from tests.support.recording import groups, live, strict
from tests.support.recording.cassette import MAX_BYTES, ORIGINS, Persister, dump, read, without_date
from tests.support.recording.filters import Filters
from tests.support.recording.plugin import FOLDER, nowhere
from tests.support.recording.scenes import ANSWERS
from tests.support.recording.secrets import SECRET_REQUEST, SECRET_RESPONSE, secrets_in

TESTS = Path(__file__).parent
FILES = sorted(FOLDER.rglob("*.yaml"))
OPENAI = groups.BY_NAME["openai"]
PLAIN = FOLDER / "answers" / "test_answers[openai-plain].yaml"


class _Collected:
    """A plugin that keeps what pytest collects."""

    def __init__(self) -> None:
        self.items: list[pytest.Item] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = list(session.items)


@pytest.fixture(scope="module")
def recorded_tests() -> list[pytest.Item]:
    """Every test that replays a cassette."""
    collected = _Collected()
    quiet = [argument for name in ("randomly", "faulthandler", "cacheprovider") for argument in ("-p", f"no:{name}")]
    files = [str(path) for path in sorted(TESTS.glob("test_*.py"))]
    # Without faulthandler, which this process has, pytest does not know the option for it.
    options = [
        "-o",
        "addopts=",
        "--disable-plugin-autoload",
        "-p",
        "recording",
        "-W",
        "ignore::pytest.PytestConfigWarning",
        "--collect-only",
        "-qq",
        *quiet,
    ]
    assert pytest.main([*options, *files], plugins=[collected]) == 0
    return [item for item in collected.items if item.get_closest_marker("vcr")]


def test_every_cassette_has_its_test(recorded_tests: list[pytest.Item]) -> None:
    """Every cassette belongs to exactly one test and every such test has its own, so that none can go unnoticed."""
    wanted = [f"{item.path.stem.removeprefix('test_')}/{item.name}.yaml" for item in recorded_tests]
    assert len(wanted) == len(set(wanted))
    assert {str(path.relative_to(FOLDER)) for path in FILES} == set(wanted)


def test_headers() -> None:
    """Every cassette says where and when it was recorded, and can be read: small, plain text, its bodies unpacked."""
    for path in FILES:
        text, data = path.read_text(encoding="utf-8"), read(path)
        assert list(data) == ["recorded_from", "recorded_on", "version", "interactions"], path.name
        assert data["recorded_from"] in ORIGINS, path.name
        assert isinstance(data["recorded_on"], datetime.date), path.name
        assert data["recorded_on"] <= datetime.datetime.now(datetime.UTC).date(), path.name
        assert data["interactions"], path.name
        assert len(text.encode()) < MAX_BYTES, path.name
        assert "!!" not in re.sub(r"(?m)^ {6}.*$", "", text), f"{path.name} holds what is no text"
        assert dump(data) == text, f"{path.name} was changed by hand"


def test_no_secrets() -> None:
    """No cassette holds a key, a cookie, an organisation or a value of this environment."""
    found = {path.name: secrets for path in FILES if (secrets := secrets_in(path.read_text(encoding="utf-8")))}
    assert not found


def test_filters() -> None:
    """What is recorded loses keys, cookies, organisations, ids and dates on its way to the file."""
    filters = Filters()
    request = filters.request(copy.deepcopy(SECRET_REQUEST))
    response = filters.response(copy.deepcopy(SECRET_RESPONSE))
    assert request.uri == "https://api.example.org/v1/chat?alt=sse"
    assert request.headers == {"content-type": "application/json"}
    assert response["headers"] == {"retry-after": ["3"]}
    said = '{"id": "chatcmpl-0001", "created": 1767225600, "message": "org-0000 is slow"}'
    assert response["body"]["string"].decode() == said
    assert Filters().response(copy.deepcopy(response)) == response
    assert not secrets_in(repr((vars(request), response)))
    assert len(secrets_in(repr((vars(SECRET_REQUEST), SECRET_RESPONSE)))) > 5


def test_a_recorders_own_secret_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that repeats a value of the recorder's environment stops the recording, and is not written."""
    from tests.support.recording import plugin

    monkeypatch.setitem(plugin.ENVIRONMENT, "SOME_API_KEY", "a-value-of-no-known-form")
    response = SECRET_RESPONSE | {"body": {"string": b"a-value-of-no-known-form"}}
    wary = plugin.Wary("live", recording=True)
    with pytest.raises(AssertionError, match="would hold 1 values of your environment"):
        wary.save_cassette(str(tmp_path / "x.yaml"), {"requests": [SECRET_REQUEST], "responses": [response]}, None)
    assert not list(tmp_path.glob("*.yaml"))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value inside a JSON body."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from leaves(item, (*path, key))


def changed(body: Any, path: tuple[Any, ...]) -> Any:
    """The same body with another value at that place."""
    body = copy.deepcopy(body)
    inside = body
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = ["changed", inside[path[-1]]]
    return body


def test_any_field_counts() -> None:
    """No field of any recorded request can change, go missing or be added without another request coming of it."""
    for path in FILES:
        for interaction in read(path)["interactions"]:
            request = interaction["request"]
            if "body" not in request:
                continue
            body = json.loads(request["body"])
            told = {strict.canonical(_request(request, changed(body, place))) for place in leaves(body)}
            told |= {strict.canonical(_request(request, {k: v for k, v in body.items() if k != key})) for key in body}
            told.add(strict.canonical(_request(request, {**body, "temperature_": 1})))
            assert strict.canonical(_request(request, body)) not in told, path.name
            turned = json.loads(json.dumps(body), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
            assert strict.canonical(_request(request, turned)) == strict.canonical(_request(request, body))


def _request(request: Any, body: Any) -> Request:
    return Request(request["method"], request["uri"], json.dumps(body).encode(), {})


@pytest.mark.parametrize(
    ("made", "recorded"),
    [
        ("GET https://a.example/v1", "POST https://a.example/v1"),
        ("GET http://a.example/v1", "GET https://a.example/v1"),
        ("GET https://a.example/v1", "GET https://b.example/v1"),
        ("GET https://a.example:1/v1", "GET https://a.example:2/v1"),
        ("GET https://a.example/v1", "GET https://a.example/v2"),
        ("GET https://a.example/v1?x=1", "GET https://a.example/v1?x=2"),
        ("GET https://a.example/v1?x=1", "GET https://a.example/v1"),
    ],
)
def test_addresses_count(made: str, recorded: str) -> None:
    """Method, scheme, host, port, path and query are part of the request."""
    with pytest.raises(AssertionError):
        strict.same_request(*(Request(*text.split(), b"", {}) for text in (made, recorded)))


@pytest.fixture
def tape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of a cassette, and a client that has no network."""
    groups.set_up(tmp_path, monkeypatch, {})
    with use_transport(nowhere):
        yield Path(shutil.copy(PLAIN, tmp_path / "tape.yaml"))


def replayed(tape: Path, **changes: Any) -> tuple[Cassette, list[str]]:
    """Make the request of `tape` with changes; what the cassette thinks of it."""
    vcr = VCR(record_mode="none", match_on=["same request"])
    vcr.register_persister(Persister("provider double", recording=False))
    vcr.register_matcher("same request", strict.same_request)
    filters = Filters()
    with vcr.use_cassette(str(tape), before_record_request=filters.request) as cassette:
        complaints = strict.make_strict(cassette)
        scene = ANSWERS[0]
        for _ in range(changes.pop("times", 1)):
            params = {"messages": scene.messages, "model": OPENAI.named("plain"), **changes}
            LLMClient(max_retries=0).chat_completion(**params)
    return cassette, complaints


def test_replay(tape: Path) -> None:
    """The recorded request is answered from the file, which then has nothing left over."""
    cassette, complaints = replayed(tape)
    assert (complaints, strict.left_over(cassette)) == ([], "")


def test_a_changed_request_fails_with_a_diff(tape: Path) -> None:
    """A request that differs in anything fails, and says what differs from the closest one recorded."""
    with pytest.raises(strict.MismatchError) as caught:
        replayed(tape, temperature=0.5)
    lines = str(caught.value).splitlines()
    assert "tape.yaml" in lines[0]
    assert lines[1:3] == ["--- recorded", "+++ made now"]
    assert [line for line in lines[3:] if line.startswith("+")] == ['+  "temperature": 0.5']


def test_a_request_made_twice_fails(tape: Path) -> None:
    """What was recorded once is answered once."""
    with pytest.raises(strict.MismatchError, match="more often than it was recorded"):
        replayed(tape, times=2)


def test_what_is_left_over_is_told(tape: Path) -> None:
    """A recorded request that nobody makes any more is named."""
    data = read(tape)
    tape.write_text(dump({**data, "interactions": data["interactions"] * 2}), encoding="utf-8")
    cassette, complaints = replayed(tape)
    assert not complaints
    assert "holds what was not asked for:\nPOST https://api.openai.com/v1/chat" in strict.left_over(cassette)


def test_replay_writes_nothing(tape: Path) -> None:
    """Whatever a test asks, replay leaves its file as it is."""
    before = tape.read_bytes()
    with pytest.raises(strict.MismatchError):
        replayed(tape, temperature=0.5)
    assert tape.read_bytes() == before
    with pytest.raises(AssertionError, match="would be written in replay"):
        Persister("live", recording=False).save_cassette(str(tape), {"requests": [], "responses": []}, None)


def test_a_missing_cassette_fails(tape: Path) -> None:
    """Without its file a test fails, and says how to record it."""
    tape.unlink()
    with pytest.raises(strict.MismatchError, match=r"missing or empty.*make record"):
        replayed(tape)


def test_recording_anew_changes_only_what_changed(tmp_path: Path) -> None:
    """A recording that brings nothing new leaves the file with its date as it was."""
    path = tmp_path / "tape.yaml"
    old = read(PLAIN) | {"recorded_on": datetime.date(2026, 1, 1)}
    path.write_text(dump(old), encoding="utf-8")
    requests, responses = Persister("", recording=False).load_cassette(str(path), None)
    for text, date in (("", old["recorded_on"]), (" ", datetime.datetime.now(datetime.UTC).date())):
        body = responses[0]["body"]["string"] + text.encode()
        told = [{**responses[0], "body": {"string": body}}]
        Persister("provider double", recording=True).save_cassette(
            str(path), {"requests": requests, "responses": told}, None
        )
        assert read(path)["recorded_on"] == date
    assert without_date(read(path)) != without_date(old)


def test_live_needs_a_key() -> None:
    """Recording from a real endpoint without its key ends in one sentence that names the variable."""
    with pytest.raises(pytest.UsageError, match=r"^Set OPENAI_API_KEY to record from openai: .*\.$"):
        live.check("openai", {})
    with pytest.raises(pytest.UsageError, match="is one of openai, anthropic"):
        live.check("", {})
    live.check("gemini", {"GEMINI_API_KEY": "x"})
    live.check("ollama", {})


def test_live_tells_changed_shapes() -> None:
    """A live recording shows what is new, gone or of another type, and another order of events."""
    folder = FOLDER / "answers"
    old = read(folder / "test_answers[openai-stream].yaml")
    new = copy.deepcopy(old)
    assert list(live.shape_changes(old, new)) == []
    response = new["interactions"][0]["response"]
    response["headers"]["retry-after"] = ["1"]
    response["body"] = response["body"].replace('"obfuscation":', '"padding":').replace('"usage":null', '"usage":{}')
    response["body"] = response["body"].replace("data: [DONE]", "")
    changes = list(live.shape_changes(old, new))
    assert changes[:3] == ["+header retry-after", "-obfuscation", "+padding"]
    assert changes[-1] == "events text > finish > usage in place of text > finish > usage > [DONE]"


@pytest.mark.parametrize("turn", [1, 2])
def test_other_machines_are_out_of_reach(turn: int) -> None:
    """No test can connect to another machine, neither the first nor any after it."""
    with socket.socket() as client, pytest.raises((SocketConnectBlockedError, UserWarning), match=r"blocked|connect"):
        client.connect(("192.0.2.1", 9))
