"""The tools, ready to register: `Agent(tools=[*ALL_TOOLS])`."""

from tools.CostReport import CostReport
from tools.TextGeneration import TextGeneration

ALL_TOOLS = (TextGeneration, CostReport)

__all__ = ["ALL_TOOLS", "CostReport", "TextGeneration"]
