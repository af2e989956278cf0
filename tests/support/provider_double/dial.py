"""Dialling the double under the providers' real host names: httpx transports whose connections go to the loopback."""

import ssl
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import httpcore
import httpx

type Address = Callable[[str], tuple[str, int]]
"""Host name to the address and port to connect to; `Double.address` is one."""


class _Plain(httpcore.NetworkStream):
    """A connection on which TLS is only pretended, so that the URL stays the provider's own https one."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(self, *_: Any, **__: Any) -> httpcore.NetworkStream:
        return self

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _AsyncPlain(httpcore.AsyncNetworkStream):
    """The same for asyncio."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        return self

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class Backend(httpcore.NetworkBackend):
    """httpcore's network with the connect address replaced."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._network = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to where the double says."""
        return _Plain(self._network.connect_tcp(*self._address(host), timeout, local_address, socket_options))


class AsyncBackend(httpcore.AsyncNetworkBackend):
    """The same for asyncio."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to where the double says."""
        target = self._address(host)
        return _AsyncPlain(await self._network.connect_tcp(*target, timeout, local_address, socket_options))


_LIMITS = {"max_connections": 100, "max_keepalive_connections": 20, "keepalive_expiry": 5.0}
"""httpx's own; httpcore's are lower."""


@lru_cache
def _no_tls() -> ssl.SSLContext:
    """Never used; httpcore would build its own for each connection."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def transport(address: Address, **limits: Any) -> httpx.HTTPTransport:
    """An httpx transport to the double, for `httpx.Client(transport=...)`."""
    made = httpx.HTTPTransport(verify=_no_tls())
    made._pool = httpcore.ConnectionPool(ssl_context=_no_tls(), network_backend=Backend(address), **_LIMITS | limits)
    return made


def async_transport(address: Address, **limits: Any) -> httpx.AsyncHTTPTransport:
    """An httpx transport to the double, for `httpx.AsyncClient(transport=...)`."""
    made = httpx.AsyncHTTPTransport(verify=_no_tls())
    made._pool = httpcore.AsyncConnectionPool(
        ssl_context=_no_tls(), network_backend=AsyncBackend(address), **_LIMITS | limits
    )
    return made
