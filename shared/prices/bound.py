"""The most that a request can cost, computed from the body that is sent."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, cast

from shared.internal.money import NANO, to_nano
from shared.prices.images import LARGEST_OF_CHAT, images_bound
from shared.prices.parameters import (
    Rules,
    Tool,
    exa,
    has_no_bound,
    is_free_header,
    is_free_of_images,
    live_search_most,
    makes_images,
    passes_on,
    plain,
    rules_of,
    searching_of,
    tier_rules,
)
from shared.prices.rates import highest_rates
from shared.prices.units import TOKENS
from shared.types import Candidate, ImageRequest, Rates, Request, Served, TaskType, Unit

# A message's role, name and separators in tokens; 3 or 4 by OpenAI's cookbook (read 2026-11-24), kept generous.
_TOKENS_PER_MESSAGE = 16
# What a provider adds to a request before it counts: a chat template, and the prompt that explains tools (530 at
# Anthropic, by its page on tool use), kept generous.
_TOKENS_PER_REQUEST = 256
_TOKENS_FOR_TOOLS = 1024
# A shorter answer than this is not worth paying for.
MIN_OUTPUT_TOKENS = 64
# What a token of text may be billed as, without anything that the request would have to ask for.
_IN: tuple[Unit, ...] = ("input", "cached", "cache_write", "cache_write_1h", "cache_write_12h")
_OUT: tuple[Unit, ...] = ("output", "reasoning", "output_image")
# The units that each kind of part may be billed as; the first that has a price counts, and one must.
_KINDS: Mapping[str, tuple[tuple[Unit, ...], ...]] = {
    "image": (("input_image", "input"),),
    "audio": (("input_audio",),),
    "video": (("input_video", "input"), ("input_audio", "input")),
    "any": (("input_image", "input"), ("input_video", "input"), ("input_audio", "input")),
}
# Anthropic's prices of writing to the cache, where the entry has none, as multiples of that of input.
# Source: platform.claude.com/docs/en/build-with-claude/prompt-caching (read 2026-11-27).
_WRITE, _WRITE_1H = Decimal("1.25"), Decimal(2)
# What one request may be charged beside its tokens.
_FEES = frozenset(
    {"request", "search", "search_low", "search_medium", "search_high", "file_search", "maps", "code_session", "image"}
)
_PRICE = "price"
_LENGTH = "max_tokens"


@dataclass(frozen=True, slots=True)
class Sent:
    """
    A request as it is sent to a provider.

    Args:
        size: Bytes of the text, or of its NFKC form where that is longer, since some tokenizers normalise first.

        picture_tokens: Tokens of its pictures, if those of all are known; `size` then leaves their data out.

        headers: Those that the caller added.

        pass_through: The parameter whose content we do not understand; None if there is none.

        marks: "cache_control" if it asks for a cache to be written, "1h" if for an hour.
    """

    wire: str
    body: Mapping[str, Any]
    size: int
    picture_tokens: int | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)
    pass_through: str | None = None
    marks: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Bound:
    """
    The most that one attempt can cost, by the length of its answer.

    Args:
        fixed: US$ for everything but the answer.

        per_token: US$ for one more token of the longest answer.

        output: The longest answer as sent, in tokens, else the longest that the model writes.

        least_output: The shortest answer worth paying for, beside the hidden reasoning that was asked for.

        most_output: The longest answer that the model writes, or that its window has room for; None if unknown.

        unknown: What has no bound: "price", or the parameter; None if everything has one.
    """

    fixed: Decimal = Decimal(0)
    per_token: Decimal = Decimal(0)
    output: int = 0
    least_output: int = MIN_OUTPUT_TOKENS
    most_output: int | None = None
    unknown: str | None = None

    def nano(self, output: int | None = None) -> int | None:
        """Nano-dollars of an answer of at most so many tokens, or of the longest; None if there is no bound."""
        if self.unknown is not None:
            return None
        return to_nano(self.fixed + self.per_token * (self.output if output is None else output))

    def affordable(self, nano: int) -> int | None:
        """The longest answer, in tokens, with which the attempt costs at most so much; None if that is unknown."""
        if self.unknown is not None:
            return None
        limits = [] if self.most_output is None else [self.most_output]
        if self.per_token:
            limits.append(int((Decimal(nano) / NANO - self.fixed) // self.per_token))
        return min(limits, default=None)


def pin_of(candidate: Candidate, body: Mapping[str, Any]) -> tuple[tuple[str], str] | None:
    """Where and how the standard service tier is asked for, if the provider takes it and the body asks for none."""
    rules = tier_rules(candidate.provider)
    is_providers_own = candidate.rates_as is not None or candidate.api_base is None
    if rules.pin is None or candidate.answered_at is not None or not is_providers_own:
        return None
    return None if any(plain(name) == plain(rules.field) for name in body) else ((rules.field,), rules.pin)


def limit_of(wire: str, body: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Where the body has the longest answer; None unless there is one such place."""
    found = [path for steps in rules_of(wire).limits if (path := _path_in(body, steps)) is not None]
    return found[0] if len(found) == 1 else None


