"""Settles what did not finish with the most that is known of it, and reserves the rest in its budgets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from shared.calls.call import Attempt, Call, settle_row
from shared.errors import ContentBlocked, LLMError
from shared.ledger import Status
from shared.models import is_loopback, is_own_host
from shared.prices import bills_blocked, ends_with_connection, ends_with_error, errors_are_free, generated_at_most
from shared.providers import Partial, count_partial, with_pictures
from shared.types import Answer, TaskType, Usage


def settle_unfinished(call: Call, attempt: Attempt, status: Status, error: BaseException, **counts: Any) -> None:
    """
    Make the row of an attempt final that did not finish; takes as long as its tokens take to count.

    Its cost is what the provider has reported so far, and our own count of what that leaves out. Where nothing of an
    answer has arrived, no cost is known: then not even the input needs to have been read.

    Args:
        error: Why it did not finish.

        counts: What `settle_row` takes.
    """
    if isinstance(error, ContentBlocked) and bills_blocked(attempt.candidate.provider):
        attempt.outcome = "unknown"  # an error that is charged
    known = _known(attempt, error)
    if attempt.outcome in ("not_sent", "rejected") or (known is not None and known.is_final):
        settle_row(call, attempt, status, None if known is None else known.answer, **counts)
        return
    usage = _usage(call, attempt, known)
    answer = None if known is None or usage is None else replace(known.answer, usage=usage)
    reserve = partial(_reserved, attempt, error, usage or Usage(), began=known is not None)
    settle_row(call, attempt, status, answer, reserve=reserve, **counts)


def _known(attempt: Attempt, error: BaseException) -> Partial | None:
    """What has arrived of the answer, with its usage; None where nothing has."""
    found = None if attempt.items is None else attempt.items.so_far()
    usage = error.usage if isinstance(error, LLMError) else None
    if usage is None or usage.source != "provider":
        return found
    # Reported with an answer that could not be used. That of a stream is the reading's as well.
    is_final = found is None or found.is_final or not attempt.request.stream
    return Partial(replace(found.answer if found else Answer("", None, usage), usage=usage), [], is_final)


def _usage(call: Call, attempt: Attempt, known: Partial | None) -> Usage | None:
    if call.request.task is TaskType.IMAGE_GENERATION:
        return None if known is None else known.answer.usage
    messages = with_pictures(attempt.candidate, call.request)
    return count_partial(messages, attempt.request.params, known)


def _reserved(
    attempt: Attempt, error: BaseException, usage: Usage, cost_nano: int | None, *, began: bool
) -> int | None:
    """Nano-dollars that the attempt may have cost beyond its cost; None where nothing limits that."""
    bound_nano = attempt.row.bound_nano
    rest_nano = None if bound_nano is None else max(0, bound_nano - (cost_nano or 0))
    limit = _limit(attempt, error, began=began)
    if limit is None:
        return rest_nano
    most_nano = limit(usage, cost_nano is not None)
    return rest_nano if most_nano is None else most_nano if rest_nano is None else min(rest_nano, most_nano)


def _limit(attempt: Attempt, error: BaseException, *, began: bool) -> Callable[[Usage, bool], int | None] | None:
    """What limits the rest of the cost, as far as the provider's documents go; None where only the bound does."""
    candidate, request = attempt.candidate, attempt.request
    if is_own_host(candidate.provider, candidate.api_base) and not is_loopback(candidate.api_base):
        return None  # the documents are not of this endpoint
    cause = _cause(error) if isinstance(error, LLMError) else LLMError()
    answered = cause.is_providers_answer
    if answered and not began and errors_are_free(candidate.provider, cause.status_code):
        return lambda _usage, _known: 0
    closed = request.stream and ends_with_connection(candidate.provider)
    ended = answered and ends_with_error(candidate.provider)
    if request.task is TaskType.IMAGE_GENERATION or not (closed or ended):
        return None
    asked = request.params.get("n")
    answers = asked if isinstance(asked, int) and asked > 0 else 1
    seconds = attempt.elapsed_us() / 1e6
    return lambda usage, known: generated_at_most(candidate, usage, seconds, answers=answers, known=known)


def _cause(error: LLMError) -> LLMError:
    """The provider's own error, where it is wrapped as that of a broken stream."""
    return error.__cause__ if isinstance(error.__cause__, LLMError) else error
