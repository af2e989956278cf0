"""The guarded HTTP transport: one host per attempt, no redirects, a size limit, and a record of what was sent."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import httpx

from shared.config import tls_context
from shared.providers.proxies import proxy_for, shown

MAX_RESPONSE_BYTES = 64 * 2**20
CONNECT_TIMEOUT_S = 5.0
MAX_CONNECTIONS = 200


class Refused(httpx.TransportError):
    """The guard rejected a request or a response; the message says why."""


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
        exchange.sent = True
        # The client would send a cookie with the next request, which may belong to another customer.
        headers = httpx.Headers([pair for pair in response.headers.raw if pair[0].lower() != b"set-cookie"])
        exchange.status = response.status_code
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

    async def aclose(self) -> None:
        await self._inner.aclose()


def _check(response: httpx.Response) -> None:
    if response.has_redirect_location:
        raise Refused("it is a redirect, which is not followed")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused("its body is compressed, although that was not requested")


@lru_cache(maxsize=256)
def parsed(url: str) -> httpx.URL:
    """The URL, from a cache: each request needs that of its provider several times."""
    return httpx.URL(url)


def _port(url: httpx.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


# A transport of httpx, or a function that makes one for each event loop.
type Transport = httpx.AsyncBaseTransport | Callable[[], httpx.AsyncBaseTransport]


class Network:
    """
    Where requests go: the HTTP clients over one transport, one client for each event loop, closed with it.

    Args:
        transport: What sends them. None: the network. One with a `base_url` answers every model there itself, in
            OpenAI's format and without a key.
    """

    def __init__(self, transport: Transport | None = None) -> None:
        self._transport = transport
        self.base_url: str | None = getattr(transport, "base_url", None)
        self._clients: _Clients = WeakKeyDictionary()

    async def client(self) -> httpx.AsyncClient:
        """The running event loop's client, made at its first use."""
        loop = asyncio.get_running_loop()
        keeper, client = self._clients.get(loop, (None, None))
        if client is None or client.is_closed:
            # asyncio.run() finalises the loop's asynchronous generators before it closes the loop: the one
            # moment at which connections that belong to that loop can still be closed.
            keeper = self._keep_open()
            client = await anext(keeper)
            self._clients[loop] = keeper, client
        return client

    async def _keep_open(self) -> AsyncGenerator[httpx.AsyncClient]:
        guarded = GuardedTransport(self._make_transport())
        async with httpx.AsyncClient(transport=guarded, follow_redirects=False, trust_env=False) as client:
            yield client

    def _make_transport(self) -> httpx.AsyncBaseTransport:
        if isinstance(self._transport, httpx.AsyncBaseTransport):
            return self._transport
        return ByProxy() if self._transport is None else self._transport()


type _Clients = WeakKeyDictionary[
    asyncio.AbstractEventLoop, tuple[AsyncGenerator[httpx.AsyncClient] | None, httpx.AsyncClient]
]


class ByProxy(httpx.AsyncBaseTransport):
    """
    Sends each request through the proxy that the environment names for it at that moment, else directly.

    Through a proxy TLS still ends at the provider, whose certificate is checked as always.
    """

    def __init__(self) -> None:
        self._transports: dict[tuple[str | None, ssl.SSLContext], httpx.AsyncBaseTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`, and note the proxy in its Exchange."""
        proxy, tls = proxy_for(request.url), tls_context()
        if proxy is not None:
            request.extensions["exchange"].proxy = shown(proxy)
        transport = self._transports.get((proxy, tls))
        if transport is None:
            transport = self._transports[proxy, tls] = _http_transport(proxy, tls)
        return await transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the connections."""
        for transport in self._transports.values():
            await transport.aclose()


def _http_transport(proxy: str | None, tls: ssl.SSLContext) -> httpx.AsyncBaseTransport:
    limits = httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=50, keepalive_expiry=30.0)
    try:
        through = None if proxy is None else httpx.Proxy(proxy, ssl_context=tls if proxy.startswith("https:") else None)
        return httpx.AsyncHTTPTransport(verify=tls, trust_env=False, limits=limits, proxy=through)
    except ImportError:
        raise httpx.ProxyError("a SOCKS proxy needs a package: pip install socksio") from None
    except (ValueError, httpx.InvalidURL):
        raise httpx.ProxyError("it is not the address of a proxy, such as http://proxy.example:8080") from None


_network = Network()


def current_network() -> Network:
    """Where the requests of clients go that have no transport of their own."""
    return _network


@contextmanager
def use_transport(transport: Transport) -> Iterator[None]:
    """Meanwhile the requests of every client without a transport of its own go through this one; for tests."""
    global _network
    before, _network = _network, Network(transport)
    try:
        yield
    finally:
        _network = before


@dataclass(slots=True)
class Exchange:
    """
    What happened to one request on the wire.

    `sent` is true as soon as the first byte may have been sent to `host`; `proxy` is the one that it went through.
    """

    network: Network = field(default_factory=current_network)
    host: str = ""
    port: int = 0
    sent: bool = False
    status: int | None = None
    received: int = 0
    proxy: str | None = None
    # Called whenever a part of a stream's answer arrives; whoever waits for it starts the wait anew.
    heard: Callable[[], None] = lambda: None

    def aim(self, url: str) -> None:
        """Allow requests to the host and port of `url`, and to no other."""
        target = parsed(url)
        self.host, self.port = target.host, _port(target)

    async def trace(self, event: str, info: dict[str, Any]) -> None:
        """Receive httpcore's trace events (httpcore 1.0, docs/extensions.md, read 2026-11-24)."""
        if event.endswith("send_request_headers.started"):
            # A proxy is first asked for a way to the host, which says nothing of the request.
            asks_proxy = getattr(info.get("request"), "method", b"") == b"CONNECT"
            self.sent = self.sent or not asks_proxy
