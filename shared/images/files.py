"""Image files: what they may be called, which folders they are read from, and how, without following links."""

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
# What was saved by us came through the gate: an image of 4K in PNG may be read again.
MAX_SAVED_BYTES = 64 * 2**20
MAX_NAME = 80
# File systems count bytes, and most stop at 255.
_MAX_NAME_BYTES = 200
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_READ = (
    os.O_RDONLY | _NOFOLLOW | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
)
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
# What a path that an agent names has no use for.
_ODD = "~" if os.sep == "\\" else "\\:~"
HAS_DIR_FD = os.open in os.supports_dir_fd


def safe_name(text: str) -> str:
    """
    `text` as the name of a file or folder: letters, digits, "_" and "-" only, 1 to 80 characters, composed (NFC).

    The rest becomes "-"; "image" where nothing is left.
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
    """A sub folder such as "acme/run-7" as safe names; none for None."""
    return [safe_name(part) for part in folder.split("/") if part] if folder else []


@dataclass(frozen=True, slots=True)
class Folders:
    """
    What an agent may read from: of `output` only the sub folder `parts`, which is its scope's own, and all of `shared`.

    A relative path is looked for in that order. `output` is None where images are not saved in a folder.
    """

    output: Path | None = None
    parts: Sequence[str] = ()
    shared: Sequence[Path] = ()


def read_file(source: str, *, folders: Folders, from_agent: bool) -> bytes:
    """
    The bytes of a file of 1 byte to 10 MB; what an agent finds in the output folder may have 64 MiB.

    Args:
        source: Path of the file, absolute or relative to one of the folders.

        folders: What an agent may read from.

        from_agent: False for a path that the program itself names: it may lie anywhere.

    Raises:
        InvalidRequest: It may not be read, is not there, or is no file of that size.
    """
    name = file_name(source)
    try:
        handle, limit = _open_for_agent(source, folders) if from_agent else (_open_anywhere(source, folders), MAX_BYTES)
        try:
            return _bytes_of(handle, name, limit, from_agent)
        finally:
            os.close(handle)
    except (OSError, ValueError, RuntimeError):  # RuntimeError: links that lead to each other
        raise (_not_found(name) if from_agent else _unreadable(name)) from None


def file_name(source: str) -> str:
    """The last part of a path, as an error may show it."""
    return redact(re.split(r"[/\\]", source)[-1], limit=100) or "The file"


def too_large(name: str, limit: int) -> InvalidRequest:
    """The error for a file of more than `limit` bytes."""
    return InvalidRequest(f"{name} is larger than {limit // 10**6} MB", hint="Give a smaller image.")


@contextmanager
def opened_folder(folder: Path, parts: Sequence[str] = (), *, make: bool = False) -> Iterator[int]:
    """
    A descriptor of `folder`/`parts`; links in `parts` are not followed, and missing folders made (0700) if asked.

    Raises:
        OSError: One of them is not there, is a link or is no folder.
    """
    if make:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    here = os.open(folder, _FOLDER)
    try:
        for part in parts:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=here)
            inner = os.open(part, _FOLDER | _NOFOLLOW, dir_fd=here)
            os.close(here)
            here = inner
        yield here
    finally:
        os.close(here)


def _is_odd(source: str) -> bool:
    """Whether a path means more to some system than names joined by slashes."""
    return (
        not source.isprintable()
        or any(c in source for c in _ODD)
        or source.startswith("//")
        or ".." in re.split(r"[/\\]", source)
    )


def _unreadable(name: str) -> InvalidRequest:
    return InvalidRequest(f"{name} is not there, or is no file that can be read", hint="Check the path.")


def _not_found(name: str) -> InvalidRequest:
    # The same words for what is outside of the folders and for what is not there.
    return InvalidRequest(
        f"{name} is no file in the folders that images may be read from (image_source_refused)",
        hint="Give the path of an image that was saved here, or its URL.",
    )


def _open_anywhere(source: str, folders: Folders) -> int:
    places = [Path(source), *(inside / source for _, inside in _roots(folders))]
    return os.open(next((place for place in places if place.exists()), places[0]), _READ & ~_NOFOLLOW)


def _open_for_agent(source: str, folders: Folders) -> tuple[int, int]:
    """The file and the most bytes it may have."""
    if _is_odd(source):
        raise FileNotFoundError
    for base, inside in _roots(folders):
        path = (inside / source).resolve()
        if path.is_relative_to(inside) and not _is_of_another_scope(path, folders) and path.exists():
            limit = MAX_SAVED_BYTES if folders.output and base == folders.output.resolve() else MAX_BYTES
            return _open_beneath(base, path.relative_to(base)), limit
    raise FileNotFoundError


def _roots(folders: Folders) -> list[tuple[Path, Path]]:
    """Each folder, links resolved, with the one inside of it that may be read; what leads there is not resolved."""
    shared = [folder.resolve() for folder in folders.shared]
    output = [folders.output.resolve()] if folders.output else []
    return [*((base, base.joinpath(*folders.parts)) for base in output), *zip(shared, shared, strict=True)]


def _is_of_another_scope(path: Path, folders: Folders) -> bool:
    """Whether it lies in the output folder, which a shared folder may contain, but not in the scope's part of it."""
    if folders.output is None:
        return False
    base = folders.output.resolve()
    return path.is_relative_to(base) and not path.is_relative_to(base.joinpath(*folders.parts))


def _open_beneath(base: Path, inner: Path) -> int:
    """Open a file below a folder; whoever puts a link in its way in the meantime gets nothing."""
    if any(part.startswith(".") for part in inner.parts) or not inner.parts:
        raise FileNotFoundError
    if HAS_DIR_FD:
        with opened_folder(base, inner.parts[:-1]) as folder:
            return os.open(inner.parts[-1], _READ, dir_fd=folder)
    # Windows opens nothing relative to a folder: links are looked for again after opening.
    handle = os.open(base / inner, _READ)
    if (base / inner).resolve() != base / inner:
        os.close(handle)
        raise FileNotFoundError
    return handle


def _bytes_of(handle: int, name: str, limit: int, from_agent: bool) -> bytes:
    about = os.fstat(handle)
    if not stat.S_ISREG(about.st_mode):
        raise OSError
    if from_agent and about.st_nlink > 1 and hasattr(os, "geteuid") and about.st_uid != os.geteuid():
        raise OSError  # a hard link may have brought another user's file into the folder
    if about.st_size == 0:
        raise InvalidRequest(f"{name} is empty", hint="Give an image.")
    data = bytearray()
    while chunk := os.read(handle, min(2**20, limit + 1 - len(data))):
        data += chunk
    if len(data) > limit:
        raise too_large(name, limit)
    return bytes(data)
