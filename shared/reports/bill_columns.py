"""What each column of the reports that providers send of usage and costs means: data, with its sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# What a column is used for; those without a use are known, and not compared.
UNUSED = ""

# OpenAI: types/admin/organization/usage_*_response.py of the package openai 2.44.0, which is generated from OpenAI's
# OpenAPI document (read 2026-11-28); quantity_unit: cost_quantity_unit.py in its repository (read 2026-11-28).
# organization_id: the answers printed in the OpenAI Cookbook, examples/completions_usage_api (read 2026-11-28).
# organization_name, and the tokens by kind: an export of the usage page, in github.com/xavierjflanagan/Guardian (read
# 2026-11-28), whose other columns are those of the API.
_OPENAI_GROUPS = dict.fromkeys(("project_id", "user_id", "api_key_id", "organization_id", "organization_name"), UNUSED)
_OPENAI_TOKENS = {
    "input_tokens": "input_and_cached",
    "input_cached_tokens": "cached",
    "output_tokens": "output",
    **dict.fromkeys(
        (
            "input_uncached_tokens", "input_text_tokens", "output_text_tokens", "input_cached_text_tokens",
            "input_audio_tokens", "input_cached_audio_tokens", "output_audio_tokens", "input_image_tokens",
            "input_cached_image_tokens", "output_image_tokens",
        ),
        UNUSED,
    ),
}  # fmt: skip
_OPENAI_MODEL = {"object": UNUSED, "model": "model", "num_model_requests": "requests", **_OPENAI_GROUPS}


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """
    One kind of report: its name for people, whether it has money, and what each column of a result is used for.

    A column of a column is named with a dot. `figures` are the columns whose values add up; the others say of what.
    """

    name: str
    has_money: bool
    columns: Mapping[str, str]
    figures: frozenset[str]

    @property
    def counts_requests(self) -> bool:
        """Whether it says what requests to chat models used, so that it can be held against the ledger's rows."""
        return "output" in self.columns.values()


def _usage(name: str, columns: Mapping[str, str], *figures: str) -> Report:
    return Report(name, False, columns, frozenset({"num_model_requests", "num_requests", *figures}))


# By the `object` of a result.
OPENAI: Mapping[str, Report] = {
    "organization.costs.result": Report(
        "costs",
        True,
        {
            "object": UNUSED,
            "amount.value": "usd",
            "amount.currency": "currency",
            "line_item": "line",
            "quantity": "quantity",
            "quantity_unit": "quantity_unit",
            **_OPENAI_GROUPS,
        },
        frozenset({"amount.value", "quantity"}),
    ),
    "organization.usage.completions.result": _usage(
        "usage of completions",
        {**_OPENAI_MODEL, **_OPENAI_TOKENS, "batch": UNUSED, "service_tier": UNUSED},
        *_OPENAI_TOKENS,
    ),
    "organization.usage.embeddings.result": _usage(
        "usage of embeddings", {**_OPENAI_MODEL, "input_tokens": "input_and_cached"}, "input_tokens"
    ),
    "organization.usage.moderations.result": _usage(
        "usage of moderations", {**_OPENAI_MODEL, "input_tokens": "input_and_cached"}, "input_tokens"
    ),
    "organization.usage.images.result": _usage(
        "usage of images", {**_OPENAI_MODEL, "images": UNUSED, "size": UNUSED, "source": UNUSED}, "images"
    ),
    "organization.usage.audio_speeches.result": _usage(
        "usage of speech", {**_OPENAI_MODEL, "characters": UNUSED}, "characters"
    ),
    "organization.usage.audio_transcriptions.result": _usage(
        "usage of transcriptions", {**_OPENAI_MODEL, "seconds": UNUSED}, "seconds"
    ),
    # Those below are of no model that a request names, so their requests are not counted against the ledger's.
    "organization.usage.web_searches.result": _usage(
        "usage of web searches",
        {**_OPENAI_MODEL, "num_model_requests": UNUSED, "num_requests": UNUSED, "context_level": UNUSED},
    ),
    "organization.usage.file_searches.result": _usage(
        "usage of file searches",
        {"object": UNUSED, "num_requests": UNUSED, "vector_store_id": UNUSED, **_OPENAI_GROUPS},
    ),
    "organization.usage.vector_stores.result": _usage(
        "usage of vector stores", {"object": UNUSED, "usage_bytes": UNUSED, **_OPENAI_GROUPS}, "usage_bytes"
    ),
    "organization.usage.code_interpreter_sessions.result": _usage(
        "usage of code interpreters", {"object": UNUSED, "num_sessions": UNUSED, **_OPENAI_GROUPS}, "num_sessions"
    ),
}

