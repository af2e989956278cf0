"""The mutation check: each deliberate bug, put into a copy of the code, is caught by the test that is said to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mutations import MUTATIONS, Mutation
from tests.support.paths import ROOT

COPIED = ("agentswarm_tools", "shared", "tools", "tests", "cassettes")
TIMEOUT_S = 120


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the tests need."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "soak"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def outcome(folder: Path, *tests: str) -> tuple[int, str]:
    """Exit code and output of these tests; 1 is pytest's for tests that failed."""
    options = ["-n0", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "--tb=line"]
    done = subprocess.run(
        [sys.executable, "-B", "-m", "pytest", *options, *tests],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_without_a_bug_all_pass(checkout: Path) -> None:
    """The tests that catch the bugs pass in the copy as it is, so what fails them below is the bug."""
    code, said = outcome(checkout, *{mutation.caught_by for mutation in MUTATIONS})
    assert code == 0, said


@pytest.mark.parametrize("mutation", [pytest.param(each, id=each.name.replace(" ", "-")) for each in MUTATIONS])
def test_mutation_is_caught(mutation: Mutation, checkout: Path) -> None:
    """A deliberate bug makes the test fail that tests/README.md names for it."""
    file = checkout / mutation.file
    before = file.read_text(encoding="utf-8")
    file.write_text(mutation.applied(), encoding="utf-8")
    try:
        code, said = outcome(checkout, mutation.caught_by)
    finally:
        file.write_text(before, encoding="utf-8")
    assert code == 1, f"{mutation.name} goes unnoticed:\n{said}"
    assert f"FAILED {mutation.caught_by}" in said, said
