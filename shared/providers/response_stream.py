"""One request on the wire: posted through the guarded transport, and its answer told piece by piece."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import anyio
import httpx

from shared.errors import LLMError
from shared.providers.errors import from_response, from_transport, interrupted, invalid
from shared.providers.litellm_readers import anthropic_events, gemini_events, read_anthropic, read_gemini
from shared.providers.request import Outgoing
from shared.providers.response import (
    Reading,
    UnreadableError,
    take_cohere,
    take_ollama,
    take_openai,
    take_openai_event,
    take_replicate,
)
from shared.providers.sse import StreamReader, read_body
from shared.providers.transport import CONNECT_TIMEOUT_S, Exchange, http_client
from shared.types import Answer, Candidate

type Take = Callable[[Reading, Mapping[str, Any]], None]

# Providers that tell the exact price of a request, in US$.
_REPORTS_COST = frozenset({"openrouter", "perplexity", "xai"})
_POOL_TIMEOUT_S = 10.0
_DRAIN_S = 0.05
_POLL_S = 0.5
_PREDICTION_OVER = frozenset({"failed", "canceled", "aborted"})


class ResponseStream(AsyncGenerator[str | Answer, None]):
    """
    The pieces of an answer, told one by one.

    No async generator: asyncio closes all of those at once when its loop ends, so that one which another is just
    closing is closed twice, and the settling of the call that waits for it breaks.
    """

    def __init__(self) -> None:
        self.pieces: deque[str | Answer] = deque()
        self.over = False
        self._error: LLMError | None = None

    async def more(self) -> None:
        """Get further: add pieces, or say that it is over."""
        raise NotImplementedError

    async def release(self) -> None:
        """Let go of the connection."""

    async def __anext__(self) -> str | Answer:
        try:
            while not self.pieces:
                if self._error is not None:
                    raise self._error
                if self.over:
                    raise StopAsyncIteration
                await self.more()
        except BaseException:
            await self.aclose()
            raise
        return self.pieces.popleft()

    def put(self, texts: Iterable[str]) -> None:
        """Add texts; an error among them comes after those before it."""
        try:
            self.pieces.extend(texts)
        except LLMError as error:
            if not self.pieces:
                raise
            self._error = error

    async def end(self, answer: Answer) -> None:
        """Add the last piece."""
        await self.release()
        self.pieces.append(answer)
        self.over = True

    async def asend(self, _: None) -> str | Answer:
        """The next piece; nothing can be told to the provider meanwhile."""
        return await self.__anext__()

    async def athrow(self, kind: Any, value: Any = None, trace: Any = None) -> str | Answer:  # noqa: ARG002
        """Close it and raise."""
        await self.aclose()
        raise kind if value is None else value

    async def aclose(self) -> None:
        """Close the connection; twice does no harm."""
        self.over = True
        self.pieces.clear()
        self._error = None
        await self.release()


class HttpStream(ResponseStream):
    """A request that one response answers, whole or as a stream."""

    def __init__(
        self, candidate: Candidate, outgoing: Outgoing, *, exchange: Exchange, timeout: float, stream: bool
    ) -> None:
        super().__init__()
        self._candidate = candidate
        self._outgoing = outgoing
        self._exchange = exchange
        self._timeout = timeout
        self._stream = stream
        self._response: httpx.Response | None = None
        self._chunks: AsyncGenerator[bytes] | None = None
        event, self._whole = _takers(outgoing)
        self._reader = StreamReader(candidate, event, self._whole, ndjson=outgoing.wire == "ollama")

    async def more(self) -> None:
        """Post the request, then read what comes."""
        if self._response is None:
            self._response = await post(self._candidate, self._outgoing, self._exchange, self._timeout)
        elif self._outgoing.stream:
            await self._read_chunk(self._response)
        else:
            await self._read_whole(self._response)

    async def release(self) -> None:
        """Close the response."""
        if self._chunks is not None:
            await self._chunks.aclose()
        if self._response is not None:
            await self._response.aclose()

    async def _read_whole(self, response: httpx.Response) -> None:
        try:
            body = await response.aread()
        except httpx.HTTPError as error:
            raise from_transport(self._candidate, error, self._exchange) from error
        reading = Reading()
        read_body(self._candidate, reading, body, self._whole)
        answer = reading.answer()
        if self._stream and answer.text:
            self.pieces.append(answer.text)
        await self.end(with_reported_cost(self._candidate, answer))

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
            if self._error is not None or not reader.reading.ended:
                return
            await _drain(self._chunks)
        self.put(reader.close())
        if self._error is None:
            await self.end(with_reported_cost(self._candidate, reader.answer()))


class PredictionStream(ResponseStream):
    """Replicate's way: a prediction is created, then looked at again and again until it is done."""

    def __init__(
        self, candidate: Candidate, outgoing: Outgoing, *, exchange: Exchange, timeout: float, stream: bool
    ) -> None:
        super().__init__()
        self._candidate = candidate
        self._outgoing = outgoing
        self._exchange = exchange
        self._timeout = timeout
        self._stream = stream
        self._reading = Reading()
        self._address: str | None = None
        if not stream:
            outgoing.headers["prefer"] = f"wait={max(1, min(60, int(timeout)))}"

    async def more(self) -> None:
        """Create the prediction, or look at it once more."""
        if self._address:
            await anyio.sleep(_POLL_S)
        known = len(self._reading.pieces)
        try:
            await self._look(self._address)
        except LLMError as error:
            if not any(self._reading.pieces):
                raise
            raise interrupted(self._candidate, error) from error
        if self._stream:
            self.put(piece for piece in self._reading.pieces[known:] if piece)
        if self._reading.ended:
            await self.end(self._reading.answer())

    async def _look(self, url: str | None) -> None:
        response = await post(self._candidate, self._outgoing, self._exchange, self._timeout, look_at=url)
        try:
            content = await response.aread()
        except httpx.HTTPError as error:
            raise from_transport(self._candidate, error, self._exchange) from error
        finally:
            await response.aclose()
        read_body(self._candidate, self._reading, content, self._take)

    def _take(self, reading: Reading, body: Mapping[str, Any]) -> None:
        ident = body.get("id")
        if not isinstance(ident, str) or not ident.isalnum():
            raise UnreadableError("a prediction without an id")
        # Not where the answer says that it is, which could be anywhere.
        base = self._outgoing.url.partition("/models/")[0].partition("/deployments/")[0].removesuffix("/predictions")
        self._address = f"{base}/predictions/{ident}"
        take_replicate(reading, body)
        if body.get("status") in _PREDICTION_OVER:
            reading.failure = {"error": f"The prediction {body['status']}"}


