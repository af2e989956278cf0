"""The layout that docs/design.md promises; who may import whom is import-linter's (see pyproject.toml)."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import agentswarm_tools
from tests.support.paths import ROOT

FOLDERS = ("agentswarm_tools", "shared", "tools", "tests", "examples", "benchmarks", "docs")
WRITTEN = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
SOURCES = [path for path in WRITTEN if path.relative_to(ROOT).parts[0] in ("shared", "tools")]
# What users import from shared/; every other file lies in a folder.
FLAT = {
    *("agent_model", "analytics", "base_tool", "budget", "config", "errors", "llm_client", "pytest_plugin"),
    *("redaction", "scope", "types"),
}
PUBLIC = {
    *("ALL_TOOLS", "AnalyticsEvent", "BaseTool", "Budget", "CostReport", "Estimate", "EventType", "ImageGeneration"),
    *("LLMClient", "LLMResponse", "LLMStream", "ModelConfig", "TaskType", "TextGeneration", "UnderstandImages"),
    *("budgeted", "get_llm_client", "get_llm_costs", "print_llm_costs", "record_event", "scope", "track_agency"),
    *("flush_telemetry", "warm_up"),
}
SMALL = 30


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _imports(path: Path) -> Iterator[str]:
    """The full names of what a file imports."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_flat_files_are_what_users_import() -> None:
    """shared/ has one file for each thing that users import, and a folder for each part of how it works."""
    assert {path.stem for path in (ROOT / "shared").glob("*.py")} - {"__init__"} == FLAT


def test_the_top_exports_the_whole_public_interface() -> None:
    """`agentswarm_tools` has every public name, each the same object that shared/ and tools/ have."""
    from shared import errors

    raised = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert set(agentswarm_tools.__all__) == PUBLIC | raised
    assert all(getattr(agentswarm_tools, name) is getattr(errors, name) for name in raised)
    from shared.budget import Budget
    from shared.llm_client import ModelConfig

    assert agentswarm_tools.Budget is Budget
    assert agentswarm_tools.ModelConfig is ModelConfig
    with pytest.raises(AttributeError):
        _ = agentswarm_tools.NoSuchName


def _has_its_place(path: Path) -> bool:
    """Whether users import it, or it is a group of commands of its own."""
    return path.stem in FLAT or path.parent.name in ("cli", "tools")


def test_no_file_is_a_fragment() -> None:
    """A file of a few lines is a subject of its own only when several others, or users, need it."""
    importers: Counter[str] = Counter()
    for path in SOURCES:
        importers.update({name for full in set(_imports(path)) for name in (full, full.rpartition(".")[0])})
    small = [
        path
        for path in SOURCES
        if path.name != "__init__.py" and len(path.read_text(encoding="utf-8").splitlines()) < SMALL
    ]
    assert not [_module(path) for path in small if not _has_its_place(path) and importers[_module(path)] < 2]


def test_libraries_do_not_print() -> None:
    """Nothing is printed but by the command line and by the function whose name says so."""
    wrong = []
    for path in SOURCES:
        if "cli" in path.parts:
            continue
        for function in ast.walk(_tree(path)):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or function.name == "print_llm_costs":
                continue
            calls = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
            wrong += [_module(path) for name in calls if isinstance(name, ast.Name) and name.id == "print"]
    assert not wrong


def test_every_module_says_what_it_is_for() -> None:
    """The first line of a module's docstring is one sentence."""
    wrong = []
    for path in WRITTEN:
        found = re.match(r'"""\n?([^\n]*?)("""|\n)', path.read_text(encoding="utf-8"))
        first = found[1] if found else ""
        if not first.endswith(".") or ". " in first:
            wrong.append(f"{path.relative_to(ROOT)}: {first!r}")
    assert not wrong


