"""The models of a call in order: which is asked next, and when one may be asked again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.calls.cooldown import Cooldowns
from shared.errors import LLMError
from shared.types import Candidate

MAX_RETRY_AFTER_S = 30.0


@dataclass(slots=True)
class CandidateState:
    """One model of the call: how often it was asked, when it may be asked again, and its last error."""

    candidate: Candidate
    tries: int = 0
    ready_at: float = 0.0
    pause: float = 0.0
    error: LLMError | None = None
    out: bool = False


class RetrySchedule:
    """
    The order in which a call asks its models.

    The first in the caller's order that may be asked now is next. A model that must wait is passed over while another
    is ready, and one that is cooling down while any other remains.

    Args:
        candidates: The models in the caller's order.

        cooldowns: How they have been doing.

        max_retries: How often each may be asked again.

        clock: Seconds that never go back.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        cooldowns: Cooldowns,
        *,
        max_retries: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.states = [CandidateState(candidate) for candidate in candidates]
        self._cooldowns = cooldowns
        self._max_retries = max_retries
        self._clock = clock
        self._chosen: CandidateState | None = None

    @property
    def left(self) -> bool:
        """Whether any model may still be asked."""
        return any(not state.out for state in self.states)

    def has_others(self, state: CandidateState) -> bool:
        """Whether any model but this one may still be asked."""
        return any(other is not state and not other.out for other in self.states)

    @property
    def errors(self) -> list[LLMError]:
        """The last error of each model that has failed, in the caller's order."""
        return [state.error for state in self.states if state.error is not None]

    def next(self) -> CandidateState:
        """
        The model to ask now; waiting for it, where that is needed, is over.

        Raises:
            LLMError: None is left: of those that failed, the last must not be asked again.
        """
        while True:
            state, self._chosen = self._chosen or self._first(), None
            if self._cooldowns.asks(state.candidate, again=state.tries > 0):
                state.tries += 1
                return state
            state.out = True
            if not self.left:
                assert state.error is not None, "only a model that has failed is asked again"  # noqa: S101
                raise state.error

    def failed(
        self, state: CandidateState, error: LLMError, *, may_repeat: bool, pause: float, seconds_left: float
    ) -> None:
        """
        Take note of a failure.

        Args:
            may_repeat: Whether asking the same model again cannot do harm.

            pause: Seconds to leave the model alone, where its provider did not say how many.

            seconds_left: Until the deadline of the call.
        """
        state.error = error
        too_long = (error.retry_after or 0.0) > min(MAX_RETRY_AFTER_S, seconds_left)
        is_spent = state.tries > self._max_retries or not self._cooldowns.may_retry(state.candidate)
        state.out = not may_repeat or too_long or is_spent
        state.pause = pause if error.retry_after is None else error.retry_after
        self.rest(state)

    def rest(self, state: CandidateState) -> None:
        """Begin the pause of a model that has failed, again once its attempt is settled: others come first."""
        state.ready_at = self._clock() + state.pause

    def wait(self) -> float:
        """Seconds until the next model may be asked; when that is now, it is settled which one `next` gives."""
        first = self._first()
        seconds = max(0.0, first.ready_at - self._clock())
        self._chosen = None if seconds else first
        return seconds

    def _first(self) -> CandidateState:
        """The first that is ready, else the one that is ready soonest; those that cool down come last."""
        states = [state for state in self.states if not state.out]
        well = [state for state in states if not self._cooldowns.cooling(state.candidate)] or states
        now = self._clock()
        return next((state for state in well if state.ready_at <= now), None) or min(
            well, key=lambda state: state.ready_at
        )
