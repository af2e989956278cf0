"""`model="auto"`: of the models that the operator named, the cheapest that can answer this very request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shared.config import Settings
from shared.errors import ConfigurationError, InvalidRequest, LLMError, ModelNotFound
from shared.internal.money import to_usd
from shared.models.abilities import does
from shared.models.catalogue import usable_models
from shared.prices import TableEntry, token_cost
from shared.scope import Scope
from shared.types import Candidate, ModelConfig, Request, TaskType, Usage

AUTO = "auto"
# What a request's answer is expected to be long if nothing of the kind has been answered yet, in tokens.
FIRST_GUESS = 500
_MAX_WEIGHT = 100
_MAX_MEANS = 5000
# They pass requests on to providers that they choose, so a short name must not lead to them unnoticed.
_AGGREGATORS = frozenset(
    {
        "aihubmix", "aiml", "clf_ai_gateway", "cloudflare", "github", "github_copilot", "heroku", "hostinger_router",
        "huggingface", "litellm_proxy", "llamagate", "openrouter", "opencode_go", "replicate", "v0",
        "vercel_ai_gateway",
    }
)  # fmt: skip
_PARTS = {"image_url": "vision", "input_audio": "audio_input", "file": "pdf", "video_url": "video_input"}
_SAMPLING = ("temperature", "top_p", "top_k")


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the price table says that a model can do, and cannot; a model that the operator described can do all."""

    can: frozenset[str] = frozenset()
    cannot: frozenset[str] = frozenset()
    is_own: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """What a request is expected to cost with each model, lowest first, and why the other models are out."""

    candidates: tuple[Candidate, ...]
    expected_nano: tuple[int, ...]
    out: tuple[LLMError, ...]
    cooling: frozenset[str] = frozenset()

    def as_metadata(self) -> dict[str, Any]:
        """For a response's `metadata["selection"]`."""
        costs: dict[str, float] = {}
        for candidate, nano in zip(self.candidates, self.expected_nano, strict=True):
            costs.setdefault(candidate.requested, to_usd(nano))
        reasons = {str(error.model): _reason(error) for error in self.out}
        reasons |= dict.fromkeys(self.cooling, "It is cooling down after failures, so it is tried last.")
        chosen = self.candidates[0].requested
        return {
            "chosen": chosen,
            "expected_cost": costs.pop(chosen),
            "runners_up": {name: cost for name, cost in costs.items() if name not in self.cooling},
            "out": reasons,
        }


def is_auto(name: str | None) -> bool:
    """Whether a model's name stands for a choice: "auto", or "auto/NAME" for a list of the settings."""
    return name is not None and (name == AUTO or name.startswith(f"{AUTO}/"))


def named_models(
    name: str, asked: Sequence[str] | None, settings: Settings, inside: Scope, task: TaskType
) -> tuple[str, ...]:
    """
    The models to choose among: the call's list, else the scope's, else those of the settings.

    Raises:
        ConfigurationError: The operator named none; the hint is the line to set.
    """
    lists = dict(settings.auto_models)
    if name != AUTO:
        found: Sequence[str] = lists.get(name.removeprefix(f"{AUTO}/"), ())
    else:
        found = asked or inside.models or lists.get("") or settings.allowed_models or ()
    if found:
        return tuple(dict.fromkeys(found))
    models = ",".join(usable_models(task)[:3]) or "openai/gpt-6-luna,anthropic/claude-haiku-5-5"
    hint = f'Set AGENTSWARM_AUTO_MODELS="{models}", or give fallback_models.'
    if name != AUTO:
        hint = f'Add "; {name.removeprefix(f"{AUTO}/")}={models}" to AGENTSWARM_AUTO_MODELS.'
    raise ConfigurationError(f"{name} chooses only among models that you name, and none is named", hint=hint)


def check_choice(candidate: Candidate, task: TaskType, entry: TableEntry | None, config: ModelConfig | None) -> None:
    """
    Refuse a model that `auto` never chooses, whatever the request.

    Raises:
        LLMError: It is of another kind, its price is unknown, or it is free or an aggregator's and not named in full.
    """
    if config is None and does(task, candidate.provider, candidate.wire_model, entry) is False:
        raise InvalidRequest(f"It is no model for {task.value.replace('_', ' ')}", hint="")
    if candidate.rates.source == "unknown":
        raise ModelNotFound("Its price is unknown", hint="State it in AGENTSWARM_PRICES, or in a ModelConfig.")
    is_free = not any(candidate.rates.prices.values()) and not candidate.rates.sizes
    in_full = config is not None or candidate.requested.startswith(f"{candidate.provider}/")
    if not in_full and (is_free or candidate.provider in _AGGREGATORS):
        full = f"{candidate.provider}/{candidate.wire_model}"
        why = "It is free" if is_free else "An aggregator serves it"
        raise ModelNotFound(f"{why}, and not named in full", hint=f"Name it {full}.")


def abilities_of(entry: TableEntry | None, config: ModelConfig | None) -> Abilities:
    """What is known of a model's abilities."""
    if config is not None:
        return Abilities(is_own=True)
    return Abilities(frozenset((entry or {}).get("can", ())), frozenset((entry or {}).get("cannot", ())))


class Needs(NamedTuple):
    """What a request needs a model to do, in the words of the price table."""

    known: tuple[str, ...]
    """What a model must be known to do."""
    accepted: tuple[str, ...]
    """What every model takes that is not known to refuse it."""
    output_tokens: int


def needs_of(request: Request) -> Needs:
    """What the request needs of a model."""
    asked = (request.params.get(name) for name in _LIMITS)
    longest = max((most for most in asked if isinstance(most, int)), default=0)
    return Needs(tuple(dict.fromkeys(_needed(request))), tuple(_welcome(request)), longest)


