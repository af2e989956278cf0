"""Build hook: puts the package's name into its own imports when a wheel is built.

In a checkout the names are `tools` and `shared`; a user's project may have its own, so the wheel holds the same files
as `agentswarm_tools.tools` and `agentswarm_tools.shared`. Only import statements are edited, in place, so everything
else stays as it was written. An import that cannot be edited this way is an error.
"""

from __future__ import annotations

import ast
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "agentswarm_tools"
MOVED = ("shared", "tools")

_FROM = re.compile(rb"from\s+")
_MODULE_NAME = re.compile(rf"(?:{'|'.join(MOVED)})(?:\.\w+)+")
_BY_NAME = frozenset({"import_module", "__import__", "run_module"})


class _Place(NamedTuple):
    """Where a module is named: line from 1 and column in bytes from 0, as in `ast`."""

    line: int
    column: int


class WheelHook(BuildHookInterface[BuilderConfig]):
    """Gives hatchling the edited files instead of the checkout's; an editable install keeps the checkout's."""

    _changed: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it packs the files."""
        if version == "editable":
            return
        self._changed = tempfile.TemporaryDirectory(prefix="agentswarm-tools-")
        files = [file for file in self.build_config.builder.recurse_included_files() if file.path.endswith(".py")]
        for number, file in enumerate(files):
            changed = Path(self._changed.name, f"{number}.py")
            changed.write_bytes(rewrite(Path(file.path).read_bytes(), file.relative_path))
            build_data["force_include"][str(changed)] = file.distribution_path

    def finalize(self, *_: Any) -> None:
        """Called by hatchling when the wheel is built."""
        if self._changed is not None:
            self._changed.cleanup()


def rewrite(source: bytes, name: str) -> bytes:
    """
    The source with `agentswarm_tools.` in front of each `shared` and `tools` that it imports.

    Args:
        source: A module's source, in UTF-8.

        name: Its name, for error messages.

    Raises:
        ValueError: It names one of our modules in a way that cannot be edited.
    """
    lines = source.splitlines(keepends=True)
    for place in sorted(_places(ast.parse(source, name), lines, name), reverse=True):
        line = lines[place.line - 1]
        lines[place.line - 1] = line[: place.column] + f"{PACKAGE}.".encode() + line[place.column :]
    return b"".join(lines)


def _places(tree: ast.AST, lines: list[bytes], name: str) -> Iterator[_Place]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level and _is_moved(node.module):
            line = lines[node.lineno - 1]
            start = _FROM.match(line, node.col_offset)
            if start is None or not line.startswith(node.module.encode(), start.end()):
                raise ValueError(f"{name}:{node.lineno}: write `from {node.module} import` on one line")
            yield _Place(node.lineno, start.end())
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if not _is_moved(alias.name):
                    continue
                if alias.asname is None:
                    raise ValueError(
                        f"{name}:{alias.lineno}: `import {alias.name}` binds a name that the wheel does not have: "
                        f"write `from ... import ...` or `import {alias.name} as ...`"
                    )
                yield _Place(alias.lineno, alias.col_offset)
        elif isinstance(node, ast.Constant | ast.Call) and (text := _named_in_text(node)):
            raise ValueError(f'{name}:{node.lineno}: "{text}" names a module in a string, which the wheel keeps as is')


def _is_moved(module: str) -> bool:
    return module.partition(".")[0] in MOVED


def _named_in_text(node: ast.Constant | ast.Call) -> str | None:
    """Our module that a string names: any "shared.x", or "shared" in a call that imports by name."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) and _MODULE_NAME.fullmatch(node.value) else None
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    first = node.args[0] if node.args else None
    if called in _BY_NAME and isinstance(first, ast.Constant) and first.value in MOVED:
        return str(first.value)
    return None
