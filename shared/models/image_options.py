"""What image models accept: sizes, qualities, backgrounds, formats, reference images, and how many at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from shared.errors import InvalidRequest
from shared.types import Candidate, ImageRequest, Picture, Request, sides_of

# Providers whose image endpoint takes a key and one POST, grouped by the format of that POST; all others need a cloud
# login, or answer with a job that must be polled. Source: litellm 1.91.5, llms/*/image_generation (read 2026-11-25).
OPENAI_SHAPED = frozenset(
    {"openai", "azure", "xai", "together_ai", "nscale", "cometapi", "xinference", "litellm_proxy", "hosted_vllm"}
    | {"lm_studio", "openai_like", "custom", "custom_openai"}
)
LITELLM_SHAPED = frozenset({"stability", "fal_ai", "recraft", "aiml", "dashscope"})
IMAGE_PROVIDERS = OPENAI_SHAPED | LITELLM_SHAPED | {"gemini", "openrouter"}
MAX_IMAGES = 10
# Keeps an answer below the transport's size limit: a PNG in base64 has up to 4 bytes per pixel.
_MAX_PIXELS_PER_ANSWER = 14_000_000
_RATIO = re.compile(r"([1-9]\d?):([1-9]\d?)")
# Relative difference allowed between a size and the aspect ratio it is sent as: 1792x1024 counts as 16:9.
_RATIO_TOLERANCE = 0.03
_PREFERRED_PIXELS = 1_300_000


@dataclass(frozen=True, slots=True)
class ImageModel:
    """
    What the models with certain names accept; an empty tuple means that there is no choice.

    `sizes`: the only sizes, or examples where `step` is set: then any size is accepted whose sides are multiples of
    `step`, within `pixels` and `longest`. `auto_size`: the model can choose the size. `ratios`: sizes are sent as an
    aspect ratio and one of `levels`. `references`: maximum number of reference images. `links`: it answers with links
    unless it is asked for image data. `strict`: anything not listed is refused; otherwise it is sent unchanged.
    """

    names: tuple[str, ...]
    source: str
    sizes: tuple[str, ...] = ()
    auto_size: bool = False
    step: int = 0
    pixels: tuple[int, int] = (0, 0)
    longest: int = 0
    ratios: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    qualities: tuple[str, ...] = ()
    backgrounds: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    references: int = 0
    mask: bool = False
    per_call: int = 1
    links: bool = False
    prompt_chars: int = 32_000
    extras: frozenset[str] = frozenset()
    strict: bool = True


class Size(NamedTuple):
    """The size of an image as a model takes it: either a size, or an aspect ratio and a resolution level."""

    size: str | None = None
    ratio: str | None = None
    level: str | None = None


_GPT_SIZES = ("1024x1024", "1536x1024", "1024x1536")
_GPT_QUALITIES = ("low", "medium", "high", "auto")
_GPT_BACKGROUNDS = ("transparent", "opaque", "auto")
_TEN_RATIOS = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")
_OPENAI_EXTRAS = frozenset({"user", "moderation", "output_compression"})
_OPENAI = "developers.openai.com/api/reference/resources/images (read 2026-11-25)"
_GOOGLE = "ai.google.dev/gemini-api/docs/image-generation, as litellm 1.91.5 has it (read 2026-11-25)"
_STABILITY = "platform.stability.ai/docs/api-reference, as litellm 1.91.5 has it (read 2026-11-25)"

# The first row with a matching name applies; names are provider/model, and "*" matches anything.
IMAGE_MODELS = (
    ImageModel(
        ("*/gpt-image-2*", "*/openai/gpt-image-2*"),
        _OPENAI,
        sizes=(*_GPT_SIZES, "2048x2048", "2048x1152", "1152x2048", "3840x2160", "2160x3840"),
        auto_size=True,
        step=16,
        pixels=(655_360, 8_294_400),
        longest=3840,
        qualities=_GPT_QUALITIES,
        backgrounds=_GPT_BACKGROUNDS,
        formats=("png", "jpeg", "webp"),
        references=16,
        mask=True,
        per_call=MAX_IMAGES,
        extras=_OPENAI_EXTRAS,
    ),
    ImageModel(
        ("*/gpt-image-1*", "*/openai/gpt-image-1*", "*/chatgpt-image*"),
        _OPENAI,
        sizes=_GPT_SIZES,
        auto_size=True,
        qualities=_GPT_QUALITIES,
        backgrounds=_GPT_BACKGROUNDS,
        formats=("png", "jpeg", "webp"),
        references=16,
        mask=True,
        per_call=MAX_IMAGES,
        extras=_OPENAI_EXTRAS | {"input_fidelity"},
    ),
    ImageModel(
        ("*/dall-e-3",),
        _OPENAI,
        sizes=("1024x1024", "1792x1024", "1024x1792"),
        qualities=("standard", "hd"),
        links=True,
        prompt_chars=4000,
        extras=frozenset({"style", "user"}),
    ),
    ImageModel(
        ("*/dall-e-2",),
        _OPENAI,
        sizes=("1024x1024", "512x512", "256x256"),
        references=1,
        mask=True,
        links=True,
        per_call=MAX_IMAGES,
        prompt_chars=1000,
        extras=frozenset({"user"}),
    ),
    ImageModel(("gemini/gemini-2.5-flash-image*",), _GOOGLE, ratios=_TEN_RATIOS, levels=("1K",), references=3),
    ImageModel(
        ("gemini/gemini-3.1-flash-image*", "gemini/gemini-3.1-*-image*"),
        _GOOGLE,
        ratios=(*_TEN_RATIOS, "1:4", "4:1", "1:8", "8:1"),
        levels=("512", "1K", "2K", "4K"),
        references=14,
    ),
    ImageModel(("gemini/*",), _GOOGLE, ratios=_TEN_RATIOS, levels=("1K", "2K", "4K"), references=14),
    ImageModel(
        ("stability/stable-image-*", "stability/sd3*"),
        _STABILITY,
        ratios=("1:1", "16:9", "21:9", "2:3", "3:2", "4:5", "5:4", "9:16", "9:21"),
        levels=("1K",),
        formats=("png", "jpeg", "webp"),
        prompt_chars=10_000,
        extras=frozenset({"negative_prompt", "seed", "style_preset"}),
    ),
    ImageModel(
        ("openrouter/*",),
        "openrouter.ai/docs/features/multimodal/image-generation, as litellm 1.91.5 has it (read 2026-11-25)",
        ratios=_TEN_RATIOS,
        levels=("1K",),
        references=10,
    ),
    ImageModel(
        ("xai/*",),
        "docs.x.ai, image generation, as developer.civitai.com has it (read 2026-11-25)",
        ratios=("1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3", "2:1", "1:2"),
        levels=("1K",),
        per_call=MAX_IMAGES,
        extras=frozenset({"user"}),
    ),
    ImageModel(
        ("recraft/*",),
        "www.recraft.ai/docs#generate-image, as litellm 1.91.5 has it (read 2026-11-25)",
        sizes=("1024x1024", "1365x1024", "1024x1365", "1536x1024", "1024x1536", "1820x1024", "1024x1820"),
        per_call=6,
        prompt_chars=1000,
        extras=frozenset({"style"}),
    ),
)
_RATIO_SIZES = {"1:1": "1024x1024", "3:2": "1536x1024", "2:3": "1024x1536", "16:9": "1792x1008", "9:16": "1008x1792"}
_UNKNOWN_MODEL = ImageModel(
    ("*",), "unknown model: the request is sent unchanged", references=16, links=True, strict=False
)
# The default quality by the row's first quality; always sent, so that the price is known beforehand.
_DEFAULT_QUALITY = {"low": "medium", "standard": "standard"}
_EQUIVALENT_QUALITY = {"standard": "medium", "hd": "high", "medium": "standard", "high": "hd"}
_PARAMETERS = frozenset({"size", "quality", "n", "background", "output_format", "response_format"})
_BACKGROUNDS, _FORMATS = frozenset(_GPT_BACKGROUNDS), frozenset({"png", "jpeg", "webp"})
_RESPONSE_FORMATS = frozenset({"b64_json", "url"})


def image_model_of(name: str) -> ImageModel:
    """The row that applies to provider/model."""
    lower = name.lower()
    return next((row for row in IMAGE_MODELS if any(fnmatchcase(lower, known) for known in row.names)), _UNKNOWN_MODEL)


def image_request(candidate: Candidate, request: Request) -> ImageRequest:
    """
    The request to send to `candidate`.

    Raises:
        InvalidRequest: The model does not accept the request; the message names what it accepts, or models that do.
    """
    row = image_model_of(f"{candidate.provider}/{candidate.wire_model}")
    named = image_model_of(_requested(candidate))
    params = {name: value for name, value in request.params.items() if value is not None}
    check_pictures(candidate, len(request.pictures), masked=request.mask is not None)
    if request.mask is not None:
        _check_mask(candidate, request.mask, request.pictures[0])
    prompt = str(request.messages[-1]["content"])
    if len(prompt) > row.prompt_chars:
        raise _invalid(candidate, f"takes prompts of at most {row.prompt_chars:,} characters, not {len(prompt):,}")
    size, extras = params.get("size"), {name: params[name] for name in params.keys() - _PARAMETERS}
    if row.strict and (wrong := sorted(extras.keys() - row.extras)):
        raise _invalid(candidate, f"does not take {', '.join(wrong)}")
    if named is not row and named.sizes and sides_of(size):
        _size(candidate, named, size)  # a size that the retired model did not offer is a mistake here too
    sent = _size(candidate, row, size if size is not None else _default_size(row, request))
    return ImageRequest(
        size=sent.size,
        ratio=sent.ratio,
        level=sent.level,
        quality=_quality(candidate, row, params.get("quality")),
        background=_one_of(candidate, row, "background", params.get("background"), lambda model: model.backgrounds),
        output_format=_format(candidate, row, params),
        n=params.get("n", 1),
        as_data=row.links and params.get("response_format") == "b64_json",
        extras=extras,
    )


def per_request(candidate: Candidate, request: Request) -> int:
    """How many images one request to the model returns."""
    row = image_model_of(f"{candidate.provider}/{candidate.wire_model}")
    pixels = image_request(candidate, request).pixels or max(row.pixels[1], 1024 * 1536)
    return max(1, min(row.per_call, _MAX_PIXELS_PER_ANSWER // pixels))


def check_pictures(candidate: Candidate, count: int, *, masked: bool) -> None:
    """
    Refuse reference images or a mask that the model does not take.

    Raises:
        InvalidRequest: They are not supported; the message names models that support them.
    """
    row = image_model_of(f"{candidate.provider}/{candidate.wire_model}")
    most = 0 if candidate.provider in LITELLM_SHAPED else row.references
    if count and not most:
        others = _models_that(lambda other: other.references > 0)
        raise _invalid(candidate, "makes images from text only", f"With reference images use {others}.")
    if count > most:
        raise _invalid(candidate, f"takes at most {most} reference images, not {count}")
    if masked and not count:
        raise _invalid(candidate, "needs a reference image for the mask to apply to")
    if masked and row.strict and not row.mask:
        raise _invalid(candidate, "does not take a mask", f"With a mask use {_models_that(lambda other: other.mask)}.")


def _check_mask(candidate: Candidate, mask: Picture, first: Picture) -> None:
    if (mask.width, mask.height) != (first.width, first.height):
        sizes = f"{first.width}x{first.height}, not {mask.width}x{mask.height}"
        raise _invalid(candidate, f"needs a mask as large as the first reference image, {sizes}")


def check_values(params: Mapping[str, Any]) -> None:
    """
    Refuse values that no model accepts.

    Raises:
        InvalidRequest: A parameter has an invalid value.
    """
    n = params.get("n", 1)
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_IMAGES:
        raise InvalidRequest(f"n must be a whole number from 1 to {MAX_IMAGES}")
    size = params.get("size")
    if size is not None and not (
        isinstance(size, str) and (size == "auto" or sides_of(size) or _RATIO.fullmatch(size))
    ):
        raise InvalidRequest('size must be such as "1024x1024", "16:9" or "auto"')
    kinds = (("background", _BACKGROUNDS), ("output_format", _FORMATS), ("response_format", _RESPONSE_FORMATS))
    for name, allowed in kinds:
        value = params.get(name)
        if value is not None and value not in allowed:
            raise InvalidRequest(f"{name} must be one of {', '.join(sorted(allowed))}")


def _requested(candidate: Candidate) -> str:
    """The requested name, with a provider; for a retired model it differs from the model that answers."""
    name = candidate.requested
    return name if "/" in name else f"{candidate.provider}/{name}"


def _default_size(row: ImageModel, request: Request) -> str | None:
    """The size when none is given: an edit keeps that of its reference, a new image gets one with a known price."""
    if not row.strict:
        return None
    if row.ratios:
        return None if request.pictures else "1:1"
    return "auto" if request.pictures and row.auto_size else row.sizes[0]


def _size(candidate: Candidate, row: ImageModel, size: str | None) -> Size:
    """The size as it is sent to the model."""
    if size is None or (size == "auto" and (row.ratios or not row.strict)):
        return Size(level=row.levels[0] if len(row.levels) == 1 else "1K" if row.levels else None)
    if row.ratios:
        ratio, level = _ratio_and_level(row, size)
        if ratio is None or level not in row.levels:
            raise _bad_size(candidate, row, size)
        return Size(ratio=ratio, level=level)
    if not row.strict:
        return Size(_RATIO_SIZES.get(size, size))
    if size == "auto" and row.auto_size:
        return Size(size)
    found = _size_for_ratio(row, size) if ":" in size else size
    if found is None or not (found in row.sizes or (row.step and _fits(row, found))):
        raise _bad_size(candidate, row, size)
    return Size(found)


def _ratio_and_level(row: ImageModel, size: str) -> tuple[str | None, str]:
    if ":" in size:
        return (size if size in row.ratios else None), "1K"
    sides = sides_of(size)
    if sides is None:
        return None, "1K"
    near = [ratio for ratio in row.ratios if abs(_ratio_value(ratio) * sides[1] / sides[0] - 1) <= _RATIO_TOLERANCE]
    ratio = min(near, key=lambda ratio: abs(_ratio_value(ratio) * sides[1] / sides[0] - 1), default=None)
    side = (sides[0] * sides[1]) ** 0.5
    return ratio, "512" if side < 768 else "1K" if side < 1536 else "2K" if side < 3072 else "4K"


def _size_for_ratio(row: ImageModel, ratio: str) -> str | None:
    """The model's size for an aspect ratio: a listed one, else one of about a megapixel."""
    wanted = _ratio_value(ratio)
    listed = (
        size
        for size in row.sizes
        if (sides := sides_of(size)) and abs(sides[0] / sides[1] / wanted - 1) <= _RATIO_TOLERANCE
    )
    found = next(listed, None)
    if found is not None and (not row.step or found in _GPT_SIZES):
        return found
    if not row.step:
        return None
    sizes = [(width, round(width / wanted / row.step) * row.step) for width in range(row.step, row.longest, row.step)]
    fitting = [(width, height) for width, height in sizes if _fits(row, f"{width}x{height}")]
    if not fitting:
        return None
    # Closest to the ratio first, then to a size that is neither small nor expensive.
    best = min(
        fitting, key=lambda it: (round(abs(it[0] / it[1] / wanted - 1), 3), abs(it[0] * it[1] - _PREFERRED_PIXELS))
    )
    return f"{best[0]}x{best[1]}"


