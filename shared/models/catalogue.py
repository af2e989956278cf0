"""Which models are known by name, what each is called on the wire, and what replaces those that are gone."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import lru_cache, partial
from typing import Any

from shared.config import Settings
from shared.errors import (
    ConfigurationError,
    ModelNotFound,
    ModelRetired,
)
from shared.models.abilities import suggested
from shared.models.image_options import IMAGE_PROVIDERS
from shared.models.keys import (
    KEYLESS_PROVIDERS,
    has_key,
    is_loopback,
    is_own_host,
    provider_base,
    region_of,
)
from shared.models.names import model_facts
from shared.prices import FREE, UNKNOWN, TableEntry, price_overrides, price_table, rates_of, rates_of_config, scaled
from shared.scope import Scope
from shared.types import Candidate, ModelConfig, Rates, Served, TaskType, Unit

logger = logging.getLogger("agentswarm_tools")

LOCAL_MODEL = "local/smollm2-135m"
_LOCAL_WINDOW = 2048
_CHAT_MODES = frozenset({"chat", "responses", "completion"})
# Providers that act with the operator's own login, or pass the call on to somebody else.
PROXY_PROVIDERS = frozenset({"github_copilot", "chatgpt", "litellm_proxy", "oobabooga", "custom", "custom_openai"})
ENDPOINT_OF_NOBODY = frozenset({"custom", "custom_openai"})
PROVIDER_NAMES = {"cohere_chat": "cohere", "text-completion-openai": "openai", "vertex_ai_beta": "vertex_ai"}
# What runs on this machine and is told so by its name; a server that only may be here has no price unless it is given.
_FREE_HERE = frozenset({"local", "ollama", "ollama_chat"})
# Google's page has a price for audio only where it differs from that of text.
# Source: ai.google.dev/gemini-api/docs/pricing (read 2026-11-27).
_ONE_PRICE = frozenset({"gemini", "vertex_ai"})
# Tiers that never cost less than the standard one.
_FASTER = frozenset({"priority", "fast"})
_REGIONS = frozenset({"us", "eu"})
# What an entry of the user's prices says about money: the table's own is left out where there is any.
MONEY = frozenset({"prices", "above", "times", "changes", "disputed", "sizes", "free"})


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The models that a client knows by name."""

    configs: Mapping[str, ModelConfig]
    overrides: Mapping[str, TableEntry]
    overrides_version: str | None = None

    @classmethod
    def load(cls, settings: Settings, configs: Mapping[str, ModelConfig] | None = None) -> Catalogue:
        """
        The built-in tables with the caller's own models and prices on top.

        Raises:
            ConfigurationError: The file named by AGENTSWARM_PRICES cannot be read.
        """
        if settings.prices is None:
            return cls(dict(configs or {}), {})
        try:
            changed = settings.prices.stat().st_mtime_ns
        except OSError:
            changed = 0
        overrides, version = price_overrides(settings.prices, changed)
        return cls(dict(configs or {}), overrides, version)


def resolve(
    name: str,
    *,
    catalogue: Catalogue,
    settings: Settings,
    scope: Scope,
    api_base: str | None = None,
    service_tier: str | None = None,
    task: TaskType = TaskType.CHAT_COMPLETION,
) -> Candidate:
    """
    The candidate that `name` stands for, without its key.

    Raises:
        ModelNotFound: The name is unknown, or (ModelRetired) its provider has shut it down and upgrades are off.
    """
    config = catalogue.configs.get(name)
    if config is not None:
        return _custom(name, config, api_base)
    if name.startswith("local/"):
        return _local(name)
    provider, wire_model, entry = look_up(name, task, catalogue.overrides)
    if provider is None and (api_base or provider_base("openai")):
        provider = "custom" if api_base else "openai"
    base = api_base or (provider_base(provider) if provider else None)
    retired = retirement(provider, wire_model) if base is None else None
    if retired is not None:
        successor = _successor(name, provider, retired, settings)
        upgraded = resolve(
            successor, catalogue=catalogue, settings=settings, scope=scope, service_tier=service_tier, task=task
        )
        return replace(upgraded, requested=name, note=f"{name} was shut down; {successor} was used")
    if provider is None:
        raise ModelNotFound(f"No model is called {name}{_similar(name)}", model=name)
    limits = entry or {}
    # What this machine passes on, a proxy or a recorder, is charged by the provider that the name says.
    own_endpoint = api_base is not None or has_own_endpoint(provider)
    return Candidate(
        requested=name,
        model=name,
        provider=provider,
        wire_model=wire_model,
        rates=_in_region(
            _rates(name, provider, wire_model, entry, catalogue, service_tier, own_endpoint=own_endpoint),
            limits,
            region_of(provider, base),
        ),
        max_output_tokens=limits.get("max_output"),
        max_input_tokens=limits.get("window"),
        api_base=base,
        guarded=limits.get("mode", "chat") == "chat",
        rates_as=None
        if own_endpoint
        else partial(_rates_as, catalogue, (name, provider, wire_model), service_tier, region_of(provider, base)),
    )


