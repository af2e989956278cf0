"""Reads a provider's response to an image request, and downloads and decodes the images."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import anyio
import httpx

from shared.config import load_settings
from shared.errors import BadResponse, LLMError
from shared.images import decode_off_loop, load_picture
from shared.providers.image_request import ImageOutgoing
from shared.providers.litellm_readers import NoLog, as_raw_response, take_gemini_metadata
from shared.providers.response import Reading, UnreadableError, clean, take_openai
from shared.providers.response_stream import ResponseStream, as_billed, post, read_all
from shared.providers.sse import read_body
from shared.providers.usage import details, image_usage
from shared.types import Answer, Candidate, MadeImage, Picture

_DATA_URI = "data:image/"
_MAX_QUOTED = 300


class ImageStream(ResponseStream[ImageOutgoing]):
    """One request for images; its Answer has each image decoded, or the reason why it is missing."""

    _response: httpx.Response | None = None

    async def advance(self) -> None:
        """Post the request, read the response and get the images."""
        candidate, outgoing = self._candidate, self._request
        self._response = await post(candidate, outgoing, self._exchange, self._timeout)
        content = await read_all(candidate, self._response, self._exchange)
        found = _read_images(candidate, outgoing, self._reading, content)
        images: list[MadeImage] = [MadeImage()] * len(found)
        async with anyio.create_task_group() as tasks:
            for index, item in enumerate(found):
                tasks.start_soon(_store, images, index, item, outgoing)
        answer = as_billed(candidate, replace(self._reading.answer(), images=tuple(images)), outgoing.body)
        if not any(image.picture for image in images):
            raise _no_image(candidate, answer)
        await self.end(answer)

    async def release(self) -> None:
        """Close the response."""
        if self._response is not None:
            await self._response.aclose()


def _no_image(candidate: Candidate, answer: Answer) -> LLMError:
    """The error for a paid answer without a usable image."""
    problem = next((image.problem for image in answer.images if image.problem), None)
    what = f"no usable image ({problem})" if problem else "no image"
    if answer.text and not answer.images:
        what += f', but the text "{" ".join(answer.text.split())[:_MAX_QUOTED]}"'
    return BadResponse(
        f"{candidate.provider} sent {what} ({candidate.model})",
        provider=candidate.provider,
        model=candidate.model,
        status_code=200,
        outcome="completed",
        usage=answer.usage if answer.usage.source == "provider" else None,
        hint="It is not retried automatically: a retry would be charged again.",
    )


def _read_images(candidate: Candidate, outgoing: ImageOutgoing, reading: Reading, content: bytes) -> list[MadeImage]:
    """Read the response; each image has its base64 data or its link as `url`."""
    found: list[MadeImage] = []

    def take(reading: Reading, body: Mapping[str, Any]) -> None:
        if outgoing.config is not None:
            found.extend(_by_litellm(outgoing, body, content))
        elif outgoing.wire == "gemini":
            found.extend(_gemini(reading, body))
        elif "choices" in body:
            found.extend(_chat(reading, body))
        else:
            found.extend(_openai(reading, body))
        reading.began = reading.is_images = True

    read_body(candidate, reading, content, take, sent=outgoing.body)
    return found


def _openai(reading: Reading, body: Mapping[str, Any]) -> Iterator[MadeImage]:
    """The images of a response to images/generations or images/edits."""
    reading.identify(body)
    reading.take_usage(body.get("usage"), image_usage)
    data = body.get("data")
    if not isinstance(data, list):
        raise UnreadableError("an answer without data")
    made = {name: body[name] for name in ("size", "quality") if isinstance(body.get(name), str)}
    for item in data:
        if not isinstance(item, dict):
            raise UnreadableError("an image that is not an object")
        encoded, url, revised = (item.get(name) for name in ("b64_json", "url", "revised_prompt"))
        yield MadeImage(
            url=url if isinstance(url, str) else encoded if isinstance(encoded, str) else None,
            revised_prompt=clean(revised) if isinstance(revised, str) and revised else None,
            **made,
        )


def _chat(reading: Reading, body: Mapping[str, Any]) -> Iterator[MadeImage]:
    """The images of a chat completion."""
    take_openai(reading, body)
    if body["choices"] and not reading.began:
        raise UnreadableError("a choice without a message")
    images = reading.extras.pop("images", None)  # not in the Answer's message too: they are large
    for image in images if isinstance(images, list) else ():
        link = image.get("image_url") if isinstance(image, dict) else None
        url = link.get("url") if isinstance(link, dict) else link
        yield MadeImage(url=url if isinstance(url, str) else None)


def _data_of(part: Mapping[str, Any]) -> Any:
    return part.get("inlineData", part.get("inline_data"))


def _gemini(reading: Reading, body: Mapping[str, Any]) -> Iterator[MadeImage]:
    """The images among the parts of Gemini's answer, whose text goes into the reading."""
    if not take_gemini_metadata(reading, body, image_output=True):
        return
    candidate = body["candidates"][0]
    parts = details(candidate, "content").get("parts")
    parts = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    # The drafts of a model that thinks are no results, unless there is no other image: then the last one is.
    if not any(_data_of(part) and not part.get("thought") for part in parts):
        drafts = [part for part in parts if _data_of(part)]
        parts = [part for part in parts if not part.get("thought") or part in drafts[-1:]]
    else:
        parts = [part for part in parts if not part.get("thought")]
    has_image = False
    for part in parts:
        data = _data_of(part)
        if isinstance(data, dict):
            has_image = True
            yield MadeImage(url=data["data"] if isinstance(data.get("data"), str) else None)
        elif isinstance(part.get("text"), str):
            reading.pieces.append(clean(part["text"]))
    if not has_image and isinstance(explanation := candidate.get("finishMessage"), str):
        reading.refusal = clean(explanation)
        reading.pieces.clear()


