"""How large an image each model really looks at, and how many input tokens it costs: one table with its sources."""

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
"""How many cells (patches or tiles) cover an image of a width and a height."""

GENERIC_SIDE = 1568
_LOW_SIDE = 768


@dataclass(frozen=True, slots=True)
class Box:
    """What a provider scales an image down to: longest side and shortest side in pixels, and cells of its grid."""

    side: int
    short: int | None = None
    cells: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """
    One row of the table.

    An image costs `base` tokens and `per` for each cell of `grid`, rounded up; without a grid it costs `base`, and with
    `base` None nobody said what it costs. `raw` is the box for an original that is sent with detail "auto", where it
    is larger than `box`. `source` says where the numbers are from, and when it was read.
    """

    models: str
    box: Box
    grid: Grid | None = None
    base: int | None = None
    per: float = 0.0
    low: Box = Box(_LOW_SIDE)
    low_base: int | None = None
    raw: Box | None = None
    source: str = ""

    @property
    def most(self) -> int | None:
        """The most tokens that one image can cost; None when no maximum is documented."""
        if self.base is None or (self.grid and not self.box.cells):
            return None
        return self.base + math.ceil(self.per * (self.box.cells or 0))


def _patches(pixels: int) -> Grid:
    return lambda width, height: math.ceil(width / pixels) * math.ceil(height / pixels)


def _rows_with_breaks(pixels: int) -> Grid:
    return lambda width, height: (math.ceil(width / pixels) + 1) * math.ceil(height / pixels)


def _gemini_tiles(width: int, height: int) -> int:
    if max(width, height) <= 384:
        return 1
    unit = max(1, int(min(width, height) / 1.5))
    return math.ceil(width / unit) * math.ceil(height / unit)


_TILE = _patches(512)
_PATCH = _patches(32)
# Scaled into 2048 x 2048 and to a shortest side of 768, an image has at most 4 x 2 tiles.
_TILED = Box(2048, short=768, cells=8)
_SMALL_PATCHED = Box(2048, cells=6144)
_PATCHED = Box(2048, cells=2500)
_LOW_512 = Box(512)

_OPENAI = "https://developers.openai.com/api/docs/guides/images-vision, stored copies of March and September 2026"
_OPENAI_MEASURED = f"{_OPENAI}; multiplier as users measured it, the guide's own was higher in March 2026"
_ANTHROPIC = "https://platform.claude.com/docs/en/build-with-claude/vision, stored copies up to September 2026"
_GEMINI = "https://ai.google.dev/gemini-api/docs/image-understanding and /media-resolution, stored copies of 2026"
_MISTRAL = "https://mistralai.github.io/mistral-common/usage/images and the models' public configurations, 2026"
_XAI = "https://awesomeagents.ai/guides/ai-vision-image-resolution-limits, March 2026: not the provider's own word"

