"""What comes beside the text is kept, and what one provider signed goes back to it and to no other."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from shared.llm_client import LLMClient
from shared.providers.call_ids import fit_call_ids
from shared.providers.strict_schema import fits_strict
from shared.types import WantedSchema
from tests.support.asking import HELLO
from tests.support.loopback import ask, candidate, http, sse
from tests.support.provider_double import Double
from tests.support.wires import ANTHROPIC, GEMINI, OPENAI, chunk, completion

SOURCE = {"type": "url_citation", "url_citation": {"url": "https://source.example/1"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
TOKEN = {"token": "Hi", "logprob": -0.1}
BESIDE: dict[str, Any] = {
    "annotations": [SOURCE],
    "images": [IMAGE],
    "audio": {"id": "a", "data": "U09VTkQ=", "expires_at": 1, "transcript": "hello"},
    "refusal": "Not that part.",
    "reasoning_details": [{"type": "reasoning.encrypted", "data": "S", "index": 0}],
}


def test_what_a_whole_answer_holds_beside_its_text() -> None:
    """Sources, images, sound, probabilities and a refusal reach the caller."""
    body = completion({"content": "Hi", **BESIDE}, citations=["https://a.example"])
    body["choices"][0]["logprobs"] = {"content": [TOKEN]}
    message = ask(candidate(), http(body)).answer.message
    assert {name: message[name] for name in BESIDE} == BESIDE
    assert message["logprobs"] == {"content": [TOKEN]}
    assert message["citations"] == ["https://a.example"]


def test_what_a_stream_holds_beside_its_text() -> None:
    """The same in parts is put together to the same."""
    deltas: list[dict[str, Any]] = [
        {"audio": {"id": "a", "transcript": "hel"}},
        {"content": "Hi", "annotations": [SOURCE], "refusal": "Not that"},
        {"audio": {"id": "a", "data": "U09V", "transcript": "lo"}, "refusal": " part."},
        {"images": [IMAGE], "reasoning_details": [{"type": "reasoning.encrypted", "data": "S", "index": 0}]},
        {"audio": {"id": "a", "data": "TkQ=", "expires_at": 1}},
    ]
    events = [{"choices": [{"index": 0, "delta": delta, "logprobs": {"content": [TOKEN]}}]} for delta in deltas]
    message = ask(candidate(), sse(*events, chunk(finish="stop")), stream=True).answer.message
    assert {name: message[name] for name in BESIDE} == BESIDE
    assert message["logprobs"] == {"content": [TOKEN] * 5}


def test_reasoning_details_in_parts() -> None:
    """OpenRouter's thoughts come in pieces with one index, and their signature last; they are one."""
    parts = [
        {"type": "reasoning.text", "text": "So ", "index": 0, "format": "anthropic-claude-v1"},
        {"type": "reasoning.text", "text": "be it.", "index": 0, "format": "anthropic-claude-v1"},
        {"type": "reasoning.text", "signature": "S", "index": 0},
        {"type": "reasoning.encrypted", "data": "E", "index": 1},
    ]
    events = [{"choices": [{"index": 0, "delta": {"content": "x", "reasoning_details": [part]}}]} for part in parts]
    message = ask(candidate("openrouter", "a/b"), sse(*events, chunk(finish="stop")), stream=True).answer.message
    whole = {**parts[0], "text": "So be it.", "signature": "S"}
    assert message["reasoning_details"] == [whole, parts[3]]


def test_sources_on_other_wires() -> None:
    """Gemini's grounding, Cohere's and Anthropic's citations are kept, whole and streamed."""
    grounding = {"webSearchQueries": ["q"], "groundingChunks": [{"web": {"uri": "https://source.example/1"}}]}
    found = {"content": {"parts": [{"text": "Hi"}]}, "finishReason": "STOP", "groundingMetadata": grounding}
    for stream in (False, True):
        body: dict[str, Any] = {"candidates": [found]}
        reply = sse(body, done=False) if stream else http(body)
        message = ask(candidate("gemini", "gemini-2.5-flash"), reply, stream=stream).answer.message
        assert message["grounding_metadata"] == grounding
    cited = {"start": 0, "end": 2, "text": "Hi", "sources": [{"id": "1"}]}
    whole = http(
        {"message": {"content": [{"type": "text", "text": "Hi"}], "citations": [cited]}, "finish_reason": "COMPLETE"}
    )
    assert ask(candidate("cohere", "c"), whole).answer.message["citations"] == [cited]
    events: list[dict[str, Any]] = [
        {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "Hi"}}}},
        {"type": "citation-start", "index": 0, "delta": {"message": {"citations": cited}}},
        {"type": "message-end", "delta": {"finish_reason": "COMPLETE"}},
    ]
    answer = ask(candidate("cohere", "c"), sse(*events, done=False), stream=True).answer
    assert answer.message["citations"] == [cited]
    citation = {"type": "web_search_result_location", "url": "https://source.example/1", "cited_text": "Hi"}
    block = {"type": "text", "text": "Hi", "citations": [citation]}
    body = {"content": [block], "stop_reason": "end_turn", "model": "m"}
    [found] = ask(candidate("anthropic", "claude-haiku-4-5"), http(body)).answer.message["citations"]
    assert found | citation == found
    events = [
        {"type": "message_start", "message": {"model": "m", "content": []}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "citations_delta", "citation": citation}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
        {"type": "message_stop"},
    ]
    answer = ask(candidate("anthropic", "claude-haiku-4-5"), sse(*events, done=False), stream=True).answer
    assert answer.message["citations"] == [citation]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_it_is_in_the_metadata(hosted: Double, stream: bool) -> None:
    """The response of a call shows it all."""
    message = {"role": "assistant", "content": "Hi", **BESIDE}
    events = [{"choices": [{"index": 0, "delta": message}]}, chunk(finish="stop")]
    flowing = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    hosted.reply(
        "openai",
        body=flowing if stream else completion(message),
        content_type="text/event-stream" if stream else "",
    )
    response: Any = LLMClient().chat_completion(HELLO, model="openai/gpt-4.1-mini", stream=stream)
    if stream:
        list(response)
        response = response.response
    named = {"answer_images" if name == "images" else name: value for name, value in BESIDE.items()}
    assert {name: response.metadata[name] for name in named} == named


