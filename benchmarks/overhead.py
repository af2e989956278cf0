"""The overhead of a call: our client, LiteLLM's and plain httpx against the same loopback server.

Run with: make bench

Figures are medians and ratios within one run; machines differ, so only the ratios are meaningful.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from shared.config import quiet_litellm
from shared.llm_client import LLMClient
from tests.support.provider_double import running

ROUNDS = 3
CALLS = 200
THREADS = 16
MESSAGES = [{"role": "user", "content": "Hello!"}]
MODEL = "gpt-5.4-mini"

console = Console()


def median_ms(call: Callable[[], object]) -> float:
    """Median time of one call, in milliseconds."""
    times = []
    for _ in range(CALLS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def per_second(call: Callable[[], object]) -> float:
    """Calls per second from several threads."""

    def work() -> None:
        for _ in range(CALLS // THREADS):
            call()

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return CALLS // THREADS * THREADS / (time.perf_counter() - began)


def contestants(base: str) -> dict[str, Callable[[], object]]:
    """The calls to compare, by name."""
    with quiet_litellm():
        import litellm
    plain = httpx.Client()
    headers = {"authorization": "Bearer sk-test-0123456789"}
    body = {"model": MODEL, "messages": MESSAGES}
    tracked, untracked = LLMClient(), LLMClient(enable_cost_tracking=False)
    request = {"model": f"openai/{MODEL}", "messages": MESSAGES, "api_base": base, "api_key": "sk-test-0123456789"}
    return {
        "httpx": lambda: plain.post(f"{base}/chat/completions", json=body, headers=headers).json(),
        "ours, tracking off": lambda: untracked.chat_completion(MESSAGES, model=f"openai/{MODEL}"),
        "ours, each call in the ledger": lambda: tracked.chat_completion(MESSAGES, model=f"openai/{MODEL}"),
        "litellm.completion": lambda: litellm.completion(**request, max_retries=0),
    }


def main() -> None:
    """Measure and print."""
    rows: dict[str, list[tuple[float, float]]] = {}
    with running() as double, tempfile.TemporaryDirectory() as folder:
        os.environ["OPENAI_API_KEY"] = "sk-test-0123456789"
        os.environ["OPENAI_BASE_URL"] = double.api_base("openai")
        os.environ["AGENTSWARM_DATABASE_URL"] = f"sqlite:///{Path(folder) / 'ledger.sqlite3'}"
        with console.status("Loading LiteLLM ..."):
            calls = contestants(double.api_base("openai"))
        for number in range(ROUNDS):
            for name, call in calls.items():
                console.print(f"round {number + 1} of {ROUNDS}: {name}")
                call()
                rows.setdefault(name, []).append((median_ms(call), per_second(call)))
                double.reset()
    medians = {
        name: tuple(statistics.median(column) for column in zip(*found, strict=True)) for name, found in rows.items()
    }
    base_ms, base_rate = medians["httpx"]
    table = Table(
        "Client",
        "ms per call",
        "x httpx",
        f"calls/s, {THREADS} threads",
        "share of httpx",
        title=sys.version.split()[0],
    )
    for name, (ms, rate) in medians.items():
        table.add_row(name, f"{ms:.2f}", f"{ms / base_ms:.1f}", f"{rate:.0f}", f"{rate / base_rate:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
