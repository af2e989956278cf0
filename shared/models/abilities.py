"""What a model can do: chat, look at images, or make them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from shared.errors import InvalidRequest, LLMError
from shared.models.image_options import IMAGE_PROVIDERS, OPENAI_SHAPED
from shared.models.names import model_facts
from shared.types import Candidate, TaskType

_CHAT_MODES = frozenset({"chat", "responses", "completion"})
# Models that the table often lists without saying that they look at images.
_BY_NAME = re.compile(r"vision|llava|-vl\b|pixtral|llama-4")
_IMAGE_MODES = frozenset({"image_generation", "image_edit"})

Entry = Mapping[str, Any]


def makes_images(provider: str, wire_model: str, entry: Entry | None) -> bool | None:
    """Whether a model of the price table makes images; None where the table does not know it."""
    if entry is None:
        return None
    gemini = provider == "gemini" and "-image" in wire_model
    # OpenAI's endpoint for images takes none of its chat models, whatever these can do by a tool of the provider's.
    draws = "image" in entry.get("makes", ()) and provider in IMAGE_PROVIDERS - OPENAI_SHAPED
    return entry.get("mode", "chat") in _IMAGE_MODES or gemini or draws


def sees(wire_model: str, entry: Entry | None) -> bool | None:
    """Whether a chat model looks at images; None where the table does not know it, or says less than its name."""
    if entry is None:
        return None
    if entry.get("mode", "chat") not in _CHAT_MODES:
        return False
    said = "vision" in entry.get("can", ()) or "vision" in entry.get("cannot", ())
    if not said and ("can" not in entry or _BY_NAME.search(wire_model.lower())):
        return None
    return "vision" in entry.get("can", ())


def does(task: TaskType, provider: str, wire_model: str, entry: Entry | None) -> bool | None:
    """Whether a model does what is asked; None if unknown."""
    if task is TaskType.IMAGE_GENERATION:
        return makes_images(provider, wire_model, entry)
    if task is TaskType.VISION:
        return sees(wire_model, entry)
    return None if entry is None else entry.get("mode", "chat") == "chat"


def check_task(task: TaskType, candidate: Candidate, entry: Entry | None, *, own: bool) -> None:
    """
    Refuse a model that cannot do what is asked, before anything is sent.

    Args:
        own: The user described the model, or gave its endpoint, and must know.

    Raises:
        InvalidRequest: Names models that can.
    """
    if task is TaskType.CHAT_COMPLETION:
        return
    if task is TaskType.IMAGE_GENERATION and candidate.provider not in IMAGE_PROVIDERS | {"local"}:
        raise _cannot(
            candidate,
            f"{candidate.requested} cannot be asked for images: {candidate.provider} needs a cloud login, answers "
            "with a job instead of an image, or makes none",
            task,
        )
    if candidate.provider != "local" and (
        own or does(task, candidate.provider, candidate.wire_model, entry) is not False
    ):
        return
    what = "does not make images" if task is TaskType.IMAGE_GENERATION else "does not look at images"
    raise _cannot(candidate, f"{candidate.requested} {what}", task)


def suggested(task: TaskType) -> Mapping[str, str]:
    """One known model of each provider for a task, by provider."""
    names = {TaskType.IMAGE_GENERATION: "suggested_images", TaskType.VISION: "suggested_vision"}
    found: Mapping[str, str] = model_facts()[names.get(task, "suggested")]
    return found


def _cannot(candidate: Candidate, message: str, task: TaskType) -> LLMError:
    return InvalidRequest(
        message,
        provider=candidate.provider,
        model=candidate.requested,
        hint=f"Use one such as {', '.join(list(suggested(task).values())[:3])}, or describe your own in a ModelConfig.",
    )
