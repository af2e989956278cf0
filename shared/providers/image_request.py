"""Builds image requests in each provider's own format."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import httpx

from shared.errors import LLMError
from shared.models import LITELLM_SHAPED, image_request
from shared.providers.checks import NOT_PARAMETERS, check_base, check_key, check_name, keep_in_path, no_endpoint
from shared.providers.endpoints import NO_KEY, base_url, litellm_providers, no_hints
from shared.providers.errors import invalid
from shared.providers.request import Outgoing, azure_url, config_error, encode_base64
from shared.types import Candidate, ImageRequest, Picture, Request

_USER_AGENT = "agentswarm-tools"
# Endpoints that LiteLLM's configs lack, or would look up in the environment first (litellm 1.91.5).
_BASES = {
    "dashscope": "https://dashscope-intl.aliyuncs.com/api/v1/services/aigc/multimodal-generation/generation",
}
# The end of a base URL that the config would write a second time, as people copy it from the provider's pages.
_REPEATED = {"stability": "/v2beta", "recraft": "/v1", "dashscope": "/compatible-mode/v1"}
# The response_format with which OpenAI-compatible providers return the image itself instead of a link.
_DATA_FORMAT = {"together_ai": "base64", "xai": "b64_json", "nscale": "b64_json"}


@dataclass(slots=True)
class ImageOutgoing(Outgoing):
    """One request for images; `form` is the body if it is not JSON."""

    options: ImageRequest = field(default_factory=ImageRequest)
    form: bytes | None = None

    def content(self) -> bytes:
        """The body's bytes."""
        # Not super(): slots=True creates a new class, which the method's __class__ cell does not refer to.
        return Outgoing.content(self) if self.form is None else self.form


def build_images(candidate: Candidate, request: Request) -> ImageOutgoing:
    """
    Build the HTTP request that asks `candidate` for images.

    Raises:
        InvalidRequest: The model does not accept one of the options.

        AuthenticationError: The provider needs a key and none is set.

        ConfigurationError: There is no endpoint to send it to.
    """
    check_name(candidate)
    check_base(candidate)
    check_key(candidate)
    options = image_request(candidate, request)
    if rejected := sorted(NOT_PARAMETERS & options.extras.keys()):
        raise invalid(candidate, f"{candidate.model} does not take {', '.join(rejected)}")
    prompt = str(request.messages[-1]["content"])
    try:
        if candidate.provider in LITELLM_SHAPED:
            outgoing = _by_litellm(candidate, options, prompt)
        elif candidate.provider == "gemini":
            outgoing = _gemini(candidate, options, prompt, request)
        elif candidate.provider == "openrouter":
            outgoing = _openrouter(candidate, options, prompt, request)
        else:
            outgoing = _openai(candidate, options, prompt, request)
    except LLMError:
        raise
    except Exception as error:  # noqa: BLE001 - LiteLLM's configs raise exceptions of any type
        raise config_error(candidate, error) from None
    outgoing.headers = {
        name.lower(): str(value) for name, value in outgoing.headers.items() if NO_KEY not in str(value)
    }
    outgoing.headers.setdefault("content-type", "application/json")
    outgoing.headers["user-agent"] = _USER_AGENT
    if not httpx.URL(outgoing.url).host:
        raise no_endpoint(candidate)
    return outgoing


def _openai(candidate: Candidate, options: ImageRequest, prompt: str, request: Request) -> ImageOutgoing:
    """images/generations, or images/edits if there are reference images."""
    fields: dict[str, Any] = {"model": candidate.wire_model, "prompt": prompt, **_openai_options(candidate, options)}
    operation = "edits" if request.pictures else "generations"
    if candidate.provider == "azure":
        url = azure_url(candidate.api_base or "", candidate.wire_model, f"images/{operation}")
        headers = {"api-key": candidate.api_key or ""}
        if "/deployments/" in url:
            fields.pop("model")  # the URL already names the deployment, and some deployments reject the field
    else:
        base = base_url(candidate.provider, candidate.wire_model, candidate.api_base)
        if base is None:
            raise no_endpoint(candidate)
        url = f"{base.rstrip('/')}/images/{operation}"
        headers = {"authorization": f"Bearer {candidate.api_key}"} if candidate.api_key else {}
    outgoing = ImageOutgoing(url, headers, fields, "openai", stream=False, options=options)
    if request.pictures:
        name = "image[]" if len(request.pictures) > 1 else "image"
        files = [(name, picture) for picture in request.pictures]
        _as_form(outgoing, files + ([("mask", request.mask)] if request.mask else []))
    return outgoing


def _openai_options(candidate: Candidate, options: ImageRequest) -> dict[str, Any]:
    size: dict[str, Any] = {} if options.size is None else {"size": options.size}
    if options.ratio is not None:
        size = {"aspect_ratio": options.ratio}
    elif candidate.provider == "together_ai" and options.size:
        width, _, height = options.size.partition("x")
        size = {"width": int(width), "height": int(height)}
    fields = {
        "n": options.n,
        "quality": options.quality,
        "background": options.background,
        "output_format": options.output_format,
        "response_format": _DATA_FORMAT.get(candidate.provider, "b64_json" if options.as_data else None),
        **options.extras,
    }
    return {**size, **{name: value for name, value in fields.items() if value is not None}}


def _as_form(outgoing: ImageOutgoing, files: list[tuple[str, Picture]]) -> None:
    """Encode the body as multipart/form-data; identical content gets an identical boundary."""
    parts = [
        (name, (f"{name.removesuffix('[]')}-{number}.{picture.format}", picture.data, f"image/{picture.format}"))
        for number, (name, picture) in enumerate(files)
    ]
    digest = hashlib.sha256(b"".join(picture.data for _, picture in files)).hexdigest()
    content_type = f"multipart/form-data; boundary=form-{digest[:24]}"
    fields = {name: str(value) for name, value in outgoing.body.items()}
    form = httpx.Request("POST", outgoing.url, data=fields, files=parts, headers={"content-type": content_type})
    outgoing.form, outgoing.headers["content-type"] = form.read(), content_type


