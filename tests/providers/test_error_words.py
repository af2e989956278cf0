"""Errors that only a sentence names: the provider's own words count, and the caller's never do."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

from shared import errors
from shared.errors import LLMError
from shared.providers.caller_words import without_callers_words
from shared.providers.error_rules import TEXT_RULES, TextRule, kind_by_text, seconds_in
from shared.providers.errors import from_body, from_response
from tests.support.loopback import ask, candidate, http, sse
from tests.support.wires import KEY, said

RULES = [pytest.param(rule, id=f"{rule.kind.__name__}-{rule.example[:30]}") for rule in TEXT_RULES]
KINDS = {rule.kind for rule in TEXT_RULES}

# What providers say of an input that is too long, in their own words (public issue trackers, read 2026-11-28).
TOO_LONG: Sequence[tuple[str, str]] = [
    ("Kimi", "Invalid request: Your request exceeded model token limit: 262144 (requested: 336148)"),
    ("DashScope", "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 129024]"),
    ("GLM", "Prompt exceeds max length"),
    ("Copilot", "prompt token count of 64183 exceeds the limit of 64000"),
    ("Poolside", "Input length 131393 exceeds the maximum allowed input length of 131040 tokens."),
    ("SGLang", "The input (263000 tokens) is longer than the model's context length (262144 tokens)."),
    ("TGI", "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193. Given: 9000 `inputs` tokens"),
    ("TGI", "`inputs` must have less than 1024 tokens. Given: 1500"),
    ("llama.cpp", "the request exceeds the available context size. try increasing the context size"),
    ("llama.cpp", "input is too large to process. increase the physical batch size"),
    ("LM Studio", "The number of tokens to keep from the initial prompt is greater than the context length."),
    ("OpenAI", "Your input exceeds the context window of this model. Please adjust your input and try again."),
    ("Anthropic", "input length and `max_tokens` exceed context limit: 199000 + 20000 > 200000"),
    ("Bedrock", "Input is too long for requested model."),
    ("Bedrock", "Too many input tokens. Max input tokens: 8192, request input token count: 9000"),
    ("Mistral", "Prompt contains 40000 tokens, too large for model with 32768 maximum context length"),
    ("Cohere", "too many tokens: total number of tokens in the prompt cannot exceed 128000 - received 130000"),
    ("xAI", "This model's maximum prompt length is 131072 but the request contains 537812 tokens."),
    ("OpenRouter", "This endpoint's maximum context length is 128000 tokens. However, you requested about 130000"),
    ("vLLM", "The decoder prompt (length 5000) is longer than the maximum model length of 4096"),
    ("AI21", "Prompt has too many tokens: 9000 > 8191"),
    ("StepFun", "Total message token length exceed model limit (10000 tokens)"),
    ("SiliconFlow", "length of prompt_tokens (9000) must be less than max_seq_len (8192)."),
    (
        "Cloudflare",
        "The estimated number of input and maximum output tokens (90000) exceeded this model context window",
    ),
    ("Ollama", "the input length exceeds the context length"),
]
# Sentences about something else.
NOT_TOO_LONG = [
    "max_tokens: 9 > 8, the maximum allowed number of output tokens",
    "max_tokens is too large: 50000. This model supports at most 16384 completion tokens, whereas you provided 50000.",
    "Invalid 'tools[0].function.name': string too long. Expected a string with maximum length 64.",
    "Invalid schema for function 'get_monthly_sales': In context=(), 'required' is required to be supplied.",
    "In context=('properties', 'api_key'), 'required' is required to be supplied. Missing 'api_key'.",
    "Invalid schema for function 'list_flagged_content': schema must be a JSON Schema of 'type: \"object\"'.",
    "Unknown parameter: 'rate_limit'.",
    "Invalid value for 'billing_hard_limit'.",
]


@pytest.mark.parametrize("rule", RULES)
def test_a_providers_sentence_names_the_failure(rule: TextRule) -> None:
    """Each rule fits its own example and no rule before it does; its source says when it was known."""
    assert kind_by_text(without_callers_words(rule.example, None).lower(), KINDS) is rule.kind
    assert re.search(r"20\d\d-\d\d", rule.source)


ECHOES = [
    "Invalid value: '{}'.",
    'Could not parse "{}" as JSON',
    "messages.0.content: {} is not allowed here",
    "Failed to parse tool call: got `{}`",
    "Expected a string, got [{}]",
]


@pytest.mark.parametrize("status", [400, 422, 500, 200])
@pytest.mark.parametrize("rule", RULES)
def test_the_callers_prompt_names_nothing(rule: TextRule, status: int) -> None:
    """A provider that repeats the prompt does not say what the prompt says."""
    prompt = f"What does this mean? {rule.example} And how do I mend it?"
    wanted = errors.ProviderUnavailable if status in (500, 200) else errors.InvalidRequest
    for echo in ECHOES:
        for words in (prompt, rule.example, prompt[: 22 + len(rule.example)] + "..."):
            body = said(echo.format(words), type="x")
            given = [{"role": "user", "content": words if words == rule.example else prompt}]
            sent = {"messages": given}
            if status == 200:
                error = from_body(candidate(), body, status=status, sent=sent)
            else:
                error = from_response(candidate(), status, {}, json.dumps(body).encode(), sent=sent)
            assert type(error) is wanted, (echo, words)
    # Once over the wire: what is sent is what the error is read with.
    given = [{"role": "user", "content": prompt}]
    over_wire = ask(candidate(), http(said(ECHOES[0].format(prompt), type="x"), status=status), messages=given).failure
    assert type(over_wire) is wanted


@pytest.mark.parametrize("rule", RULES)
def test_the_callers_names_and_schemas_name_nothing(rule: TextRule) -> None:
    """The name of a function or a property in an error is the caller's, in whatever form it is repeated."""
    name = "_".join("".join(c if c.isalnum() else " " for c in rule.example.lower()).split())[:64]
    schema = {"type": "object", "properties": {name: {"type": "string", "description": rule.example}}}
    tool = {"type": "function", "function": {"name": name, "description": rule.example, "parameters": schema}}
    messages = (
        f"Invalid schema for function '{name}': In context=(), 'required' is required to be supplied.",
        f"Invalid schema for function {name}: see {json.dumps(schema)}",
        f"In context=('properties', '{name}'), 'type' must be given. Missing '{name}'.",
        f'Tool {{"name": "{name}", "description": "{rule.example}"}} is not supported',
    )
    for message in messages:
        for more in ({}, {"param": "tools"}, {"code": "invalid_function_parameters"}):
            body = json.dumps(said(message, **more)).encode()
            error = from_response(candidate(), 400, {}, body, sent={"tools": [tool]})
            assert type(error) is errors.InvalidRequest, (message, more)
        over_wire = ask(candidate(), http(said(message), status=400), tools=[tool]).failure
        assert type(over_wire) is errors.InvalidRequest, message


