"""Maps HTTP error responses, error bodies and transport exceptions to the error tree."""

from __future__ import annotations

import json
import math
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from shared.errors import (
    Action,
    AuthenticationError,
    BadResponse,
    ContentBlocked,
    ContextTooLong,
    InvalidRequest,
    LLMError,
    LocalOverload,
    ModelNotFound,
    Outcome,
    Overloaded,
    ProviderTimeout,
    ProviderUnavailable,
    QuotaExhausted,
    RateLimitError,
    RequestTooLarge,
    StreamInterrupted,
)
from shared.providers.transport import Exchange, Refused
from shared.redaction import redact
from shared.types import Candidate, Usage

# HTTP status that an error inside an HTTP 200 stands for, by the provider's error code.
# Sources: Anthropic, OpenAI and Google API error references; real_traffic (read 2026-11-24).
_STATUS_BY_CODE = {
    "overloaded_error": 529,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "too_many_requests_error": 429,
    "insufficient_quota": 429,
    "resource_exhausted": 429,
    "billing_error": 402,
    "authentication_error": 401,
    "unauthenticated": 401,
    "invalid_api_key": 401,
    "permission_error": 403,
    "permission_denied": 403,
    "not_found_error": 404,
    "not_found": 404,
    "model_not_found": 404,
    "request_too_large": 413,
    "invalid_request_error": 400,
    "invalid_argument": 400,
    "failed_precondition": 400,
    "context_length_exceeded": 400,
    "content_filter": 400,
    "timeout_error": 504,
    "deadline_exceeded": 504,
    "unavailable": 503,
    "api_error": 500,
    "server_error": 500,
    "internal_server_error": 500,
    "internal": 500,
}

_CONTEXT = re.compile(
    r"context[_ ]?(length|window|size|limit)|maximum context|prompt is too long|input is too long|too many tokens"
    r"|maximum prompt length|exceeds? the (available )?context|input token count|string_above_max_length"
    r"|reduce the length|too large for model|tokens \+ `?max_new_tokens"
)
_BLOCKED = re.compile(
    r"content[_ ]?(policy|filter|management|moderation|safety)|responsibleaipolicy|moderation|safety[_ ](system|check)"
    r"|flagged|content exists risk|violat\w+ .{0,30}(usage|guideline|polic)|data_inspection_failed|prohibited_content"
)
_QUOTA = re.compile(
    r"insufficient[_ ](quota|balance|credits?|funds)|credit balance|out of credits|requires more credits"
    r"|(purchase|add|buy) (more )?credits|available credits|exceeded your current quota|billing[_ ](hard|not|error)"
    r"|spend(ing)?[_ ]limit|usage limits?\b|key limit exceeded|hard[_ ]limit|payment required|monthly|/ ?month"
)
_RATE = re.compile(r"rate[_ ]?limit|per[_ ](min|sec|day|hour)|requests? rate|too many requests|tpm|rpm|overloaded")
_BAD_KEY = re.compile(
    r"api[_ -]?key.{0,40}(not valid|invalid|incorrect|expired|not found|missing)"
    r"|(invalid|incorrect|expired|missing|no|wrong) .{0,12}api[_ -]?key|(api_key_invalid|invalid_api_key)"
)
_NO_MODEL = re.compile(
    r"model[_ ](not[_ ](found|available|exist)|decommissioned)|not a valid model|(invalid|unknown|unsupported) model"
    r"|no such model|model\b.{0,80}(does not exist|not found|is not available|no longer (supported|available))"
    r"|model\b.{0,80}has been (deprecated|decommissioned|retired)|no endpoints? found"
)
_BAD_CERTIFICATE = "its certificate is not valid"
_TOO_LARGE = re.compile(r"request too large|too large for .{0,80}tokens per")


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """A parsed error body: its message, its error codes, the status that it names and how long to wait."""

    message: str = ""
    codes: tuple[str, ...] = ()
    status: int | None = None
    retry_after: float | None = None

    @property
    def text(self) -> str:
        """Codes and message in lower case, for searching."""
        return " ".join((*self.codes, self.message)).lower()


