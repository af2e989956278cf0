"""The agent's own turns as calls like any other: planned, recorded, fallen back, refused before they are sent."""

from __future__ import annotations

import contextvars
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

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

from shared.calls import LLMStream
from shared.config import Settings, database_url, load_settings
from shared.errors import ConfigurationError, InvalidRequest, LLMError
from shared.internal.clock import new_id
from shared.ledger import AttemptRow, committed, get_ledger
from shared.llm_client import LLMClient, get_llm_client
from shared.models import Catalogue, resolve
from shared.prices import UNKNOWN, price
from shared.runs import Caller, Watch, caller_of, watch_of
from shared.scope import Scope, current_scope, scope
from shared.types import Answer, Candidate, LLMResponse, TaskType, Usage as Counts

# The settings of an agent that are parameters of a chat completion under the same name.
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
# What the client takes beside the parameters of a chat completion.
_NOT_FOR_AGENTS = frozenset({"api_base", "api_key", "deadline", "timeout"})
# The place in a streamed turn of thoughts that come when its text has begun: the text has place 0, and the SDK's
# handler then counts tool calls from 2.
_THOUGHTS_AFTER_TEXT = 1


def budgeted(model: str, fallback_models: Sequence[str] | None = None, *, client: LLMClient | None = None) -> Model:
    """
    A model for `Agent(model=...)` whose every turn is one call of the client.

    Args:
        model: Name such as "openai/gpt-5.4-mini".

        fallback_models: What to try next, in order. None: LITELLM_DEFAULT_FALLBACK_MODELS; []: nothing.

        client: Makes the calls. None: the one that this process shares.

    Raises:
        ConfigurationError: One of the names is no text.
    """
    names = [model, *(fallback_models or ())]
    if isinstance(fallback_models, str) or not all(isinstance(name, str) and name for name in names):
        raise ConfigurationError(
            "budgeted() takes the name of a model and a list of names",
            hint='Give budgeted("openai/gpt-5.4-mini", ["anthropic/claude-haiku-4-5"]).',
        )
    return BudgetedModel(model, None if fallback_models is None else tuple(fallback_models), client)


class BudgetedModel(Model):
    """What `budgeted` makes; `model` is the name by which agency-swarm prices its own figures."""

    # By this name agency-swarm looks up settings for agents that chose none; those of some models no fallback takes.
    _agency_swarm_default_model_name = "agentswarm-tools"

    def __init__(self, model: str, fallback_models: tuple[str, ...] | None, client: LLMClient | None) -> None:
        self.model = model
        self._fallback_models = fallback_models
        self._client = client

    def get_retry_advice(self, request: ModelRetryAdviceRequest) -> ModelRetryAdvice:  # noqa: ARG002 - the SDK's name
        """Never: the client has retried what costs nothing, and anything more could be paid twice."""
        return ModelRetryAdvice(suggested=False, replay_safety="unsafe", reason="the client has retried it")

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        """
        One turn; the arguments are those of `agents.Model.get_response`.

        Raises:
            LLMError: The call failed, or was refused before it was sent; the run ends with it.
        """
        turn = _turn(self.model, *args, **kwargs)
        with generation_span(model=self.model, disabled=turn.tracing.is_disabled()) as span:
            said = self._said(turn, await self._ask(turn, stream=False))
            _trace(span, turn, said)
        usage = said.usage
        counts = Usage(
            requests=1,
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
            input_tokens_details=usage.prompt_tokens_details,  # type: ignore[arg-type]  # Usage converts it
            output_tokens_details=usage.completion_tokens_details,  # type: ignore[arg-type]  # likewise
        )
        return ModelResponse(output=said.items, usage=counts, response_id=None)

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[TResponseStreamEvent]:
        """
        One turn as events: text as it comes, thoughts and tool calls when the answer is whole.

        Raises:
            LLMError: As `get_response`; StreamInterrupted when the text had begun.
        """
        turn = _turn(self.model, *args, **kwargs)
        with generation_span(model=self.model, disabled=turn.tracing.is_disabled()) as span:
            stream: LLMStream = await self._ask(turn, stream=True)
            said: list[_Said] = []
            chunks: Any = self._chunks(turn, stream, said)
            events: Any = ChatCmplStreamHandler.handle_stream(self._begun(), chunks)
            async with stream, aclosing(chunks), aclosing(events):
                async for event in events:
                    yield _placed(event, stream, said)
            _trace(span, turn, said[0])

    async def _ask(self, turn: _Turn, *, stream: bool) -> Any:
        """An LLMResponse, or an LLMStream that is sent when it is first read."""
        if turn.watch is not None:
            turn.watch.check()
        client = self._client or get_llm_client()
        who = turn.caller
        # The operator named the model, whoever wrote the messages.
        with scope(agent=who.agent, run=who.run, conversation=who.conversation, from_agent=False):
            params = {
                **turn.params,
                "model": self.model,
                "fallback_models": self._fallback_models,
                "stream": stream,
            }
            return await client.achat_completion(turn.messages, **params)

    def _said(self, turn: _Turn, response: LLMResponse) -> _Said:
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
        # A successor or another spelling of the model asked for is that model, to whom its own thoughts are given back.
        answered = response.model if response.metadata["fallback_used"] else self.model
        return _Said(response, ChatCompletionMessage.model_validate(message), answered)

    async def _chunks(
        self, turn: _Turn, stream: LLMStream, said: list[_Said]
    ) -> AsyncGenerator[ChatCompletionChunk, None]:
        """The stream as OpenAI's chunks; what is more than text comes in the last ones."""
        async for text in stream:
            yield _chunk(self.model, {"content": text})
        assert stream.response is not None, "a stream ends with its response or an error"  # noqa: S101
        done = self._said(turn, stream.response)
        said.append(done)
        message = done.message.model_dump(exclude_none=True)
        if "reasoning_content" in message:
            yield _chunk(done.answered, {"reasoning_content": message["reasoning_content"]})
        calls = [{**call, "index": number} for number, call in enumerate(message.get("tool_calls", ()))]
        yield _chunk(done.answered, {"tool_calls": calls} if calls else {}, done.usage)

    def _begun(self) -> Response:
        """The answer before anything of it has come."""
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
    """What the SDK wants answered, and for whom."""

    messages: list[Any]
    params: dict[str, Any]
    call_ids: frozenset[str]
    tracing: ModelTracing
    caller: Caller
    watch: Watch | None


