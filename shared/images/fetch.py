"""Fetches an image from a URL: the host name is resolved once, and only the checked address is connected to."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import httpcore
import httpx

from shared.config import tls_context
from shared.errors import InvalidRequest, ProviderTimeout, ProviderUnavailable
from shared.images.files import MAX_BYTES, too_large
from shared.internal.fair_pool import FairPool
from shared.redaction import redact
from shared.scope import current_scope

MAX_REDIRECTS = 3
_MAX_ADDRESSES = 8
_CONNECT_TIMEOUT_S = 5.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = (
    (b"User-Agent", b"agentswarm-tools"),
    (b"Accept", b"image/png, image/jpeg, image/webp, image/gif"),
    (b"Accept-Encoding", b"identity"),
)
_HINT = "Use another URL, or pass the image as a file."
MAX_URL = 2048
_PORTS = {"https": 443, "http": 80}
REFUSED = "image_source_refused"
# A name server that does not answer occupies a thread for half a minute: those of one tenant must not be all.
_resolvers = FairPool("agentswarm-dns", threads=32, per_owner=8)

type _Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _networks(text: str) -> tuple[_Network, ...]:
    return tuple(ipaddress.ip_network(network) for network in text.split())


# Source: IANA's IPv4 and IPv6 Special-Purpose Address Registries, Azure's wire server 168.63.129.16, as of 2026-11-24.
# Python's is_global alone is not enough: on 3.12.1 it accepts 192.0.0.192, 2002:7f00:1:: and 64:ff9b::a9fe:a9fe.
_BLOCKED = _networks(
    """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24
    192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15
    198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
    2001::/23 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20
    """
)
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
# Addresses used in intranets, which AGENTSWARM_ALLOW_PRIVATE_HOSTS allows.
_INTRANET = _networks("10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 172.16.0.0/12 192.168.0.0/16 ::1/128 fc00::/7")
# Metadata services within those networks: Alibaba Cloud, AWS.
_METADATA = frozenset(map(ipaddress.ip_address, ("100.100.100.200", "fd00:ec2::254")))

_LOCAL_NAMES = ("localhost", "local", "internal", "home.arpa")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_PLAIN_IPV4 = re.compile(r"(0|[1-9]\d{0,2})(\.(0|[1-9]\d{0,2})){3}", re.ASCII)
_NUMBER = re.compile(r"\d+|0[xX][0-9a-fA-F]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """A checked URL: `host` in ASCII (an IP address without brackets), and `display_url`, its name in messages."""

    scheme: str
    host: str
    port: int
    path: bytes
    display_url: str

    @property
    def host_header(self) -> str:
        """The value of the Host header."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == _PORTS[self.scheme] else f"{name}:{self.port}"


async def fetch(url: str, *, private: bool, deadline_s: float) -> bytes:
    """
    Download the content of a URL, without looking at it.

    Args:
        url: Untrusted, since it may come from an agent.

        private: Whether http, private addresses and other ports are allowed.

        deadline_s: Seconds for name resolution, connection, redirects and body together.

    Raises:
        InvalidRequest: The URL or an address that it leads to is refused, or the response is an error or too large.

        ProviderTimeout, ProviderUnavailable: The host is slow or down.
    """
    first = parse_url(url, private=private)
    try:
        async with asyncio.timeout(deadline_s):
            return await _follow(url, first, private)
    except (TimeoutError, httpcore.TimeoutException):
        raise ProviderTimeout(f"{first.display_url} did not arrive in {deadline_s:g} s", hint=_HINT) from None
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError):
        # The same message for a closed port, a TLS failure and a reset, so that it cannot be used to scan ports.
        raise ProviderUnavailable(f"The host of {first.display_url} cannot be reached", hint=_HINT) from None


async def _follow(url: str, here: ImageUrl, private: bool) -> bytes:
    name = f"{here.display_url} (redirected)"
    for _ in range(1 + MAX_REDIRECTS):
        found = await _get(here, await _addresses(here, private))
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
        there = parse_url(url, private=private, name=name)
        if here.scheme == "https" and there.scheme != "https":
            raise refused(there.display_url, "a redirect from https to http is not followed")
        here = there
    raise InvalidRequest(f"{here.display_url} was not fetched: more than {MAX_REDIRECTS} redirects", hint=_HINT)


async def _addresses(here: ImageUrl, private: bool) -> list[str]:
    """The addresses of a host, if all of them are allowed."""
    try:
        found = await resolve(here.host, here.port)
    except (socket.gaierror, UnicodeError) as error:
        if getattr(error, "errno", None) == socket.EAI_AGAIN:
            raise ProviderUnavailable(f"The host of {here.display_url} cannot be reached", hint=_HINT) from None
        found = []
    if not 0 < len(found) <= _MAX_ADDRESSES or not all(is_allowed(address, private=private) for address in found):
        # The same message for an unknown name and one of the local network, so that it does not reveal which exist.
        raise refused(here.display_url, "its host has no public address")
    return found


async def _get(here: ImageUrl, addresses: list[str]) -> bytes | str:
    """The body, or the target of a redirect."""
    pool = httpcore.AsyncConnectionPool(ssl_context=tls(), network_backend=_Pinned(addresses), max_connections=1)
    address = httpcore.URL(scheme=here.scheme, host=here.host, port=here.port, target=here.path)
    headers = [(b"Host", here.host_header.encode()), *_HEADERS]
    timeout = {"connect": _CONNECT_TIMEOUT_S, "read": None, "write": None, "pool": None}
    async with pool, pool.stream("GET", address, headers=headers, extensions={"timeout": timeout}) as response:
        response_headers = httpx.Headers(response.headers)
        if response.status in _REDIRECTS and "location" in response_headers:
            return response_headers["location"]
        _check(here, response.status, response_headers)
        body = bytearray()
        async for chunk in response.aiter_stream():
            body += chunk
            if len(body) > MAX_BYTES:
                raise too_large(here.display_url, MAX_BYTES)
        return bytes(body)


