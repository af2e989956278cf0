"""The ledger against a provider's bill: by day and model, what each difference is made of, and how it is settled."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

from shared.internal.money import NANO, to_nano
from shared.ledger import (
    COUNTS,
    AttemptRow,
    Billed,
    Filter,
    Ledger,
    Reconciled,
    Reservation,
    Window,
    attempts_billed,
    billed,
    enter,
    grouped_sums,
    has_late,
    line_fits,
    open_reservations,
    reconciled,
    reconciling,
    release,
)
from shared.models import Catalogue
from shared.reports.bill_columns import TOOLS
from shared.reports.bills import EVERYTHING, Bill, Charged, Day, read_bill
from shared.reports.repricing import items_today

# The reasons, in the order in which they are looked for; what none of them explains is unexplained.
NOT_OURS, PRICE, UNPRICED, UNFINISHED, RESERVED, ROUNDING, UNEXPLAINED = (
    "not ours", "price changed", "unknown price", "unfinished", "reserved", "rounding", "unexplained",
)  # fmt: skip
# Figures that are less apart are the same to the cent.
_HALF_CENT = NANO // 200
# An amount tells something where it is so many times what rounding may hide.
_TELLING = 100
# Requests of a line that are priced again, one by one, to see which kind of token has another price.
_PRICED_AGAIN = 100_000
_DATED = re.compile(r"([-@]\d{8}|-\d{4}-\d\d-\d\d|-\d{4})$")
_KIND_OF_UNIT = {
    "input": "input", "cached": "cached", "cache_write": "cache_write", "cache_write_1h": "cache_write",
    "output": "output", "reasoning": "output",
}  # fmt: skip


@dataclass(slots=True)
class _State:
    """The attempts of one line whose cost is equally certain; see `Billed`."""

    attempts: int = 0
    cost_nano: int = 0
    open_nano: int = 0
    unbounded: int = 0
    reserved_nano: int = 0
    unmeasured: int = 0
    tokens: Counter[str] = field(default_factory=Counter)

    def add(self, group: Billed) -> None:
        for name in ("attempts", "cost_nano", "open_nano", "unbounded", "reserved_nano", "unmeasured"):
            setattr(self, name, getattr(self, name) + getattr(group, name))
        fresh = group.prompt_tokens - group.cached_tokens - group.cache_write_tokens
        self.tokens.update(
            input=fresh,
            cached=group.cached_tokens,
            cache_write=group.cache_write_tokens,
            output=group.completion_tokens,
        )


@dataclass(slots=True)
class _Ours:
    """What the ledger has of one line of a bill."""

    models: Counter[str] = field(default_factory=Counter)
    states: dict[str, _State] = field(default_factory=lambda: defaultdict(_State))
    before: Reconciled = field(default_factory=Reconciled)
    live: int = 0
    unknown: int = 0
    unpriced_calls: int = 0

    def add(self, group: Billed) -> None:
        self.states[group.state].add(group)
        self.models[group.model] += group.attempts
        self.live += group.live
        self.unknown += group.unknown
        self.unpriced_calls += group.unpriced_calls

    @property
    def cost_nano(self) -> int:
        return sum(state.cost_nano for state in self.states.values()) + self.before.cost_nano

    @property
    def attempts(self) -> int:
        return sum(state.attempts for state in self.states.values())

    @property
    def reserved_nano(self) -> int:
        return sum(state.reserved_nano for state in self.states.values())

    @property
    def uncertain(self) -> int:
        return sum(self.states[name].attempts for name in ("unfinished", "reserved", "unpriced") if name in self.states)


@dataclass(frozen=True, slots=True)
class Line:
    """
    One model on one day, in nano-dollars.

    `name` is the bill's, `models` are the ledger's. `ledger_nano` is what is known; the cost of `unknown_requests` is
    not, or only in part. `bill_nano` is None where only a usage report was given. `parts` say what the difference is
    made of, and add up to it. `tokens` are the ledger's and the bill's; None where either has none. `adjustment` is
    what brings the ledger to the bill; `why_not` says why there is none although they differ.
    """

    day: str
    name: str
    models: tuple[str, ...]
    attempts: int
    ledger_nano: int
    unknown_requests: int
    bill_nano: int | None
    parts: Mapping[str, int]
    reserved_nano: int
    tokens: tuple[int, int] | None
    adjustment: AttemptRow | None = None
    why_not: str | None = None

    @property
    def known_nano(self) -> int | None:
        """What the ledger has; None where nothing of it is known."""
        return None if self.unknown_requests and not self.ledger_nano else self.ledger_nano

    @property
    def difference_nano(self) -> int | None:
        """What the bill has more than the ledger."""
        return None if self.bill_nano is None else self.bill_nano - self.ledger_nano

    @property
    def differs(self) -> bool:
        """Whether there is more between them than rounding; of usage alone, whether the tokens differ."""
        if self.bill_nano is None:
            return self.tokens is not None and self.tokens[0] != self.tokens[1]
        return any(name != ROUNDING for name in self.parts)


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The lines of a bill beside the ledger, and what is done, or would be, to settle it."""

    provider: str
    zone: str
    lines: Sequence[Line]
    reports: Sequence[str]
    unused: Sequence[str]
    warnings: Sequence[str]
    released_nano: int
    written: bool

    @property
    def differs(self) -> bool:
        """Whether the bill and the ledger differ."""
        return any(line.differs for line in self.lines)

    @property
    def adjustments(self) -> list[AttemptRow]:
        """What is entered, or would be."""
        return [line.adjustment for line in self.lines if line.adjustment is not None]


