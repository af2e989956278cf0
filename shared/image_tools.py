"""What the tools for images share: the total so far, previews for the agent, and which images a host can show."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import anyio.to_thread

from shared import media
from shared.analytics import costs_of, image_families
from shared.base_tool import BaseTool, as_outputs
from shared.config import Settings, load_settings
from shared.errors import LLMError
from shared.image_calls import image_id, scope_folder
from shared.ledger_query import Filter
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
        found: float = costs_of(_own(inside), _DAYS)["total_cost"]
    except LLMError:
        return None  # a report that cannot be made must not take an image with it
    return found


async def family_cost(path: str) -> float | None:
    """US$ for an image, what it was made from and their other edits; None when nobody keeps count."""
    return await anyio.to_thread.run_sync(_family, path, current_scope())


def _family(path: str, inside: Scope) -> float | None:
    name = image_id(path, load_settings())
    try:
        found = next((family for family in image_families(_own(inside)) if name in family.images), None)
    except LLMError:
        return None
    return None if found is None or found.unpriced_calls else found.cost


def _own(inside: Scope) -> Filter:
    """What the agent may know of: the costs of its scope's labels, else of its conversation."""
    return Filter(
        labels=inside.labels,
        conversation=inside.conversation,
        any_conversation=bool(inside.labels) or not inside.from_agent,
    )


async def shown(tool: BaseTool, result: Mapping[str, Any], paths: Sequence[str]) -> Any:
    """The result as text, with previews of its images where the host shows them to its model."""
    settings = load_settings()
    if not settings.image_preview or _only_text(tool):
        return dict(result)
    previews = [await _preview(path, settings) for path in paths[:MAX_PREVIEWS]]
    return as_outputs(result, [preview for preview in previews if preview is not None])


def _only_text(tool: BaseTool) -> bool:
    """Whether the host writes all results down as text, as agency-swarm's MCP and HTTP servers do."""
    return isinstance(tool.context, Mapping)


async def _preview(path: str, settings: Settings) -> bytes | None:
    """A small JPEG; None when the image cannot be read again, which is no reason to withhold the result."""
    folder = scope_folder(current_scope())
    try:
        picture = await media.load_picture(path, settings=settings, from_agent=False, folder=folder)
    except LLMError:
        return None
    return await media.off_loop(media.preview, picture)
