"""Maps HTTP error responses, error bodies and transport exceptions to the error tree."""

from __future__ import annotations

import json
import math
import re
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
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
from shared.providers.caller_words import without_callers_words
from shared.providers.error_rules import (
    OVERLOADED,
    PARAMS_OF_INPUT,
    RATE_WORDS,
    REQUEST_TOO_LARGE,
    STATUS_BY_CODE,
    STATUS_OF_MINIMAX,
    Kind,
    kind_by_code,
    kind_by_text,
    seconds_in,
)
from shared.providers.transport import Exchange, Refused
from shared.providers.usage import details
from shared.redaction import redact
from shared.types import Candidate, Usage

_KINDS = frozenset({"type", "code", "status"})
_BAD_CERTIFICATE = "its certificate is not valid"
# Where the parts of an error body are, and where its message is.
_LEVELS = ("error", "message", "detail", "base_resp", "response")
_MESSAGE_KEYS = ("message", "detail", "msg", "status_msg", "error_msg", "error_message", "title", "errors", "error")
_MAX_SENTENCE_CHARS = 300
# Failures that a sentence may name where the provider gives no status at all.
_BY_TEXT_ALONE = {
    ContextTooLong: 400,
    ContentBlocked: 400,
    QuotaExhausted: 402,
    AuthenticationError: 401,
    ModelNotFound: 404,
}
_PIECE_OF_KEY = re.compile(r"[^\s'\"`,;:()\[\]{}<>]{4,}")


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """
    A parsed error body: its message, its error codes, the status that it names and how long to wait.

    `param` is the parameter that the provider names; `words` is the message in lower case, without the caller's words;
    `is_providers`: it has the form of a provider's own error, and not that of a gateway's or a proxy's page.
    """

    message: str = ""
    codes: tuple[str, ...] = ()
    status: int | None = None
    retry_after: float | None = None
    param: str = ""
    words: str = ""
    is_providers: bool = False


def from_response(
    candidate: Candidate, status: int, headers: Mapping[str, str], body: bytes, *, sent: Any = None
) -> LLMError:
    """
    The error for an HTTP response with a status other than 2xx.

    Args:
        sent: The request's body, whose words say nothing about the failure.
    """
    error_body = _read(body, sent)
    retry_after = _retry_after(headers)
    if retry_after is None:
        retry_after = _named_wait(status, error_body)
    kind, outcome = _classify(status, error_body, headers, retry_after)
    return _error(kind, candidate, error_body, status=status, retry_after=retry_after, outcome=outcome)


def from_body(
    candidate: Candidate, body: Any, *, status: int | None = None, began: bool = False, sent: Any = None
) -> LLMError:
    """
    The error for an error body inside an HTTP 200.

    Args:
        body: The JSON value that holds the error.

        status: HTTP status that it came with.

        began: Whether the model had started to generate, so that the request may have been billed.

        sent: As in `from_response`.
    """
    error_body = _read(body, sent)
    named = _named_status(error_body)
    retry_after = _named_wait(named, error_body)
    kind, outcome = _classify(named, error_body, {}, retry_after)
    return _error(
        kind,
        candidate,
        error_body,
        status=status,
        retry_after=retry_after,
        outcome="unknown" if began else outcome,
        reported_status=named,
    )


def _read(body: Any, sent: Any) -> ErrorBody:
    error_body = read_error_body(body)
    return replace(error_body, words=without_callers_words(error_body.message, sent).lower())


def _named_status(error_body: ErrorBody) -> int:
    """The HTTP status that an error inside an HTTP 200 stands for."""
    by_code = (s for code in error_body.codes if (s := STATUS_BY_CODE.get(code.lower())))
    if named := error_body.status or next(by_code, None):
        return named
    if kind := kind_by_code(error_body.codes) or kind_by_text(error_body.words, _BY_TEXT_ALONE):
        return _BY_TEXT_ALONE.get(kind, 400)
    return 429 if RATE_WORDS.search(error_body.words) else 503 if OVERLOADED.search(error_body.words) else 500


def _named_wait(status: int, error_body: ErrorBody) -> float | None:
    """Seconds to wait, as the body says: in a field, or where the request was refused for now, in its sentence."""
    if error_body.retry_after is None and status in (429, 503, 529):
        return seconds_in(error_body.words)
    return error_body.retry_after


def holds_error(body: Any) -> bool:
    """Whether a JSON value is an error instead of an answer."""
    if isinstance(body, list):
        return any(holds_error(item) for item in body)
    if not isinstance(body, dict):
        return False
    return bool(body.get("error")) or "error" in (body.get("type"), body.get("object")) or _minimax_code(body) != 0


