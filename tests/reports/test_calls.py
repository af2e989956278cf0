"""Single calls: every call can be found, and its cost or why it is unknown can be read."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from typer.testing import CliRunner

from shared.analytics import call_of, calls_of, get_llm_costs
from shared.cli import app
from shared.errors import AllModelsFailed, InvalidRequest, LLMError
from shared.internal.clock import now_us
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient
from shared.scope import scope
from tests.support import month
from tests.support.asking import HAIKU, MINI
from tests.support.ledger_rows import settled, write
from tests.support.provider_double import Double, Usage


def calls(*arguments: str) -> str:
    """What the command prints."""
    done = CliRunner().invoke(app, ["calls", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_an_error_leads_to_its_call(hosted: Double) -> None:
    """The id that an error carries shows every attempt: the model, why it was made, its status and what it cost."""
    hosted.always("openai", status=503)
    hosted.always("anthropic", status=401)
    with pytest.raises(AllModelsFailed) as caught:
        LLMClient().chat_completion([{"role": "user", "content": "Hi"}], MINI, [HAIKU])
    assert caught.value.call_id is not None
    call = call_of(uuid.UUID(caught.value.call_id))
    assert {(each["model"], each["why"]) for each in call["attempts"]} == {
        (MINI, "first"), (MINI, "retry"), (HAIKU, "fallback"),
    }  # fmt: skip
    assert call["attempts"][0]["error_type"] == "Overloaded"
    assert {each["error_type"] for each in call["attempts"]} >= {"AuthenticationError"}
    shown = calls("show", caught.value.call_id)
    assert f"1. {MINI}, first: failed, Overloaded (HTTP 503)" in shown
    assert calls("list", "--failed").count(caught.value.call_id) == 1


def test_an_error_in_a_stream_leads_to_its_call(hosted: Double) -> None:
    """A stream that breaks after its first chunk raises an error with the call's id too."""
    from tests.support.provider_double import Fault

    hosted.reply("openai", text="one two three", fault=Fault.RESET_STREAM, after=2)
    with pytest.raises(LLMError) as caught:
        list(LLMClient().chat_completion([{"role": "user", "content": "Hi"}], MINI, stream=True))
    assert call_of(uuid.UUID(caught.value.call_id or ""))["status"] == "interrupted"


def test_a_call_is_shown_with_its_price(hosted: Double) -> None:
    """An answered call says its tokens, its cost and the table that priced it, to the nano-dollar."""
    hosted.reply("openai", usage=Usage(1000, 100))
    response = LLMClient().chat_completion([{"role": "user", "content": "Hi"}], MINI)
    call = json.loads(calls("show", response.metadata["call_id"], "--json"))
    assert (call["cost_nano"], call["input_tokens"], call["status"]) == (1_200_000, 1000, "ok")
    [attempt] = call["attempts"]
    assert attempt["cost_why"].startswith("from the reported tokens, by the price table (prices:")
    assert "Cost: $0.001200: from the reported tokens" in calls("show", response.metadata["call_id"])


@pytest.mark.parametrize("kind", ["latest", "most-expensive", "failed", "unknown"])
def test_every_call_is_on_one_page(ledger: Ledger, kind: str) -> None:
    """The pages of a list have every call once, in order, and add up to the report."""
    month.fill(ledger)
    span: dict[str, Any] = {"since": "2026-11", "until": "2026-11"}
    pages = [calls_of(kind, **span, limit=100, page=page) for page in (1, 2, 3)]
    found = [call for page in pages for call in page]
    assert len({call["call_id"] for call in found}) == len(found)
    if kind == "latest":
        assert len(found) == 251
        assert [call["cost_nano"] for call in found if call["status"] == "started"] == [None]
        assert sum(call["cost_nano"] or 0 for call in found) - 1_234_567_891 == get_llm_costs(**span)["total_cost_nano"]
        assert [call["time"] for call in found] == sorted((call["time"] for call in found), reverse=True)
    if kind == "most-expensive":
        costs = [call["cost_nano"] for call in found]
        assert costs == sorted(costs, reverse=True)
    if kind == "failed":
        assert {call["status"] for call in found} == {"failed"}
        assert len(found) == get_llm_costs(**span)["failed_calls"]
    if kind == "unknown":
        unknown = sum(call["unknown_cost_requests"] for call in found)
        assert unknown == get_llm_costs(**span)["unknown_cost_requests"] > 0
        assert all(call["cost_is_lower_bound"] for call in found)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"status": "unsettled", "prompt_tokens": None}, "the process ended before the answer was recorded"),
        ({"prompt_tokens": None, "completion_tokens": None, "error_type": "ProviderTimeout"}, "(ProviderTimeout)"),
        ({"response_model": "gpt-9"}, "there is no known price for gpt-9"),
    ],
)
def test_an_unknown_cost_says_why(ledger: Ledger, changes: dict[str, Any], why: str) -> None:
    """A cost that is unknown is never shown as zero, and says what was missing."""
    row = settled(ts_us=now_us(), cost_nano=None, cost_source="unknown") | changes
    write(ledger, "settle", row)
    shown = " ".join(calls("show", str(row["call_id"])).split())
    assert "Cost: unknown: " in shown
    assert why in shown
    assert "unknown" in calls("list", "--unknown")


def test_a_filter_and_a_scope_see_their_own_calls(ledger: Ledger) -> None:
    """--where narrows the list, and inside a scope the calls of others do not exist."""
    own, other = settled(ts_us=now_us()), settled(ts_us=now_us())
    write(ledger, "settle", own, customer="acme")
    write(ledger, "settle", other, customer="b")
    assert str(other["call_id"]) not in calls("list", "--where", "customer=acme")
    with scope(customer="acme"):
        assert [call["call_id"] for call in calls_of()] == [str(own["call_id"])]
        assert call_of(own["call_id"])["labels"] == {"customer": "acme"}
        with pytest.raises(InvalidRequest, match="This scope has no call"):
            call_of(other["call_id"])
    with pytest.raises(InvalidRequest, match="no list of calls"):
        calls_of("cheapest")
    with pytest.raises(InvalidRequest, match="has no call"):
        call_of(uuid.uuid4())
