"""Images through the client: made, saved, billed once, and never paid for twice."""

from __future__ import annotations

import asyncio
import base64
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shared import errors
from shared.analytics import get_llm_costs, record_event
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient, get_llm_client
from shared.scope import scope
from shared.types import AnalyticsEvent, EventType, ModelConfig, TaskType
from tests.support.ledger_rows import records
from tests.support.pictures import image
from tests.support.provider_double import Double, Fault
from tests.support.web import Web

GPT, GEMINI, VISION = "openai/gpt-image-2", "gemini/gemini-3.1-flash-image", "openai/gpt-5.4-mini"
ASK = [{"role": "user", "content": "What is this?"}]


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output folder."""
    folder = tmp_path / "out"
    monkeypatch.setenv("AGENTSWARM_OUTPUT_DIR", str(folder))
    return folder


def test_an_image_is_made_saved_and_billed(hosted: Double, out: Path, ledger: Ledger) -> None:
    """The answer says where the image is and what it cost; the ledger has one call with that cost."""
    response = LLMClient().generate_image("a cat", size="1024x1536", quality="low")
    [made] = response.images
    assert made == {
        "path": made["path"],
        "url": Path(made["path"]).as_uri(),
        "width": 1024,
        "height": 1536,
        "format": "png",
        "bytes": Path(made["path"]).stat().st_size,
        "revised_prompt": None,
    }
    assert Path(made["path"]).parent == out
    with Image.open(made["path"]) as opened:
        assert (opened.size, opened.format) == ((1024, 1536), "PNG")
    assert response.content == made["url"]
    assert (response.model, response.provider) == (GPT, "openai")
    [bill] = hosted.billed
    assert response.usage["completion_tokens"] == bill.usage.output == 158
    assert response.cost == pytest.approx((bill.usage.input * 5 + 158 * 30) / 1e6)
    costs = get_llm_costs()
    assert costs["calls_by_model"] == {GPT: 1}
    assert costs["total_cost"] == response.cost
    [row] = records(ledger)
    assert (row["operation"], row["status"], row["cost_source"]) == ("image_generation", "ok", "table")
    assert row["bound_nano"] >= row["cost_nano"]
    assert row["metadata"] == {"images": [Path(made["path"]).name]}


def test_the_dead_default_of_the_guide(hosted: Double, out: Path) -> None:
    """dall-e-3 is shut down; its successor is used, in its own words, and the answer says so."""
    response = LLMClient().generate_image("a city", model="dall-e-3", size="1024x1024", quality="standard")
    assert response.model == GPT
    assert response.metadata["note"] == "dall-e-3 was shut down; openai/gpt-image-2 was used"
    assert hosted.requests[0].body["quality"] == "medium"
    assert "response_format" not in hosted.requests[0].body


def test_async_is_the_same(hosted: Double, out: Path) -> None:
    """agenerate_image and avision_completion are the same calls, awaited."""

    async def both() -> tuple[str, str]:
        client = LLMClient()
        made = await client.agenerate_image("a cat", n=2)
        seen = await client.avision_completion(ASK, [made.images[1]["path"]])
        return made.content, seen.content

    link, said = asyncio.run(both())
    assert link.startswith("file://")
    assert said == "Hello from gpt-5.4-mini."


def test_an_edit_starts_from_a_saved_image(hosted: Double, out: Path, ledger: Ledger) -> None:
    """A saved image is passed on by its path or its file: URL; the ledger knows what was made from what."""
    client = LLMClient()
    first = client.generate_image("a cat", file_name="cat")
    second = client.generate_image("with a hat", reference_images=[first.images[0]["path"]], file_name="cat")
    client.generate_image("and a bow", reference_images=second.content, mask=second.images[0]["path"])
    assert [request.operation for request in hosted.requests] == ["images", "edits", "edits"]
    assert [name for name, _ in hosted.requests[2].body["files"]] == ["image", "mask"]
    found = [row["metadata"] for row in records(ledger)]
    assert found[0] == {"images": ["cat.png"]}
    assert found[1] == {"images": ["cat-2.png"], "made_from": ["cat.png"]}
    assert found[2]["made_from"] == ["cat-2.png"]


def test_several_images_of_a_model_that_gives_one(hosted: Double, out: Path, ledger: Ledger) -> None:
    """n requests go out at once; they are n attempts of one call with one bill."""
    response = LLMClient().generate_image("a cat", model=GEMINI, n=3)
    assert len({made["path"] for made in response.images}) == 3
    assert len(hosted.requests) == 3
    found = records(ledger)
    assert sorted(row["attempt_number"] for row in found) == [1, 2, 3]
    assert len({row["call_id"] for row in found}) == 1
    assert response.cost == pytest.approx(sum(row["cost_nano"] for row in found) / 1e9)
    costs = get_llm_costs()
    assert (costs["total_calls"], costs["failed_calls"], costs["unpriced_calls"]) == (1, 0, 0)
    assert costs["total_cost"] == pytest.approx(response.cost)
    assert response.usage["completion_tokens"] == 3 * 1290
    assert len(response.metadata["attempts"]) == 3


def test_the_good_ones_are_delivered(hosted: Double, out: Path, ledger: Ledger) -> None:
    """Of several images some may fail: the others are delivered, the rest is explained, and the call is no failure."""
    hosted.reply("gemini", error="content_policy")
    response = LLMClient().generate_image("a cat", model=GEMINI, n=3)
    assert len(response.images) == 2
    [why] = response.metadata["images_failed"]
    assert "Nothing was charged" in why
    costs = get_llm_costs()
    assert (costs["total_calls"], costs["failed_calls"]) == (1, 0)
    assert [row["status"] for row in records(ledger)].count("ok") == 2


def test_when_all_fail_the_call_has_failed_once(hosted: Double, out: Path) -> None:
    """Several requests that all fail are one failed call, with its own error."""
    hosted.always("gemini", error="content_policy")
    with pytest.raises(errors.LLMError):
        LLMClient(max_retries=0).generate_image("a cat", model=GEMINI, n=3)
    assert (get_llm_costs()["total_calls"], get_llm_costs()["failed_calls"]) == (0, 1)


@pytest.mark.parametrize("n", [1, 3])
def test_an_event_claims_the_whole_call(n: int, hosted: Double, out: Path) -> None:
    """A tool that also records what the client returned, as the guide has it, counts nothing twice."""
    with scope(tool="Own"):
        response = get_llm_client().generate_image("a cat", model=GEMINI, n=n)
        told = {"model": response.model, "cost": response.cost, "task_type": "image_generation"}
        record_event(AnalyticsEvent(event_type=EventType.LLM_COST, tool_name="Own", metadata=told))
    assert get_llm_costs()["total_calls"] == 1
    assert get_llm_costs()["total_cost"] == pytest.approx(response.cost)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ({"fault": Fault.STALL_HEADERS}, errors.ProviderTimeout),
        ({"error": "server"}, errors.ProviderUnavailable),
        ({"fault": Fault.RESET_BEFORE_HEADERS}, errors.ProviderUnavailable),
    ],
    ids=["slow", "500", "reset"],
)
def test_what_may_be_paid_is_not_asked_for_again(
    reply: dict[str, Any], kind: type[errors.LLMError], hosted: Double, out: Path, ledger: Ledger
) -> None:
    """After a request whose outcome is unknown there is no retry and no fallback; its upper bound is reserved."""
    hosted.reply("openai", **reply)
    with pytest.raises(
        kind, match="may have been made, so the request is not retried: a retry would be charged again"
    ) as caught:
        LLMClient().generate_image("a cat", fallback_models=[GEMINI], timeout=0.5)
    assert len(hosted.requests) == 1
    [row] = records(ledger)
    assert (row["status"], row["cost_source"], row["cost_nano"]) == ("unsettled", "unknown", None)
    assert row["reserved_nano"] == row["bound_nano"] > 0
    assert math.isnan(caught.value.cost)
    assert get_llm_costs()["failed_calls"] == 1


@pytest.mark.parametrize("reply", [{"error": "rate_limit"}, {"error": "overloaded"}, {"error": "auth"}])
def test_what_was_turned_away_goes_to_the_next_model(reply: dict[str, Any], hosted: Double, out: Path) -> None:
    """A refusal that costs nothing lets the next model make the image."""
    hosted.always("openai", **reply)
    response = LLMClient(max_retries=0).generate_image("a cat", fallback_models=[GEMINI])
    assert response.model == GEMINI
    assert response.metadata["fallback_used"]


@pytest.mark.parametrize(
    "body",
    [{"created": 1, "data": []}, {"created": 1, "data": [{"b64_json": base64.b64encode(b"nothing").decode()}]}],
    ids=["empty", "junk"],
)
def test_a_paid_answer_without_an_image(body: Any, hosted: Double, out: Path, ledger: Ledger) -> None:
    """What came was paid for, so neither this model nor the next is asked again, and the cost is recorded."""
    hosted.reply("openai", body=body)
    with pytest.raises(errors.BadResponse, match="a retry would be charged again") as caught:
        LLMClient().generate_image("a cat", fallback_models=[GEMINI])
    assert len(hosted.requests) == 1
    [row] = records(ledger)
    assert (row["status"], row["cost_nano"]) == ("failed", row["bound_nano"])
    assert caught.value.cost > 0


def test_a_cancelled_request_reserves_its_bound(hosted: Double, out: Path, ledger: Ledger) -> None:
    """Who hangs up while an image is being made may still pay for it."""
    reply = hosted.reply("openai", fault=Fault.STALL_HEADERS)

    async def hang_up() -> None:
        making = asyncio.ensure_future(LLMClient().agenerate_image("a cat"))
        await asyncio.to_thread(reply.gate.reached.wait, 20)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making

    asyncio.run(hang_up())
    [row] = records(ledger)
    assert (row["status"], row["cost_source"]) == ("cancelled", "unknown")
    assert row["reserved_nano"] == row["bound_nano"] > 0


def test_unknown_price_is_not_zero(hosted: Double, out: Path) -> None:
    """An image by a model without a price costs NaN, and is counted as unpriced."""
    response = LLMClient().generate_image("a cat", model="xai/grok-imagine-image-99")
    assert math.isnan(response.cost)
    assert get_llm_costs()["unpriced_calls"] == 1


def test_missing_usage_is_unknown(hosted: Double, out: Path) -> None:
    """A model that is charged by tokens and tells none is not free, and is not guessed at with a tokenizer."""
    body = {"created": 1, "data": [{"b64_json": base64.b64encode(image()).decode()}]}
    hosted.reply("openai", body=body)
    response = LLMClient().generate_image("a cat")
    assert math.isnan(response.cost)
    assert response.usage == {}


def test_ones_own_model(hosted: Double, out: Path) -> None:
    """A ModelConfig with a price for each image is all that a model of one's own needs."""
    own = ModelConfig(
        name="mine",
        provider="custom",
        task_type=TaskType.IMAGE_GENERATION,
        cost_per_image=0.25,
        litellm_model="openai/flux",
        api_base="https://api.openai.com/v1",
        api_key_env="OPENAI_API_KEY",
    )
    response = LLMClient({"mine": own}).generate_image(
        "a cat", model="mine", size="512x512", n=2, response_format="b64_json"
    )
    assert response.cost == pytest.approx(0.5)
    assert [made["width"] for made in response.images] == [512, 512]
    assert hosted.requests[0].body == {"model": "flux", "prompt": "a cat", "size": "512x512", "n": 1} | {
        "response_format": "b64_json"
    }


