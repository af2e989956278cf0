"""Reads a provider's JSON response: text, tool calls, finish reason, usage and cost."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
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

# Source: the providers' API references and LiteLLM 1.91.5's own table (read 2026-11-24). Words that begin with "max_"
# are all `length`; any other word is passed on as it is.
_FINISH = {
    **dict.fromkeys(("stop", "stop_sequence", "end_turn", "eos", "eos_token", "complete", "completed"), "stop"),
    **dict.fromkeys(
        (
            "length",
            "model_length",
            "model_context_window_exceeded",
            "context_length_exceeded",
            "context_window_exceeded",
            "token_limit",
            "compaction",
        ),
        "length",
    ),
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
            "image_safety",
            "image_prohibited_content",
            "error_toxic",
            "sensitive",
        ),
        "content_filter",
    ),
    "function_call": "function_call",
}
# Finish reasons with which a provider reports its own failure, and those of an answer that was stopped under way.
# Sources: vLLM and SGLang (abort), Cohere (USER_CANCEL), DeepSeek, Zhipu, Baseten (load_shed) (from general knowledge,
# 2026-11-28).
_FAILED = frozenset({"error", "error_limit", "timeout", "insufficient_system_resource", "network_error", "failed"})
_INTERRUPTED = frozenset(
    {
        *("abort", "aborted", "cancel", "cancelled", "canceled", "user_cancel", "load_shed", "interrupted"),
        *("preempted", "disconnected", "disconnect", "killed", "evicted", "shutdown"),
    }
)
# With these an answer may be empty: the provider says that there was nothing to say, or why it is missing.
_MAY_BE_EMPTY = frozenset({"stop", "length", "content_filter"})
# What an answer may hold beside its text and its tool calls, and is lost unless it is kept: lists and texts grow with
# each part of a stream, the parts of an object are merged. Sources: OpenAI, OpenRouter (reasoning_details, images),
# Azure (context), Groq (executed_tools), Cohere (citations) (from general knowledge, 2026-11-28).
_BESIDE = ("annotations", "audio", "images", "citations", "executed_tools", "context")
# Perplexity's and xAI's sources, which each part of a stream repeats.
_SOURCES = ("citations", "search_results")
_MAX_WORD_CHARS = 100
# OpenAI takes no longer id of a tool call (from general knowledge, 2026-11-28).
_MAX_ID_CHARS = 40
# LiteLLM appends Gemini's signature to the id; it is in provider_specific_fields too.
_SIGNATURE_IN_ID = "__thought__"


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
    under_way: bool = False
    """Whether the provider says that more will follow, when asked again."""
    is_images: bool = False
    """Whether the answer is images, which are read elsewhere."""
    native_reason: str = ""
    """The finish reason of the provider behind a router."""

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.pieces)

    @property
    def blocked(self) -> bool:
        """Whether the provider's content filter withheld the whole answer."""
        filtered = bool(self.refusal) or self.finish_reason == "content_filter"
        return filtered and not self.tool_calls and not any(self.pieces)

    @property
    def is_nothing(self) -> bool:
        """Whether there is nothing that could be used, and no reason for that which is understood."""
        is_usable = self.is_images or self.tool_calls or self.text.strip() or self.refusal
        if is_usable or any(self.extras.get(name) for name in ("audio", "images")):
            return False
        reason = self.finish_reason
        is_native_strange = bool(self.native_reason) and _word_of(self.native_reason) not in _MAY_BE_EMPTY
        return reason not in _MAY_BE_EMPTY or (reason == "stop" and is_native_strange)

    @property
    def end(self) -> str:
        """How the answer ended, in words that continue "the provider sent an answer without"."""
        word = self.native_reason or self.finish_reason
        return f"text or tool calls (finish reason {word})" if word else "text, tool calls or a finish reason"

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
        """Store the finish reason; one that is not known is kept in the provider's own words."""
        if not isinstance(reason, str) or not reason.strip():
            return
        self.finish_reason, word = _word_of(reason), reason.strip().lower()
        if word in _INTERRUPTED:
            kind = "overloaded_error" if word == "load_shed" else "server_error"
            self.failure = {"error": failure or {"message": f"Generation was stopped ({word})", "type": kind}}
        elif word in _FAILED:
            self.failure = {"error": failure or {"message": "Generation failed", "type": "server_error"}}

    def add(self, name: str, value: Any) -> None:
        """Add to what the answer holds beside its text."""
        if value:
            self.extras[name] = _joined(self.extras.get(name), value)

    def _beside(self) -> dict[str, Any]:
        """What is kept of the answer beside its text; OpenAI's older form of a call is one of the tool calls."""
        extras = {name: value for name, value in self.extras.items() if name != "function_call"}
        if "function_call" in self.extras and self.tool_calls:
            extras["function_call"] = self.tool_calls[0]["function"]
        return extras

    def answer(self) -> Answer:
        """The answer as read so far."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text or None}
        finish_reason = self.finish_reason
        if self.tool_calls:
            calls = sorted(self.tool_calls, key=lambda call: int(call["index"]))
            _give_ids(calls)
            message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in calls]
            # Gemini, Ollama and others end an answer with tool calls like any other.
            finish_reason = "tool_calls" if finish_reason in ("stop", "function_call", None) else finish_reason
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.refusal:
            message["refusal"] = self.refusal
        return Answer(
            text=self.text,
            finish_reason=finish_reason,
            usage=replace(self.usage, units={**self.usage.units, **self.units}) if self.units else self.usage,
            response_model=self.response_model,
            response_id=self.response_id,
            reported_cost=reported_cost(self.raw_usage),
            message={**message, **self._beside()},
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


def _word_of(reason: str) -> str:
    """OpenAI's word for a finish reason, else the provider's own."""
    word = reason.strip()
    known = _FINISH.get(word.lower())
    return known or ("length" if word.lower().startswith("max_") else word[:_MAX_WORD_CHARS])


def _joined(known: Any, more: Any) -> Any:
    """What is known of a part of the answer, with what the next part of a stream adds."""
    if isinstance(known, list) and isinstance(more, list):
        return [*known, *more]
    if isinstance(known, dict) and isinstance(more, dict):
        # An id is repeated; the data of sound and what is heard in it arrive piece by piece.
        added = {name: value for name, value in more.items() if value is not None}
        return known | {
            name: _joined(known.get(name), value) if name not in ("id", "expires_at", "format") else value
            for name, value in added.items()
        }
    if isinstance(known, str) and isinstance(more, str):
        return known + more
    return more


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
    for name in _SOURCES:
        if isinstance(found := body.get(name), list) and found:
            reading.extras[name] = found


def _take_choice(reading: Reading, choice: Mapping[str, Any], parts: tuple[str, str], json_mode: bool) -> None:
    reading.finish(choice.get("finish_reason"), choice.get("error"))
    if isinstance(native := choice.get("native_finish_reason"), str):
        reading.native_reason = native.strip()[:_MAX_WORD_CHARS]
    reading.add("logprobs", choice.get("logprobs"))
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
    if whole:
        for name in (*_BESIDE, "reasoning_details"):
            reading.extras.pop(name, None)  # a chunk's whole message repeats what came before
    for name in _BESIDE:
        reading.add(name, message.get(name))
    _take_details(reading, message.get("reasoning_details"))
    calls = message.get("tool_calls")
    if not calls and isinstance(function := message.get("function_call"), dict):
        calls = [{"index": 0, "function": function}]  # OpenAI's older form, of one call
        reading.extras["function_call"] = True
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, dict):
            take_tool_call(reading, call, whole=whole)
    if json_mode:
        tool_call_to_text(reading)


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


def _take_details(reading: Reading, details: Any) -> None:
    """
    Read OpenRouter's reasoning_details, whose texts come in parts; they must be sent back as they were.

    Source: openrouter.ai/docs/use-cases/reasoning-tokens (from general knowledge, 2026-11-28).
    """
    known = reading.extras.setdefault("reasoning_details", []) if isinstance(details, list) and details else []
    for detail in details if isinstance(details, list) else ():
        if not isinstance(detail, dict):
            continue
        last = known[-1] if known else {}
        same = all(last.get(name) == detail.get(name) for name in ("type", "index")) and detail.get("index") is not None
        if same and detail.get("type") in ("reasoning.text", "reasoning.summary"):
            texts = {name: (last.get(name) or "") + detail[name] for name in ("text", "summary") if detail.get(name)}
            known[-1] = last | {name: value for name, value in detail.items() if value is not None} | texts
        else:
            known.append(detail)


def take_tool_call(reading: Reading, call: Mapping[str, Any], *, whole: bool = False) -> None:
    """
    Add a tool call, or the next part of one, to those read so far.

    Args:
        whole: Whether it is complete, so that the next one is another call whatever its id and its index.
    """
    function = call.get("function")
    function = function if isinstance(function, dict) else {}
    call_id, name, arguments = call.get("id"), function.get("name"), function.get("arguments")
    if arguments is not None and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    part = _Part(
        str(call_id) if isinstance(call_id, str | int) and str(call_id) else "",
        index if isinstance(index := call.get("index"), int) else None,
        name if isinstance(name, str) else "",
        arguments or "",
    )
    target = None if whole else _find_tool_call(reading.tool_calls, part)
    if target is None:
        target = _new_tool_call(reading, part, whole=whole)
    elif _repeats(target, part):
        return
    if part.id and not target["id"]:
        target["id"] = part.id
    if part.name:
        target["function"]["name"] = part.name
    target["function"]["arguments"] += part.arguments
    if fields := call.get("provider_specific_fields") or function.get("provider_specific_fields"):
        target["provider_specific_fields"] = fields
    if isinstance(extra := call.get("extra_content"), dict) and extra:
        target["extra_content"] = extra


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a streamed tool call; what is missing is empty."""

    id: str
    index: int | None
    name: str
    arguments: str


