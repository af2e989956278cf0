"""What the process knows of endpoints: cool-downs, probes and the retry budget, on a clock of the test's own."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from shared.calls.cooldown import COOL_DOWN_S, MAX_COOL_DOWN_S, Cooldowns
from shared.errors import (
    AuthenticationError,
    InvalidRequest,
    LLMError,
    Overloaded,
    ProviderUnavailable,
    RateLimitError,
    RequestTooLarge,
)
from tests.support.retries import Clock, candidate


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still until it is moved."""
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Cooldowns:
    """A health of the test's own."""
    return Cooldowns(clock)


def test_a_time_to_wait_cools_down_at_once(health: Cooldowns, clock: Clock) -> None:
    """A failure that says how long to wait keeps everybody away for that long, and no longer."""
    health.failed(candidate(), RateLimitError(retry_after=20.0))
    assert health.cooling(candidate())
    clock.now += 19.9
    assert health.cooling(candidate())
    clock.now += 0.2
    assert not health.cooling(candidate())


def test_an_absurd_time_to_wait_is_capped(health: Cooldowns, clock: Clock) -> None:
    """No provider can talk us out of asking it for more than five minutes."""
    health.failed(candidate(), RateLimitError(retry_after=1e9))
    clock.now += MAX_COOL_DOWN_S + 1
    assert not health.cooling(candidate())


def test_three_failures_in_a_row(health: Cooldowns, clock: Clock) -> None:
    """The third failure in a row cools down; an answer in between starts the count anew."""
    health.failed(candidate(), Overloaded())
    health.failed(candidate(), ProviderUnavailable())
    health.answered(candidate())
    for error in (AuthenticationError(), RateLimitError()):
        health.failed(candidate(), error)
        assert not health.cooling(candidate())
    health.failed(candidate(), ProviderUnavailable())
    assert health.cooling(candidate())
    clock.now += COOL_DOWN_S + 0.1
    assert not health.cooling(candidate())


@pytest.mark.parametrize("error", [InvalidRequest(), RequestTooLarge(retry_after=5.0), LLMError()])
def test_a_fault_of_the_request_says_nothing_of_the_endpoint(error: LLMError, health: Cooldowns) -> None:
    """Bad requests of one caller never keep others away from a model."""
    for _ in range(5):
        health.failed(candidate(), error)
    assert not health.cooling(candidate())


def test_endpoints_are_apart(health: Cooldowns) -> None:
    """A key that is used up does not cool down another key, nor another model."""
    health.failed(candidate(key="one"), RateLimitError(retry_after=20.0))
    assert health.cooling(candidate(key="one"))
    assert not health.cooling(candidate(key="two"))
    assert not health.cooling(candidate("b", key="one"))


def test_one_probe(health: Cooldowns, clock: Clock) -> None:
    """After a cool-down one request tries the endpoint out, and the others stay away until it has ended."""
    health.failed(candidate(), RateLimitError(retry_after=20.0))
    clock.now += 21
    assert health.asks(candidate(), again=False)
    assert health.cooling(candidate())
    health.stopped(candidate())
    assert not health.cooling(candidate())
    assert health.asks(candidate(), again=False)
    health.failed(candidate(), ProviderUnavailable(retry_after=10.0))
    assert health.cooling(candidate())
    clock.now += 11
    assert health.asks(candidate(), again=False)
    health.answered(candidate())
    assert not health.cooling(candidate())


def test_a_probe_that_never_ends_is_forgotten(health: Cooldowns, clock: Clock) -> None:
    """A probe whose caller was killed does not keep others away for ever."""
    health.failed(candidate(), RateLimitError(retry_after=1.0))
    clock.now += 2
    health.asks(candidate(), again=False)
    clock.now += 61
    assert not health.cooling(candidate())


def test_retries_are_a_tenth(health: Cooldowns, clock: Clock) -> None:
    """Of a minute's requests one in ten may be a retry, and three in any case."""
    assert [health.asks(candidate(), again=True) for _ in range(5)] == [True, True, True, False, False]
    for _ in range(100):
        assert health.asks(candidate(), again=False)
    assert sum(health.asks(candidate(), again=True) for _ in range(50)) == 7
    clock.now += 60
    assert sum(health.asks(candidate(), again=True) for _ in range(50)) == 3


def test_tenants_are_apart(health: Cooldowns) -> None:
    """Each tenant has its own cool-downs and retries; the key is part of both."""
    here, there = (("customer", "a"),), (("customer", "b"),)
    health.failed(candidate(), RateLimitError(retry_after=20.0), here)
    assert [health.cooling(candidate(), tenant) for tenant in (here, there, ())] == [True, False, False]
    health.answered(candidate(), there)
    health.stopped(candidate(), there)
    assert health.cooling(candidate(), here)
    while health.asks(candidate(), here, again=True):
        pass
    assert not health.may_retry(candidate(), here)
    assert health.may_retry(candidate(), there)
    assert health.may_retry(candidate(), ())
    assert health.may_retry(replace(candidate(), api_key="sk-another"), here)


def test_the_memory_of_retries_is_bounded(health: Cooldowns) -> None:
    """However many tenants there are, only the latest are remembered; one that calls all the time is among them."""
    busy = (("customer", "busy"),)
    for number in range(3000):
        health.asks(candidate(), (("customer", str(number)),), again=False)
        health.asks(candidate(), busy, again=True)
    assert len(health._seconds) == 1000
    assert not health.may_retry(candidate(), busy)


def test_memory_is_bounded(health: Cooldowns) -> None:
    """Whatever names are asked for, only so many endpoints are remembered, the latest ones."""
    for number in range(3000):
        health.failed(candidate(f"m{number}"), RateLimitError(retry_after=20.0))
    assert len(health._states) == 1000
    assert health.cooling(candidate("m2999"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_starts_afresh() -> None:
    """A forked process neither waits for its parent's lock nor knows its parent's failures."""
    from shared.calls.cooldown import cooldowns as shared

    shared.failed(candidate(), RateLimitError(retry_after=20.0))
    with shared._lock:
        child = os.fork()
        if child == 0:
            os._exit(int(shared.cooling(candidate())))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    shared.reset()
