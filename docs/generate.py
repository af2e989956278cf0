"""Writes the generated blocks of README.md and docs/, and .env.example, from the code.

Run with: make docs (or: python docs/generate.py); --check changes nothing and fails when something is stale.

A block is the text between `<!-- generated: name -->` and `<!-- end of name -->`.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import httpx
import sqlalchemy as sa
import typer
from pydantic.fields import FieldInfo
from typer.testing import CliRunner

from benchmarks.contest import spread
from shared import cli, errors
from shared.calls import flow, retry_schedule
from shared.config import Settings
from shared.errors import LLMError
from shared.ledger import schema
from shared.models.image_options import IMAGE_MODELS
from shared.models.keys import KEY_VARIABLES, key_variables
from shared.models.names import model_facts
from shared.prices import UNKNOWN, TableEntry, price_table, rates_of
from shared.providers import errors as provider_errors, transport
from shared.providers.transport import Exchange
from shared.reports import telemetry
from shared.types import Candidate, Rates, Unit
from tests.support import fault_cases
from tests.support.fault_cases import FaultCase

_BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
_HELP_COLUMNS = 84


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Write everything that is out of date, or only show it with --check.

    Returns:
        1 if --check found something out of date, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail with a diff if something is out of date"
    )
    check = parser.parse_args(arguments).check
    stale = False
    for path in documents():
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        after = env_example() if path.name == ".env.example" else fill(before)
        if before == after:
            continue
        stale = True
        name = str(path.relative_to(ROOT))
        if check:
            sys.stdout.writelines(difflib.unified_diff(before.splitlines(True), after.splitlines(True), name, name))
        else:
            path.write_text(after, encoding="utf-8")
            print(f"{name} written")  # noqa: T201 - a script's progress
    if check and stale:
        print("Out of date; `make docs` updates them.")  # noqa: T201
    return int(check and stale)


def documents() -> list[Path]:
    """The files that hold generated text."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / ".env.example"]


def fill(text: str) -> str:
    """`text` with its generated blocks updated."""
    return _BLOCK.sub(lambda block: f"{block[1]}\n{_BLOCKS[block[2]]().strip()}\n\n{block[3]}", text)


# Settings and keys


def settings_fields() -> Iterator[tuple[str, str, str]]:
    """Each setting as (variable, default, description); the default is "" if the setting is unset by default."""
    for field in Settings.model_fields.values():
        yield str(field.validation_alias), _default(field), " ".join((field.description or "").split())


def _default(field: FieldInfo) -> str:
    value = field.default
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else ",".join(value) if isinstance(value, tuple) else str(value)


def settings_table() -> str:
    """Every environment variable of Settings."""
    rows = [(f"`{name}`", f"`{default}`" if default else "", meaning) for name, default, meaning in settings_fields()]
    return _table(("Variable", "Default", "Meaning"), rows)


