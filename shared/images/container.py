"""
Walks the parts of an image file before a decoder sees it: counts what costs time, and keeps only what makes pixels.

A decoder's time depends on the parts, not on the size: a JPEG's thousands of empty scans take minutes, and metadata can
make a reader copy the file once for each of 65,000 tags. So parts are counted here, metadata is dropped, and its one
useful fact, how the picture is to be turned, is read here too.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

# Encoders write up to 20 scans. The time is that of all scans together: a tenth of a second for 60 million pixels.
_MAX_SCANS = 100
_MAX_SCANNED_PIXELS = 640_000_000
_MAX_SEGMENTS = 2_000
_MAX_CHUNKS = 20_000
_MAX_BLOCKS = 300_000
_MAX_TAGS = 1_000


class TooManyParts(Exception):
    """Decoding the file would take too long; the message says what there is too much of."""


class Parts(NamedTuple):
    """
    The file without metadata and further frames; `is_moving`: there were further frames.

    `orientation`: 1 to 8, as EXIF counts the ways to turn and mirror a picture.
    """

    data: bytes
    orientation: int = 1
    is_moving: bool = False


def parts_of(data: bytes) -> Parts:
    """
    The parts of a PNG, JPEG or GIF that make pixels; any other file as it is.

    What is cut off or damaged stays so, for the decoder to find out.

    Raises:
        TooManyParts: Decoding it would take too long.

        IndexError, struct.error: It is cut off within a part that all others depend on.
    """
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _gif(data)
    return Parts(data)


_MARKER = re.compile(rb"\xff([^\x00\xff])", re.DOTALL)
_SCAN_END = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_SCAN, _END = 0xDA, 0xD9
_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))


def _jpeg(data: bytes) -> Parts:
    kept, exif, seen = [data[:2]], b"", set[bytes]()
    at, pixels, scans = 2, 0, 0
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None:
            return Parts(b"".join(kept), orientation_of(exif))
        marker, start = found[1][0], found.end()
        if marker == _END:
            more = b"MPF" in seen and data.find(b"\xff\xd8\xff", start) >= 0
            return Parts(b"".join([*kept, found[0]]), orientation_of(exif), more)
        if marker in _ALONE:
            at = start
            continue
        at = start + int.from_bytes(data[start : start + 2])
        body = data[start + 2 : at]
        kind = body[: body.find(b"\0")] if marker >= 0xE0 else b""
        if marker in _SIZES:
            height, width = struct.unpack_from(">HH", body, 1)
            pixels = max(pixels, height * width)
        elif kind == b"Exif" and not exif:
            exif = body[6:]
        # Of the metadata two say how colours are stored: JFIF's and Adobe's.
        is_colour = (marker, kind) == (0xE0, b"JFIF") or marker == 0xEE
        if marker < 0xE0 or (is_colour and kind not in seen):
            kept.append(b"\xff%c" % marker + data[start:at])
        seen.add(kind)
        if marker == _SCAN:
            scans += 1
            if scans > _MAX_SCANS or scans * pixels > _MAX_SCANNED_PIXELS:
                raise TooManyParts("it has too many scans")
            ending = _SCAN_END.search(data, at)
            end = len(data) if ending is None else ending.start()
            kept.append(data[at:end])
            at = end
    raise TooManyParts("it has too many segments")


_KEPT_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})


def _png(data: bytes) -> Parts:
    kept, exif, is_moving, at = [data[:8]], b"", False, 8
    for _ in range(_MAX_CHUNKS):
        if at >= len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if kind in _KEPT_CHUNKS:
            kept.append(data[at:end])
        elif kind == b"eXIf" and not exif:
            exif = data[at + 8 : end - 4]
        elif kind == b"acTL":
            is_moving = int.from_bytes(data[at + 8 : at + 12]) > 1
        if kind == b"IEND":
            break
        at = end
    else:
        raise TooManyParts("it has too many chunks")
    return Parts(b"".join(kept), orientation_of(exif), is_moving)


def _gif(data: bytes) -> Parts:
    """The header, the last graphic control before the first image, and that image."""
    at = 13 + _palette_size(data[10])
    kept, control, blocks = [data[:at]], b"", 0
    while at < len(data) and data[at] != 0x3B:
        if blocks > _MAX_BLOCKS:
            raise TooManyParts("it has too many blocks")
        is_image = data[at] == 0x2C
        if is_image and len(kept) > 1:
            return Parts(b"".join(kept) + b";", is_moving=True)
        if not is_image and data[at] != 0x21:
            at += 1  # decoders pass over what is no block
            blocks += 1
            continue
        start, at = at, at + (11 + _palette_size(data[at + 9]) if is_image else 2)
        while at < len(data) and data[at] and blocks <= _MAX_BLOCKS:
            at += 1 + data[at]
            blocks += 1
        at += 1
        if is_image:
            kept += [control, data[start:at]]
        elif data[start + 1] == 0xF9:
            control = data[start:at]
    return Parts(b"".join(kept) + (b";" if at < len(data) else b""))


def _palette_size(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def orientation_of(exif: bytes) -> int:
    """How a picture is to be turned, from 1 (as it is) to 8, according to its EXIF data (without `Exif\\0\\0`)."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        [start] = struct.unpack_from(f"{order}I", exif, 4)
        [count] = struct.unpack_from(f"{order}H", exif, start)
        for place in range(min(count, _MAX_TAGS)):
            tag, kind, number, value = struct.unpack_from(f"{order}HHIH", exif, start + 2 + 12 * place)
            if (tag, kind, number) == (0x0112, 3, 1):
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
