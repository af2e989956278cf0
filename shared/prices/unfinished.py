"""What a request may cost beyond what is known of it when it does not finish."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from shared.internal.money import to_nano
from shared.types import Candidate, Unit, Usage

# Output that a request which was left early may have had beyond what was counted, however short it was.
MIN_TOKENS = 2000
# Our count of a prompt uses one encoding for all models, so it may be too low by so much.
_COUNT_TOLERANCE = Decimal("0.25")
_IN: tuple[Unit, ...] = ("input", "cache_write", "cache_write_1h")
_OUT: tuple[Unit, ...] = ("output", "reasoning")


@lru_cache(maxsize=1)
def _facts() -> Mapping[str, Any]:
    return tomllib.loads((Path(__file__).parent / "unfinished.toml").read_text(encoding="utf-8"))


def errors_are_free(provider: str, status: int | None) -> bool:
    """Whether the provider documents that it does not bill a request that it answers with this error."""
    found = _facts()["errors"].get(provider)
    return found is not None and ("statuses" not in found or status in found["statuses"])


def bills_blocked(provider: str) -> bool:
    """Whether the provider documents that it bills a request which its content filter has blocked."""
    return provider in _facts()["blocked"]["providers"]


def ends_with_connection(provider: str) -> bool:
    """Whether the provider is documented to stop to generate, and to bill, when a stream's connection is closed."""
    return provider in _facts()["disconnect"]["providers"]


def ends_with_error(provider: str) -> bool:
    """Whether nothing is known to be generated or billed once the provider has answered with an error of its own."""
    return provider in _facts()["errors"] or ends_with_connection(provider)


def generated_at_most(candidate: Candidate, usage: Usage, seconds: float, *, answers: int, known: bool) -> int | None:
    """
    What may have been generated in some time beyond what was counted, in nano-dollars; None without a price.

    Args:
        usage: What was counted or reported so far.

        seconds: Since the request was sent.

        answers: How many answers were asked for, each of which may have been written at full speed.

        known: Whether the cost of what was counted is known. If not, that is included.
    """
    rates = candidate.rates.held or candidate.rates
    bands = [rates.prices, *(prices for _, prices in rates.above)]
    is_counted = known or usage.prompt_tokens is not None
    if not is_counted or any("input" not in prices or "output" not in prices for prices in bands):
        return None
    most_in, most_out = (max(prices[unit] for prices in bands for unit in of if unit in prices) for of in (_IN, _OUT))
    counted = usage.completion_tokens or 0
    tokens = max(MIN_TOKENS, math.ceil(_tokens_per_s(candidate.provider) * seconds) - counted, 0) * answers
    prompt = Decimal(usage.prompt_tokens or 0)
    more_in = prompt * _COUNT_TOLERANCE if usage.source == "counted" else Decimal(0)
    if not known:
        tokens, more_in = tokens + counted, more_in + prompt
    return to_nano(tokens * most_out + more_in * most_in)


def _tokens_per_s(provider: str) -> int:
    speed = _facts()["speed"]
    found = speed.get(provider)
    return int(found["tokens_per_s"] if isinstance(found, dict) else speed["default"])
