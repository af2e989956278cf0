"""What is set up, what is missing, and what may surprise you."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from shared.analytics import price_table_age
from shared.cli.console import AsJson, err, print_json
from shared.cli.models import retiring_models
from shared.cli.prices import retirement_text
from shared.cli.settings import show_settings
from shared.cli.tables import print_wrapped
from shared.config import Settings, database_url, load_settings
from shared.errors import LLMError
from shared.internal.extras import EXTRAS, has_extra, install_command
from shared.ledger import Ledger, get_ledger, library_name, may_use_wal
from shared.models import (
    Catalogue,
    check_model,
    default_by_key,
    default_model,
    default_variable,
    is_auto,
    key_variables,
    known_model,
    missing_key,
    misspelt_names,
    named_models,
    similar_models,
    suggested,
    usable_models,
)
from shared.prices import price_table
from shared.providers import INSTALL_MODEL, guard_by_provider, local_model_file
from shared.reports import prices_line, printable
from shared.scope import Scope
from shared.types import TaskType

_SOON_DAYS = 60


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    subject: str
    level: Literal["ok", "note", "problem"]
    text: str


def examine() -> list[Finding]:
    """Run every check; makes no request to any provider."""
    try:
        settings = load_settings()
    except LLMError as error:
        return [Finding("settings", "problem", str(error))]
    found = [*_misspelt(), *_keys(), *_fallback(settings), *_store(settings)]
    try:
        catalogue = Catalogue.load(settings)
    except LLMError as error:
        return [*found, Finding("prices", "problem", str(error))]
    models = [*_prices(settings, catalogue), *_defaults(settings, catalogue), *_retiring(settings)]
    return [*found, *models, *_extras(), *_telemetry(settings), *_names(), *_providers()]


def _misspelt() -> Iterator[Finding]:
    for name, problem in misspelt_names().items():
        level: Literal["note", "problem"] = "note" if problem.startswith("there is no") else "problem"
        yield Finding("names", level, f"{name} sets nothing: {problem}")


def _keys() -> Iterator[Finding]:
    names = usable_models()
    if names:
        yield Finding("keys", "ok", f"usable with the keys that are set: {', '.join(names)}")
    else:
        some = " or ".join(key_variables(provider)[0] for provider in list(suggested(TaskType.CHAT_COMPLETION))[:3])
        yield Finding("keys", "note", f"no provider key is set: set {some}; local/smollm2-135m works without one")


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
        yield from _write_ahead_log(ledger)
    yield from _waiting(ledger)


def _prices(settings: Settings, catalogue: Catalogue) -> Iterator[Finding]:
    age = price_table_age()
    sources = " and ".join(f"{name} {source['version']}" for name, source in price_table().sources.items())
    level: Literal["ok", "note"] = "note" if prices_line(age) != f"table of {age['date']}" else "ok"
    yield Finding("prices", level, f"{prices_line(age)} (from {sources})")
    if settings.prices is not None:
        count = len(catalogue.overrides)
        yield Finding("prices", "ok", f"{settings.prices} prices {count:,} models itself (AGENTSWARM_PRICES)")


def _defaults(settings: Settings, catalogue: Catalogue) -> Iterator[Finding]:
    """Whether each default model exists, does its task, is alive and has a price."""
    for task in (TaskType.CHAT_COMPLETION, TaskType.VISION, TaskType.IMAGE_GENERATION):
        variable, stand_in = default_variable(task), default_by_key(task, settings)
        name = stand_in or default_model(task, settings)
        subject = variable.removeprefix("LITELLM_").lower().replace("_", " ")
        try:
            if is_auto(name):
                models = named_models(name, None, settings, Scope(), task)
                yield Finding(subject, "ok", f"{name}: the cheapest that can, of {', '.join(models)}")
                continue
            found = check_model(name, task, catalogue, settings)
        except LLMError as error:
            yield Finding(subject, "problem", f"{error} ({variable})")
            continue
        if found.note is not None:
            yield Finding(subject, "note", f"{found.note}; set {variable} to another model")
        elif found.api_base is None and known_model(name, catalogue) is None and found.provider != "local":
            similar = ", ".join(similar_models(name, catalogue))
            hint = f"; similar: {similar}" if similar else ""
            yield Finding(subject, "note", f"{name} is not in the price table{hint} ({variable})")
        elif found.rates.source == "unknown":
            yield Finding(subject, "note", f"{name} has no known price, so budgets refuse it ({variable})")
        elif (variables := missing_key(found)) is not None:
            yield Finding(subject, "note", f"{name} needs {variables}, which is not set{_instead(task, variable)}")
        elif stand_in:
            yield Finding(subject, "ok", f"{name}, as no other provider's key is set; choose one with {variable}")
        else:
            yield Finding(subject, "ok", name)


def _instead(task: TaskType, variable: str) -> str:
    """What else can be the default where its key is not set."""
    if others := usable_models(task):
        return f"; set that, or {variable}={others[0]}"
    if task is TaskType.IMAGE_GENERATION and usable_models():
        return f"; set that, or {variable} to a model of another provider: {', '.join(suggested(task).values())}"
    return f" ({variable})"


def _retiring(settings: Settings) -> Iterator[Finding]:
    try:
        soon = retiring_models(settings, _SOON_DAYS)
    except LLMError:
        return  # the store's own finding says so
    for retirement, named_by in soon:
        text = f"{retirement.model}, {retirement_text(retirement)} (in {', '.join(named_by)})"
        yield Finding("retiring", "note", text)


def _waiting(ledger: Ledger) -> Iterator[Finding]:
    if ledger.waiting:
        yield Finding("records", "problem", f"{ledger.waiting:,} waiting to be written, in {ledger.waiting_in}")
    for file in ledger.dead_letters():
        yield Finding("records", "problem", f"some were rejected and are in no report; check {file}, then delete it")


def _write_ahead_log(ledger: Ledger) -> Iterator[Finding]:
    if ledger.file is None:
        return
    if may_use_wal(ledger.file):
        yield Finding("SQLite", "ok", f"{library_name()}, with a write-ahead log")
    else:
        reason = "a write-ahead log is not safe with this version, or in this folder"
        yield Finding("SQLite", "note", f"{library_name()}, with the slower rollback journal: {reason}")


def _extras() -> Iterator[Finding]:
    for extra in EXTRAS:
        if has_extra(extra):
            yield Finding(f"extra {extra}", "ok", "installed")
        else:
            yield Finding(f"extra {extra}", "note", f"not installed ({install_command(extra)})")
    if has_extra("local") and local_model_file() is None:
        yield Finding("local model", "note", f"no model file yet (run {INSTALL_MODEL})")


def _telemetry(settings: Settings) -> Iterator[Finding]:
    if settings.telemetry == "off":
        yield Finding("telemetry", "ok", "off (AGENTSWARM_TELEMETRY)")
    elif not has_extra(settings.telemetry):
        text = f"on (AGENTSWARM_TELEMETRY), but OpenTelemetry is not installed ({install_command(settings.telemetry)})"
        yield Finding("telemetry", "problem", text)
    else:
        labels = ", ".join(settings.telemetry_labels) or "none"
        yield Finding(
            "telemetry", "ok", f"on: spans and metrics go to OpenTelemetry; labels that spans carry: {labels}"
        )


def _names() -> Iterator[Finding]:
    """In a checkout, a `tools` or `shared` of the user's own may shadow ours."""
    if __name__.startswith("agentswarm_tools."):
        yield Finding("names", "ok", "installed as agentswarm_tools; does not affect a tools or shared of your own")
        return
    tools = importlib.util.find_spec("tools")
    shared = importlib.util.find_spec("shared")
    found = shared is not None and shared.origin is not None and tools is not None and tools.origin is not None
    # mypy cannot see that `found` excludes None.
    if found and tools.origin.rsplit("/", 2)[0] == shared.origin.rsplit("/", 2)[0]:  # type: ignore[union-attr]
        yield Finding("names", "ok", "tools and shared are this checkout's")
    else:
        yield Finding("names", "problem", "another `tools` shadows this checkout's; run from the checkout's folder")


def _providers() -> Iterator[Finding]:
    unguarded = sorted(name for name, guarded in guard_by_provider().items() if not guarded)
    yield Finding(
        "providers",
        "note",
        f"{len(unguarded)} are reached by LiteLLM's own client, without our guard on redirects, size and host "
        "(doctor --settings names them)",
    )


def doctor(
    settings: Annotated[
        bool, typer.Option("--settings", help="Show every setting, where it comes from, and the budgets in force.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """
    Check keys, extras, store and settings.

    The exit code is 1 if there is a problem.
    """
    if settings:
        show_settings(as_json)
        return
    with err.status("Checking ..."):
        findings = examine()
    if as_json:
        print_json(findings)
    else:
        marks = {"ok": "ok  ", "note": "note", "problem": "FAIL"}
        for finding in findings:
            print_wrapped(f"{marks[finding.level]}  {finding.subject}: {printable(finding.text)}", "      ")
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)
