"""What reaches the disk and when: commits are counted where the database makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from shared import errors
from shared.analytics import record_event
from shared.budget import Budget
from shared.ledger.row import AttemptRow
from shared.ledger.schema import event
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient, ModelConfig, TaskType
from shared.types import AnalyticsEvent, EventType
from tests.support.asking import HAIKU, HELLO, MINI
from tests.support.ledger_rows import rows, started
from tests.support.processes import run
from tests.support.provider_double import Double
from tools import TextGeneration

GEMINI = "gemini/gemini-3.1-flash-image"


@pytest.fixture
def commits(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], int]]:
    """How many transactions have written since it was last asked."""
    monkeypatch.setenv("AGENTSWARM_OUTPUT_DIR", str(tmp_path / "out"))
    ledger.flush()
    with ledger.reading():
        engine = ledger._engine
    assert engine is not None
    found: list[None] = []

    def count(connection: sa.engine.Connection) -> None:
        if connection.get_execution_options().get("ledger_write"):
            found.append(None)

    def so_far() -> int:
        number = len(found)
        found.clear()
        return number

    sa.event.listen(engine, "commit", count)
    yield so_far
    sa.event.remove(engine, "commit", count)


def test_two_commits_an_attempt_and_one_a_refusal(hosted: Double, commits: Callable[[], int]) -> None:
    """An attempt is committed when it starts and when it ends, a refusal once; what carries no money rides along."""
    client = LLMClient(max_retries=0)
    client.chat_completion(HELLO, model=MINI)
    assert commits() == 2
    hosted.reply("openai", status=503)
    with pytest.raises(errors.Overloaded):
        client.chat_completion(HELLO, model=MINI)
    assert commits() == 2
    hosted.reply("openai", status=503)
    assert client.chat_completion(HELLO, model=MINI, fallback_models=[HAIKU]).metadata["fallback_used"]
    assert commits() == 4
    TextGeneration(prompt="Hello", model=MINI).run_sync()
    assert commits() == 2
    client.generate_image("a cat")
    assert commits() == 2
    with pytest.raises(errors.BudgetExceeded):
        LLMClient(budget=Budget(0.0000001)).chat_completion(HELLO, model=MINI)
    assert commits() == 1
    with pytest.raises(errors.InvalidRequest):
        client.chat_completion([], model=MINI)
    assert commits() == 1


def test_two_images_by_two_requests(hosted: Double, ledger: Ledger, commits: Callable[[], int]) -> None:
    """Each request of a call for images is settled once, and they are counted as one call."""
    response = LLMClient().generate_image("a cat", model=GEMINI, n=2)
    assert len(response.images) == 2
    assert commits() <= 4  # what comes at the same moment shares a transaction
    found = rows(ledger)
    assert sorted(row["attempt_number"] for row in found) == [1, 2]
    assert sum(row["calls"] for row in found) == 1
    assert len({row["call_id"] for row in found}) == 1
    assert sorted(len(row["metadata"]["images"]) for row in found) == [1, 1]


def test_a_call_for_images_fails_once(hosted: Double, ledger: Ledger) -> None:
    """When every request of a call for images fails, or is refused by a budget, that is one failed call."""
    hosted.always("gemini", status=403)
    with pytest.raises(errors.LLMError):
        LLMClient(max_retries=0).generate_image("a cat", model=GEMINI, n=3)
    with pytest.raises(errors.BudgetExceeded):
        LLMClient(budget=Budget(0.000001)).generate_image("a cat", model=GEMINI, n=3)
    found = rows(ledger)
    assert len(found) == 6
    assert [sum(row[name] for row in found) for name in ("calls", "failed_calls")] == [0, 2]


def test_events_are_there_before_anyone_looks(ledger: Ledger, commits: Callable[[], int]) -> None:
    """An event is no commit of its own while others come, and is written before this process reads the ledger."""
    for _ in range(5):
        record_event(AnalyticsEvent(event_type=EventType.TOOL_START, tool_name="Mine"))
    assert commits() == 0
    assert len(rows(ledger, event)) == 5
    assert commits() == 1


def test_events_are_written_at_exit(ledger: Ledger) -> None:
    """A program that ends right after an event has written it."""
    code = (
        "from shared.analytics import AnalyticsEvent, EventType, record_event;"
        "record_event(AnalyticsEvent(event_type=EventType.TOOL_START, tool_name='Mine'))"
    )
    assert run(code).returncode == 0
    assert [row["tool"] for row in rows(ledger, event)] == ["Mine"]


def test_a_row_has_only_known_fields() -> None:
    """A field that the ledger has no column for is an error where the row is made, and mypy sees it."""
    with pytest.raises(TypeError):
        AttemptRow(**started(), colour="red")  # type: ignore[call-arg]  # mypy sees it too
    row: Any = AttemptRow(**started())
    with pytest.raises(AttributeError):
        row.cost_nano = 1


def test_a_described_model_does_what_its_config_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An image model of the user's own makes images and refuses to chat; a chat model refuses to make images."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    monkeypatch.setenv("AGENTSWARM_OUTPUT_DIR", str(tmp_path / "out"))
    described = {"name": "mine", "provider": "openai", "litellm_model": "openai/my-model", "cost_per_image": "0.02"}
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

    def answer(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"data": [{"b64_json": pixel}]})

    for task, works in ((TaskType.IMAGE_GENERATION, True), (TaskType.CHAT_COMPLETION, False)):
        config = ModelConfig(**{**described, "task_type": task})
        client = LLMClient({"mine": config}, transport=httpx.MockTransport(answer))
        if works:
            assert client.generate_image("a cat", model="mine").cost == 0.02
            with pytest.raises(errors.InvalidRequest, match="only makes images"):
                client.chat_completion(HELLO, model="mine")
        else:
            with pytest.raises(errors.InvalidRequest, match="does not make images"):
                client.generate_image("a cat", model="mine")


def test_no_exception_group_leaves_a_call(
    hosted: Double, monkeypatch: pytest.MonkeyPatch, ledger: Ledger, tmp_path: Path
) -> None:
    """Whatever breaks inside a call for images reaches the caller as itself, and what was paid is kept."""
    monkeypatch.setenv("AGENTSWARM_OUTPUT_DIR", str(tmp_path / "out"))

    def break_down(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("shared.calls.images.save_picture", break_down)
    with pytest.raises(RuntimeError, match="out of memory"):
        LLMClient().generate_image("a cat")
    [row] = rows(ledger)
    assert row["status"] == "ok"
    assert row["cost_nano"] > 0
    monkeypatch.setattr("shared.calls.images.load_picture", break_down)
    with pytest.raises(RuntimeError, match="out of memory"):
        LLMClient().vision_completion(HELLO, ["a.png", "b.png"])


def test_events_of_a_worker_process_are_written_at_its_end(ledger: Ledger) -> None:
    """A process of multiprocessing that ends right after an event has written it, as its parent has."""
    code = (
        "import multiprocessing\n"
        "from shared.analytics import AnalyticsEvent, EventType, record_event\n"
        "def record(name):\n"
        "    record_event(AnalyticsEvent(event_type=EventType.TOOL_START, tool_name=name))\n"
        "record('Parent')\n"
        "child = multiprocessing.get_context('fork').Process(target=record, args=('Child',))\n"
        "child.start()\n"
        "child.join()\n"
    )
    assert run(code).returncode == 0
    assert sorted(row["tool"] for row in rows(ledger, event)) == ["Child", "Parent"]
