"""Checks on names, addresses, keys, messages and parameters, made before a request is built."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from shared.errors import AuthenticationError, ConfigurationError, ModelNotFound
from shared.models import KEYLESS_PROVIDERS, key_variables
from shared.providers.endpoints import OWN_ENDPOINT
from shared.providers.errors import invalid
from shared.providers.transport import parsed
from shared.redaction import redact
from shared.types import Candidate, Request

# Arguments of the call or the transport, which must not appear among a request's parameters.
NOT_PARAMETERS = frozenset(
    {
        "additional_drop_params",
        "allowed_openai_params",
        "api_base",
        "api_key",
        "api_version",
        "base_url",
        "client",
        "custom_llm_provider",
        "drop_params",
        "extra_query",
        "fallbacks",
        "max_retries",
        "messages",
        "model",
        "num_retries",
        "stream",
        "timeout",
    }
)
# RFC 9110, sections 5.1 and 5.5, without the octets beyond ASCII, which receivers read differently.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]{0,8000}")
# They say where the body ends, where the request goes and how the connection is used.
_TRANSPORTS_HEADERS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_NOT_A_NAME = re.compile(r"://|[\s\\?%]|(^|/)\.\.?(/|$)|^/")
_REMOTE = re.compile(r"(?i)\s*(https?|gs|s3|ftp|file)://|\s*www\.")


def check_name(candidate: Candidate) -> None:
    """
    Reject names that could turn into an address.

    Raises:
        ModelNotFound: It is not a valid model name.
    """
    name = candidate.wire_model
    if not name or len(name) > 300 or not name.isprintable() or _NOT_A_NAME.search(name):
        message = f"{redact(name, limit=60)!r} is not a valid model name"
        raise ModelNotFound(message, provider=candidate.provider, model=candidate.model)


def check_base(candidate: Candidate) -> None:
    """
    Reject an invalid `api_base`.

    Raises:
        ConfigurationError: It is not an http or https URL.
    """
    if candidate.api_base is None:
        return
    try:
        url, host = parsed(candidate.api_base), urlsplit(candidate.api_base).hostname
    except (httpx.InvalidURL, ValueError):
        url, host = httpx.URL(), None
    if url.scheme not in ("http", "https") or not host:
        error = no_endpoint(candidate, "has an api_base that is not an http or https URL")
        if re.fullmatch(r"[\w.-]+(:\d{1,5})?(/[\w./-]*)?", candidate.api_base):
            error.next_step += f" Perhaps you mean http://{redact(candidate.api_base)}"
        raise error


def check_key(candidate: Candidate) -> None:
    """
    Reject a request without a usable key, except where the endpoint is the user's own and may not need one.

    Raises:
        AuthenticationError: The key is missing or malformed; the hint names the variables that could hold it.
    """
    provider, key = candidate.provider, candidate.api_key
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise AuthenticationError(
            f"Authentication failed for {provider} ({candidate.model}): the key contains invalid characters",
            provider=provider,
            model=candidate.model,
        )
    if key or provider in KEYLESS_PROVIDERS | OWN_ENDPOINT or (candidate.api_base and provider != "azure"):
        return
    raise AuthenticationError(
        f"Authentication failed for {provider} ({candidate.model}): no key is set",
        provider=provider,
        model=candidate.model,
        hint=f"Set {' or '.join(key_variables(provider))}.",
    )


def check_messages(
    candidate: Candidate, messages: Sequence[Mapping[str, Any]], *, allow_image_links: bool
) -> list[dict[str, Any]]:
    """
    Copy the messages, which LiteLLM's configs modify, and reject links that would make LiteLLM download something.

    Args:
        allow_image_links: Whether image URLs may be passed to the provider as they are.

    Raises:
        InvalidRequest: There is no message, a message is malformed, or it links to remote content.
    """
    if not messages or not all(isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in messages):
        raise invalid(candidate, "messages must be a list of objects with a role")
    for part in _parts(messages):
        links = [value for value in _strings(part) if _REMOTE.match(value)]
        if links and not (allow_image_links and part.get("type") == "image_url"):
            raise invalid(candidate, f"{candidate.model} accepts images and files only as data: URIs, not as links")
    return copy.deepcopy([dict(message) for message in messages])


def _parts(messages: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """All message parts other than text."""
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping) and part.get("type") not in ("text", "thinking", "tool_result", "tool_use"):
                yield part


def _strings(value: Any) -> Iterator[str]:
    """The first 20 characters of every string in nested data, except under the key "text"."""
    if isinstance(value, str):
        yield value[:20]
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key != "text":
                yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def check_parameters(candidate: Candidate, request: Request) -> dict[str, Any]:
    """
    Copy the caller's parameters, without those that are None.

    Raises:
        InvalidRequest: One of them is not a parameter of a single request, or `n` is not 1.
    """
    params = {name: copy.deepcopy(value) for name, value in request.params.items() if value is not None}
    rejected = sorted(NOT_PARAMETERS & params.keys())
    if rejected:
        raise invalid(candidate, f"{candidate.model} does not take {', '.join(rejected)}")
    if params.pop("n", 1) != 1:
        raise invalid(candidate, f"n must be 1: a call to {candidate.model} returns one answer")
    return params


def check_headers(candidate: Candidate, headers: Any) -> dict[str, str]:
    """
    The caller's extra headers, once nothing in them can end a header or contradict the request that carries them.

    Raises:
        InvalidRequest: A name or a value cannot be sent, or the header is the transport's own.
    """
    if not isinstance(headers, Mapping):
        raise invalid(candidate, f"extra_headers for {candidate.model} must be an object")
    checked: dict[str, str] = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise invalid(candidate, f"extra_headers: {redact(str(name), limit=60)!r} is not a valid name of a header")
        if name.lower() in _TRANSPORTS_HEADERS:
            raise invalid(candidate, f"extra_headers: {name} is set by the transport")
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise invalid(candidate, f"extra_headers: the value of {name} must be text")
        text = str(value).strip(" \t")
        if not _HEADER_VALUE.fullmatch(text):
            raise invalid(candidate, f"extra_headers: the value of {name} must be one line of printable ASCII")
        checked[name] = text
    return checked


def keep_in_path(candidate: Candidate) -> None:
    """
    Reject a name that would cut off the URL path that it goes into.

    Raises:
        ModelNotFound: It contains a "#".
    """
    if "#" in candidate.wire_model:
        message = f"{candidate.model} is not a valid model name"
        raise ModelNotFound(message, provider=candidate.provider, model=candidate.model)


def no_endpoint(candidate: Candidate, problem: str = "has no endpoint") -> ConfigurationError:
    """The error for a provider without a usable endpoint; `problem` continues "{provider}"."""
    return ConfigurationError(
        f"{candidate.provider} {problem}",
        provider=candidate.provider,
        model=candidate.model,
        hint=f"Pass api_base, or set {candidate.provider.upper()}_API_BASE.",
    )
