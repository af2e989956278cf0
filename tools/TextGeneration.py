"""Generate text with any model; the result states the cost."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from shared.base_tool import BaseTool
from shared.llm_client import get_llm_client
from shared.runs import MAX_SCHEMA_CHARS, Mismatch, ask_until_match, check_schema, schema_instruction
from shared.types import FallbackOn, LLMResponse, WantedSchema

_MAX_TEXT_CHARS = 100_000
_BUDGET_KEYS = ("output_cut_to_tokens", "remaining_budget_usd")


class TextGeneration(BaseTool):
    """
    Generate text with a language model of your choice, such as a draft, a summary, a translation or structured data.

    Use it when another model suits the task better than you do (cheaper, stronger, larger context window), or when the
    answer must match a JSON Schema. It costs money: the result says how much.
    """

    prompt: str = Field(
        ..., min_length=1, max_length=1_000_000, description="What to write, with all the context needed."
    )
    system_prompt: str | None = Field(
        None, max_length=100_000, description="Role and rules for the model. Leave out for none."
    )
    model: str | None = Field(
        None, max_length=200, description="Model such as openai/gpt-5.4-mini. Leave out for the default."
    )
    fallback_models: list[str] | None = Field(
        None, max_length=5, description="Models to try next when the model fails, in order. Leave out for the default."
    )
    temperature: float | None = Field(
        None, ge=0, le=2, description="0 (most predictable) to 2 (most random). Leave out for reasoning models."
    )
    max_tokens: int | None = Field(
        None, ge=1, le=1_000_000, description="Maximum tokens of the answer. Leave out for the model's default."
    )
    response_schema: str | None = Field(
        None,
        max_length=MAX_SCHEMA_CHARS,
        description="JSON Schema, as text, that the answer must match. Leave out for free text.",
    )

    @field_validator("response_schema")
    @classmethod
    def _is_schema(cls, value: str | None) -> str | None:
        return check_schema(value)

    async def _process(self) -> dict[str, Any]:
        """Ask the model; if its answer does not match a given schema, ask the next one, or the only one once more."""
        if self.response_schema is None:
            response = await self._ask()
            return _result(response, response.cost)
        matched = await ask_until_match(self._ask, self.response_schema)
        return _result(matched.response, matched.cost) | {"data": matched.data}

    async def _ask(
        self,
        mismatch: Mismatch | None = None,
        wanted: WantedSchema | None = None,
        fallback_on: FallbackOn | None = None,
    ) -> LLMResponse:
        system = self.system_prompt or ""
        if self.response_schema is not None:
            system += f"\n\n{schema_instruction(self.response_schema)}"
        messages = [{"role": "system", "content": system.strip()}] if system.strip() else []
        messages.append({"role": "user", "content": self.prompt})
        return await get_llm_client().achat_completion(
            [*messages, *(mismatch.correction() if mismatch else ())],
            model=self.model,
            fallback_models=self.fallback_models,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            response_format=wanted,
            fallback_on=fallback_on,
        )


def _result(response: LLMResponse, cost: float) -> dict[str, Any]:
    text = response.content
    result: dict[str, Any] = {"text": text[:_MAX_TEXT_CHARS]}
    if len(text) > _MAX_TEXT_CHARS:
        result["truncated"] = f"only the first {_MAX_TEXT_CHARS:,} of {len(text):,} characters"
    if response.metadata.get("note"):
        result["note"] = response.metadata["note"]
    return (
        result
        | {
            "model": response.model,
            "provider": response.provider,
            "fallback_used": response.metadata["fallback_used"],
            "finish_reason": response.metadata["finish_reason"],
            "cost": cost,
            "tokens": response.usage.get("total_tokens"),
        }
        | {name: response.metadata[name] for name in _BUDGET_KEYS if name in response.metadata}
    )
