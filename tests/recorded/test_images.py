"""Images made and edited, replayed from cassettes: what was asked for, what came, and what it cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from shared import errors
from shared.ledger.records import attempt_records
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient
from shared.types import LLMResponse
from tests.support.pictures import image
from tests.support.provider_double import Usage
from tests.support.recording.plugin import Wire

pytestmark = pytest.mark.vcr

# Pinned prices in nano-dollars a token: text in, images in, text out, images out.
TEXT_IN, IMAGE_IN, TEXT_OUT, IMAGE_OUT = 5000, 8000, 10_000, 30_000
OPENAI, GEMINI = "openai/gpt-image-2", "gemini/gemini-3.1-flash-image"


@dataclass(frozen=True)
class Made:
    """What is asked for, what the wire tells of it, and what must come of it."""

    model: str
    usage: Usage
    size: tuple[int, int]
    params: Mapping[str, Any] = field(default_factory=dict)
    references: int = 0
    masked: bool = False
    images: int = 1

    @property
    def nano(self) -> int:
        """The cost of its counts."""
        usage = self.usage
        read = (usage.input - usage.input_images) * TEXT_IN + usage.input_images * (
            IMAGE_IN if self.model == OPENAI else TEXT_IN
        )
        return read + usage.output * IMAGE_OUT


CASES = {
    "openai-generation": Made(
        OPENAI, Usage(9, 10976, images=2), (1536, 1024), {"size": "3:2", "quality": "hd", "n": 2}, images=2
    ),
    "openai-edit": Made(OPENAI, Usage(400, 1756, input_images=388, images=1), (1024, 1024), references=2, masked=True),
    "gemini-generation": Made(GEMINI, Usage(7, 1120, images=1), (1024, 1024), {"size": "16:9"}),
    "gemini-edit": Made(GEMINI, Usage(1300, 1120, input_images=1290, images=1), (1024, 1024), references=1),
}


@pytest.fixture
def client(wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LLMClient:
    """A client with pinned prices, and an output folder of this test's own."""
    prices = {
        "input_cost_per_token": TEXT_IN / 1e9,
        "output_cost_per_token": TEXT_OUT / 1e9,
        "output_cost_per_image_token": IMAGE_OUT / 1e9,
    }
    file = tmp_path / "image-prices.json"
    file.write_text(json.dumps({OPENAI: {**prices, "input_cost_per_image_token": IMAGE_IN / 1e9}, GEMINI: prices}))
    monkeypatch.setenv("AGENTSWARM_PRICES", str(file))
    monkeypatch.setenv("AGENTSWARM_OUTPUT_DIR", str(tmp_path / "out"))
    return LLMClient(max_retries=0)


def make(client: LLMClient, wire: Wire, case: Made, folder: Path, **reply: Any) -> LLMResponse:
    """Ask for the images of a case, from pictures that are in a folder."""
    wire.script(case.model.partition("/")[0], usage=case.usage, **reply)
    sources = [folder / f"reference-{number}.png" for number in range(case.references)]
    for source in sources:
        source.write_bytes(image(size=(64, 48)))
    given: dict[str, Any] = {"reference_images": sources} if sources else {}
    if case.masked:
        (folder / "mask.png").write_bytes(image(size=(64, 48), mode="RGBA"))
        given["mask"] = str(folder / "mask.png")
    return client.generate_image("A red fox", model=case.model, fallback_models=[], **case.params, **given)


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_images(case: Made, wire: Wire, client: LLMClient, tmp_path: Path, ledger: Ledger) -> None:
    """Every image that the wire tells of is saved with its size, and costs exactly what its counts say."""
    response = make(client, wire, case, tmp_path)
    assert len(response.images) == case.images
    for made in response.images:
        assert (made["width"], made["height"], made["format"]) == (*case.size, "png")
        assert Path(made["path"]).stat().st_size == made["bytes"]
    assert response.usage["prompt_tokens"] == case.usage.input
    assert response.usage["completion_tokens"] == case.usage.output
    assert round(response.cost * 1e9) == case.nano
    [row] = attempt_records(ledger)
    assert row["cost_nano"] == case.nano


def test_refused_by_the_rules(wire: Wire, client: LLMClient, tmp_path: Path) -> None:
    """A prompt that the provider's rules refuse has cost nothing, and says that it was refused."""
    with pytest.raises(errors.ContentBlocked) as caught:
        make(client, wire, CASES["openai-generation"], tmp_path, error="content_policy")
    assert caught.value.cost == 0


def test_no_image_in_the_answer(wire: Wire, client: LLMClient, tmp_path: Path, ledger: Ledger) -> None:
    """An answer without an image has been paid for by its counts, and is an error."""
    usage = {"input_tokens": 9, "output_tokens": 0, "input_tokens_details": {"image_tokens": 0, "text_tokens": 9}}
    body = {"created": 1767225600, "data": [], "usage": usage}
    with pytest.raises(errors.BadResponse):
        make(client, wire, CASES["openai-generation"], tmp_path, body=body)
    [row] = attempt_records(ledger)
    assert (row["status"], row["cost_nano"]) == ("failed", 9 * TEXT_IN)
