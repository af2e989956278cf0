"""What we lean on or work around inside LiteLLM, one test each: when one fails, its sentence says what to do."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from shared.providers import endpoints
from shared.providers.endpoints import NO_KEY, base_url, find_endpoint
from shared.providers.litellm_client import _error
from shared.providers.litellm_readers import NoLog
from shared.providers.response import _RESPONSE_FORMAT_TOOL
from tests.support.loopback import candidate


@pytest.fixture(autouse=True)
def litellm_is_there() -> None:
    """All of these look inside LiteLLM."""
    endpoints.import_litellm()


def config_of(name: str, model: str = "m") -> Any:
    """LiteLLM's config for a provider's model."""
    from litellm.types.utils import LlmProviders
    from litellm.utils import ProviderConfigManager

    return ProviderConfigManager.get_provider_chat_config(model, LlmProviders(name))


METHODS = {
    "map_openai_params": {"non_default_params", "optional_params", "model", "drop_params"},
    "validate_environment": {
        "headers",
        "model",
        "messages",
        "optional_params",
        "litellm_params",
        "api_key",
        "api_base",
    },
    "get_complete_url": {"api_base", "api_key", "model", "optional_params", "litellm_params", "stream"},
    "transform_request": {"model", "messages", "optional_params", "litellm_params", "headers"},
    "get_supported_openai_params": {"model"},
    "translate_developer_role_to_system_role": {"messages"},
}


@pytest.mark.parametrize(
    "name", ["openai", "anthropic", "gemini", "cohere_chat", "ollama_chat", "azure", "groq", "xai"]
)
def test_config_methods(name: str) -> None:
    """If this fails, a provider's config takes other arguments: adapt request.py."""
    config = config_of(name)
    for method, names in METHODS.items():
        taken = inspect.signature(getattr(config, method)).parameters
        needed = {p.name for p in taken.values() if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
        assert needed <= names, f"{name}.{method} needs {needed - names} more: pass it in request.py"
        missing = names - taken.keys()
        assert not missing, f"{name}.{method} no longer takes {missing}: stop passing it in request.py"


def test_openai_base_lacks_its_version() -> None:
    """If this fails, OpenAI's config knows its own endpoint: drop "openai" from _BASES in endpoints.py."""
    url = config_of("openai").get_complete_url(None, "k", "m", {}, {})
    assert url == "https://api.openai.com/chat/completions"


def test_configs_of_others_lead_to_openai() -> None:
    """If this fails, OpenRouter's config has learnt its own endpoint: drop "openrouter" from _BASES."""
    url = config_of("openrouter").get_complete_url(None, "k", "m", {}, {})
    assert url == "https://api.openai.com/chat/completions"


def test_no_key_can_go_to_another_provider() -> None:
    """If this fails, a config without an endpoint of its own would send its key to OpenAI: see _wire's own_url."""
    from litellm.llms.openai.chat.gpt_transformation import OpenAIGPTConfig

    from shared.providers.endpoints import USERS_ENDPOINT, litellm_providers

    for name in litellm_providers():
        target = find_endpoint(name, "m")
        if target is None or target.wire != "openai" or name == "openai" or target.provider in USERS_ENDPOINT:
            continue
        base = base_url(target.provider, "m", None)
        own_url = type(target.config).get_complete_url is not OpenAIGPTConfig.get_complete_url
        assert base or own_url, f"{name} would be sent to OpenAI"
        assert "api.openai.com" not in (base or ""), f"{name} would be sent to OpenAI"


def test_default_endpoints_come_from_get_llm_provider() -> None:
    """If this fails, get_llm_provider no longer tells the endpoint as its fourth value: see base_url."""
    import litellm

    found = litellm.get_llm_provider("groq/m", api_key=NO_KEY)
    assert (found[0], found[1], found[3]) == ("m", "groq", "https://api.groq.com/openai/v1")


def test_hints_are_printed_and_can_be_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    """If this fails, LiteLLM has stopped printing hints: remove no_hints from endpoints.py."""
    import litellm

    litellm.supports_reasoning("zzz-unknown")
    assert "Provider List" in capsys.readouterr().out
    from shared.providers.endpoints import no_hints

    with no_hints():
        litellm.supports_reasoning("zzz-unknown")
    assert capsys.readouterr().out == ""


def test_replicates_config_downloads_templates() -> None:
    """If this fails, Replicate's config may write its prompt without a download: look whether to use it."""
    from litellm.llms.replicate.chat.transformation import ReplicateConfig

    assert "prompt_factory(" in inspect.getsource(ReplicateConfig.transform_request)


def test_gemini_names() -> None:
    """If this fails, what builds Gemini's request has moved: adapt request._gemini."""
    from litellm.llms.vertex_ai.common_utils import _get_gemini_url
    from litellm.llms.vertex_ai.gemini.transformation import _transform_request_body

    base = "https://generativelanguage.googleapis.com/v1beta/models/m"
    assert _get_gemini_url("chat", "m", True)[0] == f"{base}:streamGenerateContent?alt=sse"
    assert "cached_content" in inspect.signature(_transform_request_body).parameters
    with pytest.raises(NotImplementedError):
        config_of("gemini").transform_request("m", [], {}, {}, {})


def test_stream_readers_take_one_event_at_a_time() -> None:
    """If this fails, LiteLLM's stream readers have changed: adapt litellm_readers.py."""
    from litellm.llms.anthropic.chat.handler import ModelResponseIterator as Anthropic
    from litellm.llms.vertex_ai.gemini.vertex_and_google_ai_studio_gemini import ModelResponseIterator as Gemini

    anthropic = Anthropic(None, sync_stream=False, json_mode=False, tool_name_reverse_map=None)
    assert anthropic.converted_response_format_tool is False
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}}
    assert anthropic.chunk_parser(delta).choices[0].delta.content == "Hi"
    gemini = Gemini(None, sync_stream=False, logging_obj=NoLog())  # type: ignore[arg-type]
    chunk = gemini.chunk_parser({"candidates": [{"content": {"parts": [{"text": "Hi"}]}}]})
    assert chunk is not None
    assert chunk.choices[0].delta.content == "Hi"


