"""The parts of an image file: counted and left out before a decoder spends time or memory on them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO

import pytest
from PIL import Image, ImageOps

from shared.errors import InvalidRequest
from shared.images.container import orientation_of, parts_of
from shared.images.decode import MAX_WEBP_PIXELS, decode_picture
from tests.support import pictures as images
from tests.support.pictures import chunk


def _progressive(scans: int, size: tuple[int, int] = (64, 64)) -> bytes:
    """A progressive JPEG with so many more empty scans."""
    out = BytesIO()
    Image.new("RGB", size).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    last = data.rfind(b"\xff\xda")
    [length] = struct.unpack_from(">H", data, last + 2)
    return data[:-2] + data[last : last + 2 + length] * scans + data[-2:]


def _png(*chunks: bytes) -> bytes:
    """A PNG with more chunks behind its header."""
    data = images.image("png")
    return data[:33] + b"".join(chunks) + data[33:]


def _gif(blocks: bytes) -> bytes:
    """A GIF with more blocks before its image."""
    data = images.image("gif", mode="P")
    start = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    return data[:start] + blocks + data[start:]


TOO_MANY: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty scans": (lambda: _progressive(3000), "too many scans"),
    "scans of a large picture": (lambda: _progressive(20, (8000, 5000)), "too many scans"),
    "segments": (lambda: b"\xff\xd8" + b"\xff\xfe\x00\x02" * 3000 + images.image("jpeg")[2:], "too many segments"),
    "tables": (lambda: b"\xff\xd8" + b"\xff\xdb\x00\x02" * 3000 + images.image("jpeg")[2:], "too many segments"),
    "chunks": (lambda: _png(chunk(b"tEXt", b"") * 30_000), "too many chunks"),
    "blocks": (lambda: _gif(b"\x21\xfe" + b"\x01a" * 400_000 + b"\0"), "too many blocks"),
    "comments": (lambda: _gif(b"\x21\xfe\x01a\0" * 400_000), "too many blocks"),
    "pixels of a WebP": (lambda: images.image("webp", (4001, MAX_WEBP_PIXELS // 4000)), "12 million pixels"),
}


@pytest.mark.parametrize(("make", "words"), TOO_MANY.values(), ids=TOO_MANY)
def test_a_file_of_too_many_parts_is_refused(make: Callable[[], bytes], words: str) -> None:
    """What takes long to decode is refused before it is decoded, and the agent is told why."""
    with pytest.raises(InvalidRequest, match=words):
        decode_picture(make(), source="a")


def _exif_bomb(tags: int, size: int) -> bytes:
    """EXIF data in which each tag's value is the same large part of the file."""
    entries = b"".join(struct.pack(">HHII", number, 1, size, 8) for number in range(tags))
    return b"MM\0*" + struct.pack(">IH", 8, tags) + entries + bytes(size)


def _jpeg_with_exif(exif: bytes) -> bytes:
    data = images.image("jpeg")
    parts = [b"Exif\0\0" + exif[start : start + 60_000] for start in range(0, len(exif), 60_000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)
    return data[:2] + segments + data[2:]


METADATA: dict[str, Callable[[], bytes]] = {
    "PNG texts": lambda: _png(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000))) * 500),
    "PNG profile": lambda: _png(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(50_000_000)))),
    "PNG EXIF": lambda: _png(chunk(b"eXIf", _exif_bomb(60_000, 5_000_000))),
    "JPEG EXIF": lambda: _jpeg_with_exif(_exif_bomb(60_000, 5_000_000)),
    "GIF comment": lambda: _gif(b"\x21\xfe" + (b"\xff" + bytes(255)) * 40_000 + b"\0"),
}


@pytest.mark.parametrize("make", METADATA.values(), ids=METADATA)
def test_no_decoder_sees_metadata(make: Callable[[], bytes]) -> None:
    """Texts, profiles, comments and EXIF data, which a reader may have to inflate or copy many times, are left out."""
    data = make()
    assert len(parts_of(data).data) < 2000
    assert decode_picture(data, source="a").width == 8


@pytest.mark.parametrize("format_", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_turned_as_pillow_does(orientation: int, format_: str) -> None:
    """The eight ways in which EXIF turns and mirrors a picture lead to what Pillow makes of them; others to none."""
    drawn = Image.new("RGB", (24, 16))
    drawn.paste("red", (0, 0, 8, 8))
    drawn.paste("blue", (16, 0, 24, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = BytesIO()
    drawn.save(out, format_, exif=exif, **({} if format_ == "jpeg" else {"lossless": True}))
    expected = ImageOps.exif_transpose(Image.open(out)).convert("RGB")
    found = Image.open(BytesIO(decode_picture(out.getvalue(), source="a").data)).convert("RGB")
    assert found.size == expected.size
    corners = [(2, 2), (found.width - 3, 2), (2, found.height - 3), (found.width - 3, found.height - 3)]
    for corner in corners:
        pixels: list[tuple[int, ...]] = [image.getpixel(corner) for image in (found, expected)]  # type: ignore[misc]
        assert all(abs(one - other) < 60 for one, other in zip(*pixels, strict=True))


@pytest.mark.parametrize("exif", [b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", bytes(100)])
def test_unreadable_exif_turns_nothing(exif: bytes) -> None:
    """EXIF data that is cut off or points nowhere is the same as none."""
    assert orientation_of(exif) == 1


def test_of_several_jpegs_in_one_file_the_first_counts() -> None:
    """A camera's file with more pictures behind the first is one picture, and its name says so."""
    out = BytesIO()
    Image.new("RGB", (8, 6)).save(out, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 6), "red")])
    picture = decode_picture(out.getvalue(), source="a")
    assert (picture.format, picture.source) == ("jpeg", "a (first frame)")


def test_bytes_between_the_parts_of_a_jpeg_do_no_harm() -> None:
    """Readers pass over bytes between segments, and so does this one."""
    data = images.photo((64, 64))
    at = 4 + int.from_bytes(data[4:6])
    assert decode_picture(data[:at] + b"\0\1\2" + data[at:], source="a").width == 64
    progressive = _progressive(0)
    assert decode_picture(progressive, source="a").width == 64
    assert parts_of(progressive).data.count(b"\xff\xda") == progressive.count(b"\xff\xda")
