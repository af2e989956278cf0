"""Calls that make images or look at them: pictures in, requests at once, files out, and what was saved on the way."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from shared.calls.call import Attempt, Call, summary_of
from shared.calls.flow import refuse_call, run_call
from shared.config import Settings, output_dir
from shared.errors import InvalidRequest, LLMError
from shared.images import Saved, check_output, load_picture, safe_name, save_picture
from shared.internal.money import to_nano, to_usd
from shared.internal.pending import PendingCalls, RecordedCall
from shared.models import check_pictures, image_request, per_request
from shared.providers import attach_pictures
from shared.scope import Scope
from shared.types import Candidate, LLMResponse, MadeImage, Picture

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
    Make the images of a planned call, save them, and tell where they are.

    Raises:
        LLMError: No image came; what was paid nevertheless is in its `cost`.
    """
    try:
        await _prepare(call, options, settings)
        per = min(per_request(candidate, call.request) for candidate in call.plan.candidates)
    except LLMError as error:
        await refuse_call(call, error)
        raise
    wanted = call.request.params.get("n", 1)
    parts = [_part(call, min(per, wanted - done), alone=wanted <= per) for done in range(0, wanted, per)]
    results: list[LLMResponse | LLMError] = await _together(parts)
    answered = [(part, found) for part, found in zip(parts, results, strict=True) if isinstance(found, LLMResponse)]
    failures = [found for found in results if isinstance(found, LLMError)]
    if len(parts) > 1:
        await _count_as_one(call, parts, won=[part for part, _ in answered])
    if not answered:
        failures[0].cost = to_usd(_spent(parts)) if len(parts) > 1 else failures[0].cost
        raise failures[0]
    made = [image for part, _ in answered for image in _images(part)]
    response = _joined(call, parts, [found for _, found in answered])
    await _deliver(call, answered[0][0].attempts[-1], response, made, options, settings)
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
    found: list[Picture | LLMError | None] = [None] * len(sources)

    async def load(place: int, source: str) -> None:
        try:
            found[place] = await load_picture(
                source, settings=settings, from_agent=call.scope.from_agent, folder=scope_folder(call.scope)
            )
        except LLMError as error:
            found[place] = error

    async with anyio.create_task_group() as tasks:
        for place, source in enumerate(sources):
            tasks.start_soon(load, place, source)
    for one in found:
        if isinstance(one, LLMError):
            raise one
    return [one for one in found if isinstance(one, Picture)]


def _part(call: Call, n: int, *, alone: bool) -> Call:
    """The call, or one of several requests that it needs."""
    if alone:
        return call
    request = replace(call.request, params={**call.request.params, "n": n})
    # A journal of its own: what an event may claim is the whole call.
    return replace(call, request=request, attempts=[], scope=replace(call.scope, pending=PendingCalls()))


async def _together(parts: Sequence[Call]) -> list[LLMResponse | LLMError]:
    results: list[Any] = [None] * len(parts)

    async def run(place: int, part: Call) -> None:
        try:
            async for item in run_call(part):
                results[place] = item
        except LLMError as error:
            results[place] = error

    async with anyio.create_task_group() as tasks:
        for place, part in enumerate(parts):
            tasks.start_soon(run, place, part)
    return results


async def _count_as_one(call: Call, parts: Sequence[Call], *, won: Sequence[Call]) -> None:
    """Several requests at once were one call: their rows say so, however each of them ended."""
    every = [attempt for part in parts for attempt in part.attempts]
    counted = won[0].attempts[-1] if won else (every[-1] if every else None)
    unpriced = next((attempt for attempt in every if attempt.row["cost_nano"] is None), None)
    for number, attempt in enumerate(every, start=1):
        attempt.row |= {
            "attempt_number": number,
            "calls": int(bool(won) and attempt is counted),
            "failed_calls": int(not won and attempt is counted),
            "unpriced_calls": int(attempt is unpriced),
        }
        if call.ledger is not None:
            await call.ledger.write("settle", attempt.row, call.scope.labels)


def _spent(parts: Sequence[Call]) -> int | None:
    """Nano-dollars over all requests; None when that of one is not known."""
    costs = [attempt.row["cost_nano"] for part in parts for attempt in part.attempts]
    return None if None in costs else sum(costs)


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
        won = next(part for part in parts if part.attempts and part.attempts[-1].answer is not None)
        recorded = RecordedCall(call.call_id, won.attempts[-1].row["attempt_id"], first.model, nano)
        call.scope.pending.add(recorded)
    told = [summary_of(attempt) for part in parts for attempt in part.attempts]
    return replace(
        first,
        usage=usage,
        cost=to_usd(nano),
        latency_ms=max(response.latency_ms for response in found),
        metadata={**first.metadata, "attempts": told},
    )


async def _deliver(
    call: Call,
    attempt: Attempt,
    response: LLMResponse,
    made: Sequence[MadeImage],
    options: ImageOptions,
    settings: Settings,
) -> None:
    """Save the images, and say in the answer and in the ledger what became of them."""
    folder = scope_folder(call.scope)
    name = options.file_name or f"image-{call.call_id.hex[-8:]}"
    for image in made:
        if image.picture is None:
            continue
        picture = image.picture
        saved = await anyio.to_thread.run_sync(_save, picture, settings, name, folder)
        entry = {
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
        if options.with_base64:
            entry["b64"] = base64.b64encode(picture.data).decode("ascii")
        response.images.append(entry)
    link = next((image.url for image in made if image.picture and image.url), None)
    response.content = link or response.images[0]["url"]
    ids = [image_id(entry["path"], settings) or entry["path"] for entry in response.images]
    origins = [found for source in options.references if (found := image_id(source, settings))]
    await _note(call, attempt, {"images": ids, **({"made_from": origins} if origins else {})})


def _save(picture: Picture, settings: Settings, name: str, folder: str | None) -> Saved:
    return save_picture(picture, settings=settings, name=name, folder=folder)


async def _note(call: Call, attempt: Attempt, metadata: dict[str, Any]) -> None:
    """Add to the ledger's row of the attempt that answered."""
    if call.ledger is not None:
        row = {"attempt_id": attempt.row["attempt_id"], "metadata": metadata}
        await call.ledger.write("metadata", row, call.scope.labels)


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
    [result] = await _together([call])
    if isinstance(result, LLMError):
        raise result
    await _tell_saving(call, result, call.attempts[-1])
    return result


async def _tell_saving(call: Call, response: LLMResponse, attempt: Attempt) -> None:
    """What the images were sent as, and what that has saved against sending them as they are."""
    fitted = call.request.fitted.get(attempt.candidate.requested, ())
    response.metadata["images"] = [
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
    saved = sum((one.raw_tokens or 0) - (one.tokens or 0) for one in fitted if one.tokens is not None)
    rate = attempt.candidate.rates.prices.get("input")
    nano = None if rate is None else to_nano(rate * saved)
    response.metadata |= {"image_tokens_saved": saved, "image_cost_saved": to_usd(nano)}
    noted = {"images_seen": len(fitted), "image_tokens_saved": saved, "image_nano_saved": nano}
    await _note(call, attempt, {name: value for name, value in noted.items() if value is not None})
