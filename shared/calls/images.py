"""Calls that make images or look at them: pictures in, parallel requests, files out, and the savings."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from shared.calls.call import Attempt, Call, names_of, summary_of
from shared.calls.flow import answer_of, refuse_call
from shared.config import Settings, output_dir
from shared.errors import DeadlineExceeded, InvalidRequest, LLMError
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
    What a call for images needs besides its request: the sources of its pictures, and the name of its files.

    `own_fallbacks`: the caller named the fallback models, so one that does not support the request is an error; a
    default fallback is left out instead.
    """

    references: tuple[str, ...] = ()
    mask: str | None = None
    file_name: str | None = None
    own_fallbacks: bool = True
    with_base64: bool = False


def image_options(kw: dict[str, Any], *, own_fallbacks: bool) -> ImageOptions:
    """Take the options of the call out of `kw`; what remains are parameters of the request."""
    return ImageOptions(
        references=_sources(kw.pop("reference_images", None) or ()),
        mask=kw.pop("mask", None),
        file_name=kw.pop("file_name", None),
        own_fallbacks=own_fallbacks,
        with_base64=kw.get("response_format") == "b64_json",
    )


def _sources(value: Any) -> tuple[str, ...]:
    """The sources of images, given as one or as several."""
    sources = (value,) if isinstance(value, str | Path) else tuple(value)
    return tuple(str(source) for source in sources)


def scope_folder(scope: Scope) -> str | None:
    """The subfolder of the output folder for a scope's labels; None if the scope has no labels."""
    if not scope.labels:
        return None
    named = "-".join(f"{name}-{value}" for name, value in sorted(scope.labels.items()))
    digest = hashlib.sha256(repr(sorted(scope.labels.items())).encode()).hexdigest()
    # Two labels may look the same without the characters that no folder name can contain.
    return f"{safe_name(named)[:60]}-{digest[:8]}"


def image_id(path: str, settings: Settings) -> str | None:
    """The id of a saved image in the ledger: its path below the output folder; None when it is elsewhere."""
    folder = output_dir(settings).rstrip("/")
    full = path.removeprefix("file://")
    if "://" not in folder:
        full = str(Path(full) if Path(full).is_absolute() else Path(folder, full))
    inner = full.removeprefix(f"{folder}/")
    return None if inner == full else inner.replace("\\", "/")


async def make_images(call: Call, options: ImageOptions, settings: Settings) -> LLMResponse:
    """
    Make the images of a planned call, save them, and return where they are.

    Raises:
        LLMError: No image was made; its `cost` is what was charged nevertheless.
    """
    try:
        await _prepare(call, options, settings)
        per = min(per_request(candidate, call.request) for candidate in call.plan.candidates)
    except LLMError as error:
        await refuse_call(call, error)
        raise
    call.finish = partial(_save_images, call, options, settings)
    count = call.request.params.get("n", 1)
    sizes = [min(per, count - done) for done in range(0, count, per)]
    call.progress.open_parts = len(sizes)
    parts = [call] if len(sizes) == 1 else [_part(call, n) for n in sizes]
    results = await _run_parts(parts)
    answered = [found for found in results if isinstance(found, LLMResponse)]
    failures = [found for found in results if isinstance(found, LLMError)]
    if not answered:
        failures[0].cost = to_usd(_spent(parts)) if len(parts) > 1 else failures[0].cost
        raise failures[0]
    response = _combined(call, parts, answered)
    made = [image for part in parts if part.attempts for image in _images(part)]
    link = next((image.url for image in made if image.picture and image.url), None)
    response.content = link or response.images[0]["url"]
    problems = [image.problem for image in made if image.picture is None and image.problem]
    if problems or failures:
        response.metadata["images_failed"] = [*problems, *(str(error) for error in failures)]
    return response


async def _prepare(call: Call, options: ImageOptions, settings: Settings) -> None:
    """Do every check that costs nothing, and load the pictures to start from."""
    _keep_able(call, options, lambda it: check_pictures(it, len(options.references), masked=options.mask is not None))
    await anyio.to_thread.run_sync(check_output, settings)
    sources = [*options.references, *([options.mask] if options.mask else [])]
    pictures = await _load(call, sources, settings)
    mask = pictures.pop() if options.mask else None
    call.request = replace(call.request, pictures=tuple(pictures), mask=mask)
    _keep_able(call, options, lambda it: image_request(it, call.request))


