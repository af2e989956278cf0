"""The LiteLLM edge: a request built and an answer read by LiteLLM's per-provider configs, sent by us."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import anyio.to_thread

from shared import local_model, media
from shared.config import quiet_litellm
from shared.errors import ConfigurationError
from shared.provider_image_answers import Drawn
from shared.provider_image_requests import build_images, shown
from shared.provider_requests import build
from shared.provider_sending import Asked, Predicted
from shared.provider_targets import find_target, litellm_providers
from shared.provider_unguarded import ThroughLiteLLM
from shared.transport import Exchange
from shared.types import Answer, Candidate, Request, TaskType, Usage

_IMAGE_TOKENS = 800
_MESSAGE_TOKENS = 4
_SLICE = 20_000

_import_lock = threading.Lock()
_imported = threading.Event()


async def ready(candidate: Candidate, task: TaskType = TaskType.CHAT_COMPLETION) -> Candidate:
    """
    Do what is slow before a request, off the event loop: import LiteLLM once, start the local model.

    Returns:
        The candidate with its endpoint where that is only known now, and with `guarded` as it is.

    Raises:
        ConfigurationError: LiteLLM or the local model cannot run here.
    """
    if candidate.provider == "local" or not _imported.is_set():
        return await anyio.to_thread.run_sync(_prepare, candidate, task, abandon_on_cancel=True)
    return _marked(candidate, task)


def _prepare(candidate: Candidate, task: TaskType) -> Candidate:
    import_litellm()
    if candidate.provider == "local":
        server = local_model.ensure_running()
        candidate = replace(candidate, api_base=server.base_url, api_key=server.api_key)
    return _marked(candidate, task)


def _marked(candidate: Candidate, task: TaskType) -> Candidate:
    if task is TaskType.IMAGE_GENERATION:
        return replace(candidate, guarded=True)  # there is no other way to ask for images
    is_guarded = candidate.guarded and find_target(candidate.provider, candidate.wire_model) is not None
    return candidate if is_guarded == candidate.guarded else replace(candidate, guarded=is_guarded)


def import_litellm() -> None:
    """
    Import LiteLLM (about 5 s the first time) without its downloads and its reading of .env.

    Raises:
        ConfigurationError: It cannot be imported.
    """
    with _import_lock:
        if _imported.is_set():
            return
        with quiet_litellm():
            try:
                import litellm  # noqa: F401 - only to have it imported
            except ImportError as error:
                raise ConfigurationError(f"LiteLLM cannot be imported: {error}") from error
        _imported.set()


def guarded(provider: str, wire_model: str) -> bool:
    """Whether requests to the model go through our transport, and not through LiteLLM's own clients."""
    import_litellm()
    return find_target(provider, wire_model) is not None


def providers() -> dict[str, bool]:
    """Every provider that LiteLLM knows, and whether its chat models are guarded."""
    import_litellm()
    return {name: find_target(name, "model") is not None for name in sorted(litellm_providers())}


def send(
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
        messages, params = local_model.prepare(request.messages, request.params)
        request = replace(request, messages=messages, params=params)
    if request.task is TaskType.IMAGE_GENERATION:
        asked = build_images(candidate, request)
        exchange.aim(asked.url)
        return Drawn(candidate, asked, exchange=exchange, timeout=timeout)
    if request.task is TaskType.VISION:
        request = replace(request, messages=with_pictures(candidate, request), params=_without_detail(request))
    if not candidate.guarded:
        return ThroughLiteLLM(candidate, request, exchange=exchange, timeout=timeout)
    outgoing = build(candidate, request)
    exchange.aim(outgoing.url)
    kind = Predicted if outgoing.wire == "replicate" else Asked
    return kind(candidate, outgoing, exchange=exchange, timeout=timeout, stream=request.stream)


async def fit_pictures(candidate: Candidate, request: Request) -> None:
    """Bring the pictures that a model is to look at to what it makes use of, once for each model."""
    if request.task is not TaskType.VISION or candidate.requested in request.fitted:
        return
    detail: Any = request.params.get("detail") or "auto"
    fit: Any = partial(media.fit, provider=candidate.provider, model=candidate.wire_model, detail=detail)
    request.fitted[candidate.requested] = tuple([await media.off_loop(fit, each) for each in request.pictures])


def with_pictures(candidate: Candidate, request: Request) -> Sequence[Mapping[str, Any]]:
    """The messages as the model gets them: what it is to look at stands in the last of the user's."""
    if request.task is not TaskType.VISION:
        return request.messages
    fitted = request.fitted.get(candidate.requested, ())
    return shown(request.messages, [one.picture for one in fitted], request.params.get("detail"))


def _without_detail(request: Request) -> Mapping[str, Any]:
    return {name: value for name, value in request.params.items() if name != "detail"}


def count_tokens(
    candidate: Candidate,  # noqa: ARG001 - all are counted with one encoding so far
    messages: Sequence[Mapping[str, Any]],
    text: str,
) -> Usage:
    """
    An estimate for a request whose provider gave no counts, made offline.

    Returns:
        Usage with source "counted"; unknown usage when it cannot be counted.
    """
    try:
        import_litellm()
        prompt = sum(_MESSAGE_TOKENS + sum(_count(part) for part in _texts_of(message)) for message in messages)
        return Usage(prompt_tokens=prompt, completion_tokens=_count(text), source="counted")
    except Exception:  # noqa: BLE001 - an estimate must never break the call that it is for
        return Usage()


def _texts_of(message: Mapping[str, Any]) -> Iterator[str | None]:
    """The texts of a message; None for each picture or file."""
    content = message.get("content")
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            yield part
        elif isinstance(part, Mapping):
            yield part["text"] if isinstance(part.get("text"), str) else None
    if calls := message.get("tool_calls"):
        yield str(calls)


def _count(text: str | None) -> int:
    """Tokens in the encoding that LiteLLM brings along; a flat figure for a picture."""
    from litellm.litellm_core_utils.default_encoding import encoding

    if text is None:
        return _IMAGE_TOKENS
    # In slices, since its time grows with the square of a text without spaces.
    slices = (text[start : start + _SLICE] for start in range(0, len(text), _SLICE))
    return sum(len(encoding.encode(part, disallowed_special=())) for part in slices)
