"""Builds a request before it is sent, so that what it can cost is computed from what goes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shared.errors import LLMError
from shared.prices import Bound, Sent, as_sent, bound_of_sent, limit_of, marks_of, only_text, pin_of, text_size
from shared.providers.endpoints import import_litellm
from shared.providers.errors import invalid
from shared.providers.request import Outgoing, attach_pictures, build
from shared.types import Candidate, Request, TaskType


@dataclass(slots=True)
class Draft:
    """
    A request that is ready to be sent, and the most that it can cost.

    Args:
        request: With the pictures in its messages.

        outgoing: The HTTP request; None where LiteLLM's own client makes it.

        problem: Why it cannot be sent; it then costs nothing.
    """

    request: Request
    bound: Bound
    outgoing: Outgoing | None = None
    problem: LLMError | None = None


def draft(candidate: Candidate, request: Request, *, pinned: bool = False) -> Draft:
    """
    Build a chat request.

    Args:
        pinned: Whether to ask for the standard service tier where the caller asks for none. The bound is always that of
            a request that does.
    """
    import_litellm()
    looking = request.task is TaskType.VISION
    whole = (
        replace(request, messages=with_pictures(candidate, request), params=_without_detail(request))
        if looking
        else request
    )
    if not candidate.guarded:
        return Draft(whole, bound_of_sent(candidate, as_sent(candidate, request)))
    try:
        outgoing = build(candidate, whole)
        found = pin_of(candidate, outgoing.body)
        if pinned and found is not None:
            outgoing.change(*found)
        return Draft(whole, bound_of_sent(candidate, _sent(candidate, request, outgoing, found)), outgoing)
    except LLMError as error:
        return Draft(whole, Bound(), problem=error)
    except (ValueError, TypeError) as error:
        problem = invalid(candidate, f"The request to {candidate.model} cannot be encoded as JSON: {error}")
        return Draft(whole, Bound(), problem=problem)


def limited(candidate: Candidate, request: Request, drafted: Draft, tokens: int) -> Draft:
    """The draft under a budget, with an answer of at most so many tokens; `request` asks for them already."""
    path = None if drafted.outgoing is None else limit_of(drafted.outgoing.wire, drafted.outgoing.body)
    if drafted.outgoing is None or path is None:
        return draft(candidate, request, pinned=True)
    pin(candidate, drafted)
    drafted.outgoing.change(path, tokens)
    return replace(drafted, bound=replace(drafted.bound, output=tokens))


def pin(candidate: Candidate, drafted: Draft) -> None:
    """Ask for the standard service tier, if the provider takes it and the caller asks for none."""
    found = None if drafted.outgoing is None else pin_of(candidate, drafted.outgoing.body)
    if drafted.outgoing is not None and found is not None:
        drafted.outgoing.change(*found)


def request_with(request: Request, tokens: int) -> Request:
    """The request with an answer of at most so many tokens."""
    return replace(request, params={**request.params, "max_tokens": tokens})


def _sent(candidate: Candidate, request: Request, outgoing: Outgoing, standard: tuple[tuple[str], str] | None) -> Sent:
    """What the bound is computed from: the body with the standard service tier."""
    text = outgoing.text()
    body = outgoing.body if standard is None else {**outgoing.body, standard[0][0]: standard[1]}
    size, tokens = text_size(text), None
    fitted = request.fitted.get(candidate.requested, ()) if request.task is TaskType.VISION else ()
    known = [one.tokens for one in fitted if one.tokens is not None]
    if fitted and len(known) == len(fitted) == len(request.pictures) and only_text(request):
        tokens = sum(known)
        size -= sum(-(-len(one.picture.data) // 3) * 4 for one in fitted)
    return Sent(
        outgoing.wire,
        body,
        size,
        tokens,
        request.params.get("extra_headers") or {},
        "extra_body" if request.params.get("extra_body") else None,
        marks_of(text),
    )


def with_pictures(candidate: Candidate, request: Request) -> Sequence[Mapping[str, Any]]:
    """The messages as they are sent to the model, with the fitted pictures in the last user message."""
    if request.task is not TaskType.VISION:
        return request.messages
    fitted = request.fitted.get(candidate.requested, ())
    return attach_pictures(request.messages, [each.picture for each in fitted], request.params.get("detail"))


def _without_detail(request: Request) -> Mapping[str, Any]:
    return {name: value for name, value in request.params.items() if name != "detail"}