def key_rows() -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Each provider, the variables for its key, and one of its models ("" if none is suggested)."""
    suggested: Mapping[str, str] = model_facts()["suggested"]
    for provider in (*suggested, *(name for name in ("azure", *KEY_VARIABLES) if name not in suggested)):
        if provider != "cohere_chat":
            yield provider, key_variables(provider), suggested.get(provider, "")


def keys_table() -> str:
    """Every provider whose key has a documented variable."""
    rows = [
        (f"`{provider}`", " or ".join(f"`{name}`" for name in names), f"`{model}`" if model else "")
        for provider, names, model in key_rows()
    ]
    return _table(("Provider", "Key", "Example model"), rows)


def env_example() -> str:
    """The content of .env.example: everything that can be set, commented out."""
    lines = [
        "# Copy to .env and uncomment what you need. The environment wins over .env; empty values are ignored.",
        "# Written by docs/generate.py (make docs).",
        "",
        "# --- Provider keys: set at least one, or use local/smollm2-135m ---",
        "",
        *(f"# {names[0]}=" for _, names, _ in key_rows()),
        "",
        "# --- Your own endpoints: <PROVIDER>_API_BASE or <PROVIDER>_BASE_URL, for example ---",
        "",
        "# OPENAI_BASE_URL=https://llm.example.com/v1",
        "# OLLAMA_API_BASE=http://localhost:11434",
        "# AZURE_API_BASE=https://example.openai.azure.com",
        "# AZURE_API_VERSION=",
        "",
        "# --- Settings, with their defaults ---",
    ]
    for name, default, meaning in settings_fields():
        lines += ["", f"# {meaning}", f"# {name}={default}"]
    return "\n".join(lines) + "\n"


# Tools, commands and columns


def tools_table() -> str:
    """Every tool, what it is for, and its arguments."""
    from tools import ALL_TOOLS  # slow, because it imports agency-swarm

    rows = []
    for tool in ALL_TOOLS:
        names = [f"**{name}**" if field.is_required() else name for name, field in tool.model_fields.items()]
        rows.append((f"`{tool.__name__}`", (tool.__doc__ or "").split("\n\n")[0], ", ".join(names)))
    return _table(("Tool", "What the agent reads of it", "Arguments (**required**)"), rows)


def image_models_table() -> str:
    """What image models accept."""
    rows = []
    for row in IMAGE_MODELS:
        names = ", ".join(f"`{name.removeprefix('*/')}`" for name in row.names if not name.startswith("*/openai/"))
        step = f"; any multiples of {row.step}, {row.pixels[0]:,} to {row.pixels[1]:,} pixels" if row.step else ""
        levels = f" at {', '.join(row.levels)}" if len(row.levels) > 1 else ""
        start = f"{row.references}{' and a mask' if row.mask else ''}" if row.references else ""
        more = [*(f"background {ground}" for ground in row.backgrounds[:1]), *row.formats]
        sizes = f"{', '.join((*row.sizes, *row.ratios))}{step}{levels}"
        rows.append((names, sizes, ", ".join(row.qualities), start, ", ".join(more), row.source))
    head = ("Model", "Sizes or ratios", "Quality", "Images to start from", "Other options", "Source")
    return _table(head, rows)


def help_text(*command: str) -> str:
    """What `agentswarm-tools COMMAND --help` prints."""
    runner = CliRunner(env={"COLUMNS": str(_HELP_COLUMNS), "NO_COLOR": "1"})
    result = runner.invoke(
        cli.app, [*command, "--help"], prog_name="agentswarm-tools", terminal_width=_HELP_COLUMNS, color=False
    )
    return "\n".join(line.rstrip() for line in result.output.strip().splitlines())


def commands() -> list[tuple[str, ...]]:
    """Every command of the CLI, including the groups, as a tuple of words."""
    overview = typer.main.get_command(cli.app)
    return [words for name in getattr(overview, "commands", ()) for words, _ in _walk(cli.command(name), (name,))]


def _walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _walk(inner, (*words, name))


def help_overview() -> str:
    """The CLI's own help."""
    return _fenced(help_text())


def help_pages() -> str:
    """The help of every command."""
    parts = [f"## agentswarm-tools {' '.join(words)}\n\n{_fenced(help_text(*words))}" for words in commands()]
    return "\n\n".join([_fenced(help_text()), *parts])


def columns_list() -> str:
    """Every column of the ledger's rows."""
    tables = {
        "Each attempt": schema.attempt,
        "Each label of an attempt": schema.label,
        "Each event from `record_event` or from the run of a tool": schema.event,
        "Sums for each quarter of an hour, hour and day": schema.sums,
    }
    return "\n".join(f"- {what}: {_columns(table)}." for what, table in tables.items())


def _columns(table: sa.Table) -> str:
    return ", ".join(f"`{column.name}`" for column in table.columns)


# Errors