def test_a_providers_link_is_content(hosted: Double, out: Path, web: Web) -> None:
    """Where the provider gave a URL, it is the content; the image itself has been saved all the same."""
    web.everywhere = image(size=(512, 512))
    own = ModelConfig(name="mine", provider="openai", litellm_model="openai/dall-e-9", cost_per_image=0.25)
    response = LLMClient({"mine": own}).generate_image("a cat", model="mine", size="512x512")
    assert response.content.startswith("https://")
    assert Path(response.images[0]["path"]).is_file()
    assert response.images[0]["url"].startswith("file://")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_the_promised_kind_is_saved(kind: str, hosted: Double, out: Path) -> None:
    """What is asked for as PNG, JPEG or WebP is saved as a valid one, with the size that the answer says."""
    hosted.reply("openai", image=image(kind, (640, 480)))
    [made] = LLMClient().generate_image("a cat", output_format=kind, file_name="cat").images
    assert (made["format"], Path(made["path"]).name) == (kind, f"cat.{'jpg' if kind == 'jpeg' else kind}")
    data = Path(made["path"]).read_bytes()
    assert data.startswith({"png": b"\x89PNG\r\n\x1a\n", "jpeg": b"\xff\xd8\xff", "webp": b"RIFF"}[kind])
    with Image.open(made["path"]) as opened:
        opened.verify()
        assert (opened.format, *opened.size) == (kind.upper(), made["width"], made["height"])
        assert opened.size == (640, 480)


