"""A store that is silent or locked costs a call, a report and the program's end only a few seconds."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from shared.budget import Budget
from shared.errors import StoreError
from shared.ledger.sqlite_library import open_file, wal_is_safe
from shared.ledger.store import get_ledger
from shared.llm_client import LLMClient
from tests.support.asking import HELLO
from tests.support.paths import ROOT
from tests.support.provider_double import Double
from tests.support.silent_proxy import silent_proxy

MODEL = "openai/gpt-5.4-mini"
# How much longer than promised a loaded machine may take.
SLACK_S = 2.0


@pytest.fixture(params=["connect", "BEGIN", "INSERT", "COMMIT", "locked"])
def silent(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a store that was well, and is silent or locked now."""
    if request.param == "locked":
        path = tmp_path / "locked.sqlite3"
        url = f"sqlite:///{path}"
        get_ledger(url).check_writable()
        monkeypatch.setenv("AGENTSWARM_DATABASE_URL", url)
        with closing(open_file(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            yield url
        return
    postgres_url = request.getfixturevalue("postgres_url")
    name, folder = postgres_url.split("@/")[1].split("?host=")
    with silent_proxy(folder) as proxy:
        url = f"postgresql://postgres:x@127.0.0.1:{proxy.port}/{name}"
        get_ledger(url).check_writable()
        monkeypatch.setenv("AGENTSWARM_DATABASE_URL", url)
        proxy.silent_at = b"" if request.param == "connect" else request.param.encode()
        yield url
        proxy.silent_at = None


def test_calls_do_not_wait_for_the_store(hosted: Double, silent: str) -> None:
    """A call takes its own time and at most 3 s, then waits in the spool; under a budget StoreError comes as soon."""
    client = LLMClient(max_retries=0)
    began = time.monotonic()
    client.chat_completion(HELLO, model=MODEL)
    assert time.monotonic() - began < 3 + SLACK_S
    assert get_ledger(silent).waiting
    began = time.monotonic()
    with pytest.raises(StoreError):
        LLMClient(max_retries=0, budget=Budget(1)).chat_completion(HELLO, model=MODEL)
    assert time.monotonic() - began < 3 + SLACK_S


def test_a_cancelled_call_does_not_wait_for_the_store(hosted: Double, silent: str) -> None:
    """`wait_for` with one second ends within two."""

    async def main() -> float:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(LLMClient(max_retries=0).achat_completion(HELLO, model=MODEL), 1)
        return time.monotonic() - began

    assert asyncio.run(main()) < 2 + SLACK_S


@pytest.mark.parametrize("silent", ["connect", "BEGIN", "locked"], indirect=True)
@pytest.mark.parametrize("command", ["report", "doctor"])
def test_commands_end_with_a_sentence(silent: str, command: str) -> None:
    """A report and doctor say within five seconds that the store does not answer."""
    code = (
        "import atexit, sys, time; from shared.cli import main; from shared.providers import endpoints; "
        # Doctor imports LiteLLM, which takes seconds that have nothing to do with the store.
        "endpoints.import_litellm(); began = time.monotonic(); "
        "atexit.register(lambda: print('took', time.monotonic() - began)); "
        f"sys.argv = ['x', '{command}']; main()"
    )
    whole = [sys.executable, "-c", code]
    done = subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    *lines, took = done.stdout.splitlines()
    assert float(took.removeprefix("took ")) < 5 + SLACK_S
    if (command, silent.partition(":")[0]) == ("report", "sqlite") and wal_is_safe():
        assert done.returncode == 0  # with a write-ahead log readers do not wait for writers
        return
    assert done.returncode == 1
    assert "cannot be" in "".join(lines) + done.stderr
    assert "Traceback" not in done.stderr


def test_the_end_of_a_program_does_not_wait_for_the_store(silent: str) -> None:
    """A program that has recorded something ends within five seconds, and says what it left."""
    code = (
        "import sys; from shared.ledger import get_ledger; from tests.support.ledger_rows import settled, submit; "
        "submit(get_ledger(sys.argv[1]), 'settle', settled())"
    )
    began = time.monotonic()
    command = [sys.executable, "-c", code, silent]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert time.monotonic() - began < 5 + 2 * SLACK_S
    assert "1 records wait in" in done.stderr
