"""The command line, a file for each group of commands."""

from shared.cli.app import app, command, main
from shared.cli.console import err, out

__all__ = ["app", "command", "err", "main", "out"]
