"""Data types that all modules share: requests, answers, prices and events."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

UsageSource = Literal["provider", "counted", "unknown"]
PictureFormat = Literal["png", "jpeg", "webp", "gif"]
CostSource = Literal["provider", "table", "config", "counted", "bound", "reported", "free", "unknown"]
# What providers bill. Input includes cached and written to a cache (for 5 minutes, 1 hour, 12 hours), output includes
# reasoning; a kind of token without a price of its own is billed as the plainer one. `search_low` to `search_high` are
# web searches by the context that is asked for, `request` is the request itself.
Unit = Literal[
    "input", "cached", "cache_write", "cache_write_1h", "cache_write_12h", "output", "reasoning",
    "input_audio", "cached_audio", "output_audio", "input_image", "cached_image", "output_image",
    "input_video", "output_video", "citation", "input_character", "output_character",
    "second", "audio_second", "video_second", "image", "image_512", "image_1k", "image_2k", "image_4k", "pixel",
    "request", "search", "search_low", "search_medium", "search_high", "file_search", "maps", "code_session", "page",
]  # fmt: skip


# True, or a text that says why, if the next model is to be asked instead; a coroutine function may say so too.
type FallbackOn = Callable[[LLMResponse], bool | str | Awaitable[bool | str | None] | None]


class TaskType(StrEnum):
    """What a model is asked to do."""

    CHAT_COMPLETION = "chat_completion"
    VISION = "vision"
    IMAGE_GENERATION = "image_generation"


class EventType(StrEnum):
    """The kind of an analytics event."""

    TOOL_START = "tool_start"
    TOOL_SUCCESS = "tool_success"
    TOOL_ERROR = "tool_error"
    LLM_CALL = "llm_call"
    LLM_COST = "llm_cost"


class ModelConfig(BaseModel):
    """
    A model defined by the caller, added to the catalogue under `name`.

    A price of None means unknown, not free: give 0 for a model that costs nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: str = Field(min_length=1, description="Name to use in calls.")
    provider: str = Field(min_length=1, description="Provider, if litellm_model does not name one.")
    task_type: TaskType = Field(TaskType.CHAT_COMPLETION, description="What the model does.")
    cost_per_1k_input_tokens: Decimal | None = Field(None, ge=0, description="US$ per 1,000 input tokens.")
    cost_per_1k_output_tokens: Decimal | None = Field(None, ge=0, description="US$ per 1,000 output tokens.")
    cost_per_image: Decimal | None = Field(None, ge=0, description="US$ per image.")
    max_tokens: int | None = Field(None, gt=0, description="Maximum output tokens per answer.")
    max_input_tokens: int | None = Field(None, gt=0, description="Maximum input tokens: the context window.")
    litellm_model: str | None = Field(None, description='LiteLLM name, as "provider/model".')
    api_base: str | None = Field(None, description="Base URL of the endpoint that serves the model.")
    api_key_env: str | None = Field(None, description="Environment variable that holds its API key.")


