"""Images looked at through the client: sent once, as data, at the size that the model makes use of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared import errors
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient
from tests.support.ledger_rows import records
from tests.support.pictures import image
from tests.support.provider_double import Double, Usage
from tests.support.web import Web

GPT, GEMINI, VISION = "openai/gpt-image-2", "gemini/gemini-3.1-flash-image", "openai/gpt-5.4-mini"
ASK = [{"role": "user", "content": "What is this?"}]


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output folder."""
    folder = tmp_path / "out"
    monkeypatch.setenv("AGENTSWARM_OUTPUT_DIR", str(folder))
    return folder


def test_the_images_stand_in_the_last_of_the_users_messages(hosted: Double, web: Web) -> None:
    """Images go once, as data, into the last message of the user; nobody but us fetches a URL."""
    web.pages["img.example/a.jpg"] = image("jpeg")
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "At what?"},
        {"role": "user", "content": "At these."},
    ]
    response = LLMClient().vision_completion(messages, ["https://img.example/a.jpg", "https://img.example/a.jpg"])
    sent = hosted.requests[0].body["messages"]
    assert [type(message["content"]) for message in sent] == [str, str, str, list]
    assert [part["type"] for part in sent[3]["content"]] == ["text", "image_url", "image_url"]
    assert all(part["image_url"]["url"].startswith("data:image/") for part in sent[3]["content"][1:])
    assert "img.example" not in json.dumps(hosted.requests[0].body)
    assert response.content == "Hello from gpt-5.4-mini."
    assert messages[3] == {"role": "user", "content": "At these."}


@pytest.mark.parametrize("model", ["anthropic/claude-haiku-4-5", "gemini/gemini-3.1-flash-lite", VISION])
def test_every_provider_sees_the_same(model: str, hosted: Double, out: Path) -> None:
    """The same image goes to each provider in its own words."""
    path = LLMClient().generate_image("a cat").images[0]["path"]
    hosted.reset()
    response = LLMClient().vision_completion(ASK, [path], model=model)
    assert response.model == model
    assert len(hosted.requests) == 1
    assert response.metadata["images"][0]["source"] == Path(path).name


def test_a_photo_costs_what_the_model_can_use(hosted: Double, tmp_path: Path, ledger: Ledger) -> None:
    """A 4000 x 3000 photo is scaled down, and what that has saved is told in tokens and US$, and recorded."""
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(image("jpeg", (4000, 3000)))
    response = LLMClient().vision_completion(ASK, [photo], model="openai/gpt-5.5")
    [seen] = response.metadata["images"]
    assert seen["width"] / seen["height"] == pytest.approx(4 / 3, rel=0.01)
    assert (seen["width"], seen["tokens"], seen["raw_tokens"]) == (1835, 2993, 11868)
    saved = seen["raw_tokens"] - seen["tokens"]
    assert response.metadata["image_tokens_saved"] == saved
    assert response.metadata["image_cost_saved"] == pytest.approx(saved * 5e-6)
    [row] = records(ledger)
    assert row["metadata"] == {"images_seen": 1, "image_tokens_saved": saved, "image_nano_saved": saved * 5000}
    assert 0 < row["bound_nano"] - 128_000 * 30_000 < 20_000_000


def test_a_fallback_is_shown_what_it_can_use(hosted: Double, tmp_path: Path) -> None:
    """Each model gets the picture as it needs it, from the original."""
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(image("jpeg", (4000, 3000)))
    hosted.always("anthropic", error="overloaded")
    client = LLMClient(max_retries=0)
    response = client.vision_completion(ASK, [photo], model="anthropic/claude-haiku-4-5", fallback_models=[VISION])
    assert response.model == VISION
    assert len(hosted.requests) == 2
    assert response.metadata["images"][0]["source"] == "photo.jpg"


def test_detail(hosted: Double, tmp_path: Path) -> None:
    """detail="low" is cheap: the provider is told, and gets a small image."""
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(image("jpeg", (4000, 3000)))
    response = LLMClient().vision_completion(ASK, [photo], detail="low", max_tokens=20)
    part = hosted.requests[0].body["messages"][0]["content"][1]
    assert part["image_url"]["detail"] == "low"
    assert response.metadata["images"][0]["width"] <= 512
    assert "detail" not in hosted.requests[0].body


def test_pass_through(hosted: Double, web: Web) -> None:
    """Only on demand does a link go to the provider as it is."""
    response = LLMClient().vision_completion(ASK, ["https://img.example/a.png"], pass_through=True)
    content = hosted.requests[0].body["messages"][0]["content"]
    assert content[1] == {"type": "image_url", "image_url": {"url": "https://img.example/a.png"}}
    assert web.asked == []
    assert response.metadata["images"] == []


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"model": "openai/gpt-image-2"}, "does not look at images"),
        ({"model": "deepseek/deepseek-v4-pro"}, "does not look at images.*openai/gpt-5.4-mini"),
        ({"model": "local/smollm2-135m"}, "does not look at images"),
        ({"image_urls": []}, "1 to 16 images"),
        ({"image_urls": ["https://img.example/a.png"] * 17}, "1 to 16 images"),
        ({"image_urls": ["https://img.example/gone.png"]}, "HTTP 404"),
        ({"image_urls": ["https://169.254.169.254/"]}, "no public address"),
        ({"detail": "huge"}, "detail must be"),
        ({"messages": []}, "messages must be"),
        ({"stream": True}, "does not take stream"),
    ],
)
def test_vision_refused_before_anything_is_paid(
    params: dict[str, Any], message: str, hosted: Double, web: Web, ledger: Ledger
) -> None:
    """What no model could look at is refused before a request is sent."""
    web.pages["img.example/a.png"] = image()
    with pytest.raises(errors.LLMError, match=message):
        LLMClient().vision_completion(**{"messages": ASK, "image_urls": ["https://img.example/a.png"], **params})
    assert hosted.requests == []


def test_counts_that_nobody_gave(hosted: Double, tmp_path: Path) -> None:
    """Without the provider's usage the estimate counts the images too."""
    photo = tmp_path / "photo.png"
    photo.write_bytes(image())
    body = {"id": "x", "model": "m", "choices": [{"message": {"role": "assistant", "content": "A cat."}, "index": 0}]}
    hosted.reply("openai", body=body, usage=Usage(1, 1))
    response = LLMClient().vision_completion(ASK, [photo])
    assert response.metadata["cost_source"] == "counted"
    assert response.usage["prompt_tokens"] > 800
