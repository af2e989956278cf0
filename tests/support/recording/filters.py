"""What a cassette must not hold: keys, cookies, ids and dates leave it when it is recorded."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from email.parser import BytesParser
from email.policy import HTTP
from io import BytesIO
from typing import Any, Protocol

from PIL import Image

from shared.pytest_plugin import scrub_request

LOCAL_HOST = "http://local-model:8080"
"""The local model server in a cassette; its own address and port differ each time."""
AZURE_HOST = "https://example.openai.azure.com"

_REQUEST_HEADERS = frozenset({"content-type", "anthropic-version", "anthropic-beta", "prefer"})
_RESPONSE_HEADERS = frozenset({"content-type", "retry-after", "retry-after-ms", "x-should-retry"})
_ID = re.compile(r'("(?:id|request_id|response_id|responseId|user_id|tool_call_id)"\s*:\s*")([^"]+)(")')
_DATE = re.compile(r'("created(?:_at)?"\s*:\s*)(\d+|"[^"]*")')
_MOMENT = re.compile(r'("(?:created|started|completed)_at"\s*:\s*)"[^"]*"')
_TIMING = re.compile(r'("timings"\s*:\s*)\{[^{}]*\}')
_ORGANISATION = re.compile(r"\b(org|proj)[-_](?!0000)[A-Za-z0-9]{6,}")
_LOOPBACK = re.compile(r"^http://127\.0\.0\.1:\d+(?P<double>/openai/v1)?")
_AZURE = re.compile(r"^https://[\w-]+\.openai\.azure\.com")

# 2026-01-01, the provider double's only date.
_EPOCH, _ISO = "1767225600", '"2026-01-01T00:00:00.000000Z"'
# An id as long as this is nothing else, wherever it stands.
_LONG = 16
# LiteLLM's own clients are given the double's address; the cassette has the host that they would ask.
UNGUARDED_HOST = "https://api.aimlapi.com/v1"


# Images inside a body, but for the one pixel that some scenes ask about.
_INLINE = re.compile(rb'("data":"|"url":"data:image/\w+;base64,)([A-Za-z0-9+/=]{100,})')


def _picture(data: bytes) -> bytes:
    """An image by its kind and size: its bytes depend on the version of the library that wrote them."""
    with Image.open(BytesIO(data)) as opened:
        return f"{opened.format} of {opened.width}x{opened.height}".encode()


def _form(kind: str, body: bytes) -> bytes:
    """A form as JSON, to be read and compared."""
    fields: dict[str, list[str]] = {}
    message = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
    for part in message.iter_parts():
        payload = part.get_payload(decode=True)
        assert isinstance(payload, bytes)
        value = _picture(payload) if part.get_filename() else payload
        fields.setdefault(str(part.get_param("name", "", "content-disposition")), []).append(value.decode())
    return json.dumps(fields).encode()


class VcrRequest(Protocol):
    """What vcrpy's Request has, as far as it is used here."""

    method: str
    uri: str
    body: Any
    headers: Any


class Filters:
    """One cassette's filters; ids are numbered in the order in which they come, so that the same stays the same."""

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}

    def request(self, request: VcrRequest) -> VcrRequest:
        """A request without keys, with a fixed name for the local model and for ids in its address."""
        scrubbed: VcrRequest = scrub_request(request)
        headers = {name.lower(): value for name, value in scrubbed.headers.items()}
        scrubbed.headers = {name: value for name, value in sorted(headers.items()) if name in _REQUEST_HEADERS}
        uri = _LOOPBACK.sub(lambda found: UNGUARDED_HOST if found["double"] else LOCAL_HOST, scrubbed.uri)
        uri = _AZURE.sub(AZURE_HOST, uri)
        for real, shown in self._ids.items():
            uri = uri.replace(real, shown)
        scrubbed.uri = uri
        kind = str(headers.get("content-type", ""))
        if "boundary=" in kind:  # one that is read from a cassette has none
            scrubbed.headers["content-type"] = "multipart/form-data"
            scrubbed.body = _form(kind, scrubbed.body)
        elif isinstance(scrubbed.body, bytes):
            scrubbed.body = _INLINE.sub(lambda found: found[1] + _picture(base64.b64decode(found[2])), scrubbed.body)
        return scrubbed

    def response(self, response: dict[str, Any]) -> dict[str, Any]:
        """A response without cookies, ids and dates."""
        headers: Mapping[str, list[str]] = response["headers"]
        kept = {name.lower(): values for name, values in headers.items() if name.lower() in _RESPONSE_HEADERS}
        content = response["body"].get("string") or b""
        text = content.decode() if isinstance(content, bytes) else content
        message = response["status"].get("message") or ""
        return {
            "status": {"code": response["status"]["code"], "message": message},
            "headers": dict(sorted(kept.items())),
            "body": {"string": self.text(text).encode()},
        }

    def text(self, text: str) -> str:
        """A body with its ids numbered and its dates fixed."""
        text = _ID.sub(lambda found: found[1] + self._numbered(found[2]) + found[3], text)
        for real, shown in self._ids.items():
            text = text.replace(real, shown) if len(real) >= _LONG else text
        text = _MOMENT.sub(lambda found: found[1] + _ISO, text)
        text = _DATE.sub(lambda found: found[1] + (_ISO if found[2].startswith('"') else _EPOCH), text)
        text = _TIMING.sub(lambda found: found[1] + "{}", text)
        return _ORGANISATION.sub(lambda found: f"{found[1]}-0000", text)

    def _numbered(self, real: str) -> str:
        if real not in self._ids:
            kind = re.match(r"(?:[a-z]+[-_])+", real)
            self._ids[real] = f"{kind[0] if kind else 'id'}{len(self._ids) + 1:04d}"
        return self._ids[real]