class _Said(NamedTuple):
    """An answer as OpenAI has it, and the model that gave it."""

    response: LLMResponse
    message: ChatCompletionMessage
    answered: str

    @property
    def items(self) -> list[TResponseOutputItem]:
        return Converter.message_to_output_items(self.message, provider_data={"model": self.answered})

    @property
    def usage(self) -> CompletionUsage:
        """The counts; the SDK has no word for unknown, so an unknown one is 0 there."""
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
    input: str | list[TResponseInputItem],  # noqa: A002 - the SDK's name
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
    The SDK's arguments as a chat completion's.

    Raises:
        InvalidRequest: The conversation or the prompt lies with OpenAI, or log probabilities are wanted.
    """
    if previous_response_id or conversation_id or prompt:
        raise InvalidRequest(
            f"{model} cannot go on from what OpenAI keeps (previous_response_id, conversation_id, prompt)",
            model=model,
            hint="Give the whole conversation, and instructions instead of a prompt.",
        )
    if model_settings.top_logprobs is not None:
        raise InvalidRequest(f"{model} gives no log probabilities here", model=model, hint="Leave out top_logprobs.")
    messages: list[Any] = Converter.items_to_messages(
        input,
        model=model,
        # Anthropic wants its thoughts back while it thinks, and only then.
        preserve_thinking_blocks=_effort(model_settings) not in (None, "none"),
        preserve_tool_output_all_content=True,
    )
    _give_signatures_back(messages)
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
    The host's record of the run, and the agent whose turn it is; the SDK gives a model neither.

    agency-swarm keeps the record in a ContextVar of its own, and the SDK the agent's name in the span of the turn,
    also where tracing is off (agency-swarm 1.11.0, openai-agents 0.18.1, read 2026-11-25).
    """
    theirs = (held for held in contextvars.copy_context().values() if type(held).__module__.startswith("agency_swarm."))
    records = (getattr(held, "context", None) for held in theirs)
    context = next((record for record in records if isinstance(record, MasterContext)), None)
    span = get_current_span()
    return context, getattr(span.span_data, "agent_name", None) if span else None


