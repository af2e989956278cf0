"""The environment that the tests run in: nothing that runs by itself, and the versions that were locked."""

from __future__ import annotations

import importlib.metadata
import re
import site
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.support.paths import ROOT

# Lines of a .pth file that begin with `import` run at every start of Python: litellm 1.82.8 stole credentials so, by
# `litellm_init.pth`, and 1.107.0 by `cook.pth` (github.com/BerriAI/litellm/issues/24518, read 2026-11-23).
EXPECTED_PTH = {
    "_agentswarm_tools.pth",  # our own, of `pip install -e .`: the path of the checkout
    "_virtualenv.pth",  # written by virtualenv itself, not by a package
}


def _packages() -> list[Path]:
    return [Path(folder) for folder in site.getsitepackages() if Path(folder).is_dir()]


def test_nothing_runs_by_itself() -> None:
    """No package has left code that runs whenever Python starts."""
    found = {path.name for folder in _packages() for path in folder.glob("*.pth")}
    assert found <= EXPECTED_PTH, "a .pth file that nobody expects: find out who brought it before anything else"
    customs = [
        path
        for folder in _packages()
        for name in ("sitecustomize", "usercustomize")
        for path in folder.glob(f"{name}*")
    ]
    assert customs == []


def test_our_own_pth_is_a_path() -> None:
    """Our own .pth file holds a folder and no code."""
    for folder in _packages():
        for path in folder.glob("_agentswarm_tools.pth"):
            assert Path(path.read_text(encoding="utf-8").strip()).is_dir()


def test_litellm_is_none_of_the_compromised() -> None:
    """The installed LiteLLM is no release that was taken from the index for stealing credentials."""
    version = Version(importlib.metadata.version("litellm"))
    assert version not in {Version("1.82.7"), Version("1.82.8")}
    assert version.release[:2] != (1, 107)


def test_versions_are_the_locked_ones() -> None:
    """Every installed package that requirements.lock names has the version that it names."""
    if not (ROOT / ".venv" / ".ready").exists():
        pytest.skip("this environment was not made by `make`; `uv run` takes the newest versions in range")
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    locked = [Requirement(line) for line in re.findall(r"^([^\s#-].*?)\s*\\?$", lock, re.MULTILINE)]
    assert len(locked) > 100, "requirements.lock could not be read"
    other = []
    for requirement in locked:
        try:
            installed = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another system, or an extra that is left out
        if (requirement.marker is None or requirement.marker.evaluate()) and installed not in requirement.specifier:
            other.append(f"{requirement.name} {installed} instead of {requirement.specifier}")
    if other:
        pytest.fail(f"`make test` installs what is locked: {', '.join(other)}")