# Errors that the flow and the client raise themselves, in addition to those of providers' answers.
_RAISED_BY_US: Mapping[str, frozenset[str]] = {
    "AuthenticationError": frozenset({"not_sent"}),
    "BadResponse": frozenset({"completed"}),
    "BudgetExceeded": frozenset({"not_sent"}),
    "ConfigurationError": frozenset({"not_sent"}),
    "ContentBlocked": frozenset({"completed", "unknown"}),
    "DeadlineExceeded": frozenset({"not_sent", "unknown"}),
    "InvalidRequest": frozenset({"not_sent"}),
    "LoopStopped": frozenset({"not_sent"}),
    "ModelNotAllowed": frozenset({"not_sent"}),
    "ModelNotFound": frozenset({"not_sent"}),
    "ModelRetired": frozenset({"not_sent"}),
    "ResponseRejected": frozenset({"rejected_response"}),
    "StoreError": frozenset({"not_sent"}),
    "StreamInterrupted": frozenset({"unknown"}),
}

_CANDIDATE = Candidate("openai/gpt-5.4-mini", "openai/gpt-5.4-mini", "openai", "gpt-5.4-mini", UNKNOWN)
_REPLIES: Sequence[tuple[str, int, str]] = (
    ("400, 422", 400, ""),
    ("400 about the context window", 400, "maximum context length is 128000 tokens"),
    ("400, 403 about content rules", 400, "rejected by the content policy"),
    ("401, 403", 401, ""),
    ("402, or a 4xx about credit", 402, ""),
    ("404, 410", 404, ""),
    ("408", 408, ""),
    ("413", 413, ""),
    ("413, 429 about one request above the limit per minute", 429, "Request too large for gpt on tokens per min"),
    ("429", 429, ""),
    ("429 insufficient_quota", 429, "insufficient_quota"),
    ("500, 502, 504", 500, ""),
    ("503, 529", 503, ""),
    ("3xx", 302, ""),
)
_FAULTS: Sequence[tuple[str, Exception, Exchange]] = (
    ("No connection (refused, DNS, TLS)", httpx.ConnectError(""), Exchange()),
    ("No free connection in this process", httpx.PoolTimeout(""), Exchange()),
    ("No answer in time", httpx.ReadTimeout(""), Exchange(sent=True)),
    ("Connection lost before the answer", httpx.ReadError(""), Exchange(sent=True)),
    ("Answer cut short", httpx.RemoteProtocolError(""), Exchange(sent=True, status=200)),
)


def _events() -> Iterator[tuple[str, LLMError]]:
    """Each event on the wire, and the error that it becomes."""
    for what, status, words in _REPLIES:
        body = b'{"error": {"message": "%s"}}' % words.encode()
        yield f"HTTP {what}", provider_errors.from_response(_CANDIDATE, status, {}, body)
    for what, fault, exchange in _FAULTS:
        yield what, provider_errors.from_transport(_CANDIDATE, fault, exchange)


def wire_table() -> str:
    """Which error each answer or network fault becomes."""
    rows = [(what, f"`{error.error_type}`", _charged({error.outcome})) for what, error in _events()]
    return _table(("What happens", "Error", "Charged?"), rows)


def errors_table() -> str:
    """Every error of the tree."""
    seen: dict[str, set[str]] = {name: set(outcomes) for name, outcomes in _RAISED_BY_US.items()}
    for _, error in _events():
        seen.setdefault(error.error_type, set()).add(error.outcome)
    head = ("Error", "Meaning", "Retried?", "Next model?", "Charged?", "What to do")
    return _table(head, [_error_row(depth, kind, seen) for depth, kind in tree(LLMError)])


def tree(kind: type[LLMError], depth: int = 0) -> Iterator[tuple[int, type[LLMError]]]:
    """Every error of this package below `kind`, with its depth, in the order of the source."""
    for below in kind.__subclasses__():
        if below.__module__.startswith("shared."):
            yield depth, below
            yield from tree(below, depth + 1)


def _error_row(depth: int, kind: type[LLMError], seen: Mapping[str, set[str]]) -> tuple[str, ...]:
    name = f"{'↳ ' * depth}`{kind.__name__}`"
    meaning = (kind.__doc__ or "").strip()
    if kind is errors.AllModelsFailed:
        return name, meaning, "no", "no", "the sum of `.failures`", "See each error in `.failures`."
    if not _is_raised(kind):
        meaning += " Nothing raises it yet."
    again = "yes" if kind.action == "retry" else "no"
    following = "yes" if kind.action in ("retry", "next") else "no"
    hint = "Use the successor that it names." if kind is errors.ModelRetired else kind.hint
    return name, meaning, again, following, _charged(seen[kind.__name__]), hint or "Follow its message."