def _minimax_code(body: Mapping[str, Any]) -> int:
    """MiniMax's own error code; 0 where there is none."""
    status = body.get("base_resp")
    code = status.get("status_code") if isinstance(status, dict) and not body.get("choices") else 0
    return code if isinstance(code, int) else 0


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


def _classify(
    status: int, error_body: ErrorBody, headers: Mapping[str, str], retry_after: float | None
) -> tuple[type[LLMError], Outcome]:
    if status in (503, 529, 498):  # 498: Groq's flex tier is full
        return Overloaded, "rejected"
    if status >= 500:
        # llama.cpp and Ollama report an input that is too long as a failure of their own.
        too_long = status == 500 and _named_kind(error_body, {ContextTooLong}) is ContextTooLong
        return (ContextTooLong, "rejected") if too_long else (ProviderUnavailable, "unknown")
    if status == 408:
        return ProviderTimeout, "unknown"
    if status in (409, 425, 499):
        return ProviderUnavailable, "unknown"
    if status < 400:
        return BadResponse, "rejected" if status >= 300 else "unknown"
    return _classify_rejection(status, error_body, headers, retry_after), "rejected"


def _classify_rejection(
    status: int, error_body: ErrorBody, headers: Mapping[str, str], retry_after: float | None
) -> type[LLMError]:
    """The kind of a rejected request: by its status, then by code and parameter, by the sentence last."""
    if status == 429:
        return _classify_429(error_body, headers, retry_after)
    if status == 402:
        return QuotaExhausted
    if status == 413:
        return RequestTooLarge if REQUEST_TOO_LARGE.search(error_body.words) else ContextTooLong
    if status in (404, 410):
        return ModelNotFound
    if status in (401, 403):
        possible: set[Kind] = {QuotaExhausted} if status == 401 else {QuotaExhausted, ContentBlocked, ModelNotFound}
        kind = _named_kind(error_body, possible - {ModelNotFound}, by_code=possible)
        return kind if kind in possible else AuthenticationError
    return _named_kind(error_body, _BY_TEXT_ALONE) or InvalidRequest


def _named_kind(
    error_body: ErrorBody, by_text: Iterable[Kind], *, by_code: Iterable[Kind] | None = None
) -> Kind | None:
    """The kind that a code, the parameter or, for the given kinds only, the sentence names."""
    kind = kind_by_code(error_body.codes)
    if kind is not None and (by_code is None or kind in by_code):
        return kind
    if error_body.param and not _is_of_input(error_body.param):
        return InvalidRequest
    return kind_by_text(error_body.words, by_text)


def _is_of_input(param: str) -> bool:
    """Whether a parameter is the input or the model, or limits the output."""
    root = re.split(r"[.\[/]", param.lstrip("$./[").lower())[0]
    return (root in PARAMS_OF_INPUT and "tool_call" not in param) or root.startswith("max_")


def _classify_429(error_body: ErrorBody, headers: Mapping[str, str], retry_after: float | None) -> type[LLMError]:
    if kind_by_code(error_body.codes) is QuotaExhausted:
        return QuotaExhausted
    if REQUEST_TOO_LARGE.search(error_body.words):
        return RequestTooLarge
    if headers.get("x-should-retry", "").lower() == "false":
        return QuotaExhausted
    # Messages about a limit per minute often mention billing too; a limit with a time to wait is not exhausted. Only
    # the message counts, since the type is "rate_limit_error" even for an exhausted monthly limit.
    if retry_after is not None or RATE_WORDS.search(error_body.words):
        return RateLimitError
    return kind_by_text(error_body.words, (QuotaExhausted,)) or RateLimitError


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
    is_about_key = kind is AuthenticationError
    excerpt = _without_key(error_body.message, candidate.api_key) if is_about_key else error_body.message
    error = kind(
        _sentence(head, excerpt, candidate),
        provider=provider,
        model=model,
        status_code=status,
        retry_after=retry_after,
        outcome=outcome,
    )
    error.is_providers_answer = error_body.is_providers
    return error


def _without_key(text: str, key: str | None) -> str:
    """A message about a key without what may be a part of it: words with asterisks or dots, and pieces of the key."""

    def is_part(word: str) -> bool:
        return "*" in word or ".." in word.rstrip(".") or "…" in word or bool(key and word.rstrip(".") in key)

    return _PIECE_OF_KEY.sub(lambda found: "[redacted]" if is_part(found[0]) else found[0], text)


def _sentence(head: str, excerpt: str, candidate: Candidate) -> str:
    tail = redact(excerpt, candidate.api_key, limit=_MAX_SENTENCE_CHARS).rstrip(". ")
    return f"{head}: {tail}" if tail else head


