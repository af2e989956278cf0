"""Alerts: sent to the operator's webhook after a commit, never in a call's way, and with no name unless asked."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import time_machine
from typer.testing import CliRunner

from shared.analytics import AnalyticsEvent, EventType, record_event, set_budget
from shared.budget import Budget
from shared.cli import app
from shared.config import load_settings
from shared.errors import BudgetExceeded, ConfigurationError
from shared.internal.clock import now_us
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient
from shared.models.keys import misspelt_names
from shared.redaction import redact
from shared.reports import alerts
from shared.scope import scope
from tests.support.asking import HELLO, MINI
from tests.support.ledger_rows import CENT, settled, write
from tests.support.processes import run
from tests.support.provider_double import Double, Usage
from tests.support.webhook import SECRET, Webhook, listening

DAY_US = 86_400 * 10**6
NOON = "2026-11-24T12:00:00Z"
NOON_US = 1_795_521_600_000_000
PRICE_USD = 0.0004575


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    """A webhook that is set in the environment; a process looks as often as it can."""
    monkeypatch.setattr(alerts, "_PAUSE_S", 0.01)
    with listening() as found:
        monkeypatch.setenv("AGENTSWARM_ALERT_URL", found.url)
        yield found


def call(budget: float | None = None, **labels: Any) -> None:
    """One call, which costs PRICE_USD."""
    with scope(**labels, budget=None if budget is None else Budget(budget)):
        assert LLMClient().chat_completion(HELLO, model=MINI, max_tokens=100).content == "Yes."


@pytest.fixture
def asked(hosted: Double) -> Double:
    hosted.always("openai", text="Yes.", usage=Usage(10, 100))
    return hosted


def cli(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, done.output
    return done.output


def watcher_of(ledger: Ledger) -> alerts.Watcher:
    assert isinstance(ledger.watcher, alerts.Watcher)
    return ledger.watcher


def test_a_call_that_uses_up_a_budget_alerts(asked: Double, ledger: Ledger, hook: Webhook) -> None:
    """Each threshold that calls reach is sent once, with figures that are exact, and an id to tell repeats by."""
    set_budget("each", Budget(0.00166, scope="customer"))  # a call could cost 0.00074
    set_budget("all", Budget(100))
    for _ in range(3):
        call(customer="acme")
    first, second = hook.take(), hook.take()
    assert [each.body["threshold"] for each in (first, second)] == [50, 80]
    assert first.headers["idempotency-key"] == first.body["id"] != second.body["id"]
    assert first.headers["content-type"] == "application/json"
    told = second.body
    assert (told["spent"], told["reserved"], told["limit"]) == ("0.0013725", "0", "0.00166")
    assert (told["currency"], told["window"], told["kind"]) == ("USD", "month", "budget")
    assert told["text"].startswith("80 % of a budget is used: $0.001373 spent of $0.00166 a month for customer=#")
    with pytest.raises(BudgetExceeded):
        call(customer="acme")
    last = hook.take().body
    assert (last["threshold"], last["spent"]) == (100, "0.0013725")
    assert last["text"].startswith("A budget has no room for a call that it refused: $0.001373 spent of $0.00166 a mon")
    with pytest.raises(BudgetExceeded):
        call(customer="acme")
    cli("budget", "check", code=1)
    assert hook.taken() == []


def test_a_call_that_is_too_large_uses_up_no_budget(asked: Double, ledger: Ledger, hook: Webhook) -> None:
    """A budget that refuses one large call while most of it is left says nothing."""
    set_budget("each", Budget(0.0007))
    with pytest.raises(BudgetExceeded):
        call()
    watcher_of(ledger).finish()
    assert hook.taken() == []


@pytest.mark.parametrize("asks", [False, True])
def test_names_are_sent_only_when_asked(
    asks: bool, asked: Double, ledger: Ledger, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without AGENTSWARM_ALERT_NAMES no byte names a customer; a code tells customers apart, and is always the same."""
    if asks:
        monkeypatch.setenv("AGENTSWARM_ALERT_NAMES", "true")
    for customer in ("acme", "bolt"):
        set_budget(f"budget of {customer}", Budget(PRICE_USD * 1.9, scope="customer", value=customer))
        call(customer=customer)
    names = [hook.take(), hook.take()]
    write(ledger, "settle", settled(ts_us=now_us(), cost_nano=800_000), customer="acme")
    again = [hook.take(), hook.take()]
    assert any(b"acme" in each.content for each in names) is asks
    codes = [each.body["whose"]["customer"] for each in (*names, *again)]
    assert len(set(codes)) == 2
    assert codes[2] == codes[3] in codes[:2]
    assert (set(codes) == {"acme", "bolt"}) is asks


