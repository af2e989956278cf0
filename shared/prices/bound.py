"""The most that a request can cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from shared.internal.money import to_nano
from shared.prices.images import images_bound
from shared.types import Candidate, ImageRequest, Request, TaskType, Unit

# A message's role, name and separators in tokens; 3 or 4 by OpenAI's cookbook (read 2026-11-24), kept generous.
_TOKENS_PER_MESSAGE = 16
# What a provider adds to a request before it counts: a chat template, and the prompt that explains tools (530 at
# Anthropic, by its page on tool use), kept generous.
_TOKENS_PER_REQUEST = 256
_TOKENS_FOR_TOOLS = 1024
_MANY = 1_000_000
# What a token of text may be billed as, without anything that the request would have to ask for.
_IN: tuple[Unit, ...] = ("input", "cached", "cache_write", "cache_write_1h")
_OUT: tuple[Unit, ...] = ("output", "reasoning")


def upper_bound(candidate: Candidate, request: Request, image: ImageRequest | None = None) -> int | None:
    """
    The most that one attempt can cost, in nano-dollars; None when no bound is known.

    Input is bounded by its bytes, since no tokenizer makes more tokens than bytes; where it holds more than text, by
    the model's window. Output is bounded by the caller's max_tokens, else by the model's own maximum.

    Args:
        image: For a request for images: what the model is asked for, in its words.
    """
    rates = candidate.rates.held or candidate.rates
    if rates.source == "free":
        return 0
    if rates.source == "unknown" or request.params.get("extra_body"):
        return None  # what we do not understand may ask for more answers, a more expensive tier or a longer text
    if request.task is TaskType.IMAGE_GENERATION:
        usd = None if image is None else images_bound(candidate, request, image, max_prompt_tokens(request))
        return None if usd is None else to_nano(usd)
    prompt = _max_prompt(candidate, request)
    output = _max_output_tokens(candidate, request)
    if prompt is None or output is None:
        return None
    bands = [rates.prices, *(prices for above, prices in rates.above if prompt > above)]
    if any("input" not in prices or "output" not in prices for prices in bands):
        return None
    most_in, most_out = (max(prices[unit] for prices in bands for unit in of if unit in prices) for of in (_IN, _OUT))
    return to_nano(prompt * most_in + output * most_out + rates.prices.get("request", 0))


def affordable_output(candidate: Candidate, request: Request, nano: int) -> int | None:
    """
    The most output tokens with which one attempt costs at most so much; None when no bound is known.

    It is also no more than the model writes, nor than its window has room for beside the input.
    """
    one, more = (
        upper_bound(candidate, replace(request, params={**request.params, "max_tokens": tokens}))
        for tokens in (1, 1 + _MANY)
    )
    if one is None or more is None:
        return None
    limits = [1 + (nano - one) * _MANY // (more - one)] if more > one else []
    if candidate.max_output_tokens is not None:
        limits.append(candidate.max_output_tokens)
    if candidate.max_input_tokens is not None and only_text(request) and not request.pictures:
        limits.append(candidate.max_input_tokens - max_prompt_tokens(request))
    return min(limits, default=None)


def _max_prompt(candidate: Candidate, request: Request) -> int | None:
    """The most input tokens; None when they are not known."""
    fitted = request.fitted.get(candidate.requested, ())
    tokens: list[int] = [one.tokens for one in fitted if one.tokens is not None]
    if not only_text(request) or len(tokens) < len(request.pictures):
        return candidate.max_input_tokens
    return max_prompt_tokens(request) + sum(tokens)


def max_prompt_tokens(request: Request) -> int:
    """No tokenizer makes more input tokens than this of the request."""
    extras = [extra for name in ("tools", "functions", "response_format") if (extra := request.params.get(name))]
    text = json.dumps([list(request.messages), extras], ensure_ascii=False, default=str)
    added = _TOKENS_PER_REQUEST + _TOKENS_PER_MESSAGE * len(request.messages) + (_TOKENS_FOR_TOOLS if extras else 0)
    return len(text.encode("utf-8", "replace")) + added


def only_text(request: Request) -> bool:
    """Whether the size of the messages says anything about their tokens; that of an image's URL does not."""
    contents = (message.get("content") for message in request.messages)
    parts = (part for content in contents if isinstance(content, list | tuple) for part in content)
    return all(not isinstance(part, Mapping) or part.get("type") == "text" for part in parts)


def _max_output_tokens(candidate: Candidate, request: Request) -> int | None:
    """The most output tokens over all the answers that are asked for; None when that is not known."""
    asked = [request.params.get(name) for name in ("max_completion_tokens", "max_tokens")]
    limit = max((most for most in asked if isinstance(most, int) and most > 0), default=candidate.max_output_tokens)
    answers = 1 if request.params.get("n") is None else request.params["n"]
    return limit * answers if limit is not None and isinstance(answers, int) and answers > 0 else None
