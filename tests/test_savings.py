"""Estimates of savings: apart from what was spent, and never without the share of rejected answers."""

from __future__ import annotations

from typing import Any

import pytest

from shared.analytics import get_llm_costs
from shared.llm_client import LLMClient
from shared.reports import render
from tests.support.asking import HAIKU, HELLO, MINI
from tests.support.provider_double import Double, Usage

STRONG = "openai/gpt-5.5"  # US$ 5 and 30 for a million tokens


def ask(hosted: Double, **params: Any) -> None:
    """A call whose first answer is rejected."""
    hosted.reply("openai", text="No", usage=Usage(1000, 100, cached=400))
    hosted.reply("anthropic", text="42", usage=Usage(1000, 200))
    LLMClient().chat_completion(
        HELLO, model=MINI, fallback_models=[HAIKU], fallback_on=lambda response: response.content == "No", **params
    )


def test_against_a_baseline(hosted: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    """The accepted tokens are priced with the baseline model, rejected answers count as spent, and totals stay."""
    monkeypatch.setenv("AGENTSWARM_BASELINE_MODEL", STRONG)
    ask(hosted)
    costs = get_llm_costs()
    mini, haiku = (600 * 0.75 + 400 * 0.075 + 100 * 4.5) / 1e6, (1000 * 1 + 200 * 5) / 1e6
    found = costs["savings"]
    assert costs["total_cost"] == pytest.approx(mini + haiku)
    assert found["baseline_cost"] == pytest.approx((1000 * 5 + 200 * 30) / 1e6)
    assert found["saved"] == pytest.approx(found["baseline_cost"] - mini - haiku)
    assert found["saved_by_caches"] == pytest.approx(400 * (0.75 - 0.075) / 1e6)
    assert (found["saved_by_flex"], found["answers"], found["rejected_answers"]) == (0, 2, 1)
    for output_format in ("text", "markdown"):
        [line] = [line for line in render(costs, output_format).splitlines() if "Estimate" in line]
        assert "50.0% of 2 answers rejected" in line
        assert f"with {STRONG} would have cost $0.011000" in line


def test_only_if_asked(hosted: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a baseline model, or with one of unknown price, a report estimates nothing."""
    ask(hosted)
    assert get_llm_costs()["savings"] is None
    monkeypatch.setenv("AGENTSWARM_BASELINE_MODEL", "openai/never-heard-of")
    assert get_llm_costs()["savings"] is None
    assert "Estimate" not in render(get_llm_costs())
