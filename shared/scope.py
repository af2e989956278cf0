"""Who is calling: tool, agent, run and labels, and the models, keys and budgets that apply to them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Hashable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType, TracebackType
from typing import Any

from pydantic import SecretStr

from shared.budget import Budget, Limit, budgets_of
from shared.errors import ConfigurationError
from shared.internal.pending import PendingCalls
from shared.internal.spend import ScopeSpend

_NO_LABELS: Mapping[str, str] = MappingProxyType({})
_NO_KEYS: Mapping[str, SecretStr] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Scope:
    """Who is calling; recorded with every attempt in the ledger."""

    tool: str | None = None
    agent: str | None = None
    run: str | None = None
    conversation: str | None = None
    labels: Mapping[str, str] = _NO_LABELS
    models: tuple[str, ...] | None = None
    keys: Mapping[str, SecretStr] = field(default=_NO_KEYS, repr=False)
    # By provider: the labels of the scope that supplied its key.
    key_aliases: Mapping[str, str] = _NO_LABELS
    limits: tuple[Limit, ...] = ()
    from_agent: bool = False
    # Labels that have a budget or keys, and therefore cannot change in scopes inside.
    bound: frozenset[str] = frozenset()
    pending: PendingCalls = field(default_factory=PendingCalls, repr=False, compare=False)
    # The spending of each enclosing set of labels, the narrowest last.
    spend: tuple[ScopeSpend, ...] = field(default=(), repr=False, compare=False)
    # The managers that entered this scope and those around it, the innermost last.
    managers: tuple[_ScopeManager, ...] = field(default=(), repr=False, compare=False)

    @property
    def tenant(self) -> tuple[tuple[str, str], ...]:
        """
        Whose calls these are: the labels that have a budget or keys, else all labels; empty for the operator's own.

        What one tenant does must not be felt by another: failures, retries, and work that takes long.
        """
        names = self.bound & self.labels.keys() or self.labels.keys()
        return tuple((name, self.labels[name]) for name in sorted(names))

    @property
    def owner(self) -> Hashable:
        """Whom long work is done for when threads are shared out: the tenant, else the conversation."""
        return self.tenant or self.conversation

    def may_see(self, limit: Limit) -> bool:
        """Whether this scope may see what a limit has left: agents under labels must not learn what others spend."""
        is_own = any(dimension.removeprefix("label:") in self.labels for dimension in limit.dimensions)
        return is_own or not (self.labels and (self.from_agent or self.agent))


_ROOT = Scope()
_current: ContextVar[Scope] = ContextVar("agentswarm_scope", default=_ROOT)


def current_scope() -> Scope:
    """The scope that the running code is in."""
    return _current.get()


class _ScopeManager:
    """
    Enters a scope derived from the current one, and leaves it again; usable once.

    `with` blocks normally nest, but a generator that opens a scope may be closed late, out of order, or in the context
    of another request, as web frameworks do. Restoring the outer scope blindly would then put one customer's scope
    around another customer's code. Hence three rules:

    - Leaving a scope also leaves every scope that was entered inside it.
    - Leaving a scope that was already left together with an outer one does nothing.
    - Leaving does nothing in a context that is not inside the scope.
    """

    def __init__(self, terms: _Terms) -> None:
        self._terms = terms
        self._outer: Scope | None = None
        self._is_entered = False

    @property
    def is_left(self) -> bool:
        """Whether the scope was entered and has been left."""
        return self._is_entered and self._outer is None

    def __enter__(self) -> Scope:
        if self._is_entered:
            raise ConfigurationError("A scope can be entered only once", hint="Write `with scope(...)` each time.")
        self._is_entered, self._outer = True, _current.get()
        inner = _narrowed(self._outer, self._terms)
        # Managers that were left are dropped. Otherwise a job that schedules its next run from inside its scope would
        # collect one more manager with every run.
        enclosing = (each for each in self._outer.managers if not each.is_left)
        inner = replace(inner, managers=(*enclosing, self))
        _current.set(inner)
        return inner

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Drop the reference: the contexts of a job that schedules itself would otherwise form an ever longer chain of
        # scopes that cannot be freed.
        outer, self._outer = self._outer, None
        if outer is not None and self in _current.get().managers:
            _current.set(outer)

    async def __aenter__(self) -> Scope:
        return self.__enter__()

    async def __aexit__(self, *error: Any) -> None:
        self.__exit__(*error)


@dataclass(frozen=True, slots=True)
class _Terms:
    """The arguments of `scope`, checked."""

    budgets: tuple[Budget, ...]
    models: tuple[str, ...] | None
    keys: Mapping[str, SecretStr]
    attribution: Mapping[str, Any]
    labels: Mapping[str, str]


def _narrowed(outer: Scope, terms: _Terms) -> Scope:
    """
    The scope that results from entering `terms` inside `outer`.

    Raises:
        ConfigurationError: A label that has a budget or keys would change, or a budget names a label that is missing.
    """
    changed = [name for name in sorted(outer.bound & terms.labels.keys()) if outer.labels[name] != terms.labels[name]]
    if changed:
        raise ConfigurationError(
            f"The label {changed[0]} has a budget or keys, so it cannot change inside that scope",
            hint="Open the scope outside of the other one; start a worker that serves everybody outside of all scopes.",
        )
    labels = MappingProxyType({**outer.labels, **terms.labels})
    models = terms.models
    if models is not None and outer.models is not None:
        models = tuple(name for name in models if name in outer.models)
    alias = ",".join(f"{name}={value}" for name, value in sorted(labels.items())) or "scope"
    return replace(
        outer,
        **terms.attribution,
        labels=labels,
        models=outer.models if models is None else models,
        keys=MappingProxyType({**outer.keys, **terms.keys}),
        key_aliases=MappingProxyType({**outer.key_aliases, **dict.fromkeys(terms.keys, alias)}),
        limits=tuple(dict.fromkeys((*outer.limits, *(_limit(each, labels) for each in terms.budgets)))),
        bound=outer.bound | labels.keys() if terms.budgets or terms.keys else outer.bound,
        pending=_pending(outer, terms.attribution),
        spend=outer.spend if labels == outer.labels else _scope_spend(outer, labels),
    )


def _pending(outer: Scope, attribution: Mapping[str, Any]) -> PendingCalls:
    """
    The pending calls of a scope inside `outer`.

    A tool has its own, shared with the scopes it opens: it waits for and cancels those as well. Events outside cannot
    be about the calls of a tool that an agent runs: nobody else has seen what they cost.
    """
    if "tool" not in attribution:
        return outer.pending if outer.tool else PendingCalls(outer.pending)
    is_agents = attribution.get("from_agent", outer.from_agent)
    return PendingCalls(None if is_agents else outer.pending, looks_out=False)


def _limit(budget: Budget, labels: Mapping[str, str]) -> Limit:
    """A limit for everything with these labels, or with the single label that the budget names."""
    named = [dimension.removeprefix("label:") for dimension in budget.dimensions if dimension.startswith("label:")]
    if named and named[0] not in labels:
        raise ConfigurationError(f"A budget for each {named[0]} needs a scope with the label {named[0]}")
    return Limit(budget, () if named else tuple(sorted(labels)))


def _scope_spend(outer: Scope, labels: Mapping[str, str]) -> tuple[ScopeSpend, ...]:
    """The spending of the enclosing scopes whose labels still apply, and a new one for these labels."""
    return (*(each for each in outer.spend if each.labels.items() <= labels.items()), ScopeSpend(labels))


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
    Set who is calling, for everything inside `with` or `async with`; nested scopes can only narrow.

    Args:
        budget: What everything with this scope's labels (including those of enclosing scopes) may cost together, also
            in other scopes, threads and processes. A budget that names a label, as in Budget(5, scope="customer"),
            counts by that label alone. Budgets of enclosing scopes still apply.

        models: The only models that may be called inside, including fallbacks. None: as outside.

        keys: Provider keys to use inside, by provider name; other providers use the keys from outside. Keys are never
            recorded.

        tool, agent, run, conversation: Attribution of every call inside. None: as outside.

        from_agent: True if the arguments of the calls inside come from an agent, and so are not trusted.

        labels: Names of your own, such as customer="acme". A label that has a budget or keys cannot change inside.

    Raises:
        ConfigurationError: A label is not a short, non-empty text, a key is empty, or `models` is not a list of names.
            On entering: a label that has a budget or keys would change, or a budget names a label that is missing.
    """
    for name, value in labels.items():
        if not isinstance(value, str) or not value or len(value) > 200 or len(name) > 60:
            raise ConfigurationError(f"Label {name[:60]!r} must be a text of 1 to 200 characters")
    if models is not None and (isinstance(models, str) or not all(isinstance(name, str) for name in models)):
        raise ConfigurationError("models must be a list of model names", hint='Give ["openai/gpt-5.4-mini"].')
    attribution = {"tool": tool, "agent": agent, "run": run, "conversation": conversation, "from_agent": from_agent}
    return _ScopeManager(
        _Terms(
            budgets_of(budget),
            None if models is None else tuple(models),
            {provider: _secret(provider, key) for provider, key in (keys or {}).items()},
            {name: value for name, value in attribution.items() if value is not None},
            labels,
        )
    )


def _secret(provider: str, key: SecretStr | str) -> SecretStr:
    secret = key if isinstance(key, SecretStr) else SecretStr(key)
    if not isinstance(secret.get_secret_value(), str) or not secret.get_secret_value():
        # An empty key would fall back to the operator's key, and the operator would pay.
        raise ConfigurationError(f"The key for {provider[:60]} is empty", hint="Leave the provider out of keys.")
    return secret


def run_of_process() -> str:
    """The run of calls outside of any agent's run: one for each process."""
    return _run_of(os.getpid())


@lru_cache(maxsize=1)
def _run_of(pid: int) -> str:  # noqa: ARG001 - the cache's key: a forked process is another run
    return f"process_{uuid.uuid4().hex}"