def reconcile_bill(
    ledger: Ledger,
    provider: str,
    files: Sequence[Path],
    zone: ZoneInfo,
    catalogue: Callable[[], Catalogue],
    *,
    write: bool = False,
) -> Reconciliation:
    """
    Compare the ledger with what a provider's usage and cost API has sent.

    Args:
        provider: openai or anthropic.

        files: The API's answers.

        zone: Time zone of the days.

        catalogue: Where prices are from; called where requests are priced again.

        write: Whether to enter what brings the ledger to the bill, and to free what budgets reserve for it.

    Raises:
        InvalidRequest: A file is no such answer, or has a column that this version does not know; nothing was written.

        StoreError: The ledger cannot be read, or written.
    """
    bill = read_bill(provider, files, zone)
    ledger.flush()
    if write:
        ledger.settle_expired()
    before = reconciled(ledger, provider)
    file = ", ".join(path.name for path in files)
    reservations = [each for each in open_reservations(ledger) if each.provider == provider]
    lines: list[Line] = []
    settled: list[Reservation] = []
    for name, day in sorted(bill.days.items()):
        kept = [each for each in reservations if day.start_s <= each.ts_us / 1e6 < day.end_s]
        found = list(_of_day(ledger, bill, name, day, before, kept, catalogue, file))
        lines += found
        settled += _settled_by(kept, found)
    if write:
        rows = [line.adjustment for line in lines if line.adjustment is not None]
        if rows:
            enter(ledger, *rows)
        settled = [freed for each in settled for freed in release(ledger, call_id=each.attempt_id)]
    released_nano = sum(each.reserved_nano for each in settled)
    return Reconciliation(
        provider, zone.key, lines, sorted(bill.reports), sorted(bill.unused), bill.warnings, released_nano, write
    )


def _span(day: Day, zone: ZoneInfo) -> Window:
    return Window(day.start_s * 1_000_000, day.end_s * 1_000_000, zone)


