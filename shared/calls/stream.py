"""LLMStream: chunks of text for a `for` or `async for` loop; settled no matter how the reader leaves it."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Any, Self

from shared.calls.background import can_wait_for, run_blocking
from shared.internal.aio import wait_shielded
from shared.types import LLMResponse

# Maximum seconds that garbage collection of an unfinished stream waits for it to be settled.
_DROP_WAIT_S = 1.0
# Chunks that the flow reads ahead of the reader at most.
_MAX_AHEAD = 64
# Awaits that the cleanup of a stream may pass at most, once its event loop is closed.
_MAX_STEPS = 100


class LLMStream:
    """
    Chunks of text as they arrive, by `for` or `async for`; `response` is the LLMResponse after the last chunk.

    Leaving early (close, break, garbage collection) closes the connection and settles what was used.
    """

    def __init__(self, items: AsyncGenerator[str | LLMResponse]) -> None:
        self._items = items
        self._pipe = _Pipe()
        self._task: asyncio.Task[None] | None = None
        self._over = False
        self._received: deque[str] = deque()
        self.response: LLMResponse | None = None
        self.text = ""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while (chunk := self._next()) is None:
            if self._over:
                raise StopIteration
            try:
                # All that is there at once: fetching each chunk from the background loop takes longer than reading it.
                self._received.extend(run_blocking(self._receive))
            except BaseException:
                self.close()
                raise
        return chunk

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        while (chunk := self._next()) is None:
            if self._over:
                raise StopAsyncIteration
            self._received.extend(await self._receive())
        return chunk

    def _next(self) -> str | None:
        try:
            chunk = self._received.popleft()
        except IndexError:
            return None
        self.text += chunk
        return chunk

    async def _receive(self) -> list[str]:
        """The chunks that have arrived, at least one; none at the end."""
        if self._task is None:
            # One task runs the flow from start to end, even if each chunk is read from a different task (as
            # run_blocking does) or a reader is cancelled.
            self._task = asyncio.create_task(_pump(self._items, self._pipe))
            _pumps.add(self._task)
            self._task.add_done_callback(_pumps.discard)
        try:
            chunks = await self._pipe.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if not chunks:
            self._over = True
            if isinstance(self._pipe.last, BaseException):
                raise self._pipe.last
            self.response = self._pipe.last
        return chunks

    def close(self) -> None:
        """End a stream that is read with `for`."""
        if self._task is not None and not self._over:
            run_blocking(self.aclose)

    async def aclose(self) -> None:
        """End a stream that is read with `async for`."""
        if self._task is not None and not self._over:
            self._over = True
            self._received.clear()
            self._task.cancel()
            if await wait_shielded(self._task):
                raise asyncio.CancelledError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # After `for chunk in stream: break` nothing else settles the stream.
        if self._task is None or self._over:
            return
        task, loop, ended = self._task, self._task.get_loop(), threading.Event()
        if loop.is_closed():
            _end_without_loop(task)
            return

        def stop() -> None:
            task.add_done_callback(lambda _: ended.set())
            task.cancel()

        loop.call_soon_threadsafe(stop)
        # Bounded, because the garbage collector may run anywhere, even while this thread holds a lock that settling
        # needs.
        if can_wait_for(loop):
            ended.wait(_DROP_WAIT_S)


# Keeps the tasks alive: without another reference, a task could be collected before its stream has closed it.
_pumps: set[asyncio.Task[None]] = set()


def _end_without_loop(task: asyncio.Task[None]) -> None:
    """
    End a stream whose event loop was closed.

    Nothing will run its task again, so its cleanup is run here, step by step, in a thread without an event loop: each
    await that would need the loop fails, and the attempt is settled all the same.
    """
    _pumps.discard(task)
    coroutine: Any = task.get_coro()

    def run() -> None:
        with suppress(BaseException):  # whatever ends the coroutine, it has ended
            for _ in range(_MAX_STEPS):
                coroutine.throw(asyncio.CancelledError())

    try:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
    except RuntimeError:  # Python is shutting down
        run()
    else:
        thread.join(_DROP_WAIT_S)


@atexit.register
def _end_all_without_loop() -> None:
    for task in [each for each in _pumps if each.get_loop().is_closed() and not each.done()]:
        _end_without_loop(task)


class _Pipe:
    """
    Passes chunks from the flow to its reader; ending it never waits for a reader.

    The more the reader has read, the further ahead the flow may read: one who leaves at once has received little.
    """

    def __init__(self) -> None:
        self._chunks: asyncio.Queue[str | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(1)
        self._ahead = 1
        self._reading = 0
        self._ended = False
        self.last: LLMResponse | BaseException | None = None

    async def put(self, chunk: str) -> None:
        await self._room.acquire()
        self._chunks.put_nowait(chunk)

    async def all_read(self) -> None:
        """Wait until the reader has read every chunk, and asks for more."""
        await self._chunks.join()

    def end(self, last: LLMResponse | BaseException | None) -> None:
        self.last, self._ended = last, True
        if self._chunks.empty():
            self._chunks.put_nowait(None)

    async def get(self) -> list[str]:
        """The chunks that wait, at least one; none at the end, for every reader and every time."""
        self._make_room()
        if self._ended and self._chunks.empty():
            return []
        found = [await self._chunks.get()]
        while not self._chunks.empty():
            found.append(self._chunks.get_nowait())
        if self._ended:
            self._chunks.put_nowait(None)  # another reader may already be waiting
        chunks = [chunk for chunk in found if chunk is not None]
        self._reading = len(chunks)
        return chunks

    def _make_room(self) -> None:
        """The reader has read what it got."""
        further = min(self._reading, _MAX_AHEAD - self._ahead)
        for _ in range(self._reading):
            self._chunks.task_done()
        for _ in range(self._reading + further):
            self._room.release()
        self._ahead, self._reading = self._ahead + further, 0


async def _pump(items: AsyncGenerator[str | LLMResponse], pipe: _Pipe) -> None:
    """Put what the flow yields into the pipe, and end the pipe with the flow's LLMResponse or error."""
    last: LLMResponse | BaseException | None = None
    try:
        async with aclosing(items):
            async for item in items:
                if item == "":
                    await pipe.all_read()
                elif isinstance(item, str):
                    await pipe.put(item)
                else:
                    last = item
    except BaseException as error:
        last = error
        if not isinstance(error, Exception):
            raise
    finally:
        pipe.end(last)