def from_response(candidate: Candidate, status: int, headers: Mapping[str, str], body: bytes) -> LLMError:
    """The error for an HTTP response with a status other than 2xx."""
    error_body = read_error_body(body)
    retry_after = _retry_after(headers)
    if retry_after is None:
        retry_after = error_body.retry_after
    kind, outcome = _classify(status, error_body, headers)
    return _error(kind, candidate, error_body, status=status, retry_after=retry_after, outcome=outcome)


def from_body(candidate: Candidate, body: Any, *, status: int | None = None, began: bool = False) -> LLMError:
    """
    The error for an error body inside an HTTP 200.

    Args:
        body: The JSON value that holds the error.

        status: HTTP status that it came with.

        began: Whether the model had started to generate, so that the request may have been billed.
    """
    error_body = read_error_body(body)
    named = error_body.status or next(
        (s for code in error_body.codes if (s := _STATUS_BY_CODE.get(code.lower()))), None
    )
    if named is None:
        named = 429 if _RATE.search(error_body.text) else 503 if "overload" in error_body.text else 500
    kind, outcome = _classify(named, error_body, {})
    return _error(
        kind,
        candidate,
        error_body,
        status=status,
        retry_after=error_body.retry_after,
        outcome="unknown" if began else outcome,
        reported_status=named,
    )


def holds_error(body: Any) -> bool:
    """Whether a JSON value is an error instead of an answer."""
    if isinstance(body, list):
        return any(holds_error(item) for item in body)
    return isinstance(body, dict) and (bool(body.get("error")) or "error" in (body.get("type"), body.get("object")))


def from_transport(candidate: Candidate, error: Exception, exchange: Exchange) -> LLMError:
    """The error for an exception raised by the transport."""
    name = candidate.provider
    outcome: Outcome = "unknown" if exchange.sent else "not_sent"
    kind: type[LLMError] = ProviderUnavailable
    action: Action | None = None
    match error:
        case Refused():
            kind, action = BadResponse, "next"
            if exchange.status is not None and 300 <= exchange.status < 400:
                outcome = "rejected"
            message = f"The response from {name} was rejected: {error}"
        case httpx.PoolTimeout():
            kind, message = LocalOverload, f"This process has too many concurrent requests to {name}"
        case httpx.ConnectTimeout():
            message = f"Could not connect to {name}{_via(exchange)} in time"
        case httpx.TimeoutException():
            kind, message = ProviderTimeout, f"{name} did not answer in time ({candidate.model})"
        case httpx.ProxyError() if not exchange.sent:
            message = f"The proxy {exchange.proxy} did not connect to {name}: {error}"
        case _ if not exchange.sent:
            problem = _connection_problem(error)
            action = "next" if problem == _BAD_CERTIFICATE else None
            message = f"Could not connect to {name}{_via(exchange)}: {problem}"
        case _ if exchange.status is not None:
            kind, message = BadResponse, f"The response from {name} was cut off"
        case _:
            message = f"The connection to {name} was lost before it responded"
    return kind(
        redact(message, candidate.api_key),
        provider=name,
        model=candidate.model,
        status_code=exchange.status,
        outcome=outcome,
        action=action,
    )


def bad_response(candidate: Candidate, what: str, usage: Usage | None = None) -> BadResponse:
    """The error for an unreadable response; `what` continues "{provider} sent", `usage` is what it reported anyway."""
    return BadResponse(
        f"{candidate.provider} sent {what} ({candidate.model})",
        provider=candidate.provider,
        model=candidate.model,
        status_code=200,
        outcome="unknown",
        usage=usage if usage is not None and usage.source == "provider" else None,
    )


def invalid(candidate: Candidate, message: str) -> InvalidRequest:
    """The error for a request that is rejected before it is sent."""
    text = redact(message, candidate.api_key, limit=300).rstrip(".")
    return InvalidRequest(text, provider=candidate.provider, model=candidate.model, outcome="not_sent")


def blocked(candidate: Candidate, reason: str, usage: Usage) -> ContentBlocked:
    """The error for an answer that the provider's content filter withheld; it was charged if usage was reported."""
    return ContentBlocked(
        _sentence(f"{candidate.provider} refused to answer ({candidate.model})", reason, candidate),
        provider=candidate.provider,
        model=candidate.model,
        status_code=200,
        outcome="completed" if usage.source == "provider" else "unknown",
        usage=usage,
    )


