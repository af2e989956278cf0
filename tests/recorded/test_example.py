"""The example that makes, looks at and edits an image, against a cassette that it also replays by itself."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from agents import set_tracing_disabled

from examples import generate_look_fix
from shared.analytics import image_lineages
from tests.support.provider_double import Usage
from tests.support.recording.plugin import Wire

set_tracing_disabled(True)


@pytest.mark.vcr
def test_generate_look_fix(wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent makes an image, looks at it by its path, edits it once, and the ledger has them as one family."""
    monkeypatch.setenv("AGENTSWARM_OUTPUT_DIR", str(tmp_path / "out"))
    wire.script("openai", usage=Usage(18, 196, images=1))
    wire.script("openai", text="HELLO is spelled right. The sign could be larger, and its letters darker.")
    wire.script("openai", usage=Usage(210, 196, input_images=194, images=1))
    made, seen, edited = map(
        json.loads, asyncio.run(generate_look_fix.make_look_fix(generate_look_fix.ScriptedTurns()))
    )
    assert Path(made["image_path"]).is_file()
    assert "HELLO is spelled right" in seen["analysis"]
    assert Path(edited["image_path"]).name == "robot-2.png"
    [family] = image_lineages()
    assert family.images == ("robot.png", "robot-2.png")
    assert edited["cost_with_originals"] == pytest.approx(made["cost"] + edited["cost"])
