"""Scopes: nested ones narrow, threads and tasks carry them, and what is recorded in them can be claimed once."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import uuid
import weakref
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydantic import SecretStr

from shared.budget import Budget, Limit
from shared.errors import ConfigurationError
from shared.internal.pending import PendingCalls, RecordedCall
from shared.internal.spend import SpendCounter
from shared.scope import Scope, current_scope, scope


@pytest.fixture(autouse=True)
def in_a_context_of_its_own() -> Iterator[None]:
    """No test leaves a scope behind."""
    before = current_scope()
    yield
    assert current_scope() is before


def test_outside_every_scope_nobody_is_known() -> None:
    """Code outside a scope calls for nobody, with no limits and no keys."""
    assert current_scope() == Scope()
    assert current_scope().models is None
    assert not current_scope().from_agent


def test_a_nested_scope_keeps_what_it_does_not_say() -> None:
    """Attribution, labels and keys come from outside unless the inner scope says otherwise, and go back after it."""
    with scope(tool="T", agent="A", run="R", conversation="C", keys={"openai": "sk-1"}, customer="acme") as outer:
        with scope(agent="B", keys={"anthropic": SecretStr("sk-2")}, team="red") as inner:
            assert current_scope() is inner
            assert (inner.tool, inner.agent, inner.run, inner.conversation) == ("T", "B", "R", "C")
            assert dict(inner.labels) == {"customer": "acme", "team": "red"}
            assert {name: key.get_secret_value() for name, key in inner.keys.items()} == {
                "openai": "sk-1",
                "anthropic": "sk-2",
            }
        assert current_scope() is outer
        assert dict(outer.labels) == {"customer": "acme"}


def test_an_inner_scope_cannot_allow_more_models() -> None:
    """The allow-list inside is what both scopes allow, down to nothing at all; None keeps the outer one."""
    with scope(models=["a", "b"]):
        with scope(models=["b", "c"]) as inner:
            assert inner.models == ("b",)
            with scope(models=["c"]) as innermost:
                assert innermost.models == ()
        with scope() as unchanged:
            assert unchanged.models == ("a", "b")
    with scope(models=[]) as nothing:
        assert nothing.models == ()


@given(st.lists(st.none() | st.lists(st.sampled_from("abcdef")), max_size=5))
def test_nesting_only_ever_narrows(lists: list[list[str] | None]) -> None:
    """However scopes are nested, no model becomes allowed that an outer scope did not allow."""

    def enter(rest: list[list[str] | None], allowed: set[str] | None) -> None:
        if not rest:
            return
        with scope(models=rest[0]) as inner:
            if rest[0] is not None:
                allowed = set(rest[0]) & (set("abcdef") if allowed is None else allowed)
            assert (None if inner.models is None else set(inner.models)) == allowed
            enter(rest[1:], allowed)

    enter(lists, None)


def test_labels_and_keys_cannot_be_changed_afterwards() -> None:
    """What a scope says stays as it was entered."""
    with scope(customer="acme", keys={"openai": "sk-1"}) as inside:
        for mapping in (inside.labels, inside.keys):
            with pytest.raises(TypeError):
                mapping["x"] = "y"  # type: ignore[index]


@pytest.mark.parametrize("value", ["", "x" * 201, 7, None, ["acme"], b"acme"], ids=repr)
def test_a_label_is_a_short_text(value: Any) -> None:
    """A label that is empty, long or no text is refused by name, without its value."""
    with pytest.raises(ConfigurationError, match="'customer'"):
        scope(customer=value)
    with pytest.raises(ConfigurationError, match="1 to 200"):
        scope(**{"n" * 61: "acme"})  # type: ignore[arg-type]


def test_a_scope_never_shows_its_keys() -> None:
    """Neither the repr nor the text of a scope holds a key."""
    with scope(keys={"openai": "sk-visible", "cohere": SecretStr("sk-visible")}, customer="acme") as inside:
        assert "visible" not in f"{inside!r} {inside} {inside.keys!r} {dict(inside.keys)!r}"


def test_the_alias_of_a_key_is_who_brought_it() -> None:
    """Reports name a customer's own key by the labels of the scope that brought it, whoever uses it further inside."""
    with scope(keys={"openai": "sk-1"}, team="red", customer="acme") as labelled:
        assert dict(labelled.key_aliases) == {"openai": "customer=acme,team=red"}
        with scope(step="draft") as step:
            assert dict(step.key_aliases) == {"openai": "customer=acme,team=red"}
        with scope(step="draft", keys={"cohere": "sk-2"}) as more:
            assert more.key_aliases["cohere"] == "customer=acme,step=draft,team=red"
    with scope(keys={"openai": "sk-1"}) as plain:
        assert dict(plain.key_aliases) == {"openai": "scope"}


