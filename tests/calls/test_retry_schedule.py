"""Whose state it is: order, waiting, cool-downs and the end, on a clock of the test's own."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.calls.cooldown import Cooldowns
from shared.calls.retry_schedule import CandidateState, RetrySchedule
from shared.errors import InvalidRequest, LLMError, Overloaded, RateLimitError
from tests.calls.test_cooldown import Clock, candidate


def rota_of(
    *models: str, max_retries: int = 2, clock: Clock | None = None, health: Cooldowns | None = None
) -> RetrySchedule:
    """A schedule of these models."""
    clock = clock or Clock()
    return RetrySchedule(
        [candidate(model) for model in models], health or Cooldowns(clock), max_retries=max_retries, clock=clock
    )


def fail(
    schedule: RetrySchedule, state: CandidateState, error: LLMError | None = None, *, left: float = math.inf
) -> None:
    """Let a state fail in a way that may be repeated."""
    schedule.failed(state, error or Overloaded(), may_repeat=True, seconds_left=left)


def test_another_model_is_asked_rather_than_waited_for() -> None:
    """While a model must be left alone, the next one is asked at once; only when all must wait is time spent."""
    clock = Clock()
    schedule = rota_of("a", "b", clock=clock)
    fail(schedule, first := schedule.next())
    assert first.candidate.model == "a"
    assert schedule.wait(0.5) == 0.0
    fail(schedule, second := schedule.next())
    assert second.candidate.model == "b"
    assert schedule.wait(2.0) == 0.5
    clock.now += 0.5
    assert schedule.next() is first


def test_retries_end() -> None:
    """Each model is asked once and then at most max_retries times more."""
    schedule = rota_of("a", "b", max_retries=1)
    asked = []
    while schedule.left:
        state = schedule.next()
        asked.append(state.candidate.model)
        fail(schedule, state)
        if schedule.left:
            schedule.wait(0.0)
    assert asked == ["a", "a", "b", "b"]
    assert [type(error) for error in schedule.errors] == [Overloaded, Overloaded]


def test_what_must_not_be_repeated_is_out() -> None:
    """A failure that asking again does not heal leaves the model out for this call."""
    schedule = rota_of("a", "b")
    schedule.failed(schedule.next(), InvalidRequest(), may_repeat=False, seconds_left=math.inf)
    assert schedule.left
    assert schedule.next().candidate.model == "b"


@pytest.mark.parametrize(("retry_after", "left"), [(31.0, math.inf), (5.0, 4.0), (1e12, math.inf)])
def test_a_wait_that_is_too_long_is_not_waited_for(retry_after: float, left: float) -> None:
    """A time to wait beyond half a minute, or beyond the deadline, leaves the model out."""
    schedule = rota_of("a")
    fail(schedule, schedule.next(), RateLimitError(retry_after=retry_after), left=left)
    assert not schedule.left


def test_the_provider_says_how_long() -> None:
    """A time to wait that the provider names goes before our own pause."""
    schedule = rota_of("a")
    fail(schedule, schedule.next(), RateLimitError(retry_after=7.0))
    assert schedule.wait(0.1) == 7.0


def test_what_cools_down_comes_last() -> None:
    """A model that others found ill is passed over while any other may be asked, and asked when none is left."""
    clock = Clock()
    health = Cooldowns(clock)
    health.failed(candidate("a"), RateLimitError(retry_after=100.0))
    schedule = rota_of("a", "b", max_retries=0, clock=clock, health=health)
    second = schedule.next()
    assert second.candidate.model == "b"
    fail(schedule, second)
    assert schedule.wait(1.0) == 0.0
    assert schedule.next().candidate.model == "a"


def test_the_retry_budget_ends_retries_and_not_fallback() -> None:
    """When the provider's retries are used up a failed model is not asked again, and the next one still is."""
    clock = Clock()
    health = Cooldowns(clock)
    for _ in range(3):
        health.asks(candidate("x"), again=True)
    schedule = rota_of("a", "b", clock=clock, health=health)
    fail(schedule, schedule.next())
    schedule.wait(0.0)
    assert schedule.next().candidate.model == "b"
    clock = Clock()
    schedule = rota_of("a", clock=clock, health=health)
    fail(schedule, schedule.next())
    schedule.wait(0.0)
    with pytest.raises(Overloaded):
        schedule.next()
    assert not schedule.left


@given(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True),
    st.integers(0, 3),
    st.lists(st.tuples(st.booleans(), st.one_of(st.none(), st.floats(0, 60))), max_size=40),
    st.floats(0, 8),
)
def test_every_call_ends(
    models: list[str], max_retries: int, outcomes: list[tuple[bool, float | None]], pause: float
) -> None:
    """Whatever fails in whatever way, no model is asked before its time or too often, and the call comes to an end."""
    clock = Clock()
    schedule = rota_of(*models, max_retries=max_retries, clock=clock)
    asked: dict[str, int] = dict.fromkeys(models, 0)
    story = iter(outcomes)
    while schedule.left:
        try:
            state = schedule.next()
        except LLMError:
            break
        assert state.ready_at <= clock.now
        asked[state.candidate.model] += 1
        may_repeat, retry_after = next(story, (False, None))
        error = RateLimitError(retry_after=retry_after)
        schedule.failed(state, error, may_repeat=may_repeat, seconds_left=math.inf)
        if schedule.left:
            clock.now += schedule.wait(pause)
    assert all(1 <= count <= max_retries + 1 for count in asked.values())
    assert len(schedule.errors) == len(models)
