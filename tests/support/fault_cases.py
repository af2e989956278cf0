"""The fault matrix: what goes wrong on the wire, and what the client makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.support.asking import HAIKU, MINI
from tests.support.provider_double import Fault

type Then = Literal["again", "once", "next", "raise", "answered"]
type Cost = Literal["free", "unknown", "counted", "table"]
type Door = Literal["open", "refused", "unresolvable", "untrusted", "plain"]
type Limit = Literal["", "timeout", "deadline", "idle", "retry-after"]

FLASH = "gemini/gemini-2.5-flash"
MAX_RETRIES = 2
# What may have been billed is asked twice at most; see docs/how-a-call-goes.md.
MAX_UNKNOWN = 2
OPERATIONS = ("text", "vision")
MODES = ("sync", "async", "stream", "astream")
PLAIN, STREAMED = ("sync", "async"), ("stream", "astream")


@dataclass(frozen=True)
class FaultCase:
    """
    One fault of the first model's provider, and what must come of it.

    Args:
        name: Id of the test.

        ids: The faults of the project's list that it covers.

        what: The fault, in words.

        error: Class of the error of each attempt; "" when the model answers nevertheless.

        then: What the flow does: asks "again" (MAX_RETRIES times), "once" more, the "next" model, or "raise"s. The
            first two end with the next model too.

        cost: What is recorded of each failed attempt, or of the answer.

        reply: Fields of the double's Reply, for each request.

        door: How the provider's address is found.

        limit: What ends the attempt, when the provider does not.

        recorded: `error_type` of the row, where it is not `error`.

        text: What a broken stream's error brings along.
    """

    name: str
    ids: tuple[str, ...]
    what: str
    error: str
    then: Then
    cost: Cost
    reply: Mapping[str, Any] = field(default_factory=dict)
    door: Door = "open"
    modes: tuple[str, ...] = MODES
    ops: tuple[str, ...] = OPERATIONS
    model: str = MINI
    limit: Limit = ""
    recorded: str = ""
    text: str = ""

    @property
    def asked(self) -> int:
        """Requests of the first model, when no other waits."""
        return {"again": 1 + MAX_RETRIES, "once": MAX_UNKNOWN}.get(self.then, 1)

    @property
    def asked_before_next(self) -> int:
        """Requests of the first model, when another waits, which is asked rather than waited for."""
        return 1

    @property
    def falls_back(self) -> bool:
        """Whether the next model is asked."""
        return self.then in ("again", "once", "next")

    @property
    def status(self) -> str:
        """`status` of each of the first model's rows."""
        if self.then == "answered":
            return "ok"
        return "interrupted" if self.error == "StreamInterrupted" else "failed"


def _said(status: int, message: str, **more: Any) -> dict[str, Any]:
    """A reply with an error body of OpenAI's."""
    return {"status": status, "body": {"error": {"message": message, **more}}}


def _status(status: int, **headers: str) -> dict[str, Any]:
    return {"status": status, "headers": headers}


_FOUR = "one two three four"
_BREAKS: dict[str, Any] = {"modes": STREAMED, "text": "one two"}


def _breaks(name: str, ids: str, what: str, fault: Fault, **more: Any) -> FaultCase:
    """A stream that breaks after its second chunk."""
    reply = {"text": _FOUR, "fault": fault, "after": 2, **more.pop("reply", {})}
    given = {**_BREAKS, **more}
    return FaultCase(name, tuple(ids.split()), what, "StreamInterrupted", "raise", "counted", reply, **given)


def _turned_away(name: str, ids: str, what: str, error: str, then: Then, reply: Any, **more: Any) -> FaultCase:
    """An answer by which the provider says no, and which costs nothing."""
    return FaultCase(name, tuple(ids.split()), what, error, then, "free", reply, **more)


