"""What each fault does to an answer: to the script, to its frames, or to its bytes."""

import copy
import gzip
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from .errors import error_answer, stream_error
from .fault import STREAM_ONLY, Fault
from .script import Reply
from .wire import Answer, Body, Call, Frame, dumps, encode, walk

MIB = 1024 * 1024
HTML = b"<!DOCTYPE html>\n<html><head><title>Just a moment...</title></head><body>Checking.</body></html>\n"
USAGE_KEYS = ("usage", "usageMetadata", "metrics")
COUNT_KEYS = ("prompt_eval_count", "eval_count")
FINISH_KEYS = ("finish_reason", "native_finish_reason", "stop_reason", "finishReason", "done_reason")
LIST_KEYS = ("choices", "candidates", "predictions", "data")


@dataclass
class Step:
    """Bytes to send in one go, and what they mean for the bill."""

    data: bytes
    kind: str
    tokens: int = 0
    usage: bool = False


@dataclass
class Plan:
    """An answer as bytes, with what goes wrong while it is sent."""

    status: int
    headers: dict[str, str]
    steps: list[Step]
    ending: Literal["end", "reset", "close"] = "end"
    stall_at: int | None = None
    """The step before which to wait for the gate; -1: before the headers."""
    cut_at: int | None = None
    """The step before which `ending` happens; -1: before the headers."""
    drip: bool = False
    tail: bytes = b""
    """Bytes after the end of the answer, past its Content-Length."""


def misfit(fault: Fault | None, call: Call) -> str:
    """Why a fault cannot be played for this call; "" when it can."""
    if fault in STREAM_ONLY and not call.stream and not (fault is Fault.ERROR_EVENT and call.provider == "replicate"):
        return f"the fault {fault.name} needs a streamed answer, and this request is not for one"
    return ""


