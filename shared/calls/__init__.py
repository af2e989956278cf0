"""The flow of one call: prepare, choose the next candidate, hold, attempt, settle."""

from typing import TYPE_CHECKING

from shared.internal.lazy import lazy_exports

if TYPE_CHECKING:
    from shared.calls.background import blocking as blocking, run_blocking as run_blocking
    from shared.calls.call import Attempt as Attempt, Call as Call, OnEnd as OnEnd, bound_of as bound_of
    from shared.calls.checks import check_request as check_request, check_seconds as check_seconds
    from shared.calls.flow import answer_of as answer_of, record_refusal as record_refusal, run_call as run_call
    from shared.calls.hold import warn_untracked as warn_untracked
    from shared.calls.images import (
        image_id as image_id,
        image_options as image_options,
        look_at_images as look_at_images,
        make_images as make_images,
        scope_folder as scope_folder,
    )
    from shared.calls.selection import chosen_plan as chosen_plan
    from shared.calls.stream import LLMStream as LLMStream
else:
    # The flow of a call stands on everything below it, which takes time to import.
    __getattr__ = lazy_exports(
        __name__,
        {
            "background": "blocking run_blocking",
            "call": "Attempt Call OnEnd bound_of",
            "checks": "check_request check_seconds",
            "flow": "answer_of record_refusal run_call",
            "hold": "warn_untracked",
            "images": "image_id image_options look_at_images make_images scope_folder",
            "selection": "chosen_plan",
            "stream": "LLMStream",
        },
    )
