"""Requests for images on the wire of each provider, and what is made of their answers, good and bad."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

import pytest

from shared import errors
from shared.types import Candidate, Picture, Request, TaskType, Usage
from tests.support.loopback import Asked, Reply, Told, ask_for, candidate, host_of, http
from tests.support.pictures import image
from tests.support.web import Web
from tests.support.wires import KEY, said

PNG = image(size=(32, 24))
B64 = base64.b64encode(PNG).decode()
PICTURE = Picture(image("jpeg", (16, 16)), "jpeg", 16, 16)
MASK = Picture(image(size=(16, 16)), "png", 16, 16)
USAGE = {
    "input_tokens": 50,
    "input_tokens_details": {"image_tokens": 40, "text_tokens": 10},
    "output_tokens": 272,
    "total_tokens": 322,
}


def openai(*data: Any, **more: Any) -> Reply:
    """An answer of images/generations."""
    return http({"created": 1, "data": list(data), **more})


def wants(
    prompt: str = "a cat", pictures: tuple[Picture, ...] = (), mask: Picture | None = None, **params: Any
) -> Request:
    """A request for images."""
    messages = [{"role": "user", "content": prompt}]
    return Request(TaskType.IMAGE_GENERATION, messages, params, pictures=pictures, mask=mask)


def who(name: str, **given: Any) -> Candidate:
    """The model of that name, with a key."""
    provider, _, model = name.partition("/")
    return candidate(provider, model, **{"api_key": KEY, **given})


def ask(name: str, request: Request, *replies: Reply, **given: Any) -> Told:
    """Ask a model for images."""
    return ask_for(who(name, **given), request, *replies)


def form(asked: Asked) -> dict[str, list[tuple[str | None, bytes]]]:
    """The parts of a multipart form by name: file name and content."""
    head = f"Content-Type: {asked.headers['content-type']}\r\n\r\n".encode()
    parts: dict[str, list[tuple[str | None, bytes]]] = {}
    for part in BytesParser(policy=HTTP).parsebytes(head + asked.content).iter_parts():
        payload = part.get_payload(decode=True)
        assert isinstance(payload, bytes)
        name = str(part.get_param("name", "", "content-disposition"))
        parts.setdefault(name, []).append((part.get_filename(), payload))
    return parts


def test_openai_generation() -> None:
    """gpt-image models get their own words and no response_format, and their counts are read apart."""
    told = ask("openai/gpt-image-2", wants(size="1024x1536", quality="hd"), openai({"b64_json": B64}, usage=USAGE))
    [asked] = told.asked
    assert (asked.method, host_of(asked), asked.target) == ("POST", "api.openai.com", "/v1/images/generations")
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.body == {"model": "gpt-image-2", "prompt": "a cat", "size": "1024x1536", "n": 1, "quality": "high"}
    [made] = told.answer.images
    assert made.picture is not None
    assert (made.picture.width, made.picture.height, made.picture.format) == (32, 24, "png")
    assert told.answer.usage == Usage(50, 272, units={"input_image": 40, "output_image": 272}, source="provider")


def test_openai_parameters() -> None:
    """Background, format and what else the model takes are passed on."""
    request = wants(background="transparent", output_format="webp", output_compression=80, user="u")
    [asked] = ask("openai/gpt-image-2", request, openai({"b64_json": B64})).asked
    assert {name: asked.body[name] for name in ("background", "output_format", "output_compression", "user")} == {
        "background": "transparent",
        "output_format": "webp",
        "output_compression": 80,
        "user": "u",
    }


def test_openai_edit_is_a_form() -> None:
    """Reference images and the mask go as files, in their order; the same request has the same bytes."""
    request = wants(pictures=(PICTURE, PICTURE), mask=MASK, quality="low")
    [asked] = ask("openai/gpt-image-2", request, openai({"b64_json": B64})).asked
    assert asked.target == "/v1/images/edits"
    parts = form(asked)
    assert parts["image[]"] == [("image-0.jpeg", PICTURE.data), ("image-1.jpeg", PICTURE.data)]
    assert parts["mask"] == [("mask-2.png", MASK.data)]
    assert {name: parts[name][0][1].decode() for name in ("model", "prompt", "size", "quality", "n")} == {
        "model": "gpt-image-2",
        "prompt": "a cat",
        "size": "auto",
        "quality": "low",
        "n": "1",
    }
    assert ask("openai/gpt-image-2", request, openai({"b64_json": B64})).asked[0].content == asked.content


def test_one_reference_has_the_old_name() -> None:
    """A single reference image is called `image`, as all OpenAI-compatible servers know it."""
    [asked] = ask("openai/gpt-image-2", wants(pictures=(PICTURE,)), openai({"b64_json": B64})).asked
    assert list(form(asked)) == ["model", "prompt", "size", "n", "quality", "image"]


@pytest.mark.parametrize(
    ("base", "target", "model"),
    [
        ("https://x.openai.azure.com", "/openai/deployments/gpt-image-2/images/generations", None),
        ("https://x.openai.azure.com/openai/v1", "/openai/v1/images/generations", "gpt-image-2"),
    ],
)
def test_azure(base: str, target: str, model: str | None) -> None:
    """Azure has its own key header and address; a deployment's address already says the model."""
    [asked] = ask("azure/gpt-image-2", wants(), openai({"b64_json": B64}), api_base=base).asked
    assert (host_of(asked), asked.target.partition("?")[0]) == ("x.openai.azure.com", target)
    assert ("api-version=" in asked.target) == (model is None)
    assert asked.headers["api-key"] == KEY
    assert asked.body.get("model") == model


