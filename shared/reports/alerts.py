"""Alerts: decides which are due after attempts were settled, and delivers them to the operator's webhook."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import statistics
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

from shared.budget import FOREVER_US, Budget, Limit
from shared.config import Settings, load_settings, tls_context, webhook_host
from shared.internal.clock import now_us
from shared.internal.fair_pool import FairPool
from shared.internal.forks import gate
from shared.internal.money import NANO, to_usd
from shared.ledger import (
    Alert,
    BudgetStatus,
    Ledger,
    Seen,
    Window,
    add_alerts,
    claim,
    due,
    first_attempt_us,
    grouped_sums,
    has_spike,
    mark_delivered,
    mark_failed,
    spike,
    undelivered,
)
from shared.reports.formats import printable
from shared.reports.tables import decimals_for, money

logger = logging.getLogger("agentswarm_tools")

# Seconds between two looks of a process at a ledger's budgets, and at its days.
_PAUSE_S, _SPIKE_PAUSE_S = 5.0, 60.0
# A request may wait so long for each step, and take so long in all.
_STEP_S, _POST_S = 5.0, 10.0
# How long no other process delivers an alert; longer than that takes.
_LEASE_S = 60.0
# After a failure the pause before the next try doubles, up to so much; after so many tries only `budget check` tries.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _MOST_TRIES = 10.0, 900.0, 10
# How long the end of the program waits for alerts.
_EXIT_S = 3.0
_MOST_SEEN = 500
# A day on which less was spent is no spike, whatever other days cost.
SPIKE_FLOOR_NANO = NANO
_USUAL_DAYS = 7
_US = 1_000_000

_posts = FairPool("agentswarm-alerts-post", threads=2, per_owner=2)


@dataclass(frozen=True, slots=True)
class Delivery:
    """An alert that was sent, in words with all names, and why it did not arrive; None if it did."""

    alert: Alert
    text: str
    problem: str | None


def watch(ledger: Ledger) -> None:
    """Let this process look after each commit whether an alert is due; once for each ledger."""
    if ledger.watcher is None:
        ledger.watcher = Watcher(ledger)


def check_alerts(ledger: Ledger) -> list[Delivery]:
    """
    Look at every budget and at today, and deliver what is due or waits, in the calling thread.

    Returns:
        What was sent, or was to be; it ends with the first that did not arrive. Empty where no webhook is set.

    Raises:
        StoreError: The ledger cannot be read or written.
    """
    settings = load_settings()
    if settings.alert_url is None:
        return []
    _store(ledger, settings, with_spike=True, of_all=True)
    return _deliver(ledger, settings, settings.alert_url, None)


class Watcher:
    """
    Looks for alerts that are due, in a thread of its own, at most every few seconds and only after something settled.

    The thread ends when there is nothing left to do, so an idle process has none. A forked process has a ledger of its
    own, and with that a watcher of its own.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = weakref.ref(ledger)
        self._is_warned = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._has_news = False
        self._seen: dict[Seen, None] = {}
        self._refusing: dict[tuple[Any, ...], BudgetStatus] = {}
        self._looked = self._looked_at_days = -math.inf
        # When to look next; infinite: when something settles.
        self._at = math.inf
        self._is_busy = False

    def settled(self, entries: Sequence[Any], refusing: Sequence[BudgetStatus]) -> None:
        """Attempts were settled, or refused: look soon."""
        found = {Seen.of(each): None for each in entries}
        with self._changed:
            self._has_news = True
            if len(self._seen) < _MOST_SEEN:
                self._seen |= found
            if len(self._refusing) < _MOST_SEEN:
                self._refusing |= {(each.limit, each.whose, each.since_us): each for each in refusing}
            self._at = min(self._at, self._looked + _PAUSE_S)
            self._changed.notify_all()
            if self._thread is None:
                with suppress(RuntimeError):  # Python is shutting down; another process, or the next, will look
                    thread = threading.Thread(target=self._work, name="agentswarm-alerts", daemon=True)
                    thread.start()
                    self._thread = thread

    def finish(self) -> None:
        """Look a last time if something has settled since, and wait for that a few seconds."""
        with self._changed:
            if self._has_news:
                self._at = -math.inf
                self._changed.notify_all()
            if self._thread is not None:
                self._changed.wait_for(lambda: not self._has_news and not self._is_busy, _EXIT_S)

    def _work(self) -> None:
        while self._wait():
            again_s = math.inf
            try:
                again_s = self._look()
            except Exception as error:  # noqa: BLE001 - no alert may end the watching, or the program
                logger.debug("Alerts could not be looked for (%s).", type(error).__name__)
            with self._changed:
                self._is_busy = False
                self._at = min(self._at, time.monotonic() + again_s)
                self._changed.notify_all()

    def _wait(self) -> bool:
        """Wait until it is time to look; False ends the thread."""
        with self._changed:
            while (now := time.monotonic()) < self._at:
                idle_until = self._looked + 2 * _PAUSE_S
                if self._at == math.inf and now >= idle_until:
                    self._thread = None
                    return False
                self._changed.wait(min(self._at, idle_until if self._at == math.inf else self._at) - now)
            self._is_busy, self._at, self._looked = True, math.inf, now
            return True

    def _look(self) -> float:
        """Look for what is due and deliver it; returns the seconds until something must be tried again."""
        with self._changed:
            seen, refusing = tuple(self._seen), tuple(self._refusing.values())
            self._has_news, self._seen, self._refusing = False, {}, {}
        ledger = self._ledger()
        with gate.working():  # settings are read with a lock of pydantic's
            settings = load_settings()
        if ledger is None or settings.alert_url is None:
            return math.inf
        with_spike = self._looked - self._looked_at_days >= _SPIKE_PAUSE_S
        if with_spike:
            self._looked_at_days = self._looked
        _store(ledger, settings, with_spike=with_spike, seen=seen, refusing=refusing)
        if _seconds_until_due(ledger) <= 0:
            for each in _deliver(ledger, settings, settings.alert_url, _MOST_TRIES):
                self._warn(settings.alert_url, each.problem)
        return max(_seconds_until_due(ledger), _PAUSE_S)

    def _warn(self, url: str, problem: str | None) -> None:
        if problem is not None and not self._is_warned:
            self._is_warned = True
            logger.warning(
                "An alert did not reach %s (%s); it is tried again later, and `doctor` shows it.",
                webhook_host(url),
                problem,
            )


