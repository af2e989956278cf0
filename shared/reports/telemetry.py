"""OpenTelemetry: a span for each attempt and each call that needed several, and metrics; made when the call has ended.

Only numbers, names and identifiers are exported: never prompts, answers, images, keys or the messages of errors.
The ledger stays the truth; a program without an OpenTelemetry SDK exports nothing.

Spans are made in batches, by a thread: one by one, after each call, they take more than twice as much of the processor,
because what makes them is in none of its caches.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from shared.errors import LLMError
from shared.internal.extras import install_command
from shared.internal.money import to_usd
from shared.types import TaskType

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import CallbackOptions, Histogram, Observation
    from opentelemetry.trace import Span, Tracer

    from shared.calls import Call, OnEnd
    from shared.config import Settings
    from shared.ledger import AttemptRow
    from shared.scope import Scope
    from shared.types import Candidate

logger = logging.getLogger("agentswarm_tools")

# The names below are those of this version, the last before the conventions for GenAI moved to a repository of their
# own, which has renamed some. All of them have the status "development".
# Source: github.com/open-telemetry/semantic-conventions, docs/gen-ai, and its names as PyPI's package
# opentelemetry-semantic-conventions 0.66b2 has them (read 2026-11-28).
SEMCONV_VERSION = "1.41.0"
SCHEMA_URL = f"https://opentelemetry.io/schemas/{SEMCONV_VERSION}"
SCOPE_NAME = "agentswarm_tools"

# The conventions' names of providers that LiteLLM calls otherwise.
_PROVIDERS = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "bedrock_converse": "aws.bedrock",
    "cohere_chat": "cohere",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}
_OPERATIONS = {TaskType.IMAGE_GENERATION: "generate_content"}
_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS = tuple(4**power for power in range(14))
# Texts that come from a provider are cut: they should be short names.
_MAX_CHARS = 200


# A span is made at most so many seconds after its call has ended, or once so many calls wait.
_DELAY_S, _BATCH = 1.0, 256

type Value = str | bool | int | float | tuple[str, ...]

# What each attribute means, as the documentation says it. Of every span:
CALL_ATTRIBUTES = {
    "agentswarm.call.id": "id of the call, as in the ledger, answers and errors",
    "agentswarm.call.attempts": "how many attempts the call needed; only on the span that stands for the call",
    "agentswarm.tool": "tool that made the call",
    "agentswarm.agent": "agent that made it",
    "agentswarm.run": "run of the agent",
    "gen_ai.conversation.id": "conversation of the scope",
    "error.type": "class of the error that it ended with",
}
# Of the span of an attempt:
ATTEMPT_ATTRIBUTES = {
    "gen_ai.operation.name": "`chat`, also about images; `generate_content` to make images",
    "gen_ai.provider.name": "provider, by the conventions' name where they have one",
    "gen_ai.request.model": "model as it was sent to the provider",
    "gen_ai.request.stream": "true for a stream",
    "gen_ai.request.max_tokens": "longest answer that was allowed",
    "gen_ai.request.temperature": "temperature, if it was set",
    "gen_ai.request.top_p": "top_p, if it was set",
    "gen_ai.output.type": "`image`, or `json` if the request says so",
    "gen_ai.response.model": "model as the answer names it",
    "gen_ai.response.id": "id of the answer",
    "gen_ai.response.finish_reasons": "why the answer ended",
    "gen_ai.response.time_to_first_chunk": "seconds to the first chunk of a stream",
    "gen_ai.usage.input_tokens": "input, cached tokens included",
    "gen_ai.usage.output_tokens": "output, reasoning included",
    "gen_ai.usage.cache_read.input_tokens": "input that was read from the provider's cache",
    "gen_ai.usage.cache_creation.input_tokens": "input that was written to the provider's cache",
    "gen_ai.usage.reasoning.output_tokens": "output that was reasoning",
    "server.address": "host that was asked",
    "server.port": "its port",
    "http.response.status_code": "HTTP status, where it failed",
    "agentswarm.requested_model": "model that the caller named, where it is another one",
    "agentswarm.attempt.number": "1 for the first of several attempts",
    "agentswarm.attempt.status": "how it ended, as in the ledger",
    "agentswarm.usage.source": "`counted` where we counted the tokens, as the provider did not say",
    "agentswarm.cost.amount": "cost in US$; absent where it is unknown, which is not 0",
    "agentswarm.cost.source": "how the cost is known, or `unknown`",
    "agentswarm.cost.lower_bound": "true where it may have cost more than the amount",
    "agentswarm.cost.reserved": "US$ that budgets reserve beyond the amount",
}
# What metrics are divided by: few values each, since each combination is stored apart.
METRIC_ATTRIBUTES = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model")
METRICS = {
    "gen_ai.client.operation.duration": ("histogram", "s", "time of each attempt that was sent; also by `error.type`"),
    "gen_ai.client.operation.time_to_first_chunk": ("histogram", "s", "time to the first chunk of each stream"),
    "gen_ai.client.token.usage": (
        "histogram",
        "{token}",
        "tokens of each attempt; by `gen_ai.token.type`: input, output",
    ),
    "agentswarm.cost.amount": ("observable counter", "{USD}", "known costs of this process"),
    "agentswarm.cost.unknown": (
        "observable counter",
        "{attempt}",
        "attempts of this process whose cost is unknown, so that it is in no sum",
    ),
}


def call_watch(settings: Settings) -> Callable[[], OnEnd] | None:
    """
    What a client calls when a call begins; that gives what the flow calls when it ends.

    Returns:
        None if telemetry is off or not installed; if it is off, OpenTelemetry is not even imported.
    """
    if settings.telemetry == "off":
        return None
    try:
        from opentelemetry.context import get_current
    except ImportError:
        _warn(f"OpenTelemetry is not installed ({install_command('otel')})")
        return None
    labels = settings.telemetry_labels

    def begin() -> OnEnd:
        return partial(_end, _Began(get_current(), time.time_ns(), time.monotonic(), labels))

    return begin


class _Began(NamedTuple):
    """The user's current span and the time, as a call begins."""

    parent: Context
    wall_ns: int
    monotonic: float
    labels: tuple[str, ...]

    def at(self, monotonic: float) -> int:
        """Nanoseconds since 1970 for a time of `time.monotonic()`; the wall clock may be set during a call."""
        return self.wall_ns + round((monotonic - self.monotonic) * 1e9)


