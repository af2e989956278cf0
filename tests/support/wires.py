"""The same short answer, 'Hello there', as each provider's wire has it: whole and as a stream."""

from __future__ import annotations

import json
from typing import Any

from shared.types import Usage
from tests.support.loopback import http, sse, streamed

KEY = "sk-test-0123456789abcdef"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}

OPENAI_USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 5,
    "total_tokens": 17,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


def completion(message: object = None, finish: str | None = "stop", **more: object) -> dict[str, Any]:
    """A whole answer in OpenAI's shape."""
    message = {"role": "assistant", "content": "Hello there"} if message is None else message
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"id": "c-1", "model": "m-1", "choices": [choice], "usage": OPENAI_USAGE, **more}


def chunk(content: str | None = None, finish: str | None = None, **more: object) -> dict[str, Any]:
    """One chunk of a stream in OpenAI's shape."""
    delta = {} if content is None else {"content": content}
    return {"id": "c-1", "model": "m-1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


OPENAI = (
    http(completion()),
    sse(chunk("Hello "), chunk("there"), chunk(finish="stop"), {"id": "c-1", "choices": [], "usage": OPENAI_USAGE}),
)
COUNTED = Usage(12, 5, 4, reasoning_tokens=2, source="provider")

ANTHROPIC = (
    http(
        {
            "id": "c-1",
            "type": "message",
            "role": "assistant",
            "model": "m-1",
            "content": [{"type": "text", "text": "Hello there"}],
            "stop_reason": "end_turn",
            "usage": {
                "input_tokens": 7,
                "cache_creation_input_tokens": 1,
                "cache_read_input_tokens": 4,
                "output_tokens": 5,
            },
        }
    ),
    sse(
        'event: message_start\ndata: {"type":"message_start","message":{"id":"c-1","model":"m-1","content":[],'
        '"usage":{"input_tokens":7,"cache_creation_input_tokens":1,"cache_read_input_tokens":4,"output_tokens":1}}}\n\n',
        'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n',
        'event: ping\ndata: {"type": "ping"}\n\n',
        'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello "}}\n\n',
        'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"there"}}\n\n',
        'data: {"type":"content_block_stop","index":0}\n\n',
        'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":5}}\n\n',
        'event: message_stop\ndata: {"type":"message_stop"}\n\n',
        done=False,
    ),
)


def candidates(text: str, finish: str | None = None, **usage: int) -> dict[str, Any]:
    """An answer of Gemini, or a chunk of one."""
    found: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    if finish:
        found["finishReason"] = finish
    return {"candidates": [found], "usageMetadata": usage, "modelVersion": "m-1", "responseId": "c-1"}


GEMINI_USAGE = {
    "promptTokenCount": 12,
    "candidatesTokenCount": 3,
    "thoughtsTokenCount": 2,
    "cachedContentTokenCount": 4,
    "totalTokenCount": 17,
}
GEMINI = (
    http(candidates("Hello there", "STOP", **GEMINI_USAGE)),
    sse(
        candidates("Hello ", promptTokenCount=12, totalTokenCount=12),
        candidates("there", "STOP", **GEMINI_USAGE),
        done=False,
    ),
)
COHERE_USAGE = {
    "billed_units": {"input_tokens": 1, "output_tokens": 1},
    "tokens": {"input_tokens": 12, "output_tokens": 5},
    "cached_tokens": 4,
}
COHERE = (
    http(
        {
            "id": "c-1",
            "message": {"role": "assistant", "content": [{"type": "text", "text": "Hello there"}]},
            "finish_reason": "COMPLETE",
            "usage": COHERE_USAGE,
        }
    ),
    sse(
        {"type": "message-start", "id": "c-1", "delta": {"message": {"role": "assistant", "content": []}}},
        {"type": "content-start", "index": 0, "delta": {"message": {"content": {"type": "text", "text": ""}}}},
        {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "Hello "}}}},
        {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "there"}}}},
        {"type": "content-end", "index": 0},
        {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": COHERE_USAGE}},
    ),
)
OLLAMA_END = {"model": "m-1", "done": True, "done_reason": "stop", "prompt_eval_count": 12, "eval_count": 5}
OLLAMA = (
    http({**OLLAMA_END, "message": {"role": "assistant", "content": "Hello there"}}),
    streamed(
        "".join(
            json.dumps(line) + "\n"
            for line in (
                {"model": "m-1", "message": {"role": "assistant", "content": "Hello "}, "done": False},
                {"model": "m-1", "message": {"role": "assistant", "content": "there"}, "done": False},
                {**OLLAMA_END, "message": {"role": "assistant", "content": ""}},
            )
        ),
        kind="application/x-ndjson",
    ),
)
PREDICTION = {"id": "p1", "model": "m-1", "status": "succeeded", "output": ["Hello ", "there"]}
REPLICATE = (
    http({**PREDICTION, "metrics": {"input_token_count": 12, "output_token_count": 5}}, status=201),
    http({**PREDICTION, "metrics": {"input_token_count": 12, "output_token_count": 5}}, status=201),
)


def said(message: str, **more: object) -> dict[str, Any]:
    """An error body in OpenAI's shape."""
    return {"error": {"message": message, **more}}
