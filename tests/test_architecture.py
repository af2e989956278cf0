"""Who may import whom, who may touch what, and how large a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A module imports from the lines above its own only, never from its own line. A module that is split keeps its parts
# next to each other. Some have yet to come.
LAYERS = (
    ("types", "serialize", "answer_schema"),
    ("errors",),
    ("budget",),
    ("config", "export", "report", "spill"),
    ("scope", "transport", "redaction", "health", "runs"),
    ("image_models",),
    ("image_pricing",),
    ("background", "pricing", "rota", "slots"),
    ("abilities", "media_limits", "media_hosts", "media_files"),
    ("media_gate", "media_fetch", "media_output"),
    ("planning", "media", "local_model"),
    ("ledger_schema",),
    ("ledger_accounts", "ledger_engine"),
    ("ledger_writes",),
    ("ledger",),
    ("ledger_query", "calls"),
    ("provider_answers", "provider_errors", "provider_messages", "provider_targets", "ledger_images"),
    ("provider_requests", "provider_streams"),
    ("provider_foreign", "provider_image_requests"),
    ("provider_sending",),
    ("provider_unguarded", "provider_image_answers"),
    ("provider",),
    ("holds", "estimates"),
    ("attempts", "llm_stream"),
    ("image_calls",),
    ("llm_client", "analytics"),
    ("base_tool", "agent_model", "doctor"),
    ("agent_tracking", "image_tools"),
    ("tools",),
    ("cli", "mcp_server", "pytest_plugin"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# Where a library may be imported; everything else stays as it is when the library changes.
PROVIDER = {name for name in LEVEL if name.startswith("provider")}
EDGES = {
    "litellm": PROVIDER | {"pricing"},
    "agency_swarm": {"base_tool", "agent_model", "agent_tracking"},
    "agents": {"base_tool", "agent_model", "agent_tracking"},
    "sqlalchemy": {name for name in LEVEL if name.startswith("ledger")},
}
LAZY = {"litellm"}  # it takes seconds
PRINTS = {("cli", None), ("analytics", "print_llm_costs")}
ENVIRONMENT = {"environ", "environb", "getenv", "putenv", "unsetenv"}
MAX_LINES = 500

SOURCES = sorted(ROOT.glob("shared/*.py")) + sorted(ROOT.glob("tools/*.py"))
WRITTEN = [
    path
    for folder in ("agentswarm_tools", "shared", "tools", "tests", "examples", "benchmarks", "docs")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def _name(path: Path) -> str:
    """The module's name in LAYERS: all tools are one."""
    return "tools" if path.parent.name == "tools" else path.stem


def _where(path: Path, node: ast.stmt | ast.expr) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno}"


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def _within(path: Path) -> dict[ast.AST, str | None]:
    """The outermost function that each node stands in; None at the level of the module or a class."""
    found: dict[ast.AST, str | None] = {}

    def visit(node: ast.AST, function: str | None) -> None:
        for child in ast.iter_child_nodes(node):
            found[child] = function
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            visit(child, function or (getattr(child, "name", "lambda") if inside else None))

    visit(_tree(path), None)
    return found


def _imports(path: Path) -> Iterator[tuple[ast.stmt, str]]:
    """Every import of a file, wherever it stands, as the full name of what it imports."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = "." * node.level + (node.module or "")
            yield from ((node, f"{package}.{alias.name}") for alias in node.names)


def _ours(imported: str) -> str | None:
    """The module of ours that `shared.x.y` or `tools.X` lies in, as LAYERS names it."""
    package, _, rest = imported.partition(".")
    if package == "tools":
        return "tools"
    return rest.partition(".")[0] if package == "shared" else None


def test_every_module_has_its_layer() -> None:
    """A new module is given its place before it is used."""
    missing = {_name(path) for path in SOURCES} - LEVEL.keys() - {"__init__"}
    assert not missing, (
        f"list {', '.join(sorted(missing))} in LAYERS of tests/test_architecture.py, in the line that fits"
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_imports_go_downwards(path: Path) -> None:
    """A module imports from lower layers only."""
    name = _name(path)
    wrong = []
    for node, imported in _imports(path):
        other = _ours(imported)
        if imported.startswith("."):
            wrong.append(f"{_where(path, node)} imports {imported}: write the full name")
        elif other is None or (path.parent.name == "tools" and path.stem == "__init__" and other == "tools"):
            continue
        elif name not in LEVEL or LEVEL.get(other, len(LAYERS)) >= LEVEL[name]:
            wrong.append(f"{_where(path, node)} imports {other}, which is no lower layer than {name}")
    assert not wrong


@pytest.mark.parametrize("library", EDGES)
def test_libraries_have_their_modules(library: str) -> None:
    """A library that others might replace one day is imported where it belongs, and a slow one only when needed."""
    wrong = []
    for path in SOURCES:
        for node, imported in _imports(path):
            if imported.partition(".")[0] != library:
                continue
            if _name(path) not in EDGES[library]:
                wrong.append(f"{_where(path, node)} imports {library}, which only {sorted(EDGES[library])} may")
            elif library in LAZY and _within(path)[node] is None:
                wrong.append(f"{_where(path, node)} imports {library} outside of a function")
    assert not wrong


def test_one_reader_of_the_environment() -> None:
    """Only config reads the environment, so that every setting is known, typed and documented."""
    wrong = []
    for path in SOURCES:
        if _name(path) == "config":
            continue
        wrong += [
            _where(path, node)
            for node in ast.walk(_tree(path))
            if isinstance(node, ast.Attribute)
            and node.attr in ENVIRONMENT
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
        ]
        wrong += [_where(path, node) for node, name in _imports(path) if name in {f"os.{it}" for it in ENVIRONMENT}]
    assert not wrong


def test_libraries_do_not_print() -> None:
    """Nothing is printed but by the command line and by the function whose name says so."""
    wrong = [
        _where(path, node)
        for path in SOURCES
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        if not PRINTS & {(_name(path), None), (_name(path), _within(path)[node])}
    ]
    assert not wrong


def test_every_module_says_what_it_is_for() -> None:
    """The first line of a module's docstring is one sentence."""
    wrong = []
    for path in WRITTEN:
        first, *_ = (ast.get_docstring(_tree(path)) or "").splitlines() or [""]
        if not first.endswith(".") or ". " in first:
            wrong.append(f"{path.relative_to(ROOT)}: {first!r}")
    assert not wrong


def test_no_file_is_too_long() -> None:
    """A file can be read in one sitting."""
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in WRITTEN}
    long = {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > MAX_LINES}
    assert not long, f"more than {MAX_LINES} lines: {long}"


@pytest.mark.parametrize("module", ["shared.llm_client", "shared.analytics", "shared.cli", "agentswarm_tools"])
def test_what_starts_quickly(module: str) -> None:
    """The client and the command line start without LiteLLM, agency-swarm and OpenAI's client."""
    program = (
        f"import sys, {module}; print(*sorted({{'litellm', 'agency_swarm', 'agents', 'openai'}} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
