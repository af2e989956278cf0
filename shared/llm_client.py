"""The client: one call to any of 100+ providers, with fallback, retries, streaming and an exact bill."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

from shared.budget import Budget, Limit, budgets_of
from shared.calls import (
    Call,
    LLMStream,
    answer_of,
    blocking,
    bound_of,
    check_request,
    check_seconds,
    image_options,
    look_at_images,
    make_images,
    record_refusal,
    run_blocking,
    run_call,
    warn_untracked,
)
from shared.config import Settings, database_url, environment, load_settings
from shared.errors import ConfigurationError, LLMError
from shared.internal.money import to_usd
from shared.internal.spend import SpendCounter
from shared.ledger import Filter, Ledger, attempt_records as ledger_attempts, average_output, get_ledger, write_records
from shared.models import Catalogue, OwnEndpoint, Plan, Planner
from shared.prices import token_cost
from shared.providers import Network, Transport, count_tokens, current_network
from shared.scope import Scope, current_scope
from shared.types import Candidate, Estimate, LLMResponse, ModelConfig, Request, TaskType, Usage

__all__ = ["Estimate", "LLMClient", "LLMResponse", "LLMStream", "ModelConfig", "TaskType", "get_llm_client"]

logger = logging.getLogger("agentswarm_tools")

Messages = Sequence[Mapping[str, Any]]
# Making an image takes minutes where a text takes seconds, and one that comes too late has been paid for.
_IMAGE_PATIENCE = 5
_MAX_PLANS = 256


class LLMClient:
    """
    One way to any model; safe to share between threads, tasks and processes.

    Args:
        model_configs: Models of your own by name, added to the catalogue.

        enable_fallback: Whether to try fallback models. None: LITELLM_FALLBACK_ENABLED.

        enable_cost_tracking: Whether to record calls in the ledger. None: LITELLM_COST_TRACKING.

        max_retries: How often one model is asked again after a fault that a retry may heal, 0 to 10.

        timeout: Seconds for one attempt to answer, or to begin its stream; making images may take five times as long.

        deadline: Seconds for a whole call over all its attempts; None for no limit of its own.

        budget: What may be spent, one Budget or several, beside those of Settings, of the scope and of the ledger.

        transport: What sends the requests, for tests: a transport of httpx, or a function that makes one for each
            event loop. One with a `base_url` answers every model there itself, in OpenAI's format and without a key.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    def __init__(
        self,
        model_configs: Mapping[str, ModelConfig] | None = None,
        enable_fallback: bool | None = None,
        enable_cost_tracking: bool | None = None,
        max_retries: int = 2,
        timeout: float = 60.0,
        deadline: float | None = None,
        budget: Budget | Sequence[Budget] | None = None,
        transport: Transport | None = None,
    ) -> None:
        settings = load_settings()
        if isinstance(max_retries, bool) or not isinstance(max_retries, int) or not 0 <= max_retries <= 10:
            raise ConfigurationError("max_retries must be a whole number from 0 to 10")
        self._settings = settings
        self._catalogue = Catalogue.load(settings, model_configs)
        self._fallback = settings.fallback_enabled if enable_fallback is None else enable_fallback
        tracking = settings.cost_tracking if enable_cost_tracking is None else enable_cost_tracking
        self._database = database_url(settings) if tracking else None
        if self._database is not None:
            get_ledger(self._database)
        self._limits = _limits(settings, budget)
        if self._limits and self._database is None:
            raise ConfigurationError("A budget needs cost tracking, which is off", hint=_TRACKING_HINT)
        if self._database is None:
            warn_untracked()
        self._max_retries = max_retries
        self._timeout = check_seconds("timeout", timeout)
        self._deadline = None if deadline is None else check_seconds("deadline", deadline)
        self._spend_counter = SpendCounter()
        self._network = None if transport is None else Network(transport)
        self._plans: dict[tuple[Any, ...], Plan] = {}
        if settings.verbose:
            _be_verbose()

    @overload
    async def achat_completion(
        self,
        messages: Messages,
        model: str | None = None,
        fallback_models: Sequence[str] | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        stream: Literal[False] = False,
        **kw: Any,
    ) -> LLMResponse: ...

    @overload
    async def achat_completion(
        self,
        messages: Messages,
        model: str | None = None,
        fallback_models: Sequence[str] | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        *,
        stream: Literal[True],
        **kw: Any,
    ) -> LLMStream: ...

    @overload
    async def achat_completion(
        self,
        messages: Messages,
        model: str | None = None,
        fallback_models: Sequence[str] | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        stream: bool = False,
        **kw: Any,
    ) -> LLMResponse | LLMStream: ...

    async def achat_completion(
        self,
        messages: Messages,
        model: str | None = None,
        fallback_models: Sequence[str] | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        stream: bool = False,
        **kw: Any,
    ) -> LLMResponse | LLMStream:
        """The same as `chat_completion`, awaitable; with `stream` iterate over the result with `async for`."""
        params = {"temperature": temperature, "max_tokens": max_tokens, **kw}
        call = await self._prepare(TaskType.CHAT_COMPLETION, messages, model, fallback_models, params, stream=stream)
        return LLMStream(run_call(call)) if stream else await answer_of(call)

    @overload
    def chat_completion(
        self,
        messages: Messages,
        model: str | None = None,
        fallback_models: Sequence[str] | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        stream: Literal[False] = False,
        **kw: Any,
    ) -> LLMResponse: ...

    @overload
    def chat_completion(
        self,
        messages: Messages,
        model: str | None = None,
        fallback_models: Sequence[str] | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        *,
        stream: Literal[True],
        **kw: Any,
    ) -> LLMStream: ...

    @overload
    def chat_completion(
        self,
        messages: Messages,
        model: str | None = None,
        fallback_models: Sequence[str] | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        stream: bool = False,
        **kw: Any,
    ) -> LLMResponse | LLMStream: ...

    def chat_completion(self, *args: Any, **kw: Any) -> LLMResponse | LLMStream:
        """
        Ask a chat model.

        Args:
            messages: List of {"role": ..., "content": ...}, as OpenAI has them.

            model: Name such as "openai/gpt-5.4-mini". None: LITELLM_DEFAULT_TEXT_MODEL.

            fallback_models: What to try next, in order. None: LITELLM_DEFAULT_FALLBACK_MODELS; []: nothing.

            temperature: 0 to 2; None leaves it to the provider, as reasoning models need.

            max_tokens: Maximum tokens of the answer; None leaves it to the provider.

            stream: Return an LLMStream of text chunks instead; the request is sent at its first `next()`.

            kw: More of OpenAI's chat parameters (tools, response_format, ...); `timeout` and `deadline` (seconds) for
                this call; `api_base` and `api_key` of an endpoint of your own for `model`.

        Raises:
            LLMError: The only model's own error, or AllModelsFailed when several were tried.
        """
        return run_blocking(partial(self.achat_completion, *args, **kw))

    def estimate(
        self,
        messages: Messages,
        model: str | None = None,
        fallback_models: Sequence[str] | None = None,
        max_tokens: int | None = None,
        **kw: Any,
    ) -> list[Estimate]:
        """
        What a call would cost with each of its models, without making it.

        Args:
            messages, model, fallback_models, max_tokens, kw: As for `chat_completion`.

        Returns:
            One Estimate a model, in the order in which they would be asked.

        Raises:
            LLMError: As `chat_completion`, before it sends anything.
        """
        request, endpoint, limits = self._request(TaskType.CHAT_COMPLETION, messages, {"max_tokens": max_tokens, **kw})
        call = self._plan(request, model, fallback_models, endpoint, limits)
        return [estimate(call, candidate) for candidate in call.plan.candidates]

    async def agenerate_image(
        self,
        /,
        prompt: str,
        model: str | None = None,
        fallback_models: Sequence[str] | None = None,
        size: str | None = None,
        quality: str | None = None,
        n: int = 1,
        **kw: Any,
    ) -> LLMResponse:
        """
        Make images, save them under AGENTSWARM_OUTPUT_DIR, and say where they are.

        What may have been paid for is never asked for again by itself, neither of this model nor of the next.

        Args:
            prompt: What is to be seen.

            model: Name such as "openai/gpt-image-2". None: LITELLM_DEFAULT_IMAGE_MODEL.

            fallback_models: What to try next. None: those of LITELLM_DEFAULT_FALLBACK_MODELS that make images.

            size: "1024x1024", an aspect ratio such as "16:9", or "auto". None: 1024x1024 or the like; with reference
                images, theirs.

            quality: low, medium, high, auto, standard or hd, as the model has it. None: medium where it has that.

            n: How many images, 1 to 10; made at once where one request gives fewer.

            kw: `reference_images` (paths or URLs to start from), `mask` (path or URL; its transparent parts may
                change), `background` (transparent, opaque, auto), `output_format` (png, jpeg, webp), `file_name`,
                `response_format="b64_json"` (to have the bytes as well); what else the model takes; `timeout`,
                `deadline`, `api_base` and `api_key` as in `chat_completion`.

        Returns:
            `images` is a list of {path, url, width, height, format, bytes, revised_prompt}, `content` the provider's
            URL of the first where it gave one, else ours. What could not be had is explained in
            `metadata["images_failed"]`.

        Raises:
            InvalidRequest: A model does not take what is asked for; nothing was sent.

            LLMError: No image came.
        """
        options = image_options(kw, own_fallbacks=fallback_models is not None)
        params = {"size": size, "quality": quality, "n": n, "timeout": self._timeout * _IMAGE_PATIENCE, **kw}
        messages = [{"role": "user", "content": prompt}]
        call = await self._prepare(TaskType.IMAGE_GENERATION, messages, model, fallback_models, params)
        return await make_images(call, options, self._settings)

    generate_image = blocking(agenerate_image)

    async def avision_completion(
        self,
        /,
        messages: Messages,
        image_urls: Sequence[str | Path],
        model: str | None = None,
        fallback_models: Sequence[str] | None = None,
        max_tokens: int | None = None,
        detail: Literal["low", "high", "auto"] | None = None,
        **kw: Any,
    ) -> LLMResponse:
        """
        Ask a model about images, which stand in the last of the user's messages.

        Args:
            messages: As in `chat_completion`.

            image_urls: 1 to 16 URLs, paths or data URIs. They are fetched by us, scaled down to what the model makes
                use of, and sent as data.

            model: Name such as "openai/gpt-5.4-mini". None: LITELLM_DEFAULT_VISION_MODEL.

            fallback_models: What to try next. None: those of LITELLM_DEFAULT_FALLBACK_MODELS that look at images.

            max_tokens: Most tokens that the answer may have.

            detail: "low" is small and cheap. None: what the model makes use of.

            kw: As in `chat_completion`; `pass_through=True` leaves https URLs to the provider to fetch.

        Returns:
            The answer; `metadata["images"]` says what was sent, `image_tokens_saved` and `image_cost_saved` (US$) what
            scaling down has saved, by the provider's own formula.

        Raises:
            InvalidRequest: A model does not look at images, or an image is refused; nothing was sent.

            LLMError: As in `chat_completion`.
        """
        pass_through = kw.pop("pass_through", False)
        params = {"max_tokens": max_tokens, "detail": detail, **kw}
        call = await self._prepare(TaskType.VISION, messages, model, fallback_models, params)
        return await look_at_images(call, image_urls, self._settings, pass_through=pass_through)

    vision_completion = blocking(avision_completion)

    def get_total_cost(self) -> float:
        """US$ known to be spent by this client, streams when they end; inside labels: theirs, since the scope began."""
        return to_usd(self._spend_counter.nano(current_scope().spend))

    def export_cost_records(self, path: str | Path) -> int:
        """
        Write every attempt in the ledger (of the scope, inside one with labels) to a file, at once or not at all.

        Args:
            path: File to write; its ending says how: .json, .jsonl or .csv.

        Returns:
            How many records were written.

        Raises:
            ConfigurationError: The ending is another one, or cost tracking is off.

            StoreError: The ledger cannot be read, or the file cannot be written.
        """
        ledger = self._ledger()
        if ledger is None:
            raise ConfigurationError("Cost tracking is off, so there is nothing to export")
        ledger.flush()
        return write_records(Path(path), ledger_attempts(ledger, which=Filter(labels=current_scope().labels)))

    def _ledger(self) -> Ledger | None:
        return None if self._database is None else get_ledger(self._database)

    async def _prepare(
        self,
        task: TaskType,
        messages: Messages,
        model: str | None,
        fallback_models: Sequence[str] | None,
        params: dict[str, Any],
        *,
        stream: bool = False,
    ) -> Call:
        """
        A call that is ready to be carried out.

        Raises:
            LLMError: It is refused before any model is asked; that is recorded.
        """
        request, endpoint, limits = self._request(task, messages, params, stream=stream)
        try:
            return self._plan(request, model, fallback_models, endpoint, limits)
        except LLMError as error:
            patience = math.inf if limits.deadline_s is None else limits.deadline_s
            await record_refusal(self._ledger(), current_scope(), request, error, patience=patience)
            raise

    def _request(
        self, task: TaskType, messages: Messages, params: dict[str, Any], *, stream: bool = False
    ) -> tuple[Request, OwnEndpoint, _Time]:
        """
        What is asked of a provider, the endpoint to ask, and how long that may take.

        Raises:
            ConfigurationError: A time is not a number of seconds.
        """
        given = {name: value for name, value in params.items() if value is not None}
        endpoint = OwnEndpoint(given.pop("api_base", None), given.pop("api_key", None))
        timeout = check_seconds("timeout", given.pop("timeout", self._timeout))
        deadline = given.pop("deadline", self._deadline)
        time_ = _Time(timeout, None if deadline is None else check_seconds("deadline", deadline))
        return Request(task, messages, given, stream=stream), endpoint, time_

    def _plan(
        self,
        request: Request,
        model: str | None,
        fallback_models: Sequence[str] | None,
        endpoint: OwnEndpoint,
        allowed: _Time,
    ) -> Call:
        """
        The call with the models that may answer it.

        Raises:
            LLMError: It is refused.
        """
        inside, ledger = current_scope(), self._ledger()
        limits = (*self._limits, *inside.limits)
        check_request(request, fallback_models)
        if limits and ledger is None:
            raise ConfigurationError("A budget needs cost tracking, which is off", hint=_TRACKING_HINT)
        network = self._network or current_network()
        plan = self._planned(inside, request, model, fallback_models, endpoint, network.base_url)
        return Call(
            request=request,
            plan=plan,
            scope=inside,
            ledger=ledger,
            timeout=allowed.timeout_s,
            max_retries=self._max_retries,
            spend_counter=self._spend_counter,
            network=network,
            limits=limits,
            max_concurrency=self._settings.max_concurrency,
            deadline_at=math.inf if allowed.deadline_s is None else time.monotonic() + allowed.deadline_s,
        )

    def _planned(
        self,
        inside: Scope,
        request: Request,
        model: str | None,
        fallback_models: Sequence[str] | None,
        endpoint: OwnEndpoint,
        answered_at: str | None,
    ) -> Plan:
        """
        The plan of a call; it is made anew when anything changes that it was made from.

        A plan holds keys, so one that was made with the keys of a scope or a call is neither cached nor looked up.
        """
        tier = request.params.get("service_tier")
        has_own_keys = bool(inside.keys) or endpoint != OwnEndpoint()
        asked = (request.task, model, fallback_models, tier, inside.models, inside.from_agent, answered_at)
        # Models retire from one day to the next.
        key = repr(asked), datetime.now(UTC).date(), frozenset(environment().items())
        plan = None if has_own_keys else self._plans.get(key)
        if plan is None:
            planner = Planner(self._catalogue, self._settings, inside, request.task, answered_at)
            plan = planner.plan(model, fallback_models, endpoint, enable_fallback=self._fallback, service_tier=tier)
            if not has_own_keys:
                if len(self._plans) >= _MAX_PLANS:
                    self._plans.clear()
                self._plans[key] = plan
        return plan


