"""Costs as text, tables, JSON, CSV, Markdown and HTML, and the periods and groups that they are of."""

from typing import TYPE_CHECKING

from shared.internal.lazy import lazy_exports
from shared.reports.formats import (
    budget_line,
    counted,
    footer,
    group_cost,
    known_cost,
    markdown,
    notes,
    period,
    period_text,
    prices_line,
    printable,
    provider_costs,
    removed_note,
    render,
    savings_text,
    total_cost,
    usd,
)

if TYPE_CHECKING:
    from shared.reports.alerts import Delivery as Delivery, check_alerts as check_alerts, watch as watch
    from shared.reports.calls import attempt_dict as attempt_dict, call_dict as call_dict
    from shared.reports.costs import OF_COSTS as OF_COSTS, sum_costs as sum_costs
    from shared.reports.forecast import month_forecast as month_forecast, runs_out as runs_out
    from shared.reports.groups import (
        COLUMNS as COLUMNS,
        check_names as check_names,
        dimensions as dimensions,
        groups_of as groups_of,
        narrowed as narrowed,
        totals_of as totals_of,
    )
    from shared.reports.page import html_page as html_page, page_keys as page_keys
    from shared.reports.periods import (
        period_before as period_before,
        span_of as span_of,
        window_text as window_text,
    )
    from shared.reports.reconcile import (
        Line as Line,
        Reconciliation as Reconciliation,
        reconcile_bill as reconcile_bill,
    )
    from shared.reports.repricing import Repriced as Repriced, reprice as reprice, totals as totals
    from shared.reports.tables import (
        EXACT as EXACT,
        csv_text as csv_text,
        decimals_for as decimals_for,
        lines_of as lines_of,
        money as money,
        percent as percent,
        table_of as table_of,
        usd_text as usd_text,
    )
    from shared.reports.telemetry import call_watch as call_watch, flush_telemetry as flush_telemetry
else:
    # Texts need no ledger; reports need neither the catalogue nor the price table.
    __getattr__ = lazy_exports(
        __name__,
        {
            "alerts": "Delivery check_alerts watch",
            "calls": "attempt_dict call_dict",
            "costs": "OF_COSTS sum_costs",
            "forecast": "month_forecast runs_out",
            "groups": "COLUMNS check_names dimensions groups_of narrowed totals_of",
            "page": "html_page page_keys",
            "periods": "period_before span_of window_text",
            "reconcile": "Line Reconciliation reconcile_bill",
            "repricing": "Repriced reprice totals",
            "tables": "EXACT csv_text decimals_for lines_of money percent table_of usd_text",
            "telemetry": "call_watch flush_telemetry",
        },
    )

__all__ = [
    "budget_line",
    "counted",
    "footer",
    "group_cost",
    "known_cost",
    "markdown",
    "notes",
    "period",
    "period_text",
    "prices_line",
    "printable",
    "provider_costs",
    "removed_note",
    "render",
    "savings_text",
    "total_cost",
    "usd",
]
