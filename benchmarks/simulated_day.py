"""A simulated day: 1,000 mixed requests for benchmarks/savings.py, fixed by a seed.

Nothing here was measured. The mix, the lengths, the difficulty of each request, the skill of each class of model and
the reliability of a check are assumptions, written down before the strategies that are compared on them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

SEED = 20261128
REQUESTS = 1000
# A model is right if its skill is above the request's difficulty (uniform from 0 to 1).
SKILL: Mapping[str, float] = {"small": 0.70, "medium": 0.82, "large": 0.90}
# How often a check in code finds a wrong answer, and how often it refuses a right one.
FINDS_WRONG = 0.60
REFUSES_RIGHT = 0.05


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request: its share of the day, and ranges of tokens."""

    name: str
    share: float
    fixed: int
    """Tokens at the start that all requests of the kind have in common: instructions and tools."""
    own: tuple[int, int]
    output: tuple[int, int]
    turns: tuple[int, int] = (1, 1)
    can_wait: bool = False
    checkable: bool = False


KINDS = (
    Kind("extract", 0.25, fixed=400, own=(200, 1500), output=(30, 200), checkable=True),
    Kind("summarise", 0.20, fixed=150, own=(1500, 12_000), output=(150, 500), can_wait=True),
    Kind("answer", 0.20, fixed=300, own=(20, 400), output=(80, 600)),
    Kind("classify", 0.10, fixed=900, own=(50, 400), output=(5, 20), can_wait=True, checkable=True),
    # One request for each turn; each turn adds its own tokens and its answer to the conversation.
    Kind("agent", 0.25, fixed=10_000, own=(60, 400), output=(60, 400), turns=(5, 20), checkable=True),
)


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """One request of the day; `history` are tokens of the conversation before it, `draw` decides what a check says."""

    second: float
    kind: Kind
    conversation: int
    turn: int
    history: int
    own: int
    output: int
    difficulty: float
    draw: float

    @property
    def prompt(self) -> int:
        """Tokens of the whole prompt."""
        return self.kind.fixed + self.history + self.own

    def is_right(self, size: str) -> bool:
        """Whether a model of a class answers rightly."""
        return self.difficulty < SKILL[size]

    def is_accepted(self, size: str) -> bool:
        """Whether a check in code accepts that answer."""
        return self.draw >= REFUSES_RIGHT if self.is_right(size) else self.draw >= FINDS_WRONG


def requests() -> list[SimulatedRequest]:
    """The requests of the day in the order of their time, always the same."""
    rng = random.Random(SEED)  # noqa: S311 - a simulation, not a secret
    found: list[SimulatedRequest] = []
    for number, kind in enumerate(KINDS):
        left, conversation = round(kind.share * REQUESTS), 1000 * number
        while left:
            turns = min(left, rng.randint(*kind.turns))
            found += _conversation(rng, kind, conversation, turns)
            left, conversation = left - turns, conversation + 1
    return sorted(found, key=lambda each: each.second)


def _conversation(rng: random.Random, kind: Kind, number: int, turns: int) -> list[SimulatedRequest]:
    second, history = rng.uniform(8, 18) * 3600, 0
    found = []
    for turn in range(turns):
        own, output = rng.randint(*kind.own), rng.randint(*kind.output)
        found.append(SimulatedRequest(second, kind, number, turn, history, own, output, rng.random(), rng.random()))
        history += own + output
        # A tool answers in seconds; now and then a person is asked, and takes minutes.
        second += rng.uniform(3, 40) if rng.random() < 0.9 else rng.uniform(60, 900)
    return found
