"""The local model: a real server and real answers, and one sentence for each thing that can be missing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.errors import ConfigurationError
from shared.internal.extras import EXTRAS
from shared.providers import local
from shared.providers.local import LocalServer, ensure_running, prepare, serve_local_model
from tests.support.paths import ROOT

CHAT = """
import httpx, signal
# A shell that puts a job into the background has its children ignore Ctrl-C; this puts it back.
signal.signal(signal.SIGINT, signal.default_int_handler)
from shared.providers import local as local_model
def chat(server, **params):
    messages, params = local_model.prepare([{"role": "user", "content": "Hello"}], {"max_tokens": 3, **params})
    answer = httpx.post(
        f"{server.base_url}/chat/completions", json={"messages": messages, **params}, timeout=60,
        headers={"authorization": f"Bearer {server.api_key}"},
    )
    return answer.raise_for_status().json()["choices"][0]["message"]["content"]
"""


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    """One server for the tests that only talk to it."""
    with closing(serve_local_model()) as running:
        yield running


@pytest.fixture
def shared_server() -> Iterator[None]:
    """No server of `ensure_running` from before, and none left behind."""
    local._stop()
    yield
    local._stop()


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user data folder."""
    monkeypatch.setattr(local, "data_dir", lambda: tmp_path / "data")
    return tmp_path / "data"


def body(question: str, **params: Any) -> dict[str, Any]:
    """A request's body, prepared as the client prepares it."""
    messages, prepared = prepare([{"role": "user", "content": question}], params)
    return {"model": "smollm2-135m", "messages": messages, **prepared}


def ask(server: LocalServer, question: str, **params: Any) -> httpx.Response:
    """Ask and return the whole response."""
    return httpx.post(
        f"{server.base_url}/chat/completions",
        json=body(question, **params),
        headers={"authorization": f"Bearer {server.api_key}"},
        timeout=60,
    )


def address(server: LocalServer) -> tuple[str, int]:
    """Host and port."""
    url = httpx.URL(server.base_url)
    assert url.port is not None
    return url.host, url.port


def script(code: str) -> subprocess.Popen[str]:
    """Run `CHAT` and `code` in a Python of their own, where any warning is an error."""
    command = [sys.executable, "-W", "error", "-c", CHAT + code]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def refused(place: tuple[str, int]) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(place) != 0


# ----------------------------------------------------------------------------------------------------- the server


def test_answers_a_chat_request(server: LocalServer) -> None:
    """A prepared request gets a sensible answer with its usage."""
    answer = ask(server, "What is the capital of France?", max_tokens=16).raise_for_status().json()
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["model"] == "smollm2-135m"
    usage = answer["usage"]
    assert usage["prompt_tokens"] > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_streams_with_usage(server: LocalServer) -> None:
    """A stream brings the plain answer's text in pieces and ends with its usage."""
    plain = ask(server, "What is the capital of France?", max_tokens=8).json()
    answer = ask(
        server, "What is the capital of France?", max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    assert text == plain["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"]["completion_tokens"] == plain["usage"]["completion_tokens"]


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}], ids=["no key", "wrong key"])
def test_refuses_strangers(server: LocalServer, headers: dict[str, str]) -> None:
    """Nobody is served without the key, and no web page is invited."""
    answer = httpx.post(f"{server.base_url}/chat/completions", json=body("Hello"), headers=headers)
    assert answer.status_code == 401
    assert not answer.headers["access-control-allow-origin"]


def test_answers_eight_threads_at_once(server: LocalServer) -> None:
    """Eight callers at the same time all get an answer."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: ask(server, f"Count from {number}.", max_tokens=6), range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert all(answer.json()["usage"]["completion_tokens"] for answer in answers)


def test_abandoned_stream_frees_the_model(server: LocalServer) -> None:
    """Closing a stream early stops its generation, so that the next caller does not wait for it."""
    endless = body("Tell a story.", max_tokens=1500, stream=True, ignore_eos=True)
    headers = {"authorization": f"Bearer {server.api_key}"}
    url = f"{server.base_url}/chat/completions"
    with httpx.stream("POST", url, json=endless, headers=headers, timeout=60) as answer:
        next(answer.iter_lines())
    started = time.monotonic()
    assert ask(server, "Hello", max_tokens=2).status_code == 200
    assert time.monotonic() - started < 5


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's table of sockets")
def test_listens_on_loopback_only(server: LocalServer) -> None:
    """The server's port is open on 127.0.0.1 and on no other address."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    port = f"{address(server)[1]:04X}"
    assert [row[1] for row in rows if row[1].endswith(f":{port}") and row[3] == "0A"] == [f"0100007F:{port}"]


