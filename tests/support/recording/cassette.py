"""The file of a cassette: a header, then each request and its response, for people to read."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # its stubs are no dependency
from vcr.persisters.filesystem import CassetteNotFoundError
from vcr.request import Request

ORIGINS = ("local model", "provider double", "live")
MAX_BYTES = 200_000


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # it is Any
    """Bodies of several lines as block scalars, everything else on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: Any, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


def _list(dumper: Any, items: list[Any]) -> Any:
    short = all(isinstance(item, str) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=short)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)


def read(path: Path) -> dict[str, Any]:
    """What a cassette's file holds."""
    data = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    assert isinstance(data, dict), path
    return data


def dump(data: dict[str, Any]) -> str:
    """A cassette's text."""
    text: str = yaml.dump(data, Dumper=_Dumper, width=10**9, allow_unicode=True, sort_keys=False)
    return text


def without_date(data: dict[str, Any]) -> dict[str, Any]:
    """Two recordings that differ in nothing else are the same."""
    return {key: value for key, value in data.items() if key != "recorded_on"}


class Persister:
    """vcrpy's way to the files; writes one only when something in it has changed."""

    def __init__(self, origin: str, *, recording: bool) -> None:
        self._origin = origin
        self._recording = recording

    def load_cassette(self, cassette_path: str, serializer: Any) -> tuple[list[Request], list[dict[str, Any]]]:
        """The requests and responses of a file."""
        path = Path(cassette_path)
        if self._recording or not path.is_file():  # what is recorded anew does not build on what was there
            raise CassetteNotFoundError(path)
        interactions = read(path)["interactions"]
        requests = [_request(item["request"]) for item in interactions]
        return requests, [_response(item["response"]) for item in interactions]

    def save_cassette(self, cassette_path: str, cassette_dict: dict[str, Any], serializer: Any) -> None:
        """Write the file, with today's date when anything has changed."""
        assert self._recording, f"{cassette_path} would be written in replay"
        path = Path(cassette_path)
        data = {
            "recorded_from": self._origin,
            "recorded_on": datetime.datetime.now(datetime.UTC).date(),
            "version": 1,
            "interactions": [
                {"request": _request_data(request), "response": _response_data(response)}
                for request, response in zip(cassette_dict["requests"], cassette_dict["responses"], strict=True)
            ],
        }
        if path.is_file() and without_date(read(path)) == without_date(data):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dump(data), encoding="utf-8", newline="\n")


def _request(data: dict[str, Any]) -> Request:
    body = data.get("body")
    return Request(data["method"], data["uri"], None if body is None else body.encode(), data["headers"])


def _response(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"body": {"string": data["body"].encode()}}


def _request_data(request: Request) -> dict[str, Any]:
    body = request.body
    data = {"method": request.method, "uri": request.uri, "headers": {k: [v] for k, v in request.headers.items()}}
    return data | ({"body": body.decode() if isinstance(body, bytes) else body} if body else {})


def _response_data(response: dict[str, Any]) -> dict[str, Any]:
    return response | {"body": response["body"]["string"].decode()}
