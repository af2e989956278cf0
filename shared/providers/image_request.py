"""A request for images as its provider wants it, be it in OpenAI's words, Gemini's or its own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from shared.errors import LLMError
from shared.models import LITELLM_SHAPED, image_request
from shared.providers.checks import NOT_PARAMETERS, check_base, check_key, check_name, keep_in_path, no_endpoint
from shared.providers.endpoints import NO_KEY, base_url, litellm_providers, no_hints
from shared.providers.errors import invalid
from shared.providers.request import Outgoing, azure_url, refusal
from shared.types import Candidate, ImageRequest, Picture, Request

_AGENT = "agentswarm-tools"
# Addresses that LiteLLM's configs do not name, or would look for in the environment first (litellm 1.91.5).
_BASES = {
    "dashscope": "https://dashscope-intl.aliyuncs.com/api/v1/services/aigc/multimodal-generation/generation",
}
# What an OpenAI-shaped endpoint of somebody else needs to be told so that it does not answer with links.
_AS_DATA = {"together_ai": "base64", "xai": "b64_json", "nscale": "b64_json"}


@dataclass(slots=True)
class ImageOutgoing(Outgoing):
    """One request for images; `form` is its body where it is no JSON."""

    order: ImageRequest = field(default_factory=ImageRequest)
    form: bytes | None = None

    def content(self) -> bytes:
        """The body's bytes."""
        # Not super(): slots make a new class, which the old name's cell does not know.
        return Outgoing.content(self) if self.form is None else self.form


def build_images(candidate: Candidate, request: Request) -> ImageOutgoing:
    """
    The request that asks `candidate` for images.

    Raises:
        InvalidRequest: The model does not take what is asked for.

        AuthenticationError: The provider needs a key and there is none.

        ConfigurationError: There is no endpoint to send it to.
    """
    check_name(candidate)
    check_base(candidate)
    check_key(candidate)
    order = image_request(candidate, request)
    if wrong := sorted(NOT_PARAMETERS & order.extras.keys()):
        raise invalid(candidate, f"{candidate.model} does not take {', '.join(wrong)}")
    prompt = str(request.messages[-1]["content"])
    try:
        if candidate.provider in LITELLM_SHAPED:
            outgoing = _by_litellm(candidate, order, prompt)
        elif candidate.provider == "gemini":
            outgoing = _gemini(candidate, order, prompt, request)
        elif candidate.provider == "openrouter":
            outgoing = _openrouter(candidate, order, prompt, request)
        else:
            outgoing = _openai(candidate, order, prompt, request)
    except LLMError:
        raise
    except Exception as error:  # noqa: BLE001 - configs raise whatever their parsing happens to raise
        raise refusal(candidate, error) from None
    outgoing.headers = {
        name.lower(): str(value) for name, value in outgoing.headers.items() if NO_KEY not in str(value)
    }
    outgoing.headers.setdefault("content-type", "application/json")
    outgoing.headers["user-agent"] = _AGENT
    if not httpx.URL(outgoing.url).host:
        raise no_endpoint(candidate)
    return outgoing


def _openai(candidate: Candidate, order: ImageRequest, prompt: str, request: Request) -> ImageOutgoing:
    """images/generations, or images/edits where there are pictures to start from."""
    fields: dict[str, Any] = {"model": candidate.wire_model, "prompt": prompt, **_openai_order(candidate, order)}
    operation = "edits" if request.pictures else "generations"
    if candidate.provider == "azure":
        url = azure_url(candidate.api_base or "", candidate.wire_model, f"images/{operation}")
        headers = {"api-key": candidate.api_key or ""}
        if "/deployments/" in url:
            fields.pop("model")  # the deployment in the address says it, and some refuse to hear it twice
    else:
        base = base_url(candidate.provider, candidate.wire_model, candidate.api_base)
        if base is None:
            raise no_endpoint(candidate)
        url = f"{base.rstrip('/')}/images/{operation}"
        headers = {"authorization": f"Bearer {candidate.api_key}"} if candidate.api_key else {}
    outgoing = ImageOutgoing(url, headers, fields, "openai", stream=False, order=order)
    if request.pictures:
        name = "image[]" if len(request.pictures) > 1 else "image"
        files = [(name, picture) for picture in request.pictures]
        _as_form(outgoing, files + ([("mask", request.mask)] if request.mask else []))
    return outgoing


def _openai_order(candidate: Candidate, order: ImageRequest) -> dict[str, Any]:
    size: dict[str, Any] = {} if order.size is None else {"size": order.size}
    if order.ratio is not None:
        size = {"aspect_ratio": order.ratio}
    elif candidate.provider == "together_ai" and order.size:
        width, _, height = order.size.partition("x")
        size = {"width": int(width), "height": int(height)}
    asked = {
        "n": order.n,
        "quality": order.quality,
        "background": order.background,
        "output_format": order.output_format,
        "response_format": _AS_DATA.get(candidate.provider, "b64_json" if order.as_data else None),
        **order.extras,
    }
    return {**size, **{name: value for name, value in asked.items() if value is not None}}


def _as_form(outgoing: ImageOutgoing, files: list[tuple[str, Picture]]) -> None:
    """The body as multipart/form-data, with the same boundary for the same content."""
    parts = [
        (name, (f"{name.removesuffix('[]')}-{number}.{picture.format}", picture.data, f"image/{picture.format}"))
        for number, (name, picture) in enumerate(files)
    ]
    digest = hashlib.sha256(b"".join(picture.data for _, picture in files)).hexdigest()
    kind = f"multipart/form-data; boundary=form-{digest[:24]}"
    plain = {name: str(value) for name, value in outgoing.body.items()}
    form = httpx.Request("POST", outgoing.url, data=plain, files=parts, headers={"content-type": kind})
    outgoing.form, outgoing.headers["content-type"] = form.read(), kind