# The first row whose pattern is found in the model's own name counts, whoever hosts it (Azure, OpenRouter, Bedrock).
RULES: tuple[Rule, ...] = (
    # OpenAI, tiles of 512: detail "low" is the base alone.
    Rule(r"gpt-4o-mini", _TILED, _TILE, 2833, 5667, _LOW_512, 2833, source=_OPENAI),
    Rule(r"computer-use-preview", _TILED, _TILE, 65, 129, _LOW_512, 65, source=_OPENAI),
    Rule(r"^o[13](?!\d)", _TILED, _TILE, 75, 150, _LOW_512, 75, source=_OPENAI),
    # OpenAI, patches of 32, times a multiplier.
    Rule(r"gpt-4\.1-mini", _SMALL_PATCHED, _PATCH, 0, 1.62, _LOW_512, source=_OPENAI),
    Rule(r"gpt-4\.1-nano", _SMALL_PATCHED, _PATCH, 0, 2.46, _LOW_512, source=_OPENAI),
    Rule(r"^(o4-mini|codex-mini)", _SMALL_PATCHED, _PATCH, 0, 1.72, _LOW_512, source=_OPENAI),
    Rule(r"gpt-5-mini|gpt-5(\.1)?-codex-mini", _SMALL_PATCHED, _PATCH, 0, 1.2, _LOW_512, source=_OPENAI_MEASURED),
    Rule(r"gpt-5-nano", _SMALL_PATCHED, _PATCH, 0, 1.5, _LOW_512, source=_OPENAI_MEASURED),
    Rule(r"gpt-5\.[23](?!\d)", _SMALL_PATCHED, _PATCH, 0, 1.2, _LOW_512, source=_OPENAI_MEASURED),
    Rule(r"gpt-5\.4(?!\d)", _PATCHED, _PATCH, 0, 1.2, _LOW_512, source=_OPENAI_MEASURED),
    # From here on "auto" keeps the original's own size.
    Rule(r"gpt-5\.5(?!\d)", _PATCHED, _PATCH, 0, 1.2, _LOW_512, raw=Box(6000, cells=10_000), source=_OPENAI),
    Rule(
        r"gpt-(5\.([6-9]|\d\d)|[6-9]|\d\d)(?!\d)",
        _PATCHED,
        _PATCH,
        0,
        1.2,
        _LOW_512,
        raw=Box(65_535, cells=30_000),
        source=_OPENAI,
    ),
    Rule(r"gpt-5(?!\.?\d)|gpt-5\.1(?!\d)", _TILED, _TILE, 70, 140, _LOW_512, 70, source=_OPENAI),
    Rule(r"gpt-4o|gpt-4\.[15]|gpt-4-(turbo|vision)", _TILED, _TILE, 85, 170, _LOW_512, 85, source=_OPENAI),
    # Anthropic, patches of 28: one token each. Before Claude 4.7, then after it.
    Rule(
        r"claude-(3|(opus|sonnet|haiku)-(3|4(-[0-6])?(?!-?\d(?!\d))|4-20\d+)|[34]-(opus|sonnet|haiku)|haiku-4|instant)",
        Box(1568, cells=1568),
        _patches(28),
        0,
        1,
        source=_ANTHROPIC,
    ),
    Rule(r"claude", Box(2576, cells=4784), _patches(28), 0, 1, source=_ANTHROPIC),
    # Gemini: tiles up to 2.5, a fixed budget after it.
    Rule(r"gemini-(1|2)", Box(3072), _gemini_tiles, 0, 258, Box(384), source=_GEMINI),
    Rule(r"gemini", Box(3072), None, 1120, low_base=280, source=_GEMINI),
    # Mistral: a token per patch, and one at the end of each row.
    Rule(r"pixtral", Box(1024, cells=65 * 64), _rows_with_breaks(16), 0, 1, source=_MISTRAL),
    Rule(r"mistral|ministral|magistral", Box(1540, cells=56 * 55), _rows_with_breaks(28), 0, 1, source=_MISTRAL),
    # xAI: tiles of 448, at most six, and one for the whole.
    Rule(r"grok", Box(6 * 448, cells=6), _patches(448), 256, 256, source=_XAI),
)
_GENERIC = Rule("", Box(GENERIC_SIDE), source="No rule is known: the size that was best for most models in 2025.")


def rule_for(model: str) -> Rule:
    """The row for a model, named with or without its provider; the generic one for a model that nobody knows."""
    name = model.rsplit("/", 1)[-1].lower()
    return next((rule for rule in RULES if re.search(rule.models, name)), _GENERIC)


def fitting(width: int, height: int, rule: Rule, detail: Detail) -> Size:
    """
    The largest size of the same shape that the model makes full use of, never larger than the image is.

    Args:
        width, height: Pixels, from 1.

        detail: "low" asks for the small size; "auto" is the same as "high".
    """
    return _shrunk(width, height, rule.low if detail == "low" else rule.box, rule.grid)


def tokens(width: int, height: int, rule: Rule, detail: Detail) -> int | None:
    """Input tokens of an image that fits; None when no formula is known."""
    if rule.base is None:
        return None
    if detail == "low" and rule.low_base is not None:
        return rule.low_base
    # A multiplier such as 1.2 is no exact float: 1250 patches are 1500 tokens and not 1501.
    return rule.base + math.ceil(round(rule.per * rule.grid(width, height), 6) if rule.grid else 0)


def raw_tokens(width: int, height: int, rule: Rule, detail: Detail) -> int | None:
    """What the image would cost as it is, after the provider's own scaling; None when no formula is known."""
    if detail == "auto" and rule.raw is not None:
        return tokens(*_shrunk(width, height, rule.raw, rule.grid), rule, detail)
    # Where the provider has no switch for it, "low" is our own doing.
    box = rule.low if detail == "low" and rule.low is _LOW_512 else rule.box
    return tokens(*_shrunk(width, height, box, rule.grid), rule, detail)


def _shrunk(width: int, height: int, box: Box, grid: Grid | None) -> Size:
    longest, shortest = max(width, height), min(width, height)

    def size(side: int) -> Size:
        scale = side / longest
        return max(1, round(width * scale)), max(1, round(height * scale))

    def fits(side: int) -> bool:
        # Not by the rounded size: one pixel more on the longest side can mean a whole row of tiles more.
        short_enough = box.short is None or side * shortest <= box.short * longest
        return short_enough and (box.cells is None or grid is None or grid(*size(side)) <= box.cells)

    low, high = 1, min(longest, box.side)
    while low < high:  # a larger image never has fewer cells
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return size(low)
