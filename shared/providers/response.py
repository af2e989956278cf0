"""Reads a provider's JSON response: text, tool calls, finish reason, usage and cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from shared.providers.usage import (
    cohere_usage,
    details,
    has_counts,
    larger,
    make_usage,
    merge_usage,
    openai_usage,
    reported_cost,
    reported_fee,
    served_tier,
)
from shared.types import Answer, Usage

_RESPONSE_FORMAT_TOOL = "json_tool_call"

# Source: the providers' API references and LiteLLM 1.91.5's own table (read 2026-11-24).
_FINISH = {
    **dict.fromkeys(("stop", "stop_sequence", "end_turn", "eos", "eos_token", "complete", "unload", "load"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "model_length", "model_context_window_exceeded", "compaction"), "length"),
    **dict.fromkeys(("tool_calls", "tool_use", "tool_call"), "tool_calls"),
    **dict.fromkeys(
        (
            "content_filter",
            "content_filtered",
            "refusal",
            "safety",
            "recitation",
            "blocklist",
            "prohibited_content",
            "spii",
            "language",
            "other",
            "image_safety",
            "image_prohibited_content",
            "error_toxic",
            "sensitive",
        ),
        "content_filter",
    ),
    "function_call": "function_call",
}
# Finish reasons with which a provider reports its own failure.
_FAILED = frozenset({"error", "error_limit", "timeout", "insufficient_system_resource", "network_error"})


class UnreadableError(Exception):
    """The JSON does not have the shape of an answer; the message continues "the provider sent"."""


@dataclass(slots=True)
class Reading:
    """An answer that is being read."""

    pieces: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    extras: dict[str, Any] = field(default_factory=dict)
    raw_usage: dict[str, Any] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    reports: int = 0
    """How often the provider has reported counts of tokens."""
    units: dict[str, int] = field(default_factory=dict)
    """What is billed beside the usage that the provider counts, by unit."""
    service_tier: str | None = None
    region: str | None = None
    finish_reason: str | None = None
    refusal: str = ""
    response_model: str | None = None
    response_id: str | None = None
    failure: Any = None
    """The provider's error, where the finish reason reports a failure."""
    counted: tuple[int, ...] = (0, 0, 0)
    """How much of each of `written` had arrived when the provider last reported its usage."""
    reported_output: int = 0
    usage_is_final: bool = False
    """Whether that report came with the finish reason or after it, so that it is of the whole answer."""
    began: bool = False
    """Whether any part of an answer has arrived."""
    ended: bool = False
    """Whether the provider's end marker has arrived."""

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.pieces)

    @property
    def blocked(self) -> bool:
        """Whether the provider's content filter withheld the whole answer."""
        filtered = bool(self.refusal) or self.finish_reason == "content_filter"
        return filtered and not self.tool_calls and not any(self.pieces)

    def identify(self, source: Mapping[str, Any], model: str = "model", response_id: str = "id") -> None:
        """Store the model and the response id, read from the given keys."""
        if isinstance(name := source.get(model), str) and name:
            self.response_model = name[:200]
        if isinstance(value := source.get(response_id), str) and value:
            self.response_id = value[:200]

    def take_usage(self, usage: Any, read: Callable[[Mapping[str, Any]], Usage]) -> None:
        """Add what a part of the answer says of its usage; `read` understands the provider's format."""
        if isinstance(usage, dict):
            merge_usage(self.raw_usage, usage)
            self.usage = read(self.raw_usage)
            self.reports += has_counts(usage)

    def mark_counted(self) -> None:
        """
        Note what the provider's last report of its usage covers.

        A report without more output than the one before does not cover what was written in between: some servers send
        the prompt's tokens with every event, and the answer's only at the end.
        """
        output = self.usage.completion_tokens
        if output is not None and output > self.reported_output:
            self.counted = tuple(len(text) for text in self.written())
            self.reported_output = output
        self.usage_is_final = output is not None and self.finish_reason is not None and self.failure is None

    def written(self) -> tuple[str, str, str]:
        """What the model has written so far: its text, its reasoning, and its calls of tools."""
        functions = [call["function"] for call in self.tool_calls]
        calls = " ".join(f"{function['name']} {function['arguments']}" for function in functions)
        return self.text + self.refusal, "".join(self.reasoning), calls

    def uncounted(self) -> list[str]:
        """What the model has written that is in no report of its usage yet."""
        if self.usage_is_final:
            return []
        return [text[done:] for text, done in zip(self.written(), self.counted, strict=True)]

    def take_units(self, units: Mapping[str, int]) -> None:
        """Add counts of what is billed beside tokens, which each part of an answer may repeat."""
        self.units = larger(self.units, units)

    def take_tier(self, word: Any) -> None:
        """Store the service tier, where the provider says how it served the request."""
        self.service_tier = served_tier(word) or self.service_tier

    def finish(self, reason: Any, failure: Any = None) -> None:
        """Store the finish reason; an unknown one counts as `stop`."""
        if isinstance(reason, str) and reason:
            self.finish_reason = _FINISH.get(reason.lower(), "stop")
            if reason.lower() in _FAILED:
                self.failure = {"error": failure or {"message": "Generation failed", "type": "server_error"}}

    def answer(self) -> Answer:
        """The answer as read so far."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text or None}
        if self.tool_calls:
            calls = sorted(self.tool_calls, key=lambda call: int(call["index"]))
            message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in calls]
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        return Answer(
            text=self.text,
            finish_reason=self.finish_reason,
            usage=replace(self.usage, units={**self.usage.units, **self.units}) if self.units else self.usage,
            response_model=self.response_model,
            response_id=self.response_id,
            reported_cost=reported_cost(self.raw_usage),
            message={**message, **self.extras},
            fee=reported_fee(self.raw_usage),
            service_tier=self.service_tier,
            region=self.region,
            reports_usage=has_counts(self.raw_usage),
        )


@dataclass(frozen=True, slots=True)
class Partial:
    """
    An answer as far as it has arrived.

    Args:
        uncounted: What of its text, reasoning and calls of tools is not in its usage yet.

        is_final: Whether its usage is that of the whole answer.
    """

    answer: Answer
    uncounted: list[str]
    is_final: bool


def marked(take: Callable[[Reading, Any], None], *, whole: bool = False) -> Callable[[Reading, Any], None]:
    """
    A reader that also notes what the usage which it reads is of.

    Args:
        whole: Whether it reads complete answers.
    """

    def take_and_mark(reading: Reading, body: Any) -> None:
        before = reading.reports
        try:
            take(reading, body)
        finally:
            if reading.reports != before:
                reading.mark_counted()
                reading.usage_is_final = reading.usage_is_final or (whole and reading.usage.source == "provider")

    return take_and_mark


def take_openai(reading: Reading, body: Mapping[str, Any], *, json_mode: bool = False) -> None:
    """Read a chat completion in OpenAI's format."""
    _take_openai(reading, body, ("message", "delta"), json_mode)