def interrupted(candidate: Candidate, cause: LLMError) -> StreamInterrupted:
    """`cause` as the error of a stream that had already delivered text."""
    error = StreamInterrupted(
        cause.message, provider=candidate.provider, model=candidate.model, status_code=cause.status_code
    )
    error.__cause__ = cause
    return error


def _classify(status: int, error_body: ErrorBody, headers: Mapping[str, str]) -> tuple[type[LLMError], Outcome]:
    text = error_body.text
    if status in (503, 529, 498):  # 498: Groq's flex tier is full
        return Overloaded, "rejected"
    if status >= 500:
        return ProviderUnavailable, "unknown"
    if status == 408:
        return ProviderTimeout, "unknown"
    if status in (409, 425, 499):
        return ProviderUnavailable, "unknown"
    if status < 400:
        return BadResponse, "rejected" if status >= 300 else "unknown"
    return _classify_rejection(status, error_body, text, headers), "rejected"


def _classify_rejection(status: int, error_body: ErrorBody, text: str, headers: Mapping[str, str]) -> type[LLMError]:
    if status == 429:
        return _classify_429(error_body, text, headers)
    if status == 402 or _QUOTA.search(text):
        return QuotaExhausted
    if status == 413:
        return RequestTooLarge if _TOO_LARGE.search(text) else ContextTooLong
    if status == 403 and _BLOCKED.search(text):
        return ContentBlocked
    if status in (401, 403) or (status in (400, 422) and _BAD_KEY.search(text)):
        return AuthenticationError
    if status in (404, 410):
        return ModelNotFound
    for pattern, kind in ((_CONTEXT, ContextTooLong), (_BLOCKED, ContentBlocked), (_NO_MODEL, ModelNotFound)):
        if pattern.search(text):
            return kind
    return InvalidRequest


def _classify_429(error_body: ErrorBody, text: str, headers: Mapping[str, str]) -> type[LLMError]:
    if "insufficient_quota" in text:
        return QuotaExhausted
    if _TOO_LARGE.search(text):
        return RequestTooLarge
    if headers.get("x-should-retry", "").lower() == "false":
        return QuotaExhausted
    # Messages about a limit per minute often mention billing too; a limit with a time to wait is not exhausted.
    has_wait = error_body.retry_after is not None or _retry_after(headers) is not None
    # Only the message counts, since the type is "rate_limit_error" even for an exhausted monthly limit.
    temporary = has_wait or _RATE.search(error_body.message.lower())
    return QuotaExhausted if _QUOTA.search(text) and not temporary else RateLimitError


def _error(
    kind: type[LLMError],
    candidate: Candidate,
    error_body: ErrorBody,
    *,
    status: int | None,
    retry_after: float | None,
    outcome: Outcome,
    reported_status: int | None = None,
) -> LLMError:
    provider, model, code = candidate.provider, candidate.model, reported_status or status
    if kind is AuthenticationError:
        head = f"Authentication failed for {provider} ({model})"
    elif issubclass(kind, RateLimitError):
        head = f"Rate limit exceeded for {model}"
    elif kind is QuotaExhausted:
        head = f"The {provider} account has no credit or quota left ({model})"
    elif kind is ModelNotFound and error_body.message:
        head = f"{provider} does not know the model {model}"
    elif kind is ModelNotFound:
        head = f"{provider} does not know the model {model}, or the URL is wrong"
    elif kind is ContextTooLong:
        head = f"The input is too long for {model}"
    elif kind is ContentBlocked:
        head = f"{provider} blocked the request under its content policy ({model})"
    elif kind is Overloaded:
        head = f"{provider} is overloaded ({model})"
    elif kind is ProviderTimeout:
        head = f"{provider} did not answer in time ({model})"
    elif kind is InvalidRequest:
        head = f"{provider} rejected the request as invalid ({model})"
    else:
        head = f"{provider} failed with HTTP {code} ({model})"
    # A provider's message about a wrong key may repeat parts of it.
    excerpt = "" if kind is AuthenticationError and code != 403 else error_body.message
    return kind(
        _sentence(head, excerpt, candidate),
        provider=provider,
        model=model,
        status_code=status,
        retry_after=retry_after,
        outcome=outcome,
    )