FREE_BOUND = Bound()
NO_PRICE = Bound(unknown=_PRICE)


def bound_of_sent(candidate: Candidate, sent: Sent) -> Bound:
    """
    The most that one attempt can cost.

    Input is bounded by its bytes, since no tokenizer makes more tokens than bytes; where it holds more than text, by
    the model's window. Output is bounded by the limit that is sent, else by the model's own maximum. Everything else
    that the body asks for must be known to cost nothing, or has a bound of its own.
    """
    if candidate.rates.source == "free":
        return FREE_BOUND
    rules, asked = rules_of(sent.wire), _Asked()
    rates = _rates(candidate, sent, asked)
    if not rates and asked.unknown is None:
        return NO_PRICE
    _read_body(candidate, sent, rules, asked)
    if asked.unknown is not None:
        return Bound(unknown=asked.unknown)
    return _priced(candidate, sent, rules, asked, rates)


def upper_bound(candidate: Candidate, request: Request, image: ImageRequest | None = None) -> int | None:
    """
    The most that one attempt can cost, in nano-dollars; None when no bound is known.

    Args:
        request: Taken as the body of OpenAI's format.

        image: For a request for images: what the model is asked for, in its words.
    """
    if request.task is not TaskType.IMAGE_GENERATION:
        return bound_of_sent(candidate, as_sent(candidate, request)).nano()
    return image_bound(candidate, request, image).nano()


def image_bound(candidate: Candidate, request: Request, image: ImageRequest | None) -> Bound:
    """The most that one request for images can cost."""
    if candidate.rates.source == "free":
        return FREE_BOUND
    for name in ("extra_body", "extra_headers"):
        if request.params.get(name):
            return Bound(unknown=name)
    unknown = next((name for name in (image.extras if image else ()) if not is_free_of_images(name)), None)
    if unknown is not None:
        return Bound(unknown=unknown)
    usd = None if image is None else images_bound(candidate, request, image, max_prompt_tokens(request))
    return NO_PRICE if usd is None or candidate.rates.source == "unknown" else Bound(usd)


def highest_bound(candidate: Candidate, answers: int = 1) -> Bound:
    """
    What a request that has no bound is held at: the largest window and the longest answer of the candidate's provider,
    at the rates of its most expensive models, and one of each of its fees. It may still cost more.
    """
    highest = highest_rates(candidate.provider)
    prices = highest.rates.prices
    read = max(price for unit, price in prices.items() if unit in TOKENS and not _is_written(unit))
    wrote = max(price for unit, price in prices.items() if unit in TOKENS and _is_written(unit))
    fees = sum((price for unit, price in prices.items() if unit in _FEES), Decimal(0))
    window = candidate.max_input_tokens or highest.max_input_tokens
    longest = candidate.max_output_tokens or highest.max_output_tokens
    return Bound(window * read + answers * fees, answers * wrote, longest, most_output=longest)


