"""Reads streamed responses: bytes to events, events to text, and whether the stream is complete."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from shared.errors import LLMError
from shared.providers.errors import bad_response, blocked, from_body, holds_error, interrupted
from shared.providers.response import Reading, UnreadableError
from shared.types import Candidate

_MAX_LINE = 32 * 2**20
_MAX_STRAY = 2**20
_LINE_END = re.compile(rb"\r\n|\n|\r")
# What servers send to keep a connection open while the model is at work: it carries nothing.
_KEEP_ALIVE = re.compile(
    r"\s*(:.*|null|true|\"\"|\[\s*\]|\{\s*\}"
    r"|[\"'\[(<:\s]*(ping|pong|keep[-_ ]?alive|heart[-_ ]?beat|processing|waiting|no-?op)[\"'\])>.!:\s]*)\s*",
    re.IGNORECASE,
)
_KEEP_ALIVE_NAME = re.compile(r"ping|pong|keep[-_]?alive|heart[-_]?beat", re.IGNORECASE)
_DONE = re.compile(r"\s*\[?done\]?\s*", re.IGNORECASE)
# What may follow the JSON of an answer that is not streamed, and precede it.
_TAIL = re.compile(r"(\s*((data:)?\s*\[DONE\]|:[^\n]*(\n|$)))*\s*")
_HEAD = re.compile(r"\ufeff?(\s*:[^\n]*\n)*\s*")
_IS_STREAM = re.compile(r"\ufeff?\s*(:[^\n]*\n\s*)*(data|event|id|retry):")
_MAX_COMMENTS = 2**16
# How long a provider's own pings may take the place of an answer.
PINGS_S = 600.0
_BOM = b"\xef\xbb\xbf"


class Lines:
    """Splits chunks of bytes into lines that end with CR, LF or CRLF."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._after_cr = False
        self._first = True

    def feed(self, data: bytes) -> Iterator[str]:
        """
        The lines that `data` completes.

        Raises:
            UnreadableError: A line is not valid UTF-8, or is longer than 32 MiB.
        """
        if self._after_cr and data:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if not data:
            return
        self._after_cr = data.endswith(b"\r")
        first, *rest = _LINE_END.split(data)
        self._keep(first)
        for part in rest:
            yield self._line()
            self._keep(part)

    def close(self) -> Iterator[str]:
        """The last line, if it has no line ending."""
        if self._size:
            yield self._line()

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > _MAX_LINE:
            raise UnreadableError("a line that is too long")
        self._parts.append(part)

    def _line(self) -> str:
        line = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        if self._first:
            self._first = False
            line = line.removeprefix(_BOM)
        try:
            return line.decode()
        except UnicodeDecodeError:
            raise UnreadableError("bytes that are not UTF-8") from None


class Events:
    """
    Reads server-sent events (WHATWG HTML, 9.2) or newline-delimited JSON as (event name, data).

    `stray` holds the lines that are neither, in case the body is not a stream at all.
    """

    def __init__(self, *, ndjson: bool) -> None:
        self._lines = Lines()
        self._ndjson = ndjson
        self._name = ""
        self._data: list[str] = []
        self._seen = False
        self.stray: list[str] = []
        self._stray_size = 0

    def feed(self, data: bytes) -> Iterator[tuple[str, str]]:
        """The events that `data` completes."""
        for line in self._lines.feed(data):
            yield from self._take(line)

    def close(self) -> Iterator[tuple[str, str]]:
        """The last event, since providers do not always end the stream with an empty line."""
        for line in self._lines.close():
            yield from self._take(line)
        if self._data:
            yield self._dispatch()

    def _take(self, line: str) -> Iterator[tuple[str, str]]:
        if self._ndjson:
            line = line.strip().removeprefix("data:")
            if line.strip() and not _KEEP_ALIVE.fullmatch(line) and not line.startswith("event:"):
                yield "", line
            return
        if not line.strip():
            if self._data:
                yield self._dispatch()
            self._name = ""
            return
        name, _, value = line.lstrip().partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._name = value.strip()
        elif name in ("id", "retry"):
            self._seen = True
        elif name and not self._seen and self._stray_size < _MAX_STRAY:
            self.stray.append(line)
            self._stray_size += len(line)

    def _dispatch(self) -> tuple[str, str]:
        self._seen = True
        event = self._name, "\n".join(self._data)
        self._name, self._data = "", []
        return event


