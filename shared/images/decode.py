"""Decodes every image under limits and re-encodes it upright, without metadata."""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import BytesIO
from typing import Any

from PIL import Image

from shared.errors import InvalidRequest
from shared.images.container import TooManyParts, orientation_of, parts_of
from shared.internal.fair_pool import FairPool
from shared.scope import current_scope
from shared.types import Picture, PictureFormat

MAX_PIXELS = 40_000_000
# Pillow keeps Python's lock while it decodes a WebP: all of the program would wait.
MAX_WEBP_PIXELS = 12_000_000
MAX_DECODED_BYTES = 64 * 2**20
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_OUTPUT_FORMATS: dict[str, PictureFormat] = {"PNG": "png", "JPEG": "jpeg", "MPO": "jpeg", "WEBP": "webp", "GIF": "png"}
# A large picture takes seconds and half a gigabyte: two at once for one tenant, and one more for all others.
_threads = FairPool("agentswarm-images", threads=2, per_owner=1, yields=True)
_HINT = "Use a PNG, JPEG, WebP or GIF image."


def decode_picture(data: bytes, *, source: str) -> Picture:
    """
    Decode an image and re-encode it.

    Only the first frame is kept, rotated according to its EXIF data. Everything else (EXIF, GPS, text, colour profile,
    bytes after the image) is dropped. A GIF becomes a PNG, the other formats stay.

    Args:
        data: The file; its format is detected from the content.

        source: Its name in errors, free of secrets.

    Raises:
        InvalidRequest: It is not a PNG, JPEG, WebP or GIF image, is damaged, is larger than 40 million pixels
            (12 million for WebP) or 64 MiB, or has parts that would take too long to decode.
    """
    if not data:
        raise _refused(source, "it is empty")
    if len(data) > MAX_DECODED_BYTES:
        raise _refused(source, f"it is larger than {MAX_DECODED_BYTES >> 20} MiB")
    _check_pixels(data, _pixels_from_header(data), source)
    try:
        parts = parts_of(data)
        with Image.open(BytesIO(parts.data), formats=FORMATS) as image:
            _check_pixels(data, image.width * image.height, source)
            kind = image.format or ""
            image.load()
            animated = parts.is_moving or (kind == "WEBP" and _is_animated(image))
            clean = _normalised(image, parts.orientation)
            format_ = _OUTPUT_FORMATS[kind]
            lossless = kind == "WEBP" and data[12:16] == b"VP8L"
            encoded = encode(clean, format_, quality=95, lossless=lossless)
    except InvalidRequest:
        raise
    except TooManyParts as error:
        raise _refused(source, str(error)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(source) from None
    except Exception:  # noqa: BLE001 - Pillow's decoders raise exceptions of any type on hostile bytes
        raise _refused(source, "it is not an image that can be read, or is cut off") from None
    return Picture(encoded, format_, *clean.size, source=f"{source} (first frame)" if animated else source)


async def decode_off_loop(data: bytes, *, source: str) -> Picture:
    """`decode_picture` off the event loop, with at most two running at once for one tenant."""
    return await off_loop(decode_picture, data, source=source)


async def off_loop[T](function: Callable[..., T], *args: Any, **keywords: Any) -> T:
    """Run a function that processes pixels in one of this process's image threads."""
    return await _threads.run(current_scope().owner, function, *args, **keywords)


def _refused(source: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{source} was refused: {why}", hint=_HINT)


def _check_pixels(data: bytes, pixels: int, source: str) -> None:
    if pixels > MAX_PIXELS:
        raise _too_many_pixels(source)
    if pixels > MAX_WEBP_PIXELS and data.startswith(b"RIFF"):
        raise _refused(source, f"it has more than {MAX_WEBP_PIXELS // 10**6} million pixels, the most for a WebP")


def _too_many_pixels(source: str) -> InvalidRequest:
    return _refused(source, f"it has more than {MAX_PIXELS // 10**6} million pixels")


def _pixels_from_header(data: bytes) -> int:
    """
    Width times height according to the file's header, before any decoder allocates memory for them.

    Returns:
        0 when the header does not say: Pillow then finds out, or rejects the file.
    """
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height = struct.unpack_from(">II", data, 16)
        elif data.startswith((b"GIF87a", b"GIF89a")):
            width, height = struct.unpack_from("<HH", data, 6)
        elif data.startswith(b"RIFF") and data[8:16] == b"WEBPVP8X":
            width, height = (1 + int.from_bytes(data[start : start + 3], "little") for start in (24, 27))
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


# How to turn a picture upright, by its orientation in EXIF.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _normalised(image: Image.Image, orientation: int) -> Image.Image:
    """The pixels only, upright, as L, RGB or RGBA."""
    if image.format == "WEBP":
        orientation = orientation_of(image.info.get("exif", b"").removeprefix(b"Exif\0\0"))
    if orientation in _TURNS:
        info, image = image.info, image.transpose(_TURNS[orientation])
        image.info = info
    if image.mode.startswith(("I", "F")):
        image = image.point(lambda value: value * (1 / 256)).convert("L")  # 16 bits per pixel
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() == (255, 255):
            image = image.convert("RGB")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    image.info = {}  # comments and colour profiles, which Pillow would write back
    return image


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # noqa: BLE001 - a second frame that cannot be read does not count as one
        return False


def encode(image: Image.Image, format_: PictureFormat, *, quality: int, lossless: bool = False) -> bytes:
    """The image as a file; `quality` (1 to 100) applies to JPEG and WebP, `lossless` to WebP."""
    out = BytesIO()
    # For a large photo more effort takes seconds and saves little.
    if format_ == "png":
        image.save(out, "PNG", compress_level=6 if image.width * image.height <= 2_500_000 else 2)
    elif format_ == "webp":
        method = 2 if image.width * image.height <= 2_500_000 else 0
        try:
            image.save(out, "WEBP", quality=quality, lossless=lossless, method=method)
        except ValueError:  # the format has no room for so many details
            out = BytesIO()
            image.save(out, "WEBP", quality=min(quality, 50), lossless=lossless, method=method)
    else:
        image.save(out, "JPEG", quality=quality, optimize=False)
    return out.getvalue()
