"""Reads image files from allowed folders without following links, and makes safe file names."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from shared.errors import InvalidRequest
from shared.redaction import redact

MAX_BYTES = 10 * 10**6
# Files that we saved have been checked before: a 4K image in PNG may be read again.
MAX_SAVED_BYTES = 64 * 2**20
MAX_NAME = 80
# File systems limit names by bytes, mostly to 255.
_MAX_NAME_BYTES = 200
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_READ_FLAGS = (
    os.O_RDONLY | _NOFOLLOW | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
)
_FOLDER_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
# Characters that a path from an agent never needs.
_FORBIDDEN = "~" if os.sep == "\\" else "\\:~"
HAS_DIR_FD = os.open in os.supports_dir_fd


def safe_name(text: str) -> str:
    """
    `text` as the name of a file or folder: only letters, digits, "_" and "-", 1 to 80 characters, normalised (NFC).

    Other characters become "-"; if nothing is left, the name is "image".
    """
    kept = "".join(c if _is_safe(c) else "-" for c in unicodedata.normalize("NFC", text))
    name = re.sub(r"-{2,}", "-", kept).lstrip("-")[:MAX_NAME]
    name = name.encode("utf-8")[:_MAX_NAME_BYTES].decode("utf-8", errors="ignore").rstrip("-")
    if _RESERVED.fullmatch(name):
        name += "_"
    return name or "image"


def _is_safe(character: str) -> bool:
    kind = unicodedata.category(character)
    return kind.startswith("L") or kind == "Nd" or character in "_-"


def folder_parts(folder: str | None) -> list[str]:
    """A subfolder such as "acme/run-7" as safe names; an empty list for None."""
    return [safe_name(part) for part in folder.split("/") if part] if folder else []


@dataclass(frozen=True, slots=True)
class Folders:
    """
    The folders that an agent may read: its scope's own subfolder `parts` of `output`, and all of `shared`.

    Relative paths are looked up in that order. `output` is None if images are not saved in a local folder.
    """

    output: Path | None = None
    parts: Sequence[str] = ()
    shared: Sequence[Path] = ()


def read_file(source: str, *, folders: Folders, from_agent: bool) -> bytes:
    """
    The content of a file of 1 byte to 10 MB; in the output folder an agent may read up to 64 MiB.

    Args:
        source: Path of the file, absolute or relative to one of the folders.

        folders: The folders that an agent may read.

        from_agent: False for a path from the program itself, which may be anywhere.

    Raises:
        InvalidRequest: It may not be read, does not exist, is not a file, is empty or is too large.
    """
    name = file_name(source)
    try:
        handle, limit = _open_for_agent(source, folders) if from_agent else (_open_anywhere(source, folders), MAX_BYTES)
        try:
            return _read_all(handle, name, limit, from_agent)
        finally:
            os.close(handle)
    except (OSError, ValueError, RuntimeError):  # RuntimeError: links that form a loop
        raise (_not_found(name) if from_agent else _unreadable(name)) from None


def file_name(source: str) -> str:
    """The last part of a path, safe for error messages."""
    return redact(re.split(r"[/\\]", source)[-1], limit=100) or "The file"


def too_large(name: str, limit: int) -> InvalidRequest:
    """The error for a file of more than `limit` bytes."""
    return InvalidRequest(f"{name} is larger than {limit // 10**6} MB", hint="Use a smaller image.")


@contextmanager
def opened_folder(folder: Path, parts: Sequence[str] = (), *, make: bool = False) -> Iterator[int]:
    """
    Open `folder`/`parts` as a file descriptor, without following links in `parts`.

    Args:
        make: Whether to create missing folders (mode 0700).

    Raises:
        OSError: One of them does not exist, is a link or is not a folder.
    """
    if make:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    current = os.open(folder, _FOLDER_FLAGS)
    try:
        for part in parts:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=current)
            inner = os.open(part, _FOLDER_FLAGS | _NOFOLLOW, dir_fd=current)
            os.close(current)
            current = inner
        yield current
    finally:
        os.close(current)


def _is_suspicious(source: str) -> bool:
    """Whether a path contains anything that some system does not treat as names joined by slashes."""
    return (
        not source.isprintable()
        or any(c in source for c in _FORBIDDEN)
        or source.startswith("//")
        or ".." in re.split(r"[/\\]", source)
    )


def _unreadable(name: str) -> InvalidRequest:
    return InvalidRequest(f"{name} does not exist or is not a readable file", hint="Check the path.")


def _not_found(name: str) -> InvalidRequest:
    # The same message for a file outside the folders and for one that does not exist.
    return InvalidRequest(
        f"{name} is not a file in the folders that images may be read from (image_source_refused)",
        hint="Use the path of an image that was saved here, or its URL.",
    )


def _open_anywhere(source: str, folders: Folders) -> int:
    paths = [Path(source), *(root / source for _, root in _roots(folders))]
    return os.open(next((path for path in paths if path.exists()), paths[0]), _READ_FLAGS & ~_NOFOLLOW)


def _open_for_agent(source: str, folders: Folders) -> tuple[int, int]:
    """The opened file, and the maximum size in bytes that it may have."""
    if _is_suspicious(source):
        raise FileNotFoundError
    for base, root in _roots(folders):
        path = (root / source).resolve()
        if path.is_relative_to(root) and not _is_of_another_scope(path, folders) and path.exists():
            limit = MAX_SAVED_BYTES if folders.output and base == folders.output.resolve() else MAX_BYTES
            return _open_beneath(base, path.relative_to(base)), limit
    raise FileNotFoundError


def _roots(folders: Folders) -> list[tuple[Path, Path]]:
    """Each folder with links resolved, and the folder inside it that may be read, whose own links are not resolved."""
    shared = [folder.resolve() for folder in folders.shared]
    output = [folders.output.resolve()] if folders.output else []
    return [*((base, base.joinpath(*folders.parts)) for base in output), *zip(shared, shared, strict=True)]


def _is_of_another_scope(path: Path, folders: Folders) -> bool:
    """Whether it is in the output folder, which may be inside a shared folder, but not in the scope's part of it."""
    if folders.output is None:
        return False
    base = folders.output.resolve()
    return path.is_relative_to(base) and not path.is_relative_to(base.joinpath(*folders.parts))


def _open_beneath(base: Path, inner: Path) -> int:
    """Open a file below a folder; a link that is put in its way in the meantime is not followed."""
    if any(part.startswith(".") for part in inner.parts) or not inner.parts:
        raise FileNotFoundError
    if HAS_DIR_FD:
        with opened_folder(base, inner.parts[:-1]) as folder:
            return os.open(inner.parts[-1], _READ_FLAGS, dir_fd=folder)
    # Windows cannot open files relative to a folder: check for links again after opening.
    handle = os.open(base / inner, _READ_FLAGS)
    if (base / inner).resolve() != base / inner:
        os.close(handle)
        raise FileNotFoundError
    return handle


def _read_all(handle: int, name: str, limit: int, from_agent: bool) -> bytes:
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        raise OSError
    if from_agent and status.st_nlink > 1 and hasattr(os, "geteuid") and status.st_uid != os.geteuid():
        raise OSError  # it may be a hard link to another user's file
    if status.st_size == 0:
        raise InvalidRequest(f"{name} is empty", hint="Use another image.")
    data = bytearray()
    while chunk := os.read(handle, min(2**20, limit + 1 - len(data))):
        data += chunk
    if len(data) > limit:
        raise too_large(name, limit)
    return bytes(data)
