"""Saves images to a folder or to any fsspec file system, and reads saved images back."""

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
_PROBE_NAME = "write-check"
_HINT = "Check AGENTSWARM_OUTPUT_DIR."


@dataclass(frozen=True, slots=True)
class Saved:
    """
    Where an image was saved: `path` for the program and other tools, `url` for people.

    `note` says that it could not be saved in the output folder; else it is None.
    """

    path: str
    url: str
    note: str | None = None


def is_remote(location: str) -> bool:
    """Whether an output location is an fsspec URL instead of a local folder."""
    return "://" in location


def check_output(settings: Settings, *, folder: str | None = None) -> None:
    """
    Make sure that images can be saved before anything is paid for.

    It writes a few bytes, which takes a moment on a remote file system: do not call it on the event loop.

    Args:
        folder: Subfolder that will be saved to, as for `save_picture`.

    Raises:
        ConfigurationError: The output location cannot be written to, or has less than 50 MB free.
    """
    location, parts = output_dir(settings), folder_parts(folder)
    try:
        if is_remote(location):
            files, base = _remote(location)
            _put(files, "/".join((base, *parts)), _PROBE_NAME, b"ok")
        else:
            _check_folder(Path(location), parts)
    except ConfigurationError:
        raise
    except Exception as error:  # noqa: BLE001 - file systems have errors of their own, whose texts may contain keys
        raise ConfigurationError(
            f"The output folder cannot be written to ({type(error).__name__})", hint=_HINT
        ) from None


def save_picture(picture: Picture, *, settings: Settings, name: str, folder: str | None = None) -> Saved:
    """
    Save an image under the first free name: `name`, `name-2`, `name-3` ...

    The file is written completely or not at all. If the output location fails, the image is saved to a temporary
    folder instead, and `Saved.note` says so.

    Args:
        name: Preferred name; unsafe characters are replaced, and the extension is set to that of the content.

        folder: Subfolder, such as a scope's own. None: the output folder itself.

    Raises:
        StoreError: The temporary folder cannot be written to either.
    """
    location, parts = output_dir(settings), folder_parts(folder)
    stem = safe_name(_ANY_EXTENSION.sub("", name))
    extension = _EXTENSION.get(picture.format, picture.format)
    try:
        if is_remote(location):
            file = _save_remote(picture.data, location, parts, stem, extension)
            path = url = "/".join((location.rstrip("/"), *parts, file))
        else:
            file = _save_local(picture.data, Path(location), parts, stem, extension)
            saved = Path(location, *parts, file)
            path, url = str(saved), saved.as_uri()
    except Exception as error:  # noqa: BLE001 - the image was paid for and must not be lost, whatever went wrong
        return _save_temporarily(picture, stem, extension, type(error).__name__)
    if settings.output_url:
        url = f"{settings.output_url.rstrip('/')}/{quote('/'.join((*parts, file)))}"
    return Saved(path, url)


def read_saved(source: str, *, settings: Settings, folder: str | None) -> bytes | None:
    """
    The content of an image that was saved at an fsspec URL.

    Returns:
        None if `source` is not in the output location, or not in this subfolder of it.

    Raises:
        InvalidRequest: It does not exist, cannot be read, or is larger than 64 MiB.
    """
    location = output_dir(settings)
    start = "/".join((location.rstrip("/"), *folder_parts(folder), ""))
    inner = source.removeprefix(start)
    if not is_remote(location) or inner == source:
        return None
    # Only names that save_picture gives to files and folders, so that no file system can interpret them otherwise.
    if not all(safe_name(part) == part for part in _ANY_EXTENSION.sub("", inner).split("/")):
        return None
    try:
        files, base = _remote(location)
        path = f"{base}/{source.removeprefix(location.rstrip('/') + '/')}"
        if files.size(path) <= MAX_SAVED_BYTES:
            return bytes(files.cat_file(path))
    except Exception:  # noqa: BLE001 - file systems have errors of their own, whose texts may contain keys
        raise InvalidRequest(f"{file_name(source)} cannot be read", hint="Use another image.") from None
    raise too_large(file_name(source), MAX_SAVED_BYTES)


