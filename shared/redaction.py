"""Remove secrets from text before a person, an agent, a log or the ledger sees it."""

from __future__ import annotations

import base64
import re
from functools import lru_cache

from shared.config import secrets

_MASK = "[redacted]"
_PATTERNS = (
    re.compile(r"\b(?:sk|pk|rk|xai|gsk|pplx|r8|hf|key)[-_][A-Za-z0-9_\-*]{8,}"),
    re.compile(r"\bAIza[A-Za-z0-9_\-]{10,}"),
    re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._\-]{8,}"),
    re.compile(r"(?i)([?&](?:api[-_]?key|key|sig|signature|token|access_token|x-amz-[a-z-]+)=)[^&\s\"']+"),
    re.compile(r"://[^/\s:@]*:[^/\s@]+@"),
)
_MIN_ENCODED = 8
_MIN_SECRET = 6
# What people give as a key to a server that needs none; to mask these words would spoil messages about that server.
_NO_SECRETS = frozenset(
    {"dummy", "ignored", "lm-studio", "lm_studio", "lmstudio", "no-key", "not-needed", "not-required", "nothing"}
    | {"ollama", "placeholder", "sk-no-key-required", "unused", "whatever"}
)


def redact(text: str, *known: str | None, limit: int = 200) -> str:
    """
    `text` on one line, without secrets, at most `limit` characters.

    Args:
        text: Text from a provider, a URL or another library.

        known: Secrets in use that are not in the environment.
    """
    for secret in (*(value for value in known if value), *secrets()):
        if len(secret) < _MIN_SECRET or secret.lower() in _NO_SECRETS:
            continue
        text = text.replace(secret, _MASK)
        text = _encoded(secret).sub(_MASK, text)
    for pattern in _PATTERNS:
        text = pattern.sub(_MASK, text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


@lru_cache(maxsize=256)
def _encoded(secret: str) -> re.Pattern[str]:
    """What a secret looks like in base64, alone or within a text, in hexadecimal, and with any character escaped."""
    data = secret.encode("utf-8", "surrogatepass")
    forms = {_in_base64(data, offset, alphabet) for offset in range(3) for alphabet in (b"+/", b"-_")}
    found = [re.escape(form) for form in forms if len(form) >= _MIN_ENCODED]
    if len(secret) >= _MIN_ENCODED:
        found.append("(?i:" + "[ :]?".join(f"{byte:02x}" for byte in data) + ")")
        found.append("".join(map(_escaped, secret)))
    return re.compile("|".join(found or ["(?!)"]))


def _escaped(char: str) -> str:
    """A pattern for a character as it is, or as URLs, JSON, HTML and programs escape it."""
    percent = "".join(f"%{byte:02x}" for byte in char.encode("utf-8", "surrogatepass"))
    number = ord(char)
    escapes = rf"{percent}|\\u{number:04x}|\\x{number:02x}|&#0*{number};|&#x0*{number:x};"
    return rf"(?:\\?{re.escape(char)}|(?i:{escapes}))"


def _in_base64(data: bytes, offset: int, alphabet: bytes) -> str:
    """A secret in base64, `offset` bytes behind a multiple of 3, without the characters that its neighbours share."""
    text = base64.b64encode(bytes(offset) + data, altchars=alphabet).decode()
    return text[-(-offset * 8 // 6) : (offset + len(data)) * 8 // 6]