def test_another_kind_than_promised_is_said(hosted: Double, out: Path) -> None:
    """An image of another kind than was asked for has been paid for: it is saved as what it is, and said."""
    hosted.reply("openai", image=image("png"))
    [made] = LLMClient().generate_image("a cat", output_format="webp").images
    assert made["path"].endswith(".png")
    assert made["note"] == "webp was requested, but png was sent"


def test_bytes_are_given_on_demand(hosted: Double, out: Path) -> None:
    """response_format="b64_json" adds the bytes to the answer, and is no parameter of models without it."""
    made = LLMClient().generate_image("a cat", response_format="b64_json").images[0]
    assert base64.b64decode(made["b64"]) == Path(made["path"]).read_bytes()
    assert "response_format" not in hosted.requests[0].body


def test_each_customer_has_a_folder(hosted: Double, out: Path) -> None:
    """The files of one scope are not in the folder of another, and cannot be read from there by an agent."""
    client = LLMClient()
    with scope(customer="acme"):
        mine = client.generate_image("a cat", file_name="cat").images[0]["path"]
    with scope(customer="a/c-me"):
        other = client.generate_image("a cat", file_name="cat").images[0]["path"]
    assert Path(mine).parent.parent == Path(other).parent.parent == out
    assert Path(mine).parent != Path(other).parent
    with scope(customer="acme", from_agent=True):
        client.vision_completion(ASK, [mine])
        with pytest.raises(errors.InvalidRequest):
            client.vision_completion(ASK, [other])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"prompt": "  "}, "prompt must be a text"),
        ({"n": 11}, "n must be"),
        ({"model": "gpt-4o-mini"}, "gpt-4o-mini"),
        ({"model": VISION}, "does not make images.*openai/gpt-image-2"),
        ({"model": "black_forest_labs/flux-pro-1.1"}, "cannot be asked for images"),
        ({"model": "vertex_ai/imagen-4.0-generate-001"}, "cannot be asked for images"),
        ({"fallback_models": [VISION]}, "does not make images"),
        ({"fallback_models": [GEMINI], "quality": "low"}, "gemini-3.1-flash-image has no choice of quality"),
        ({"size": "1000x1000"}, "does not make images of 1000x1000"),
        ({"reference_images": ["/etc/hostname.png"]}, "hostname.png"),
        ({"mask": "x.png"}, "needs a reference image"),
        ({"seed": 3}, "does not take seed"),
    ],
)
def test_refused_before_anything_is_paid(
    params: dict[str, Any], message: str, hosted: Double, out: Path, ledger: Ledger
) -> None:
    """What cannot work is refused before a request is sent, and is recorded as a failed call that cost nothing."""
    with pytest.raises(errors.LLMError, match=message) as caught:
        LLMClient().generate_image(**{"prompt": "a cat", **params})
    assert caught.value.cost == 0
    assert hosted.requests == []
    [row] = records(ledger)
    assert (row["status"], row["cost_nano"]) == ("refused", 0)
    assert get_llm_costs()["failed_calls"] == 1


