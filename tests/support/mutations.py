"""Deliberate bugs, each with the test that must catch it; tests/README.md lists them and the soak applies them."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.paths import ROOT


@dataclass(frozen=True)
class Mutation:
    """One bug: in which file, what is replaced by what, and who notices."""

    name: str
    file: str
    before: str
    after: str
    caught_by: str

    def applied(self) -> str:
        """The file's text with the bug in it."""
        text = (ROOT / self.file).read_text(encoding="utf-8")
        assert text.count(self.before) == 1, f"{self.name}: {self.file} no longer holds, once: {self.before}"
        return text.replace(self.before, self.after)


def _answers(case: str) -> str:
    return f"tests/recorded/test_answers.py::test_answers[{case}]"


def _errors(case: str) -> str:
    return f"tests/recorded/test_errors.py::test_errors[{case}]"


_WAYS = "tests/recorded/test_ways.py::"

MUTATIONS = (
    Mutation(
        "wrong usage key",
        "shared/providers/usage.py",
        'usage.get("prompt_tokens"), usage.get("completion_tokens")',
        'usage.get("prompt_tokens"), usage.get("output_tokens")',
        _answers("openai-plain"),
    ),
    Mutation(
        "dropped stream chunk",
        "shared/providers/response_stream.py",
        "self.pieces.extend(texts)",
        "self.pieces.extend(list(texts)[1:])",
        _answers("anthropic-stream"),
    ),
    Mutation(
        "swapped error class",
        "shared/providers/errors.py",
        "    if status in (404, 410):\n        return ModelNotFound\n",
        "    if status in (404, 410):\n        return AuthenticationError\n",
        _errors("mistral-404"),
    ),
    Mutation(
        "price x10",
        "shared/internal/money.py",
        "return int((exact * NANO).to",
        "return int((exact * 10 * NANO).to",
        _answers("gemini-plain"),
    ),
    Mutation(
        "fallback order",
        "shared/calls/flow.py",
        "call.plan.candidates, cooldowns, max_retries=",
        "call.plan.candidates[::-1], cooldowns, max_retries=",
        _WAYS + "test_fallback",
    ),
    Mutation(
        "cached tokens counted twice",
        "shared/prices/cost.py",
        "prompt - (usage.cached_tokens or 0) - written - read_apart",
        "prompt - written - read_apart",
        _answers("openai-cached"),
    ),
    Mutation(
        "one more retry after an unknown outcome",
        "shared/calls/flow.py",
        "_MAX_ATTEMPTS_UNKNOWN = 2",
        "_MAX_ATTEMPTS_UNKNOWN = 3",
        _WAYS + "test_unknown_outcome_is_asked_once_more",
    ),
    Mutation(
        "lost settle",
        "shared/calls/flow.py",
        "    admission = await _settle(call, attempt, with_statuses=True)\n",
        "    admission = Admission()\n",
        _WAYS + "test_retry",
    ),
    Mutation(
        "key leaks to another endpoint",
        "shared/models/plan.py",
        "if own.api_key is not None or own.api_base is not None:",
        "if own.api_key is not None:",
        "tests/test_llm_client.py::test_own_endpoint_never_gets_the_environment_key",
    ),
    Mutation(
        "wrong finish reason",
        "shared/providers/response.py",
        "self.finish_reason, word = _word_of(reason), reason.strip().lower()",
        'self.finish_reason, word = "stop", reason.strip().lower()',
        _answers("cohere-length"),
    ),
    Mutation(
        "time to wait ignored",
        "shared/providers/errors.py",
        "    retry_after = _retry_after(headers)\n",
        "    retry_after = None\n",
        _errors("groq-429"),
    ),
    Mutation(
        "usage of a stream not asked for",
        "shared/providers/request.py",
        '{**draft.stream_options, "include_usage": True}',
        "{**draft.stream_options}",
        _answers("openai-stream"),
    ),
    Mutation(
        "images at the price of text",
        "shared/prices/cost.py",
        "(((unit, *_AS.get(unit, ())), True)",
        "(((_AT_LEAST.get(unit) or (unit, *_AS.get(unit, ()))), True)",
        "tests/recorded/test_images.py::test_images[openai-generation]",
    ),
    Mutation(
        "an image paid for twice",
        "shared/calls/flow.py",
        'error.action == "raise" or _may_be_paid_twice(call, error)',
        'error.action == "raise"',
        "tests/calls/test_images.py::test_what_may_be_paid_is_not_asked_for_again[500]",
    ),
    Mutation(
        "unknown price is zero",
        "shared/prices/cost.py",
        '    if found is None:\n        return Cost(None, "unknown")\n',
        '    if found is None:\n        return Cost(0, "unknown")\n',
        "tests/test_llm_client.py::test_unknown_price_is_not_zero",
    ),
    Mutation(
        "half a stream passes for a whole one",
        "shared/providers/sse.py",
        "            if not self.complete:\n                raise",
        "            if not self.reading.began:\n                raise",
        "tests/calls/test_fault_matrix.py::test_fault[clean-end]",
    ),
    Mutation(
        "a refused record keeps others back",
        "shared/ledger/spool.py",
        "        elif not _is_cut_off(line):\n",
        "        elif [].index(line):\n",
        "tests/ledger/test_spool.py::test_a_record_that_no_ledger_takes_keeps_no_other_back[list]",
    ),
    Mutation(
        "name resolved again when dialled",
        "shared/images/fetch.py",
        "        for address in self._addresses[:-1]:\n",
        "        self._addresses = await resolve(host, port)\n        for address in self._addresses[:-1]:\n",
        "tests/images/test_fetch.py::test_a_name_is_resolved_once",
    ),
    Mutation(
        "link followed after the check",
        "shared/images/files.py",
        '_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)',
        "_NOFOLLOW = 0",
        "tests/images/test_files.py::test_a_race_with_links_shows_nothing_from_outside",
    ),
    Mutation(
        "scans of an image uncounted",
        "shared/images/container.py",
        "            if scans > _MAX_SCANS or scans * pixels > _MAX_SCANNED_PIXELS:\n",
        "            if scans < 0:\n",
        "tests/images/test_container.py::test_a_file_of_too_many_parts_is_refused",
    ),
)
