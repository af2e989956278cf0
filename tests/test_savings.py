"""Estimates of savings: apart from what was spent, and never without the share of rejected answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import savings
from benchmarks.savings import Result
from benchmarks.simulated_day import requests
from shared.analytics import get_llm_costs
from shared.llm_client import LLMClient
from shared.reports import render
from shared.types import LLMResponse
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


@pytest.mark.parametrize(
    ("answer", "is_wrong"),
    [
        ("9 * $2 = $<<9*2=18>>18. #### 18", False),
        ("<<(1,200-200)/4=250>>250 #### $250", False),
        ("<<9*2=19>>19 #### 19", True),
        ("It is 18.", True),
        ("<<__import__('os')=1>> #### 1", True),
    ],
)
def test_the_check_of_the_benchmark(answer: str, is_wrong: bool) -> None:
    """An answer is rejected if a calculation in it is wrong, or if it has no result; nothing in it is executed."""
    response = LLMResponse(answer, MINI, "openai", {}, 0.0, 0.0)
    assert bool(savings.wrong_arithmetic(response)) is is_wrong


def test_the_benchmark_without_its_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the graded answers are missing, that part of the benchmark is skipped."""
    monkeypatch.setattr(savings, "ROUTING", tmp_path / "missing.csv.gz")
    assert savings.routing() is None


def test_the_simulated_day_is_always_the_same() -> None:
    """The day has 1,000 requests, the same each time, and strategies are compared on all of them."""
    assert requests() == requests() == savings.REQUESTS_OF_THE_DAY
    assert len(requests()) == 1000


def test_a_saving_has_its_share_beside_it() -> None:
    """No row of the table has what was saved without the share of right answers and of rejected ones."""
    rows = savings.table([Result("premium", 10.0, 0.9, 0.0), Result("cheap", 1.0, 0.5, 0.2)]).splitlines()
    assert rows[-1] == "| cheap | $1.00 | 90% | 50.0% | 20.0% |"