class StreamReader:
    """
    Reads one stream: feed it bytes and take the text that they contain, then close it.

    Args:
        reading: Takes the answer.

        take_event: Reads one event's JSON into a Reading.

        take_body: Reads a complete response's JSON, for servers that do not stream.

        sent: The request's body, for telling the caller's words from the provider's.

        delivers: Whether the caller gets the text piece by piece, and so has had it when the stream breaks.
    """

    def __init__(
        self,
        candidate: Candidate,
        reading: Reading,
        take_event: Callable[[Reading, Any], None],
        take_body: Callable[[Reading, Any], None],
        *,
        ndjson: bool,
        sent: Any = None,
        delivers: bool = True,
    ) -> None:
        self._candidate = candidate
        self._sent = sent
        self._delivers = delivers
        self._take_event = take_event
        self._take_body = take_body
        self._events = Events(ndjson=ndjson)
        self._yielded = 0
        self.reading = reading
        self.heard = False
        """Whether a part of the answer has arrived, even without text; the reader of this resets it."""
        self.pinged = False
        """The same for a ping of the provider's."""

    @property
    def complete(self) -> bool:
        """Whether the provider marked the answer as complete."""
        return self.reading.ended or self.reading.finish_reason is not None

    def feed(self, data: bytes) -> Iterator[str]:
        """
        The text that `data` contains.

        Raises:
            LLMError: The provider reported an error, or sent something that cannot be read.
        """
        yield from self._read_events(self._events.feed(data))

    def close(self) -> Iterator[str]:
        """
        The text that is left when the connection has closed.

        Raises:
            LLMError: The stream ended before the answer was complete.
        """
        if not self.reading.ended:
            yield from self._read_events(self._events.close())
        if self.reading.began or self.complete:
            if not self.complete:
                raise self.failure(bad_response(self._candidate, "an incomplete stream"))
        else:
            yield from self._read_stray()
        try:
            check_answer(self._candidate, self.reading)
        except LLMError as error:
            raise self.failure(error) from None

    def failure(self, error: LLMError) -> LLMError:
        """`error` itself if the caller has had no text yet, else StreamInterrupted."""
        return interrupted(self._candidate, error) if self._delivers and any(self.reading.pieces) else error

    def _read_events(self, events: Iterator[tuple[str, str]]) -> Iterator[str]:
        try:
            for name, data in events:
                if _KEEP_ALIVE_NAME.fullmatch(name):
                    self.pinged = self.pinged or data.lstrip().startswith("{")
                    continue
                for body in self._parse(data):
                    self.heard = True
                    self._read_event(name, body)
                    yield from self._new_text()
                if self.reading.ended:
                    return
        except UnreadableError as error:
            raise self.failure(bad_response(self._candidate, str(error), self.reading.usage)) from error

    def _parse(self, data: str) -> Iterator[Any]:
        """The JSON of one event, or of each of its lines if the server omits the empty lines between events."""
        if _DONE.fullmatch(data):
            self._end()
        elif data.strip() and not _KEEP_ALIVE.fullmatch(data):
            try:
                yield json.loads(data)
            except (ValueError, RecursionError):
                lines = data.split("\n")
                if len(lines) < 2:
                    raise UnreadableError("malformed JSON in its stream") from None
                for line in lines:
                    yield from self._parse(line)

    def _end(self) -> None:
        if self.reading.began or self.complete:
            self.reading.ended = True
        elif not self._events.stray:  # else it follows a whole answer
            raise UnreadableError("an empty stream")

    def _read_event(self, name: str, body: Any) -> None:
        if name == "error" or holds_error(body):
            raise self._error(body)
        if not isinstance(body, dict):
            raise UnreadableError("an event that is not an object")
        self._take_event(self.reading, body)
        if self.reading.failure:
            raise self._error(self.reading.failure, began=True)

    def _error(self, body: Any, *, began: bool = False) -> LLMError:
        reading = self.reading
        began = began or any(reading.pieces) or bool(reading.reasoning or reading.tool_calls or reading.reports)
        return self.failure(from_body(self._candidate, body, status=200, began=began, sent=self._sent))

    def _new_text(self) -> Iterator[str]:
        pieces = self.reading.pieces
        while self._yielded < len(pieces):
            piece = pieces[self._yielded]
            self._yielded += 1
            if piece:
                yield piece

    def _read_stray(self) -> Iterator[str]:
        """Read a body that is not a stream: an error, a complete answer of a non-streaming server, or nothing."""
        text = "\n".join(self._events.stray).strip()
        if not text:
            raise bad_response(self._candidate, "an empty stream")
        try:
            read_body(self._candidate, self.reading, text, self._take_body, sent=self._sent)
        except LLMError as error:
            raise self.failure(error) from error
        yield from self._new_text()


def is_stream(content: bytes) -> bool:
    """Whether a body is server-sent events, although no stream was asked for."""
    return _IS_STREAM.match(content[:_MAX_COMMENTS].decode("utf-8", "replace")) is not None


def check_answer(candidate: Candidate, reading: Reading) -> None:
    """
    Check that an answer that has ended is one.

    Raises:
        LLMError: There is nothing in it, or the provider's content filter withheld it.
    """
    if not reading.began:
        raise bad_response(candidate, "an answer without a message", reading.usage)
    if reading.blocked:
        raise blocked(candidate, reading.refusal, reading.usage)
    if reading.is_nothing and not reading.under_way:
        raise bad_response(candidate, f"an answer without {reading.end}", reading.usage)


def _parse_body(content: bytes | str) -> Any:
    """A body's JSON, with comments before it and an end mark behind it."""
    try:
        return json.loads(content)
    except ValueError:
        text = content if isinstance(content, str) else content.decode()
        start = _HEAD.match(text)
        body, end = json.JSONDecoder().raw_decode(text, start.end() if start else 0)
        if not _TAIL.fullmatch(text, end):
            raise
        return body


def read_body(
    candidate: Candidate,
    reading: Reading,
    content: bytes | str,
    take: Callable[[Reading, Any], None],
    *,
    sent: Any = None,
) -> None:
    """
    Read a complete response body.

    Args:
        sent: The request's body, for telling the caller's words from the provider's.

    Raises:
        LLMError: It is an error, or cannot be read.
    """
    if not content.strip():
        raise bad_response(candidate, "an empty response")
    try:
        body = _parse_body(content)
    except (ValueError, RecursionError):
        start = content.lstrip()[:1]
        what = "an HTML page" if start in ("<", b"<") else "a response that is not JSON"
        raise bad_response(candidate, what) from None
    if holds_error(body):
        raise from_body(candidate, body, status=200, sent=sent)
    if not isinstance(body, dict):
        raise bad_response(candidate, "a response that is not a JSON object")
    try:
        take(reading, body)
    except UnreadableError as error:
        raise bad_response(candidate, str(error)) from error
    if reading.failure:
        raise from_body(candidate, reading.failure, status=200, began=True, sent=sent)
    check_answer(candidate, reading)
