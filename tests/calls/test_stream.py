"""A stream and its readers."""

from __future__ import annotations

import threading

from shared.llm_client import LLMClient
from tests.support.asking import HELLO, MINI
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
