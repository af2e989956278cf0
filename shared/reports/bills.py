"""Reads the files of a provider's usage and cost API: pages of buckets of results, with every column accounted for."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from shared.errors import InvalidRequest
from shared.reports.bill_columns import FORMATS, TIERS, TOKENS_IN, TOOLS, UNITS, UNUSED, Format, Report

EVERYTHING = "(all models)"
_MAX_BYTES = 32 * 2**20
_MAX_USD = Decimal(10) ** 9
_MAX_COUNT = Decimal(10) ** 15
_MAX_DIGITS = 60
_MAX_NAME = 300
_DAY_S = 86_400
_FIRST_YEAR, _LAST_YEAR = 2015, 2200
_HALF_CENT = Decimal("0.005")
_COUNTED = ("input_and_cached", "input", "cached", "cache_write", "output", "requests")
_NOT_BLANK = re.compile(r"\S")
_LINE = re.compile(
    r"(?:(?P<tier>[a-z]+) \| )?(?P<model>[A-Za-z0-9][\w.:/-]*)(?: (?P<kind>text|audio|image))?, "
    r"(?P<unit>[^,|]+)(?P<rest>, [^|]+)?"
)


@dataclass(slots=True)
class Charged:
    """
    What a bill charges under one name on one day.

    `usd` is exact. `by_unit` has US$ by kind of token, where every line says one (else None is among its keys).
    `quantities` are the bill's own tokens, `unmeasured` counts the lines without. `used` are the tokens and requests of
    the usage report. `variants` are the tiers, sizes and places of each kind, whose prices may differ. `tolerance` is
    how much the bill's own rounding may hide, in US$.
    """

    usd: Decimal = Decimal(0)
    by_unit: dict[str | None, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    quantities: dict[str | None, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    variants: dict[str | None, set[tuple[str, ...]]] = field(default_factory=lambda: defaultdict(set))
    unmeasured: int = 0
    tolerance: Decimal = Decimal(0)
    lines: int = 0
    used: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    is_used: bool = False


@dataclass(slots=True)
class Day:
    """
    One day of a bill: what it charges by name, and the seconds of it that the reports cover.

    `is_grouped`: whether it names models. `tools` are names that are no models', but kinds of tools.
    """

    charged: dict[str, Charged] = field(default_factory=lambda: defaultdict(Charged))
    tools: set[str] = field(default_factory=set)
    start_s: int = 0
    end_s: int = 0
    has_money: bool = False
    used: set[tuple[int, int]] = field(default_factory=set)
    totals: int = 0
    named: int = 0

    @property
    def used_whole(self) -> bool:
        """Whether the usage report covers the whole day."""
        return sum(end_s - start_s for start_s, end_s in self.used) == self.end_s - self.start_s


@dataclass(slots=True)
class Bill:
    """The files of one provider, by day; `unused` are columns that are known and not compared."""

    provider: str
    zone: ZoneInfo
    days: dict[str, Day] = field(default_factory=lambda: defaultdict(Day))
    reports: set[str] = field(default_factory=set)
    unused: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Bucket:
    start_s: int
    end_s: int
    results: Sequence[Any]
    file: str


@dataclass(frozen=True, slots=True)
class _Page:
    """The buckets of a page; `has_more`: whether the API has sent that more pages follow."""

    buckets: Sequence[_Bucket]
    has_more: bool
    file: str


def read_bill(provider: str, files: Sequence[Path], zone: ZoneInfo, now: datetime | None = None) -> Bill:
    """
    Read what a provider's usage and cost API has sent.

    Args:
        files: Each a page as it was sent, or several one after the other, or in a list.

        zone: Time zone of the days; that of the bill's own days, which is UTC, unless its buckets are shorter.

        now: Buckets that end later are left out, because they may grow.

    Raises:
        InvalidRequest: A file is no such page, or has a column that this version does not know.
    """
    form = FORMATS[provider]
    bill = Bill(provider, zone)
    seen: dict[str, dict[tuple[int, int], set[tuple[Any, ...]]]] = defaultdict(lambda: defaultdict(set))
    now_s = (now or datetime.now(UTC)).timestamp()
    unfinished: set[str] = set()
    pages: list[tuple[_Page, frozenset[str]]] = []
    for path in files:
        reports: set[Report] = set()
        for page in _pages(path, form):
            over = [bucket for bucket in page.buckets if bucket.end_s <= now_s]
            growing = [bucket for bucket in page.buckets if bucket.end_s > now_s]
            unfinished |= {_day(bucket, zone) for bucket in growing}
            found = {report for bucket in growing for report in _reports_of(provider, form, bucket)}
            found |= {report for bucket in over for report in _take(bill, form, bucket, seen)}
            reports = found or reports  # a page without any result is of what the one before it is
            pages.append((page, frozenset(report.name for report in reports)))
            for bucket in over:
                _cover(bill.days[_day(bucket, zone)], bucket, reports)
    bill.warnings += _missing(pages)
    for kind, buckets in seen.items():
        _check_apart(kind, list(buckets))
    for day, part in bill.days.items():
        if part.totals and part.named:
            raise _wrong(f"{day} is in the files both as a total and by line", "Give only the pages that name models.")
    if unfinished:
        bill.warnings.append(f"{', '.join(sorted(unfinished))} was not over, and is left out.")
    for name in [name for name, day in bill.days.items() if not (day.has_money or day.used)]:
        del bill.days[name]
        bill.warnings.append(f"{name} has neither costs nor the tokens of completions, and is left out.")
    if not bill.days:
        bill.warnings.append("The files have nothing to compare.")
    return bill


def _missing(pages: Sequence[tuple[_Page, frozenset[str]]]) -> list[str]:
    """What to say of pages that say that more follow, which are not in the files."""
    last: dict[frozenset[str], int] = defaultdict(int)
    for page, reports in pages:
        last[reports] = max(last[reports], *(bucket.start_s for bucket in page.buckets), 0)
    found = {
        f"{page.file} says that more pages follow (has_more): days may be missing.": None
        for page, reports in pages
        if page.has_more and last[reports] < max((bucket.end_s for bucket in page.buckets), default=last[reports] + 1)
    }
    return list(found)


def _reports_of(provider: str, form: Format, bucket: _Bucket) -> Iterator[Report]:
    """The reports that the results of a bucket are of, whose columns are all known."""
    for result in bucket.results:
        yield _report_of(provider, form, _flat(result, bucket.file), bucket.file)


def _wrong(what: str, hint: str = "Give the API's answer as it was sent.") -> InvalidRequest:
    return InvalidRequest(what, hint=hint)


def _pages(path: Path, form: Format) -> Iterator[_Page]:
    """The pages of a file, each as its buckets; buckets that were saved without their page are one."""
    for value in _values(path):
        values = value if isinstance(value, list) else [value]
        bare = [_bucket(form, each, path.name) for each in values if isinstance(each, dict) and "results" in each]
        if bare:
            yield _Page(bare, has_more=False, file=path.name)
        for each in values:
            if not (isinstance(each, dict) and "results" in each):
                yield _page(form, each, path.name)


def _values(path: Path) -> Iterator[Any]:
    """The JSON values of a file, which may stand one after the other."""
    try:
        if not path.is_file():
            raise _wrong(f"{path.name} is no file", "Give the files that the API's answers were saved in.")
        if path.stat().st_size > _MAX_BYTES:
            raise _wrong(f"{path.name} is larger than {_MAX_BYTES // 2**20} MB", "Give a shorter time, or more files.")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise _wrong(f"{path.name} is no text in UTF-8") from None
    except OSError as error:
        raise _wrong(f"{path.name} cannot be read ({error.strerror})", "Check its name and permissions.") from None
    decoder = json.JSONDecoder(parse_float=_exact, parse_constant=_no_number, object_pairs_hook=_no_twins)
    place = 0
    found = 0
    while place := _skip_blank(text, place):
        place -= 1
        try:
            value, place = decoder.raw_decode(text, place)
        except RecursionError:
            raise _wrong(f"{path.name} is nested too deeply") from None
        except ValueError as error:
            line = text.count("\n", 0, getattr(error, "pos", place)) + 1
            why = str(getattr(error, "msg", error))[:100]
            raise _wrong(f"{path.name} is no JSON from line {line} on ({why})") from None
        found += 1
        yield value
    if not found:
        raise _wrong(f"{path.name} is empty")


def _skip_blank(text: str, place: int) -> int:
    """The place after the first character that is not blank, counted from 1; 0 at the end."""
    found = _NOT_BLANK.search(text, place)
    return found.end() if found else 0


def _exact(text: str) -> Decimal:
    if len(text) > _MAX_DIGITS:
        raise ValueError("a number has too many digits")
    return Decimal(text)


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a name twice")
    return found


def _page(form: Format, page: Any, file: str) -> _Page:
    if not isinstance(page, dict):
        raise _wrong(f"{file} has {_kind(page)} where a page should be")
    if "data" not in page:
        said = page.get("error")
        said = said.get("message") if isinstance(said, dict) else said
        what = f": {said[:200]}" if isinstance(said, str) else ""
        raise _wrong(f"{file} is an error, not a page{what}" if "error" in page else f"{file} has a page without data")
    data = page["data"]
    if not isinstance(data, list):
        raise _wrong(f"{file} has {_kind(data)} where the data of a page should be")
    buckets = [_bucket(form, each, file) for each in data]
    _check(page, form.page, f"a page of {file}")
    return _Page(buckets, page.get("has_more") is True, file)


def _bucket(form: Format, bucket: Any, file: str) -> _Bucket:
    if not isinstance(bucket, dict):
        raise _wrong(f"{file} has {_kind(bucket)} where a bucket should be")
    other = next((name for name, each in FORMATS.items() if each is not form and each.start in bucket), None)
    if other is not None:
        raise _wrong(f"{file} is of {other}", f"Run: agentswarm-tools reconcile {other} FILE")
    _check(bucket, form.bucket, f"a bucket of {file}")
    start_s, end_s = (_second(bucket.get(name), name, file) for name in (form.start, form.end))
    results = bucket.get("results")
    if not isinstance(results, list) or not start_s < end_s <= start_s + 400 * _DAY_S:
        raise _wrong(f"{file} has a bucket without results, or that ends before it starts")
    return _Bucket(start_s, end_s, results, file)


def _check(found: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    unknown = sorted(set(found) - known)
    if unknown:
        raise _unknown(unknown, where)


def _unknown(names: Sequence[str], where: str) -> InvalidRequest:
    shown = ", ".join(name[:60] for name in names[:5])
    return InvalidRequest(
        f"{where[0].upper()}{where[1:]} has a column that this version does not know: {shown}",
        hint="It may hold money or tokens, so nothing is compared. A newer version may know it.",
    )


def _second(value: Any, name: str, file: str) -> int:
    """Seconds since 1970 of a time: a whole number, or a text with its offset."""
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None:
                raise ValueError
            value = moment.timestamp()
            value = int(value) if value == int(value) else None
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError
        if not _FIRST_YEAR <= datetime.fromtimestamp(value, UTC).year <= _LAST_YEAR:
            raise ValueError
    except (TypeError, ValueError, OverflowError, OSError):
        raise _wrong(f"{file} has a bucket whose {name} is no time: {str(value)[:40]!r}") from None
    return value


def _day(bucket: _Bucket, zone: ZoneInfo) -> str:
    first = datetime.fromtimestamp(bucket.start_s, zone).date()
    if datetime.fromtimestamp(bucket.end_s - 1, zone).date() != first:
        raise _wrong(
            f"{bucket.file} has a bucket of more than one day of {zone.key}, from "
            f"{datetime.fromtimestamp(bucket.start_s, UTC):%Y-%m-%d %H:%M} UTC on",
            "The API's days are those of UTC: leave out tz, or download usage by the hour (bucket_width=1h).",
        )
    return first.isoformat()


def _take(
    bill: Bill,
    form: Format,
    bucket: _Bucket,
    seen: dict[str, dict[tuple[int, int], set[tuple[Any, ...]]]],
) -> set[Report]:
    """Add the results of a bucket to its day; returns the reports that they are of."""
    day = bill.days[_day(bucket, bill.zone)]
    time = bucket.start_s, bucket.end_s
    here: dict[str, set[tuple[Any, ...]]] = defaultdict(set)
    reports: dict[str, Report] = {}
    for result in bucket.results:
        columns = _flat(result, bucket.file)
        report = _report_of(bill.provider, form, columns, bucket.file)
        reports[report.name] = report
        values = {name: value for name, value in columns.items() if value is not None}
        bill.unused |= {name for name in values if report.columns[name] == UNUSED and name != "object"}
        here[report.name].add(tuple(sorted((n, str(v)) for n, v in values.items() if n not in report.figures)))
        if report.has_money:
            _take_cost(bill.provider, day, report, values, bucket)
        else:
            _take_usage(day, report, values, bucket)
    for name, identities in here.items():
        known = seen[name][time]
        if known & identities:
            raise _wrong(
                f"{_day(bucket, bill.zone)} is in the files twice ({name}, {bucket.file})", "Give each page once."
            )
        known |= identities
    bill.reports |= set(reports)
    return set(reports.values())


def _cover(day: Day, bucket: _Bucket, reports: set[Report]) -> None:
    """Note that a page's reports cover a bucket, which may have no results."""
    day.start_s = min(day.start_s or bucket.start_s, bucket.start_s)
    day.end_s = max(day.end_s, bucket.end_s)
    if any(report.has_money for report in reports):
        day.has_money = True
    if any(report.counts_requests for report in reports):
        day.used.add((bucket.start_s, bucket.end_s))


