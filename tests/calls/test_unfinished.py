"""What did not finish: the most that is known is its cost, and the rest is reserved, small where documents allow."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from shared.budget import Budget
from shared.calls.call import Attempt
from shared.calls.cooldown import cooldowns
from shared.errors import BudgetExceeded, ContentBlocked, LLMError, ProviderUnavailable, StreamInterrupted
from shared.ledger.reservations import open_reservations, release
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient
from shared.prices.unfinished import MIN_TOKENS
from shared.providers.response import Reading, marked, take_openai_event
from shared.providers.sse import StreamReader
from shared.types import Candidate, Rates
from tests.support.asking import HAIKU, HELLO, MINI
from tests.support.ledger_rows import records
from tests.support.provider_double import Double, Fault, Usage

GPT = "openai/gpt-5.5"
GEMINI = "gemini/gemini-2.5-flash"
GROQ = "groq/openai/gpt-oss-120b"
TOOLS = [
    {
        "type": "function",
        "function": {"name": f"f{number}", "description": "look up a price " * 40, "parameters": {"type": "object"}},
    }
    for number in range(20)
]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets an hour pass, so that no model rests any more."""
    now = [time.monotonic()]
    monkeypatch.setattr(cooldowns, "_clock", lambda: now[0])

    def pass_an_hour() -> None:
        now[0] += 3600

    return pass_an_hour


def leave(client: LLMClient, model: str, **params: Any) -> None:
    """Read one chunk of a stream, and close it."""
    stream = client.chat_completion(HELLO, model=model, stream=True, **params)
    next(iter(stream))
    stream.close()


def row_of(ledger: Ledger) -> dict[str, Any]:
    """The last attempt that was not refused."""
    return [row for row in records(ledger) if row["status"] != "refused"][-1]