def lacks(candidate: Candidate, abilities: Abilities, needs: Needs, input_tokens: int) -> str | None:
    """What a request needs and the model is not known to have; None if it can take the request."""
    window, longest = candidate.max_input_tokens, candidate.max_output_tokens
    if window is not None and input_tokens > window:
        return f"It takes {window:,} tokens, and the input has about {input_tokens:,}"
    if longest is not None and needs.output_tokens > longest:
        return f"It writes at most {longest:,} tokens, and {needs.output_tokens:,} are asked for"
    if abilities.is_own:
        return None
    missing = [ability for ability in needs.known if ability not in abilities.can]
    if missing:
        return f"It is not known to support {', '.join(missing)}"
    refused = [ability for ability in needs.accepted if ability in abilities.cannot]
    return f"It does not take {', '.join(refused)}" if refused else None


_LIMITS = ("max_tokens", "max_completion_tokens")


def _needed(request: Request) -> Iterator[str]:
    params = request.params
    if request.task is TaskType.VISION:
        yield "vision"
    if params.get("tools") or params.get("functions"):
        yield "tools"
    if params.get("tool_choice", "auto") not in ("auto", "none"):
        yield "tool_choice"
    answer = params.get("response_format")
    if isinstance(answer, type) or (isinstance(answer, Mapping) and answer.get("type") == "json_schema"):
        yield "schema"
    if params.get("reasoning_effort", "none") != "none" or params.get("thinking"):
        yield "reasoning"
    if params.get("web_search_options"):
        yield "search"
    if "audio" in (params.get("modalities") or ()):
        yield "audio_output"
    for message in request.messages:
        content = message.get("content")
        for part in content if isinstance(content, list | tuple) else ():
            if isinstance(part, Mapping) and (ability := _PARTS.get(str(part.get("type")))):
                yield ability


def _welcome(request: Request) -> Iterator[str]:
    params = request.params
    if any(params.get(name) is not None and (name, params[name]) != ("temperature", 1) for name in _SAMPLING):
        yield "sampling"
    if params.get("tool_choice", "auto") not in ("auto", "none"):
        yield "forced_tool"
    if (effort := params.get("reasoning_effort")) is not None:
        yield f"effort_{effort}"
    if request.messages[0].get("role") == "system":
        yield "system"
    if request.messages[-1].get("role") == "assistant":
        yield "prefill"


def choose(
    candidates: Sequence[Candidate],
    expected: Callable[[Candidate], int | None],
    problem: Callable[[Candidate], str | None],
    cooling: Callable[[Candidate], bool],
) -> Choice:
    """
    Put the models in the order in which to try them: by expected cost, those that are cooling down last.

    Args:
        expected: Nano-dollars that the request is expected to cost with a model; None if unknown.

        problem: Why a model cannot take the request; None if it can.
    """
    able: list[tuple[bool, int, Candidate]] = []
    out: list[LLMError] = []
    for candidate in candidates:
        why, nano = problem(candidate), expected(candidate)
        if why is None and nano is None:
            why = "What it would cost is unknown"
        if why is not None or nano is None:
            out.append(InvalidRequest(why or "", model=candidate.requested, provider=candidate.provider, hint=""))
        else:
            able.append((cooling(candidate), nano, candidate))
    able.sort(key=lambda each: each[:2])
    return Choice(
        tuple(candidate for _, _, candidate in able),
        tuple(nano for _, nano, _ in able),
        tuple(out),
        frozenset(candidate.requested for is_cooling, _, candidate in able[1:] if is_cooling),
    )


def expected_nano(candidate: Candidate, request: Request, input_tokens: int, output_tokens: float) -> int | None:
    """What a request for text is expected to cost, in nano-dollars; None if that is unknown."""
    limits = [candidate.max_output_tokens, *(request.params.get(name) for name in _LIMITS)]
    output = min([round(output_tokens), *(most for most in limits if isinstance(most, int))])
    return token_cost(Usage(prompt_tokens=input_tokens, completion_tokens=output), candidate.rates)


@dataclass(slots=True)
class UsualOutput:
    """
    Running means of the length of answers, by operation, tool and model; thread-safe, and only of this process.

    A model that has not answered yet is expected to write as much as the others did for the same tool, so that its
    price alone decides.
    """

    _means: dict[tuple[str, str, str], list[float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, operation: str, tool: str | None, model: str, tokens: float, answers: int = 1) -> None:
        """Count an answer, or the mean of several."""
        with self._lock:
            for key in ((operation, tool or "", model), (operation, tool or "", "")):
                mean = self._means.setdefault(key, [0.0, 0.0])
                mean[0] += answers
                mean[1] += (tokens - mean[1]) * answers / mean[0]
                mean[0] = min(mean[0], _MAX_WEIGHT)
            while len(self._means) > _MAX_MEANS:
                del self._means[next(iter(self._means))]

    def of(self, operation: str, tool: str | None, model: str) -> float:
        """Tokens that an answer is expected to have."""
        for key in ((operation, tool or "", model), (operation, tool or "", "")):
            if mean := self._means.get(key):
                return mean[1]
        return FIRST_GUESS


def no_choice(name: str, out: Sequence[LLMError]) -> LLMError:
    """The error of a call for which no model can be chosen, with each model's reason."""
    reasons = " ".join(f"{error.model}: {_reason(error)}" for error in out)
    kinds = {type(error) for error in out}
    kind = kinds.pop() if len(kinds) == 1 else InvalidRequest
    return kind(f"None of the models of {name} can take this request", hint=reasons)


def _reason(error: LLMError) -> str:
    return " ".join(part for part in (f"{error.message}.", error.next_step) if part)
