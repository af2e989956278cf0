"""What images cost: checked against the providers' published figures, and never free because somebody said nothing."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, strategies as st

from shared.calls.call import bound_of
from shared.config import Settings
from shared.models.catalogue import Catalogue, resolve
from shared.prices.cost import price
from shared.prices.images import output_tokens
from shared.scope import Scope
from shared.types import Answer, Candidate, ImageRequest, MadeImage, Picture, Rates, Request, TaskType, Usage


def candidate(name: str) -> Candidate:
    """The model of that name with the table's rates; retired ones are reached at an endpoint that still has them."""
    return resolve(
        name, catalogue=Catalogue({}, {}), settings=Settings(), scope=Scope(), task=TaskType.IMAGE_GENERATION
    )


def request(pictures: int = 0, **params: Any) -> Request:
    """A request for an image."""
    shown = tuple(Picture(b"", "png", 1024, 1024) for _ in range(pictures))
    return Request(TaskType.IMAGE_GENERATION, [{"role": "user", "content": "a cat"}], params, pictures=shown)


def answer(usage: Usage | None = None, n: int = 1, **of: Any) -> Answer:
    """An answer with images of this size and quality."""
    return Answer("", None, usage or Usage(), images=tuple(MadeImage(**of) for _ in range(n)))


@pytest.mark.parametrize(
    ("model", "quality", "size", "n", "usd"),
    [
        ("dall-e-3", "standard", "1024x1024", 1, "0.040"),
        ("dall-e-3", "standard", "1792x1024", 1, "0.080"),
        ("dall-e-3", "hd", "1024x1024", 1, "0.080"),
        ("dall-e-3", "hd", "1792x1024", 1, "0.120"),
        ("dall-e-3", "hd", "1024x1792", 1, "0.120"),
        ("dall-e-2", None, "256x256", 1, "0.016"),
        ("dall-e-2", None, "512x512", 3, "0.054"),
        ("dall-e-2", None, "1024x1024", 10, "0.200"),
    ],
)
def test_by_quality_and_size(
    model: str, quality: str | None, size: str, n: int, usd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image by DALL-E costs what OpenAI's page said for its quality and size, to the cent."""
    monkeypatch.setenv("OPENAI_API_BASE", "http://127.0.0.1:1/v1")  # elsewhere there is no list price
    who = candidate(f"openai/{model}")
    assert price(answer(n=n, quality=quality, size=size), who.rates) == (int(Decimal(usd) * 10**9), "table", False)
    asked = request(size=size, n=n, quality=quality)
    assert bound_of(who, asked) == int(Decimal(usd) * 10**9)


@pytest.mark.parametrize(
    ("model", "nano"),
    [
        ("stability/stable-image-core", 30_000_000),
        ("fal_ai/fal-ai/flux-pro/v1.1", 40_000_000),
        ("recraft/recraftv3", 40_000_000),
    ],
)
def test_by_the_piece(model: str, nano: int) -> None:
    """Where an image has one price, n images have n times that, as cost and as upper bound."""
    who = candidate(model)
    assert price(answer(n=2), who.rates) == (2 * nano, "table", False)
    assert bound_of(who, request(n=2)) == 2 * nano


def test_by_the_pixel() -> None:
    """A price for each pixel is multiplied out, and is unknown while the size is."""
    rates = Rates({"pixel": Decimal("1e-8")}, source="table")
    assert price(answer(size="1000x500"), rates) == (5_000_000, "table", False)
    assert price(answer(size="auto"), rates) == (None, "unknown", False)


def test_a_size_that_is_not_listed_has_no_price(monkeypatch: pytest.MonkeyPatch) -> None:
    """The price of another size is not taken for one that nobody lists."""
    monkeypatch.setenv("OPENAI_API_BASE", "http://127.0.0.1:1/v1")  # elsewhere there is no list price
    assert price(answer(size="4096x4096", quality="hd"), candidate("openai/dall-e-3").rates) == (None, "unknown", False)


@pytest.mark.parametrize(
    ("model", "usage", "nano"),
    [
        # 100 text tokens at $5, 400 image tokens at $8, 4,160 output tokens at $30 a million
        ("openai/gpt-image-2", Usage(500, 4160, units={"input_image": 400, "output_image": 4160}), 128_500_000),
        # 60 of the output are text, at $30 a million too (genai-prices 0.2.3; OpenAI's page names no other)
        ("openai/gpt-image-2", Usage(100, 4220, units={"output_image": 4160}), 127_100_000),
        # text and image input at $0.50, 1,120 image tokens at $60, 80 of text and thought at $3 a million
        (
            "gemini/gemini-3.1-flash-image",
            Usage(1000, 1200, reasoning_tokens=50, units={"input_image": 900, "output_image": 1120}),
            67_940_000,
        ),
    ],
)
def test_by_tokens(model: str, usage: Usage, nano: int) -> None:
    """Text in, images in and images out are charged at their own rates."""
    counted = Usage(**{name: getattr(usage, name) for name in Usage.__slots__ if name != "source"}, source="provider")
    assert price(answer(counted), candidate(model).rates) == (nano, "table", False)


def test_missing_usage_is_unknown() -> None:
    """An answer without counts of a model that is charged by tokens has no price, which is not 0."""
    assert price(answer(Usage()), candidate("openai/gpt-image-2").rates) == (None, "unknown", False)


# https://developers.openai.com/api/docs/guides/image-generation, as quoted on community.openai.com/t/1379464
@pytest.mark.parametrize(
    ("quality", "size", "tokens"),
    [
        ("high", "1024x1024", 7024),
        ("high", "1536x1024", 5488),
        ("high", "1792x1024", 5063),
        ("high", "3584x2048", 12329),
    ],
)
def test_output_tokens_are_the_published_ones(quality: str, size: str, tokens: int) -> None:
    """The formula for gpt-image-2 gives the figures that OpenAI's own calculator shows."""
    assert output_tokens("gpt-image-2", ImageRequest(size=size, quality=quality)) == tokens


@given(
    width=st.integers(40, 240),
    height=st.integers(40, 240),
    quality=st.sampled_from(["low", "medium", "high"]),
)
def test_no_size_costs_more_than_auto(width: int, height: int, quality: str) -> None:
    """Where the size is left to the model, the bound covers every size that it may choose."""
    width, height = width * 16, height * 16
    if not 655_360 <= width * height <= 8_294_400 or max(width, height) > min(3840, 3 * min(width, height)):
        return
    exact = output_tokens("gpt-image-2", ImageRequest(size=f"{width}x{height}", quality=quality))
    auto = output_tokens("gpt-image-2", ImageRequest(size="auto", quality=quality))
    largest = output_tokens("gpt-image-2", ImageRequest(size="auto", quality="auto"))
    assert exact is not None
    assert auto is not None
    assert largest is not None
    assert exact <= auto <= largest


def test_the_bound_holds_input_and_output() -> None:
    """The most that an edit can cost is its output at the asked quality, the prompt and every reference image."""
    who = candidate("openai/gpt-image-2")
    plain, edit = bound_of(who, request(quality="low")), bound_of(who, request(2, quality="low"))
    assert plain is not None
    assert edit is not None
    tokens = output_tokens("gpt-image-2", ImageRequest(size="1024x1024", quality="low"))
    assert tokens is not None
    assert tokens * 30_000 < plain < tokens * 30_000 + 5_000_000
    assert edit > plain + 2 * 6144 * 8000


def test_no_bound_where_nobody_says() -> None:
    """A model whose output tokens are published nowhere has a price, and no bound before it answers."""
    who = candidate("openai/gpt-image-2.6-flare")
    assert bound_of(who, request()) is None
    assert price(answer(Usage(100, 1000, units={"output_image": 1000}, source="provider")), who.rates)[0] is not None


def test_ones_own_prices_win(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """AGENTSWARM_PRICES sets the price of an image, in the table's own words."""
    path = tmp_path / "prices.json"
    path.write_text('{"openai/gpt-image-2": {"output_cost_per_image": 0.5}}')
    monkeypatch.setenv("AGENTSWARM_PRICES", str(path))
    settings = Settings()
    who = resolve(
        "openai/gpt-image-2",
        catalogue=Catalogue.load(settings),
        settings=settings,
        scope=Scope(),
        task=TaskType.IMAGE_GENERATION,
    )
    assert price(answer(n=2), who.rates) == (1_000_000_000, "table", False)