@pytest.mark.parametrize(("whose", "sentence"), TOO_LONG)
def test_inputs_that_are_too_long(whose: str, sentence: str) -> None:
    """Whatever words a provider has for it, an input that is too long is ContextTooLong, whatever the status."""
    for body in (said(sentence), {"error": sentence}, {"object": "error", "message": sentence, "code": 400}):
        of_status = [from_response(candidate(), each, {}, json.dumps(body).encode()) for each in (400, 422, 500)]
        for error in (*of_status, ask(candidate(), http(body, status=200)).failure):
            assert type(error) is errors.ContextTooLong, (whose, error.status_code, body)
            assert (error.cost, str(error.action)) == (0, "next")


@pytest.mark.parametrize("sentence", NOT_TOO_LONG)
def test_bad_requests_stay_bad_requests(sentence: str) -> None:
    """A request that is wrong in itself is InvalidRequest, even if the error has names that the request has not."""
    error = ask(candidate(), http(said(sentence, type="invalid_request_error"), status=400)).failure
    assert type(error) is errors.InvalidRequest
    assert error.message.endswith(sentence.rstrip("."))


def test_an_error_pasted_into_the_prompt_hides_nothing() -> None:
    """A conversation about an error is itself too long: the provider's sentence counts, even if the prompt has it."""
    sentence = "Invalid request: Your request exceeded model token limit: 262144 (requested: 336148)"
    vllm = (
        "You passed 9001 input tokens and requested 0 output tokens. However, the model's context length is only 8192 "
        "tokens, resulting in a maximum input length of 8192 tokens."
    )
    for text in (sentence, vllm):
        given = [{"role": "user", "content": f"I get this error, what is it? {text}"}]
        for changed in (text, text.replace("9001", "9999").replace("336148", "400000")):
            error = ask(candidate(), http(said(changed), status=400), messages=given).failure
            assert type(error) is errors.ContextTooLong


