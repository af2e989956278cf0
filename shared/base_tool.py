"""The base of every tool: open the scope, do the work, answer the agent in text."""

from __future__ import annotations

import asyncio
import base64
import inspect
import math
import time
from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, get_args
from weakref import WeakKeyDictionary

import anyio
import anyio.to_thread
from agency_swarm.tools import BaseTool as AgencySwarmTool
from agents import ToolOutputFileContent, ToolOutputImage, ToolOutputText
from pydantic import ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from shared import ledger
from shared.calls import run_blocking
from shared.errors import AllModelsFailed, LLMError
from shared.internal.aio import wait_shielded
from shared.internal.serialize import to_json
from shared.redaction import redact
from shared.runs import Watch, caller_of, watch_of
from shared.scope import Scope, scope
from shared.types import AnalyticsEvent, EventType

_STRUCTURED = ToolOutputText | ToolOutputImage | ToolOutputFileContent


class BaseTool(AgencySwarmTool):
    """Declare the arguments as fields, and do the work in `_process`."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # The host sends the docstring to the model unchanged, including its indentation.
        cls.__doc__ = inspect.cleandoc(cls.__doc__ or "")

    @property
    def tool_name(self) -> str:
        """Name of the tool in events and reports."""
        return type(self).__name__

    @property
    def shows_images(self) -> bool:
        """Whether the host shows images to its model; agency-swarm's MCP and HTTP servers pass on text alone."""
        return not isinstance(self.context, Mapping)

    @abstractmethod
    def _process(self) -> Any:
        """
        Do the work; may be an `async def`.

        Returns:
            Text, agency-swarm's structured outputs, or anything that has a JSON form.

        Raises:
            LLMError: It failed; the agent gets a text with what failed, what it cost and what to do next.
        """

    async def run(self) -> Any:
        """What the host calls: the result of `_process` as text for the agent."""
        agent = getattr(self._context, "agent", None)
        who = caller_of(self.context, getattr(agent, "name", None))
        with scope(
            tool=self.tool_name, agent=who.agent, run=who.run, conversation=who.conversation, from_agent=True
        ) as inside:
            return await self._run(inside, watch_of(self.context))

    def run_sync(self) -> Any:
        """Run the tool from a script or a notebook: the text of the result; the arguments are trusted."""

        async def trusted() -> Any:
            with scope(tool=self.tool_name) as inside:
                return await self._run(inside)

        result = run_blocking(trusted)  # on the loop whose connections stay open
        if isinstance(result, list):  # previews are for agents; a person would see base64
            result = [part for part in result if not isinstance(part, ToolOutputImage)]
            return result[0].text if len(result) == 1 and isinstance(result[0], ToolOutputText) else result
        return result

    async def _run(self, inside: Scope, watch: Watch | None = None) -> Any:
        began = time.monotonic()
        _record(AnalyticsEvent(event_type=EventType.TOOL_START, tool_name=self.tool_name))
        failed: BaseException | None = None
        try:
            if watch is not None:
                watch.check()
                watch.called("tool", self.tool_name, self.model_dump())
            return _for_agent(await self._work(inside))
        except LLMError as error:
            failed = error
            if watch is not None:
                watch.failed(error)
            if error.retryable:
                raise
            return _failure(error)
        except ValidationError as error:
            # The host would report a ValidationError to the agent as a mistake in the agent's own arguments.
            failed = error
            raise RuntimeError(
                f"{self.tool_name} failed internally: {error.error_count()} values were not valid"
            ) from error
        except BaseException as error:
            failed = error
            raise
        finally:
            _record(_ended(self.tool_name, began, failed))
            await _settle_writes(inside, is_stopped=failed is not None and not isinstance(failed, Exception))

    async def _work(self, inside: Scope) -> Any:
        if inspect.iscoroutinefunction(self._process):
            return await self._process()
        try:
            limiter = _limiter(inside.owner)
            return await anyio.to_thread.run_sync(self._process, abandon_on_cancel=True, limiter=limiter)
        except BaseException:
            # The thread cannot be stopped, but the calls that it is waiting for can.
            inside.pending.cancel()
            raise

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        """Raise errors that say what to send instead, without repeating what was sent."""
        try:
            _refuse_booleans(cls, values)
            return handler(values)
        except ValidationError as error:
            problems = error.errors(include_input=False, include_url=False)
            details = [_explained(cls, each, is_only=len(problems) == 1) for each in problems]
            raise ValidationError.from_exception_data(cls.__name__, details, hide_input=True) from None


# By event loop, whose limiters they are.
_limiters: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, anyio.CapacityLimiter]] = WeakKeyDictionary()
_MAX_THREADS = 40


def _limiter(owner: Hashable) -> anyio.CapacityLimiter:
    """
    How many blocking tools may run at once for one tenant.

    Not anyio's own limit: that is one for the whole program, and tools that wait would leave no thread for others.
    """
    limiters = _limiters.setdefault(asyncio.get_running_loop(), {})
    for idle in [each for each, limiter in limiters.items() if not limiter.borrowed_tokens and each != owner]:
        del limiters[idle]
    return limiters.setdefault(owner, anyio.CapacityLimiter(_MAX_THREADS))