def test_ones_own_endpoint_gets_what_was_asked() -> None:
    """A model that no table knows is sent what the caller gave, at the caller's address."""
    request = wants(size="768x512", quality="hd", seed=7)
    [asked] = ask("custom/flux-2", request, openai({"b64_json": B64}), api_base="http://own.example:8000/v1").asked
    assert (host_of(asked), asked.target) == ("own.example", "/v1/images/generations")
    assert asked.body == {"model": "flux-2", "prompt": "a cat", "size": "768x512", "n": 1, "quality": "hd", "seed": 7}


def test_xai_and_together() -> None:
    """Their dialects of OpenAI's endpoint: a ratio, or width and height; and data instead of links."""
    [asked] = ask("xai/grok-imagine-image", wants(size="1792x1024", n=2), openai({"b64_json": B64})).asked
    assert host_of(asked) == "api.x.ai"
    assert asked.body == {
        "model": "grok-imagine-image",
        "prompt": "a cat",
        "aspect_ratio": "16:9",
        "n": 2,
        "response_format": "b64_json",
    }
    [asked] = ask("together_ai/black-forest-labs/FLUX.2", wants(size="1024x768"), openai({"b64_json": B64})).asked
    assert (asked.body["width"], asked.body["height"], asked.body["response_format"]) == (1024, 768, "base64")


def gemini(*parts: Any, finish: str = "STOP", **more: Any) -> Reply:
    """An answer of generateContent."""
    found = {"content": {"parts": list(parts), "role": "model"}, "finishReason": finish}
    return http({"candidates": [found], "modelVersion": "m-1", "responseId": "r-1", **more})


GEMINI_USAGE = {
    "promptTokenCount": 1300,
    "candidatesTokenCount": 1150,
    "thoughtsTokenCount": 20,
    "totalTokenCount": 2470,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 10}, {"modality": "IMAGE", "tokenCount": 1290}],
    "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 1120}],
}


def test_gemini() -> None:
    """Gemini is asked by generateContent, references inline; the image, the text and the counts are told apart."""
    request = wants(pictures=(PICTURE,), size="2048x2048")
    inline = {"inlineData": {"mimeType": "image/png", "data": B64}}
    told = ask(
        "gemini/gemini-3.1-flash-image",
        request,
        gemini({"text": "hm", "thought": True}, {"text": "Here."}, inline, usageMetadata=GEMINI_USAGE),
    )
    [asked] = told.asked
    assert host_of(asked) == "generativelanguage.googleapis.com"
    assert asked.target == "/v1beta/models/gemini-3.1-flash-image:generateContent"
    assert asked.headers["x-goog-api-key"] == KEY
    assert asked.body == {
        "contents": [
            {
                "role": "user",
                "parts": [
                    {"inlineData": {"mimeType": "image/jpeg", "data": base64.b64encode(PICTURE.data).decode()}},
                    {"text": "a cat"},
                ],
            }
        ],
        "generationConfig": {
            "responseModalities": ["IMAGE", "TEXT"],
            "imageConfig": {"aspectRatio": "1:1", "imageSize": "2K"},
        },
    }
    assert told.answer.text == "Here."
    assert len(told.answer.images) == 1
    assert told.answer.usage == Usage(
        1300, 1170, reasoning_tokens=20, units={"input_image": 1290, "output_image": 1120}, source="provider"
    )


@pytest.mark.parametrize(
    "reply",
    [
        http({"promptFeedback": {"blockReason": "SAFETY", "blockReasonMessage": "No."}, "usageMetadata": {}}),
        gemini(finish="IMAGE_SAFETY"),
        gemini(finish="IMAGE_PROHIBITED_CONTENT"),
    ],
    ids=["prompt", "image", "prohibited"],
)
def test_gemini_blocks(reply: Reply) -> None:
    """What Gemini's rules hold back is ContentBlocked, before or after it was drawn."""
    told = ask("gemini/gemini-3.1-flash-image", wants(), reply)
    assert type(told.failure) is errors.ContentBlocked