def _new_tool_call(reading: Reading, part: _Part, *, whole: bool) -> dict[str, Any]:
    # A streamed call without a name follows one whose name it shares: its head could not be told from that one's.
    last = reading.tool_calls[-1] if reading.tool_calls and not whole and not part.id else None
    new: dict[str, Any] = {
        "id": part.id,
        "type": "function",
        "index": len(reading.tool_calls) if part.index is None else part.index,
        "function": {"name": "" if last is None else last["function"]["name"], "arguments": ""},
    }
    reading.tool_calls.append(new)
    return new


def _find_tool_call(calls: list[dict[str, Any]], part: _Part) -> dict[str, Any] | None:
    """The tool call that a part continues: by its id, then its index, then the order; None if it begins another."""
    with_id = [call for call in calls if part.id and call["id"] == part.id]
    with_index = [call for call in calls if part.index is not None and call["index"] == part.index]
    target: dict[str, Any] | None
    if with_id:
        both = [call for call in with_id if call in with_index]
        target = (both or with_id)[-1]
        # Two calls may have one id: the second begins with a name at an index of its own.
        begins = bool(part.name) and part.index is not None and part.index != target["index"]
    else:
        possible = calls if part.index is None else with_index
        target = possible[-1] if possible else None
        begins = _begins_another(target, part)
    if target is None or begins:
        return None
    is_over = part.arguments.lstrip().startswith("{") and _is_complete(target) and not _repeats(target, part)
    return None if is_over else target