# By a column that only one of them has. Source: platform.claude.com/docs/en/api/admin/cost_report/retrieve and
# .../admin/usage_report/retrieve_messages (read 2026-11-28): an amount is "in lowest currency units (e.g. cents) as a
# decimal string. For example, "123.45" in "USD" represents $1.23"; each usage column counts tokens or requests of its
# own, so that input tokens are without those of the cache.
ANTHROPIC: Mapping[str, Report] = {
    "amount": Report(
        "cost report",
        True,
        {
            "amount": "cents",
            "currency": "currency",
            "model": "model",
            "token_type": "unit",
            "cost_type": "kind",
            "description": "line",
            **dict.fromkeys(("context_window", "service_tier", "inference_geo", "speed", "workspace_id"), UNUSED),
        },
        frozenset({"amount"}),
    ),
    "uncached_input_tokens": _usage(
        "messages usage report",
        {
            "model": "model",
            "uncached_input_tokens": "input",
            "cache_read_input_tokens": "cached",
            "cache_creation.ephemeral_5m_input_tokens": "cache_write",
            "cache_creation.ephemeral_1h_input_tokens": "cache_write",
            "output_tokens": "output",
            "server_tool_use.web_search_requests": UNUSED,
            **dict.fromkeys(
                (
                    "context_window", "service_tier", "inference_geo", "speed", "workspace_id", "api_key_id",
                    "account_id", "service_account_id",
                ),
                UNUSED,
            ),
        },
        "uncached_input_tokens",
        "cache_read_input_tokens",
        "cache_creation.ephemeral_5m_input_tokens",
        "cache_creation.ephemeral_1h_input_tokens",
        "output_tokens",
        "server_tool_use.web_search_requests",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Format:
    """How a provider's pages are built: their own columns, those of a bucket, and its first and last moment."""

    reports: Mapping[str, Report]
    page: frozenset[str]
    bucket: frozenset[str]
    start: str
    end: str


FORMATS: Mapping[str, Format] = {
    "openai": Format(
        OPENAI,
        frozenset({"object", "data", "has_more", "next_page"}),
        frozenset({"object", "start_time", "end_time", "results"}),
        "start_time",
        "end_time",
    ),
    "anthropic": Format(
        ANTHROPIC,
        frozenset({"data", "has_more", "next_page"}),
        frozenset({"starting_at", "ending_at", "results"}),
        "starting_at",
        "ending_at",
    ),
}

# What a line of a bill calls the kinds of tokens, and what we call them.
UNITS: Mapping[str, str] = {
    # OpenAI's line items, which it does not document: seen in the Cookbook ("ft-gpt-4o-2024-08-06, input") and in
    # programs that read real bills: "gpt-5.5-2026-04-23, cached input", "priority | gpt-5.6-sol, output, long context".
    "input": "input",
    "cached input": "cached",
    "cache writes": "cache_write",
    "output": "output",
    # Anthropic's token_type.
    "uncached_input_tokens": "input",
    "cache_read_input_tokens": "cached",
    "cache_creation.ephemeral_5m_input_tokens": "cache_write",
    "cache_creation.ephemeral_1h_input_tokens": "cache_write",
    "output_tokens": "output",
}
# Words before a model in a line item that are a service tier, and not another product.
TIERS = frozenset({"priority", "flex", "batch", "standard", "default", "scale"})
# What bills list apart from the model, by words in the line, and the units that rows have for it.
TOOLS: Mapping[str, tuple[str, ...]] = {
    "web search": ("search", "search_low", "search_medium", "search_high"),
    "file search": ("file_search",),
    "code interpreter": ("code_session",),
    "code execution": ("code_session",),
}
# How many of a unit one of a quantity is; others are not of tokens. OpenAI sends none in older answers.
TOKENS_IN: Mapping[str | None, int] = {None: 1, "tokens": 1, "1000_tokens": 1000}
