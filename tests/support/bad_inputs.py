"""The project's list of bad inputs: its entries, and the files, folders and pages that they speak of."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support import pictures
from tests.support.internet import PUBLIC, Handler, Internet, answer, endless, redirect
from tests.support.paths import BESIDE

LIST = BESIDE / "facts" / "bad_inputs.json"
_ENTRIES = json.loads(LIST.read_text(encoding="utf-8")) if LIST.exists() else []


def entries(tool: str, argument: str = "", but: Collection[str] = ()) -> list[Any]:
    """The entries for a tool, or for one argument of it, as parameters of a test."""
    found = [
        pytest.param(entry, id=entry["id"])
        for entry in _ENTRIES
        if entry["tool"] == tool and (not argument or argument in entry["args"]) and entry["id"] not in but
    ]
    skip = pytest.mark.skip(reason=f"{LIST} is not there")
    return found or [pytest.param({}, id="absent", marks=skip)]


def written(value: Any, root: Path) -> Any:
    """A value of the list with its abbreviations written out."""
    if isinstance(value, Mapping) and "$repeat" in value:
        return value["$repeat"][0] * value["$repeat"][1]
    if isinstance(value, Mapping) and "$datauri_zeros_mb" in value:
        return "data:image/png;base64," + "A" * int(value["$datauri_zeros_mb"] * 4 * 10**6 // 3)
    return value.replace("${ROOT}", str(root)) if isinstance(value, str) else value


def arguments(entry: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """An entry's arguments, written out."""
    return {name: written(value, root) for name, value in entry["args"].items()}


def make_root(parent: Path) -> Path:
    """The folder that the list calls ${ROOT}, with everything in it that the entries need."""
    folder, outside = parent / "root", parent / "outside"
    folder.mkdir()
    outside.mkdir()
    picture = pictures.image()
    (outside / "secret.png").write_bytes(picture)
    (folder / "ok.png").write_bytes(picture)
    (folder / "text_named.png").write_text("SECRET text")
    (folder / "empty.png").touch()
    with (folder / "big_20mb.png").open("wb") as file:
        file.truncate(20 * 10**6)
    os.mkfifo(folder / "fifo")
    (folder / "link_to_etc_passwd").symlink_to("/etc/passwd")
    if os.geteuid() == 0:
        os.chown(outside / "secret.png", 12345, 12345)
        os.link(outside / "secret.png", folder / "hardlink.png")
    return folder


def make_output(folder: Path, victim: Path) -> None:
    """Put what an image must not overwrite into an output folder: a file, and a link to the victim outside."""
    victim.write_text("mine")
    (folder / "taken.png").write_text("mine")
    (folder / "planted.png").symlink_to(victim)


@cache
def _served() -> dict[str, Handler]:
    """The pages by host and path; made once, because the bombs take a tenth of a second."""
    head = b"HTTP/1.1 200 OK\r\n"
    picture = pictures.image()
    return {
        "redir.test/to-metadata": redirect("http://169.254.169.254/"),
        "redir.test/downgrade": redirect("http://img.test/a.png"),
        "redir.test/loop": redirect("/loop"),
        "img.test/huge.png": endless(head + b"Content-Length: 5000000000\r\n\r\n", b"x"),
        "img.test/lying-length.png": endless(head + b"\r\n", b"x" * 65536),
        "img.test/gzip-bomb.png": answer(gzip.compress(bytes(10**7)), content_encoding="gzip"),
        "img.test/vector.svg": answer(b"<svg/>", content_type="image/svg+xml"),
        "img.test/pixel-bomb.png": answer(pictures.inflated("png", 60_000, 60_000)),
        "img.test/truncated.jpg": answer(pictures.photo((64, 64))[:-400]),
        "img.test/animated.gif": answer(pictures.animated("gif", 200)),
        "img.test/a.png": answer(picture),
        "xn--mg-lka.test/a.png": answer(picture),
        "img.test/injection.png": answer(picture),
    }


@pytest.fixture
def pages(internet: Internet) -> Internet:
    """The servers and names that the list speaks of."""
    internet.names["mixed.test"] = [[PUBLIC, "10.0.0.5"]]
    internet.pages |= _served()
    return internet
