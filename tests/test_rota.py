"""Whose turn it is: order, waiting, cool-downs and the end, on a clock of the test's own."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidRequest, LLMError, Overloaded, RateLimitError
from shared.health import Health
from shared.rota import Rota, Turn
from tests.test_health import Clock, candidate


def rota_of(*models: str, max_retries: int = 2, clock: Clock | None = None, health: Health | None = None) -> Rota:
    """A rota of these models."""
    clock = clock or Clock()
    return Rota([candidate(model) for model in models], health or Health(clock), max_retries=max_retries, clock=clock)


def fail(rota: Rota, turn: Turn, error: LLMError | None = None, *, left: float = math.inf) -> None:
    """Let a turn fail in a way that may be repeated."""
    rota.failed(turn, error or Overloaded(), may_repeat=True, seconds_left=left)


def test_another_model_is_asked_rather_than_waited_for() -> None:
    """While a model must be left alone, the next one is asked at once; only when all must wait is time spent."""
    clock = Clock()
    rota = rota_of("a", "b", clock=clock)
    fail(rota, first := rota.next())
    assert first.candidate.model == "a"
    assert rota.wait(0.5) == 0.0
    fail(rota, second := rota.next())
    assert second.candidate.model == "b"
    assert rota.wait(2.0) == 0.5
    clock.now += 0.5
    assert rota.next() is first


def test_retries_end() -> None:
    """Each model is asked once and then at most max_retries times more."""
    rota = rota_of("a", "b", max_retries=1)
    asked = []
    while rota.left:
        turn = rota.next()
        asked.append(turn.candidate.model)
        fail(rota, turn)
        if rota.left:
            rota.wait(0.0)
    assert asked == ["a", "a", "b", "b"]
    assert [type(error) for error in rota.errors] == [Overloaded, Overloaded]


def test_what_must_not_be_repeated_is_out() -> None:
    """A failure that asking again does not heal leaves the model out for this call."""
    rota = rota_of("a", "b")
    rota.failed(rota.next(), InvalidRequest(), may_repeat=False, seconds_left=math.inf)
    assert rota.left
    assert rota.next().candidate.model == "b"


@pytest.mark.parametrize(("retry_after", "left"), [(31.0, math.inf), (5.0, 4.0), (1e12, math.inf)])
def test_a_wait_that_is_too_long_is_not_waited_for(retry_after: float, left: float) -> None:
    """A time to wait beyond half a minute, or beyond the deadline, leaves the model out."""
    rota = rota_of("a")
    fail(rota, rota.next(), RateLimitError(retry_after=retry_after), left=left)
    assert not rota.left


def test_the_provider_says_how_long() -> None:
    """A time to wait that the provider names goes before our own pause."""
    rota = rota_of("a")
    fail(rota, rota.next(), RateLimitError(retry_after=7.0))
    assert rota.wait(0.1) == 7.0


def test_what_cools_down_comes_last() -> None:
    """A model that others found ill is passed over while any other may be asked, and asked when none is left."""
    clock = Clock()
    health = Health(clock)
    health.failed(candidate("a"), RateLimitError(retry_after=100.0))
    rota = rota_of("a", "b", max_retries=0, clock=clock, health=health)
    second = rota.next()
    assert second.candidate.model == "b"
    fail(rota, second)
    assert rota.wait(1.0) == 0.0
    assert rota.next().candidate.model == "a"


def test_the_retry_budget_ends_retries_and_not_fallback() -> None:
    """When the provider's retries are used up a failed model is not asked again, and the next one still is."""
    clock = Clock()
    health = Health(clock)
    for _ in range(3):
        health.asks(candidate("x"), again=True)
    rota = rota_of("a", "b", clock=clock, health=health)
    fail(rota, rota.next())
    rota.wait(0.0)
    assert rota.next().candidate.model == "b"
    clock = Clock()
    rota = rota_of("a", clock=clock, health=health)
    fail(rota, rota.next())
    rota.wait(0.0)
    with pytest.raises(Overloaded):
        rota.next()
    assert not rota.left


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
    rota = rota_of(*models, max_retries=max_retries, clock=clock)
    asked: dict[str, int] = dict.fromkeys(models, 0)
    story = iter(outcomes)
    while rota.left:
        try:
            turn = rota.next()
        except LLMError:
            break
        assert turn.ready_at <= clock.now
        asked[turn.candidate.model] += 1
        may_repeat, retry_after = next(story, (False, None))
        error = RateLimitError(retry_after=retry_after)
        rota.failed(turn, error, may_repeat=may_repeat, seconds_left=math.inf)
        if rota.left:
            clock.now += rota.wait(pause)
    assert all(1 <= count <= max_retries + 1 for count in asked.values())
    assert len(rota.errors) == len(models)
