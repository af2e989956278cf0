"""Costs as text, tables, JSON and Markdown."""

from shared.reports.formats import budget_line, footer, period, prices_line, printable, render, savings_text

__all__ = ["budget_line", "footer", "period", "prices_line", "printable", "render", "savings_text"]
