"""`model="auto"`: the cheapest of the operator's models that can take the request, and why not the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings as examples, strategies as st

from shared.calls import Call, selection
from shared.calls.cooldown import cooldowns
from shared.errors import AuthenticationError, ConfigurationError, InvalidRequest, LLMError, ProviderUnavailable
from shared.ledger.store import Ledger, get_ledger
from shared.llm_client import LLMClient
from shared.models.auto import FIRST_GUESS, UsualOutput
from shared.models.catalogue import look_up
from shared.prices import rates_of, token_cost
from shared.scope import scope
from shared.types import ModelConfig, TaskType, Usage as Counts
from tests.support.asking import HAIKU, HELLO, MINI, NANO, Way
from tests.support.ledger_rows import records
from tests.support.pictures import image
from tests.support.provider_double import Double, Usage
from tools import TextGeneration

SOL, LUNA, STRONG = "openai/gpt-6-sol", "openai/gpt-6-luna", "openai/gpt-5.5"
HAIKU_5 = "anthropic/claude-haiku-5-5"
# Alive and dead, of several abilities, prices and windows; some have no key, no price, or are no chat models.
POOL = (
    LUNA, SOL, STRONG, MINI, NANO, HAIKU, HAIKU_5, "anthropic/claude-sonnet-5-5", "gemini/gemini-3.1-flash-lite",
    "deepseek/deepseek-v4-flash", "cohere/command-r7b-12-2024", "cohere/command-a-03-2025", "groq/openai/gpt-oss-120b",
    "mistral/mistral-small-latest", "openai/gpt-4", "openai/gpt-image-2", "openai/never-heard-of", "xai/grok-4.3",
    "together_ai/openai/gpt-oss-120b", "perplexity/sonar",
)  # fmt: skip
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
NEEDS: Mapping[str, Mapping[str, Any]] = {
    "tools": {"tools": [TOOL]},
    "schema": {"response_format": SCHEMA},
    "reasoning": {"reasoning_effort": "low"},
}


def chosen(client: LLMClient, messages: Any = HELLO, **params: Any) -> list[str]:
    """The models in the order in which they would be tried."""
    return [each.model for each in client.estimate(messages, model="auto", **params)]


def planned(client: LLMClient, messages: Any, model: str, fallback_models: Sequence[str] | None, **params: Any) -> Call:
    """The call before anything is chosen."""
    request, endpoint, limits = client._request(TaskType.CHAT_COMPLETION, messages, params)
    return client._plan(request, model, fallback_models, endpoint, limits)


def selected(
    client: LLMClient, fallback_models: Sequence[str] | None, messages: Any = HELLO, **params: Any
) -> dict[str, Any]:
    """What the response's metadata would say of the choice."""
    choice = selection.chosen_plan(planned(client, messages, "auto", fallback_models, **params)).choice
    assert choice is not None
    return choice.as_metadata()


def selected_or_error(client: LLMClient, fallback_models: Sequence[str] | None, **more: Any) -> dict[str, Any]:
    """The same, or {"error": ...}."""
    try:
        return selected(client, fallback_models, **more)
    except LLMError as error:
        return {"error": error}


def cost(name: str, prompt_tokens: int, output_tokens: int) -> int:
    """Nano-dollars for a request by the price table alone."""
    entry = look_up(name)[2]
    assert entry is not None
    found = token_cost(Counts(prompt_tokens=prompt_tokens, completion_tokens=output_tokens), rates_of(entry))
    assert found is not None
    return found


