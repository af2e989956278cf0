"""Threads that are shared fairly: no owner can take them all, and nothing of it outlives its use."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest

from shared.internal.fair_pool import FairPool


def test_no_owner_takes_all_threads() -> None:
    """While one owner's work hangs in all the threads it may have, another's is done at once."""
    pool, gate = FairPool("test", threads=3, per_owner=2), threading.Event()
    started = threading.Semaphore(0)

    def hang() -> None:
        started.release()
        gate.wait(10)

    hanging = [pool.submit("a", hang) for _ in range(48)]
    for _ in range(2):
        assert started.acquire(timeout=10)
    assert pool.submit("b", lambda: "done").result(10) == "done"
    assert pool.submit("c", lambda: "done").result(10) == "done"
    assert not started.acquire(blocking=False)
    gate.set()
    for future in hanging:
        future.result(10)
    assert not pool._waiting
    assert not pool._busy


def test_owners_take_turns() -> None:
    """Of work that waits for the same thread, that of another owner comes before more of the first."""
    pool, gate, order = FairPool("test", threads=1, per_owner=1), threading.Event(), list[str]()
    futures: list[Future[Any]] = [pool.submit("a", lambda: gate.wait(10))]
    futures += [pool.submit(owner, partial(order.append, owner)) for owner in "aaabbc"]
    gate.set()
    for future in futures:
        future.result(10)
    assert order == ["a", "b", "c", "a", "b", "a"]


def test_work_that_nobody_waits_for_is_dropped() -> None:
    """A cancelled task's work is not begun."""
    pool, gate, done = FairPool("test", threads=1, per_owner=1), threading.Event(), list[str]()

    async def main() -> None:
        blocking = pool.submit("a", lambda: gate.wait(10))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await pool.run("a", done.append, "never")
        gate.set()
        await asyncio.wrap_future(blocking)
        await pool.run("a", done.append, "last")

    asyncio.run(main())
    assert done == ["last"]


def test_results_errors_and_context_come_through() -> None:
    """A function sees the caller's context; what it raises is raised, StopIteration as an error that can be."""
    pool, where = FairPool("test", threads=1, per_owner=1), ContextVar("where", default="outside")

    def fail() -> None:
        raise KeyError("x")

    async def main() -> None:
        where.set("inside")
        assert await pool.run("a", where.get) == "inside"
        with pytest.raises(KeyError):
            await pool.run("a", fail)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await pool.run("a", next, iter(()))

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_starts_afresh() -> None:
    """A forked process has none of the threads, and waits for none of them."""
    pool, gate = FairPool("test", threads=1, per_owner=1), threading.Event()
    busy = pool.submit("a", lambda: gate.wait(10))
    with pool._lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if pool.submit("a", lambda: 7).result(10) == 7 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    gate.set()
    busy.result(10)