def _store(
    ledger: Ledger,
    settings: Settings,
    *,
    with_spike: bool,
    seen: Sequence[Seen] = (),
    refusing: Sequence[BudgetStatus] = (),
    of_all: bool = False,
) -> None:
    """Store the alerts that are due."""
    now = now_us()
    declared = [] if settings.budget is None else [Limit(settings.budget)]
    if found := due(ledger, declared, seen, now, refusing=refusing, of_all=of_all):
        add_alerts(ledger, found, now)
    if with_spike and (found := _spike(ledger, ZoneInfo(settings.timezone or "UTC"), now)):
        add_alerts(ledger, found, now)


def _spike(ledger: Ledger, zone: ZoneInfo, now: int) -> list[Alert]:
    """
    Whether more than twice as much is spent today as on a usual day: the median of the 7 days before.

    There must have been 7 days. Days without a request count as 0, and adjustments do not count.
    """
    today = datetime.fromtimestamp(now / _US, zone).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    starts = [today - timedelta(days=days) for days in range(_USUAL_DAYS, -2, -1)]
    first = first_attempt_us(ledger)
    if first is None or first >= _us(starts[1]) or has_spike(ledger, _us(today)):
        return []
    sums = grouped_sums(ledger, Window(_us(starts[0]), now + 1, zone), ("day",))
    spent = {key[0]: each["cost_nano"] - each["adjustment_nano"] for key, each in sums.items()}
    *usual, last = (spent.get(f"{start:%Y-%m-%d}", 0) for start in starts[:-1])
    median = round(statistics.median(usual))
    if last < SPIKE_FLOOR_NANO or last <= 2 * median:
        return []
    return [spike(_us(today), _us(starts[-1]), str(zone), last, median, now)]


def _seconds_until_due(ledger: Ledger) -> float:
    """When the next alert may be delivered; infinite if none waits."""
    times = [max(each.lease_us, each.again_us) for each in undelivered(ledger, most_tries=_MOST_TRIES)]
    return (min(times) - now_us()) / _US if times else math.inf


def _us(moment: datetime) -> int:
    return int(moment.timestamp()) * _US


def _deliver(ledger: Ledger, settings: Settings, url: str, most_tries: int | None) -> list[Delivery]:
    """Deliver what waits, one after the other, until one does not arrive."""
    sent: list[Delivery] = []
    names = _Names(url, is_asked=settings.alert_names)
    while alert := claim(ledger, now_us(), round(_LEASE_S * _US), most_tries=most_tries):
        content = json.dumps(_content(alert, names)).encode()
        problem = _posted(url, content, str(alert.alert_id))
        sent.append(Delivery(alert, _text(alert, _Names(url, is_asked=True)), problem))
        if problem is not None:
            pause_s = min(_FIRST_PAUSE_S * 2 ** (alert.tries - 1), _LONGEST_PAUSE_S)
            mark_failed(ledger, alert, problem, now_us() + round(pause_s * _US))
            break
        mark_delivered(ledger, alert, now_us())
    return sent


# The message


