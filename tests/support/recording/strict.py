"""Strict replay: the request that is made is the recorded one, once each, or the test fails with a diff."""

from __future__ import annotations

import difflib
import json
from typing import Any

from vcr.cassette import Cassette

from tests.support.recording.filters import VcrRequest


class MismatchError(AssertionError):
    """A request is not in the cassette; the message is a diff against the closest one that is."""


def canonical(request: VcrRequest) -> str:
    """All that two requests must have in common: method, address, query and JSON body, whatever the order of keys."""
    address, _, query = request.uri.partition("?")
    lines = [f"{request.method} {address}", *(f"?{pair}" for pair in sorted(query.split("&")) if pair)]
    return "\n".join([*lines, *_body(request.body)])


def _body(body: Any) -> list[str]:
    text = body.decode("utf-8", "backslashreplace") if isinstance(body, bytes) else str(body or "")
    try:
        data = json.loads(text)
    except ValueError:
        return text.splitlines()
    return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, separators=("", ": ")).splitlines()


def same_request(made: VcrRequest, recorded: VcrRequest) -> None:
    """vcrpy's matcher."""
    if canonical(made) != canonical(recorded):
        raise AssertionError("another request")


def make_strict(cassette: Cassette) -> list[str]:
    """Let the cassette tell what is wrong with a request that it does not have; returns where it tells it."""
    complaints: list[str] = []
    has = cassette.can_play_response_for

    def can_play(request: VcrRequest) -> bool:
        if has(request):
            return True
        complaints.append(_complaint(cassette, cassette.filter_request(request)))
        raise MismatchError(complaints[-1])

    cassette.can_play_response_for = can_play
    return complaints


def _complaint(cassette: Cassette, made: VcrRequest) -> str:
    text = canonical(made)
    recorded = [canonical(request) for request in cassette.requests]
    if text in recorded:
        times = recorded.count(text)
        return f"This request was made more often than it was recorded ({times}x in {cassette.path}):\n{text}"
    if not recorded:
        return f"{cassette.path} is missing or empty, and this request was made (record it: make record):\n{text}"
    closest = max(recorded, key=lambda other: difflib.SequenceMatcher(None, other, text, autojunk=False).ratio())
    diff = difflib.unified_diff(closest.splitlines(), text.splitlines(), "recorded", "made now", lineterm="")
    return f"The request differs from what is recorded in {cassette.path}:\n" + "\n".join(diff)


def left_over(cassette: Cassette) -> str:
    """The recorded requests that were never made; nothing when all were."""
    played = cassette.play_counts
    unplayed = [canonical(request) for index, request in enumerate(cassette.requests) if not played[index]]
    if not unplayed:
        return ""
    return f"{cassette.path} holds what was not asked for:\n" + "\n\n".join(unplayed)
