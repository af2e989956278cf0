"""What people have written down about models' names: those that are gone, and those that this package suggests."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any


@lru_cache(maxsize=1)
def model_facts() -> Mapping[str, Any]:
    """The tables of names.toml: `retired` names, and one model of each provider as `suggested` for each task."""
    return tomllib.loads((Path(__file__).parent / "names.toml").read_text(encoding="utf-8"))
