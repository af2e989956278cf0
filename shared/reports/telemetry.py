"""OpenTelemetry: a span for each attempt and each call that needed several, and metrics; made when the call has ended.

Only numbers, names and identifiers are exported: never prompts, answers, images, keys or the messages of errors.
The ledger stays the truth; a program without an OpenTelemetry SDK exports nothing.

Spans are made in batches, by a thread: one by one, after each call, they take three times as much of the processor,
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
from collections.abc import Callable, Iterator, Mapping
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
# Source: github.com/open-telemetry/semantic-conventions/tree/v1.41.0/docs/gen-ai (April 2026, read 2026-11-28).
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


class Attribute(NamedTuple):
    """What an attribute means, and its value for an attempt; None where it is unknown or does not apply."""

    meaning: str
    of: Callable[[_Ended, _Tried], Value | None]


def _named(text: str | None) -> str | None:
    return text[:_MAX_CHARS] if text else None


def _usd(nano: int | None) -> float | None:
    return None if nano is None else to_usd(nano)


def _seconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / 1e6


def _number[N: (int, float)](kind: type[N], *names: str) -> Callable[[_Ended, _Tried], N | None]:
    """Reads a number out of the parameters of the request, under the first of these names that it has."""

    def read(_call: _Ended, it: _Tried) -> N | None:
        found = next((value for name in names if (value := it.params.get(name)) is not None), None)
        return kind(found) if isinstance(found, int | float) and not isinstance(found, bool) else None

    return read


def _error_type(it: _Tried) -> str | None:
    """None for a stream that its reader left: that is no error of anybody."""
    was_left = it.row.status == "cancelled" and it.row.first_chunk_us is not None
    return None if was_left else it.row.error_type


def _output_type(call: _Ended, it: _Tried) -> str | None:
    if call.task is TaskType.IMAGE_GENERATION:
        return "image"
    return "json" if it.params.get("response_format") not in (None, {"type": "text"}) else None


# Of a call. Every span has them.
CALL_ATTRIBUTES: dict[str, tuple[str, Callable[[_Ended], Value | None]]] = {
    "agentswarm.call.id": ("id of the call, as in the ledger, answers and errors", lambda it: str(it.call_id)),
    "agentswarm.tool": ("tool that made the call", lambda it: it.scope.tool),
    "agentswarm.agent": ("agent that made it", lambda it: it.scope.agent),
    "agentswarm.run": ("run of the agent", lambda it: it.scope.run),
    "gen_ai.conversation.id": ("conversation of the scope", lambda it: it.scope.conversation),
}
# Of an attempt.
ATTRIBUTES: dict[str, Attribute] = {
    "gen_ai.operation.name": Attribute(
        "`chat`, also about images; `generate_content` to make images",
        lambda call, _: _OPERATIONS.get(call.task, "chat"),
    ),
    "gen_ai.provider.name": Attribute(
        "provider, by the conventions' name where they have one",
        lambda _, it: _PROVIDERS.get(it.candidate.provider, it.candidate.provider),
    ),
    "gen_ai.request.model": Attribute("model as it was sent to the provider", lambda _, it: it.candidate.wire_model),
    "gen_ai.response.model": Attribute("model as the answer names it", lambda _, it: _named(it.row.response_model)),
    "server.address": Attribute("host that was asked", lambda _, it: it.host or None),
    "server.port": Attribute("its port", lambda _, it: it.port or None),
    "error.type": Attribute("error that it ended with, by class", lambda _, it: _error_type(it)),
    "http.response.status_code": Attribute(
        "HTTP status, where it failed", lambda _, it: it.row.http_status if _error_type(it) else None
    ),
    "gen_ai.response.id": Attribute("id of the answer", lambda _, it: _named(it.row.response_id)),
    "gen_ai.response.finish_reasons": Attribute(
        "why the answer ended", lambda _, it: (it.row.finish_reason[:_MAX_CHARS],) if it.row.finish_reason else None
    ),
    "gen_ai.response.time_to_first_chunk": Attribute(
        "seconds to the first chunk of a stream",
        lambda _, it: _seconds(it.row.first_chunk_us) if it.row.stream else None,
    ),
    "gen_ai.output.type": Attribute("`image`, or `json` if the request says so", _output_type),
    "gen_ai.request.stream": Attribute("true for a stream", lambda _, it: it.row.stream or None),
    "gen_ai.request.max_tokens": Attribute(
        "longest answer that was allowed", _number(int, "max_completion_tokens", "max_tokens")
    ),
    "gen_ai.request.temperature": Attribute("temperature, if it was set", _number(float, "temperature")),
    "gen_ai.request.top_p": Attribute("top_p, if it was set", _number(float, "top_p")),
    "gen_ai.usage.input_tokens": Attribute("input, cached tokens included", lambda _, it: it.row.prompt_tokens),
    "gen_ai.usage.output_tokens": Attribute("output, reasoning included", lambda _, it: it.row.completion_tokens),
    "gen_ai.usage.cache_read.input_tokens": Attribute(
        "input read from the provider's cache", lambda _, it: it.row.cached_tokens
    ),
    "gen_ai.usage.cache_creation.input_tokens": Attribute(
        "input written to the provider's cache", lambda _, it: it.row.cache_write_tokens
    ),
    "gen_ai.usage.reasoning.output_tokens": Attribute(
        "output that was reasoning", lambda _, it: it.row.reasoning_tokens
    ),
    "agentswarm.usage.source": Attribute(
        "`counted` where we counted tokens, as the provider did not say",
        lambda _, it: "counted" if it.row.usage_source == "counted" else None,
    ),
    "agentswarm.attempt.number": Attribute(
        "1 for the first of several", lambda call, it: it.row.attempt_number if len(call.attempts) > 1 else None
    ),
    "agentswarm.requested_model": Attribute(
        "model that the caller named, where another one is asked",
        lambda call, it: _named(call.requested) if it.candidate.requested != call.requested else None,
    ),
    "agentswarm.attempt.status": Attribute("status, as in the ledger", lambda _, it: it.row.status),
    "agentswarm.cost.amount": Attribute(
        "cost in US$; absent where it is unknown, which is not 0", lambda _, it: _usd(it.row.cost_nano)
    ),
    "agentswarm.cost.source": Attribute("how the cost is known, or `unknown`", lambda _, it: it.row.cost_source),
    "agentswarm.cost.lower_bound": Attribute(
        "true where it may have cost more than the amount", lambda _, it: it.row.cost_is_lower_bound or None
    ),
    "agentswarm.cost.reserved": Attribute(
        "US$ that budgets reserve beyond the amount", lambda _, it: _usd(it.row.reserved_nano or None)
    ),
}
# Only the span that stands for its call has it.
ATTEMPTS = "agentswarm.call.attempts"
# Those of ATTRIBUTES that metrics have too: few values each, since each combination is stored apart.
METRIC_ATTRIBUTES = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model")
METRICS = {
    "gen_ai.client.operation.duration": ("histogram", "s", "time of each attempt that was sent"),
    "gen_ai.client.operation.time_to_first_chunk": ("histogram", "s", "time to the first chunk of each stream"),
    "gen_ai.client.token.usage": (
        "histogram",
        "{token}",
        "tokens of each attempt; `gen_ai.token.type` is input or output",
    ),
    "agentswarm.cost.amount": ("observable counter", "{USD}", "known costs of this process"),
    "agentswarm.cost.unknown": (
        "observable counter",
        "{attempt}",
        "attempts of this process whose cost is unknown, so that it is in no sum",
    ),
}


def call_watch(settings: Settings) -> Callable[[], OnEnd | None] | None:
    """
    What a client calls when a call begins; that gives what the flow calls when it ends.

    Returns:
        None if telemetry is off: then OpenTelemetry is not even imported.
    """
    return None if settings.telemetry == "off" else partial(_begin, settings.telemetry_labels)


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
            return [metrics.Observation(value, dict(key)) for key, each in found if (value := read(each))]

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


_sums: dict[tuple[tuple[str, Value], ...], _Sums] = {}


def _begin(labels: tuple[str, ...]) -> OnEnd | None:
    try:
        from opentelemetry.context import get_current

        return partial(_end, _Began(get_current(), time.time_ns(), time.monotonic(), labels))
    except ImportError:
        _warn(f"OpenTelemetry is not installed ({install_command('otel')})")
    except Exception as error:  # noqa: BLE001 - telemetry never fails a call
        _warn(type(error).__name__)
    return None


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
        if self._thread is None:
            self._start()
        if not self._some.is_set():
            self._some.set()
        if len(self._waiting) >= _BATCH and not self._many.is_set():
            self._many.set()

    def _start(self) -> None:
        with self._making:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="agentswarm-telemetry", daemon=True)
                self._thread.start()
                atexit.register(self._finish)

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
    """
    Make the spans and metrics of all calls that have ended, which would otherwise take up to a second.

    Call it before the SDK's `force_flush()`, where a process may be frozen or killed at any time. At exit it is done.
    """
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
    began = call.began
    about_call = _call_attributes(call)
    if len(call.attempts) == 1:
        _attempt_span(call, call.attempts[0], {**about_call, ATTEMPTS: 1}, began.parent, call.error_type)
        return
    trace, tracer, *_ = _instruments()
    attributes = {**about_call, ATTEMPTS: len(call.attempts)}
    if call.error_type is not None:
        attributes["error.type"] = call.error_type
    name = f"call {call.requested[:_MAX_CHARS]}"
    span = tracer.start_span(name, began.parent, trace.SpanKind.INTERNAL, attributes, start_time=began.wall_ns)
    inside = trace.set_span_in_context(span, began.parent)
    for attempt in call.attempts:
        _attempt_span(call, attempt, about_call, inside)
    _finish(span, call.error_type, began.at(call.ended))


def _call_attributes(call: _Ended) -> dict[str, Value]:
    found = {name: value for name, (_, read) in CALL_ATTRIBUTES.items() if (value := read(call)) is not None}
    for name in call.began.labels:
        if name in call.scope.labels:
            found[f"agentswarm.label.{name}"] = call.scope.labels[name]
    return found


def _attempt_span(
    call: _Ended,
    attempt: _Tried,
    about_call: Mapping[str, Value],
    parent: Context,
    error_type: str | None = None,
) -> None:
    """
    One request to a provider as a span, and its metrics.

    Args:
        error_type: The error that its call ended with, if this was its only request. An answer may be of no use: when
            its images cannot be saved, for one.
    """
    attributes = {name: value for name, (_, read) in ATTRIBUTES.items() if (value := read(call, attempt)) is not None}
    if error_type is not None and attempt.row.status == "ok":
        attributes["error.type"] = error_type
    name = f"{attributes['gen_ai.operation.name']} {attributes['gen_ai.request.model']}"
    start = call.began.at(attempt.began)
    trace, tracer, *_ = _instruments()
    span = tracer.start_span(name, parent, trace.SpanKind.CLIENT, {**about_call, **attributes}, start_time=start)
    _finish(span, attributes.get("error.type"), start + (attempt.row.duration_us or 0) * 1000)
    _record(attempt, attributes)


def _finish(span: Span, error_type: Value | None, end_ns: int) -> None:
    """End a span; its status has no description, which would be the message of an error."""
    if error_type is not None:
        span.set_status(_instruments().trace.StatusCode.ERROR)
    span.end(end_ns)


def _record(attempt: _Tried, of_span: Mapping[str, Any]) -> None:
    """Record the metrics of an attempt; a refused one was never sent."""
    row, instruments = attempt.row, _instruments()
    if row.status == "refused":
        return
    attributes = {name: of_span[name] for name in METRIC_ATTRIBUTES if name in of_span}
    if row.duration_us is not None:
        failed = {"error.type": of_span["error.type"]} if "error.type" in of_span else {}
        instruments.duration.record(row.duration_us / 1e6, attributes | failed)
    if row.stream and row.first_chunk_us is not None:
        instruments.first_chunk.record(row.first_chunk_us / 1e6, attributes)
    sums = _sums.setdefault(tuple(attributes.items()), _Sums())
    sums.cost_nano += row.cost_nano or 0
    sums.unknown += row.cost_nano is None
    for kind, count in _counts(attempt):
        instruments.tokens.record(count, {**attributes, "gen_ai.token.type": kind})


def _counts(attempt: _Tried) -> Iterator[tuple[str, int]]:
    for kind, count in (("input", attempt.row.prompt_tokens), ("output", attempt.row.completion_tokens)):
        if count is not None:
            yield kind, count
