"""What each provider says when it refuses: statuses, bodies and headers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .script import Reply
from .wire import Answer, Body, Call, Frame, dumps

KINDS: dict[str, tuple[int, str, str | None, str]] = {
    "invalid": (400, "invalid_request_error", None, "The request is not valid."),
    "auth": (401, "invalid_request_error", "invalid_api_key", "Incorrect API key provided: sk-***."),
    "permission": (403, "invalid_request_error", "model_not_permitted", "You are not allowed to use {model}."),
    "not_found": (
        404,
        "invalid_request_error",
        "model_not_found",
        "The model `{model}` does not exist or you do not have access to it.",
    ),
    "timeout": (408, "timeout", None, "The request took too long."),
    "conflict": (409, "conflict", None, "Another request is changing the same thing."),
    "payload": (413, "invalid_request_error", None, "The request is too large."),
    "validation": (422, "invalid_request_error", None, "Input should be a valid string"),
    "rate_limit": (429, "requests", "rate_limit_exceeded", "Rate limit reached for {model}. Please try again later."),
    "too_large": (
        429,
        "tokens",
        "rate_limit_exceeded",
        "Request too large for {model} on tokens per min (TPM): Limit 30000, Requested 90000.",
    ),
    "quota": (
        429,
        "insufficient_quota",
        "insufficient_quota",
        "You exceeded your current quota, please check your plan and billing details.",
    ),
    "server": (500, "server_error", None, "The server had an error while processing your request."),
    "bad_gateway": (502, "server_error", None, "Bad gateway."),
    "unavailable": (503, "server_error", None, "The service is temporarily unavailable."),
    "gateway_timeout": (504, "server_error", None, "Gateway timeout."),
    "overloaded": (529, "server_error", None, "The engine is currently overloaded, please try again later."),
    "context_length": (
        400,
        "invalid_request_error",
        "context_length_exceeded",
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
    ),
    "content_policy": (
        400,
        "invalid_request_error",
        "content_policy_violation",
        "Your request was rejected as a result of our safety system.",
    ),
}
"""Kind of error: OpenAI's status, type, code and a message; other providers depart from it below."""

BY_STATUS = {400: "invalid", 402: "quota"} | {
    status: kind
    for kind, (status, *_) in reversed(KINDS.items())
    if kind not in ("too_large", "quota", "context_length", "content_policy", "invalid")
}

STATUSES: dict[tuple[str, str], int] = {
    ("xai", "auth"): 400,
    ("gemini", "auth"): 400,
    ("gemini", "overloaded"): 503,
    ("deepseek", "quota"): 402,
    ("openrouter", "quota"): 402,
    ("anthropic", "quota"): 400,
    ("replicate", "quota"): 402,
}
"""Where a provider has another status for a kind."""


def kind_of(reply: Reply) -> str:
    """The kind of error a reply stands for; "" when it is none."""
    if reply.error:
        return reply.error
    if reply.status is None or reply.status < 400:
        return ""
    return BY_STATUS.get(reply.status, "server" if reply.status >= 500 else "invalid")


def error_answer(call: Call, reply: Reply) -> Answer:
    """The provider's own refusal; nothing is generated, nothing billed."""
    kind = kind_of(reply)
    status = reply.status if reply.status is not None else STATUSES.get((call.provider, kind), _status(call, kind))
    message = reply.message or _MESSAGES.get((call.provider, kind)) or KINDS[kind][3]
    message = message.replace("{model}", call.model)
    body = _BODIES.get(call.provider, _openai)(Refusal(call, kind, status, message))
    headers = _headers(call, kind, status)
    if isinstance(body, str):
        content_type = "text/html" if body.startswith("<") else "text/plain; charset=utf-8"
        return Answer(status, [Frame(raw=body.encode(), kind="body")], headers=headers | {"content-type": content_type})
    return Answer(status, [Frame(body, "body")], headers=headers)


def _status(call: Call, kind: str) -> int:
    if kind == "overloaded" and call.provider != "anthropic":
        return 503
    return KINDS[kind][0]


