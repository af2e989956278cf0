"""Saving images: never over another, whole or not at all, and never lost after they were paid for."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from shared import config
from shared.config import Settings
from shared.errors import ConfigurationError, InvalidRequest, StoreError
from shared.images import save
from shared.images.load import load_picture
from shared.images.save import check_output, save_picture
from shared.types import Picture
from tests.support import pictures as images
from tests.support.processes import race

PNG = images.image()
PICTURE = Picture(PNG, "png", 8, 6)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder that is not there yet."""
    return tmp_path / "out"


@pytest.fixture
def memory() -> Iterator[str]:
    """An output place that is no folder."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield "memory://bucket/images"
    MemoryFileSystem.store.clear()


def names_in(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def to(place: Path | str, **more: Any) -> Settings:
    """Settings that save there."""
    return Settings(output_dir=str(place), **more)


def test_an_image_is_saved_for_its_owner_alone(out: Path) -> None:
    """File and folders are made, for the user alone; path and URL lead to the bytes, and nothing else is left."""
    saved = save_picture(PICTURE, settings=to(out), name="cat", folder="acme/run 7")
    assert saved.path == str(out / "acme" / "run-7" / "cat.png")
    assert saved.url == Path(saved.path).as_uri()
    assert saved.note is None
    assert Path(saved.path).read_bytes() == PNG
    assert stat.S_IMODE(Path(saved.path).stat().st_mode) == 0o600
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (out, out / "acme")} == {0o700}
    assert names_in(out / "acme" / "run-7") == ["cat.png"]


def test_by_default_images_lie_in_the_user_data_folder() -> None:
    """Without a setting the folder is `output` beside the ledger."""
    check_output(Settings())
    saved = save_picture(PICTURE, settings=Settings(), name="cat")
    assert saved.path == str(config.data_dir() / "output" / "cat.png")
    assert asyncio.run(load_picture(saved.path, settings=Settings())).width == 8


def test_a_folder_may_be_given_as_a_url_or_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file URL is a folder, "~" is the home, and a relative one counts from where the program runs."""
    monkeypatch.chdir(tmp_path)
    home = save_picture(PICTURE, settings=to("~/pics"), name="a")
    assert home.path == str(Path.home() / "pics" / "a.png")
    read = Settings(input_dirs=(Path("~/pics"),))
    assert asyncio.run(load_picture("a.png", settings=read)).width == 8
    assert save_picture(PICTURE, settings=to("here"), name="a").path == str(tmp_path / "here" / "a.png")
    assert save_picture(PICTURE, settings=to(f"file://{tmp_path}/x"), name="a").path == str(tmp_path / "x" / "a.png")


@pytest.mark.parametrize(
    ("format_", "name", "file"),
    [
        ("jpeg", "cat", "cat.jpg"),
        ("webp", "cat.png", "cat.webp"),
        ("png", "cat.JPEG", "cat.png"),
        ("png", "", "image.png"),
    ],
)
def test_the_extension_is_that_of_the_content(out: Path, format_: Any, name: str, file: str) -> None:
    """Whatever a name promises, the extension is true."""
    saved = save_picture(Picture(PNG, format_, 8, 6), settings=to(out), name=name)
    assert Path(saved.path).name == file


@pytest.mark.parametrize("place", ["folder", "memory"])
def test_nothing_is_overwritten(place: str, out: Path, memory: str) -> None:
    """A name that is taken gets a number, and after a hundred a number nobody can guess."""
    where = to(out if place == "folder" else memory)
    paths = [save_picture(PICTURE, settings=where, name="cat").path for _ in range(102)]
    assert len(set(paths)) == 102
    names = [path.rsplit("/", 1)[1] for path in paths]
    assert names[:3] == ["cat.png", "cat-2.png", "cat-3.png"]
    assert names[98] == "cat-99.png"
    assert len(names[101]) == len("cat-.png") + 12


def test_a_planted_link_is_not_followed(out: Path, tmp_path: Path) -> None:
    """A link that waits under the name is left alone, and so is what it leads to."""
    out.mkdir()
    (tmp_path / "victim").write_text("mine")
    (out / "cat.png").symlink_to("../victim")
    (out / "cat-2.png").symlink_to("../not-there")
    assert Path(save_picture(PICTURE, settings=to(out), name="cat").path).name == "cat-3.png"
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "not-there").exists()