def test_a_full_or_missing_output_place_is_seen_before(hosted: Double, tmp_path: Path, monkeypatch: Any) -> None:
    """Where nothing can be saved, nothing is bought."""
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("AGENTSWARM_OUTPUT_DIR", str(tmp_path / "file" / "out"))
    with pytest.raises(errors.ConfigurationError, match="output folder"):
        LLMClient().generate_image("a cat")
    assert hosted.requests == []


def test_any_file_system(hosted: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images go to any place that fsspec knows, and come from there again."""
    monkeypatch.setenv("AGENTSWARM_OUTPUT_DIR", "memory://images")
    client = LLMClient()
    first = client.generate_image("a cat", file_name="cat").images[0]["path"]
    assert first == "memory://images/cat.png"
    client.generate_image("with a hat", reference_images=[first])
    assert hosted.requests[1].operation == "edits"


def test_public_links(hosted: Double, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AGENTSWARM_OUTPUT_URL makes the links that people get."""
    monkeypatch.setenv("AGENTSWARM_OUTPUT_URL", "https://cdn.example/pictures")
    response = LLMClient().generate_image("a cat", file_name="cat")
    assert response.content == response.images[0]["url"] == "https://cdn.example/pictures/cat.png"


def test_an_agent_may_choose_known_image_models_only(hosted: Double, out: Path) -> None:
    """Agents make images with models that are known to make them, and code with any."""
    with scope(from_agent=True):
        assert LLMClient().generate_image("a cat", model=GPT).model == GPT
        assert LLMClient().generate_image("a cat").model == GPT
        for name in (VISION, "xai/grok-imagine-image-99", "openai/made-up"):
            with pytest.raises(errors.ModelNotAllowed, match="not a model that agents may choose"):
                LLMClient().generate_image("a cat", model=name)


def test_a_fallback_of_settings_that_cannot_is_left_out(
    hosted: Double, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fallback that nobody named for this call does not forbid what the named model can do."""
    monkeypatch.setenv("LITELLM_DEFAULT_FALLBACK_MODELS", GEMINI)
    client = LLMClient(max_retries=0)
    assert client.generate_image("a cat", quality="high").model == GPT
    hosted.always("openai", error="overloaded")
    assert client.generate_image("a cat").model == GEMINI
    with pytest.raises(errors.Overloaded):
        client.generate_image("a cat", quality="high")


def test_settings_name_the_defaults(hosted: Double, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default models for images and vision, and fallbacks that can do what is asked, come from Settings."""
    monkeypatch.setenv("LITELLM_DEFAULT_IMAGE_MODEL", GEMINI)
    monkeypatch.setenv("LITELLM_DEFAULT_VISION_MODEL", "anthropic/claude-haiku-4-5")
    monkeypatch.setenv("LITELLM_DEFAULT_FALLBACK_MODELS", f"deepseek/deepseek-v4-pro,{VISION},{GPT}")
    client = LLMClient(max_retries=0)
    path = client.generate_image("a cat").images[0]["path"]
    assert client.vision_completion(ASK, [path]).model == "anthropic/claude-haiku-4-5"
    hosted.always("anthropic", error="overloaded")
    assert client.vision_completion(ASK, [path]).model == VISION
    hosted.always("gemini", error="overloaded")
    assert client.generate_image("a cat").model == GPT