class _Tried(NamedTuple):
    """An attempt that has ended, without what was sent and answered."""

    row: AttemptRow
    candidate: Candidate
    params: Mapping[str, Any]
    host: str
    port: int
    began: float


class _Ended(NamedTuple):
    """A call that has ended, with the class of the error that it ended with."""

    began: _Began
    call_id: uuid.UUID
    task: TaskType
    scope: Scope
    requested: str
    attempts: tuple[_Tried, ...]
    error_type: str | None
    ended: float


class _Instruments(NamedTuple):
    """What OpenTelemetry's API offers, imported and created once."""

    trace: ModuleType
    tracer: Tracer
    duration: Histogram
    first_chunk: Histogram
    tokens: Histogram


@lru_cache(maxsize=1)
def _instruments() -> _Instruments:
    """The tracer and the instruments; those of a program that sets its SDK up later follow it."""
    from opentelemetry import metrics, trace

    meter = metrics.get_meter(SCOPE_NAME, schema_url=SCHEMA_URL)

    def histogram(name: str, buckets: tuple[float, ...]) -> Histogram:
        _, unit, description = METRICS[name]
        return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=buckets)

    def counter(name: str, read: Callable[[_Sums], float]) -> None:
        def observe(_options: CallbackOptions) -> list[Observation]:
            found = list(_sums.items())  # while another thread may add to it
            return [
                metrics.Observation(value, dict(zip(METRIC_ATTRIBUTES, key, strict=True)))
                for key, each in found
                if (value := read(each))
            ]

        _, unit, description = METRICS[name]
        meter.create_observable_counter(name, [observe], unit, description)

    counter("agentswarm.cost.amount", lambda it: to_usd(it.cost_nano))
    counter("agentswarm.cost.unknown", lambda it: it.unknown)
    return _Instruments(
        trace,
        trace.get_tracer(SCOPE_NAME, schema_url=SCHEMA_URL),
        histogram("gen_ai.client.operation.duration", _SECONDS),
        histogram("gen_ai.client.operation.time_to_first_chunk", _SECONDS),
        histogram("gen_ai.client.token.usage", _TOKENS),
    )


@dataclass(slots=True)
class _Sums:
    """What this process has spent with some attributes: exact, and ten times as cheap as a counter of the SDK's."""

    cost_nano: int = 0
    unknown: int = 0


# By the values of METRIC_ATTRIBUTES.
_sums: dict[tuple[str, ...], _Sums] = {}


def _end(began: _Began, call: Call, error: BaseException | None) -> None:
    """Hand a call that has ended to the thread that makes its spans."""
    try:
        _queue.put(_ended(began, call, error))
    except Exception as problem:  # noqa: BLE001 - telemetry never fails a call
        _warn(type(problem).__name__)