@pytest.mark.parametrize("key", ["", SecretStr(""), None, SecretStr(None)], ids=repr)  # type: ignore[arg-type]
def test_an_empty_key_is_no_key(key: Any) -> None:
    """A customer whose key is missing does not silently use the operator's."""
    with pytest.raises(ConfigurationError, match="The key for openai is empty"):
        scope(customer="acme", keys={"openai": key})


@pytest.mark.parametrize("models", ["openai/gpt-5.4-mini", [None], [1]], ids=repr)
def test_models_are_a_list(models: Any) -> None:
    """One name as a text is not read as a list of letters."""
    with pytest.raises(ConfigurationError, match="list of model names"):
        scope(models=models)


@pytest.mark.parametrize("given", [{"keys": {"openai": "sk-1"}}, {"budget": Budget(1)}], ids=["keys", "budget"])
def test_what_was_given_to_one_customer_is_not_used_for_another(given: dict[str, Any]) -> None:
    """A worker that was started inside one customer's request fails loudly when it opens another customer's scope."""
    with scope(customer="acme", **given) as acme, scope(step="one"):
        with pytest.raises(ConfigurationError, match="The label customer has a budget or keys") as refused:
            scope(customer="bolt").__enter__()
        assert "bolt" not in str(refused.value)
        assert "acme" not in str(refused.value)
        with scope(step="two") as step, scope(customer="acme") as same:
            assert same.labels == step.labels == {**acme.labels, "step": "two"}
    with scope(customer="acme", models=["a"]), scope(customer="bolt") as other:
        assert other.labels == {"customer": "bolt"}


def test_whose_budget_it_is() -> None:
    """A scope's budget is for all its labels together, or for the one label that it names, which must be there."""
    with scope(request="r1"):
        with scope(customer="acme", budget=Budget(1)) as all_labels:
            assert [limit.dimensions for limit in all_labels.limits] == [("label:customer", "label:request")]
        with scope(customer="acme", budget=Budget(1, scope="customer")) as one_label:
            assert [limit.dimensions for limit in one_label.limits] == [("label:customer",)]
        with scope(customer="acme", budget=Budget(1, scope="agent")) as agents:
            assert [limit.dimensions for limit in agents.limits] == [("agent", "label:customer", "label:request")]
        with pytest.raises(ConfigurationError, match="needs a scope with the label costumer"):
            scope(customer="acme", budget=Budget(1, scope="costumer")).__enter__()


def test_a_budget_entered_again_is_the_same_one() -> None:
    """A scope inside itself does not pile up its budgets, however often."""
    terms: dict[str, Any] = {"customer": "acme", "budget": [Budget(1), Budget(2, "day")]}
    with scope(**terms) as first, scope(**terms), scope(**terms) as third:
        assert third.limits == first.limits
        assert len(third.limits) == 2


@pytest.mark.parametrize(
    ("labels", "budget", "seen"),
    [
        ({"customer": "acme"}, Budget(1, scope="customer"), True),
        ({"team": "red"}, Budget(1, scope="customer"), False),
        ({"team": "red"}, Budget(1), False),
        ({}, Budget(1), True),
    ],
    ids=str,
)
def test_an_agent_sees_its_own_limits(labels: dict[str, str], budget: Budget, seen: bool) -> None:
    """Inside labels an agent is told what limits of these labels have left, and nothing of what others spend."""
    with scope(from_agent=True, **labels) as inside:  # type: ignore[arg-type]
        assert inside.may_see(Limit(budget)) is seen


