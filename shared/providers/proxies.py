"""Which proxy a request goes through, by the environment: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

import httpx

from shared.config import proxy_settings

_DEFAULT_PORTS = {"https": 443, "http": 80}
# Desktop programs write "socks" for version 5.
_SCHEMES = {"socks": "socks5"}


def proxy_for(url: httpx.URL) -> str | None:
    """The URL of the proxy for a request; None if it goes to its host directly, as all to this machine do."""
    found = proxy_settings()
    proxy = found.get(url.scheme) or found.get("all")
    if not proxy or _is_direct(url, found):
        return None
    scheme, separator, rest = proxy.rpartition("://")
    return f"{_SCHEMES.get(scheme.lower(), scheme.lower()) if separator else 'http'}://{rest}"


def shown(proxy: str) -> str:
    """The host and port of a proxy, without the credentials of its URL."""
    return proxy.rpartition("://")[2].rpartition("@")[2].partition("/")[0]


def _is_direct(url: httpx.URL, settings: Mapping[str, str]) -> bool:
    host, port = url.host.rstrip(".").lower(), url.port or _DEFAULT_PORTS.get(url.scheme)
    address = _address(host)
    if host == "localhost" or host.endswith(".localhost") or (address is not None and address.is_loopback):
        return True
    entries = (entry.strip().lower() for entry in settings.get("no", "").replace(" ", ",").split(","))
    return any(_matches(entry, host, port, address) for entry in entries if entry)


def _matches(entry: str, host: str, port: int | None, address: _Address | None) -> bool:
    """Whether an entry of NO_PROXY names a host: by "*", name, domain, address or network, with or without a port."""
    if entry == "*":
        return True
    if address is not None:
        try:
            return address in ipaddress.ip_network(entry.strip("[]"), strict=False)
        except ValueError:
            pass
    name, separator, number = entry.rpartition(":")
    if separator and number.isdecimal():
        return int(number) == port and _matches(name, host, port, address)
    domain = entry.strip("[]").removeprefix("*").strip(".")
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))


type _Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _address(host: str) -> _Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
