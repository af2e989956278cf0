"""What the image tools share: the cost so far, and previews for the agent."""

from __future__ import annotations

import re
from collections.abc import Sequence

from shared.analytics import costs_of, image_lineages, report_off_loop
from shared.calls import image_id, scope_folder
from shared.config import Settings, load_settings
from shared.errors import LLMError
from shared.images import load_picture, off_loop, preview
from shared.ledger import own_filter
from shared.scope import Scope, current_scope

MAX_PREVIEWS = 4
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# How much of a source is checked; only a data URI is longer.
_HEAD_CHARS = 4000
_DAYS = 30


def is_source(text: str) -> bool:
    """Whether a text could be a path, a URL or a data URI."""
    return bool(text.strip()) and not _CONTROL.search(text[:_HEAD_CHARS])


async def total_cost() -> float | None:
    """US$ spent so far by this scope's labels, else in this conversation; None when unknown."""
    return await report_off_loop(_total, current_scope())


def _total(inside: Scope) -> float | None:
    try:
        total: float = costs_of(own_filter(inside), _DAYS)["total_cost"]
    except LLMError:
        return None  # a failed report must not make the image's call fail
    return total


async def lineage_cost(path: str) -> float | None:
    """US$ for an image, the images it was made from and all their edits; None when unknown."""
    return await report_off_loop(_lineage_cost, path, current_scope())


def _lineage_cost(path: str, inside: Scope) -> float | None:
    name = image_id(path, load_settings())
    try:
        lineage = next((each for each in image_lineages(own_filter(inside)) if name in each.images), None)
    except LLMError:
        return None
    return None if lineage is None or lineage.unpriced_calls else lineage.cost


async def previews(paths: Sequence[str]) -> list[bytes] | None:
    """Small JPEGs of the images, for the agent to look at; None when AGENTSWARM_IMAGE_PREVIEW is off."""
    settings = load_settings()
    if not settings.image_preview:
        return None
    jpegs = [await _preview(path, settings) for path in paths[:MAX_PREVIEWS]]
    return [jpeg for jpeg in jpegs if jpeg is not None]


async def _preview(path: str, settings: Settings) -> bytes | None:
    """A small JPEG; None if the image cannot be read again, which must not hide the result."""
    folder = scope_folder(current_scope())
    try:
        picture = await load_picture(path, settings=settings, from_agent=False, folder=folder)
    except LLMError:
        return None
    return await off_loop(preview, picture)
