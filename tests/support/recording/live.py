"""Recording from a real endpoint: what it needs, which tests it can play, and how its answers differ in shape."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from shared.models.keys import KEYLESS_PROVIDERS, key_variables
from tests.support.provider_double.shapes import Shape, differences, events_of, merged, order_of, shape_of
from tests.support.recording.groups import BY_NAME


def check(provider: str, environment: Mapping[str, str]) -> None:
    """
    Refuse what cannot be recorded, in one sentence.

    Raises:
        UsageError: The provider is unknown, or its key is not set.
    """
    if provider not in BY_NAME:
        raise pytest.UsageError(f"No cassettes are recorded from {provider!r}: it is one of {', '.join(BY_NAME)}.")
    names = key_variables(provider)
    if provider not in KEYLESS_PROVIDERS and not any(environment.get(name) for name in names):
        raise pytest.UsageError(f"Set {' or '.join(names)} to record from {provider}: live recording asks it for real.")


def plays(item: pytest.Item, provider: str) -> bool:
    """Whether a test can be brought about at the provider's real endpoint."""
    callspec = getattr(item, "callspec", None)
    if item.get_closest_marker("vcr") is None or callspec is None:
        return False
    group, scene = callspec.params.get("group"), callspec.params.get("scene")
    return group is not None and group.name == provider and (scene is None or scene.live)


def shape_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """How the answers of a cassette recorded anew differ in keys, types and order of events from what was there."""
    before, after = old["interactions"], new["interactions"]
    if len(before) != len(after):
        yield f"{len(after)} requests in place of {len(before)}"
    for one, other in zip(before, after, strict=False):
        yield from _changes(one["response"], other["response"])


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    if old["status"]["code"] != new["status"]["code"]:
        yield f"status {new['status']['code']} in place of {old['status']['code']}"
    for name in sorted(old["headers"].keys() ^ new["headers"].keys()):
        yield f"{'-' if name in old['headers'] else '+'}header {name}"
    yield from differences(_shape(new["body"]), _shape(old["body"]))
    before, after = (order_of(events_of(each["body"].encode())) if _streamed(each) else [] for each in (old, new))
    if before != after:
        yield f"events {' > '.join(after)} in place of {' > '.join(before)}"


def _streamed(response: Mapping[str, Any]) -> bool:
    return any("stream" in kind or "ndjson" in kind for kind in response["headers"].get("content-type", ()))


def _shape(body: str) -> Shape:
    try:
        return shape_of(json.loads(body))
    except ValueError:
        return merged([shape_of(data) for _, data in events_of(body.encode()) if isinstance(data, dict)])