def _is_written(unit: str) -> bool:
    return unit in _OUT or unit.startswith("output_")


def as_sent(candidate: Candidate, request: Request) -> Sent:
    """A request as LiteLLM's own client gets it, in OpenAI's format."""
    params = {name: value for name, value in request.params.items() if value is not None}
    headers, extra_body = params.pop("extra_headers", None), params.pop("extra_body", None)
    fitted = request.fitted.get(candidate.requested, ())
    tokens = [one.tokens for one in fitted if one.tokens is not None]
    known = only_text(request) and len(tokens) >= len(request.pictures)
    messages, text = list(request.messages), _text(request)
    if request.pictures and not known:
        messages.append({"role": "user", "content": [{"type": "image_url"}]})
    return Sent(
        "openai",
        {**params, "messages": messages},
        text_size(text),
        sum(tokens) if known and tokens else None,
        headers or {},
        "extra_body" if extra_body else None,
        marks_of(text),
    )


@dataclass(slots=True)
class _Asked:
    """What a body asks for beside text."""

    kinds: set[str] = field(default_factory=set)
    fees: list[tuple[Unit, int]] = field(default_factory=list)
    usd: Decimal = Decimal(0)
    reads: int = 0
    """How often the model reads its input once more, for the provider's own tools."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    answers: int = 1
    writes_audio: bool = False
    reads_window: bool = False
    unknown: str | None = None

    def no_bound(self, name: str) -> None:
        """Remember the first parameter that has no bound."""
        self.unknown = self.unknown or name


def _rates(candidate: Candidate, sent: Sent, asked: _Asked) -> list[Rates]:
    """The rates of every way in which the request may be served."""
    tiers, is_asked = _tiers(candidate, sent.body, asked)
    regions = _regions(candidate, sent.body)
    found: list[Rates] = []
    for tier in tiers:
        for region in regions:
            # The candidate has the rates of the tier that is asked for, which is the standard one unless it is named.
            is_own = tier == "default" and region is None and tiers[0] == "default"
            rates = _rates_at(candidate, tier, region, is_own=is_own)
            if rates is not None:
                found.append(rates)
            elif tier != "default" and is_asked:
                asked.no_bound("speed" if sent.body.get("speed") else "service_tier")
            elif region is not None and region in sent.body.values():
                asked.no_bound("inference_geo")
    return found


def _rates_at(candidate: Candidate, tier: str, region: str | None, *, is_own: bool) -> Rates | None:
    """The rates of one tier and region; None where they are not known, as of a tier that the model does not have."""
    rates = candidate.rates
    if not is_own:
        if candidate.rates_as is None:
            return None
        rates = candidate.rates_as(Served(tier=tier, region=region))
    rates = rates.held or rates
    if rates.source == "unknown" or rates.at_least:
        return None
    # A tier without a price for long prompts does not take them; the standard one, which counts too, does.
    above = tuple(band for band in rates.above if tier == "default" or {"input", "output"} <= band[1].keys())
    return rates if above == rates.above else replace(rates, above=above)


def _tiers(candidate: Candidate, body: Mapping[str, Any], asked: _Asked) -> tuple[Sequence[str], bool]:
    """The service tiers that the request may be served in, and whether it names them itself."""
    rules = tier_rules(candidate.provider)
    speed = body.get("speed")
    if speed == "fast":
        return ("fast",), True
    if speed not in (None, "standard"):
        asked.no_bound("speed")
    word = next((value for name, value in body.items() if plain(name) == plain(rules.field)), None)
    if word is None:
        return rules.unsaid, False
    tier = str(word).lower()
    if tier in rules.standard:
        return ("default",), True
    if tier == "auto":
        return rules.auto, False
    tier = tier.removeprefix("service_tier_")
    if tier in rules.known:
        return ((tier,) if rules.exact and tier == "flex" else (tier, "default")), True
    asked.no_bound(rules.field)
    return ("default",), True


def _regions(candidate: Candidate, body: Mapping[str, Any]) -> Sequence[str | None]:
    """The regions that the request may be served in, where they have prices; None is everywhere."""
    rules = tier_rules(candidate.provider)
    if rules.region_field is None:
        return (None,)
    word = body.get(rules.region_field)
    if word is None:
        return (None, *(rules.unsaid_regions if candidate.rates_as is not None else ()))
    return (None,) if word in rules.everywhere else (str(word),)


def _read_body(candidate: Candidate, sent: Sent, rules: Rules, asked: _Asked) -> None:
    """Collect what the body asks for; whatever is not known has no bound."""
    if sent.pass_through is not None:
        asked.no_bound(sent.pass_through)
    for header, value in sent.headers.items():
        if not is_free_header(header, value):
            asked.no_bound(f"the header {str(header)[:60]}")
    _search_by_itself(candidate, sent, asked)
    name = f"{candidate.provider}/{candidate.wire_model}"
    if makes_images(name):
        asked.kinds.add("made_image")
    if passes_on(name) and candidate.rates.source == "table":
        asked.no_bound(f"the models behind {candidate.requested}")
    for field_name, value in sent.body.items():
        known = plain(field_name)
        if known == rules.inside and isinstance(value, Mapping):
            _read_options(value, rules, asked)
        elif (own := _OWN_BOUND.get(known)) is not None:
            own(candidate, value, rules, asked)
        elif known not in rules.free and value is not None:
            asked.no_bound(field_name)
    for kind in _kinds_of_body(candidate, sent, rules):
        if kind in ("text", ""):
            continue
        if kind in _KINDS:
            asked.kinds.add(kind)
        else:
            asked.no_bound(f"a part of type {kind[:60]}")


def _read_options(options: Mapping[str, Any], rules: Rules, asked: _Asked) -> None:
    for name, value in options.items():
        known = plain(name)
        if known == "candidatecount":
            _answers(None, value, rules, asked)
        elif known == "responsemodalities":
            _modalities(None, value, rules, asked)
        elif known not in rules.options and value is not None:
            asked.no_bound(name)


def _search_by_itself(candidate: Candidate, sent: Sent, asked: _Asked) -> None:
    """What a model costs that searches without being asked to."""
    row = searching_of(f"{candidate.provider}/{candidate.wire_model}")
    options = sent.body.get("web_search_options")
    if row is None:
        if options is not None:
            asked.no_bound("web_search_options")
        return
    if row.uses is None:
        asked.no_bound(f"the searches of {candidate.requested}")
        return
    size = None
    if isinstance(options, Mapping):
        size = options.get("search_context_size")
        if not _is_plain_search(options):
            asked.no_bound("web_search_options")
    asked.reads_window = asked.reads_window or row.reads
    if row.uses:
        asked.fees.append((cast(Unit, f"search_{size}" if size in ("low", "medium", "high") else "search"), row.uses))


def _is_plain_search(options: Mapping[str, Any]) -> bool:
    if options.get("search_type", "fast") != "fast" or options.get("search_context_size") not in _SIZES:
        return False
    return options.keys() <= {"search_context_size", "user_location", "search_type"}


_SIZES = (None, "low", "medium", "high")


def _known_elsewhere(_candidate: Candidate | None, _value: Any, _rules: Rules, _asked: _Asked) -> None:
    """The parameter is read by another function."""


def _answers(_candidate: Candidate | None, value: Any, _rules: Rules, asked: _Asked) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        asked.no_bound("n")
    else:
        asked.answers = max(asked.answers, value)


def _modalities(_candidate: Candidate | None, value: Any, _rules: Rules, asked: _Asked) -> None:
    words = {str(word).lower() for word in value} if isinstance(value, list | tuple) else {str(value).lower()}
    asked.writes_audio = asked.writes_audio or "audio" in words
    if "image" in words:
        asked.kinds.add("made_image")
    if not words <= {"text", "audio", "image"}:
        asked.no_bound("modalities")


def _audio(_candidate: Candidate | None, _value: Any, _rules: Rules, asked: _Asked) -> None:
    asked.writes_audio = True


def _prediction(_candidate: Candidate | None, value: Any, _rules: Rules, asked: _Asked) -> None:
    # What the answer does not use of it is charged as output.
    # Source: developers.openai.com/api/docs/guides/predicted-outputs (read 2026-11-27).
    asked.output_tokens += _size_of(value)


def _cached_content(_candidate: Candidate | None, _value: Any, _rules: Rules, asked: _Asked) -> None:
    asked.kinds.add("any")


def _tools(candidate: Candidate | None, value: Any, rules: Rules, asked: _Asked) -> None:
    name = "" if candidate is None else f"{candidate.provider}/{candidate.wire_model}"
    for word, given in _named_tools(value, rules):
        tool = rules.tool(word, name)
        if tool is None:
            asked.no_bound(f"the tool {word[:60]}")
            continue
        uses = _uses(tool, given)
        if uses is None:
            asked.no_bound(f"the tool {word[:60]} without {tool.uses}")
            continue
        asked.prompt_tokens += tool.tokens
        if tool.unit is not None:
            asked.fees.append((tool.unit, uses))
        if tool.again:
            asked.reads += uses
            asked.reads_window = True


def _named_tools(value: Any, rules: Rules) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The tools of a body by what they are; Gemini has them as keys."""
    for tool in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(tool, Mapping):
            yield type(tool).__name__, {}
        elif rules.tools_are_keys:
            for name, given in tool.items():
                yield name, given if isinstance(given, Mapping) else {}
        else:
            is_own = "function" in tool or "input_schema" in tool
            yield str(tool.get("type") or ("function" if is_own else next(iter(tool), "without a type"))), tool


