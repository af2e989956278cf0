"""A stream and its readers."""

from __future__ import annotations

import asyncio
import threading

from shared.ledger.store import Ledger
from shared.llm_client import LLMClient, LLMStream
from tests.support.asking import HELLO, MINI
from tests.support.ledger_rows import records
from tests.support.provider_double import Double, Fault


def test_every_reader_of_a_stream_sees_its_end(hosted: Double) -> None:
    """Readers of one stream share its chunks, and each comes to its end."""
    held = hosted.reply("openai", text="one two", fault=Fault.STALL_FIRST_CHUNK)
    stream = LLMClient().chat_completion(HELLO, model=MINI, stream=True)
    chunks: list[str] = []
    readers = [threading.Thread(target=lambda: chunks.extend(stream), daemon=True) for _ in range(4)]
    for reader in readers:
        reader.start()
    assert held.gate.reached.wait(10)
    held.gate.release()
    for reader in readers:
        reader.join(10)
    assert not any(reader.is_alive() for reader in readers)
    assert sorted(chunks) == [" two", "one"]


def test_a_stream_whose_loop_was_closed_is_settled(hosted: Double, ledger: Ledger) -> None:
    """When nothing runs a stream's event loop any more, dropping the stream settles its row all the same."""
    held = hosted.reply("openai", text="one two three", fault=Fault.STALL_FIRST_CHUNK)
    held.gate.release()

    async def begin() -> LLMStream:
        stream = await LLMClient(max_retries=0).achat_completion(HELLO, model=MINI, stream=True)
        await anext(stream)
        return stream

    loop = asyncio.new_event_loop()
    stream = loop.run_until_complete(begin())
    loop.close()
    stream.__del__()
    stream._task = None
    assert [row["status"] for row in records(ledger)] == ["cancelled"]
