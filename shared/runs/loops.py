"""Which agent, run and conversation of the host is calling, and whether its run goes in circles."""

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

# Callers that the host does not tell apart share this one; a person's own scripts are not in it.
_NO_CONVERSATION = "(no conversation)"
_conversations: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
# By identity, since the host's records of runs cannot be hashed.
_watches: dict[int, Watch] = {}


class Caller(NamedTuple):
    """Who calls, as `scope` takes it."""

    agent: str | None = None
    run: str | None = None
    conversation: str | None = None


def caller_of(context: Any, agent: str | None = None) -> Caller:
    """
    Who calls, as far as the host says.

    Args:
        context: The host's record of the run: a MasterContext, a plain dict (MCP) or an empty one (HTTP).

        agent: Name of the agent, where it is known better than the record says, as after a handoff.
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
    What one run has done that may be a loop.

    Not thread-safe, and need not be: a run lives on one event loop.
    """

    def __init__(self) -> None:
        self._refusals = 0
        self._calls: Counter[tuple[str, str, str]] = Counter()

    def called(self, by: str, tool: str, arguments: Any) -> None:
        """
        Count a tool call.

        Args:
            by: Who saw it, the agent's model or the tool; each counts for itself, since either may be alone.

            arguments: Their JSON text, or the data itself; the order of its keys does not matter.
        """
        self._calls[by, tool, hashlib.sha256(_canonical(arguments)).hexdigest()] += 1

    def failed(self, error: LLMError) -> None:
        """Count a failure that is a refusal: by a budget, or by an allow-list."""
        every = error.failures if isinstance(error, AllModelsFailed) else (error,)
        if every and all(isinstance(each, BudgetExceeded | ModelNotAllowed) for each in every):
            self._refusals += 1

    def check(self) -> None:
        """
        Let the run go on.

        Raises:
            LoopStopped: It has been refused too often, or made the same call too often.
        """
        settings = load_settings()
        if settings.max_refusals and self._refusals >= settings.max_refusals:
            raise LoopStopped(
                f"The run was stopped after {self._refusals} calls that a budget or an allow-list refused",
                hint="Raise the budget or allow the model; AGENTSWARM_MAX_REFUSALS sets how many are borne.",
            )
        for (_, tool, _), times in self._calls.most_common(1):
            if settings.max_identical_calls and times >= settings.max_identical_calls:
                shown = "".join(c for c in tool[:60] if c.isprintable())
                raise LoopStopped(
                    f"The run was stopped after {times} calls of {shown} with the same arguments",
                    hint="Change the instructions; AGENTSWARM_MAX_IDENTICAL_CALLS sets how many are borne.",
                )


def watch_of(context: Any) -> Watch | None:
    """The watch over the run that `context` is the host's record of; None where the host has no runs."""
    if _threads(context) is None:
        return None
    new = Watch()
    watch = _watches.setdefault(id(context), new)
    if watch is new:
        weakref.finalize(context, _watches.pop, id(context), None).atexit = False
    return watch


def _threads(context: Any) -> Any:
    """The host's conversation; None where it has none."""
    return None if isinstance(context, Mapping) else getattr(context, "thread_manager", None)


def _canonical(arguments: Any) -> bytes:
    try:
        data = json.loads(arguments) if isinstance(arguments, str) else arguments
        return json.dumps(data, sort_keys=True, default=str).encode()
    except (ValueError, TypeError, RecursionError):
        return str(arguments).encode("utf-8", "replace")
