"""Costs as text, tables, JSON and Markdown."""

from typing import TYPE_CHECKING

from shared.internal.lazy import lazy_exports
from shared.reports.formats import budget_line, footer, period, prices_line, printable, render

if TYPE_CHECKING:
    from shared.reports.repricing import Repriced as Repriced, reprice as reprice, totals as totals
else:
    # Reports need neither the catalogue nor the price table.
    __getattr__ = lazy_exports(__name__, {"repricing": "Repriced reprice totals"})

__all__ = ["budget_line", "footer", "period", "prices_line", "printable", "render"]
