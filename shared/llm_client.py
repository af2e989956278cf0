"""The client: one call to any of 100+ providers, with fallback, retries, streaming and exact costs."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, overload

# Packages, not names out of them: they load SQLAlchemy, Pillow, httpx and the flow of a call when first used.
from shared import calls, ledger, models, prices, providers
from shared.budget import Budget, Limit, budgets_of
from shared.calls import LLMStream, blocking, run_blocking
from shared.config import Settings, database_url, environment, load_settings
from shared.errors import ConfigurationError, LLMError, StoreError
from shared.internal.lazy import load_all
from shared.internal.money import to_usd
from shared.internal.spend import SpendCounter
from shared.scope import Scope, current_scope
from shared.types import Candidate, Estimate, LLMResponse, ModelConfig, Request, TaskType, Usage

__all__ = [
    "Estimate",
    "LLMClient",
    "LLMResponse",
    "LLMStream",
    "ModelConfig",
    "TaskType",
    "flush_telemetry",
    "get_llm_client",
    "warm_up",
]

logger = logging.getLogger("agentswarm_tools")

Messages = Sequence[Mapping[str, Any]]
# Making an image takes minutes where a text takes seconds, and an image that arrives too late was paid for.
_IMAGE_TIMEOUT_FACTOR = 5
_MAX_PLANS = 256


class LLMClient:
    """
    One client for every model; safe to share between threads, tasks and processes.

    Args:
        model_configs: Models of your own by name, added to the catalogue.

        enable_fallback: Whether to try fallback models. None: LITELLM_FALLBACK_ENABLED.

        enable_cost_tracking: Whether to record calls in the ledger. None: LITELLM_COST_TRACKING.

        max_retries: Maximum retries for each model after a failure that a retry may fix, 0 to 10.

        timeout: Seconds for one attempt to answer, or to begin its stream; making images may take five times as long.

        deadline: Seconds for a whole call, over all its attempts; None for no limit.

        budget: What may be spent: one Budget or several, in addition to those of Settings, the scope and the ledger.

        transport: Sends the requests, for tests: an httpx transport, or a function that makes one for each event loop.
            If it has a `base_url`, it answers every model there, in OpenAI's format and without a key.

    Raises:
        ConfigurationError: A setting is invalid.
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
        transport: providers.Transport | None = None,
    ) -> None:
        settings = load_settings()
        models.warn_of_names()
        if isinstance(max_retries, bool) or not isinstance(max_retries, int) or not 0 <= max_retries <= 10:
            raise ConfigurationError("max_retries must be a whole number from 0 to 10")
        self._settings = settings
        self._catalogue = models.Catalogue.load(settings, model_configs)
        self._fallback = settings.fallback_enabled if enable_fallback is None else enable_fallback
        tracking = settings.cost_tracking if enable_cost_tracking is None else enable_cost_tracking
        self._database = database_url(settings) if tracking else None
        if self._database is not None:
            ledger.get_ledger(self._database)
        self._limits = _limits(settings, budget)
        if self._limits and self._database is None:
            raise ConfigurationError("A budget needs cost tracking, which is off", hint=_TRACKING_HINT)
        if self._database is None:
            calls.warn_untracked()
        self._max_retries = max_retries
        self._timeout = calls.check_seconds("timeout", timeout)
        self._deadline = None if deadline is None else calls.check_seconds("deadline", deadline)
        self._spend_counter = SpendCounter()
        self._network = None if transport is None else providers.Network(transport)
        self._watch = _watch(settings)
        self._plans: dict[tuple[Any, ...], models.Plan] = {}
        if settings.verbose:
            _be_verbose()

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        """The client itself: a copy of what holds it (an agent, the state of a workflow) goes on with the same one."""
        return self

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
        """The awaitable version of `chat_completion`; with `stream`, iterate over the result with `async for`."""
        params = {"temperature": temperature, "max_tokens": max_tokens, **kw}
        call = await self._prepare(TaskType.CHAT_COMPLETION, messages, model, fallback_models, params, stream=stream)
        return LLMStream(calls.run_call(call)) if stream else await calls.answer_of(call)

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
            messages: List of {"role": ..., "content": ...}, in OpenAI's format.

            model: Name such as "openai/gpt-5.4-mini"; "auto" for the cheapest of your models that can take this
                request (those of `fallback_models`, the scope or AGENTSWARM_AUTO_MODELS). None:
                LITELLM_DEFAULT_TEXT_MODEL.

            fallback_models: Models to try next, in order. None: LITELLM_DEFAULT_FALLBACK_MODELS; []: none.

            temperature: 0 to 2; None leaves it to the provider, which reasoning models require.

            max_tokens: Maximum tokens of the answer; None leaves it to the provider.

            stream: Return an LLMStream of text chunks instead; the request is sent at its first `next()`.

            kw: Other chat parameters of OpenAI's API (tools, response_format, ...); `timeout` and `deadline` (seconds)
                for this call; `api_base` and `api_key` of your own endpoint for `model`; `fallback_on`, a function of
                the LLMResponse that returns True, or why, if the next model is to be asked instead (not for streams);
                `prompt_cache`, "auto" or "1h", to set breakpoints for the provider's cache of prompts.

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
            One Estimate per model, in the order in which they would be tried.

        Raises:
            LLMError: As `chat_completion` before it sends anything.
        """
        request, endpoint, time_limits = self._request(
            TaskType.CHAT_COMPLETION, messages, {"max_tokens": max_tokens, **kw}
        )
        call = self._plan(request, model, fallback_models, endpoint, time_limits)
        if call.plan.is_open:
            call.plan = calls.chosen_plan(call)
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
        Make images, and save them in AGENTSWARM_OUTPUT_DIR.

        A request that may have been charged is not retried, neither on this model nor on the next: a retry would be
        charged again.

        Args:
            prompt: Description of the image.

            model: Name such as "openai/gpt-image-2". None: LITELLM_DEFAULT_IMAGE_MODEL.

            fallback_models: Models to try next. None: those of LITELLM_DEFAULT_FALLBACK_MODELS that make images.

            size: "1024x1024", an aspect ratio such as "16:9", or "auto". None: 1024x1024 or similar; with reference
                images, their size.

            quality: low, medium, high, auto, standard or hd, if the model supports it. None: medium if supported.

            n: Number of images, 1 to 10; requested in parallel if one request returns fewer.

            kw: `reference_images` (paths or URLs to start from), `mask` (path or URL; its transparent parts may
                change), `background` (transparent, opaque, auto), `output_format` (png, jpeg, webp), `file_name`,
                `response_format="b64_json"` (to get the bytes as well); other parameters of the model; `timeout`,
                `deadline`, `api_base` and `api_key` as in `chat_completion`.

        Returns:
            `images` is a list of {path, url, width, height, format, bytes, revised_prompt}. `content` is the
            provider's URL of the first image, or ours if the provider gave none. `metadata["images_failed"]` says why
            images are missing.

        Raises:
            InvalidRequest: A model does not support the request; nothing was sent.

            LLMError: No image was made.
        """
        options = calls.image_options(kw, own_fallbacks=fallback_models is not None)
        params = {"size": size, "quality": quality, "n": n, "timeout": self._timeout * _IMAGE_TIMEOUT_FACTOR, **kw}
        messages = [{"role": "user", "content": prompt}]
        call = await self._prepare(TaskType.IMAGE_GENERATION, messages, model, fallback_models, params)
        return await calls.make_images(call, options, self._settings)

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
        Ask a model about images, which are added to the last user message.

        Args:
            messages: As in `chat_completion`.

            image_urls: 1 to 16 URLs, paths or data URIs. The client fetches them, scales them down to the largest size
                that the model uses, and sends them as data.

            model: Name such as "openai/gpt-5.4-mini". None: LITELLM_DEFAULT_VISION_MODEL.

            fallback_models: Models to try next. None: those of LITELLM_DEFAULT_FALLBACK_MODELS that accept images.

            max_tokens: Maximum tokens of the answer.

            detail: "low" is small and cheap. None: the best that the model uses.

            kw: As in `chat_completion`; with `pass_through=True` the provider fetches https URLs itself.

        Returns:
            The answer. `metadata["images"]` says what was sent, `image_tokens_saved` and `image_cost_saved` (US$) what
            scaling down saved, by the provider's own formula.

        Raises:
            InvalidRequest: A model does not accept images, or an image is refused; nothing was sent.

            LLMError: As in `chat_completion`.
        """
        pass_through = kw.pop("pass_through", False)
        params = {"max_tokens": max_tokens, "detail": detail, **kw}
        call = await self._prepare(TaskType.VISION, messages, model, fallback_models, params)
        return await calls.look_at_images(call, image_urls, self._settings, pass_through=pass_through)

    vision_completion = blocking(avision_completion)

    def get_total_cost(self) -> float:
        """US$ known to be spent by this client (a stream counts when it ends); in a scope with labels, only in it."""
        return to_usd(self._spend_counter.nano(current_scope().spend))

    def export_cost_records(self, path: str | Path) -> int:
        """
        Write the attempts in the ledger to a file, completely or not at all; in a scope with labels, only theirs.

        Args:
            path: File to write; its extension determines the format: .json, .jsonl or .csv.

        Returns:
            Number of records written.

        Raises:
            ConfigurationError: The extension is a different one, or cost tracking is off.

            StoreError: The ledger cannot be read, or the file cannot be written.
        """
        store = self._ledger()
        if store is None:
            raise ConfigurationError("Cost tracking is off, so there is nothing to export")
        store.flush()
        own = ledger.Filter(labels=current_scope().labels)
        return ledger.write_attempts(Path(path), store, own)

    def _ledger(self) -> ledger.Ledger | None:
        return None if self._database is None else ledger.get_ledger(self._database)

    async def _prepare(
        self,
        task: TaskType,
        messages: Messages,
        model: str | None,
        fallback_models: Sequence[str] | None,
        params: dict[str, Any],
        *,
        stream: bool = False,
    ) -> calls.Call:
        """
        A planned call.

        Raises:
            LLMError: The call is refused before anything is sent; the refusal is recorded.
        """
        request, endpoint, time_limits = self._request(task, messages, params, stream=stream)
        try:
            return self._plan(request, model, fallback_models, endpoint, time_limits)
        except LLMError as error:
            patience = math.inf if time_limits.deadline_s is None else time_limits.deadline_s
            await calls.record_refusal(self._ledger(), current_scope(), request, error, patience=patience)
            raise

    def _request(
        self, task: TaskType, messages: Messages, params: dict[str, Any], *, stream: bool = False
    ) -> tuple[Request, models.OwnEndpoint, _TimeLimits]:
        """
        The request, the caller's own endpoint, and the time limits, out of the parameters of a call.

        Raises:
            ConfigurationError: A time limit is not a number of seconds.
        """
        params = {name: value for name, value in params.items() if value is not None}
        endpoint = models.OwnEndpoint(params.pop("api_base", None), params.pop("api_key", None))
        timeout = calls.check_seconds("timeout", params.pop("timeout", self._timeout))
        deadline = params.pop("deadline", self._deadline)
        limits = _TimeLimits(timeout, None if deadline is None else calls.check_seconds("deadline", deadline))
        ours = {name: params.pop(name, None) for name in ("fallback_on", "prompt_cache")}
        return Request(task, messages, params, stream=stream, **ours), endpoint, limits

    def _plan(
        self,
        request: Request,
        model: str | None,
        fallback_models: Sequence[str] | None,
        endpoint: models.OwnEndpoint,
        time_limits: _TimeLimits,
    ) -> calls.Call:
        """
        The call with its plan.

        Raises:
            LLMError: The call is refused.
        """
        inside, store = current_scope(), self._ledger()
        limits = (*self._limits, *inside.limits)
        calls.check_request(request, fallback_models)
        if limits and store is None:
            raise ConfigurationError("A budget needs cost tracking, which is off", hint=_TRACKING_HINT)
        network = self._network or providers.current_network()
        plan = self._planned(inside, request, model, fallback_models, endpoint, network.base_url)
        return calls.Call(
            request=request,
            plan=plan,
            scope=inside,
            ledger=store,
            timeout=time_limits.timeout_s,
            max_retries=self._max_retries,
            spend_counter=self._spend_counter,
            network=network,
            limits=limits,
            max_concurrency=self._settings.max_concurrency,
            on_end=None if self._watch is None else self._watch(),
            deadline_at=math.inf if time_limits.deadline_s is None else time.monotonic() + time_limits.deadline_s,
        )

    def _planned(
        self,
        inside: Scope,
        request: Request,
        model: str | None,
        fallback_models: Sequence[str] | None,
        endpoint: models.OwnEndpoint,
        answered_at: str | None,
    ) -> models.Plan:
        """
        The plan of a call, from a cache.

        The cache's key holds everything that a plan depends on, except the API keys of a scope or a call. So a plan
        that was made with those is neither cached nor looked up: one customer's key must never serve another.
        """
        tier = request.params.get("service_tier")
        has_own_keys = bool(inside.keys) or endpoint != models.OwnEndpoint()
        inputs = (request.task, model, fallback_models, tier, inside.models, inside.from_agent, answered_at)
        # The day is part of it because models retire on a date.
        key = repr(inputs), datetime.now(UTC).date(), frozenset(environment().items())
        plan = None if has_own_keys else self._plans.get(key)
        if plan is None:
            planner = models.Planner(self._catalogue, self._settings, inside, request.task, answered_at)
            plan = planner.plan(model, fallback_models, endpoint, enable_fallback=self._fallback, service_tier=tier)
            if not has_own_keys:
                if len(self._plans) >= _MAX_PLANS:
                    self._plans.clear()
                self._plans[key] = plan
        return plan


class _TimeLimits(NamedTuple):
    """Seconds that one attempt, and the whole call, may take."""

    timeout_s: float
    deadline_s: float | None


_TRACKING_HINT = "Set LITELLM_COST_TRACKING=true, or leave out the budget."


def _limits(settings: Settings, budget: Budget | Sequence[Budget] | None) -> tuple[Limit, ...]:
    """The budget of Settings, and the client's own."""
    from_settings = () if settings.budget is None else (settings.budget,)
    return tuple(Limit(each) for each in (*from_settings, *budgets_of(budget)))


