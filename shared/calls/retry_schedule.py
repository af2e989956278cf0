"""The retry schedule: which model of a call is tried next, and when."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.calls.cooldown import Cooldowns, Tenant
from shared.errors import LLMError
from shared.types import Candidate

MAX_RETRY_AFTER_S = 30.0


@dataclass(slots=True)
class CandidateState:
    """One model of the call: the number of tries, when it may be tried again, and its last error."""

    candidate: Candidate
    tries: int = 0
    ready_at: float = 0.0
    pause: float = 0.0
    error: LLMError | None = None
    out: bool = False


class RetrySchedule:
    """
    The order in which a call tries its models.

    The next model is the first in the caller's order that is ready. A model that must wait is skipped while another is
    ready, and one that is cooling down is skipped while any other remains.

    Args:
        candidates: The models in the caller's order.

        cooldowns: The health of the endpoints in this process.

        max_retries: Maximum retries for each model.

        tenant: Whose call it is: other tenants' failures do not count.

        clock: Monotonic clock, in seconds.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        cooldowns: Cooldowns,
        *,
        max_retries: int,
        tenant: Tenant = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.states = [CandidateState(candidate) for candidate in candidates]
        self._cooldowns = cooldowns
        self._max_retries = max_retries
        self._tenant = tenant
        self._clock = clock
        self._chosen: CandidateState | None = None

    @property
    def left(self) -> bool:
        """Whether any model may still be tried."""
        return any(not state.out for state in self.states)

    def has_others(self, state: CandidateState) -> bool:
        """Whether any other model may still be tried."""
        return any(other is not state and not other.out for other in self.states)

    @property
    def errors(self) -> list[LLMError]:
        """The last error of each model that has failed, in the caller's order."""
        return [state.error for state in self.states if state.error is not None]

    def next(self) -> CandidateState:
        """
        The model to try now; the caller has already waited for `wait()` seconds.

        Raises:
            LLMError: No model is left, because the limit on retries was reached; the last model's error.
        """
        while True:
            state, self._chosen = self._chosen or self._first(), None
            if self._cooldowns.asks(state.candidate, self._tenant, again=state.tries > 0):
                state.tries += 1
                return state
            state.out = True
            if not self.left:
                assert state.error is not None, "only a retry is refused, so the model has failed"  # noqa: S101
                raise state.error

    def failed(
        self, state: CandidateState, error: LLMError, *, may_repeat: bool, pause: float, seconds_left: float
    ) -> None:
        """
        Record a failure.

        Args:
            may_repeat: Whether the same model may be retried without being charged twice.

            pause: Seconds to wait before a retry if the provider did not name a time.

            seconds_left: Seconds until the call's deadline.
        """
        state.error = error
        too_long = (error.retry_after or 0.0) > min(MAX_RETRY_AFTER_S, seconds_left)
        is_spent = state.tries > self._max_retries or not self._cooldowns.may_retry(state.candidate, self._tenant)
        state.out = not may_repeat or too_long or is_spent
        state.pause = pause if error.retry_after is None else error.retry_after
        self.rest(state)

    def drop(self, model: str) -> None:
        """Do not ask a model again, at no tier: its answer was not good enough."""
        for state in self.states:
            state.out = state.out or state.candidate.requested == model

    def rest(self, state: CandidateState) -> None:
        """Start the pause of a model that has failed; called again after settling, so that others go first."""
        state.ready_at = self._clock() + state.pause

    def wait(self) -> float:
        """Seconds until the next model may be tried; if that is 0, this also fixes which model `next` returns."""
        first = self._first()
        seconds = max(0.0, first.ready_at - self._clock())
        self._chosen = None if seconds else first
        return seconds

    def _first(self) -> CandidateState:
        """The first model that is ready, else the one that is ready soonest; those that are cooling down come last."""
        states = [state for state in self.states if not state.out]
        healthy = [state for state in states if not self._cooldowns.cooling(state.candidate, self._tenant)] or states
        now = self._clock()
        ready = [state for state in healthy if state.ready_at <= now]
        return ready[0] if ready else min(healthy, key=lambda state: state.ready_at)