def test_keeps_its_key_to_itself(server: LocalServer) -> None:
    """The key is neither in the process list nor in the server's repr."""
    assert isinstance(server.process.args, list)
    assert server.api_key not in " ".join(map(str, server.process.args))
    assert server.api_key not in repr(server)


def test_leaves_nothing_behind(server: LocalServer) -> None:
    """A server has a key of its own and the port it was told; closed, it leaves no socket, descriptor or thread."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    before = len(list(Path("/dev/fd").iterdir())), threading.active_count()
    other = serve_local_model(port)
    assert other.base_url == f"http://127.0.0.1:{port}/v1"
    assert other.api_key != server.api_key
    other.close()
    other.close()
    assert refused(("127.0.0.1", port))
    assert other.process.returncode is not None
    assert (len(list(Path("/dev/fd").iterdir())), threading.active_count()) == before


def test_close_ends_a_running_request() -> None:
    """Closing does not wait for an answer that is being written."""
    server = serve_local_model()
    with httpx.stream(
        "POST",
        f"{server.base_url}/chat/completions",
        json=body("Tell a story.", max_tokens=1500, stream=True, ignore_eos=True),
        headers={"authorization": f"Bearer {server.api_key}"},
        timeout=60,
    ) as answer:
        lines = answer.iter_lines()
        next(lines)
        started = time.monotonic()
        server.close()
        assert time.monotonic() - started < 2
        with pytest.raises(httpx.TransportError):
            list(lines)


# ------------------------------------------------------------------------------------------- one for each process


@pytest.mark.usefixtures("shared_server")
def test_threads_share_one_server() -> None:
    """Threads that ask at once get one server, loaded and announced once; one that died is replaced."""
    said: list[str] = []
    with ThreadPoolExecutor(8) as pool:
        servers = list(pool.map(lambda _: ensure_running(said.append), range(8)))
    first = servers[0]
    assert all(server is first for server in servers)
    assert said == ["Loading the local model local/smollm2-135m (98 MB)", "The local model is ready"]
    first.process.kill()
    first.wait()
    assert not first.running()
    second = ensure_running()
    assert second.running()
    assert second.api_key != first.api_key


def test_is_silent_and_ends_with_the_program() -> None:
    """A program that uses the model prints nothing of its own, and its server ends with it."""
    program = script("server = local_model.ensure_running(); assert chat(server); print(server.base_url)")
    out, err = program.communicate(timeout=60)
    assert (program.returncode, err) == (0, "")
    url = httpx.URL(out.strip())
    assert url.port
    assert refused((url.host, url.port))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_forked_process_starts_afresh() -> None:
    """After a fork each process has a server of its own, and neither ends the other's."""
    program = script("""
import os, sys
server = local_model.ensure_running()
pid = os.fork()
if pid == 0:
    own = local_model.ensure_running()
    assert own.base_url != server.base_url and own.api_key != server.api_key
    assert not server.running() and chat(own)
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert local_model.ensure_running() is server and chat(server)
""")
    _, err = program.communicate(timeout=60)
    assert (program.returncode, err) == (0, "")


def test_ends_with_a_killed_program() -> None:
    """A server whose program was killed by SIGKILL ends too."""
    program = script("print(local_model.ensure_running().base_url, flush=True); input()")
    assert program.stdout
    url = httpx.URL(program.stdout.readline().strip())
    assert url.port
    with socket.create_connection((url.host, url.port)) as connection:
        program.kill()
        program.communicate()
        connection.settimeout(4)  # the server would let an idle connection go after 5 s
        received = b""
        with suppress(ConnectionResetError):
            received = connection.recv(1)
    assert received == b""
    deadline = time.monotonic() + 4
    while not refused((url.host, url.port)):  # the system closes a dead process's sockets one by one
        assert time.monotonic() < deadline


def test_ctrl_c_ends_at_once() -> None:
    """Ctrl-C during a long answer ends the program within a moment, and the server with it."""
    program = script("""
server = local_model.ensure_running()
print(server.base_url, flush=True)
chat(server, max_tokens=1500, ignore_eos=True)
""")
    assert program.stdout
    url = httpx.URL(program.stdout.readline().strip())
    assert url.port
    program.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, err = program.communicate(timeout=30)
    assert time.monotonic() - started < 20  # the answer alone would take longer
    assert "KeyboardInterrupt" in err
    assert refused((url.host, url.port))


# ------------------------------------------------------------------------------------------------ what is missing