_MESSAGES: dict[tuple[str, str], str] = {
    ("anthropic", "context_length"): "prompt is too long: 210000 tokens > 200000 maximum",
    ("anthropic", "auth"): "invalid x-api-key",
    ("anthropic", "quota"): "Your credit balance is too low to access the Anthropic API.",
    ("anthropic", "not_found"): "model: {model}",
    ("anthropic", "overloaded"): "Overloaded",
    ("anthropic", "content_policy"): "Output blocked by content filtering policy",
    ("azure", "content_policy"): "The response was filtered due to the prompt triggering Azure OpenAI's content "
    "management policy.",
    ("azure", "not_found"): "The API deployment for this resource does not exist.",
    ("cohere", "auth"): "Incorrect API key provided: ***. You can find your API key on your dashboard.",
    ("cohere", "context_length"): "too many tokens: total number of tokens in the prompt cannot exceed 128000",
    ("cohere", "not_found"): "model '{model}' not found, make sure the correct model ID was used",
    ("deepseek", "auth"): "Authentication Fails, Your api key: **** is invalid",
    ("deepseek", "quota"): "Insufficient Balance",
    ("gemini", "auth"): "API key not valid. Pass one that is.",
    ("gemini", "context_length"): "The input token count (1200000) exceeds the maximum number of tokens allowed "
    "(1048576).",
    ("gemini", "not_found"): "models/{model} is not found for API version v1beta.",
    ("gemini", "overloaded"): "The model is overloaded. Please try again later.",
    ("gemini", "rate_limit"): "You exceeded your current quota. Please retry in 2.5s.",
    ("groq", "auth"): "Invalid API Key provided",
    ("ollama", "not_found"): "model '{model}' not found",
    ("openrouter", "not_found"): "No endpoints found for {model}.",
    ("xai", "auth"): "Incorrect API key provided: do***le. You can obtain an API key from the console.",
}


@dataclass(frozen=True)
class Refusal:
    """One refusal to be put into a provider's words."""

    call: Call
    kind: str
    status: int
    message: str


def _openai(no: Refusal) -> Body:
    _, type_, code, _ = KINDS[no.kind]
    param = {"context_length": "messages", "not_found": "model"}.get(no.kind)
    if no.kind == "content_policy" and no.call.operation in ("images", "edits"):
        type_, code = "image_generation_user_error", "moderation_blocked"
    return {"error": {"message": no.message, "type": type_, "param": param, "code": code}}


def _azure(no: Refusal) -> Body:
    if no.kind == "content_policy":
        filtered = {"hate": {"filtered": True, "severity": "medium"}}
        inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": filtered}
        error: Body = {"message": no.message, "type": None, "param": "prompt", "code": "content_filter"}
        return {"error": error | {"status": 400, "innererror": inner}}
    codes = {"not_found": "DeploymentNotFound", "context_length": "context_length_exceeded"}
    return {"error": {"code": codes.get(no.kind, str(no.status)), "message": no.message}}


def _mistral(no: Refusal) -> Body:
    if no.kind == "auth":
        return {"detail": "Unauthorized"}
    if no.kind == "validation":
        detail: Body = {"type": "string_type", "loc": ["body", "messages", 0], "msg": no.message, "input": {}}
        return {"detail": [detail]}
    type_, code = {"not_found": ("invalid_model", "1500"), "rate_limit": ("rate_limited", "1300")}.get(
        no.kind, ("invalid_request_error" if no.status < 500 else "internal_server_error", "3000")
    )
    return {"object": "error", "message": no.message, "type": type_, "param": None, "code": code}


def _groq(no: Refusal) -> Body:
    error = _openai(no)["error"]
    return {"error": {key: error[key] for key in ("message", "type", "code") if error[key] is not None}}


def _together(no: Refusal) -> Body:
    return {"id": f"{no.call.ident[:7]}-double"} | _openai(no)


def _deepseek(no: Refusal) -> Body | str:
    if no.kind == "validation":
        return f"Failed to deserialize the JSON body into the target type: {no.message}"
    type_ = {"auth": "authentication_error", "quota": "unknown_error"}.get(no.kind, KINDS[no.kind][1])
    return {"error": {"message": no.message, "type": type_, "param": None, "code": "invalid_request_error"}}


def _openrouter(no: Refusal) -> Body:
    return {"error": {"message": no.message, "code": no.status}, "user_id": "user_double"}


def _xai(no: Refusal) -> Body:
    codes = {
        "not_found": "Some requested entity was not found",
        "rate_limit": "Some resource has been exhausted",
        "quota": "Some resource has been exhausted",
        "unavailable": "The service is currently unavailable",
        "overloaded": "The service is currently unavailable",
    }
    return {"code": codes.get(no.kind, "Client specified an invalid argument"), "error": no.message}


def _perplexity(no: Refusal) -> Body | str:
    if no.kind == "auth":
        title = "401 Authorization Required"
        return f"<html>\r\n<head><title>{title}</title></head>\r\n<body><h1>{title}</h1></body>\r\n</html>\r\n"
    return {"error": {"message": no.message, "type": KINDS[no.kind][1], "code": no.status}}


def _cerebras(no: Refusal) -> Body:
    names = {"rate_limit": ("too_many_requests_error", "quota", "request_quota_exceeded")}
    names["auth"] = ("invalid_request_error", "api_key", "wrong_api_key")
    type_, param, code = names.get(no.kind, (KINDS[no.kind][1], None, KINDS[no.kind][2]))
    return {"message": no.message, "type": type_, "param": param, "code": code}


ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def _anthropic(no: Refusal) -> Body:
    type_ = ANTHROPIC_TYPES.get(no.status, "api_error" if no.status >= 500 else "invalid_request_error")
    error = {"type": type_, "message": no.message}
    return {"type": "error", "error": error, "request_id": f"req_011{no.call.ident[:22]}"}


