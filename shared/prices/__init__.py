"""Usage units to nano-dollars, and the most that a request can cost."""

from shared.prices.bound import (
    FREE_BOUND,
    Bound,
    Sent,
    as_sent,
    bound_of_sent,
    highest_bound,
    image_bound,
    limit_of,
    marks_of,
    max_prompt_tokens,
    only_text,
    pin_of,
    text_size,
)
from shared.prices.cost import Cost, all_units, itemised, price, token_cost
from shared.prices.rates import FREE, UNKNOWN, rates_of, rates_of_config, scaled
from shared.prices.table import PriceTable, TableEntry, price_overrides, price_table
from shared.prices.unfinished import (
    bills_blocked,
    ends_with_connection,
    ends_with_error,
    errors_are_free,
    generated_at_most,
)
from shared.prices.units import TOKENS

__all__ = [
    "FREE",
    "FREE_BOUND",
    "TOKENS",
    "UNKNOWN",
    "Bound",
    "Cost",
    "PriceTable",
    "Sent",
    "TableEntry",
    "all_units",
    "as_sent",
    "bills_blocked",
    "bound_of_sent",
    "ends_with_connection",
    "ends_with_error",
    "errors_are_free",
    "generated_at_most",
    "highest_bound",
    "image_bound",
    "itemised",
    "limit_of",
    "marks_of",
    "max_prompt_tokens",
    "only_text",
    "pin_of",
    "price",
    "price_overrides",
    "price_table",
    "rates_of",
    "rates_of_config",
    "scaled",
    "text_size",
    "token_cost",
]
