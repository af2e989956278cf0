"""The gate that every image passes: decoded under limits, turned upright, and written anew without anything else."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from io import BytesIO
from typing import Any

from PIL import Image, ImageOps

from shared.errors import InvalidRequest
from shared.types import Picture, PictureFormat

MAX_PIXELS = 40_000_000
MAX_DECODED_BYTES = 64 * 2**20
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_WRITTEN: dict[str, PictureFormat] = {"PNG": "png", "JPEG": "jpeg", "MPO": "jpeg", "WEBP": "webp", "GIF": "png"}
_AT_ONCE = 2
_HINT = "Give a PNG, JPEG, WebP or GIF image."


def decode_picture(data: bytes, *, source: str) -> Picture:
    """
    Decode an image and write it anew.

    The first frame counts, turned as its EXIF says. Of the rest (EXIF, GPS, text, colour profile, bytes after the
    image) nothing is left. A GIF becomes a PNG, the others keep their format.

    Args:
        data: The file; its type is what it holds, not what anybody calls it.

        source: Its name in errors, free of secrets.

    Raises:
        InvalidRequest: It is no such image, is broken, or is larger than 40 million pixels or 64 MiB.
    """
    if not data:
        raise _refused(source, "it is empty")
    if len(data) > MAX_DECODED_BYTES:
        raise _refused(source, f"it is larger than {MAX_DECODED_BYTES >> 20} MiB")
    if _pixels_by_header(data) > MAX_PIXELS:
        raise _too_many_pixels(source)
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_many_pixels(source)
            kind = image.format or ""
            image.load()
            moving = _is_animated(image)
            plain = _plain(image)
    except InvalidRequest:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(source) from None
    except Exception:  # noqa: BLE001 - LiteLLM raises bare Exceptions for names it cannot place
        raise _refused(source, "it is not an image that can be read, or is cut off") from None
    format_ = _WRITTEN[kind]
    lossless = kind == "WEBP" and data[12:16] == b"VP8L"
    written = encode(plain, format_, quality=95, lossless=lossless)
    return Picture(written, format_, *plain.size, source=f"{source} (first frame)" if moving else source)


async def decode_off_loop(data: bytes, *, source: str) -> Picture:
    """`decode_picture`, off the event loop and at most two at once in this process."""
    return await off_loop(decode_picture, data, source=source)


async def off_loop[T](function: Callable[..., T], *args: Any, **keywords: Any) -> T:
    """Run what works on pixels in one of this process's two threads for that."""
    return await asyncio.get_running_loop().run_in_executor(_threads, partial(function, *args, **keywords))


def _refused(source: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{source} was refused: {why}", hint=_HINT)


def _too_many_pixels(source: str) -> InvalidRequest:
    return _refused(source, f"it has more than {MAX_PIXELS // 10**6} million pixels")


def _pixels_by_header(data: bytes) -> int:
    """
    Width times height as the file's first bytes say, before any decoder allocates for them.

    Returns:
        0 where they do not say it: Pillow then finds out, or finds that it is no image.
    """
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height = struct.unpack_from(">II", data, 16)
        elif data.startswith((b"GIF87a", b"GIF89a")):
            width, height = struct.unpack_from("<HH", data, 6)
        elif data.startswith(b"RIFF") and data[8:16] == b"WEBPVP8X":
            width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        elif data.startswith(b"RIFF") and data[8:16] == b"WEBPVP8L":
            bits = int.from_bytes(data[21:25], "little")
            width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        elif data.startswith(b"RIFF") and data[8:16] == b"WEBPVP8 ":
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
        else:
            return 0
    except struct.error:
        return 0
    return int(width * height)


def _plain(image: Image.Image) -> Image.Image:
    """The pixels, upright, as L, RGB or RGBA, with nothing that a file may hide beside them."""
    with suppress(Exception):  # EXIF that cannot be read turns nothing, and is dropped either way
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):
        image = image.point(lambda value: value * (1 / 256)).convert("L")  # 16 bits a pixel
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() == (255, 255):
            image = image.convert("RGB")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    image.info = {}  # comments and colour profiles, which Pillow would write again
    return image


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # noqa: BLE001 - LiteLLM raises bare Exceptions for names it cannot place
        return False


def encode(image: Image.Image, format_: PictureFormat, *, quality: int, lossless: bool = False) -> bytes:
    out = BytesIO()
    if format_ == "png":
        # Level 6 takes seconds for a large photo and saves little.
        image.save(out, "PNG", compress_level=6 if image.width * image.height <= 2_500_000 else 2)
    elif format_ == "webp":
        image.save(out, "WEBP", quality=quality, lossless=lossless, method=2)
    else:
        image.save(out, "JPEG", quality=quality, optimize=False)
    return out.getvalue()


def _two_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="agentswarm-images")


def _start_afresh() -> None:
    """A forked process has the variable but not the threads."""
    global _threads
    _threads = _two_threads()


_threads = _two_threads()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
