"""The error tree: what failed, what it cost, what to do next.

LLMError
 ├─ AuthenticationError      key missing, invalid or not permitted         next model
 ├─ RateLimitError           too many requests                             retry, then next model
 │   └─ RequestTooLarge      one request exceeds the limit per minute      next model
 ├─ QuotaExhausted           the account's credit is used up               next model
 ├─ ModelNotFound            the model name is unknown                     next model
 │   └─ ModelRetired         the provider has shut the model down          next model
 ├─ ModelNotAllowed          the name is not on the allow-list             raise
 ├─ InvalidRequest           the request itself is invalid                 raise
 │   ├─ ContextTooLong       input exceeds the context window              next model
 │   └─ ContentBlocked       blocked by the provider's content policy      raise
 ├─ ProviderUnavailable      outage, refused connection, 5xx               retry, then next model
 │   └─ Overloaded           503 or 529                                    retry, then next model
 ├─ ProviderTimeout          no answer in time                             retry, then next model
 ├─ DeadlineExceeded         the call's own deadline has passed            raise
 ├─ LocalOverload            too many calls waiting in this process        raise
 ├─ BadResponse              the answer is malformed or unusable           retry, then next model
 ├─ ResponseRejected         the caller's fallback_on rejected the answer  next model
 ├─ StreamInterrupted        the stream broke after its first chunk        raise
 ├─ BudgetExceeded           the call could break a budget                 raise
 ├─ LoopStopped              an agent's run repeats itself                 raise
 ├─ ConfigurationError       a setting is wrong or something is missing    raise
 ├─ StoreError               the ledger cannot be read or written          raise
 └─ AllModelsFailed          every model in the plan failed                raise
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from shared.types import LLMResponse, Usage

Outcome = Literal["not_sent", "rejected", "unknown", "completed", "rejected_response"]
Action = Literal["retry", "next", "raise"]


class LLMError(Exception):
    """
    Base class of every error in this package.

    Args:
        message: What failed: one sentence, without a full stop and without secrets.

        provider: Provider that failed; None when no provider was contacted.

        model: Model that failed, as the caller named it.

        status_code: HTTP status; None when there was none.

        retry_after: Seconds the provider asked to wait; None when it did not say.

        outcome: What happened to the request. `not_sent` and `rejected` cost nothing,
            `unknown` may have been billed, `completed` was billed, `rejected_response` was billed and then rejected
            by the caller's `fallback_on`.

        cost: US$ charged; NaN when unknown. Derived from `outcome` when None.

        usage: Usage that the provider reported despite the failure; None when it reported none.

        action: What the flow does next; None for the default of the class.
    """

    action: Action = "raise"
    hint: ClassVar[str] = ""
    # Whether more than `cost` may have been charged.
    cost_is_lower_bound: bool = False
    # The call that it ended, as `agentswarm-tools calls show` takes it; None where there was none.
    call_id: str | None = None
    # Whether the provider itself answered with this error, in its own format.
    is_providers_answer: bool = False

    def __init__(
        self,
        message: str = "",
        *,
        provider: str | None = None,
        model: str | None = None,
        status_code: int | None = None,
        retry_after: float | None = None,
        outcome: Outcome = "not_sent",
        cost: float | None = None,
        hint: str | None = None,
        usage: Usage | None = None,
        action: Action | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.provider = provider
        self.model = model
        self.status_code = status_code
        self.retry_after = retry_after
        self.outcome: Outcome = outcome
        self.cost = cost if cost is not None else (0.0 if outcome in ("not_sent", "rejected") else math.nan)
        self.next_step = self.hint if hint is None else hint
        self.usage = usage
        self.action: Action = type(self).action if action is None else action

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later, without being charged twice."""
        return self.action == "retry" and self.outcome in ("not_sent", "rejected")

    @property
    def error_type(self) -> str:
        """The class name, as shown in the ledger and in reports."""
        return type(self).__name__

    @property
    def charged(self) -> str:
        """What the failure cost, as a sentence."""
        if self.cost == 0:
            return "Nothing was charged."
        if math.isnan(self.cost):
            return "It may have been charged."
        return f"Charged {'at least ' if self.cost_is_lower_bound else ''}${self.cost:.6f}."

    def __str__(self) -> str:
        return " ".join(part for part in (f"{self.message}.", self.charged, self.next_step) if part)


class AuthenticationError(LLMError):
    """The API key is missing, invalid or not permitted to use this model."""

    action: Action = "next"
    hint = "Check the provider's API key and its permissions."