@dataclass(frozen=True, slots=True)
class _Names:
    """
    The names of customers, agents and tools, or a code for each.

    The code is the same in every alert, and nobody can find the name by trying out names without the webhook's URL.
    """

    url: str
    is_asked: bool

    def of(self, alert: Alert) -> dict[str, str]:
        return {name: self._shown(name, value, alert.whose) for name, value in alert.group.items()}

    def _shown(self, name: str, value: str | None, whose: str) -> str:
        if value == "":
            return "(none)"
        if self.is_asked and value is not None:
            return printable(value)
        text = json.dumps([name, whose if value is None else value])
        return f"#{hmac.new(self.url.encode(), text.encode(), hashlib.sha256).hexdigest()[:12]}"


def _content(alert: Alert, names: _Names) -> dict[str, Any]:
    """What is sent: `text` for a chat, and the same for programs, with amounts in US$ as decimal strings."""
    content = {
        "text": _text(alert, names).translate({ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"}),
        "id": str(alert.alert_id),
        "kind": alert.kind,
        "threshold": alert.threshold,
        "window": alert.window,
        "since": _moment(alert.since_us, alert.tz),
        "until": _moment(alert.until_us, alert.tz),
        "spent": _decimal(alert.spent_nano),
        "currency": "USD",
        "at": _moment(alert.at_us, None),
    }
    if alert.kind == "spike":
        return content | {"median": _decimal(alert.median_nano or 0)}
    budget = {"budget": _budget(alert, names), "whose": names.of(alert)}
    return content | budget | {"reserved": _decimal(alert.reserved_nano), "limit": _decimal(alert.limit_nano)}


def _text(alert: Alert, names: _Names) -> str:
    shown = partial(money, decimals=decimals_for([alert.spent_nano, alert.median_nano or alert.limit_nano]))
    begins, zone = _moment(alert.since_us, alert.tz) or "", alert.tz or "UTC"
    if alert.kind == "spike":
        usual = f"a usual day costs {shown(alert.median_nano)} (the median of the {_USUAL_DAYS} days before)"
        return f"Spending has more than doubled: {shown(alert.spent_nano)} on {begins[:10]} ({zone}); {usual}."
    reserved = f" + {shown(alert.reserved_nano)} reserved" if alert.reserved_nano else ""
    since = f" since {begins[:16].replace('T', ' ')} ({zone})" if alert.until_us < FOREVER_US else ""
    used = f"{alert.threshold} % of a budget is used"
    if (alert.spent_nano + alert.reserved_nano) * 100 < alert.limit_nano * alert.threshold:
        used = "A budget has no room for a call that it refused"
    return f"{used}: {shown(alert.spent_nano)} spent{reserved} of {_budget(alert, names)}{since}."


def _budget(alert: Alert, names: _Names) -> str:
    group = ", ".join(f"{name}={value}" for name, value in names.of(alert).items())
    terms = Budget(to_usd(alert.limit_nano), alert.window)  # type: ignore[arg-type]
    return f"{terms}{f' for {group}' if group else ''}"


def _decimal(nano: int) -> str:
    return f"{(Decimal(nano) / NANO).normalize():f}"


def _moment(ts_us: int, tz: str | None) -> str | None:
    """A time in a time zone, to the second; None for the end of a window without one."""
    if ts_us >= FOREVER_US:
        return None
    return datetime.fromtimestamp(ts_us // _US, UTC).astimezone(ZoneInfo(tz or "UTC")).isoformat()


# The way to the webhook


def _posted(url: str, content: bytes, alert_id: str) -> str | None:
    """Send a message, within a time limit; returns why it did not arrive, or None."""
    send = partial(_post, url, content, alert_id)
    try:
        sending = _posts.submit(None, send)
    except RuntimeError:  # Python is shutting down: no thread can be started any more
        return send()
    try:
        return sending.result(_POST_S)
    except TimeoutError:
        return f"no answer within {_POST_S:.0f} s"


def _post(url: str, content: bytes, alert_id: str) -> str | None:
    """
    Send a message; returns why it did not arrive, or None.

    By a transport and not by a client of httpx, which would log the URL and might follow a redirect. Of the answer only
    the status is read.
    """
    try:
        with gate.working():  # a module that is being imported while the process forks stays locked in the child
            import httpx
        from shared.providers import proxy_for

        address = httpx.URL(url)
        headers = {"Content-Type": "application/json", "Idempotency-Key": alert_id, "User-Agent": "agentswarm-tools"}
        limits = {"timeout": httpx.Timeout(_STEP_S).as_dict()}
        request = httpx.Request("POST", address, headers=headers, content=content, extensions=limits)
        with httpx.HTTPTransport(verify=tls_context(), trust_env=False, proxy=proxy_for(address)) as transport:
            response = transport.handle_request(request)
            response.close()
    except Exception as error:  # noqa: BLE001 - whatever it is, the alert has not arrived; its text may name the URL
        return f"no answer: {type(error).__name__}"
    if response.is_redirect:
        return f"HTTP {response.status_code}: redirects are not followed"
    return None if response.is_success else f"HTTP {response.status_code}"