def _of_day(
    ledger: Ledger,
    bill: Bill,
    name: str,
    day: Day,
    before: Mapping[tuple[str, str], Reconciled],
    reservations: Sequence[Reservation],
    catalogue: Callable[[], Catalogue],
    file: str,
) -> Iterable[Line]:
    """The lines of one day."""
    span = _span(day, bill.zone)
    is_settled = day.has_money and not (day.tools or reservations or any(line[0] == name for line in before))
    sums = grouped_sums(ledger, span, ("model",), Filter(columns={"provider": bill.provider}))
    groups = _agreeing(ledger, bill.provider, day, span, sums) if is_settled else []
    if not groups:
        groups, cost_nano = billed(ledger, bill.provider, span)
        if cost_nano != sum(numbers["cost_nano"] for numbers in sums.values()):
            bill.warnings.append(f"{name} is left out: the ledger has sums of it, and no longer all of its records.")
            return
    tools: dict[str, _Ours] = {}
    if day.tools and any(group.uses_tools for group in groups):
        groups, tools = _tools_apart(ledger, bill.provider, day, span, groups, catalogue())
    names = _bill_names(day)
    ours: dict[str, _Ours] = defaultdict(_Ours)
    for group, own in zip(groups, _names_of(groups, day, names, bill.provider), strict=True):
        ours[own].add(group)
    ours |= tools
    for key in sorted({*names, *ours}):
        mine = ours.get(key, _Ours())
        mine.before = before.get((name, key), Reconciled())
        charged = day.charged.get(key, Charged())

        def by_kind(mine: _Ours = mine) -> Mapping[str, Decimal] | None:
            return _by_kind(ledger, bill.provider, span, mine, catalogue)

        line = _line(name, key, mine, charged, day, by_kind)
        yield _with_adjustment(line, mine, bill.provider, span, file)


def _agreeing(
    ledger: Ledger, provider: str, day: Day, span: Window, sums: Mapping[tuple[str, ...], Mapping[str, int]]
) -> list[Billed]:
    """
    What the ledger has of a day from its sums, where these are the bill already; else nothing.

    So a day that agrees is fast at any number of requests. Where it does not, what answered must be read from the rows.
    """
    if has_late(ledger, provider, span):
        return []
    groups = [_from_sums(model, numbers) for (model,), numbers in sums.items()]
    uncertain = ("adjustment_requests", "unknown_requests", "lower_bound_requests")
    if any(numbers[each] for numbers in sums.values() for each in uncertain):
        return []
    names = _names_of(groups, day, _bill_names(day), provider)
    for group, own in zip(groups, names, strict=True):
        charged = day.charged.get(own, Charged())
        if names.count(own) > 1 or abs(to_nano(charged.usd) - group.cost_nano) > _tolerance(charged, group.attempts):
            return []
    return groups


def _from_sums(model: str, numbers: Mapping[str, int]) -> Billed:
    """The sums of a model, as a group of attempts whose cost is certain."""
    uncertain = dict.fromkeys(("open_nano", "unbounded", "reserved_nano", "live", "unmeasured", "unknown"), 0)
    counts = {each: numbers[each] for each in ("cost_nano", "unpriced_calls", *COUNTS) if each != "reasoning_tokens"}
    return Billed(model, None, "settled", uses_tools=False, attempts=numbers["requests"], **counts, **uncertain)


def _tolerance(charged: Charged, attempts: int) -> int:
    """Nano-dollars that rounding may hide: the bill's own of each line, and half a nano-dollar of each attempt."""
    return max(to_nano(charged.tolerance) + attempts, 1)


def _bill_names(day: Day) -> set[str]:
    """The names under which a day is billed: those of models, or the one of its total."""
    if day.totals:
        return {EVERYTHING}
    names = set(day.charged)
    return names - {EVERYTHING} if len(names) > 1 else names


def _names_of(groups: Sequence[Billed], day: Day, names: set[str], provider: str) -> list[str]:
    """Under which of the bill's names each group of attempts is, or its own name where the bill has none for it."""
    if EVERYTHING in names:
        return [EVERYTHING] * len(groups)
    near = [_names_near(group, names, provider) for group in groups]
    # An attempt without an answer, whose model has several dated names in the bill: as most of that model's others.
    usual: dict[str, Counter[str]] = defaultdict(Counter)
    for group, found in zip(groups, near, strict=True):
        if len(found) == 1:
            usual[group.model][found[0]] += group.attempts
    named = []
    for group, found in zip(groups, near, strict=True):
        likely = [name for name, _ in usual[group.model].most_common() if name in found]
        # Else as the one that costs the most similar.
        likely += sorted(found, key=lambda name: abs(to_nano(day.charged[name].usd) - group.cost_nano))
        named.append(likely[0] if likely else _bare(group.response_model or group.model, provider))
    return named


