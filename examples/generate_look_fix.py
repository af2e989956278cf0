"""An agent makes an image, looks at it and edits it once; then the bill for the image and its edit.

Run with: uv run examples/generate_look_fix.py

With a key (OPENAI_API_KEY or GEMINI_API_KEY) everything is real and costs about US$ 0.15. Without one, the agent's
turns are scripted, and the answers to its tools are replayed from a cassette.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import httpx
import yaml  # type: ignore[import-untyped]  # its stubs are not a dependency
from rich.console import Console

console = Console(highlight=False, soft_wrap=True, markup=False)
console.print("Loading agency-swarm (some seconds) ...")

from agency_swarm import Agency, Agent
from agents import Model, ModelResponse, ToolOutputText, Usage, set_tracing_disabled
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
)

from shared.analytics import image_lineages, print_llm_costs
from shared.models.catalogue import usable_models
from shared.providers import use_transport
from shared.types import TaskType
from tools import ImageGeneration, UnderstandImages

CASSETTE = Path(__file__).parent.parent / "cassettes" / "example" / "test_generate_look_fix.yaml"
TASK = (
    "Make an image of a small robot that holds a sign with the word HELLO; call the file robot. Look at it with "
    "UnderstandImages: is the word spelled right, and what would make the image better? Then edit the image once "
    "accordingly (reference_images), and say what you changed."
)
SCRIPT = (
    ("ImageGeneration", {"prompt": "A small robot that holds a sign: HELLO", "quality": "low", "file_name": "robot"}),
    ("UnderstandImages", {"media_url": "robot.png", "instruction": "Is HELLO spelled right? What could be better?"}),
    (
        "ImageGeneration",
        {
            "prompt": "Make the sign larger and its letters darker.",
            "reference_images": ["robot.png"],
            "quality": "low",
            "file_name": "robot",
        },
    ),
)


class ScriptedTurns(Model):
    """Replaces the agent's own model when there is no key."""

    def __init__(self) -> None:
        self._calls = list(SCRIPT)

    async def get_response(self, *_args: Any, **_kwargs: Any) -> ModelResponse:
        """The next tool call of the script, or a closing message when none is left."""
        item: Any
        if self._calls:
            name, arguments = self._calls.pop(0)
            number = f"call_{len(self._calls)}"
            item = ResponseFunctionToolCall(
                type="function_call", id=number, call_id=number, name=name, arguments=json.dumps(arguments)
            )
        else:
            closing = ResponseOutputText(type="output_text", text="Done: see above.", annotations=[])
            item = ResponseOutputMessage(
                id="last", type="message", role="assistant", status="completed", content=[closing]
            )
        return ModelResponse(output=[item], usage=Usage(), response_id=None)

    def stream_response(self, *_args: Any, **_kwargs: Any) -> Any:
        """Not used: the script is not streamed."""
        raise NotImplementedError


class Replay(httpx.AsyncBaseTransport):
    """Answers from a cassette, in its order."""

    def __init__(self, interactions: list[dict[str, Any]]) -> None:
        self._remaining = interactions

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The next recorded answer, if the request is the one it was recorded for."""
        await request.aread()
        recorded = self._remaining.pop(0)
        assert (request.method, str(request.url)) == (recorded["request"]["method"], recorded["request"]["uri"])  # noqa: S101
        answer = recorded["response"]
        headers = {name: values[0] for name, values in answer["headers"].items()}
        return httpx.Response(answer["status"]["code"], headers=headers, content=answer["body"].encode())


def replay() -> AbstractContextManager[None]:
    """Answers every request of this process from the cassette, while it is entered."""
    cassette = yaml.safe_load(CASSETTE.read_text(encoding="utf-8"))
    console.print(
        "No key is set: the agent's turns are SCRIPTED, and the answers to its tools are REPLAYED from\n"
        f"{CASSETTE.relative_to(CASSETTE.parents[2])} (recorded from the {cassette['recorded_from']} on "
        f"{cassette['recorded_on']}).\nThe images are plain colours; everything in between is real."
    )
    interactions = list(cassette["interactions"])
    os.environ["OPENAI_API_KEY"] = "replayed"
    return use_transport(lambda: Replay(interactions))


async def make_look_fix(model: Any) -> list[str]:
    """Let an agent do the task; returns the results of its tools."""
    artist = Agent(
        name="Artist",
        description="Makes images and checks them.",
        instructions="Use ImageGeneration to make and edit images, and UnderstandImages to look at them.",
        model=model,
        tools=[ImageGeneration, UnderstandImages],
    )
    result = await Agency(artist).get_response(TASK)
    results = []
    for item in result.new_items:
        if item.type == "tool_call_output_item":
            first = item.output[0] if isinstance(item.output, list) else item.output
            results.append(first.text if isinstance(first, ToolOutputText) else str(first))
            console.print(f"\n{results[-1]}")
    console.print(f"\nAgent: {result.final_output}")
    return results


def show_bill() -> None:
    """Print the total cost of the image and its edit, and the whole bill."""
    for family in image_lineages():
        console.print(f"\n{', '.join(family.images)} cost ${family.cost:.6f} together ({family.calls} calls).")
    console.print()
    print_llm_costs(days=1)


def main() -> None:
    """Run the example."""
    set_tracing_disabled(True)
    makers, lookers = usable_models(TaskType.IMAGE_GENERATION), usable_models(TaskType.VISION)
    model: Any
    network: AbstractContextManager[None] = nullcontext()
    if makers and lookers:
        model = f"litellm/{usable_models()[0]}"
        os.environ |= {"LITELLM_DEFAULT_IMAGE_MODEL": makers[0], "LITELLM_DEFAULT_VISION_MODEL": lookers[0]}
        console.print(f"A key is set: {makers[0]} makes the images and {lookers[0]} looks at them.")
    else:
        network = replay()
        model = ScriptedTurns()
    os.environ.setdefault("AGENTSWARM_OUTPUT_DIR", tempfile.mkdtemp(prefix="agentswarm-images-"))
    with tempfile.TemporaryDirectory() as folder, network:
        os.environ["AGENTSWARM_DATABASE_URL"] = f"sqlite:///{Path(folder) / 'example.sqlite3'}"
        asyncio.run(make_look_fix(model))
        show_bill()
    console.print(f"\nThe images are in {os.environ['AGENTSWARM_OUTPUT_DIR']}.")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        console.print("\nStopped.")
        raise SystemExit(130) from None
