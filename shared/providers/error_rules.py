"""What providers' error codes and sentences mean, as data: codes first; sentences only where no code says it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shared.errors import (
    AuthenticationError,
    ContentBlocked,
    ContextTooLong,
    InvalidRequest,
    LLMError,
    ModelNotFound,
    QuotaExhausted,
)

type Kind = type[LLMError]


def _kinds(codes: Mapping[Kind, str]) -> dict[str, Kind]:
    return {code: kind for kind, words in codes.items() for code in words.split()}


# Error codes and types that name the failure, in lower case. Sources: the error references of OpenAI, Azure, Anthropic,
# Google, Mistral, xAI, Groq, Moonshot, Zhipu (1113 to 1301), Alibaba Model Studio and GitHub Copilot; llama.cpp
# tools/server/utils.hpp; OpenAI's Python library (from general knowledge, 2026-11-28).
KIND_BY_CODE = _kinds(
    {
        ContextTooLong: "context_length_exceeded context_window_exceeded model_max_prompt_tokens_exceeded "
        "exceed_context_size_error prompt_too_long input_too_long max_context_length_exceeded 1261",
        ContentBlocked: "content_filter content_policy_violation responsibleaipolicyviolation contentfiltered "
        "content_filtered data_inspection_failed datainspectionfailed moderation_blocked prohibited_content "
        "inputtextsensitivecontentdetected sensitivecontentdetected 1301",
        QuotaExhausted: "insufficient_quota insufficient_balance insufficient_funds insufficient_credits billing_error "
        "billing_hard_limit_reached billing_not_active exceeded_current_quota_error arrearage payment_required "
        "accountoverdueerror 1113",
        ModelNotFound: "model_not_found model_not_available model_decommissioned model_not_exist modelnotfound "
        "invalid_model unknown_model deploymentnotfound resource_not_found_error 1211",
        AuthenticationError: "invalid_api_key api_key_invalid authentication_error unauthenticated invalidapikey "
        "invalid_authentication_error incorrect_api_key_error expired_api_key api_key_expired",
        InvalidRequest: "invalid_function_parameters invalid_json_schema invalid_type invalid_base64 "
        "invalid_image_format invalid_image_url unknown_parameter unsupported_parameter unsupported_value "
        "missing_required_parameter integer_above_max_value integer_below_min_value array_above_max_length "
        "tool_use_failed json_validate_failed invalid_function_call",
    }
)

# HTTP status that an error inside an HTTP 200 stands for, by the provider's error code.
# Sources: Anthropic, OpenAI and Google API error references; real_traffic (read 2026-11-24).
STATUS_BY_CODE = {
    "overloaded_error": 529,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "rate_limit_reached_error": 429,
    "engine_overloaded_error": 429,
    "too_many_requests_error": 429,
    "too_many_requests": 429,
    "throttling": 429,
    "throttling.ratequota": 429,
    "throttlingexception": 429,
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
    "exceed_context_size_error": 400,
    "content_filter": 400,
    "timeout_error": 504,
    "deadline_exceeded": 504,
    "unavailable": 503,
    "api_error": 500,
    "server_error": 500,
    "internal_server_error": 500,
    "internal": 500,
}

# MiniMax reports errors in an HTTP 200 as base_resp.status_code; these are the ones that another status stands for.
# Source: platform.minimax.io/docs/api-reference/errorcode (from general knowledge, 2026-11-28).
STATUS_OF_MINIMAX = {1001: 504, 1002: 429, 1004: 401, 1008: 402, 1039: 429, 1041: 429, 2013: 400, 2049: 401}

# What a request that failed with HTTP 400 or 422 is about, where the provider names the parameter: anything but these
# is the request's own fault, whatever the sentence says.
PARAMS_OF_INPUT = frozenset(
    {"messages", "message", "input", "inputs", "prompt", "contents", "content", "model", "engine"}
)


@dataclass(frozen=True, slots=True)
class TextRule:
    """
    A sentence that names a failure where no code does.

    Args:
        pattern: Of at least two words, in lower case: a single word may be anybody's.

        example: A provider's own sentence.

        source: Whose, and how it is known.
    """

    kind: Kind
    pattern: re.Pattern[str]
    example: str
    source: str


def _rule(kind: Kind, pattern: str, example: str, source: str) -> TextRule:
    return TextRule(kind, re.compile(pattern), example, source)


# The sentences are known from use and from public reports; the pages were not read again.
_READ = "general knowledge of 2026-11"
_INPUT = r"(input|prompt|request|messages?|conversation|context|text|inputs?)"
# The first rule that fits holds.
TEXT_RULES = (
    _rule(
        ContextTooLong,
        r"(context|prompt|sequence) (length|window|size)\b.{0,60}\b(exceed|too (long|large)|overflow|not enough)"
        r"|\b(exceed\w*|over|beyond|larger than|longer than|greater than|limit)\b.{0,60}\bcontext[ _-]?"
        r"(length|window|size|limit)",
        "Context size has been exceeded.",
        f"llama.cpp, Ollama, OpenAI's Responses API, SGLang, Cloudflare, MiniMax; {_READ}",
    ),
    _rule(
        ContextTooLong,
        r"maximum (context|prompt|model|input) length",
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens.",
        f"vLLM, DeepSeek, OpenRouter, xAI, Mistral, Fireworks; {_READ}",
    ),
    _rule(
        ContextTooLong,
        rf"\b{_INPUT}\b (\w+ )?(is|are|was) too (long|large)\b|\bprompt too long\b|\binput too long\b"
        r"|\btoo (long|large) for (the |this |requested )?(model|context)\b",
        "prompt is too long: 210000 tokens > 200000 maximum",
        f"Anthropic, Amazon Bedrock, Fireworks, Ollama's cloud; {_READ}",
    ),
    _rule(
        ContextTooLong,
        r"\b(input|prompt) (tokens? |text )?(count|length)\b.{0,40}"
        r"\b(exceed|longer|larger|greater|too large|should be|cannot|must)",
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
        f"Google, GitHub Copilot, Poolside, Volcengine, NVIDIA; {_READ}",
    ),
    _rule(
        ContextTooLong,
        r"range of input length should be",
        "Range of input length should be [1, 129024]",
        f"Alibaba Model Studio (DashScope); {_READ}",
    ),
    _rule(
        ContextTooLong,
        r"exceed\w* (the )?(model('s)? )?(total )?(token limit|max(imum)? (token|message token|prompt token)s?)"
        r"|token length exceed|exceed\w* model (token )?limit",
        "Invalid request: Your request exceeded model token limit: 262144 (requested: 336148)",
        f"Moonshot (Kimi), StepFun, Volcengine; {_READ}",
    ),
    _rule(
        ContextTooLong,
        r"(prompt|input) exceeds? (the )?max(imum)? (allowed )?(input )?length|prompt 超长",
        "Prompt exceeds max length",
        f"Zhipu (GLM); {_READ}",
    ),
    _rule(
        ContextTooLong,
        r"(input|prompt) tokens?\b.{0,40}\b(exceeds?|cannot exceed|must be (less|fewer))|must have less than \d+ tokens"
        r"|\btokens \+ .{1,20} must be|too many (input |prompt )?tokens\b|number of tokens in the prompt"
        r"|length of prompt_tokens",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193. Given: 9000 `inputs` tokens",
        f"TGI, Hugging Face, Together, Cohere, AI21, watsonx, SiliconFlow; {_READ}",
    ),
    _rule(
        ContextTooLong,
        r"when (the )?context (the )?overflows|context overflow\b|loaded with (a )?context length of"
        r"|greater than the context length|larger context length, or provide a shorter input",
        "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with context "
        "length of only 4096 tokens, which is not enough.",
        f"LM Studio; {_READ}",
    ),
    _rule(
        ContextTooLong,
        r"(reduce|shorten) (the )?(length of )?(the |your )?(messages|prompt|input|context)\b"
        r"|exceeds? (the )?available context",
        "Please reduce the length of the messages or completion.",
        f"Groq, Cerebras, llama.cpp; {_READ}",
    ),
    _rule(
        ContextTooLong,
        r"longer than the maximum model length|exceeds? the limit of \d+ tokens|prompt token count of \d+ exceeds",
        "prompt token count of 64183 exceeds the limit of 64000",
        f"vLLM, GitHub Copilot; {_READ}",
    ),
    _rule(
        ContentBlocked,
        r"content[ _](policy|filter(ing)?|management|moderation) (polic|violat|block|trigger|result|system|was|has)"
        r"|(violat\w+|against|under|blocked by) .{0,40}(usage|content|safety|acceptable use) (polic|guideline)"
        r"|triggering azure openai.s content management policy|content violates usage guidelines"
        r"|(rejected|blocked|refused|flagged|triggered) .{0,40}(safety|moderation|content) (system|check|filter|polic)",
        "Your request was rejected as a result of our safety system.",
        f"OpenAI, Azure, xAI; {_READ}",
    ),
    _rule(
        ContentBlocked,
        r"content exists risk|(input|output|request|prompt|content) (data |text )?(may contain|contains?) "
        r"(inappropriate|unsafe|sensitive|prohibited)|(input|request|prompt|content) (was|has been|is) flagged",
        "Content Exists Risk",
        f"DeepSeek, Alibaba Model Studio, OpenRouter; {_READ}",
    ),
    _rule(
        QuotaExhausted,
        r"insufficient[_ ](quota|balance|credits?|funds|account balance)|credit balance is|out of credits"
        r"|requires more credits|(purchase|buy) (more )?credits|not enough credits|available credits",
        "Your credit balance is too low to access the Anthropic API.",
        f"Anthropic, DeepSeek, OpenRouter, xAI; {_READ}",
    ),
    _rule(
        QuotaExhausted,
        r"exceeded your current quota|billing (hard limit|not active)|spend(ing)? limit|key limit exceeded"
        r"|(api|monthly|usage|account|included) usage limits?\b|reached your .{0,30}usage limits?\b|payment required"
        r"|exceeded (your|the) (included )?monthly|monthly (usage|spend|quota|limit|included)|calls ?/ ?month"
        r"|(free|trial|allocated) (tier )?quota (has been |is )?(exceeded|exhausted)|account is (in arrears|suspended)",
        "You exceeded your current quota, please check your plan and billing details.",
        f"OpenAI, Anthropic, Cohere, Hugging Face, OpenRouter; {_READ}",
    ),
    _rule(
        AuthenticationError,
        r"api[ _-]?key (is )?(not valid|invalid|incorrect|expired|not found|missing|has been disabled)"
        r"|(invalid|incorrect|expired|missing|wrong|no) (openai |google |x-?)?api[ _-]?key( provided)?\b",
        "API key not valid. Please pass a valid API key.",
        f"Google, xAI, OpenAI-compatible servers; {_READ}",
    ),
    _rule(
        ModelNotFound,
        r"not a valid model|(invalid|unknown|unsupported) model\b(?! (output|response|parameter|input|token))"
        r"|no such model|model not (exist|found|available)"
        r"|\bmodel\b.{0,80}\b(does not exist|not found|is not available|no longer (supported|available))"
        r"|\bmodel\b.{0,80}has been (deprecated|decommissioned|retired)|no endpoints? found|try pulling it first",
        'model "llama3.3" not found, try pulling it first',
        f"Ollama, DeepSeek, Groq, Mistral, OpenRouter; {_READ}",
    ),
)

# One request that is larger than a limit by the minute: waiting does not help.
REQUEST_TOO_LARGE = re.compile(r"request too large|too large for .{0,80}tokens per")
# A limit that passes by itself. A message about one often mentions billing too.
RATE_WORDS = re.compile(
    r"rate[ _-]?limit|\bper[ _](min|sec|day|hour)|requests? rate|too many (requests|concurrent)|\b[tr]p[md]\b"
    r"|overloaded"
)
OVERLOADED = re.compile(
    r"\b(is|are|currently|server|model|engine|service)( is| are)? (currently )?overloaded|overloaded_error|at capacity"
)

_WAIT = re.compile(
    r"(?:try|retry)(?: again)?(?: your request)? (?:in|after)(?: about| approximately)?:? ?"
    r"|retry[ -]after:? ?|(?:please )?wait(?: for)?(?: about| at least)? |(?:resets?|available again) in "
)
_SPAN = re.compile(
    r"(\d+(?:\.\d+)?) ?(milliseconds?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d)(?![a-z])"
    r"(?:,? and |, | )?"
)
_SECONDS = {"ms": 0.001, "milli": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def kind_by_code(codes: Iterable[str]) -> Kind | None:
    """The failure that an error code names, if any does."""
    return next((kind for code in codes if (kind := KIND_BY_CODE.get(code.lower()))), None)


def kind_by_text(text: str, kinds: Iterable[Kind]) -> Kind | None:
    """
    The failure that a sentence names.

    Args:
        text: In lower case, without the caller's own words.

        kinds: The failures to look for.
    """
    wanted = frozenset(kinds)
    return next((rule.kind for rule in TEXT_RULES if rule.kind in wanted and rule.pattern.search(text)), None)


def seconds_in(text: str) -> float | None:
    """Seconds to wait that a sentence in lower case names, such as "try again in 1m9.7s"; None if it names none."""
    for start in _WAIT.finditer(text):
        total, place = 0.0, start.end()
        while span := _SPAN.match(text, place):
            unit = span[2]
            total += (
                float(span[1]) * _SECONDS["milli" if unit.startswith("milli") else unit if unit == "ms" else unit[0]]
            )
            place = span.end()
        if place > start.end():
            return total
    return None