def _params(
    settings: ModelSettings, tools: list[Tool], output_schema: AgentOutputSchemaBase | None, handoffs: list[Handoff]
) -> dict[str, Any]:
    """
    The parameters of the chat completion.

    Raises:
        InvalidRequest: extra_args hold what is none.
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
    # agency-swarm's server lets its callers set them, who must not choose where the conversation goes.
    if refused := sorted(_NOT_FOR_AGENTS & extra.keys()):
        raise InvalidRequest(
            f"extra_args may not hold {', '.join(refused)}", hint="Give them to LLMClient, or to the environment."
        )
    return {**extra, **{name: value for name, value in params.items() if value is not None}}


def _effort(settings: ModelSettings) -> str | None:
    return settings.reasoning.effort if settings.reasoning else None


def _function_calls(input: str | list[TResponseInputItem]) -> Iterator[Any]:  # noqa: A002 - the SDK's name
    return (item for item in input if isinstance(item, dict) and item.get("type") == "function_call")


def _give_signatures_back(messages: list[Any]) -> None:
    """Gemini's signatures, from where the SDK keeps them to where LiteLLM looks for them."""
    for message in messages:
        for call in message.get("tool_calls", ()):
            google = call.pop("extra_content", {}).get("google", {})
            if signature := google.get("thought_signature"):
                call["provider_specific_fields"] = {"thought_signature": signature}


def _tool_call(call: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """A tool call as OpenAI has it, under an id that no earlier call has; Ollama starts anew with each answer."""
    ident = ChatCmplHelpers.clean_gemini_tool_call_id(call["id"], "gemini")
    if not ident or ident in known:
        ident = f"call_{uuid.uuid4().hex}"
    made: dict[str, Any] = {"id": ident, "type": "function", "function": call["function"]}
    if signature := call.get("provider_specific_fields", {}).get("thought_signature"):
        made["extra_content"] = {"google": {"thought_signature": signature}}
    return made


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


def _placed(event: TResponseStreamEvent, stream: LLMStream, said: list[_Said]) -> TResponseStreamEvent:
    """The event with late thoughts at a place of their own, and at the end the same items as of a plain turn."""
    if isinstance(event, ResponseCompletedEvent):
        event.response.output = said[0].items
    kind = getattr(getattr(event, "item", None), "type", event.type)
    if stream.text and kind.removeprefix("response.").startswith("reasoning"):
        return event.model_copy(update={"output_index": _THOUGHTS_AFTER_TEXT})
    return event


def _trace(span: Any, turn: _Turn, said: _Said) -> None:
    if turn.tracing.include_data():
        span.span_data.input, span.span_data.output = turn.messages, [said.message.model_dump()]
    usage = said.usage
    span.span_data.usage = {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}


logger = logging.getLogger("agentswarm_tools")


def track_agency(agency: Agency) -> None:
    """
    Record every turn of every agent of an agency, priced where the price of the agent's model is known.

    It cannot refuse a turn, retry it or fall back, and does not see one that fails or is cut off; `budgeted` does all
    that, and its turns are not recorded here again. Doing it twice counts once.
    """
    for agent in agency.agents.values():
        hooks = agent.hooks
        if hooks is None:
            agent.hooks = _TurnRecorder()
        elif not _records(hooks):
            # The host's own composite, in which it looks for hooks of its own.
            agent.hooks = CompositeAgentHooks([hooks, _TurnRecorder()])


class _TurnRecorder(AgentHooks[Any]):
    """Records what the SDK says when a turn has been answered."""

    async def on_llm_end(self, context: RunContextWrapper[Any], agent: Agent[Any], response: ModelResponse) -> None:
        """One turn, plain or streamed."""
        if isinstance(agent.model, BudgetedModel):
            return
        who = caller_of(context.context, agent.name)
        try:
            with scope(agent=who.agent, run=who.run, conversation=who.conversation) as inside:
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
    await committed(get_ledger(database_url(settings)).settle(row))


def _candidate(name: str, settings: Settings) -> Candidate:
    """The model with its price; without one where nobody knows the name, or its provider has shut it down."""
    unknown = Candidate(name or "(unknown)", name or "(unknown)", "(unknown)", name, rates=UNKNOWN)
    if not name:
        return unknown
    try:
        found = resolve(name, catalogue=Catalogue.load(settings), settings=settings, scope=current_scope())
    except LLMError:
        return unknown
    return found if found.model == name else unknown


def _counts(usage: Usage) -> Counts:
    """The SDK's counts; it has no word for unknown, so a turn without tokens is one that nobody counted."""
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