def _custom(name: str, config: ModelConfig, api_base: str | None) -> Candidate:
    """The candidate of a model that the caller described."""
    wire = config.litellm_model or name
    prefix, _, rest = wire.partition("/")
    if rest and prefix in known_providers():
        provider, wire_model = PROVIDER_NAMES.get(prefix, prefix), rest
    else:
        provider, wire_model = config.provider, wire
    base = api_base or config.api_base or provider_base(provider)
    if base is None and (provider not in known_providers() or provider in ENDPOINT_OF_NOBODY):
        raise ConfigurationError(
            f"{name} has no endpoint",
            model=name,
            hint="Give its ModelConfig an api_base, or a litellm_model such as openai/gpt-5.4-mini.",
        )
    return Candidate(
        requested=name,
        model=name,
        provider=provider,
        wire_model=wire_model,
        rates=rates_of_config(config),
        max_output_tokens=config.max_tokens,
        max_input_tokens=config.max_input_tokens,
        api_base=base,
    )


def _local(name: str) -> Candidate:
    if name != LOCAL_MODEL:
        raise ModelNotFound(f"No local model is called {name}", model=name, hint=f"There is {LOCAL_MODEL}.")
    return Candidate(
        requested=name,
        model=name,
        provider="local",
        wire_model=name.removeprefix("local/"),
        rates=FREE,
        max_output_tokens=_LOCAL_WINDOW,
        max_input_tokens=_LOCAL_WINDOW,
    )


def look_up(
    name: str, task: TaskType = TaskType.CHAT_COMPLETION, overrides: Mapping[str, TableEntry] | None = None
) -> tuple[str | None, str, TableEntry | None]:
    """
    Provider, name on the wire and table entry; provider None if the name is unknown.

    Args:
        overrides: The user's own entries, which are put over the table's.
    """
    provider, wire_model, entry = _look_up(name, task)
    own = (
        next((overrides[key] for key in keys_of(name, provider, wire_model) if key in overrides), None)
        if overrides
        else None
    )
    if own is None:
        return provider, wire_model, entry
    if provider is None and own.get("provider") in known_providers():
        provider = PROVIDER_NAMES.get(own["provider"], own["provider"])
    return provider, wire_model, _overlaid(entry or {}, own)


def keys_of(name: str, provider: str | None, wire_model: str) -> tuple[str, ...]:
    """The names by which the user's file may price a model."""
    return name, f"{provider}/{wire_model}", wire_model


def _overlaid(entry: TableEntry, own: TableEntry) -> TableEntry:
    if not MONEY.isdisjoint(own):
        entry = {key: value for key, value in entry.items() if key not in MONEY}
    return {**entry, **own}


def _look_up(name: str, task: TaskType) -> tuple[str | None, str, TableEntry | None]:
    table = price_table()
    prefix, _, rest = name.partition("/")
    if rest and prefix in known_providers():
        provider = PROVIDER_NAMES.get(prefix, prefix)
        return _followed(provider, rest, _entry(provider, rest))
    if f"gemini/{name}" in table:
        return _followed("gemini", name, table[f"gemini/{name}"])
    full = table.bare.get(name) or (f"openai/{name}" if name.startswith("ft:") else "")
    entry = _entry(*split(full)) if full else None
    modes = _CHAT_MODES | {"image_generation"} if task is TaskType.IMAGE_GENERATION else _CHAT_MODES
    if entry is not None and ("alias" in entry or entry["mode"] in modes):
        return _followed(full.partition("/")[0], name, entry)
    for retired in model_facts()["retired"]:
        if retired.split("/", 1)[1] == name:
            return retired.split("/", 1)[0], name, None
    return None, name, None


def _entry(provider: str, wire_model: str) -> TableEntry | None:
    """The table's entry; that of its base, at the price of tuned models, for a tuned model."""
    table = price_table()
    found = table.get(f"{provider}/{wire_model}")
    if found is None and wire_model.startswith("ft:"):
        found = table.get(f"{provider}/{':'.join(wire_model.split(':')[:2])}")
    return found