# Signatures

SIGNED = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "go"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{**SIGNED, "extra_content": {"google": {"thought_signature": "SIG"}}}],
        "reasoning_details": [{"type": "reasoning.encrypted", "data": "DETAIL"}],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "done"},
]
NATIVE = json.loads(
    json.dumps(HISTORY).replace(
        '"extra_content": {"google": {"thought_signature": "SIG"}}',
        '"provider_specific_fields": {"thought_signature": "SIG"}',
    )
)
GOOGLE = "https://generativelanguage.googleapis.com/v1beta/openai"


@pytest.mark.parametrize("history", [HISTORY, NATIVE], ids=["OpenAI's form", "Gemini's form"])
@pytest.mark.parametrize(
    ("name", "model", "base", "gets"),
    [
        ("openai", "gemini-3-pro-preview", GOOGLE, {"SIG"}),
        ("gemini", "gemini-3-pro-preview", None, {"SIG"}),
        ("openrouter", "google/gemini-3-pro-preview", None, {"SIG", "DETAIL"}),
        ("openrouter", "anthropic/claude-x", None, {"DETAIL"}),
        ("openai", "gpt-4.1-mini", None, set()),
        ("mistral", "mistral-small-latest", None, set()),
        ("anthropic", "claude-haiku-4-5", None, set()),
        ("deepseek", "deepseek-chat", None, set()),
    ],
)
def test_signed_reasoning_goes_to_its_own_provider(
    history: list[dict[str, Any]], name: str, model: str, base: str | None, gets: set[str]
) -> None:
    """Gemini's signatures go to Gemini in the form of its endpoint, OpenRouter's to OpenRouter, and no further."""
    reply = {"gemini": GEMINI, "anthropic": ANTHROPIC}.get(name, OPENAI)[0]
    [asked] = ask(candidate(name, model, api_base=base), reply, messages=history).asked
    sent = json.dumps(asked.body)
    assert {word for word in ("SIG", "DETAIL") if f'"{word}"' in sent} == gets
    assert "provider_specific_fields" not in sent
    assert ("extra_content" in sent) == ("SIG" in gets and name != "gemini")


