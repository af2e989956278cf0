"""The command line, as a person or a script uses it."""

from __future__ import annotations

import inspect
import io
import json
import math
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from shared import cli
from shared.analytics import get_llm_costs, print_llm_costs
from shared.internal.clock import now_us
from shared.ledger.store import Ledger
from tests.support import processes
from tests.support.asking import HAIKU, MINI
from tests.support.ledger_rows import settled, write
from tests.support.pictures import image
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
    assert printed[1].getvalue().strip() == f"{MINI} (openai), 1,100 tokens, $0.001200"


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
        (("report", "--since", "tomorrow"), "'tomorrow' is not a day or a time"),
        (("report", "--by", "a,b,c"), "'a,b,c' are not two dimensions to group by"),
        (("report", "daily", "--by", "model"), "--by model and daily say both how to group"),
        (("report", "--where", "customer"), "--where 'customer' is not one condition"),
        (("report", "--tz", "Mars/Olympus"), "The time zone is unknown"),
        (("report", "--days", "0"), "days must be more than 0"),
        (("budget", "set", "-5"), "A limit cannot be negative"),
        (("budget", "set", "--where", "customer=acme", "-.5", "--downgrade"), "A limit cannot be negative"),
        (("budget", "set", "--downgrade", "-5"), "A limit cannot be negative"),
        (("budget", "set", "--", "-5"), "A limit cannot be negative"),
        (("budget", "set", "5", "--warn-at", "-1"), "A budget's warn_at must be above 0"),
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


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("text",),
        ("text", "Hello", "--temprature", "1"),
        ("text", "Hello", "--max-tokens", "0"),
        ("compare", "Hello"),
        ("models", "--supports", "flying"),
        ("models", "--max-input-price", "cheap"),
        ("models", "--retiring", "soon"),
        ("images", "create", "A fox", "-n", "99"),
        ("doctor", "everything"),
        ("budget", "set", "5", "--windw", "day"),
    ],
)
def test_a_wrong_argument(arguments: tuple[str, ...]) -> None:
    """A command that is not understood shows how it is used, with the error last, and exits with 2."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.output.startswith("Usage: ")
    assert "\nError: " in result.output


def test_broken_stream_keeps_what_came(
    hosted: Double, monkeypatch: pytest.MonkeyPatch, printed: tuple[io.StringIO, io.StringIO]
) -> None:
    """What had arrived stays on standard output when the stream breaks."""
    hosted.reply("openai", text="one two three", fault=Fault.RESET_STREAM, after=2)
    assert main(monkeypatch, "text", "Hi", "-m", MINI) == 1
    assert printed[0].getvalue().startswith("one two")
    assert "broke off" in printed[1].getvalue()


ATTACK = "a\x1b[2Jb\x1b]52;c;aGk=\x07c\r\nd\x9b31me\u202ef\x7f\tg\x08\n"


def test_the_model_does_not_command_the_terminal(hosted: Double, printed: tuple[io.StringIO, io.StringIO]) -> None:
    """Escapes in an answer (clear the screen, write the clipboard) are shown, and obeyed by no terminal."""
    hosted.reply("openai", text=ATTACK)
    assert run("text", "Hi", "-m", MINI).exit_code == 0
    text = printed[0].getvalue()
    assert text == "a?[2Jb?]52;c;aGk=?c\nd?31me?f?\tg?\n".replace("?", "\N{REPLACEMENT CHARACTER}")
    hosted.reply("openai", text=ATTACK)
    printed[0].truncate(0)
    printed[0].seek(0)
    assert run("text", "Hi", "-m", MINI, "--json").exit_code == 0
    assert all(line.isprintable() for line in printed[0].getvalue().splitlines())
    assert json.loads(printed[0].getvalue())["content"] == ATTACK


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp437", "latin-1", "utf-8"])
def test_a_paid_answer_is_shown_on_every_console(
    encoding: str, hosted: Double, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a console cannot show is a "?" there, in answers and reports; JSON is the same data in every encoding."""
    answer = "Done \N{THUMBS UP SIGN} caf\N{LATIN SMALL LETTER E WITH ACUTE} bye"
    hosted.always("openai", text=answer)
    write(ledger, "settle", settled(ts_us=now_us(), model=answer))

    def on_console(*arguments: str) -> bytes:
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "argv", ["agentswarm-tools", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code in (0, None)
        assert isinstance(stream.buffer, io.BytesIO)
        return stream.buffer.getvalue()

    expected = answer.encode(encoding, "replace")
    assert expected in on_console("text", "hi", "-m", MINI)
    assert expected in on_console("report")
    assert json.loads(on_console("text", "hi", "-m", MINI, "--json").decode(encoding))["content"] == answer
    assert answer in json.loads(on_console("report", "--json").decode(encoding))["cost_by_model"]
    printed = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)
    monkeypatch.setattr(sys, "stdout", printed)
    print_llm_costs()
    assert isinstance(printed.buffer, io.BytesIO)
    assert expected in printed.buffer.getvalue()


