"""The agent's own turns as calls of the client: with fallback, recorded, and refused before they break a budget."""

from __future__ import annotations

import contextvars
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal, NamedTuple

from agency_swarm import Agency, MasterContext
from agency_swarm.agent.system_reminders import CompositeAgentHooks
from agency_swarm.utils.model_utils import get_usage_tracking_model_name
from agents import (
    Agent,
    AgentHooks,
    AgentOutputSchemaBase,
    Handoff,
    Model,
    ModelResponse,
    ModelSettings,
    ModelTracing,
    RunContextWrapper,
    Tool,
    Usage,
    generation_span,
    get_current_span,
)
from agents.items import TResponseInputItem, TResponseOutputItem, TResponseStreamEvent
from agents.models.chatcmpl_converter import Converter
from agents.models.chatcmpl_helpers import ChatCmplHelpers
from agents.models.chatcmpl_stream_handler import ChatCmplStreamHandler
from agents.models.fake_id import FAKE_RESPONSES_ID
from agents.retry import ModelRetryAdvice, ModelRetryAdviceRequest
from openai import Omit
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessage
from openai.types.completion_usage import CompletionUsage
from openai.types.responses import Response, ResponseCompletedEvent

from shared.analytics import open_ledger
from shared.calls import LLMStream
from shared.config import Settings, load_settings
from shared.errors import ConfigurationError, InvalidRequest, LLMError
from shared.internal.clock import new_id
from shared.ledger import AttemptRow, committed
from shared.llm_client import LLMClient, get_llm_client
from shared.models import Catalogue, is_auto, resolve
from shared.prices import UNKNOWN, price
from shared.runs import Caller, Watch, caller_of, watch_of
from shared.scope import Scope, current_scope, scope
from shared.types import Answer, Candidate, LLMResponse, TaskType, Usage as Counts

# Settings of an agent that are parameters of a chat completion with the same name.
_SETTINGS = (
    "temperature",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "max_tokens",
    "verbosity",
    "store",
    "metadata",
    "prompt_cache_retention",
    "extra_headers",
    "extra_body",
    "extra_query",
)
# Arguments of the client that are not parameters of a chat completion.
_NOT_FOR_AGENTS = frozenset({"api_base", "api_key", "deadline", "fallback_on", "timeout"})
# The output index of reasoning that arrives after the text of a streamed turn has begun: the text has index 0, and the
# SDK's handler then numbers tool calls from 2.
_LATE_REASONING_INDEX = 1
# The name under which the SDK's items keep OpenRouter's reasoning for the next turn.
_DETAILS = "reasoning_details"


def budgeted(
    model: str,
    fallback_models: Sequence[str] | None = None,
    *,
    client: LLMClient | None = None,
    prompt_cache: Literal["auto", "1h"] | None = "auto",
) -> Model:
    """
    A model for `Agent(model=...)` that makes each turn one call of the client.

    Args:
        model: Name such as "openai/gpt-5.4-mini", or "auto" for the cheapest of your models that can take the turn.

        fallback_models: Models to try next, in order. None: LITELLM_DEFAULT_FALLBACK_MODELS; []: none.

        prompt_cache: "auto" lets providers cache what is sent in every turn, for 5 minutes, where they need to be told
            and it pays; "1h" for 1 hour, at twice the price of the input; None leaves it to the provider.

        client: Makes the calls. None: this process's shared client.

    Raises:
        ConfigurationError: A name is not a text.
    """
    names = [model, *(fallback_models or ())]
    if isinstance(fallback_models, str) or not all(isinstance(name, str) and name for name in names):
        raise ConfigurationError(
            "budgeted() takes a model name and a list of model names",
            hint='Give budgeted("openai/gpt-5.4-mini", ["anthropic/claude-haiku-4-5"]).',
        )
    return BudgetedModel(model, None if fallback_models is None else tuple(fallback_models), client, prompt_cache)