def _is_raised(kind: type[LLMError]) -> bool:
    sources = (path for path in (ROOT / "shared").rglob("*.py") if path != ROOT / "shared" / "errors.py")
    return any(kind.__name__ in path.read_text(encoding="utf-8") for path in sources)


def _charged(outcomes: Iterable[str]) -> str:
    words = {"not_sent": "no", "rejected": "no", "unknown": "maybe", "completed": "yes", "rejected_response": "yes"}
    return " or ".join(sorted({words[outcome] for outcome in outcomes}, key=["no", "maybe", "yes"].index))


# Faults, from the table that the tests check the client against


def fault_tables() -> str:
    """Every fault of the matrix, and its outcome."""
    head = ("Fault", "In", "The caller gets", ">Attempts", "Next model?", "Recorded", "Cost", "In time")
    return "\n\n".join(f"### {name}\n\n{_table(head, map(_fault_row, cases))}" for name, cases in _faults())


def _faults() -> Iterable[tuple[str, Sequence[FaultCase]]]:
    return fault_cases.GROUPS.items()


def _fault_row(case: FaultCase) -> tuple[str, ...]:
    asked = f"{case.asked}" if case.asked == case.asked_before_next else f"{case.asked}, or {case.asked_before_next}"
    return (
        case.what,
        "plain" if case.modes == fault_cases.PLAIN else "stream" if case.modes == fault_cases.STREAMED else "all",
        f"`{case.error}`" if case.error else "the answer",
        asked,
        "yes" if case.falls_back else "no",
        " ".join(f"`{word}`" for word in (case.status, case.recorded or case.error) if word),
        {"free": "$0", "unknown": "unknown", "counted": "counted by us", "table": "as reported"}[case.cost],
        _time_bound(case),
    )


def _time_bound(case: FaultCase) -> str:
    match case.limit:
        case "timeout":
            return "`timeout` for each"
        case "deadline":
            return "`deadline`"
        case "idle":
            return f"`timeout` of silence, at most {flow.IDLE_TIMEOUT_S:g} s"
        case "retry-after":
            return f"as long as `Retry-After` says, at most {retry_schedule.MAX_RETRY_AFTER_S:g} s"
    if case.door != "open":
        return f"{transport.CONNECT_TIMEOUT_S:g} s for each"
    return "at once" if case.asked == 1 else "at once, with pauses in between"


# Prices


# Models that people ask for, beside those that this package suggests; the first is agency-swarm's default.
_ASKED_FOR = (
    "openai/gpt-5.6-luna",
    "openai/gpt-6-luna",
    "openai/gpt-6-sol",
    "anthropic/claude-sonnet-5-5",
    "anthropic/claude-haiku-5-5",
)


def priced_models() -> dict[str, Rates]:
    """
    Today's chat models that this package suggests or falls forward to, most expensive output first.

    Prices are those of the table's day; where they depend on the hour, or the sources differ, the most expensive.
    """
    table, facts = price_table(), model_facts()
    successors = (retired["successor"] for retired in facts["retired"].values())
    names = {*facts["suggested"].values(), *successors, *_ASKED_FOR}
    day = datetime.fromisoformat(table.date).replace(tzinfo=UTC)
    found = {name: rates_of(table[name], now=day) for name in names if table[name]["mode"] == "chat"}
    most = {name: rates.held or rates for name, rates in found.items() if "output" in rates.prices}
    return dict(sorted(most.items(), key=lambda item: (*(-item[1].prices[of] for of in _IN_AND_OUT), item[0])))


_IN_AND_OUT: tuple[Unit, ...] = ("output", "input")


def prices_table() -> str:
    """Prices of those models, with their source."""
    units: tuple[Unit, ...] = ("input", "cached", "output")
    rows = [
        (f"`{name}`", *(_per_million(rates, unit) for unit in units), _source(price_table()[name]))
        for name, rates in priced_models().items()
    ]
    return _table(("Model", ">Input", ">Cached input", ">Output", "Source"), rows)


