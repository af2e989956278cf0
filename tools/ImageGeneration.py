"""Generate and edit images with any model; the result names the saved files and the cost."""

from __future__ import annotations

import re
import unicodedata
from typing import Any, Literal

from pydantic import Field, field_validator

from shared import runs
from shared.base_tool import BaseTool, as_outputs
from shared.llm_client import get_llm_client
from shared.types import LLMResponse

_FILE_NAME = re.compile(r"[^\W_][\w-]*(\.[A-Za-z0-9]{1,5})?")
_MAX_SOURCE_CHARS = 2048
_SIZE = r"^([1-9]\d{1,3}x[1-9]\d{1,3}|[1-9]\d?:[1-9]\d?|auto)$"


class ImageGeneration(BaseTool):
    """
    Generate images from a description, or edit and combine existing ones.

    The result says where each image is saved: pass its image_path on to view or edit the image. It costs money: the
    result says how much. A failure may have cost money too, so read it before you try again.
    """

    prompt: str = Field(
        ..., min_length=1, max_length=32_000, description="What the image should show, or what to change."
    )
    model: str | None = Field(
        None, max_length=200, description="Model such as openai/gpt-image-2. Leave out for the default."
    )
    fallback_models: list[str] | None = Field(
        None, max_length=5, description="Models to try next when the model fails, in order. Leave out for the default."
    )
    size: str | None = Field(
        None, pattern=_SIZE, description="1024x1024 or an aspect ratio such as 16:9. Leave out for a square."
    )
    quality: Literal["low", "medium", "high", "auto", "standard", "hd"] | None = Field(
        None, description="Where the model supports it; higher costs more. Leave out for medium."
    )
    n: int = Field(1, ge=1, le=10, strict=True, description="Number of images, 1 to 10. Each one costs money.")
    reference_images: list[str] | None = Field(
        None, max_length=16, description="Paths (image_path of earlier results) or https URLs of images to start from."
    )
    mask: str | None = Field(
        None,
        description="Path or URL of an image as large as the first reference; only its transparent areas are changed.",
    )
    background: Literal["transparent", "opaque", "auto"] | None = Field(
        None, description="transparent for a cut-out, where the model supports it. Leave out for the model's default."
    )
    output_format: Literal["png", "jpeg", "webp"] | None = Field(
        None, description="Where the model offers a choice. Leave out for the model's default."
    )
    file_name: str | None = Field(
        None, max_length=100, description="Name for the file, such as red-fox. Leave out for a generated name."
    )

    @field_validator("prompt")
    @classmethod
    def _is_not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("prompt must say what the image should show")
        return value

    @field_validator("reference_images", "mask")
    @classmethod
    def _are_sources(cls, value: list[str] | str | None) -> list[str] | str | None:
        sources = [value] if isinstance(value, str) else value or []
        if not all(len(source) <= _MAX_SOURCE_CHARS and runs.is_source(source) for source in sources):
            raise ValueError("reference_images and mask must be paths or https URLs, without control characters")
        return value

    @field_validator("file_name")
    @classmethod
    def _is_name(cls, value: str | None) -> str | None:
        if value is not None and not _FILE_NAME.fullmatch(unicodedata.normalize("NFC", value)):
            raise ValueError(
                "file_name must be a name such as red-fox: letters, digits, - and _, not starting with - or _"
            )
        return value

    async def _process(self) -> Any:
        """Generate the images, and show the agent small previews of them."""
        response = await get_llm_client().agenerate_image(
            self.prompt,
            model=self.model,
            fallback_models=self.fallback_models,
            size=self.size,
            quality=self.quality,
            n=self.n,
            reference_images=self.reference_images,
            mask=self.mask,
            background=self.background,
            output_format=self.output_format,
            file_name=self.file_name,
        )
        result = _result(response, self.prompt)
        if self.reference_images:
            result["cost_with_originals"] = await runs.lineage_cost(response.images[0]["path"])
        result["total_cost"] = await runs.total_cost()
        small = await runs.previews([image["path"] for image in response.images]) if self.shows_images else None
        return result if small is None else as_outputs(result, small)


def _result(response: LLMResponse, prompt: str) -> dict[str, Any]:
    first, *others = response.images
    result: dict[str, Any] = {"image_path": first["path"]}
    if others:
        result["image_paths"] = [image["path"] for image in response.images]
        result["images"] = [_described(image, prompt) for image in response.images]
    else:
        result |= _described(first, prompt)
    if failed := response.metadata.get("images_failed"):
        result["failed"] = failed
    if note := response.metadata.get("note"):
        result["note"] = note
    if "remaining_budget_usd" in response.metadata:
        result["remaining_budget_usd"] = response.metadata["remaining_budget_usd"]
    return result | {
        "model": response.model,
        "provider": response.provider,
        "fallback_used": response.metadata["fallback_used"],
        "cost": response.cost,
    }


def _described(image: dict[str, Any], prompt: str) -> dict[str, Any]:
    """One image for the agent; never the provider's link, which expires within an hour and may contain a signature."""
    described = {"image_url": image["url"], **{name: image[name] for name in ("width", "height", "format", "bytes")}}
    if image["revised_prompt"] and image["revised_prompt"] != prompt:
        described["revised_prompt"] = image["revised_prompt"]
    if "note" in image:
        described["image_note"] = image["note"]
    return described
