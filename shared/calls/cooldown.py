"""The recent health of endpoints: which are cooling down, and how many retries are still allowed."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from shared.errors import (
    AuthenticationError,
    BadResponse,
    LLMError,
    ModelNotFound,
    ProviderTimeout,
    ProviderUnavailable,
    QuotaExhausted,
    RateLimitError,
    RequestTooLarge,
)
from shared.types import Candidate

FAILURES_IN_A_ROW = 3
COOL_DOWN_S = 30.0
MAX_COOL_DOWN_S = 300.0
RETRY_SHARE = 0.1
MIN_RETRIES = 3
_PROBE_S = 60.0
_WINDOW_S = 60
_MAX_ENDPOINTS = 1000

# Failures of the endpoint or the key; all others are the request's own fault.
_ENDPOINT_FAILURES = (
    AuthenticationError,
    BadResponse,
    ModelNotFound,
    ProviderTimeout,
    ProviderUnavailable,
    QuotaExhausted,
    RateLimitError,
)

_Key = tuple[str, str, str | None, str | None]


@dataclass(slots=True)
class _State:
    failures: int = 0
    cool_until: float = 0.0
    probe_until: float = 0.0


class Cooldowns:
    """
    The health of the endpoints that one process calls; thread-safe.

    An endpoint is a model at a provider's address with a key. It cools down after a failure that names a time to wait,
    or after three failures in a row. After the cool-down a single request probes it, while other calls still avoid it.

    Args:
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._states: dict[_Key, _State] = {}
        # By provider, for each second of the last minute: [second, first requests, retries].
        self._seconds: dict[str, deque[list[int]]] = {}

    def cooling(self, candidate: Candidate) -> bool:
        """Whether to avoid the candidate while others remain: it is cooling down, or being probed."""
        with self._lock:
            state = self._states.get(_key(candidate))
            return state is not None and self._clock() < max(state.cool_until, state.probe_until)

    def asks(self, candidate: Candidate, *, again: bool) -> bool:
        """
        Count one request before it is sent.

        Args:
            again: Whether it is a retry: the same call has tried the candidate before.

        Returns:
            False if it must not be sent. Retries are limited to a tenth of the provider's requests in the last minute,
            but at least three, so that an outage does not multiply the traffic.
        """
        with self._lock:
            first, retries = self._count(candidate.provider)
            if again and retries >= max(MIN_RETRIES, RETRY_SHARE * first):
                return False
            self._seconds[candidate.provider][-1][2 if again else 1] += 1
            state = self._states.get(_key(candidate))
            if state is not None and state.cool_until:
                state.probe_until = self._clock() + _PROBE_S
            return True

    def may_retry(self, candidate: Candidate) -> bool:
        """Whether one more retry would still be within the limit; see `asks`."""
        with self._lock:
            first, retries = self._count(candidate.provider)
            return retries < max(MIN_RETRIES, RETRY_SHARE * first)

    def answered(self, candidate: Candidate) -> None:
        """Record that the endpoint answered, which ends its cool-down."""
        with self._lock:
            self._states.pop(_key(candidate), None)

    def stopped(self, candidate: Candidate) -> None:
        """Record that the request ended without saying anything about the endpoint; the next one may probe it."""
        with self._lock:
            if (state := self._states.get(_key(candidate))) is not None:
                state.probe_until = 0.0

    def failed(self, candidate: Candidate, error: LLMError) -> None:
        """Record a failure; only failures of the endpoint or the key count."""
        if not isinstance(error, _ENDPOINT_FAILURES) or isinstance(error, RequestTooLarge):
            self.stopped(candidate)
            return
        with self._lock:
            state = self._states.pop(_key(candidate), None) or _State()
            self._states[_key(candidate)] = state
            if len(self._states) > _MAX_ENDPOINTS:
                del self._states[next(iter(self._states))]
            state.failures += 1
            state.probe_until = 0.0
            if error.retry_after is not None:
                state.cool_until = self._clock() + min(error.retry_after, MAX_COOL_DOWN_S)
            elif state.failures >= FAILURES_IN_A_ROW:
                state.cool_until = self._clock() + COOL_DOWN_S

    def reset(self) -> None:
        """Forget everything, with a new lock: in a forked process, the parent may have held the old one."""
        self._lock = threading.Lock()
        self._states.clear()
        self._seconds.clear()

    def _count(self, provider: str) -> tuple[int, int]:
        """First requests and retries of the last minute; makes sure that the last entry is the current second."""
        now = int(self._clock())
        seconds = self._seconds.setdefault(provider, deque())
        while seconds and seconds[0][0] <= now - _WINDOW_S:
            seconds.popleft()
        if not seconds or seconds[-1][0] != now:
            seconds.append([now, 0, 0])
        return sum([second[1] for second in seconds]), sum([second[2] for second in seconds])


def _key(candidate: Candidate) -> _Key:
    return candidate.provider, candidate.wire_model, candidate.api_base, candidate.api_key


cooldowns = Cooldowns()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=cooldowns.reset)
