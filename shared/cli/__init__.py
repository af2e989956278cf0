"""The command line, a file for each group of commands."""

from shared.cli.app import app, main
from shared.cli.console import err, out

__all__ = ["app", "err", "main", "out"]
