"""The time in microseconds, and identifiers ordered by time."""

from __future__ import annotations

import platform
import secrets
import time
import uuid
from functools import lru_cache


def new_id() -> uuid.UUID:
    """A UUIDv7 (RFC 9562): ordered by time, so that new rows are stored together."""
    now_ms = time.time_ns() // 1_000_000
    return uuid.UUID(int=(now_ms << 80) | (7 << 76) | (secrets.randbits(12) << 64) | (2 << 62) | secrets.randbits(62))


def now_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1000


@lru_cache(maxsize=1)
def machine_name() -> str | None:
    """The name of the machine whose clock this is; None when it has none."""
    return platform.node() or None
