"""Costs as text, tables, JSON and Markdown."""

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
    total_cost,
    usd,
)

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
    "total_cost",
    "usd",
]