def test_tasks_and_to_thread_carry_the_scope() -> None:
    """Tasks started inside, and the threads they start, are inside; their own scopes do not leak out."""

    async def work(name: str) -> tuple[str | None, str | None]:
        with scope(agent=name):
            await asyncio.sleep(0)
            inside = await asyncio.to_thread(lambda: current_scope().agent)
            return current_scope().tool, inside

    async def main() -> list[tuple[str | None, str | None]]:
        async with scope(tool="T"):
            found = await asyncio.gather(*(work(f"a{number}") for number in range(5)))
            assert current_scope().agent is None
            return found

    assert asyncio.run(main()) == [("T", f"a{number}") for number in range(5)]


def test_a_thread_of_its_own_starts_outside() -> None:
    """A bare thread is in no scope unless the context is carried into it by hand."""
    with scope(customer="acme") as inside, ThreadPoolExecutor(1) as pool:
        assert pool.submit(current_scope).result() == Scope()
        assert pool.submit(contextvars.copy_context().run, current_scope).result() is inside


def stream(**labels: str) -> Generator[Scope]:
    """A generator that holds a scope open, as those of streaming responses do."""
    with scope(**labels) as inside:  # type: ignore[arg-type]
        yield inside


def in_a_copy(story: Callable[[], None]) -> None:
    """Run it so that what it leaves behind is gone."""
    contextvars.copy_context().run(story)


def test_a_generator_closed_in_a_copied_context_is_left_there() -> None:
    """Web frameworks enter a generator in one context and close it in a copy of it; there the outer scope is back."""

    def story() -> None:
        with scope(team="red") as outer:
            items = stream(customer="acme")
            assert next(items).labels == {"team": "red", "customer": "acme"}
            elsewhere = contextvars.copy_context()
            elsewhere.run(items.close)
            assert elsewhere.run(current_scope) is outer

    in_a_copy(story)


def test_closing_one_customers_stream_does_not_touch_another_customer() -> None:
    """Whoever closes a stream of somebody else's stays in the scope that it is in."""

    def story() -> None:
        items = contextvars.Context().run(lambda: (made := stream(customer="acme"), next(made))[0])
        with scope(customer="bolt") as bolt:
            items.close()
            assert current_scope() is bolt
        assert current_scope() == Scope()

    in_a_copy(story)


def test_a_stream_that_outlives_its_scope_brings_none_back() -> None:
    """A generator that is closed after the scope around it was left does not put that scope back."""

    def story() -> None:
        with scope(team="red"):
            items = stream(customer="acme")
            next(items)
        assert current_scope() == Scope()
        items.close()
        assert current_scope() == Scope()

    in_a_copy(story)


@given(st.data())
def test_leaving_in_any_order_ends_outside(data: st.DataObject) -> None:
    """However many streams are opened and closed in whatever order, nobody is known when all are closed."""

    def story() -> None:
        opened = [stream(**{f"label{number}": "x"}) for number in range(data.draw(st.integers(1, 5)))]
        for items in opened:
            next(items)
        for items in data.draw(st.permutations(opened)):
            items.close()
        assert current_scope() == Scope()

    in_a_copy(story)


def test_a_job_that_schedules_itself_does_not_grow() -> None:
    """A job that starts its own next turn from inside its scope keeps nothing of the turns before."""
    seen: list[weakref.ref[Any]] = []

    async def turn(left: int) -> None:
        with scope(job="tick", turn=str(left)) as inside:
            seen.append(weakref.ref(inside.pending))
            assert max(len(inside.spend), len(inside.managers)) <= 2
            following = asyncio.create_task(turn(left - 1)) if left else None
        del inside
        if following is not None:
            await asyncio.sleep(0)
            pending.append(following)

    pending: list[asyncio.Task[None]] = []

    async def main() -> None:
        await turn(30)
        while pending:
            await pending.pop()

    asyncio.run(main())
    gc.collect()
    assert len(seen) == 31
    assert sum(calls() is not None for calls in seen) <= 1