def _watch(settings: Settings) -> Callable[[], calls.OnEnd] | None:
    """What is told of each call for telemetry; None if that is off, which costs nothing."""
    if settings.telemetry == "off":
        return None
    from shared.reports import call_watch

    return call_watch(settings)


def _be_verbose() -> None:
    """LITELLM_VERBOSE: log to stderr; only our own logger changes, not the host program's logging."""
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)


_shared: LLMClient | None = None
_lock = threading.Lock()


def reset_llm_client() -> None:
    """Forget this process's shared client; the next `get_llm_client()` makes one with the settings at that time."""
    global _shared
    with _lock:
        _shared = None


def get_llm_client(**overrides: Any) -> LLMClient:
    """
    The client that is shared within this process.

    Args:
        overrides: Arguments of LLMClient. With any of them, a new client is returned, and the shared one is unchanged.
    """
    global _shared
    if overrides:
        return LLMClient(**overrides)
    with _lock:
        if _shared is None:
            _shared = LLMClient()
        return _shared


def warm_up() -> None:
    """
    Load what the first call would wait for: our own modules and their libraries, LiteLLM, the price table, the ledger.

    Call it when a server starts, in each process and after it was forked.

    Raises:
        LLMError: A setting is invalid, or LiteLLM cannot be imported. A ledger that cannot be opened is no error here.
    """
    settings = load_settings()
    get_llm_client()
    load_all()
    providers.import_litellm()
    prices.price_table()
    if settings.cost_tracking:
        with suppress(StoreError):
            ledger.get_ledger(database_url(settings)).flush()