def _fits(row: ImageModel, size: str) -> bool:
    sides = sides_of(size)
    if sides is None or sides[0] % row.step or sides[1] % row.step:
        return False
    return row.pixels[0] <= sides[0] * sides[1] <= row.pixels[1] and max(sides) <= min(row.longest, 3 * min(sides))


def _ratio_value(ratio: str) -> float:
    width, _, height = ratio.partition(":")
    return int(width) / int(height)


def _bad_size(candidate: Candidate, row: ImageModel, size: str) -> InvalidRequest:
    accepted = ", ".join((*row.sizes, *row.ratios))
    if row.step:
        low, high = row.pixels
        accepted += (
            f", and any whose sides are multiples of {row.step}, at most 3:1 and {row.longest} pixels long, "
            f"of {low:,} to {high:,} pixels"
        )
    levels = f" at {', '.join(row.levels)}" if len(row.levels) > 1 else ""
    return _invalid(candidate, f"does not make images of {size}", f"It accepts {accepted}{levels}.")


def _quality(candidate: Candidate, row: ImageModel, quality: str | None) -> str | None:
    if not row.strict:
        return quality
    if not row.qualities:
        if quality not in (None, "auto", "standard"):
            others = _models_that(lambda other: bool(other.qualities))
            raise _invalid(candidate, "has no choice of quality", f"With quality use {others}, or leave it out.")
        return None
    if quality is None:
        return _DEFAULT_QUALITY[row.qualities[0]]
    found = quality if quality in row.qualities else _EQUIVALENT_QUALITY.get(quality)
    if found not in row.qualities:
        raise _invalid(candidate, f"does not have quality {quality!r}", f"It has {', '.join(row.qualities)}.")
    return found


