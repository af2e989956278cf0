"""Replicate's predictions: created, then asked for until done, or read as a stream of events."""

from threading import Lock

from .script import Reply, Usage
from .wire import CREATED_ISO, Answer, Body, Call, Content, Frame, content_of, plain


class Predictions:
    """The predictions made since the last reset, by id."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._made: dict[str, tuple[Call, Reply, int]] = {}

    def clear(self) -> None:
        """Forget them."""
        with self._lock:
            self._made.clear()

    def keep(self, ident: str, call: Call, reply: Reply) -> None:
        """Remember one."""
        with self._lock:
            self._made[ident] = (call, reply, 0)

    def ask(self, ident: str) -> tuple[Call, Reply, int] | None:
        """The call and reply of a prediction, and how often it was asked for before."""
        with self._lock:
            found = self._made.get(ident)
            if found:
                self._made[ident] = (found[0], found[1], found[2] + 1)
            return found


def create(call: Call, reply: Reply) -> Answer:
    """POST /v1/models/{owner}/{name}/predictions."""
    content = content_of(call, reply)
    answer = plain(_prediction(call, content, "starting"), content.usage, status=201)
    answer.frames[0].usage = False
    return answer


def poll(call: Call, reply: Reply, asked: int, failed: str) -> Answer:
    """GET /v1/predictions/{id}."""
    content = content_of(call, reply)
    if asked < reply.polls:
        return plain(_prediction(call, content, "processing"), None)
    if failed:
        return plain(_prediction(call, content, "failed") | {"error": failed}, None)
    body = _prediction(call, content, "succeeded") | {
        "output": content.chunks,
        "started_at": CREATED_ISO,
        "completed_at": CREATED_ISO,
        "metrics": _metrics(content.usage),
    }
    return plain(body, None)


def stream(call: Call, reply: Reply) -> Answer:
    """GET of the stream URL."""
    content = content_of(call, reply)
    frames = [Frame(chunk.replace("\n", "\ndata: "), event="output") for chunk in content.chunks]
    frames.append(Frame({}, "finish", event="done"))
    return Answer(200, frames, "sse")


def _metrics(usage: Usage) -> Body:
    return {
        "input_token_count": usage.input,
        "output_token_count": usage.output,
        "predict_time": 0.5,
        "time_to_first_token": 0.1,
        "tokens_per_second": 40.0,
        "total_time": 0.6,
    }


def _prediction(call: Call, content: Content, status: str) -> Body:
    ident = call.ident[:26]
    base = f"{call.origin}/v1/predictions/{ident}"
    streams = "https://stream.replicate.com" if call.origin.startswith("https:") else call.origin
    urls = {"cancel": f"{base}/cancel", "get": base, "stream": f"{streams}/v1/files/{ident}"}
    return {
        "id": ident,
        "model": content.model,
        "version": "hidden",
        "input": call.body.get("input", {}),
        "logs": "",
        "output": None,
        "data_removed": False,
        "error": None,
        "source": "api",
        "status": status,
        "created_at": CREATED_ISO,
        "urls": urls | {"web": f"https://replicate.com/p/{ident}"},
    }