def _followed(provider: str, wire_model: str, entry: TableEntry | None) -> tuple[str, str, TableEntry | None]:
    """The model that a name such as claude-opus-latest stands for, where the provider does not know that name."""
    if entry is None or "alias" not in entry:
        return provider, wire_model, entry
    provider, wire_model = split(entry["alias"])
    return provider, wire_model, price_table()[entry["alias"]]


def split(full: str) -> tuple[str, str]:
    """Provider and name on the wire of a full name."""
    provider, _, wire_model = full.partition("/")
    return provider, wire_model


@lru_cache(maxsize=1)
def known_providers() -> frozenset[str]:
    """Providers that the price table or this package's catalogue names."""
    named = price_table().providers | set(model_facts()["suggested"]) | set(PROVIDER_NAMES)
    return named | KEYLESS_PROVIDERS | PROXY_PROVIDERS | IMAGE_PROVIDERS


def _rates(
    name: str,
    provider: str,
    wire_model: str,
    entry: TableEntry | None,
    catalogue: Catalogue,
    service_tier: str | None,
    *,
    own_endpoint: bool,
    now: datetime | None = None,
) -> Rates:
    """The user's price first, then the table's; a model at somebody's own endpoint has no price in the table."""
    own_price = _is_own_price(catalogue, name, provider, wire_model)
    if entry is not None and own_price:
        return rates_of(entry, service_tier=service_tier, version=catalogue.overrides_version, now=now)
    if provider in _FREE_HERE and not own_endpoint:
        return FREE
    if own_endpoint or entry is None or provider in KEYLESS_PROVIDERS:
        return UNKNOWN
    rates = rates_of(entry, service_tier=service_tier, now=now)
    return _one_price(rates) if provider in _ONE_PRICE and not _says_audio(entry) else rates


def _is_own_price(catalogue: Catalogue, name: str, provider: str, wire_model: str) -> bool:
    return any(not MONEY.isdisjoint(catalogue.overrides.get(key, ())) for key in keys_of(name, provider, wire_model))


def _says_audio(entry: TableEntry) -> bool:
    return "input_audio" in entry.get("prices", {}).get("default", {})


def _one_price(rates: Rates) -> Rates:
    """The rates with audio at the price of text."""

    def filled(prices: Mapping[Unit, Decimal]) -> Mapping[Unit, Decimal]:
        audio: tuple[tuple[Unit, Unit], ...] = (("input_audio", "input"), ("cached_audio", "cached"))
        return {**{unit: prices[of] for unit, of in audio if of in prices}, **prices}

    return replace(rates, prices=filled(rates.prices), above=tuple((size, filled(at)) for size, at in rates.above))


def _rates_as(
    catalogue: Catalogue, asked: tuple[str, str, str], asked_tier: str | None, region: str | None, served: Served
) -> Rates:
    """The rates of a request as the provider says that it was served."""
    _, provider, wire_model = asked
    served = replace(served, region=served.region or region)
    tier, model = served.tier or asked_tier, served.model or ""
    found = _rates_at(catalogue, asked, tier, served)
    if served.is_other or _may_be_other(model, wire_model, found, _is_own_price(catalogue, *asked)):
        model = model.removeprefix("models/").removeprefix(f"{provider}/")
        other = _rates_at(catalogue, (f"{provider}/{model}", provider, model), tier, served)
        if served.is_other:
            return other
        if other.source != "unknown" and not _same_price(other, found):
            found = other
    return found


def rates_served(catalogue: Catalogue, model: str, provider: str, served: Served) -> Rates:
    """The rates of a request that was made earlier, by today's table."""
    wire_model = model.removeprefix(f"{provider}/")
    return _rates_as(
        catalogue, (model, provider, wire_model), None, region_of(provider, provider_base(provider)), served
    )


def has_own_endpoint(provider: str) -> bool:
    """Whether requests under this provider's name go to an endpoint of the user's own, which has no list price."""
    base = provider_base(provider)
    return is_own_host(provider, base) and not is_loopback(base)


def _may_be_other(model: str, wire_model: str, rates: Rates, is_own_price: bool) -> bool:
    """
    Whether a model that an answer names may have a price of its own.

    A name that the asked one begins with says less than that: gpt-4o for gpt-4o-2024-05-13, the base for a tuned model.
    """
    if not model or is_own_price or rates.source == "free":
        return False
    asked = wire_model.removeprefix("ft:")
    return not asked.startswith(model) or rates.source == "unknown"


def _same_price(one: Rates, other: Rates) -> bool:
    """Whether two entries say the same of text: then that of the asked name stays, as it may say more."""
    return all(one.prices.get(unit) == other.prices.get(unit) for unit in ("input", "output"))