def _uses(tool: Tool, given: Mapping[str, Any]) -> int | None:
    """The most times that the tool is used; None if nothing limits that."""
    most = given.get(tool.uses) if isinstance(tool.uses, str) else tool.uses
    return most if isinstance(most, int) and not isinstance(most, bool) and most >= 0 else None


def _live_search(candidate: Candidate | None, value: Any, _rules: Rules, asked: _Asked) -> None:
    most = value.get("max_search_results", live_search_most()) if isinstance(value, Mapping) else None
    if isinstance(value, Mapping) and value.get("mode") == "off":
        return
    if candidate is None or candidate.provider != "xai" or not isinstance(most, int) or isinstance(most, bool):
        asked.no_bound("search_parameters")
        return
    asked.fees.append(("search", most))
    asked.reads, asked.reads_window = asked.reads + 1, True


def _plugins(candidate: Candidate | None, value: Any, _rules: Rules, asked: _Asked) -> None:
    plugins, (usd, usual) = value if isinstance(value, list | tuple) else [value], exa()
    for plugin in plugins:
        most = plugin.get("max_results", usual) if isinstance(plugin, Mapping) else None
        is_exa = isinstance(plugin, Mapping) and (plugin.get("id"), plugin.get("engine")) == ("web", "exa")
        if candidate is None or candidate.provider != "openrouter" or not is_exa or not isinstance(most, int):
            asked.no_bound("plugins")
            return
        asked.usd += usd * most
        asked.reads_window = True


