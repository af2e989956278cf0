"""Images for tests: small ones of every kind, with and without secrets in them, and hostile ones."""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache
from io import BytesIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

SECRET = b"GPS-OF-MY-HOUSE"
FORMATS = ("png", "jpeg", "webp", "gif")


def image(format_: str = "png", size: tuple[int, int] = (8, 6), mode: str = "RGB", color: object = 0) -> bytes:
    """A plain image."""
    out = BytesIO()
    Image.new(mode, size, color).save(out, format_)  # type: ignore[arg-type]
    return out.getvalue()


@lru_cache(maxsize=16)
def photo(size: tuple[int, int], format_: str = "jpeg", noise: float = 40) -> bytes:
    """An image that does not compress to nothing."""
    out = BytesIO()
    Image.effect_noise(size, noise).convert("RGB").save(out, format_, quality=90)
    return out.getvalue()


def talkative(format_: str) -> bytes:
    """An image with a secret in every place that its format has for one, and behind its end."""
    picture = Image.new("P" if format_ == "gif" else "RGB", (8, 6))
    exif = Image.Exif()
    exif[0x010E] = SECRET.decode()
    exif.get_ifd(0x8825)[0x001D] = SECRET.decode()
    out = BytesIO()
    match format_:
        case "png":
            texts = PngInfo()
            texts.add_text("Comment", SECRET.decode())
            texts.add_itxt("XML:com.adobe.xmp", SECRET.decode())
            picture.save(out, "PNG", pnginfo=texts, exif=exif, icc_profile=SECRET)
        case "jpeg":
            picture.save(out, "JPEG", exif=exif, comment=SECRET, icc_profile=SECRET, xmp=SECRET)
        case "webp":
            picture.save(out, "WEBP", exif=exif, icc_profile=SECRET, xmp=SECRET)
        case _:
            picture.save(out, "GIF", comment=SECRET)
    return out.getvalue() + b"<script>" + SECRET


def chunk(name: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_bomb(width: int, height: int, size: int = 200_000) -> bytes:
    """A PNG that would be valid, were it not so large: one bit a pixel, padded to `size` bytes."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * ((1 + (width + 7) // 8) * height), 9)
    padding = chunk(b"teXt", b"x" * max(0, size - len(rows) - 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + padding + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def inflated(format_: str, width: int, height: int) -> bytes:
    """A small image whose header claims another size."""
    data = bytearray(image(format_))
    match format_:
        case "png":
            header = data[12:16] + struct.pack(">II", width, height) + data[24:29]
            data[12:33] = header + struct.pack(">I", zlib.crc32(header))
        case "gif":
            data[6:10] = struct.pack("<HH", width, height)
        case "webp":
            data[26:30] = struct.pack("<HH", width, height)
        case _:
            at = data.index(b"\xff\xc0")
            data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def animated(format_: str, frames: int = 3) -> bytes:
    """Frames of different greys, the first one black."""
    pictures = [Image.new("RGB", (8, 6), (40 * number, 0, 0)) for number in range(frames)]
    out = BytesIO()
    pictures[0].save(out, format_, save_all=True, append_images=pictures[1:])
    return out.getvalue()
