"""The rows, running totals and sums of every attempt, in SQLite or PostgreSQL."""

from typing import TYPE_CHECKING

from shared.internal.lazy import lazy_exports

if TYPE_CHECKING:
    from shared.ledger.accounts import (
        Admission as Admission,
    )
    from shared.ledger.accounts import (
        BudgetStatus as BudgetStatus,
    )
    from shared.ledger.accounts import (
        forget_budget as forget_budget,
    )
    from shared.ledger.accounts import (
        store_budget as store_budget,
    )
    from shared.ledger.engine import wal_is_safe as wal_is_safe
    from shared.ledger.events import (
        cost_nano_of as cost_nano_of,
    )
    from shared.ledger.events import (
        cost_row as cost_row,
    )
    from shared.ledger.events import (
        event_row as event_row,
    )
    from shared.ledger.events import (
        safe_metadata as safe_metadata,
    )
    from shared.ledger.events import (
        uuid_of as uuid_of,
    )
    from shared.ledger.export import write_records as write_records
    from shared.ledger.image_lineage import (
        ImageLineage as ImageLineage,
    )
    from shared.ledger.image_lineage import (
        image_savings as image_savings,
    )
    from shared.ledger.image_lineage import (
        lineages_of as lineages_of,
    )
    from shared.ledger.query import (
        BudgetForecast as BudgetForecast,
    )
    from shared.ledger.query import (
        Filter as Filter,
    )
    from shared.ledger.query import (
        all_budget_forecasts as all_budget_forecasts,
    )
    from shared.ledger.query import (
        attempt_records as attempt_records,
    )
    from shared.ledger.query import (
        average_output as average_output,
    )
    from shared.ledger.query import (
        budget_forecasts as budget_forecasts,
    )
    from shared.ledger.query import (
        sum_costs as sum_costs,
    )
    from shared.ledger.query import (
        window as window,
    )
    from shared.ledger.schema import bucket_of as bucket_of
    from shared.ledger.store import Ledger as Ledger
    from shared.ledger.store import get_ledger as get_ledger
else:
    # SQLAlchemy takes time to import.
    __getattr__ = lazy_exports(
        __name__,
        {
            "accounts": "Admission BudgetStatus forget_budget store_budget",
            "engine": "wal_is_safe",
            "events": "cost_nano_of cost_row event_row safe_metadata uuid_of",
            "export": "write_records",
            "image_lineage": "ImageLineage lineages_of image_savings",
            "query": "BudgetForecast Filter all_budget_forecasts attempt_records average_output budget_forecasts "
            "sum_costs window",
            "schema": "bucket_of",
            "store": "Ledger get_ledger",
        },
    )
