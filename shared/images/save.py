"""Saves images, in a folder or wherever fsspec can write, and reads back what was saved."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from shared.config import Settings, output_dir
from shared.errors import ConfigurationError, InvalidRequest, StoreError
from shared.images.files import (
    HAS_DIR_FD,
    MAX_SAVED_BYTES,
    file_name,
    folder_parts,
    opened_folder,
    safe_name,
    too_large,
)
from shared.types import Picture

MIN_FREE_BYTES = 50 * 10**6
_EXTENSION = {"jpeg": "jpg"}
_ANY_EXTENSION = re.compile(r"\.(png|jpe?g|webp|gif)$", re.IGNORECASE)
_PROBE = "write-check"
_HINT = "Check AGENTSWARM_OUTPUT_DIR."


@dataclass(frozen=True, slots=True)
class Saved:
    """
    Where an image is: `path` for the program and other tools, `url` for people.

    `note` says so when it could not be saved where it should be.
    """

    path: str
    url: str
    note: str | None = None


def is_remote(place: str) -> bool:
    """Whether an output place is a URL for fsspec, and no folder."""
    return "://" in place


def check_output(settings: Settings, *, folder: str | None = None) -> None:
    """
    Make sure, before anything is paid for, that images can be saved.

    It writes a few bytes there, which takes a moment where the place is not a folder: not for the event loop.

    Args:
        folder: Sub folder that will be saved to, as for `save_picture`.

    Raises:
        ConfigurationError: The place cannot be written to, or has less than 50 MB free.
    """
    place, parts = output_dir(settings), folder_parts(folder)
    try:
        if is_remote(place):
            files, base = _remote(place)
            _put(files, "/".join((base, *parts)), _PROBE, b"ok")
        else:
            _try_folder(Path(place), parts)
    except ConfigurationError:
        raise
    except Exception as error:  # noqa: BLE001 - configs raise whatever their parsing happens to raise
        raise ConfigurationError(
            f"The output folder cannot be written to ({type(error).__name__})", hint=_HINT
        ) from None


def save_picture(picture: Picture, *, settings: Settings, name: str, folder: str | None = None) -> Saved:
    """
    Save an image under a name that nothing has yet: `name`, `name-2`, `name-3` ...

    It is there whole or not at all, and is never lost: when the output place fails, it goes to a temporary folder, and
    `Saved.note` says so.

    Args:
        name: Wish for the name; what no file may be called is left out, the extension is that of the content.

        folder: Sub folder, such as one scope's own. None: the output folder itself.

    Raises:
        StoreError: Not even the temporary folder can be written to.
    """
    place, parts = output_dir(settings), folder_parts(folder)
    stem = safe_name(_ANY_EXTENSION.sub("", name))
    extension = _EXTENSION.get(picture.format, picture.format)
    try:
        if is_remote(place):
            file = _save_remote(picture.data, place, parts, stem, extension)
            path = url = "/".join((place.rstrip("/"), *parts, file))
        else:
            file = _save_local(picture.data, Path(place), parts, stem, extension)
            saved = Path(place, *parts, file)
            path, url = str(saved), saved.as_uri()
    except Exception as error:  # noqa: BLE001 - configs raise whatever their parsing happens to raise
        return _rescued(picture, stem, extension, type(error).__name__)
    if settings.output_url:
        url = f"{settings.output_url.rstrip('/')}/{quote('/'.join((*parts, file)))}"
    return Saved(path, url)


def read_saved(source: str, *, settings: Settings, folder: str | None) -> bytes | None:
    """
    The bytes of an image that was saved at an fsspec URL.

    Returns:
        None when `source` does not lie in this output place, or in this sub folder of it.

    Raises:
        InvalidRequest: It is not there, or is larger than 64 MiB.
    """
    place = output_dir(settings)
    start = "/".join((place.rstrip("/"), *folder_parts(folder), ""))
    inner = source.removeprefix(start)
    if not is_remote(place) or inner == source:
        return None
    # What save_picture calls its files and folders, and so nothing that a file system could read more into.
    if not all(safe_name(part) == part for part in _ANY_EXTENSION.sub("", inner).split("/")):
        return None
    try:
        files, base = _remote(place)
        path = f"{base}/{source.removeprefix(place.rstrip('/') + '/')}"
        if files.size(path) <= MAX_SAVED_BYTES:
            return bytes(files.cat_file(path))
    except Exception:  # noqa: BLE001 - LiteLLM raises bare Exceptions for names it cannot place
        raise InvalidRequest(f"{file_name(source)} cannot be read", hint="Give another image.") from None
    raise too_large(file_name(source), MAX_SAVED_BYTES)


def _names(stem: str, extension: str) -> Iterator[str]:
    yield f"{stem}.{extension}"
    yield from (f"{stem}-{number}.{extension}" for number in range(2, 100))
    # A folder with a hundred of that name: no more asking one by one.
    while True:
        yield f"{stem}-{secrets.token_hex(6)}.{extension}"


def _try_folder(place: Path, parts: list[str]) -> None:
    if HAS_DIR_FD:
        with opened_folder(place, parts, make=True) as folder:
            probe = f".{secrets.token_hex(8)}.tmp"
            _write_new(b"ok", probe, folder)
            os.unlink(probe, dir_fd=folder)
    else:
        place.joinpath(*parts).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place.joinpath(*parts)):
            pass
    if shutil.disk_usage(place).free < MIN_FREE_BYTES:
        raise ConfigurationError(
            f"The output folder has less than {MIN_FREE_BYTES // 10**6} MB free", hint="Make room, or move it."
        )


def _save_local(data: bytes, place: Path, parts: list[str], stem: str, extension: str) -> str:
    if not HAS_DIR_FD:
        return _save_without_dir_fd(data, place.joinpath(*parts), stem, extension)
    with opened_folder(place, parts, make=True) as folder:
        temporary = f".{secrets.token_hex(8)}.tmp"
        try:
            _write_new(data, temporary, folder)
            for name in _names(stem, extension):
                try:
                    _link(temporary, name, folder, data)
                except FileExistsError:
                    continue
                os.fsync(folder)
                return name
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
    raise AssertionError("names do not end")


def _write_new(data: bytes, name: str, folder: int | None) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(name, flags, 0o600, dir_fd=folder)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(handle)


def _link(temporary: str, name: str, folder: int, data: bytes) -> None:
    """Give the whole file its name, unless that is taken: by a file, or by a link that was planted there."""
    try:
        os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        _write_new(data, name, folder)  # a file system without hard links, such as exFAT


def _save_without_dir_fd(data: bytes, folder: Path, stem: str, extension: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name in _names(stem, extension):
        try:
            _write_new(data, str(folder / name), None)
        except FileExistsError:
            continue
        return name
    raise AssertionError("names do not end")


def _rescued(picture: Picture, stem: str, extension: str, why: str) -> Saved:
    try:
        path = Path(tempfile.mkdtemp(prefix="agentswarm-tools-"), f"{stem}.{extension}")
        _write_new(picture.data, str(path), None)
    except OSError:
        raise StoreError(
            f"The image could not be saved, neither in the output folder ({why}) nor in a temporary one", hint=_HINT
        ) from None
    return Saved(str(path), path.as_uri(), f"The output folder could not be written to ({why}); see this path instead.")


def _remote(place: str) -> tuple[Any, str]:
    """The file system of an fsspec URL, and the path in it."""
    from fsspec.core import url_to_fs

    try:
        files, base = url_to_fs(place)
    except ImportError:
        protocol = place.partition("://")[0]
        raise ConfigurationError(
            f"Saving to {protocol}:// needs a package that is not installed", hint=f"Install fsspec[{protocol}]."
        ) from None
    return files, str(base).rstrip("/")


def _save_remote(data: bytes, place: str, parts: list[str], stem: str, extension: str) -> str:
    files, base = _remote(place)
    folder = "/".join((base, *parts))
    for name in _names(stem, extension):
        try:
            # Exclusive where the file system can; elsewhere fsspec looks first.
            _put(files, folder, name, data, mode="create")
        except FileExistsError:
            continue
        return name
    raise AssertionError("names do not end")


def _put(files: Any, folder: str, name: str, data: bytes, **mode: str) -> None:
    try:
        files.pipe_file(f"{folder}/{name}", data, **mode)
    except FileNotFoundError:
        # Object stores have no folders; others want them made. Only now: to make one may mean to create a bucket.
        files.makedirs(folder, exist_ok=True)
        files.pipe_file(f"{folder}/{name}", data, **mode)