GEMINI_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def _gemini(no: Refusal) -> Body:
    error: Body = {"code": no.status, "message": no.message, "status": GEMINI_STATUSES.get(no.status, "UNKNOWN")}
    types = "type.googleapis.com/google.rpc."
    if no.kind == "auth":
        info: Body = {"@type": f"{types}ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"}
        info["metadata"] = {"service": "generativelanguage.googleapis.com"}
        local = {"@type": f"{types}LocalizedMessage", "locale": "en-US", "message": no.message}
        error["details"] = [info, local]
    elif no.status == 429:
        violation: Body = {
            "quotaMetric": "generativelanguage.googleapis.com/generate_content_double",
            "quotaId": "GenerateContentDoublePerMinute",
            "quotaDimensions": {"model": no.call.model, "location": "global"},
            "quotaValue": "1000",
        }
        links = [{"description": "Learn more about quotas", "url": "https://example.org/quotas"}]
        error["details"] = [
            {"@type": f"{types}QuotaFailure", "violations": [violation]},
            {"@type": f"{types}Help", "links": links},
            {"@type": f"{types}RetryInfo", "retryDelay": "2s"},
        ]
    return {"error": error}


def _cohere(no: Refusal) -> Body:
    return {"id": no.call.ident, "message": no.message}


def _ollama(no: Refusal) -> Body:
    return {"error": no.message}


def _replicate(no: Refusal) -> Body:
    titles = {401: "Unauthenticated", 402: "Insufficient credit", 404: "Not found", 422: "Input validation failed"}
    return {"title": titles.get(no.status, "Error"), "detail": no.message, "status": no.status}


_BODIES: dict[str, Callable[[Refusal], Body | str]] = {
    "anthropic": _anthropic,
    "azure": _azure,
    "cerebras": _cerebras,
    "cohere": _cohere,
    "deepseek": _deepseek,
    "gemini": _gemini,
    "groq": _groq,
    "huggingface": _together,
    "mistral": _mistral,
    "ollama": _ollama,
    "openrouter": _openrouter,
    "perplexity": _perplexity,
    "replicate": _replicate,
    "together_ai": _together,
    "vertex_ai": _gemini,
    "xai": _xai,
}


def _headers(call: Call, kind: str, status: int) -> dict[str, str]:
    """When to come back, for the providers that say so."""
    if call.provider == "anthropic":
        if kind == "quota":
            return {"x-should-retry": "false"}
        if status == 429:
            return {"x-should-retry": "true", "retry-after": "2"}
        return {"x-should-retry": "true"} if status == 529 else {}
    if call.provider in ("groq", "azure") and status == 429:
        return {"retry-after": "2"}
    if call.provider == "cerebras" and status == 429:
        return {"retry-after-ms": "660"}
    if call.provider in ("huggingface", "together_ai") and status == 500:
        return {"retry-after": "1"}
    return {}


def stream_error(call: Call, reply: Reply, last: Frame) -> list[Frame]:
    """The frames with which a provider tells of an error inside a 200 stream."""
    kind = reply.error or ("overloaded" if call.provider == "anthropic" else "server")
    reply = Reply(error=kind, message=reply.message)
    answer = error_answer(call, reply)
    body: Any = answer.frames[0].data
    message = body.get("error", {}).get("message") if isinstance(body.get("error"), dict) else KINDS[kind][3]
    if call.provider == "anthropic":
        return [Frame({"type": "error", "error": body["error"]}, "error", event="error")]
    if call.provider == "groq":
        error = {"code": "tool_use_failed"} | body["error"]
        error |= {"failed_generation": "", "status_code": answer.status}
        return [Frame({"error": error}, "error", event="error")]
    if call.provider == "openrouter":
        chunk = {key: value for key, value in (last.data or {}).items() if key != "usage"}
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None}
        choice |= {"finish_reason": "error", "native_finish_reason": None}
        error = {"code": answer.status, "message": message}
        return [Frame(chunk | {"choices": [choice], "error": error}, "error")]
    if call.provider == "cohere":
        delta = {"error": message, "finish_reason": "ERROR"}
        return [Frame({"type": "message-end", "delta": delta}, "error", event="message-end")]
    if call.provider == "openai":
        return [Frame(body, "error"), *_zeros(call, last)]
    return [Frame(body, "error")]


def _zeros(call: Call, last: Frame) -> list[Frame]:
    """OpenAI's tail after a failed stream: a usage of zeros when usage was asked for, and [DONE]."""
    frames = []
    if (call.body.get("stream_options") or {}).get("include_usage") and last.data:
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        frames.append(Frame(last.data | {"choices": [], "usage": usage}, "error"))
    return [*frames, Frame("[DONE]", "done")]


def wrong_use(message: str) -> Answer:
    """The double's own complaint about a script that cannot be played."""
    return Answer(500, [Frame(raw=dumps({"provider_double": message}), kind="body")])