def test_anthropic_stream_ends_are_made_up() -> None:
    """If this fails, LiteLLM no longer makes up a stop: the finish reason could be read from its chunks."""
    from litellm.llms.anthropic.chat.handler import ModelResponseIterator

    reader = ModelResponseIterator(None, sync_stream=False)
    event = {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 1}}
    assert reader.chunk_parser(event).choices[0].finish_reason == "stop"


def translated(name: str, body: dict[str, Any]) -> Any:
    """What LiteLLM's config alone makes of an answer."""
    from litellm.types.utils import ModelResponse

    raw = SimpleNamespace(json=lambda: body, text="", headers=httpx.Headers(), status_code=200)
    return config_of(name).transform_response(
        model="m",
        raw_response=raw,
        model_response=ModelResponse(),
        logging_obj=NoLog(),
        request_data={},
        messages=[],
        optional_params={},
        litellm_params={},
        encoding=None,
    )


def test_openai_ends_are_made_up() -> None:
    """If this fails, LiteLLM keeps an absent finish reason: its reading of OpenAI's shape could be used."""
    message = {"role": "assistant", "content": "Hi"}
    response = translated("openai", {"choices": [{"index": 0, "message": message, "finish_reason": None}]})
    assert response.choices[0].finish_reason == "stop"


def test_anthropic_without_usage_breaks() -> None:
    """If this fails, LiteLLM takes an answer without usage: read_anthropic need not put zeros there."""
    with pytest.raises(KeyError):
        translated("anthropic", {"content": [{"type": "text", "text": "Hi"}], "model": "m", "stop_reason": "end_turn"})


def test_gemini_loses_the_text_before_a_filter() -> None:
    """If this fails, LiteLLM keeps what came before Gemini's filter: _gemini_plain need not hide the reason."""
    candidate_ = {"content": {"parts": [{"text": "Some"}]}, "finishReason": "SAFETY"}
    usage = {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2}
    response = translated("gemini", {"candidates": [candidate_], "usageMetadata": usage})
    assert not response.choices[0].message.content


def test_cohere_v2_streams_lose_calls_and_ends() -> None:
    """If this fails, LiteLLM reads Cohere's v2 events: its iterator could replace take_cohere."""
    reader = config_of("cohere_chat").get_model_response_iterator(iter(()), sync_stream=True)
    call = {"tool_calls": {"id": "t", "function": {"name": "f", "arguments": "{}"}}}
    assert reader.chunk_parser({"type": "tool-call-start", "delta": {"message": call}})["tool_use"] is None
    end = {"type": "message-end", "delta": {"finish_reason": "COMPLETE"}}
    assert not reader.chunk_parser(end)["is_finished"]


