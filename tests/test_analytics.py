"""Events: a cost that the client has recorded is not counted twice, any other is, and no metadata does harm."""

from __future__ import annotations

import asyncio
import contextvars
import json
import math
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from shared.analytics import get_llm_costs, record_event, set_budget
from shared.budget import Budget
from shared.internal.clock import now_us
from shared.internal.money import to_nano, to_usd
from shared.internal.pending import RecordedCall
from shared.ledger.schema import event as event_table
from shared.ledger.sqlite_library import connect, open_file
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient
from shared.scope import current_scope, scope
from shared.types import AnalyticsEvent, EventType, LLMResponse
from tests.support.asking import HELLO, MINI
from tests.support.examples import at_most
from tests.support.ledger_rows import assert_exact, only, rows, settled, write
from tests.support.provider_double import Double, Usage


def cost_event(**metadata: Any) -> AnalyticsEvent:
    """What a tool written the guide's way records."""
    return AnalyticsEvent(event_type=EventType.LLM_COST, tool_name="T", metadata=metadata)


def called(ledger: Ledger, model: str = MINI, nano: int | None = 7000) -> uuid.UUID:
    """A call that the client has made and recorded."""
    row = settled(ts_us=now_us(), model=model, cost_nano=nano, unpriced_calls=int(nano is None))
    write(ledger, "settle", row)
    current_scope().pending.add(RecordedCall(row["call_id"], row["attempt_id"], model, nano))
    found: uuid.UUID = row["call_id"]
    return found


def totals() -> tuple[int, int, int]:
    """Nano-dollars, calls and unpriced calls of all that is in the ledger."""
    costs = get_llm_costs(since="1900-01-01", until="9000-12-31")
    return costs["total_cost_nano"], costs["total_calls"], costs["unpriced_calls"]


@pytest.mark.parametrize("kind", [*EventType, "something_else", "x" * 500, "half \ud800 \x00"], ids=lambda k: k[:12])
def test_an_event_is_recorded_with_who_caused_it(kind: str, ledger: Ledger) -> None:
    """Events of any type are kept with tool, agent, run, conversation and labels; only costs are calls."""
    with scope(tool="Scope", agent="A", run="R", conversation="C", customer="acme"):
        record_event(AnalyticsEvent(event_type=kind, metadata={"duration_ms": 1.5}))
        record_event(AnalyticsEvent(event_type=kind, tool_name="Own"))
    if kind == EventType.LLM_COST:
        assert [row["tool"] for row in rows(ledger)] == ["Scope", "Own"]
        assert totals()[1] == 2
        return
    found = sorted(rows(ledger, event_table), key=lambda row: str(row["tool"]), reverse=True)
    assert [row["tool"] for row in found] == ["Scope", "Own"]
    assert [found[0][name] for name in ("agent", "run", "conversation", "labels")] == [
        "A",
        "R",
        "C",
        {"customer": "acme"},
    ]
    assert found[0]["metadata"] == {"duration_ms": 1.5}
    assert str(found[0]["event_type"])[:12] == kind.encode("utf-8", "replace").decode().replace("\x00", "?")[:12]
    assert totals() == (0, 0, 0)


def test_a_cost_from_elsewhere_is_a_call_of_its_own(ledger: Ledger) -> None:
    """A cost that the client did not make is added, as the event tells it."""
    with scope(agent="A", customer="acme"):
        record_event(
            cost_event(model="m", provider="p", cost=0.25, prompt_tokens=10, completion_tokens=5, task_type="image")
        )
    row = only(ledger)
    told = ("model", "provider", "operation", "tool", "agent", "status", "cost_source", "cost_nano", "prompt_tokens")
    assert [row[name] for name in told] == ["m", "p", "image", "T", "A", "reported", "reported", 250_000_000, 10]
    assert totals() == (250_000_000, 1, 0)
    with scope(customer="acme"):
        assert get_llm_costs()["total_calls"] == 1
    assert_exact(ledger)