def _names_near(group: Billed, names: set[str], provider: str) -> list[str]:
    """The bill's names that may be a group's: the one that answered or was asked, else dated or undated forms of it."""
    asked = _bare(group.model, provider)
    answered = asked if group.response_model is None else _bare(group.response_model, provider)
    for exact in (answered, asked):
        if exact in names:
            return [exact]
    # Of two names with different dates, neither is a form of the other.
    is_open = _DATED.search(answered) is None
    return sorted(n for n in names if _undated(n) == _undated(answered) and (is_open or _DATED.search(n) is None))


def _bare(model: str, provider: str) -> str:
    """A model's name as bills have it: without the provider, and a tuned model by its base."""
    name = model.removeprefix(f"{provider}/")
    return f"ft-{name.split(':')[1]}" if name.startswith("ft:") and name.count(":") > 1 else name


def _undated(name: str) -> str:
    return _DATED.sub("", name).removesuffix("-latest")


def _tools_apart(
    ledger: Ledger, provider: str, day: Day, span: Window, groups: Sequence[Billed], catalogue: Catalogue
) -> tuple[list[Billed], dict[str, _Ours]]:
    """What the bill's tools cost in the ledger, taken out of the models that used them."""
    tools: dict[str, _Ours] = defaultdict(_Ours)
    taken: Counter[tuple[str, str | None]] = Counter()
    for row in attempts_billed(ledger, provider, span, with_tools=True):
        items = items_today(row, catalogue)
        if items is None or row.cost_nano is None or to_nano(sum(items.values(), Decimal(0))) != row.cost_nano:
            continue  # its price is another by now, so its parts are not known
        for tool in sorted(day.tools):
            nano = to_nano(sum((items.get(unit, Decimal(0)) for unit in TOOLS[tool]), Decimal(0)))
            if nano:
                taken[row.model, row.response_model] += nano
                tools[tool].models[row.model] += 1
                state = tools[tool].states["settled"]
                state.attempts, state.cost_nano = state.attempts + 1, state.cost_nano + nano
    apart = []
    for group in groups:
        key = group.model, group.response_model
        nano = min(taken[key], group.cost_nano) if group.uses_tools else 0
        taken[key] -= nano
        apart.append(replace(group, cost_nano=group.cost_nano - nano))
    return apart, tools


def _by_kind(
    ledger: Ledger, provider: str, span: Window, ours: _Ours, catalogue: Callable[[], Catalogue]
) -> Mapping[str, Decimal] | None:
    """US$ of a line's requests by kind of token, by today's prices; None where that is not known."""
    if ours.attempts > _PRICED_AGAIN or len(ours.models) != 1:
        return None
    found: dict[str, Decimal] = defaultdict(Decimal)
    prices = catalogue()
    (model,) = ours.models
    for row in attempts_billed(ledger, provider, span, model=model):
        items = items_today(row, prices) if row.cost_nano else {}
        if items is None or not set(items) <= set(_KIND_OF_UNIT):
            return None
        for unit, usd in items.items():
            found[_KIND_OF_UNIT[unit]] += usd
    return found


def _line(
    day_name: str,
    name: str,
    ours: _Ours,
    charged: Charged,
    day: Day,
    by_kind: Callable[[], Mapping[str, Decimal] | None],
) -> Line:
    used = {unit: count for unit, count in charged.used.items() if unit != "requests"}
    mine = sum((state.tokens for state in ours.states.values()), Counter[str]())
    is_measured = bool(day.used) and day.used_whole and (charged.is_used or not charged.lines)
    return Line(
        day=day_name,
        name=name,
        models=tuple(sorted(ours.models)),
        attempts=ours.attempts,
        ledger_nano=ours.cost_nano,
        unknown_requests=0 if ours.before.cost_nano else ours.unknown,
        bill_nano=to_nano(charged.usd) if day.has_money else None,
        parts=_parts(ours, charged, day, by_kind) if day.has_money else {},
        reserved_nano=ours.reserved_nano,
        tokens=(sum(mine.values()), sum(used.values())) if is_measured else None,
    )