def _rates_at(catalogue: Catalogue, asked: tuple[str, str, str], tier: str | None, served: Served) -> Rates:
    """The rates of a model by tier, region and time; at least those of the standard tier where a faster has none."""
    name, provider, wire_model = asked
    found, wire_model, entry = look_up(name, overrides=catalogue.overrides)
    if entry is None:
        found, wire_model, entry = look_up(f"{provider}/{wire_model}", overrides=catalogue.overrides)
    if found != provider or entry is None:
        return UNKNOWN if provider not in _FREE_HERE else FREE

    def at(tier: str | None) -> Rates:
        return _rates(name, provider, wire_model, entry, catalogue, tier, own_endpoint=False, now=served.when)

    rates = at(tier)
    if rates.source == "unknown" and tier in _FASTER:
        standard = at(None)
        factor = entry.get("multipliers", {}).get(tier)
        rates = scaled(standard, Decimal(factor)) if factor else replace(standard, at_least=True)
    return _in_region(rates, entry, served.region)


def _in_region(rates: Rates, entry: TableEntry, region: str | None) -> Rates:
    """The rates in a region, where the entry prices regions at all; at least the standard ones in another."""
    multipliers = entry.get("multipliers", {})
    if region is None or rates.source != "table" or multipliers.keys().isdisjoint(_REGIONS):
        return rates
    return scaled(rates, Decimal(multipliers[region])) if region in multipliers else replace(rates, at_least=True)


def retirement(provider: str | None, wire_model: str) -> Mapping[str, Any] | None:
    """What is known of a model that is shut down by today; None when it is alive."""
    found = announced_retirement(f"{provider}/{wire_model}")
    if found is None or (found["date"] and date.fromisoformat(found["date"]) > datetime.now(UTC).date()):
        return None
    return found


def announced_retirement(name: str) -> Mapping[str, Any] | None:
    """
    The end of a model, past or announced, with `date` (None: not verified), `successor` and `source`.

    The table counts only at providers that are called by the names of their models: a cloud's deployment may have any
    name, and a date without a successor helps nobody.
    """
    written = model_facts()["retired"].get(name)
    entry = price_table().get(name, {}) if written or split(name)[0] in model_facts()["suggested"] else {}
    if written is not None:
        return {**written, "date": written.get("date") or entry.get("retires")}
    if "retires" not in entry or "successor" not in entry:
        return None
    source = f"price table of {price_table().date}"
    return {"date": entry["retires"], "successor": entry["successor"], "source": source}


def _successor(name: str, provider: str | None, retired: Mapping[str, Any], settings: Settings) -> str:
    """
    The model to use instead, said once per process.

    Raises:
        ModelRetired: Upgrades are switched off, or the data would go to a provider that nobody named.
    """
    successor = str(retired["successor"])
    day = f" on {retired['date']}" if retired["date"] else ""
    if not settings.upgrade_retired_models or not successor.startswith(f"{provider}/"):
        error = ModelRetired(f"{name} was shut down{day}", successor=successor)
        error.model = name
        raise error
    warn_once(f"{name} was shut down{day}; using {successor} instead.")
    return successor


@lru_cache(maxsize=200)
def warn_once(message: str) -> None:
    """Log a warning that has not been logged before."""
    logger.warning(message)


def usable_models(task: TaskType = TaskType.CHAT_COMPLETION) -> list[str]:
    """One known model of each provider whose key is set."""
    return [name for provider, name in suggested(task).items() if has_key(provider)]


def _similar(name: str) -> str:
    names = _chat_names()
    close = difflib.get_close_matches(name, names, n=9, cutoff=0.75)
    close = [each for each in close if retirement(*split(names[each])) is None][:3]
    return f"; similar: {', '.join(close)}" if close else ""


@lru_cache(maxsize=1)
def _chat_names() -> Mapping[str, str]:
    """Chat models by their names, as short as they may be given; the value is the full one."""
    table = price_table()
    return {split(name)[1] if table.bare.get(split(name)[1]) == name else name: name for name in table.in_mode("chat")}


def retired_models() -> dict[str, str]:
    """What to say of each model that its provider has shut down, or will."""
    names = sorted({*model_facts()["retired"], *price_table().naming("retires")})
    found = {name: facts for name in names if (facts := announced_retirement(name)) is not None}
    today = datetime.now(UTC).date().isoformat()
    return {
        name: f"{name}: {'retires' if (facts['date'] or '') > today else 'shut down'} "
        f"{facts['date'] or '(day not verified)'}, use {facts['successor']} ({facts['source']})"
        for name, facts in found.items()
    }
