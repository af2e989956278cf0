"""What the tools and the agent model share: runs and their loops, JSON Schema answers, image results."""

from typing import TYPE_CHECKING

from shared.internal.lazy import lazy_exports

if TYPE_CHECKING:
    from shared.runs.answer_schema import (
        MAX_SCHEMA_CHARS as MAX_SCHEMA_CHARS,
        Mismatch as Mismatch,
        ask_until_match as ask_until_match,
        check_schema as check_schema,
        schema_instruction as schema_instruction,
    )
    from shared.runs.image_results import (
        is_source as is_source,
        lineage_cost as lineage_cost,
        previews as previews,
        total_cost as total_cost,
    )
    from shared.runs.loops import Caller as Caller, Watch as Watch, caller_of as caller_of, watch_of as watch_of
else:
    # Lazy, because the image results need Pillow and the ledger, which are slow to import.
    __getattr__ = lazy_exports(
        __name__,
        {
            "answer_schema": "MAX_SCHEMA_CHARS Mismatch ask_until_match check_schema schema_instruction",
            "image_results": "is_source lineage_cost previews total_cost",
            "loops": "Caller Watch caller_of watch_of",
        },
    )
