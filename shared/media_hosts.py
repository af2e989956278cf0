"""Which URLs and addresses an image may be fetched from."""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import httpx

from shared.errors import InvalidRequest
from shared.redaction import redact

MAX_URL = 2048
_PORTS = {"https": 443, "http": 80}
REFUSED = "image_source_refused"

type _Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _networks(text: str) -> tuple[_Network, ...]:
    return tuple(ipaddress.ip_network(network) for network in text.split())


# Source: IANA's IPv4 and IPv6 Special-Purpose Address Registries, Azure's wire server 168.63.129.16, as of 2026-11-24.
# Python's is_global alone is no guard: on 3.12.1 it lets 192.0.0.192, 2002:7f00:1:: and 64:ff9b::a9fe:a9fe through.
_CLOSED = _networks(
    """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24
    192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15
    198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
    2001::/23 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20
    """
)
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
# What an intranet uses, and so what AGENTSWARM_ALLOW_PRIVATE_HOSTS opens.
_INTRANET = _networks("10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 172.16.0.0/12 192.168.0.0/16 ::1/128 fc00::/7")
# Metadata services that lie inside of those: Alibaba Cloud, AWS.
_METADATA = frozenset(map(ipaddress.ip_address, ("100.100.100.200", "fd00:ec2::254")))

_LOCAL_NAMES = ("localhost", "local", "internal", "home.arpa")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_PLAIN_IPV4 = re.compile(r"(0|[1-9]\d{0,2})(\.(0|[1-9]\d{0,2})){3}", re.ASCII)
_NUMBER = re.compile(r"\d+|0[xX][0-9a-fA-F]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that passed: `host` in ASCII (an IP address without brackets), and `shown`, its name for people."""

    scheme: str
    host: str
    port: int
    path: bytes
    shown: str

    @property
    def header(self) -> str:
        """What the Host header says."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == _PORTS[self.scheme] else f"{name}:{self.port}"


def shown(url: str) -> str:
    """The URL without query, fragment and credentials, short enough for an error."""
    text = re.split(r"[?#]", url[:MAX_URL], maxsplit=1)[0]
    return redact(re.sub(r"(?<=://)[^/]*@", "", text), limit=120)


def target(url: str, *, private: bool, name: str | None = None) -> Target:
    """
    Check the text of a URL.

    Args:
        url: As an agent gave it, or as a redirect named it.

        private: Whether http, names of the local network and other ports are allowed.

        name: What to call it; None: the URL itself, without what may be secret in it.

    Raises:
        InvalidRequest: It is refused; the message says why, without query or credentials.
    """
    if len(url) > MAX_URL:
        raise refused("The image's URL", f"it is longer than {MAX_URL} characters")
    name = name or shown(url)
    # Control, format (bidirectional marks), surrogate and unassigned characters, and separators.
    if any(unicodedata.category(c)[0] in "CZ" for c in url) or "\\" in url:
        raise refused(name, "its URL holds a space, a backslash or an invisible character")
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
        raise refused(name, "only port 443 is asked")
    if not private and not _is_ip(host) and _is_local(host):
        raise refused(name, "names of the local network are not fetched")
    return Target(parts.scheme, host, port or _PORTS[parts.scheme], parsed.raw_path, name)


def is_allowed(address: str, *, private: bool) -> bool:
    """Whether a connection may go to an IP address; `private` opens what an intranet uses."""
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
    closed = any(ip in network for network in _CLOSED if network.version == ip.version)
    return ip.is_global and not ip.is_multicast and not closed


def refused(name: str, why: str) -> InvalidRequest:
    """The error for a source that is not touched at all."""
    return InvalidRequest(f"{name} was not fetched: {why} ({REFUSED})", hint="Give another image.")


def _host(parts: SplitResult, parsed: httpx.URL, name: str) -> str:
    """The host in ASCII, on which two parsers must agree."""
    text = parts.hostname or ""
    host = parsed.raw_host.decode("ascii")
    if parts.netloc.startswith("["):
        if host.lower() != text or "%" in host or not _is_ip(host):
            raise refused(name, "its host is not a valid address")
        return host
    labels = host.split(".")
    if (text.isascii() and text != host) or not all(_LABEL.fullmatch(label) for label in labels) or len(host) > 253:
        raise refused(name, "its host is not a valid name")
    # A browser reads 127.1, 0x7f000001 and 0177.0.0.1 as addresses, so a name must not end in a number.
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
