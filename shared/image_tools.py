"""What the tools for images share: the total so far, previews for the agent, and which images a host can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import anyio.to_thread

from shared import media
from shared.analytics import costs_of
from shared.base_tool import BaseTool, as_outputs
from shared.config import Settings, load_settings
from shared.errors import LLMError
from shared.image_calls import scope_folder
from shared.ledger_query import Filter
from shared.scope import Scope, current_scope

MAX_PREVIEWS = 4
_DAYS = 30


async def total_cost() -> float | None:
    """US$ spent so far by this scope's labels, else in this conversation; None when nobody keeps count."""
    return await anyio.to_thread.run_sync(_total, current_scope())


def _total(inside: Scope) -> float | None:
    own = Filter(
        labels=inside.labels,
        conversation=inside.conversation,
        any_conversation=bool(inside.labels) or not inside.from_agent,
    )
    try:
        found: float = costs_of(own, _DAYS)["total_cost"]
    except LLMError:
        return None  # a report that cannot be made must not take an image with it
    return found


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
