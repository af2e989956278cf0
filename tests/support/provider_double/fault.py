"""The names of the faults."""

from enum import StrEnum, auto


class Fault(StrEnum):
    """What goes wrong with one answer; `Double.refuse` and `ports` have those that need no answer."""

    RESET_BEFORE_HEADERS = auto()
    """Reset before headers."""
    RESET_AFTER_HEADERS = auto()
    """Reset after headers."""
    RESET_STREAM = auto()
    """Reset mid-stream."""
    CLOSE_STREAM = auto()
    """Connection closed mid-body, framing unfinished."""
    STALL_HEADERS = auto()
    """Stall before headers."""
    STALL_FIRST_CHUNK = auto()
    """Stall after headers, before the first byte of the body."""
    STALL_STREAM = auto()
    """Stall mid-stream."""
    DRIP = auto()
    """One byte (plain) or one event (stream) at a time."""

    CLEAN_EOF = auto()
    """Stream ends cleanly without finish."""
    DONE_WITHOUT_FINISH = auto()
    """Stream ends with its end mark but no finish reason."""
    ONLY_DONE = auto()
    """Stream of nothing but its end mark."""
    CHUNKS_AFTER_DONE = auto()
    """Deltas after the end mark."""
    DUPLICATED_CHUNKS = auto()
    """Every delta twice."""
    TWO_USAGE_CHUNKS = auto()
    """Two usage reports, the first with half the figures."""
    ERROR_EVENT = auto()
    """Error inside a 200 stream, in the provider's shape."""

    HTML = auto()
    """An HTML page with status 200."""
    EMPTY = auto()
    """An empty body with status 200."""
    ERROR_200 = auto()
    """The provider's error body with status 200."""
    TRUNCATED_JSON = auto()
    """JSON cut in the middle, framing complete."""
    BAD_UTF8 = auto()
    """Bytes that are not UTF-8."""
    REDIRECT = auto()
    """307 to another host."""
    GZIP_BOMB = auto()
    """A small compressed body that unpacks to much."""
    OVERSIZE = auto()
    """A very long text."""
    LENGTH_TOO_LONG = auto()
    """Content-Length says more than comes."""
    LENGTH_TOO_SHORT = auto()
    """Content-Length says less than comes."""

    USAGE_MISSING = auto()
    """No usage anywhere."""
    USAGE_NEGATIVE = auto()
    """Negative usage."""
    USAGE_ABSURD = auto()
    """Usage of 10**15 tokens."""
    USAGE_STRING = auto()
    """Usage as text."""
    USAGE_NAN = auto()
    """Usage NaN."""
    OTHER_MODEL = auto()
    """Answered by another model."""
    NO_CHOICES = auto()
    """Choices, candidates, content or data empty."""
    NULL_CONTENT = auto()
    """Content null."""


STREAM_ONLY = {
    Fault.CLEAN_EOF,
    Fault.DONE_WITHOUT_FINISH,
    Fault.ONLY_DONE,
    Fault.CHUNKS_AFTER_DONE,
    Fault.DUPLICATED_CHUNKS,
    Fault.TWO_USAGE_CHUNKS,
    Fault.ERROR_EVENT,
}
"""Faults that mean nothing for a plain answer (a failed Replicate prediction apart)."""