class _Time(NamedTuple):
    """Seconds that an attempt and the whole call may take."""

    timeout_s: float
    deadline_s: float | None


_TRACKING_HINT = "Set LITELLM_COST_TRACKING=true, or leave out the budget."


def _limits(settings: Settings, budget: Budget | Sequence[Budget] | None) -> tuple[Limit, ...]:
    """The budget of Settings, and the client's own."""
    own = () if settings.budget is None else (settings.budget,)
    return tuple(Limit(each) for each in (*own, *budgets_of(budget)))


def _be_verbose() -> None:
    """LITELLM_VERBOSE: our own log lines on stderr; the host program's logging stays as it is."""
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)


_shared: LLMClient | None = None
_lock = threading.Lock()


def reset_llm_client() -> None:
    """Forget the client that this process shares; the next `get_llm_client()` makes one with the settings of then."""
    global _shared
    with _lock:
        _shared = None


def get_llm_client(**overrides: Any) -> LLMClient:
    """
    The client that this process shares.

    Args:
        overrides: Arguments of LLMClient; with any, a client of your own, and the shared one stays as it is.
    """
    global _shared
    if overrides:
        return LLMClient(**overrides)
    with _lock:
        if _shared is None:
            _shared = LLMClient()
        return _shared


_DAYS_US = 30 * 86_400 * 1_000_000


def estimate(call: Call, candidate: Candidate) -> Estimate:
    """The most that one attempt costs, and what it costs when its answer is as long as the last month's were."""
    counted = count_tokens(candidate, call.request.messages, "").prompt_tokens
    asked = [call.request.params.get(name) for name in ("max_completion_tokens", "max_tokens")]
    output = _usual_output(call, candidate)
    if output is not None:
        output = min([output, *(most for most in asked if isinstance(most, int))])
    expected = token_cost(Usage(prompt_tokens=counted, completion_tokens=output), candidate.rates)
    return Estimate(
        model=candidate.requested,
        upper_bound=to_usd(bound_of(candidate, call.request)),
        expected=to_usd(expected),
        prompt_tokens=counted,
        completion_tokens=output,
    )


def _usual_output(call: Call, candidate: Candidate) -> int | None:
    """Output tokens of the model's answers in the last 30 days, on average; None where the ledger has none."""
    if call.ledger is None:
        return None
    return average_output(call.ledger, candidate.model, time.time_ns() // 1000 - _DAYS_US)
