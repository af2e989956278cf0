"""The retry schedule: order, waiting, cool-downs and the end, on a clock of the test's own."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from shared.calls.cooldown import Cooldowns
from shared.calls.retry_schedule import CandidateState, RetrySchedule
from shared.errors import InvalidRequest, LLMError, Overloaded, RateLimitError
from tests.support.retries import Clock, candidate


def schedule_of(
    *models: str, max_retries: int = 2, clock: Clock | None = None, cooldowns: Cooldowns | None = None
) -> RetrySchedule:
    """A schedule of these models."""
    clock = clock or Clock()
    return RetrySchedule(
        [candidate(model) for model in models], cooldowns or Cooldowns(clock), max_retries=max_retries, clock=clock
    )


def fail(
    schedule: RetrySchedule,
    state: CandidateState,
    error: LLMError | None = None,
    *,
    pause: float = 0.0,
    left: float = math.inf,
) -> None:
    """Let a model fail in a way that may be repeated."""
    schedule.failed(state, error or Overloaded(), may_repeat=True, pause=pause, seconds_left=left)


def test_another_model_is_asked_rather_than_waited_for() -> None:
    """While a model must be left alone, the next one is asked at once; only when all must wait is time spent."""
    clock = Clock()
    schedule = schedule_of("a", "b", clock=clock)
    fail(schedule, first := schedule.next(), pause=0.5)
    assert first.candidate.model == "a"
    assert schedule.wait() == 0.0
    fail(schedule, second := schedule.next(), pause=2.0)
    assert second.candidate.model == "b"
    assert schedule.wait() == 0.5
    clock.now += 0.5
    assert schedule.next() is first


def test_retries_end() -> None:
    """Each model is asked once and then at most max_retries times more."""
    schedule = schedule_of("a", "b", max_retries=1)
    asked = []
    while schedule.left:
        state = schedule.next()
        asked.append(state.candidate.model)
        fail(schedule, state)
    assert asked == ["a", "a", "b", "b"]
    assert [type(error) for error in schedule.errors] == [Overloaded, Overloaded]


def test_what_must_not_be_repeated_is_out() -> None:
    """A failure that asking again does not heal leaves the model out for this call."""
    schedule = schedule_of("a", "b")
    schedule.failed(schedule.next(), InvalidRequest(), may_repeat=False, pause=0.0, seconds_left=math.inf)
    assert schedule.left
    assert schedule.next().candidate.model == "b"


@pytest.mark.parametrize(("retry_after", "left"), [(31.0, math.inf), (5.0, 4.0), (1e12, math.inf)])
def test_a_wait_that_is_too_long_is_not_waited_for(retry_after: float, left: float) -> None:
    """A time to wait beyond half a minute, or beyond the deadline, leaves the model out."""
    schedule = schedule_of("a")
    fail(schedule, schedule.next(), RateLimitError(retry_after=retry_after), left=left)
    assert not schedule.left


def test_the_provider_says_how_long() -> None:
    """A time to wait that the provider names goes before our own pause."""
    schedule = schedule_of("a")
    fail(schedule, schedule.next(), RateLimitError(retry_after=7.0), pause=0.1)
    assert schedule.wait() == 7.0


def test_what_cools_down_comes_last() -> None:
    """A model that others found ill is passed over while any other may be asked, and asked when none is left."""
    clock = Clock()
    cooldowns = Cooldowns(clock)
    cooldowns.failed(candidate("a"), RateLimitError(retry_after=100.0))
    schedule = schedule_of("a", "b", max_retries=0, clock=clock, cooldowns=cooldowns)
    second = schedule.next()
    assert second.candidate.model == "b"
    fail(schedule, second, pause=1.0)
    assert schedule.wait() == 0.0
    assert schedule.next().candidate.model == "a"


def test_the_retry_budget_ends_retries_and_not_fallback() -> None:
    """When the provider's retries are used up a failed model is not asked again, and the next one still is."""
    clock = Clock()
    cooldowns = Cooldowns(clock)
    for _ in range(2):
        cooldowns.asks(candidate("x"), again=True)
    late = schedule_of("a", clock=clock, cooldowns=cooldowns)
    fail(late, late.next())
    assert late.left
    cooldowns.asks(candidate("x"), again=True)
    schedule = schedule_of("a", "b", clock=clock, cooldowns=cooldowns)
    fail(schedule, schedule.next())
    assert schedule.next().candidate.model == "b"
    # Another call took the last retry meanwhile.
    with pytest.raises(Overloaded):
        late.next()
    assert not late.left
    alone = schedule_of("a", clock=clock, cooldowns=cooldowns)
    fail(alone, alone.next())
    assert not alone.left


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
    schedule = schedule_of(*models, max_retries=max_retries, clock=clock)
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
        schedule.failed(state, error, may_repeat=may_repeat, pause=pause, seconds_left=math.inf)
        if schedule.left:
            clock.now += schedule.wait()
    assert all(1 <= count <= max_retries + 1 for count in asked.values())
    assert len(schedule.errors) == len(models)
