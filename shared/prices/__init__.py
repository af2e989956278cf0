"""Usage units to nano-dollars, and the most that a request can cost."""

from typing import TYPE_CHECKING

from shared.internal.lazy import lazy_exports

if TYPE_CHECKING:
    from shared.prices.bound import (
        FREE_BOUND as FREE_BOUND,
        Bound as Bound,
        Sent as Sent,
        as_sent as as_sent,
        bound_of_sent as bound_of_sent,
        highest_bound as highest_bound,
        image_bound as image_bound,
        limit_of as limit_of,
        marks_of as marks_of,
        max_prompt_tokens as max_prompt_tokens,
        only_text as only_text,
        pin_of as pin_of,
        text_size as text_size,
    )
    from shared.prices.cost import (
        Cost as Cost,
        all_units as all_units,
        itemised as itemised,
        price as price,
        token_cost as token_cost,
    )
    from shared.prices.rates import (
        FREE as FREE,
        UNKNOWN as UNKNOWN,
        rates_of as rates_of,
        rates_of_config as rates_of_config,
        scaled as scaled,
    )
    from shared.prices.table import (
        PriceTable as PriceTable,
        TableEntry as TableEntry,
        price_overrides as price_overrides,
        price_table as price_table,
        table_date as table_date,
        table_version as table_version,
    )
    from shared.prices.unfinished import (
        bills_blocked as bills_blocked,
        ends_with_connection as ends_with_connection,
        ends_with_error as ends_with_error,
        errors_are_free as errors_are_free,
        generated_at_most as generated_at_most,
    )
    from shared.prices.units import TOKENS as TOKENS
else:
    # Pydantic's models of the price table take time to build.
    __getattr__ = lazy_exports(
        __name__,
        {
            "bound": "FREE_BOUND Bound Sent as_sent bound_of_sent highest_bound image_bound limit_of marks_of "
            "max_prompt_tokens only_text pin_of text_size",
            "cost": "Cost all_units itemised price token_cost",
            "rates": "FREE UNKNOWN rates_of rates_of_config scaled",
            "table": "PriceTable TableEntry price_overrides price_table table_date table_version",
            "unfinished": "bills_blocked ends_with_connection ends_with_error errors_are_free generated_at_most",
            "units": "TOKENS",
        },
    )
