"""Loads an image from a URL, a path or a data URI as a checked Picture."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import anyio.to_thread

from shared.config import Settings, output_dir
from shared.errors import InvalidRequest
from shared.images.decode import decode_off_loop, off_loop
from shared.images.fetch import display_url, fetch, refused
from shared.images.files import MAX_BYTES, Folders, file_name, folder_parts, read_file
from shared.images.save import is_remote, read_saved
from shared.types import Picture

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_DATA_URI = re.compile(r"data:image/([a-z0-9.+-]{1,40})((;[a-z0-9=._+-]{1,60}){0,4});base64,", re.IGNORECASE)


async def load_picture(
    source: str, *, settings: Settings, from_agent: bool = True, deadline_s: float = 20.0, folder: str | None = None
) -> Picture:
    """
    Load, check and re-encode the image at a URL, a file path or in a data URI.

    Args:
        source: A path is absolute, or relative to one of the folders that may be read (the output folder and
            AGENTSWARM_INPUT_DIRS).

        from_agent: False if the program itself gave the source: its files may then be anywhere.

        deadline_s: Maximum seconds for fetching a URL.

        folder: Subfolder of the output folder that belongs to the caller's scope; nothing else in the output folder
            is then read. None: all of it.

    Returns:
        A Picture whose `source` contains no query, credentials or folders.

    Raises:
        InvalidRequest: The source is refused, does not exist, is too large (10 MB, 40 million pixels) or is not an
            image.

        ProviderTimeout, ProviderUnavailable: The URL's host is slow or down; nothing was charged.
    """
    data, name = await _read_source(source, settings, from_agent, deadline_s, folder)
    return await decode_off_loop(data, source=name)


async def _read_source(
    source: str, settings: Settings, from_agent: bool, deadline_s: float, folder: str | None
) -> tuple[bytes, str]:
    """The undecoded content, and its name in messages."""
    if not source.strip():
        raise InvalidRequest("No image was given", hint="Pass a URL, a path or a data URI.")
    if source[:5].lower() == "data:":
        return await off_loop(_from_data_uri, source), "The data URI"
    scheme = match[1].lower() if (match := _SCHEME.match(source)) else ""
    if scheme in ("http", "https"):
        data = await fetch(source, private=settings.allow_private_hosts, deadline_s=deadline_s)
        return data, display_url(source)
    if scheme and scheme != "file":
        saved = await anyio.to_thread.run_sync(lambda: read_saved(source, settings=settings, folder=folder))
        if saved is None:
            raise refused(file_name(display_url(source)), "only https URLs and files in the allowed folders are read")
        return saved, file_name(source)
    path = _path_of(source) if scheme else source
    data = await anyio.to_thread.run_sync(lambda: _read_path(path, settings, from_agent, folder))
    return data, file_name(path)


def _from_data_uri(source: str) -> bytes:
    if len(source) > MAX_BYTES * 4 // 3 + 300:
        raise InvalidRequest(f"The data URI is larger than {MAX_BYTES // 10**6} MB", hint="Use a smaller image.")
    match = _DATA_URI.match(source)
    if match is None:
        raise InvalidRequest(
            "The data URI was refused: it must start with data:image/...;base64,", hint="Use a path or a URL instead."
        )
    try:
        return base64.b64decode(source[match.end() :], validate=True)
    except ValueError:
        raise InvalidRequest("The data URI was refused: it is not valid base64", hint="Pass it complete.") from None


def _path_of(url: str) -> str:
    """The path in a file:// URL, such as the URLs of saved images."""
    parts = urlsplit(url)
    if parts.netloc or parts.query or parts.fragment:
        raise refused(file_name(display_url(url)), "a file URL must have three slashes and end with the path")
    return unquote(parts.path)


def _read_path(path: str, settings: Settings, from_agent: bool, folder: str | None) -> bytes:
    location = output_dir(settings)
    output = None if is_remote(location) else Path(location)
    shared = tuple(input_dir.expanduser() for input_dir in settings.input_dirs)
    folders = Folders(output, folder_parts(folder), shared)
    return read_file(path, folders=folders, from_agent=from_agent)