# Fields that may cost more than their tokens, and have a bound of their own.
_OWN_BOUND = {
    "n": _answers,
    "bestof": _answers,
    "modalities": _modalities,
    "audio": _audio,
    "prediction": _prediction,
    "tools": _tools,
    "cachedcontent": _cached_content,
    "searchparameters": _live_search,
    "plugins": _plugins,
    "servicetier": _known_elsewhere,
    "speed": _known_elsewhere,
    "inferencegeo": _known_elsewhere,
    "websearchoptions": _known_elsewhere,
}


def _kinds_of_body(candidate: Candidate, sent: Sent, rules: Rules) -> Iterator[str]:
    """The kind of every part of every message; one that is not known by its type."""
    for name, value in sent.body.items():
        known = plain(name)
        if known in ("messages", "contents"):
            for message in value if isinstance(value, list | tuple) else ():
                if isinstance(message, Mapping):
                    yield from _kinds_of_message(candidate, message, rules)
        elif known in ("system", "systeminstruction"):
            yield from _kinds_of_parts(candidate, value, rules)
        elif known == "input" and rules.inside == "input" and isinstance(value, Mapping):
            yield ""


def _kinds_of_message(candidate: Candidate, message: Mapping[str, Any], rules: Rules) -> Iterator[str]:
    for name, value in message.items():
        known = plain(name)
        if known in ("content", "parts"):
            yield from _kinds_of_parts(candidate, value, rules)
        elif known == "audio" and value:
            yield "audio"
        elif known not in rules.message and value:
            yield "any"