class BudgetedModel(Model):
    """The model that `budgeted` returns; agency-swarm uses `model` to price its own figures."""

    # agency-swarm looks up default settings by this name. Not the real name: the defaults of some models are settings
    # that fallback models reject.
    _agency_swarm_default_model_name = "agentswarm-tools"

    def __init__(
        self,
        model: str,
        fallback_models: tuple[str, ...] | None,
        client: LLMClient | None,
        prompt_cache: Literal["auto", "1h"] | None = "auto",
    ) -> None:
        self.model = model
        self._prompt_cache = prompt_cache
        self._fallback_models = fallback_models
        self._client = client

    def get_retry_advice(self, request: ModelRetryAdviceRequest) -> ModelRetryAdvice:  # noqa: ARG002 - the SDK's signature
        """Never retry: the client has already retried what is free, and anything more could be charged twice."""
        return ModelRetryAdvice(suggested=False, replay_safety="unsafe", reason="the client has retried it")

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        """
        One turn; the arguments are those of `agents.Model.get_response`.

        Raises:
            LLMError: The call failed, or was refused before it was sent; the run ends with this error.
        """
        turn = _turn(self.model, *args, **kwargs)
        with generation_span(model=self.model, disabled=turn.tracing.is_disabled()) as span:
            answer = self._answer(turn, await self._call(turn, stream=False))
            _trace(span, turn, answer)
        usage = answer.usage
        counts = Usage(
            requests=1,
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
            input_tokens_details=usage.prompt_tokens_details,  # type: ignore[arg-type]  # the SDK's Usage converts it
            output_tokens_details=usage.completion_tokens_details,  # type: ignore[arg-type]  # the SDK's Usage converts it
        )
        return ModelResponse(output=answer.items, usage=counts, response_id=None)

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[TResponseStreamEvent]:
        """
        One turn as events: text as it arrives, reasoning and tool calls when the answer is complete.

        Raises:
            LLMError: As `get_response`; StreamInterrupted if text had already arrived.
        """
        turn = _turn(self.model, *args, **kwargs)
        with generation_span(model=self.model, disabled=turn.tracing.is_disabled()) as span:
            stream: LLMStream = await self._call(turn, stream=True)
            answers: list[_Answer] = []  # filled by `_chunks` when the stream ends
            chunks: Any = self._chunks(turn, stream, answers)
            events: Any = ChatCmplStreamHandler.handle_stream(self._empty_response(), chunks)
            async with stream, aclosing(chunks), aclosing(events):
                async for event in events:
                    yield _corrected(event, stream, answers)
            _trace(span, turn, answers[0])

    async def _call(self, turn: _Turn, *, stream: bool) -> Any:
        """An LLMResponse, or an LLMStream whose request is sent when it is first read."""
        if turn.watch is not None:
            turn.watch.check()
        client = self._client or get_llm_client()
        caller = turn.caller
        # Not `from_agent`: the operator chose the model, even though an agent wrote the messages.
        with scope(agent=caller.agent, run=caller.run, conversation=caller.conversation, from_agent=False):
            params = {
                **turn.params,
                "model": self.model,
                "fallback_models": self._fallback_models,
                "prompt_cache": self._prompt_cache,
                "stream": stream,
            }
            return await client.achat_completion(turn.messages, **params)

    def _answer(self, turn: _Turn, response: LLMResponse) -> _Answer:
        calls = [_tool_call(call, turn.call_ids) for call in response.metadata.get("tool_calls", ())]
        if turn.watch is not None:
            for call in calls:
                turn.watch.called("model", call["function"]["name"], call["function"]["arguments"])
        message: dict[str, Any] = {
            "role": "assistant",
            "content": response.content or None,
            "tool_calls": calls or None,
        }
        message |= {k: response.metadata[k] for k in ("reasoning_content", "thinking_blocks") if k in response.metadata}
        # A successor or another spelling of the requested model counts as that model, so that it gets its own
        # reasoning back in the next turn.
        is_other = response.metadata["fallback_used"] or is_auto(self.model)
        answered_by = response.model if is_other else self.model
        return _Answer(response, ChatCompletionMessage.model_validate(message), answered_by)

    async def _chunks(
        self, turn: _Turn, stream: LLMStream, answers: list[_Answer]
    ) -> AsyncGenerator[ChatCompletionChunk, None]:
        """The stream as OpenAI's chunks; everything besides text is in the last ones."""
        async for text in stream:
            yield _chunk(self.model, {"content": text})
        assert stream.response is not None, "a stream ends with its response or an error"  # noqa: S101
        answer = self._answer(turn, stream.response)
        answers.append(answer)
        message = answer.message.model_dump(exclude_none=True)
        if "reasoning_content" in message:
            yield _chunk(answer.answered_by, {"reasoning_content": message["reasoning_content"]})
        calls = [{**call, "index": number} for number, call in enumerate(message.get("tool_calls", ()))]
        yield _chunk(answer.answered_by, {"tool_calls": calls} if calls else {}, answer.usage)

    def _empty_response(self) -> Response:
        """The response before any of it has arrived."""
        return Response(
            id=FAKE_RESPONSES_ID,
            created_at=time.time(),
            model=self.model,
            object="response",
            output=[],
            tool_choice="auto",
            tools=[],
            parallel_tool_calls=False,
        )


