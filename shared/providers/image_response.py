"""What a provider answered to a request for images: read, downloaded, decoded, or told why not."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import anyio
import httpx

from shared.config import load_settings
from shared.errors import BadResponse, LLMError
from shared.images import decode_off_loop, load_picture
from shared.providers.errors import from_transport
from shared.providers.image_request import ImageOutgoing
from shared.providers.response import Reading, UnreadableError, clean
from shared.providers.response_stream import ResponseStream, post, with_reported_cost
from shared.providers.sse import read_body
from shared.providers.transport import Exchange
from shared.providers.usage import gemini_usage, image_usage, openai_usage, reported_cost
from shared.types import Answer, Candidate, MadeImage, Picture

_DATA = "data:image/"
_MAX_SAID = 300


class ImageStream(ResponseStream):
    """One request for images; its answer holds every image decoded, or why it could not be had."""

    def __init__(self, candidate: Candidate, outgoing: ImageOutgoing, *, exchange: Exchange, timeout: float) -> None:
        super().__init__()
        self._candidate = candidate
        self._outgoing = outgoing
        self._exchange = exchange
        self._timeout = timeout
        self._response: httpx.Response | None = None

    async def more(self) -> None:
        """Ask, read, and fetch the images."""
        candidate = self._candidate
        self._response = await post(candidate, self._outgoing, self._exchange, self._timeout)
        try:
            content = await self._response.aread()
        except httpx.HTTPError as error:
            raise from_transport(candidate, error, self._exchange) from error
        reading, found = _read(candidate, self._outgoing, content)
        images: list[MadeImage] = [MadeImage()] * len(found)
        async with anyio.create_task_group() as tasks:
            for place, item in enumerate(found):
                tasks.start_soon(_into, images, place, item, self._outgoing)
        answer = replace(reading.answer(), images=tuple(images))
        answer = with_reported_cost(candidate, answer)
        if not any(image.picture for image in images):
            raise _nothing(candidate, answer, reading.text)
        await self.end(answer)

    async def release(self) -> None:
        """Close the response."""
        if self._response is not None:
            await self._response.aclose()


def _nothing(candidate: Candidate, answer: Answer, said: str) -> LLMError:
    """An answer that has been paid for and holds no image."""
    why = next((image.problem for image in answer.images if image.problem), None)
    what = f"no image that can be used ({why})" if why else "no image"
    if said and not answer.images:
        what += f', but the text "{" ".join(said.split())[:_MAX_SAID]}"'
    return BadResponse(
        f"{candidate.provider} sent {what} ({candidate.model})",
        provider=candidate.provider,
        model=candidate.model,
        status_code=200,
        outcome="completed",
        usage=answer.usage if answer.usage.source == "provider" else None,
        hint="It is not asked for again by itself, since it would be paid for again.",
    )


def _read(candidate: Candidate, outgoing: ImageOutgoing, content: bytes) -> tuple[Reading, list[MadeImage]]:
    """What the answer says of itself, and each image, with its base64 or its address as `url`."""
    reading = Reading()
    found: list[MadeImage] = []

    def take(reading: Reading, body: Mapping[str, Any]) -> None:
        reading.began = True
        if outgoing.config is not None:
            found.extend(_by_litellm(outgoing, body, content))
        elif outgoing.wire == "gemini":
            found.extend(_gemini(reading, body))
        elif "choices" in body:
            found.extend(_chat(reading, body))
        else:
            found.extend(_openai(reading, body))

    read_body(candidate, reading, content, take)
    return reading, found


def _openai(reading: Reading, body: Mapping[str, Any]) -> Iterator[MadeImage]:
    reading.identify(body)
    if isinstance(usage := body.get("usage"), dict):
        reading.usage = image_usage(usage)
        reading.reported_cost = reported_cost(usage)
    data = body.get("data")
    if not isinstance(data, list):
        raise UnreadableError("an answer without data")
    made = {name: body[name] for name in ("size", "quality") if isinstance(body.get(name), str)}
    for item in data:
        if not isinstance(item, dict):
            raise UnreadableError("an image that is no object")
        encoded, url, revised = (item.get(name) for name in ("b64_json", "url", "revised_prompt"))
        yield MadeImage(
            url=url if isinstance(url, str) else encoded if isinstance(encoded, str) else None,
            revised_prompt=clean(revised) if isinstance(revised, str) and revised else None,
            **made,
        )


def _chat(reading: Reading, body: Mapping[str, Any]) -> Iterator[MadeImage]:
    """Images that come beside the text of a chat answer."""
    reading.identify(body)
    if isinstance(usage := body.get("usage"), dict):
        reading.usage, reading.reported_cost = openai_usage(usage), reported_cost(usage)
    choices = body["choices"]
    for choice in choices if isinstance(choices, list) else ():
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(message, dict):
            raise UnreadableError("a choice without a message")
        reading.finish(choice.get("finish_reason"), choice.get("error"))
        if isinstance(text := message.get("content"), str):
            reading.pieces.append(clean(text))
        if isinstance(refusal := message.get("refusal"), str):
            reading.refusal += clean(refusal)
        images = message.get("images")
        for image in images if isinstance(images, list) else ():
            link = image.get("image_url") if isinstance(image, dict) else None
            url = link.get("url") if isinstance(link, dict) else link
            yield MadeImage(url=url if isinstance(url, str) else None)


def _gemini(reading: Reading, body: Mapping[str, Any]) -> Iterator[MadeImage]:
    reading.identify(body, "modelVersion", "responseId")
    if isinstance(usage := body.get("usageMetadata"), dict):
        reading.usage = gemini_usage(usage, draws=True)
    feedback = body.get("promptFeedback")
    if isinstance(feedback, dict) and feedback.get("blockReason"):
        reading.finish_reason = "content_filter"
        reading.refusal = clean(str(feedback.get("blockReasonMessage") or feedback["blockReason"]))
    candidates = body.get("candidates")
    for candidate in candidates if isinstance(candidates, list) else ():
        if not isinstance(candidate, dict):
            raise UnreadableError("a candidate that is no object")
        reading.finish(candidate.get("finishReason"))
        content = candidate.get("content")
        parts = content.get("parts") if isinstance(content, dict) else None
        drawn = False
        for part in parts if isinstance(parts, list) else ():
            data = part.get("inlineData", part.get("inline_data")) if isinstance(part, dict) else None
            if isinstance(data, dict) and not part.get("thought"):
                drawn = True
                yield MadeImage(url=data["data"] if isinstance(data.get("data"), str) else None)
            elif isinstance(part, dict) and isinstance(part.get("text"), str) and not part.get("thought"):
                reading.pieces.append(clean(part["text"]))
        if not drawn and isinstance(said := candidate.get("finishMessage"), str):
            reading.refusal = clean(said)
            reading.pieces.clear()


def _by_litellm(outgoing: ImageOutgoing, body: Mapping[str, Any], content: bytes) -> Iterator[MadeImage]:
    """What LiteLLM's config of the provider makes of it."""
    from litellm.types.utils import ImageResponse

    raw = SimpleNamespace(json=lambda: body, text=content[:1000].decode("utf-8", "replace"), headers=httpx.Headers())
    raw.status_code = 200
    if str(body.get("finish_reason")).upper() == "CONTENT_FILTERED":
        raise UnreadableError("an image that its content rules held back")
    try:
        response = outgoing.config.transform_image_generation_response(
            model="",
            raw_response=raw,
            model_response=ImageResponse(data=[]),
            logging_obj=SimpleNamespace(post_call=lambda *_, **__: None),
            request_data={},
            optional_params={},
            litellm_params={},
            encoding=None,
        )
        items = list(response.data or ())
    except Exception as error:  # LiteLLM's readers raise whatever their parsing happens to raise
        raise UnreadableError("an answer of an unknown shape") from error
    for item in items:
        yield MadeImage(url=item.url or item.b64_json, revised_prompt=getattr(item, "revised_prompt", None))


async def _into(images: list[MadeImage], place: int, item: MadeImage, outgoing: ImageOutgoing) -> None:
    """Get one image: decode it, or download it at once, since such links end within the hour."""
    link = item.url or ""
    is_link = link[:8].lower().startswith(("http://", "https://"))
    item = replace(
        item,
        url=link if is_link else None,
        size=item.size or outgoing.options.size,
        quality=item.quality or outgoing.options.quality,
    )
    try:
        picture = await _picture(link, is_link)
        images[place] = replace(item, picture=picture, problem=_other_kind(outgoing, picture))
    except LLMError as error:
        images[place] = replace(item, problem=error.message)


def _other_kind(outgoing: ImageOutgoing, picture: Picture) -> str | None:
    """What to say of an image that is none of the kind that was asked for."""
    asked = outgoing.options.output_format
    return None if asked in (None, picture.format) else f"{asked} was asked for, but {picture.format} came"


async def _picture(link: str, is_link: bool) -> Picture:
    if is_link:
        return await load_picture(link, settings=load_settings(), from_agent=True)
    encoded = link.partition(",")[2] if link.startswith(_DATA) else link
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    return await decode_off_loop(data, source="The image")
