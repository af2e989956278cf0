"""Anthropic and OpenAI as a transport that bills prompt caching by their documented rules; tokens are characters / 4.

Anthropic: breakpoints (at most four) end a prefix of tools, system and messages; the longest prefix in the cache that
ends at a breakpoint or at most 19 blocks before it is read, and refreshed; what follows up to the last breakpoint is
written; nothing is below the model's minimum. A cache lives for 5 minutes, or for 1 hour if asked.
Source: platform.claude.com/docs/en/build-with-claude/prompt-caching (read 2026-11-28), and the usage of
tests/recorded's Claude Haiku 4.5, whose input_tokens exclude what is read and written.

OpenAI: before GPT-5.6 the longest common prefix of at least 1,024 tokens is read, in steps of 128, free to write. From
GPT-5.6 on, a breakpoint stands behind the newest message and wherever the request sets one; only prefixes that end at a
breakpoint are read, for 30 minutes, and what is written is billed. Caches of different keys are apart.
Source: developers.openai.com/api/docs/guides/prompt-caching (read 2026-11-28).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

MINIMUM = {"claude-haiku-4-5": 4096}
_LOOKBACK = 20
_AUTOMATIC_S, _BREAKPOINTS_S = 300, 1800


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a prompt: everything up to its end, its tokens, and whether a breakpoint stands behind it."""

    prefix: str
    tokens: int
    breakpoint: dict[str, Any] | None = None


def tokens(text: str) -> int:
    """Tokens of a text."""
    return max(1, len(text) // 4)


@dataclass(slots=True)
class CachingProviders(httpx.AsyncBaseTransport):
    """
    Both providers.

    Args:
        answer: Text of an answer, for a body.

        refuses_flex: Whether the flex tier has no capacity.
    """

    answer: Callable[[dict[str, Any]], str] = lambda _body: "fine " * 20
    refuses_flex: bool = False
    bodies: list[dict[str, Any]] = field(default_factory=list)
    _cache: dict[tuple[str, ...], float] = field(default_factory=dict)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer, with the usage that the provider would bill."""
        body = json.loads(await request.aread())
        self.bodies.append(body)
        if request.url.host == "api.anthropic.com":
            return httpx.Response(200, json=self._anthropic(body))
        if body.get("service_tier") == "flex" and self.refuses_flex:
            error = {"message": "Resource unavailable", "type": "resource_unavailable", "code": "resource_unavailable"}
            return httpx.Response(429, json={"error": error})
        return httpx.Response(200, json=self._openai(body))

    def _anthropic(self, body: dict[str, Any]) -> dict[str, Any]:
        blocks = list(_blocks(body, "cache_control"))
        least = MINIMUM.get(body["model"], 1024)
        marks = [at for at, block in enumerate(blocks) if block.breakpoint]
        assert len(marks) <= 4, "Anthropic accepts four breakpoints"
        total, read = sum(block.tokens for block in blocks), 0
        ends = [sum(block.tokens for block in blocks[: at + 1]) for at in range(len(blocks))]
        for mark in marks:
            for at in range(mark, max(-1, mark - _LOOKBACK), -1):
                if self._is_live(body["model"], blocks[at].prefix):
                    read = max(read, ends[at])
                    break
        long = written = 0
        for mark in marks:
            if ends[mark] >= least:
                ttl = 3600 if (blocks[mark].breakpoint or {}).get("ttl") == "1h" else 300
                new = max(0, ends[mark] - max(read, written))
                written, long = max(written, ends[mark]) if new else written, long + (new if ttl == 3600 else 0)
                self._keep(ttl, body["model"], blocks[mark].prefix)
        written = max(0, written - read)
        text = self.answer(body)
        usage = {
            "input_tokens": total - read - written,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": written,
            "cache_creation": {"ephemeral_5m_input_tokens": written - long, "ephemeral_1h_input_tokens": long},
            "output_tokens": tokens(text),
        }
        content = [{"type": "text", "text": text}]
        head = {"id": "msg_1", "type": "message", "role": "assistant", "model": body["model"]}
        return head | {"content": content, "stop_reason": "end_turn", "usage": usage}

    def _openai(self, body: dict[str, Any]) -> dict[str, Any]:
        blocks = list(_blocks(body, "prompt_cache_breakpoint"))
        ends = [sum(block.tokens for block in blocks[: at + 1]) for at in range(len(blocks))]
        where = (body["model"], body.get("prompt_cache_key", ""))
        bills_writes = body["model"].startswith(("gpt-5.6", "gpt-6"))
        live = [end for end, block in zip(ends, blocks, strict=True) if self._is_live(*where, block.prefix)]
        read = max(live, default=0)
        marks = [at for at, block in enumerate(blocks) if block.breakpoint or at == len(blocks) - 1]
        written = 0
        for at in marks if bills_writes else range(len(blocks)):
            if ends[at] >= 1024:
                self._keep(_BREAKPOINTS_S if bills_writes else _AUTOMATIC_S, *where, blocks[at].prefix)
                written = max(0, ends[at] - read) if bills_writes else 0
        read = read if bills_writes else read // 128 * 128 if read >= 1024 else 0
        text = self.answer(body)
        usage = {
            "prompt_tokens": ends[-1],
            "completion_tokens": tokens(text),
            "total_tokens": ends[-1] + tokens(text),
            "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
        }
        message = {"role": "assistant", "content": text}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        tier = body.get("service_tier", "default")
        head = {"id": "x", "object": "chat.completion", "model": body["model"], "service_tier": tier}
        return head | {"choices": choices, "usage": usage}

    def _is_live(self, *key: str) -> bool:
        return self._cache.get(key, 0) > time.time()

    def _keep(self, seconds: int, *key: str) -> None:
        self._cache[key] = max(self._cache.get(key, 0), time.time() + seconds)


def _text(text: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}]


def _blocks(body: dict[str, Any], mark: str) -> Iterator[Block]:
    """The blocks of a prompt in the order in which they are cached: tools, system, messages."""
    prefix = ""
    system = body.get("system") or []
    parts: list[Any] = [*body.get("tools", ()), *(_text(system) if isinstance(system, str) else system)]
    for message in body["messages"]:
        content = message.get("content")
        inner = content if isinstance(content, list) else _text(content)
        parts += [{**part, "role": message["role"]} for part in inner if isinstance(part, dict)]
        parts += [{"role": "assistant", "call": call} for call in message.get("tool_calls") or ()]
    for part in parts:
        text = json.dumps({name: value for name, value in part.items() if name != mark}, sort_keys=True)
        prefix += text
        yield Block(prefix, tokens(text), part.get(mark))
