"""The wheel, built once for the tests that look into it or install it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.paths import ROOT

BIN = Path(sys.executable).parent
TIMEOUT_S = 60


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=TIMEOUT_S)
    return next(folder.glob("*.whl"))


class Project(NamedTuple):
    """A user's project: its folder, and the one that the wheel is installed in."""

    folder: Path
    site: Path

    def environment(self) -> dict[str, str]:
        """The wheel stands before the checkout that this virtual environment may have."""
        return {**os.environ, "PYTHONPATH": str(self.site)}

    def run(self, *command: str | Path) -> str:
        """What a program that ends well prints."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def project(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The wheel beside a project that has taken both names, and has a tool of the same name too."""
    project = Project(tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("site"))
    (project.folder / "tools").mkdir()
    (project.folder / "tools" / "__init__.py").write_text("OWN = 'tools'\n")
    (project.folder / "tools" / "TextGeneration.py").write_text("class TextGeneration: ...\n")
    (project.folder / "shared.py").write_text("OWN = 'shared'\n")
    options = ["--offline", "--no-cache", "--no-deps", "--python", sys.executable]
    install: list[str | Path] = [BIN / "uv", "pip", "install", *options, "--target", project.site, wheel]
    subprocess.run(install, check=True, capture_output=True, timeout=TIMEOUT_S)
    return project
