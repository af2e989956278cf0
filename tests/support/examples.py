"""How many examples a property has that takes long for each."""

from __future__ import annotations

from hypothesis import settings


def at_most(count: int) -> int:
    """As many as the profile has, which is few here and many in the soak, but no more than `count`."""
    return min(int(settings().max_examples), count)
