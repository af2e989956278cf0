"""Models that the installed LiteLLM does not know: what is sent is what their providers document."""

from __future__ import annotations

from typing import Any

import pytest

from shared import errors
from shared.prices import price_table
from shared.providers import endpoints
from shared.providers.newer_models import STAND_INS, litellm_knows, newer_model
from tests.support.loopback import Reply, ask, candidate
from tests.support.wires import ANTHROPIC, GEMINI, KEY, OPENAI, TOOL

BASES = {"azure": "https://res.openai.azure.com"}
REPLIES = {"anthropic": ANTHROPIC, "gemini": GEMINI}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string"}},
    "required": ["a"],
    "additionalProperties": False,
}
JSON = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


def budget(tokens: int) -> dict[str, Any]:
    """Thinking as Anthropic took it until Claude Opus 4.6."""
    return {"type": "enabled", "budget_tokens": tokens}


def sent(name: str, **params: Any) -> dict[str, Any]:
    """The body of a request, without model and messages."""
    provider, _, model = name.partition("/")
    reply: Reply = REPLIES.get(provider, OPENAI)[0]
    [asked] = ask(candidate(provider, model, api_base=BASES.get(provider)), reply, **params).asked
    left_out = ("messages", "system", "contents", "system_instruction")
    body: dict[str, Any] = {key: value for key, value in asked.body.items() if key not in left_out}
    assert body.pop("model", model) == model
    assert body.pop("stream", False) is False
    return body


@pytest.fixture(autouse=True)
def litellm_is_there() -> None:
    """All of these look inside LiteLLM."""
    endpoints.import_litellm()


CONTRACTS = (
    # OpenAI: max_completion_tokens, every effort of the model, sampling only without reasoning, tools only without it.
    (
        "openai/gpt-5.6-luna",
        {"max_tokens": 50, "reasoning_effort": "xhigh"},
        {"max_completion_tokens": 50, "reasoning_effort": "xhigh"},
    ),
    ("openai/gpt-5.6-terra", {"tools": [TOOL]}, {"tools": [TOOL], "reasoning_effort": "none"}),
    (
        "openai/gpt-6-luna",
        {"temperature": 0.3, "reasoning_effort": "none"},
        {"temperature": 0.3, "reasoning_effort": "none"},
    ),
    (
        "openai/gpt-6-astra",
        {"max_tokens": 50, "reasoning_effort": "max", "response_format": JSON},
        {"max_completion_tokens": 50, "reasoning_effort": "max", "response_format": JSON},
    ),
    (
        "azure/gpt-6-sol",
        {"max_tokens": 50, "reasoning_effort": "high"},
        {"max_completion_tokens": 50, "reasoning_effort": "high"},
    ),
    # Anthropic: adaptive thinking with an effort instead of a budget, and JSON by output_config.
    (
        "anthropic/claude-sonnet-5",
        {"thinking": budget(2000), "max_tokens": 50},
        {"thinking": {"type": "adaptive"}, "output_config": {"effort": "medium"}, "max_tokens": 50},
    ),
    (
        "anthropic/claude-opus-5-5",
        {"reasoning_effort": "xhigh", "temperature": 1, "max_tokens": 50},
        {"thinking": {"type": "adaptive"}, "output_config": {"effort": "xhigh"}, "max_tokens": 50},
    ),
    (
        "anthropic/claude-fable-5-1",
        {"response_format": JSON, "max_tokens": 50},
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}, "max_tokens": 50},
    ),
    (
        "anthropic/claude-haiku-5-5",
        {"reasoning_effort": "none", "max_tokens": 50},
        {"thinking": {"type": "disabled"}, "max_tokens": 50},
    ),
    # Gemini: a level instead of a budget, JSON Schema as it is, no temperature of LiteLLM's own.
    (
        "gemini/gemini-3.8-flash",
        {"reasoning_effort": "minimal", "response_format": JSON},
        {
            "generationConfig": {
                "thinkingConfig": {"thinkingLevel": "low", "includeThoughts": True},
                "response_mime_type": "application/json",
                "response_json_schema": SCHEMA,
            }
        },
    ),
    (
        "gemini/gemini-4-argon",
        {"reasoning_effort": "medium", "temperature": 0.2},
        {
            "generationConfig": {
                "thinkingConfig": {"thinkingLevel": "medium", "includeThoughts": True},
                "temperature": 0.2,
            }
        },
    ),
    # Providers of OpenAI's format: what LiteLLM takes only from models that its table names.
    ("xai/grok-4.7", {"reasoning_effort": "high"}, {"reasoning_effort": "high"}),
    ("mistral/mistral-large-4", {"reasoning_effort": "high"}, {"reasoning_effort": "high"}),
    (
        "together_ai/zai-org/GLM-5.3",
        {"tools": [TOOL], "tool_choice": "auto", "response_format": JSON},
        {"tools": [TOOL], "tool_choice": "auto", "response_format": JSON},
    ),
    (
        "groq/qwen/qwen3.8-27b",
        {"reasoning_effort": "low", "response_format": JSON},
        {"reasoning_effort": "low", "response_format": JSON},
    ),
)