def test_standard_input_that_is_no_text(
    monkeypatch: pytest.MonkeyPatch, printed: tuple[io.StringIO, io.StringIO]
) -> None:
    """A prompt in another encoding is an error in a sentence, and is not sent."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    assert main(monkeypatch, "text", "-", "-m", MINI) == 1
    assert printed[1].getvalue().startswith("Error: Standard input is not utf-8 text")


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
    [found] = [row for row in json.loads(printed[0].getvalue()) if row["model"] == MINI]
    assert (found["input_usd_per_million"], found["output_usd_per_million"]) == (0.75, 4.5)
    printed[0].truncate(0)
    printed[0].seek(0)
    assert run("models", "gpt-3.5-turbo").exit_code == 0
    assert "use openai/gpt-5.4-nano" in printed[0].getvalue()


@pytest.mark.parametrize(
    ("words", "options", "expected"),
    [
        ([MINI], (), MINI),
        (["anthropic/claude-haiku-4-5"], (), HAIKU),
        (["openai", "gpt-5.4"], (), MINI),
        (["gpt-image"], (), "openai/gpt-image-2"),
        ([], ("--provider", "openai", "--supports", "images"), "openai/gpt-image-2"),
        (["gpt-5.4"], ("--provider", "openai", "--supports", "vision,tools", "--max-input-price", "0.75"), MINI),
    ],
)
def test_models_are_found_as_docs_name_them(
    words: list[str], options: tuple[str, ...], expected: str, printed: tuple[io.StringIO, io.StringIO]
) -> None:
    """A model is found by its provider and name, by words of both, by what it can do and by its price."""
    assert run("models", *words, *options).exit_code == 0
    lines = printed[0].getvalue().splitlines()
    assert any(line.split()[0] == expected for line in lines)
    assert len(lines) < 60


def test_models_leave_out_what_is_not_wanted(printed: tuple[io.StringIO, io.StringIO]) -> None:
    """Filters leave out other providers, higher and unknown prices, and models that cannot; JSON has all rows."""
    options = ("--provider", "openai", "--supports", "tools", "--max-input-price", "1", "--json")
    assert run("models", *options).exit_code == 0
    rows = json.loads(printed[0].getvalue())
    assert rows
    for row in rows:
        assert row["provider"] == "openai"
        assert "tools" in row["supports"]
        assert row["input_usd_per_million"] <= 1
    assert run("models", "--supports", "flying").exit_code == 2
    assert run("models", "--provider", "nobody").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--provider", "opnai"), "no provider is called opnai. Similar: openai"),
        (("claude", "--max-input-price", "0.000001"), "no model whose name contains claude passes these filters."),
        (("claude", "--provider", "groq"), "no model whose name contains claude passes these filters."),
        (("gtp-5.4-mini",), "no model whose name contains gtp-5.4-mini is known. Similar: gpt-5.4-mini"),
    ],
)
def test_what_no_model_matches_is_named(
    arguments: tuple[str, ...], sentence: str, printed: tuple[io.StringIO, io.StringIO]
) -> None:
    """An empty list says which word or filter emptied it, and never suggests a model that is shut down."""
    assert run("models", *arguments).exit_code == 1
    assert printed[0].getvalue() == ""
    assert printed[1].getvalue().startswith(f"Error: {sentence}")


def test_retired_names_do_not_bury_the_list(printed: tuple[io.StringIO, io.StringIO]) -> None:
    """A few retired names stand below the list, the one that was asked for first, and only those of the provider."""
    assert run("models", "gpt-4").exit_code == 0
    lines = printed[0].getvalue().splitlines()
    below = lines[lines.index(next(line for line in lines if " models" in line)) + 1 :]
    assert below[0].startswith("openai/gpt-4: shut down 2026-10-23, use openai/gpt-5.5")
    assert len(below) == 6
    assert "more retired names match" in below[-1]
    printed[0].truncate(0)
    printed[0].seek(0)
    assert run("models", "gpt", "--provider", "groq").exit_code == 0
    assert "openai/gpt-4" not in printed[0].getvalue()


def test_chat_models_do_not_make_images(printed: tuple[io.StringIO, io.StringIO]) -> None:
    """A chat model of OpenAI's is not listed as one that makes images: its endpoint for images takes none of them."""
    assert run("models", "--provider", "openai", "--supports", "images", "--json").exit_code == 0
    modes = {row["mode"] for row in json.loads(printed[0].getvalue())}
    assert modes <= {"image_generation", "image_edit"}


