"""Images scaled down to what a model makes use of, and previews for agents."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

from PIL import Image

from shared.images.decode import FORMATS, encode, off_loop
from shared.images.limits import Detail, fitting, raw_tokens, rule_for, tokens
from shared.types import Candidate, Picture, Request, TaskType


async def fit_pictures(candidate: Candidate, request: Request) -> None:
    """Bring the pictures that a model is to look at to what it makes use of, once for each model."""
    if request.task is not TaskType.VISION or candidate.requested in request.fitted:
        return
    detail: Any = request.params.get("detail") or "auto"
    fit_one: Any = partial(fit, provider=candidate.provider, model=candidate.wire_model, detail=detail)
    request.fitted[candidate.requested] = tuple([await off_loop(fit_one, each) for each in request.pictures])


# Anthropic takes 5 MB of base64 on Bedrock and Vertex, the least of all providers that name a limit; read 2026-11-25.
MAX_SENT_BYTES = 3_700_000
PREVIEW_SIDE = 768
PREVIEW_BYTES = 120_000


@dataclass(frozen=True, slots=True)
class Fitted:
    """
    An image as a model should get it, with an estimate of its input tokens.

    `raw_tokens` is what the original would cost; both are None where no formula is known.
    """

    picture: Picture
    tokens: int | None
    raw_tokens: int | None


def fit(picture: Picture, *, provider: str, model: str, detail: Detail = "auto") -> Fitted:
    """
    Scale an image down to what a model makes use of, as the JPEG or PNG that every provider takes.

    It takes tenths of a second for a photo: see `off_loop`.

    Args:
        picture: From `decode_picture`.

        provider, model: Who will see it; a model that nobody knows gets at most 1568 pixels on the longest side.

        detail: "low" is small and cheap; "high" and "auto" are all that the model can use.
    """
    rule = rule_for(f"{provider}/{model}")
    size = fitting(picture.width, picture.height, rule, detail)
    sent = picture
    if size != (picture.width, picture.height) or not _is_welcome(picture):
        sent = _scaled(picture, size)
    return Fitted(
        sent,
        tokens(*size, rule, detail),
        raw_tokens(picture.width, picture.height, rule, detail),
    )


def preview(picture: Picture) -> bytes:
    """A JPEG of at most 768 pixels on the longest side and 120 kB, for an agent to look at."""
    for side in (PREVIEW_SIDE, 512, 256, 128):
        image = _on_white(_opened(picture, _within(picture, side)))
        for quality in (85, 70, 55):
            data = encode(image, "jpeg", quality=quality)
            if len(data) <= PREVIEW_BYTES:
                return data
    raise AssertionError("128 x 128 pixels always fit")


def data_uri(picture: Picture) -> str:
    """The image as text that a request can carry."""
    return f"data:image/{picture.format};base64,{base64.b64encode(picture.data).decode('ascii')}"


def _opened(picture: Picture, size: tuple[int, int]) -> Image.Image:
    """A picture that passed the gate, at a size not larger than it is."""
    image = Image.open(BytesIO(picture.data), formats=FORMATS)
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
        sent = Picture(encode(image, "png", quality=0), "png", *size, source=picture.source)
        if _is_welcome(sent):
            return sent
    image = _on_white(image)
    for quality in (90, 75, 50):
        sent = Picture(encode(image, "jpeg", quality=quality), "jpeg", *size, source=picture.source)
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
