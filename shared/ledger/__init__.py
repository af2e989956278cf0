"""The rows, running totals and sums of every attempt, in SQLite or PostgreSQL."""

from typing import TYPE_CHECKING

from shared.internal.lazy import lazy_exports

if TYPE_CHECKING:
    from shared.ledger.accounts import (
        Admission as Admission,
        BudgetStatus as BudgetStatus,
        forget_budget as forget_budget,
        store_budget as store_budget,
    )
    from shared.ledger.adjustments import (
        adjustment as adjustment,
        adjustment_of as adjustment_of,
        attempt_of as attempt_of,
        enter as enter,
        priced_attempts as priced_attempts,
        repriced as repriced,
    )
    from shared.ledger.alerts import (
        Alert as Alert,
        Seen as Seen,
        add_alerts as add_alerts,
        claim as claim,
        due as due,
        first_attempt_us as first_attempt_us,
        has_spike as has_spike,
        mark_delivered as mark_delivered,
        mark_failed as mark_failed,
        spike as spike,
        undelivered as undelivered,
    )
    from shared.ledger.answers import Answers as Answers, answers_of as answers_of
    from shared.ledger.bills import (
        Billed as Billed,
        Reconciled as Reconciled,
        attempts_billed as attempts_billed,
        billed as billed,
        has_late as has_late,
        line_fits as line_fits,
        reconciled as reconciled,
        reconciling as reconciling,
    )
    from shared.ledger.calls import (
        KINDS as KINDS,
        CallRecord as CallRecord,
        call_record as call_record,
        calls_in as calls_in,
    )
    from shared.ledger.closing import (
        ClosedMonth as ClosedMonth,
        Figures as Figures,
        as_entered as as_entered,
        close_month as close_month,
        closed_months as closed_months,
    )
    from shared.ledger.engine import may_use_wal as may_use_wal
    from shared.ledger.events import (
        adjustment_row as adjustment_row,
        cost_nano_of as cost_nano_of,
        cost_row as cost_row,
        event_row as event_row,
        safe_metadata as safe_metadata,
        uuid_of as uuid_of,
    )
    from shared.ledger.export import csv_cell as csv_cell, write_attempts as write_attempts
    from shared.ledger.forgetting import FORGOTTEN as FORGOTTEN, Known as Known, forget as forget, known_of as known_of
    from shared.ledger.grouped import (
        FIGURES as FIGURES,
        GRAINS as GRAINS,
        Grouped as Grouped,
        all_grouped as all_grouped,
        grouped_sums as grouped_sums,
        is_empty as is_empty,
        label_names as label_names,
    )
    from shared.ledger.health import (
        Unknown as Unknown,
        latencies as latencies,
        unknowns as unknowns,
    )
    from shared.ledger.image_lineage import (
        ImageLineage as ImageLineage,
        lineages_of as lineages_of,
    )
    from shared.ledger.maintenance import back_up as back_up, problems as problems, repair as repair, vacuum as vacuum
    from shared.ledger.query import (
        UNALLOCATED as UNALLOCATED,
        BudgetForecast as BudgetForecast,
        Filter as Filter,
        RecentPrompt as RecentPrompt,
        Window as Window,
        agents_used_tools as agents_used_tools,
        all_budget_forecasts as all_budget_forecasts,
        average_output as average_output,
        average_outputs as average_outputs,
        budget_forecasts as budget_forecasts,
        own_filter as own_filter,
        recent_prompts as recent_prompts,
        window as window,
    )
    from shared.ledger.records import attempt_lines as attempt_lines, attempt_records as attempt_records
    from shared.ledger.reservations import (
        Reservation as Reservation,
        open_reservations as open_reservations,
        release as release,
    )
    from shared.ledger.retention import (
        Prunable as Prunable,
        prunable as prunable,
        prune as prune,
        removed_before as removed_before,
    )
    from shared.ledger.row import COUNTS as COUNTS, AttemptRow as AttemptRow, Status as Status
    from shared.ledger.schema import LATENCY_MS as LATENCY_MS
    from shared.ledger.sqlite_library import connect as connect, library_name as library_name
    from shared.ledger.store import (
        STOPPED_PATIENCE_S as STOPPED_PATIENCE_S,
        Ledger as Ledger,
        committed as committed,
        get_ledger as get_ledger,
    )
    from shared.ledger.sums import catch_up as catch_up
    from shared.ledger.writes import LeastBound as LeastBound
else:
    # SQLAlchemy takes time to import.
    __getattr__ = lazy_exports(
        __name__,
        {
            "accounts": "Admission BudgetStatus forget_budget store_budget",
            "adjustments": "adjustment adjustment_of attempt_of enter priced_attempts repriced",
            "alerts": "Alert Seen add_alerts claim due first_attempt_us has_spike mark_delivered mark_failed spike "
            "undelivered",
            "answers": "Answers answers_of",
            "bills": "Billed Reconciled attempts_billed billed has_late line_fits reconciled reconciling",
            "calls": "KINDS CallRecord call_record calls_in",
            "closing": "ClosedMonth Figures as_entered close_month closed_months",
            "engine": "may_use_wal",
            "events": "adjustment_row cost_nano_of cost_row event_row safe_metadata uuid_of",
            "export": "csv_cell write_attempts",
            "forgetting": "FORGOTTEN Known forget known_of",
            "grouped": "FIGURES GRAINS Grouped all_grouped grouped_sums is_empty label_names",
            "health": "Unknown latencies unknowns",
            "image_lineage": "ImageLineage lineages_of",
            "maintenance": "back_up problems repair vacuum",
            "query": "BudgetForecast Filter agents_used_tools all_budget_forecasts average_output "
            "average_outputs RecentPrompt UNALLOCATED Window budget_forecasts own_filter recent_prompts window",
            "records": "attempt_lines attempt_records",
            "reservations": "Reservation open_reservations release",
            "retention": "Prunable prunable prune removed_before",
            "row": "COUNTS AttemptRow Status",
            "schema": "LATENCY_MS",
            "sqlite_library": "connect library_name",
            "store": "STOPPED_PATIENCE_S Ledger committed get_ledger",
            "sums": "catch_up",
            "writes": "LeastBound",
        },
    )