def _one_of(
    candidate: Candidate,
    row: ImageModel,
    name: str,
    value: str | None,
    allowed: Callable[[ImageModel], tuple[str, ...]],
) -> str | None:
    """`value` if the model allows it; None for "auto" where the model has no such choice."""
    if value is None or not row.strict or value in allowed(row):
        return value
    if value == "auto":
        return None
    others = _models_that(lambda other: value in allowed(other))
    raise _invalid(candidate, f"does not take {name} {value!r}", f"With it use {others}, or leave it out.")


def _format(candidate: Candidate, row: ImageModel, params: Mapping[str, Any]) -> str | None:
    value = _one_of(candidate, row, "output_format", params.get("output_format"), lambda model: model.formats)
    if params.get("background") == "transparent" and value == "jpeg":
        raise _invalid(candidate, "makes transparent images as png or webp, not as jpeg")
    return value


def _models_that(can: Callable[[ImageModel], bool]) -> str:
    """Names of models whose row `can` accepts, for hints."""
    names = ("openai/gpt-image-2", "gemini/gemini-3.1-flash-image", "stability/stable-image-core")
    return " or ".join(name for name in names if can(image_model_of(name)))


def _invalid(candidate: Candidate, what: str, hint: str | None = None) -> InvalidRequest:
    return InvalidRequest(
        f"{candidate.requested} {what}", provider=candidate.provider, model=candidate.requested, hint=hint
    )