def _check_apart(kind: str, times: list[tuple[int, int]]) -> None:
    """Buckets of two widths would count the same twice."""
    times.sort()
    for (_, end_s), (start_s, _) in pairwise(times):
        if start_s < end_s:
            when = datetime.fromtimestamp(start_s, UTC)
            raise _wrong(f"The {kind} has {when:%Y-%m-%d %H:%M} UTC in two buckets", "Give pages of one bucket width.")


def _flat(result: Any, file: str) -> dict[str, Any]:
    """The columns of a result, those of its parts named with a dot."""
    if not isinstance(result, dict):
        raise _wrong(f"{file} has {_kind(result)} where a result should be")
    found: dict[str, Any] = {}
    for name, value in result.items():
        if isinstance(value, dict):
            found |= {f"{name}.{part}": inner for part, inner in value.items()}
        else:
            found[name] = value
    for name, value in found.items():
        if isinstance(value, dict | list):
            raise _wrong(f"{file} has {_kind(value)} in the column {name[:60]}")
    return found


def _report_of(provider: str, form: Format, columns: Mapping[str, Any], file: str) -> Report:
    """The report that a result is of; every column of it is known."""
    mark = columns.get("object") if provider == "openai" else next((n for n in form.reports if n in columns), None)
    report = form.reports.get(mark) if isinstance(mark, str) else None
    if report is not None and columns.keys() <= report.columns.keys():
        return report
    if report is not None:
        # Where a column with parts has none, it is null as a whole.
        whole = {name.partition(".")[0] for name in report.columns if "." in name}
        unknown = [n for n, v in columns.items() if n not in report.columns and not (v is None and n in whole)]
        if unknown:
            raise _unknown(sorted(unknown), f"the {report.name} in {file}")
        return report
    marked = str(columns.get("object", ""))[:60]
    raise _wrong(f"{file} has results of a report that is unknown ({marked or ', '.join(sorted(columns))[:80]})")