def _names(stem: str, extension: str) -> Iterator[str]:
    yield f"{stem}.{extension}"
    yield from (f"{stem}-{number}.{extension}" for number in range(2, 100))
    # After a hundred taken names, stop trying numbers one by one.
    while True:
        yield f"{stem}-{secrets.token_hex(6)}.{extension}"


def _check_folder(location: Path, parts: list[str]) -> None:
    if HAS_DIR_FD:
        with opened_folder(location, parts, make=True) as folder:
            probe = f".{secrets.token_hex(8)}.tmp"
            _write_new(b"ok", probe, folder)
            os.unlink(probe, dir_fd=folder)
    else:
        location.joinpath(*parts).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=location.joinpath(*parts)):
            pass
    if shutil.disk_usage(location).free < MIN_FREE_BYTES:
        raise ConfigurationError(
            f"The output folder has less than {MIN_FREE_BYTES // 10**6} MB free",
            hint="Free some space, or change AGENTSWARM_OUTPUT_DIR.",
        )


def _save_local(data: bytes, location: Path, parts: list[str], stem: str, extension: str) -> str:
    if not HAS_DIR_FD:
        return _save_without_dir_fd(data, location.joinpath(*parts), stem, extension)
    with opened_folder(location, parts, make=True) as folder:
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
    raise AssertionError("the names never run out")


def _write_new(data: bytes, name: str, folder: int | None) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(name, flags, 0o600, dir_fd=folder)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(handle)


def _link(temporary: str, name: str, folder: int, data: bytes) -> None:
    """Give the complete file its name, unless a file or a planted link already has that name."""
    try:
        os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        _write_new(data, name, folder)  # for file systems without hard links, such as exFAT


def _save_without_dir_fd(data: bytes, folder: Path, stem: str, extension: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name in _names(stem, extension):
        try:
            _write_new(data, str(folder / name), None)
        except FileExistsError:
            continue
        return name
    raise AssertionError("the names never run out")


def _save_temporarily(picture: Picture, stem: str, extension: str, why: str) -> Saved:
    try:
        path = Path(tempfile.mkdtemp(prefix="agentswarm-tools-"), f"{stem}.{extension}")
        _write_new(picture.data, str(path), None)
    except OSError:
        raise StoreError(
            f"The image could not be saved, neither in the output folder ({why}) nor in a temporary one", hint=_HINT
        ) from None
    note = f"The output folder could not be written to ({why}); the image is in a temporary folder."
    return Saved(str(path), path.as_uri(), note)


def _remote(location: str) -> tuple[Any, str]:
    """The file system of an fsspec URL, and the path within it."""
    from fsspec.core import url_to_fs

    try:
        files, base = url_to_fs(location)
    except ImportError:
        protocol = location.partition("://")[0]
        raise ConfigurationError(
            f"Saving to {protocol}:// needs a package that is not installed", hint=f"Install fsspec[{protocol}]."
        ) from None
    return files, str(base).rstrip("/")


def _save_remote(data: bytes, location: str, parts: list[str], stem: str, extension: str) -> str:
    files, base = _remote(location)
    folder = "/".join((base, *parts))
    for name in _names(stem, extension):
        try:
            # Atomic where the file system supports it; elsewhere fsspec checks first.
            _put(files, folder, name, data, mode="create")
        except FileExistsError:
            continue
        return name
    raise AssertionError("the names never run out")


def _put(files: Any, folder: str, name: str, data: bytes, **mode: str) -> None:
    try:
        files.pipe_file(f"{folder}/{name}", data, **mode)
    except FileNotFoundError:
        # Object stores have no folders, other file systems need them created. Only after a failure, since creating
        # one may mean to create a bucket.
        files.makedirs(folder, exist_ok=True)
        files.pipe_file(f"{folder}/{name}", data, **mode)