def test_gemini_answers_with_text() -> None:
    """An answer without an image is told with what it said instead, and has been paid for."""
    told = ask("gemini/gemini-3.1-flash-image", wants(), gemini({"text": "I cannot draw."}, usageMetadata=GEMINI_USAGE))
    assert type(told.failure) is errors.BadResponse
    assert 'no image, but the text "I cannot draw."' in told.failure.message
    assert told.failure.outcome == "completed"
    assert told.failure.usage is not None


def test_openrouter() -> None:
    """OpenRouter draws in a chat answer, and says what it cost."""
    message = {"role": "assistant", "content": "", "images": [{"image_url": {"url": f"data:image/png;base64,{B64}"}}]}
    body = {
        "id": "g-1",
        "model": "google/x-image",
        "choices": [{"message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 6, "completion_tokens": 1299, "cost": 0.0387},
    }
    told = ask("openrouter/google/x-image", wants(size="16:9", pictures=(PICTURE,)), http(body))
    [asked] = told.asked
    assert (host_of(asked), asked.target) == ("openrouter.ai", "/api/v1/chat/completions")
    assert asked.body["modalities"] == ["image", "text"]
    assert asked.body["image_config"] == {"aspect_ratio": "16:9"}
    assert [part["type"] for part in asked.body["messages"][0]["content"]] == ["text", "image_url"]
    assert len(told.answer.images) == 1
    assert str(told.answer.reported_cost) == "0.0387"


def test_stability() -> None:
    """Stability takes a form without files; its one image comes in base64."""
    request = wants(size="16:9", output_format="webp", negative_prompt="dogs")
    told = ask("stability/stable-image-core", request, http({"image": B64, "finish_reason": "SUCCESS", "seed": 1}))
    [asked] = told.asked
    assert (host_of(asked), asked.target) == ("api.stability.ai", "/v2beta/stable-image/generate/core")
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert {name: found[0][1].decode() for name, found in form(asked).items()} == {
        "prompt": "a cat",
        "output_format": "webp",
        "aspect_ratio": "16:9",
        "negative_prompt": "dogs",
    }
    assert len(told.answer.images) == 1


def test_stability_names_its_sd3_models() -> None:
    """One endpoint serves all of Stable Diffusion 3, so the form says which."""
    [asked] = ask("stability/sd3.5-medium", wants(), http({"image": B64})).asked
    assert form(asked)["model"][0][1] == b"sd3.5-medium"


def test_fal_and_recraft(web: Web) -> None:
    """Providers that LiteLLM's configs know are asked in their words, and their links are followed at once."""
    web.everywhere = PNG
    reply = http({"images": [{"url": "https://v3.fal.media/files/a.png"}], "seed": 1})
    told = ask("fal_ai/fal-ai/flux-pro/v1.1", wants(size="1792x1024"), reply)
    [asked] = told.asked
    assert (host_of(asked), asked.target) == ("fal.run", "/fal-ai/flux-pro/v1.1")
    assert asked.headers["authorization"] == f"Key {KEY}"
    assert asked.body == {"prompt": "a cat", "image_size": "landscape_16_9"}
    assert told.answer.images[0].url == "https://v3.fal.media/files/a.png"
    told = ask("recraft/recraftv3", wants(n=2), http({"data": [{"url": "https://img.recraft.ai/b.png"}]}))
    [asked] = told.asked
    assert (host_of(asked), asked.target) == ("external.api.recraft.ai", "/v1/images/generations")
    assert asked.body == {"prompt": "a cat", "model": "recraftv3", "size": "1024x1024", "n": 2}
    assert web.asked == ["v3.fal.media/files/a.png", "img.recraft.ai/b.png"]


def test_aiml_and_dashscope(web: Web) -> None:
    """Models of theirs that no table of ours knows are asked in LiteLLM's words for them."""
    web.everywhere = PNG
    told = ask("aiml/flux/schnell", wants(size="512x768"), http({"images": [{"url": "https://cdn.aimlapi.com/a.png"}]}))
    [asked] = told.asked
    assert (host_of(asked), asked.target) == ("api.aimlapi.com", "/v1/images/generations")
    assert asked.body["image_size"] == {"width": 512, "height": 768}
    output = {"choices": [{"message": {"content": [{"image": "https://oss.aliyuncs.com/b.png"}]}}]}
    told = ask("dashscope/qwen-image-2.0", wants(size="1024x1024"), http({"output": output}))
    [asked] = told.asked
    assert host_of(asked) == "dashscope-intl.aliyuncs.com"
    assert asked.body["parameters"] == {"size": "1024*1024"}
    assert web.asked == ["cdn.aimlapi.com/a.png", "oss.aliyuncs.com/b.png"]


def test_a_link_is_downloaded_at_once(web: Web) -> None:
    """A provider's link ends within the hour, so the image is fetched with the answer; its own words are kept."""
    web.pages["cdn.example/a.png"] = PNG
    item = {"url": "https://cdn.example/a.png?sig=abc", "revised_prompt": "A ginger cat"}
    [made] = ask("custom/x", wants(), openai(item), api_base="https://own.example/v1").answer.images
    assert made.picture is not None
    assert (made.picture.width, made.url, made.revised_prompt) == (32, item["url"], "A ginger cat")


@pytest.mark.parametrize(
    ("item", "why"),
    [
        ({"b64_json": base64.b64encode(b"<svg/>").decode()}, "not an image"),
        ({"b64_json": "no base64 at all!"}, "it is empty"),
        ({"b64_json": ""}, "it is empty"),
        ({}, "it is empty"),
        ({"url": "https://169.254.169.254/latest/"}, "no public address"),
        ({"url": "http://cdn.example/a.png"}, "https"),
        ({"url": "https://cdn.example/gone.png"}, "returned HTTP 404"),
    ],
)
def test_what_is_no_image_has_been_paid_for(item: dict[str, Any], why: str, web: Web) -> None:
    """A link to a private host or bytes that are no image are never passed on, and never requested again."""
    told = ask("openai/gpt-image-2", wants(), openai(item, usage=USAGE))
    error = told.failure
    assert type(error) is errors.BadResponse
    assert "no usable image" in error.message
    assert why in error.message
    assert error.outcome == "completed"
    assert error.usage == Usage(50, 272, units={"input_image": 40, "output_image": 272}, source="provider")
    assert not web.asked or "404" in why


def test_the_good_ones_are_kept() -> None:
    """One bad image of several does not spoil the others; it says what was wrong with it."""
    told = ask("openai/gpt-image-2", wants(n=2), openai({"b64_json": "AAAA"}, {"b64_json": B64}, usage=USAGE))
    bad, good = told.answer.images
    assert bad.picture is None
    assert "not an image" in str(bad.problem)
    assert good.picture is not None


@pytest.mark.parametrize(
    ("reply", "kind", "outcome"),
    [
        (openai(usage=USAGE), errors.BadResponse, "completed"),
        (http({"created": 1}), errors.BadResponse, "unknown"),
        (http("<html>"), errors.BadResponse, "unknown"),
        (http(said("Your request was rejected by the safety system.", code="moderation_blocked"), status=400),
         errors.ContentBlocked, "rejected"),
        (http(said("Invalid size"), status=400), errors.InvalidRequest, "rejected"),
        (http(said("slow down"), status=429), errors.RateLimitError, "rejected"),
        (http(said("no"), status=401), errors.AuthenticationError, "rejected"),
        (http(said("broke"), status=500), errors.ProviderUnavailable, "unknown"),
        (Reply(b"", "reset"), errors.ProviderUnavailable, "unknown"),
    ],
)  # fmt: skip
def test_errors(reply: Reply, kind: type[errors.LLMError], outcome: str) -> None:
    """A failure keeps its kind, and says whether it may have been charged."""
    error = ask("openai/gpt-image-2", wants(), reply).failure
    assert type(error) is kind
    assert error.outcome == outcome
    assert KEY not in str(error)


def test_no_key_no_request() -> None:
    """Without a key nothing is sent."""
    told = ask("openai/gpt-image-2", wants(), openai({"b64_json": B64}), api_key=None)
    assert type(told.failure) is errors.AuthenticationError
    assert told.asked == []


@pytest.mark.parametrize("name", ["stream", "api_base", "model"])
def test_what_is_no_parameter(name: str) -> None:
    """What belongs to the call or the transport is no parameter of a request for images."""
    told = ask(
        "custom/x", replace(wants(), params={name: "x"}), openai({"b64_json": B64}), api_base="https://own.example/v1"
    )
    assert type(told.failure) is errors.InvalidRequest
    assert f"does not take {name}" in told.failure.message
    assert told.asked == []


def test_json_is_what_was_meant() -> None:
    """A prompt in any script arrives as it is."""
    [asked] = ask("openai/gpt-image-2", wants("Eine Katze, 猫 🐈"), openai({"b64_json": B64})).asked
    assert json.loads(asked.content)["prompt"] == "Eine Katze, 猫 🐈"
