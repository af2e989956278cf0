"""The double as tests see it: scripts go in, requests and bills come out."""

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Any

from . import ports, providers
from .replicate import Predictions
from .script import Billed, Gate, Recorded, Reply

NO_NAME = "no such name"
"""What a resolver refuses at once, without asking anybody: host names have no spaces."""

type Decide = Callable[[Recorded], Reply | None]


class Double:
    """A running double: script it, dial it, read what it saw; safe to use from any thread."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.problems: list[str] = []
        """Scripts that could not be played and errors of the double itself; empty in a good test."""
        self.predictions = Predictions()
        self._refused = ports.Refused()
        self._state = threading.Condition()
        self._under_way = 0
        self._clear()

    def _clear(self) -> None:
        self._queues: dict[tuple[str, str], deque[Reply]] = defaultdict(deque)
        self._repeated: dict[tuple[str, str], Reply] = {}
        self._decide: Decide | None = None
        self._requests: list[Recorded] = []
        self._billed: list[Billed] = []
        self._seen: Counter[str] = Counter()
        self._gates: set[Gate] = set()
        self._down: set[str] = set()
        self._unnamed: set[str] = set()

    def reply(self, provider: str, *, model: str = "", times: int = 1, **fields: Any) -> Reply:
        """
        Queue an answer for this provider's next request, first in, first out.

        Args:
            provider: Name as in `providers.PROVIDERS`, or LiteLLM's.

            model: As it stands in the request; such a queue goes before the provider's. "" for any.

            times: How many requests it answers.

            fields: Fields of `Reply`.

        Returns:
            The reply; its `gate` releases a stall.
        """
        reply = Reply(**fields)
        with self._state:
            self._queues[(providers.canonical(provider), model)].extend([reply] * times)
        return reply

    def always(self, provider: str, *, model: str = "", **fields: Any) -> Reply:
        """Answer so whenever nothing is queued, until reset."""
        reply = Reply(**fields)
        with self._state:
            self._repeated[(providers.canonical(provider), model)] = reply
        return reply

    def decide(self, choose: Decide | None) -> None:
        """Let a function choose where nothing is queued; it runs in the server's thread, its None goes on."""
        self._decide = choose

    def refuse(self, provider: str, refused: bool = True) -> None:
        """Make this provider's host lead to a closed port, for clients that dial through `address`."""
        name = providers.canonical(provider)
        (self._down.add if refused else self._down.discard)(name)

    def unname(self, provider: str) -> None:
        """Make this provider's host a name that no resolver knows, until reset."""
        self._unnamed.add(providers.canonical(provider))

    @property
    def url(self) -> str:
        """Scheme, address and port."""
        return f"http://127.0.0.1:{self.port}"

    def api_base(self, provider: str) -> str:
        """The provider's base under a path prefix, for clients that are given a URL."""
        return f"{self.url}/{provider}{providers.BASES.get(providers.canonical(provider), '')}"

    def address(self, host: str) -> tuple[str, int]:
        """Where to connect to for a host name: here, a closed port while refused, or nowhere."""
        provider = providers.provider_of_host(host) or "ollama"  # the only one dialled on the loopback
        if provider in self._unnamed:
            return NO_NAME, self.port
        down = provider in self._down
        return "127.0.0.1", self._refused.port if down else self.port

    @property
    def requests(self) -> list[Recorded]:
        """Every request since the last reset, in order of arrival."""
        with self._state:
            return list(self._requests)

    @property
    def billed(self) -> list[Billed]:
        """Every answer the provider would charge for, in the order they began."""
        with self._state:
            return list(self._billed)

    def wait_idle(self, timeout_s: float = 5.0) -> None:
        """Return when no request is under way; TimeoutError after the time-out."""
        with self._state:
            if not self._state.wait_for(lambda: self._under_way == 0, timeout_s):
                raise TimeoutError(f"{self._under_way} requests still under way after {timeout_s} s")

    def release(self) -> None:
        """Open every gate."""
        with self._state:
            gates = list(self._gates)
        for gate in gates:
            gate.release()

    def reset(self) -> None:
        """Let go of every answer under way, then forget scripts, requests, bills and problems."""
        self.release()
        self.wait_idle()
        with self._state:
            self.problems.clear()
            self.predictions.clear()
            self._clear()

    def close(self) -> None:
        """Let go of everything; for the server."""
        self.release()
        self._refused.close()

    # The server's side

    def begin(self, request: Recorded) -> None:
        """A request has come."""
        with self._state:
            request.number = len(self._requests)
            self._requests.append(request)
            self._under_way += 1

    def end(self, request: Recorded) -> None:
        """Its answer is over, however."""
        request.done.set()
        with self._state:
            self._under_way -= 1
            self._state.notify_all()

    def repetition(self, digest: str) -> int:
        """How often this very request came before."""
        with self._state:
            self._seen[digest] += 1
            return self._seen[digest] - 1

    def take(self, request: Recorded) -> Reply:
        """The reply for a request: queued, decided, repeated, or the default."""
        reply = self._queued(request) or (self._decide(request) if self._decide else None)
        keys = ((request.provider, request.model), (request.provider, ""))
        reply = reply or next((self._repeated[key] for key in keys if key in self._repeated), None) or Reply()
        if reply.fault:
            with self._state:
                self._gates.add(reply.gate)
        return reply

    def _queued(self, request: Recorded) -> Reply | None:
        with self._state:
            for key in ((request.provider, request.model), (request.provider, "")):
                if self._queues.get(key):
                    return self._queues[key].popleft()
        return None

    def bill(self, bill: Billed) -> None:
        """An answer that costs has begun."""
        with self._state:
            self._billed.append(bill)
