"""Writes the data of genai-prices as JSON, in a throw-away environment (arguments: FOLDER OUTPUT)."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """Decimals and days as text, objects as the mapping of what is set in them, with their class."""
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if value is None or isinstance(value, bool | int | str):
        return value
    if hasattr(value, "__dict__"):
        said = {key: plain(one) for key, one in vars(value).items() if one is not None and not key.startswith("_")}
        return {"is": type(value).__name__, **said}
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def main(folder: str, output: str) -> None:
    """All providers and their models, without what reads usage."""
    sys.path.insert(0, folder)
    data = import_module("genai_prices.data")
    providers = [{"id": one.id, "models": plain(one.models)} for one in data.providers]
    Path(output).write_text(json.dumps({"providers": providers}, sort_keys=True), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[-2:])