def _gemini(candidate: Candidate, order: ImageRequest, prompt: str, request: Request) -> ImageOutgoing:
    keep_in_path(candidate)
    parts: list[dict[str, Any]] = [
        {"inlineData": {"mimeType": f"image/{picture.format}", "data": _b64(picture)}} for picture in request.pictures
    ]
    image_config = {"aspectRatio": order.ratio, "imageSize": order.level if order.level != "1K" else None}
    config: dict[str, Any] = {"responseModalities": ["IMAGE", "TEXT"]}
    if told := {name: value for name, value in image_config.items() if value}:
        config["imageConfig"] = told
    own = httpx.URL(candidate.api_base or "https://generativelanguage.googleapis.com")
    root = own.path.rstrip("/") or "/v1beta"
    url = own.copy_with(path=f"{root}/models/{candidate.wire_model}:generateContent")
    headers = {"x-goog-api-key": candidate.api_key or ""}
    body = {"contents": [{"role": "user", "parts": [*parts, {"text": prompt}]}], "generationConfig": config}
    return ImageOutgoing(str(url), headers, body, "gemini", stream=False, order=order)


def _openrouter(candidate: Candidate, order: ImageRequest, prompt: str, request: Request) -> ImageOutgoing:
    """Images come as part of a chat answer."""
    content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
    for picture in request.pictures:
        url = f"data:image/{picture.format};base64,{_b64(picture)}"
        content.append({"type": "image_url", "image_url": {"url": url}})
    body: dict[str, Any] = {
        "model": candidate.wire_model,
        "messages": [{"role": "user", "content": content if request.pictures else prompt}],
        "modalities": ["image", "text"],
        "usage": {"include": True},
    }
    if order.ratio:
        body["image_config"] = {"aspect_ratio": order.ratio}
    base = base_url("openrouter", candidate.wire_model, candidate.api_base) or ""
    headers = {"authorization": f"Bearer {candidate.api_key}"} if candidate.api_key else {}
    return ImageOutgoing(f"{base.rstrip('/')}/chat/completions", headers, body, "openai", stream=False, order=order)


def _by_litellm(candidate: Candidate, order: ImageRequest, prompt: str) -> ImageOutgoing:
    """As LiteLLM's config of the provider writes it."""
    from litellm.utils import ProviderConfigManager

    known, model = litellm_providers()[candidate.provider], candidate.wire_model
    config: Any = ProviderConfigManager.get_provider_image_generation_config(model, known)
    if config is None:
        raise invalid(candidate, f"{candidate.model} cannot be asked for images")
    keep_in_path(candidate)
    plain = {**({"size": order.size} if order.size else {}), **({"n": order.n} if order.n > 1 else {})}
    with no_hints():
        options: dict[str, Any] = config.map_openai_params(
            non_default_params=plain,
            optional_params={},
            model=model,
            drop_params=False,
        )
        options |= _own_words(candidate, order)
        common = {"model": model, "optional_params": options, "litellm_params": {}}
        key = candidate.api_key or NO_KEY
        headers = config.validate_environment(headers={}, messages=[], api_key=key, api_base=None, **common)
        base = candidate.api_base or _BASES.get(candidate.provider) or config.DEFAULT_BASE_URL
        url = config.get_complete_url(api_base=base, api_key=key, **common)
        body = config.transform_image_generation_request(prompt=prompt, headers=headers, **common)
    if candidate.provider == "fal_ai" and not getattr(config, "IMAGE_GENERATION_ENDPOINT", ""):
        url = f"{url}/{model}"
    outgoing = ImageOutgoing(url, dict(headers), dict(body), "openai", stream=False, config=config, order=order)
    if config.use_multipart_form_data():
        # Without a file httpx would send a plain form; these endpoints take multipart only.
        files = [(name, (None, str(value))) for name, value in body.items()]
        boundary = hashlib.sha256(repr(files).encode()).hexdigest()[:24]
        kind = f"multipart/form-data; boundary=form-{boundary}"
        form = httpx.Request("POST", url, files=files, headers={"content-type": kind})
        outgoing.form, outgoing.headers["content-type"] = form.read(), kind
        outgoing.headers.pop("Content-Type", None)
    return outgoing


def _own_words(candidate: Candidate, order: ImageRequest) -> dict[str, Any]:
    """What LiteLLM's map from OpenAI's words to the provider's leaves out."""
    words: dict[str, Any] = dict(order.extras)
    if candidate.provider == "stability":
        if order.ratio:
            words["aspect_ratio"] = order.ratio
        if order.output_format:
            words["output_format"] = order.output_format
        if candidate.wire_model.startswith("sd3"):
            words["model"] = candidate.wire_model  # one endpoint for all of them
    return words


def _b64(picture: Picture) -> str:
    return base64.b64encode(picture.data).decode("ascii")


def attach_pictures(
    messages: Sequence[Mapping[str, Any]], images: Sequence[Picture | str], detail: str | None
) -> list[Mapping[str, Any]]:
    """The messages with the images, pictures or links to some, once, in the last of the user's."""
    found = [dict(message) for message in messages]
    last = max((n for n, message in enumerate(found) if message.get("role") == "user"), default=None)
    if last is None:
        found.append({"role": "user", "content": []})
        last = len(found) - 1
    content = found[last].get("content") or []
    parts: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    for image in images:
        link = image if isinstance(image, str) else f"data:image/{image.format};base64,{_b64(image)}"
        parts.append({"type": "image_url", "image_url": {"url": link, **({"detail": detail} if detail else {})}})
    found[last]["content"] = parts
    return list(found)
