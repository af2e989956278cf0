"""The image size that each model makes use of, and the input tokens that it costs, as one table with sources."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Detail = Literal["low", "high", "auto"]
type Size = tuple[int, int]
"""Width and height in pixels."""
type Grid = Callable[[int, int], int]
"""Number of cells (patches or tiles) that cover an image with a given width and height."""

GENERIC_SIDE = 1568
_LOW_SIDE = 768


@dataclass(frozen=True, slots=True)
class Box:
    """The limits to which a provider scales an image down: longest and shortest side in pixels, cells of its grid."""

    longest: int
    shortest: int | None = None
    cells: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """
    One row of the table.

    An image costs `base` tokens plus `per_cell` for each cell of `grid`, rounded up. Without a grid it costs `base`; a
    `base` of None means that the cost is unknown. At detail "low" it is scaled to `low` and, unless that is None, costs
    `low_base`; `has_low_detail` says whether the provider itself scales to `low`, or only we do. `original` is the box
    for an image that is sent in full size with detail "auto", where the provider then allows more than `box`. `source`
    says where the numbers come from, and when it was read.
    """

    models: str
    box: Box
    grid: Grid | None = None
    base: int | None = None
    per_cell: float = 0.0
    low: Box = Box(_LOW_SIDE)
    low_base: int | None = None
    has_low_detail: bool = False
    original: Box | None = None
    source: str = ""


def _patches(pixels: int) -> Grid:
    return lambda width, height: math.ceil(width / pixels) * math.ceil(height / pixels)


def _rows_with_breaks(pixels: int) -> Grid:
    return lambda width, height: (math.ceil(width / pixels) + 1) * math.ceil(height / pixels)


def _gemini_tiles(width: int, height: int) -> int:
    if max(width, height) <= 384:
        return 1
    unit = max(1, int(min(width, height) / 1.5))
    return math.ceil(width / unit) * math.ceil(height / unit)


# Scaled into 2048 x 2048 and to a shortest side of 768, an image has at most 4 x 2 tiles.
_TILED = Box(2048, shortest=768, cells=8)
_SMALL_PATCHED = Box(2048, cells=6144)
_PATCHED = Box(2048, cells=2500)

_OPENAI = "https://developers.openai.com/api/docs/guides/images-vision, stored copies of March and September 2026"
_OPENAI_MEASURED = f"{_OPENAI}; multiplier as measured by users, that of the guide was higher in March 2026"
_ANTHROPIC = "https://platform.claude.com/docs/en/build-with-claude/vision, stored copies up to September 2026"
_GEMINI = "https://ai.google.dev/gemini-api/docs/image-understanding and /media-resolution, stored copies of 2026"
_MISTRAL = "https://mistralai.github.io/mistral-common/usage/images and the models' public configurations, 2026"
_XAI = "https://awesomeagents.ai/guides/ai-vision-image-resolution-limits, March 2026: not the provider's own figures"


def _openai_tiles(models: str, *, base: int, per_cell: float) -> Rule:
    """A row for an OpenAI model that counts tiles."""
    return Rule(
        models,
        box=_TILED,
        grid=_patches(512),
        base=base,
        per_cell=per_cell,
        low=Box(512),
        low_base=base,
        has_low_detail=True,
        source=_OPENAI,
    )


def _openai_patches(
    models: str, box: Box, *, per_cell: float, original: Box | None = None, source: str = _OPENAI
) -> Rule:
    """A row for an OpenAI model that counts patches."""
    return Rule(
        models,
        box=box,
        grid=_patches(32),
        base=0,
        per_cell=per_cell,
        low=Box(512),
        has_low_detail=True,
        original=original,
        source=source,
    )


# The first row whose pattern matches the model's own name applies, whoever hosts it (Azure, OpenRouter, Bedrock).
RULES: tuple[Rule, ...] = (
    # OpenAI, tiles of 512: detail "low" costs the base alone.
    _openai_tiles(r"gpt-4o-mini", base=2833, per_cell=5667),
    _openai_tiles(r"computer-use-preview", base=65, per_cell=129),
    _openai_tiles(r"^o[13](?!\d)", base=75, per_cell=150),
    # OpenAI, patches of 32, times a multiplier.
    _openai_patches(r"gpt-4\.1-mini", _SMALL_PATCHED, per_cell=1.62),
    _openai_patches(r"gpt-4\.1-nano", _SMALL_PATCHED, per_cell=2.46),
    _openai_patches(r"^(o4-mini|codex-mini)", _SMALL_PATCHED, per_cell=1.72),
    _openai_patches(r"gpt-5-mini|gpt-5(\.1)?-codex-mini", _SMALL_PATCHED, per_cell=1.2, source=_OPENAI_MEASURED),
    _openai_patches(r"gpt-5-nano", _SMALL_PATCHED, per_cell=1.5, source=_OPENAI_MEASURED),
    _openai_patches(r"gpt-5\.[23](?!\d)", _SMALL_PATCHED, per_cell=1.2, source=_OPENAI_MEASURED),
    _openai_patches(r"gpt-5\.4(?!\d)", _PATCHED, per_cell=1.2, source=_OPENAI_MEASURED),
    # From here on "auto" keeps the original's own size.
    _openai_patches(r"gpt-5\.5(?!\d)", _PATCHED, per_cell=1.2, original=Box(6000, cells=10_000)),
    _openai_patches(
        r"gpt-(5\.([6-9]|\d\d)|[6-9]|\d\d)(?!\d)", _PATCHED, per_cell=1.2, original=Box(65_535, cells=30_000)
    ),
    _openai_tiles(r"gpt-5(?!\.?\d)|gpt-5\.1(?!\d)", base=70, per_cell=140),
    _openai_tiles(r"gpt-4o|gpt-4\.[15]|gpt-4-(turbo|vision)", base=85, per_cell=170),
    # Anthropic, patches of 28, one token each. The first row is for models before Claude 4.7.
    Rule(
        r"claude-(3|(opus|sonnet|haiku)-(3|4(-[0-6])?(?!-?\d(?!\d))|4-20\d+)|[34]-(opus|sonnet|haiku)|haiku-4|instant)",
        box=Box(1568, cells=1568),
        grid=_patches(28),
        base=0,
        per_cell=1,
        source=_ANTHROPIC,
    ),
    Rule(r"claude", box=Box(2576, cells=4784), grid=_patches(28), base=0, per_cell=1, source=_ANTHROPIC),
    # Gemini: tiles up to version 2.5, a fixed number of tokens after that.
    Rule(r"gemini-(1|2)", box=Box(3072), grid=_gemini_tiles, base=0, per_cell=258, low=Box(384), source=_GEMINI),
    Rule(r"gemini", box=Box(3072), base=1120, low_base=280, source=_GEMINI),
    # Mistral: one token for each patch, and one at the end of each row.
    Rule(r"pixtral", box=Box(1024, cells=65 * 64), grid=_rows_with_breaks(16), base=0, per_cell=1, source=_MISTRAL),
    Rule(
        r"mistral|ministral|magistral",
        box=Box(1540, cells=56 * 55),
        grid=_rows_with_breaks(28),
        base=0,
        per_cell=1,
        source=_MISTRAL,
    ),
    # xAI: at most six tiles of 448, and one for the whole image.
    Rule(r"grok", box=Box(6 * 448, cells=6), grid=_patches(448), base=256, per_cell=256, source=_XAI),
)
_GENERIC = Rule("", box=Box(GENERIC_SIDE), source="No rule is known: the best size for most models in 2025.")


def rule_for(model: str) -> Rule:
    """The row for a model, named with or without its provider; the generic row for an unknown model."""
    name = model.rsplit("/", 1)[-1].lower()
    return next((rule for rule in RULES if re.search(rule.models, name)), _GENERIC)


def fitting(width: int, height: int, rule: Rule, detail: Detail) -> Size:
    """
    The largest size with the same aspect ratio that the model makes full use of; never larger than the image.

    Args:
        width, height: Pixels, at least 1.

        detail: "low" asks for the small size; "auto" is the same as "high".
    """
    return _shrink(width, height, rule.low if detail == "low" else rule.box, rule.grid)


def tokens(width: int, height: int, rule: Rule, detail: Detail) -> int | None:
    """Input tokens of an image that already fits; None when no formula is known."""
    if rule.base is None:
        return None
    if detail == "low" and rule.low_base is not None:
        return rule.low_base
    # Rounded first, since a multiplier such as 1.2 is not an exact float: 1250 patches are 1500 tokens, not 1501.
    return rule.base + math.ceil(round(rule.per_cell * rule.grid(width, height), 6) if rule.grid else 0)


def raw_tokens(width: int, height: int, rule: Rule, detail: Detail) -> int | None:
    """Input tokens of the original image after the provider's own scaling; None when no formula is known."""
    if detail == "auto" and rule.original is not None:
        return tokens(*_shrink(width, height, rule.original, rule.grid), rule, detail)
    box = rule.low if detail == "low" and rule.has_low_detail else rule.box
    return tokens(*_shrink(width, height, box, rule.grid), rule, detail)


def _shrink(width: int, height: int, box: Box, grid: Grid | None) -> Size:
    longest, shortest = max(width, height), min(width, height)

    def size(side: int) -> Size:
        scale = side / longest
        return max(1, round(width * scale)), max(1, round(height * scale))

    def fits(side: int) -> bool:
        # The shortest side is compared unrounded: one pixel more can add a whole row of tiles.
        short_enough = box.shortest is None or side * shortest <= box.shortest * longest
        return short_enough and (box.cells is None or grid is None or grid(*size(side)) <= box.cells)

    low, high = 1, min(longest, box.longest)
    while low < high:  # binary search works, since a larger image never has fewer cells
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return size(low)
