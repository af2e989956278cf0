"""The turns of agents whose model stays as it is, recorded after the fact."""

from __future__ import annotations

import logging
from typing import Any

from agency_swarm import Agency
from agency_swarm.agent.system_reminders import CompositeAgentHooks
from agency_swarm.utils.model_utils import get_usage_tracking_model_name
from agents import Agent, AgentHooks, ModelResponse, RunContextWrapper, Usage

from shared import config
from shared.agent_model import BudgetedModel
from shared.calls import COUNTS, Call, Meter, new_row
from shared.errors import LLMError
from shared.ledger import get_ledger
from shared.planning import Catalogue, Plan, resolve
from shared.pricing import UNKNOWN, price
from shared.runs import caller_of
from shared.scope import Scope, current_scope, scope
from shared.types import Answer, Candidate, Request, TaskType
from shared.types import Usage as Counts

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
    settings = config.load_settings()
    if not settings.cost_tracking:
        return
    candidate, counts = _candidate(model.removeprefix("litellm/"), settings), _counts(usage)
    ledger = get_ledger(config.database_url(settings))
    call = Call(
        request=Request(TaskType.CHAT_COMPLETION, ()),
        plan=Plan(candidate.requested, (candidate,)),
        scope=inside,
        ledger=ledger,
        timeout=0,
        max_retries=0,
        meter=Meter(),
    )
    cost, source = price(Answer("", None, counts), candidate.rates)
    row = new_row(call, candidate) | {name: getattr(counts, name) for name in COUNTS}
    row |= {"status": "reported", "usage_source": counts.source, "cost_nano": cost, "cost_source": source}
    row |= {"calls": 1, "unpriced_calls": int(cost is None)}
    await ledger.write("settle", row, inside.labels)


def _candidate(name: str, settings: config.Settings) -> Candidate:
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
