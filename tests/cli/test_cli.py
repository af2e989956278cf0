"""The command line, as a person or a script uses it."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from shared import cli
from shared.analytics import get_llm_costs
from shared.ledger.store import Ledger
from tests.support.asking import MINI
from tests.support.ledger_rows import settled, write
from tests.support.paths import ROOT
from tests.support.provider_double import Double, Fault, Usage


def run(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(cli.app, arguments, input=text)


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of the installed command."""
    monkeypatch.setattr(sys, "argv", ["agentswarm-tools", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> tuple[io.StringIO, io.StringIO]:
    """What goes to standard output and to standard error."""
    streams = io.StringIO(), io.StringIO()
    # Not `file`: what monkeypatch would put back there is the stream of this moment, for good.
    monkeypatch.setattr(cli.out, "_file", streams[0])
    monkeypatch.setattr(cli.err, "_file", streams[1])
    return streams


def test_text_is_streamed_and_billed(hosted: Double, printed: tuple[io.StringIO, io.StringIO]) -> None:
    """The answer alone goes to standard output, the bill to standard error."""
    hosted.reply("openai", text="Good day to you.", usage=Usage(1000, 100))
    assert run("text", "Hi", "-m", MINI).exit_code == 0
    assert printed[0].getvalue() == "Good day to you.\n"
    assert printed[1].getvalue().strip() == f"{MINI} (openai), 1100 tokens, $0.001200"


def test_text_as_json(hosted: Double, printed: tuple[io.StringIO, io.StringIO]) -> None:
    """--json prints the whole response as one JSON object, an unknown price as null."""
    assert run("text", "-", "-m", "openai/brand-new", "--json", text="Hi").exit_code == 0
    response: dict[str, Any] = json.loads(printed[0].getvalue())
    assert response["cost"] is None
    assert response["content"].startswith("Hello from")
    assert hosted.requests[0].body["messages"][-1]["content"] == "Hi"


def test_text_falls_back(hosted: Double, printed: tuple[io.StringIO, io.StringIO]) -> None:
    """--fallback names what to try next."""
    hosted.always("openai", status=401)
    assert run("text", "Hi", "-m", MINI, "-f", "anthropic/claude-haiku-4-5").exit_code == 0
    assert "anthropic/claude-haiku-4-5" in printed[1].getvalue()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("text", "Hi"), "Authentication failed for openai: no key is set"),
        (("text", "Hi", "-m", "no-such-model"), "No model is called no-such-model"),
        (("report", "--since", "yesterday"), "'yesterday' is not a day or a time"),
        (("report", "--tz", "Mars/Olympus"), "The time zone is unknown"),
        (("report", "--days", "0"), "days must be more than 0"),
        (
            ("report", "--since", "2026-12-01", "--until", "2026-11-01"),
            "since must be before until. Nothing was charged. Give --since",
        ),
    ],
)
def test_errors_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    printed: tuple[io.StringIO, io.StringIO],
    arguments: tuple[str, ...],
    sentence: str,
) -> None:
    """A failure is a sentence on standard error and exit code 1, never a traceback."""
    assert main(monkeypatch, *arguments) == 1
    assert printed[1].getvalue().startswith(f"Error: {sentence}")
    assert "Traceback" not in printed[1].getvalue()


def test_broken_stream_keeps_what_came(
    hosted: Double, monkeypatch: pytest.MonkeyPatch, printed: tuple[io.StringIO, io.StringIO]
) -> None:
    """What had arrived stays on standard output when the stream breaks."""
    hosted.reply("openai", text="one two three", fault=Fault.RESET_STREAM, after=2)
    assert main(monkeypatch, "text", "Hi", "-m", MINI) == 1
    assert printed[0].getvalue().startswith("one two")
    assert "broke off" in printed[1].getvalue()