def _unknown(name: str, ids: str, what: str, error: str, reply: Any, **more: Any) -> FaultCase:
    """A fault after which it is unknown whether the request was carried out."""
    return FaultCase(name, tuple(ids.split()), what, error, more.pop("then", "once"), "unknown", reply, **more)


def _answered(name: str, ids: str, what: str, reply: Any, cost: Cost = "table", **more: Any) -> FaultCase:
    """Something odd that does not keep the model from answering."""
    return FaultCase(name, tuple(ids.split()), what, "", "answered", cost, reply, **more)


CONNECTING = (
    FaultCase("refused", ("F01",), "Connection refused", "ProviderUnavailable", "again", "free", door="refused"),
    FaultCase(
        "no-name", ("F02",), "Host name cannot be resolved", "ProviderUnavailable", "again", "free", door="unresolvable"
    ),
    FaultCase(
        "bad-certificate",
        ("F03",),
        "Untrusted TLS certificate",
        "ProviderUnavailable",
        "next",
        "free",
        door="untrusted",
    ),
    FaultCase("no-tls", ("F03",), "No TLS on the other side", "ProviderUnavailable", "again", "free", door="plain"),
)

WAITING = (
    _unknown(
        "slow-headers", "F05", "No answer begins", "ProviderTimeout", {"fault": Fault.STALL_HEADERS}, limit="timeout"
    ),
    _unknown(
        "slow-first-chunk",
        "F10",
        "Headers, and then nothing",
        "ProviderTimeout",
        {"fault": Fault.STALL_FIRST_CHUNK},
        modes=STREAMED,
        limit="timeout",
    ),
    _unknown(
        "dripping-body",
        "F07",
        "An answer that comes byte by byte",
        "ProviderTimeout",
        {"fault": Fault.DRIP},
        modes=PLAIN,
        limit="timeout",
    ),
    _unknown(
        "dripping-past-the-deadline",
        "F07",
        "An answer that comes byte by byte, past the deadline",
        "DeadlineExceeded",
        {"fault": Fault.DRIP},
        modes=PLAIN,
        then="raise",
        limit="deadline",
    ),
    _breaks(
        "dripping-stream",
        "F08",
        "A stream that goes on past the deadline",
        Fault.DRIP,
        reply={"text": "one two " * 200},
        text="one two",
        limit="deadline",
        recorded="DeadlineExceeded",
    ),
    _breaks(
        "stalling-stream", "F09", "A stream that stalls", Fault.STALL_STREAM, limit="idle", recorded="ProviderTimeout"
    ),
)

STREAMS = (
    _breaks("reset-stream", "F11 F12", "Connection reset in a stream", Fault.RESET_STREAM),
    _breaks("closed-stream", "F11 F12", "Connection closed in a stream", Fault.CLOSE_STREAM),
    _breaks(
        "clean-end", "F13", "Stream that just ends, without finish reason or end mark", Fault.CLEAN_EOF, text=_FOUR
    ),
    _answered(
        "no-finish-reason",
        "F14",
        "End mark without a finish reason",
        {"fault": Fault.DONE_WITHOUT_FINISH},
        modes=STREAMED,
    ),
    _unknown(
        "html-stream",
        "F15",
        "HTML page with status 200 for a stream",
        "BadResponse",
        {"fault": Fault.HTML},
        modes=STREAMED,
    ),
    _unknown("empty-stream", "F16", "Empty body for a stream", "BadResponse", {"fault": Fault.EMPTY}, modes=STREAMED),
    _unknown(
        "only-done",
        "F16",
        "Stream of nothing but its end mark",
        "BadResponse",
        {"fault": Fault.ONLY_DONE},
        modes=STREAMED,
    ),
    _breaks("bad-json-in-stream", "F17", "Malformed JSON in a stream", Fault.TRUNCATED_JSON),
    _breaks("bad-utf8-in-stream", "F18", "Bytes that are no UTF-8 in a stream", Fault.BAD_UTF8),
    _turned_away(
        "overloaded-before-first-chunk",
        "F19",
        "Error event before the first chunk: overloaded",
        "Overloaded",
        "again",
        {"fault": Fault.ERROR_EVENT, "after": 0, "error": "overloaded"},
        model=HAIKU,
        modes=STREAMED,
    ),
    _breaks("error-event", "F19", "Error event after a chunk", Fault.ERROR_EVENT),
    _answered(
        "duplicated-chunks",
        "F20",
        "Every chunk twice (passed on as they come)",
        {"text": _FOUR, "fault": Fault.DUPLICATED_CHUNKS},
        modes=STREAMED,
    ),
    _answered(
        "two-usages",
        "F21",
        "Two usage reports (the last one counts)",
        {"fault": Fault.TWO_USAGE_CHUNKS},
        modes=STREAMED,
    ),
    _answered(
        "chunks-after-done",
        "F22",
        "Chunks after the end mark (ignored)",
        {"fault": Fault.CHUNKS_AFTER_DONE},
        modes=STREAMED,
    ),
    _answered("same-chunks", "F23", "150 chunks that are all the same", {"chunks": ["na "] * 150}, modes=STREAMED),
)

