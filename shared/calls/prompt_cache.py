"""Prompt caching: where a provider needs breakpoints, they stand behind what it has seen a moment ago."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, NamedTuple

import anyio.to_thread

from shared.calls.call import Call
from shared.errors import StoreError
from shared.ledger import RecentPrompt, recent_prompts
from shared.models import is_own_host
from shared.scope import Scope, run_of_process
from shared.types import Candidate, Request

logger = logging.getLogger("agentswarm_tools")

# Shorter prompts are not cached, and marking them costs nothing. Where sources differ, and for models that none names,
# the larger number. Sources, read 2026-11-28: platform.claude.com/docs/en/build-with-claude/prompt-caching ("Cache
# limitations") and "What's new in Claude Opus 5", in stored copies; openrouter.ai/docs (prompt caching);
# github.com/anthropics/anthropic-sdk-python/issues/1194, which measured 2,048 for Claude Sonnet 4.6.
MINIMUM_TOKENS: Sequence[tuple[str, int]] = (
    ("claude-opus-5*", 512),
    ("claude-opus-4-8*", 1024),
    ("claude-sonnet-4-5*", 1024),
    ("claude-opus-4-1*", 1024),
    ("claude-sonnet-4-6*", 2048),
    ("*", 4096),
)
# OpenAI caches from 1,024 tokens on. Source: developers.openai.com/api/docs/guides/prompt-caching (read 2026-11-28).
_OPENAI_MINIMUM = 1024
# A cache lives so long after its last use. Writing it costs 1.25 times the input for 5 minutes, twice for 1 hour; the
# price table has both. Source: platform.claude.com, as above.
RETENTION_S: Mapping[str, int] = {"auto": 300, "1h": 3600}
_CHARS_PER_TOKEN = 4
_MAX_KEY = 64


@dataclass(frozen=True, slots=True)
class Marked:
    """A request with its breakpoints; `note` is what its row keeps, so that all processes follow the same rule."""

    request: Request
    note: Mapping[str, Any] = field(default_factory=dict)


async def request_for(call: Call, candidate: Candidate) -> Marked:
    """The call's request for one model: its tier, and what `prompt_cache` asks for."""
    request = call.request
    if candidate.is_standard:
        params = {name: value for name, value in request.params.items() if name != "service_tier"}
        request = replace(request, params=params)
    if request.prompt_cache is None or candidate.answered_at is not None or _is_marked_already(request):
        return Marked(request)
    if candidate.provider == "anthropic":
        return await _for_anthropic(call, candidate, request)
    if candidate.provider in ("openai", "azure") and not (
        candidate.provider == "openai" and is_own_host("openai", candidate.api_base)
    ):
        return Marked(_for_openai(call.scope, candidate, request))
    return Marked(request)  # the other providers cache by themselves, or charge for keeping the content


def _for_openai(scope: Scope, candidate: Candidate, request: Request) -> Request:
    """
    A cache key for the scope; a breakpoint behind the instructions where OpenAI bills what it writes to the cache.

    Such a model (GPT-5.6 and later) writes each prompt up to its newest message anyway, but finds it again only at a
    breakpoint; so this one costs nothing more, and lets other conversations read the instructions.
    """
    params = {"prompt_cache_key": cache_key(scope), **request.params}
    head = _head(request)
    is_long = head >= 0 and _prefixes(request)[head].size >= _OPENAI_MINIMUM * _CHARS_PER_TOKEN
    if "cache_write" in candidate.rates.prices and is_long:
        request = _with_marks(request, {head}, {"prompt_cache_breakpoint": {"mode": "explicit"}})
    return replace(request, params=params)


def cache_key(scope: Scope) -> str:
    """The requests of one agent for the same labels share a cache, and no others."""
    labels = [f"{name}={value}" for name, value in sorted(scope.labels.items())]
    key = ",".join([scope.agent or scope.tool or "agentswarm-tools", *labels])
    return key if len(key) <= _MAX_KEY else hashlib.sha256(key.encode()).hexdigest()


async def _for_anthropic(call: Call, candidate: Candidate, request: Request) -> Marked:
    """
    Breakpoints behind the instructions and the conversation so far, if this scope has sent the same before.

    Writing to the cache costs more than sending, so what may be sent only once is not marked. The same is what has the
    same length at the same place, since neither prompts nor their hashes are kept.
    """
    prefixes, head = _prefixes(request), _head(request)
    head_size = prefixes[head].size if head >= 0 else 0
    note: dict[str, Any] = {"prompt_chars": [head_size, prefixes[-1].size], "breakpoints": 0}
    retention = request.prompt_cache or "auto"
    try:
        recent = await anyio.to_thread.run_sync(_recent, call, candidate, RETENTION_S[retention])
    except StoreError:
        return Marked(request, note)
    own = [each for each in recent if _is_own(each, call.scope)]
    sent = _Sent(call.scope, candidate.model)
    is_other = head >= 0 and sent.is_other(prefixes[head])
    for at in {max(head, 0), len(prefixes) - 1}:
        sent.add(prefixes[at])
    # Calls outside of any conversation or run have nothing to do with each other.
    talk = own if call.scope.conversation or call.scope.run else []
    if _has_collapsed(talk, head_size, is_other, call.scope.agent or candidate.model):
        return Marked(request, note)
    least = _minimum(candidate.wire_model) * _CHARS_PER_TOKEN
    heads, wholes = {each.head for each in recent}, {each.whole for each in own}
    marks: set[int] = set()
    if head >= 0 and prefixes[head].size in heads and not is_other:
        marks.add(head)
    # What was sent as a whole, and goes on: what is added now is read again in the next turn.
    before = [at for at in range(head + 1, len(prefixes) - 1) if prefixes[at].size in wholes]
    if before and not sent.is_other(prefixes[before[-1]]):
        marks |= {before[-1], len(prefixes) - 1}
    marks = {at for at in marks if prefixes[at].size >= least}
    mark = {"type": "ephemeral", "ttl": "1h"} if retention == "1h" else {"type": "ephemeral"}
    return Marked(_with_marks(request, marks, {"cache_control": mark}), {**note, "breakpoints": len(marks)})