def test_report(hosted: Double, printed: tuple[io.StringIO, io.StringIO]) -> None:
    """The report is the guide's lines where it is piped, and JSON on request, of the same figures."""
    hosted.reply("openai", usage=Usage(1000, 100))
    run("text", "Hi", "-m", MINI)
    printed[0].truncate(0)
    printed[0].seek(0)
    assert run("report", "--days", "1").exit_code == 0
    assert "=== LiteLLM Cost Metrics (last 1 days) ===\nTotal Cost: $0.001200\n" in printed[0].getvalue()
    printed[0].truncate(0)
    printed[0].seek(0)
    assert run("report", "--by", "tool", "--json").exit_code == 0
    costs = json.loads(printed[0].getvalue())
    assert (costs["total_cost_nano"], costs["groups"][0]["name"]) == (1_200_000, "(unallocated)")


def test_models(printed: tuple[io.StringIO, io.StringIO]) -> None:
    """Models are found by words, with their prices, as a table and as JSON; a retired one names its successor."""
    assert run("models", "gpt-5.4-mini", "--json").exit_code == 0
    [found] = [row for row in json.loads(printed[0].getvalue()) if row["model"] == "gpt-5.4-mini"]
    assert (found["input_usd_per_million"], found["output_usd_per_million"]) == (0.75, 4.5)
    printed[0].truncate(0)
    printed[0].seek(0)
    assert run("models", "gpt-3.5-turbo").exit_code == 0
    assert "use openai/gpt-5.4-nano" in printed[0].getvalue()


def test_doctor(monkeypatch: pytest.MonkeyPatch, printed: tuple[io.StringIO, io.StringIO]) -> None:
    """Doctor says what is usable, and fails when the store cannot be written."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    assert run("doctor").exit_code == 0
    assert "usable with the keys that are set: openai/gpt-5.4-mini" in printed[0].getvalue()
    assert "sk-test" not in printed[0].getvalue()
    monkeypatch.setenv("AGENTSWARM_DATABASE_URL", "sqlite:////dev/null/ledger.sqlite3")
    assert run("doctor").exit_code == 1
    assert "FAIL  store" in printed[0].getvalue()


def test_records_that_wait_are_told_of(
    monkeypatch: pytest.MonkeyPatch, printed: tuple[io.StringIO, io.StringIO], ledger: Ledger
) -> None:
    """Reports and doctor say how many records are in no figure, and doctor where they are; it fails for it."""
    monkeypatch.setattr(ledger._writer, "down_until", math.inf)
    write(ledger, "settle", settled())
    ledger._spool.add_dead_letter(("settle", {}, {}))
    assert run("report").exit_code == 0
    assert "1 records are waiting to be written and are not counted" in printed[0].getvalue()
    assert get_llm_costs()["waiting_records"] == 1
    assert run("doctor").exit_code == 1
    assert f"FAIL  records: 1 waiting to be written, in {ledger.waiting_in}" in printed[0].getvalue()
    assert f"check {ledger.waiting_in}.dead-letters" in printed[0].getvalue()
    ledger._writer.down_until = 0
    assert get_llm_costs()["waiting_records"] == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_output_to_a_full_disk() -> None:
    """Output that cannot be written is one line on standard error and exit code 1."""
    program = """
import os, sys
from shared.cli import main
for arguments in (["report"], ["report", "--json"], ["--version"]):
    child = os.fork()
    if not child:
        sys.argv[1:] = arguments
        main()
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.stderr, flush=True)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment, text=True, check=False)
    said = "Error: The output cannot be written (No space left on device).\n1\n"
    assert (done.stderr, done.returncode) == (said * 3, 0)


def test_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch, printed: tuple[io.StringIO, io.StringIO]) -> None:
    """A setting with an impossible value is named by its variable, without the value."""
    monkeypatch.setenv("LITELLM_COST_TRACKING", "perhaps-not")
    assert main(monkeypatch, "report") == 1
    assert "LITELLM_COST_TRACKING" in printed[1].getvalue()
    assert "perhaps-not" not in printed[1].getvalue()
