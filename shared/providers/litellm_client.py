"""Calls providers without a usable LiteLLM config through LiteLLM's own wrapper, with its retries off."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from typing import Any

import anyio
import httpx

from shared.errors import ConfigurationError, LLMError, ProviderTimeout, ProviderUnavailable
from shared.providers.call_ids import fit_call_ids
from shared.providers.checks import check_headers, check_messages, check_name, check_parameters
from shared.providers.endpoints import NO_KEY, no_hints
from shared.providers.errors import bad_response, from_response, interrupted
from shared.providers.litellm_readers import take_beside
from shared.providers.response import Reading, clean, take_tool_call
from shared.providers.response_stream import ResponseStream
from shared.providers.sse import check_answer
from shared.providers.transport import Exchange
from shared.providers.usage import openai_usage
from shared.types import Candidate, Request, Usage, WantedSchema

_LOGGING_TIMEOUT_S = 1.0


class LiteLLMStream(ResponseStream[Request]):
    """One call of `litellm.acompletion`, without retries and fallbacks."""

    _response: Any = None

    async def advance(self) -> None:
        """Make the call, then read what it returns."""
        with no_hints():
            await self._advance()

    async def _advance(self) -> None:
        reading = self._reading
        try:
            if self._response is None:
                self._response = await _complete(self._candidate, self._request, self._timeout, self._exchange)
            elif not self._request.stream:
                _take(reading, self._response, "message")
                await self._finish()
            elif (chunk := await anext(self._response, None)) is not None:
                reports = reading.reports
                self._exchange.heard()
                self.put(text for text in [_take(reading, chunk, "delta")] if text)
                if reading.reports != reports:
                    reading.mark_counted()
            else:
                _check_end(self._candidate, reading, self._response)
                await self._finish()
        except Exception as error:
            failure = error if isinstance(error, LLMError) else _error(self._candidate, error, self._request)
            raise (interrupted(self._candidate, failure) if any(reading.pieces) else failure) from error

    async def release(self) -> None:
        """Close LiteLLM's stream and wait for its logging."""
        if self._response is None:
            return
        if self._request.stream:
            await self._response.aclose()
        await _end_logging()

    async def _finish(self) -> None:
        check_answer(self._candidate, self._reading)
        await self.end(self._reading.answer())


async def _complete(candidate: Candidate, request: Request, timeout: float, exchange: Exchange) -> Any:
    import litellm

    check_name(candidate)
    messages = check_messages(candidate, request.messages, allow_image_links=False)
    messages = fit_call_ids(messages, candidate.provider, "")
    params = check_parameters(candidate, request)
    if "extra_headers" in params:
        params["extra_headers"] = check_headers(candidate, params["extra_headers"])
    if isinstance(params.get("response_format"), WantedSchema):
        del params["response_format"]
    if request.stream:
        params["stream_options"] = {**params.get("stream_options", {}), "include_usage": True}
    exchange.sent = True  # LiteLLM does not report when the request leaves
    return await litellm.acompletion(
        model=f"{candidate.provider}/{candidate.wire_model}",
        messages=messages,
        stream=request.stream,
        timeout=timeout,
        # For the caller's own endpoint LiteLLM must not look up a key in the environment.
        api_key=candidate.api_key or (NO_KEY if candidate.api_base else None),
        api_base=candidate.api_base,
        max_retries=0,
        num_retries=0,
        **params,
    )


async def _end_logging() -> None:
    """Finish LiteLLM's logging: in another event loop its worker would drop pending work, with warnings."""
    from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER

    await asyncio.sleep(0)  # a separate task of LiteLLM hands the call to the worker
    worker = GLOBAL_LOGGING_WORKER
    if worker._bound_loop is not asyncio.get_running_loop():  # noqa: SLF001 - there is no public way to find out
        return
    with anyio.move_on_after(_LOGGING_TIMEOUT_S):
        await worker.flush()
        await worker.stop()


def _take(reading: Reading, response: Any, part: str) -> str:
    """Read a response or a chunk from LiteLLM, and return its text."""
    reading.identify({"model": getattr(response, "model", None), "id": getattr(response, "id", None)})
    text = ""
    for choice in list(response.choices)[:1]:
        message = getattr(choice, part, None)
        reading.began = True
        text = clean(getattr(message, "content", None) or "")
        reading.pieces.append(text)
        if thought := getattr(message, "reasoning_content", None):
            reading.reasoning.append(clean(str(thought)))
        for call in getattr(message, "tool_calls", None) or ():
            take_tool_call(reading, call if isinstance(call, dict) else call.model_dump(), whole=part == "message")
        take_beside(reading, message)
        reading.finish(getattr(choice, "finish_reason", None))
    usage = getattr(response, "usage", None)
    if usage is not None:
        # LiteLLM fills in zeros where the provider reported nothing; they count as unknown.
        counts = usage.model_dump()
        if openai_usage(counts).source == "provider":
            reading.take_usage(counts, openai_usage)
    reading.take_tier(getattr(response, "service_tier", None))
    return text


def _check_end(candidate: Candidate, reading: Reading, response: Any) -> None:
    """
    Discard the finish reason and the usage that LiteLLM makes up for streams without them.

    Raises:
        BadResponse: The provider sent no finish reason; LiteLLM's wrapper remembers what really arrived.
    """
    if response.received_finish_reason is None and response.intermittent_finish_reason is None:
        raise bad_response(candidate, "an incomplete stream")
    if not any(getattr(chunk, "usage", None) for chunk in response.chunks):
        reading.usage, reading.raw_usage = Usage(), {}


def _error(candidate: Candidate, error: Exception, request: Request | None = None) -> LLMError:
    """Map LiteLLM's exception by its cause and status, since its class is unreliable."""
    common: Mapping[str, Any] = {"provider": candidate.provider, "model": candidate.model}
    for cause in _causes(error):
        if isinstance(cause, ImportError):
            missing = cause.name or "a package"
            hint = f"Install what LiteLLM needs for {candidate.provider}: pip install {missing}"
            message = f"{candidate.provider} needs {missing}, which is not installed"
            return ConfigurationError(message, hint=hint, **common)
        if isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout):
            return ProviderUnavailable(f"Could not connect to {candidate.provider}", outcome="not_sent", **common)
        if isinstance(cause, httpx.TimeoutException):
            message = f"{candidate.provider} did not answer in time ({candidate.model})"
            return ProviderTimeout(message, outcome="unknown", **common)
    status = getattr(error, "status_code", None)
    headers = getattr(error, "litellm_response_headers", None)
    text = re.sub(r"^(litellm\.)?(\w+: )?(litellm\.\w+: )?(\w+Exception - )?", "", str(error))
    sent = None if request is None else (request.messages, request.params)
    status = status if isinstance(status, int) else 500
    return from_response(candidate, status, headers or {}, text.encode(), sent=sent)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    for _ in range(10):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or cause.__context__
