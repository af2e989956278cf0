"""What the tools for images share: what was spent so far, and previews for the agent."""

from __future__ import annotations

import re
from collections.abc import Sequence

import anyio.to_thread

from shared.analytics import costs_of, image_lineages
from shared.calls import image_id, scope_folder
from shared.config import Settings, load_settings
from shared.errors import LLMError
from shared.images import load_picture, off_loop, preview
from shared.ledger import own_filter
from shared.scope import Scope, current_scope

MAX_PREVIEWS = 4
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# What is checked of a source; more than this only a data URI has.
_HEAD_CHARS = 4000
_DAYS = 30


def is_source(text: str) -> bool:
    """Whether a text can be a path, a URL or a data URI at all."""
    return bool(text.strip()) and not _CONTROL.search(text[:_HEAD_CHARS])


async def total_cost() -> float | None:
    """US$ spent so far by this scope's labels, else in this conversation; None when nobody keeps count."""
    return await anyio.to_thread.run_sync(_total, current_scope())


def _total(inside: Scope) -> float | None:
    try:
        found: float = costs_of(own_filter(inside), _DAYS)["total_cost"]
    except LLMError:
        return None  # a report that cannot be made must not take an image with it
    return found


async def lineage_cost(path: str) -> float | None:
    """US$ for an image, what it was made from and their other edits; None when nobody keeps count."""
    return await anyio.to_thread.run_sync(_family, path, current_scope())


def _family(path: str, inside: Scope) -> float | None:
    name = image_id(path, load_settings())
    try:
        found = next((family for family in image_lineages(own_filter(inside)) if name in family.images), None)
    except LLMError:
        return None
    return None if found is None or found.unpriced_calls else found.cost


async def previews(paths: Sequence[str]) -> list[bytes] | None:
    """Small JPEGs of the images, for the agent to look at; None where AGENTSWARM_IMAGE_PREVIEW is off."""
    settings = load_settings()
    if not settings.image_preview:
        return None
    found = [await _preview(path, settings) for path in paths[:MAX_PREVIEWS]]
    return [preview for preview in found if preview is not None]


async def _preview(path: str, settings: Settings) -> bytes | None:
    """A small JPEG; None when the image cannot be read again, which is no reason to withhold the result."""
    folder = scope_folder(current_scope())
    try:
        picture = await load_picture(path, settings=settings, from_agent=False, folder=folder)
    except LLMError:
        return None
    return await off_loop(preview, picture)