def _parts(
    ours: _Ours, charged: Charged, day: Day, by_kind: Callable[[], Mapping[str, Decimal] | None]
) -> dict[str, int]:
    """What a difference is made of; each part is shown by tokens, or by attempts whose cost is not certain."""
    left = to_nano(charged.usd) - ours.cost_nano
    if not ours.models:
        return {NOT_OURS: left} if left else {}
    found: dict[str, int] = {}

    def take(name: str, nano: int) -> None:
        nonlocal left
        if nano:
            found[name] = found.get(name, 0) + nano
            left -= nano

    tolerance = _tolerance(charged, ours.attempts)
    if abs(left) <= tolerance:
        take(ROUNDING, left)
        return found
    tokens, is_whole = _tokens_of(charged, day)
    more = charged.used["requests"] > ours.attempts
    if not ours.before.cost_nano:  # else an earlier bill has settled all of it
        may_be_more = is_whole and bool(ours.uncertain or more)
        take(PRICE, _price_change(ours, charged, tokens, tolerance, may_be_more=may_be_more))
        if is_whole:
            take(UNPRICED, _within(_unpriced(ours, charged, tokens), 0, max(left, 0)))
        unfinished, reserved = (ours.states.get(name, _State()) for name in ("unfinished", "reserved"))
        take(UNFINISHED, _within(left, -unfinished.cost_nano, None if unfinished.unbounded else unfinished.open_nano))
        take(RESERVED, _within(left, -reserved.cost_nano, reserved.reserved_nano))
        if ours.states.get("unpriced", _State()).attempts and UNPRICED not in found:
            take(UNPRICED, max(left, 0))
    if more and left > tolerance and _covers(tokens, ours):
        take(NOT_OURS, left)
    is_same = abs(left) < _HALF_CENT or abs(left) <= tolerance
    if not is_same and not tokens and _same_tokens(ours, charged, by_kind):
        take(PRICE, left)
    take(ROUNDING if is_same else UNEXPLAINED, left)
    return found


def _within(nano: int, least: int, most: int | None) -> int:
    return max(nano if most is None else min(nano, most), least)


def _tokens_of(charged: Charged, day: Day) -> tuple[Mapping[str, Decimal], bool]:
    """The tokens that a line charges for, by kind, none where it does not say so; and whether these are all."""
    if not charged.lines or None in charged.by_unit:
        return {}, False
    if not charged.unmeasured:
        tokens = {unit: count for unit, count in charged.quantities.items() if unit is not None}
        is_whole = True
    else:
        tokens = {unit: Decimal(count) for unit, count in charged.used.items() if unit != "requests"}
        is_whole = day.used_whole
    is_known = all(tokens.get(unit or "") for unit, usd in charged.by_unit.items() if usd)
    return (tokens, is_whole) if is_known else ({}, False)


def _covers(tokens: Mapping[str, Decimal], ours: _Ours) -> bool:
    """Whether the bill has at least the tokens of the requests whose cost is certain."""
    return all(tokens.get(unit, 0) >= count for unit, count in ours.states["settled"].tokens.items())


def _value(tokens: Mapping[str, int], charged: Charged, billed_tokens: Mapping[str, Decimal]) -> Decimal:
    """US$ for tokens, at what the bill charges for each."""
    usd = (
        charged.by_unit.get(unit, Decimal(0)) * count / billed_tokens[unit]
        for unit, count in tokens.items()
        if count and billed_tokens.get(unit)
    )
    return sum(usd, Decimal(0))