def _check(here: ImageUrl, status: int, headers: httpx.Headers) -> None:
    if status >= 500 or status == 429:
        raise ProviderUnavailable(f"{here.display_url} returned HTTP {status}", status_code=status, hint=_HINT)
    if status != 200:
        raise InvalidRequest(f"{here.display_url} returned HTTP {status}", status_code=status, hint=_HINT)
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise InvalidRequest(f"{here.display_url} sent a compressed body, which was not requested", hint=_HINT)
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > MAX_BYTES:
        raise too_large(here.display_url, MAX_BYTES)


class _Pinned(httpcore.AsyncNetworkBackend):
    """Connects only to the checked addresses, whatever the host name; TLS still verifies that name."""

    def __init__(self, addresses: list[str]) -> None:
        self._addresses = addresses

    async def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - already resolved and checked; it must not be resolved again
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
    """The IP addresses of a host; tests replace this with their own resolver."""
    # In a thread that is abandoned at the deadline, since the system's resolver cannot be cancelled.
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    results = await _resolvers.run(current_scope().owner, look_up)
    return list(dict.fromkeys(str(result[4][0]) for result in results))


def dialler() -> httpcore.AsyncNetworkBackend:
    """The backend that opens connections; tests replace it to route public addresses to their own server."""
    return httpcore.AnyIOBackend()


def tls() -> ssl.SSLContext:
    """The TLS settings; SSL_CERT_FILE and SSL_CERT_DIR apply."""
    return tls_context()


def display_url(url: str) -> str:
    """The URL without query, fragment and credentials, shortened for error messages."""
    text = re.split(r"[?#]", url[:MAX_URL], maxsplit=1)[0]
    return redact(re.sub(r"(?<=://)[^/]*@", "", text), limit=120)


def parse_url(url: str, *, private: bool, name: str | None = None) -> ImageUrl:
    """
    Parse and check a URL.

    Args:
        url: As an agent or a redirect gave it.

        private: Whether http, names of the local network and other ports are allowed.

        name: Its name in messages; None means the URL without the parts that may be secret.

    Raises:
        InvalidRequest: It is refused; the message says why, without query or credentials.
    """
    if len(url) > MAX_URL:
        raise refused("The image's URL", f"it is longer than {MAX_URL} characters")
    name = name or display_url(url)
    # Control, format (bidirectional marks), surrogate and unassigned characters, and separators.
    if any(unicodedata.category(c)[0] in "CZ" for c in url) or "\\" in url:
        raise refused(name, "its URL contains a space, a backslash or an invisible character")
    try:
        parts, parsed = urlsplit(url), httpx.URL(url)
        port = parts.port
    except (ValueError, httpx.InvalidURL):
        raise refused(name, "it is not a valid URL") from None
    if parts.scheme not in (("https", "http") if private else ("https",)):
        raise refused(name, "only https URLs are fetched")
    if "@" in parts.netloc:
        raise refused(name, "a URL with credentials is not fetched")
    host = _host(parts, parsed, name)
    if not private and port not in (None, 443):
        raise refused(name, "only port 443 is allowed")
    if not private and not _is_ip(host) and _is_local(host):
        raise refused(name, "names of the local network are not fetched")
    return ImageUrl(parts.scheme, host, port or _PORTS[parts.scheme], parsed.raw_path, name)


def is_allowed(address: str, *, private: bool) -> bool:
    """Whether connections to an IP address are allowed; `private` adds the addresses used in intranets."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            return False
        ip = ip.ipv4_mapped or ip
    if ip in _METADATA:
        return False
    if private and any(ip in network for network in _INTRANET if network.version == ip.version):
        return True
    if ip.version == 6 and ip not in _PUBLIC_V6:
        return False
    blocked = any(ip in network for network in _BLOCKED if network.version == ip.version)
    return ip.is_global and not ip.is_multicast and not blocked


def refused(name: str, why: str) -> InvalidRequest:
    """The error for a source that is refused without being accessed."""
    return InvalidRequest(f"{name} was not fetched: {why} ({REFUSED})", hint="Use another image.")


def _host(parts: SplitResult, parsed: httpx.URL, name: str) -> str:
    """The host in ASCII; two parsers must agree on it."""
    text = parts.hostname or ""
    host = parsed.raw_host.decode("ascii")
    if parts.netloc.startswith("["):
        if host.lower() != text or "%" in host or not _is_ip(host):
            raise refused(name, "its host is not a valid address")
        return host
    labels = host.split(".")
    if (text.isascii() and text != host) or not all(_LABEL.fullmatch(label) for label in labels) or len(host) > 253:
        raise refused(name, "its host is not a valid name")
    # Browsers accept 127.1, 0x7f000001 and 0177.0.0.1 as addresses, so a name must not end in a number.
    if _NUMBER.fullmatch(labels[-1]) and not (_PLAIN_IPV4.fullmatch(host) and _is_ip(host)):
        raise refused(name, "its host is not a valid address")
    return host


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_local(host: str) -> bool:
    return "." not in host or any(host == name or host.endswith(f".{name}") for name in _LOCAL_NAMES)