class RateLimitError(LLMError):
    """The provider refused the request because of a rate limit."""

    action: Action = "retry"
    hint = "Wait, or name fallback_models."


class RequestTooLarge(RateLimitError):
    """One request exceeds the account's whole limit per minute; waiting does not help."""

    action: Action = "next"
    hint = "Send a smaller request, or name fallback_models."


class QuotaExhausted(LLMError):
    """The account's credit or monthly limit is used up."""

    action: Action = "next"
    hint = "Top up the provider account, or name fallback_models of another provider."


class ModelNotFound(LLMError):
    """The model name is unknown."""

    action: Action = "next"
    hint = "Run `agentswarm-tools models` to list known names, or give the name as provider/model."


class ModelRetired(ModelNotFound):
    """The provider has shut the model down; `successor` names what to use instead."""

    def __init__(self, message: str = "", *, successor: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint or (f"Use {successor}." if successor else None))
        self.successor = successor


class ModelNotAllowed(LLMError):
    """The model is not on the allow-list of the settings or of the scope."""

    hint = "Use one of the allowed models."


class InvalidRequest(LLMError):
    """The request itself is invalid; a retry cannot help."""

    hint = "Change the request."


class ContextTooLong(InvalidRequest):
    """The input exceeds the model's context window."""

    action: Action = "next"
    hint = "Shorten the input, or name a fallback model with a larger window."


class ContentBlocked(InvalidRequest):
    """The provider's content policy blocked the request or the answer."""

    hint = "Rephrase the request."


class ProviderUnavailable(LLMError):
    """The provider is down or unreachable, or had an internal error."""

    action: Action = "retry"
    hint = "Try again later, or name fallback_models."


class Overloaded(ProviderUnavailable):
    """The provider reports that it is overloaded (503, 529)."""


class ProviderTimeout(LLMError):
    """The provider did not answer in time."""

    action: Action = "retry"
    hint = "Try again, set a longer timeout, or name fallback_models."


class DeadlineExceeded(LLMError):
    """The call's own deadline passed before any model answered."""

    hint = "Set a longer deadline, or ask for less."


class LocalOverload(LLMError):
    """Too many calls are waiting in this process."""

    hint = "Make fewer calls at once."


class BadResponse(LLMError):
    """The provider's answer is malformed or unusable."""

    action: Action = "retry"
    hint = "Try again, or name fallback_models."


class ResponseRejected(LLMError):
    """The caller's `fallback_on` rejected the answer, which was paid for; `response` is that answer."""

    action: Action = "next"
    hint = "Name a stronger model in fallback_models, or accept more answers."

    reason: str = ""
    response: LLMResponse | None = None


class StreamInterrupted(LLMError):
    """The stream broke off after it had started; `text` is what arrived before that."""

    hint = "The text received so far is in .text; make another call for the rest."

    def __init__(
        self,
        message: str = "",
        *,
        text: str = "",
        provider: str | None = None,
        model: str | None = None,
        status_code: int | None = None,
        cost: float | None = None,
    ) -> None:
        super().__init__(message, provider=provider, model=model, status_code=status_code, outcome="unknown", cost=cost)
        self.text = text


class BudgetExceeded(LLMError):
    """The call could cost more than a budget has left; nothing was sent."""

    hint = "Raise the budget, or ask for less."


class LoopStopped(LLMError):
    """An agent's run was refused or repeated itself too often, and was ended before it paid for another turn."""

    hint = "Change the agent's instructions."


class ConfigurationError(LLMError):
    """A setting is invalid, or something that the call needs is not installed."""


class StoreError(LLMError):
    """The ledger cannot be opened, read or written."""


class AllModelsFailed(LLMError):
    """Every model in the plan failed; `failures` holds their errors in order."""

    def __init__(self, message: str = "", *, failures: Sequence[LLMError] = ()) -> None:
        self.failures = tuple(failures)
        super().__init__(message, cost=math.fsum(failure.cost for failure in self.failures))
        self.cost_is_lower_bound = any(failure.cost_is_lower_bound for failure in self.failures)

    @property
    def retryable(self) -> bool:
        """True only if every failure is retryable."""
        return bool(self.failures) and all(failure.retryable for failure in self.failures)

    def __str__(self) -> str:
        lines = [f"{self.message}. {self.charged}"]
        lines += [f"- {failure.model or failure.provider or '?'}: {failure}" for failure in self.failures]
        return "\n".join(lines)
