"""Costs as text, tables, JSON and Markdown."""

from typing import TYPE_CHECKING

from shared.internal.lazy import lazy_exports
from shared.reports.formats import (
    budget_line,
    counted,
    footer,
    group_cost,
    known_cost,
    notes,
    period,
    prices_line,
    printable,
    provider_costs,
    render,
    savings_text,
    total_cost,
    usd,
)

if TYPE_CHECKING:
    from shared.reports.repricing import Repriced as Repriced, reprice as reprice, totals as totals
else:
    # Reports need neither the catalogue nor the price table.
    __getattr__ = lazy_exports(__name__, {"repricing": "Repriced reprice totals"})

__all__ = [
    "budget_line",
    "counted",
    "footer",
    "group_cost",
    "known_cost",
    "notes",
    "period",
    "prices_line",
    "printable",
    "provider_costs",
    "render",
    "savings_text",
    "total_cost",
    "usd",
]
