"""Redaction: no secret of any documented kind reaches a person, an agent, a log or the ledger."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from unittest import mock
from urllib.parse import quote

import pytest
from hypothesis import given, strategies as st

from shared import config
from shared.redaction import redact

BODY = "Ab3dEfGh1jKlMn0pQrStUvWx"


@pytest.mark.parametrize(
    "secret",
    [
        f"sk-{BODY}",
        f"sk-proj-{BODY}",
        f"sk-ant-api03-{BODY}",
        f"sk-or-v1-{BODY}",
        "sk-proj-********************************abcd",
        f"gsk_{BODY}",
        f"xai-{BODY}",
        f"pplx-{BODY}",
        f"r8_{BODY}",
        f"hf_{BODY}",
        f"AIza{BODY}",
    ],
    ids=lambda secret: secret[:8],
)
@pytest.mark.parametrize(
    "around", ["Incorrect API key provided: {}.", '{{"key": "{}"}}', "{}", "a={},b", "'{}' is bad", "key\n{}\nend"]
)
def test_a_key_of_any_documented_shape_is_masked(secret: str, around: str) -> None:
    """A provider's key is masked by its shape, though nobody told us of it, and the rest of the text stays."""
    text = redact(around.format(secret))
    assert BODY not in text
    assert "[redacted]" in text
    assert secret[-8:] not in text


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("authorization: Bearer abcdefgh12345678", "abcdefgh12345678"),
        ("Authorization: bearer  eyJhbGciOi.eyJzdWIi.c2ln", "eyJzdWIi"),
        ("proxy-authorization: Basic dXNlcjpwYXNzd29yZA==", "dXNlcjpwYXNzd29yZA"),
        ("GET https://example.com/v1?key=hunter2&x=1", "hunter2"),
        ("https://example.com/?a=1&api_key=hunter2", "hunter2"),
        ("https://example.com/?a=1&api-key=hunter2", "hunter2"),
        ("https://b.s3.amazonaws.com/o?X-Amz-Signature=hunter2&X-Amz-Credential=hunter3", "hunter"),
        ("https://example.com/f?sig=hunter2", "hunter2"),
        ("https://example.com/f?access_token=hunter2'", "hunter2"),
        ("postgresql://me:hunter2@db.example/ledger", "hunter2"),
        ("redis://:hunter2@cache", "hunter2"),
        ("via https://user:hunter2@proxy:8080 failed", "hunter2"),
    ],
)
def test_a_secret_in_a_header_or_url_is_masked(text: str, secret: str) -> None:
    """Tokens in headers, keys and signatures in query strings and passwords in URLs are masked."""
    assert secret not in redact(text)
    assert "[redacted]" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "The model gpt-5.4-mini does not exist",
        "Rate limit reached: 200000 tokens per minute, try again in 1.2s",
        "https://api.openai.com/v1/chat/completions?page=2",
        "task-force risk-averse monkey-wrench",
    ],
)
def test_text_without_secrets_stays_as_it_is(text: str) -> None:
    """Redaction does not eat what a person needs to read."""
    assert redact(text) == text


names = st.sampled_from(
    ["OPENAI_API_KEY", "COHERE_API_KEY", "REPLICATE_API_TOKEN", "MY_SECRET", "DB_PASSWORD", "aws_credential_file"]
)
# What a header can carry: printable ASCII without spaces at its ends.
secrets = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=80).filter(
    lambda secret: secret not in "[redacted]"
)


@given(secrets, names, st.text(max_size=40), st.text(max_size=40), st.integers(40, 400))
def test_a_value_of_the_environment_never_survives(secret: str, name: str, before: str, after: str, limit: int) -> None:
    """Whatever a variable with a secret's name holds is masked in any text, cut or not."""
    with mock.patch.dict(os.environ, {name: secret}):
        text = redact(f"{before}{secret}{after}", limit=limit)
    assert secret not in text
    assert len(text) <= limit


@given(secrets, st.text(max_size=20), st.text(max_size=20))
def test_a_secret_in_use_that_the_environment_does_not_hold_is_masked(secret: str, before: str, after: str) -> None:
    """A scope's or a caller's own key is masked when it is named."""
    assert secret not in redact(f"{before}{secret}{after}", None, secret)


