"""How each OpenAI-compatible provider differs from OpenAI, as a table."""

from collections.abc import Callable
from dataclasses import dataclass, field

from .script import Reply, Usage
from .wire import CREATED, IMAGE_OUTPUT, Body, Call


def _three(usage: Usage) -> Body:
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
    }


def _openai_usage(usage: Usage, _: Reply) -> Body:
    return _three(usage) | {
        "prompt_tokens_details": {"cached_tokens": usage.cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _mistral_usage(usage: Usage, _: Reply) -> Body:
    return _three(usage) | {"prompt_tokens_details": {"cached_tokens": usage.cached}, "service_tier": "standard"}


def _groq_usage(usage: Usage, _: Reply) -> Body:
    times = {"queue_time": 0.031, "prompt_time": 0.002, "completion_time": 0.04, "total_time": 0.042}
    body = _three(usage) | times
    if usage.cached:
        body["prompt_tokens_details"] = {"cached_tokens": usage.cached}
    if usage.reasoning:
        body["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning}
    return body


def _together_usage(usage: Usage, _: Reply) -> Body:
    return _three(usage) | {"cached_tokens": usage.cached}


def _deepseek_usage(usage: Usage, _: Reply) -> Body:
    body = _three(usage) | {"prompt_tokens_details": {"cached_tokens": usage.cached}}
    if usage.reasoning:
        body["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning}
    return body | {
        "prompt_cache_hit_tokens": usage.cached,
        "prompt_cache_miss_tokens": usage.input - usage.cached,
    }


def cost_of(usage: Usage, reply: Reply) -> tuple[float, float]:
    """Cost of prompt and of completion in US$: the scripted one, else 1 and 5 US$ per million tokens."""
    prompt, completion = usage.input * 1e-6, usage.output * 5e-6
    if reply.cost_usd is None:
        return round(prompt, 9), round(completion, 9)
    share = prompt / (prompt + completion) if prompt + completion else 0.0
    prompt = round(reply.cost_usd * share, 12)
    return prompt, round(reply.cost_usd - prompt, 12)


def _openrouter_usage(usage: Usage, reply: Reply) -> Body:
    prompt, completion = cost_of(usage, reply)
    total = reply.cost_usd if reply.cost_usd is not None else round(prompt + completion, 9)
    return _three(usage) | {
        "cost": total,
        "is_byok": False,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached,
            "cache_write_tokens": usage.cache_write,
            "audio_tokens": 0,
            "video_tokens": 0,
        },
        "cost_details": {
            "upstream_inference_cost": total,
            "upstream_inference_prompt_cost": prompt,
            "upstream_inference_completions_cost": completion,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            "image_tokens": IMAGE_OUTPUT * usage.images,
            "audio_tokens": 0,
        },
    }


def _xai_usage(usage: Usage, reply: Reply) -> Body:
    body = _openai_usage(usage, reply)
    body["completion_tokens"] = usage.output - usage.reasoning  # billed reasoning is only in the total
    body["prompt_tokens_details"] = {
        "text_tokens": usage.input - usage.input_images,
        "audio_tokens": 0,
        "image_tokens": usage.input_images,
        "cached_tokens": usage.cached,
    }
    ticks = round(sum(cost_of(usage, reply)) * 1e10)
    return body | {"num_sources_used": 0, "cost_in_usd_ticks": ticks}


def _perplexity_usage(usage: Usage, reply: Reply) -> Body:
    prompt, completion = cost_of(usage, reply)
    cost = {
        "input_tokens_cost": prompt,
        "output_tokens_cost": completion,
        "request_cost": 0.005,
        "total_cost": round(prompt + completion + 0.005, 9),
    }
    return _three(usage) | {"search_context_size": "low", "cost": cost}


def _cerebras_usage(usage: Usage, _: Reply) -> Body:
    return _three(usage) | {
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def _nothing(_: Call) -> Body:
    return {}


def _fingerprint(call: Call) -> Body:
    return {"system_fingerprint": f"fp_{call.ident[:10]}"}


def _openai_top(call: Call) -> Body:
    return {"service_tier": "default"} | _fingerprint(call)


def _groq_top(call: Call) -> Body:
    x_groq = {"id": f"req_{call.ident[:26]}", "seed": 1}
    return _fingerprint(call) | {"usage_breakdown": None, "x_groq": x_groq, "service_tier": "on_demand"}


def _together_top(_: Call) -> Body:
    return {"prompt": []}


def _openrouter_top(_: Call) -> Body:
    return {"provider": "Double", "system_fingerprint": None, "service_tier": None}


def _openrouter_chunk_top(_: Call) -> Body:
    return {"provider": "Double"}


def _perplexity_top(_: Call) -> Body:
    source = {"title": "A page", "url": "https://example.org/page", "date": None, "last_updated": "2026-01-01"}
    return {"citations": ["https://example.org/page"], "search_results": [source]}


def _cerebras_top(call: Call) -> Body:
    times = {"queue_time": 0.001, "prompt_time": 0.002, "completion_time": 0.01, "total_time": 0.02}
    return _fingerprint(call) | {"time_info": times | {"created": CREATED}}


def _azure_top(call: Call) -> Body:
    return _fingerprint(call) | {"prompt_filter_results": [{"prompt_index": 0, "content_filter_results": SAFE}]}


SAFE: Body = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")}


@dataclass(frozen=True)
class Quirks:
    """One provider's departures from OpenAI."""

    usage: Callable[[Usage, Reply], Body] = _openai_usage
    usage_on: str = "own"
    """own: last chunk with `choices: []` when asked for; own_always: unasked too; finish: on the finish chunk;
    after: on a chunk with a choice after the finish; every: running totals on each; x_groq: see Groq."""
    id: str = "chatcmpl-{}"
    top: Callable[[Call], Body] = _nothing
    """Extra keys of a plain answer."""
    chunk_top: Callable[[Call], Body] = _nothing
    """Extra keys of each chunk."""
    message: Body = field(default_factory=dict)
    choice: Body = field(default_factory=dict)
    chunk_choice: Body = field(default_factory=dict)
    delta: Body = field(default_factory=dict)
    """Keys on every delta."""
    first: Body | None = field(default_factory=lambda: {"role": "assistant", "content": ""})
    """The delta of the role chunk; None: the role comes with the text."""
    last: Body = field(default_factory=dict)
    """The delta of the finish chunk."""
    bare: bool = False
    """Chunks before the finish have no `finish_reason` key."""
    reasoning: str = ""
    """The key that carries reasoning text; "thinking": Mistral's content parts; "": never shown."""
    tools_at_once: bool = True
    """A call's arguments come in one delta, not in pieces."""
    refusal: bool = False
    """Has a `refusal` field; elsewhere a refusal is plain text."""
    done: bool = True
    comments: int = 0
    """How often `: OPENROUTER PROCESSING` comes first."""
    prefix: bytes = b""
    """White space before a plain body."""


_OPENROUTER_CHOICE: Body = {"logprobs": None, "native_finish_reason": None}

QUIRKS: dict[str, Quirks] = {
    "openai": Quirks(
        top=_openai_top,
        chunk_top=_openai_top,
        message={"refusal": None, "annotations": []},
        choice={"logprobs": None},
        chunk_choice={"logprobs": None},
        first={"role": "assistant", "content": "", "refusal": None},
        tools_at_once=False,
        refusal=True,
    ),
    "azure": Quirks(
        top=_azure_top,
        chunk_top=_fingerprint,
        message={"refusal": None, "annotations": []},
        choice={"logprobs": None, "content_filter_results": SAFE},
        chunk_choice={"logprobs": None, "content_filter_results": {}},
        first={"role": "assistant", "content": "", "refusal": None},
        tools_at_once=False,
        refusal=True,
    ),
    "mistral": Quirks(
        usage=_mistral_usage,
        usage_on="finish",
        id="{}",
        message={"tool_calls": None},
        last={"content": ""},
        reasoning="thinking",
    ),
    "groq": Quirks(
        usage=_groq_usage,
        usage_on="x_groq",
        top=_groq_top,
        chunk_top=_fingerprint,
        choice={"logprobs": None},
        chunk_choice={"logprobs": None},
        reasoning="reasoning",
    ),
    "together_ai": Quirks(
        usage=_together_usage,
        usage_on="finish",
        id="{:.7}-double-{:.16}",
        top=_together_top,
        message={"tool_calls": []},
        choice={"seed": 1, "logprobs": None},
        chunk_choice={"text": "", "seed": None, "logprobs": None},
        delta={"role": "assistant", "tool_calls": None},
        first=None,
        last={"content": ""},
        reasoning="reasoning",
    ),
    "deepseek": Quirks(
        usage=_deepseek_usage,
        usage_on="finish",
        id="{}",
        top=_fingerprint,
        chunk_top=_fingerprint,
        choice={"logprobs": None},
        chunk_choice={"logprobs": None},
        last={"content": ""},
        reasoning="reasoning_content",
        tools_at_once=False,
    ),
    "openrouter": Quirks(
        usage=_openrouter_usage,
        usage_on="after",
        id="gen-1767225600-{:.20}",
        top=_openrouter_top,
        chunk_top=_openrouter_chunk_top,
        message={"refusal": None, "reasoning": None},
        choice=_OPENROUTER_CHOICE,
        chunk_choice=_OPENROUTER_CHOICE,
        delta={"role": "assistant", "content": ""},
        first=None,
        reasoning="reasoning",
        refusal=True,
        comments=2,
        prefix=b"\n         " * 3,
    ),
    "xai": Quirks(
        usage=_xai_usage,
        usage_on="own_always",
        id="{}",
        top=_fingerprint,
        chunk_top=_fingerprint,
        message={"refusal": None},
        delta={"role": "assistant"},
        first=None,
        bare=True,
        reasoning="reasoning_content",
        refusal=True,
    ),
    "perplexity": Quirks(
        usage=_perplexity_usage,
        usage_on="every",
        id="{}",
        top=_perplexity_top,
        chunk_top=_perplexity_top,
        choice={"delta": {"role": "assistant", "content": ""}},
        delta={"role": "assistant"},
        first=None,
        last={"content": ""},
        done=False,
    ),
    "cerebras": Quirks(
        usage=_cerebras_usage,
        usage_on="finish",
        top=_cerebras_top,
        chunk_top=_fingerprint,
        reasoning="reasoning",
        first={"role": "assistant"},
        bare=True,
    ),
    "huggingface": Quirks(usage_on="finish", last={"content": ""}),
}


def dress(data: Body, quirks: Quirks, call: Call) -> Body:
    """A chunk or an answer with its id and date."""
    return {"id": quirks.id.format(call.ident, call.ident), "created": CREATED} | data
