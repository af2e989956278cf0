"""What an answer looks like apart from what it says: keys, types, and the order of a stream's events."""

import json
from collections.abc import Iterator
from typing import Any

type Shape = dict[str, Any]
"""Each type a value has (object, list, text, number, bool, null) with the shape of what is inside."""


def shape_of(data: Any) -> Shape:
    """Keys and types of a JSON value; the items of a list are put on top of each other."""
    if isinstance(data, dict):
        return {"object": {key: shape_of(value) for key, value in data.items()}}
    if isinstance(data, list):
        return {"list": merged([shape_of(item) for item in data])}
    if isinstance(data, bool):
        return {"bool": {}}
    if isinstance(data, int | float):
        return {"number": {}}
    return {"text": {}} if isinstance(data, str) else {"null": {}}


def merged(shapes: list[Shape]) -> Shape:
    """One shape that has what any of them has."""
    result: Shape = {}
    for shape in shapes:
        result = _over(result, shape)
    return result


def _over(one: Shape, two: Shape) -> Shape:
    return {key: _over(one.get(key, {}), two.get(key, {})) for key in one | two}


def differences(one: Shape, two: Shape, path: str = "") -> Iterator[str]:
    """Where two shapes differ: "+path" only in the first, "-path" only in the second, "path: a/b" another type."""
    kinds = one.keys() - {"null"}, two.keys() - {"null"}
    if not kinds[0] or not kinds[1]:
        return
    if kinds[0] != kinds[1]:
        yield f"{path}: {'|'.join(sorted(kinds[0]))}/{'|'.join(sorted(kinds[1]))}"
    if "list" in one and "list" in two:
        yield from differences(one["list"], two["list"], f"{path}[]")
    mine, other = one.get("object", {}), two.get("object", {})
    for key in sorted(mine | other) if mine and other else ():
        below = f"{path}.{key}" if path else key
        if key in mine and key in other:
            yield from differences(mine[key], other[key], below)
        else:
            yield f"{'+' if key in mine else '-'}{below}"


def events_of(body: bytes) -> list[tuple[str, Any]]:
    """The events of an SSE or ndjson body: name and JSON (or text); a comment is named ":"."""
    events: list[tuple[str, Any]] = []
    name = ""
    for line in body.decode().splitlines():
        field, _, value = line.partition(":")
        if line.startswith("{"):
            events.append(("", json.loads(line)))
        elif not field and line:
            events.append((":", None))
        elif field == "event":
            name = value.strip()
        elif field == "data":
            text = value.strip()
            events.append((name, json.loads(text) if text.startswith("{") else text))
            name = ""
    return events


def order_of(events: list[tuple[str, Any]]) -> list[str]:
    """What happens in a stream, in order, repetitions left out."""
    order: list[str] = []
    for name, data in events:
        for label in _labels(name, data):
            if not order or order[-1] != label:
                order.append(label)
    return order


def _labels(name: str, data: Any) -> list[str]:
    """An event may do several things: bring text, finish, tell the usage."""
    if not isinstance(data, dict):
        return [name or str(data)]
    if name and "type" in data:
        delta = data.get("delta")
        return [f"{name} {delta['type']}" if isinstance(delta, dict) and "type" in delta else name]
    if "error" in data:
        return ["error"]
    return [*_parts(data), *(["usage"] if _final_usage(data) else [])]


def _final_usage(data: dict[str, Any]) -> bool:
    x_groq = data.get("x_groq") or {}
    return bool(data.get("usage") or x_groq.get("usage") or "prompt_eval_count" in data)


def _parts(data: dict[str, Any]) -> Iterator[str]:
    choices = data.get("choices") or data.get("candidates") or []
    if not choices:
        yield from () if "choices" not in data or data.get("usage") else ("no choice",)
        return
    choice = choices[0]
    delta = choice.get("delta") or {}
    parts = (choice.get("content") or {}).get("parts") or []
    content = delta.get("content")
    if isinstance(content, list):
        yield from (str(part.get("type")) for part in content)
    elif content or any("text" in part for part in parts):
        yield "text"
    elif "role" in delta and not {"tool_calls", "reasoning", "reasoning_content", "refusal"} & delta.keys():
        yield "role"
    if delta.get("reasoning") or delta.get("reasoning_content"):
        yield "thinking"
    if delta.get("tool_calls") or any("functionCall" in part for part in parts):
        yield "tool"
    if choice.get("finish_reason") or choice.get("finishReason"):
        yield "finish"
