"""The clients that the benchmarks of calls compare, each with the same request to the same server."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from benchmarks.provider import MESSAGES, MODEL

OFF, RECORDED, BUDGETED = "ours, ledger off", "ours, recorded", "ours, recorded, with a budget"
OURS = (OFF, RECORDED, BUDGETED)
KEY = "sk-test-0123456789"


def our_client(name: str, base: str) -> Any:
    """Our client in one of its three states."""
    os.environ["OPENAI_BASE_URL"] = base
    from shared.budget import Budget
    from shared.llm_client import LLMClient

    budget = Budget(1000, window="day") if name == BUDGETED else None
    return LLMClient(enable_cost_tracking=name != OFF, budget=budget)


def litellm_module() -> Any:
    """LiteLLM without its banner."""
    from shared.config import quiet_litellm

    with quiet_litellm():
        import litellm

    return litellm


def litellm_request(base: str) -> dict[str, Any]:
    """The arguments of `litellm.completion`."""
    own = {"api_base": base, "api_key": KEY, "max_retries": 0}
    return {"model": f"openai/{MODEL}", "messages": MESSAGES, **own}


def sync_call(name: str, base: str) -> Callable[[], object]:
    """One synchronous call of a client."""
    if name == "httpx":
        import httpx

        plain = httpx.Client(limits=httpx.Limits(max_connections=None), timeout=None)  # noqa: S113 - own server
        body, headers = {"model": MODEL, "messages": MESSAGES}, {"authorization": f"Bearer {KEY}"}
        return lambda: plain.post(f"{base}/chat/completions", json=body, headers=headers).json()
    if name == "openai":
        import openai

        client = openai.OpenAI(base_url=base, api_key=KEY, max_retries=0)
        return lambda: client.chat.completions.create(model=MODEL, messages=MESSAGES)  # type: ignore[arg-type]
    if name == "litellm":
        litellm, request = litellm_module(), litellm_request(base)
        return lambda: litellm.completion(**request)
    ours = our_client(name, base)
    return lambda: ours.chat_completion(MESSAGES, model=f"openai/{MODEL}")


def async_call(name: str, base: str) -> Callable[[], Awaitable[object]]:
    """One asynchronous call of a client, to be made on one event loop."""
    if name == "httpx":
        import httpx

        plain = httpx.AsyncClient(limits=httpx.Limits(max_connections=1000), timeout=None)  # noqa: S113 - own server
        body, headers = {"model": MODEL, "messages": MESSAGES}, {"authorization": f"Bearer {KEY}"}
        return lambda: plain.post(f"{base}/chat/completions", json=body, headers=headers)
    if name == "openai":
        import openai

        client = openai.AsyncOpenAI(base_url=base, api_key=KEY, max_retries=0)
        return lambda: client.chat.completions.create(model=MODEL, messages=MESSAGES)  # type: ignore[arg-type]
    if name == "litellm":
        litellm, request = litellm_module(), litellm_request(base)
        return lambda: litellm.acompletion(**request)
    ours = our_client(name, base)
    return lambda: ours.achat_completion(MESSAGES, model=f"openai/{MODEL}")


def sync_stream(name: str, base: str) -> Callable[[int], Iterable[str]]:
    """The texts of a streamed answer of so many chunks."""
    if name == "openai":
        import openai

        client = openai.OpenAI(base_url=base, api_key=KEY, max_retries=0)
        return lambda chunks: (
            chunk.choices[0].delta.content or ""
            for chunk in client.chat.completions.create(  # type: ignore[call-overload]
                model=MODEL, messages=MESSAGES, max_tokens=chunks, stream=True, stream_options={"include_usage": True}
            )
            if chunk.choices
        )
    if name == "litellm":
        litellm, request = litellm_module(), litellm_request(base)
        request |= {"stream": True, "stream_options": {"include_usage": True}}
        return lambda chunks: (
            chunk.choices[0].delta.content or ""
            for chunk in litellm.completion(**request, max_tokens=chunks)
            if chunk.choices
        )
    ours = our_client(name, base)
    return lambda chunks: ours.chat_completion(MESSAGES, model=f"openai/{MODEL}", max_tokens=chunks, stream=True)
