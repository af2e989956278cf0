"""What the shell completes, as a shell asks for it."""

from __future__ import annotations

import pytest

from shared.ledger.store import Ledger
from tests.support import processes
from tests.support.asking import HAIKU
from tests.support.ledger_rows import settled, write

_PROGRAM = "import sys; sys.argv = ['agentswarm-tools']; from shared.cli import main; main()"


@pytest.fixture(autouse=True)
def shell(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment in which bash asks the program for completions."""
    monkeypatch.setenv("_AGENTSWARM_TOOLS_COMPLETE", "complete_bash")
    return monkeypatch


def completed(shell: pytest.MonkeyPatch, line: str) -> list[str]:
    """What the last word of a line may become."""
    shell.setenv("COMP_WORDS", line)
    shell.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    done = processes.run(_PROGRAM)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    "line",
    [
        "text hi -m anthropic/claude-haiku-4-5",
        "text hi -f anthropic/claude-haiku-4-5",
        "estimate hi -m anthropic/claude-haiku-4-5",
        "compare hi -m anthropic/claude-haiku-4-5",
        "models anthropic/claude-haiku-4-5",
        "prices show anthropic/claude-haiku-4-5",
    ],
)
def test_models(shell: pytest.MonkeyPatch, line: str) -> None:
    """Every argument that names a model completes to the models that begin so, and to nothing else."""
    found = completed(shell, f"agentswarm-tools {line}")
    assert HAIKU in found
    assert all(name.startswith(HAIKU) for name in found)


def test_image_models(shell: pytest.MonkeyPatch) -> None:
    """Where an image is made, only models that make images are offered."""
    found = completed(shell, "agentswarm-tools images create fox -m openai/gpt-")
    assert "openai/gpt-image-2" in found
    assert "openai/gpt-5.4-mini" not in found


def test_providers(shell: pytest.MonkeyPatch) -> None:
    """A provider is completed from those that have models."""
    assert "openai" in completed(shell, "agentswarm-tools models --provider op")


def test_groups_of_a_report(shell: pytest.MonkeyPatch, ledger: Ledger) -> None:
    """--by is completed from the dimensions and the ledger's labels, behind a comma too."""
    write(ledger, "settle", settled(), customer="acme")
    assert completed(shell, "agentswarm-tools report --by ") == [
        *("model", "provider", "tool", "agent", "hour", "day", "week", "month", "customer"),
    ]
    assert completed(shell, "agentswarm-tools report --by customer,mo") == ["customer,model", "customer,month"]


def test_a_wrong_setting_completes_nothing(shell: pytest.MonkeyPatch) -> None:
    """A setting that is wrong is no error at the prompt: the command says it when it runs."""
    shell.setenv("AGENTSWARM_BUDGET_USD", "lots")
    assert completed(shell, "agentswarm-tools text hi -m anthropic/") == []