@dataclass(frozen=True, slots=True)
class Usage:
    """
    Token counts of one request; None means not reported.

    `prompt_tokens` include cached and cache-write tokens, `completion_tokens` include reasoning; `cache_write_tokens`
    include `cache_write_1h_tokens`, which are cached for one hour.

    Args:
        units: By unit, each token in one of them: which of the tokens are no text (`input_audio`, of those the cached
            ones as `cached_audio`, `output_image` ...), and what is billed beside tokens (`search` ...). `input` and
            `output` are there only where the provider bills other counts than those that the model processed.

        others: What other models did for the answer, by their names; the counts above include it.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    reasoning_tokens: int | None = None
    source: UsageSource = "unknown"
    units: Mapping[str, int] = field(default_factory=dict)
    others: tuple[tuple[str, Usage], ...] = ()


@dataclass(frozen=True, slots=True)
class Rates:
    """
    What a model costs, in US$ for one of each unit; a unit that is absent has no known price.

    Args:
        prices: By unit. `image` is one image that is made, `pixel` one of its pixels; of an image that is made,
            `output_image` are its tokens.

        above: (above how many input tokens, the prices that then hold for the whole request), lowest first.

        held: What to hold before a request where that is more: the more expensive figures of sources that differ, or
            of another hour of the day. None where these rates are the most.

        sizes: Prices of one image as (quality or "", "1024x1024", US$).

        version: The table that they are from.

        at_least: Whether more may be charged, since the way in which the request was served has no known price.
    """

    prices: Mapping[Unit, Decimal] = field(default_factory=dict)
    above: tuple[tuple[int, Mapping[Unit, Decimal]], ...] = ()
    held: Rates | None = None
    sizes: tuple[tuple[str, str, Decimal], ...] = ()
    source: CostSource = "unknown"
    version: str | None = None
    at_least: bool = False


@dataclass(frozen=True, slots=True)
class Served:
    """
    How the provider says that it served a request, and when that was sent; None where it does not say.

    `is_other`: the model is not the one that was asked for, but one that has helped it.
    """

    model: str | None = None
    tier: str | None = None
    region: str | None = None
    when: datetime | None = None
    is_other: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """
    One model that may answer a call: the name it was requested by, and how to reach it.

    `guarded`: requests go through our transport. `listed`: the operator named the model, not just the caller.
    `rates_as`: the rates of a request as it was served; None where they are always `rates`. `is_standard`: it stands in
    for itself at the flex tier, which was asked for, and is sent without a tier.
    """

    requested: str
    model: str
    provider: str
    wire_model: str
    rates: Rates
    max_output_tokens: int | None = None
    max_input_tokens: int | None = None
    api_base: str | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)
    is_standard: bool = False
    # Where a transport of the client's own answers every model, in OpenAI's format and without a key.
    answered_at: str | None = None
    key_alias: str | None = None
    guarded: bool = True
    listed: bool = False
    note: str | None = None
    rates_as: Callable[[Served], Rates] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Picture:
    """An image whose bytes were decoded and match `format`; `source` names it in messages to people and agents."""

    data: bytes = field(repr=False)
    format: PictureFormat
    width: int
    height: int
    source: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """
    What the caller wants, before any model is chosen.

    `pictures` are the images to look at or to start from; `mask` marks where the first one may be changed. `fitted`
    caches the downscaled pictures (`Fitted`) that each model is sent instead, by model name. `fallback_on` says of an
    answer why the next model is to be asked instead. `prompt_cache`: where a provider needs them, set breakpoints for
    its cache of prompts, for 5 minutes or for 1 hour.
    """

    task: TaskType
    messages: Sequence[Mapping[str, Any]]
    params: Mapping[str, Any] = field(default_factory=dict)
    stream: bool = False
    pictures: tuple[Picture, ...] = ()
    mask: Picture | None = None
    fitted: dict[str, tuple[Any, ...]] = field(default_factory=dict, compare=False)
    fallback_on: FallbackOn | None = None
    prompt_cache: Literal["auto", "1h"] | None = None


class WantedSchema(dict[str, Any]):
    """A `response_format` with a JSON Schema that is sent only to models that have a JSON mode of their own for it."""


@dataclass(frozen=True, slots=True)
class MadeImage:
    """
    One image that a provider made, or why it is missing.

    `picture` is None when the image could not be obtained. `problem` says why, or how the image differs from the
    request. `size` and `quality` are the ones charged for.
    """

    picture: Picture | None = None
    url: str | None = None
    revised_prompt: str | None = None
    size: str | None = None
    quality: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """
    A provider's answer, parsed but not yet priced.

    Args:
        reported_cost: US$ for all of it, as the provider says.

        fee: US$ that the provider charges on top of the price of the usage.

        service_tier, region: As served; None where the provider does not say.

        reports_usage: Whether the provider sent counts, even if they say nothing: then none of ours replace them.
    """

    text: str
    finish_reason: str | None
    usage: Usage
    response_model: str | None = None
    response_id: str | None = None
    reported_cost: Decimal | None = None
    message: Mapping[str, Any] = field(default_factory=dict)
    images: tuple[MadeImage, ...] = ()
    fee: Decimal = Decimal(0)
    service_tier: str | None = None
    region: str | None = None
    reports_usage: bool = False


@dataclass(slots=True)
class LLMResponse:
    """
    The answer to a call.

    `cost` is the US$ known to be spent on all attempts of the call; NaN when the cost of the answer is unknown.
    `latency_ms` is that of the attempt that answered. `usage` holds plain integers; a count that was not reported is
    absent.
    """

    content: str
    model: str
    provider: str
    usage: dict[str, int]
    cost: float
    latency_ms: float
    metadata: dict[str, Any] = field(default_factory=dict)
    images: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Estimate:
    """
    What a call would cost with one model, in US$.

    `upper_bound` is the most that one request can cost, NaN when its price or its bound is unknown. `expected` assumes
    an answer of the model's average length over the last 30 days in the ledger, NaN when there were none.
    """

    model: str
    upper_bound: float
    expected: float
    prompt_tokens: int | None
    completion_tokens: int | None


class AnalyticsEvent(BaseModel):
    """An event to record; `metadata` never holds prompts, images or keys."""

    model_config = ConfigDict(extra="forbid")

    event_type: EventType | str
    tool_name: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    timestamp: datetime | None = None
    event_id: uuid.UUID | None = None


_SIZE = re.compile(r"([1-9]\d{1,4})x([1-9]\d{1,4})")
_PIXELS_OF_LEVEL = {"512": 512 * 512, "1K": 1024 * 1024, "2K": 2048 * 2048, "4K": 4096 * 4096}


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """
    One request for images, with the values that the chosen model accepts.

    `size` is "1024x1024", "auto", or None where the model has no choice; `ratio` and `level` are sent to Gemini and
    others instead. `n` is the number of images per request; `as_data` asks explicitly for image data instead of links.
    """

    size: str | None = None
    ratio: str | None = None
    level: str | None = None
    quality: str | None = None
    background: str | None = None
    output_format: str | None = None
    n: int = 1
    as_data: bool = False
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pixels(self) -> int | None:
        """Pixels per image; None when the model decides."""
        sides = sides_of(self.size)
        if sides is not None:
            return sides[0] * sides[1]
        return None if self.level is None else _PIXELS_OF_LEVEL[self.level]


def sides_of(size: str | None) -> tuple[int, int] | None:
    """Width and height of a size such as "1024x1536"; None for anything else."""
    found = _SIZE.fullmatch(size or "")
    return (int(found[1]), int(found[2])) if found else None