class _Turn(NamedTuple):
    """The SDK's request for one turn, and who makes it."""

    messages: list[Any]
    params: dict[str, Any]
    call_ids: frozenset[str]
    tracing: ModelTracing
    caller: Caller
    watch: Watch | None


class _Answer(NamedTuple):
    """An answer in OpenAI's format, and the model that gave it."""

    response: LLMResponse
    message: ChatCompletionMessage
    answered_by: str

    @property
    def items(self) -> list[TResponseOutputItem]:
        items = Converter.message_to_output_items(self.message, provider_data={"model": self.answered_by})
        if found := self.response.metadata.get("reasoning_details"):
            # OpenRouter's signed reasoning goes back with the tool call; the SDK has no place for it.
            call = next((item for item in items if item.type == "function_call"), None)
            if call is not None:
                kept = {**getattr(call, "provider_data", {}), _DETAILS: found}
                items[items.index(call)] = type(call).model_validate({**call.model_dump(), "provider_data": kept})
        return items

    @property
    def usage(self) -> CompletionUsage:
        """The counts; the SDK cannot represent an unknown count, so it is 0 here."""
        counts = self.response.usage
        return CompletionUsage.model_validate(
            {
                "prompt_tokens": counts.get("prompt_tokens", 0),
                "completion_tokens": counts.get("completion_tokens", 0),
                "total_tokens": counts.get("total_tokens", 0),
                "prompt_tokens_details": {
                    "cached_tokens": counts.get("cached_tokens", 0),
                    "cache_write_tokens": counts.get("cache_write_tokens", 0),
                },
                "completion_tokens_details": {"reasoning_tokens": counts.get("reasoning_tokens", 0)},
            }
        )


def _turn(
    model: str,
    system_instructions: str | None,
    input: str | list[TResponseInputItem],  # noqa: A002 - the SDK's keyword
    model_settings: ModelSettings,
    tools: list[Tool],
    output_schema: AgentOutputSchemaBase | None,
    handoffs: list[Handoff],
    tracing: ModelTracing,
    *,
    previous_response_id: str | None = None,
    conversation_id: str | None = None,
    prompt: Any = None,
) -> _Turn:
    """
    The SDK's arguments as those of a chat completion.

    Raises:
        InvalidRequest: The conversation or the prompt is stored at OpenAI, or log probabilities are requested.
    """
    if previous_response_id or conversation_id or prompt:
        raise InvalidRequest(
            f"{model} cannot use what is stored at OpenAI (previous_response_id, conversation_id, prompt)",
            model=model,
            hint="Send the whole conversation, and instructions instead of a prompt.",
        )
    if model_settings.top_logprobs is not None:
        raise InvalidRequest(f"{model} returns no log probabilities here", model=model, hint="Leave out top_logprobs.")
    messages: list[Any] = Converter.items_to_messages(
        input,
        model=model,
        # Anthropic needs its thinking blocks back while thinking is on, and only then.
        preserve_thinking_blocks=_effort(model_settings) not in (None, "none"),
        preserve_tool_output_all_content=True,
    )
    _restore_signatures(
        messages, model, {item["call_id"]: item.get("provider_data") for item in _function_calls(input)}
    )
    if system_instructions:
        messages.insert(0, {"role": "system", "content": system_instructions})
    context, agent = _host()
    return _Turn(
        messages,
        _params(model_settings, tools, output_schema, handoffs),
        frozenset(item["call_id"] for item in _function_calls(input)),
        tracing,
        caller_of(context, agent),
        watch_of(context),
    )


