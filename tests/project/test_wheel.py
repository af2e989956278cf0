"""The wheel: one package, with the checkout's files in it."""

from __future__ import annotations

import ast
import zipfile
from pathlib import Path

import pytest

import agentswarm_tools
from hatch_build import rewrite
from tests.support.paths import ROOT


def test_one_package(wheel: Path) -> None:
    """The wheel installs one name, and under it every file of shared/ and tools/."""
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"agentswarm_tools"}
    files = [file for folder in ("shared", "tools") for file in (ROOT / folder).rglob("*") if file.is_file()]
    ours = {f"agentswarm_tools/{file.relative_to(ROOT)}" for file in files if file.parent.name != "__pycache__"}
    assert names >= ours | {"agentswarm_tools/__init__.py", "agentswarm_tools/__main__.py", "agentswarm_tools/py.typed"}


def test_only_imports_differ(wheel: Path) -> None:
    """An installed module is the checkout's, line for line, but for the prefix in its imports."""
    archive = zipfile.ZipFile(wheel)
    for name in (name for name in archive.namelist() if name.endswith(".py")):
        inside = name.removeprefix("agentswarm_tools/")
        source = ROOT / (inside if inside.startswith(("shared/", "tools/")) else name)
        installed = archive.read(name).decode()
        assert installed.replace("from agentswarm_tools.", "from ").replace(
            "import agentswarm_tools.", "import "
        ) == source.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(installed)):
            named = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            named += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {module.partition(".")[0] for module in named} & {"shared", "tools"}, f"{name}: {named}"


def test_exports() -> None:
    """`agentswarm_tools` gives each name that it lists, to programs and to type checkers alike, and no other."""
    assert sorted(agentswarm_tools.__all__) == agentswarm_tools.__all__
    assert all(getattr(agentswarm_tools, name) is not None for name in agentswarm_tools.__all__)
    assert set(agentswarm_tools.__all__) <= set(dir(agentswarm_tools))
    tree = ast.parse(Path(agentswarm_tools.__file__).read_text(encoding="utf-8"))
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    names = [alias.name for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(names) == agentswarm_tools.__all__
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = agentswarm_tools.Nothing


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from shared.x import y", "from {0}.shared.x import y"),
        ("from shared import (\n    x,\n    y,\n)", "from {0}.shared import (\n    x,\n    y,\n)"),
        ("from  tools import A  # tools", "from  {0}.tools import A  # tools"),
        ("import os, shared.x as x, tools as t", "import os, {0}.shared.x as x, {0}.tools as t"),
        ("def f():\n    from shared import x\n", "def f():\n    from {0}.shared import x\n"),
        ("if y:\r\n\tfrom shared import x\r\n", "if y:\r\n\tfrom {0}.shared import x\r\n"),
        ("é = 'from shared import x'; from shared import x", "é = 'from shared import x'; from {0}.shared import x"),
        ("from .x import y", None),
        ("from shared_things import x", None),
        ("import toolshed, sharedness.shared", None),
        ("d['tools']; find_spec('shared')", None),
        ('"""See shared.x and from shared import x."""', None),
    ],
)
def test_rewrite(before: str, after: str | None) -> None:
    """The build changes the imports of our modules, wherever they stand, and nothing else."""
    assert rewrite(before.encode(), "x.py").decode() == (after or before).format("agentswarm_tools")


@pytest.mark.parametrize(
    "source",
    [
        "import shared.x",
        "import shared",
        "import os, tools.TextGeneration",
        "from \\\n    shared.x import y",
        "import_module('shared.x')",
        "importlib.import_module('tools')",
        "__import__('shared')",
        "run([sys.executable, '-m', 'shared.cli'])",
    ],
)
def test_rewrite_refuses(source: str) -> None:
    """What the build cannot change stops it, with file, line and name."""
    with pytest.raises(ValueError, match=r"^some\.py:[12]: .*(shared|tools)"):
        rewrite(source.encode(), "some.py")
