"""What a client has spent, in total and for the labels of a scope, in nano-dollars."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary


class ScopeSpend:
    """Nano-dollars that each client has spent for a scope's labels since the scope was entered; thread-safe."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.labels = labels
        self._lock = threading.Lock()
        self._nano: WeakKeyDictionary[object, int] = WeakKeyDictionary()

    def add(self, client: object, nano: int) -> None:
        """Add the cost of a client's attempt."""
        with self._lock:
            self._nano[client] = self._nano.get(client, 0) + nano

    def of(self, client: object) -> int:
        """Nano-dollars that a client has spent."""
        with self._lock:
            return self._nano.get(client, 0)


class SpendCounter:
    """Nano-dollars that a client has spent; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nano = 0

    def add(self, nano: int, scopes: Sequence[ScopeSpend]) -> None:
        """Add the cost of an attempt."""
        with self._lock:
            self._nano += nano
        for each in scopes:
            each.add(self, nano)

    def nano(self, scopes: Sequence[ScopeSpend]) -> int:
        """Nano-dollars spent; inside a scope with labels, only for those labels and since the scope was entered."""
        return scopes[-1].of(self) if scopes else self._nano