def _kinds_of_parts(candidate: Candidate, parts: Any, rules: Rules) -> Iterator[str]:
    if isinstance(parts, Mapping):
        parts = parts.get("parts", [parts])
    for part in parts if isinstance(parts, list | tuple) else ():
        if not isinstance(part, Mapping):
            continue
        if rules.tools_are_keys:
            yield from (_kind_of_key(name, value, rules) for name, value in part.items() if value is not None)
            inner = part.get("function_response", part.get("functionResponse"))
            yield from _kinds_of_parts(candidate, inner.get("parts") if isinstance(inner, Mapping) else None, rules)
            continue
        word = str(part.get("type", "text"))
        if has_no_bound(candidate.provider, word):
            yield f"{word} at {candidate.provider}"
        kind = rules.parts.get(plain(word))
        yield word if kind is None else _kind_of_file(part) if kind == "any" else kind
        if isinstance(part.get("content"), list | tuple):
            yield from _kinds_of_parts(candidate, part["content"], rules)


def _kind_of_key(name: str, value: Any, rules: Rules) -> str:
    """The kind of one of Gemini's parts: of data by its media type."""
    kind = rules.parts.get(plain(name), name)
    if kind != "media":
        return kind
    given = value if isinstance(value, Mapping) else {}
    return _kind_of_media(str(given.get("mime_type", given.get("mimeType", ""))))


def _kind_of_media(media_type: str) -> str:
    start = media_type.partition("/")[0]
    if start in ("image", "audio", "video"):
        return start
    return "image" if media_type == "application/pdf" or start == "text" else "any"


def _kind_of_file(part: Mapping[str, Any]) -> str:
    """The kind of a file by the media type that it says, if it says one."""
    given = part.get("file")
    data = str(given.get("file_data", ""))[:40] if isinstance(given, Mapping) else ""
    said = str(given.get("format", "")) if isinstance(given, Mapping) else ""
    media_type = said or (data.removeprefix("data:").partition(";")[0] if data.startswith("data:") else "")
    return _kind_of_media(media_type) if "/" in media_type else "any"


def _priced(candidate: Candidate, sent: Sent, rules: Rules, asked: _Asked, rates: Sequence[Rates]) -> Bound:
    """The bound of what a body asks for."""
    prompt = _max_prompt(candidate, sent, asked)
    if prompt is None:
        return Bound(unknown="what is no text, since the model's window is unknown")
    each = [_at_rates(sent, asked, one, prompt) for one in rates]
    unknown = next((one for one in each if isinstance(one, str)), None)
    if unknown is not None:
        return Bound(unknown=unknown)
    fixed, per_token = (max(one[i] for one in each if not isinstance(one, str)) for i in (0, 1))
    thinking = max(_numbers(sent.body, rules.thinking), default=0)
    limit = max(_numbers(sent.body, rules.limits), default=candidate.max_output_tokens)
    if limit is not None and limit <= thinking:
        limit += thinking
    most = candidate.max_output_tokens
    if candidate.max_input_tokens is not None and not asked.reads_window and not asked.kinds and most is not None:
        most = min(most, candidate.max_input_tokens - prompt)
    return Bound(
        fixed + asked.output_tokens * per_token,
        per_token * asked.answers,
        limit or 0,
        MIN_OUTPUT_TOKENS + thinking,
        most,
        _LENGTH if limit is None else None,
    )