def test_a_link_in_place_of_a_scopes_folder_is_not_followed(out: Path, tmp_path: Path) -> None:
    """It is found before paying; after paying the image goes elsewhere, and says so."""
    out.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (out / "acme").symlink_to("../elsewhere")
    with pytest.raises(ConfigurationError, match="output folder cannot be written to"):
        check_output(to(out), folder="acme")
    saved = save_picture(PICTURE, settings=to(out), name="cat", folder="acme")
    assert saved.note is not None
    assert names_in(tmp_path / "elsewhere") == []


def test_no_folder_leaves_the_output_folder(out: Path, tmp_path: Path) -> None:
    """Whatever a sub folder is called, it is one."""
    for folder in ("../..", "/etc", "a/../../b", ".", "~", "\0", "x" * 500):
        saved = save_picture(PICTURE, settings=to(out), name="../../x", folder=folder)
        assert Path(saved.path).is_relative_to(out)
        assert Path(saved.path).resolve() == Path(saved.path)
        assert saved.note is None
    assert names_in(tmp_path).count("out") == 1


def test_a_public_url_is_made_of_the_base(out: Path, memory: str) -> None:
    """AGENTSWARM_OUTPUT_URL and the name, quoted, are the link for people."""
    for place in (str(out), memory):
        where = to(place, output_url="https://cdn.example/pics/")
        saved = save_picture(PICTURE, settings=where, name="Käse", folder="a b")
        assert saved.url == "https://cdn.example/pics/a-b/K%C3%A4se.png"
        assert saved.path.endswith("/a-b/Käse.png")


_SAVE_MANY = """
from shared.config import Settings
from shared.images.save import save_picture
from shared.types import Picture

def run(number, together, folder):
    picture, settings = Picture(b"whole" * 1000, "png", 8, 6), Settings(output_dir=folder)
    together.wait(60)
    for _ in range(30):
        print(save_picture(picture, settings=settings, name="cat").path)
"""


