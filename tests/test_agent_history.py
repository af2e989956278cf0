"""What a conversation holds for one provider alone goes back to that one, and to no other."""

from __future__ import annotations

import json
from typing import Any

import pytest
from agency_swarm import Agency
from agents import ModelSettings, ToolOutputImage, ToolOutputText, set_tracing_disabled
from openai.types.shared import Reasoning

from shared.agent_model import budgeted
from shared.base_tool import BaseTool
from shared.llm_client import get_llm_client
from tests.support.agencies import PIXEL, Ask, Weather, agent, ask_plain, ask_streamed, messages_of
from tests.support.asking import HAIKU, MINI
from tests.support.provider_double import Double
from tests.support.provider_double.script import ToolCall

set_tracing_disabled(True)

plain_and_streamed = pytest.mark.parametrize("ask", [ask_plain, ask_streamed], ids=["plain", "streamed"])
THINK = ModelSettings(reasoning=Reasoning(effort="low"), max_tokens=4000)


@plain_and_streamed
@pytest.mark.parametrize("text", ["", "Let me look."])
def test_anthropic_gets_its_thoughts_back(hosted: Double, ask: Ask, text: str) -> None:
    """Signed thoughts go back before the tool call that they led to, and are in the history as a reasoning item."""
    call = ToolCall("Weather", {"place": "Rome"})
    hosted.reply("anthropic", text=text or None, reasoning="The user wants weather.", tool_calls=[call])
    hosted.reply("anthropic", text="Blue.")
    told = ask(Agency(agent("A", budgeted(HAIKU, []), model_settings=THINK, tools=[Weather])))
    assert told.output == "Blue."
    kinds = [item.type for item in told.result.new_items]
    assert kinds.index("reasoning_item") < kinds.index("tool_call_item")
    [thought, *rest] = messages_of(hosted)[1]["content"]
    assert thought["thinking"] == "The user wants weather."
    assert thought["signature"].startswith("c2ln")
    assert [part["type"] for part in rest] == (["text"] if text else []) + ["tool_use"]


def test_a_successor_gets_its_thoughts_back(hosted: Double) -> None:
    """A model that stands in for one that was shut down is the same model to its own thoughts."""
    hosted.reply("anthropic", reasoning="Hm.", tool_calls=[ToolCall("Weather", {"place": "Rome"})])
    old = budgeted("anthropic/claude-sonnet-4-20250514", [])
    assert ask_plain(Agency(agent("A", old, model_settings=THINK, tools=[Weather]))).error == ""
    assert [part["type"] for part in messages_of(hosted)[1]["content"]] == ["thinking", "tool_use"]


class Camera(BaseTool):
    """Takes a picture."""

    def _process(self) -> list[Any]:
        return [ToolOutputText(text="A picture."), ToolOutputImage(image_url=PIXEL)]


@plain_and_streamed
@pytest.mark.parametrize(
    ("model", "shown"),
    [(MINI, True), (HAIKU, True), ("deepseek/deepseek-v4-flash", False), ("mistral/mistral-small-latest", False)],
)
def test_a_tools_picture(hosted: Double, ask: Ask, model: str, shown: bool) -> None:
    """A picture that a tool gives is seen by models whose API takes it; others get the text beside it."""
    hosted.reply(model.partition("/")[0], tool_calls=[ToolCall("Camera"), ToolCall("Camera")])
    assert ask(Agency(agent("A", budgeted(model, []), tools=[Camera]))).error == ""
    sent = json.dumps(messages_of(hosted)[2:])
    assert sent.count("A picture.") == 2
    assert sent.count("iVBORw0KGgo=") == (2 if shown else 0)


@plain_and_streamed
def test_a_tools_pictures_follow_all_results_of_a_turn(hosted: Double, ask: Ask) -> None:
    """OpenAI takes no picture in a tool's result, and nothing between the results: the pictures follow as a user's."""
    hosted.reply("openai", tool_calls=[ToolCall("Camera"), ToolCall("Camera")])
    agency = Agency(agent("A", budgeted(MINI, []), tools=[Camera]))
    assert ask(agency).error == ""
    assert ask(agency, "again").error == ""
    for messages in (messages_of(hosted, 1), messages_of(hosted, 2)):
        roles = [message["role"] for message in messages if message["role"] != "system"]
        assert roles[:5] == ["user", "assistant", "tool", "tool", "user"]
        shown = next(message for message in messages[4:] if message["role"] == "user")["content"]
        assert [part["type"] for part in shown] == ["text", "image_url", "image_url"]
        assert all("iVBORw0KGgo=" not in json.dumps(m) for m in messages if m["role"] == "tool")