REJECTED = (
    _turned_away(
        "429-wait",
        "F26",
        "429 with a short `Retry-After`",
        "RateLimitError",
        "again",
        _status(429, **{"retry-after": "0.05"}),
        limit="retry-after",
    ),
    _turned_away(
        "429-past-date",
        "F27",
        "429 with a `Retry-After` in the past",
        "RateLimitError",
        "again",
        _status(429, **{"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    ),
    _turned_away(
        "429-far-date",
        "F27",
        "429 with a `Retry-After` far in the future",
        "RateLimitError",
        "next",
        _status(429, **{"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"}),
    ),
    _turned_away(
        "429-absurd",
        "F28",
        "429 with `Retry-After: 999999999`",
        "RateLimitError",
        "next",
        _status(429, **{"retry-after": "999999999"}),
    ),
    *(
        _turned_away(
            f"429-{word}",
            "F28",
            f"429 with `Retry-After: {word}` (taken as none)",
            "RateLimitError",
            "again",
            _status(429, **{"retry-after": word}),
        )
        for word in ("-1", "NaN", "soon")
    ),
    _turned_away("429-quota", "F29", "429 `insufficient_quota`", "QuotaExhausted", "next", {"error": "quota"}),
    _turned_away(
        "429-no-retry",
        "F29",
        "429 with `x-should-retry: false`",
        "QuotaExhausted",
        "next",
        _status(429, **{"x-should-retry": "false"}),
    ),
    _turned_away(
        "429-spend-limit",
        "F29",
        "429 that speaks of a monthly spend limit",
        "QuotaExhausted",
        "next",
        {
            "status": 429,
            "message": "This request would exceed your organization's monthly spend limit.",
            "headers": {"retry-after": None, "x-should-retry": None},
        },
        model=HAIKU,
    ),
    _turned_away("402", "F30", "402", "QuotaExhausted", "next", _status(402)),
    _unknown("500", "F31", "500", "ProviderUnavailable", _status(500)),
    _unknown("502", "F31", "502", "ProviderUnavailable", _status(502)),
    _unknown("504", "F31", "504", "ProviderUnavailable", _status(504)),
    _turned_away("503", "F33", "503", "Overloaded", "again", _status(503)),
    _turned_away("529", "F34", "529", "Overloaded", "again", _status(529)),
    _unknown("408", "F35", "408", "ProviderTimeout", _status(408)),
    _unknown("409", "F35", "409", "ProviderUnavailable", _status(409)),
    _turned_away("401", "F36", "401", "AuthenticationError", "next", _status(401)),
    _turned_away("403", "F37", "403", "AuthenticationError", "next", _status(403)),
    _turned_away("404", "F38", "404", "ModelNotFound", "next", _status(404)),
    _turned_away("context", "F39", "400: the input is too long", "ContextTooLong", "next", {"error": "context_length"}),
    _turned_away(
        "blocked", "F40", "400: refused by content rules", "ContentBlocked", "raise", {"error": "content_policy"}
    ),
    _turned_away("400", "F41", "400", "InvalidRequest", "raise", _status(400)),
    _turned_away("413", "F41", "413", "ContextTooLong", "next", _status(413)),
    _turned_away("422", "F41", "422", "InvalidRequest", "raise", _status(422)),
    _turned_away(
        "redirect", "F42", "Redirect to another host (not followed)", "BadResponse", "next", {"fault": Fault.REDIRECT}
    ),
)

UNREADABLE = (
    _unknown(
        "reset-before-headers",
        "F43",
        "Connection lost before the answer",
        "ProviderUnavailable",
        {"fault": Fault.RESET_BEFORE_HEADERS},
    ),
    _unknown(
        "reset-after-headers",
        "F43",
        "Connection lost after the headers",
        "BadResponse",
        {"fault": Fault.RESET_AFTER_HEADERS},
    ),
    _unknown("html", "F43", "HTML page with status 200", "BadResponse", {"fault": Fault.HTML}, modes=PLAIN),
    _unknown("empty", "F43", "Empty body with status 200", "BadResponse", {"fault": Fault.EMPTY}, modes=PLAIN),
    _unknown("list", "F43", "`[]` for an answer", "BadResponse", {"body": []}),
    _unknown("null", "F43", "`null` for an answer", "BadResponse", {"body": None}),
    _unknown("half-json", "F43", "Half of the JSON", "BadResponse", {"fault": Fault.TRUNCATED_JSON}, modes=PLAIN),
    _unknown("not-utf8", "F43", "Bytes that are no UTF-8", "BadResponse", {"fault": Fault.BAD_UTF8}, modes=PLAIN),
    _unknown(
        "content-length-too-long",
        "F43",
        "Less than `Content-Length` says",
        "BadResponse",
        {"fault": Fault.LENGTH_TOO_LONG},
        modes=PLAIN,
    ),
    _unknown(
        "content-length-too-short",
        "F43",
        "More than `Content-Length` says",
        "BadResponse",
        {"fault": Fault.LENGTH_TOO_SHORT},
        modes=PLAIN,
    ),
    _turned_away(
        "error-in-200-limit",
        "F44",
        "Error body with status 200: rate limit",
        "RateLimitError",
        "again",
        {"fault": Fault.ERROR_200, "error": "rate_limit"},
        modes=PLAIN,
    ),
    _turned_away(
        "error-in-200-key",
        "F44",
        "Error body with status 200: wrong key",
        "AuthenticationError",
        "next",
        {"fault": Fault.ERROR_200, "error": "auth"},
        modes=PLAIN,
    ),
    _unknown(
        "error-in-200-server",
        "F44",
        "Error body with status 200: server error",
        "ProviderUnavailable",
        {"fault": Fault.ERROR_200, "error": "server"},
        modes=PLAIN,
    ),
    FaultCase(
        "no-choices", ("F45",), "Answer without a choice", "BadResponse", "once", "table", {"fault": Fault.NO_CHOICES}
    ),
    _unknown(
        "compressed",
        "F55",
        "Compressed body (a bomb, perhaps)",
        "BadResponse",
        {"fault": Fault.GZIP_BOMB, "size": 2**20},
        then="next",
    ),
    _unknown(
        "too-large",
        "F54",
        "Answer larger than the cap",
        "BadResponse",
        {"fault": Fault.OVERSIZE, "size": 3 * 2**20},
        modes=PLAIN,
        then="next",
    ),
)

STRANGE = (
    _answered("null-content", "F46", "Content `null`", {"fault": Fault.NULL_CONTENT}, modes=PLAIN),
    _answered("unknown-finish", "F47", "Unknown finish reason (taken as `stop`)", {"finish_reason": "banana"}),
    _answered("no-usage", "F48 F49", "No usage (we count)", {"fault": Fault.USAGE_MISSING}, "counted"),
    _answered("negative-usage", "F50", "Negative usage (unknown cost)", {"fault": Fault.USAGE_NEGATIVE}, "unknown"),
    _answered("absurd-usage", "F51", "Usage of 10^15 tokens (unknown cost)", {"fault": Fault.USAGE_ABSURD}, "unknown"),
    _answered("usage-as-text", "F52", "Usage as text (unknown cost)", {"fault": Fault.USAGE_STRING}, "unknown"),
    _answered("usage-nan", "F52", "Usage `NaN` (unknown cost)", {"fault": Fault.USAGE_NAN}, "unknown"),
    _answered("other-model", "F53", "Another model answers (priced as the one asked)", {"fault": Fault.OTHER_MODEL}),
    _answered("lone-surrogate", "F56", "Half of a surrogate pair in the text (replaced)", {"text": "so \ud83d so"}),
    _answered("large", "F54", "1 MiB of text", {"fault": Fault.OVERSIZE, "size": 2**20}),
)

GROUPS: Mapping[str, tuple[FaultCase, ...]] = {
    "No connection": CONNECTING,
    "No answer in time": WAITING,
    "Streams": STREAMS,
    "Turned away": REJECTED,
    "Answers that cannot be read": UNREADABLE,
    "Odd answers": STRANGE,
}
CASES = tuple(case for cases in GROUPS.values() for case in cases)

# Where the faults are looked after that are no single answer of a provider, or why they are not.
ELSEWHERE: Mapping[str, str] = {
    "F04": "calls/test_fault_matrix.py::test_no_free_connection",
    "F06": "calls/test_images.py::test_what_may_be_paid_is_not_asked_for_again",
    "F24": "test_llm_client.py::test_abandoned_stream",
    "F25": "test_llm_client.py::test_stream_is_sent_at_first_next",
    "F32": "calls/test_images.py::test_what_may_be_paid_is_not_asked_for_again",
    "F57": "calls/test_images.py::test_a_paid_answer_without_an_image",
    "F58": "soak/test_interrupt.py::test_ctrl_c_ends_a_call",
    "F59": "test_llm_client.py::test_cancelled_task_is_settled",
    "F60": "test_base_tool.py::test_cancelled_tool_stops_its_calls",
    "F61": "soak/test_faults.py::test_kills",
    "F62": "soak/test_faults.py::test_kills",
    "F63": "calls/test_background.py::test_fork_after_a_call",
    "F64": "calls/test_fault_matrix.py::test_each_event_loop_has_connections_of_its_own",
    "F65": "soak/test_stores.py::test_disk_full",
    "F66": "soak/test_stores.py::test_locked_store",
    "F67": "soak/test_stores.py::test_corrupt_store",
    "F68": "soak/test_stores.py::test_read_only_folder",
    "F69": "calls/test_fault_matrix.py::test_the_wall_clock_may_jump",
    "F70": "calls/test_hold.py::test_nothing_is_sent_that_could_break_a_budget",
    "F71": "calls/test_hold.py::test_the_length_is_always_sent_under_a_budget",
    "F72": "calls/test_hold.py::test_fifty_calls_for_ten",
    "F73": "calls/test_fault_matrix.py::test_every_model_fails",
    "F74": "calls/test_fault_matrix.py::test_fault",
    "F75": "calls/test_never_fail.py::test_an_outage_does_not_multiply_traffic",
    "F76": "calls/test_never_fail.py::test_one_probe_after_a_cool_down",
    "F77": "calls/test_fault_matrix.py::test_unknown_and_forbidden_models",
    "F78": "test_llm_client.py::test_missing_key_is_known_before_sending",
    "F79": "dependencies: the package cannot be installed without them",
    "F80": "calls/test_fault_matrix.py::test_links_are_never_fetched",
}