def test_an_event_about_a_recorded_call_counts_nothing(ledger: Ledger) -> None:
    """The guide's event after a call adds its metadata to the call's row, and nothing to the bill."""
    called(ledger)
    record_event(cost_event(model=MINI, provider="openai", cost=to_usd(7000), total_tokens=30, note="x"))
    assert totals() == (7000, 1, 0)
    assert only(ledger)["metadata"] == {"total_tokens": 30, "note": "x"}
    record_event(cost_event(model=MINI, cost=to_usd(7000)))
    assert totals() == (14000, 2, 0)


def test_each_call_is_claimed_once(ledger: Ledger) -> None:
    """Equal calls are claimed one by one, and what speaks of another model or cost is a call of its own."""
    with scope(tool="T"):
        for _ in range(3):
            called(ledger)
        for _ in range(3):
            record_event(cost_event(model=MINI, cost=to_usd(7000)))
        assert totals() == (21000, 3, 0)
        called(ledger)
        record_event(cost_event(model="other", cost=to_usd(7000)))
        record_event(cost_event(model=MINI, cost=to_usd(7001)))
        assert totals() == (21000 + 7000 + 7000 + 7001, 6, 0)
    assert_exact(ledger)


def test_a_named_call_is_claimed_whatever_else_is_said(ledger: Ledger) -> None:
    """An event with the call's id, as text or as it is, belongs to that call."""
    ids = [called(ledger), called(ledger)]
    record_event(cost_event(model="else", cost=9.0, call_id=str(ids[1]), number=2))
    record_event(cost_event(call_id=ids[0], number=1))
    assert totals() == (14000, 2, 0)
    assert {row["call_id"]: row["metadata"]["number"] for row in rows(ledger)} == {ids[0]: 1, ids[1]: 2}


def test_an_unknown_cost_claims_an_unpriced_call(ledger: Ledger) -> None:
    """A response's NaN is the cost of the call that nobody could price."""
    called(ledger, nano=None)
    record_event(cost_event(model=MINI, cost=math.nan))
    assert totals() == (0, 1, 1)
    record_event(cost_event(model=MINI, cost=math.nan))
    assert totals() == (0, 2, 2)


def test_calls_of_another_tool_cannot_be_claimed(ledger: Ledger) -> None:
    """An event inside a tool belongs to that tool's calls, in whichever scope it made them."""
    with scope(tool="A"):
        called(ledger)
    with scope(tool="B"):
        record_event(cost_event(model=MINI, cost=to_usd(7000)))
        assert totals()[1] == 2
        with scope(customer="acme"):
            called(ledger)
        record_event(cost_event(model=MINI, cost=to_usd(7000)))
    assert totals()[1] == 3


def asked(**labels: Any) -> LLMResponse:
    """The response of one call, made in a scope that has been left."""
    with scope(**labels):
        return LLMClient().chat_completion(HELLO, model=MINI)


SPELLINGS = (MINI, "gpt-5.4-mini", "OpenAI/GPT-5.4-mini", " openai/gpt-5.4-mini ")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_another_spelling_of_the_model_is_the_same_call(spelling: str, hosted: Double) -> None:
    """Whatever name of the model an event uses, and if the cost is rounded to six decimals, the call counts once."""
    hosted.always("openai", usage=Usage(input=1233, output=567))
    with scope(customer="acme"):
        response = LLMClient().chat_completion(HELLO, model=MINI)
        assert response.cost != round(response.cost, 6)
        record_event(cost_event(model=spelling, cost=round(response.cost, 6)))
        assert get_llm_costs()["total_cost"] == response.cost
        assert get_llm_costs()["total_calls"] == 1
        record_event(cost_event(model=spelling, cost=round(response.cost, 6)))
        assert get_llm_costs()["total_calls"] == 2