def test_bare_models_are_the_first_forty(printed: tuple[io.StringIO, io.StringIO]) -> None:
    """Without a word the list is a page long, and says how to see more; --all is all."""
    assert run("models").exit_code == 0
    assert len(printed[0].getvalue().splitlines()) == 42
    assert "The first 40 of " in printed[0].getvalue()
    assert run("models", "--all").exit_code == 0
    assert len(printed[0].getvalue().splitlines()) > 3000


def test_text_about_an_image(hosted: Double, tmp_path: Path, printed: tuple[io.StringIO, io.StringIO]) -> None:
    """--attach sends an image along with the prompt."""
    (tmp_path / "red.png").write_bytes(image())
    assert run("text", "What is it?", "-m", MINI, "-a", str(tmp_path / "red.png")).exit_code == 0
    [part] = [part for part in hosted.requests[0].body["messages"][-1]["content"] if part["type"] == "image_url"]
    assert part["image_url"]["url"].startswith("data:image/png")
    assert printed[0].getvalue().startswith("Hello from")


def test_images_create(hosted: Double, printed: tuple[io.StringIO, io.StringIO]) -> None:
    """The paths go to standard output, the bill to standard error, and the list finds the image by part of its name."""
    assert run("images", "create", "A fox", "-m", "openai/gpt-image-2", "--name", "fox").exit_code == 0
    path = Path(printed[0].getvalue().strip())
    assert path.is_file()
    assert "openai/gpt-image-2 (openai)" in printed[1].getvalue()
    assert run("images", "list", "fox").exit_code == 0
    assert f"in 1 call: {path.name}" in printed[0].getvalue()
    assert len(hosted.requests) == 1


def test_estimate(hosted: Double, printed: tuple[io.StringIO, io.StringIO]) -> None:
    """An estimate names the most that each model can cost, and sends nothing."""
    assert run("estimate", "Hi", "-m", MINI, "-m", HAIKU, "--max-tokens", "100", "--json").exit_code == 0
    rows = json.loads(printed[0].getvalue())
    assert [row["model"] for row in rows] == [MINI, HAIKU]
    assert all(row["upper_bound"] > 0 for row in rows)
    assert not hosted.requests


def test_estimate_needs_no_key(printed: tuple[io.StringIO, io.StringIO]) -> None:
    """What a prompt would cost is known before there is a key; a name that is none is an error beside the others."""
    assert run("estimate", "Hi").exit_code == 0
    assert printed[0].getvalue().splitlines()[1].startswith(f"{MINI} ")
    assert run("estimate", "Hi", "-m", MINI, "-m", "no-such-model").exit_code == 0
    assert printed[1].getvalue().startswith("Error: No model is called no-such-model")
    assert run("estimate", "Hi", "-m", "no-such-model", "-m", "nor-this").exit_code == 1