@pytest.mark.usefixtures("hosted")
@examples(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pool=st.lists(st.sampled_from(POOL), min_size=1, max_size=8, unique=True),
    needs=st.sets(st.sampled_from(sorted(NEEDS))),
    words=st.sampled_from([1, 500, 60_000, 180_000, 700_000]),
    max_tokens=st.sampled_from([None, 1, 900, 40_000, 100_000]),
)
def test_is_the_cheapest_that_can(pool: list[str], needs: set[str], words: int, max_tokens: int | None) -> None:
    """Of any list it chooses none that cannot take the request, none outside the list, and none that costs more."""
    params: dict[str, Any] = {name: value for need in needs for name, value in NEEDS[need].items()}
    messages = [{"role": "user", "content": "word " * words}]
    found = selected_or_error(LLMClient(), pool, messages=messages, max_tokens=max_tokens, **params)
    if error := found.get("error"):
        assert all(name in error.next_step for name in pool)
        return
    able = [found["chosen"], *found["runners_up"]]
    assert sorted([*able, *found["out"]]) == sorted(pool)
    assert all(found["out"].values())
    output = min(FIRST_GUESS, max_tokens or FIRST_GUESS)
    for name in able:
        entry = look_up(name)[2] or {}
        assert entry["mode"] == "chat"
        assert needs <= set(entry["can"])
        assert words <= entry["window"]
        assert (max_tokens or 0) <= entry["max_output"]
        # A prompt has a few tokens beside its words.
        assert cost(found["chosen"], words, output) <= cost(name, words + 10, output) * 1.01
    costs = [found["expected_cost"], *found["runners_up"].values()]
    assert costs == sorted(costs)


NAMES = st.lists(st.sampled_from([LUNA, SOL, MINI, NANO, HAIKU]), max_size=4, unique=True)


@pytest.mark.usefixtures("hosted")
@examples(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=NAMES, in_scope=st.none() | NAMES, auto=NAMES, allowed=st.none() | NAMES, is_agent=st.booleans())
def test_stays_inside_every_list(
    asked: list[str], in_scope: list[str] | None, auto: list[str], allowed: list[str] | None, is_agent: bool
) -> None:
    """It takes the list nearest to the call, stays inside both allow-lists, and agents get no more than these."""
    with pytest.MonkeyPatch.context() as patch:
        for name, names in (("AUTO", auto), ("ALLOWED", allowed)):
            if names:
                patch.setenv(f"AGENTSWARM_{name}_MODELS", ",".join(names))
        client = LLMClient()
        with scope(models=in_scope, from_agent=is_agent):
            found = selected_or_error(client, asked or None)
    if error := found.get("error"):
        assert error.cost == 0
        return
    tried = {found["chosen"], *found["runners_up"]}
    nearest = asked or in_scope or auto or allowed or []
    assert tried <= set(nearest)
    assert tried <= set(in_scope if in_scope is not None else nearest)
    assert tried <= set(allowed or nearest)
    if is_agent:
        assert tried <= {*(in_scope or ()), *auto, *(allowed or ()), MINI}
    assert tried | set(found["out"]) == set(nearest)


def test_answers(hosted: Double, ledger: Ledger, ask: Way) -> None:
    """The cheapest answers in each way of asking, and the response says what was chosen, and why."""
    hosted.reply("openai", text="Hi", usage=Usage(8, 2))
    response = ask(LLMClient(), model="auto", fallback_models=[STRONG, LUNA, "openai/gpt-4"])
    assert (response.model, response.metadata["requested_model"]) == (LUNA, "auto")
    assert response.metadata["fallback_used"] is False
    found = response.metadata["selection"]
    assert found["chosen"] == LUNA
    assert list(found["runners_up"]) == [STRONG]
    assert 0 < found["expected_cost"] < found["runners_up"][STRONG]
    assert "shut down" in found["out"]["openai/gpt-4"]
    assert [row["model"] for row in records(ledger)] == [LUNA]


def test_the_rest_are_fallbacks(hosted: Double) -> None:
    """When the cheapest is down, the next in the order of cost answers; a model that is cooling down comes last."""
    hosted.refuse("openai")
    hosted.reply("anthropic", text="Here", usage=Usage(8, 2))
    client = LLMClient(max_retries=0)
    response = client.chat_completion(HELLO, model="auto", fallback_models=[HAIKU, LUNA])
    assert (response.model, response.metadata["fallback_used"]) == (HAIKU, True)
    for _ in range(3):
        candidate = planned(client, HELLO, LUNA, []).plan.candidates[0]
        cooldowns.failed(candidate, ProviderUnavailable("down", outcome="rejected"))
    found = selected(client, fallback_models=[HAIKU, LUNA])
    assert found["chosen"] == HAIKU
    assert "cooling down" in found["out"][LUNA]
    assert chosen(client, fallback_models=[HAIKU, LUNA]) == [HAIKU, LUNA]


