"""The LiteLLM edge: a request built and an answer read by LiteLLM's per-provider configs, sent by us."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import anyio.to_thread

from shared.providers.endpoints import find_endpoint, import_litellm, litellm_imported
from shared.providers.image_request import build_images
from shared.providers.image_response import ImageStream
from shared.providers.litellm_client import LiteLLMStream
from shared.providers.local import ensure_running, prepare
from shared.providers.request import attach_pictures, build
from shared.providers.response_stream import HttpStream, PredictionStream
from shared.providers.transport import Exchange
from shared.types import Answer, Candidate, Request, TaskType


async def make_ready(candidate: Candidate, task: TaskType = TaskType.CHAT_COMPLETION) -> Candidate:
    """
    Do what is slow before a request, off the event loop: import LiteLLM once, start the local model.

    Returns:
        The candidate with its endpoint where that is only known now, and with `guarded` as it is.

    Raises:
        ConfigurationError: LiteLLM or the local model cannot run here.
    """
    if candidate.provider == "local" or not litellm_imported.is_set():
        return await anyio.to_thread.run_sync(_prepare, candidate, task, abandon_on_cancel=True)
    return _marked(candidate, task)


def _prepare(candidate: Candidate, task: TaskType) -> Candidate:
    import_litellm()
    if candidate.provider == "local":
        server = ensure_running()
        candidate = replace(candidate, api_base=server.base_url, api_key=server.api_key)
    return _marked(candidate, task)


def _marked(candidate: Candidate, task: TaskType) -> Candidate:
    if task is TaskType.IMAGE_GENERATION:
        return replace(candidate, guarded=True)  # there is no other way to ask for images
    is_guarded = candidate.guarded and find_endpoint(candidate.provider, candidate.wire_model) is not None
    return candidate if is_guarded == candidate.guarded else replace(candidate, guarded=is_guarded)


def open_response(
    candidate: Candidate, request: Request, *, timeout: float, exchange: Exchange | None = None
) -> AsyncGenerator[str | Answer]:
    """
    Make one request; it is sent when the first piece is asked for.

    Args:
        candidate: As `ready` returned it.

        timeout: Seconds to wait for any single read; the caller bounds the whole.

        exchange: Is told what becomes of the request; a fresh one for each.

    Returns:
        Gives text as it comes when a stream was asked for, and last the Answer. Closing it closes the connection.

    Raises:
        LLMError: With the status, the time to wait and what became of the request; StreamInterrupted when
            text had already come.
    """
    exchange = exchange or Exchange()
    if candidate.provider == "local":
        messages, params = prepare(request.messages, request.params)
        request = replace(request, messages=messages, params=params)
    if request.task is TaskType.IMAGE_GENERATION:
        asked = build_images(candidate, request)
        exchange.aim(asked.url)
        return ImageStream(candidate, asked, exchange=exchange, timeout=timeout)
    if request.task is TaskType.VISION:
        request = replace(request, messages=with_pictures(candidate, request), params=_without_detail(request))
    if not candidate.guarded:
        return LiteLLMStream(candidate, request, exchange=exchange, timeout=timeout)
    outgoing = build(candidate, request)
    exchange.aim(outgoing.url)
    kind = PredictionStream if outgoing.wire == "replicate" else HttpStream
    return kind(candidate, outgoing, exchange=exchange, timeout=timeout, stream=request.stream)


def with_pictures(candidate: Candidate, request: Request) -> Sequence[Mapping[str, Any]]:
    """The messages as the model gets them: what it is to look at stands in the last of the user's."""
    if request.task is not TaskType.VISION:
        return request.messages
    fitted = request.fitted.get(candidate.requested, ())
    return attach_pictures(request.messages, [one.picture for one in fitted], request.params.get("detail"))


def _without_detail(request: Request) -> Mapping[str, Any]:
    return {name: value for name, value in request.params.items() if name != "detail"}
