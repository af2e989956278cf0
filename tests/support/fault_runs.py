"""One run of the fault matrix: a fault, an operation and a mode, with or without another model, on a real socket."""

from __future__ import annotations

import base64
import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from shared import errors
from shared.calls.cooldown import cooldowns
from shared.errors import AllModelsFailed, LLMError
from shared.ledger.records import attempt_records
from shared.ledger.store import Ledger
from shared.llm_client import LLMClient
from shared.scope import scope
from shared.types import LLMResponse, ModelConfig
from tests.support.asking import WAYS
from tests.support.fault_cases import FLASH, MAX_RETRIES, FaultCase
from tests.support.provider_double import Double, ports
from tests.support.provider_double.pictures import png

# More than any machine needs for what does not wait; a run that takes longer hangs.
HANG_S = 10.0
TIMEOUT_S = 0.3
# With another model, which has to answer in time, however busy the machine is.
TIMEOUT_OF_TWO_S = 0.6
_NANO = {"openai": (750, 4500), "anthropic": (1000, 5000), "gemini": (300, 2500)}


@dataclass(frozen=True)
class Run:
    """How a case is asked for."""

    operation: str
    mode: str
    fallback: bool

    def __str__(self) -> str:
        return f"{self.operation}-{self.mode}-{'fallback' if self.fallback else 'alone'}"


def every_run(case: FaultCase) -> list[Run]:
    """The whole product."""
    return [Run(*each) for each in itertools.product(case.ops, case.modes, (False, True))]


def some_runs(case: FaultCase) -> list[Run]:
    """One run, of all cases in all modes in turn, and of half of them with another model; the soak makes all runs."""
    turn = len(case.name)
    return [Run(case.ops[turn % len(case.ops)], case.modes[turn % len(case.modes)], len(case.what) % 2 == 0)]


def check(case: FaultCase, run: Run, double: Double, ledger: Ledger) -> None:
    """
    Make one call while the fault lasts, as the first of its process, and compare all that it left behind with the case.

    Raises:
        AssertionError: The client, the server's own count and the ledger do not agree with the case.
    """
    cooldowns.reset()
    limits: dict[str, Any] = {"timeout": 30.0}
    timeout_s = TIMEOUT_OF_TWO_S if run.fallback else TIMEOUT_S
    if case.limit == "deadline":
        limits["deadline"] = TIMEOUT_S
    elif case.limit in ("timeout", "idle"):
        limits["timeout"] = timeout_s
    with _fault(case, double) as (model, configs), scope(trial=str(run)):
        client = LLMClient(model_configs=configs, max_retries=MAX_RETRIES, **limits)
        others = [FLASH] if run.fallback else []
        began = time.monotonic()
        outcome = _ask(client, run, model=model, fallback_models=others)
        took = time.monotonic() - began
        ledger.flush()
        rows = [row for row in attempt_records(ledger) if row["labels"] == {"trial": str(run)}]
        _judge_outcome(case, run, outcome)
        _judge_rows(case, run, rows, double)
        _judge_wire(case, rows, double)
        asked = case.asked_before_next if run.fallback else case.asked
        assert took < HANG_S + asked * timeout_s
        assert case.limit != "retry-after" or took >= 0.05 * (asked - 1)
        assert double.problems == []
        double.reset()


@contextmanager
def _fault(case: FaultCase, double: Double) -> Iterator[tuple[str, dict[str, ModelConfig]]]:
    """The fault lasts meanwhile; gives the model that suffers it."""
    name = case.model.partition("/")[0]
    with ExitStack() as stack:
        match case.door:
            case "open":
                double.always(name, **case.reply)
            case "refused":
                double.refuse(name)
            case "unresolvable":
                double.unname(name)
            case "untrusted":
                yield _elsewhere(stack.enter_context(ports.untrusted()))
                return
            case "plain":
                yield _elsewhere(stack.enter_context(ports.no_tls()))
                return
        yield case.model, {}


def _elsewhere(port: int) -> tuple[str, dict[str, ModelConfig]]:
    """A model that is served, or should be, on a port of this machine."""
    own = ModelConfig(
        name="own-model", provider="custom", api_base=f"https://127.0.0.1:{port}/v1", api_key_env="OPENAI_API_KEY"
    )
    return own.name, {own.name: own}


def _messages(run: Run) -> list[dict[str, Any]]:
    if run.operation == "text":
        return [{"role": "user", "content": "Hello!"}]
    image = f"data:image/png;base64,{base64.b64encode(png(8, 8, 1)).decode()}"
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": image}}]
    return [{"role": "user", "content": parts}]


def _ask(client: LLMClient, run: Run, **kw: Any) -> LLMResponse | LLMError:
    try:
        return WAYS[run.mode](client, _messages(run), **kw)
    except LLMError as error:
        return error


def _judge_outcome(case: FaultCase, run: Run, outcome: LLMResponse | LLMError) -> None:
    """The caller got an answer, or the one error that says what happened."""
    if case.then == "answered" or (run.fallback and case.falls_back):
        assert isinstance(outcome, LLMResponse), repr(outcome)
        assert outcome.metadata["fallback_used"] is (case.then != "answered")
        assert case.then == "answered" or outcome.model == FLASH
        return
    assert isinstance(outcome, LLMError), repr(outcome)
    assert not isinstance(outcome, AllModelsFailed)
    assert outcome.error_type == case.error, repr(outcome)
    assert outcome.cost == 0 or case.cost != "free"
    assert outcome.cost != outcome.cost or case.cost != "unknown"
    assert outcome.cost > 0 or case.cost not in ("counted", "table")
    assert "sk-test" not in str(outcome)
    if isinstance(outcome, errors.StreamInterrupted):
        assert outcome.text.startswith(case.text)
        assert case.limit or outcome.text == case.text


def _judge_rows(case: FaultCase, run: Run, rows: list[dict[str, Any]], double: Double) -> None:
    """Each attempt has its row, with what became of it and what it cost."""
    asked = case.asked_before_next if run.fallback else case.asked
    falls_back = run.fallback and case.falls_back
    error_type = case.recorded or case.error or None
    expected = [(case.status, error_type, case.cost)] * asked + [("ok", None, "table")] * falls_back
    found = [(row["status"], row["error_type"], row["cost_source"]) for row in rows]
    assert found == expected, "\n".join(f"{row['model']}: {row['status']}, {row['metadata']}" for row in rows)
    for row in rows:
        match row["cost_source"]:
            case "free":
                assert row["cost_nano"] == 0
            case "unknown":
                assert row["cost_nano"] is None
            case "counted":
                assert row["cost_nano"] == nano(row["provider"], row["prompt_tokens"], row["completion_tokens"]) > 0
    priced = [row["cost_nano"] for row in rows if row["cost_source"] == "table"]
    bills = double.billed if case.cost == "table" else double.billed[len(double.billed) - len(priced) :]
    assert priced == [nano(bill.provider, bill.usage.input, bill.usage.output) for bill in bills]
    assert "sk-test" not in str(rows)


def nano(provider: str, prompt: int, completion: int) -> int:
    """Nano-dollars, by LiteLLM 1.91.5's table."""
    per_prompt, per_completion = _NANO[provider]
    return prompt * per_prompt + completion * per_completion


def _judge_wire(case: FaultCase, rows: list[dict[str, Any]], double: Double) -> None:
    """What the server counted is what was recorded, request by request."""
    arrived = [row["provider"] for row in rows if case.door == "open" or row["status"] == "ok"]
    assert [request.provider for request in double.requests] == arrived
