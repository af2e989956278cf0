"""PostgreSQL connections that cannot hang: each wait for the server ends at a deadline, which closes the socket."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import waiting
from psycopg.pq import TransactionStatus

from shared.ledger.deadline import seconds_left, silence_allowed

_POLL_S = 0.05


class Unanswered(psycopg.OperationalError):
    """The server did not answer in time."""


def connection_class(silence_s: float) -> type[psycopg.Connection[Any]]:
    """
    A class of connections whose every wait is bounded: connecting, statements, commit, rollback, pre-ping.

    The server's own time-outs do not help when the link is silent, and neither do the client library's: what is sent
    is acknowledged by a proxy, or by nobody. So the wait itself ends, and the connection is closed.

    Args:
        silence_s: Maximum seconds without a byte from the server. The deadline of the thread applies as well.
    """

    class BoundedConnection(psycopg.Connection[Any]):
        def wait(self, gen: Any, interval: float = _POLL_S, timeout: float | None = None) -> Any:
            limit_s = silence_s if timeout is None else min(silence_s, timeout)
            try:
                return waiting.wait(_in_time(gen, limit_s), self.pgconn.socket, interval=min(interval, _POLL_S))
            except BaseException as error:
                if isinstance(error, Unanswered) or self._is_interrupted(error):
                    _hang_up(self.pgconn)
                raise

        def _is_interrupted(self, error: BaseException) -> bool:
            """After Ctrl-C the library would first ask the server to cancel, and wait for that."""
            is_answer = isinstance(error, psycopg.Error)  # a pipeline goes on: others of its statements are under way
            return not is_answer and self.pgconn.transaction_status == TransactionStatus.ACTIVE

        def __del__(self, *_: Any) -> None:
            """Close it with whoever has dropped it: a ledger, or a thread that was left behind."""
            if hasattr(self, "pgconn"):
                with suppress(psycopg.Error):
                    self.pgconn.finish()

    return BoundedConnection


def connect_in_time(connect: Callable[[], psycopg.Connection[Any]], limit_s: float) -> psycopg.Connection[Any]:
    """
    Connect within a limit, in a thread that is left behind if it takes longer.

    Looking up a host name cannot be interrupted, and the library's own limit applies to each address by itself.

    Raises:
        Unanswered: The limit has passed.
    """
    limit_s = min(limit_s, seconds_left())
    done: Future[psycopg.Connection[Any]] = Future()

    def work() -> None:
        try:
            done.set_result(connect())
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            done.set_exception(error)

    try:
        threading.Thread(target=work, name="agentswarm-connect", daemon=True).start()
    except RuntimeError:  # Python is shutting down: no thread can be started any more
        work()
    try:
        return done.result(limit_s)
    except BaseException as error:
        done.add_done_callback(_close_late)
        if isinstance(error, TimeoutError) and not done.done():
            raise Unanswered("no answer in time" if limit_s < 0.1 else f"no answer within {limit_s:.1f} s") from None
        raise


def _close_late(done: Future[psycopg.Connection[Any]]) -> None:
    if done.exception() is None:
        _hang_up(done.result().pgconn)


def _in_time(gen: Generator[Any, Any, Any], limit_s: float) -> Generator[Any, Any, Any]:
    """Pass a wait through, and end it once the server was silent for `limit_s`, or for as long as the thread allows."""
    heard = time.monotonic()
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            allowed_s = min(limit_s, silence_allowed())
            if ready and allowed_s > 0:
                heard = time.monotonic()
            elif time.monotonic() - heard >= allowed_s:
                raise Unanswered(f"no answer within {min(limit_s, silence_allowed() or limit_s):.1f} s")
            wanted = gen.send(ready)
    except StopIteration as end:
        return end.value


def _hang_up(pgconn: Any) -> None:
    """Close the socket first, because the library would still say goodbye on it, and could wait for that."""
    with suppress(psycopg.Error, OSError, ValueError), socket.socket(fileno=os.dup(pgconn.socket)) as link:
        link.shutdown(socket.SHUT_RDWR)
    with suppress(psycopg.Error):
        pgconn.finish()
