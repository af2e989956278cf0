"""The words of docs/design.md: what has a name there is called by no other, in code and in prose."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import ROOT

_OPTIONS = "options, or image options"
# What is refused, as a regular expression of whole words, and what to write instead.
RETIRED = {
    "rotas?": "retry schedule",
    "spill(?:s|ed|ing)?": "spool",
    r"wishes|wish_\w*|\w+_wish": _OPTIONS,
    "verdicts?": "result, or what was decided",
    "standings?": "budget status",
    "tall(?:y|ies|ied)": "account, sum or count",
    "journals?": "spool, ledger or pending calls",
    "suited": "usable, or able to",
    "see_through": "settle, or finish",
    "nobody knows": "is unknown",
    "nobody says": "is not reported",
    "nobody vouches": "is not verified",
    "asked for again by itself": "retried",
    "for want of": "without, or because there is no",
    "be it in": "whether in",
    "dearer": "more expensive",
    "dearest": "most expensive",
    "borne": "paid, or carried",
    "how things stand": "the status",
}
_REFUSED = [(re.compile(rf"(?<!\w)(?:{word})(?!\w)", re.IGNORECASE), word, use) for word, use in RETIRED.items()]
_ANY = re.compile(rf"(?<!\w)(?:{'|'.join(RETIRED)})(?!\w)", re.IGNORECASE)
# The same in a text of letters and digits alone, where any of its forms is found with one search.
_SQUEEZED = re.compile("|".join(re.sub(r"[ _]|\\w[*+]", "", word) for word in RETIRED))
_NOUN = re.compile(r"\b(?:an?|the|no|each|every|this|that|its|their|of) wish\b", re.IGNORECASE)
# SQLite's own words.
_SQLITE = re.compile(r"rollback journals?|journal[ _]modes?|-journal\b", re.IGNORECASE)

FOLDERS = ("agentswarm_tools", "shared", "tools", "tests", "examples", "benchmarks", "docs")
PYTHON = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) if path != Path(__file__)]
PROSE = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *sorted(ROOT.glob("docs/*.md"))]


def wrong(text: str) -> list[str]:
    """What a text should say otherwise."""
    text = _SQLITE.sub("", re.sub(r"\s+", " ", text))
    refused = _REFUSED if _ANY.search(text) else ()  # one search finds that nothing is wrong
    found = [f"{hit[0]!r}: say {use}" for pattern, _, use in refused for hit in pattern.finditer(text)]
    return found + [f"{hit[0]!r}: say {_OPTIONS}" for hit in _NOUN.finditer(text)]


@cache
def wrong_name(name: str) -> list[str]:
    """What is wrong with an identifier, whose words are joined by underscores or capitals."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    if _SQLITE.search(words):
        return []
    names = (words, *words.split("_"))
    refused = [use for each in names if _ANY.fullmatch(each) for pattern, _, use in _REFUSED if pattern.fullmatch(each)]
    return [f"{name}: say {use}" for use in refused] + [f"{name}: say options" for each in names if each == "wish"]


def may_be_wrong(source: str) -> bool:
    """Whether a file is worth looking at; in most there is nothing that looks like a retired word."""
    return _SQUEEZED.search(re.sub(r"[\W_]+", "", source.lower())) is not None


def texts_of(source: str) -> Iterator[tuple[int, list[str]]]:
    """Lines and faults of a Python file's identifiers, comments and docstrings; its other strings are data."""
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    for token in tokens:
        if token.type == tokenize.NAME:
            yield token.start[0], wrong_name(token.string)
    block: list[tokenize.TokenInfo] = []
    for token in tokens:
        if token.type == tokenize.COMMENT and (not block or token.start[0] == block[-1].start[0] + 1):
            block.append(token)
        elif token.type not in (tokenize.NL, tokenize.NEWLINE):
            yield from _comment(block)
            block = [token] if token.type == tokenize.COMMENT else []
    yield from _comment(block)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield getattr(node, "lineno", 1), wrong(ast.get_docstring(node) or "")


def _comment(block: list[tokenize.TokenInfo]) -> Iterator[tuple[int, list[str]]]:
    """Line and faults of comments that follow one another."""
    if block:
        yield block[0].start[0], wrong(" ".join(token.string.lstrip("# ") for token in block))


def prose_of(text: str) -> Iterator[tuple[int, list[str]]]:
    """Lines and faults of a page's paragraphs, without its code and without the section that lists the words."""
    text = re.sub(r"(?ms)^```.*?^```", lambda block: "\n" * block[0].count("\n"), text)
    text = re.sub(r"(?ms)^## Words\b.*?(?=^## |\Z)", lambda section: "\n" * section[0].count("\n"), text)
    number = 1
    for paragraph in re.split(r"(?<=\n)\n", text):
        yield number, wrong(re.sub(r"`[^`]*`", "", paragraph))
        number += paragraph.count("\n") + 1


@pytest.mark.parametrize(
    "said",
    [
        "nobody\n    knows it",
        "the dearest of both",
        "Of each wish the cost",
        "what is borne by them",
        "the old rota",
    ],
)
def test_a_retired_word_is_found(said: str) -> None:
    """A retired word is found in comments, docstrings and prose, across lines, and as a part of a name."""
    code = "\n".join([f'"""{said}."""', *(f"# {line}" for line in said.splitlines()), "budget_standing = Rota()", ""])
    assert may_be_wrong(f"# {said.replace(chr(10), chr(10) + '#')}")
    assert may_be_wrong("seeThrough = 1")
    assert [bool(faults) for _, faults in texts_of(code) if faults] == [True] * 4
    assert [faults for _, faults in prose_of(f"Fine.\n\nBut {said}.\n") if faults]


@pytest.mark.parametrize(
    "said", ["SQLite's journal mode", "the rollback journal", "if you wish", "notable", "overspilt"]
)
def test_other_words_pass(said: str) -> None:
    """SQLite's own words, the verb and words that only look alike are not refused, nor are strings or code."""
    code = f'"""{said}."""\njournal_mode = PRAGMA_JOURNAL_MODE = ".spill.jsonl nobody knows"\n'
    assert [faults for _, faults in texts_of(code) if faults] == []
    assert [faults for _, faults in prose_of(f"{said} `rota`\n\n```\nrota\n```\n\n## Words\n\nrota\n") if faults] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_code_uses_the_words_of_the_field(folder: str) -> None:
    """No identifier, comment or docstring uses a word that docs/design.md has retired."""
    found = []
    for path in PYTHON:
        if path.relative_to(ROOT).parts[0] == folder:
            source = path.read_text(encoding="utf-8")
            faults_of_lines = texts_of(source) if may_be_wrong(source) else ()
            found += [f"{path.relative_to(ROOT)}:{at} {fault}" for at, faults in faults_of_lines for fault in faults]
    assert not found, "\n".join(dict.fromkeys(found))


def test_prose_uses_the_words_of_the_field() -> None:
    """No page for people uses a word that docs/design.md has retired."""
    found = [
        f"{path.relative_to(ROOT)}:{at} {fault}"
        for path in PROSE
        for at, faults in prose_of(path.read_text(encoding="utf-8"))
        for fault in faults
    ]
    assert not found, "\n".join(found)