def test_an_outage_leaves_the_customer_able_to_work(
    hosted: Double, ledger: Ledger, later: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 HTTP 500s and 20 streams stopped after a second, under $20 a month with gpt-5.5, leave most of the budget."""
    client = LLMClient(budget=Budget(20, "month"), max_retries=0)
    hosted.always("openai", error="server")
    for _ in range(50):
        with pytest.raises(LLMError):
            client.chat_completion(HELLO, model=GPT)
        later()
    assert len(hosted.requests) == 50
    hosted.always("openai", text="one two three four five six seven eight")
    monkeypatch.setattr(Attempt, "elapsed_us", lambda _: 1_000_000)
    for _ in range(20):
        leave(client, GPT)
    assert len(hosted.requests) == 70
    response = client.chat_completion(HELLO, model=GPT)
    assert 10 < response.metadata["remaining_budget_usd"] < 20
    assert len(open_reservations(ledger)) == 70


def test_a_stream_left_early_reserves_what_may_have_been_generated(
    hosted: Double, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the provider stops at a disconnect: at least 2,000 tokens of output, and more with the time that it had."""
    hosted.always("openai", text="one two three four five six")
    output = 4.5e-6 * 1e9  # nano-dollars for a token of gpt-5.4-mini
    for seconds in (0.5, 10):
        monkeypatch.setattr(Attempt, "elapsed_us", lambda _, seconds=seconds: int(seconds * 1e6))
        leave(LLMClient(), MINI, max_tokens=100_000)
        row = row_of(ledger)
        tokens = max(MIN_TOKENS, 1000 * seconds)
        assert row["cost_is_lower_bound"]
        assert row["usage_source"] == "counted"
        assert tokens * output * 0.99 < row["reserved_nano"] < tokens * output * 1.01
        assert row["cost_nano"] + row["reserved_nano"] <= row["bound_nano"]


@pytest.mark.parametrize("model", [GROQ, HAIKU])
def test_elsewhere_a_stream_left_early_reserves_its_bound(model: str, hosted: Double, ledger: Ledger) -> None:
    """A provider that says nothing, or that it bills a client which disconnects, may have written to the end."""
    leave(LLMClient(), model, max_tokens=5000)
    row = row_of(ledger)
    assert row["cost_nano"] + row["reserved_nano"] == row["bound_nano"]


@pytest.mark.parametrize(
    ("model", "free"),
    [(HAIKU, True), (GEMINI, True), ("openrouter/openai/gpt-4o-mini", True), (MINI, False), (GROQ, False)],
)
def test_an_error_answer_reserves_what_its_provider_may_bill(
    model: str, free: bool, hosted: Double, ledger: Ledger
) -> None:
    """Nothing where errors are documented to be free; a few tokens where generation has ended; else the bound."""
    provider = model.partition("/")[0]
    hosted.always(provider, error="server")
    with pytest.raises(ProviderUnavailable):
        LLMClient(max_retries=0).chat_completion(HELLO, model=model, max_tokens=50_000)
    row = row_of(ledger)
    assert (row["cost_nano"], row["cost_source"]) == (None, "unknown")
    expected = 0 if free else row["bound_nano"]
    if model == MINI:
        assert 0 < row["reserved_nano"] < row["bound_nano"] / 10
    else:
        assert row["reserved_nano"] == expected


@pytest.mark.parametrize(("provider", "billed"), [("azure", True), ("openai", False)])
def test_a_blocked_request_may_be_charged(
    provider: str, billed: bool, double: Double, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Azure documents that it bills what its content filter has blocked, so that is unknown and not free."""
    monkeypatch.setenv(f"{provider.upper()}_API_KEY", "sk-test-0123456789")
    monkeypatch.setenv(f"{provider.upper()}_API_BASE", double.api_base(provider))
    monkeypatch.setenv("OPENAI_BASE_URL", double.api_base("openai"))
    monkeypatch.setenv("AZURE_API_VERSION", "2024-10-21")
    double.always(provider, error="content_policy")
    with pytest.raises(ContentBlocked):
        LLMClient(max_retries=0).chat_completion(HELLO, model=f"{provider}/gpt-4o", max_tokens=100)
    row = row_of(ledger)
    assert (row["cost_source"], bool(row["reserved_nano"])) == (("unknown", True) if billed else ("free", False))


@pytest.mark.parametrize("model", [MINI, HAIKU])
def test_an_error_page_is_no_answer_of_the_provider(model: str, hosted: Double, ledger: Ledger) -> None:
    """What a gateway says in its own format tells nothing of what the provider has done: the bound is reserved."""
    hosted.always(model.partition("/")[0], status=500, body="<html>Bad gateway</html>", content_type="text/html")
    with pytest.raises(ProviderUnavailable):
        LLMClient(max_retries=0).chat_completion(HELLO, model=model)
    row = row_of(ledger)
    assert row["reserved_nano"] == row["bound_nano"]


def test_another_server_under_a_providers_name_has_no_documents(
    double: Double, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What OpenAI documents says nothing of a gateway at OPENAI_BASE_URL."""
    from shared.calls import unfinished

    monkeypatch.setattr(unfinished, "is_loopback", lambda _: False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    monkeypatch.setenv("OPENAI_BASE_URL", double.api_base("openai"))
    leave(LLMClient(), MINI, max_tokens=5000)
    row = row_of(ledger)
    assert row["cost_nano"] + row["reserved_nano"] == row["bound_nano"]


def test_our_count_includes_tools_and_what_was_generated(hosted: Double, ledger: Ledger) -> None:
    """A stream left early is counted with its tools, its reasoning and its text, and not by its visible text alone."""
    plain = LLMClient()
    leave(plain, MINI)
    without = row_of(ledger)
    leave(plain, MINI, tools=TOOLS)
    tools = row_of(ledger)
    assert tools["prompt_tokens"] > without["prompt_tokens"] + 20 * 80
    hosted.reply("groq", reasoning="think " * 3000, text="one two three")
    leave(plain, GROQ)
    assert row_of(ledger)["completion_tokens"] > 2500


def test_what_the_provider_has_reported_wins(hosted: Double, ledger: Ledger) -> None:
    """Anthropic says at the start what the prompt was, and how much of it came from the cache."""
    hosted.reply("anthropic", text="one two three four", usage=Usage(20_010, 500, cached=20_000))
    leave(LLMClient(), HAIKU)
    row = row_of(ledger)
    assert (row["prompt_tokens"], row["cached_tokens"]) == (20_010, 20_000)
    assert row["cost_is_lower_bound"]
    assert 0.002 <= row["cost_nano"] / 1e9 < 0.0025


@pytest.mark.parametrize("fault", [Fault.RESET_STREAM, Fault.CLEAN_EOF, Fault.ERROR_EVENT])
@pytest.mark.parametrize("model", [MINI, HAIKU, GEMINI])
def test_a_broken_stream_is_a_lower_bound(model: str, fault: Fault, hosted: Double, ledger: Ledger) -> None:
    """However a stream breaks, what arrived is its least cost, the error says so, and something stays reserved."""
    hosted.reply(model.partition("/")[0], text="one two three four", fault=fault, after=2)
    with pytest.raises(StreamInterrupted, match="Charged at least") as caught:
        list(LLMClient(max_retries=0).chat_completion(HELLO, model=model, stream=True))
    row = row_of(ledger)
    assert row["cost_is_lower_bound"]
    assert row["reserved_nano"] > 0
    assert caught.value.cost == row["cost_nano"] / 1e9 > 0


def test_a_timeout_is_unknown_and_reserves_its_bound(hosted: Double, ledger: Ledger) -> None:
    """An answer that does not come may still be generated and billed: nothing is known, and all is reserved."""
    hosted.reply("openai", fault=Fault.STALL_HEADERS)
    with pytest.raises(LLMError) as caught:
        LLMClient(max_retries=0, timeout=0.3).chat_completion(HELLO, model=MINI, max_tokens=500)
    row = row_of(ledger)
    assert (row["cost_nano"], row["reserved_nano"]) == (None, row["bound_nano"])
    assert math.isnan(caught.value.cost)


def test_what_was_not_sent_or_turned_away_reserves_nothing(
    hosted: Double, ledger: Ledger, later: Callable[[], None]
) -> None:
    """A refused connection, a rejected request and a whole answer leave no reservation."""
    client = LLMClient(max_retries=0)
    client.chat_completion(HELLO, model=MINI)
    hosted.reply("openai", error="rate_limit")
    with pytest.raises(LLMError):
        client.chat_completion(HELLO, model=MINI)
    later()
    hosted.refuse("openai")
    with pytest.raises(LLMError):
        client.chat_completion(HELLO, model=MINI)
    assert [row["reserved_nano"] for row in records(ledger)] == [None, None, None]


def test_a_refusal_names_what_is_reserved_and_a_release_helps(
    hosted: Double, ledger: Ledger, later: Callable[[], None]
) -> None:
    """BudgetExceeded says how much is reserved and for how many requests; after the release the call is made."""
    client = LLMClient(budget=Budget(2, "month"), max_retries=0, timeout=0.3)
    for _ in range(2):
        hosted.reply("openai", fault=Fault.STALL_HEADERS)
        with pytest.raises(LLMError):
            client.chat_completion(HELLO, model=GPT, max_tokens=33_000)
        later()
    said = r"; \$1\.9\d of \$2 is reserved for 2 requests of unknown cost \(ledger release\)"
    with pytest.raises(BudgetExceeded, match=said):
        client.chat_completion(HELLO, model=GPT, max_tokens=33_000)
    for row in records(ledger):
        release(ledger, call_id=row["call_id"])
    assert client.chat_completion(HELLO, model=GPT, max_tokens=33_000).content


EVENTS = "".join(
    f"data: {line}\n\n"
    for line in (
        '{"id":"c","model":"m","choices":[{"index":0,"delta":{"role":"assistant","reasoning":"think hard "}}]}',
        '{"choices":[{"index":0,"delta":{"content":"Hello "}}],"usage":{"prompt_tokens":100,"completion_tokens":7}}',
        '{"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"w\\u00f6rld \u4f60\u597d"}}]}',
        '{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"t","function":{"name":"f","arguments":"{}"}}]}}]}',
        '{"id":"c","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}',
        '{"id":"c","model":"m","choices":[],"usage":{"prompt_tokens":100,"completion_tokens":31}}',
        "[DONE]",
    )
).encode()


def read(data: bytes, cuts: list[int]) -> Reading:
    """What the reader knows after these bytes, fed in pieces that end at the cuts."""
    candidate = Candidate("openai/m", "openai/m", "openai", "m", Rates())
    reading = Reading()
    reader = StreamReader(candidate, reading, marked(take_openai_event), take_openai_event, ndjson=False)
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    for start, end in zip([0, *ends], ends, strict=False):
        list(reader.feed(data[start:end]))
    return reading


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, len(EVENTS)), st.lists(st.integers(0, len(EVENTS)), max_size=40))
def test_chunkings_of_one_stream_come_to_one_figure(length: int, cuts: list[int]) -> None:
    """Wherever the network cuts a stream, whole or broken off at any byte, usage and uncounted text are the same."""
    whole, cut = read(EVENTS[:length], []), read(EVENTS[:length], cuts)
    assert (cut.usage, cut.uncounted(), cut.usage_is_final) == (whole.usage, whole.uncounted(), whole.usage_is_final)
    if length == len(EVENTS):
        assert (cut.usage.completion_tokens, cut.uncounted(), cut.usage_is_final) == (31, [], True)


def test_only_what_came_after_a_report_is_counted() -> None:
    """A running total of the provider's covers what came before it; the rest is counted by us."""
    until = EVENTS.index(b"data: " + b'{"id":"c","model":"m","choices":[{"index":0,"delta":{},"finish')
    reading = read(EVENTS[:until], [])
    assert reading.usage.completion_tokens == 7
    assert [re.sub(r"\s+", " ", text) for text in reading.uncounted()] == ["w\u00f6rld \u4f60\u597d", "", "f {}"]