def _begins_another(target: dict[str, Any] | None, part: _Part) -> bool:
    """Whether a part whose id is new, or that has none, begins a call after `target`."""
    if target is None:
        return True
    name, arguments = target["function"]["name"], target["function"]["arguments"]
    if part.id and target["id"]:
        # vLLM once gave each part an id of its own; such a part has no name, and what it continues is incomplete.
        return bool(part.name) or not part.arguments or _is_complete(target)
    if part.name and name:
        # Some servers repeat the name in each part.
        return part.name != name or (part.index is None and (not arguments or _is_complete(target)))
    return False


def _repeats(target: dict[str, Any], part: _Part) -> bool:
    """Whether a part only says again what a complete call holds, as some servers do at the end."""
    function = target["function"]
    same = function["name"] == part.name and bool(part.name) and part.id in ("", target["id"])
    return same and function["arguments"] == part.arguments and _is_complete(target)


def _is_complete(call: Mapping[str, Any]) -> bool:
    """Whether a call's arguments are a whole JSON object, which nothing can continue."""
    arguments = call["function"]["arguments"].strip()
    if not arguments.endswith("}"):
        return False
    try:
        return isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        return False


def _give_ids(calls: Iterable[dict[str, Any]]) -> None:
    """Replace ids that are missing, that another call of the answer has, or that are too long for other providers."""
    seen: set[str] = set()
    for call in calls:
        given = call["id"].partition(_SIGNATURE_IN_ID)[0]
        call["id"] = given if given and len(given) <= _MAX_ID_CHARS and given not in seen else new_call_id()
        seen.add(call["id"])


def new_call_id() -> str:
    """An id for a tool call that has none, which every provider but Mistral takes."""
    return f"call_{uuid.uuid4().hex[:24]}"


def tool_call_to_text(reading: Reading) -> None:
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
            take_tool_call(reading, {**call, "index": number}, whole=True)
    if body.get("done") is True:
        reading.ended = True
        reading.finish(body.get("done_reason"))
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
            index = number if kind is None else body.get("index")
            take_tool_call(reading, {**call, "index": index}, whole=kind is None)
    citations = message.get("citations")
    reading.add("citations", [citations] if isinstance(citations, dict) else citations)
    reading.finish(source.get("finish_reason"), source.get("error"))
    reading.take_usage(source.get("usage"), cohere_usage)
    reading.ended = reading.ended or kind == "message-end"


def take_replicate(reading: Reading, body: Mapping[str, Any]) -> None:
    """Read a Replicate prediction with the output that it has so far."""
    output = body.get("output")
    parts = [output] if isinstance(output, str) else output
    if parts is not None and not (isinstance(parts, list) and all(isinstance(part, str) for part in parts)):
        raise UnreadableError("output that is not text")
    if parts is None and body.get("status") == "succeeded":
        raise UnreadableError("a prediction without output")
    reading.began = True
    text = clean("".join(parts or ()))
    reading.pieces.append(text[len(reading.text) :])
    reading.identify(body)
    reading.under_way = body.get("status") != "succeeded"
    if not reading.under_way:
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