def flush_telemetry() -> None:
    """
    Hand the spans and metrics of all calls that have ended to OpenTelemetry, which otherwise happens within a second.

    Call it before the SDK's `force_flush()` where a process may be frozen or killed at any time. At exit it is done.
    """
    from shared.reports import flush_telemetry as flush

    flush()


_ESTIMATE_WINDOW_US = 30 * 86_400 * 1_000_000


def estimate(call: calls.Call, candidate: Candidate) -> Estimate:
    """The most that one attempt can cost, and its cost if the answer is as long as the average of the last 30 days."""
    prompt_tokens = providers.count_tokens(candidate, call.request.messages, "").prompt_tokens
    limits = [call.request.params.get(name) for name in ("max_completion_tokens", "max_tokens")]
    output = _usual_output(call, candidate)
    if output is not None:
        output = min([output, *(limit for limit in limits if isinstance(limit, int))])
    expected = prices.token_cost(Usage(prompt_tokens=prompt_tokens, completion_tokens=output), candidate.rates)
    return Estimate(
        model=candidate.requested,
        upper_bound=to_usd(calls.bound_of(candidate, call.request)),
        expected=to_usd(expected),
        prompt_tokens=prompt_tokens,
        completion_tokens=output,
    )


def _usual_output(call: calls.Call, candidate: Candidate) -> int | None:
    """Average output tokens of the model's answers in the last 30 days; None if the ledger has none."""
    if call.ledger is None:
        return None
    return ledger.average_output(call.ledger, candidate.model, time.time_ns() // 1000 - _ESTIMATE_WINDOW_US)
