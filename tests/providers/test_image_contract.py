"""What we lean on inside LiteLLM for images, one test each: when one fails, its sentence says what to do."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from shared.models.image_options import LITELLM_SHAPED
from shared.providers import endpoints
from shared.providers.image_request import _BASES

MODELS = {
    "stability": "stable-image-core",
    "fal_ai": "fal-ai/flux-pro/v1.1",
    "recraft": "recraftv3",
    "aiml": "flux/schnell",
    "dashscope": "qwen-image-2.0",
}
METHODS = {
    "map_openai_params": {"non_default_params", "optional_params", "model", "drop_params"},
    "validate_environment": {
        "headers",
        "model",
        "messages",
        "optional_params",
        "litellm_params",
        "api_key",
        "api_base",
    },
    "get_complete_url": {"api_base", "api_key", "model", "optional_params", "litellm_params"},
    "transform_image_generation_request": {"model", "prompt", "optional_params", "litellm_params", "headers"},
    "transform_image_generation_response": {
        "model",
        "raw_response",
        "model_response",
        "logging_obj",
        "request_data",
        "optional_params",
        "litellm_params",
        "encoding",
    },
    "use_multipart_form_data": set(),
}


@pytest.fixture(autouse=True)
def litellm_is_there() -> None:
    """All of these look inside LiteLLM."""
    endpoints.import_litellm()


def config_of(name: str) -> Any:
    """LiteLLM's image config of a provider."""
    from litellm.types.utils import LlmProviders
    from litellm.utils import ProviderConfigManager

    return ProviderConfigManager.get_provider_image_generation_config(MODELS[name], LlmProviders(name))


def test_every_such_provider_is_looked_at() -> None:
    """If this fails, a provider was added to LITELLM_SHAPED: add a model of it to MODELS."""
    assert set(MODELS) == LITELLM_SHAPED


@pytest.mark.parametrize("name", MODELS)
def test_config_methods(name: str) -> None:
    """If this fails, an image config takes other arguments: adapt image_request.py or image_response.py."""
    config = config_of(name)
    for method, names in METHODS.items():
        taken = inspect.signature(getattr(config, method)).parameters
        needed = {p.name for p in taken.values() if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
        assert needed <= names, f"{name}.{method} needs {needed - names} more"
        assert not names - taken.keys(), f"{name}.{method} no longer takes {names - taken.keys()}"


@pytest.mark.parametrize("name", MODELS)
def test_addresses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, a config has no DEFAULT_BASE_URL any more, or asks the environment in spite of a base."""
    for variable in ("STABILITY", "FAL_AI", "RECRAFT", "AIML", "DASHSCOPE"):
        monkeypatch.setenv(f"{variable}_API_BASE", "https://elsewhere.example")
    config = config_of(name)
    base = _BASES.get(name) or config.DEFAULT_BASE_URL
    url = config.get_complete_url(base, "k", MODELS[name], {}, {})
    assert url.startswith(base.removesuffix("/v1"))


def test_stability_takes_a_form() -> None:
    """If this fails, LiteLLM says otherwise that a provider takes forms: see use_multipart_form_data."""
    assert config_of("stability").use_multipart_form_data()
    assert not config_of("recraft").use_multipart_form_data()


def test_an_empty_image_response_stays_empty() -> None:
    """If this fails, ImageResponse(data=[]) is not what the configs add their images to: see _by_litellm."""
    from litellm.types.utils import ImageResponse

    raw = SimpleNamespace(json=lambda: {"image": "AAAA"}, text="", headers=httpx.Headers(), status_code=200)
    response = config_of("stability").transform_image_generation_response(
        model="",
        raw_response=raw,
        model_response=ImageResponse(data=[]),
        logging_obj=None,
        request_data={},
        optional_params={},
        litellm_params={},
        encoding=None,
    )
    assert [(item.b64_json, item.url) for item in response.data] == [("AAAA", None)]


def test_litellm_still_charges_dall_e_3_too_little() -> None:
    """If this fails, LiteLLM's own cost of an HD image is right: our own multiplication may go."""
    from litellm import completion_cost
    from litellm.types.utils import ImageResponse

    response = ImageResponse.model_validate({"data": [{"url": "https://x.example/a.png"}]})
    assert completion_cost(response, model="dall-e-3", call_type="image_generation") == pytest.approx(0.04, abs=1e-6)