def test_an_event_after_its_scope_was_left_counts_once(hosted: Double) -> None:
    """An event may be about a call of a scope inside, left or not, in any task, and each call is claimed once."""

    async def together() -> list[LLMResponse]:
        work = (asyncio.to_thread(asked, customer=name) for name in "abc")
        return list(await asyncio.gather(*work))

    for response in (asked(customer="acme"), *asyncio.run(together())):
        record_event(cost_event(model=response.model, cost=response.cost, total_tokens=response.usage["total_tokens"]))
    assert totals()[1] == 4
    record_event(cost_event(model=response.model, cost=response.cost))
    assert totals()[1] == 5


def test_an_event_in_a_scope_around_or_inside_counts_once(hosted: Double) -> None:
    """The scope around knows of the calls inside; a scope inside that is not a tool knows of those around."""
    with scope(customer="acme"):
        response = asked(step="one")
        record_event(cost_event(model=response.model, cost=response.cost))
        assert totals()[1] == 1
        response = LLMClient().chat_completion(HELLO, model=MINI)
        with scope(step="two"):
            record_event(cost_event(model=response.model, cost=response.cost))
        response = LLMClient().chat_completion(HELLO, model=MINI)
        with scope(tool="T"):
            record_event(cost_event(model=response.model, cost=response.cost, call_id=response.metadata["call_id"]))
        assert totals()[1] == 3
    with scope(customer="bolt"):
        record_event(cost_event(call_id=asked(customer="acme").metadata["call_id"]))
    assert totals()[1] == 4


def test_an_event_about_another_call_is_never_swallowed(hosted: Double, tmp_path: Path) -> None:
    """Equal figures are not enough: another customer's call, other tokens or an agent's tool's call is not meant."""
    response = asked(customer="a")
    told: dict[str, Any] = {"model": response.model, "cost": response.cost}
    with scope(customer="b"):
        record_event(cost_event(**told))
    assert totals()[1] == 2
    record_event(cost_event(**told, total_tokens=response.usage["total_tokens"] + 1))
    assert totals()[1] == 3
    with scope(tool="T"):
        record_event(cost_event(**told))
    assert totals()[1] == 4
    with scope(tool="T", from_agent=True):
        LLMClient().chat_completion(HELLO, model=MINI)
    record_event(cost_event(**told))  # about customer a's call
    assert totals()[1] == 5
    record_event(cost_event(**told))
    assert totals()[1] == 6


@pytest.mark.parametrize(
    "wrong", [-2e6, math.nan, math.inf, 2e6, 10**400, "abc", "NaN", True, [1], None, Decimal("NaN")]
)
def test_a_cost_that_cannot_be_is_unknown(wrong: Any, ledger: Ledger) -> None:
    """An endless, absurd or non-numeric cost is recorded as unpriced and does not touch the total."""
    record_event(cost_event(model="m", cost=wrong))
    assert totals() == (0, 1, 1)
    assert (only(ledger)["cost_nano"], only(ledger)["cost_source"]) == (None, "unknown")


@pytest.mark.parametrize(("cost", "nano"), [(0, 0), (0.1, 10**8), (1, 10**9), (1e-9, 1), (Decimal("0.3"), 3 * 10**8)])
def test_a_cost_that_can_be_is_exact(cost: Any, nano: int) -> None:
    """Reported dollars are kept to the nano-dollar, 0 included."""
    record_event(cost_event(model="m", cost=cost))
    assert totals() == (nano, 1, 0)


@pytest.mark.parametrize(
    ("told", "prompt", "completion"),
    [
        ({"total_tokens": 30}, 30, None),
        ({"total_tokens": 30, "prompt_tokens": 10, "completion_tokens": 20}, 10, 20),
        ({"prompt_tokens": -1, "completion_tokens": True}, None, None),
        ({"prompt_tokens": 10**30, "completion_tokens": 1.5, "total_tokens": "many"}, None, None),
    ],
)
def test_reported_tokens_are_whole_numbers(
    told: dict[str, Any], prompt: int | None, completion: int | None, ledger: Ledger
) -> None:
    """Counts that cannot be are unknown; a total alone counts as input."""
    record_event(cost_event(model="m", cost=1, **told))
    assert (only(ledger)["prompt_tokens"], only(ledger)["completion_tokens"]) == (prompt, completion)