def _max_prompt(candidate: Candidate, sent: Sent, asked: _Asked) -> int | None:
    """The most input tokens; None when they are not known."""
    media = asked.kinds - {"made_image"}
    if sent.picture_tokens is not None and media <= {"image"} and not asked.reads_window:
        return sent.size + _added(sent.body) + asked.prompt_tokens + sent.picture_tokens
    if media or asked.reads_window:
        return candidate.max_input_tokens
    return sent.size + _added(sent.body) + asked.prompt_tokens


def _first_prompt(sent: Sent, asked: _Asked, window: int) -> int:
    """The most input tokens before any tool of the provider's has added to them."""
    only_text = not asked.kinds - {"made_image"}
    return min(window, sent.size + _added(sent.body) + asked.prompt_tokens) if only_text else window


def _added(body: Mapping[str, Any]) -> int:
    """The most tokens that a provider adds to what is sent."""
    messages = next((value for name, value in body.items() if name in ("messages", "contents")), ())
    explains = any(
        body.get(name) for name in ("tools", "functions", "response_format", "output_format", "output_config")
    )
    explains = explains or "generationConfig" in body or "generation_config" in body
    count = len(messages) if isinstance(messages, list | tuple) else 1
    return _TOKENS_PER_REQUEST + _TOKENS_PER_MESSAGE * count + (_TOKENS_FOR_TOOLS if explains else 0)


def _at_rates(sent: Sent, asked: _Asked, rates: Rates, prompt: int) -> tuple[Decimal, Decimal] | str:
    """US$ for everything but the answer, and for one token of it; else what has no price."""
    bands = [rates.prices, *(prices for above, prices in rates.above if prompt > above)]
    if any("input" not in prices or "output" not in prices for prices in bands):
        return _PRICE
    read = max(max(_input_rates(sent, prices)) for prices in bands)
    unpriced = [kind for kind in sorted(asked.kinds) if kind in _KINDS and _rates_of_kind(kind, bands) is None]
    if unpriced:
        return f"a part of type {unpriced[0]}"
    read = max([read, *(_rates_of_kind(kind, bands) or Decimal(0) for kind in asked.kinds if kind in _KINDS)])
    wrote = max(prices[unit] for prices in bands for unit in _OUT if unit in prices)
    if asked.writes_audio or (sent.wire != "openai" and "output_audio" in rates.prices):
        if "output_audio" not in rates.prices:
            return "audio"
        wrote = max([wrote, *(prices["output_audio"] for prices in bands if "output_audio" in prices)])
    if "made_image" in asked.kinds and "output_image" not in rates.prices:
        return "modalities"
    usd = prompt * read + asked.usd + rates.prices.get("request", 0)
    if asked.reads:
        # After each use of the provider's own tools the model reads everything again, which by then may fill its
        # window; it is written to the cache once.
        again = max([*(prices["input"] for prices in bands), *_media(asked, bands)])
        more = max(Decimal(0), _write_rate(sent, bands) - again)
        usd += _first_prompt(sent, asked, prompt) * read + prompt * (asked.reads * again + more - read)
    for unit, count in asked.fees:
        fee = _fee(unit, rates.prices)
        if fee is None:
            return f"{unit.replace('_', ' ')} fees"
        usd += fee * count
    if "output_image" in rates.prices:
        # The last image is made whole, however few tokens are left for it.
        usd += LARGEST_OF_CHAT * max(prices.get("output_image", Decimal(0)) for prices in bands)
    return usd, wrote


def _input_rates(sent: Sent, prices: Mapping[Unit, Decimal]) -> Iterable[Decimal]:
    """What a token of input may cost."""
    yield from (prices[unit] for unit in _IN if unit in prices)
    if _writes_cache(sent) and "cache_write" not in prices:
        yield prices["input"] * _WRITE
    if _writes_for_an_hour(sent) and "cache_write_1h" not in prices:
        yield prices["input"] * _WRITE_1H


