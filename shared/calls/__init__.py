"""The flow of one call: prepare, choose the next candidate, hold, attempt, settle."""

from shared.calls.background import blocking, run_blocking
from shared.calls.call import Call, bound_of
from shared.calls.checks import check_request, check_seconds
from shared.calls.flow import answer_of, record_refusal, run_call
from shared.calls.hold import warn_untracked
from shared.calls.images import image_id, image_options, look_at_images, make_images, scope_folder
from shared.calls.selection import chosen_plan
from shared.calls.stream import LLMStream

__all__ = [
    "Call",
    "LLMStream",
    "answer_of",
    "blocking",
    "bound_of",
    "check_request",
    "check_seconds",
    "chosen_plan",
    "image_id",
    "image_options",
    "look_at_images",
    "make_images",
    "record_refusal",
    "run_blocking",
    "run_call",
    "scope_folder",
    "warn_untracked",
]
