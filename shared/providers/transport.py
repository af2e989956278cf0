"""The guarded HTTP transport: one host per attempt, no redirects, a size limit, and a record of what was sent."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import httpx

MAX_RESPONSE_BYTES = 64 * 2**20
CONNECT_TIMEOUT_S = 5.0
MAX_CONNECTIONS = 200


class Refused(httpx.TransportError):
    """The guard rejected a request or a response; the message says why."""


@dataclass(slots=True)
class Exchange:
    """
    What happened to one request on the wire.

    `sent` is true as soon as the first byte may have been sent; `ended` once the whole response has been read.
    """

    host: str = ""
    port: int = 0
    sent: bool = False
    connected: bool = False
    status: int | None = None
    headers: httpx.Headers = field(default_factory=httpx.Headers)
    received: int = 0
    ended: bool = False

    def aim(self, url: str) -> None:
        """Allow requests to the host and port of `url`, and to no other."""
        parsed = httpx.URL(url)
        self.host, self.port = parsed.host, _port(parsed)

    async def trace(self, event: str, _info: dict[str, Any]) -> None:
        """Receive httpcore's trace events (httpcore 1.0, docs/extensions.md, read 2026-11-24)."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self.connected = True
        elif event.endswith("send_request_headers.started"):
            self.sent = self.connected = True


class GuardedTransport(httpx.AsyncBaseTransport):
    """
    Enforces the limits around another transport.

    It wraps httpx's own transport, so that recorders which patch that still see the traffic.

    Args:
        inner: The transport that sends the requests.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`, which must carry its Exchange in the extension "exchange"."""
        exchange: Exchange = request.extensions["exchange"]
        if (request.url.host, _port(request.url)) != (exchange.host, exchange.port):
            raise Refused(f"a request to {request.url.host} is not part of this attempt")
        request.headers["accept-encoding"] = "identity"
        request.extensions["trace"] = exchange.trace
        response = await self._inner.handle_async_request(request)
        exchange.sent = exchange.connected = True
        # The client would send a cookie with the next request, which may belong to another customer.
        headers = httpx.Headers([pair for pair in response.headers.raw if pair[0].lower() != b"set-cookie"])
        exchange.status, exchange.headers = response.status_code, headers
        try:
            _check(response)
        except Refused:
            await response.aclose()
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - an async transport's contract
        return httpx.Response(
            response.status_code,
            headers=headers,
            stream=_CappedStream(response.stream, exchange),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


class _CappedStream(httpx.AsyncByteStream):
    """The response's bytes, counted in the Exchange, with an error beyond the limit."""

    def __init__(self, inner: httpx.AsyncByteStream, exchange: Exchange) -> None:
        self._inner = inner
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            self._exchange.received += len(chunk)
            if self._exchange.received > MAX_RESPONSE_BYTES:
                raise Refused(f"it is larger than {MAX_RESPONSE_BYTES >> 20} MiB")
            yield chunk
        self._exchange.ended = True

    async def aclose(self) -> None:
        await self._inner.aclose()


def _check(response: httpx.Response) -> None:
    if response.has_redirect_location:
        raise Refused("it is a redirect, which is not followed")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused("its body is compressed, although that was not requested")


def _port(url: httpx.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def network() -> httpx.AsyncBaseTransport:
    """The transport below the guard; tests replace it to route every host name to their own server."""
    return httpx.AsyncHTTPTransport(
        verify=_ssl_context(),
        trust_env=False,
        limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=50, keepalive_expiry=30.0),
    )


@lru_cache(maxsize=1)
def _ssl_context() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=True)


_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncGenerator[httpx.AsyncClient]] = WeakKeyDictionary()
_open: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()


async def http_client() -> httpx.AsyncClient:
    """The running event loop's client, created on first use and closed with the loop."""
    loop = asyncio.get_running_loop()
    client = _open.get(loop)
    if client is None or client.is_closed:
        # asyncio.run() finalises the loop's asynchronous generators before it closes the loop: the last
        # moment at which the loop's connections can be closed.
        keeper = _keep_open()
        client = await anext(keeper)
        _clients[loop], _open[loop] = keeper, client
    return client


async def _keep_open() -> AsyncGenerator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        transport=GuardedTransport(network()), follow_redirects=False, trust_env=False
    ) as client:
        yield client
