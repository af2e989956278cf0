"""Calls that make images or look at them: pictures in, requests at once, files out, and what was saved on the way."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread

from shared.calls.call import Attempt, Call, summary_of
from shared.calls.flow import answer_of, refuse_call
from shared.config import Settings, output_dir
from shared.errors import InvalidRequest, LLMError
from shared.images import Fitted, Saved, check_output, load_picture, safe_name, save_picture
from shared.internal.aio import gather
from shared.internal.money import to_nano, to_usd
from shared.internal.pending import RecordedCall
from shared.models import check_pictures, image_request, per_request
from shared.providers import attach_pictures
from shared.scope import Scope
from shared.types import Answer, Candidate, LLMResponse, MadeImage, Picture

MAX_PICTURES = 16


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """
    What a call for images needs beside its request: sources of pictures, and how its files are to be called.

    `own_fallbacks`: the caller named the fallback models, so that one which cannot do it is an error, and not left out.
    """

    references: tuple[str, ...] = ()
    mask: str | None = None
    file_name: str | None = None
    own_fallbacks: bool = True
    with_base64: bool = False


def image_options(kw: dict[str, Any], *, own_fallbacks: bool) -> ImageOptions:
    """What belongs to the call and not to its request, taken out of `kw`."""
    return ImageOptions(
        references=_sources(kw.pop("reference_images", None) or ()),
        mask=kw.pop("mask", None),
        file_name=kw.pop("file_name", None),
        own_fallbacks=own_fallbacks,
        with_base64=kw.get("response_format") == "b64_json",
    )


def _sources(given: Any) -> tuple[str, ...]:
    """Sources of images: one, or several."""
    found = (given,) if isinstance(given, str | Path) else tuple(given)
    return tuple(str(source) for source in found)


def scope_folder(scope: Scope) -> str | None:
    """The sub folder of the output folder that belongs to a scope's labels; None where it has none."""
    if not scope.labels:
        return None
    named = "-".join(f"{name}-{value}" for name, value in sorted(scope.labels.items()))
    digest = hashlib.sha256(repr(sorted(scope.labels.items())).encode()).hexdigest()
    # Two labels may look the same once what no folder can be called is gone.
    return f"{safe_name(named)[:60]}-{digest[:8]}"


def image_id(path: str, settings: Settings) -> str | None:
    """The name of a saved image in the ledger: its path below the output folder; None when it lies elsewhere."""
    place = output_dir(settings).rstrip("/")
    given = path.removeprefix("file://")
    if "://" not in place:
        given = str(Path(given) if Path(given).is_absolute() else Path(place, given))
    inner = given.removeprefix(f"{place}/")
    return None if inner == given else inner.replace("\\", "/")


async def make_images(call: Call, options: ImageOptions, settings: Settings) -> LLMResponse:
    """
    Make the images of a planned call, save them, and say where they are.

    Raises:
        LLMError: No image came; what was paid nevertheless is in its `cost`.
    """
    try:
        await _prepare(call, options, settings)
        per = min(per_request(candidate, call.request) for candidate in call.plan.candidates)
    except LLMError as error:
        await refuse_call(call, error)
        raise
    call.finish = partial(_save_images, call, options, settings)
    wanted = call.request.params.get("n", 1)
    sizes = [min(per, wanted - done) for done in range(0, wanted, per)]
    call.progress.open_parts = len(sizes)
    parts = [call] if len(sizes) == 1 else [_part(call, n) for n in sizes]
    results = await _together(parts)
    answered = [found for found in results if isinstance(found, LLMResponse)]
    failures = [found for found in results if isinstance(found, LLMError)]
    if not answered:
        failures[0].cost = to_usd(_spent(parts)) if len(parts) > 1 else failures[0].cost
        raise failures[0]
    response = _joined(call, parts, answered)
    made = [image for part in parts if part.attempts for image in _images(part)]
    link = next((image.url for image in made if image.picture and image.url), None)
    response.content = link or response.images[0]["url"]
    problems = [image.problem for image in made if image.picture is None and image.problem]
    if problems or failures:
        response.metadata["images_failed"] = [*problems, *(str(error) for error in failures)]
    return response