def _ended(began: _Began, call: Call, error: BaseException | None) -> _Ended:
    tried = (
        _Tried(it.row, it.candidate, it.request.params, it.exchange.host, it.exchange.port, it.began)
        for it in call.attempts
    )
    return _Ended(
        began,
        call.call_id,
        call.request.task,
        call.scope,
        call.plan.requested,
        tuple(tried),
        _kind(error),
        time.monotonic(),
    )


class _Queue:
    """Calls that have ended, and the thread that makes their spans; it starts with the first of them."""

    def __init__(self) -> None:
        self._waiting: deque[_Ended] = deque()
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        """Start afresh in a forked process: what waited is the parent's to export."""
        self._waiting.clear()
        _sums.clear()
        self._thread: threading.Thread | None = None
        self._some, self._many = threading.Event(), threading.Event()
        self._making = threading.RLock()
        self._is_over = False

    def put(self, call: _Ended) -> None:
        """Add a call; at the end of the program its spans are made at once."""
        self._waiting.append(call)
        if self._is_over:
            self.flush()
            return
        if self._thread is None and not self._start():
            self.flush()
            return
        if not self._some.is_set():
            self._some.set()
        if len(self._waiting) >= _BATCH and not self._many.is_set():
            self._many.set()

    def _start(self) -> bool:
        """Start the thread; returns False if Python is shutting down, and starts no more threads."""
        with self._making:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="agentswarm-telemetry", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return False
                self._thread = thread
                atexit.register(self._finish)
        return True

    def _run(self) -> None:
        while True:
            self._some.wait()
            self._many.wait(_DELAY_S)
            self._some.clear()
            self._many.clear()
            self.flush()

    def flush(self) -> None:
        """Make the spans of every call that waits, in this thread."""
        with self._making:
            while self._waiting:
                try:
                    _make_spans(self._waiting.popleft())
                except Exception as problem:
                    _warn(type(problem).__name__)
                    logger.debug("Telemetry failed", exc_info=True)

    def _finish(self) -> None:
        self._is_over = True
        self.flush()


_queue = _Queue()


def flush_telemetry() -> None:
    """Make the spans and metrics of all calls that have ended."""
    _queue.flush()


@lru_cache(maxsize=32)
def _warn(problem: str) -> None:
    """Warn once of each problem."""
    logger.warning("Telemetry is on (AGENTSWARM_TELEMETRY) but failed: %s. Calls go on without it.", problem)


def _kind(error: BaseException | None) -> str | None:
    """The class of an error; None for a stream that its reader left, which is none."""
    if isinstance(error, LLMError):
        return error.error_type
    return None if error is None or isinstance(error, GeneratorExit) else type(error).__name__


def _make_spans(call: _Ended) -> None:
    if len(call.attempts) == 1:
        _attempt_span(call, call.attempts[0], call.began.parent)
        return
    trace, tracer, *_ = _instruments()
    attributes = _of_call(call)
    attributes["agentswarm.call.attempts"] = len(call.attempts)
    if call.error_type is not None:
        attributes["error.type"] = call.error_type
    name = f"call {call.requested[:_MAX_CHARS]}"
    started_ns = call.began.wall_ns
    span = tracer.start_span(name, call.began.parent, trace.SpanKind.INTERNAL, attributes, start_time=started_ns)
    inside = trace.set_span_in_context(span, call.began.parent)
    for attempt in call.attempts:
        _attempt_span(call, attempt, inside)
    _finish(span, call.error_type, call.began.at(call.ended))


def _attempt_span(call: _Ended, attempt: _Tried, parent: Context) -> None:
    """One request to a provider as a span, and its metrics."""
    attributes = _of_call(call) | _of_attempt(call, attempt)
    error_type = _error_type(call, attempt)
    if error_type is not None:
        attributes["error.type"] = error_type
        if attempt.row.http_status is not None:
            attributes["http.response.status_code"] = attempt.row.http_status
    operation, provider, model = (str(attributes[name]) for name in METRIC_ATTRIBUTES)
    started_ns = call.began.at(attempt.began)
    trace, tracer, *_ = _instruments()
    span = tracer.start_span(f"{operation} {model}", parent, trace.SpanKind.CLIENT, attributes, start_time=started_ns)
    _finish(span, error_type, started_ns + (attempt.row.duration_us or 0) * 1000)
    if attempt.row.status != "refused":  # that was never sent
        _record(attempt.row, (operation, provider, model), error_type)