def _write_rate(sent: Sent, bands: Sequence[Mapping[Unit, Decimal]]) -> Decimal:
    """What a token of input may cost that is read for the first time."""
    if _writes_for_an_hour(sent):
        return max(prices.get("cache_write_1h", prices["input"] * _WRITE_1H) for prices in bands)
    return max(max(prices["input"], prices.get("cache_write", prices["input"])) for prices in bands)


def _writes_cache(sent: Sent) -> bool:
    return "cache_control" in sent.marks


def _writes_for_an_hour(sent: Sent) -> bool:
    return "1h" in sent.marks


def _media(asked: _Asked, bands: Sequence[Mapping[Unit, Decimal]]) -> Iterator[Decimal]:
    yield from (rate for kind in asked.kinds if kind in _KINDS and (rate := _rates_of_kind(kind, bands)) is not None)


def _rates_of_kind(kind: str, bands: Sequence[Mapping[Unit, Decimal]]) -> Decimal | None:
    """The most that a token of such a part can cost; None if that is unknown."""
    found: list[Decimal] = []
    for prices in bands:
        for units in _KINDS[kind]:
            rate = next((prices[unit] for unit in units if unit in prices), None)
            if rate is None:
                return None
            found.append(rate)
    return max(found)


def _fee(unit: Unit, prices: Mapping[Unit, Decimal]) -> Decimal | None:
    """US$ for one search or another fee; the most expensive search where its size is left open."""
    if unit in prices and unit != "search":
        return prices[unit]
    if unit.startswith("search"):
        return max((price for name, price in prices.items() if name.startswith("search")), default=None)
    return None


def _numbers(body: Mapping[str, Any], paths: Iterable[tuple[str, ...]]) -> Iterator[int]:
    """The whole numbers above 0 at some paths of a body."""
    for steps in paths:
        value: Any = body
        for name in _path_in(body, steps) or ():
            value = value[name]
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            yield value


def _path_in(body: Mapping[str, Any], steps: Iterable[str]) -> tuple[str, ...] | None:
    """The names of a body that a path of plain names leads through; None if there is no such field."""
    path: tuple[str, ...] = ()
    value: Any = body
    for step in steps:
        name = next((name for name in value if plain(name) == step), None) if isinstance(value, Mapping) else None
        if name is None:
            return None
        path, value = (*path, name), value[name]
    return path


def _size_of(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "replace"))


def max_prompt_tokens(request: Request) -> int:
    """No tokenizer makes more input tokens than this of the request."""
    return text_size(_text(request)) + _added({**request.params, "messages": request.messages})


def _text(request: Request) -> str:
    """What a model reads of a request."""
    extras = [extra for name in ("tools", "functions", "response_format") if (extra := request.params.get(name))]
    return json.dumps([list(request.messages), extras], ensure_ascii=False, default=_schema_or_text)


def marks_of(text: str) -> frozenset[str]:
    """What a body's JSON asks of Anthropic's cache: to write to it, and for how long."""
    marks = {"cache_control"} if '"cache_control":' in text else set()
    return frozenset(marks | {"1h"} if marks and '"1h"' in text else marks)


def text_size(text: str) -> int:
    """The bytes of a text, or of its NFKC form if that is longer: one letter may stand for eighteen."""
    if text.isascii():
        return len(text)
    size = len(text.encode("utf-8", "replace"))
    return max(size, len(unicodedata.normalize("NFKC", text).encode("utf-8", "replace")))


def _schema_or_text(value: Any) -> Any:
    """What is sent of a pydantic class is its schema."""
    schema = getattr(value, "model_json_schema", None)
    return schema() if isinstance(value, type) and schema is not None else str(value)


def only_text(request: Request) -> bool:
    """Whether the size of the messages says anything about their tokens; that of an image's URL does not."""
    contents = (message.get("content") for message in request.messages)
    parts = (part for content in contents if isinstance(content, list | tuple) for part in content)
    return all(not isinstance(part, Mapping) or part.get("type") == "text" for part in parts)
