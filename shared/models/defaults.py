"""The model for a task when a call names none."""

from __future__ import annotations

from collections.abc import Sequence

from shared.config import Settings
from shared.models.abilities import suggested
from shared.models.keys import has_key, provider_base
from shared.types import TaskType

_FIELDS = {
    TaskType.CHAT_COMPLETION: "default_text_model",
    TaskType.VISION: "default_vision_model",
    TaskType.IMAGE_GENERATION: "default_image_model",
}


def default_model(task: TaskType, settings: Settings) -> str:
    """The default model for a task, from the settings."""
    return str(getattr(settings, _FIELDS[task]))


def default_variable(task: TaskType) -> str:
    """The environment variable that sets the default model for a task."""
    return str(Settings.model_fields[_FIELDS[task]].validation_alias)


def default_by_key(task: TaskType, settings: Settings) -> str | None:
    """
    The model that stands in for a default that nobody chose and that has no key.

    It is the one that this package suggests for the provider whose key is set, if that is the key of just one provider:
    a key in the environment is no permission to send data to one of several.

    Returns:
        None when the default stays: it was chosen, or can be called, or it is not clear what to use instead.
    """
    provider = default_model(task, settings).partition("/")[0]
    if _FIELDS[task] in settings.model_fields_set or has_key(provider) or provider_base(provider):
        return None
    found = keyed_providers()
    return suggested(task).get(found[0]) if len(found) == 1 else None


def keyed_providers() -> Sequence[str]:
    """The providers that this package suggests models of, and whose key is set."""
    return [provider for provider in suggested(TaskType.CHAT_COMPLETION) if has_key(provider)]
