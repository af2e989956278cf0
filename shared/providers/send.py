"""The entry point for calls: makes a candidate ready, sends its request and yields the response."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio.to_thread

from shared.providers.drafts import Draft, draft
from shared.providers.endpoints import endpoint_of, import_litellm, litellm_imported
from shared.providers.image_request import build_images
from shared.providers.image_response import ImageStream
from shared.providers.litellm_client import LiteLLMStream
from shared.providers.local import ensure_running, prepare
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
    candidate: Candidate,
    request: Request,
    *,
    timeout: float,
    exchange: Exchange | None = None,
    drafted: Draft | None = None,
) -> ResponseStream[Any]:
    """
    Open one request; it is sent when the first piece is read.

    Args:
        candidate: As returned by `make_ready`.

        timeout: Seconds to wait for any single read; the caller limits the total time.

        exchange: Records what happens to the request; pass a new one for each request.

        drafted: The request as it was built before, to know what it can cost.

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
    if drafted is None or (drafted.outgoing is None and drafted.problem is None):
        drafted = draft(candidate, request)
    if drafted.problem is not None:
        raise drafted.problem
    if drafted.outgoing is None:
        return LiteLLMStream(candidate, drafted.request, exchange=exchange, timeout=timeout)
    exchange.aim(drafted.outgoing.url)
    stream_class = PredictionStream if drafted.outgoing.wire == "replicate" else HttpStream
    return stream_class(candidate, drafted.outgoing, exchange=exchange, timeout=timeout, stream=request.stream)
