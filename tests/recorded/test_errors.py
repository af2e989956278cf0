"""Every documented provider's errors, replayed from cassettes: class, status, time to wait and what was charged."""

from __future__ import annotations

import math

import pytest

from shared.errors import AllModelsFailed, LLMError
from tests.support.recording.asking import ask
from tests.support.recording.groups import GROUPS, Group
from tests.support.recording.plugin import Wire
from tests.support.recording.scenes import ERRORS, Scene

pytestmark = pytest.mark.vcr

# Statuses that are not the usual ones.
STATUSES = {("xai", "401"): 400, ("gemini", "401"): 400, ("anthropic", "overloaded"): 529}

CASES = [
    pytest.param(group, scene, id=f"{group.name}-{scene.name}")
    for group in GROUPS
    for scene in ERRORS
    if scene.name not in group.lacks
]


@pytest.mark.parametrize(("group", "scene"), CASES)
def test_errors(group: Group, scene: Scene, wire: Wire) -> None:
    """A provider's refusal is the error that it means, with its status and its time to wait, and was not charged."""
    with pytest.raises(LLMError) as caught:
        ask(group, scene, wire)
    error = caught.value
    assert type(error) is scene.error
    assert not isinstance(error, AllModelsFailed)
    usual = 503 if scene.name == "overloaded" else int(scene.name)
    assert error.status_code == STATUSES.get((group.name, scene.name), usual)
    assert error.provider == group.name
    if wire.origin != "live":
        waits = {"429": 7.0, "500": 1.0 if group.name == "together_ai" else None}
        assert error.retry_after == waits.get(scene.name)
    if scene.name == "500":
        assert error.outcome == "unknown"
        assert group.free or error.cost is None or math.isnan(error.cost)
    else:
        assert (error.outcome, error.cost) == ("rejected", 0)
