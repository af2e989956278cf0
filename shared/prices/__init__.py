"""Usage units to nano-dollars, and the most that a request can cost."""

from shared.prices.bound import affordable_output, max_prompt_tokens, only_text, upper_bound
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
    "TOKENS",
    "UNKNOWN",
    "Cost",
    "PriceTable",
    "TableEntry",
    "affordable_output",
    "all_units",
    "bills_blocked",
    "ends_with_connection",
    "ends_with_error",
    "errors_are_free",
    "generated_at_most",
    "itemised",
    "max_prompt_tokens",
    "only_text",
    "price",
    "price_overrides",
    "price_table",
    "rates_of",
    "rates_of_config",
    "scaled",
    "token_cost",
    "upper_bound",
]
