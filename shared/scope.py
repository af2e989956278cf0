"""Who is calling: tool, agent, run and labels, with the models and keys they may use."""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextvars import ContextVar, Token
from dataclasses import dataclass, field, replace
from types import MappingProxyType, TracebackType
from typing import Any, Self

from pydantic import SecretStr

from shared.budget import Budget, Limit, budgets_of
from shared.errors import ConfigurationError

_NO_LABELS: Mapping[str, str] = MappingProxyType({})
_NO_KEYS: Mapping[str, SecretStr] = MappingProxyType({})
_OWN = frozenset({"keys", "budgets"})


@dataclass(slots=True)
class RecordedCall:
    """A call that the ledger holds, until an event claims it."""

    call_id: uuid.UUID
    attempt_id: uuid.UUID
    model: str
    cost_nano: int | None


class Journal:
    """What was recorded and is under way inside one scope; shared by the threads and tasks that it starts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unclaimed: deque[RecordedCall] = deque(maxlen=1000)
        self._running: set[Future[Any]] = set()
        self._writes: list[Future[Any]] = []

    def add(self, call: RecordedCall) -> None:
        """Remember a recorded call until an event claims it."""
        with self._lock:
            self._unclaimed.append(call)

    def claim(self, model: str | None, cost_nano: int | None, call_id: uuid.UUID | None = None) -> RecordedCall | None:
        """
        Take the oldest unclaimed call that an event speaks of.

        Args:
            model: Model of the event.

            cost_nano: Cost of the event in nano-dollars; None when it is unknown.

            call_id: Call of the event, where it names one; then it alone decides.
        """
        with self._lock:
            for call in self._unclaimed:
                same = call.call_id == call_id if call_id else (call.model, call.cost_nano) == (model, cost_nano)
                if same:
                    self._unclaimed.remove(call)
                    return call
        return None

    def owe(self, write: Future[Any]) -> None:
        """Remember a write that nobody has waited for yet."""
        with self._lock:
            # Outside a tool nobody asks for them, and done is done.
            self._writes = [*(earlier for earlier in self._writes if not earlier.done()), write]

    def owed(self) -> list[Future[Any]]:
        """Writes that nobody has waited for, handed over to the caller."""
        with self._lock:
            writes, self._writes = self._writes, []
            return writes

    def enter(self, running: Future[Any]) -> None:
        """Count a synchronous call as under way, so that `cancel` can stop it."""
        with self._lock:
            self._running.add(running)
        running.add_done_callback(self._leave)

    def _leave(self, running: Future[Any]) -> None:
        with self._lock:
            self._running.discard(running)

    def cancel(self) -> None:
        """Stop every synchronous call that is under way."""
        with self._lock:
            running = list(self._running)
        for future in running:
            future.cancel()


@dataclass(frozen=True, slots=True)
class Scope:
    """Who is calling; every attempt that the ledger records carries it."""

    tool: str | None = None
    agent: str | None = None
    run: str | None = None
    conversation: str | None = None
    labels: Mapping[str, str] = _NO_LABELS
    models: tuple[str, ...] | None = None
    keys: Mapping[str, SecretStr] = field(default=_NO_KEYS, repr=False)
    limits: tuple[Limit, ...] = ()
    from_agent: bool = False
    journal: Journal = field(default_factory=Journal, repr=False, compare=False)

    def key_alias(self, provider: str) -> str | None:
        """Name for reports of the key in use: the scope's labels when the scope brought its own key."""
        if provider not in self.keys:
            return None
        return ",".join(f"{name}={value}" for name, value in sorted(self.labels.items())) or "scope"

    def may_see(self, limit: Limit) -> bool:
        """Whether what a limit has left may be told here: agents inside labels learn nothing of what others spend."""
        own = any(dimension.startswith("label:") for dimension in limit.dimensions)
        return own or not (self.labels and (self.from_agent or self.agent))


_ROOT = Scope()
_current: ContextVar[Scope] = ContextVar("agentswarm_scope", default=_ROOT)


def current_scope() -> Scope:
    """The scope that the running code is in."""
    return _current.get()


class _ScopeManager:
    """Enters a scope derived from the one it is entered in, and leaves it again."""

    def __init__(self, changes: Mapping[str, Any], labels: Mapping[str, str]) -> None:
        self._changes = changes
        self._labels = labels
        self._entered: list[tuple[Scope, Token[Scope]]] = []

    def __enter__(self) -> Scope:
        outer = _current.get()
        changes = dict(self._changes)
        if changes.get("models") is not None and outer.models is not None:
            changes["models"] = tuple(name for name in changes["models"] if name in outer.models)
        inner = replace(
            outer,
            **{name: value for name, value in changes.items() if value is not None and name not in _OWN},
            keys=MappingProxyType({**outer.keys, **changes.get("keys", {})}),
            labels=MappingProxyType(labels := {**outer.labels, **self._labels}),
            limits=(*outer.limits, *(Limit(each, tuple(sorted(labels))) for each in changes.get("budgets", ()))),
            # What a tool waits for, claims and cancels includes the scopes that it opens itself.
            journal=outer.journal if outer.tool and not changes.get("tool") else Journal(),
        )
        self._entered.append((outer, _current.set(inner)))
        return inner

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outer, token = self._entered.pop()
        try:
            _current.reset(token)
        except ValueError:
            # Left in another context than it was entered in, as web frameworks do with streaming responses.
            _current.set(outer)

    async def __aenter__(self) -> Scope:
        return self.__enter__()

    async def __aexit__(self, *error: Any) -> None:
        self.__exit__(*error)

    def __copy__(self) -> Self:
        return type(self)(self._changes, self._labels)


def scope(
    *,
    budget: Budget | Sequence[Budget] | None = None,
    models: Sequence[str] | None = None,
    keys: Mapping[str, SecretStr | str] | None = None,
    tool: str | None = None,
    agent: str | None = None,
    run: str | None = None,
    conversation: str | None = None,
    from_agent: bool | None = None,
    **labels: str,
) -> _ScopeManager:
    """
    Say who is calling, for everything inside `with` or `async with`; nested scopes narrow.

    Args:
        budget: What everything with this scope's labels may cost, also in other scopes, threads and processes; those
            of the scopes around it go on to hold.

        models: The only models that may be called inside, fallbacks included. None: as outside.

        keys: Provider keys to use inside, by provider name. They are never recorded.

        tool, agent, run, conversation: Attribution of every call inside. None: as outside.

        from_agent: True when the arguments of the calls inside come from an agent, and so are not trusted.

        labels: Names of your own, such as customer="acme".

    Raises:
        ConfigurationError: A label is not a short, non-empty text.
    """
    for name, value in labels.items():
        if not isinstance(value, str) or not value or len(value) > 200 or len(name) > 60:
            raise ConfigurationError(f"Label {name[:60]!r} must be a text of 1 to 200 characters")
    changes = {
        "budgets": budgets_of(budget),
        "models": tuple(models) if models is not None else None,
        "keys": {p: k if isinstance(k, SecretStr) else SecretStr(k) for p, k in (keys or {}).items()},
        "tool": tool,
        "agent": agent,
        "run": run,
        "conversation": conversation,
        "from_agent": from_agent,
    }
    return _ScopeManager(changes, labels)
