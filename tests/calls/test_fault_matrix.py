"""The fault matrix against a real socket: every fault, in every mode, with and without another model to turn to."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import time_machine

from shared.analytics import get_llm_costs
from shared.calls import flow
from shared.errors import AllModelsFailed, InvalidRequest, LLMError, LocalOverload, ModelNotAllowed, ModelNotFound
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient
from shared.providers import transport
from tests.support.asking import HAIKU, HELLO, MINI
from tests.support.fault_cases import CASES, ELSEWHERE, FLASH, FaultCase
from tests.support.fault_runs import HANG_S, check, some_runs
from tests.support.ledger_rows import records
from tests.support.paths import BESIDE, ROOT
from tests.support.provider_double import Double, Fault

LIST = BESIDE / "facts" / "faults.json"


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses between attempts but for those that a provider asks for, and a cap that small answers can break."""
    monkeypatch.setattr(flow, "_backoff", lambda _: 0.005)
    monkeypatch.setattr(transport, "MAX_RESPONSE_BYTES", 2 * 2**20)


# Those that are nothing but waiting run in the soak only, with all others in all their ways.
SLOW = ("dripping-", "slow-", "stalling-")


@pytest.mark.parametrize("case", [case for case in CASES if not case.name.startswith(SLOW)], ids=lambda case: case.name)
def test_fault(case: FaultCase, hosted: Double, ledger: Ledger) -> None:
    """Each fault ends as the table says: for the caller, on the wire, in the ledger and in time."""
    runs = some_runs(case)
    for run in runs:
        try:
            check(case, run, hosted, ledger)
        except AssertionError as error:
            error.add_note(f"in the run {run}")
            raise
    answered = sum(case.then == "answered" or (run.fallback and case.falls_back) for run in runs)
    costs = get_llm_costs(days=1)
    assert (costs["total_calls"], costs["failed_calls"]) == (answered, len(runs) - answered)


def test_every_known_fault_has_its_place() -> None:
    """Every fault of the project's list has a case, a test of its own that there is, or a reason."""
    covered = {each for case in CASES for each in case.ids}
    for place in ELSEWHERE.values():
        file, _, name = place.partition("::")
        assert not name or f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), place
        assert name or ": " in place
    assert not covered & ELSEWHERE.keys()
    if not LIST.is_file():
        pytest.skip("the list of faults is not part of the repository")
    assert {each["id"] for each in json.loads(LIST.read_text(encoding="utf-8"))} == covered | ELSEWHERE.keys()


def test_every_model_fails(hosted: Double, ledger: Ledger) -> None:
    """When all fail, one error names each with its reason and the sum, retryable only where all were passing faults."""
    hosted.always("openai", status=503)
    hosted.always("anthropic", status=529)
    hosted.always("gemini", status=500)
    with pytest.raises(AllModelsFailed) as passing:
        LLMClient(max_retries=0).chat_completion(HELLO, model=MINI, fallback_models=[HAIKU])
    assert passing.value.retryable
    assert passing.value.cost == 0
    with pytest.raises(AllModelsFailed) as mixed:
        LLMClient(max_retries=0).chat_completion(HELLO, model=MINI, fallback_models=[HAIKU, FLASH])
    assert not mixed.value.retryable
    assert mixed.value.cost != mixed.value.cost
    first, *lines = str(mixed.value).splitlines()
    assert "may have been charged" in first
    assert [line.partition(": ")[0] for line in lines] == [f"- {model}" for model in (MINI, HAIKU, FLASH)]
    assert "sk-test" not in str(mixed.value)
    assert len(records(ledger)) == len(hosted.requests) == 5
    assert get_llm_costs(days=1)["failed_calls"] == 2


def test_no_free_connection(hosted: Double, ledger: Ledger) -> None:
    """When all connections of the process are taken, a call is refused in time, and nothing of it is sent."""
    taken = 10  # the pool of the tests' transport
    held, arrived = hosted.always("openai", fault=Fault.STALL_HEADERS), threading.Semaphore(0)
    hosted.decide(lambda _: arrived.release())

    async def crowd() -> LLMError:
        client = LLMClient(max_retries=0)
        before = [asyncio.create_task(client.achat_completion(HELLO, model=MINI)) for _ in range(taken)]
        for _ in before:
            assert await asyncio.to_thread(arrived.acquire, timeout=HANG_S)
        with pytest.raises(LocalOverload) as caught:
            await client.achat_completion(HELLO, model=MINI, timeout=0.4)
        held.gate.release()
        await asyncio.gather(*before)
        return caught.value

    error = asyncio.run(crowd())
    assert (error.outcome, error.cost) == ("not_sent", 0)
    assert len(hosted.requests) == taken
    assert sorted(row["status"] for row in records(ledger)) == ["failed", *["ok"] * taken]


def test_each_event_loop_has_connections_of_its_own(hosted: Double) -> None:
    """Event loops in several threads share a client, and none waits for another's connections or leaves any open."""
    client = LLMClient()

    async def ask() -> list[str]:
        return [(await client.achat_completion(HELLO, model=MINI)).content for _ in range(3)]

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(lambda: asyncio.run(ask())) for _ in range(4)]
        texts = [answer.result(HANG_S) for answer in answers]
    assert texts == [[client.chat_completion(HELLO, model=MINI).content] * 3] * 4


@pytest.mark.parametrize("hours", [-1, 24])
def test_the_wall_clock_may_jump(hosted: Double, ledger: Ledger, hours: int) -> None:
    """An hour back or a day ahead in the middle of a call changes neither its deadline nor how long it took."""
    with time_machine.travel("2026-11-25T12:00:00Z") as clock:

        def jump(_: object) -> None:
            clock.shift(hours * 3600)

        hosted.decide(jump)
        response = LLMClient(deadline=30).chat_completion(HELLO, model=MINI)
    assert 0 < response.latency_ms < 30_000
    [row] = records(ledger)
    assert row["time"].isoformat().startswith("2026-11-25T12:00:0")


def test_unknown_and_forbidden_models(hosted: Double, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown model, or one that is not allowed, is refused before anything is sent, and that is recorded."""
    with pytest.raises(ModelNotFound):
        LLMClient().chat_completion(HELLO, model="no-such-model", fallback_models=[])
    monkeypatch.setenv("AGENTSWARM_ALLOWED_MODELS", HAIKU)
    with pytest.raises(ModelNotAllowed):
        LLMClient().chat_completion(HELLO, model=MINI, stream=True)
    assert hosted.requests == []
    recorded = [(row["status"], row["error_type"], row["cost_nano"]) for row in records(ledger)]
    assert recorded == [("refused", "ModelNotFound", 0), ("refused", "ModelNotAllowed", 0)]


@pytest.mark.parametrize(("model", "passed_on"), [(MINI, True), (HAIKU, False), (FLASH, False)])
def test_links_are_never_fetched(hosted: Double, model: str, passed_on: bool) -> None:
    """No link to an image is fetched from here: it goes to the provider as it is, or the call is refused."""
    image = {"type": "image_url", "image_url": {"url": f"{hosted.url}/secret.png"}}
    with nullcontext() if passed_on else pytest.raises(InvalidRequest, match="not as links"):
        LLMClient().chat_completion([{"role": "user", "content": [image]}], model=model, fallback_models=[])
    assert [request.method for request in hosted.requests] == ["POST"] * passed_on