def read_error_body(body: Any) -> ErrorBody:
    """Parse an error body in any of the shapes that providers use."""
    if isinstance(body, bytes):
        try:
            body = json.loads(body)
        except (ValueError, RecursionError):
            text = body.decode("utf-8", "replace").strip()
            quoted = _embedded(text)
            return replace(quoted, message="" if text.lower().startswith(("<!", "<h", "<?")) else text[:1000])
    if isinstance(body, str):
        return ErrorBody(body[:1000])
    if isinstance(body, list):
        body = next((item for item in body if isinstance(item, dict)), {})
    if not isinstance(body, dict):
        return ErrorBody()
    inner = body.get("error")
    parts = [part for name in _LEVELS if isinstance(part := body.get(name), dict)] + [body]
    parts += [part for part in _upstream(parts) if part not in parts]
    message = inner if isinstance(inner, str) else next((m for part in parts if (m := _message(part))), "")
    codes = tuple(dict.fromkeys(code for part in parts for code in _codes(part)))
    param = next((p for part in parts if isinstance(p := part.get("param"), str) and p), "")
    status = _status(parts) or STATUS_OF_MINIMAX.get(_minimax_code(body))
    # OpenAI, Anthropic, Google and OpenRouter all have {"error": {"message": ...}} with a type, a code or a status.
    is_providers = isinstance(inner, dict) and isinstance(inner.get("message"), str) and bool(inner.keys() & _KINDS)
    text = (message or _any_text(body))[:1000]
    return ErrorBody(text, codes, status, next(_delays(parts), None), param[:200], is_providers=is_providers)


def _embedded(text: str) -> ErrorBody:
    """The error body inside a text, as libraries and gateways quote it: "Error code: 400 - {...}"."""
    start = text.find("{")
    try:
        body = json.JSONDecoder().raw_decode(text, start)[0] if start > 0 else None
    except (ValueError, RecursionError):
        return ErrorBody()
    return read_error_body(body) if isinstance(body, dict) else ErrorBody()


def _upstream(parts: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The error of the provider behind a router, which passes it on as text."""
    for part in parts:
        raw = details(part, "metadata").get("raw")
        try:
            body = json.loads(raw) if isinstance(raw, str) else raw
        except (ValueError, RecursionError):
            continue
        if isinstance(body, dict):
            yield from (body["error"], body) if isinstance(body.get("error"), dict) else (body,)


def _message(part: Mapping[str, Any]) -> str:
    """The message of one level of an error body, with the upstream provider's message where a router passes it on."""
    raw = details(part, "metadata").get("raw")
    for key in _MESSAGE_KEYS:
        value = part.get(key)
        if isinstance(value, str) and value:
            return f"{value}: {read_error_body(raw.encode()).message}" if isinstance(raw, str) else value
        if isinstance(value, list) and value:
            return "; ".join(_validation(item) for item in value[:3])
    return ""


def _any_text(body: Any) -> str:
    """The first longer text in a body of an unknown shape, so that the provider's sentence is kept."""
    for value in body.values() if isinstance(body, dict) else body if isinstance(body, list) else ():
        text = value if isinstance(value, str) and " " in value.strip() else _any_text(value)
        if text:
            return text
    return ""


def _validation(item: Any) -> str:
    """One entry of a list of validation errors, without the input that the provider echoes."""
    if not isinstance(item, dict):
        return str(item)
    place = item.get("loc")
    where = ".".join(map(str, place)) if isinstance(place, list) else ""
    return f"{where}: {item.get('msg') or item.get('message') or item.get('detail') or ''}".strip(": ")


def _codes(part: Mapping[str, Any]) -> Iterator[str]:
    """The error codes of one level of an error body."""
    inner = part.get("innererror")
    details = part.get("details")
    sources = [part, inner, *(details if isinstance(details, list) else ())]
    for source in sources:
        if isinstance(source, dict):
            for key in ("code", "type", "status", "reason", "error_type", "error_code"):
                code = source.get(key)
                if isinstance(code, str | int) and not isinstance(code, bool):
                    yield str(code)[:100]


def _status(parts: list[dict[str, Any]]) -> int | None:
    for part in parts:
        for key in ("code", "status_code", "http_status", "status"):
            value = part.get(key)
            if isinstance(value, int | str) and re.fullmatch(r"[45][0-9]{2}", str(value)):
                return int(value)
    return None


def _delays(parts: list[dict[str, Any]]) -> Iterator[float]:
    """Google's RetryInfo, such as {"retryDelay": "38s"}, and a plain number of seconds."""
    for part in parts:
        if isinstance(plain := part.get("retry_after"), int | float) and not isinstance(plain, bool) and plain >= 0:
            yield float(plain)
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
