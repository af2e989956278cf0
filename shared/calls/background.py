"""The one background event loop under the synchronous API."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, suppress
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple

from shared.scope import current_scope

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

# How long an interrupted call may take to close its connection and settle its row.
_CLEANUP_S = 5.0
# How long the program's end waits for calls that are still under way, once they are cancelled.
_EXIT_S = 1.5


class _Running(NamedTuple):
    portal: BlockingPortal
    manager: AbstractContextManager[BlockingPortal]
    thread: int
    loop: asyncio.AbstractEventLoop


_lock = threading.Lock()
_running: _Running | None = None
_abandoned: list[_Running | None] = []


def run_blocking[T](function: Callable[..., Awaitable[T]], *args: Any) -> T:
    """
    Run a coroutine function on the background loop and wait for it.

    An exception in the waiting thread, such as Ctrl-C, cancels the coroutine; it is raised once the coroutine has
    cleaned up.

    Raises:
        RuntimeError: It was called on the background loop itself, which would deadlock.
    """
    running = _start()
    if threading.get_ident() == running.thread:
        raise RuntimeError("a synchronous call inside asynchronous code: use the method that starts with 'a'")
    ended = threading.Event()

    async def call() -> T:
        try:
            return await function(*args)
        finally:
            ended.set()

    future = running.portal.start_task_soon(call)
    current_scope().pending.enter(future)
    try:
        return future.result()
    except BaseException:
        if future.cancel() or future.cancelled():
            ended.wait(_CLEANUP_S)
        raise


def blocking[S, **P, T](method: Callable[Concatenate[S, P], Awaitable[T]]) -> Callable[Concatenate[S, P], T]:
    """The synchronous version of an asynchronous method, named the same without the leading `a`."""

    @wraps(method)
    def run(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return run_blocking(partial(method, self, *args, **kwargs))

    run.__name__ = method.__name__.removeprefix("a")
    run.__qualname__ = method.__qualname__.removesuffix(method.__name__) + run.__name__
    return run


def _start() -> _Running:
    global _running
    with _lock:
        if _running is None:
            from anyio.from_thread import start_blocking_portal  # slow to import

            manager = start_blocking_portal("asyncio", name="agentswarm-tools")
            portal = manager.__enter__()
            _running = _Running(
                portal, manager, portal.call(threading.get_ident), portal.call(asyncio.get_running_loop)
            )
            atexit.register(_stop)
        return _running


def _stop() -> None:
    """
    At exit: cancel what still runs, let it settle, and wait for that only a few seconds.

    What runs then was started on a daemon thread: nobody waits for its answer, and it must not hold the program up.
    """
    global _running
    with _lock:
        stopping, _running = _running, None
    if stopping is not None:
        with suppress(RuntimeError, TimeoutError, CancelledError):
            stopping.portal.start_task_soon(stopping.portal.stop, True).result(_EXIT_S)
        _wait_for_end(stopping)


def _wait_for_end(stopping: _Running) -> None:
    """Wait until the loop's thread has ended, for a few seconds."""
    for thread in threading.enumerate():
        if thread.ident == stopping.thread:
            thread.join(_EXIT_S)


def can_wait_for(loop: asyncio.AbstractEventLoop) -> bool:
    """
    Whether this thread may wait for `loop` without a deadlock.

    Only the background loop qualifies. A thread that runs an event loop must not block it, and the ledger's writer
    thread must not wait for a loop that waits for the ledger.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        is_ledger_thread = threading.current_thread().name == "agentswarm-ledger"
        return not is_ledger_thread and _running is not None and _running.loop is loop
    return False


def _forget() -> None:
    """Start afresh in a forked process, which inherits the variable but not the thread."""
    global _running, _lock
    # Kept alive: its destructor would wait for the thread, which does not exist here.
    _abandoned.append(_running)
    _running, _lock = None, threading.Lock()
    atexit.unregister(_stop)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
