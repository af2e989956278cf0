"""Threads of their own for one kind of work, shared fairly between those it is done for."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any

# With this niceness a busy thread gets about a third of a processor that another one wants too.
_YIELDING = 5


class FairPool:
    """
    A pool of threads in which no owner can make another one wait for long; thread-safe.

    Owners take turns, and one owner has at most `per_owner` of the threads, so that the others find one free. Threads
    start when there is work and end when there is none. They are daemons: a thread cannot be stopped, and work that
    nobody waits for any more must not hold up the end of the program.

    Args:
        name: Prefix of the threads' names.

        threads: Maximum number of threads.

        per_owner: Maximum number of threads that work for one owner.

        yields: Whether the work keeps a processor busy, so that threads which mostly wait come first (Linux only).
    """

    def __init__(self, name: str, *, threads: int, per_owner: int, yields: bool = False) -> None:
        self._name, self._limit, self._per_owner, self._yields = name, threads, per_owner, yields
        self._forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    async def run[T](self, owner: Hashable, function: Callable[..., T], *args: Any, **keywords: Any) -> T:
        """
        Run a function in one of the threads, in a copy of the current context.

        If the waiting task is cancelled, work that has not started is dropped; work that has goes on, unobserved.

        Args:
            owner: Whom the work is for.
        """
        return await asyncio.wrap_future(self.submit(owner, partial(function, *args, **keywords)))

    def submit[T](self, owner: Hashable, function: Callable[[], T]) -> Future[T]:
        """Queue a function; `run` for code that has no event loop."""
        future: Future[T] = Future()
        job = (future, partial(copy_context().run, function))
        with self._lock:
            self._waiting.setdefault(owner, deque()).append(job)
            is_new_thread = self._threads < self._limit
            self._threads += is_new_thread
        if is_new_thread:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        return future

    def _work(self) -> None:
        """Do jobs until none is left that this thread may do."""
        if self._yields and sys.platform == "linux":  # elsewhere a priority is one of the whole process
            _lower_priority()
        while (found := self._take()) is not None:
            owner, (future, function) = found
            _do(future, function)
            # An idle thread must not keep the last result alive.
            del found, future, function
            with self._lock:
                self._busy[owner] -= 1
                if not self._busy[owner]:
                    del self._busy[owner]

    def _take(self) -> tuple[Hashable, _Job] | None:
        """The next job, in turns, of an owner that may have one more thread; None ends the thread."""
        with self._lock:
            for owner, jobs in self._waiting.items():
                if self._busy[owner] < self._per_owner:
                    job = jobs.popleft()
                    self._busy[owner] += 1
                    if jobs:
                        self._waiting.move_to_end(owner)
                    else:
                        del self._waiting[owner]
                    return owner, job
            self._threads -= 1
            return None

    def _forget(self) -> None:
        """Start afresh; a forked process inherits neither the threads nor whoever waits for them."""
        self._lock = threading.Lock()
        self._waiting: OrderedDict[Hashable, deque[_Job]] = OrderedDict()
        self._busy: Counter[Hashable] = Counter()
        self._threads = 0


def _lower_priority() -> None:
    with suppress(OSError):  # a sandbox may refuse it
        niceness = os.getpriority(os.PRIO_PROCESS, 0) + _YIELDING
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


type _Job = tuple[Future[Any], Callable[[], Any]]


def _do(future: Future[Any], function: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except StopIteration as error:
        # asyncio cannot raise it where the result is awaited, and would wait for ever.
        future.set_exception(RuntimeError(f"a function in a thread raised {error!r}"))
    except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
        future.set_exception(error)
    else:
        future.set_result(result)
