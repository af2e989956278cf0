"""Ctrl-C ends what is under way at once, and leaves nothing unsettled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shared.ledger.records import attempt_records
from shared.ledger.store import get_ledger
from tests.support.paths import ROOT
from tests.support.provider_double import Double, Fault

# What is still "at once" on a busy machine; without cancellation these would go on for a minute.
AT_ONCE_S = 10.0

# A shell that puts a job into the background has its children ignore Ctrl-C; this puts it back.
_HEED = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
_CALL = """
from shared.llm_client import LLMClient
print(LLMClient().chat_completion([{"role": "user", "content": "hi"}], model="openai/gpt-5.4-mini").content)
"""
_STREAM = """
from shared.llm_client import LLMClient
stream = LLMClient().chat_completion([{"role": "user", "content": "hi"}], model="openai/gpt-5.4-mini", stream=True)
for chunk in stream:
    print(chunk)
"""
_TOOL = """
from tools import TextGeneration
print(TextGeneration(prompt="hi", model="openai/gpt-5.4-mini").run_sync())
"""


def environment(double: Double) -> dict[str, str]:
    return os.environ | {
        "OPENAI_API_KEY": "sk-test-0123456789",
        "OPENAI_BASE_URL": double.api_base("openai"),
        "PYTHONPATH": str(ROOT),
    }


@contextmanager
def running_child(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that does not outlive a failing test."""
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def interrupted(process: subprocess.Popen[bytes]) -> float:
    """Seconds from Ctrl-C to the end of the process."""
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("program", "fault"),
    [(_CALL, Fault.STALL_HEADERS), *[(_STREAM, Fault.STALL_STREAM)] * 5, (_TOOL, Fault.STALL_HEADERS)],
    ids=["call", *(f"stream{i}" for i in range(5)), "tool"],
)
def test_ctrl_c_ends_a_call(double: Double, program: str, fault: Fault) -> None:
    """Ctrl-C during a call, a stream and a tool ends the program at once, with its attempt settled."""
    reply = double.reply("openai", text="one two three four", fault=fault, after=2)
    command = [sys.executable, "-c", _HEED + program]
    with running_child(command, environment(double)) as process:
        assert reply.gate.reached.wait(60)
        assert interrupted(process) < AT_ONCE_S
    assert process.returncode in (-signal.SIGINT, 1, 130)
    ledger = get_ledger(os.environ["AGENTSWARM_DATABASE_URL"])
    assert [row["status"] for row in attempt_records(ledger)] == ["cancelled"]


def test_ctrl_c_ends_the_demo() -> None:
    """Ctrl-C while the demo streams from the local model ends it at once, without a traceback."""
    demo = f"import runpy; runpy.run_path({str(ROOT / 'examples' / 'quickstart.py')!r}, run_name='__main__')"
    command = [sys.executable, "-u", "-c", _HEED + demo]
    with running_child(command, os.environ | {"PYTHONPATH": str(ROOT)}) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if b"A streamed answer" in line:
                break
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert time.monotonic() - began < AT_ONCE_S
    assert process.returncode == 130
    assert b"Traceback" not in errors
