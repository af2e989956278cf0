"""Contests between programs: each in its own process, in rounds of shuffled order, with medians and their spread."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "benchmarks"
BUILD.mkdir(parents=True, exist_ok=True)
RESULTS = ROOT / "benchmarks" / "results"
LIBRARIES = ("agentswarm-tools", "litellm", "openai", "httpx", "SQLAlchemy", "pydantic", "agency-swarm")

Measures = dict[str, float]
# Sets a contestant up in its own process, with the terms of the contest; what it returns plays one round.
Contestant = Callable[[Any], Callable[[], Measures]]
# The measures of each contestant, a value for each round.
Found = dict[str, dict[str, list[float]]]

console = Console(soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a benchmark shows: its value in each round, and the goal, such as "<= 1.25"."""

    what: str
    goal: str
    values: Sequence[float]
    unit: str = ""


def run(measure: Callable[[argparse.Namespace], None], contestants: Mapping[str, Contestant] | None = None) -> None:
    """The main program of a benchmark: measures, or is one of its contestants."""
    parser = argparse.ArgumentParser(description=(sys.modules["__main__"].__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="only see that it works: small sizes, one round")
    parser.add_argument("--large", action="store_true", help="ledgers of 10 million rows too")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--terms", default="{}", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.contestant is None:
        measure(chosen)
    else:
        _play((contestants or {})[chosen.contestant], json.loads(chosen.terms))


def _play(contestant: Contestant, terms: Mapping[str, Any]) -> None:
    """A contestant's process: plays a round for each line that it reads."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no reply
    play = contestant(argparse.Namespace(**terms))
    answer: Measures = {}  # it is ready
    while True:
        print(json.dumps(answer), file=replies, flush=True)
        if not sys.stdin.readline():
            return
        answer = play()


class Player:
    """A contestant's process, seen from outside."""

    def __init__(self, name: str, terms: Mapping[str, Any]) -> None:
        self._name = name
        # A folder of its own, so that no contestant finds another's ledger.
        self._folder = tempfile.TemporaryDirectory(prefix="benchmark-", dir=BUILD)
        database = f"sqlite:///{Path(self._folder.name) / 'ledger.sqlite3'}"
        command = [sys.executable, "-m", _module(), "--contestant", name, "--terms", json.dumps(terms)]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(AGENTSWARM_DATABASE_URL=database) | dict(terms.get("environment", {})),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self) -> None:
        """Let it play a round."""
        assert self._process.stdin is not None, "it was asked for"  # noqa: S101
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> Measures:
        """Wait for the end of its round, or of its preparations."""
        assert self._process.stdout is not None, "it was asked for"  # noqa: S101
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._name} failed")
        measures: Measures = json.loads(line)
        return measures

    def round(self) -> Measures:
        """Play a round."""
        self.begin()
        return self.end()

    def close(self) -> None:
        """End it, and delete its folder."""
        assert self._process.stdin is not None, "it was asked for"  # noqa: S101
        self._process.stdin.close()
        self._process.wait(60)
        self._folder.cleanup()


@contextmanager
def players(names: Sequence[str], terms: Mapping[str, Any]) -> Iterator[dict[str, Player]]:
    """The contestants, each ready in a process of its own."""
    with ExitStack() as ends:
        console.print(f"preparing {', '.join(names)} ...", style="dim")
        ready = {}
        for name in names:
            ready[name] = Player(name, terms)
            ends.callback(ready[name].close)
        for player in ready.values():
            player.end()
        yield ready


def contest(names: Sequence[str], terms: Mapping[str, Any], rounds: int) -> Found:
    """Let the contestants play one after the other, in another order in each round."""
    found: Found = {}
    with players(names, terms) as ready:
        for number in range(rounds):
            for name in random.sample(list(names), len(names)):
                console.print(f"round {number + 1} of {rounds}: {name}", style="dim")
                for measure, value in ready[name].round().items():
                    found.setdefault(name, {}).setdefault(measure, []).append(value)
    return {name: found[name] for name in names}


def ratios(found: Found, measure: str, one: str, other: str) -> list[float]:
    """A measure of one contestant as a multiple of another's, in each round."""
    return [a / b for a, b in zip(found[one][measure], found[other][measure], strict=True)]


def environment(**more: str) -> dict[str, str]:
    """The environment of a contestant: without this user's settings, and with compiled modules, as users have them."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AGENTSWARM_", "LITELLM_"))}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return kept | {"PYTHONPYCACHEPREFIX": str(BUILD / "pycache"), "OPENAI_API_KEY": "sk-test-0123456789"} | more


def is_busy() -> bool | None:
    """Whether other work uses more than a tenth of this machine's cores; None where that cannot be read."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    times = []
    for _ in range(2):
        fields = [int(field) for field in stat.read_text(encoding="ascii").splitlines()[0].split()[1:9]]
        times.append((sum(fields), fields[3] + fields[4]))
        time.sleep(1)
    (total, idle), (later_total, later_idle) = times
    return (later_idle - idle) / (later_total - total) < 0.9


def publish(
    title: str, found: Found, claims: Sequence[Claim], chosen: argparse.Namespace, *, busy: bool | None, note: str = ""
) -> None:
    """Print a benchmark's tables, and write the same as JSON, from which docs/PERFORMANCE.md is made."""
    _print(title, found, claims)
    name = _module().rpartition(".")[2]
    document = {
        "title": title,
        "note": note,
        "date": datetime.now(UTC).date().isoformat(),
        "is_quick": chosen.quick,
        "beside_other_work": busy,
        "platform": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
        },
        "versions": {library: _version(library) for library in LIBRARIES},
        "claims": [asdict(claim) | {"values": list(claim.values)} for claim in claims],
        "found": found,
    }
    # What was only tried out never replaces what was measured.
    folder = BUILD if chosen.quick else RESULTS / f"{platform.system()}-{platform.machine()}".lower()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}{'-large' * chosen.large}.json"
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    console.print(f"written to {file.relative_to(ROOT)}", style="dim")


def spread(values: Sequence[float], unit: str = "") -> str:
    """The median, and the lowest to the highest value where there are several rounds."""
    middle = f"{_short(statistics.median(values))}{unit}"
    return middle if len(values) == 1 else f"{middle} ({_short(min(values))} to {_short(max(values))})"


def _print(title: str, found: Found, claims: Sequence[Claim]) -> None:
    measures = list(dict.fromkeys(measure for each in found.values() for measure in each))
    table = Table("", *measures, title=title, title_justify="left")
    for contestant, each in found.items():
        table.add_row(contestant, *(spread(each[measure]) if measure in each else "" for measure in measures))
    console.print(table)
    for claim in claims:
        console.print(f"{claim.what}: {spread(claim.values, claim.unit)}; goal {claim.goal}{claim.unit}")


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _module() -> str:
    """The benchmark that runs, as `python -m` has it."""
    spec = sys.modules["__main__"].__spec__
    if spec is None:
        raise SystemExit("Run it as a module: python -m benchmarks.NAME")
    return spec.name
