"""What each model makes of an image: documented examples, and rules that hold for every size."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import example, given, strategies as st

from shared.images.limits import GENERIC_SIDE, RULES, Detail, Rule, fitting, raw_tokens, rule_for, tokens

MODELS = [
    "gpt-4o",
    "gpt-4o-mini",
    "gpt-4.1",
    "gpt-4.1-mini",
    "gpt-4.1-nano",
    "gpt-5",
    "gpt-5-mini",
    "gpt-5-nano",
    "gpt-5.1",
    "gpt-5.2",
    "gpt-5.4-mini",
    "gpt-5.5",
    "gpt-5.6-sol",
    "gpt-6-luna",
    "o1",
    "o3",
    "o4-mini",
    "computer-use-preview",
    "claude-sonnet-4-5",
    "claude-opus-4-7",
    "gemini-2.5-flash",
    "gemini-3.5-flash",
    "pixtral-large-latest",
    "mistral-small-latest",
    "grok-4.3",
    "nobody-knows",
]
sides = st.integers(1, 12_000)
details: st.SearchStrategy[Detail] = st.sampled_from(["low", "high", "auto"])


def most_tokens(rule: Rule) -> int | None:
    """The most tokens that one image can cost; None when no maximum is documented."""
    if rule.base is None or (rule.grid and not rule.box.cells):
        return None
    return rule.base + math.ceil(rule.per_cell * (rule.box.cells or 0))


@pytest.mark.parametrize(
    ("model", "size", "seen", "cost"),
    [
        # OpenAI's guide: 1024 x 1024 is 765 tokens, 2048 x 4096 is 1105.
        ("openai/gpt-4o", (1024, 1024), (768, 768), 765),
        ("openai/gpt-4o", (2048, 4096), (768, 1536), 1105),
        ("azure/gpt-4o-mini", (1024, 1024), (768, 768), 2833 + 4 * 5667),
        ("gpt-5", (1024, 1024), (768, 768), 70 + 4 * 140),
        # 1024 patches, times the model's multiplier.
        ("gpt-4.1-mini", (1024, 1024), (1024, 1024), 1659),
        ("gpt-5.4-mini", (1600, 1600), (1600, 1600), 3000),
        ("gpt-6-luna", (640, 480), (640, 480), 360),
        # Anthropic's guide: its tables of sizes and tokens for both tiers.
        ("claude-opus-4-7", (1920, 1080), (1920, 1080), 2691),
        ("claude-opus-4-7", (3840, 2160), (2576, 1449), 4784),
        ("claude-sonnet-4-5", (3840, 2160), (1456, 819), 1560),
        ("bedrock/anthropic.claude-3-5-sonnet-20240620-v1:0", (1075, 1520), (924, 1307), 1551),
        ("claude-haiku-4-5", (200, 200), (200, 200), 64),
        ("claude-haiku-4-5", (1000, 1000), (1000, 1000), 1296),
        # Google's guide: a crop unit of 360, and so 3 x 2 tiles.
        ("gemini/gemini-2.5-flash", (960, 540), (960, 540), 6 * 258),
        ("gemini/gemini-2.5-flash", (384, 384), (384, 384), 258),
        ("gemini/gemini-3.5-flash", (4000, 3000), (3072, 2304), 1120),
        ("mistral/pixtral-12b-2409", (1024, 1024), (1024, 1024), 65 * 64),
        ("xai/grok-4.3", (448, 448), (448, 448), 512),
    ],
)
def test_documented_examples(model: str, size: tuple[int, int], seen: tuple[int, int], cost: int) -> None:
    """The size that a model sees and what it costs are those of the provider's own guide."""
    rule = rule_for(model)
    assert fitting(*size, rule, "high") == seen
    assert tokens(*seen, rule, "high") == cost


@pytest.mark.parametrize(
    ("model", "cost"),
    [("gpt-4o", 85), ("gpt-5", 70), ("o3", 75), ("gpt-5.4", 231), ("gemini-3.5-flash", 280), ("gemini-2.5-pro", 258)],
)
def test_low_detail_is_cheap(model: str, cost: int) -> None:
    """At low detail a photo costs what the provider's guide names for it."""
    rule = rule_for(model)
    assert tokens(*fitting(4000, 3000, rule, "low"), rule, "low") == cost


@given(st.sampled_from(MODELS), sides, sides, details)
@example("gpt-5.4-mini", 41 * 32, 61 * 32, "high")  # one patch too many
def test_fitting_never_exceeds_the_model(model: str, width: int, height: int, detail: Detail) -> None:
    """The fitted size is within every limit, never larger than the image, of its shape, and within the maximum."""
    rule = rule_for(model)
    wide, high = fitting(width, height, rule, detail)
    box = rule.low if detail == "low" else rule.box
    assert 1 <= wide <= width
    assert 1 <= high <= height
    assert max(wide, high) <= box.longest
    assert box.shortest is None or min(wide, high) <= box.shortest
    assert abs(wide - width * max(wide, high) / max(width, height)) <= 1
    assert abs(high - height * max(wide, high) / max(width, height)) <= 1
    cost = tokens(wide, high, rule, detail)
    maximum = most_tokens(rule)
    if cost is not None and maximum is not None:
        assert 0 < cost <= maximum


@given(st.sampled_from(MODELS), sides, sides, details)
def test_fitting_never_costs_more_than_the_original(model: str, width: int, height: int, detail: Detail) -> None:
    """What is sent never costs more than the original would, and what fits is not scaled again."""
    rule = rule_for(model)
    size = fitting(width, height, rule, detail)
    cost, raw = tokens(*size, rule, detail), raw_tokens(width, height, rule, detail)
    assert (cost is None) == (raw is None)
    if cost is not None and raw is not None and "gemini-(1|2)" not in rule.models:
        assert cost <= raw
    assert fitting(*size, rule, detail) == size


def test_newer_models_save_the_most() -> None:
    """From gpt-5.5 on an original at detail auto costs four times what its full use at high detail does."""
    rule = rule_for("gpt-6-luna")
    assert (raw_tokens(4000, 3000, rule, "auto"), tokens(*fitting(4000, 3000, rule, "auto"), rule, "auto")) == (
        14_100,
        2993,
    )


def test_an_unknown_model_gets_a_usual_size_and_no_estimate() -> None:
    """Without a known formula there is no estimate."""
    rule = rule_for("somebody/nobody-knows")
    assert fitting(4000, 3000, rule, "auto") == (GENERIC_SIDE, 1176)
    assert (tokens(10, 10, rule, "auto"), raw_tokens(10, 10, rule, "low"), most_tokens(rule)) == (None, None, None)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.models)
def test_every_row_has_its_source(rule: object) -> None:
    """A row says where its numbers come from and when that was read."""
    source = getattr(rule, "source")  # noqa: B009
    assert re.search(r"https://\S+.*20\d\d", source)
