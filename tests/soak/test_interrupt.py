"""Ctrl-C ends what is under way at once, and leaves nothing unsettled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.ledger import get_ledger
from shared.ledger_query import attempts
from tests.provider_double import Double, Fault

ROOT = Path(__file__).parents[2]
# What is still "at once" on a busy machine; without cancellation these would go on for a minute.
AT_ONCE_S = 10.0

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


def interrupted(process: subprocess.Popen[bytes]) -> float:
    """Seconds from Ctrl-C to the end of the process."""
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("program", "fault", "status"),
    [
        (_CALL, Fault.STALL_HEADERS, "cancelled"),
        (_STREAM, Fault.STALL_STREAM, "cancelled"),
        (_TOOL, Fault.STALL_HEADERS, "cancelled"),
    ],
    ids=["call", "stream", "tool"],
)
def test_ctrl_c_ends_a_call(double: Double, program: str, fault: Fault, status: str) -> None:
    """Ctrl-C during a call, a stream and a tool ends the program at once, with its attempt settled."""
    reply = double.reply("openai", text="one two three four", fault=fault, after=2)
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env=environment(double), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert reply.gate.reached.wait(60)
        assert interrupted(process) < AT_ONCE_S
    assert process.returncode in (-signal.SIGINT, 1, 130)
    ledger = get_ledger(os.environ["AGENTSWARM_DATABASE_URL"])
    assert [row["status"] for row in attempts(ledger)] == [status]


def test_ctrl_c_ends_the_demo() -> None:
    """Ctrl-C while the demo streams from the local model ends it at once, without a traceback."""
    command = [sys.executable, "-u", str(ROOT / "examples" / "quickstart.py")]
    with subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
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