def _take_cost(provider: str, day: Day, report: Report, values: Mapping[str, Any], bucket: _Bucket) -> None:
    use = {report.columns[name]: value for name, value in values.items() if name in report.columns}
    if bucket.end_s - bucket.start_s < 82_800:  # 23 hours: a day on which the clock changes
        raise _wrong(f"{bucket.file} has costs of a part of a day", "Costs are billed by whole days.")
    currency = str(use.get("currency", "usd"))
    if currency.lower() != "usd":
        raise _wrong(f"{bucket.file} has an amount in {currency[:10]}, not in US$", "Only US$ can be compared.")
    if "usd" not in use and "cents" not in use:
        if any(report.columns.get(name) for name in values):
            raise _wrong(f"{bucket.file} has a result without an amount")
        return
    usd = _number(use["usd"], "an amount", bucket.file) if "usd" in use else None
    if usd is None:
        usd = _number(use["cents"], "an amount", bucket.file) / 100
    if abs(usd) > _MAX_USD:
        raise _wrong(f"{bucket.file} has an amount of more than US$ {_MAX_USD:,}")
    line, unit, variant = _openai_line(day, use) if provider == "openai" else _anthropic_line(day, use, values)
    day.totals += line == EVERYTHING
    day.named += line != EVERYTHING
    into = day.charged[line]
    into.usd += usd
    into.lines += 1
    into.tolerance += min(Decimal(1).scaleb(int(usd.as_tuple().exponent)) / 2, _HALF_CENT)
    into.by_unit[unit] += usd
    into.variants[unit].add(variant)
    per = TOKENS_IN.get(use.get("quantity_unit")) if isinstance(use.get("quantity_unit"), str | None) else None
    if "quantity" in use and per is not None:
        into.quantities[unit] += _number(use["quantity"], "a quantity", bucket.file, _MAX_COUNT) * per
    else:
        into.unmeasured += 1


