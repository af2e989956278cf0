"""The list of deliberate bugs is up to date: each still applies, and tests/README.md names it with its test."""

from __future__ import annotations

import ast

import pytest

from tests.support.mutations import MUTATIONS, Mutation
from tests.support.paths import ROOT


@pytest.mark.parametrize("mutation", [pytest.param(each, id=each.name.replace(" ", "-")) for each in MUTATIONS])
def test_mutations_apply(mutation: Mutation) -> None:
    """A deliberate bug changes one place of the code as it is today, which stays Python, and has its line in README."""
    ast.parse(mutation.applied())
    readme = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    assert f"| {mutation.name} | `{mutation.caught_by.removeprefix('tests/')}` |" in readme


def test_there_are_ten() -> None:
    """At least ten different bugs are caught, in different files."""
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 10
    assert len({mutation.file for mutation in MUTATIONS}) >= 6
