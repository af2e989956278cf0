"""Sending a plan over the wire, with its stalls, cuts and lies."""

import asyncio
import socket
import struct
from typing import Any, cast

from starlette.types import Receive, Send

from .double import Double
from .faults import Plan, Step
from .script import SAFETY_S, Billed, Gate, Recorded, Reply
from .wire import spend


async def play(
    double: Double, request: Recorded, reply: Reply, plan: Plan, bill: Billed | None, receive: Receive, send: Send
) -> None:
    """Send a plan; what is billed is written down before the bytes that cause it go out."""
    gone = asyncio.ensure_future(_disconnect(receive))
    try:
        finished = await _play(double, request, reply, plan, bill, send, gone)
        if not finished:
            request.closed_early = gone.done()
            await _break_off(plan, send, gone)
    finally:
        gone.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _play(
    double: Double,
    request: Recorded,
    reply: Reply,
    plan: Plan,
    bill: Billed | None,
    send: Send,
    gone: asyncio.Future[None],
) -> bool:
    """Whether the answer came to its end; if not, the connection is to be broken off."""
    if bill and reply.billed:
        double.bill(bill)
    if plan.stall_at == -1 and not await _through(double, reply.gate, gone):
        return False
    if bill and not reply.billed:
        double.bill(bill)
    if plan.cut_at == -1:
        return False
    full, tokens, finished = bill.usage if bill else None, 0, False
    if bill and full and any(step.kind == "delta" for step in plan.steps):
        bill.usage = spend(full, 0)
    request.status = plan.status
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in plan.headers.items()]
    await send({"type": "http.response.start", "status": plan.status, "headers": headers})
    last = len(plan.steps) - 1
    for index, step in enumerate(plan.steps or [Step(b"", "body")]):
        if index == plan.stall_at and not await _through(double, reply.gate, gone):
            return False
        if plan.drip and index and not reply.gate.released:
            await _drop(reply, gone)
        if gone.done() or index == plan.cut_at:
            return False
        tokens += step.tokens
        if bill and full:
            finished = finished or step.kind in ("finish", "usage", "body", "part")
            bill.usage = full if finished else spend(full, tokens)
            bill.reported = bill.reported or step.usage
        more = index < last or plan.cut_at is not None
        await send({"type": "http.response.body", "body": step.data, "more_body": more})
        if more:
            await asyncio.sleep(0)
    return plan.cut_at is None


async def _drop(reply: Reply, gone: asyncio.Future[None]) -> None:
    """The pause between two pieces, over at once when the gate is opened or the client hangs up."""
    waiting = asyncio.ensure_future(reply.gate.wait())
    await asyncio.wait([waiting, gone], timeout=reply.interval_s, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


async def _through(double: Double, gate: Gate, gone: asyncio.Future[None]) -> bool:
    """Wait at a gate; False when the client hung up or nobody opened it in time."""
    waiting = asyncio.ensure_future(gate.wait())
    try:
        await asyncio.wait([waiting, gone], timeout=SAFETY_S, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done() and not gone.done():
            double.problems.append(f"a stall was not released within {SAFETY_S} s")
        return waiting.done() and not gone.done()
    finally:
        waiting.cancel()


def _transport(send: Send) -> asyncio.Transport:
    """The connection under uvicorn's `send`, for what ASGI cannot say."""
    transport = cast("Any", send).__self__.transport
    assert isinstance(transport, asyncio.Transport)
    return transport


async def _break_off(plan: Plan, send: Send, gone: asyncio.Future[None]) -> None:
    """End the connection now: with a reset, or politely but too early; return when it is gone."""
    transport = _transport(send)
    if plan.ending == "close":
        transport.write(plan.tail)
        transport.close()
    else:
        connection = transport.get_extra_info("socket")
        if connection is not None and not transport.is_closing():
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    await asyncio.wait([gone], timeout=SAFETY_S)
