"""Every documented provider's answers, replayed from cassettes: text, usage, finish reason, tool calls and cost."""

from __future__ import annotations

import pytest

from shared.errors import ContentBlocked
from tests.support.recording.asking import ask, judge
from tests.support.recording.groups import BY_NAME, GROUPS, Group
from tests.support.recording.plugin import Wire
from tests.support.recording.scenes import ANSWERS, REFUSALS, Scene

pytestmark = pytest.mark.vcr

CASES = [
    pytest.param(group, scene, id=f"{group.name}-{scene.name}")
    for group in GROUPS
    for scene in ANSWERS
    if scene.name not in group.lacks
]


@pytest.mark.parametrize(("group", "scene"), CASES)
def test_answers(group: Group, scene: Scene, wire: Wire) -> None:
    """A provider's answer gives exactly the text, counts, finish reason, tool calls and cost that its wire tells."""
    judge(ask(group, scene, wire), group, scene, wire)


@pytest.mark.parametrize(
    ("group", "scene"), [pytest.param(BY_NAME[name], scene, id=f"{name}-{scene.name}") for name, scene in REFUSALS]
)
def test_refusals(group: Group, scene: Scene, wire: Wire) -> None:
    """What a provider's content rules hold back is an error of its own, never an empty answer."""
    with pytest.raises(ContentBlocked) as caught:
        ask(group, scene, wire)
    assert (caught.value.provider, caught.value.model) == (group.name, group.named(scene.name))
