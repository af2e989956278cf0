"""The ASGI application: a request in, the provider's answer out."""

import hashlib
import json
import time
from collections.abc import Mapping
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Receive, Scope, Send

from . import faults, providers, replicate
from .double import Double
from .errors import error_answer, kind_of, wrong_use
from .fault import Fault
from .play import play
from .script import Billed, Recorded, Reply
from .wire import Answer, Body, Call, Frame, dumps


def application(double: Double) -> ASGIApp:
    """The application that answers for a double."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = _recorded(scope, await _read(receive))
        double.begin(request)
        try:
            reply, plan, bill = _prepare(double, request)
            await play(double, request, reply, plan, bill, receive, send)
        except Exception as error:
            double.problems.append(f"{type(error).__name__}: {error} ({request.method} {request.path})")
            raise
        finally:
            double.end(request)

    return app


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(body)


def _recorded(scope: Scope, raw: bytes) -> Recorded:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    return Recorded(
        number=-1,
        provider="",
        operation="",
        model="",
        stream=False,
        method=scope["method"],
        host=headers.get("host", ""),
        path=scope["path"],
        query=scope["query_string"].decode("latin-1"),
        headers=headers,
        body=_parsed(headers.get("content-type", ""), raw),
        raw=raw,
        at_s=time.monotonic(),
    )


def _parsed(content_type: str, raw: bytes) -> Any:
    """JSON, or a form as a dict with its files under "files"; None when it is neither."""
    if content_type.startswith("multipart/"):
        message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + raw)
        form: Body = {"files": []}
        for part in message.iter_parts():
            name = str(part.get_param("name", "", "content-disposition"))
            data = part.get_payload(decode=True)
            data = data if isinstance(data, bytes) else b""
            if part.get_filename():
                form["files"].append((name, data))
            else:
                form[name] = data.decode()
        return form
    try:
        return json.loads(raw)
    except ValueError:
        return None


def _prepare(double: Double, request: Recorded) -> tuple[Reply, faults.Plan, Billed | None]:
    provider, prefix, path = providers.split(request.host, request.path)
    found = providers.find(provider, request.method, path)
    query = dict(parse_qsl(request.query))
    body = request.body if isinstance(request.body, dict) else {}
    named: Mapping[str, str] = found[1] if found else {}
    request.provider = provider or (found[0].provider if found else "openai")
    request.operation = found[0].operation if found else ""
    request.model = named.get("model") or str(body.get("model") or "")
    request.stream = bool(named.get("stream") or body.get("stream", request.provider == "ollama"))
    request.stream |= request.operation == "stream"
    call = _call(double, request, body, query, prefix)
    if found is None:
        wrong = Reply(error="not_found", message=f"Unknown request URL: {request.method} {request.path}")
    elif request.operation != "file" and not providers.has_key(request.provider, request.headers, query):
        wrong = Reply(error="auth", message="You didn't provide an API key.")
    elif request.method == "POST" and request.body is None:
        wrong = Reply(error="invalid", message="We could not parse the body of your request.")
    else:
        reply = faults.on_reply(double.take(request))
        request.reply = reply
        answer = _answer(double, call, reply, found[0])
        return reply, _plan(call, reply, answer), _bill(request, reply, answer)
    return wrong, _plan(call, wrong, error_answer(call, wrong)), None


def _call(double: Double, request: Recorded, body: Body, query: Mapping[str, str], prefix: str) -> Call:
    key = f"{request.provider} {request.path} {request.query} ".encode() + request.raw
    digest = hashlib.sha256(key).hexdigest()
    ident = hashlib.sha256(f"{digest} {double.repetition(digest)}".encode()).hexdigest()[:32]
    scheme = "https" if providers.provider_of_host(request.host) else "http"
    origin = f"{scheme}://{request.host}{prefix}"
    return Call(request.provider, request.operation, request.model, request.stream, body, ident, query, origin)


def _answer(double: Double, call: Call, reply: Reply, endpoint: providers.Endpoint) -> Answer:
    misfit = faults.misfit(reply.fault, call)
    if misfit:
        double.problems.append(misfit)
        return wrong_use(misfit)
    if kind_of(reply) and reply.fault not in (Fault.ERROR_EVENT, Fault.ERROR_200):
        answer = error_answer(call, reply)
    elif endpoint.render is None:
        answer = _of_prediction(double, call)
    else:
        answer = endpoint.render(call, reply)
        if call.provider == "replicate":
            double.predictions.keep(call.ident[:26], call, reply)
        if reply.status is not None and not kind_of(reply):
            answer.status = reply.status
    if reply.body is not ...:
        raw = reply.body.encode() if isinstance(reply.body, str) else reply.body
        answer.frames = [Frame(raw=raw if isinstance(raw, bytes) else dumps(raw), kind="body")]
        answer.framing, answer.prefix = "json", b""
        answer.headers.pop("content-type", None)
    return faults.on_frames(call, reply, answer)


def _of_prediction(double: Double, call: Call) -> Answer:
    """What became of a Replicate prediction, which its own reply decides."""
    made = double.predictions.ask(call.model)
    if made is None:
        return error_answer(call, Reply(error="not_found", message="Prediction not found"))
    first_call, reply, asked = made
    if call.operation == "stream":
        return replicate.stream(first_call, reply)
    failed = (reply.message or "The model failed.") if reply.fault is Fault.ERROR_EVENT else ""
    return replicate.poll(first_call, reply, asked, failed)


def _plan(call: Call, reply: Reply, answer: Answer) -> faults.Plan:
    headers = {"content-type": providers.content_type(call, answer.framing)}
    headers |= providers.own_headers(call) | answer.headers
    if reply.content_type:
        headers["content-type"] = reply.content_type
    plan = faults.on_bytes(reply, faults.plan_of(answer, headers))
    for name, value in reply.headers.items():
        plan.headers.pop(name.lower(), None)
        if value is not None:
            plan.headers[name.lower()] = value
    return plan


def _bill(request: Recorded, reply: Reply, answer: Answer) -> Billed | None:
    """The bill for an answer, None when it costs nothing."""
    unheard = reply.fault in (Fault.RESET_BEFORE_HEADERS, Fault.REDIRECT)
    costs = answer.usage is not None and answer.status < 300 and not unheard
    usage = answer.usage or reply.usage
    if usage is None or not (costs if reply.billed is None else reply.billed):
        return None
    return Billed(request.provider, request.model, usage, request=request)