def _gemini(candidate: Candidate, options: ImageRequest, prompt: str, request: Request) -> ImageOutgoing:
    keep_in_path(candidate)
    parts: list[dict[str, Any]] = [
        {"inlineData": {"mimeType": f"image/{picture.format}", "data": encode_base64(picture)}}
        for picture in request.pictures
    ]
    image_config = {"aspectRatio": options.ratio, "imageSize": options.level if options.level != "1K" else None}
    config: dict[str, Any] = {"responseModalities": ["IMAGE", "TEXT"]}
    if given := {name: value for name, value in image_config.items() if value}:
        config["imageConfig"] = given
    base = httpx.URL(candidate.api_base or "https://generativelanguage.googleapis.com")
    root = base.path.rstrip("/") or "/v1beta"
    url = base.copy_with(path=f"{root}/models/{candidate.wire_model}:generateContent")
    headers = {"x-goog-api-key": candidate.api_key or ""}
    body = {"contents": [{"role": "user", "parts": [*parts, {"text": prompt}]}], "generationConfig": config}
    return ImageOutgoing(str(url), headers, body, "gemini", stream=False, options=options)


def _openrouter(candidate: Candidate, options: ImageRequest, prompt: str, request: Request) -> ImageOutgoing:
    """A chat request: OpenRouter returns images as part of a chat completion."""
    content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
    for picture in request.pictures:
        url = f"data:image/{picture.format};base64,{encode_base64(picture)}"
        content.append({"type": "image_url", "image_url": {"url": url}})
    body: dict[str, Any] = {
        "model": candidate.wire_model,
        "messages": [{"role": "user", "content": content if request.pictures else prompt}],
        "modalities": ["image", "text"],
        "usage": {"include": True},
    }
    if options.ratio:
        body["image_config"] = {"aspect_ratio": options.ratio}
    base = base_url("openrouter", candidate.wire_model, candidate.api_base) or ""
    headers = {"authorization": f"Bearer {candidate.api_key}"} if candidate.api_key else {}
    return ImageOutgoing(f"{base.rstrip('/')}/chat/completions", headers, body, "openai", stream=False, options=options)


def _by_litellm(candidate: Candidate, options: ImageRequest, prompt: str) -> ImageOutgoing:
    """The request as LiteLLM's config for the provider writes it."""
    from litellm.utils import ProviderConfigManager

    known, model = litellm_providers()[candidate.provider], candidate.wire_model
    config: Any = ProviderConfigManager.get_provider_image_generation_config(model, known)
    if config is None:
        raise invalid(candidate, f"{candidate.model} cannot generate images")
    keep_in_path(candidate)
    openai_params = {**({"size": options.size} if options.size else {}), **({"n": options.n} if options.n > 1 else {})}
    with no_hints():
        params: dict[str, Any] = config.map_openai_params(
            non_default_params=openai_params,
            optional_params={},
            model=model,
            drop_params=False,
        )
        params |= _unmapped_params(candidate, options)
        common = {"model": model, "optional_params": params, "litellm_params": {}}
        key = candidate.api_key or NO_KEY
        headers = config.validate_environment(headers={}, messages=[], api_key=key, api_base=None, **common)
        base = _moved(candidate) or _BASES.get(candidate.provider) or config.DEFAULT_BASE_URL
        url = config.get_complete_url(api_base=base, api_key=key, **common)
        body = config.transform_image_generation_request(prompt=prompt, headers=headers, **common)
    if candidate.provider == "fal_ai" and not getattr(config, "IMAGE_GENERATION_ENDPOINT", ""):
        url = f"{url}/{model}"
    outgoing = ImageOutgoing(url, dict(headers), dict(body), "openai", stream=False, config=config, options=options)
    if config.use_multipart_form_data():
        # Without a file httpx would send a urlencoded form; these endpoints accept only multipart.
        files = [(name, (None, str(value))) for name, value in body.items()]
        boundary = hashlib.sha256(repr(files).encode()).hexdigest()[:24]
        content_type = f"multipart/form-data; boundary=form-{boundary}"
        form = httpx.Request("POST", url, files=files, headers={"content-type": content_type})
        outgoing.form, outgoing.headers["content-type"] = form.read(), content_type
        outgoing.headers.pop("Content-Type", None)
    return outgoing


def _moved(candidate: Candidate) -> str | None:
    """The user's base URL, which the provider's chat models share, in the form that the image config expects."""
    if candidate.api_base is None:
        return None
    base = candidate.api_base.rstrip("/").removesuffix(_REPEATED.get(candidate.provider, ""))
    if candidate.provider != "dashscope" or base.endswith("/generation"):
        return base
    return str(httpx.URL(base).copy_with(path=httpx.URL(base).path.rstrip("/") + httpx.URL(_BASES["dashscope"]).path))


def _unmapped_params(candidate: Candidate, options: ImageRequest) -> dict[str, Any]:
    """Parameters that LiteLLM's mapping from OpenAI's names does not cover."""
    params: dict[str, Any] = dict(options.extras)
    if candidate.provider == "stability":
        if options.ratio:
            params["aspect_ratio"] = options.ratio
        if options.output_format:
            params["output_format"] = options.output_format
        if candidate.wire_model.startswith("sd3"):
            params["model"] = candidate.wire_model  # all SD3 models share one endpoint
    return params