def take_openai_event(reading: Reading, body: Mapping[str, Any]) -> None:
    """Read one chunk of a chat completion in OpenAI's format."""
    # Perplexity's chunks also contain a `message`, which repeats all the text so far.
    _take_openai(reading, body, ("delta", "message"), json_mode=False)


def _take_openai(reading: Reading, body: Mapping[str, Any], parts: tuple[str, str], json_mode: bool) -> None:
    reading.identify(body)
    choices = body.get("choices")
    if isinstance(choices, list):
        for choice in choices:
            if not isinstance(choice, dict):
                raise UnreadableError("a choice that is not an object")
            if choice.get("index") in (0, None):
                _take_choice(reading, choice, parts, json_mode)
    groq = body.get("x_groq")
    for usage in (groq.get("usage") if isinstance(groq, dict) else None, body.get("usage")):
        reading.take_usage(usage, openai_usage)
    reading.take_tier(body.get("service_tier"))


def _take_choice(reading: Reading, choice: Mapping[str, Any], parts: tuple[str, str], json_mode: bool) -> None:
    reading.finish(choice.get("finish_reason"), choice.get("error"))
    message = choice.get(parts[0], choice.get(parts[1]))
    if message is None:
        return
    if not isinstance(message, dict):
        raise UnreadableError("a message that is not an object")
    reading.began = True
    whole = message is choice.get("message")
    _take_content(reading, message.get("content"))
    for key in ("reasoning_content", "reasoning"):
        if isinstance(thought := message.get(key), str) and thought:
            reading.reasoning.append(clean(thought))
            break
    if isinstance(refusal := message.get("refusal"), str):
        reading.refusal += clean(refusal)
    for extra in ("reasoning_details", "annotations", "audio", "images", "function_call"):
        if whole and message.get(extra):
            reading.extras[extra] = message[extra]
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, dict):
            take_tool_call(reading, call)
    if json_mode:
        _tool_call_to_text(reading)


def _take_content(reading: Reading, content: Any) -> None:
    """Read a text, or Mistral's list of text and thinking parts."""
    if isinstance(content, str):
        reading.pieces.append(clean(content))
    elif isinstance(content, list):
        for part in content:
            if not isinstance(part, dict):
                raise UnreadableError("a content part that is not an object")
            if isinstance(text := part.get("text"), str):
                reading.pieces.append(clean(text))
            thoughts = part.get("thinking")
            for thought in thoughts if isinstance(thoughts, list) else (thoughts,):
                text = thought.get("text") if isinstance(thought, dict) else thought
                if isinstance(text, str):
                    reading.reasoning.append(clean(text))
    elif content is not None:
        raise UnreadableError("content that is not text")