@pytest.mark.parametrize(
    ("param", "kind"),
    [
        ("tools", errors.InvalidRequest),
        ("tools[0].function.parameters", errors.InvalidRequest),
        ("response_format", errors.InvalidRequest),
        ("messages[1].tool_calls[0].id", errors.InvalidRequest),
        ("temperature", errors.InvalidRequest),
        ("messages", errors.ContextTooLong),
        ("messages.[2].content", errors.ContextTooLong),
        ("max_tokens", errors.ContextTooLong),
        (None, errors.ContextTooLong),
    ],
)
def test_the_parameter_comes_before_the_sentence(param: str | None, kind: type[LLMError]) -> None:
    """Where the provider names the parameter at fault, no sentence makes it another failure."""
    error = ask(candidate(), http(said("The maximum context length is 5", param=param), status=400)).failure
    assert type(error) is kind


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("1261", errors.ContextTooLong),
        (1261, errors.ContextTooLong),
        ("model_max_prompt_tokens_exceeded", errors.ContextTooLong),
        ("exceed_context_size_error", errors.ContextTooLong),
        ("DataInspectionFailed", errors.ContentBlocked),
        ("Arrearage", errors.QuotaExhausted),
        ("invalid_api_key", errors.AuthenticationError),
        ("model_not_found", errors.ModelNotFound),
        ("unsupported_parameter", errors.InvalidRequest),
    ],
)
def test_the_code_comes_before_the_sentence(code: Any, kind: type[LLMError]) -> None:
    """An error code that is known says what the failure is, whatever the sentence says."""
    for message in ("x", "Your credit balance is too low", "prompt is too long: 5 > 4"):
        for status in (400, 422):
            assert type(ask(candidate(), http(said(message, code=code), status=status)).failure) is kind


def test_a_routers_error_is_that_of_the_provider_behind_it() -> None:
    """The code of the provider behind a router counts like one of the router's own."""
    raw = json.dumps(said("no", code="context_length_exceeded"))
    body = said("Provider returned error", code=400, metadata={"raw": raw})
    assert type(ask(candidate("openrouter", "a/b"), http(body, status=400)).failure) is errors.ContextTooLong


def test_an_error_inside_a_text() -> None:
    """A gateway that quotes the provider's error body in a text passes on its code too."""
    text = f"litellm.BadRequestError: XException - {json.dumps(said('no', code='context_length_exceeded'))}"
    assert type(ask(candidate(), http(text, status=400, kind="text/plain")).failure) is errors.ContextTooLong
    assert type(ask(candidate(), http("insufficient_quota", status=429)).failure) is errors.QuotaExhausted