def _sentence(head: str, excerpt: str, candidate: Candidate) -> str:
    tail = redact(excerpt, candidate.api_key, limit=200).rstrip(". ")
    return f"{head}: {tail}" if tail else head


def read_error_body(body: Any) -> ErrorBody:
    """Parse an error body in any of the shapes that providers use."""
    if isinstance(body, bytes):
        try:
            body = json.loads(body)
        except (ValueError, RecursionError):
            text = body.decode("utf-8", "replace").strip()
            return ErrorBody("" if text.startswith("<") else text[:1000])
    if isinstance(body, str):
        return ErrorBody(body[:1000])
    if isinstance(body, list):
        body = next((item for item in body if isinstance(item, dict)), {})
    if not isinstance(body, dict):
        return ErrorBody()
    inner = body.get("error")
    parts = [part for part in (inner, body.get("message"), body) if isinstance(part, dict)]
    message = inner if isinstance(inner, str) else next((m for part in parts if (m := _message(part))), "")
    codes = tuple(dict.fromkeys(code for part in parts for code in _codes(part)))
    return ErrorBody(message[:1000], codes, _status(parts), next(_delays(parts), None))


def _message(part: Mapping[str, Any]) -> str:
    """The message of one level of an error body, with the upstream provider's message where a router passes it on."""
    metadata = part.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    for key in ("message", "detail", "msg", "title"):
        value = part.get(key)
        if isinstance(value, str) and value:
            return f"{value}: {read_error_body(raw.encode()).message}" if isinstance(raw, str) else value
        if isinstance(value, list):
            return "; ".join(_validation(item) for item in value[:3])
    return ""


def _validation(item: Any) -> str:
    """One entry of a list of validation errors, without the input that the provider echoes."""
    if not isinstance(item, dict):
        return str(item)
    place = item.get("loc")
    where = ".".join(map(str, place)) if isinstance(place, list) else ""
    return f"{where}: {item.get('msg', '')}".strip(": ")


def _codes(part: Mapping[str, Any]) -> Iterator[str]:
    """The error codes of one level of an error body."""
    inner = part.get("innererror")
    details = part.get("details")
    sources = [part, inner, *(details if isinstance(details, list) else ())]
    for source in sources:
        if isinstance(source, dict):
            for key in ("code", "type", "status", "reason"):
                if isinstance(code := source.get(key), str):
                    yield code[:100]


def _status(parts: list[dict[str, Any]]) -> int | None:
    for part in parts:
        for key in ("code", "status_code", "http_status", "status"):
            value = part.get(key)
            if isinstance(value, int | str) and re.fullmatch(r"[45][0-9]{2}", str(value)):
                return int(value)
    return None


def _delays(parts: list[dict[str, Any]]) -> Iterator[float]:
    """Google's RetryInfo, such as {"retryDelay": "38s"}."""
    for part in parts:
        details = part.get("details")
        for detail in details if isinstance(details, list) else ():
            delay = detail.get("retryDelay") if isinstance(detail, dict) else None
            if isinstance(delay, str) and (seconds := _seconds(delay.removesuffix("s"))) is not None:
                yield seconds


def _retry_after(headers: Mapping[str, str]) -> float | None:
    milliseconds = _seconds(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after", "").strip()
    seconds = _seconds(value)
    if seconds is not None or not value[:1].isalpha():
        return seconds
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return None
    wait = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return wait if wait >= 0 else None


def _seconds(value: str) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _via(exchange: Exchange) -> str:
    return "" if exchange.proxy is None else f" through the proxy {exchange.proxy}"


def _connection_problem(error: BaseException) -> str:
    """Why no connection was established."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _BAD_CERTIFICATE
        if isinstance(cause, ssl.SSLError):
            return "no secure connection could be negotiated"
        if isinstance(cause, socket.gaierror):
            return "its host name cannot be resolved"
        cause = cause.__cause__ or cause.__context__
    return "the connection was refused or lost"