def _host() -> tuple[MasterContext | None, str | None]:
    """
    The host's record of the run, and the agent whose turn it is; the SDK passes neither to a model.

    agency-swarm keeps the record in a ContextVar of its own. The SDK keeps the agent's name in the span of the turn,
    even if tracing is off (agency-swarm 1.11.0, openai-agents 0.18.1, read 2026-11-25).
    """
    values = (value for value in contextvars.copy_context().values())
    of_host = (value for value in values if type(value).__module__.startswith("agency_swarm."))
    records = (getattr(value, "context", None) for value in of_host)
    context = next((record for record in records if isinstance(record, MasterContext)), None)
    span = get_current_span()
    return context, getattr(span.span_data, "agent_name", None) if span else None


def _params(
    settings: ModelSettings, tools: list[Tool], output_schema: AgentOutputSchemaBase | None, handoffs: list[Handoff]
) -> dict[str, Any]:
    """
    The parameters of the chat completion.

    Raises:
        InvalidRequest: extra_args contains an argument of the client.
    """
    offered: list[Any] = [Converter.tool_to_openai(tool) for tool in tools]
    offered += [Converter.convert_handoff_tool(handoff) for handoff in handoffs]
    tool_choice: Any = Converter.convert_tool_choice(settings.tool_choice)
    response_format: Any = Converter.convert_response_format(output_schema)
    params = {
        **{name: getattr(settings, name) for name in _SETTINGS},
        "tools": offered or None,
        "tool_choice": None if isinstance(tool_choice, Omit) else tool_choice,
        "parallel_tool_calls": settings.parallel_tool_calls if offered else None,
        "response_format": None if isinstance(response_format, Omit) else response_format,
        "reasoning_effort": _effort(settings),
    }
    extra = settings.extra_args or {}
    # Callers of agency-swarm's server can set extra_args; they must not choose where the conversation is sent.
    if refused := sorted(_NOT_FOR_AGENTS & extra.keys()):
        raise InvalidRequest(
            f"extra_args must not contain {', '.join(refused)}", hint="Set them in LLMClient or in the environment."
        )
    return {**extra, **{name: value for name, value in params.items() if value is not None}}


def _effort(settings: ModelSettings) -> str | None:
    return settings.reasoning.effort if settings.reasoning else None


def _function_calls(input: str | list[TResponseInputItem]) -> Iterator[Any]:  # noqa: A002 - as in `_turn`
    return (item for item in input if isinstance(item, dict) and item.get("type") == "function_call")


def _restore_signatures(messages: list[Any], model: str, kept: Mapping[str, Any]) -> None:
    """
    Put signed reasoning back where the provider had it: Gemini's signatures on calls, OpenRouter's on messages.

    Args:
        kept: What the SDK's items keep for the provider, by the id of the tool call.
    """
    for message in messages:
        for call in message.get("tool_calls", ()):
            fields = kept.get(call["id"])
            fields = fields if isinstance(fields, dict) and fields.get("model") == model else {}
            google = call.pop("extra_content", {}).get("google", {})
            if signature := google.get("thought_signature") or fields.get("thought_signature"):
                call["provider_specific_fields"] = {"thought_signature": signature}
            if found := fields.get(_DETAILS):
                message["reasoning_details"] = [*message.get("reasoning_details", ()), *found]