def _refuse_booleans(cls: type[BaseTool], values: Any) -> None:
    """
    Refuse true and false for numbers; pydantic would convert them to 1 and 0.

    Raises:
        ValidationError: Names the arguments.
    """
    fields = cls.model_fields.items() if isinstance(values, Mapping) else ()
    details: list[InitErrorDetails] = []
    for name, field in fields:
        types = (field.annotation, *get_args(field.annotation))
        if isinstance(values.get(name), bool) and bool not in types and (int in types or float in types):
            kind = "float_type" if float in types else "int_type"
            details.append(InitErrorDetails(type=kind, loc=(name,), input=None))
    if details:
        raise ValidationError.from_exception_data(cls.__name__, details, hide_input=True)


def _explained(cls: type[BaseTool], error: Any, *, is_only: bool) -> InitErrorDetails:
    """
    One problem as a sentence; with the type "value_error" the host passes it on unchanged.

    The host puts the argument's name before each of several problems, and not before an only one.
    """
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = f"the arguments are {', '.join(cls.model_fields)}"
        text = f"there is no argument {place[:60]}; {known}" if is_only else f"there is no such argument; {known}"
    elif error["type"] == "missing":
        text = f"{place} is required"
    elif error["type"] == "value_error":
        text = str(error["ctx"]["error"]) if "ctx" in error else error["msg"]
    else:
        text = f"{place}: {_instead(cls, error)}" if place else error["msg"]
    if not is_only:
        text = text.removeprefix(f"{place}: ").removeprefix(f"{place} ")
    return InitErrorDetails(type=PydanticCustomError("value_error", text), loc=error["loc"], input=None)


def _instead(cls: type[BaseTool], error: Any) -> str:
    """What to send instead: the argument's own description where pydantic would show a regular expression."""
    field = cls.model_fields.get(str(error["loc"][0])) if error["type"] == "string_pattern_mismatch" else None
    if field is None or field.description is None:
        return str(error["msg"])
    return f"use {field.description.split('. ')[0].rstrip('.')}"


def _for_agent(result: Any) -> Any:
    """Text and the host's structured outputs unchanged, anything else as JSON text."""
    if isinstance(result, str | _STRUCTURED):
        return result
    if isinstance(result, list) and result and all(isinstance(part, _STRUCTURED) for part in result):
        return result
    return to_json(result)


def as_outputs(result: Mapping[str, Any], previews: Sequence[bytes]) -> list[Any]:
    """A result as JSON text, followed by JPEG previews for the agent; some models get only the text."""
    images = (f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}" for data in previews)
    parts = [ToolOutputImage(image_url=image, detail="low") for image in images]
    return [ToolOutputText(text=to_json(result)), *parts]


_DO_NOT_RETRY = "Do not repeat it: it could be charged again."


def _failure(error: LLMError) -> str:
    """A failure that a retry cannot fix, as text: if it were raised, the host would ask the agent to try again."""
    return to_json(
        {
            "error": redact(_without_retry(error), limit=1000),
            "error_type": error.error_type,
            "cost": error.cost,
            "retry": False,
        }
    )


def _without_retry(error: LLMError) -> str:
    """The error's text, without the advice to try again that its class has for failures that cost nothing."""
    if isinstance(error, AllModelsFailed):
        lines = [f"- {each.model or each.provider or '?'}: {_without_retry(each)}" for each in error.failures]
        return "\n".join([f"{error.message}. {error.charged}", *lines])
    if error.action != "retry" or error.next_step != error.hint:
        return str(error)
    return f"{error.message}. {error.charged} {_DO_NOT_RETRY}"


def _record(event: AnalyticsEvent) -> None:
    from shared.analytics import record_event  # with the ledger, which takes time to import

    record_event(event)


def _ended(tool: str, began: float, failed: BaseException | None) -> AnalyticsEvent:
    metadata: dict[str, Any] = {"duration_ms": round((time.monotonic() - began) * 1000, 3)}
    if failed is not None:
        metadata["error_type"] = type(failed).__name__
    kind = EventType.TOOL_SUCCESS if failed is None else EventType.TOOL_ERROR
    return AnalyticsEvent(event_type=kind, tool_name=tool, metadata=metadata)


async def _settle_writes(inside: Scope, *, is_stopped: bool) -> None:
    """Wait until everything that was recorded is in the ledger, so that it is there when the tool returns."""
    writes = [asyncio.wrap_future(write) for write in inside.pending.take_writes()]
    if writes:
        all_done = asyncio.gather(*writes, return_exceptions=True)
        patience = ledger.STOPPED_PATIENCE_S if is_stopped else math.inf
        if await wait_shielded(all_done, patience, ledger.STOPPED_PATIENCE_S):
            raise asyncio.CancelledError
