"""Remove secrets from text before a person, an agent, a log or the ledger sees it."""

from __future__ import annotations

import re

from shared.config import secrets

_MASK = "[redacted]"
_PATTERNS = (
    re.compile(r"\b(?:sk|pk|rk|xai|gsk|pplx|r8|hf|key)[-_][A-Za-z0-9_\-*]{8,}"),
    re.compile(r"\bAIza[A-Za-z0-9_\-]{10,}"),
    re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._\-]{8,}"),
    re.compile(r"(?i)([?&](?:api[-_]?key|key|sig|signature|token|access_token|x-amz-[a-z-]+)=)[^&\s\"']+"),
    re.compile(r"://[^/\s:@]*:[^/\s@]+@"),
)


def redact(text: str, *known: str | None, limit: int = 200) -> str:
    """
    `text` on one line, without secrets, at most `limit` characters.

    Args:
        text: Text from a provider, a URL or another library.

        known: Secrets in use that are not in the environment.
    """
    for secret in (*(value for value in known if value), *secrets()):
        text = text.replace(secret, _MASK)
    for pattern in _PATTERNS:
        text = pattern.sub(_MASK, text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
