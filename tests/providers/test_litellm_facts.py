"""What LiteLLM gets wrong about money and names, so that we do it ourselves: when one fails, a workaround can go."""

from __future__ import annotations

from typing import Any

import pytest

from shared.errors import ProviderUnavailable
from shared.llm_client import LLMClient
from shared.providers import endpoints
from tests.support.asking import HELLO
from tests.support.provider_double import Double


@pytest.fixture(autouse=True)
def litellm_is_there() -> None:
    """All of these look inside LiteLLM."""
    endpoints.import_litellm()


def image_cost(model: str, **request: Any) -> float:
    """What LiteLLM says that one image costs, whose answer says nothing of size, quality or tokens."""
    import litellm
    from litellm.types.utils import ImageObject, ImageResponse

    answer = ImageResponse(created=1, data=[ImageObject(b64_json="")])  # type: ignore[no-untyped-call]
    cost: float = litellm.completion_cost(
        completion_response=answer, model=model, call_type="image_generation", **request
    )
    return round(cost, 3)


def test_images_are_priced_by_the_answer() -> None:
    """If this fails, LiteLLM no longer takes dall-e-3 for its cheapest size: look whether to trust its image costs."""
    assert image_cost("dall-e-3") == 0.04
    assert image_cost("dall-e-3", size="1792x1024", quality="hd", n=1) == 0.12


def test_images_without_counts_look_free() -> None:
    """If this fails, LiteLLM says "unknown" of an image without counts: price such images by what it says."""
    assert image_cost("gpt-image-1") == 0


def test_streams_look_free() -> None:
    """If this fails, LiteLLM's stream wrapper knows its cost: it still must not be read before its end."""
    import litellm

    stream: Any = litellm.completion(model="gpt-4o-mini", messages=HELLO, mock_response="Hi", stream=True)
    assert [chunk._hidden_params.get("response_cost") for chunk in stream] == [None] * 2
    assert stream._hidden_params["response_cost"] == 0


@pytest.mark.parametrize("model", ["openai/gpt-4o-mini-2099-01-01", "hosted_vllm/gpt-4o-mini", "openai/no-such-model"])
def test_unknown_models_have_no_price(model: str) -> None:
    """If this fails, LiteLLM guesses prices: see that none of its guesses reaches a bill (prices.rates_of)."""
    import litellm

    with pytest.raises(Exception, match="isn't mapped yet"):
        litellm.cost_per_token(model=model, prompt_tokens=10, completion_tokens=1)


def test_bare_names_newer_than_the_table_have_no_provider() -> None:
    """If this fails, LiteLLM finds the provider of names that its table lacks: catalogue.look_up could ask it."""
    import litellm

    with pytest.raises(litellm.exceptions.BadRequestError, match="LLM Provider NOT provided"):
        litellm.get_llm_provider("claude-opus-99")


def test_some_keys_would_go_to_openai() -> None:
    """If this fails, LiteLLM knows AI21's endpoint for any name: what it asks by itself needs one check less."""
    import litellm

    # No endpoint, yet OpenAI's own client is used: the key and the prompt go to api.openai.com.
    assert litellm.get_llm_provider("ai21/a-model-that-the-table-lacks", api_key="k")[3] is None
    assert "ai21" in vars(litellm)["openai_compatible_providers"]


def test_one_request_for_one_attempt(hosted: Double) -> None:
    """If this fails, LiteLLM's own clients repeat requests though told not to: litellm_client must stop them."""
    hosted.always("openai", status=500)
    with pytest.raises(ProviderUnavailable):
        LLMClient(max_retries=0).chat_completion(
            HELLO, model="aiml/mistral-small", api_base=hosted.api_base("openai"), api_key="sk-test-0123456789"
        )
    assert len(hosted.requests) == 1
