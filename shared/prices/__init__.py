"""Usage units to nano-dollars, and the most that a request can cost."""

from shared.prices.bound import affordable_output, max_prompt_tokens, only_text, upper_bound
from shared.prices.cost import price, token_cost
from shared.prices.images import with_sizes
from shared.prices.table import (
    FREE,
    UNKNOWN,
    TableEntry,
    model_facts,
    price_overrides,
    price_table,
    rates_of,
    rates_of_config,
)

__all__ = [
    "FREE",
    "UNKNOWN",
    "TableEntry",
    "affordable_output",
    "max_prompt_tokens",
    "model_facts",
    "only_text",
    "price",
    "price_overrides",
    "price_table",
    "rates_of",
    "rates_of_config",
    "token_cost",
    "upper_bound",
    "with_sizes",
]