def _price_change(
    ours: _Ours, charged: Charged, tokens: Mapping[str, Decimal], tolerance: int, *, may_be_more: bool
) -> int:
    """
    How much more the settled requests cost at the bill's prices than in the ledger.

    Only where their tokens are the bill's, or are among them and others may be: then each kind must have one price.
    """
    settled = ours.states["settled"]
    if not tokens or settled.unmeasured or not settled.attempts or not _covers(tokens, ours):
        return 0
    is_same = all(count == settled.tokens[unit] for unit, count in tokens.items())
    if not is_same and (not may_be_more or any(len(each) > 1 for each in charged.variants.values())):
        return 0
    known = settled.cost_nano + ours.states.get("adjusted", _State()).cost_nano
    change = to_nano(charged.usd if is_same else _value(settled.tokens, charged, tokens)) - known
    return change if abs(change) >= max(tolerance, _HALF_CENT) else 0


def _unpriced(ours: _Ours, charged: Charged, tokens: Mapping[str, Decimal]) -> int:
    """What requests without a known price cost beyond what is known, by their tokens and the bill's prices."""
    unpriced = ours.states.get("unpriced", _State())
    if not unpriced.attempts or unpriced.unmeasured or any(len(each) > 1 for each in charged.variants.values()):
        return 0
    return to_nano(_value(unpriced.tokens, charged, tokens)) - unpriced.cost_nano


def _same_tokens(ours: _Ours, charged: Charged, by_kind: Callable[[], Mapping[str, Decimal] | None]) -> bool:
    """
    Whether costs by kind of token show that the tokens are the same, so that only a price differs.

    They do where all kinds cost in the bill what they cost by today's prices; where one kind costs what the ledger has,
    and another does not; or where all cost more by the same share, which is not that of some more requests alike.
    """
    if ours.uncertain or ours.before.cost_nano or None in charged.by_unit or len(charged.by_unit) < 2:
        return False
    known = by_kind()
    if known is None or not set(known) <= set(charged.by_unit):
        return False
    slack = charged.tolerance + Decimal(ours.attempts) / NANO
    pairs = [(usd, known.get(unit or "", Decimal(0))) for unit, usd in charged.by_unit.items()]
    if all(abs(usd - own) <= slack for usd, own in pairs):
        return True
    if not ours.cost_nano or abs(to_nano(sum(known.values(), Decimal(0))) - ours.cost_nano) > ours.attempts:
        return False  # what was paid for each kind is not known
    if any(abs(usd - own) <= slack and own > _TELLING * slack for usd, own in pairs):
        return True
    share = charged.usd * NANO / ours.cost_nano
    more = ours.attempts * (share - 1)
    is_even = all(abs(usd - own * share) <= slack and own > _TELLING * slack for usd, own in pairs)
    return is_even and abs(more - round(more)) > Decimal("0.001")


def _with_adjustment(line: Line, ours: _Ours, provider: str, span: Window, file: str) -> Line:
    """The line with what brings the ledger to the bill, or why nothing does."""
    difference = line.difference_nano
    if difference is None or not ours.models:
        return line
    change = difference - line.parts.get(NOT_OURS, 0)
    if not change or (not set(line.parts) - {ROUNDING} and abs(change) < _HALF_CENT):
        return line
    if line.name == EVERYTHING:
        return replace(line, why_not="the bill does not say for which model")
    if ours.live:
        return replace(line, why_not=f"{ours.live} still under way")
    if not line_fits(line.name):
        return replace(line, why_not="its name is too long")
    cleared = Reconciled(change, -max(ours.unpriced_calls + ours.before.unpriced_calls, 0))
    row = reconciling(
        ours.before,
        cleared,
        (span.since_us + span.until_us) // 2,
        provider=provider,
        model=ours.models.most_common(1)[0][0],
        line=(line.day, line.name),
        file=file,
    )
    return replace(line, adjustment=row)


def _settled_by(reservations: Sequence[Reservation], lines: Sequence[Line]) -> list[Reservation]:
    """
    The reservations of a day that its bill settles: all lines of their model say what was charged.

    A line that the bill does not have settles nothing where the ledger has spent: the bill may be of another account.
    """
    kept: set[str] = set()
    for line in lines:
        is_missing = not line.bill_nano and line.ledger_nano
        if line.bill_nano is None or line.name == EVERYTHING or line.why_not is not None or is_missing:
            kept.update(line.models)
    return [each for each in reservations if each.model not in kept]
