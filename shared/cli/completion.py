"""What the shell completes: names of models and providers; a setting that is wrong completes nothing, in silence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

# Packages, not names out of them: every command loads this module, and none needs what it completes.
from shared import ledger, models
from shared.config import database_url, load_settings
from shared.errors import LLMError


def complete_model(incomplete: str) -> Iterator[str]:
    """The models whose name begins with what was typed."""
    return (known.name for known in _models() if known.name.startswith(incomplete))


def complete_image_model(incomplete: str) -> Iterator[str]:
    """The models that make images and whose name begins with what was typed."""
    for known in _models():
        if known.name.startswith(incomplete) and models.makes_images(known.provider, known.wire_model, known.entry):
            yield known.name


def complete_provider(incomplete: str) -> Iterator[str]:
    """The providers whose name begins with what was typed."""
    yield from dict.fromkeys(known.provider for known in _models() if known.provider.startswith(incomplete))


def complete_group(incomplete: str) -> Iterator[str]:
    """What a report can be grouped by, the ledger's labels too; behind a comma, the second dimension."""
    before, comma, last = incomplete.rpartition(",")
    names = ["model", "provider", "tool", "agent", *ledger.GRAINS]
    with suppress(LLMError):
        names += ledger.label_names(ledger.get_ledger(database_url(load_settings())))
    for name in names:
        if name.startswith(last) and name != before:
            yield f"{before}{comma}{name}"


def _models() -> list[models.KnownModel]:
    with suppress(LLMError):
        return models.listed_models(models.Catalogue.load(load_settings()))
    return []
