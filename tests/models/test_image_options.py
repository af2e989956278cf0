"""What image models accept: sizes and qualities in their own words, and refusals that say what to do instead."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from shared.errors import InvalidRequest
from shared.models.image_options import (
    IMAGE_MODELS,
    MAX_IMAGES,
    check_values,
    image_model_of,
    image_request,
    per_request,
)
from shared.types import Candidate, Picture, Rates, Request, TaskType, sides_of

GPT_2, GPT_1, DALL_E = "openai/gpt-image-2", "openai/gpt-image-1.5", "openai/dall-e-3"
GEMINI, CORE = "gemini/gemini-3.1-flash-image", "stability/stable-image-core"


def who(name: str, requested: str | None = None) -> Candidate:
    """The model of that name."""
    provider, _, wire = name.partition("/")
    return Candidate(requested or name, name, provider, wire, rates=Rates())


def picture(width: int = 64, height: int = 64) -> Picture:
    """A picture that nobody looks into."""
    return Picture(b"", "png", width, height)


def wants(pictures: int = 0, mask: Picture | None = None, prompt: str = "a cat", **params: Any) -> Request:
    """A request for images."""
    messages = [{"role": "user", "content": prompt}]
    return Request(
        TaskType.IMAGE_GENERATION, messages, params, pictures=tuple(picture() for _ in range(pictures)), mask=mask
    )


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        (GPT_2, None, ("1024x1024", None, None)),
        (GPT_2, "1024x1536", ("1024x1536", None, None)),
        (GPT_2, "16:9", ("1536x864", None, None)),
        (GPT_2, "3:2", ("1536x1024", None, None)),
        (GPT_2, "3840x2160", ("3840x2160", None, None)),
        (GPT_2, "auto", ("auto", None, None)),
        (GPT_1, "2:3", ("1024x1536", None, None)),
        (DALL_E, "16:9", ("1792x1024", None, None)),
        (GEMINI, None, (None, "1:1", "1K")),
        (GEMINI, "16:9", (None, "16:9", "1K")),
        (GEMINI, "1792x1024", (None, "16:9", "1K")),
        (GEMINI, "2048x2048", (None, "1:1", "2K")),
        (GEMINI, "512x512", (None, "1:1", "512")),
        (CORE, "9:16", (None, "9:16", "1K")),
        (CORE, "1024x1536", (None, "2:3", "1K")),
        ("together_ai/some/model", "1024x768", ("1024x768", None, None)),
        ("together_ai/some/model", None, (None, None, None)),
    ],
)
def test_size_in_the_models_words(name: str, size: str | None, expected: tuple[str | None, ...]) -> None:
    """A size or a ratio is sent as what the model takes, and without one the price is known beforehand."""
    order = image_request(who(name), wants(size=size))
    assert (order.size, order.ratio, order.level) == expected


def test_an_edit_keeps_the_size_of_its_reference() -> None:
    """With pictures to start from, the size is left to the model unless it was asked for."""
    assert image_request(who(GPT_2), wants(1)).size == "auto"
    assert image_request(who(GEMINI), wants(1)).ratio is None
    assert image_request(who(GPT_2), wants(1, size="1024x1024")).size == "1024x1024"


@pytest.mark.parametrize(
    ("name", "size", "accepted"),
    [
        (GPT_2, "1000x1000", "multiples of 16"),
        (GPT_2, "256x256", "655,360 to 8,294,400 pixels"),
        (GPT_2, "3840x1024", "at most 3:1"),
        (GPT_1, "1792x1024", "1024x1024, 1536x1024, 1024x1536"),
        (GEMINI, "5:1", "1:1, 2:3"),
        (GEMINI, "1000x700", "at 512, 1K, 2K, 4K"),
        (CORE, "2048x2048", "1:1, 16:9"),
        (DALL_E, "auto", "1024x1024, 1792x1024, 1024x1792"),
    ],
)
def test_a_wrong_size_names_the_right_ones(name: str, size: str, accepted: str) -> None:
    """A size that the model does not make is refused before anything is sent, with those that it does."""
    with pytest.raises(InvalidRequest, match=f"{name} does not make images of {size}") as caught:
        image_request(who(name), wants(size=size))
    assert accepted in caught.value.next_step
    assert (caught.value.outcome, caught.value.cost) == ("not_sent", 0)


def test_a_retired_name_offers_what_it_offered() -> None:
    """A size that the named model never had is refused, though its successor has it."""
    with pytest.raises(InvalidRequest, match="openai/dall-e-2 does not make images of 1792x1024"):
        image_request(who(GPT_2, "openai/dall-e-2"), wants(size="1792x1024"))
    assert image_request(who(GPT_2, "dall-e-3"), wants(size="1792x1024", quality="hd")).quality == "high"


@pytest.mark.parametrize(
    ("name", "quality", "expected"),
    [
        (GPT_2, None, "medium"),
        (GPT_2, "standard", "medium"),
        (GPT_2, "hd", "high"),
        (GPT_2, "auto", "auto"),
        (DALL_E, None, "standard"),
        (DALL_E, "high", "hd"),
        (DALL_E, "medium", "standard"),
        (GEMINI, "standard", None),
        (GEMINI, "auto", None),
    ],
)
def test_quality_in_the_models_words(name: str, quality: str | None, expected: str | None) -> None:
    """standard and hd mean medium and high where the model has those, and the other way round."""
    assert image_request(who(name), wants(quality=quality)).quality == expected


@pytest.mark.parametrize(
    ("name", "request_", "message"),
    [
        (GEMINI, wants(quality="high"), "has no choice of quality.* With quality use openai/gpt-image-2"),
        (DALL_E, wants(quality="low"), "does not have quality 'low'.* It has standard, hd"),
        (GEMINI, wants(background="transparent"), "does not take background .* With it use openai/gpt-image-2"),
        (GEMINI, wants(output_format="webp"), "does not take output_format 'webp'.* use openai/gpt-image-2 or stab"),
        (
            GPT_2,
            wants(background="transparent", output_format="jpeg"),
            "makes transparent images as png or webp, not as jpeg",
        ),
        (CORE, wants(1), "makes images from text only.* With reference images use openai/gpt-image-2 or gemini"),
        (DALL_E, wants(1), "makes images from text only"),
        (GPT_2, wants(17), "takes at most 16 reference images, not 17"),
        (GEMINI, wants(1, picture()), "does not take a mask.* With a mask use openai/gpt-image-2"),
        (GPT_2, wants(0, picture()), "needs a reference image for the mask"),
        (GPT_2, wants(1, picture(64, 32)), "needs a mask as large as the first reference image, 64x64, not 64x32"),
        (DALL_E, wants(prompt="a" * 4001), "takes prompts of at most 4,000 characters, not 4,001"),
        (GPT_2, wants(seed=1), "does not take seed"),
    ],
)
def test_what_a_model_cannot_do_is_refused(name: str, request_: Request, message: str) -> None:
    """Nothing is accepted and ignored: the refusal names the models that can, before anything is paid."""
    with pytest.raises(InvalidRequest, match=f"^{name} {message}"):
        image_request(who(name), request_)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n": 0}, "n must be"),
        ({"n": MAX_IMAGES + 1}, "n must be"),
        ({"n": True}, "n must be"),
        ({"n": 1.5}, "n must be"),
        ({"size": "1024X1024 "}, "size must be"),
        ({"size": "big"}, "size must be"),
        ({"size": 1024}, "size must be"),
        ({"background": "green"}, "background must be"),
        ({"output_format": "svg"}, "output_format must be"),
    ],
)
def test_what_no_model_takes(params: dict[str, Any], message: str) -> None:
    """A value that means nothing to any model is refused with what it must be."""
    with pytest.raises(InvalidRequest, match=message):
        check_values(params)


@given(
    name=st.sampled_from([GPT_2, GPT_1, DALL_E, GEMINI, CORE, "recraft/recraftv3", "xai/grok-imagine-image"]),
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    as_ratio=st.booleans(),
)
def test_whatever_is_asked_for_is_what_the_model_takes(name: str, width: int, height: int, as_ratio: bool) -> None:
    """What is sent is one of the sizes that the table has, or the request is refused; the shape stays."""
    size = f"{width % 30 + 1}:{height % 30 + 1}" if as_ratio else f"{width}x{height}"
    row = image_model_of(name)
    try:
        order = image_request(who(name), wants(size=size))
    except InvalidRequest:
        return
    left, _, right = size.replace("x", ":").partition(":")
    wanted = int(left) / int(right)
    if order.ratio:
        assert order.ratio in row.ratios
        assert order.level in row.levels
        left, _, right = order.ratio.partition(":")
        assert abs(int(left) / int(right) / wanted - 1) < 0.04
        return
    sides = sides_of(order.size)
    assert sides is not None
    assert abs(sides[0] / sides[1] / wanted - 1) < 0.06
    assert order.size in row.sizes or (row.step and not sides[0] % row.step and not sides[1] % row.step)


@pytest.mark.parametrize(
    ("name", "size", "most"), [(GPT_2, "1024x1024", 10), (GPT_2, "3840x2160", 1), (GPT_1, None, 8), (GEMINI, None, 1)]
)
def test_how_many_one_request_gives(name: str, size: str | None, most: int) -> None:
    """Several images come in one answer where it stays small enough to be read."""
    size = size if size or name != GPT_1 else "1536x1024"
    assert per_request(who(name), wants(size=size, n=10)) == most


def test_every_row_has_a_source_with_its_day() -> None:
    """What is said of a provider says where and when it was read."""
    assert all("(read 2026-" in row.source for row in IMAGE_MODELS)
