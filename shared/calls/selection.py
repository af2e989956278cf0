"""What `model="auto"` needs to know when it chooses: the size of the request, and how long answers usually are."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from shared.calls.call import Call, bound_of
from shared.calls.cooldown import cooldowns
from shared.errors import StoreError
from shared.images import picture_tokens
from shared.ledger import Ledger, average_outputs
from shared.models import Plan, UsualOutput, choose, expected_nano, lacks, needs_of, no_choice
from shared.providers import count_tokens
from shared.types import Answer, Candidate, Request, TaskType

logger = logging.getLogger("agentswarm_tools")

# More of a text than this is not counted: its tokens are extrapolated, since a choice must not take longer than 1 ms.
_SAMPLE_CHARS = 1_000
_SEED_WINDOW_US = 30 * 86_400 * 1_000_000
_PICTURE_TOKENS = 1_000
_MESSAGE_TOKENS = 4

_usual = UsualOutput()
_seeded: set[str] = set()
_lock = threading.Lock()


def chosen_plan(call: Call) -> Plan:
    """
    The call's plan with its models in the order in which to try them.

    Raises:
        LLMError: No model can take the request.
    """
    plan, request = call.plan, call.request
    _seed(call.ledger)
    text_tokens = input_tokens(plan.candidates[0], request) if plan.candidates else 0
    needs = needs_of(request)
    tokens = {each.requested: text_tokens + _picture_tokens(each, request) for each in plan.candidates}

    def expected(candidate: Candidate) -> int | None:
        if request.task is TaskType.IMAGE_GENERATION:
            return bound_of(candidate, request)
        output = _usual.of(request.task.value, call.scope.tool, candidate.model)
        return expected_nano(candidate, request, tokens[candidate.requested], output)

    def problem(candidate: Candidate) -> str | None:
        assert plan.abilities is not None, "only the plans of auto are chosen"  # noqa: S101
        return lacks(candidate, plan.abilities[candidate.requested], needs, tokens[candidate.requested])

    choice = choose(plan.candidates, expected, problem, partial(cooldowns.cooling, tenant=call.scope.tenant))
    choice = replace(choice, out=(*plan.skipped, *choice.out))
    if not choice.candidates:
        raise no_choice(plan.requested, choice.out)
    first = choice.candidates[0].requested
    candidates = tuple(each for each in choice.candidates if not plan.only_first or each.requested == first)
    return replace(plan, candidates=candidates, skipped=(), choice=choice)


def observe(call: Call, candidate: Candidate, answer: Answer) -> None:
    """Remember how long an answer was."""
    tokens = answer.usage.completion_tokens
    if tokens is not None and call.request.task is not TaskType.IMAGE_GENERATION:
        _usual.add(call.request.task.value, call.scope.tool, candidate.model, tokens)


def input_tokens(candidate: Candidate, request: Request) -> int:
    """About how many tokens the text of a request has: our own count, of its beginning and its end if it is long."""
    # Each by itself, since tools and schemas are denser than prose.
    messages, extras = list(_message_texts(request)), list(_extra_texts(request))
    return _about(candidate, messages) + _about(candidate, extras) + _MESSAGE_TOKENS * len(request.messages)


def _about(candidate: Candidate, texts: Sequence[str]) -> int:
    size = sum(map(len, texts))
    # The first half of the sample from the beginning, the other from the end, where the last question is.
    half = _SAMPLE_CHARS // 2
    sample = "".join(texts) if size <= _SAMPLE_CHARS else _beginning(texts, half) + _end(texts, half)
    if not sample:
        return 0
    counted = count_tokens(candidate, (), sample).completion_tokens
    return size // 4 if counted is None else round(counted * size / len(sample))


def _beginning(texts: Sequence[str], size: int) -> str:
    found = ""
    for text in texts:
        found += text[: size - len(found)]
        if len(found) == size:
            break
    return found


def _end(texts: Sequence[str], size: int) -> str:
    found = ""
    for text in reversed(texts):
        found = text[max(0, len(text) - size + len(found)) :] + found
        if len(found) == size:
            break
    return found


def _message_texts(request: Request) -> Iterator[str]:
    for message in request.messages:
        content = message.get("content")
        for part in content if isinstance(content, list | tuple) else [content]:
            text = part.get("text") if isinstance(part, Mapping) else part
            if isinstance(text, str):
                yield text
        if calls := message.get("tool_calls"):
            yield str(calls)


def _extra_texts(request: Request) -> Iterator[str]:
    for name in ("tools", "functions", "response_format"):
        if extra := request.params.get(name):
            yield json.dumps(extra, ensure_ascii=False, default=str)


def _picture_tokens(candidate: Candidate, request: Request) -> int:
    """Tokens of the pictures, those in the messages too; a fixed number for each where no formula is known."""
    links: int = sum(
        isinstance(part, Mapping) and part.get("type") == "image_url"
        for message in request.messages
        if isinstance(content := message.get("content"), list | tuple)
        for part in content
    )
    known: int | None = picture_tokens(candidate, request) if request.pictures else 0
    return links * _PICTURE_TOKENS + (len(request.pictures) * _PICTURE_TOKENS if known is None else known)


def _seed(ledger: Ledger | None) -> None:
    """Once for each ledger, take over how long answers were in the last 30 days."""
    if ledger is None or ledger.name in _seeded:
        return
    with _lock:
        if ledger.name in _seeded:
            return
        _seeded.add(ledger.name)
        try:
            found = average_outputs(ledger, time.time_ns() // 1000 - _SEED_WINDOW_US)
        except StoreError as error:
            logger.debug("The usual length of answers is not known: %s", error)
            return
    for tool, model, answers, tokens in found:
        for task in (TaskType.CHAT_COMPLETION, TaskType.VISION):
            _usual.add(task.value, tool, model, tokens, answers)


def forget() -> None:
    """Forget everything, with a new lock: in a forked process, the parent may have held the old one."""
    global _usual, _lock
    _usual, _lock = UsualOutput(), threading.Lock()
    _seeded.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)
