"""The settings in effect, where each comes from, and what else the environment sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.analytics import all_budgets
from shared.cli.console import out, print_json
from shared.cli.tables import print_wrapped
from shared.config import (
    Settings,
    data_dir,
    database_url,
    environment,
    load_settings,
    output_dir,
    setting_names,
    source_of,
    webhook_host,
)
from shared.ledger import get_ledger
from shared.models import default_by_key, default_variable, key_variables, misspelt_names, model_facts
from shared.providers import guard_by_provider
from shared.reports import budget_line, printable
from shared.types import TaskType


def show_settings(as_json: bool) -> None:
    """Print the settings in effect, and what else the environment sets; a key's value is never shown."""
    settings = load_settings()
    shown: dict[str, Any] = {
        "settings": list(_settings(settings)),
        "budgets": all_budgets() if settings.cost_tracking else [],
        "keys": list(_keys()),
        "sets_nothing": misspelt_names(),
        "without_guard": sorted(name for name, guarded in guard_by_provider().items() if not guarded),
        "data_folder": str(data_dir()),
    }
    if as_json:
        print_json(shown)
    else:
        _print(shown)


def _settings(settings: Settings) -> Iterator[dict[str, Any]]:
    defaults = {default_variable(task): task for task in TaskType}
    for field, name in setting_names().items():
        value, source = getattr(settings, field), source_of(name)
        if field == "database_url":
            value = get_ledger(database_url(settings)).name if settings.cost_tracking else None
        elif field == "alert_url" and value is not None:
            value = f"(a webhook at {webhook_host(value)})"
        elif field == "output_dir":
            value = output_dir(settings)
        elif name in defaults and (stand_in := default_by_key(defaults[name], settings)) is not None:
            value, source = stand_in, "the only key that is set"
        yield {"name": name, "value": _plain(value), "source": source}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [str(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _keys() -> Iterator[dict[str, str]]:
    values = environment()
    for provider in model_facts()["suggested"]:
        for name in key_variables(provider):
            if name in values:
                yield {"name": name, "provider": provider, "source": source_of(name)}


def _print(shown: dict[str, Any]) -> None:
    for each in shown["settings"]:
        print_wrapped(f"{each['name']}={_text(each['value'])}  [{printable(each['source'])}]")
    _print_section("Budgets", map(budget_line, shown["budgets"]), "none: nothing limits what is spent")
    keys = (f"{each['name']} is set ({each['provider']}) [{each['source']}]" for each in shown["keys"])
    _print_section("Keys", keys, "none that this package suggests a model for")
    wrong = (f"{name}: {problem}" for name, problem in shown["sets_nothing"].items())
    _print_section("Names that set nothing", wrong, "none")
    _print_section("Providers reached without our guard", [", ".join(shown["without_guard"])], "none")


def _text(value: Any) -> str:
    if value is None:
        return "(unset)"
    if isinstance(value, bool):
        return str(value).lower()
    return printable(",".join(value) if isinstance(value, list) else str(value))


def _print_section(title: str, lines: Any, otherwise: str) -> None:
    out.print(f"\n{title}:")
    for line in list(lines) or [otherwise]:
        print_wrapped(f"  {printable(line)}", "    ")