def _openai_line(day: Day, use: Mapping[str, Any]) -> tuple[str, str | None, tuple[str, ...]]:
    """The name, the kind of token and the variant of a line item; the whole line where it names no model."""
    if "line" not in use:
        return EVERYTHING, None, ()
    line = _name(use["line"])
    found = _LINE.fullmatch(line)
    if found and (found["tier"] is None or found["tier"] in TIERS):
        unit = UNITS.get(found["unit"]) if found["kind"] in (None, "text") else None
        return found["model"], unit, (found["tier"] or "", found["rest"] or "")
    return _tool(day, line) or line, None, ()


# What prices of one kind of token depend on.
_VARIANTS = ("service_tier", "context_window", "inference_geo", "speed")


def _anthropic_line(
    day: Day, use: Mapping[str, Any], values: Mapping[str, Any]
) -> tuple[str, str | None, tuple[str, ...]]:
    if "model" in use:
        unit = UNITS.get(_name(use.get("unit", "")))
        return _name(use["model"]), unit, tuple(str(values.get(name)) for name in _VARIANTS)
    line = _name(use.get("line") or use.get("kind") or "")
    if not line:
        return EVERYTHING, None, ()
    kind = _name(use.get("kind", "")).replace("_", " ")
    return _tool(day, kind) or _tool(day, line) or line, None, ()


