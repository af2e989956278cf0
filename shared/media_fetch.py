"""Fetches an image by its URL: every name is resolved once, and the connection goes to the checked address."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterable
from functools import lru_cache, partial
from typing import Any
from urllib.parse import urljoin

import anyio.to_thread
import httpcore
import httpx

from shared.errors import InvalidRequest, LLMError, ProviderTimeout, ProviderUnavailable
from shared.media_hosts import Target, is_allowed, refused, target

MAX_BYTES = 10 * 10**6
MAX_REDIRECTS = 3
_MAX_ADDRESSES = 8
_CONNECT_TIMEOUT_S = 5.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = (
    (b"User-Agent", b"agentswarm-tools"),
    (b"Accept", b"image/png, image/jpeg, image/webp, image/gif"),
    (b"Accept-Encoding", b"identity"),
)
_HINT = "Give another URL, or the image as a file."


async def fetch(url: str, *, private: bool, deadline_s: float) -> bytes:
    """
    The bytes that a URL leads to, whatever they are.

    Args:
        url: From an agent, and so not trusted.

        private: Whether http, private addresses and other ports are allowed.

        deadline_s: Seconds for everything: name, connection, redirects and body.

    Raises:
        InvalidRequest: The URL or an address that it leads to is refused, or the answer is no image of ours.

        ProviderTimeout, ProviderUnavailable: The host is slow or down.
    """
    first = target(url, private=private)
    try:
        async with asyncio.timeout(deadline_s):
            return await _follow(url, first, private)
    except (TimeoutError, httpcore.TimeoutException):
        raise ProviderTimeout(f"{first.shown} did not arrive in {deadline_s:g} s", hint=_HINT) from None
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError):
        # One sentence for all: whether it was a closed port, TLS or a reset is nobody's business.
        raise ProviderUnavailable(f"The host of {first.shown} cannot be reached", hint=_HINT) from None


async def _follow(url: str, here: Target, private: bool) -> bytes:
    shown = f"{here.shown} (redirected)"
    for _ in range(1 + MAX_REDIRECTS):
        found = await _get(here, await _addresses(here, private))
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
        there = target(url, private=private, name=shown)
        if here.scheme == "https" and there.scheme != "https":
            raise refused(there.shown, "a redirect from https to http is not followed")
        here = there
    raise InvalidRequest(f"{here.shown} was not fetched: more than {MAX_REDIRECTS} redirects", hint=_HINT)


async def _addresses(here: Target, private: bool) -> list[str]:
    """The addresses of a host, all of which may be dialled."""
    try:
        found = await resolve(here.host, here.port)
    except (socket.gaierror, UnicodeError) as error:
        if getattr(error, "errno", None) == socket.EAI_AGAIN:
            raise ProviderUnavailable(f"The host of {here.shown} cannot be reached", hint=_HINT) from None
        found = []
    if not 0 < len(found) <= _MAX_ADDRESSES or not all(is_allowed(address, private=private) for address in found):
        # The same words for a name that nobody has and one of the local network: which names there are is not told.
        raise refused(here.shown, "its host has no public address")
    return found


async def _get(here: Target, addresses: list[str]) -> bytes | str:
    """The body, or where a redirect leads."""
    pool = httpcore.AsyncConnectionPool(ssl_context=tls(), network_backend=_Pinned(addresses), max_connections=1)
    address = httpcore.URL(scheme=here.scheme, host=here.host, port=here.port, target=here.path)
    headers = [(b"Host", here.header.encode()), *_HEADERS]
    timeout = {"connect": _CONNECT_TIMEOUT_S, "read": None, "write": None, "pool": None}
    async with pool, pool.stream("GET", address, headers=headers, extensions={"timeout": timeout}) as response:
        answered = httpx.Headers(response.headers)
        if response.status in _REDIRECTS and "location" in answered:
            return answered["location"]
        _check(here, response.status, answered)
        body = bytearray()
        async for chunk in response.aiter_stream():
            body += chunk
            if len(body) > MAX_BYTES:
                raise _too_large(here)
        return bytes(body)


def _check(here: Target, status: int, headers: httpx.Headers) -> None:
    if status >= 500 or status == 429:
        raise ProviderUnavailable(f"{here.shown} answered HTTP {status}", status_code=status, hint=_HINT)
    if status != 200:
        raise InvalidRequest(f"{here.shown} answered HTTP {status}", status_code=status, hint=_HINT)
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise InvalidRequest(f"{here.shown} answered with a compressed body, which was not asked for", hint=_HINT)
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > MAX_BYTES:
        raise _too_large(here)


def _too_large(here: Target) -> LLMError:
    return InvalidRequest(f"{here.shown} is larger than {MAX_BYTES // 10**6} MB", hint="Give a smaller image.")


class _Pinned(httpcore.AsyncNetworkBackend):
    """Connects to checked addresses, whatever name the connection is for; TLS still checks that name."""

    def __init__(self, addresses: list[str]) -> None:
        self._addresses = addresses

    async def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - it was resolved and checked before, and must not be resolved again
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        connect = partial(
            dialler().connect_tcp, timeout=timeout, local_address=local_address, socket_options=socket_options
        )
        for address in self._addresses[:-1]:
            try:
                return await connect(address, port)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await connect(self._addresses[-1], port)


async def resolve(host: str, port: int) -> list[str]:
    """The IP addresses of a host; tests put a resolver of their own here."""
    # A thread that may be left behind: the system's resolver cannot be stopped, and the deadline counts.
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    answers = await anyio.to_thread.run_sync(look_up, abandon_on_cancel=True)
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


def dialler() -> httpcore.AsyncNetworkBackend:
    """What opens connections; tests put one here that leads public addresses to their own server."""
    return httpcore.AnyIOBackend()


@lru_cache(maxsize=1)
def tls() -> ssl.SSLContext:
    """Whom certificates must be signed by; SSL_CERT_FILE and SSL_CERT_DIR are heeded."""
    return httpx.create_ssl_context(trust_env=True)
