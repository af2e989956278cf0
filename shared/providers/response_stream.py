"""Posts a request through the guarded transport and yields its response piece by piece."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any, cast

import anyio
import httpx

from shared.errors import LLMError
from shared.models import is_own_host
from shared.providers.errors import from_response, from_transport, interrupted, invalid
from shared.providers.litellm_readers import Take, anthropic_events, gemini_events, read_anthropic, read_gemini
from shared.providers.own_server import advised
from shared.providers.request import Outgoing
from shared.providers.response import (
    Partial,
    Reading,
    UnreadableError,
    marked,
    take_cohere,
    take_ollama,
    take_openai,
    take_openai_event,
    take_replicate,
    tool_call_to_text,
)
from shared.providers.sse import PINGS_S, StreamReader, is_stream, read_body
from shared.providers.transport import CONNECT_TIMEOUT_S, Exchange, parsed
from shared.providers.usage import details, served_tier
from shared.types import Answer, Candidate, Request

# Providers that report the exact cost of a request in US$.
_REPORTS_COST = frozenset({"openrouter", "perplexity", "xai"})
# Each request to these is one search. Source: OpenAI's guide on web search in Chat Completions (read 2026-11-27).
_ALWAYS_SEARCHES = re.compile(r"-search-(preview|api)\b")
# Their grounding is billed by request, that of later models by query (source: see `gemini_grounding`).
_BEFORE_GEMINI_3 = re.compile(r"gemini-[12]\b")
_POOL_TIMEOUT_S = 10.0
_DRAIN_S = 0.05
_POLL_S = 0.5
_PREDICTION_FAILED = frozenset({"failed", "canceled", "aborted"})


class ResponseStream[R: Outgoing | Request](AsyncGenerator[str | Answer, None]):
    """
    One request and its response: yields the pieces of text, and last the Answer.

    Not an async generator: when an event loop ends, asyncio closes all of those at once. One that is being closed by
    another is then closed twice, which breaks the settling of the call that waits for it.

    Args:
        request: What is sent.

        exchange: Records what happens on the wire.

        timeout: Seconds to wait for any single read.

        stream: Whether the caller wants the text piece by piece.
    """

    def __init__(
        self, candidate: Candidate, request: R, *, exchange: Exchange, timeout: float, stream: bool = False
    ) -> None:
        self._candidate = candidate
        self._request = request
        self._exchange = exchange
        self._timeout = timeout
        self._stream = stream
        self._reading = Reading()
        self.pieces: deque[str | Answer] = deque()
        self.finished = False
        self._error: LLMError | None = None

    async def advance(self) -> None:
        """Make progress: add pieces with `put`, or finish with `end`."""
        raise NotImplementedError

    async def release(self) -> None:
        """Release the connection."""

    def so_far(self) -> Partial | None:
        """The answer as far as it has arrived; None when nothing of it has."""
        reading = self._reading
        if not reading.began and reading.usage.source == "unknown":
            return None
        return Partial(self.as_served(reading.answer()), reading.uncounted(), reading.usage_is_final)

    def as_served(self, answer: Answer) -> Answer:
        """The answer with what the response says of it beside its body."""
        return answer

    async def __anext__(self) -> str | Answer:
        try:
            while not self.pieces:
                if self._error is not None:
                    raise self._error
                if self.finished:
                    raise StopAsyncIteration
                await self.advance()
        except BaseException:
            await self.aclose()
            raise
        return self.pieces.popleft()

    def put(self, texts: Iterable[str]) -> None:
        """Add texts; an error raised by the iterable is delivered after the texts before it."""
        try:
            self.pieces.extend(texts)
        except LLMError as error:
            if not self.pieces:
                raise
            self._error = error

    async def end(self, answer: Answer) -> None:
        """Release the connection and add the last piece."""
        await self.release()
        self.pieces.append(answer)
        self.finished = True

    async def asend(self, _: None) -> str | Answer:
        """The next piece; nothing can be sent to the provider meanwhile."""
        return await self.__anext__()

    async def athrow(
        self,
        kind: Any,
        value: Any = None,
        trace: Any = None,  # noqa: ARG002 - part of AsyncGenerator's signature
    ) -> str | Answer:
        """Close the stream and raise."""
        await self.aclose()
        raise kind if value is None else value

    async def aclose(self) -> None:
        """Close the stream and its connection; calling it again does nothing."""
        self.finished = True
        self.pieces.clear()
        self._error = None
        await self.release()


class HttpStream(ResponseStream[Outgoing]):
    """A request answered by a single HTTP response, complete or as a stream."""

    def __init__(
        self, candidate: Candidate, request: Outgoing, *, exchange: Exchange, timeout: float, stream: bool = False
    ) -> None:
        super().__init__(candidate, request, exchange=exchange, timeout=timeout, stream=stream)
        self._response: httpx.Response | None = None
        self._chunks: AsyncGenerator[bytes] | None = None
        take_event, take_body = _readers(request)
        take_event, self._take_body = marked(take_event), marked(take_body, whole=True)
        self._reader = StreamReader(
            candidate,
            self._reading,
            take_event,
            self._take_body,
            ndjson=request.wire == "ollama",
            sent=request.body,
            delivers=stream,
        )
        self._heard_at = time.monotonic()

    async def advance(self) -> None:
        """Post the request, then read what arrives."""
        if self._response is None:
            self._response = await post(self._candidate, self._request, self._exchange, self._timeout)
        elif self._request.stream:
            await self._read_chunk(self._response)
        else:
            await self._read_complete(self._response)

    async def release(self) -> None:
        """Close the response."""
        if self._chunks is not None:
            await self._chunks.aclose()
        if self._response is not None:
            await self._response.aclose()

    async def _read_complete(self, response: httpx.Response) -> None:
        body = await read_all(self._candidate, response, self._exchange)
        if is_stream(body):
            for texts in (self._reader.feed(body), self._reader.close()):
                deque(texts, maxlen=0)
            if self._request.json_mode and self._request.wire == "openai":
                tool_call_to_text(self._reading)
        else:
            read_body(self._candidate, self._reading, body, self._take_body, sent=self._request.body)
        answer = self._reading.answer()
        if self._stream and answer.text:
            self.put([answer.text])
        await self.end(self.as_served(answer))

    def as_served(self, answer: Answer) -> Answer:
        """The answer with its tier from the headers, and with what its provider bills for."""
        # Gemini says it here only. Source: ai.google.dev/gemini-api/docs/priority-inference (read 2026-11-27).
        headers = httpx.Headers() if self._response is None else self._response.headers
        tier = served_tier(headers.get("x-gemini-service-tier")) or answer.service_tier
        return as_billed(self._candidate, replace(answer, service_tier=tier), self._request.body)

    async def _read_chunk(self, response: httpx.Response) -> None:
        reader = self._reader
        if self._chunks is None:
            self._chunks = cast("AsyncGenerator[bytes]", response.aiter_raw())
        try:
            chunk = await anext(self._chunks, None)
        except httpx.HTTPError as error:
            if not reader.complete:
                raise reader.failure(from_transport(self._candidate, error, self._exchange)) from error
            chunk = None
        if chunk is not None:
            self.put(reader.feed(chunk))
            self._show_life()
            if self._error is not None or not self._reading.ended:
                return
            await _drain(self._chunks)
        self.put(reader.close())
        if self._error is None:
            await self.end(self.as_served(self._reading.answer()))

    def _show_life(self) -> None:
        """
        Tell whoever waits that the answer is under way, even if it has no text yet: silence is no bytes.

        Comments do not count, since a proxy may send them for ever; the provider's own pings do for a while.
        """
        now = time.monotonic()
        if self._reader.heard:
            self._heard_at = now
        if self._reader.heard or (self._reader.pinged and now - self._heard_at < PINGS_S):
            self._exchange.heard()
        self._reader.heard = self._reader.pinged = False


class PredictionStream(ResponseStream[Outgoing]):
    """A request to Replicate: a prediction is created, then polled until it is done."""

    def __init__(
        self, candidate: Candidate, request: Outgoing, *, exchange: Exchange, timeout: float, stream: bool = False
    ) -> None:
        super().__init__(candidate, request, exchange=exchange, timeout=timeout, stream=stream)
        self._url: str | None = None
        if not stream:
            request.headers["prefer"] = f"wait={max(1, min(60, int(timeout)))}"

    async def advance(self) -> None:
        """Create the prediction, or poll it."""
        if self._url:
            await anyio.sleep(_POLL_S)
        read_before = len(self._reading.pieces)
        try:
            await self._poll(self._url)
        except LLMError as error:
            if not any(self._reading.pieces):
                raise
            raise interrupted(self._candidate, error) from error
        if self._stream:
            self.put(piece for piece in self._reading.pieces[read_before:] if piece)
        if self._reading.ended:
            await self.end(self._reading.answer())

    async def _poll(self, url: str | None) -> None:
        response = await post(self._candidate, self._request, self._exchange, self._timeout, poll_url=url)
        try:
            content = await read_all(self._candidate, response, self._exchange)
        finally:
            await response.aclose()
        read_body(self._candidate, self._reading, content, self._take, sent=self._request.body)

    def _take(self, reading: Reading, body: Mapping[str, Any]) -> None:
        prediction_id = body.get("id")
        if not isinstance(prediction_id, str) or not prediction_id.isalnum():
            raise UnreadableError("a prediction without an id")
        # Not the URL in the response, which could point anywhere.
        base = self._request.url.partition("/models/")[0].partition("/deployments/")[0].removesuffix("/predictions")
        self._url = f"{base}/predictions/{prediction_id}"
        take_replicate(reading, body)
        if body.get("status") in _PREDICTION_FAILED:
            reading.failure = {"error": f"The prediction {body['status']}"}


async def read_all(candidate: Candidate, response: httpx.Response, exchange: Exchange) -> bytes:
    """
    The whole body of a response.

    Raises:
        LLMError: The connection failed before the end.
    """
    try:
        return await response.aread()
    except httpx.HTTPError as error:
        raise from_transport(candidate, error, exchange) from error


async def post(
    candidate: Candidate, outgoing: Outgoing, exchange: Exchange, timeout: float, *, poll_url: str | None = None
) -> httpx.Response:
    """
    Send the request, or a GET to `poll_url` with the request's headers.

    Returns:
        A response with a success status whose body has not been read yet.

    Raises:
        LLMError: The request failed.
    """
    try:
        content = None if poll_url else outgoing.content()
    except (ValueError, TypeError) as error:
        raise invalid(candidate, f"The request to {candidate.model} cannot be encoded as JSON: {error}") from error
    client = await exchange.network.client()
    request = client.build_request(
        "GET" if poll_url else "POST",
        parsed(poll_url or outgoing.url),
        headers=outgoing.headers,
        content=content,
        # If half of the time passes without a free connection, this process is overloaded.
        timeout=httpx.Timeout(timeout, connect=min(CONNECT_TIMEOUT_S, timeout), pool=min(_POOL_TIMEOUT_S, timeout / 2)),
        extensions={"exchange": exchange},
    )
    try:
        response = await client.send(request, stream=True)
    except httpx.HTTPError as error:
        raise advised(candidate, from_transport(candidate, error, exchange), exchange) from error
    if response.is_success:
        return response
    try:
        body = await response.aread()
    except httpx.HTTPError:
        body = b""
    finally:
        await response.aclose()
    failure = from_response(candidate, response.status_code, response.headers, body, sent=outgoing.body)
    raise advised(candidate, failure, exchange)


async def _drain(chunks: AsyncGenerator[bytes]) -> None:
    """Read what follows the end marker, for a short time only, so that the connection can be reused."""
    with anyio.move_on_after(_DRAIN_S):
        try:
            async for _ in chunks:
                pass
        except httpx.HTTPError:
            return


def _readers(outgoing: Outgoing) -> tuple[Take, Take]:
    """The functions that read one event of a stream, and a complete response."""
    match outgoing.wire:
        case "anthropic":
            return anthropic_events(outgoing), lambda reading, body: read_anthropic(reading, body, outgoing)
        case "gemini":
            return gemini_events(outgoing), lambda reading, body: read_gemini(reading, body, outgoing)
        case "cohere":
            return take_cohere, take_cohere
        case "ollama":
            return take_ollama, take_ollama
    if outgoing.json_mode:
        return take_openai_event, lambda reading, body: take_openai(reading, body, json_mode=True)
    return take_openai_event, take_openai


def as_billed(candidate: Candidate, answer: Answer, body: Mapping[str, Any]) -> Answer:
    """
    The answer with what its provider bills for, as far as the answer itself does not say.

    A reported cost counts where the provider is known to report US$, and at an endpoint of the user's own, which has no
    list price; a cost of 0 there may only mean that nobody set a price.

    Args:
        body: The request's.
    """
    own = is_own_host(candidate.provider, candidate.api_base)
    if candidate.provider not in _REPORTS_COST and not (own and answer.reported_cost):
        answer = replace(answer, reported_cost=None, fee=Decimal(0))
    units = dict(answer.usage.units)
    if candidate.provider == "gemini" and units.get("search") and _bills_by_request(candidate, answer):
        units["search"] = 1
    if candidate.provider in ("openai", "azure") and _ALWAYS_SEARCHES.search(candidate.wire_model):
        units.setdefault("search", 1)
    if "search_low" in candidate.rates.prices and not any(unit.startswith("search") for unit in units):
        # Perplexity charges each request by the search context that was asked for, low where nothing was.
        size = details(body, "web_search_options").get("search_context_size")
        units[f"search_{size}" if size in ("medium", "high") else "search_low"] = 1
    return answer if units == answer.usage.units else replace(answer, usage=replace(answer.usage, units=units))


def _bills_by_request(candidate: Candidate, answer: Answer) -> bool:
    names = (candidate.wire_model, answer.response_model or "")
    return any(_BEFORE_GEMINI_3.search(name) for name in names)