def test_no_test_imports_from_another() -> None:
    """What tests share is in tests/support/; no module of tests, nor a script in one, imports from a test module."""
    of_a_test = re.compile(r"^\s*(?:from|import) tests\.(?:\w+\.)*test_\w+", re.MULTILINE)
    found = {path: of_a_test.findall(path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob("*.py")}
    assert len(found) > 100
    assert {str(path.relative_to(ROOT)): lines for path, lines in found.items() if lines} == {}


# What takes long to import, and waits for its first use: the first few in every module that starts quickly.
HOST = ("litellm", "agency_swarm", "agents", "openai")
SLOW = (*HOST, "sqlalchemy", "PIL", "jsonschema", "httpx", "xllamacpp", "shared.providers.local", "shared.calls.flow")


def test_what_starts_quickly() -> None:
    """Settings, the client and the command line start without what only their use needs, and start no thread."""
    program = f"""
import importlib, sys, threading
from contextlib import suppress

def check(what, slow):
    print(*(f"{{what}}:{{name}}" for name in slow if name in sys.modules))

from shared import cli
sys.argv = ["agentswarm-tools", "--help"]
with suppress(SystemExit):
    cli.main()
print("HELP ENDS")
check("--help", (*{SLOW}, "pydantic"))
for module in ("agentswarm_tools", "shared.config", "shared.llm_client"):
    importlib.import_module(module)
    check(module, {SLOW})
from agentswarm_tools import LLMClient, LLMStream, scope
check("LLMClient", {SLOW})
importlib.import_module("shared.analytics")
check("shared.analytics", {HOST})
print(*(thread.name for thread in threading.enumerate() if thread is not threading.main_thread()))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    shown, _, loaded = done.stdout.partition("HELP ENDS")
    assert "report" in shown
    assert loaded.split() == []


# What other commands need, or other formats of a report; and what `--help` does not need either.
NOT_FOR_A_REPORT = (
    *(name for name in SLOW if name != "sqlalchemy"),
    *("jinja2", "rich.table", "tomllib"),
    *("shared.models.catalogue", "shared.prices.rates", "shared.reports.page", "shared.reports.alerts"),
    *("shared.ledger.events", "shared.ledger.export", "shared.ledger.calls", "shared.ledger.closing"),
)
NOT_FOR_HELP = (*NOT_FOR_A_REPORT, "sqlalchemy", "pydantic", "importlib.metadata")


def test_what_a_report_loads(tmp_path: Path) -> None:
    """A report of costs loads what it needs, `--help` less, and neither searches for garbage while modules load."""
    program = f"""
import gc, sys
from contextlib import suppress
from agentswarm_tools.__main__ import main

def searches():
    return [each["collections"] for each in gc.get_stats()[1:]]

before, loaded = searches(), set(sys.modules)
for argument, slow in (("--help", {NOT_FOR_HELP}), ("report", {NOT_FOR_A_REPORT})):
    sys.argv = ["agentswarm-tools", argument]
    with suppress(SystemExit):
        main()
    print("ENDS", *(f"{{argument}}:{{name}}" for name in slow if name in sys.modules.keys() - loaded))
print("GARBAGE", searches() == before, gc.get_freeze_count() > 10_000)
"""
    environment = os.environ | {"AGENTSWARM_DATABASE_URL": f"sqlite:///{tmp_path / 'ledger.sqlite3'}"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    assert "Total Cost: $0.000000" in done.stdout
    found = [line for line in done.stdout.splitlines() if line.startswith(("ENDS", "GARBAGE"))]
    assert found == ["ENDS", "ENDS", "GARBAGE True True"]


def test_warming_up_loads_everything(tmp_path: Path) -> None:
    """After `warm_up`, every module that waits for its first use is loaded, and the ledger is open."""
    program = """
import sys
from shared import llm_client, providers
providers.import_litellm = lambda: print("litellm")  # takes seconds
llm_client.warm_up()
from shared.internal.lazy import _lazy_modules
print(len(_lazy_modules) > 40, *(name for name in (*_lazy_modules, "sqlalchemy", "PIL") if name not in sys.modules))
"""
    environment = os.environ | {"AGENTSWARM_DATABASE_URL": f"sqlite:///{tmp_path / 'ledger.sqlite3'}"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["litellm", "True"]
    assert (tmp_path / "ledger.sqlite3").exists()