def test_compare(hosted: Double, printed: tuple[io.StringIO, io.StringIO]) -> None:
    """Every model answers once, no model for another, and one that fails costs the others nothing."""
    hosted.always("anthropic", status=401)
    assert run("compare", "Hi", "-m", MINI, "-m", HAIKU, "--json").exit_code == 0
    mini, haiku = json.loads(printed[0].getvalue())
    assert (mini["model"], mini["answer"], mini["error"]) == (MINI, "Hello from gpt-5.4-mini.", None)
    assert (haiku["model"], haiku["answer"]) == (HAIKU, None)
    assert "Authentication failed" in haiku["error"]
    assert len(hosted.requests) == 2
    assert run("compare", "Hi", "-m", HAIKU).exit_code == 1


def test_settings_and_their_sources(
    monkeypatch: pytest.MonkeyPatch, printed: tuple[io.StringIO, io.StringIO], tmp_path: Path
) -> None:
    """doctor --settings says what is in effect, where it comes from and what sets nothing, and shows no key."""
    (tmp_path / "home" / ".env").write_text("AGENTSWARM_MAX_REFUSALS=7\nAGENTSWARM_BUDGET_USD: 7\n", encoding="utf-8")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-0123456789")
    monkeypatch.setenv("LITELLM_VERBOSE", "true")
    assert run("doctor", "--settings").exit_code == 0
    said = printed[0].getvalue()
    assert f"AGENTSWARM_MAX_REFUSALS=7  [{tmp_path / 'home' / '.env'}]" in said
    assert "LITELLM_VERBOSE=true  [environment]" in said
    assert "AGENTSWARM_MAX_IDENTICAL_CALLS=5  [default]" in said
    assert f"LITELLM_DEFAULT_TEXT_MODEL={HAIKU}  [the only key that is set]" in said
    assert "ANTHROPIC_API_KEY is set (anthropic)" in said
    assert f"AGENTSWARM_BUDGET_USD: line 2 of {tmp_path / 'home' / '.env'} has no = sign" in said
    assert "nothing limits what is spent" in said
    assert "sk-ant" not in said


def test_doctor(monkeypatch: pytest.MonkeyPatch, printed: tuple[io.StringIO, io.StringIO]) -> None:
    """Doctor says what is usable, and fails when the store cannot be written."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789")
    assert run("doctor").exit_code == 0
    assert "usable with the keys that are set: openai/gpt-5.4-mini" in printed[0].getvalue()
    assert "sk-test" not in printed[0].getvalue()
    assert "ok    telemetry: off (AGENTSWARM_TELEMETRY)" in printed[0].getvalue()
    monkeypatch.setenv("AGENTSWARM_TELEMETRY", "otel")
    monkeypatch.setenv("AGENTSWARM_TELEMETRY_LABELS", "customer")
    assert run("doctor").exit_code == 0
    assert "telemetry: on: spans and metrics go to OpenTelemetry; labels that spans carry: customer" in " ".join(
        printed[0].getvalue().split()
    )
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
    with Path("/dev/full").open("wb") as full:
        done = processes.run(program, stdout=full.fileno())
    said = "Error: The output cannot be written (No space left on device).\n1\n"
    assert (done.stderr, done.returncode) == (said * 3, 0)


def test_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch, printed: tuple[io.StringIO, io.StringIO]) -> None:
    """A setting with an impossible value is named by its variable, without the value."""
    monkeypatch.setenv("LITELLM_COST_TRACKING", "perhaps-not")
    assert main(monkeypatch, "report") == 1
    assert "LITELLM_COST_TRACKING" in printed[1].getvalue()
    assert "perhaps-not" not in printed[1].getvalue()


def test_the_list_of_commands_agrees_with_them() -> None:
    """What the list of commands says of each, before its module is imported, is what the command says of itself."""
    commands = import_module("shared.cli.app")._COMMANDS
    for name, (summary, module) in commands.items():
        found = getattr(import_module(f"shared.cli.{module or name}"), name)
        assert isinstance(found, typer.Typer) or (inspect.getdoc(found) or "").splitlines()[0] == summary
        assert summary in " ".join(run(name, "--help").output.split())
