"""The list of bad inputs, as far as images and their files go: each ends as the list says, and hurts nothing."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shared.config import Settings
from shared.errors import ConfigurationError, InvalidRequest, ProviderTimeout, ProviderUnavailable
from shared.images.save import check_output, save_picture
from shared.types import Picture
from tests.support import pictures as images
from tests.support.internet import PUBLIC, Internet, answer, endless, redirect
from tests.support.paths import BESIDE

LIST = BESIDE / "facts" / "bad_inputs.json"
ENTRIES = json.loads(LIST.read_text()) if LIST.exists() else []
PNG = images.image()
PICTURE = Picture(PNG, "png", 8, 6)
# What a tool's fields refuse before an image comes into it: types, the instruction, unknown arguments.
OF_THE_TOOL = {"UI04", "UI05", "UI93", "UI94", "UI96", "UI97"}


def entries(tool: str, argument: str) -> list[Any]:
    """The entries that concern one argument of a tool."""
    found = [
        pytest.param(entry, id=entry["id"])
        for entry in ENTRIES
        if entry["tool"] == tool and argument in entry["args"] and entry["id"] not in OF_THE_TOOL
    ]
    skip = pytest.mark.skip(reason=f"{LIST} is not there")
    return found or [pytest.param({}, id="absent", marks=skip)]


def text_of(value: Any, root: Path) -> str:
    """An argument, with the list's abbreviations written out."""
    if isinstance(value, Mapping) and "$repeat" in value:
        return str(value["$repeat"][0] * value["$repeat"][1])
    if isinstance(value, Mapping):
        return "data:image/png;base64," + "A" * int(value["$datauri_zeros_mb"] * 4 * 10**6 // 3)
    return str(value).replace("${ROOT}", str(root))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder that the list speaks of, with everything in it that its entries need."""
    folder = tmp_path / "root"
    folder.mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.png").write_bytes(PNG)
    (folder / "ok.png").write_bytes(PNG)
    (folder / "text_named.png").write_text("SECRET text")
    (folder / "empty.png").touch()
    with (folder / "big_20mb.png").open("wb") as file:
        file.truncate(20 * 10**6)
    os.mkfifo(folder / "fifo")
    (folder / "link_to_etc_passwd").symlink_to("/etc/passwd")
    if os.geteuid() == 0:
        os.chown(tmp_path / "outside" / "secret.png", 12345, 12345)
        os.link(tmp_path / "outside" / "secret.png", folder / "hardlink.png")
    return folder


@pytest.fixture
def pages(internet: Internet) -> Internet:
    """The servers and names that the list speaks of."""
    head = b"HTTP/1.1 200 OK\r\n"
    internet.names["mixed.test"] = [[PUBLIC, "10.0.0.5"]]
    internet.pages |= {
        "redir.test/to-metadata": redirect("http://169.254.169.254/"),
        "redir.test/downgrade": redirect("http://img.test/a.png"),
        "redir.test/loop": redirect("/loop"),
        "img.test/huge.png": endless(head + b"Content-Length: 5000000000\r\n\r\n", b"x"),
        "img.test/lying-length.png": endless(head + b"\r\n", b"x" * 65536),
        "img.test/gzip-bomb.png": answer(gzip.compress(bytes(10**7)), content_encoding="gzip"),
        "img.test/vector.svg": answer(b"<svg/>", content_type="image/svg+xml"),
        "img.test/pixel-bomb.png": answer(images.inflated("png", 60_000, 60_000)),
        "img.test/truncated.jpg": answer(images.photo((64, 64))[:-400]),
        "img.test/animated.gif": answer(images.animated("gif", 200)),
        "img.test/a.png": answer(PNG),
        "xn--mg-lka.test/a.png": answer(PNG),
        "img.test/injection.png": answer(PNG),
    }
    return internet


@pytest.mark.parametrize("entry", entries("UnderstandImages", "media_url"))
def test_images_in(entry: Mapping[str, Any], root: Path, pages: Internet) -> None:
    """Refused means that no connection was made and no file read; every error is short and free of secrets."""
    if entry["id"] == "UI76" and os.geteuid() != 0:
        pytest.skip("only root may give a file away")
    source = text_of(entry["args"]["media_url"], root)
    settings = Settings(input_dirs=(root,))
    picture, error = None, None
    try:
        picture = pages.load(source, settings, deadline_s=5.0)
    except (InvalidRequest, ProviderTimeout, ProviderUnavailable) as raised:
        error = raised
    if error is not None:
        said = str(error)
        assert entry["expect"] != "ok", said
        assert error.cost == 0
        assert len(said) <= 500
        assert not any(word in said for word in ("SECRET", "Traceback", PUBLIC, str(root), "root:x"))
    if entry["expect"] == "refused":
        assert isinstance(error, InvalidRequest)
        # A redirect is refused after the hop that named it, and that hop is public.
        assert pages.dialled == ([(PUBLIC, 443)] if "redir" in source else [])
    if picture is not None:
        assert entry["expect"] == "ok" or (entry["id"] == "UI62" and picture.source.endswith("(first frame)"))
        assert "SECRET" not in picture.source
        assert (picture.format, picture.width) == ("png", 8)


@pytest.mark.parametrize("entry", entries("ImageGeneration", "file_name"))
def test_names_of_images_out(entry: Mapping[str, Any], tmp_path: Path) -> None:
    """Whatever a file is to be called, it lies in the output folder under a safe name, and touches no other file."""
    out, victim = tmp_path / "out", tmp_path / "victim"
    out.mkdir()
    victim.write_text("mine")
    (out / "taken.png").write_text("mine")
    (out / "planted.png").symlink_to(victim)
    before = {path for path in tmp_path.rglob("*") if out not in path.parents}
    saved = save_picture(
        PICTURE, settings=Settings(output_dir=str(out)), name=text_of(entry["args"]["file_name"], tmp_path)
    )
    path = Path(saved.path)
    assert (path.parent, path.suffix, path.read_bytes()) == (out, ".png", PNG)
    assert set(path.stem) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_")
    assert victim.read_text() == (out / "taken.png").read_text() == "mine"
    assert {path for path in tmp_path.rglob("*") if out not in path.parents} == before
    if entry["expect"] == "ok":
        assert path.name in ("taken-2.png", "planted-2.png")


def test_a_place_that_cannot_be_written_to_is_found_before_paying(tmp_path: Path) -> None:
    """The list's IG35: the output folder is checked before the paid call."""
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigurationError):
        check_output(Settings(output_dir=str(tmp_path / "out")))