@plain_and_streamed
def test_deepseek_gets_its_thoughts_back(hosted: Double, ask: Ask) -> None:
    """DeepSeek's reasoning_content goes back with its tool call."""
    hosted.reply("deepseek", reasoning="Hm.", tool_calls=[ToolCall("Weather", {"place": "Rome"})])
    ask(Agency(agent("A", budgeted("deepseek/deepseek-v4-flash", []), tools=[Weather])))
    assert messages_of(hosted)[-2]["reasoning_content"] == "Hm."


@plain_and_streamed
def test_others_do_not_get_them(hosted: Double, ask: Ask) -> None:
    """What Anthropic thought, signed or showed in a tool's answer is not sent to a fallback that would refuse it."""
    hosted.reply("anthropic", reasoning="Hm.", text="Wait.", tool_calls=[ToolCall("Weather", {"place": "Rome"})])
    hosted.always("anthropic", status=503, headers={"retry-after": "0"})
    client = get_llm_client(max_retries=0)
    told = ask(
        Agency(agent("A", budgeted(HAIKU, [MINI], client=client), model_settings=THINK, tools=[Weather])),
    )
    assert told.output == "Hello from gpt-5.4-mini."
    said = messages_of(hosted)[-2]
    assert said["content"] == [{"type": "text", "text": "Wait."}]
    assert said.keys() == {"role", "content", "tool_calls"}


@plain_and_streamed
def test_gemini_gets_its_signatures_back(hosted: Double, ask: Ask) -> None:
    """The signature that Gemini puts on a tool call goes back with it, and to nobody else; the call's id is clean."""
    part = {"functionCall": {"name": "Weather", "args": {"place": "Rome"}}, "thoughtSignature": "c2lnbmVk"}
    answer = {
        "candidates": [{"content": {"parts": [part], "role": "model"}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 5, "totalTokenCount": 10},
    }
    streamed = ask is ask_streamed
    body: Any = f"data: {json.dumps(answer)}\r\n\r\n" if streamed else answer
    hosted.reply("gemini", body=body, content_type="text/event-stream" if streamed else "")
    hosted.reply("gemini", text="Blue.")
    hosted.always("gemini", status=503, headers={"retry-after": "0"})
    model = budgeted("gemini/gemini-3.1-flash-lite", [MINI], client=get_llm_client(max_retries=0))
    agency = Agency(agent("A", model, tools=[Weather]))
    told = ask(agency)
    called = hosted.requests[1].body["contents"][1]["parts"][0]
    assert called["function_call"]["name"] == "Weather"
    assert called["thoughtSignature"] == "c2lnbmVk"
    [ident] = [item.raw_item.call_id for item in told.result.new_items if item.type == "tool_call_item"]
    assert "__" not in ident
    assert ask(agency, "again").output == "Hello from gpt-5.4-mini."
    assert "c2lnbmVk" not in json.dumps(hosted.requests[-1].body)


@plain_and_streamed
def test_tool_calls_have_ids_of_their_own(hosted: Double, ask: Ask) -> None:
    """Ollama gives no ids, so that two turns' calls would have the same: each gets one of its own."""
    for place in ("Rome", "Oslo"):
        hosted.reply("ollama", tool_calls=[ToolCall("Weather", {"place": place})])
    told = ask(Agency(agent("A", budgeted("ollama_chat/llama3.2", []), tools=[Weather])))
    ids = [item.raw_item.call_id for item in told.result.new_items if item.type == "tool_call_item"]
    assert len(set(ids)) == 2
    shown = [json.loads(item.output)["place"] for item in told.result.new_items if item.type == "tool_call_output_item"]
    assert shown == ["Rome", "Oslo"]
