"""What models that LiteLLM does not know accept, decided from the price table instead of LiteLLM's own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from shared.errors import InvalidRequest
from shared.prices import price_table
from shared.providers.errors import invalid
from shared.types import Candidate

# Parameters of OpenAI's format that a config refuses for models missing from LiteLLM's table, and the ability needed.
_NEEDED = {
    "reasoning_effort": "reasoning",
    "tools": "tools",
    "tool_choice": "tool_choice",
    "parallel_tool_calls": "parallel_tools",
    "response_format": "schema",
}
_SAMPLING = ("temperature", "top_p", "top_k")
# The efforts that LiteLLM turns into these thinking budgets (litellm 1.91.5, constants.py), read backwards.
_EFFORT_OF_BUDGET = ((1024, "low"), (2048, "medium"))
_LIKE = 0.85


@dataclass(frozen=True, slots=True)
class NewerModel:
    """A model that LiteLLM does not know: its abilities, and the known one by whose rules requests are written."""

    can: frozenset[str]
    cannot: frozenset[str]
    stand_in: str | None


@dataclass(frozen=True, slots=True)
class _StandIn:
    """The model that stands in for those of a provider which have some abilities and lack others."""

    provider: str
    model: str
    can: frozenset[str]
    cannot: frozenset[str] = frozenset()
    names: str = "*"


_REASONING = frozenset({"reasoning"})
# The first row that fits holds. Each model is one that LiteLLM 1.91 treats as the provider's documentation demands of
# the newer ones. Sources: developers.openai.com/api/docs/guides (reasoning, deployment checklist),
# platform.claude.com/docs (adaptive thinking, effort, structured outputs), ai.google.dev/gemini-api/docs (thinking),
# console.groq.com/docs/structured-outputs (read 2026-11-27).
STAND_INS = (
    _StandIn("openai", "gpt-5.5", _REASONING | {"effort_none"}),
    _StandIn("openai", "gpt-5.2-pro", _REASONING),
    _StandIn("azure", "gpt-5.5", _REASONING | {"effort_none"}),
    _StandIn("azure", "gpt-5.2-pro", _REASONING),
    _StandIn("anthropic", "claude-opus-4-7", frozenset({"adaptive_thinking"}), frozenset({"sampling"})),
    _StandIn("anthropic", "claude-sonnet-4-6", frozenset({"adaptive_thinking"})),
    _StandIn("anthropic", "claude-sonnet-4-5", _REASONING),
    _StandIn("gemini", "gemini-3.1-pro-preview", _REASONING, frozenset({"effort_minimal"}), "gemini-*"),
    _StandIn("gemini", "gemini-3.5-flash", _REASONING, names="gemini-*"),
    _StandIn("groq", "openai/gpt-oss-120b", _REASONING | {"schema"}),
    _StandIn("groq", "meta-llama/llama-4-scout-17b-16e-instruct", frozenset({"schema"})),
)


def litellm_knows(provider: str, model: str) -> bool:
    """Whether LiteLLM's own table has the model. LiteLLM must have been imported."""
    import litellm

    if f"{provider}/{model}" in litellm.model_cost:
        return True
    return provider in str(litellm.model_cost.get(model, {}).get("litellm_provider"))


@lru_cache(maxsize=1024)
def newer_model(provider: str, model: str) -> NewerModel | None:
    """What the price table says of a model; None if LiteLLM knows the model, or the price table does not."""
    if litellm_knows(provider, model):
        return None
    entry = _described(provider, model)
    if entry is None:
        return None
    can, cannot = frozenset(entry.get("can", ())), frozenset(entry.get("cannot", ()))
    fitting = (
        row.model
        for row in STAND_INS
        if row.provider == provider and fnmatchcase(model, row.names) and row.can <= can and row.cannot <= cannot
    )
    return NewerModel(can, cannot, next(fitting, None))


def _described(provider: str, model: str) -> Mapping[str, Any] | None:
    """The model's entry, or, if that says nothing of abilities, the entry of the model with the most similar name."""
    table = price_table()
    entry = table.get(f"{provider}/{model}")
    if entry is None or "can" in entry or "cannot" in entry:
        return entry
    others = [name for name in table.naming("can") if name.startswith(f"{provider}/")]
    similar = difflib.get_close_matches(f"{provider}/{model}", others, n=1, cutoff=_LIKE)
    return table[similar[0]] if similar else None


def _newer(candidate: Candidate) -> NewerModel | None:
    """The same for a candidate; None where a transport of the client's own answers instead of the provider."""
    return newer_model(candidate.provider, candidate.wire_model) if candidate.answered_at is None else None


def known_as(candidate: Candidate) -> str:
    """The name by which LiteLLM's configs are asked about the candidate's model."""
    newer = _newer(candidate)
    return candidate.wire_model if newer is None or newer.stand_in is None else newer.stand_in


