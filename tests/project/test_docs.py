"""README, docs and the guide: their examples run, their tables are the code's, their links lead somewhere."""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import os
import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, get_args

import pytest
from pydantic import Field
from typer.testing import CliRunner

from docs import generate
from shared import cli
from shared.base_tool import BaseTool
from shared.config import Settings
from shared.internal.extras import EXTRAS
from shared.types import CostSource
from tests.support.paths import BESIDE, ROOT
from tests.support.pictures import image
from tests.support.provider_double import Double
from tests.support.web import Web

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDE = BESIDE / "GUIDE.md"

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- (not run: .+|prints) -->\n\Z")
_LINK = re.compile(r"\]\((?!https?:)(?P<path>[^)#]*)(?:#(?P<anchor>[^)]*))?\)")

# Blocks of the guide that never ran as they stand, with the reason.
NOT_RUNNABLE = {"Before: Direct OpenAI Calls": "openai.ChatCompletion left the openai package with its 1.0"}
# What the guide leaves open in its calls.
LEFT_OPEN = {
    "client.chat_completion(...)": "client.chat_completion(messages)",
    'client.chat_completion(\n    model="gpt-4-turbo",': 'client.chat_completion(\n    messages, model="gpt-4-turbo",',
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: where it stands, what it holds, and the mark in front of it."""

    page: Path
    line: int
    heading: str
    language: str
    text: str
    mark: str

    def run(self, namespace: dict[str, Any]) -> str:
        """Run it as Python; returns what it prints."""
        printed = io.StringIO()
        padded = "\n" * self.line + self.text  # tracebacks name the page's own lines
        with contextlib.redirect_stdout(printed):
            exec(compile(padded, str(self.page), "exec", dont_inherit=True), namespace)  # noqa: S102 - our own pages
        return printed.getvalue()


def blocks(page: Path, *languages: str) -> list[Block]:
    """The page's blocks in these languages, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(text):
        before = text[: fence.start()]
        mark, headings = _MARK.search(before), re.findall(r"^#+ (.+)$", re.sub(_FENCE, "", before), re.MULTILINE)
        found.append(
            Block(
                page,
                before.count("\n") + 1,
                headings[-1],
                fence["language"],
                textwrap.dedent(fence["text"]),
                mark[1] if mark else "",
            )
        )
    return [block for block in found if block.language in languages]


@pytest.fixture
def reader(hosted: Double, web: Web) -> Iterator[Double]:
    """Somebody with keys who tries things out; what their examples set in the environment is forgotten."""
    web.everywhere = image()
    before = dict(os.environ)
    yield hosted
    os.environ.clear()
    os.environ.update(before)


def name_of(page: Path) -> str:
    """A page as the ids of tests show it."""
    return page.name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_examples_run(page: Path, reader: Double) -> None:
    """Every Python example of a page runs by itself, and prints what the page says that it prints."""
    printed = ""
    for block in blocks(page, "python", "text"):
        if block.mark.startswith("not run"):
            continue
        if block.language == "python":
            printed = block.run({"__name__": "example"})
        elif block.mark == "prints":
            same = doctest.OutputChecker().check_output(block.text, printed, doctest.ELLIPSIS)
            assert same, f"{page.name}:{block.line} should print\n{block.text}but prints\n{printed}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_run(page: Path, reader: Double) -> None:
    """Every command that a page shows runs, or names a target, file or extra that there is."""
    for block in blocks(page, "bash"):
        for line in block.text.splitlines():
            match shlex.split(line, comments=True):
                case []:
                    pass
                case ["agentswarm-tools", *arguments]:
                    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
                    assert result.exit_code == 0, f"{line}\n{result.output}"
                case ["make", target]:
                    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
                case ["uv", "run", "pytest"] | ["uv", "build"]:
                    pass
                case ["pip", "install", "-r", name]:
                    assert (ROOT / name).is_file(), line
                case ["python", "-m", "agentswarm_tools", *arguments]:
                    assert CliRunner().invoke(cli.app, [*arguments, "--help"]).exit_code == 0, line
                case ["uv", "run", "--extra", extra, script]:
                    assert extra in extras(), line
                    assert (ROOT / script).is_file(), line
                case _:
                    pytest.fail(f"{page.name} shows a command that no test knows: {line}")


def extras() -> set[str]:
    """The package's extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return set(project["optional-dependencies"])


def test_install_commands_name_what_the_extras_are() -> None:
    """What errors and doctor say to install is what pyproject.toml has for the extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {name: [needed] for name, (_, needed) in EXTRAS.items()} == project["optional-dependencies"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_extras_and_requirements_exist(page: Path) -> None:
    """What a page says to install with pip can be installed."""
    text = page.read_text(encoding="utf-8")
    named = {extra for group in re.findall(r"agentswarm-tools\[([\w,]+)\]", text) for extra in group.split(",")}
    assert named <= extras()
    assert all((ROOT / name).is_file() for name in re.findall(r"pip install -r ([\w.]+)", text))


def test_generated_parts_are_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    """What is generated in README.md, docs/ and .env.example says what the code says."""
    assert generate.main(["--check"]) == 0, capsys.readouterr().out


def test_a_stale_part_is_found_and_written_anew() -> None:
    """A changed table is put right, and the text around it is left alone."""
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert generate.fill(text.replace("`LITELLM_VERBOSE`", "`OTHER`")) == text


def test_every_command_is_documented() -> None:
    """Every command of the CLI has its help, and its place in docs/cli.md."""
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for words in generate.commands():
        assert f"## agentswarm-tools {' '.join(words)}\n" in page
        assert len(generate.help_text(*words).splitlines()) > 4


def test_every_setting_is_documented() -> None:
    """Every setting is described, and in docs/settings.md and .env.example, under its own name."""
    page, example = (ROOT / "docs" / "settings.md").read_text(), (ROOT / ".env.example").read_text()
    for field in Settings.model_fields.values():
        assert field.description
        assert f"| `{field.validation_alias}` |" in page
        assert f"# {field.validation_alias}=" in example


def test_env_example_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """.env.example says the defaults: uncommented as it is, it sets what is set without it."""
    for name in ("AGENTSWARM_DATABASE_URL", "AGENTSWARM_TIMEZONE"):
        monkeypatch.delenv(name)
    plain = Settings()
    example = (ROOT / ".env.example").read_text()
    (tmp_path / ".env").write_text(re.sub(r"^# (\w+=)", r"\1", example, flags=re.MULTILINE))
    monkeypatch.chdir(tmp_path)
    assert Settings() == plain


def test_cost_sources_are_explained() -> None:
    """Every way in which a cost may be known is explained."""
    page = (ROOT / "docs" / "how-a-call-goes.md").read_text(encoding="utf-8")
    explained = page.partition("\n`cost_source` is ")[2]
    assert all(f"`{source}`" in explained for source in get_args(CostSource))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    """Every link inside the repository leads to a file, and to a heading of it."""
    for link in _LINK.finditer(page.read_text(encoding="utf-8")):
        target = (page.parent / link["path"]).resolve() if link["path"] else page
        assert target.is_file(), link[0]
        if link["anchor"]:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert link["anchor"] in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.skipif(not GUIDE.is_file(), reason="the guide is not part of the repository")
def test_the_guides_examples_run(reader: Double) -> None:
    """The guide's Python runs as written, with what it leaves open filled in."""
    said: list[str] = []
    namespace: dict[str, Any] = {
        "__name__": "guide",
        "messages": [{"role": "user", "content": "Hello!"}],
        "tasks": ["one", "two"],
        "budget": 1.0,
        "BaseTool": BaseTool,
        "Field": Field,
        "Optional": Optional,
        "send_alert": said.append,
        "display_to_user": said.append,
    }
    skipped = set()
    for block in blocks(GUIDE, "python"):
        if block.heading in NOT_RUNNABLE:
            skipped.add(block.heading)
            continue
        text = block.text
        for gap, filled in LEFT_OPEN.items():
            text = text.replace(gap, filled)
        Block(block.page, block.line, block.heading, block.language, text, block.mark).run(namespace)
    assert skipped == NOT_RUNNABLE.keys()
    assert "".join(said) == "Hello from gpt-5.5."
    making, looking = namespace["ImageGeneration"](prompt="a cat"), namespace["UnderstandImages"]
    made = json.loads(making.run_sync())
    assert made["image_url"].startswith("file://")
    seen = json.loads(looking(media_url="https://example.com/a.png", instruction="What is it?").run_sync())
    assert seen["analysis"] == "Hello from gpt-5.5."
