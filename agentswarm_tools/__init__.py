"""agentswarm-tools: text and images from any model for agency-swarm agents, and a bill nobody has to doubt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared.agent_model import budgeted
    from shared.agent_tracking import track_agency
    from shared.analytics import get_llm_costs, print_llm_costs
    from shared.base_tool import BaseTool
    from shared.llm_client import LLMClient, get_llm_client
    from shared.scope import scope
    from tools import ALL_TOOLS, CostReport, ImageGeneration, TextGeneration, UnderstandImages

__all__ = [
    "ALL_TOOLS",
    "BaseTool",
    "CostReport",
    "ImageGeneration",
    "LLMClient",
    "TextGeneration",
    "UnderstandImages",
    "budgeted",
    "get_llm_client",
    "get_llm_costs",
    "print_llm_costs",
    "scope",
    "track_agency",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used (PEP 562): agency-swarm and LiteLLM take seconds, this module none."""
    home: Any
    match name:
        case "ALL_TOOLS" | "CostReport" | "ImageGeneration" | "TextGeneration" | "UnderstandImages":
            import tools as home
        case "BaseTool":
            from shared import base_tool as home
        case "LLMClient" | "get_llm_client":
            from shared import llm_client as home
        case "budgeted":
            from shared import agent_model as home
        case "track_agency":
            from shared import agent_tracking as home
        case "get_llm_costs" | "print_llm_costs":
            from shared import analytics as home
        case "scope":
            from shared import scope as home
        case _:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