def test_the_tool_that_stands_for_json() -> None:
    """If this fails, the tool by which LiteLLM asks for JSON is called otherwise: adapt response.py."""
    from litellm.constants import RESPONSE_FORMAT_TOOL_NAME

    assert RESPONSE_FORMAT_TOOL_NAME == _RESPONSE_FORMAT_TOOL
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {}}}}
    mapped = config_of("groq", "llama-3.1-8b-instant").map_openai_params(
        {"response_format": wanted},
        {},
        "llama-3.1-8b-instant",
        False,
    )
    assert mapped["tools"][0]["function"]["name"] == _RESPONSE_FORMAT_TOOL
    assert mapped["json_mode"] is True
    assert mapped["fake_stream"] is True


def test_the_tokenizer_is_bundled() -> None:
    """If this fails, counting may need the network: count_tokens must find another encoding."""
    import os

    from litellm.litellm_core_utils.default_encoding import encoding

    assert encoding.name == "cl100k_base"
    assert "litellm" in os.environ["TIKTOKEN_CACHE_DIR"]  # LiteLLM sets it when it is imported


def test_parameters_that_reasoning_models_refuse() -> None:
    """If this fails, LiteLLM says otherwise that a parameter is not taken: check request.config_error."""
    import litellm

    with pytest.raises(litellm.exceptions.UnsupportedParamsError, match=r"temperature.*drop_params"):
        config_of("openai", "gpt-5").map_openai_params({"temperature": 0.1}, {}, "gpt-5", False)


# Exceptions that litellm_client._error has been checked with, by their status.
KNOWN_EXCEPTIONS = {
    "APIConnectionError",
    "APIError",
    "APIResponseValidationError",
    "AuthenticationError",
    "BadGatewayError",
    "BadRequestError",
    "BudgetExceededError",
    "ContentPolicyViolationError",
    "ContextWindowExceededError",
    "GuardrailInterventionNormalStringError",
    "GuardrailRaisedException",
    "BlockedPiiEntityError",
    "ImageFetchError",
    "InternalServerError",
    "InvalidRequestError",
    "JSONSchemaValidationError",
    "LiteLLMUnknownProvider",
    "MidStreamFallbackError",
    "MockException",
    "ModifyResponseException",
    "NotFoundError",
    "OpenAIError",
    "PermissionDeniedError",
    "RateLimitError",
    "RejectedRequestError",
    "SensitiveDataRouteException",
    "ServiceUnavailableError",
    "Timeout",
    "UnprocessableEntityError",
    "UnsupportedParamsError",
}


def test_every_exception_of_litellm_is_known() -> None:
    """If this fails, LiteLLM has grown an exception: look what _error makes of it, then add it to the list."""
    from litellm import exceptions

    found = {
        name
        for name, kind in vars(exceptions).items()
        if inspect.isclass(kind) and issubclass(kind, Exception) and kind.__module__ == exceptions.__name__
    }
    assert found <= KNOWN_EXCEPTIONS, found - KNOWN_EXCEPTIONS


def test_exceptions_carry_status_and_headers() -> None:
    """If this fails, LiteLLM's exceptions tell their status or headers elsewhere: follow them in _error."""
    from litellm.exceptions import RateLimitError

    error: Any = RateLimitError("slow", llm_provider="x", model="m")
    assert error.status_code == 429
    error.litellm_response_headers = httpx.Headers({"retry-after": "4"})
    read = _error(candidate(), error)
    assert (type(read).__name__, read.retry_after) == ("RateLimitError", 4.0)


def test_the_wrapper_remembers_what_came() -> None:
    """If this fails, LiteLLM's stream wrapper has lost the marks by which we tell a made-up end: see _check_end."""
    from litellm.litellm_core_utils.streaming_handler import CustomStreamWrapper

    source = inspect.getsource(CustomStreamWrapper.__init__)
    for mark in ("received_finish_reason", "intermittent_finish_reason", "chunks"):
        assert f"self.{mark}" in source, mark


def test_the_logging_worker_can_be_seen_through() -> None:
    """If this fails, LiteLLM logs in another way: what _end_logging does may be done differently, or no more."""
    from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER

    assert hasattr(GLOBAL_LOGGING_WORKER, "_bound_loop")
    assert inspect.iscoroutinefunction(GLOBAL_LOGGING_WORKER.flush)
    assert inspect.iscoroutinefunction(GLOBAL_LOGGING_WORKER.stop)
