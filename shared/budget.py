"""Budgets: how they are declared, and the time window that each covers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal, get_args
from zoneinfo import ZoneInfo

from shared.errors import ConfigurationError

Window = Literal["run", "hour", "day", "month", "total"]
OnExceed = Literal["refuse", "downgrade"]
OnUnknownPrice = Literal["refuse", "allow", "hold_max"]

FOREVER_US = 2**62
MAX_LIMIT_USD = 1_000_000_000
_NANO = 1_000_000_000
_HOUR_US = 3_600_000_000
_COLUMNS = ("agent", "tool", "run")
_MAX_VALUE = 200
_LABEL = re.compile(r"[A-Za-z_]\w{0,59}")


@dataclass(frozen=True, slots=True)
class Budget:
    """
    A spending limit that no call can exceed: the maximum cost of a call is held before it is sent.

    Args:
        limit_usd: US$, 0 or more.

        window: What the limit applies to: one run (of an agent, else of this process), an hour, a day, a calendar
            month, or all time.

        scope: How spending is grouped: "global" counts all of it together; "agent", "tool" or "run" gives each of
            them a limit of its own, and the name of a label gives one to each of its values.

        tz: IANA time zone of days and months. None: UTC. Hours are always UTC hours.

        warn_at: Fraction of the limit, above 0 and up to 1, at which a warning is logged.

        on_exceed: "refuse" raises BudgetExceeded; "downgrade" tries the caller's next model that fits.

        on_unknown_price: "refuse" requests whose price or upper bound is unknown, "allow" them without counting their
            cost, or "hold_max": hold the longest request to the provider's most expensive models.

        value: A value of `scope`, such as "acme" of "customer": the limit is for this one only, and replaces one for
            each that was declared in the same place with the same window; 0 US$ suspends it. None: for each.

    Raises:
        ConfigurationError: An argument is invalid.
    """

    limit_usd: float
    window: Window = "month"
    scope: str = "global"
    tz: str | None = None
    warn_at: float = 0.8
    on_exceed: OnExceed = "refuse"
    on_unknown_price: OnUnknownPrice = "refuse"
    value: str | None = None

    def __post_init__(self) -> None:
        for name, known in (("window", Window), ("on_exceed", OnExceed), ("on_unknown_price", OnUnknownPrice)):
            if getattr(self, name) not in get_args(known):
                raise ConfigurationError(f"A budget's {name} must be one of {', '.join(get_args(known))}")
        if not _is_number(self.limit_usd) or not 0 <= self.limit_usd <= MAX_LIMIT_USD:
            raise ConfigurationError("A budget's limit_usd must be US$, 0 or more")
        if not _is_number(self.warn_at) or not 0 < self.warn_at <= 1:
            raise ConfigurationError("A budget's warn_at must be above 0 and at most 1")
        if not isinstance(self.scope, str) or not _LABEL.fullmatch(self.scope):
            raise ConfigurationError("A budget's scope must be global, agent, tool, run or the name of a label")
        if self.value is not None and (self.scope == "global" or not self.value or len(self.value) > _MAX_VALUE):
            raise ConfigurationError("A budget's value must be one of its scope, which must not be global")
        try:
            ZoneInfo(self.tz or "UTC")
        except (KeyError, ValueError, OSError, TypeError):
            raise ConfigurationError("A budget's tz must be an IANA time zone such as Europe/Berlin") from None

    @property
    def limit_nano(self) -> int:
        """The limit in nano-dollars, rounded down."""
        return int(Decimal(repr(self.limit_usd)) * _NANO)

    @property
    def dimensions(self) -> tuple[str, ...]:
        """What spending is grouped by; empty when all of it counts together."""
        names = {self.scope if self.scope in _COLUMNS else f"label:{self.scope}"} if self.scope != "global" else set()
        return tuple(sorted(names | ({"run"} if self.window == "run" else set())))

    def span(self, ts_us: int) -> tuple[int, int]:
        """Start and end (exclusive) of the window that contains `ts_us`, in microseconds since 1970."""
        if self.window in ("run", "total"):
            return 0, FOREVER_US
        if self.window == "hour":
            since = ts_us - ts_us % _HOUR_US
            return since, since + _HOUR_US
        moment = datetime.fromtimestamp(ts_us // 1_000_000, UTC).astimezone(ZoneInfo(self.tz or "UTC"))
        start = moment.replace(hour=0, minute=0, second=0, fold=0)
        if self.window == "day":
            return _us(start), _us(start + timedelta(days=1))
        start = start.replace(day=1)
        return _us(start), _us((start + timedelta(days=32)).replace(day=1))

    def __str__(self) -> str:
        per = {"run": "a run", "hour": "an hour", "day": "a day", "month": "a month", "total": "in all"}[self.window]
        group = "" if self.scope == "global" else f" for each {self.scope}"
        if self.value is not None:
            group = f" for {self.scope}={self.value}"
        return f"{_amount(self.limit_usd)} {per}{group}"


@dataclass(frozen=True, slots=True)
class Limit:
    """
    A budget, and the labels of the scope that declared it.

    `labels` are label names; each combination of their values has a limit of its own.
    """

    budget: Budget
    labels: tuple[str, ...] = ()

    @property
    def dimensions(self) -> tuple[str, ...]:
        """What spending is grouped by under this limit."""
        return tuple(sorted({*self.budget.dimensions, *(f"label:{name}" for name in self.labels)}))


def _amount(usd: float) -> str:
    """US$ with two decimals, and more only where they are needed."""
    cents, _, rest = f"{usd:,.9f}".partition(".")
    return f"${cents}.{rest.rstrip('0').ljust(2, '0')}"


def budgets_of(given: Budget | Sequence[Budget] | None) -> tuple[Budget, ...]:
    """
    Zero, one or several budgets as a tuple.

    Raises:
        ConfigurationError: `given` is anything else.
    """
    if given is None:
        return ()
    found = (given,) if isinstance(given, Budget) else given
    if not isinstance(found, list | tuple) or not all(isinstance(each, Budget) for each in found):
        raise ConfigurationError("budget must be a Budget, or a list of them", hint="Give Budget(5.0).")
    return tuple(found)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _us(moment: datetime) -> int:
    return (moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