def test_two_processes_do_not_take_the_same_name(out: Path) -> None:
    """Processes that save under one name at once each get files of their own, all whole."""
    paths = race(_SAVE_MANY, str(out))
    assert len(set(paths)) == 60
    assert names_in(out) == sorted(Path(path).name for path in paths)
    assert all(Path(path).read_bytes() == b"whole" * 1000 for path in paths)


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOTSUP])
def test_a_file_system_without_hard_links_will_do(out: Path, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On exFAT a file is written under its name, still never over another."""

    def link(*_: Any, **__: Any) -> None:
        raise OSError(error, "no links here")

    monkeypatch.setattr(os, "link", link)
    names = [Path(save_picture(PICTURE, settings=to(out), name="cat").path).name for _ in range(2)]
    assert names == ["cat.png", "cat-2.png"]
    assert names_in(out) == ["cat-2.png", "cat.png"]


def test_a_system_without_open_relative_to_folders_will_do(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no openat."""
    monkeypatch.setattr(save, "HAS_DIR_FD", False)
    check_output(to(out), folder="acme")
    names = [Path(save_picture(PICTURE, settings=to(out), name="cat", folder="acme").path).name for _ in range(2)]
    assert names == ["cat.png", "cat-2.png"]


def full(*_: Any, **__: Any) -> None:
    """A disk without room."""
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_loses_nothing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was paid for goes to a temporary folder, the result says so, and no half file is left."""
    write = save._write_new
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(
        save,
        "_write_new",
        lambda data, name, folder: write(data, name, folder) if folder else Path(name).write_bytes(data),
    )
    saved = save_picture(PICTURE, settings=to(out), name="cat")
    assert saved.note == "The output folder could not be written to (OSError); the image is in a temporary folder."
    assert Path(saved.path).read_bytes() == PNG
    assert Path(saved.path).is_relative_to(tempfile.gettempdir())
    assert saved.url == Path(saved.path).as_uri()
    assert names_in(out) == []
    shutil.rmtree(Path(saved.path).parent)


def test_when_nothing_can_be_written_it_is_said(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only when the temporary folder fails too is there an error."""
    monkeypatch.setattr(save, "_write_new", full)
    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(StoreError, match="neither in the output folder"):
        save_picture(PICTURE, settings=to(out), name="cat")


def test_the_place_is_checked_before_paying(out: Path, memory: str) -> None:
    """A place that will do passes and keeps no trace of the check, or but one small file where it is no folder."""
    check_output(to(out))
    check_output(to(out), folder="acme")
    assert names_in(out) == ["acme"]
    assert names_in(out / "acme") == []
    for _ in range(2):
        check_output(to(memory))
    assert list(MemoryFileSystem.store) == ["/bucket/images/write-check"]


def test_a_place_that_will_not_do_is_named_before_paying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in its place, a folder that is closed, too little room, an unknown or uninstalled file system."""
    (tmp_path / "file").write_text("x")
    for place in (f"{tmp_path}/file", f"{tmp_path}/file/below", "/proc/nowhere", "nosuch://x", f"{tmp_path}/a\0b"):
        with pytest.raises(ConfigurationError, match="AGENTSWARM_OUTPUT_DIR") as caught:
            check_output(to(place))
        assert caught.value.cost == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=49 * 10**6))
    with pytest.raises(ConfigurationError, match="less than 50 MB free"):
        check_output(to(tmp_path / "out"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever saves to a cloud without its package reads what to install."""

    def missing(_: str) -> None:
        raise ImportError("no s3fs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ConfigurationError, match=r"Install fsspec\[s3\]"):
        check_output(to("s3://bucket/x"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named_before_paying(out: Path) -> None:
    """A folder that may not be written to is found."""
    out.mkdir(mode=0o500)
    with pytest.raises(ConfigurationError):
        check_output(to(out))


def test_an_image_elsewhere_is_saved_and_read_again(memory: str) -> None:
    """At an fsspec URL an image is found by its path, within the scope's own folder."""
    where = to(memory)
    acme = save_picture(PICTURE, settings=where, name="cat", folder="acme")
    other = save_picture(PICTURE, settings=where, name="cat", folder="other")
    assert acme.path == acme.url == "memory://bucket/images/acme/cat.png"
    assert asyncio.run(load_picture(acme.path, settings=where, folder="acme")).source == "cat.png"
    assert asyncio.run(load_picture(other.path, settings=where)).width == 8
    MemoryFileSystem().pipe_file("/bucket/secret.png", PNG)
    for source in (
        other.path,
        "memory://bucket/secret.png",
        "memory://bucket/images/acme/../../secret.png",
        "memory://bucket/images/acme//cat.png",
        "memory://bucket/images/acme/*.png",
        "memory://bucket/images/acme/cat.png::memory://bucket/secret.png",
        "memory://bucket/images/acmecat.png",
        "memory://bucket/images/acme/",
        "simplecache::memory://bucket/images/acme/cat.png",
    ):
        with pytest.raises(InvalidRequest, match="image_source_refused"):
            asyncio.run(load_picture(source, settings=where, folder="acme"))
    with pytest.raises(InvalidRequest, match="cannot be read"):
        asyncio.run(load_picture("memory://bucket/images/acme/gone.png", settings=where, folder="acme"))


def test_folders_are_made_where_a_file_system_has_them(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that does not make folders by itself is asked to."""
    put = MemoryFileSystem.pipe_file
    made: list[str] = []

    def pipe_file(self: MemoryFileSystem, path: str, *args: Any, **keywords: Any) -> None:
        if not made:
            raise FileNotFoundError
        put(self, path, *args, **keywords)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    monkeypatch.setattr(MemoryFileSystem, "makedirs", lambda _self, path, exist_ok: made.append(path))
    assert save_picture(PICTURE, settings=to(memory), name="cat", folder="acme").note is None
    assert made == ["/bucket/images/acme"]


def test_errors_of_a_file_system_keep_its_secrets(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a cloud's library says may hold keys: only the kind of the error is told."""

    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError("AccessDenied for key AKIA-HUSH")

    for name in ("pipe_file", "cat_file"):
        monkeypatch.setattr(MemoryFileSystem, name, fail)
    with pytest.raises(ConfigurationError, match="PermissionError") as before:
        check_output(to(memory))
    saved = save_picture(PICTURE, settings=to(memory), name="cat")
    shutil.rmtree(Path(saved.path).parent)
    with pytest.raises(InvalidRequest) as after:
        asyncio.run(load_picture(f"{memory}/cat.png", settings=to(memory)))
    for text in (str(before.value), str(saved.note), str(after.value)):
        assert "HUSH" not in text
    assert "s3://key:HUSH" not in repr(to("s3://key:HUSH@bucket"))