@pytest.mark.parametrize(("name", "params", "body"), CONTRACTS, ids=[name for name, *_ in CONTRACTS])
def test_contracts(name: str, params: dict[str, Any], body: dict[str, Any]) -> None:
    """A model that is newer than LiteLLM is sent what its provider documents, decided from the price table."""
    provider, _, model = name.partition("/")
    assert not litellm_knows(provider, model), "LiteLLM has learnt it: test a newer one"
    assert sent(name, **params) == body


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("openai/gpt-6-astra", {"reasoning_effort": "none"}, "does not take reasoning_effort 'none'"),
        ("openai/gpt-6-astra", {"temperature": 0.3}, "temperature"),
        ("openai/gpt-6-luna", {"reasoning_effort": "minimal"}, "'minimal'"),
        ("anthropic/claude-sonnet-5", {"temperature": 0.3, "thinking": budget(2000)}, "does not take temperature"),
        ("anthropic/claude-opus-5-5", {"tools": [TOOL], "tool_choice": "required"}, "tool_choice must be"),
        ("anthropic/claude-opus-5-5", {"reasoning_effort": "none"}, "always thinks"),
        ("anthropic/claude-sonnet-5", {"speed": "fast"}, "does not take speed"),
        ("gemini/gemini-3.8-flash", {"top_p": 0.5}, "does not take top_p"),
    ],
)
def test_what_the_provider_would_refuse(name: str, params: dict[str, Any], said: str) -> None:
    """What a newer model's provider documents as an error is refused before anything is sent."""
    provider, _, model = name.partition("/")
    told = ask(candidate(provider, model, api_key=KEY), **params)
    assert type(told.failure) is errors.InvalidRequest
    assert said in told.failure.message
    assert told.asked == []


def test_openai_models_that_no_table_knows() -> None:
    """OpenAI's own API takes max_completion_tokens for every model; an endpoint of the user's own gets max_tokens."""
    assert sent("openai/gpt-99", max_tokens=5) == {"max_completion_tokens": 5}
    own = candidate("openai", "gpt-99", api_base="http://127.0.0.1:1/v1")
    [asked] = ask(own, OPENAI[0], max_tokens=5).asked
    assert asked.body["max_tokens"] == 5


def test_an_entry_without_abilities_is_read_by_its_family() -> None:
    """A model of which the table has prices only is taken to be like the one with the most similar name."""
    assert "can" not in price_table()["anthropic/claude-fable-5-2"]
    assert newer_model("anthropic", "claude-fable-5-2") == newer_model("anthropic", "claude-fable-5-1")


def test_stand_ins_are_known() -> None:
    """If this fails, LiteLLM has dropped a model by whose rules newer ones are written: name another in STAND_INS."""
    assert [row.model for row in STAND_INS if not litellm_knows(row.provider, row.model)] == []