def test_a_key_with_a_line_break_at_its_end_is_masked_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets mounted from files end in a line break that no message repeats."""
    monkeypatch.setenv("COHERE_API_KEY", "abcdefghijklmnop\n")
    assert redact("bad key abcdefghijklmnop!") == "bad key [redacted]!"


def test_a_secret_from_dotenv_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that only .env holds is a secret as well."""
    Path(".env").write_text("MISTRAL_API_KEY=abcdefghijklmnop\n", encoding="utf-8")
    assert redact("bad key abcdefghijklmnop") == "bad key [redacted]"


def test_the_longer_of_two_secrets_is_masked_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret that begins like another leaves no tail behind."""
    monkeypatch.setenv("A_TOKEN", "abcdefgh")
    monkeypatch.setenv("B_TOKEN", "abcdefgh-tail-of-it")
    assert redact("x abcdefgh-tail-of-it y") == "x [redacted] y"
    assert config.secrets() == ("abcdefgh-tail-of-it", "abcdefgh")


def test_a_short_value_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """`DEBUG_TOKEN=1` does not turn every 1 into a mask."""
    monkeypatch.setenv("DEBUG_TOKEN", "1")
    assert redact("1 of 11") == "1 of 11"


@given(st.text(st.characters()), st.integers(1, 60))
def test_any_text_becomes_one_printable_line(text: str, limit: int) -> None:
    """No control character, line break or lone surrogate passes, and the limit holds."""
    shown = redact(text, limit=limit)
    assert shown.isprintable()
    assert len(shown) <= limit
    shown.encode("utf-8")


ENCODED = "pro/ject+key=0001~\N{LATIN SMALL LETTER E WITH ACUTE}Zz"


@pytest.mark.parametrize("before", ["", "a", "ab", "user:"])
@pytest.mark.parametrize("after", ["", "x", "xy", ":rest"])
def test_a_key_in_base64_is_masked_wherever_it_stands(before: str, after: str) -> None:
    """A provider that echoes a header shows the key in base64, alone or behind a user name, padded or not."""
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(f"{before}{ENCODED}{after}".encode()).decode()
        shown = redact(f"Invalid credentials {text.rstrip('=')}.", ENCODED)
        assert "[redacted]" in shown
        kept = shown.removeprefix("Invalid credentials ").removesuffix(".").split("[redacted]")
        assert all(len(part) <= len(text) // 3 for part in kept)
        assert not any(part and part in encode(ENCODED.encode()).decode()[2:-4] for part in kept if len(part) > 3)


@pytest.mark.parametrize(
    "encoded",
    [
        quote(ENCODED),
        quote(ENCODED, safe=""),
        re.sub("%..", lambda found: found[0].lower(), quote(ENCODED)),
        "".join(f"%{byte:02X}" for byte in ENCODED.encode()),
        ENCODED.encode().hex(),
        ENCODED.encode().hex(":").upper(),
        json.dumps(ENCODED).strip('"'),
        json.dumps(ENCODED).strip('"').replace("/", "\\/"),
        "".join(f"\\u{ord(char):04x}" for char in ENCODED),
        ENCODED.replace("+", "&#43;").replace("=", "&#x3D;"),
    ],
)
def test_a_key_in_other_forms_is_masked(encoded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of the environment is masked in percent form, hexadecimal, JSON's and HTML's escapes, in part or whole."""
    monkeypatch.setenv("SOME_API_KEY", ENCODED)
    assert redact(f"GET /v1/models?auth={encoded}&x=1 failed") == "GET /v1/models?auth=[redacted]&x=1 failed"


def test_the_forms_of_a_short_key_mask_nothing_else() -> None:
    """A server of the user's own takes any text as a key; its forms are too short to tell from other text."""
    assert redact("Bad request: 6e6f in bm8= or %6e%6f", "no") == "Bad request: 6e6f in bm8= or %6e%6f"


@pytest.mark.parametrize("key", ["x", "none", "EMPTY", "ollama", "lm-studio", "not-needed"])
def test_a_key_that_is_no_secret_spoils_no_message(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without keys takes any text as one; such words stay in messages."""
    monkeypatch.setenv("OPENAI_API_KEY", key)
    message = f"Could not connect to ollama: {key} of lm-studio, none, EMPTY, not-needed"
    assert redact(message, key) == message