async def _prepare(call: Call, options: ImageOptions, settings: Settings) -> None:
    """All that can be refused before anything is paid, and the pictures to start from."""
    _keep_able(call, options, lambda it: check_pictures(it, len(options.references), masked=options.mask is not None))
    await anyio.to_thread.run_sync(check_output, settings)
    sources = [*options.references, *([options.mask] if options.mask else [])]
    pictures = await _load(call, sources, settings)
    mask = pictures.pop() if options.mask else None
    call.request = replace(call.request, pictures=tuple(pictures), mask=mask)
    _keep_able(call, options, lambda it: image_request(it, call.request))


def _keep_able(call: Call, options: ImageOptions, check: Callable[[Candidate], Any]) -> None:
    """
    Leave out fallback models of Settings that do not take what is asked for.

    Raises:
        InvalidRequest: A model that the caller named does not.
    """
    able: list[Candidate] = []
    for candidate in call.plan.candidates:
        try:
            check(candidate)
        except InvalidRequest:
            if options.own_fallbacks or candidate.requested == call.plan.requested:
                raise
        else:
            able.append(candidate)
    if not able:
        check(call.plan.candidates[0])
    call.plan = replace(call.plan, candidates=tuple(able))


async def _load(call: Call, sources: Sequence[str], settings: Settings) -> list[Picture]:
    """The pictures at the sources, fetched at once."""
    load = partial(load_picture, settings=settings, from_agent=call.scope.from_agent, folder=scope_folder(call.scope))
    found = await gather(*(partial(load, source) for source in sources))
    for one in found:
        if isinstance(one, Exception):
            raise one
    return [one for one in found if not isinstance(one, Exception)]


def _part(call: Call, n: int) -> Call:
    """One of several requests that the call makes at once."""
    request = replace(call.request, params={**call.request.params, "n": n})
    return replace(call, request=request, attempts=[], is_part=True)


async def _together(parts: Sequence[Call]) -> list[LLMResponse | LLMError]:
    """The answer to each request, or the error of one that failed."""
    found = await gather(*(partial(answer_of, part) for part in parts))
    for one in found:
        if isinstance(one, Exception) and not isinstance(one, LLMError):
            raise one
    return [one for one in found if isinstance(one, LLMResponse | LLMError)]


def _spent(parts: Sequence[Call]) -> int | None:
    """Nano-dollars over all requests; None when that of one is not known."""
    costs = [attempt.row.cost_nano for part in parts for attempt in part.attempts]
    return None if None in costs else sum(cost or 0 for cost in costs)


def _images(part: Call) -> tuple[MadeImage, ...]:
    answer = part.attempts[-1].answer
    return () if answer is None else answer.images


def _joined(call: Call, parts: Sequence[Call], found: Sequence[LLMResponse]) -> LLMResponse:
    """One answer to the call out of those to its requests."""
    first = found[0]
    if len(parts) == 1:
        return first
    usage: dict[str, int] = {}
    for response in found:
        for name, count in response.usage.items():
            usage[name] = usage.get(name, 0) + count
    nano = _spent(parts)
    if call.ledger is not None:
        answered = next(part for part in parts if part.attempts and part.attempts[-1].answer is not None)
        call.scope.pending.add(RecordedCall(call.call_id, answered.attempts[-1].row.attempt_id, first.model, nano))
    return replace(
        first,
        usage=usage,
        cost=to_usd(nano),
        latency_ms=max(response.latency_ms for response in found),
        metadata={
            **first.metadata,
            "attempts": [summary_of(each) for part in parts for each in part.attempts],
            "cost_is_lower_bound": any(each.row.cost_is_lower_bound for part in parts for each in part.attempts),
        },
        images=[image for response in found for image in response.images],
    )


