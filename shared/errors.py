"""The error tree: what failed, what it cost, what to do next.

LLMError
 ├─ AuthenticationError      key missing, wrong or without permission      next model
 ├─ RateLimitError           too many requests                             retry, then next model
 │   └─ RequestTooLarge      one request above the limit per minute        next model
 ├─ QuotaExhausted           the account's credit is used up               next model
 ├─ ModelNotFound            the provider does not know the model          next model
 │   └─ ModelRetired         the provider has shut the model down          next model
 ├─ ModelNotAllowed          the name is not on the allow-list             raise
 ├─ InvalidRequest           the request itself is wrong                   raise
 │   ├─ ContextTooLong       more input than the model takes               next model
 │   └─ ContentBlocked       refused by the provider's content rules       raise
 ├─ ProviderUnavailable      outage, refused connection, 5xx               retry, then next model
 │   └─ Overloaded           503 or 529                                    retry, then next model
 ├─ ProviderTimeout          no answer in time                             retry, then next model
 ├─ DeadlineExceeded         the call's own deadline has passed            raise
 ├─ LocalOverload            too many calls waiting in this process        raise
 ├─ BadResponse              the answer cannot be read                     retry, then next model
 ├─ StreamInterrupted        the stream broke after its first chunk        raise
 ├─ BudgetExceeded           the call could break a budget                 raise
 ├─ LoopStopped              an agent's run goes in circles                raise
 ├─ ConfigurationError       a setting is wrong or something is missing    raise
 ├─ StoreError               the ledger cannot be read or written          raise
 └─ AllModelsFailed          every model of the plan failed                raise
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from shared.types import Usage

Outcome = Literal["not_sent", "rejected", "unknown", "completed"]
Action = Literal["retry", "next", "raise"]


class LLMError(Exception):
    """
    Base of every error of this package.

    Args:
        message: What failed, one sentence without its full stop, free of secrets.

        provider: Provider that failed; None when no provider was asked.

        model: Model that failed, as the caller named it.

        status_code: HTTP status; None when there was none.

        retry_after: Seconds the provider asked to wait; None when it did not say.

        outcome: What became of the request. `not_sent` and `rejected` cost nothing,
            `unknown` may have been billed, `completed` was billed.

        cost: US$ charged; NaN when unknown. Derived from `outcome` when None.

        usage: What the provider counted nevertheless; None when it did not.

        action: What the flow does next, where it is not what the class says.
    """

    action: Action = "raise"
    hint: ClassVar[str] = ""

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
        """Whether asking again later, unchanged, can work and cannot be billed twice."""
        return self.action == "retry" and self.outcome in ("not_sent", "rejected")

    @property
    def error_type(self) -> str:
        """The class name, as the ledger and the reports print it."""
        return type(self).__name__

    @property
    def charged(self) -> str:
        """What the failure cost, as a sentence."""
        if self.cost == 0:
            return "Nothing was charged."
        if math.isnan(self.cost):
            return "It may have been charged."
        return f"Charged ${self.cost:.6f}."

    def __str__(self) -> str:
        return " ".join(part for part in (f"{self.message}.", self.charged, self.next_step) if part)


class AuthenticationError(LLMError):
    """The key is missing, wrong, or may not use this model."""

    action: Action = "next"
    hint = "Check the provider's API key and its permissions."


class RateLimitError(LLMError):
    """The provider turned the request away for now."""

    action: Action = "retry"
    hint = "Wait, or name fallback_models."


class RequestTooLarge(RateLimitError):
    """One request is larger than the account's whole limit per minute; waiting cannot help."""

    action: Action = "next"
    hint = "Ask for less, or name fallback_models."


class QuotaExhausted(LLMError):
    """The account's credit or monthly limit is used up."""

    action: Action = "next"
    hint = "Top up the provider account, or name fallback_models of another provider."


class ModelNotFound(LLMError):
    """Nobody knows a model of this name."""

    action: Action = "next"
    hint = "See `agentswarm-tools models` for names, or give it as provider/model."


class ModelRetired(ModelNotFound):
    """The provider has shut the model down; `successor` names what to use instead."""

    def __init__(self, message: str = "", *, successor: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint or (f"Use {successor}." if successor else None))
        self.successor = successor


class ModelNotAllowed(LLMError):
    """The model is not on the allow-list of Settings or of the scope."""

    hint = "Use one of the allowed models."


class InvalidRequest(LLMError):
    """The provider found the request itself wrong; repeating it cannot help."""

    hint = "Change the request."


class ContextTooLong(InvalidRequest):
    """The input is larger than the model's context window."""

    action: Action = "next"
    hint = "Shorten the input, or name a fallback model with a larger window."


class ContentBlocked(InvalidRequest):
    """The provider's content rules refused the request or its answer."""

    hint = "Rephrase the request."


class ProviderUnavailable(LLMError):
    """The provider is down, unreachable, or failed inside."""

    action: Action = "retry"
    hint = "Try again later, or name fallback_models."


class Overloaded(ProviderUnavailable):
    """The provider says it has too much to do (503, 529)."""


class ProviderTimeout(LLMError):
    """The provider did not answer in time."""

    action: Action = "retry"
    hint = "Try again, allow a longer timeout, or name fallback_models."


class DeadlineExceeded(LLMError):
    """The call's own deadline passed before any model had answered."""

    hint = "Allow a longer deadline, or ask for less."


class LocalOverload(LLMError):
    """Too many calls are waiting in this process."""

    hint = "Make fewer calls at once."


class BadResponse(LLMError):
    """The provider's answer cannot be read."""

    action: Action = "retry"
    hint = "Try again, or name fallback_models."


class StreamInterrupted(LLMError):
    """The stream broke after it had begun; `text` is what arrived before."""

    hint = "The text so far is in .text; ask again for the rest."

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
    """An agent's run was refused, or repeated itself, too often; it ends instead of paying for another turn."""

    hint = "Change the agent's instructions."


class ConfigurationError(LLMError):
    """A setting is wrong, or something that the call needs is not installed."""


class StoreError(LLMError):
    """The ledger cannot be opened, read or written."""


class AllModelsFailed(LLMError):
    """Every model of the plan failed; `failures` holds their errors in order."""

    def __init__(self, message: str = "", *, failures: Sequence[LLMError] = ()) -> None:
        self.failures = tuple(failures)
        super().__init__(message, cost=math.fsum(failure.cost for failure in self.failures))

    @property
    def retryable(self) -> bool:
        """True only when every model's failure is."""
        return bool(self.failures) and all(failure.retryable for failure in self.failures)

    def __str__(self) -> str:
        lines = [f"{self.message}. {self.charged}"]
        lines += [f"- {failure.model or failure.provider or '?'}: {failure}" for failure in self.failures]
        return "\n".join(lines)