def on_reply(reply: Reply) -> Reply:
    """Faults that are just another script."""
    match reply.fault:
        case Fault.NULL_CONTENT:
            return replace(reply, text=None, chunks=None)
        case Fault.OTHER_MODEL:
            return replace(reply, response_model=reply.response_model or "another-model-1")
        case Fault.OVERSIZE:
            size = reply.size or 10 * MIB
            part = "x" * (64 * 1024)
            return replace(reply, text=..., chunks=[part] * (size // len(part)) + ["x" * (size % len(part))])
    return reply


def _halved(data: Any) -> Any:
    return _numbers(copy.deepcopy(data), lambda number: number // 2)


def _numbers(data: Any, change: Callable[[int], Any]) -> Any:
    """Every whole number inside the usage, changed in place."""
    for part in walk(data):
        for container in [part[key] for key in USAGE_KEYS if isinstance(part.get(key), dict)]:
            for inner in walk(container):
                _change(inner, inner.keys(), change)
        _change(part, COUNT_KEYS, change)
    return data


def _change(data: Body, keys: Iterable[str], change: Callable[[int], Any]) -> None:
    for key in list(keys):
        if isinstance(data.get(key), int) and not isinstance(data[key], bool):
            data[key] = change(data[key])


def _without_usage(data: Any) -> Any:
    for part in walk(data):
        for key in (*USAGE_KEYS, *COUNT_KEYS):
            part.pop(key, None)
    return data


def _without_finish(data: Any) -> Any:
    for part in walk(data):
        for key in FINISH_KEYS:
            if part.get(key) is not None:
                part[key] = None
    return data


def _without_choices(data: Any) -> Any:
    if isinstance(data, dict):
        for key in LIST_KEYS:
            if isinstance(data.get(key), list):
                data[key] = []
        for part in (data, data.get("message")):
            if isinstance(part, dict) and "content" in part:
                part["content"] = "" if isinstance(part["content"], str) else []
    return data


def _each(frames: list[Frame], change: Callable[[Any], Any], **fields: Any) -> list[Frame]:
    return [
        frame
        if frame.data is None or isinstance(frame.data, str)
        else replace(frame, data=change(copy.deepcopy(frame.data)), **fields)
        for frame in frames
    ]


def _upto_delta(frames: list[Frame], number: int) -> int:
    """The index after the given number of deltas."""
    seen = 0
    for index, frame in enumerate(frames):
        if seen == number:
            return index
        seen += frame.kind == "delta"
    return len(frames)


def on_frames(call: Call, reply: Reply, answer: Answer) -> Answer:
    """Faults in what is said."""
    frames, fault = answer.frames, reply.fault
    deltas = [frame for frame in frames if frame.kind == "delta"]
    changes: dict[Fault, Callable[[Any], Any]] = {
        Fault.USAGE_NEGATIVE: lambda data: _numbers(data, lambda number: -number),
        Fault.USAGE_ABSURD: lambda data: _numbers(data, lambda _: 10**15),
        Fault.USAGE_STRING: lambda data: _numbers(data, lambda number: f"{number} tokens"),
        Fault.USAGE_NAN: lambda data: _numbers(data, lambda _: float("nan")),
        Fault.NO_CHOICES: _without_choices,
    }
    if fault in changes:
        answer.frames = _each(frames, changes[fault])
        return answer
    match fault:
        case Fault.USAGE_MISSING:
            answer.frames = _each(frames, _without_usage, usage=False)
        case Fault.DONE_WITHOUT_FINISH:
            answer.frames = _each(frames, _without_finish)
        case Fault.CLEAN_EOF:
            answer.frames = frames[: frames.index(deltas[-1]) + 1] if deltas else []
        case Fault.ONLY_DONE:
            answer.frames = [frame for frame in frames if frame.kind == "done"]
        case Fault.DUPLICATED_CHUNKS:
            answer.frames = [
                part for frame in frames for part in ([frame, replace(frame, tokens=0)] if frame in deltas else [frame])
            ]
        case Fault.TWO_USAGE_CHUNKS:
            answer.frames = [part for frame in frames for part in _twice(frame)]
        case Fault.CHUNKS_AFTER_DONE:
            answer.frames = [*frames, *(replace(frame, tokens=0) for frame in deltas[:1])]
        case Fault.ERROR_EVENT if call.stream:
            answer.frames = _broken_off(call, reply, frames)
            if reply.after == 0:
                answer.usage = None
        case Fault.ERROR_200:
            body = error_answer(call, replace(reply, error=reply.error or "server"))
            return replace(body, status=200)
    return answer


def _twice(frame: Frame) -> list[Frame]:
    if not frame.usage:
        return [frame]
    half = _without_finish(_halved(frame.data))
    half.pop("candidates", None)
    if "done" in half:
        half["done"] = False
    return [replace(frame, data=half, kind="comment", tokens=0, usage=False), frame]


def _broken_off(call: Call, reply: Reply, frames: list[Frame]) -> list[Frame]:
    """The stream so far, then the provider's error; with no delta before it the error is the first event."""
    kept = frames[: _upto_delta(frames, reply.after)] if reply.after else []
    last = kept[-1] if kept else next((frame for frame in frames if isinstance(frame.data, dict)), Frame({}))
    return kept + stream_error(call, reply, last)


def plan_of(answer: Answer, headers: dict[str, str]) -> Plan:
    """The answer as bytes, nothing wrong with it yet."""
    steps = [Step(encode(frame, answer.framing), frame.kind, frame.tokens, frame.usage) for frame in answer.frames]
    if answer.framing == "json":
        body = b"".join(step.data for step in steps)
        steps[0].data = answer.prefix + body
        del steps[1:]
        headers = headers | {"content-length": str(len(steps[0].data))}
    return Plan(answer.status, headers, steps)


def _whole(plan: Plan, data: bytes, **headers: str) -> Plan:
    """Another body altogether; the answer made is still billed."""
    kept = {key: value for key, value in plan.headers.items() if key not in ("content-type", "content-length")}
    fresh = {name.replace("_", "-"): value for name, value in headers.items()}
    return Plan(plan.status, kept | {"content-length": str(len(data))} | fresh, [Step(data, "body")])


UNREADABLE = (Fault.TRUNCATED_JSON, Fault.BAD_UTF8, Fault.LENGTH_TOO_LONG, Fault.LENGTH_TOO_SHORT)
"""Faults that leave a plain body, and the usage in it, of no use."""


def on_bytes(reply: Reply, plan: Plan) -> Plan:
    """Faults in how it is sent."""
    if reply.fault in UNREADABLE and len(plan.steps) == 1:
        plan.steps[0].usage = False
    match reply.fault:
        case Fault.RESET_BEFORE_HEADERS:
            plan.cut_at, plan.ending = -1, "reset"
        case Fault.RESET_AFTER_HEADERS:
            plan.cut_at, plan.ending = 0, "reset"
        case Fault.RESET_STREAM:
            plan.cut_at, plan.ending = _middle(plan, reply.after), "reset"
        case Fault.CLOSE_STREAM:
            plan.cut_at, plan.ending = _middle(plan, reply.after), "close"
        case Fault.STALL_HEADERS:
            plan.stall_at = -1
        case Fault.STALL_FIRST_CHUNK:
            plan.stall_at = 0
        case Fault.STALL_STREAM:
            plan.stall_at = _middle(plan, reply.after)
        case Fault.DRIP:
            _drip(plan)
        case Fault.HTML:
            return _whole(plan, HTML, content_type="text/html; charset=utf-8")
        case Fault.EMPTY:
            return _whole(plan, b"", content_type=plan.headers["content-type"])
        case Fault.REDIRECT:
            plan = _whole(plan, b"", location="https://elsewhere.example/v1/chat/completions")
            plan.status = 307
        case Fault.GZIP_BOMB:
            text = plan.headers["content-type"]
            return _whole(plan, _bomb(reply.size or 64 * MIB), content_type=text, content_encoding="gzip")
        case Fault.TRUNCATED_JSON:
            _cut_json(plan, reply.after)
        case Fault.BAD_UTF8:
            _spoil(plan, reply.after)
        case Fault.LENGTH_TOO_LONG:
            plan.headers["content-length"] = str(sum(len(step.data) for step in plan.steps) + 100)
            plan.cut_at, plan.ending = len(plan.steps), "close"
        case Fault.LENGTH_TOO_SHORT:
            _say_less(plan)
    return plan


def _middle(plan: Plan, after: int) -> int:
    """The step after so many deltas; a plain body is halved."""
    if len(plan.steps) == 1:
        data = plan.steps[0].data
        half = len(data) // 2
        plan.steps = [Step(data[:half], "part"), replace(plan.steps[0], data=data[half:])]
        return 1
    return _after_deltas(plan, after)


def _after_deltas(plan: Plan, after: int) -> int:
    seen = 0
    for index, step in enumerate(plan.steps):
        if seen == after and index:
            return index
        seen += step.kind == "delta"
    return len(plan.steps) - 1


def _drip(plan: Plan) -> None:
    plan.drip = True
    if len(plan.steps) == 1:
        step = plan.steps[0]
        parts = [Step(bytes((byte,)), "part") for byte in step.data[:-1]]
        plan.steps = [*parts, replace(step, data=step.data[-1:])]


def _cut_json(plan: Plan, after: int) -> None:
    """A plain body ends in the middle; in a stream one event does, and the rest follows."""
    index = 0 if len(plan.steps) == 1 else _after_deltas(plan, after)
    step = plan.steps[index]
    if index or len(plan.steps) > 1:
        step.data = step.data.rstrip()[: -len(step.data) // 3] + b"\n\n"
        return
    step.data = step.data[: len(step.data) * 2 // 3]
    plan.headers["content-length"] = str(len(step.data))


def _spoil(plan: Plan, after: int) -> None:
    """Two bytes that no UTF-8 text has, inside a JSON string."""
    index = 0 if len(plan.steps) == 1 else _after_deltas(plan, after)
    step = plan.steps[index]
    place = step.data.rfind(b'"')
    step.data = step.data[:place] + b"\xff\xfe" + step.data[place:]
    if "content-length" in plan.headers:
        plan.headers["content-length"] = str(len(step.data))


def _say_less(plan: Plan) -> None:
    body = b"".join(step.data for step in plan.steps)
    length = len(body) * 2 // 3
    plan.headers |= {"content-length": str(length), "connection": "close"}
    plan.steps = [Step(body[:length], "body")]
    plan.cut_at, plan.ending, plan.tail = 1, "close", body[length:]


@lru_cache(maxsize=4)
def _bomb(size: int) -> bytes:
    """Valid JSON, all of it white space but the end, so small that nobody would suspect it."""
    return gzip.compress(b" " * size + dumps({"object": "chat.completion", "choices": []}), compresslevel=9, mtime=0)
