"""The tools, ready to register: `Agent(tools=[*ALL_TOOLS])`."""

from tools.CostReport import CostReport
from tools.ImageGeneration import ImageGeneration
from tools.TextGeneration import TextGeneration
from tools.UnderstandImages import UnderstandImages

ALL_TOOLS = (TextGeneration, ImageGeneration, UnderstandImages, CostReport)

__all__ = ["ALL_TOOLS", "CostReport", "ImageGeneration", "TextGeneration", "UnderstandImages"]