async def _save_images(
    call: Call, options: ImageOptions, settings: Settings, attempt: Attempt, answer: Answer
) -> Mapping[str, Any]:
    """Save the images of an answer; returns what the ledger keeps of them."""
    name = options.file_name or f"image-{call.call_id.hex[-8:]}"
    save = partial(save_picture, settings=settings, name=name, folder=scope_folder(call.scope))
    for image in answer.images:
        if image.picture is not None:
            saved = await anyio.to_thread.run_sync(save, image.picture)
            attempt.images.append(_described(image, image.picture, saved, with_base64=options.with_base64))
    ids = [image_id(entry["path"], settings) or entry["path"] for entry in attempt.images]
    origins = [found for source in options.references if (found := image_id(source, settings))]
    return {"images": ids, **({"made_from": origins} if origins else {})}


def _described(image: MadeImage, picture: Picture, saved: Saved, *, with_base64: bool) -> dict[str, Any]:
    """A saved image as the answer shows it."""
    entry: dict[str, Any] = {
        "path": saved.path,
        "url": saved.url,
        "width": picture.width,
        "height": picture.height,
        "format": picture.format,
        "bytes": len(picture.data),
        "revised_prompt": image.revised_prompt,
    }
    if notes := [note for note in (image.problem, saved.note) if note]:
        entry["note"] = "; ".join(notes)
    if with_base64:
        entry["b64"] = base64.b64encode(picture.data).decode("ascii")
    return entry


async def look_at_images(call: Call, images: Any, settings: Settings, *, pass_through: bool = False) -> LLMResponse:
    """
    Let a model of a planned call look at images.

    Args:
        images: URL, path or data URI, or several of them.

        pass_through: Links go to the provider as they are, instead of the images themselves.
    """
    try:
        sources = _sources(images)
        if not sources or len(sources) > MAX_PICTURES:
            raise InvalidRequest(f"image_urls must be a list of 1 to {MAX_PICTURES} images")
        request = call.request
        links = [source for source in sources if pass_through and source.startswith("https://")]
        pictures = await _load(call, [source for source in sources if source not in links], settings)
        messages = attach_pictures(request.messages, links, request.params.get("detail")) if links else request.messages
        call.request = replace(request, messages=messages, pictures=tuple(pictures))
    except LLMError as error:
        await refuse_call(call, error)
        raise
    call.finish = partial(_count_savings, call)
    [result] = await _together([call])
    if isinstance(result, LLMError):
        raise result
    attempt = call.attempts[-1]
    result.metadata |= _sent_images(call, attempt)
    return result


def _sent_images(call: Call, attempt: Attempt) -> dict[str, Any]:
    """What the images were sent as, and what that has saved against sending them as they are."""
    fitted = call.request.fitted.get(attempt.candidate.requested, ())
    images = [
        {
            "source": original.source,
            "width": one.picture.width,
            "height": one.picture.height,
            "bytes": len(one.picture.data),
            "tokens": one.tokens,
            "raw_tokens": one.raw_tokens,
        }
        for original, one in zip(call.request.pictures, fitted, strict=True)
    ]
    saved, nano = _savings(attempt.candidate, fitted)
    return {"images": images, "image_tokens_saved": saved, "image_cost_saved": to_usd(nano)}


def _savings(candidate: Candidate, fitted: Sequence[Fitted]) -> tuple[int, int | None]:
    """Tokens that scaling down has saved, and nano-dollars; None when their price is unknown."""
    saved = sum((one.raw_tokens or 0) - (one.tokens or 0) for one in fitted if one.tokens is not None)
    rate = candidate.rates.prices.get("input")
    return saved, None if rate is None else to_nano(rate * saved)


async def _count_savings(call: Call, attempt: Attempt, _answer: Answer) -> Mapping[str, Any]:
    """What the ledger keeps of the images that a model has looked at."""
    fitted = call.request.fitted.get(attempt.candidate.requested, ())
    saved, nano = _savings(attempt.candidate, fitted)
    kept = {"images_seen": len(fitted), "image_tokens_saved": saved, "image_nano_saved": nano}
    return {name: value for name, value in kept.items() if value is not None}