def passed_on(candidate: Candidate, params: Mapping[str, Any], known: frozenset[str] | None) -> dict[str, Any]:
    """The parameters that a provider of OpenAI's format takes although its config, which lacks the model, does not."""
    newer = _newer(candidate)
    if newer is None or newer.stand_in is not None or known is None:
        return {}
    return {
        name: params[name]
        for name, ability in _NEEDED.items()
        if name in params and name not in known and ability in newer.can
    }


def adapt_parameters(candidate: Candidate, params: dict[str, Any], base: str) -> None:
    """
    Change the parameters in place to what a model that LiteLLM does not know documents.

    Raises:
        InvalidRequest: The model takes nothing like one of them.
    """
    provider, model = candidate.provider, candidate.wire_model
    newer = _newer(candidate)
    if newer is None:
        if provider == "openai" and "api.openai.com" in base and not litellm_knows(provider, model):
            # OpenAI's own API takes it for every chat model; max_tokens is refused by all since o1.
            _rename(params, "max_tokens", "max_completion_tokens")
        return
    _check(candidate, newer, params)
    if provider == "anthropic":
        _adapt_thinking(newer, params)
    if provider in ("openai", "azure") and newer.stand_in is None:
        _rename(params, "max_tokens", "max_completion_tokens")
    if provider in ("openai", "azure") and params.get("tools") and "effort_none" in newer.can:
        # Since GPT-5.6 chat/completions runs tools only without reasoning, which is not the default.
        # Source: developers.openai.com/api/docs/guides/deployment-checklist (read 2026-11-27).
        params.setdefault("reasoning_effort", "none")


def drop_defaults(candidate: Candidate, options: dict[str, Any]) -> None:
    """Take out the sampling parameters that LiteLLM's config adds by itself, where the model has none."""
    newer = _newer(candidate)
    if newer is not None and "sampling" in newer.cannot:
        for name in _SAMPLING:
            options.pop(name, None)


def with_native_schema(candidate: Candidate, body: dict[str, Any], headers: dict[str, Any]) -> None:
    """
    Move an answer's JSON Schema from where Anthropic's beta had it to where the models that came later expect it.

    Source: platform.claude.com/docs/en/build-with-claude/structured-outputs (read 2026-11-27).
    """
    if _newer(candidate) is None or "output_format" not in body:
        return
    body["output_config"] = {**body.get("output_config", {}), "format": body.pop("output_format")}
    betas = [name for name in headers.pop("anthropic-beta", "").split(",") if not name.startswith("structured-outputs")]
    if any(betas):
        headers["anthropic-beta"] = ",".join(betas)


def _rename(params: dict[str, Any], old: str, new: str) -> None:
    if old in params:
        params.setdefault(new, params.pop(old))


def _check(candidate: Candidate, newer: NewerModel, params: Mapping[str, Any]) -> None:
    sampling = [name for name in _SAMPLING if name in params and (name, params[name]) != ("temperature", 1)]
    if "sampling" in newer.cannot and sampling:
        raise _refused(candidate, f"does not take {', '.join(sampling)}")
    if "speed" in params and "speed" not in newer.can:
        raise _refused(candidate, "does not take speed")
    if "forced_tool" in newer.cannot and params.get("tool_choice", "auto") not in ("auto", "none"):
        raise _refused(candidate, 'cannot be made to call a tool: tool_choice must be "auto" or "none"')
    effort = params.get("reasoning_effort")
    if candidate.provider in ("openai", "azure") and f"effort_{effort}" in newer.cannot:
        raise _refused(candidate, f"does not take reasoning_effort {effort!r}")
    off = effort == "none" or _type_of(params.get("thinking")) == "disabled"
    if "thinking_always_on" in newer.can and off:
        raise _refused(candidate, 'always thinks; use reasoning_effort="low" for the least')


def _adapt_thinking(newer: NewerModel, params: dict[str, Any]) -> None:
    """Since Claude Opus 4.7 a budget is refused: the model thinks as much as its effort allows."""
    if "thinking_on_by_default" in newer.can and params.get("reasoning_effort") == "none":
        del params["reasoning_effort"]
        params["thinking"] = {"type": "disabled"}
    thinking = params.get("thinking")
    budget_taken = "adaptive_thinking" not in newer.can or "legacy_thinking" in newer.can
    if _type_of(thinking) != "enabled" or budget_taken:
        return
    budget = thinking.pop("budget_tokens", None)  # type: ignore[union-attr]
    thinking["type"] = "adaptive"  # type: ignore[index]
    effort = next((word for most, word in _EFFORT_OF_BUDGET if isinstance(budget, int) and budget <= most), None)
    if effort is not None and "reasoning_effort" not in params:
        params["reasoning_effort"] = effort


def _type_of(thinking: Any) -> Any:
    return thinking.get("type") if isinstance(thinking, dict) else None


def _refused(candidate: Candidate, what: str) -> InvalidRequest:
    return invalid(candidate, f"{candidate.model} {what}")