def _source(entry: TableEntry) -> str:
    if "corrected" in entry:
        return str(entry["corrected"]["source"])
    from_both = "disputed" in entry or "only_in" not in entry
    return " and ".join(
        f"{'LiteLLM' if name == 'litellm' else name} {said['version']}"
        for name, said in sorted(price_table().sources.items(), reverse=True)
        if from_both or name == entry["only_in"]
    )


def _per_million(rates: Rates, unit: Unit) -> str:
    if unit not in rates.prices:
        return ""
    text = _dollars(rates.prices[unit] * 1_000_000)
    for above, prices in rates.above:
        text += f" ({_dollars(prices[unit] * 1_000_000)} above {round(above, -3) // 1000}k)" if unit in prices else ""
    return text


def _dollars(value: Decimal) -> str:
    cents = value.quantize(Decimal("0.01"))
    return f"${cents if cents == value else value.normalize():f}"


def _fenced(text: str) -> str:
    return f"```text\n{text}\n```"


# What the benchmarks found


def performance_tables() -> str:
    """Every benchmark's claims and figures, a section for each platform that it ran on."""
    parts = []
    for folder in sorted(path for path in (ROOT / "benchmarks" / "results").glob("*") if path.is_dir()):
        parts.append(f"## On {folder.name.replace('-', ' ').capitalize()}")
        parts += [_performance(json.loads(file.read_text(encoding="utf-8"))) for file in sorted(folder.glob("*.json"))]
    return "\n\n".join(parts) or "Nothing was measured yet."


def _performance(result: Mapping[str, Any]) -> str:
    on = result["platform"]
    about = f"{result['note']} Measured on {result['date']}: {on['cores']} cores, Python {on['python']}"
    about += f", {', '.join(f'{name} {version}' for name, version in result['versions'].items() if version)}."
    if result["beside_other_work"]:
        about += " **Other work ran on the machine at the same time**, so that only the ratios mean something."
    claims = [
        (each["what"], each["goal"] + each["unit"], spread(each["values"], each["unit"])) for each in result["claims"]
    ]
    measures = list(dict.fromkeys(measure for each in result["found"].values() for measure in each))
    figures = [
        (name, *(spread(each[measure]) if measure in each else "" for measure in measures))
        for name, each in result["found"].items()
    ]
    tables = _table(("What", "Goal", "Measured"), claims), _table(("", *(f">{name}" for name in measures)), figures)
    return "\n\n".join((f"### {result['title']}", about, *tables))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a head that begins with ">" aligns its column to the right."""
    rule = ["---:" if name.startswith(">") else "---" for name in head]
    lines = [[name.lstrip(">") for name in head], rule, *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").strip() for cell in line) + " |" for line in lines)


def telemetry_attributes_table() -> str:
    """Every attribute of a span."""
    of_all = [(f"`{name}`", "all", meaning) for name, meaning in telemetry.CALL_ATTRIBUTES.items()]
    of_attempts = [(f"`{name}`", "attempts", meaning) for name, meaning in telemetry.ATTEMPT_ATTRIBUTES.items()]
    return _table(("Attribute", "Spans", "Meaning"), [*of_all, *of_attempts])


def telemetry_metrics_table() -> str:
    """Every metric."""
    rows = [(f"`{name}`", kind, f"`{unit}`", meaning) for name, (kind, unit, meaning) in telemetry.METRICS.items()]
    return _table(("Metric", "Kind", "Unit", "Meaning"), rows)


_BLOCKS: Mapping[str, Callable[[], str]] = {
    "settings": settings_table,
    "keys": keys_table,
    "tools": tools_table,
    "image_models": image_models_table,
    "help": help_overview,
    "commands": help_pages,
    "columns": columns_list,
    "errors": errors_table,
    "wire": wire_table,
    "faults": fault_tables,
    "prices": prices_table,
    "performance": performance_tables,
    "telemetry_spans": telemetry_attributes_table,
    "telemetry_metrics": telemetry_metrics_table,
}

if __name__ == "__main__":
    raise SystemExit(main())
