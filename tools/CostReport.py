"""A cost report for the agent that asks for it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared import ledger
from shared.base_tool import BaseTool
from shared.reports import render
from shared.scope import current_scope


class CostReport(BaseTool):
    """
    Report what calls to language models have cost so far: totals, by model, and by one more grouping.

    Use it when asked about cost, tokens or usage, and before expensive work. It costs nothing.
    """

    days: float = Field(7, gt=0, le=3660, description="Days to look back (periods of 24 hours).")
    group_by: str = Field(
        "model",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,59}(,[A-Za-z_][A-Za-z0-9_]{0,59})?$",
        description="Grouping: model, provider, tool, agent, hour, day, week, month, or a label such as customer.",
    )
    output_format: Literal["text", "json", "markdown"] = Field("text", description="text, json or markdown.")

    async def _process(self) -> str:
        """The report, made off the event loop."""
        from shared.analytics import report_off_loop  # with the ledger, which takes time to import

        return await report_off_loop(self._report)

    def _report(self) -> str:
        """The costs of this scope: those with its labels if it has any, else those of this conversation."""
        from shared.analytics import costs_of

        inside = current_scope()
        costs = costs_of(ledger.own_filter(inside), self.days, by=self.group_by)
        if inside.labels and inside.from_agent:
            costs["store"] = "(the operator's)"  # a customer need not know the name of a server or a folder
        return render(costs, self.output_format)
