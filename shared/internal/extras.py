"""What the optional parts of this package need, and the command that installs it."""

from __future__ import annotations

import importlib.util

# The module and the requirement of each extra. The command names what it installs, not `agentswarm-tools[local]`: that
# works in a checkout too, and while the package itself is on no index.
EXTRAS = {
    "local": ("xllamacpp", "xllamacpp>=2026.10.11549,<2026.11"),
    "otel": ("opentelemetry", "opentelemetry-api>=1.35,<2"),
    "postgres": ("psycopg", "psycopg[binary]>=3.2,<4"),
}


def has_extra(name: str) -> bool:
    """Whether what an extra needs is installed."""
    return importlib.util.find_spec(EXTRAS[name][0]) is not None


def install_command(name: str) -> str:
    """The command that installs what an extra needs."""
    return f'pip install "{EXTRAS[name][1]}"'
