"""What tests of waiting share: a clock that they set, and models at one provider."""

from __future__ import annotations

from shared.prices import FREE
from shared.types import Candidate


class Clock:
    """Seconds, as the test sets them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def candidate(model: str = "a", key: str | None = None) -> Candidate:
    """A model at one provider."""
    return Candidate(model, model, "openai", model, rates=FREE, api_key=key)
