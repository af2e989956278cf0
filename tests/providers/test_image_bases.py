"""`<PROVIDER>_API_BASE` moves a provider's images as it moves its chat."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.config import load_settings
from shared.models import Catalogue, resolve
from shared.models.image_options import IMAGE_PROVIDERS
from shared.scope import Scope
from shared.types import Request, TaskType
from tests.support.loopback import ask_for, host_of
from tests.support.wires import KEY

FAL = "fal_ai/fal-ai/flux-pro/v1.1"
DASHSCOPE = "/api/v1/services/aigc/multimodal-generation/generation"
GATEWAY = "https://gateway.example/v1"
MOVED = {
    "openai": ("openai/gpt-image-2", GATEWAY, "/v1/images/generations"),
    "azure": (
        "azure/gpt-image-2",
        "https://gateway.example",
        "/openai/deployments/gpt-image-2/images/generations",
    ),
    "gemini": (
        "gemini/gemini-3.1-flash-image",
        "https://gateway.example",
        "/v1beta/models/gemini-3.1-flash-image:generateContent",
    ),
    "openrouter": ("openrouter/google/gemini-3.1-flash-image", GATEWAY, "/v1/chat/completions"),
    "stability": ("stability/stable-image-core", "https://gateway.example", "/v2beta/stable-image/generate/core"),
    "fal_ai": (FAL, "https://gateway.example/fal/", "/fal/fal-ai/flux-pro/v1.1"),
    "recraft": ("recraft/recraftv3", "https://gateway.example", "/v1/images/generations"),
    "aiml": ("aiml/flux/schnell", GATEWAY, "/v1/images/generations"),
    "dashscope": ("dashscope/qwen-image-2.0", "https://gateway.example", DASHSCOPE),
    **{
        name: (f"{name}/some-image-model", GATEWAY, "/v1/images/generations")
        for name in (
            "xai",
            "together_ai",
            "nscale",
            "cometapi",
            "xinference",
            "litellm_proxy",
            "hosted_vllm",
            "lm_studio",
            "openai_like",
        )
    },
}


def target(monkeypatch: pytest.MonkeyPatch, provider: str, model: str, base: str) -> tuple[str, str]:
    """Host and path that an image request goes to when the environment moves the provider."""
    monkeypatch.setenv(f"{provider.upper()}_API_BASE", base)
    settings, task = load_settings(), TaskType.IMAGE_GENERATION
    found = resolve(model, catalogue=Catalogue.load(settings), settings=settings, scope=Scope(), task=task)
    request = Request(task, [{"role": "user", "content": "a cat"}], {})
    [asked] = ask_for(replace(found, api_key=KEY), request).asked
    return host_of(asked), asked.target.partition("?")[0]


@pytest.mark.parametrize("provider", sorted(IMAGE_PROVIDERS - {"custom", "custom_openai"}))
def test_every_image_provider_moves(monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
    """Each provider of images is called at the base URL that the environment gives it."""
    model, base, path = MOVED[provider]
    assert target(monkeypatch, provider, model, base) == ("gateway.example", path)


@pytest.mark.parametrize(
    ("provider", "model", "base", "path"),
    [
        ("stability", "stable-image-core", "/v2beta", "/v2beta/stable-image/generate/core"),
        ("recraft", "recraftv3", "/v1", "/v1/images/generations"),
        ("dashscope", "qwen-image-2.0", "/compatible-mode/v1", DASHSCOPE),
        ("dashscope", "qwen-image-2.0", DASHSCOPE, DASHSCOPE),
        (
            "azure",
            "gpt-image-2",
            "/openai/deployments/pictures/chat/completions",
            "/openai/deployments/pictures/images/generations",
        ),
    ],
)
def test_a_base_that_chat_shares(
    monkeypatch: pytest.MonkeyPatch, provider: str, model: str, base: str, path: str
) -> None:
    """A base URL as the provider's pages or its chat models have it leads to the images' own address."""
    moved = target(monkeypatch, provider, f"{provider}/{model}", f"https://gateway.example{base}")
    assert moved == ("gateway.example", path)