def test_geminis_signature_on_its_openai_endpoint_is_kept() -> None:
    """extra_content of a tool call reaches the caller, whole and streamed."""
    call = {"index": 0, **SIGNED, "extra_content": {"google": {"thought_signature": "SIG"}}}
    whole = ask(candidate(), http(completion({"content": None, "tool_calls": [call]}, "stop"))).answer
    events = [{"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}, chunk(finish="stop")]
    flowing = ask(candidate(), sse(*events), stream=True).answer
    for answer in (whole, flowing):
        [made] = answer.message["tool_calls"]
        assert made["extra_content"] == {"google": {"thought_signature": "SIG"}}


# Ids of tool calls


def conversation(*ids: Any) -> list[dict[str, Any]]:
    """Two turns with a tool call each."""
    return [
        message
        for each in ids
        for message in (
            {"role": "assistant", "tool_calls": [{"id": each, "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": each, "content": "x"},
        )
    ]


@pytest.mark.parametrize(
    ("provider", "wire", "taken"),
    [
        ("mistral", "openai", "[a-zA-Z0-9]{9}"),
        ("openai", "openai", ".{1,40}"),
        ("anthropic", "anthropic", "[a-zA-Z0-9_-]{1,64}"),
        ("bedrock", "", "[a-zA-Z0-9_-]{1,64}"),
        ("gemini", "gemini", ".+"),
    ],
)
@pytest.mark.parametrize(
    "ids",
    [
        ("call_PTLP8xhu3uwZk4l3nlnrrJha", "call_2"),
        ("functions.look:0", "functions_look_0"),
        ("x" * 70, "x" * 71),
        ("call_0", "call_0"),
        ("", ""),
        (None, None),
        ("abcdefghi", "ABCDEFGH1"),
    ],
)
def test_ids_fit_the_next_provider(provider: str, wire: str, taken: str, ids: tuple[Any, Any]) -> None:
    """Each provider gets ids that it takes, one for each call, which its results name; the same ones each time."""
    before = conversation(*ids)
    after = fit_call_ids(before, provider, wire)
    made = [message["tool_calls"][0]["id"] for message in after[::2]]
    assert all(re.fullmatch(taken, each) for each in made)
    assert len(set(made)) == 2
    assert [message["tool_call_id"] for message in after[1::2]] == made
    assert fit_call_ids(before, provider, wire) == after
    assert before == conversation(*ids)


def test_an_id_that_fits_is_not_changed() -> None:
    """A provider's own ids go back to it as they were."""
    for provider, wire, mine in (("mistral", "openai", "D681PevKs"), ("anthropic", "anthropic", "toolu_01A-b")):
        before = conversation(mine)
        assert fit_call_ids(before, provider, wire) == before


def test_results_of_calls_with_one_id() -> None:
    """Two calls of one turn with the same id are told apart by the order of their results."""
    calls = [{"id": "a", "function": {"name": name, "arguments": "{}"}} for name in "fg"]
    results = [{"role": "tool", "tool_call_id": "a", "content": name} for name in "fg"]
    [message, *answers] = fit_call_ids([{"role": "assistant", "tool_calls": calls}, *results], "openai", "openai")
    assert [answer["tool_call_id"] for answer in answers] == [call["id"] for call in message["tool_calls"]]
    assert len({answer["tool_call_id"] for answer in answers}) == 2


# JSON modes

OPEN = {"type": "object", "properties": {"a": {"type": "integer"}}}
CLOSED = {**OPEN, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "fits"),
    [
        (CLOSED, True),
        ({**CLOSED, "properties": {"a": {"type": "array", "items": CLOSED}}}, True),
        ({**CLOSED, "properties": {"a": {"anyOf": [{"type": "null"}, CLOSED]}}}, True),
        (OPEN, False),
        ({**OPEN, "additionalProperties": False}, False),
        ({**CLOSED, "properties": {"a": OPEN}}, False),
        ({**CLOSED, "properties": {"a": {"type": "array", "items": OPEN}}}, False),
        ({**CLOSED, "properties": {"a": {"anyOf": [{"type": "null"}, OPEN]}}}, False),
        ({**CLOSED, "additionalProperties": True}, False),
        ({**CLOSED, "allOf": []}, False),
        ({**CLOSED, "properties": {"a": {"default": 5, "type": "integer"}}}, False),
        ({"type": "array", "items": CLOSED}, False),
        ({"anyOf": [CLOSED]}, False),
        ({}, False),
        (True, False),
    ],
)
def test_schemas_that_strict_mode_takes(schema: Any, fits: bool) -> None:
    """Strict mode is for schemas in which every object is closed and requires all that it has."""
    assert fits_strict(schema) == fits


@pytest.mark.parametrize(
    ("name", "model", "schema", "sent"),
    [
        ("openai", "gpt-4.1-mini", CLOSED, ("response_format", True)),
        ("openai", "gpt-4.1-mini", OPEN, ("response_format", False)),
        ("mistral", "mistral-small-latest", CLOSED, ("response_format", True)),
        ("openai", "gpt-3.5-turbo", CLOSED, None),
        ("custom", "m", CLOSED, None),
        ("anthropic", "claude-haiku-4-5", OPEN, None),
        ("cohere", "command-a-03-2025", CLOSED, None),
    ],
)
def test_a_schema_goes_where_there_is_a_mode_for_it(
    name: str, model: str, schema: dict[str, Any], sent: tuple[str, bool] | None
) -> None:
    """A schema is sent as the provider's own JSON mode, strict where it fits, and left out where there is none."""
    wanted = WantedSchema(type="json_schema", json_schema={"name": "answer", "schema": schema, "strict": True})
    base = "http://127.0.0.1:1/v1" if name == "custom" else None
    reply = ANTHROPIC[0] if name == "anthropic" else OPENAI[0]
    [asked] = ask(candidate(name, model, api_base=base), reply, response_format=wanted).asked
    text = json.dumps(asked.body)
    if sent is None:
        assert "additionalProperties" not in text
        assert "response_format" not in asked.body
        assert "tools" not in asked.body
    else:
        assert asked.body[sent[0]]["json_schema"] == {"name": "answer", "schema": schema, "strict": sent[1]}


def test_deepseek_has_json_but_no_schemas() -> None:
    """DeepSeek is asked for JSON only, since it refuses schemas."""
    wanted = WantedSchema(type="json_schema", json_schema={"name": "answer", "schema": OPEN, "strict": True})
    [asked] = ask(candidate("deepseek", "deepseek-chat"), OPENAI[0], response_format=wanted).asked
    assert asked.body["response_format"] == {"type": "json_object"}
