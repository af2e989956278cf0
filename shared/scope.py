"""Who is calling: tool, agent, run and labels, with the models and keys they may use."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
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
    """Who is calling; every attempt that the ledger records carries it."""

    tool: str | None = None
    agent: str | None = None
    run: str | None = None
    conversation: str | None = None
    labels: Mapping[str, str] = _NO_LABELS
    models: tuple[str, ...] | None = None
    keys: Mapping[str, SecretStr] = field(default=_NO_KEYS, repr=False)
    # By provider, whose key it is: the labels of the scope that brought it.
    key_aliases: Mapping[str, str] = _NO_LABELS
    limits: tuple[Limit, ...] = ()
    from_agent: bool = False
    # Labels that budgets or keys were given to, and that stay as they are inside.
    bound: frozenset[str] = frozenset()
    pending: PendingCalls = field(default_factory=PendingCalls, repr=False, compare=False)
    # Of the labels in force, the narrowest last.
    spend: tuple[ScopeSpend, ...] = field(default=(), repr=False, compare=False)
    # What entered this scope and those around it, the innermost last.
    managers: tuple[_ScopeManager, ...] = field(default=(), repr=False, compare=False)

    def may_see(self, limit: Limit) -> bool:
        """Whether what a limit has left may be told here: agents inside labels learn nothing of what others spend."""
        own = any(dimension.removeprefix("label:") in self.labels for dimension in limit.dimensions)
        return own or not (self.labels and (self.from_agent or self.agent))


_ROOT = Scope()
_current: ContextVar[Scope] = ContextVar("agentswarm_scope", default=_ROOT)


def current_scope() -> Scope:
    """The scope that the running code is in."""
    return _current.get()


class _ScopeManager:
    """
    Enters a scope derived from the one it is entered in, and leaves it again; once.

    Web frameworks close generators late, out of order or in another request's context. So leaving a scope leaves all
    that were entered inside it, leaving one that was left with another does nothing, and a context that is not inside
    the scope stays as it is.
    """

    def __init__(self, terms: _Terms) -> None:
        self._terms = terms
        self._outer: Scope | None = None
        self._is_entered = False

    @property
    def is_left(self) -> bool:
        """Whether it was entered and left."""
        return self._is_entered and self._outer is None

    def __enter__(self) -> Scope:
        if self._is_entered:
            raise ConfigurationError("A scope can be entered only once", hint="Write `with scope(...)` each time.")
        self._is_entered, self._outer = True, _current.get()
        inner = _narrowed(self._outer, self._terms)
        # Without those that were left: a job that schedules itself inside would carry more of them each time.
        around = (each for each in self._outer.managers if not each.is_left)
        inner = replace(inner, managers=(*around, self))
        _current.set(inner)
        return inner

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Let go of: what a job that schedules itself leaves behind must not lead back to all that it left before.
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
    The scope inside `outer`.

    Raises:
        ConfigurationError: It changes a label that something was given to, or its budget is for a label that is absent.
    """
    changed = [name for name in sorted(outer.bound & terms.labels.keys()) if outer.labels[name] != terms.labels[name]]
    if changed:
        raise ConfigurationError(
            f"The label {changed[0]} was given a budget or keys, and cannot change inside",
            hint="Open the scope beside the other one; a worker that serves everybody starts outside of all.",
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
        # What a tool waits for, claims and cancels includes the scopes that it opens itself.
        pending=outer.pending if outer.tool and "tool" not in terms.attribution else PendingCalls(),
        spend=outer.spend if labels == outer.labels else _scope_spend(outer, labels),
    )


def _limit(budget: Budget, labels: Mapping[str, str]) -> Limit:
    """A budget for everything with these labels, unless it names the one label that it is for."""
    named = [dimension.removeprefix("label:") for dimension in budget.dimensions if dimension.startswith("label:")]
    if named and named[0] not in labels:
        raise ConfigurationError(f"A budget for each {named[0]} needs a scope with the label {named[0]}")
    return Limit(budget, () if named else tuple(sorted(labels)))


def _scope_spend(outer: Scope, labels: Mapping[str, str]) -> tuple[ScopeSpend, ...]:
    """Those around whose labels still hold, and a new one."""
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
    Say who is calling, for everything inside `with` or `async with`; nested scopes narrow.

    Args:
        budget: What everything with this scope's labels, those around it included, may cost together, also in other
            scopes, threads and processes; one that names a label, as in Budget(5, scope="customer"), counts by that
            label alone. Budgets of the scopes around it go on to hold.

        models: The only models that may be called inside, fallbacks included. None: as outside.

        keys: Provider keys to use inside, by provider name; a provider without one here uses what is outside. They are
            never recorded.

        tool, agent, run, conversation: Attribution of every call inside. None: as outside.

        from_agent: True when the arguments of the calls inside come from an agent, and so are not trusted.

        labels: Names of your own, such as customer="acme". Inside a scope that gave them a budget or keys they cannot
            change.

    Raises:
        ConfigurationError: A label is not a short, non-empty text, a key is empty, or `models` is no list of names.
            When it is entered: a label changes that cannot, or a budget is for a label that is not there.
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
        # Without one the operator's own would be used, and the operator would pay.
        raise ConfigurationError(f"The key for {provider[:60]} is empty", hint="Leave the provider out of keys.")
    return secret


def run_of_process() -> str:
    """The run of what no agent's run called for: one for each process."""
    return _run_of(os.getpid())


@lru_cache(maxsize=1)
def _run_of(pid: int) -> str:  # noqa: ARG001 - a forked process is another run
    return f"process_{uuid.uuid4().hex}"
