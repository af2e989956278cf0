"""The wheel, installed in a project that has a `tools` folder and a `shared` module of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.paths import ROOT
from tests.support.wheels import BIN, TIMEOUT_S, Project

# A user's web app, with names of its own; one path plays the provider.
APP = """
import json

import shared
import tools
from agentswarm_tools import CostReport, LLMClient, scope as calling

ANSWER = {
    "id": "1", "object": "chat.completion", "created": 1, "model": "mine",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello from afar"}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
}


async def app(scope, receive, send):
    if scope["path"].endswith("/chat/completions"):
        result = ANSWER
    else:
        base = f"http://127.0.0.1:{scope['server'][1]}/v1"
        messages = [{"role": "user", "content": "Hello"}]
        with calling(customer="acme"):
            answer = await LLMClient().achat_completion(messages, model="openai/mine", api_base=base, api_key="none")
            report = json.loads(await CostReport(output_format="json").run())
        result = {"content": answer.content, "calls": report["total_calls"], "own": [tools.OWN, shared.OWN]}
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(result).encode()})
"""

# What was loaded from where, printed as JSON by a program that uses the project's names and ours.
LOADED = """
import json
import sys

import shared
import tools
import agentswarm_tools
from agentswarm_tools import *
from agentswarm_tools.tools.TextGeneration import TextGeneration as Again

assert Again is TextGeneration is agentswarm_tools.TextGeneration
assert isinstance(get_llm_client(), LLMClient)
assert TextGeneration in ALL_TOOLS and len(ALL_TOOLS) == 4 and issubclass(TextGeneration, BaseTool)
files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
print(json.dumps({"own": [tools.OWN, shared.OWN], "files": {name: file for name, file in files.items() if file}}))
"""


def test_both_are_used(project: Project) -> None:
    """A project's own `tools` and `shared` stay its own, and no module of ours is loaded twice or from elsewhere."""
    seen = json.loads(project.run(sys.executable, "-c", LOADED))
    assert seen["own"] == ["tools", "shared"]
    ours = {name: file for name, file in seen["files"].items() if file.startswith((str(project.site), f"{ROOT}/"))}
    ours = {name: file for name, file in ours.items() if not file.startswith(str(BIN.parent))}
    assert ours.keys() >= {"agentswarm_tools.shared.llm_client", "agentswarm_tools.tools.CostReport"}
    assert {name.partition(".")[0] for name in ours} == {"agentswarm_tools"}
    assert all(file.startswith(str(project.site)) for file in ours.values())
    assert len(set(ours.values())) == len(ours)


def test_command_line(project: Project) -> None:
    """The module and the console script are the same program, and work from within such a project."""
    assert "report" in project.run(sys.executable, "-m", "agentswarm_tools", "--help")
    version = project.run(project.site / "bin" / "agentswarm-tools", "--version")
    assert version.strip() == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_pytest_plugin(project: Project) -> None:
    """pytest finds our fixtures where the wheel is installed, and the example of docs/testing.md passes there."""
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    _, example, settings = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (project.folder / "test_writer.py").write_text(example)
    (project.folder / "conftest.py").write_text(settings)
    said = project.run(sys.executable, "-m", "pytest", "-p", "no:randomly", "-p", "no:cacheprovider", "test_writer.py")
    assert "models were scripted in 1 tests" in said
    assert "1 passed" in said


@pytest.fixture
def served(project: Project) -> Iterator[str]:
    """The URL of the project's web app, served by a real uvicorn."""
    (project.folder / "app.py").write_text(APP)
    command: list[str | Path] = [BIN / "uvicorn", "app:app", "--port", "0", "--lifespan", "off", "--no-access-log"]
    with subprocess.Popen(
        command, cwd=project.folder, env=project.environment(), stderr=subprocess.PIPE, text=True
    ) as server:
        watchdog = threading.Timer(TIMEOUT_S, server.kill)
        watchdog.start()
        try:
            assert server.stderr is not None
            said = []
            for line in server.stderr:
                said.append(line)
                if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                    yield found[1]
                    break
            else:
                pytest.fail(f"uvicorn did not start: {''.join(said)}")
        finally:
            watchdog.cancel()
            server.terminate()


def test_in_uvicorn(served: str) -> None:
    """A web app that uvicorn imports from its folder calls a model and a tool of ours beside its own names."""
    answer: dict[str, Any] = httpx.get(served, timeout=TIMEOUT_S).raise_for_status().json()
    assert answer == {"content": "Hello from afar", "calls": 1, "own": ["tools", "shared"]}


def test_a_left_over_answer_fails(tmp_path: Path) -> None:
    """A test that does not ask for every scripted answer fails, and the summary says what was scripted."""
    (tmp_path / "test_it.py").write_text("def test_it(agentswarm_script):\n    agentswarm_script('Hi')\n")
    options = ["-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, "test_it.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 scripted answers were not used" in done.stdout
    assert "agentswarm-tools: models were scripted in 1 tests, no provider was called" in done.stdout
