"""Exports of a package, imported when they are first used (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

_lazy_modules: list[str] = []


def lazy_exports(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """
    The `__getattr__` of a package whose modules are slow to import.

    A module that must itself be quick to import takes the package and not names out of it (`from shared import ledger`,
    then `ledger.get_ledger(...)`), because taking a name is its first use.

    Args:
        package: The package's `__name__`.

        modules: For each module of the package, the names to export from it, separated by spaces.
    """
    module_of = {name: f"{package}.{module}" for module, names in modules.items() for name in names.split()}
    _lazy_modules.extend(f"{package}.{module}" for module in modules)

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(module_of[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get


def load_all() -> None:
    """Import now what would be imported at its first use, as far as this process may use it."""
    for module in _lazy_modules:  # grows on the way: a module may be the first to import another lazy package
        import_module(module)