def test_a_scopes_own_budget_alerts(asked: Double, ledger: Ledger, hook: Webhook) -> None:
    """A budget that only the code knows is watched too, for the labels of its scope."""
    call(PRICE_USD * 1.9, customer="acme")
    call(100.0, customer="bolt")
    assert hook.take().body["whose"].keys() == {"customer"}
    watcher_of(ledger).finish()
    assert hook.taken() == []


def test_costs_that_a_program_reports_alert(ledger: Ledger, hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that only records events is watched like one that calls."""
    monkeypatch.setenv("AGENTSWARM_BUDGET_USD", "1")
    record_event(
        AnalyticsEvent(event_type=EventType.LLM_COST, tool_name="mine", metadata={"model": "x/y", "cost": 0.6})
    )
    assert hook.take().body["budget"] == "$1.00 a month"


def test_nothing_a_customer_is_called_is_a_command_for_the_chat(
    asked: Double, ledger: Ledger, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label cannot call everyone in a channel, or be a link, or break the line."""
    monkeypatch.setenv("AGENTSWARM_ALERT_NAMES", "true")
    call(PRICE_USD * 1.9, customer="<!channel>\n<https://example.com|pay>")
    text = hook.take().body["text"]
    assert "&lt;!channel&gt;" in text
    assert not set("<>\n") & set(text)


def test_without_a_url_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no webhook is set, no ledger is watched, no thread is started, and doctor says nothing of it."""
    monkeypatch.setenv("AGENTSWARM_BUDGET_USD", "1")
    program = """
import threading
spend(90)
print(open_ledger(load_settings()).watcher, [each.name for each in threading.enumerate() if "alert" in each.name])
"""
    done = run(SETTLES + program)
    assert (done.stdout, done.stderr) == ("None []\n", "")
    assert "alerts" not in [each["subject"] for each in json.loads(cli("doctor", "--json"))]


@pytest.mark.parametrize("line", ["AGENTSWARM_ALERT_URL={}", "PORT_OF={}\nAGENTSWARM_ALERT_URL=${{PORT_OF}}"])
@pytest.mark.parametrize("is_loaded", [False, True])
def test_a_dotenv_names_no_webhook(
    line: str, is_loaded: bool, asked: Double, ledger: Ledger, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The .env of a folder cannot send figures anywhere, also when agency-swarm has loaded it over the environment."""
    text = f"{line.format(hook.url)}\nAGENTSWARM_ALERT_NAMES=true\n"
    Path(".env").write_text(text, encoding="utf-8")
    monkeypatch.delenv("AGENTSWARM_ALERT_URL")
    if is_loaded:
        from dotenv import load_dotenv

        for name in ("AGENTSWARM_ALERT_URL", "AGENTSWARM_ALERT_NAMES", "PORT_OF"):
            monkeypatch.setenv(name, "")
        load_dotenv(Path(".env"), override=True)
        assert os.environ["AGENTSWARM_ALERT_URL"] == hook.url
    settings = load_settings()
    assert (settings.alert_url, settings.alert_names) == (None, False)
    assert misspelt_names()["AGENTSWARM_ALERT_URL"].startswith("only the process environment may set it")
    call(PRICE_USD * 1.9, customer="acme")
    cli("budget", "check")
    assert (ledger.watcher, hook.taken()) == (None, [])


def test_the_environment_wins_over_a_dotenv(hook: Webhook) -> None:
    """The operator's own URL holds, whatever another one a .env names."""
    Path(".env").write_text("AGENTSWARM_ALERT_URL=https://elsewhere.example/x\n", encoding="utf-8")
    assert load_settings().alert_url == hook.url


@pytest.mark.parametrize("url", ["ftp://host/x", "https://", "https://user:pass@host/x", "https://host/a b", "hook/x"])
def test_a_bad_url_is_refused_and_not_repeated(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no webhook is refused when settings are read; the message does not have it."""
    monkeypatch.setenv("AGENTSWARM_ALERT_URL", url)
    with pytest.raises(ConfigurationError, match=r"AGENTSWARM_ALERT_URL: .*is not an http or https URL") as raised:
        load_settings()
    assert url not in str(raised.value)


def test_a_webhook_that_hangs_delays_no_call(
    asked: Double, ledger: Ledger, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a webhook does not answer, calls come back; the next alerts follow when it does."""
    monkeypatch.setattr(alerts, "_POST_S", 60.0)
    monkeypatch.setattr(alerts, "_STEP_S", 60.0)
    hook.is_open.clear()
    call(PRICE_USD * 1.9, customer="acme")
    assert hook.take().body["threshold"] == 50
    call(PRICE_USD * 1.9, customer="bolt")  # comes back, though the first alert is on its way
    assert hook.taken() == []
    hook.is_open.set()
    assert hook.take().body["threshold"] == 50


def test_a_webhook_that_never_answers_is_given_up(
    asked: Double, ledger: Ledger, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An alert without an answer in time has failed, and the same is sent again."""
    monkeypatch.setattr(alerts, "_POST_S", 0.1)
    monkeypatch.setattr(alerts, "_FIRST_PAUSE_S", 0.0)
    hook.is_open.clear()
    call(PRICE_USD * 1.9, customer="acme")
    assert hook.take().content == hook.take().content


def test_a_failing_webhook_is_tried_so_many_times_and_said_once(
    asked: Double,
    ledger: Ledger,
    hook: Webhook,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Tries are counted and end; one warning names the host only; doctor shows the failure; a person can try again."""
    monkeypatch.setattr(alerts, "_FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(alerts, "_MOST_TRIES", 3)
    caplog.set_level(logging.DEBUG)
    hook.status = 500
    call(PRICE_USD * 1.9, customer="acme")
    sent = [hook.take() for _ in range(3)]
    if (thread := watcher_of(ledger)._thread) is not None:
        thread.join(30)  # it ends when nothing is left to try
    assert hook.taken() == []
    assert len({each.content for each in sent}) == 1
    warnings = [each.getMessage() for each in caplog.records if "An alert did not reach" in each.getMessage()]
    assert warnings == ["An alert did not reach 127.0.0.1 (HTTP 500); it is tried again later, and `doctor` shows it."]
    shown = cli("doctor", code=1)
    assert "FAIL  alerts: 1 alert did not reach 127.0.0.1 (HTTP 500); budget check tries again" in " ".join(
        shown.split()
    ).replace("FAIL alerts", "FAIL  alerts")
    everything = shown + cli("doctor", "--settings") + cli("doctor", "--settings", "--json") + caplog.text
    assert SECRET.rpartition("/")[2] not in everything
    hook.status = 204
    assert "Alert sent: 50 % of a budget is used" in cli("budget", "check")
    assert hook.take().content == sent[0].content
    assert "ok    alerts: are sent to 127.0.0.1" in cli("doctor")


def test_no_redirect_is_followed(ledger: Ledger, hook: Webhook) -> None:
    """A redirect is a failure: figures go to the address that the operator has set, and nowhere else."""
    write(ledger, "settle", settled(ts_us=now_us(), cost_nano=60 * CENT))
    cli("budget", "set", "1")
    with listening() as elsewhere:
        for status in (302, 307, 308):
            hook.status, hook.headers = status, {"Location": elsewhere.url}
            assert f"Alert not delivered (HTTP {status}: redirects are not followed): 50 %" in cli("budget", "check")
            assert hook.take()
        assert elsewhere.taken() == []


def test_the_url_is_a_secret() -> None:
    """The URL and its path are removed from texts, as keys are; settings do not show it."""
    url = f"https://hooks.example.com/{SECRET}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTSWARM_ALERT_URL", url)
        assert SECRET not in redact(f"POST {url} failed: /{SECRET} was not found")
        assert SECRET not in repr(load_settings())


def test_budget_check_sends_and_says_so(ledger: Ledger, hook: Webhook) -> None:
    """`budget check` looks at every group itself, whether or not a call was made since the budget was set."""
    write(ledger, "settle", settled(ts_us=NOON_US, cost_nano=90 * CENT), customer="acme")
    with time_machine.travel(NOON, tick=False):
        set_budget("each", Budget(1, "day", scope="customer"))
        hook.status = 404
        assert "Alert not delivered (HTTP 404): 50 % of a budget" in cli("budget", "check", "--limit", "100")
        hook.taken()
        hook.status = 200
        found = json.loads(cli("budget", "check", "--json", code=1))
        assert [each["delivered"] for each in found["alerts"]] == [True, True]
        assert [each["id"] for each in found["alerts"]] == [hook.take().body["id"] for _ in range(2)]
        assert found["alerts"][1]["text"] == (
            "80 % of a budget is used: $0.9000 spent of $1.00 a day for customer=acme since 2026-11-24 00:00 (UTC)."
        )
        assert json.loads(cli("budget", "check", "--json", code=1))["alerts"] == []


def days(ledger: Ledger, *usd: float, until_us: int = NOON_US) -> None:
    """What was spent on each of the last days, today last."""
    for back, amount in enumerate(reversed(usd)):
        if amount:
            write(ledger, "settle", settled(ts_us=until_us - back * DAY_US, cost_nano=round(amount * 10**9)))


@pytest.mark.parametrize(
    ("spent", "alerts_at"),
    [
        ((3, 4, 5, 1, 9, 2, 6, 8.01), "8.01"),  # the median is 4
        ((3, 4, 5, 1, 9, 2, 6, 8.0), None),
        ((0, 9, 9, 9, 9, 9, 9, 90), None),  # there were no 7 days yet
        ((0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.99), None),  # below the floor
        ((0.1, 0, 0, 0, 0, 0, 0, 1.0), "1"),
    ],
)
def test_a_day_of_twice_the_usual_spending_alerts(
    spent: tuple[float, ...], alerts_at: str | None, ledger: Ledger, hook: Webhook
) -> None:
    """More than twice the median of the 7 days before alerts, once a day; not for cents, and not in the first week."""
    days(ledger, *spent)
    write(ledger, "settle", settled(ts_us=NOON_US, cost_nano=10**12, adjustment_kind="manual", operation="adjustment"))
    with time_machine.travel(NOON, tick=False):
        for _ in range(2):
            cli("budget", "check")
    told = [each.body for each in hook.taken()]
    assert [each["spent"] for each in told] == ([] if alerts_at is None else [alerts_at])
    for each in told:
        assert (each["kind"], each["threshold"], each["since"]) == ("spike", 200, "2026-11-24T00:00:00+00:00")


def test_the_days_are_those_of_the_time_zone(ledger: Ledger, hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day begins at local midnight, so what was spent before it is yesterday's."""
    monkeypatch.setenv("AGENTSWARM_TIMEZONE", "Asia/Tokyo")
    days(ledger, *[1.0] * 8)
    write(ledger, "settle", settled(ts_us=NOON_US + 4 * 3600 * 10**6, cost_nano=5 * 10**9))  # 01:00 on the 25th
    with time_machine.travel("2026-11-24T16:30:00Z", tick=False):
        cli("budget", "check")
    assert hook.take().body["text"] == (
        "Spending has more than doubled: $5.0000 on 2026-11-25 (Asia/Tokyo); "
        "a usual day costs $1.0000 (the median of the 7 days before)."
    )


SETTLES = """
import os, sys
from shared.analytics import open_ledger
from shared.config import load_settings
from tests.support.ledger_rows import fresh, settled, write

def spend(cents):
    write(open_ledger(load_settings()), "settle", settled(fresh(), cost_nano=cents * 10_000_000))
"""


def test_the_end_of_a_program_waits_for_its_alert(hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that ends right after it has spent still alerts; a webhook that hangs does not keep it."""
    monkeypatch.setenv("AGENTSWARM_BUDGET_USD", "1")
    done = run(f"{SETTLES}\nspend(60)")
    assert (done.returncode, done.stderr) == (0, "")
    assert hook.take().body["threshold"] == 50
    hook.is_open.clear()
    assert run(f"{SETTLES}\nspend(30)").returncode == 0
    assert hook.take().body["threshold"] == 80


def test_a_forked_process_alerts(hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork has no thread of its parent's; it looks for itself."""
    monkeypatch.setenv("AGENTSWARM_BUDGET_USD", "1")
    program = f"{SETTLES}\nspend(60)\nchild = os.fork()\nspend(15)\nif child:\n    os.waitpid(child, 0)\n"
    done = run(program)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(hook.take().body["threshold"] for _ in range(2)) == [50, 80]
    assert hook.taken() == []
