"""What images cost: by their tokens, by quality and size, by the piece or by the pixel."""

from __future__ import annotations

from decimal import Decimal

from shared.types import Answer, Candidate, ImageRequest, Picture, Rates, Request, sides_of

# Output tokens of one image by quality and size. Source: developers.openai.com/api/docs/guides/image-generation, cost
# table of gpt-image-1 and its successors up to 1.5 (read 2026-11-24).
_GPT_IMAGE_1 = {
    "low": {"1024x1024": 272, "1024x1536": 408, "1536x1024": 400},
    "medium": {"1024x1024": 1056, "1024x1536": 1584, "1536x1024": 1568},
    "high": {"1024x1024": 4160, "1024x1536": 6240, "1536x1024": 6208},
}
# gpt-image-2 is charged for a grid of this many cells along the longer side, weighted by the area. Source: OpenAI's own
# price calculator, as community.openai.com/t/1382699 reads it (2026-06-05, read 2026-11-25); checked against its
# published 7024 tokens for 1024x1024 and 5488 for 1536x1024, both high.
_GRID = {"low": 16, "medium": 48, "high": 96}
_LARGEST_OF_2 = (2880, 2880)
# Output tokens of one image of Gemini by size. Source: docs.cloud.google.com, Gemini 3.1 Flash Image (747 to 2520);
# ai.google.dev/gemini-api/docs/pricing for 2.5 Flash Image (1290) and 3 Pro Image (read 2026-11-25).
_GEMINI = (
    ("gemini-2.5-flash-image", {"1K": 1290}),
    ("gemini-3.1-", {"512": 747, "1K": 1120, "2K": 1680, "4K": 2520}),
    ("gemini-3-pro-image", {"1K": 1120, "2K": 1120, "4K": 2000}),
)
# A model that answers chats with images may make one of this size.
LARGEST_OF_CHAT = max(tokens for _, by_level in _GEMINI for tokens in by_level.values())
# Gemini's text and thoughts beside an image are not bounded by any page; by its own maximum of output tokens they are.
_GEMINI_TEXT = 32_768
_GEMINI_INPUT_IMAGE = 1290
# A reference image at high fidelity: 65 tokens, 129 for each tile of 512 pixels when the shorter side has that size,
# and 6144 more. Source: OpenAI's vision guide on GPT Image 1 (read 2026-11-24). Nothing is published on gpt-image-2.
_GPT_INPUT_IMAGE, _GPT_INPUT_TILE = 65 + 6144, 129


def images_cost(answer: Answer, rates: Rates) -> Decimal | None:
    """US$ for the images of an answer that are charged by the piece; None when their price is not known."""
    prices = [_piece(image.quality, image.size, rates) for image in answer.images]
    known = [price for price in prices if price is not None]
    return sum(known, Decimal(0)) if known and len(known) == len(prices) else None


def _piece(quality: str | None, size: str | None, rates: Rates) -> Decimal | None:
    """US$ for one image of this quality and size."""
    by_size = {(of, at): price for of, at, price in rates.sizes}
    for of in (quality or "standard", ""):
        if (of, size or "") in by_size:
            return by_size[of, size or ""]
    if by_size:
        return None  # a size that is not listed may cost more than any
    if "image" in rates.prices:
        return rates.prices["image"]
    sides = sides_of(size)
    per_pixel = rates.prices.get("pixel")
    return None if per_pixel is None or sides is None else per_pixel * sides[0] * sides[1]


def images_bound(candidate: Candidate, request: Request, asked: ImageRequest, prompt_tokens: int) -> Decimal | None:
    """
    The most that one request for images can cost, in US$; None when no bound is known.

    Args:
        asked: The request in the words of the model.

        prompt_tokens: The most that the prompt can be.
    """
    rates = candidate.rates.held or candidate.rates
    prices = rates.prices
    if "output_image" not in prices:
        piece = _piece(asked.quality, asked.size, rates)
        return None if piece is None else piece * asked.n
    output = output_tokens(candidate.wire_model, asked)
    text_in, image_in = prices.get("input"), prices.get("input_image", prices.get("input"))
    if output is None or text_in is None or image_in is None:
        return None
    pictures = [*request.pictures, *([request.mask] if request.mask else [])]
    seen = sum(_input_tokens(candidate.wire_model, picture) for picture in pictures)
    said = _GEMINI_TEXT if candidate.provider == "gemini" else 0
    usd = prompt_tokens * text_in + seen * image_in + asked.n * output * prices["output_image"]
    return usd + said * prices.get("output", 0) + prices.get("request", 0)


def output_tokens(wire_model: str, asked: ImageRequest) -> int | None:
    """The most output tokens that one image of this quality and size can be; None if it is unknown."""
    name = wire_model.lower().rpartition("/")[2]
    if name.startswith("gpt-image-2") and not name.startswith("gpt-image-2."):
        return _tokens_of_2(asked)
    if name.startswith(("gpt-image-1", "chatgpt-image")):
        by_size = _GPT_IMAGE_1.get(asked.quality or "", _GPT_IMAGE_1["high"])
        return by_size.get(asked.size or "", max(by_size.values()))
    for start, by_level in _GEMINI:
        if name.startswith(start):
            return by_level.get(asked.level or "1K")
    return None


def _tokens_of_2(asked: ImageRequest) -> int:
    cells = _GRID.get(asked.quality or "", _GRID["high"])
    width, height = sides_of(asked.size) or _LARGEST_OF_2
    longer, shorter = max(width, height), min(width, height)
    across = (2 * cells * shorter + longer) // (2 * longer)
    return -(-cells * across * (2_000_000 + width * height) // 4_000_000)


def _input_tokens(wire_model: str, picture: Picture) -> int:
    """The most tokens that a model which makes images counts for one that it is given."""
    if "gemini" in wire_model:
        return _GEMINI_INPUT_IMAGE
    longer, shorter = max(picture.width, picture.height), max(1, min(picture.width, picture.height))
    return _GPT_INPUT_IMAGE + _GPT_INPUT_TILE * -(-longer // shorter)