def _by_litellm(outgoing: ImageOutgoing, body: Mapping[str, Any], content: bytes) -> Iterator[MadeImage]:
    """The images as LiteLLM's config for the provider reads them."""
    from litellm.types.utils import ImageResponse

    if str(body.get("finish_reason")).upper() == "CONTENT_FILTERED":
        raise UnreadableError("an image that its content filter withheld")
    try:
        response = outgoing.config.transform_image_generation_response(
            model="",
            raw_response=as_raw_response(body, content[:1000].decode("utf-8", "replace")),
            model_response=ImageResponse(data=[]),
            logging_obj=NoLog(),
            request_data={},
            optional_params={},
            litellm_params={},
            encoding=None,
        )
        items = list(response.data or ())
    except Exception as error:  # LiteLLM's readers raise exceptions of any type
        raise UnreadableError("an answer with an unknown structure") from error
    for item in items:
        yield MadeImage(url=item.url or item.b64_json, revised_prompt=getattr(item, "revised_prompt", None))


async def _store(images: list[MadeImage], index: int, item: MadeImage, outgoing: ImageOutgoing) -> None:
    """Decode one image, or download it at once, since providers' links expire within the hour."""
    link = item.url or ""
    is_link = link[:8].lower().startswith(("http://", "https://"))
    item = replace(
        item,
        url=link if is_link else None,
        size=item.size or outgoing.options.size,
        quality=item.quality or outgoing.options.quality,
    )
    try:
        picture = await _get_picture(link, is_link)
        images[index] = replace(item, picture=picture, problem=_wrong_format(outgoing, picture))
    except LLMError as error:
        images[index] = replace(item, problem=error.message)


def _wrong_format(outgoing: ImageOutgoing, picture: Picture) -> str | None:
    """The problem with an image that does not have the requested format; None if it does."""
    requested = outgoing.options.output_format
    return None if requested in (None, picture.format) else f"{requested} was requested, but {picture.format} was sent"


async def _get_picture(link: str, is_link: bool) -> Picture:
    if is_link:
        return await load_picture(link, settings=load_settings(), from_agent=True)
    encoded = link.partition(",")[2] if link.startswith(_DATA_URI) else link
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    return await decode_off_loop(data, source="The image")