def take_tool_call(reading: Reading, call: Mapping[str, Any]) -> None:
    """Add a complete tool call, or the next part of one, to those read so far."""
    function = call.get("function")
    function = function if isinstance(function, dict) else {}
    call_id, name, arguments = call.get("id"), function.get("name"), function.get("arguments")
    if arguments is not None and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    target = _find_tool_call(reading, call.get("index"), call_id)
    if isinstance(call_id, str) and call_id:
        target["id"] = call_id
    if isinstance(name, str) and name:
        target["function"]["name"] = name
    target["function"]["arguments"] += arguments or ""
    if fields := call.get("provider_specific_fields") or function.get("provider_specific_fields"):
        target["provider_specific_fields"] = fields


def _find_tool_call(reading: Reading, index: Any, call_id: Any) -> dict[str, Any]:
    """The tool call that a part belongs to: the one with its index, else the last one; a new one if it has an id."""
    for call in reading.tool_calls:
        if isinstance(index, int) and call["index"] == index:
            return call
    if not isinstance(index, int) and reading.tool_calls and not call_id:
        return reading.tool_calls[-1]
    new: dict[str, Any] = {
        "id": "",
        "type": "function",
        "index": index if isinstance(index, int) else len(reading.tool_calls),
        "function": {"name": "", "arguments": ""},
    }
    reading.tool_calls.append(new)
    return new


def _tool_call_to_text(reading: Reading) -> None:
    """Turn the tool call with which LiteLLM requests JSON from models without a JSON mode back into text."""
    if reading.tool_calls and reading.tool_calls[0]["function"]["name"] == _RESPONSE_FORMAT_TOOL:
        reading.pieces.append(reading.tool_calls.pop(0)["function"]["arguments"])
        reading.finish_reason = "stop" if reading.finish_reason else None


def take_ollama(reading: Reading, body: Mapping[str, Any]) -> None:
    """Read a response of Ollama's /api/chat, or one line of its stream."""
    message = body.get("message")
    if not isinstance(message, dict):
        if body.get("done") is not True:
            raise UnreadableError("an answer without a message")
        message = {}
    reading.began = True
    reading.identify(body)
    _take_content(reading, message.get("content"))
    if isinstance(thought := message.get("thinking"), str) and thought:
        reading.reasoning.append(clean(thought))
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, dict):
            number = len(reading.tool_calls)
            take_tool_call(reading, {"id": f"call_{number}", **call, "index": number})
    if body.get("done") is True:
        reading.ended = True
        reading.finish(body.get("done_reason"))
        if reading.finish_reason == "stop" and reading.tool_calls:
            reading.finish_reason = "tool_calls"
        counts = {"prompt_tokens": body.get("prompt_eval_count"), "completion_tokens": body.get("eval_count")}
        reading.take_usage(counts, openai_usage)


def take_cohere(reading: Reading, body: Mapping[str, Any]) -> None:
    """Read a response of Cohere's /v2/chat, or one event of its stream."""
    kind = body.get("type")
    if kind is None:
        source: Mapping[str, Any] = body
        if not isinstance(body.get("message"), dict):
            raise UnreadableError("an answer without a message")
    else:
        source = details(body, "delta")
    message = details(source, "message")
    reading.began = True
    reading.identify(body)
    content = message.get("content")
    _take_content(reading, [content] if isinstance(content, dict) else content)
    if isinstance(plan := message.get("tool_plan"), str) and plan:
        reading.reasoning.append(clean(plan))
    calls = message.get("tool_calls")
    for number, call in enumerate(calls if isinstance(calls, list) else [calls]):
        if isinstance(call, dict):
            take_tool_call(reading, {**call, "index": number if kind is None else body.get("index")})
    reading.finish(source.get("finish_reason"), source.get("error"))
    reading.take_usage(source.get("usage"), cohere_usage)
    reading.ended = reading.ended or kind == "message-end"


def take_replicate(reading: Reading, body: Mapping[str, Any]) -> None:
    """Read a Replicate prediction with the output that it has so far."""
    output = body.get("output")
    parts = [output] if isinstance(output, str) else output
    if parts is not None and not (isinstance(parts, list) and all(isinstance(part, str) for part in parts)):
        raise UnreadableError("output that is not text")
    reading.began = True
    text = clean("".join(parts or ()))
    reading.pieces.append(text[len(reading.text) :])
    reading.identify(body)
    if body.get("status") == "succeeded":
        reading.ended = True
        metrics = body.get("metrics")
        if isinstance(metrics, dict):
            reading.usage = make_usage(metrics.get("input_token_count"), metrics.get("output_token_count"))


def clean(text: str) -> str:
    """`text` with surrogate pairs joined and lone surrogates replaced, since surrogates cannot be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