def test_totals_are_those_of_the_labels() -> None:
    """What a client has spent is told inside a scope for its labels alone, through scopes without any of their own."""
    client, other = SpendCounter(), SpendCounter()
    with scope(customer="acme") as acme:
        client.add(1, current_scope().spend)
        with scope(tool="T"):
            client.add(2, current_scope().spend)
            with scope(step="one") as step:
                client.add(4, current_scope().spend)
            with scope(step="one", models=[]):
                client.add(8, current_scope().spend)
    with scope(customer="bolt") as bolt:
        client.add(16, current_scope().spend)
    assert [client.nano(each.spend) for each in (acme, step, bolt, Scope())] == [15, 4, 16, 31]
    assert other.nano(acme.spend) == 0


def test_a_scope_is_entered_once() -> None:
    """What `scope(...)` returns can be entered once, so that where it leads back to is never in doubt."""
    manager = scope(customer="acme")
    with manager, pytest.raises(ConfigurationError, match="only once"):
        manager.__enter__()
    assert current_scope() == Scope()
    with pytest.raises(ConfigurationError, match="only once"):
        manager.__enter__()


def test_an_exception_leaves_the_scope() -> None:
    """The outer scope is back after an error inside."""
    with pytest.raises(ZeroDivisionError), scope(customer="acme"):
        raise ZeroDivisionError
    assert current_scope() == Scope()


def recorded(model: str = "m", cost: int | None = 5) -> RecordedCall:
    """A call that the ledger holds."""
    return RecordedCall(uuid.uuid4(), uuid.uuid4(), model, cost)


def test_each_recorded_call_is_claimed_once_oldest_first() -> None:
    """Two equal calls are two claims, no more; a claim for another model or cost takes nothing."""
    pending, calls = PendingCalls(), [recorded(), recorded(), recorded(cost=None)]
    for call in calls:
        pending.add(call)
    assert pending.claim("m", 6) is None
    assert pending.claim("other", 5) is None
    assert [pending.claim("m", 5), pending.claim("m", 5), pending.claim("m", 5)] == [calls[0], calls[1], None]
    assert pending.claim("m", None) is calls[2]


def test_a_call_id_alone_decides() -> None:
    """An event that names its call takes that one whatever else it says, and none when there is no such call."""
    pending, calls = PendingCalls(), [recorded(), recorded()]
    for call in calls:
        pending.add(call)
    assert pending.claim("other", 9, uuid.uuid4()) is None
    assert pending.claim("m", 5, uuid.uuid4()) is None
    assert pending.claim("other", None, calls[1].call_id) is calls[1]
    assert pending.claim("m", 5) is calls[0]


def test_many_threads_claim_each_call_once() -> None:
    """Claims from many threads at once never take the same call twice, nor leave one over."""
    pending, calls = PendingCalls(), [recorded() for _ in range(400)]
    for call in calls:
        pending.add(call)
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: pending.claim("m", 5), range(400)))
    assert {call.call_id for call in claimed if call} == {call.call_id for call in calls}


def test_a_tool_has_pending_calls_of_its_own_and_shares_them_with_the_scopes_it_opens() -> None:
    """What a tool does in an inner scope can be claimed, waited for and cancelled by the tool; others' calls cannot."""
    with scope(customer="acme") as outer, scope(tool="T") as tool:
        assert tool.pending is not outer.pending
        with scope(step="one") as step:
            assert step.pending is tool.pending
            with scope(tool="Inner") as inner:
                assert inner.pending is not tool.pending
    with scope(a="1") as one, scope(b="2") as two:
        assert one.pending is not two.pending


def test_cancel_stops_what_is_under_way_and_nothing_else() -> None:
    """A cancelled tool stops its synchronous calls; what had ended is left alone."""
    pending = PendingCalls()
    running, ended = Future[None](), Future[None]()
    for future in (running, ended):
        pending.enter(future)
    ended.set_result(None)
    pending.cancel()
    assert running.cancelled()
    assert ended.result() is None
    pending.cancel()


def test_owed_writes_are_handed_over_once() -> None:
    """Whoever asks for the writes that nobody waited for gets each of them once, from any thread."""
    pending = PendingCalls()
    writes = [Future[None]() for _ in range(40)]
    threads = [threading.Thread(target=pending.add_write, args=(write,)) for write in writes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(map(id, pending.take_writes())) == set(map(id, writes))
    assert pending.take_writes() == []
    for write in writes:
        write.set_result(None)
        pending.add_write(write)
    assert pending.take_writes() == writes[-1:]  # What is done is not kept for ever.
