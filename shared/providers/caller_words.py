"""Takes the caller's own words out of a provider's sentence: providers echo names, prompts and schemas in errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_GAP = " … "
# An echo of this many words in a row, or a whole value of three words, counts; shorter ones may be coincidence.
_RUN = 6
_MAX_CALLER_CHARS = 4_000_000
_MAX_VALUE_CHARS = 400_000
_WORD = re.compile(r"\w+")
_ESCAPES = re.compile(r"\\+[nrt]|\\+(?=[\"'\\/])")
# The text between two equal quotation marks or in a pair of them; an apostrophe inside a word is none.
_QUOTED = re.compile(
    r"(?<!\w)'([^']{1,800})'(?!\w)|\"([^\"]{1,800})\"|`([^`]{1,800})`|<([^<>]{1,200})>"
    "|\u201c([^\u201d]{1,800})\u201d|\u2018([^\u2019]{1,800})\u2019"
)
_NAME = re.compile(r"[\w./:@-]+")
_LOOKS_LIKE_A_NAME = re.compile(r"[_\d./:@]|\w-\w|[a-z][A-Z]")
# What may come before an echo that is not in quotation marks.
_BEFORE_ECHO = frozenset(":'\"`([{<=\n|>…\u201c\u2018")
# Names in quotation marks that are the provider's words all the same; none of them is a rule by itself.
_PROVIDERS_NAMES = frozenset({"prompt", "input", "inputs", "messages", "context", "model"})


def without_callers_words(message: str, sent: Any) -> str:
    """
    A provider's message without what it repeats of the request.

    Args:
        sent: The request: its body, or its messages and parameters. None if it is unknown.
    """
    message = _ESCAPES.sub(" ", message)
    caller = _Caller(sent)
    message = _QUOTED.sub(caller.unquote, message)
    message = _NAME.sub(lambda found: _GAP if found[0] in caller.names else found[0], message)
    return _without_runs(message, caller)


class _Caller:
    """The words that a request contains."""

    def __init__(self, sent: Any) -> None:
        values, size = [], 0
        for value in _strings(sent):
            if size < _MAX_CALLER_CHARS:
                values.append(_ESCAPES.sub(" ", value[:_MAX_VALUE_CHARS]))
                size += len(values[-1])
        self.names = {value for value in values if _NAME.fullmatch(value) and _LOOKS_LIKE_A_NAME.search(value)}
        self._values = {tuple(_words(value)) for value in values if len(value) < 2000}
        self._text = f" {' '.join(' '.join(_words(value)) for value in values)} "

    def unquote(self, found: re.Match[str]) -> str:
        """A quotation, or a gap where it is the caller's: any single name, and what was sent."""
        content = next(group for group in found.groups() if group is not None)
        if content.lower() in _PROVIDERS_NAMES:
            return content
        is_callers = _NAME.fullmatch(content) or self.said(_words(content.rstrip(" .…")))
        return _GAP if is_callers else found[0]

    def said(self, words: list[str]) -> bool:
        """Whether the request contains these words in a row."""
        return bool(words) and f" {' '.join(words)} " in self._text

    def is_value(self, words: list[str]) -> bool:
        """Whether these words are one whole value of the request."""
        return len(words) >= 3 and tuple(words) in self._values


def _without_runs(message: str, caller: _Caller) -> str:
    """The message without longer echoes; one at its very beginning, or amid a sentence, is the provider's own."""
    found = list(_WORD.finditer(message.lower()))
    words = [word[0] for word in found]
    pieces, copied, start = [], 0, 0
    while start < len(words):
        end = start
        if len(words) - start >= _RUN and caller.said(words[start : start + _RUN]):
            end = start + _RUN
            while end < len(words) and caller.said(words[start : end + 1]):
                end += 1
        echo = end > start
        if not echo:
            length = next(
                (n for n in range(min(_RUN, len(words) - start), 2, -1) if caller.is_value(words[start : start + n])), 0
            )
            end, echo = start + length, bool(length)
        if not echo:
            start += 1
            continue
        # The name of a field, which the request has too, may come before the echo of its value.
        inside = (at for at in range(start, end) if start and _introduced(message, found[at].start()))
        if (begin := next(inside, None)) is not None:
            pieces.append(message[copied : found[begin].start()])
            copied = found[end - 1].end()
        start = end
    return _GAP.join([*pieces, message[copied:]])


def _introduced(message: str, place: int) -> bool:
    before = message[:place].rstrip(" ")
    if before[-1:] == "'":
        return not before[-2:-1].isalnum() or place - len(before) > 0
    return before[-1:] in _BEFORE_ECHO


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _strings(value: Any, depth: int = 0) -> Iterator[str]:
    """Every name and value in nested data, in order, without what is no text (an image's data)."""
    if depth > 40:
        return
    if isinstance(value, str):
        if len(value) < 2000 or " " in value[:2000]:
            yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _strings(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item, depth + 1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, type) and hasattr(value, "model_json_schema"):
        yield from _strings(value.model_json_schema(), depth + 1)
