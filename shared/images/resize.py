"""Scales images down to the size that a model makes use of, and makes previews for agents."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

from PIL import Image

from shared.images.decode import FORMATS, encode, off_loop
from shared.images.limits import Detail, fitting, raw_tokens, rule_for, tokens
from shared.types import Candidate, Picture, Request, TaskType

# Anthropic accepts 5 MB of base64 on Bedrock and Vertex, the smallest documented limit of all providers (2026-11-25).
MAX_SENT_BYTES = 3_700_000
PREVIEW_SIDE = 768
PREVIEW_BYTES = 120_000


@dataclass(frozen=True, slots=True)
class Fitted:
    """
    An image as it is sent to a model, with an estimate of its input tokens.

    `raw_tokens` is the estimate for the original image. Both estimates are None if no formula is known.
    """

    picture: Picture
    tokens: int | None
    raw_tokens: int | None


def fit(picture: Picture, *, provider: str, model: str, detail: Detail = "auto") -> Fitted:
    """
    Scale an image down to the size that a model makes use of, as a JPEG or PNG, which every provider accepts.

    It takes tenths of a second for a photo: call it through `off_loop`.

    Args:
        picture: From `decode_picture`.

        provider, model: The receiver; an unknown model gets at most 1568 pixels on the longest side.

        detail: "low" is small and cheap; "high" and "auto" give the largest size that the model can use.
    """
    rule = rule_for(f"{provider}/{model}")
    size = fitting(picture.width, picture.height, rule, detail)
    fitted = picture
    if size != (picture.width, picture.height) or not _is_accepted_everywhere(picture):
        fitted = _scaled(picture, size)
    return Fitted(
        fitted,
        tokens(*size, rule, detail),
        raw_tokens(picture.width, picture.height, rule, detail),
    )


async def fit_pictures(candidate: Candidate, request: Request) -> None:
    """Fit the pictures of a vision request to the model, and keep them in `request.fitted`, once for each model."""
    if request.task is not TaskType.VISION or candidate.requested in request.fitted:
        return
    detail: Any = request.params.get("detail") or "auto"
    fit_one: Any = partial(fit, provider=candidate.provider, model=candidate.wire_model, detail=detail)
    request.fitted[candidate.requested] = tuple([await off_loop(fit_one, each) for each in request.pictures])


def picture_tokens(candidate: Candidate, request: Request) -> int | None:
    """Input tokens of the pictures of a vision request once they fit the model; None if no formula is known."""
    rule = rule_for(f"{candidate.provider}/{candidate.wire_model}")
    detail: Any = request.params.get("detail") or "auto"
    counts = [tokens(*fitting(it.width, it.height, rule, detail), rule, detail) for it in request.pictures]
    return None if None in counts else sum(count or 0 for count in counts)


def preview(picture: Picture) -> bytes:
    """A JPEG of at most 768 pixels on the longest side and 120 kB, for an agent to look at."""
    for side in (PREVIEW_SIDE, 512, 256, 128):
        image = _on_white(_opened(picture, _within(picture, side)))
        for quality in (85, 70, 55):
            data = encode(image, "jpeg", quality=quality)
            if len(data) <= PREVIEW_BYTES:
                return data
    raise AssertionError("128 x 128 pixels always fit")


def _opened(picture: Picture, size: tuple[int, int]) -> Image.Image:
    """A checked picture, scaled to a size that is not larger than its own."""
    image = Image.open(BytesIO(picture.data), formats=FORMATS)
    image.draft(None, size)  # decodes a JPEG at a half, a quarter or an eighth of its size
    image.load()
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _within(picture: Picture, side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(picture.width, picture.height))
    return max(1, round(picture.width * scale)), max(1, round(picture.height * scale))


def _is_accepted_everywhere(picture: Picture) -> bool:
    """Whether every provider accepts it: xAI, for example, supports neither WebP nor GIF."""
    return picture.format in ("png", "jpeg") and len(picture.data) <= MAX_SENT_BYTES


def _scaled(picture: Picture, size: tuple[int, int]) -> Picture:
    image = _opened(picture, size)
    # PNG keeps transparency and the edges of text and drawings, but makes photos several times as large.
    if picture.format == "png" or "A" in image.mode:
        scaled = Picture(encode(image, "png", quality=0), "png", *size, source=picture.source)
        if _is_accepted_everywhere(scaled):
            return scaled
    image = _on_white(image)
    for quality in (90, 75, 50):
        scaled = Picture(encode(image, "jpeg", quality=quality), "jpeg", *size, source=picture.source)
        if _is_accepted_everywhere(scaled):
            break
    return scaled


def _on_white(image: Image.Image) -> Image.Image:
    """The image without transparency, which JPEG does not support."""
    if "A" not in image.mode:
        return image if image.mode in ("L", "RGB") else image.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white
