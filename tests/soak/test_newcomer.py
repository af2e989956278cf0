"""The first hour with the wheel, as a newcomer has it: no traceback, no banner, no advice that does not help."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.provider_double import Double
from tests.support.wheels import Project

type Screen = Callable[..., str]

_TIMEOUT_S = 120
# What no screen may show: Python's words for an error, LiteLLM's banner, and requests to a provider without a reason.
_NEVER = re.compile(r"Traceback|Give Feedback|litellm\.|LiteLLM\.Info|Provider List|\bWarning:|Set OPENAI_API_KEY\.\n")
# As a person's first program: our names beside the project's own.
_PROGRAM = """
import shared, tools
from agentswarm_tools import Budget, BudgetExceeded, TextGeneration, get_llm_client, print_llm_costs, scope

assert (shared.OWN, tools.OWN) == ("shared", "tools")
with scope(customer="acme", budget=Budget(20.0, "month")):
    response = get_llm_client().chat_completion([{"role": "user", "content": "Say hello."}])
    print(response.content, response.model, f"${response.metadata['remaining_budget_usd']:.2f} left")
    print(TextGeneration(prompt="Say hello.").run_sync())
print_llm_costs(days=1)
"""


@pytest.fixture
def screen(project: Project, tmp_path: Path) -> Screen:
    """What a command shows on both streams, of somebody with a clean home; with `python`, what a program shows."""
    home = tmp_path / "newcomer"
    home.mkdir()

    def run(*arguments: str, code: int = 0, python: str = "", **environment: str) -> str:
        command = ["-c", python] if python else ["-m", "agentswarm_tools", *arguments]
        done = subprocess.run(
            [sys.executable, *command],
            cwd=project.folder,
            env={"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(project.site), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        shown = done.stdout + done.stderr
        assert done.returncode == code, shown
        assert not _NEVER.search(shown), shown
        return shown

    return run


@pytest.fixture
def anthropic(double: Double) -> dict[str, str]:
    """The only key that is set, and where it leads."""
    return {"ANTHROPIC_API_KEY": "sk-ant-0123456789", "ANTHROPIC_BASE_URL": double.api_base("anthropic")}


def test_no_key(screen: Screen) -> None:
    """Without a key, every screen says what is missing and what works now, and what it says works."""
    said = screen("doctor")
    assert "no provider key is set: set OPENAI_API_KEY or ANTHROPIC_API_KEY" in said
    assert "default text model: openai/gpt-5.4-mini needs OPENAI_API_KEY, which is not set" in said
    assert "does not affect a tools or shared of your own" in said
    said = screen("text", "Hello", code=1)
    assert "Set OPENAI_API_KEY. For a trial without a key, use local/smollm2-135m." in said
    assert "Images are made by openai/gpt-image-2, gemini/" in screen("images", "create", "A fox", code=1)
    assert "openai/gpt-5.4-mini" in screen("estimate", "Hello")
    assert "Names that set nothing:\n  none" in screen("doctor", "--settings")


def test_no_ledger(screen: Screen) -> None:
    """What lists something says in a sentence that there is nothing yet."""
    assert "Total Cost: $0.000000" in screen("report")
    assert screen("images", "list") == "No images have been made.\n"
    assert screen("budget", "show").startswith("No budget is set.")
    assert "is in order" in screen("ledger", "check")
    assert "there is no budget default" in screen("budget", "remove", code=1)


def test_only_anthropic(screen: Screen, anthropic: dict[str, str], double: Double) -> None:
    """With the key of one provider, its model answers, and every screen says so and how to choose."""
    said = screen("doctor", **anthropic)
    assert "default text model: anthropic/claude-haiku-4-5, as no other provider's key is set" in said
    assert "LITELLM_DEFAULT_IMAGE_MODEL to a model of another provider: openai/gpt-image-2, gemini/" in said
    said = screen("text", "Hello", **anthropic)
    assert said.startswith("Hello from claude-haiku-4-5.\n")
    assert said.count("Choose with LITELLM_DEFAULT_TEXT_MODEL=anthropic/claude-haiku-4-5") == 1
    said = screen(python=_PROGRAM, **anthropic)
    assert "Hello from claude-haiku-4-5. anthropic/claude-haiku-4-5 $20.00 left" in said
    assert re.search(r"anthropic/claude-haiku-4-5: \$0\.0001\d\d \(3 calls", said)
    assert {request.provider for request in double.requests} == {"anthropic"}
    double.always("anthropic", status=401)
    assert "Authentication failed for anthropic" in screen("text", "Hello", code=1, **anthropic)


def test_mistyped_names(screen: Screen, anthropic: dict[str, str]) -> None:
    """A name that sets nothing is said once by a call, with what was probably meant, and is a problem for doctor."""
    meant = {
        "AGENTSWARM_BUGDET_USD": "AGENTSWARM_BUDGET_USD",
        "AGENTSWARM_BUDGET": "AGENTSWARM_BUDGET_USD",
        "AGENTSWARM_DATABASEURL": "AGENTSWARM_DATABASE_URL",
        "LITELLM_DEFAULT_MODEL": "LITELLM_DEFAULT_TEXT_MODEL",
        "OPENAI_KEY": "OPENAI_API_KEY",
    }
    environment = {**anthropic, **dict.fromkeys(meant, "5")}
    called, examined = screen("text", "Hello", **environment), screen("doctor", code=1, **environment)
    for name, right in meant.items():
        sentence = f"{name} sets nothing: did you mean {right}?"
        assert called.count(sentence) == 1
        assert f"FAIL  names: {sentence}" in examined


def test_a_budget_that_is_no_number(screen: Screen, anthropic: dict[str, str], double: Double) -> None:
    """A budget that is none stops the call before anything is sent, and the variable is named."""
    assert "AGENTSWARM_BUDGET_USD" in screen("text", "Hello", code=1, AGENTSWARM_BUDGET_USD="$5", **anthropic)
    assert "AGENTSWARM_BUDGET_USD" in screen("doctor", code=1, AGENTSWARM_BUDGET_USD="-5", **anthropic)
    assert not double.requests


def test_a_tiny_budget(screen: Screen, anthropic: dict[str, str], double: Double) -> None:
    """A budget that one call would break refuses it, and says what it could cost and what to do."""
    said = screen("text", "Hello", code=1, AGENTSWARM_BUDGET_USD="0.0001", **anthropic)
    assert "anthropic/claude-haiku-4-5 could cost $" in said
    assert "Nothing was charged." in said
    assert not double.requests


def test_ctrl_c_while_it_starts(project: Project, tmp_path: Path) -> None:
    """Ctrl-C ends a command without a traceback, also while its modules are imported."""
    # Python says when it looks for the module that is imported first of what takes long.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Look:\n"
        "    def find_spec(name, *_):\n"
        "        if name.endswith('shared.cli.doctor'): signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Look)\n"
        "sys.argv[1:] = ['doctor']\n"
        "from agentswarm_tools.__main__ import main; main()"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(project.site)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, timeout=_TIMEOUT_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, b"", b"")


@pytest.mark.parametrize("command", [["models", "--all"], ["doctor"]])
def test_a_closed_pipe(project: Project, tmp_path: Path, command: list[str]) -> None:
    """What is piped into a program that stops reading ends in silence."""
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(project.site)}
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "agentswarm_tools", *command],
            cwd=project.folder,
            env=environment,
            stdout=write,
            stderr=subprocess.PIPE,
            timeout=_TIMEOUT_S,
            check=False,
        )
    finally:
        os.close(write)
    assert done.stderr == b""