def _is_own(recent: RecentPrompt, scope: Scope) -> bool:
    """Whether the prompt was one of the same conversation, which may have several runs; else of the same run."""
    if scope.conversation is not None or recent.conversation is not None:
        return recent.conversation == scope.conversation
    return recent.run == (scope.run or run_of_process())


def _recent(call: Call, candidate: Candidate, seconds: int) -> list[RecentPrompt]:
    if call.ledger is None:
        return []
    since_us = time.time_ns() // 1000 - seconds * 1_000_000
    return recent_prompts(call.ledger, call.scope, candidate.model, candidate.key_alias, since_us)


def _has_collapsed(own: Sequence[RecentPrompt], head: int, is_other: bool, name: str) -> bool:
    """Whether this conversation's cache cannot be read, because the beginning of its prompts changes."""
    if own and (own[0].head != head or is_other):
        _warn_collapsed(name)
        return is_other
    marked = [each for each in own if each.breakpoints][:2]
    if len(marked) < 2 or any(each.cached_tokens for each in marked):
        return False
    _warn_collapsed(name)
    return True


@lru_cache(maxsize=200)
def _warn_collapsed(name: str) -> None:
    """Warn once for each agent."""
    logger.warning(
        "The prompts of %s cannot be cached: their beginning changes from turn to turn, by other tools or by a time in "
        "the instructions. Put what changes at the end.",
        name,
    )


def _minimum(model: str) -> int:
    return next(tokens for pattern, tokens in MINIMUM_TOKENS if fnmatchcase(model, pattern))


def _is_marked_already(request: Request) -> bool:
    """Whether the caller has placed breakpoints, which are then the only ones."""
    text = json.dumps([list(request.messages), request.params.get("tools")], default=str)
    return '"cache_control"' in text or '"prompt_cache_breakpoint"' in text


def _head(request: Request) -> int:
    """The index of the last message of the instructions; -1 if there are none."""
    roles = [message.get("role") in ("system", "developer") for message in request.messages]
    return (roles.index(False) if False in roles else len(roles)) - 1


class _Prefix(NamedTuple):
    """The prompt up to and with one message, the tools before all of them; the digest is never stored."""

    size: int
    digest: bytes


def _prefixes(request: Request) -> list[_Prefix]:
    text = json.dumps(request.params.get("tools") or "", ensure_ascii=False, default=str)
    size, digest, found = len(text), hashlib.sha256(text.encode("utf-8", "replace")), []
    for message in request.messages:
        text = json.dumps(message, ensure_ascii=False, default=str)
        size += len(text)
        digest.update(text.encode("utf-8", "replace"))
        found.append(_Prefix(size, digest.digest()))
    return found


class _Sent:
    """What this process has sent of late, by its length, for one scope and model; other processes' is not known."""

    def __init__(self, scope: Scope, model: str) -> None:
        self._key = (model, scope.agent, scope.tool, tuple(sorted(scope.labels.items())))

    def add(self, prefix: _Prefix) -> None:
        with _lock:
            _sent.pop((self._key, prefix.size), None)
            _sent[self._key, prefix.size] = prefix.digest
            if len(_sent) > _MAX_SENT:
                del _sent[next(iter(_sent))]

    def is_other(self, prefix: _Prefix) -> bool:
        """Whether what this process has sent of this length was something else."""
        return _sent.get((self._key, prefix.size), prefix.digest) != prefix.digest


_MAX_SENT = 5000
_sent: dict[tuple[Any, int], bytes] = {}
_lock = threading.Lock()


def _with_marks(request: Request, marks: set[int], mark: Mapping[str, Any]) -> Request:
    messages = [_with_mark(each, mark) if at in marks else each for at, each in enumerate(request.messages)]
    return replace(request, messages=messages) if marks else request


def _with_mark(message: Mapping[str, Any], mark: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with a breakpoint behind its last text; as it is, if it has none."""
    content = message.get("content")
    if message.get("role") == "tool" and "cache_control" in mark and isinstance(content, str):
        return {**message, **mark}
    parts: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())
    if not parts or not isinstance(parts[-1], Mapping) or not parts[-1].get("text"):
        return message
    return {**message, "content": [*parts[:-1], {**parts[-1], **mark}]}
