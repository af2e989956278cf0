"""The entry point for calls: makes a candidate ready, sends its request and yields the response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import anyio.to_thread

from shared.providers.endpoints import endpoint_of, import_litellm, litellm_imported
from shared.providers.image_request import build_images
from shared.providers.image_response import ImageStream
from shared.providers.litellm_client import LiteLLMStream
from shared.providers.local import ensure_running, prepare
from shared.providers.request import attach_pictures, build
from shared.providers.response_stream import HttpStream, PredictionStream, ResponseStream
from shared.providers.transport import Exchange
from shared.types import Candidate, Request, TaskType


async def make_ready(candidate: Candidate, task: TaskType = TaskType.CHAT_COMPLETION) -> Candidate:
    """
    Do the slow preparation of a request off the event loop: import LiteLLM once, start the local model.

    Returns:
        The candidate with the local model's endpoint and key if it is the local model, and with `guarded` as it will
        be sent.

    Raises:
        ConfigurationError: LiteLLM or the local model cannot run here.
    """
    if candidate.provider == "local" or not litellm_imported.is_set():
        return await anyio.to_thread.run_sync(_prepare, candidate, task, abandon_on_cancel=True)
    return _with_guarded(candidate, task)


def _prepare(candidate: Candidate, task: TaskType) -> Candidate:
    import_litellm()
    if candidate.provider == "local" and candidate.answered_at is None:
        server = ensure_running()
        candidate = replace(candidate, api_base=server.base_url, api_key=server.api_key)
    return _with_guarded(candidate, task)


def _with_guarded(candidate: Candidate, task: TaskType) -> Candidate:
    """The candidate with `guarded` as its requests will be sent."""
    if task is TaskType.IMAGE_GENERATION or candidate.answered_at is not None:
        return replace(candidate, guarded=True)  # these always use our transport
    is_guarded = candidate.guarded and endpoint_of(candidate) is not None
    return candidate if is_guarded == candidate.guarded else replace(candidate, guarded=is_guarded)


def open_response(
    candidate: Candidate, request: Request, *, timeout: float, exchange: Exchange | None = None
) -> ResponseStream[Any]:
    """
    Open one request; it is sent when the first piece is read.

    Args:
        candidate: As returned by `make_ready`.

        timeout: Seconds to wait for any single read; the caller limits the total time.

        exchange: Records what happens to the request; pass a new one for each request.

    Returns:
        Yields text as it arrives if `request.stream` is set, and last the Answer. Closing it closes the connection.

    Raises:
        LLMError: With the status, the time to wait and the outcome of the request; StreamInterrupted if text had
            already arrived.
    """
    exchange = exchange or Exchange()
    if candidate.provider == "local":
        messages, params = prepare(request.messages, request.params)
        request = replace(request, messages=messages, params=params)
    if request.task is TaskType.IMAGE_GENERATION:
        image_outgoing = build_images(candidate, request)
        exchange.aim(image_outgoing.url)
        return ImageStream(candidate, image_outgoing, exchange=exchange, timeout=timeout)
    if request.task is TaskType.VISION:
        request = replace(request, messages=with_pictures(candidate, request), params=_without_detail(request))
    if not candidate.guarded:
        return LiteLLMStream(candidate, request, exchange=exchange, timeout=timeout)
    outgoing = build(candidate, request)
    exchange.aim(outgoing.url)
    stream_class = PredictionStream if outgoing.wire == "replicate" else HttpStream
    return stream_class(candidate, outgoing, exchange=exchange, timeout=timeout, stream=request.stream)


def with_pictures(candidate: Candidate, request: Request) -> Sequence[Mapping[str, Any]]:
    """The messages as they are sent to the model, with the fitted pictures in the last user message."""
    if request.task is not TaskType.VISION:
        return request.messages
    fitted = request.fitted.get(candidate.requested, ())
    return attach_pictures(request.messages, [each.picture for each in fitted], request.params.get("detail"))


def _without_detail(request: Request) -> Mapping[str, Any]:
    return {name: value for name, value in request.params.items() if name != "detail"}