class Hostile:
    """An object that nobody can print."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def stored(ledger: Ledger, table: str = "event") -> str:
    """All metadata in the ledger, as it lies in the file."""
    ledger.flush()
    with closing(connect(str(ledger._url.database))) as connection:
        return " ".join(str(value) for (value,) in connection.execute(f"SELECT metadata FROM {table}"))  # noqa: S608


def test_metadata_holds_no_secret(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that a tool puts into its metadata, in a value, a name or deep inside, does not reach the ledger."""
    monkeypatch.setenv("COHERE_API_KEY", "abcdefghijklmnop")
    secret = {"a": "abcdefghijklmnop", "abcdefghijklmnop": 1, "deep": {"x": ["sk-abcdefghijkl", b"abcdefghijklmnop"]}}
    record_event(AnalyticsEvent(event_type="x", metadata=secret))
    record_event(cost_event(model="sk-abcdefghijkl", provider="abcdefghijklmnop", cost=1, **secret))
    for table in ("event", "attempt"):
        text = stored(ledger, table)
        assert "[redacted]" in text
        assert "abcdefgh" not in text
    assert (only(ledger)["model"], only(ledger)["provider"]) == ("[redacted]", "[redacted]")


def test_metadata_is_small_and_plain(ledger: Ledger) -> None:
    """Long values are cut, too many are left out, and what has no plain form becomes text or nothing."""
    odd = {
        "object": Hostile(),
        "big": 10**5000,
        "nan": math.nan,
        "inf": -math.inf,
        "bytes": b"\xff",
        "when": datetime(9999, 12, 31, tzinfo=UTC),
    }
    record_event(AnalyticsEvent(event_type="x", metadata={**odd, "long": "y" * 100_000, "n" * 100_000: 1}))
    record_event(AnalyticsEvent(event_type="x", metadata={str(number): "z" * 600 for number in range(1000)}))
    first, second = (row["metadata"] for row in rows(ledger, event_table))
    if "object" not in first:
        first, second = second, first
    assert (first["object"], first["nan"], first["inf"], first["big"]) == ("(Hostile)", None, None, "(int)")
    assert len(first["long"]) == 500
    assert max(map(len, first)) == 60
    assert len(second) == 30
    assert len(stored(ledger)) < 30_000


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary() | st.decimals(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(["model", "provider", "cost", "call_id", "prompt_tokens", "total_tokens"]) | st.text()


@settings(max_examples=at_most(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([*EventType, "other"]),
    st.dictionaries(names, anything, max_size=6),
    st.none() | st.text(st.characters()),
    st.none() | st.datetimes() | st.datetimes(timezones=st.just(UTC)),
)
def test_no_event_raises_or_breaks_the_ledger(
    ledger: Ledger, kind: str, metadata: dict[str, Any], tool: str | None, timestamp: datetime | None
) -> None:
    """Whatever a tool records, the call goes on, the sums stay exact and the ledger goes on writing."""
    before = len(rows(ledger)) + len(rows(ledger, event_table))
    record_event(AnalyticsEvent(event_type=kind, tool_name=tool, metadata=metadata, timestamp=timestamp))
    assert not ledger._spool.waiting()
    assert len(rows(ledger)) + len(rows(ledger, event_table)) == before + 1
    assert_exact(ledger)


def test_an_event_has_its_own_time_and_is_counted_once(ledger: Ledger) -> None:
    """A late event is in the window of its own time; the same event recorded again is still one."""
    late = cost_event(model="m", cost=1).model_copy(
        update={"timestamp": datetime.now(UTC) - timedelta(days=3), "event_id": uuid.uuid4()}
    )
    for _ in range(3):
        record_event(late)
    assert get_llm_costs(days=2)["total_calls"] == 0
    assert get_llm_costs(days=4)["total_cost"] == 1
    plain = AnalyticsEvent(event_type="x", event_id=uuid.uuid4())
    record_event(plain)
    record_event(plain)
    assert len(rows(ledger, event_table)) == 1
    assert_exact(ledger)


def test_with_tracking_off_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """LITELLM_COST_TRACKING=false means no ledger at all."""
    monkeypatch.setenv("LITELLM_COST_TRACKING", "false")
    (tmp_path / "ledger.sqlite3").unlink()
    record_event(cost_event(model="m", cost=1))
    assert not (tmp_path / "ledger.sqlite3").exists()


def test_inside_asyncio_an_event_does_not_wait(ledger: Ledger, tmp_path: Path) -> None:
    """On an event loop recording returns at once, even while the ledger is locked; the tool waits at its end."""
    ledger.check_writable()

    async def main() -> None:
        with closing(open_file(tmp_path / "ledger.sqlite3", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with scope(tool="T") as inside:
                for _ in range(3):
                    record_event(cost_event(model="m", cost=1))
                assert not any(write.done() for write in inside.pending._writes)
                other.execute("ROLLBACK")
                await asyncio.wait([asyncio.wrap_future(write) for write in inside.pending.take_writes()])
        assert inside.pending.take_writes() == []

    asyncio.run(main())
    assert totals() == (3 * 10**9, 3, 0)


def test_threads_record_and_claim_inside_the_scope_they_carry(ledger: Ledger) -> None:
    """Calls and events of many threads in one scope pair up, and every other event counts."""

    def work(number: int) -> None:
        called(ledger, nano=1000 + number % 3)
        record_event(cost_event(model=MINI, cost=to_usd(1000 + number % 3)))
        record_event(cost_event(model="else", cost=to_usd(1)))

    with scope(tool="T"), ThreadPoolExecutor(8) as pool:
        contexts = [contextvars.copy_context() for _ in range(40)]
        list(pool.map(lambda context, number: context.run(work, number), contexts, range(40)))
    assert totals() == (sum(1000 + number % 3 for number in range(40)) + 40, 80, 0)
    assert_exact(ledger)


def threads(one: Callable[[int], None]) -> None:
    """Eight times in threads of their own, each in its copy of the scope."""
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(contextvars.copy_context().run, one, number) for number in range(8)]:
            done.result()


def tasks(one: Callable[[int], None]) -> None:
    """Eight times in worker threads of an event loop."""

    async def main() -> None:
        await asyncio.gather(*(asyncio.to_thread(one, number) for number in range(8)))

    asyncio.run(main())


@pytest.mark.parametrize("run", [threads, tasks])
def test_a_tool_of_the_guide_counts_its_cost_once(run: Callable[..., None], hosted: Double) -> None:
    """A call and the guide's event about it are one call on the bill, in threads and in asyncio."""
    spent: list[float] = []

    def process(number: int) -> None:
        response = LLMClient().chat_completion(HELLO, model=MINI)
        spent.append(response.cost)
        record_event(cost_event(model=response.model, provider=response.provider, cost=response.cost, number=number))

    with scope(tool="T"):
        run(process)
    costs = get_llm_costs()
    assert costs["total_calls"] == len(spent) == 8
    assert costs["total_cost_nano"] == sum(map(to_nano, spent)) > 0
    assert json.loads(json.dumps(costs)) == costs


def test_an_event_of_any_time_does_not_stop_the_ledger(ledger: Ledger) -> None:
    """A cost dated where no budget's window can end is stored like any other, and so is what comes after it."""
    set_budget("all", Budget(5, "month"))
    last = datetime(9999, 12, 31, 23, tzinfo=UTC)
    record_event(AnalyticsEvent(event_type=EventType.LLM_COST, timestamp=last, metadata={"model": "x", "cost": 1}))
    record_event(cost_event(model="x", cost=2))
    assert ledger.waiting == 0
    assert sorted(row["cost_nano"] for row in rows(ledger)) == [1_000_000_000, 2_000_000_000]
