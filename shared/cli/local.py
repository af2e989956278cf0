"""The tiny local model, for trials and tests without a key."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from shared.cli.console import err, out

local = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@local.callback()
def group() -> None:
    """The tiny local model, for trying and testing without a key."""


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
