"""What is set up, what is missing, and what could surprise."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import typer

from shared.cli.console import AsJson, err, out
from shared.config import Settings, database_url, load_settings
from shared.errors import LLMError
from shared.internal.serialize import to_json
from shared.ledger import Ledger, get_ledger, wal_is_safe
from shared.models import usable_models
from shared.providers import guard_by_provider, local_model_file
from shared.reports import printable

_EXTRAS = {"local": "xllamacpp", "postgres": "psycopg"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    level: Literal["ok", "note", "problem"]
    text: str


def examine() -> list[Finding]:
    """Everything worth knowing before the first call; makes no request to any provider."""
    try:
        settings = load_settings()
    except LLMError as error:
        return [Finding("settings", "problem", str(error))]
    return [*_keys(), *_fallback(settings), *_store(settings), *_extras(), *_names(), *_providers()]


def _keys() -> Iterator[Finding]:
    names = usable_models()
    if names:
        yield Finding("keys", "ok", f"usable with the keys that are set: {', '.join(names)}")
    else:
        yield Finding("keys", "note", "no provider key is set; local/smollm2-135m works without one")


def _fallback(settings: Settings) -> Iterator[Finding]:
    if not settings.fallback_enabled:
        yield Finding("fallback", "note", "off (LITELLM_FALLBACK_ENABLED)")
    elif not settings.default_fallback_models:
        yield Finding(
            "fallback",
            "note",
            "on, but only for calls that name fallback_models: LITELLM_DEFAULT_FALLBACK_MODELS is empty",
        )
    else:
        yield Finding("fallback", "ok", ", ".join(settings.default_fallback_models))


def _store(settings: Settings) -> Iterator[Finding]:
    if not settings.cost_tracking:
        yield Finding("store", "note", "cost tracking is off (LITELLM_COST_TRACKING)")
        return
    try:
        ledger = get_ledger(database_url(settings))
    except LLMError as error:
        yield Finding("store", "problem", str(error))
        return
    try:
        ledger.check_writable()
        ledger.flush()
    except LLMError as error:
        yield Finding("store", "problem", str(error))
    else:
        yield Finding("store", "ok", f"{ledger.name} is writable")
        yield from _journal(ledger)
    yield from _waiting(ledger)


def _waiting(ledger: Ledger) -> Iterator[Finding]:
    if ledger.waiting:
        yield Finding("records", "problem", f"{ledger.waiting:,} wait to be written, in {ledger.waiting_in}")
    for file in ledger.refused():
        yield Finding("records", "problem", f"some were refused and are in no report; look at {file}, then remove it")


def _journal(ledger: Ledger) -> Iterator[Finding]:
    if ledger.name.startswith("sqlite") and not wal_is_safe():
        yield Finding("store", "note", "this SQLite has the WAL-reset bug, so the slower rollback journal is used")


def _extras() -> Iterator[Finding]:
    for extra, module in _EXTRAS.items():
        if _installed(module):
            yield Finding(f"extra {extra}", "ok", "installed")
        else:
            yield Finding(f"extra {extra}", "note", f'not installed (pip install "agentswarm-tools[{extra}]")')
    if _installed("xllamacpp") and local_model_file() is None:
        yield Finding("local model", "note", "no model file yet (agentswarm-tools local install)")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _names() -> Iterator[Finding]:
    """In a checkout a `tools` or `shared` of the user's own may stand in front of ours."""
    if __name__.startswith("agentswarm_tools."):
        yield Finding("names", "ok", "installed as agentswarm_tools; a tools or shared of your own is left alone")
        return
    spec = importlib.util.find_spec("tools")
    home = importlib.util.find_spec("shared")
    ours = home is not None and home.origin is not None and spec is not None and spec.origin is not None
    if ours and spec.origin.rsplit("/", 2)[0] == home.origin.rsplit("/", 2)[0]:  # type: ignore[union-attr]
        yield Finding("names", "ok", "tools and shared are this checkout's")
    else:
        yield Finding("names", "problem", "another `tools` stands before this checkout's; run from its folder")


def _providers() -> Iterator[Finding]:
    unguarded = sorted(name for name, guarded in guard_by_provider().items() if not guarded)
    yield Finding(
        "providers",
        "note",
        f"{len(unguarded)} go through LiteLLM's own client, without our guard: {', '.join(unguarded)}",
    )


def doctor(as_json: AsJson = False) -> None:
    """Check keys, extras, the store and the settings; exit with 1 when something is broken."""
    with err.status("Checking ..."):
        findings = examine()
    if as_json:
        out.out(to_json(findings, indent=2))
    else:
        marks = {"ok": "ok  ", "note": "note", "problem": "FAIL"}
        for finding in findings:
            out.print(f"{marks[finding.level]}  {finding.subject}: {printable(finding.text)}")
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)