def test_no_fallback_means_the_chosen_alone(hosted: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fallback_models=[], or fallback off, only the chosen model is tried."""
    monkeypatch.setenv("AGENTSWARM_AUTO_MODELS", f"{MINI}, {LUNA}")
    assert chosen(LLMClient()) == [LUNA, MINI]
    assert chosen(LLMClient(), fallback_models=[]) == [LUNA]
    assert chosen(LLMClient(enable_fallback=False)) == [LUNA]


def test_nothing_named(hosted: Double) -> None:
    """If the operator named no model, nothing is chosen: a key alone is no permission. The error is the line to set."""
    with pytest.raises(ConfigurationError, match=r'AGENTSWARM_AUTO_MODELS="openai/') as caught:
        LLMClient().chat_completion(HELLO, model="auto")
    assert caught.value.cost == 0
    assert hosted.requests == []


def test_named_lists(hosted: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    """auto/NAME chooses from the list of that name, and an unknown name is an error that shows how to set it."""
    monkeypatch.setenv("AGENTSWARM_AUTO_MODELS", f"{LUNA}, {MINI}; strong={STRONG},{SOL}")
    client = LLMClient()
    assert [each.model for each in client.estimate(HELLO, model="auto/strong")] == [SOL, STRONG]
    assert chosen(client) == [LUNA, MINI]
    with pytest.raises(ConfigurationError, match="; weak="):
        client.chat_completion(HELLO, model="auto/weak")


def test_as_a_default(hosted: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default model may be auto, for the client and for the tools of an agent."""
    monkeypatch.setenv("LITELLM_DEFAULT_TEXT_MODEL", "auto")
    monkeypatch.setenv("AGENTSWARM_AUTO_MODELS", f"{MINI},{LUNA}")
    hosted.reply("openai", text="Hi", times=2)
    assert LLMClient().chat_completion(HELLO).model == LUNA
    assert f'"model": "{LUNA}"' in str(TextGeneration(prompt="Hello").run_sync())


def test_names_in_full(hosted: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A free model, or one of an aggregator, is chosen only if its name begins with the provider."""
    prices = tmp_path / "prices.json"
    free = '{"input_cost_per_token": 0, "output_cost_per_token": 0, "litellm_provider": "groq", "mode": "chat"}'
    prices.write_text(f'{{"gift": {free}, "groq/gift": {free}}}')
    monkeypatch.setenv("AGENTSWARM_PRICES", str(prices))
    found = selected(LLMClient(), fallback_models=["gift", MINI])
    assert (found["chosen"], list(found["out"])) == (MINI, ["gift"])
    assert "groq/gift" in found["out"]["gift"]
    assert chosen(LLMClient(), fallback_models=["groq/gift", MINI])[0] == "groq/gift"


def test_own_models(hosted: Double) -> None:
    """A model that the operator described needs a price, and is believed to be able to do everything."""
    config = ModelConfig(
        name="mine", provider="openai", litellm_model="openai/mine", cost_per_1k_input_tokens=0.00001,
        cost_per_1k_output_tokens=0.00001,
    )  # fmt: skip
    unpriced = ModelConfig(name="dark", provider="openai", litellm_model="openai/dark")
    client = LLMClient({"mine": config, "dark": unpriced})
    found = selected(client, fallback_models=["dark", "mine", LUNA], tools=[TOOL])
    assert (found["chosen"], list(found["out"])) == ("mine", ["dark"])
    assert "price is unknown" in found["out"]["dark"]


def test_images_and_vision(hosted: Double, tmp_path: Path) -> None:
    """Pictures are looked at by the cheapest that sees, and made by the cheapest that draws as asked."""
    hosted.reply("openai", text="A square")
    path = tmp_path / "square.png"
    path.write_bytes(image())
    client = LLMClient()
    seen = client.vision_completion(HELLO, [path], model="auto", fallback_models=[MINI, "groq/openai/gpt-oss-120b"])
    assert (seen.model, list(seen.metadata["selection"]["out"])) == (MINI, ["groq/openai/gpt-oss-120b"])
    made = client.generate_image(
        "a fox", model="auto", quality="high", fallback_models=["openai/gpt-image-2", "openai/gpt-image-1-mini", MINI]
    )
    found = made.metadata["selection"]
    assert made.model == found["chosen"]
    assert set(found["out"]) | {found["chosen"], *found["runners_up"]} == {
        "openai/gpt-image-2", "openai/gpt-image-1-mini", MINI,
    }  # fmt: skip
    assert MINI in found["out"]


def test_without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no model has a key, the error is that, and names each model and the variables to set."""
    with pytest.raises(AuthenticationError, match="OPENAI_API_KEY") as caught:
        LLMClient().chat_completion(HELLO, model="auto", fallback_models=[MINI, HAIKU])
    assert MINI in str(caught.value)
    assert HAIKU in str(caught.value)


def test_an_endpoint_needs_a_name(hosted: Double) -> None:
    """What is sent to an endpoint of the caller's own has a model's name: auto is none."""
    with pytest.raises(ConfigurationError, match="endpoint of your own"):
        LLMClient().chat_completion(HELLO, model="auto", fallback_models=[MINI], api_base="http://127.0.0.1:1/v1")


def test_what_a_model_refuses_goes_to_the_next(hosted: Double) -> None:
    """A parameter that the chosen model turns out not to take does not end the call: the next one is asked."""
    hosted.reply("openai", text="Hi")
    response = LLMClient().chat_completion(
        HELLO, model="auto", fallback_models=["deepseek/deepseek-v4-flash", STRONG], verbosity="low"
    )
    assert response.model == STRONG


def test_learns_the_length_of_answers(hosted: Double, ledger: Ledger) -> None:
    """A model that is cheaper by the token but writes ten times as much is no longer chosen, once that is known."""
    hosted.reply("openai", text="Hi", usage=Usage(10, 5000))
    hosted.reply("anthropic", text="Hi", usage=Usage(10, 50))
    client, pool = LLMClient(), [HAIKU, MINI]
    assert chosen(client, fallback_models=pool) == [MINI, HAIKU]
    for model in pool:
        client.chat_completion(HELLO, model=model, fallback_models=[])
    assert chosen(client, fallback_models=pool) == [HAIKU, MINI]
    ledger.flush()
    selection.forget()
    assert chosen(client, fallback_models=pool) == [HAIKU, MINI], "a new process takes it over from the ledger"
    with scope(tool="TextGeneration"):
        assert chosen(client, fallback_models=pool) == [MINI, HAIKU], "of another tool nothing is known"


@given(lengths=st.lists(st.integers(0, 10_000), min_size=1, max_size=90))
def test_means(lengths: Sequence[int]) -> None:
    """The usual length is the mean of the answers, for the model and for all models of a tool."""
    usual = UsualOutput()
    for length in lengths:
        usual.add("chat_completion", None, MINI, length)
    assert usual.of("chat_completion", None, MINI) == pytest.approx(sum(lengths) / len(lengths))
    assert usual.of("chat_completion", None, NANO) == usual.of("chat_completion", None, MINI)
    assert usual.of("vision", None, MINI) == FIRST_GUESS


def test_refusals_are_recorded(hosted: Double, ledger: Ledger) -> None:
    """A call for which no model can be chosen is one refused row, without cost."""
    with pytest.raises(InvalidRequest):
        LLMClient().chat_completion(HELLO, model="auto", fallback_models=[MINI], max_tokens=1_000_000)
    [row] = records(get_ledger(f"sqlite:///{ledger._url.database}"))
    assert (row["status"], row["cost_nano"]) == ("refused", 0)