def test_errors_in_a_200() -> None:
    """LM Studio and MiniMax report errors with HTTP 200, plain or as an event; they are those errors."""
    words = "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with context"
    for body in ({"error": words}, said(words)):
        assert type(ask(candidate(), http(body)).failure) is errors.ContextTooLong
        event = f"event: error\ndata: {json.dumps(body)}\n\n"
        assert type(ask(candidate(), sse(event, done=False), stream=True).failure) is errors.ContextTooLong
    minimax = {"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}, "choices": None}
    error = ask(candidate("custom", "m", api_base="http://127.0.0.1:1"), http(minimax)).failure
    assert type(error) is errors.QuotaExhausted
    assert "insufficient balance" in error.message


def test_a_model_that_is_not_pulled() -> None:
    """Ollama's 404 is ModelNotFound, costs nothing, and says what to do."""
    body = {"error": 'model "llama3.3" not found, try pulling it first'}
    for status in (404, 400):
        error = ask(candidate("ollama", "llama3.3"), http(body, status=status)).failure
        assert type(error) is errors.ModelNotFound
        assert (error.cost, str(error.action)) == (0, "next")
        assert "try pulling it first" in error.message


@pytest.mark.parametrize(
    ("sentence", "seconds"),
    [
        ("Please try again in 1m9.696s.", 69.696),
        ("Please try again in 20ms.", 0.02),
        ("Please try again in 6m0s.", 360),
        ("Please try again in 1h2m3s.", 3723),
        ("Rate limit exceeded, retry after 20 seconds", 20),
        ("Please retry in 38.5s.", 38.5),
        ("Please wait 30 seconds before the next request", 30),
        ("Try again in about 3 minutes", 180),
        ("Please retry after 1 minute and 5 seconds", 65),
        ("Slow down. Try again in 2 hours.", 7200),
        ("Try again later.", None),
        ("Limit 15s per call.", None),
    ],
)
def test_a_sentence_that_says_when(sentence: str, seconds: float | None) -> None:
    """The time to wait is read from the sentence where nothing else says it, and only where the request was refused."""
    assert seconds_in(sentence.lower()) == (None if seconds is None else pytest.approx(seconds))
    told = ask(candidate(), http(said(sentence), status=429)).failure
    assert told.retry_after == (None if seconds is None else pytest.approx(seconds))
    assert type(told) is errors.RateLimitError
    assert ask(candidate(), http(said(sentence), status=400)).failure.retry_after is None
    assert ask(candidate(), http(said(sentence), status=429, headers={"retry-after": "7"})).failure.retry_after == 7


def test_a_prompt_says_no_time() -> None:
    """A time to wait in the prompt that an error repeats is none."""
    prompt = "The server said: please try again in 10 hours."
    given = [{"role": "user", "content": prompt}]
    error = ask(candidate(), http(said(f"Rate limited. Request was: '{prompt}'"), status=429), messages=given).failure
    assert error.retry_after is None


SENTENCE = "Your organisation must be verified for the moon first"


@pytest.mark.parametrize(
    "body",
    [
        said(SENTENCE),
        {"error": SENTENCE},
        {"message": SENTENCE},
        {"detail": SENTENCE},
        {"detail": {"message": SENTENCE}},
        {"errors": [{"message": SENTENCE, "code": 5}]},
        {"msg": SENTENCE},
        {"Message": SENTENCE},
        {"error": {"error": SENTENCE}},
        {"error_msg": SENTENCE, "error_code": 17},
        {"response": {"fault": {"why": SENTENCE}}},
        [said(SENTENCE)],
        SENTENCE,
    ],
)
@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 429, 500, 503])
def test_the_providers_sentence_is_kept(body: Any, status: int) -> None:
    """What the provider says is in the error, whatever its kind and the shape of its body."""
    assert SENTENCE in ask(candidate(), http(body, status=status)).failure.message


@pytest.mark.parametrize("piece", ["sk-t***cdef", "sk-test...cdef", KEY[3:15], f"{KEY}!"])
def test_a_sentence_about_a_key_shows_none_of_it(piece: str) -> None:
    """A sentence about a wrong key is kept without the parts of the key in it."""
    error = ask(
        candidate(), http(said(f"Incorrect API key provided: {piece}. See the page on keys"), status=401)
    ).failure
    assert "Incorrect API key provided" in error.message
    assert "See the page on keys" in error.message
    assert piece not in error.message


def test_long_prompts_do_not_slow_errors_down() -> None:
    """A request of megabytes is searched for the sentence's words only up to a limit, and images' data not at all."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 5_000_000}}
    text = {"type": "text", "text": "The maximum context length is what? " * 100_000}
    error = from_response(
        candidate(),
        400,
        {},
        json.dumps(said("prompt is too long: 5 > 4")).encode(),
        sent={"messages": [{"role": "user", "content": [picture, text]}]},
    )
    assert type(error) is errors.ContextTooLong