def _of_call(call: _Ended) -> dict[str, Value]:
    scope = call.scope
    found: dict[str, Value | None] = {
        "agentswarm.call.id": str(call.call_id),
        "agentswarm.tool": scope.tool,
        "agentswarm.agent": scope.agent,
        "agentswarm.run": scope.run,
        "gen_ai.conversation.id": scope.conversation,
    }
    for name in call.began.labels:
        found[f"agentswarm.label.{name}"] = scope.labels.get(name)
    return {name: value for name, value in found.items() if value is not None}


def _of_attempt(call: _Ended, it: _Tried) -> dict[str, Value]:
    row, candidate, params, count = it.row, it.candidate, it.params, len(call.attempts)
    found: dict[str, Value | None] = {
        "gen_ai.operation.name": _OPERATIONS.get(call.task, "chat"),
        "gen_ai.provider.name": _PROVIDERS.get(candidate.provider, candidate.provider),
        "gen_ai.request.model": candidate.wire_model,
        "gen_ai.request.stream": row.stream or None,
        "gen_ai.request.max_tokens": _number(int, params.get("max_completion_tokens", params.get("max_tokens"))),
        "gen_ai.request.temperature": _number(float, params.get("temperature")),
        "gen_ai.request.top_p": _number(float, params.get("top_p")),
        "gen_ai.output.type": _output_type(call, it),
        "gen_ai.response.model": _named(row.response_model),
        "gen_ai.response.id": _named(row.response_id),
        "gen_ai.response.finish_reasons": (row.finish_reason[:_MAX_CHARS],) if row.finish_reason else None,
        "gen_ai.response.time_to_first_chunk": _seconds(row.first_chunk_us) if row.stream else None,
        "gen_ai.usage.input_tokens": row.prompt_tokens,
        "gen_ai.usage.output_tokens": row.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": row.cached_tokens,
        "gen_ai.usage.cache_creation.input_tokens": row.cache_write_tokens,
        "gen_ai.usage.reasoning.output_tokens": row.reasoning_tokens,
        "server.address": it.host or None,
        "server.port": it.port or None,
        "agentswarm.call.attempts": 1 if count == 1 else None,
        "agentswarm.requested_model": _named(call.requested) if candidate.requested != call.requested else None,
        "agentswarm.attempt.number": row.attempt_number if count > 1 else None,
        "agentswarm.attempt.status": row.status,
        "agentswarm.usage.source": "counted" if row.usage_source == "counted" else None,
        "agentswarm.cost.amount": None if row.cost_nano is None else to_usd(row.cost_nano),
        "agentswarm.cost.source": row.cost_source,
        "agentswarm.cost.lower_bound": row.cost_is_lower_bound or None,
        "agentswarm.cost.reserved": to_usd(row.reserved_nano) if row.reserved_nano else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _error_type(call: _Ended, it: _Tried) -> str | None:
    """The error of an attempt, or of its call where it was the only one and its answer was of no use in the end."""
    if it.row.status == "cancelled" and it.row.first_chunk_us is not None:
        return None  # a stream that its reader left: that is no error of anybody
    if it.row.status == "ok" and len(call.attempts) == 1:
        return call.error_type
    return it.row.error_type


def _output_type(call: _Ended, it: _Tried) -> str | None:
    if call.task is TaskType.IMAGE_GENERATION:
        return "image"
    return "json" if it.params.get("response_format") not in (None, {"type": "text"}) else None


def _named(text: str | None) -> str | None:
    return text[:_MAX_CHARS] if text else None


def _seconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / 1e6


def _number[N: (int, float)](kind: type[N], value: object) -> N | None:
    return kind(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _finish(span: Span, error_type: str | None, end_ns: int) -> None:
    """End a span; its status has no description, which would be the message of an error."""
    if error_type is not None:
        span.set_status(_instruments().trace.StatusCode.ERROR)
    span.end(end_ns)


def _record(row: AttemptRow, key: tuple[str, str, str], error_type: str | None) -> None:
    """Record the metrics of an attempt that was sent."""
    instruments = _instruments()
    attributes = dict(zip(METRIC_ATTRIBUTES, key, strict=True))
    if row.duration_us is not None:
        failed = {} if error_type is None else {"error.type": error_type}
        instruments.duration.record(row.duration_us / 1e6, attributes | failed)
    if row.stream and row.first_chunk_us is not None:
        instruments.first_chunk.record(row.first_chunk_us / 1e6, attributes)
    for kind, count in (("input", row.prompt_tokens), ("output", row.completion_tokens)):
        if count is not None:
            instruments.tokens.record(count, {**attributes, "gen_ai.token.type": kind})
    sums = _sums.setdefault(key, _Sums())
    sums.cost_nano += row.cost_nano or 0
    sums.unknown += row.cost_nano is None