def _tool_call(call: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """A tool call in OpenAI's format, with a new id if an earlier call has it: Ollama's ids repeat in each answer."""
    call_id = ChatCmplHelpers.clean_gemini_tool_call_id(call["id"], "gemini")
    if not call_id or call_id in known:
        call_id = f"call_{uuid.uuid4().hex}"
    result: dict[str, Any] = {"id": call_id, "type": "function", "function": call["function"]}
    google = call.get("extra_content", {}).get("google", {})
    signature = call.get("provider_specific_fields", {}).get("thought_signature") or google.get("thought_signature")
    if signature:
        result["extra_content"] = {"google": {"thought_signature": signature}}
    return result


def _chunk(model: str, delta: dict[str, Any], usage: CompletionUsage | None = None) -> ChatCompletionChunk:
    return ChatCompletionChunk.model_validate(
        {
            "id": FAKE_RESPONSES_ID,
            "object": "chat.completion.chunk",
            "created": 0,
            "model": model,
            "choices": [{"index": 0, "delta": delta}],
            "usage": usage and usage.model_dump(),
        }
    )


def _corrected(event: TResponseStreamEvent, stream: LLMStream, answers: list[_Answer]) -> TResponseStreamEvent:
    """The event with late reasoning at its own index; the last event with the same items as a plain turn."""
    if isinstance(event, ResponseCompletedEvent):
        event.response.output = answers[0].items
    kind = getattr(getattr(event, "item", None), "type", event.type)
    if stream.text and kind.removeprefix("response.").startswith("reasoning"):
        return event.model_copy(update={"output_index": _LATE_REASONING_INDEX})
    return event


def _trace(span: Any, turn: _Turn, answer: _Answer) -> None:
    if turn.tracing.include_data():
        span.span_data.input, span.span_data.output = turn.messages, [answer.message.model_dump()]
    usage = answer.usage
    span.span_data.usage = {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}


logger = logging.getLogger("agentswarm_tools")


def track_agency(agency: Agency) -> None:
    """
    Record every turn of every agent of an agency, with its cost if the price of the agent's model is known.

    It cannot refuse a turn, retry it or fall back, and it does not see turns that fail or are cut off. `budgeted` does
    all of that, and its turns are not recorded twice. Calling it again for the same agency changes nothing.
    """
    for agent in agency.agents.values():
        hooks = agent.hooks
        if hooks is None:
            agent.hooks = _TurnRecorder()
        elif not _records(hooks):
            # The host's own composite class, because the host searches it for its own hooks.
            agent.hooks = CompositeAgentHooks([hooks, _TurnRecorder()])


class _TurnRecorder(AgentHooks[Any]):
    """Records the usage that the SDK reports for each answered turn."""

    async def on_llm_end(self, context: RunContextWrapper[Any], agent: Agent[Any], response: ModelResponse) -> None:
        """Record one turn, plain or streamed."""
        if isinstance(agent.model, BudgetedModel):
            return
        caller = caller_of(context.context, agent.name)
        try:
            with scope(agent=caller.agent, run=caller.run, conversation=caller.conversation) as inside:
                await _record(get_usage_tracking_model_name(agent.model) or "", response.usage, inside)
        except LLMError as error:
            logger.warning("A turn of %s was not recorded: %s", agent.name, error)


def _records(hooks: Any) -> bool:
    return isinstance(hooks, _TurnRecorder) or any(_records(each) for each in getattr(hooks, "_hooks", ()))


async def _record(model: str, usage: Usage, inside: Scope) -> None:
    settings = load_settings()
    if not settings.cost_tracking:
        return
    candidate, counts = _candidate(model.removeprefix("litellm/"), settings), _counts(usage)
    cost, source, is_lower_bound = price(Answer("", None, counts), candidate.rates)
    row = AttemptRow.started(
        candidate,
        inside,
        call_id=new_id(),
        attempt_number=1,
        operation=TaskType.CHAT_COMPLETION.value,
        stream=False,
        bound_nano=None,
        lease_s=0,
    ).settled(
        "reported",
        cost_nano=cost,
        cost_source=source,
        usage=counts,
        calls=1,
        unpriced_calls=int(cost is None),
        cost_is_lower_bound=is_lower_bound,
    )
    await committed(open_ledger(settings).settle(row))


def _candidate(name: str, settings: Settings) -> Candidate:
    """The model with its price; the price is unknown if the name is unknown or the provider has shut it down."""
    unknown = Candidate(name or "(unknown)", name or "(unknown)", "(unknown)", name, rates=UNKNOWN)
    if not name:
        return unknown
    try:
        found = resolve(name, catalogue=Catalogue.load(settings), settings=settings, scope=current_scope())
    except LLMError:
        return unknown
    return found if found.model == name else unknown


def _counts(usage: Usage) -> Counts:
    """The SDK's counts; it reports unknown counts as 0, so a turn without any tokens has unknown usage."""
    if not usage.total_tokens:
        return Counts()
    return Counts(
        prompt_tokens=usage.input_tokens,
        completion_tokens=usage.output_tokens,
        cached_tokens=usage.input_tokens_details.cached_tokens,
        cache_write_tokens=getattr(usage.input_tokens_details, "cache_write_tokens", None),
        reasoning_tokens=usage.output_tokens_details.reasoning_tokens,
        source="provider",
    )
