"""The list of bad inputs, as far as images and their files go: each ends as the list says, and hurts nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shared.config import Settings
from shared.errors import ConfigurationError, InvalidRequest, ProviderTimeout, ProviderUnavailable
from shared.images.save import check_output, save_picture
from shared.types import Picture
from tests.support import bad_inputs, pictures as images
from tests.support.internet import PUBLIC, Internet

PNG = images.image()
PICTURE = Picture(PNG, "png", 8, 6)
# What a tool's fields refuse before an image comes into it: types, the instruction, unknown arguments.
OF_THE_TOOL = {"UI04", "UI05", "UI93", "UI94", "UI96", "UI97"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder that the list speaks of."""
    return bad_inputs.make_root(tmp_path)


@pytest.mark.parametrize("entry", bad_inputs.entries("UnderstandImages", "media_url", but=OF_THE_TOOL))
def test_images_in(entry: Mapping[str, Any], root: Path, pages: Internet) -> None:
    """Refused means that no connection was made and no file read; every error is short and free of secrets."""
    if entry["id"] == "UI76" and os.geteuid() != 0:
        pytest.skip("only root may give a file away")
    source = str(bad_inputs.written(entry["args"]["media_url"], root))
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


@pytest.mark.parametrize("entry", bad_inputs.entries("ImageGeneration", "file_name", but=OF_THE_TOOL))
def test_names_of_images_out(entry: Mapping[str, Any], tmp_path: Path) -> None:
    """Whatever a file is to be called, it lies in the output folder under a safe name, and touches no other file."""
    out, victim = tmp_path / "out", tmp_path / "victim"
    out.mkdir()
    bad_inputs.make_output(out, victim)
    before = {path for path in tmp_path.rglob("*") if out not in path.parents}
    saved = save_picture(
        PICTURE,
        settings=Settings(output_dir=str(out)),
        name=str(bad_inputs.written(entry["args"]["file_name"], tmp_path)),
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