async def post(
    candidate: Candidate, outgoing: Outgoing, exchange: Exchange, timeout: float, *, look_at: str | None = None
) -> httpx.Response:
    """
    Send the request, or a GET for `look_at` with its headers.

    Returns:
        A response whose status says success and whose body is still to be read.

    Raises:
        LLMError: There is none.
    """
    try:
        content = None if look_at else outgoing.content()
    except (ValueError, TypeError) as error:
        raise invalid(candidate, f"The request to {candidate.model} has no JSON form: {error}") from error
    client = await http_client()
    request = client.build_request(
        "GET" if look_at else "POST",
        look_at or outgoing.url,
        headers=outgoing.headers,
        content=content,
        # With half of its time gone before it could begin, it is this process that has too much to do.
        timeout=httpx.Timeout(timeout, connect=min(CONNECT_TIMEOUT_S, timeout), pool=min(_POOL_TIMEOUT_S, timeout / 2)),
        extensions={"exchange": exchange},
    )
    try:
        response = await client.send(request, stream=True)
    except httpx.HTTPError as error:
        raise from_transport(candidate, error, exchange) from error
    if response.is_success:
        return response
    try:
        body = await response.aread()
    except httpx.HTTPError:
        body = b""
    finally:
        await response.aclose()
    raise from_response(candidate, response.status_code, response.headers, body)


async def _drain(chunks: AsyncGenerator[bytes]) -> None:
    """Read what follows the end marker, so that the connection can be used again; not for long."""
    with anyio.move_on_after(_DRAIN_S):
        try:
            async for _ in chunks:
                pass
        except httpx.HTTPError:
            return


def _takers(outgoing: Outgoing) -> tuple[Take, Take]:
    """What reads one event of a stream, and what reads a whole answer."""
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


def with_reported_cost(candidate: Candidate, answer: Answer) -> Answer:
    """The answer, with a cost only where the provider is known to mean US$ by it."""
    trusted = answer.reported_cost is None or candidate.provider in _REPORTS_COST
    return answer if trusted else replace(answer, reported_cost=None)
