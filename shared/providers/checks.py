"""What is refused before a request is built: names, addresses, keys, messages and parameters."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from shared.errors import AuthenticationError, ConfigurationError, ModelNotFound
from shared.models import KEYLESS_PROVIDERS, key_variables
from shared.providers.endpoints import (
    OWN_ENDPOINT,
)
from shared.providers.errors import invalid
from shared.redaction import redact
from shared.types import Candidate, Request

# What belongs to the call or to the transport and never to a request's parameters.
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
_NO_NAME = re.compile(r"://|[\s\\?%]|(^|/)\.\.?(/|$)|^/")
_REMOTE = re.compile(r"(?i)\s*(https?|gs|s3|ftp|file)://|\s*www\.")


def check_name(candidate: Candidate) -> None:
    """
    Refuse names that could become an address.

    Raises:
        ModelNotFound: It is no name of a model.
    """
    name = candidate.wire_model
    if not name or len(name) > 300 or not name.isprintable() or _NO_NAME.search(name):
        shown = redact(name, limit=60)
        raise ModelNotFound(f"{shown!r} is not the name of a model", provider=candidate.provider, model=candidate.model)


def check_base(candidate: Candidate) -> None:
    """
    Refuse an endpoint of the caller's own that is none.

    Raises:
        ConfigurationError: It is no http or https URL.
    """
    if candidate.api_base is None:
        return
    try:
        url, host = httpx.URL(candidate.api_base), urlsplit(candidate.api_base).hostname
    except (httpx.InvalidURL, ValueError):
        url, host = httpx.URL(), None
    if url.scheme not in ("http", "https") or not host:
        raise no_endpoint(candidate, "has an api_base that is no http or https address")


def check_key(candidate: Candidate) -> None:
    """
    Refuse a request that the provider could only turn away; an endpoint of the user's own may need no key.

    Raises:
        AuthenticationError: Names the variables that could hold the key.
    """
    provider, key = candidate.provider, candidate.api_key
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise AuthenticationError(
            f"Authentication failed for {provider} ({candidate.model}): the key has characters that no key has",
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
    candidate: Candidate, messages: Sequence[Mapping[str, Any]], *, may_pass: bool
) -> list[dict[str, Any]]:
    """
    A copy of the messages, since LiteLLM's configs change them, without what would make it fetch something itself.

    Args:
        may_pass: Whether image URLs go to the provider as they are.

    Raises:
        InvalidRequest: There is no message, or one refers to something that is not in it.
    """
    if not messages or not all(isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in messages):
        raise invalid(candidate, "messages must be a list of objects with a role")
    for part in _parts(messages):
        links = [value for value in _strings(part) if _REMOTE.match(value)]
        if links and not (may_pass and part.get("type") == "image_url"):
            raise invalid(candidate, f"{candidate.model} takes images and files as data: URIs, not as links")
    return copy.deepcopy([dict(message) for message in messages])


def _parts(messages: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The parts of all messages that are not text."""
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping) and part.get("type") not in ("text", "thinking", "tool_result", "tool_use"):
                yield part


def _strings(value: Any) -> Iterator[str]:
    """The strings in nested data, text left out."""
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
    The parameters that the caller gave, without what is no parameter of one request for one answer.

    Raises:
        InvalidRequest: One of them is not.
    """
    params = {name: copy.deepcopy(value) for name, value in request.params.items() if value is not None}
    refused = sorted(NOT_PARAMETERS & params.keys())
    if refused:
        raise invalid(candidate, f"{candidate.model} does not take {', '.join(refused)}")
    if params.pop("n", 1) != 1:
        raise invalid(candidate, f"n must be 1: one call of {candidate.model} gives one answer")
    return params


def keep_in_path(candidate: Candidate) -> None:
    """A name that goes into the path must not end it."""
    if "#" in candidate.wire_model:
        message = f"{candidate.model} is not the name of a model"
        raise ModelNotFound(message, provider=candidate.provider, model=candidate.model)


def no_endpoint(candidate: Candidate, what: str = "has no endpoint") -> ConfigurationError:
    """A model that nobody says how to reach."""
    return ConfigurationError(
        f"{candidate.provider} {what}",
        provider=candidate.provider,
        model=candidate.model,
        hint=f"Give an api_base, or set {candidate.provider.upper()}_API_BASE.",
    )
