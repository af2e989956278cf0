"""Which agent, run and conversation of the host is calling, and whether the run is in a loop."""

from __future__ import annotations

import hashlib
import json
import uuid
import weakref
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from shared.config import load_settings
from shared.errors import AllModelsFailed, BudgetExceeded, LLMError, LoopStopped, ModelNotAllowed

# Shared by callers that the host cannot tell apart; people's own scripts do not use it.
_NO_CONVERSATION = "(no conversation)"
_conversations: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
# By `id()`, because the host's records of runs are not hashable.
_watches: dict[int, Watch] = {}


class Caller(NamedTuple):
    """Who is calling, as arguments of `scope`."""

    agent: str | None = None
    run: str | None = None
    conversation: str | None = None


def caller_of(context: Any, agent: str | None = None) -> Caller:
    """
    Who is calling, as far as the host's record says.

    Args:
        context: The host's record of the run: a MasterContext, a plain dict (MCP) or an empty one (HTTP).

        agent: Name of the agent, if known; it wins over the record, which is out of date after a handoff.
    """
    threads = _threads(context)
    if threads is None:
        return Caller(agent, conversation=_NO_CONVERSATION)
    return Caller(
        agent=agent or getattr(context, "current_agent_name", None),
        run=getattr(context, "_current_agent_run_id", None),
        conversation=_conversations.setdefault(threads, uuid.uuid4().hex),
    )


class Watch:
    """
    Counts what one run does that may be a loop.

    Not thread-safe, which is enough because a run stays on one event loop.
    """

    def __init__(self) -> None:
        self._refusals = 0
        self._calls: Counter[tuple[str, str, str]] = Counter()

    def called(self, by: str, tool: str, arguments: Any) -> None:
        """
        Count a tool call.

        Args:
            by: Who reports it, the agent's model or the tool. Each has its own count, because a run may have only one
                of the two; together they would count a call twice.

            arguments: As JSON text or as data; the order of keys does not matter.
        """
        self._calls[by, tool, hashlib.sha256(_canonical(arguments)).hexdigest()] += 1

    def failed(self, error: LLMError) -> None:
        """Count a failure if it is a refusal by a budget or an allow-list."""
        failures = error.failures if isinstance(error, AllModelsFailed) else (error,)
        if failures and all(isinstance(each, BudgetExceeded | ModelNotAllowed) for each in failures):
            self._refusals += 1

    def check(self) -> None:
        """
        Check whether the run may continue.

        Raises:
            LoopStopped: It was refused too often, or made the same call too often.
        """
        settings = load_settings()
        if settings.max_refusals and self._refusals >= settings.max_refusals:
            raise LoopStopped(
                f"The run was stopped after {self._refusals} calls that a budget or an allow-list refused",
                hint="Raise the budget or allow the model; AGENTSWARM_MAX_REFUSALS sets the limit.",
            )
        for (_, tool, _), times in self._calls.most_common(1):
            if settings.max_identical_calls and times >= settings.max_identical_calls:
                name = "".join(c for c in tool[:60] if c.isprintable())
                raise LoopStopped(
                    f"The run was stopped after {times} calls of {name} with the same arguments",
                    hint="Change the instructions; AGENTSWARM_MAX_IDENTICAL_CALLS sets the limit.",
                )


def watch_of(context: Any) -> Watch | None:
    """The Watch of the run that `context` records; None if the host has no runs."""
    if _threads(context) is None:
        return None
    new = Watch()
    watch = _watches.setdefault(id(context), new)
    if watch is new:
        weakref.finalize(context, _watches.pop, id(context), None).atexit = False
    return watch


def _threads(context: Any) -> Any:
    """The host's record of the conversation; None if it has none."""
    return None if isinstance(context, Mapping) else getattr(context, "thread_manager", None)


def _canonical(arguments: Any) -> bytes:
    try:
        data = json.loads(arguments) if isinstance(arguments, str) else arguments
        return json.dumps(data, sort_keys=True, default=str).encode()
    except (ValueError, TypeError, RecursionError):
        return str(arguments).encode("utf-8", "replace")
