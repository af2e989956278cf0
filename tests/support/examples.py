"""How many examples a property has that takes long for each."""

from __future__ import annotations

from hypothesis import settings

# More examples a test are those of a person's search, or of the soak.
_HERE = 20


def at_most(count: int) -> int:
    """As many as the profile has, but no more than `count`, or than a quarter of it where the profile has few."""
    examples = int(settings().max_examples)
    return min(examples, count if examples > _HERE else count // 4)