def _tool(day: Day, line: str) -> str | None:
    """The tool that a line charges for, if it is one that the ledger's rows count."""
    found = next((name for name in TOOLS if name in line.lower()), None)
    if found is not None:
        day.tools.add(found)
    return found


def _take_usage(day: Day, report: Report, values: Mapping[str, Any], bucket: _Bucket) -> None:
    counts: dict[str, int] = defaultdict(int)
    model = EVERYTHING
    for name, value in values.items():
        use = report.columns.get(name, UNUSED)
        if use == "model":
            model = _name(value)
        elif use in _COUNTED:
            number = _number(value, f"the column {name}", bucket.file, _MAX_COUNT)
            if number != number.to_integral_value() or number < 0:
                raise _wrong(f"{bucket.file} has {str(value)[:40]!r} in the column {name}, which is no count")
            counts[use] += int(number)
    if "input_and_cached" in counts:
        counts["input"] += counts.pop("input_and_cached") - counts["cached"]
        if counts["input"] < 0:
            raise _wrong(f"{bucket.file} has more cached input tokens than input tokens")
    if not counts:
        return
    into = day.charged[model]
    into.is_used = True
    for use, count in counts.items():
        into.used[use] += count


def _number(value: Any, what: str, file: str, most: Decimal = _MAX_USD * 100) -> Decimal:
    """A number of JSON, or a text of one, exactly."""
    is_text = isinstance(value, str) and len(value) <= _MAX_DIGITS
    if is_text or (isinstance(value, int) and not isinstance(value, bool)):
        with suppress(InvalidOperation):
            value = Decimal(value)
    if not isinstance(value, Decimal) or not value.is_finite() or not -_MAX_DIGITS < value.adjusted() < _MAX_DIGITS:
        raise _wrong(f"{file} has {what} that is no number: {str(value)[:40]!r}")
    if abs(value) > most or int(value.as_tuple().exponent) < -2 * _MAX_DIGITS:
        raise _wrong(f"{file} has {what} that is too large or too small: {str(value)[:40]}")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(f"A name is {_kind(value)}: {str(value)[:40]}")
    if len(value) > _MAX_NAME:
        raise _wrong(f"A name is longer than {_MAX_NAME} characters: {value[:60]} ...")
    return value.strip()


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return {dict: "an object", list: "a list", str: "a text", bool: "true or false"}.get(type(value), "a number")
