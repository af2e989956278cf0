"""Costs by one or two dimensions, and the names that may be asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from shared.errors import InvalidRequest
from shared.internal.money import to_usd
from shared.ledger import (
    FIGURES,
    GRAINS,
    UNALLOCATED,
    Filter,
    Grouped,
    Ledger,
    Window,
    all_grouped,
    is_empty,
    label_names,
)
from shared.reports.formats import printable

COLUMNS = ("provider", "model", "tool", "agent")
_SHORT = {"hourly": "hour", "daily": "day", "weekly": "week", "monthly": "month"}
_MOST = 2
_MOST_NAMED = 20

Sums = Mapping[str, int]


def dimensions(by: str) -> tuple[str, ...]:
    """
    The dimensions in a text such as "customer,model" or "daily".

    Raises:
        InvalidRequest: They are more than two, the same twice, or two grains of time.
    """
    names = [_SHORT.get(name.strip(), name.strip()) for name in by.split(",")]
    if len(names) > _MOST or len(set(names)) < len(names) or sum(name in GRAINS for name in names) > 1:
        hint = "Give one or two, such as customer,model or month,customer."
        raise InvalidRequest(f"{by[:80]!r} are not two dimensions to group by", hint=hint)
    return tuple(names)


def narrowed(which: Filter, where: Mapping[str, str]) -> Filter:
    """
    The attempts of `which` that match `where` too: values of a provider, model, tool, agent or label.

    Raises:
        InvalidRequest: `which` is already of another value of the same label.
    """
    labels = {name: value for name, value in where.items() if name not in COLUMNS}
    for name, value in labels.items():
        if which.labels.get(name, value) != value:
            raise InvalidRequest(f"This scope sees the costs of its own {name} only", hint=f"Leave {name} out.")
    columns = {name: value for name, value in where.items() if name in COLUMNS}
    return Filter({**labels, **which.labels}, which.conversation, which.any_conversation, {**which.columns, **columns})


def check_names(ledger: Ledger, names: Sequence[str], which: Filter, *, known: Sequence[str]) -> None:
    """
    Check that each name is one of `known`, or a label of an attempt; in an empty ledger any name may become one.

    Raises:
        InvalidRequest: It is neither; the message says which names there are.

        StoreError: The ledger cannot be read.
    """
    if all(name in (*known, *which.labels) for name in names) or is_empty(ledger):
        return
    labels = label_names(ledger, which)
    for name in names:
        if name not in (*known, *labels, *which.labels):
            shown = ", ".join(map(printable, labels[:_MOST_NAMED])) or "none"
            raise InvalidRequest(
                f"There is no {printable(name[:60])!r} in the ledger",
                hint=f"Give {', '.join(known)} or a label: {shown}.",
            )


class Groups(NamedTuple):
    """
    The dicts that `get_llm_costs` documents as "groups", and what it documents as "rows_read" and "is_incomplete".

    They are in the order of time where they are grouped by it, else the most expensive comes first.
    """

    groups: list[dict[str, Any]]
    rows_read: str | None
    is_incomplete: bool = False


def groups_of(
    ledger: Ledger,
    span: Window,
    several: Sequence[Sequence[str]],
    which: Filter,
    found: Sequence[Grouped] | None = None,
    earlier: Sequence[Grouped] = (),
) -> list[Groups]:
    """
    The costs of each group, by each of several tuples of dimensions.

    Args:
        found: What the ledger has by them. None: it is read.

        earlier: The same of the time to compare each group with, by the first of them; none: no comparison.

    Raises:
        StoreError: The ledger cannot be read.
    """
    found = all_grouped(ledger, span, several, which) if found is None else found
    return [_groups(*each) for each in zip_longest(several, found, earlier)]


def _groups(by: Sequence[str], found: Grouped, earlier: Grouped | None) -> Groups:
    total = sum(sums["cost_nano"] for sums in found.sums.values())
    grain = next((place for place, name in enumerate(by) if name in GRAINS), None)

    def order(item: tuple[tuple[str, ...], Sums]) -> tuple[Any, ...]:
        key, sums = item
        return ("" if grain is None else key[grain], -sums["cost_nano"], -sums["calls"], key)

    groups = [
        _group(by, key, sums, total) | ({} if earlier is None else _before(earlier.sums.get(key)))
        for key, sums in sorted(found.sums.items(), key=order)
    ]
    return Groups(groups, found.rows_read, found.is_incomplete)


def totals_of(found: Grouped) -> dict[str, Any]:
    """The costs of all, grouped by nothing, as those of a group."""
    sums = found.sums.get((), dict.fromkeys(FIGURES, 0))
    return _group((), (), sums, sums["cost_nano"]) | {"is_incomplete": found.is_incomplete}


def _group(by: Sequence[str], key: Sequence[str], sums: Sums, total_nano: int) -> dict[str, Any]:
    nano = known_nano(sums)
    names = [value or UNALLOCATED for value in key]
    return {
        "name": ", ".join(names),
        "keys": dict(zip(by, names, strict=True)),
        "cost": to_usd(nano),
        "cost_nano": nano,
        "avg_cost_per_call": average_cost(sums),
        "tokens": sums["prompt_tokens"] + sums["completion_tokens"],
        "input_tokens": sums["prompt_tokens"],
        "output_tokens": sums["completion_tokens"],
        "cached_tokens": sums["cached_tokens"],
        "calls": sums["calls"],
        "failed_calls": sums["failed_calls"],
        "unpriced_calls": sums["unpriced_calls"],
        "cost_is_lower_bound": bool(sums["lower_bound_requests"]),
        "unknown_cost_requests": sums["unknown_requests"],
        "share": math.nan if nano is None or total_nano <= 0 else nano / total_nano,
    }


def _before(sums: Sums | None) -> dict[str, Any]:
    nano = 0 if sums is None else known_nano(sums)
    return {"previous_cost": to_usd(nano), "previous_cost_nano": nano}


def known_nano(sums: Sums) -> int | None:
    """The sum of the known costs; None if there is none, and something that was charged is unknown."""
    is_part = sums["unknown_requests"] or sums["lower_bound_requests"]
    return None if is_part and not sums["cost_nano"] else sums["cost_nano"]


def average_cost(sums: Sums) -> float:
    """Average cost of the calls whose cost is known, in US$: NaN if there are only others, 0 without calls."""
    known = sums["calls"] - sums["unknown_calls"]
    if known_nano(sums) is None or (known <= 0 and sums["unknown_requests"]):
        return math.nan
    return to_usd(sums["cost_nano"] - sums["adjustment_nano"]) / known if known > 0 else 0.0