def _keep_able(call: Call, options: ImageOptions, check: Callable[[Candidate], Any]) -> None:
    """
    Leave out default fallback models that do not support the request.

    Raises:
        InvalidRequest: A model that the caller named does not support it.
    """
    able: list[Candidate] = []
    out: list[LLMError] = []
    for candidate in call.plan.candidates:
        try:
            check(candidate)
        except InvalidRequest as error:
            if call.plan.is_open:
                out.append(error)
                continue
            if options.own_fallbacks or candidate.requested == call.plan.requested:
                raise
        else:
            able.append(candidate)
    if not able:
        check(call.plan.candidates[0])
    call.plan = replace(call.plan, candidates=tuple(able), skipped=(*call.plan.skipped, *out))


async def _load(call: Call, sources: Sequence[str], settings: Settings) -> list[Picture]:
    """
    The pictures at the sources, loaded in parallel.

    Raises:
        DeadlineExceeded: They were not ready in time.
    """
    load = partial(load_picture, settings=settings, from_agent=call.scope.from_agent, folder=scope_folder(call.scope))
    try:
        with anyio.fail_after(call.seconds_left()):
            results = await gather(*(partial(load, source) for source in sources))
    except TimeoutError:
        raise DeadlineExceeded("The deadline passed before the images were ready") from None
    for result in results:
        if isinstance(result, Exception):
            raise result
    return [result for result in results if not isinstance(result, Exception)]


def _part(call: Call, n: int) -> Call:
    """One of several parallel requests of the call, for `n` of its images."""
    request = replace(call.request, params={**call.request.params, "n": n})
    return replace(call, request=request, attempts=[], is_part=True)


async def _run_parts(parts: Sequence[Call]) -> list[LLMResponse | LLMError]:
    """The response to each part, or its error, in order."""
    results = await gather(*(partial(answer_of, part) for part in parts))
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, LLMError):
            raise result
    return [result for result in results if isinstance(result, LLMResponse | LLMError)]


def _spent(parts: Sequence[Call]) -> int | None:
    """The cost of all requests in nano-dollars; None when that of one is unknown."""
    costs = [attempt.row.cost_nano for part in parts for attempt in part.attempts]
    return None if None in costs else sum(cost or 0 for cost in costs)


def _images(part: Call) -> tuple[MadeImage, ...]:
    answer = part.attempts[-1].answer
    return () if answer is None else answer.images


def _combined(call: Call, parts: Sequence[Call], found: Sequence[LLMResponse]) -> LLMResponse:
    """One response for the call, made of the responses to its parts."""
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
        attempt = answered.attempts[-1]
        names = names_of(call, attempt.candidate, first.metadata["response_model"])
        call.scope.pending.add(
            RecordedCall(call.call_id, attempt.row.attempt_id, first.model, nano, names, usage, call.ledger.name)
        )
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
    """Save the images of an answer; returns the metadata that the ledger keeps."""
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
    """A saved image, for the response's `images`."""
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
    Carry out a planned call about images.

    Args:
        images: URL, path or data URI, or several of them.

        pass_through: Send https URLs to the provider as they are, instead of the images.
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
    [result] = await _run_parts([call])
    if isinstance(result, LLMError):
        raise result
    attempt = call.attempts[-1]
    result.metadata |= _sent_images(call, attempt)
    return result


def _sent_images(call: Call, attempt: Attempt) -> dict[str, Any]:
    """How the images were sent, and what scaling them down has saved."""
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
    """The tokens that scaling down has saved, and their price in nano-dollars; None when the price is unknown."""
    saved = sum((one.raw_tokens or 0) - (one.tokens or 0) for one in fitted if one.tokens is not None)
    rate = candidate.rates.prices.get("input")
    return saved, None if rate is None else to_nano(rate * saved)


async def _count_savings(call: Call, attempt: Attempt, _answer: Answer) -> Mapping[str, Any]:
    """The metadata that the ledger keeps about images sent to a model."""
    fitted = call.request.fitted.get(attempt.candidate.requested, ())
    saved, nano = _savings(attempt.candidate, fitted)
    kept = {"images_seen": len(fitted), "image_tokens_saved": saved, "image_nano_saved": nano}
    return {name: value for name, value in kept.items() if value is not None}
