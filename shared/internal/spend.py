"""Nano-dollars that a client has spent, in all and for the labels of a scope."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary


class ScopeSpend:
    """Nano-dollars that each client has spent for the labels of one scope since it was entered; for any thread."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.labels = labels
        self._lock = threading.Lock()
        self._nano: WeakKeyDictionary[object, int] = WeakKeyDictionary()

    def add(self, client: object, nano: int) -> None:
        """Count what an attempt of a client cost."""
        with self._lock:
            self._nano[client] = self._nano.get(client, 0) + nano

    def of(self, client: object) -> int:
        """What a client has spent."""
        with self._lock:
            return self._nano.get(client, 0)


class SpendCounter:
    """Nano-dollars that a client has spent, counted from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nano = 0

    def add(self, nano: int, scopes: Sequence[ScopeSpend]) -> None:
        """Count what an attempt cost."""
        with self._lock:
            self._nano += nano
        for each in scopes:
            each.add(self, nano)

    def nano(self, scopes: Sequence[ScopeSpend]) -> int:
        """What was spent; inside a scope with labels, for them alone and since it was entered."""
        return scopes[-1].of(self) if scopes else self._nano
