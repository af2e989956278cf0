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
_MAX_RATIONS = 1000

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

# Whose calls they are: `Scope.tenant`. What one tenant's calls meet must not steer those of another.
type Tenant = tuple[tuple[str, str], ...]
type _Key = tuple[str, str, str | None, str | None, Tenant]
type _Ration = tuple[str, str | None, Tenant]


@dataclass(slots=True)
class _State:
    failures: int = 0
    cool_until: float = 0.0
    probe_until: float = 0.0


class Cooldowns:
    """
    The health of the endpoints that one process calls, as each tenant has seen it; thread-safe.

    An endpoint is a model at a provider's address with a key. For the tenant whose calls failed, it cools down after a
    failure that names a time to wait, or after three failures in a row. After the cool-down a single request probes
    it, while the tenant's other calls still avoid it.

    Args:
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._states: dict[_Key, _State] = {}
        # For each second of the last minute: [second, first requests, retries]. The last used come last.
        self._seconds: dict[_Ration, deque[list[int]]] = {}

    def cooling(self, candidate: Candidate, tenant: Tenant = ()) -> bool:
        """Whether to avoid the candidate while others remain: it is cooling down, or being probed."""
        with self._lock:
            state = self._states.get(_key(candidate, tenant))
            return state is not None and self._clock() < max(state.cool_until, state.probe_until)

    def asks(self, candidate: Candidate, tenant: Tenant = (), *, again: bool) -> bool:
        """
        Count one request before it is sent.

        Args:
            again: Whether it is a retry: the same call has tried the candidate before.

        Returns:
            False if it must not be sent. Retries are limited to a tenth of the tenant's requests to the provider, with
            this key, in the last minute, but at least three, so that an outage does not multiply the traffic.
        """
        with self._lock:
            seconds = self._last_minute(candidate, tenant)
            if again and _is_used_up(seconds):
                return False
            seconds[-1][2 if again else 1] += 1
            state = self._states.get(_key(candidate, tenant))
            if state is not None and state.cool_until:
                state.probe_until = self._clock() + _PROBE_S
            return True

    def may_retry(self, candidate: Candidate, tenant: Tenant = ()) -> bool:
        """Whether one more retry would still be within the limit; see `asks`."""
        with self._lock:
            return not _is_used_up(self._last_minute(candidate, tenant))

    def answered(self, candidate: Candidate, tenant: Tenant = ()) -> None:
        """Record that the endpoint answered, which ends its cool-down."""
        with self._lock:
            self._states.pop(_key(candidate, tenant), None)

    def stopped(self, candidate: Candidate, tenant: Tenant = ()) -> None:
        """Record that the request ended without saying anything about the endpoint; the next one may probe it."""
        with self._lock:
            if (state := self._states.get(_key(candidate, tenant))) is not None:
                state.probe_until = 0.0

    def failed(self, candidate: Candidate, error: LLMError, tenant: Tenant = ()) -> None:
        """Record a failure; only failures of the endpoint or the key count."""
        if not isinstance(error, _ENDPOINT_FAILURES) or isinstance(error, RequestTooLarge):
            self.stopped(candidate, tenant)
            return
        with self._lock:
            state = self._states.pop(_key(candidate, tenant), None) or _State()
            self._states[_key(candidate, tenant)] = state
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

    def _last_minute(self, candidate: Candidate, tenant: Tenant) -> deque[list[int]]:
        """The counts of the last minute; the last entry is that of the current second."""
        now, ration = int(self._clock()), (candidate.provider, candidate.api_key, tenant)
        seconds = self._seconds.pop(ration, None)
        if seconds is None:
            seconds = deque()
        self._seconds[ration] = seconds
        if len(self._seconds) > _MAX_RATIONS:
            del self._seconds[next(iter(self._seconds))]
        while seconds and seconds[0][0] <= now - _WINDOW_S:
            seconds.popleft()
        if not seconds or seconds[-1][0] != now:
            seconds.append([now, 0, 0])
        return seconds


def _is_used_up(seconds: deque[list[int]]) -> bool:
    first, retries = sum([second[1] for second in seconds]), sum([second[2] for second in seconds])
    return retries >= max(MIN_RETRIES, RETRY_SHARE * first)


def _key(candidate: Candidate, tenant: Tenant) -> _Key:
    return candidate.provider, candidate.wire_model, candidate.api_base, candidate.api_key, tenant


cooldowns = Cooldowns()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=cooldowns.reset)
