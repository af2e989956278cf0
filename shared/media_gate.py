"""The gate that every image passes: decoded under limits, turned upright, and written anew without anything else."""

from __future__ import annotations

import asyncio
import base64
import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

from PIL import Image, ImageOps

from shared import media_limits
from shared.errors import InvalidRequest
from shared.media_limits import Detail
from shared.types import Picture, PictureFormat

MAX_PIXELS = 40_000_000
MAX_DECODED_BYTES = 64 * 2**20
# Anthropic takes 5 MB of base64 on Bedrock and Vertex, the least of all providers that name a limit; read 2026-11-25.
MAX_SENT_BYTES = 3_700_000
PREVIEW_SIDE = 768
PREVIEW_BYTES = 120_000
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_WRITTEN: dict[str, PictureFormat] = {"PNG": "png", "JPEG": "jpeg", "MPO": "jpeg", "WEBP": "webp", "GIF": "png"}
_AT_ONCE = 2
_HINT = "Give a PNG, JPEG, WebP or GIF image."


@dataclass(frozen=True, slots=True)
class Fitted:
    """
    An image as a model should get it, with an estimate of its input tokens.

    `raw_tokens` is what the original would cost; both are None where no formula is known.
    """

    picture: Picture
    tokens: int | None
    raw_tokens: int | None


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
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
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
    except Exception:  # noqa: BLE001 - a decoder that is fed hostile bytes may raise anything
        raise _refused(source, "it is not an image that can be read, or is cut off") from None
    format_ = _WRITTEN[kind]
    lossless = kind == "WEBP" and data[12:16] == b"VP8L"
    written = _written(plain, format_, quality=95, lossless=lossless)
    return Picture(written, format_, *plain.size, source=f"{source} (first frame)" if moving else source)


async def decode(data: bytes, *, source: str) -> Picture:
    """`decode_picture`, off the event loop and at most two at once in this process."""
    return await off_loop(decode_picture, data, source=source)


async def off_loop[T](function: Callable[..., T], *args: Any, **keywords: Any) -> T:
    """Run what works on pixels in one of this process's two threads for that."""
    return await asyncio.get_running_loop().run_in_executor(_threads, partial(function, *args, **keywords))


def fit(picture: Picture, *, provider: str, model: str, detail: Detail = "auto") -> Fitted:
    """
    Scale an image down to what a model makes use of, as the JPEG or PNG that every provider takes.

    It takes tenths of a second for a photo: see `off_loop`.

    Args:
        picture: From `decode_picture`.

        provider, model: Who will see it; a model that nobody knows gets at most 1568 pixels on the longest side.

        detail: "low" is small and cheap; "high" and "auto" are all that the model can use.
    """
    rule = media_limits.rule_for(f"{provider}/{model}")
    size = media_limits.fitting(picture.width, picture.height, rule, detail)
    sent = picture
    if size != (picture.width, picture.height) or not _is_welcome(picture):
        sent = _scaled(picture, size)
    return Fitted(
        sent,
        media_limits.tokens(*size, rule, detail),
        media_limits.raw_tokens(picture.width, picture.height, rule, detail),
    )


def preview(picture: Picture) -> bytes:
    """A JPEG of at most 768 pixels on the longest side and 120 kB, for an agent to look at."""
    for side in (PREVIEW_SIDE, 512, 256, 128):
        image = _on_white(_opened(picture, _within(picture, side)))
        for quality in (85, 70, 55):
            data = _written(image, "jpeg", quality=quality)
            if len(data) <= PREVIEW_BYTES:
                return data
    raise AssertionError("128 x 128 pixels always fit")


def data_uri(picture: Picture) -> str:
    """The image as text that a request can carry."""
    return f"data:image/{picture.format};base64,{base64.b64encode(picture.data).decode('ascii')}"


# Reading


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
    except Exception:  # noqa: BLE001 - a second frame that cannot be read is none
        return False


# Writing


def _written(image: Image.Image, format_: PictureFormat, *, quality: int, lossless: bool = False) -> bytes:
    out = BytesIO()
    if format_ == "png":
        # Level 6 takes seconds for a large photo and saves little.
        image.save(out, "PNG", compress_level=6 if image.width * image.height <= 2_500_000 else 2)
    elif format_ == "webp":
        image.save(out, "WEBP", quality=quality, lossless=lossless, method=2)
    else:
        image.save(out, "JPEG", quality=quality, optimize=False)
    return out.getvalue()


def _opened(picture: Picture, size: tuple[int, int]) -> Image.Image:
    """A picture that passed the gate, at a size not larger than it is."""
    image = Image.open(BytesIO(picture.data), formats=_FORMATS)
    image.draft(None, size)  # a JPEG is then decoded at a half, a quarter or an eighth
    image.load()
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _within(picture: Picture, side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(picture.width, picture.height))
    return max(1, round(picture.width * scale)), max(1, round(picture.height * scale))


def _is_welcome(picture: Picture) -> bool:
    """Whether every provider takes it: xAI, for one, knows neither WebP nor GIF."""
    return picture.format in ("png", "jpeg") and len(picture.data) <= MAX_SENT_BYTES


def _scaled(picture: Picture, size: tuple[int, int]) -> Picture:
    image = _opened(picture, size)
    # PNG keeps the edges of text and drawings, and transparency; a photo in it is several times as large.
    if picture.format == "png" or "A" in image.mode:
        sent = Picture(_written(image, "png", quality=0), "png", *size, source=picture.source)
        if _is_welcome(sent):
            return sent
    image = _on_white(image)
    for quality in (90, 75, 50):
        sent = Picture(_written(image, "jpeg", quality=quality), "jpeg", *size, source=picture.source)
        if _is_welcome(sent):
            break
    return sent


def _on_white(image: Image.Image) -> Image.Image:
    """Without transparency, which JPEG does not have."""
    if "A" not in image.mode:
        return image if image.mode in ("L", "RGB") else image.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


# Threads


def _two_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="agentswarm-images")


def _start_afresh() -> None:
    """A forked process has the variable but not the threads."""
    global _threads
    _threads = _two_threads()


_threads = _two_threads()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
