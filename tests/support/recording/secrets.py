"""What no cassette may hold: how secrets look, and a request and a response that are full of them."""

from __future__ import annotations

import re

from vcr.request import Request

from tests.support.recording.plugin import recorders_secrets

SECRETS = re.compile(
    r"\bsk-(?!test-)[\w-]{12,}|\bsk-ant-|\bAIza[\w-]{20,}|\bgsk_\w{12,}|\bxai-\w{12,}|\bpplx-\w{12,}|\br8_\w{12,}|\bhf_\w{12,}"
    r"|\bBearer\s|\bAKIA[A-Z0-9]{12,}|\beyJ[\w-]{20,}\.|\borg-(?!0000)\w{6,}|\bproj_(?!0000)\w{6,}"
    r"|__cf_bm|set-cookie|\bcookie:|authorization:|x-api-key:|api-key:|x-goog-api-key:|openai-organization|[?&](?:api_)?key=",
    re.IGNORECASE,
)


def secrets_in(text: str) -> list[str]:
    """What no cassette may hold, by its form or because it is in this environment."""
    return [found[0] for found in SECRETS.finditer(text)] + [value for value in recorders_secrets() if value in text]


SECRET_REQUEST = Request(
    "POST",
    "https://api.example.org/v1/chat?alt=sse&key=AIzaSyA0123456789abcdefghijklmn",
    b"{}",
    {
        "Authorization": "Bearer sk-proj-0123456789abcdef",
        "x-api-key": "sk-ant-0123456789abcdef",
        "Cookie": "__cf_bm=1",
        "openai-organization": "org-0123456789",
        "content-type": "application/json",
    },
)
SECRET_RESPONSE = {
    "status": {"code": 429, "message": "Too Many Requests"},
    "headers": {
        "Set-Cookie": ["__cf_bm=abc; path=/"],
        "openai-organization": ["acme-inc"],
        "x-request-id": ["req_0123456789"],
        "date": ["Tue, 24 Nov 2026 10:00:00 GMT"],
        "Retry-After": ["3"],
    },
    "body": {
        "string": b'{"id": "chatcmpl-Real0123456789ab", "created": 1790000000, "message": "org-AbCdEf123456 is slow"}'
    },
}
