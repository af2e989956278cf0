"""A loopback server that speaks the documented wire of every provider group, and fails as they fail."""

from .double import Double
from .fault import Fault
from .script import Billed, Gate, Recorded, Reply, ToolCall, Usage, count
from .server import running

__all__ = ["Billed", "Double", "Fault", "Gate", "Recorded", "Reply", "ToolCall", "Usage", "count", "running"]
