"""agentswarm-tools: text and images from any model for agency-swarm agents, with an auditable bill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared.agent_model import budgeted, track_agency
    from shared.analytics import AnalyticsEvent, EventType, get_llm_costs, print_llm_costs, record_event
    from shared.base_tool import BaseTool
    from shared.budget import Budget
    from shared.errors import (
        AllModelsFailed,
        AuthenticationError,
        BadResponse,
        BudgetExceeded,
        ConfigurationError,
        ContentBlocked,
        ContextTooLong,
        DeadlineExceeded,
        InvalidRequest,
        LLMError,
        LocalOverload,
        LoopStopped,
        ModelNotAllowed,
        ModelNotFound,
        ModelRetired,
        Overloaded,
        ProviderTimeout,
        ProviderUnavailable,
        QuotaExhausted,
        RateLimitError,
        RequestTooLarge,
        ResponseRejected,
        StoreError,
        StreamInterrupted,
    )
    from shared.llm_client import (
        Estimate,
        LLMClient,
        LLMResponse,
        LLMStream,
        ModelConfig,
        TaskType,
        flush_telemetry,
        get_llm_client,
        warm_up,
    )
    from shared.scope import scope
    from tools import ALL_TOOLS, CostReport, ImageGeneration, TextGeneration, UnderstandImages

__all__ = [
    "ALL_TOOLS",
    "AllModelsFailed",
    "AnalyticsEvent",
    "AuthenticationError",
    "BadResponse",
    "BaseTool",
    "Budget",
    "BudgetExceeded",
    "ConfigurationError",
    "ContentBlocked",
    "ContextTooLong",
    "CostReport",
    "DeadlineExceeded",
    "Estimate",
    "EventType",
    "ImageGeneration",
    "InvalidRequest",
    "LLMClient",
    "LLMError",
    "LLMResponse",
    "LLMStream",
    "LocalOverload",
    "LoopStopped",
    "ModelConfig",
    "ModelNotAllowed",
    "ModelNotFound",
    "ModelRetired",
    "Overloaded",
    "ProviderTimeout",
    "ProviderUnavailable",
    "QuotaExhausted",
    "RateLimitError",
    "RequestTooLarge",
    "ResponseRejected",
    "StoreError",
    "StreamInterrupted",
    "TaskType",
    "TextGeneration",
    "UnderstandImages",
    "budgeted",
    "flush_telemetry",
    "get_llm_client",
    "get_llm_costs",
    "print_llm_costs",
    "record_event",
    "scope",
    "track_agency",
    "warm_up",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used (PEP 562): agency-swarm and LiteLLM take seconds to import."""
    home: Any
    match name:
        case "budgeted" | "track_agency":
            from shared import agent_model as home
        case "AnalyticsEvent" | "EventType" | "get_llm_costs" | "print_llm_costs" | "record_event":
            from shared import analytics as home
        case "BaseTool":
            from shared import base_tool as home
        case "Budget":
            from shared import budget as home
        case "Estimate" | "LLMClient" | "LLMResponse" | "LLMStream" | "ModelConfig" | "TaskType":
            from shared import llm_client as home
        case "flush_telemetry" | "get_llm_client" | "warm_up":
            from shared import llm_client as home
        case "scope":
            from shared import scope as home
        case "ALL_TOOLS" | "CostReport" | "ImageGeneration" | "TextGeneration" | "UnderstandImages":
            import tools as home
        case _ if name in __all__:
            from shared import errors as home
        case _:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