def fake_engine(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """An xllamacpp that does `code` when it is imported."""
    (folder / "xllamacpp.py").write_text(code)
    monkeypatch.syspath_prepend(folder)


def failure(action: Callable[[], object]) -> str:
    """The one sentence with which `action` fails."""
    with pytest.raises(ConfigurationError) as caught:
        action()
    assert "\n" not in caught.value.message
    return caught.value.message


def test_missing_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the message gives a pip command that works with the package on no index."""
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    command = f'pip install "{EXTRAS["local"][1]}"'
    assert failure(serve_local_model) == f"The local model is not installed: run `{command}`"


@pytest.mark.usefixtures("data", "shared_server")
def test_missing_model_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the model file, the message gives the install command; without the engine too, it gives both."""
    monkeypatch.setattr(local, "WHEEL_NAME", "not-installed")
    assert failure(ensure_running) == f"The local model's file is missing: run `{local.INSTALL_MODEL}`"
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    assert failure(ensure_running).endswith(f'"` and then `{local.INSTALL_MODEL}`')


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (
            "raise ImportError('libgomp.so.1: cannot open shared object file: No such file or directory')",
            "The local model needs the library libgomp.so.1: run `apt-get install libgomp1`",
        ),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
            "The local model's server did not start: this processor lacks instructions that its engine needs (AVX2)",
        ),
        (
            "print('noise', flush=True); raise ImportError('GLIBC_2.99 not found')",
            "The local model's server did not start: ImportError: GLIBC_2.99 not found",
        ),
        ("import os; os._exit(3)", "The local model's server did not start: exit code 3"),
        (
            "CommonParams = type('CommonParams', (), {'__slots__': ()})",
            (
                "The local model's server did not start: AttributeError: "
                "'CommonParams' object has no attribute 'hostnames'"
            ),
        ),
    ],
    ids=["no libgomp", "old processor", "other library", "died", "other version"],
)
def test_engine_that_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], code: str, sentence: str
) -> None:
    """Whatever keeps the engine from starting becomes one sentence, and takes nothing down with it."""
    fake_engine(tmp_path, monkeypatch, code)
    assert failure(serve_local_model) == sentence
    assert capfd.readouterr() == ("", "")


def test_engine_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is not ready in time is killed and reported."""
    fake_engine(tmp_path, monkeypatch, "import threading; threading.Event().wait()")
    monkeypatch.setattr(local, "START_TIMEOUT_S", 0.2)
    assert "not ready after" in failure(serve_local_model)


def test_port_in_use(server: LocalServer) -> None:
    """A port that is taken is refused, not shared, and named."""
    port = address(server)[1]
    assert failure(lambda: serve_local_model(port)).endswith(f"(is port {port} in use?)")


# ---------------------------------------------------------------------------------------------------- the request


@pytest.mark.parametrize(
    ("roles", "prepared"),
    [
        ([], ["system"]),
        (["user"], ["system", "user"]),
        (["system", "user"], ["system", "user"]),
        (["developer", "user"], ["system", "user"]),
        (["user", "system", "user"], ["system", "user", "system", "user"]),
    ],
)
def test_prepare_puts_a_system_prompt_first(roles: list[str], prepared: list[str]) -> None:
    """The first message is the caller's system prompt, or else ours."""
    messages = [{"role": role, "content": f"from {role}"} for role in roles]
    result, _ = prepare(messages, {})
    assert [message["role"] for message in result] == prepared
    ours = roles[:1] not in (["system"], ["developer"])
    assert result[0]["content"] == (local.SYSTEM_PROMPT if ours else f"from {roles[0]}")
    assert [message["role"] for message in messages] == roles


@pytest.mark.parametrize(
    ("given", "prepared"),
    [
        ({}, {"temperature": 0.0, "repeat_penalty": 1.1, "max_tokens": 256}),
        ({"temperature": None, "max_tokens": None}, {"temperature": 0.0, "repeat_penalty": 1.1, "max_tokens": 256}),
        (
            {"temperature": 0.7, "repeat_penalty": 1.0, "max_tokens": 9, "seed": 1},
            {"temperature": 0.7, "repeat_penalty": 1.0, "max_tokens": 9, "seed": 1},
        ),
        ({"max_completion_tokens": 9}, {"temperature": 0.0, "repeat_penalty": 1.1, "max_tokens": 9}),
    ],
    ids=["nothing", "None", "all", "new name"],
)
def test_prepare_fills_in_what_is_absent(given: dict[str, Any], prepared: dict[str, Any]) -> None:
    """What the caller set stays, what is absent or None gets the model's default, and the input is left alone."""
    before = dict(given)
    assert prepare([], given)[1] == prepared
    assert given == before
